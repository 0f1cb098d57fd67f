//! `AddMember`.

use holdfast_common::command::CheckMember;
use holdfast_common::error::{Classify as _, Failure, Reason};
use holdfast_common::name::{ClusterName, NodeName};

use super::preconditions::{
    Precondition, check_nodes, filters, not_draining, online, parameters_fit, ports_not_taken,
};
use super::{Asker, Desk, Prepare, Prepared, store_failure};
use crate::cluster::{Cluster, Member, MemberPhase, Phase};
use crate::directory::put;
use crate::operation::Submit;
use crate::procedures::add_member;
use crate::procedures::records::{Writes, cluster_key};
use crate::store::Compare;

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct AddMember {
    pub cluster: ClusterName,
    pub node: NodeName,
}

impl Prepare for AddMember {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let found = desk.cluster(&self.cluster).await?;
        let cluster = found.value;
        let node = desk.node("node", &self.node).await?;
        if cluster.member(node.id).is_some() {
            let message = format!("node `{}` already has a member of cluster `{}`", self.node, self.cluster);
            return Err(Failure::about(Reason::MemberExists, "member", &self.node, message));
        }
        let mut preconditions = vec![active(&cluster)];
        let mut named = vec![(node.id, node.name.clone())];
        if let Some(primary) = cluster.primary_member() {
            named.push((primary.node_id, primary.node_name.clone()));
        }
        preconditions.extend(online(&desk.means, cluster.id, &named));
        preconditions.push(not_draining(&node.name, node.drained.as_ref()));
        preconditions.extend(filters(desk, cluster.exposure, &[&node]));
        let clusters = desk.means.records.all().await.map_err(|error| store_failure(&error))?;
        let remedy = "a cluster's ports are the same on all of its nodes: choose another node";
        preconditions.extend(ports_not_taken(&clusters, cluster.id, &[&node], &cluster.ports(), remedy));
        if preconditions.iter().all(|condition| condition.met) {
            let check = CheckMember {
                cluster_id: cluster.id,
                engine: cluster.engine,
                engine_version: Some(cluster.engine_version.clone()),
                port: cluster.port,
                replication_port: cluster.replication_port,
                extensions: cluster.extensions.clone(),
            };
            let (checked, found) = check_nodes(desk, &[&node], &check).await;
            preconditions.extend(checked);
            for (_, checked) in &found {
                preconditions.extend(parameters_fit(cluster.engine, &cluster.parameters, &node, checked));
            }
        }
        let member = Member {
            node_id: node.id,
            node_name: node.name.clone(),
            address: node.address,
            phase: MemberPhase::Joining,
        };
        let with = cluster.clone().with_joining(member.clone()).map_err(|error| error.to_failure())?;
        let steps = add_member::plan();
        if preconditions.iter().any(|condition| !condition.met) {
            return Ok(Prepared { preconditions, steps, notes: Vec::new(), submit: None });
        }
        let key = cluster_key(&cluster.name);
        let mut submit = asker
            .submit(add_member::AddMember::new(&cluster, node.id), &cluster)
            .when(Compare::unchanged(&key, found.revision))
            .then(put(&key, &with).map_err(|error| error.to_failure())?);
        let Writes { compares, ops } =
            desk.means.records.writes_of_new(&with, &member).await.map_err(|error| store_failure(&error))?;
        submit = compares.into_iter().fold(submit, Submit::when);
        submit = ops.into_iter().fold(submit, Submit::then);
        Ok(Prepared { preconditions, steps, notes: Vec::new(), submit: Some(submit) })
    }
}

pub(super) fn active(cluster: &Cluster) -> Precondition {
    let subject = format!("clusters/{}", cluster.name);
    let (met, message) = match cluster.phase {
        Phase::Active => (true, "the cluster is active"),
        Phase::Creating => (false, "the cluster is still being made; wait for that operation"),
        Phase::Deleting => (false, "the cluster is being deleted"),
    };
    Precondition::new("cluster_active", subject, met, message)
}
