//! What is not as it should be with a member's replication, and why.
//!
//! Looked at every second is only what [`Session::observe`] has read anyway; its log only of a replica that receives nothing, and the
//! rest every [`SLOW_PERIOD`]. Nothing is mended here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_common::id::ClusterId;
use holdfast_common::report::{Trouble, TroubleKind};
use holdfast_common::role::Role;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::layout::{Layout, Marker};
use super::session::{Keeper, NoAnswer, Session, Slot};
use super::{Inner, floor, words};
use crate::engine::Observation;

/// How often what is dear to ask for is asked again.
const SLOW_PERIOD: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// For how long a replica must receive nothing; a change of primary takes less.
const SILENT_AFTER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// For how long it must receive for that to be over.
const BACK_AFTER: Duration = Duration::from_secs(2);
/// How often its log is looked at then.
const LOG_PERIOD: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });
/// How often in a row its log must say that its data cannot follow.
const LOOKS: u32 = 2;
/// For how long it is told that a slot was mended.
const MENDED_FOR: Duration = Duration::from_secs(30);
/// By how much replay must be behind for it to be of interest what it waits for.
const DELAYED_SECONDS: f64 = 10.0;

/// What is remembered between two looks.
#[derive(Debug, Default, Clone)]
pub(super) struct Care {
    silence: Option<Silence>,
    looked_at: Option<Instant>,
    found: Option<Trouble>,
    /// Members' slots that were seen, so that one that is gone is known from one that is not made yet.
    slots: BTreeSet<String>,
    mended: Option<(Instant, Trouble)>,
}

/// Since when a replica receives nothing, and why.
#[derive(Debug, Clone)]
struct Silence {
    since: Instant,
    /// Since when it receives again.
    back: Option<Instant>,
    looked_at: Option<Instant>,
    kind: TroubleKind,
    /// How often in a row that was it.
    looks: u32,
    cause: Option<String>,
}

// === impl Silence ===

impl Silence {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            back: None,
            looked_at: None,
            kind: TroubleKind::NotReceiving,
            looks: 0,
            cause: None,
        }
    }

    /// Whether it is not over: one whose log is gone streams for a moment again and again, until it is told.
    fn goes_on(&mut self, silent: bool, sealed: bool) -> bool {
        if silent {
            self.back = None;
        } else {
            self.back.get_or_insert_with(Instant::now);
        }
        !sealed && self.back.is_none_or(|back| back.elapsed() < BACK_AFTER)
    }

    /// What the receiver said last, if anything.
    fn note(&mut self, said: Option<words::Receiver>) {
        let kind = said.as_ref().map_or(TroubleKind::NotReceiving, |said| said.kind);
        self.looks = if kind == self.kind { self.looks.saturating_add(1) } else { 1 };
        self.kind = kind;
        self.cause = said.map(|said| said.words);
    }

    fn trouble(&self) -> Trouble {
        let cause = self.cause.as_deref().unwrap_or("its log does not say why");
        let (kind, message) = match self.kind {
            TroubleKind::LogRemoved if self.looks >= LOOKS => {
                (self.kind, "log that it needs is gone from its primary, so that its data have to be copied")
            }
            TroubleKind::Diverged if self.looks >= LOOKS => (
                self.kind,
                "its log has parted from its primary's, so that its data have to be rewound or copied",
            ),
            _ => (TroubleKind::NotReceiving, "it receives nothing from its primary"),
        };
        Trouble { kind, message: format!("{message}: {cause}") }
    }
}

// === impl Inner ===

impl Inner {
    /// Of a running server that was just observed.
    pub(super) async fn troubles(
        &self,
        cluster: ClusterId,
        layout: &Layout,
        marker: &Marker,
        observed: &Observation,
    ) -> Vec<Trouble> {
        let silence = self.silence(cluster, layout, observed).await;
        let looked_at = self.with_known(cluster, |known| known.care.looked_at);
        if looked_at.is_none_or(|at| at.elapsed() >= SLOW_PERIOD)
            && let Ok(session) = self.session(cluster).await
        {
            let found = match observed.role {
                Some(Role::Replica) => self.replay(layout, marker, &session, observed).await,
                Some(Role::Primary) => self.kept_by_others(layout, &session).await,
                None => Ok(None),
            };
            self.with_known(cluster, |known| {
                known.care.looked_at = Some(Instant::now());
                known.care.found = found.unwrap_or_default();
            });
        }
        let (found, mended) = self.with_known(cluster, |known| {
            known.care.mended.take_if(|(at, _)| at.elapsed() >= MENDED_FOR);
            (known.care.found.clone(), known.care.mended.clone().map(|(_, trouble)| trouble))
        });
        silence.into_iter().chain(found).chain(mended).collect()
    }

    /// A replica that receives nothing though it should.
    async fn silence(&self, cluster: ClusterId, layout: &Layout, observed: &Observation) -> Option<Trouble> {
        let silent = observed.streaming == Some(false) && !observed.sealed;
        let known = self.with_known(cluster, |known| known.care.silence.take());
        let mut silence = match known {
            Some(mut known) => {
                if !known.goes_on(silent, observed.sealed) {
                    return None;
                }
                known
            }
            None if silent => Silence::new(Instant::now()),
            None => return None,
        };
        let lasts = silence.since.elapsed();
        if lasts >= SILENT_AFTER && silence.looked_at.is_none_or(|at| at.elapsed() >= LOG_PERIOD) {
            let span = SignedDuration::try_from(lasts).unwrap_or(SignedDuration::MAX);
            // What was said before it fell silent is about something else.
            let oldest = Timestamp::now().checked_sub(span).unwrap_or(Timestamp::MIN);
            silence.note(words::receiver(&self.host, layout, oldest).await);
            silence.looked_at = Some(Instant::now());
        }
        let trouble = silence.looked_at.map(|_| silence.trouble());
        self.with_known(cluster, |known| known.care.silence = Some(silence));
        trouble
    }

    /// Whether its log has said, when it was last looked at, that it can follow only once its data are others.
    pub(super) fn cannot_follow(&self, cluster: ClusterId) -> bool {
        self.with_known(cluster, |known| {
            known.care.silence.as_ref().is_some_and(|silence| silence.trouble().kind.needs_resync())
        })
    }

    /// Looks for what is dear to ask for only after the usual time.
    pub(super) fn put_off_care(&self, cluster: ClusterId) {
        self.with_known(cluster, |known| known.care.looked_at = Some(Instant::now()));
    }

    pub(super) fn forget_silence(&self, cluster: ClusterId) {
        self.with_known(cluster, |known| known.care.silence = None);
    }

    async fn replay(
        &self,
        layout: &Layout,
        marker: &Marker,
        session: &Session,
        observed: &Observation,
    ) -> Result<Option<Trouble>, NoAnswer> {
        let replay = session.replay().await?;
        if replay.is_paused {
            let mut own = BTreeMap::new();
            for name in floor::names() {
                own.insert(name, session.setting(name).await?);
            }
            let lacking = self.lacking(layout, marker, |name| own.get(name).cloned()).await;
            // What cannot be read is no reason to restart anything.
            let lacking = lacking.unwrap_or_default();
            return Ok(Some(paused(&lacking)));
        }
        let delayed = observed.lag_seconds.is_some_and(|lag| lag >= DELAYED_SECONDS) && replay.is_held_up;
        Ok(delayed.then(|| Trouble {
            kind: TroubleKind::ReplayDelayed,
            message:
                "its replay waits for queries on it; max_standby_streaming_delay says for how long it may"
                    .to_owned(),
        }))
    }

    async fn kept_by_others(&self, layout: &Layout, session: &Session) -> Result<Option<Trouble>, NoAnswer> {
        let (keepers, limit) = session.keepers().await?;
        if keepers.is_empty() {
            return Ok(None);
        }
        let space = self.host.files().space(layout.data().join("pg_wal")).await;
        let free = space.map_or(u64::MAX, |space| space.available_bytes);
        Ok(much_kept(&keepers, limit, free))
    }

    /// Remembers which members have slots; tells of those that were gone, or have lost their log.
    pub(super) fn note_slots(&self, cluster: ClusterId, wanted: &BTreeMap<String, String>, found: &[Slot]) {
        self.with_known(cluster, |known| {
            let care = &mut known.care;
            care.slots.retain(|slot| wanted.contains_key(slot));
            let now = Instant::now();
            for (slot, owner) in wanted {
                match found.iter().find(|found| found.name == *slot) {
                    Some(found) if found.lost => {
                        let message = format!(
                            "the slot of {owner} has lost the log that it kept, because {owner} was away for too long; it is made anew"
                        );
                        care.mended = Some((now, Trouble { kind: TroubleKind::SlotLost, message }));
                        care.slots.remove(slot);
                    }
                    Some(_) => {
                        care.slots.insert(slot.clone());
                    }
                    None if care.slots.remove(slot) => {
                        let message = format!("the slot of {owner} was gone; it is made again");
                        care.mended = Some((now, Trouble { kind: TroubleKind::SlotMissing, message }));
                    }
                    None => {}
                }
            }
        });
    }
}

/// `lacking`: of which parameters it has less than its log was written with.
fn paused(lacking: &[String]) -> Trouble {
    if lacking.is_empty() {
        return Trouble {
            kind: TroubleKind::ReplayPaused,
            message: "somebody has paused its replay; `select pg_wal_replay_resume()` there goes on with it"
                .to_owned(),
        };
    }
    let message = format!(
        "it replays no further, because its primary has more of a parameter: it needs {}",
        lacking.join(", ")
    );
    Trouble { kind: TroubleKind::ParameterTooLow, message }
}

/// Slots that keep more than half of what any slot may, or of the room that is left.
fn much_kept(keepers: &[Keeper], limit: Option<u64>, free: u64) -> Option<Trouble> {
    let half = limit.unwrap_or(u64::MAX).min(free) / 2;
    let much: Vec<String> = keepers
        .iter()
        .filter(|keeper| keeper.bytes > half)
        .map(|keeper| format!("`{}` ({} MiB)", keeper.slot, keeper.bytes >> 20))
        .collect();
    let limit = limit.map(|limit| format!(" of the {} MiB that a slot may keep", limit >> 20));
    let message = format!(
        "slots that are no member's keep much log{}: {}; drop those that nobody reads from (`pg_drop_replication_slot`)",
        limit.unwrap_or_default(),
        much.join(", ")
    );
    (!much.is_empty()).then_some(Trouble { kind: TroubleKind::SlotRetainsLog, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_told_of_once_it_keeps_half_of_what_it_may_or_of_the_room() {
        const MIB: u64 = 1 << 20;
        let keeps = |bytes| [Keeper { slot: "mine".to_owned(), bytes }];
        assert_eq!(much_kept(&keeps(64 * MIB), Some(128 * MIB), u64::MAX), None);
        let told = much_kept(&keeps(65 * MIB), Some(128 * MIB), u64::MAX).unwrap();
        assert!(
            told.message.contains("of the 128 MiB") && told.message.contains("`mine` (65 MiB)"),
            "{told:?}"
        );
        assert!(much_kept(&keeps(20 * MIB), Some(128 * MIB), 30 * MIB).is_some());
        assert!(much_kept(&keeps(20 * MIB), None, 30 * MIB).is_some());
        assert_eq!(much_kept(&keeps(20 * MIB), None, 50 * MIB), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_says_once_that_data_cannot_follow_is_not_believed() {
        let said = |kind| Some(words::Receiver { kind, words: "why".to_owned() });
        let mut silence = Silence::new(Instant::now());
        silence.note(said(TroubleKind::LogRemoved));
        assert_eq!(silence.trouble().kind, TroubleKind::NotReceiving);
        silence.note(None);
        silence.note(said(TroubleKind::LogRemoved));
        assert_eq!(silence.trouble().kind, TroubleKind::NotReceiving);
        silence.note(said(TroubleKind::LogRemoved));
        assert_eq!(silence.trouble().kind, TroubleKind::LogRemoved);
        silence.note(said(TroubleKind::Diverged));
        assert_eq!(silence.trouble().kind, TroubleKind::NotReceiving);
    }

    #[test]
    fn a_pause_by_a_person_is_told_apart_from_one_for_a_parameter() {
        assert_eq!(paused(&[]).kind, TroubleKind::ReplayPaused);
        let told = paused(&["max_connections = '200'".to_owned()]);
        assert_eq!(told.kind, TroubleKind::ParameterTooLow);
        assert!(told.message.contains("max_connections = '200'"));
    }
}
