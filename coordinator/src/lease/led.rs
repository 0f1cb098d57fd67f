//! What of a cluster's record its lease goes by.

use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::name::ClusterName;
use holdfast_common::protocol::Profile;
use holdfast_common::term::Term;

use crate::cluster::{Cluster, MemberPhase};

/// A cluster that has a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    pub cluster: ClusterId,
    pub name: ClusterName,
    pub term: Term,
    pub primary: NodeId,
    /// The active members beside it.
    pub replicas: Vec<NodeId>,
    pub profile: Profile,
}

// === impl Led ===

impl Led {
    /// None where the cluster has no primary.
    pub fn of(cluster: &Cluster) -> Option<Self> {
        let active = cluster.replicas().filter(|member| member.phase == MemberPhase::Active);
        Some(Self {
            cluster: cluster.id,
            name: cluster.name.clone(),
            term: cluster.term,
            primary: cluster.primary?,
            replicas: active.map(|member| member.node_id).collect(),
            profile: cluster.patience(),
        })
    }
}
