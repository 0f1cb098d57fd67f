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
