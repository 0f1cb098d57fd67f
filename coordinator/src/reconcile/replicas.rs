//! Looks after the replicas: a quorum counts on those that are there, and one that cannot follow by itself is aligned.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::command::ResyncMode;
use holdfast_common::error::{Chain, Classify as _, Reason};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::report::{EngineState, MemberReport};
use holdfast_common::role::{Availability, Durability, Role};
use tokio::time::Instant;

use super::Look;
use crate::cluster::{Cluster, Member, MemberPhase, OnReplicaLoss, Phase};
use crate::lease::Leases;
use crate::operation::{self, Submit};
use crate::procedures::regroup::{self, Regroup};
use crate::procedures::resync::Resync;
use crate::procedures::{Nodes, Procedures, resource};

/// For how long a replica must be lost before the quorum counts on it no more.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// For how long it must receive before the quorum counts on it again.
const BACK_AFTER: Duration = Duration::from_secs(3);
/// For how long it must receive for what was tried to have helped.
const HELPED_AFTER: Duration = Duration::from_secs(30);
/// After something was tried; doubled each time, for one member.
const AGAIN: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// The loop's means, and what it remembers.
#[derive(Debug)]
pub struct Replicas {
    nodes: Arc<dyn Nodes>,
    leases: Leases,
    operations: operation::Handle<Procedures>,
    kept: BTreeMap<(ClusterId, NodeId), Kept>,
}

/// What is remembered of one replica.
#[derive(Debug, Default)]
struct Kept {
    /// For how long its primary has not sent to it, or has.
    lost: Duration,
    back: Duration,
    /// Until when nothing is tried, after how many tries.
    tried: Option<(Instant, u32)>,
}

// === impl Kept ===

impl Kept {
    /// Whether its primary sends to it now.
    fn see(&mut self, streams: bool, elapsed: Duration) {
        (self.lost, self.back) = match streams {
            true => (Duration::ZERO, self.back + elapsed),
            false => (self.lost + elapsed, Duration::ZERO),
        };
        if self.back >= HELPED_AFTER {
            self.tried = None;
        }
    }

    fn may_try(&self) -> bool {
        self.tried.is_none_or(|(until, _)| Instant::now() >= until)
    }

    fn has_tried(&mut self) {
        let tries = self.tried.map_or(0, |(_, tries)| tries);
        let pause = AGAIN.saturating_mul(1 << tries.min(5)).min(LONGEST);
        self.tried = Some((Instant::now() + pause, tries + 1));
    }
}

// === impl Replicas ===

impl Replicas {
    pub fn new(nodes: Arc<dyn Nodes>, leases: Leases, operations: operation::Handle<Procedures>) -> Self {
        Self { nodes, leases, operations, kept: BTreeMap::new() }
    }

    /// What is to be done about the cluster now, if anything, and whose try it is.
    fn due(&mut self, cluster: &Cluster, elapsed: Duration) -> Option<(NodeId, Procedures)> {
        let primary = self.leading(cluster)?;
        for member in cluster.replicas() {
            let follows =
                |it: &&holdfast_common::report::Follower| it.node_id == member.node_id && it.streaming;
            let streams = primary.followers.iter().find(follows).is_some();
            let kept = self.kept.entry((cluster.id, member.node_id)).or_default();
            kept.see(streams, elapsed);
        }
        self.alignable(cluster).or_else(|| self.shrinkable(cluster)).or_else(|| self.growable(cluster))
    }

    /// What the primary says, if it runs and is not being changed.
    fn leading(&self, cluster: &Cluster) -> Option<MemberReport> {
        let regent = self.leases.regent(cluster.id)?;
        let changes = regent.stop.is_some() || regent.reign.intended.is_some();
        let state = self.nodes.state(cluster.primary?, cluster.id)?;
        let report = state.report.filter(|_| state.availability == Availability::Online && !changes)?.0;
        let leads = report.role == Some(Role::Primary) && report.state == EngineState::Running;
        (leads && report.term == cluster.term).then_some(report)
    }

    /// A replica that says that it cannot follow by itself.
    fn alignable(&self, cluster: &Cluster) -> Option<(NodeId, Procedures)> {
        let member = cluster.replicas().find(|member| {
            let needs = self.nodes.state(member.node_id, cluster.id).is_some_and(|state| {
                let report = state.report.filter(|_| state.availability == Availability::Online);
                report.is_some_and(|(report, _)| report.needs_resync)
            });
            needs && has_data(member) && self.may_try(cluster.id, member.node_id)
        })?;
        let procedure = Resync::new(cluster, &[member], ResyncMode::Auto, false);
        Some((member.node_id, procedure.into()))
    }

    /// A replica that a quorum counts on, and that is lost.
    fn shrinkable(&self, cluster: &Cluster) -> Option<(NodeId, Procedures)> {
        if cluster.on_replica_loss == OnReplicaLoss::Block {
            return None;
        }
        let lost = |node: &&NodeId| {
            let kept = self.kept.get(&(cluster.id, **node));
            kept.is_some_and(|kept| kept.lost >= LOST_AFTER) && self.may_try(cluster.id, **node)
        };
        let node = *cluster.synchronous.nodes.iter().find(lost)?;
        Some((node, Regroup::new(cluster, regroup::Step::Shrink(node)).into()))
    }

    /// Replicas that are back, and that a quorum could count on.
    fn growable(&self, cluster: &Cluster) -> Option<(NodeId, Procedures)> {
        if cluster.durability == Durability::Async {
            return None;
        }
        let receives = |node: NodeId| {
            let kept = self.kept.get(&(cluster.id, node));
            let back = kept.is_some_and(|kept| kept.back >= BACK_AFTER);
            back && self.nodes.state(node, cluster.id).is_some_and(|state| state.receives())
        };
        let counted = |node: NodeId| cluster.synchronous.nodes.contains(&node);
        let active = || cluster.replicas().filter(|it| it.phase == MemberPhase::Active).map(|it| it.node_id);
        let new =
            active().find(|node| receives(*node) && !counted(*node) && self.may_try(cluster.id, *node))?;
        // One that it counts on and that is away would be waited for.
        let all_there = active().all(|node| !counted(node) || receives(node));
        let wanted = cluster.synchronous_of(active().filter(|node| receives(*node)).collect());
        all_there.then(|| (new, Regroup::new(cluster, regroup::Step::Grow(wanted)).into()))
    }

    fn may_try(&self, cluster: ClusterId, node: NodeId) -> bool {
        self.kept.get(&(cluster, node)).is_none_or(Kept::may_try)
    }
}

impl Look for Replicas {
    const TICK: Duration = Duration::from_secs(1);

    async fn look(&mut self, clusters: &[Cluster], elapsed: Duration) {
        // One that has become primary since is another matter when it comes back.
        self.kept.retain(|(id, node), _| {
            let is_replica = |cluster: &Cluster| cluster.replicas().any(|member| member.node_id == *node);
            clusters.iter().any(|cluster| cluster.id == *id && is_replica(cluster))
        });
        for cluster in clusters.iter().filter(|cluster| cluster.phase == Phase::Active) {
            let Some((node, procedure)) = self.due(cluster, elapsed) else { continue };
            let submit = Submit::new(procedure, resource(&cluster.name), "coordinator");
            match self.operations.submit(submit).await {
                Ok(_) => {
                    self.kept.entry((cluster.id, node)).or_default().has_tried();
                }
                Err(error) if error.reason() == Reason::OperationInProgress => {}
                Err(error) => {
                    tracing::warn!(cluster = %cluster.name, error = %Chain(&error), "a replica is looked after in the next round");
                }
            }
        }
    }
}

const fn has_data(member: &Member) -> bool {
    matches!(member.phase, MemberPhase::Active | MemberPhase::Aligning)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_while_nothing_helps_and_what_helped_is_forgotten() {
        let mut kept = Kept::default();
        let second = Duration::from_secs(1);
        for tries in 0..3 {
            assert!(kept.may_try());
            kept.has_tried();
            // It comes back for less than what counts.
            kept.see(true, HELPED_AFTER - second);
            kept.see(false, second);
            advance(AGAIN * (1 << tries) - second).await;
            assert!(!kept.may_try(), "after {tries} tries");
            advance(second).await;
        }
        kept.has_tried();
        kept.see(true, HELPED_AFTER);
        assert!(kept.may_try());
        kept.has_tried();
        advance(AGAIN).await;
        assert!(kept.may_try(), "the pauses have not begun anew");
    }
}
