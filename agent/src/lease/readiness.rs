//! From what is observed of an engine: may it serve as primary, and does it enforce the list? Pure.

use holdfast_common::position::Position;
use holdfast_common::protocol::{List, Need, Version};
use holdfast_common::report::{EngineState, MemberReport};
use holdfast_common::role::Role;
use jiff::Timestamp;

/// What is remembered of an engine that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Readiness {
    /// Of the present start: when it was, where its recovery ended, and whether enough have followed beyond that.
    start: Option<Start>,
    /// The list that the engine enforces, and what its members must have before that counts.
    enforced: Option<(Version, Position)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Start {
    at: Option<Timestamp>,
    recovered: Position,
    followed: bool,
}

// === impl Readiness ===

impl Readiness {
    /// Whether the engine may serve; `None`: what is seen says nothing, and the last word holds.
    ///
    /// A restart makes commits visible that were not replicated: in quorum mode as many members as a commit needs must have
    /// everything up to the end of its recovery first.
    pub(super) fn is_ready(&mut self, seen: &MemberReport, list: Option<&List>) -> Option<bool> {
        match seen.state {
            EngineState::Unknown => return None,
            EngineState::Running => {}
            EngineState::Absent
            | EngineState::Stopped
            | EngineState::Starting
            | EngineState::Failed
            | EngineState::Building => {
                self.start = None;
                return Some(false);
            }
        }
        if seen.role? != Role::Primary {
            self.start = None;
            return Some(false);
        }
        let position = seen.position?;
        if self.start.as_ref().is_none_or(|start| start.at != seen.started_at) {
            self.start = Some(Start { at: seen.started_at, recovered: position, followed: false });
        }
        let start = self.start.as_mut()?;
        let need = list.map_or(Need::All, |list| list.need);
        let followers = list.map_or(0, |list| flushed(seen, list, start.recovered));
        start.followed |= need.is_followed_by(followers);
        Some(start.followed)
    }

    /// The version of the list if the engine depends on it, and all its members have what was acknowledged before it did.
    pub(super) fn enforces(&mut self, seen: &MemberReport, list: &List) -> Option<Version> {
        let Need::Any(count) = list.need else { return None };
        let mut nodes = seen.synchronous.nodes.clone();
        nodes.sort_unstable();
        if seen.state != EngineState::Running
            || seen.synchronous.count != count.get()
            || nodes != list.members()
        {
            self.enforced = None;
            return None;
        }
        let position = seen.position?;
        let (_, since) = match self.enforced {
            Some(known) if known.0 == list.version => known,
            Some(_) | None => *self.enforced.insert((list.version, position)),
        };
        (flushed(seen, list, since) == list.members().len()).then_some(list.version)
    }
}

/// How many members of the list have flushed their log up to this place.
fn flushed(seen: &MemberReport, list: &List, place: Position) -> usize {
    let has = |offset: Option<u64>| offset.is_some_and(|offset| offset >= place.offset);
    seen.followers
        .iter()
        .filter(|follower| list.has(follower.node_id) && follower.streaming && has(follower.flushed_offset))
        .count()
}

#[cfg(test)]
mod tests {
    use holdfast_common::assignment::Synchronous;
    use holdfast_common::engine::Engine;
    use holdfast_common::id::{ClusterId, NodeId};
    use holdfast_common::report::Follower;
    use holdfast_common::term::Term;

    use super::*;

    const TERM: Term = Term::FIRST;

    /// A primary that runs, flushed up to `at`, followed by these.
    fn seen(at: u64, followers: &[(NodeId, u64)]) -> MemberReport {
        MemberReport {
            role: Some(Role::Primary),
            position: Some(Position { era: 1, offset: at }),
            followers: followers
                .iter()
                .map(|(node_id, flushed)| Follower {
                    node_id: *node_id,
                    flushed_offset: Some(*flushed),
                    synchronous: true,
                    streaming: true,
                })
                .collect(),
            ..MemberReport::only(ClusterId::generate(), Engine::Postgresql, EngineState::Running, TERM)
        }
    }

    #[test]
    fn after_a_start_a_quorum_is_followed_beyond_its_recovery_before_it_serves() {
        let (a, b, stranger) = (NodeId::generate(), NodeId::generate(), NodeId::generate());
        let quorum = List::new(Version::FIRST, [a, b], Need::of(1));
        let mut readiness = Readiness::default();
        let mut is_ready = |seen: &MemberReport| readiness.is_ready(seen, Some(&quorum));
        assert_eq!(is_ready(&seen(100, &[(a, 90), (stranger, 200)])), Some(false));
        assert_eq!(
            is_ready(&seen(500, &[(a, 100)])),
            Some(true),
            "beyond the end of recovery, not beyond now"
        );
        assert_eq!(is_ready(&seen(900, &[])), Some(true), "for as long as this start lasts");
        assert_eq!(is_ready(&MemberReport { state: EngineState::Unknown, ..seen(0, &[]) }), None);
        assert_eq!(is_ready(&MemberReport { state: EngineState::Starting, ..seen(0, &[]) }), Some(false));
        assert_eq!(is_ready(&seen(1000, &[(a, 999)])), Some(false), "a crash makes more visible");
        let mut readiness = Readiness::default();
        assert_eq!(
            readiness.is_ready(&seen(100, &[]), Some(&List::new(Version::FIRST, [a], Need::All))),
            Some(true),
            "async waits for nobody"
        );
    }

    #[test]
    fn a_list_is_enforced_once_the_engine_depends_on_it_and_all_of_it_has_what_was_acknowledged() {
        let (a, b) = (NodeId::generate(), NodeId::generate());
        let quorum = List::new(Version::new(3), [a, b], Need::of(1));
        let set = Synchronous { count: 1, nodes: vec![a, b] };
        let with = |at, followers: &[(NodeId, u64)]| MemberReport {
            synchronous: set.clone(),
            ..seen(at, followers)
        };
        let mut readiness = Readiness::default();
        assert_eq!(readiness.enforces(&seen(100, &[(a, 100), (b, 100)]), &quorum), None);
        assert_eq!(readiness.enforces(&with(200, &[(a, 200), (b, 150)]), &quorum), None);
        assert_eq!(readiness.enforces(&with(300, &[(a, 300), (b, 199)]), &quorum), None);
        assert_eq!(readiness.enforces(&with(300, &[(a, 300), (b, 200)]), &quorum), Some(quorum.version));
        let other = Synchronous { count: 1, nodes: vec![a] };
        let other = MemberReport { synchronous: other, ..seen(300, &[(a, 300), (b, 300)]) };
        assert_eq!(readiness.enforces(&other, &quorum), None);
    }
}
