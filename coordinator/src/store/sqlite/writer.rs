//! The thread that writes: takes what waits, does it in one SQLite transaction, commits, and only then answers.
//!
//! One commit (one flush of the disk) for many callers. If anything fails, all of them learn it and nothing
//! was stored. Leases are kept here, in memory.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc, thread::JoinHandle, time::Duration};

use nix::fcntl::Flock;
use rusqlite::{Connection, params};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    Keep, classify,
    schema::{self, Database},
};
use crate::store::{Error, Key, Kv, LeaseId, Op, Outcome, Reply, Result, Revision, Txn, watch::Signals};

/// Most callers that share one commit.
const BATCH: usize = 64;

/// What the writer may be asked; `now` is the caller's clock.
pub(super) enum Write {
    Txn { txn: Txn, now: Instant, reply: oneshot::Sender<Result<Outcome>> },
    Grant { ttl: Duration, now: Instant, reply: oneshot::Sender<Result<LeaseId>> },
    KeepAlive { lease: LeaseId, now: Instant, reply: oneshot::Sender<Result<()>> },
    Revoke { lease: LeaseId, now: Instant, reply: oneshot::Sender<Result<()>> },
    Expire { now: Instant, reply: oneshot::Sender<Result<()>> },
}

/// What an order has come to, valid once the round is committed.
enum Done {
    Txn(Result<Outcome>),
    Granted(LeaseId),
    Plain(Result<()>),
}

struct Writer {
    connection: Connection,
    keep: Keep,
    signals: Arc<Signals>,
    stored: Standing,
    leases: BTreeMap<LeaseId, Lease>,
}

/// Where the log stands; the copy in [`Round`] becomes the truth with the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    revision: Revision,
    events: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

/// What one commit makes true.
struct Round<'a> {
    connection: &'a Connection,
    standing: Standing,
    leases: BTreeMap<LeaseId, Lease>,
    seq: i64,
}

pub(super) fn start(
    path: &Path,
    database: Database,
    lock: Flock<File>,
    keep: Keep,
    signals: Arc<Signals>,
    mut orders: mpsc::Receiver<Write>,
) -> Result<JoinHandle<()>> {
    let Database { connection, revision, events, bytes } = database;
    let stored = Standing { revision, events, bytes };
    let mut writer = Writer { connection, keep, signals, stored, leases: BTreeMap::new() };
    writer.forget_leases().map_err(|error| classify("open", error))?;
    spawn(path, "store-writer", move || {
        let _lock = lock;
        while let Some(first) = orders.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(order) = orders.try_recv()
            {
                batch.push(order);
            }
            writer.serve(batch);
        }
    })
}

/// Starts one of the store's threads.
pub(super) fn spawn(path: &Path, name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|source| Error::Open { path: path.to_owned(), source: source.into() })
}

// === impl Writer ===

impl Writer {
    fn serve(&mut self, batch: Vec<Write>) {
        match self.round(|round| batch.iter().map(|order| round.run(order)).collect::<Result<Vec<_>, _>>()) {
            Ok(done) => batch.into_iter().zip(done).for_each(|(order, done)| order.answer(done)),
            // One of them may be what does not fit: each gets its own answer.
            Err(_) if batch.len() > 1 => batch.into_iter().for_each(|order| self.serve(vec![order])),
            Err(error) => {
                if let Some(order) = batch.into_iter().next() {
                    order.fail(classify("write", error));
                }
            }
        }
    }

    /// What hung on leases of an earlier process: the lock proves that their holders are gone.
    fn forget_leases(&mut self) -> rusqlite::Result<()> {
        self.round(|round| round.remove_all("SELECT k FROM kv WHERE lease IS NOT NULL", []))
    }

    /// Everything that `work` does becomes true together, on the disk, or nothing does.
    fn round<T>(&mut self, work: impl FnOnce(&mut Round<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let result = self.attempt(work);
        // Some errors have ended the transaction already, others leave it open.
        if result.is_err() && !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        result
    }

    fn attempt<T>(
        &mut self,
        work: impl FnOnce(&mut Round<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let Self { connection, keep, signals, stored, leases } = self;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let mut round = Round { connection, standing: *stored, leases: leases.clone(), seq: 0 };
        let result = work(&mut round)?;
        if round.standing != *stored {
            round.compact(*keep)?;
            set_meta(connection, "revision", round.standing.revision)?;
        }
        connection.execute_batch("COMMIT")?;
        let Round { standing, leases: left, .. } = round;
        (*stored, *leases) = (standing, left);
        let next = leases.values().map(|lease| lease.ends).min();
        signals.expiry.send_if_modified(|due| std::mem::replace(due, next) != next);
        let head = stored.revision;
        signals.head.send_if_modified(|seen| std::mem::replace(seen, head) != head);
        Ok(result)
    }
}

// === impl Round ===

impl Round<'_> {
    fn run(&mut self, order: &Write) -> rusqlite::Result<Done> {
        let (Write::Txn { now, .. }
        | Write::Grant { now, .. }
        | Write::KeepAlive { now, .. }
        | Write::Revoke { now, .. }
        | Write::Expire { now, .. }) = order;
        self.expire(*now)?;
        match order {
            Write::Txn { txn, .. } => self.txn(txn).map(Done::Txn),
            Write::Grant { ttl, .. } => {
                let lease = LeaseId::random();
                self.leases.insert(lease, Lease { ttl: *ttl, ends: *now + *ttl });
                Ok(Done::Granted(lease))
            }
            Write::KeepAlive { lease, .. } => Ok(Done::Plain(match self.leases.get_mut(lease) {
                Some(found) => {
                    found.ends = *now + found.ttl;
                    Ok(())
                }
                None => Err(Error::LeaseOver { lease: *lease }),
            })),
            Write::Revoke { lease, .. } => {
                if self.leases.remove(lease).is_none() {
                    return Ok(Done::Plain(Err(Error::LeaseOver { lease: *lease })));
                }
                self.remove_all("SELECT k FROM kv WHERE lease = ?1", [lease])?;
                Ok(Done::Plain(Ok(())))
            }
            Write::Expire { .. } => Ok(Done::Plain(Ok(()))),
        }
    }

    fn expire(&mut self, now: Instant) -> rusqlite::Result<()> {
        let over: Vec<_> = self.leases.iter().filter(|(_, l)| l.ends <= now).map(|(id, _)| *id).collect();
        for lease in over {
            self.leases.remove(&lease);
            self.remove_all("SELECT k FROM kv WHERE lease = ?1", [lease])?;
        }
        Ok(())
    }

    fn txn(&mut self, txn: &Txn) -> rusqlite::Result<Result<Outcome>> {
        if let Some(lease) = txn.leases().find(|lease| !self.leases.contains_key(lease)) {
            return Ok(Err(Error::LeaseOver { lease }));
        }
        let mut succeeded = true;
        for compare in &txn.compares {
            succeeded = succeeded && compare.holds(schema::find(self.connection, compare.key())?.as_ref());
        }
        let revision = self.standing.revision.next();
        let ops = if succeeded { &txn.then } else { &txn.or_else };
        self.seq = 0;
        let replies = ops.iter().map(|op| self.apply(op, revision)).collect::<rusqlite::Result<_>>()?;
        Ok(Ok(Outcome { succeeded, revision: self.standing.revision, replies }))
    }

    fn apply(&mut self, op: &Op, revision: Revision) -> rusqlite::Result<Reply> {
        match op {
            Op::Put { key, value, lease } => {
                let old = schema::find(self.connection, key)?.map(|kv| (kv.create_rev, kv.version));
                let (create_rev, version) = old.unwrap_or((revision, 0));
                let record = Kv {
                    key: key.clone(),
                    value: value.clone(),
                    create_rev,
                    mod_rev: revision,
                    version: version + 1,
                    lease: *lease,
                };
                self.put(&record)?;
                Ok(Reply::Put)
            }
            Op::Delete { key } => self.delete(key, revision).map(Reply::Deleted),
            Op::Get { key } => schema::find(self.connection, key).map(Reply::Got),
        }
    }

    fn put(&mut self, kv: &Kv) -> rusqlite::Result<()> {
        let Kv { key, value, create_rev, mod_rev, version, lease } = kv;
        self.connection
            .prepare_cached(
                "INSERT INTO kv (k, v, create_rev, mod_rev, ver, lease) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (k) DO UPDATE SET v = ?2, mod_rev = ?4, ver = ?5, lease = ?6",
            )?
            .execute(params![key.as_str(), value, create_rev, mod_rev, Revision(*version), lease])?;
        self.connection
            .prepare_cached(
                "INSERT INTO ev (rev, seq, k, v, create_rev, ver, lease) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                mod_rev,
                self.seq,
                key.as_str(),
                value,
                create_rev,
                Revision(*version),
                lease
            ])?;
        self.logged(*mod_rev, value.len());
        Ok(())
    }

    fn delete(&mut self, key: &Key, revision: Revision) -> rusqlite::Result<bool> {
        let removed =
            self.connection.prepare_cached("DELETE FROM kv WHERE k = ?1")?.execute([key.as_str()])? > 0;
        if removed {
            self.connection
                .prepare_cached("INSERT INTO ev (rev, seq, k) VALUES (?1, ?2, ?3)")?
                .execute(params![revision, self.seq, key.as_str()])?;
            self.logged(revision, 0);
        }
        Ok(removed)
    }

    fn remove_all(&mut self, select: &str, params: impl rusqlite::Params) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare_cached(select)?;
        let keys =
            statement.query_map(params, |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        let revision = self.standing.revision.next();
        self.seq = 0;
        for key in keys {
            self.delete(&Key::from(key), revision)?;
        }
        Ok(())
    }

    fn logged(&mut self, revision: Revision, bytes: usize) {
        self.seq += 1;
        self.standing.revision = revision;
        self.standing.events += 1;
        self.standing.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
    }

    /// Drops the older half of the log when it has outgrown its bound. The newest revision always stays.
    fn compact(&mut self, keep: Keep) -> rusqlite::Result<()> {
        if self.standing.events <= keep.events && self.standing.bytes <= keep.bytes {
            return Ok(());
        }
        let (mut events, mut bytes) = (0, 0);
        let mut cut = Revision::ZERO;
        {
            let mut newest_first = self
                .connection
                .prepare_cached("SELECT rev, coalesce(length(v), 0) FROM ev ORDER BY rev DESC, seq DESC")?;
            let mut rows = newest_first.query([])?;
            while let Some(row) = rows.next()? {
                events += 1;
                bytes += row.get::<_, Revision>(1)?.0;
                if events > keep.events / 2 || bytes > keep.bytes / 2 {
                    cut = row.get::<_, Revision>(0)?.min(Revision(self.standing.revision.0 - 1));
                    break;
                }
            }
        }
        self.connection.prepare_cached("DELETE FROM ev WHERE rev <= ?1")?.execute([cut])?;
        let count = "SELECT count(*), coalesce(sum(length(v)), 0) FROM ev";
        let (events, bytes) = self
            .connection
            .prepare_cached(count)?
            .query_row([], |row| Ok((row.get::<_, Revision>(0)?.0, row.get::<_, Revision>(1)?.0)))?;
        (self.standing.events, self.standing.bytes) = (events, bytes);
        set_meta(self.connection, "compacted", cut)
    }
}

fn set_meta(connection: &Connection, name: &str, value: Revision) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE meta SET value = ?2 WHERE name = ?1")?
        .execute(params![name, value])
        .map(drop)
}

// === impl Write ===

impl Write {
    /// Whoever asked may have left meanwhile: then the answer is of no use to anybody.
    fn answer(self, done: Done) {
        match (self, done) {
            (Self::Txn { reply, .. }, Done::Txn(result)) => drop(reply.send(result)),
            (Self::Grant { reply, .. }, Done::Granted(lease)) => drop(reply.send(Ok(lease))),
            (
                Self::KeepAlive { reply, .. } | Self::Revoke { reply, .. } | Self::Expire { reply, .. },
                Done::Plain(result),
            ) => drop(reply.send(result)),
            _ => unreachable!("every order has its own kind of outcome"),
        }
    }

    fn fail(self, error: Error) {
        match self {
            Self::Txn { reply, .. } => drop(reply.send(Err(error))),
            Self::Grant { reply, .. } => drop(reply.send(Err(error))),
            Self::KeepAlive { reply, .. } | Self::Revoke { reply, .. } | Self::Expire { reply, .. } => {
                drop(reply.send(Err(error)));
            }
        }
    }
}
