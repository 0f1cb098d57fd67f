//! `RestartCluster`.

use holdfast_common::error::{Classify as _, Failure};
use holdfast_common::id::NodeId;
use holdfast_common::name::{ClusterName, NodeName};

use super::members::active;
use super::preconditions::{Precondition, about_node, online};
use super::promote::{member_named, serves, successor};
use super::{Asker, Desk, Prepare, Prepared};
use crate::cluster::{Cluster, Member};
use crate::procedures::in_place;
use crate::procedures::records::cluster_key;
use crate::procedures::restart::{self, Last, Restart, Writes};
use crate::store::Compare;

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct RestartCluster {
    pub cluster: ClusterName,
    /// Only these members; empty: all.
    pub nodes: Vec<NodeName>,
    pub writes: Writes,
}

/// What a restart would be.
pub(super) struct Outline {
    pub(super) preconditions: Vec<Precondition>,
    pub(super) notes: Vec<String>,
    /// None where the cluster has no primary.
    pub(super) restart: Option<Restart>,
}

impl Prepare for RestartCluster {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let found = desk.cluster(&self.cluster).await?;
        let cluster = found.value;
        let Outline { preconditions, notes, restart } = self.outline(desk, &cluster).await?;
        let steps = restart.as_ref().map(Restart::plan).unwrap_or_default();
        let submit = restart.map(|restart| {
            let unchanged = Compare::unchanged(cluster_key(&cluster.name), found.revision);
            asker.submit(restart, &cluster).when(unchanged)
        });
        Ok(Prepared { preconditions, steps, notes, submit })
    }
}

impl RestartCluster {
    pub(super) async fn outline(&self, desk: &Desk, cluster: &Cluster) -> Result<Outline, Failure> {
        let mut chosen: Vec<&Member> =
            self.nodes.iter().map(|node| member_named(cluster, node)).collect::<Result<_, _>>()?;
        if self.nodes.is_empty() {
            chosen.extend(&cluster.members);
        }
        let mut preconditions = vec![active(cluster)];
        let named: Vec<_> = chosen.iter().map(|member| (member.node_id, member.node_name.clone())).collect();
        preconditions.extend(online(&desk.means, cluster.id, &named));
        let ids: Vec<NodeId> = chosen.iter().map(|member| member.node_id).collect();
        let mut restart = Restart::new(cluster, &ids, self.writes);
        match restart.as_ref().map(|restart| restart.last) {
            Some(Last::Switchover | Last::InPlace) | None => {
                let (may, in_place) = has_successor(desk, cluster, self.writes).await?;
                preconditions.push(may);
                if in_place {
                    restart = restart.map(Restart::in_place);
                    let primary = cluster.primary_member();
                    preconditions.extend(primary.map(|primary| serves(&desk.means, cluster, primary)));
                }
            }
            Some(Last::Stays) => {}
        }
        let replicas = chosen.iter().filter(|member| cluster.primary != Some(member.node_id));
        preconditions.extend(writes_go_on(desk, cluster, replicas.copied(), self.writes));
        let notes = notes(desk, cluster, &chosen, restart.as_ref());
        Ok(Outline { preconditions, notes, restart })
    }
}

/// Whether the primary can be restarted; and whether that is where it is, because nobody can take over.
async fn has_successor(
    desk: &Desk,
    cluster: &Cluster,
    writes: Writes,
) -> Result<(Precondition, bool), Failure> {
    let found = successor(&desk.means, cluster).await.map_err(|error| error.to_failure())?;
    let in_place = found.is_err() && writes == Writes::MayWait;
    let (met, message) = match found {
        Ok(target) => (true, format!("{} can take over from the primary", target.node_name)),
        Err(why) if in_place => {
            (true, format!("nobody can take over from the primary ({why}): it is restarted where it is"))
        }
        Err(why) => (
            false,
            format!(
                "nobody can take over from the primary: {why}; --force restarts it where it is, and writes wait meanwhile"
            ),
        ),
    };
    Ok((Precondition::new("successor", format!("clusters/{}", cluster.name), met, message), in_place))
}

/// Whether each of these replicas can be away for a moment.
pub(super) fn writes_go_on<'a>(
    desk: &Desk,
    cluster: &Cluster,
    replicas: impl Iterator<Item = &'a Member>,
    writes: Writes,
) -> Vec<Precondition> {
    let look = |member: &Member| {
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
    replicas.map(look).collect()
}

fn notes(desk: &Desk, cluster: &Cluster, chosen: &[&Member], restart: Option<&Restart>) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for member in chosen {
        let report = desk.means.nodes.state(member.node_id, cluster.id).and_then(|state| state.report);
        if let Some((report, _)) = report.filter(|(report, _)| !report.pending_restart.is_empty()) {
            let waiting = report.pending_restart.join(", ");
            notes.push(format!("{}: these parameters wait for a restart: {waiting}", member.node_name));
        }
    }
    let Some(restart) = restart else { return notes };
    if !restart.replicas.is_empty() {
        notes.push("readers of a replica are cut off while it restarts".to_owned());
    }
    let primary = &restart.primary.name;
    match restart.last {
        Last::Switchover => notes.push(format!(
            "{primary} comes last, by a switchover, and stays a replica; cluster promote {} {primary} moves the primary back",
            cluster.name
        )),
        Last::InPlace => notes.push(in_place::note()),
        Last::Stays => {}
    }
    notes
}
