//! Who may be promoted in each cluster: its active replicas that can be reached, or, where a commit depends on replicas, those.
//! Whoever is not to be promoted any more is taken off at once; a replica is put on when it receives.

use std::time::Duration;

use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::protocol::Need;
use holdfast_common::role::Availability;
use tokio_util::sync::CancellationToken;

use super::Loop;
use crate::cluster::{Cluster, MemberPhase, Phase};
use crate::fleet;
use crate::lease::{self, Leases, Wanted};
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
        let wanted: Vec<Wanted> = clusters.iter().filter_map(|cluster| self.wanted(cluster)).collect();
        Ok(self.leases.settle(&wanted).await?)
    }
}

impl Keep {
    fn wanted(&self, cluster: &Cluster) -> Option<Wanted> {
        let primary = cluster.primary.filter(|_| cluster.phase != Phase::Deleting)?;
        let now: Vec<NodeId> = self
            .leases
            .view(cluster.id)
            .map(|view| view.reign.newest().members().to_vec())
            .unwrap_or_default();
        let replicas = cluster
            .members
            .iter()
            .filter(|member| member.phase == MemberPhase::Active && member.node_id != primary)
            .map(|member| member.node_id);
        let need = Need::of(cluster.synchronous.count);
        let members: Vec<NodeId> = match need {
            Need::Any(_) => cluster.synchronous.nodes.clone(),
            Need::All => replicas.filter(|node| self.counts(cluster.id, *node, now.contains(node))).collect(),
        };
        Some(Wanted {
            cluster: cluster.id,
            term: cluster.term,
            primary,
            members,
            need,
            profile: cluster.lease_profile,
        })
    }

    /// Whether a replica is to be on the list.
    fn counts(&self, cluster: ClusterId, node: NodeId, listed: bool) -> bool {
        let Some(view) = self.fleet.node(node) else { return false };
        let report = view.report.as_ref();
        let member = report
            .and_then(|received| received.report.members.iter().find(|member| member.cluster_id == cluster));
        match view.availability {
            // Nothing was heard of it yet since the coordinator's start: it stays what it was.
            _ if report.is_none() && listed => true,
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
