//! `DrainNode`.

use holdfast_common::error::{Classify as _, Failure};
use holdfast_common::name::{ClusterName, NodeName};

use super::preconditions::Precondition;
use super::promote::successor;
use super::{Asker, Desk, Prepare, Prepared, store_failure};
use crate::cluster::{Cluster, Phase};
use crate::directory::Drained;
use crate::operation::Submit;
use crate::procedures::drain::{self, Drain, Unmovable};
use crate::procedures::{Procedures, node_resource};

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
        let (mut preconditions, mut notes) = (Vec::new(), Vec::new());
        let mut clusters: Vec<ClusterName> = Vec::new();
        for cluster in drain::primaries(&all, node.id) {
            let found = successor(&desk.means, cluster).await.map_err(|error| error.to_failure())?;
            let subject = format!("clusters/{}", cluster.name);
            let (met, message) = match (found, self.unmovable) {
                (Ok(target), _) => (true, format!("{} can take over", target.node_name)),
                (Err(why), Unmovable::Refuse) => {
                    (false, format!("nobody can take over: {why}; --force leaves its primary where it is"))
                }
                (Err(why), Unmovable::Leave) => {
                    notes.push(format!(
                        "the primary of {} stays on {} unless somebody can take over by then: {why}",
                        cluster.name, self.node
                    ));
                    (true, "its primary may stay where it is".to_owned())
                }
            };
            preconditions.push(Precondition::new("successor", subject, met, message));
            clusters.push(cluster.name.clone());
        }
        let comes =
            |cluster: &&Cluster| cluster.phase == Phase::Creating && cluster.member(node.id).is_some();
        preconditions.extend(all.iter().filter(comes).map(|cluster| {
            let message = "it is still being made, and its primary may come there; wait for that operation";
            Precondition::new("cluster_made", format!("clusters/{}", cluster.name), false, message)
        }));
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
        let procedure: Procedures = Drain::new(&node, mark, self.unmovable, clusters).into();
        let submit = Submit::new(procedure, node_resource(&self.node), asker.caller.clone());
        let submit = match &asker.request {
            Some(request) => submit.request(request.clone()),
            None => submit,
        };
        Ok(Prepared { preconditions, steps, notes, submit: Some(submit) })
    }
}
