//! Who may be promoted in each cluster: its active replicas that can be reached, or, where a commit depends on replicas, those.
//! Whoever is not to be promoted any more is taken off at once; a replica is put on when it receives.

use std::time::Duration;

use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::protocol::{Need, Reign};
use holdfast_common::role::Availability;
use tokio_util::sync::CancellationToken;

use super::Loop;
use crate::cluster::{Cluster, MemberPhase, Phase};
use crate::fleet;
use crate::lease::{self, Leases, Led};
use crate::procedures::records::{self, Records};

/// How often primaries are reminded of what they have not confirmed.
const REMIND: Duration = Duration::from_millis(250);

/// The loop's means.
#[derive(Debug)]
pub struct Keep {
    pub records: Records,
    pub fleet: fleet::Handle,
    pub leases: Leases,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Records(#[from] records::Error),
    #[error(transparent)]
    Leases(#[from] lease::Error),
}

impl Loop for Keep {
    type Error = Error;
    const NAME: &'static str = "leases";

    async fn round(&mut self) -> Result<(), Error> {
        let clusters = self.records.all().await?;
        let led: Vec<Led> = clusters.iter().filter_map(Led::of).collect();
        // First what is known of old: who is listed stays so until it is known to be away.
        self.leases.open(&led).await?;
        // One that is being removed keeps its lease until it is gone.
        for cluster in clusters.iter().filter(|cluster| cluster.phase != Phase::Deleting) {
            if let Some(view) = self.leases.view(cluster.id) {
                let (members, need) = self.promotable(cluster, &view.reign);
                self.leases.declare(cluster.id, &members, need).await?;
            }
        }
        Ok(())
    }
}

impl Keep {
    fn promotable(&self, cluster: &Cluster, reign: &Reign) -> (Vec<NodeId>, Need) {
        let replicas = cluster
            .members
            .iter()
            .filter(|member| member.phase == MemberPhase::Active && member.node_id != reign.primary)
            .map(|member| member.node_id);
        // As it was declared together with the record: also while it is being strengthened.
        let set = cluster.enforced_synchronous();
        let need = Need::of(set.count);
        let members: Vec<NodeId> = match need {
            Need::Any(_) => set.nodes.clone(),
            Need::All => {
                replicas.filter(|node| self.counts(cluster.id, *node, reign.newest().has(*node))).collect()
            }
        };
        (members, need)
    }

    /// Whether a replica is to be on the list.
    fn counts(&self, cluster: ClusterId, node: NodeId, listed: bool) -> bool {
        let Some(view) = self.fleet.node(node) else { return false };
        let report = view.report.as_ref().map(|received| &received.report);
        let member =
            report.and_then(|report| report.members.iter().find(|member| member.cluster_id == cluster));
        match view.availability {
            Availability::Offline => false,
            Availability::Online | Availability::Late => {
                listed || member.is_some_and(|member| member.streaming == Some(true))
            }
        }
    }
}

/// Reminds until `shutdown`.
pub async fn remind(leases: Leases, fleet: fleet::Handle, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(REMIND);
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            () = shutdown.cancelled() => return,
            _now = tick.tick() => {}
        }
        leases.remind(|cluster, primary| {
            let view = fleet.node(primary)?;
            let report = view.report?;
            let member = report.report.members.iter().find(|member| member.cluster_id == cluster)?;
            member.lease.as_ref()?.version
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_common::clock::Clock;
    use holdfast_common::generation::Generation;
    use holdfast_common::protocol::Version;
    use jiff::Timestamp;

    use super::*;
    use crate::cluster::tests::Sample;
    use crate::directory::{self, Directory, put};
    use crate::fleet::liveness;
    use crate::lease::reign_key;
    use crate::procedures::records::cluster_key;
    use crate::store::memory::Memory;
    use crate::store::{Shared, Txn};

    /// A coordinator that has just started: it knows its nodes, and has heard of none.
    fn started(store: &Shared, cluster: &Cluster) -> Keep {
        let directory = Directory::new(Arc::clone(store));
        let fleet = fleet::Service::new(fleet::Settings {
            coordinator_generation: Generation::new(1),
            heartbeat_interval: liveness::HEARTBEAT_INTERVAL,
            metrics_interval: liveness::METRICS_INTERVAL,
        })
        .handle();
        for member in &cluster.members {
            let node = directory::Node {
                id: member.node_id,
                name: member.node_name.clone(),
                address: member.address,
                joined_at: Timestamp::UNIX_EPOCH,
                certificates: Vec::new(),
                drained: None,
            };
            fleet.admit(node, None);
        }
        let leases = Leases::new(directory.clone(), Clock::system());
        Keep { records: Records::new(directory), fleet, leases }
    }

    #[tokio::test]
    async fn a_coordinator_that_starts_takes_nobody_off_the_list_whom_it_has_not_heard_of_yet() {
        let store = Memory::shared();
        let whole = Sample::new().active(2);
        let cluster = Cluster { synchronous: holdfast_common::assignment::Synchronous::default(), ..whole };
        let stored = Txn::new().then(put(&cluster_key(&cluster.name), &cluster).unwrap());
        store.txn(stored).await.unwrap();
        let replica = cluster.members[1].node_id;
        let first = started(&store, &cluster);
        first.leases.open(&[Led::of(&cluster).unwrap()]).await.unwrap();
        first.leases.declare(cluster.id, &[replica], Need::All).await.unwrap();

        let mut next = started(&store, &cluster);
        next.round().await.unwrap();
        let reign = next.leases.view(cluster.id).unwrap().reign;
        assert_eq!(reign.newest().members(), [replica], "it would be alone, with a gate that nobody shuts");
        assert_eq!(reign.newest().version, Version::FIRST.next(), "nothing was declared");

        // One that is being removed keeps its lease and its list.
        let deleting =
            Txn::new().then(put(&cluster_key(&cluster.name), &cluster.clone().deleting()).unwrap());
        store.txn(deleting).await.unwrap();
        next.round().await.unwrap();
        assert_eq!(next.leases.view(cluster.id).unwrap().reign, reign);
    }

    #[tokio::test]
    async fn a_cluster_that_is_deleted_meanwhile_leaves_no_reign_behind() {
        let store = Memory::shared();
        let cluster = Sample::new().active(2);
        let led = [Led::of(&cluster).unwrap()];
        let keep = started(&store, &cluster);
        keep.leases.open(&led).await.unwrap();
        assert_eq!(store.get(&reign_key(cluster.id)).await.unwrap(), None, "it was gone before it was read");
        assert_eq!(keep.leases.view(cluster.id), None);

        let stored = Txn::new().then(put(&cluster_key(&cluster.name), &cluster).unwrap());
        store.txn(stored).await.unwrap();
        keep.leases.open(&led).await.unwrap();
        assert_eq!(keep.leases.view(cluster.id).map(|view| view.reign.term), Some(cluster.term));
    }
}
