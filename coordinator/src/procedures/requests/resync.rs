//! `ResyncCluster`.

use holdfast_common::command::ResyncMode;
use holdfast_common::error::{Failure, Reason};
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::report::EngineState;
use holdfast_common::role::{Availability, Role};

use super::members::active;
use super::preconditions::{Precondition, about_node};
use super::{Asker, Desk, Prepare, Prepared, confirmed};
use crate::cluster::{Cluster, Member, MemberPhase};
use crate::procedures::records::cluster_key;
use crate::procedures::resync::{self, Resync};
use crate::store::Compare;

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct ResyncCluster {
    pub cluster: ClusterName,
    /// Whose data are to be aligned; none: all replicas'.
    pub nodes: Vec<NodeName>,
    pub mode: ResyncMode,
    pub in_place: bool,
    pub confirm: String,
}

impl Prepare for ResyncCluster {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let found = desk.cluster(&self.cluster).await?;
        let cluster = found.value;
        confirmed("cluster", self.cluster.as_str(), &self.confirm)?;
        let targets = self.targets(&cluster)?;
        let mut preconditions =
            vec![active(&cluster), has_replicas(&cluster), primary_serves(desk, &cluster)];
        preconditions.extend(targets.iter().map(|target| is_replica(desk, &cluster, target)));
        let key = cluster_key(&cluster.name);
        let procedure = Resync::new(&cluster, &targets, self.mode, self.in_place);
        let submit = asker.submit(procedure, &cluster).when(Compare::unchanged(&key, found.revision));
        let notes = vec![
            "one replica at a time; readers of that one are cut off until it follows again".to_owned(),
            "log that perhaps only the replica has is set aside on its disk before anything is overwritten"
                .to_owned(),
        ];
        let steps = resync::plan(targets.iter().map(|target| &target.node_name));
        Ok(Prepared { preconditions, steps, notes, submit: Some(submit) })
    }
}

impl ResyncCluster {
    fn targets<'a>(&self, cluster: &'a Cluster) -> Result<Vec<&'a Member>, Failure> {
        if self.nodes.is_empty() {
            return Ok(cluster.replicas().collect());
        }
        let member = |name: &NodeName| {
            cluster.member_named(name).ok_or_else(|| {
                let message = format!("cluster `{}` has no member on node `{name}`", self.cluster);
                Failure::about(Reason::MemberNotFound, "member", name, message)
            })
        };
        self.nodes.iter().map(member).collect()
    }
}

fn subject(cluster: &Cluster) -> String {
    format!("clusters/{}", cluster.name)
}

fn has_replicas(cluster: &Cluster) -> Precondition {
    let met = cluster.members.len() > 1;
    let message =
        if met { "there are replicas" } else { "there is one member only: nothing to align it with" };
    Precondition::new("has_replicas", subject(cluster), met, message)
}

fn primary_serves(desk: &Desk, cluster: &Cluster) -> Precondition {
    let report = cluster.primary.and_then(|primary| {
        let state = desk.means.nodes.state(primary, cluster.id)?;
        (state.availability == Availability::Online).then_some(state.report?.0)
    });
    let serves = |role, state| role == Some(Role::Primary) && state == EngineState::Running;
    let met = report.is_some_and(|report| serves(report.role, report.state));
    let message = if met { "the primary serves" } else { "there is no primary that serves; wait for one" };
    Precondition::new("primary_serves", subject(cluster), met, message)
}

fn is_replica(desk: &Desk, cluster: &Cluster, target: &Member) -> Precondition {
    let state = desk.means.nodes.state(target.node_id, cluster.id);
    let online = state.is_some_and(|state| state.availability == Availability::Online);
    let (met, message) = match (cluster.role(target.node_id), target.phase) {
        (Role::Primary, _) => (false, "it is the primary, whose data are never replaced; name replicas"),
        (Role::Replica, MemberPhase::Joining) => {
            (false, "its data are still being made; wait for that operation")
        }
        (Role::Replica, MemberPhase::Leaving) => (false, "it is being removed"),
        (Role::Replica, _) if !online => (false, "its node is offline; start it, or name others"),
        (Role::Replica, MemberPhase::Active | MemberPhase::Aligning) => (true, "it is a replica"),
    };
    Precondition::new("is_replica", about_node(&target.node_name), met, message)
}
