//! Is a cluster's primary gone, and may another take its place without asking a person? Pure: the caller says how much time
//! went by and what was heard.
//!
//! Nothing here keeps data safe: a failover is safe whenever it begins. This decides only when one is worth it, and what it may lose.

use std::fmt;
use std::time::Duration;

use holdfast_common::id::NodeId;
use holdfast_common::protocol::{Need, Reign, Timings};
use holdfast_common::report::{EngineState, MemberReport};
use holdfast_common::role::Role;
use jiff::Timestamp;

use super::{Cluster, Pause};
use crate::lease::{Obstacle, Outlook};

/// So many probes in a row must fail.
pub const FAILED_PROBES: u32 = 3;

/// For so long after a failover because of failed probes there is no second one for that reason: where every server hangs the primary would
/// go round for ever, and each change costs connections and a full set of caches. Orchestrator waits an hour after a recovery of whatever
/// kind (`RecoveryPeriodBlockSeconds`); here only servers that hang are meant, whose agents live, and a person is told.
pub const FLAP: Duration = Duration::from_secs(10 * 60);

/// What is remembered of one primary between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watch {
    /// For how long nothing was heard of its node while we were listening.
    silent: Duration,
    /// For how long its node has said that it does not run as a primary.
    down: Duration,
}

/// What is known of a primary at one look.
#[derive(Debug, Clone, Copy)]
pub struct Signs<'a> {
    /// Since anything was last heard of its node's agent: a message, or a lease that it asked for.
    pub unheard: Duration,
    /// What its node last reported; none before the first report.
    pub report: Option<&'a MemberReport>,
}

/// Why a primary is suspected to be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing is heard of its node.
    Silent,
    /// Its node says that it does not run.
    Down,
    /// Its node says that it lets nobody in, or takes no writes.
    Stuck,
}

/// A member that may be promoted, as far as it can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witness {
    /// It can be reached, and has promised the primary not to take its place.
    Promises,
    /// It can be reached, and has promised nobody.
    Free,
    /// It cannot be reached, or has not said anything since the suspicion.
    Silent,
}

/// What follows from a suspicion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Another takes its place, at the cost of so many bytes of log at most; none where nothing that was acknowledged is lost.
    FailOver { budget: Option<u64> },
    /// Nothing is touched; a person is told why.
    Hold(Hold),
}

/// Why nothing is done though a primary is suspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// The members go on promising: only the coordinator is cut off from it.
    Promised,
    Paused(Pause),
    Obstacle(Obstacle),
    /// The best replica lacks so much of what the primary last reported.
    TooMuchLost {
        bytes: u64,
        budget: u64,
    },
    /// It is not known how far the primary was.
    UnknownLoss,
    /// The primary before it was replaced for the same reason, so long ago.
    Flapping(Duration),
}

// === impl Watch ===

impl Watch {
    /// So much time went by since the last look, of which at most `longest` counts: a coordinator that was held up has not listened.
    pub fn look(
        &mut self,
        elapsed: Duration,
        longest: Duration,
        signs: Signs<'_>,
        timings: &Timings,
    ) -> Option<Suspicion> {
        let counted = elapsed.min(longest);
        let heard = signs.unheard < elapsed;
        self.silent = if heard { Duration::ZERO } else { (self.silent + counted).min(signs.unheard) };
        let silent = self.silent >= timings.suspicion;
        let Some(report) = signs.report else { return silent.then_some(Suspicion::Silent) };
        let runs = report.state == EngineState::Running && report.role == Some(Role::Primary);
        // While nothing is heard, what was last said is no news.
        self.down = match (runs, self.silent.is_zero()) {
            (true, _) => Duration::ZERO,
            (false, true) => self.down + counted,
            (false, false) => self.down,
        };
        match () {
            () if silent => Some(Suspicion::Silent),
            // It was started again at once; that is quicker than a failover if it does not take longer than this.
            () if self.down >= timings.suspicion => Some(Suspicion::Down),
            () if runs && report.failed_probes >= FAILED_PROBES => Some(Suspicion::Stuck),
            () => None,
        }
    }

    /// For how long it has been silent.
    pub fn silent(&self) -> Duration {
        self.silent
    }
}

/// Whether the witnesses' promises let the primary go on, as far as can be known: some are known to promise, and with those of whom nothing
/// is known they are enough.
pub fn is_promised(reign: &Reign, witness: impl Fn(NodeId) -> Witness) -> bool {
    let newest = reign.newest();
    let count = |wanted| newest.members().iter().filter(|node| witness(**node) == wanted).count();
    let (promised, silent) = (count(Witness::Promises), count(Witness::Silent));
    promised > 0 && newest.need.is_promised_by(promised + silent, newest.members().len())
}

/// How long ago another was to take the place of the primary before it because that hung. Nothing of the primary itself: that was given up.
pub fn predecessor_hung(cluster: &Cluster, now: Timestamp) -> Option<Duration> {
    let hung = cluster.hung.filter(|hung| cluster.primary != Some(hung.node))?;
    // By the wall clock, which may have been put back meanwhile.
    Some(now.duration_since(hung.at).unsigned_abs())
}

/// The same of a primary whose place another would take for this reason, if its own was taken from the one before because of failed probes
/// so long ago. A node or server that is gone is no flap.
pub fn unless_it_flaps(verdict: Verdict, suspicion: Suspicion, stuck_before: Option<Duration>) -> Verdict {
    match (&verdict, suspicion, stuck_before.filter(|ago| *ago < FLAP)) {
        (Verdict::FailOver { .. }, Suspicion::Stuck, Some(ago)) => Verdict::Hold(Hold::Flapping(ago)),
        _ => verdict,
    }
}

/// What is to be done about a suspected primary.
pub fn verdict(cluster: &Cluster, reign: &Reign, outlook: &Outlook, promised: bool) -> Verdict {
    if promised {
        return Verdict::Hold(Hold::Promised);
    }
    if let Some(pause) = &cluster.paused {
        return Verdict::Hold(Hold::Paused(pause.clone()));
    }
    if let Some(obstacle) = outlook.obstacle {
        return Verdict::Hold(Hold::Obstacle(obstacle));
    }
    if reign.newest().need != Need::All {
        return Verdict::FailOver { budget: None };
    }
    let budget = cluster.max_lag_on_failover;
    match outlook.behind {
        Some(bytes) if bytes <= budget => Verdict::FailOver { budget: Some(budget) },
        Some(bytes) => Verdict::Hold(Hold::TooMuchLost { bytes, budget }),
        None => Verdict::Hold(Hold::UnknownLoss),
    }
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "its node is silent",
            Self::Down => "its server does not run",
            Self::Stuck => "its server lets nobody in or takes no writes",
        })
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Promised => f.write_str(
                "the other members still hear it and keep it going: only the coordinator is cut off from it; mend the network between them",
            ),
            Self::Paused(pause) => write!(f, "failovers are paused {pause}; `cluster resume` allows them again"),
            Self::Obstacle(obstacle) => write!(f, "{obstacle}"),
            Self::TooMuchLost { bytes, budget } => write!(
                f,
                "{bytes} bytes of what it last reported are on no replica, and {budget} may be lost; \
                 `cluster failover --accept-data-loss` goes on nevertheless"
            ),
            Self::Flapping(ago) => write!(
                f,
                "another took its predecessor's place for the same reason {} s ago, and a second time within {} s would likely mend nothing; look at \
                 what the servers wait for; `cluster failover` goes on nevertheless",
                ago.as_secs(),
                FLAP.as_secs()
            ),
            Self::UnknownLoss => f.write_str(
                "how much it has beyond its replicas is not known; `cluster failover --accept-data-loss` goes on nevertheless",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::engine::Engine;
    use holdfast_common::id::ClusterId;
    use holdfast_common::protocol::{List, Profile, Version};
    use holdfast_common::term::Term;
    use jiff::SignedDuration;

    use super::*;
    use crate::cluster::Hung;
    use crate::cluster::tests::Sample;

    const TICK: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_millis(400);

    fn report(state: EngineState, failed_probes: u32) -> MemberReport {
        let only = MemberReport::only(ClusterId::generate(), Engine::Postgresql, state, Term::FIRST);
        let role = (state == EngineState::Running).then_some(Role::Primary);
        MemberReport { role, failed_probes, ..only }
    }

    /// After how many looks of a tick each it is suspected, of at most a hundred.
    fn looks(signs: impl Fn(u32) -> (Duration, MemberReport)) -> Option<(u32, Suspicion)> {
        let mut watch = Watch::default();
        (1..=100).find_map(|look| {
            let (unheard, report) = signs(look);
            let signs = Signs { unheard, report: Some(&report) };
            Some((look, watch.look(TICK, LONGEST, signs, &Profile::Default.timings())?))
        })
    }

    #[test]
    fn silence_an_engine_that_is_down_and_probes_that_fail_are_suspicious() {
        let running = || report(EngineState::Running, 0);
        assert_eq!(looks(|_| (Duration::ZERO, running())), None);
        assert_eq!(looks(|look| (TICK * look, running())), Some((15, Suspicion::Silent)), "3 s of ticks");
        let heard = |state| move |_| (Duration::ZERO, report(state, 0));
        for state in [EngineState::Stopped, EngineState::Failed, EngineState::Starting, EngineState::Unknown]
        {
            assert_eq!(looks(heard(state)), Some((15, Suspicion::Down)), "{state:?}");
        }
        let restarted = |look| {
            (
                Duration::ZERO,
                report(if look % 14 == 0 { EngineState::Running } else { EngineState::Failed }, 0),
            )
        };
        assert_eq!(looks(restarted), None, "it is restarted in place");
        assert_eq!(looks(|_| (Duration::ZERO, report(EngineState::Running, 2))), None);
        assert_eq!(looks(|_| (Duration::ZERO, report(EngineState::Running, 3))), Some((1, Suspicion::Stuck)));
    }

    #[test]
    fn a_coordinator_that_was_held_up_has_not_listened() {
        let mut watch = Watch::default();
        let (hour, timings) = (Duration::from_secs(3600), Profile::Default.timings());
        let running = report(EngineState::Running, 0);
        let signs = Signs { unheard: hour, report: Some(&running) };
        assert_eq!(watch.look(hour, LONGEST, signs, &timings), None);
        assert_eq!(watch.silent(), LONGEST);
    }

    #[test]
    fn only_a_second_hanging_server_within_some_minutes_is_a_flap() {
        let go = Verdict::FailOver { budget: None };
        let minutes = |minutes: u64| Some(Duration::from_secs(60 * minutes));
        let flaps = |suspicion, before| unless_it_flaps(go.clone(), suspicion, before) != go;
        for (suspicion, before, expected) in [
            (Suspicion::Stuck, minutes(1), true),
            (Suspicion::Stuck, minutes(10), false),
            (Suspicion::Stuck, None, false),
            (Suspicion::Silent, minutes(1), false),
            (Suspicion::Down, minutes(1), false),
        ] {
            assert_eq!(flaps(suspicion, before), expected, "{suspicion:?} {before:?}");
        }
        let hold = Verdict::Hold(Hold::Promised);
        assert_eq!(unless_it_flaps(hold.clone(), Suspicion::Stuck, minutes(1)), hold);
    }

    #[test]
    fn only_another_one_that_hung_before_it_counts() {
        let cluster = Sample::new().active(2);
        let at = Timestamp::from_second(1_000_000_000).unwrap();
        let hung = |index: usize| {
            let node = cluster.members[index].node_id;
            Cluster { hung: Some(Hung { node, at }), ..cluster.clone() }
        };
        let (minute, later) =
            (Duration::from_secs(60), |seconds: i64| at + SignedDuration::from_secs(seconds));
        assert_eq!(predecessor_hung(&cluster, at), None);
        assert_eq!(predecessor_hung(&hung(0), later(60)), None, "it is the primary itself");
        assert_eq!(predecessor_hung(&hung(1), later(60)), Some(minute));
        assert_eq!(predecessor_hung(&hung(1), later(-60)), Some(minute), "the clock was put back");
    }

    fn reign(members: &[NodeId], need: Need) -> Reign {
        let list = List::new(Version::FIRST, members.iter().copied(), need);
        Reign { enforced: true, ..Reign::first(NodeId::generate(), list) }
    }

    #[test]
    fn promises_excuse_silence_only_if_they_could_be_enough() {
        use Witness::{Free, Promises, Silent};
        let (a, b) = (NodeId::generate(), NodeId::generate());
        let (all, any) = (reign(&[a, b], Need::All), reign(&[a, b], Need::of(1)));
        for (of_a, of_b, with_all, with_any) in [
            (Promises, Promises, true, true),
            (Promises, Silent, true, true),
            (Promises, Free, false, true),
            (Silent, Silent, false, false),
            (Silent, Free, false, false),
            (Free, Free, false, false),
        ] {
            let witness = |node| if node == a { of_a } else { of_b };
            assert_eq!(is_promised(&all, witness), with_all, "all: {of_a:?} {of_b:?}");
            assert_eq!(is_promised(&any, witness), with_any, "any: {of_a:?} {of_b:?}");
        }
    }

    #[test]
    fn what_may_be_lost_is_bounded_and_a_pause_holds() {
        let node = NodeId::generate();
        let cluster = Cluster { max_lag_on_failover: 100, ..Sample::new().active(2) };
        let pause =
            Pause { by: "operator/ada".into(), reason: "upgrade".into(), since: Timestamp::UNIX_EPOCH };
        let paused = Cluster { paused: Some(pause.clone()), ..cluster.clone() };
        let (all, any) = (reign(&[node], Need::All), reign(&[node], Need::of(1)));
        let behind = |behind| Outlook { candidate: Some(node), behind, obstacle: None };
        let blocked = Outlook { obstacle: Some(Obstacle::NobodyPromotable), ..behind(Some(0)) };
        let hold = Verdict::Hold;
        for (cluster, reign, outlook, promised, expected) in [
            (&cluster, &all, behind(Some(100)), false, Verdict::FailOver { budget: Some(100) }),
            (&cluster, &all, behind(Some(101)), false, hold(Hold::TooMuchLost { bytes: 101, budget: 100 })),
            (&cluster, &all, behind(None), false, hold(Hold::UnknownLoss)),
            (&cluster, &any, behind(None), false, Verdict::FailOver { budget: None }),
            (&cluster, &all, behind(Some(0)), true, hold(Hold::Promised)),
            (&cluster, &all, blocked, false, hold(Hold::Obstacle(Obstacle::NobodyPromotable))),
            (&paused, &any, behind(Some(0)), false, hold(Hold::Paused(pause.clone()))),
        ] {
            assert_eq!(verdict(cluster, reign, &outlook, promised), expected, "{outlook:?} {promised}");
        }
    }
}
