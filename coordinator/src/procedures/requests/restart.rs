//! `RestartCluster`.

use holdfast_common::error::{Classify as _, Failure};
use holdfast_common::name::ClusterName;

use super::members::active;
use super::preconditions::{Precondition, about_node, online};
use super::promote::successor;
use super::{Asker, Desk, Prepare, Prepared};
use crate::cluster::Cluster;
use crate::procedures::records::cluster_key;
use crate::procedures::restart::{self, Restart, Writes};
use crate::store::Compare;

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct RestartCluster {
    pub cluster: ClusterName,
    pub writes: Writes,
}

impl Prepare for RestartCluster {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let found = desk.cluster(&self.cluster).await?;
        let cluster = found.value;
        let mut preconditions = vec![active(&cluster)];
        let members = cluster.members.iter();
        let named: Vec<_> = members.map(|member| (member.node_id, member.node_name.clone())).collect();
        preconditions.extend(online(&desk.means, cluster.id, &named));
        let found_successor = successor(&desk.means, &cluster).await.map_err(|error| error.to_failure())?;
        let (met, message) = match found_successor {
            Ok(target) => (true, format!("{} can take over from the primary", target.node_name)),
            Err(why) => (false, format!("nobody can take over from the primary: {why}")),
        };
        preconditions.push(Precondition::new(
            "successor",
            format!("clusters/{}", cluster.name),
            met,
            message,
        ));
        preconditions.extend(writes_go_on(desk, &cluster, self.writes));
        let procedure = Restart::new(&cluster, self.writes);
        let steps = procedure.as_ref().map(Restart::plan).unwrap_or_default();
        let submit = procedure.map(|procedure| {
            let unchanged = Compare::unchanged(cluster_key(&cluster.name), found.revision);
            asker.submit(procedure, &cluster).when(unchanged)
        });
        Ok(Prepared { preconditions, steps, notes: notes(desk, &cluster), submit })
    }
}

/// Whether each replica can be away for a moment.
pub(super) fn writes_go_on(desk: &Desk, cluster: &Cluster, writes: Writes) -> Vec<Precondition> {
    let look = |member: &crate::cluster::Member| {
        let (there, needed) = restart::without(&desk.means, cluster, member.node_id);
        let enough = there >= needed;
        let message = match (enough, writes) {
            (true, _) => format!("without it {there} replicas receive, and commits wait for {needed}"),
            (false, Writes::MayWait) => "writes wait while it restarts".to_owned(),
            (false, Writes::GoOn) => format!(
                "without it {there} replicas receive, and commits wait for {needed}: writes would wait; --force restarts it nevertheless"
            ),
        };
        let met = enough || writes == Writes::MayWait;
        Precondition::new("writes_go_on", about_node(&member.node_name), met, message)
    };
    cluster.replicas().map(look).collect()
}

fn notes(desk: &Desk, cluster: &Cluster) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for member in &cluster.members {
        let report = desk.means.nodes.state(member.node_id, cluster.id).and_then(|state| state.report);
        if let Some((report, _)) = report.filter(|(report, _)| !report.pending_restart.is_empty()) {
            let waiting = report.pending_restart.join(", ");
            notes.push(format!("{}: these parameters wait for a restart: {waiting}", member.node_name));
        }
    }
    notes.push("readers of a replica are cut off while it restarts".to_owned());
    if let Some(primary) = cluster.primary_member() {
        notes.push(format!(
            "{0} comes last, by a switchover, and stays a replica; cluster promote {1} {0} moves the primary back",
            primary.node_name, cluster.name
        ));
    }
    notes
}
