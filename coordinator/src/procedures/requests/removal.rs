//! `DeleteCluster` and `RemoveMember`.

use holdfast_common::error::{Classify as _, Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::name::{ClusterName, NodeName};

use super::members::active;
use super::preconditions::{Precondition, online};
use super::{Asker, Desk, Prepare, Prepared, confirmed};
use crate::cluster::Cluster;
use crate::directory::put;
use crate::procedures::records::cluster_key;
use crate::procedures::steps::Absent;
use crate::procedures::{delete, remove_member};
use crate::store::Compare;

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct DeleteCluster {
    pub cluster: ClusterName,
    pub confirm: String,
    pub absent: Absent,
}

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct RemoveMember {
    pub cluster: ClusterName,
    pub node: NodeName,
    pub confirm: String,
    pub absent: Absent,
}

impl Prepare for DeleteCluster {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let found = desk.cluster(&self.cluster).await?;
        let cluster = found.value;
        confirmed("cluster", self.cluster.as_str(), &self.confirm)?;
        let named: Vec<(NodeId, NodeName)> =
            cluster.members.iter().map(|member| (member.node_id, member.node_name.clone())).collect();
        let preconditions = within_reach(desk, &cluster, &named, self.absent);
        let key = cluster_key(&cluster.name);
        let record = put(&key, &cluster.clone().deleting()).map_err(|error| error.to_failure())?;
        let submit = asker
            .submit(delete::Delete::new(&cluster, self.absent), &cluster)
            .when(Compare::unchanged(&key, found.revision))
            .then(record);
        let nodes = named.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ");
        let notes = vec![format!("all data of cluster {} on {nodes} will be gone", cluster.name)];
        Ok(Prepared { preconditions, steps: delete::plan(), notes, submit: Some(submit) })
    }
}

impl Prepare for RemoveMember {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let found = desk.cluster(&self.cluster).await?;
        let cluster = found.value;
        let Some(member) = cluster.member_named(&self.node) else {
            let message = format!("cluster `{}` has no member on node `{}`", self.cluster, self.node);
            return Err(Failure::about(Reason::MemberNotFound, "member", &self.node, message));
        };
        confirmed("node", self.node.as_str(), &self.confirm)?;
        let mut preconditions = vec![active(&cluster), not_primary(&cluster, member.node_id, &self.node)];
        if let Some(primary) = cluster.primary_member() {
            preconditions.extend(online(
                &desk.means,
                cluster.id,
                &[(primary.node_id, primary.node_name.clone())],
            ));
        }
        preconditions.extend(within_reach(
            desk,
            &cluster,
            &[(member.node_id, member.node_name.clone())],
            self.absent,
        ));
        let before = cluster.enforced_synchronous().count;
        let after = cluster.synchronous_without(member.node_id).count;
        let mut notes = vec![format!("the data of cluster {} on {} will be gone", cluster.name, self.node)];
        if after != before {
            notes.push(format!("a commit will wait for {after} replicas instead of {before}"));
        }
        let procedure =
            remove_member::RemoveMember::new(&cluster, member.node_id, self.node.clone(), self.absent);
        let submit = asker
            .submit(procedure, &cluster)
            .when(Compare::unchanged(cluster_key(&cluster.name), found.revision));
        Ok(Prepared { preconditions, steps: remove_member::plan(), notes, submit: Some(submit) })
    }
}

fn not_primary(cluster: &Cluster, node: NodeId, name: &NodeName) -> Precondition {
    let met = cluster.primary != Some(node);
    let message = if met {
        "the member is a replica".to_owned()
    } else {
        format!(
            "node {name} has the primary; only replicas can be removed (delete the cluster to remove all)"
        )
    };
    Precondition::new("member_is_replica", format!("nodes/{name}"), met, message)
}

/// Nodes whose data are to go must be online, unless they may be left for later.
fn within_reach(
    desk: &Desk,
    cluster: &Cluster,
    nodes: &[(NodeId, NodeName)],
    absent: Absent,
) -> Vec<Precondition> {
    let conditions = online(&desk.means, cluster.id, nodes);
    match absent {
        Absent::Wait => conditions
            .into_iter()
            .map(|mut condition| {
                if !condition.met {
                    condition
                        .message
                        .push_str(", or repeat with --force: its data are then removed when it returns");
                }
                condition
            })
            .collect(),
        Absent::LeaveBehind => conditions
            .into_iter()
            .map(|condition| match condition.met {
                true => condition,
                false => Precondition {
                    met: true,
                    message: "the node is away; its data are removed when it returns".into(),
                    ..condition
                },
            })
            .collect(),
    }
}
