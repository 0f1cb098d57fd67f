//! `DrainNode`.

use holdfast_common::error::{Classify as _, Failure};
use holdfast_common::name::{ClusterName, NodeName};

use super::preconditions::Precondition;
use super::promote::successor;
use super::{Asker, Desk, Prepare, Prepared, store_failure};
use crate::cluster::{Cluster, Phase};
use crate::directory::{Drained, Node};
use crate::procedures::Procedures;
use crate::procedures::drain::{self, Drain, Purpose, Unmovable};

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct DrainNode {
    pub node: NodeName,
    /// May be empty.
    pub reason: String,
    pub unmovable: Unmovable,
}

impl Prepare for DrainNode {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let node = desk.node("name", &self.node).await?;
        let all = desk.means.records.all().await.map_err(|error| store_failure(&error))?;
        let Moves { preconditions, mut notes, clusters } = moves(desk, &all, &node, self.unmovable).await?;
        if let Some(drained) = &node.drained {
            notes.push(format!("the node is drained already, {drained}"));
        }
        notes.push(format!(
            "replicas on {0} stay and go on replicating; no new role comes there until: holdfast node undrain {0}",
            self.node
        ));
        let steps = drain::plan(&self.node, &clusters);
        let mark =
            Drained { by: asker.caller.clone(), since: desk.means.clock.now(), reason: self.reason.clone() };
        let how = (self.unmovable, Purpose::KeepAway);
        let procedure: Procedures = Drain::new(&node, mark, how, clusters).into();
        let submit = asker.submit_on_node(procedure, &self.node);
        Ok(Prepared { preconditions, steps, notes, submit: Some(submit) })
    }
}

/// The primaries that would move off a node.
pub(super) struct Moves {
    pub(super) preconditions: Vec<Precondition>,
    pub(super) notes: Vec<String>,
    pub(super) clusters: Vec<ClusterName>,
}

/// Which primaries would move off the node, and whether they can.
pub(super) async fn moves(
    desk: &Desk,
    all: &[Cluster],
    node: &Node,
    unmovable: Unmovable,
) -> Result<Moves, Failure> {
    let mut moves = Moves { preconditions: Vec::new(), notes: Vec::new(), clusters: Vec::new() };
    for cluster in drain::primaries(all, node.id) {
        let found = successor(&desk.means, cluster).await.map_err(|error| error.to_failure())?;
        let subject = format!("clusters/{}", cluster.name);
        let (met, message) = match (found, unmovable) {
            (Ok(target), _) => (true, format!("{} can take over", target.node_name)),
            (Err(why), Unmovable::Refuse) => {
                (false, format!("nobody can take over: {why}; --force leaves its primary where it is"))
            }
            (Err(why), Unmovable::Leave) => {
                moves.notes.push(format!(
                    "the primary of {} stays on {} unless somebody can take over by then: {why}",
                    cluster.name, node.name
                ));
                (true, "its primary may stay where it is".to_owned())
            }
        };
        moves.preconditions.push(Precondition::new("successor", subject, met, message));
        moves.clusters.push(cluster.name.clone());
    }
    let comes = |cluster: &&Cluster| cluster.phase == Phase::Creating && cluster.member(node.id).is_some();
    moves.preconditions.extend(all.iter().filter(comes).map(|cluster| {
        let message = "it is still being made, and its primary may come there; wait for that operation";
        Precondition::new("cluster_made", format!("clusters/{}", cluster.name), false, message)
    }));
    Ok(moves)
}
