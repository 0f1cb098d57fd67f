//! What is asked about replay, and about slots that are not ours.

use std::time::Duration;

use super::super::render::SLOT_PREFIX;
use super::{NoAnswer, Session, bounded, unsigned};

const REPLAY: &str = "
select pg_get_wal_replay_pause_state() <> 'not paused',
       (select wait_event_type || ' ' || wait_event from pg_stat_activity where backend_type = 'startup')";
/// What replay waits for that queries hold up.
const HELD_UP: [&str; 3] = ["IPC RecoveryConflict", "BufferPin", "Lock "];
/// Nothing where it receives, or may: a receiver that is only connecting is a process already, though `pg_stat_wal_receiver` does not
/// show it.
const CUT_OFF: &str = "
select (coalesce(received, replayed) - '0/0')::int8, (replayed - '0/0')::int8,
       exists (select from pg_stat_activity where backend_type = 'startup'
                and wait_event in ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')),
       (select setting::int8 from pg_settings where name = 'wal_retrieve_retry_interval')
  from (select pg_last_wal_receive_lsn() as received, pg_last_wal_replay_lsn() as replayed) s
 where pg_is_in_recovery() and replayed is not null
   and not exists (select from pg_stat_activity where backend_type = 'walreceiver')
   and current_setting('primary_conninfo') = ''";
const OTHERS_SLOTS: &str = "
select slot_name, (pg_current_wal_lsn() - restart_lsn)::int8 from pg_replication_slots
 where not temporary and not starts_with(slot_name, $1) and restart_lsn is not null order by 2 desc limit 8";
const SLOT_LIMIT: &str =
    "select setting::int8 * 1024 * 1024 from pg_settings where name = 'max_slot_wal_keep_size'";

/// How a replica's replay does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::postgresql) struct Replay {
    pub(in crate::engine::postgresql) is_paused: bool,
    /// It waits for queries.
    pub(in crate::engine::postgresql) is_held_up: bool,
}

/// A replica that receives from nobody any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::postgresql) struct CutOff {
    pub(in crate::engine::postgresql) received: u64,
    pub(in crate::engine::postgresql) replayed: u64,
    /// It has replayed all that it could read, and looks for more.
    pub(in crate::engine::postgresql) waits: bool,
    pub(in crate::engine::postgresql) looks_every: Duration,
}

/// A slot that is not ours, and how much log is kept for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine::postgresql) struct Keeper {
    pub(in crate::engine::postgresql) slot: String,
    pub(in crate::engine::postgresql) bytes: u64,
}

impl Session {
    /// How a replica stands that receives from nobody any more; none as long as it does.
    pub(in crate::engine::postgresql) async fn cut_off(&self) -> Result<Option<CutOff>, NoAnswer> {
        bounded(async {
            let Some(row) = self.client.query_opt(CUT_OFF, &[]).await? else { return Ok(None) };
            let number = |at: usize| Ok::<_, NoAnswer>(unsigned(row.try_get(at)?).unwrap_or_default());
            let looks_every = Duration::from_millis(number(3)?);
            Ok(Some(CutOff {
                received: number(0)?,
                replayed: number(1)?,
                waits: row.try_get(2)?,
                looks_every,
            }))
        })
        .await
    }

    pub(in crate::engine::postgresql) async fn replay(&self) -> Result<Replay, NoAnswer> {
        bounded(async {
            let row = self.client.query_one(REPLAY, &[]).await?;
            let waits: Option<String> = row.try_get(1)?;
            let is_held_up = waits.is_some_and(|waits| HELD_UP.iter().any(|event| waits.starts_with(event)));
            Ok(Replay { is_paused: row.try_get(0)?, is_held_up })
        })
        .await
    }

    /// Those that keep most, and how much any slot may keep; `None`: there is no limit.
    pub(in crate::engine::postgresql) async fn keepers(
        &self,
    ) -> Result<(Vec<Keeper>, Option<u64>), NoAnswer> {
        bounded(async {
            let rows = self.client.query(OTHERS_SLOTS, &[&SLOT_PREFIX]).await?;
            let mut keepers = Vec::new();
            for row in &rows {
                let bytes = row.try_get::<_, Option<i64>>(1)?.and_then(unsigned).unwrap_or(0);
                keepers.push(Keeper { slot: row.try_get(0)?, bytes });
            }
            let limit: i64 = self.client.query_one(SLOT_LIMIT, &[]).await?.try_get(0)?;
            Ok((keepers, unsigned(limit)))
        })
        .await
    }

    /// What the server goes by now.
    pub(in crate::engine::postgresql) async fn setting(&self, name: &str) -> Result<String, NoAnswer> {
        bounded(async {
            Ok(self.client.query_one("select current_setting($1)", &[&name]).await?.try_get(0)?)
        })
        .await
    }
}
