//! What must hold before access rules change.

use holdfast_common::access::MAX_NETWORKS_PER_NODE;
use holdfast_common::error::{Classify as _, Failure};

use super::preconditions::{Precondition, about_node};
use super::{Desk, unmet_failure};
use crate::cluster::Cluster;
use crate::cluster::access::Declared;
use crate::procedures::access::AllStored;

impl Desk {
    /// Whether every member's node has room for all the networks that it must hold.
    ///
    /// # Errors
    /// `PRECONDITION_FAILED`, naming the node; those of the store.
    pub async fn check_room(&self, cluster: &Cluster, after: &Declared) -> Result<(), Failure> {
        let records = &self.means.records;
        let mut all = AllStored::new();
        records.read_access(&mut all).await.map_err(|error| error.to_failure())?;
        let clusters = records.all().await.map_err(|error| error.to_failure())?;
        for member in &cluster.members {
            let others =
                clusters.iter().filter(|it| it.id != cluster.id && it.member(member.node_id).is_some());
            let others = others.filter_map(|it| all.get(&it.id)).map(|it| it.declared.for_nodes().networks());
            let networks = others.sum::<usize>() + after.for_nodes().networks();
            if networks > MAX_NETWORKS_PER_NODE {
                let message = format!(
                    "the node would have to hold {networks} networks of all its clusters, tried and kept; it can hold {MAX_NETWORKS_PER_NODE}"
                );
                let room =
                    Precondition::new("room_for_networks", about_node(&member.node_name), false, message);
                return Err(unmet_failure(&[&room]));
            }
        }
        Ok(())
    }
}
