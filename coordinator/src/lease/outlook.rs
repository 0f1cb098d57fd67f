//! Could another member take the primary's place now, and what would be lost? Pure; nothing is decided here.

use holdfast_common::id::NodeId;
use holdfast_common::position::Position;
use holdfast_common::protocol::{Need, Reign};

/// What a failover would mean at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outlook {
    /// Who would most likely be promoted.
    pub candidate: Option<NodeId>,
    /// How far it is behind the primary's last known position, in bytes; `None`: unknown. In quorum mode nothing that was
    /// acknowledged is lost.
    pub behind: Option<u64>,
    /// Why there could be none.
    pub obstacle: Option<Obstacle>,
}

/// Why there could be no failover now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error("a failover is under way")]
    UnderWay,
    #[error("the primary has not confirmed yet on which members it depends")]
    NotSettled,
    #[error("no other member may be promoted")]
    NobodyPromotable,
    #[error(
        "too few of the members that may be promoted can be reached: {reachable} of the {needed} that are needed"
    )]
    TooFewReachable { reachable: usize, needed: usize },
}

/// From the reign, the primary's last known position, and the positions of the members that can be reached.
pub fn outlook(
    reign: &Reign,
    primary: Option<Position>,
    reachable: impl Fn(NodeId) -> Option<Option<Position>>,
) -> Outlook {
    let none = |obstacle| Outlook { candidate: None, behind: None, obstacle: Some(obstacle) };
    if reign.intended.is_some() {
        return none(Obstacle::UnderWay);
    }
    if !reign.enforced {
        return none(Obstacle::NotSettled);
    }
    let promotable = reign.promotable();
    if promotable.is_empty() {
        return none(Obstacle::NobodyPromotable);
    }
    // Of each list that the primary may go by: one that it has not confirmed, and never will, keeps nobody from taking its place.
    for list in &reign.lists {
        let reachable = list.members().iter().filter(|node| reachable(**node).is_some()).count();
        let needed = list.need.seals(list.members().len());
        if reachable < needed {
            return none(Obstacle::TooFewReachable { reachable, needed });
        }
    }
    let found: Vec<(NodeId, Option<Position>)> =
        promotable.iter().filter_map(|node| Some((*node, reachable(*node)?))).collect();
    if found.is_empty() {
        return none(Obstacle::TooFewReachable { reachable: 0, needed: 1 });
    }
    let newest = reign.newest();
    let best = found.into_iter().max_by_key(|(_, position)| *position);
    let behind = best.and_then(|(_, position)| Some(position?.behind(primary?)));
    let behind = if newest.need == Need::All { behind } else { behind.map(|_| 0) };
    Outlook { candidate: best.map(|(node, _)| node), behind, obstacle: None }
}

#[cfg(test)]
mod tests {
    use holdfast_common::protocol::{List, Version};
    use holdfast_common::term::Term;

    use super::*;

    fn at(offset: u64) -> Position {
        Position { era: 1, offset }
    }

    fn reign(members: &[NodeId], need: Need) -> Reign {
        let list = List::new(Version::FIRST, members.iter().copied(), need);
        Reign { enforced: true, ..Reign::first(NodeId::generate(), list) }
    }

    #[test]
    fn the_one_with_most_is_the_candidate_and_what_it_lacks_is_told() {
        let (a, b) = (NodeId::generate(), NodeId::generate());
        let found = outlook(&reign(&[a, b], Need::All), Some(at(100)), |node| {
            Some(Some(if node == a { at(60) } else { at(90) }))
        });
        assert_eq!(found, Outlook { candidate: Some(b), behind: Some(10), obstacle: None });
        let unknown = outlook(&reign(&[a], Need::All), None, |_| Some(Some(at(1))));
        assert_eq!((unknown.candidate, unknown.behind), (Some(a), None));
    }

    /// A member that was lost at the same time: the primary will never say that it does without.
    #[test]
    fn a_list_that_a_lost_primary_has_not_confirmed_is_in_nobody_s_way() {
        let (a, b) = (NodeId::generate(), NodeId::generate());
        let pending = |before: Need, after: Need| {
            let reign = reign(&[a, b], before);
            let newest = List::new(Version::FIRST.next(), [b], after);
            Reign { lists: vec![reign.lists[0].clone(), newest], ..reign }
        };
        let found =
            |reign, there: NodeId| outlook(&reign, None, |node| (node == there).then_some(Some(at(1))));
        assert_eq!(found(pending(Need::All, Need::All), b).candidate, Some(b));
        let both = Obstacle::TooFewReachable { reachable: 1, needed: 2 };
        assert_eq!(
            found(pending(Need::of(1), Need::of(1)), b).obstacle,
            Some(both),
            "either may be in force"
        );
        let none = Obstacle::TooFewReachable { reachable: 0, needed: 1 };
        assert_eq!(found(pending(Need::All, Need::All), a).obstacle, Some(none));
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let (a, b) = (NodeId::generate(), NodeId::generate());
        let table = [
            (Reign { intended: Some(Term::new(2)), ..reign(&[a], Need::All) }, Obstacle::UnderWay),
            (Reign { enforced: false, ..reign(&[a, b], Need::of(1)) }, Obstacle::NotSettled),
            (reign(&[], Need::All), Obstacle::NobodyPromotable),
            (reign(&[a, b], Need::of(1)), Obstacle::TooFewReachable { reachable: 1, needed: 2 }),
        ];
        for (reign, obstacle) in table {
            let found = outlook(&reign, None, |node| (node == a).then_some(Some(at(1))));
            assert_eq!(found.obstacle, Some(obstacle));
        }
    }
}
