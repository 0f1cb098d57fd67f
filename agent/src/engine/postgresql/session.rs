//! What is asked of a running server: over its local socket, as superuser by the socket's peer, on one connection that is
//! kept, every query with a deadline.
//!
//! Names are resolved in `pg_catalog` alone, so that nothing a database user plants is ever called.

mod followers;
mod replication;
mod terms;

pub(super) use replication::{CutOff, Keeper};
pub(super) use terms::BeforeLeading;

use std::sync::Mutex;
use std::time::Duration;

use holdfast_common::assignment::Synchronous;
use holdfast_common::id::NodeId;
use holdfast_common::position::Position;
use holdfast_common::report::EngineState;
use holdfast_common::role::Role;
use holdfast_common::term::Term;
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, Row, Statement};
use tokio_util::task::AbortOnDropHandle;

use super::layout::Layout;
use super::render::{self, REPLICATION_USER, SLOT_PREFIX, SUPERUSER};
use crate::engine::{Error, Observation, Waker};

const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
const QUERY_DEADLINE: Duration = Duration::from_secs(3);
/// How long a server is watched until it goes by its new configuration.
const RELOAD_DEADLINE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);
/// The server gives up a little before we do.
const OPTIONS: &str = "-c search_path=pg_catalog -c statement_timeout=2500 -c lock_timeout=1000 \
                       -c idle_in_transaction_session_timeout=5000 -c log_statement=none \
                       -c log_min_duration_statement=-1 -c log_min_error_statement=panic \
                       -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed";

const STANDING: &str = "
select s.recovering, s.flushed, s.received, s.replayed, s.timeline,
       case when not s.recovering then null
            when s.received = s.replayed and s.receiver = 'streaming' and s.heard > clock_timestamp() - interval '45 s' then 0
            when s.received = s.replayed then null
            else extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())::float8 end as lag_seconds,
       s.receiver, s.receiver_timeline,
       current_setting('synchronous_standby_names') as synchronous_names,
       current_setting('synchronous_commit') as synchronous_commit
  from (select pg_is_in_recovery() as recovering,
               case when pg_is_in_recovery() then null
                    else (pg_current_wal_flush_lsn() - '0/0')::int8 end as flushed,
               (pg_last_wal_receive_lsn() - '0/0')::int8 as received,
               (pg_last_wal_replay_lsn() - '0/0')::int8 as replayed,
               case when pg_is_in_recovery() then (select timeline_id from pg_control_checkpoint())::int8
                    else ('x' || lpad(substr(pg_walfile_name(pg_current_wal_flush_lsn()), 1, 8), 16, '0'))::bit(64)::int8
                    end as timeline,
               (select status from pg_stat_wal_receiver) as receiver,
               (select last_msg_receipt_time from pg_stat_wal_receiver) as heard,
               (select received_tli from pg_stat_wal_receiver)::int8 as receiver_timeline) s";
const IDENTITY: &str = "
select (select system_identifier from pg_control_system())::text, current_setting('server_version'),
       extract(epoch from pg_postmaster_start_time())::float8";
/// Those too that are only held up to what a replica's log was written with, whatever is declared.
const PENDING: &str = "
select name from pg_settings where pending_restart or sourcefile like '%/floor.conf' order by name limit 64";
const SIZE: &str = "select sum(pg_database_size(oid))::int8 from pg_database";
const SLOTS: &str = "
select slot_name, active_pid, coalesce(wal_status, '') from pg_replication_slots
 where slot_type = 'physical' and not temporary and starts_with(slot_name, $1)";

/// One connection to one server.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    standing: Statement,
    followers: Statement,
    identity: Identity,
    /// Of a primary, once it was read, until it begins another.
    term: Mutex<Option<(Term, u64)>>,
    _connection: AbortOnDropHandle<()>,
}

/// What cannot change while the server runs.
#[derive(Debug, Clone)]
struct Identity {
    system_identifier: String,
    /// Such as `15.14 (Debian 15.14-0+deb12u1)`.
    build: String,
    started_at: Option<Timestamp>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("the server starts or stops and takes no connections now")]
    NotYet,
    #[error("there is no server behind the socket")]
    Nobody,
    #[error("no answer within {} s", QUERY_DEADLINE.as_secs())]
    Late,
    #[error(transparent)]
    Other(tokio_postgres::Error),
}

/// A replication slot of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) used_by: Option<i32>,
    /// The server has removed log that the slot's owner had not read yet: it can never be followed from again.
    pub(super) lost: bool,
}

// === impl Session ===

impl Session {
    /// `waker` is woken when the server ends it.
    pub(super) async fn connect(layout: &Layout, port: u16, waker: Option<Waker>) -> Result<Self, NoAnswer> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(layout.run())
            .port(port)
            .user(SUPERUSER)
            .dbname("postgres")
            .application_name("holdfast-agent")
            .connect_timeout(CONNECT_DEADLINE)
            .options(OPTIONS);
        bounded(async {
            let (client, connection) = config.connect(NoTls).await?;
            let connection = AbortOnDropHandle::new(tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "local connection to the engine ended");
                }
                if let Some(waker) = waker {
                    waker.wake();
                }
            }));
            let standing = client.prepare(STANDING).await?;
            let followers = followers::prepare(&client).await?;
            let row = client.query_one(IDENTITY, &[]).await?;
            let identity = Identity {
                system_identifier: row.try_get(0)?,
                build: row.try_get(1)?,
                started_at: row.try_get::<_, Option<f64>>(2)?.and_then(at_epoch),
            };
            Ok(Self {
                client,
                standing,
                followers,
                identity,
                term: Mutex::default(),
                _connection: connection,
            })
        })
        .await
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// All that changes from second to second.
    pub(super) async fn observe(&self) -> Result<Observation, NoAnswer> {
        bounded(async {
            let row = self.client.query_one(&self.standing, &[]).await?;
            let mut observed = self.standing(&row)?;
            if observed.role == Some(Role::Primary) {
                observed.term = Some(self.own_term().await?.0);
                observed.followers = followers::followers(&self.client, &self.followers).await?;
            }
            Ok(observed)
        })
        .await
    }

    fn standing(&self, row: &Row) -> Result<Observation, tokio_postgres::Error> {
        let recovering: bool = row.try_get("recovering")?;
        let offset =
            |name| Ok::<_, tokio_postgres::Error>(row.try_get::<_, Option<i64>>(name)?.and_then(unsigned));
        let (received, replayed) = (offset("received")?, offset("replayed")?);
        let own_timeline = offset("timeline")?;
        let receiver: Option<String> = row.try_get("receiver")?;
        let era = if recovering { offset("receiver_timeline")?.or(own_timeline) } else { own_timeline };
        let at = |offset: Option<u64>| Some(Position { era: era?, offset: offset? });
        let position = if recovering { received.max(replayed) } else { offset("flushed")? };
        let names: String = row.try_get("synchronous_names")?;
        let commit: String = row.try_get("synchronous_commit")?;
        let (synchronous, message) = enforced(recovering, &names, &commit);
        let Identity { system_identifier, build, started_at } = self.identity.clone();
        let lag: Option<f64> = row.try_get("lag_seconds")?;
        Ok(Observation {
            role: Some(if recovering { Role::Replica } else { Role::Primary }),
            position: at(position),
            replayed: if recovering { at(replayed) } else { None },
            lag_seconds: lag.filter(|lag| lag.is_finite()).map(|lag| lag.max(0.0)),
            streaming: recovering.then(|| receiver.as_deref() == Some("streaming")),
            synchronous,
            system_identifier: Some(system_identifier),
            engine_version: Some(first_word(&build)),
            server_build: Some(build),
            started_at,
            message,
            ..Observation::only(EngineState::Running)
        })
    }

    pub(super) async fn pending_restart(&self) -> Result<Vec<String>, NoAnswer> {
        bounded(async {
            let rows = self.client.query(PENDING, &[]).await?;
            Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(super) async fn data_bytes(&self) -> Result<Option<u64>, NoAnswer> {
        bounded(async {
            Ok(self.client.query_one(SIZE, &[]).await?.try_get::<_, Option<i64>>(0)?.and_then(unsigned))
        })
        .await
    }

    /// Whether it receives, from whomever.
    pub(super) async fn streams(&self) -> Result<bool, NoAnswer> {
        let query = "select exists (select from pg_stat_wal_receiver where status = 'streaming')";
        bounded(async { Ok(self.client.query_one(query, &[]).await?.try_get(0)?) }).await
    }

    /// Whether a replica receives from the server at this name and port now.
    pub(super) async fn streams_from(&self, name: &str, port: u16) -> Result<bool, NoAnswer> {
        let query =
            "select status = 'streaming' and sender_host = $1 and sender_port = $2 from pg_stat_wal_receiver";
        bounded(async {
            let row = self.client.query_opt(query, &[&name, &i32::from(port)]).await?;
            Ok(row.map(|row| row.try_get::<_, Option<bool>>(0)).transpose()?.flatten() == Some(true))
        })
        .await
    }

    pub(super) async fn slots(&self) -> Result<Vec<Slot>, NoAnswer> {
        bounded(async {
            let rows = self.client.query(SLOTS, &[&SLOT_PREFIX]).await?;
            let slot = |row: &Row| {
                let status: String = row.try_get(2)?;
                Ok::<_, tokio_postgres::Error>(Slot {
                    name: row.try_get(0)?,
                    used_by: row.try_get(1)?,
                    lost: status == "lost",
                })
            };
            Ok(rows.iter().map(slot).collect::<Result<_, _>>()?)
        })
        .await
    }

    /// It keeps the log from the last checkpoint on, before its replica has come for the first time.
    pub(super) async fn create_slot(&self, name: &str) -> Result<(), NoAnswer> {
        bounded(async {
            let made =
                self.client.execute("select pg_create_physical_replication_slot($1, true)", &[&name]).await;
            match made {
                Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(()),
                other => Ok(other.map(drop)?),
            }
        })
        .await
    }

    /// Drops a slot, and ends first whoever uses it.
    pub(super) async fn drop_slot(&self, slot: &Slot) -> Result<(), NoAnswer> {
        bounded(async {
            if let Some(pid) = slot.used_by {
                self.client.execute("select pg_terminate_backend($1, 1500)", &[&pid]).await?;
            }
            let dropped = self.client.execute("select pg_drop_replication_slot($1)", &[&slot.name]).await;
            match dropped {
                Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => Ok(()),
                other => Ok(other.map(drop)?),
            }
        })
        .await
    }

    /// Ends whoever receives the log without being a member.
    pub(super) async fn end_strangers(&self) -> Result<(), NoAnswer> {
        let query = "select pid, usename, application_name from pg_stat_replication";
        bounded(async {
            for row in self.client.query(query, &[]).await? {
                let (pid, user, name): (i32, Option<String>, String) =
                    (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                if user.as_deref() != Some(REPLICATION_USER) || name.parse::<NodeId>().is_err() {
                    self.client.execute("select pg_terminate_backend($1)", &[&pid]).await?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Not bounded here: it may have all of the server's memory to write.
    pub(super) async fn checkpoint(&self) -> Result<(), NoAnswer> {
        Ok(self.client.batch_execute("set statement_timeout = 0; checkpoint").await?)
    }

    /// Writes a few bytes of log, of which nothing remains, and has them reach the disk. It waits for no replica.
    pub(super) async fn write(&self) -> Result<(), NoAnswer> {
        let statements = "begin; set local synchronous_commit = local;
                          select pg_logical_emit_message(true, 'holdfast', ''); commit";
        bounded(async { Ok(self.client.batch_execute(statements).await?) }).await
    }

    /// Has the server read its configuration anew, and waits until this session has too. Not for long: a server that refuses all
    /// of it does not say when.
    pub(super) async fn reload(&self) -> Result<(), NoAnswer> {
        let loaded = "select pg_conf_load_time()::text";
        bounded(async {
            let before: String = self.client.query_one(loaded, &[]).await?.try_get(0)?;
            self.ask_to_reload().await?;
            let until = Instant::now() + RELOAD_DEADLINE;
            while self.client.query_one(loaded, &[]).await?.try_get::<_, String>(0)? == before
                && Instant::now() < until
            {
                sleep(PAUSE).await;
            }
            Ok(())
        })
        .await
    }

    /// Has the server read its configuration anew, some moment later.
    pub(super) async fn ask_to_reload(&self) -> Result<(), NoAnswer> {
        bounded(async { Ok(self.client.batch_execute("select pg_reload_conf()").await?) }).await
    }

    /// Files of the configuration that the server could not take over, in its own words; what only waits for a restart is no such.
    pub(super) async fn refused_settings(&self) -> Result<Vec<String>, NoAnswer> {
        let query = "select coalesce(name, sourcefile) || ': ' || error from pg_file_settings f
                      where error is not null and error !~ 'restart'
                        and not exists (select from pg_settings s where s.name = f.name and s.pending_restart) limit 8";
        bounded(async {
            let rows = self.client.query(query, &[]).await?;
            Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Gives a database user a password by its verifier; `false` if there is no such user.
    pub(super) async fn set_password(&self, user: &str, verifier: &str) -> Result<bool, NoAnswer> {
        let statement =
            format!("alter role {} password {}", render::identifier(user), render::literal(verifier));
        bounded(async {
            match self.client.batch_execute(&statement).await {
                Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => Ok(false),
                other => Ok(other.map(|()| true)?),
            }
        })
        .await
    }
}

// === impl NoAnswer ===

impl NoAnswer {
    pub(super) fn during(self, deed: &str) -> Error {
        Error::Unavailable { deed: deed.to_owned(), source: self.into() }
    }
}

impl From<tokio_postgres::Error> for NoAnswer {
    fn from(error: tokio_postgres::Error) -> Self {
        let kind = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<std::io::Error>())
            .map(std::io::Error::kind);
        match (error.code(), kind) {
            (Some(code), _) if *code == SqlState::CANNOT_CONNECT_NOW => Self::NotYet,
            (_, Some(std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)) => Self::Nobody,
            _ => Self::Other(error),
        }
    }
}

async fn bounded<T>(work: impl Future<Output = Result<T, NoAnswer>>) -> Result<T, NoAnswer> {
    timeout(QUERY_DEADLINE, work).await.unwrap_or(Err(NoAnswer::Late))
}

/// What the server really waits for. Names that we did not write, or a weaker commit, are no quorum.
fn enforced(recovering: bool, names: &str, commit: &str) -> (Synchronous, String) {
    if recovering {
        return (Synchronous::default(), String::new());
    }
    match render::parse_synchronous_names(names) {
        Some(synchronous) if synchronous.count == 0 || commit == "on" => (synchronous, String::new()),
        Some(_) => (
            Synchronous::default(),
            format!("synchronous_commit is {commit}: commits wait for no replica's disk"),
        ),
        None => (Synchronous::default(), "synchronous_standby_names is not what Holdfast wrote".to_owned()),
    }
}

fn unsigned(number: i64) -> Option<u64> {
    u64::try_from(number).ok()
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().map(str::to_owned).unwrap_or_default()
}

fn at_epoch(seconds: f64) -> Option<Timestamp> {
    let span = jiff::SignedDuration::try_from_secs_f64(seconds).ok()?;
    Timestamp::from_duration(span).ok()
}
