//! Clusters: what the operator declared, who the members are, which changes are legal. Pure: no clock, no store, no agents.
//!
//! ```text
//!  Creating ──finish──▶ Active ──delete──▶ Deleting ──▶ (record removed)
//!     └─────────── the way back ───────────────▲
//!
//!  a member:  Joining ──activate──▶ Active ──leave──▶ Leaving ──▶ (removed)
//!                                   └◀─▶ Aligning ─────▲
//! ```
//!
//! A [`Joining`](MemberPhase::Joining) member is known to the others (they let it replicate) and gets no assignment of its
//! own until its data are there.

pub mod access;
pub mod assignment;
mod change;
pub mod invariants;
pub mod observed;
pub mod suspicion;
#[cfg(test)]
pub(crate) mod tests;

use std::net::IpAddr;

use holdfast_common::assignment::{Exposure, Peer, Synchronous};
use holdfast_common::command::{DatabaseName, Verifier};
use holdfast_common::engine::{Engine, EngineVersion, ExtensionName, Parameters};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::pki::Sealed;
use holdfast_common::protocol::Profile;
use holdfast_common::role::{Durability, Role};
use holdfast_common::term::Term;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use change::ChangeError;

/// A cluster as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub id: ClusterId,
    pub name: ClusterName,
    pub engine: Engine,
    pub engine_version: EngineVersion,
    pub durability: Durability,
    /// Where clients reach every member.
    pub port: u16,
    /// Where members reach each other to replicate; `None`: at `port`, because nodes need not filter.
    #[serde(default)]
    pub replication_port: Option<u16>,
    /// Ports of other programs on the members' nodes that open and shut with `port`.
    #[serde(default)]
    pub gated_ports: Vec<u16>,
    /// What the operator has set.
    pub parameters: Parameters,
    pub extensions: Vec<ExtensionName>,
    pub phase: Phase,
    /// [`Term::NONE`] until there is a primary.
    pub term: Term,
    pub primary: Option<NodeId>,
    /// In the order in which they were named.
    pub members: Vec<Member>,
    /// Recorded as enforced by the primary.
    pub synchronous: Synchronous,
    /// A stronger set that the primary enforces first, and that is then recorded.
    pub strengthening: Option<Synchronous>,
    /// The engine's identity of the data.
    pub system_identifier: Option<String>,
    pub access: Access,
    /// Whether it may run on nodes that cannot filter.
    #[serde(default)]
    pub exposure: Exposure,
    /// How patient its leases are.
    #[serde(default)]
    pub lease_profile: Profile,
    /// While that is being changed: the more patient one, by which all go that wait for a lease to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_patience: Option<Profile>,
    /// So many bytes of log a failover may lose without a person's word; of no meaning where commits wait for replicas.
    #[serde(default = "max_lag_on_failover")]
    pub max_lag_on_failover: u64,
    /// What becomes of a quorum that has lost a replica.
    #[serde(default)]
    pub on_replica_loss: OnReplicaLoss,
    /// No failover by itself while it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Pause>,
    /// The last primary whose place another was to take because its server hung.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hung: Option<Hung>,
    pub created_at: Timestamp,
}

/// Who has paused a cluster's failovers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// `operator/NAME`.
    pub by: String,
    pub reason: String,
    pub since: Timestamp,
}

/// A primary whose server let nobody in, or took no writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hung {
    pub node: NodeId,
    /// When the failover for it began.
    pub at: Timestamp,
}

/// What becomes of a quorum when a replica that it counts on is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnReplicaLoss {
    /// It counts on the others alone after a while, on none if there are none.
    #[default]
    Shrink,
    /// Writes wait until it is back, where the others are too few.
    Block,
}

/// As Patroni's `maximum_lag_on_failover`.
pub const MAX_LAG_ON_FAILOVER: u64 = 1024 * 1024;

const fn max_lag_on_failover() -> u64 {
    MAX_LAG_ON_FAILOVER
}

/// Where a cluster is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Creating,
    Active,
    Deleting,
}

/// A cluster's presence on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub node_id: NodeId,
    pub node_name: NodeName,
    pub address: IpAddr,
    pub phase: MemberPhase,
}

/// Where a member is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberPhase {
    /// Its data are being made.
    Joining,
    Active,
    /// Its data are being aligned with the primary's; nobody counts on them.
    Aligning,
    /// Its data are being removed.
    Leaving,
}

/// As whom clients connect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Access {
    pub user: DatabaseName,
    pub database: DatabaseName,
    pub password: Password,
    /// It has been shown to a person; it is not shown again.
    pub shown: bool,
    /// Until it is known whether the primary has taken it, nobody knows which of both works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Box<PendingPassword>>,
}

/// A password on its way to the primary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PendingPassword {
    pub password: Password,
    /// How often it was about to be sent. Only whoever was the first, and knows that it was not sent, may take it back.
    pub attempts: u32,
}

/// A password: for the engine, and for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Password {
    pub verifier: Verifier,
    pub sealed: Sealed,
}

// === impl Cluster ===

impl std::fmt::Display for Pause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "by {} since {}", self.by, self.since.strftime("%Y-%m-%d %H:%M:%S UTC"))?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, " ({})", self.reason) }
    }
}

impl std::fmt::Display for OnReplicaLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Shrink => "shrink",
            Self::Block => "block",
        })
    }
}

impl Cluster {
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.node_id == node)
    }

    pub fn member_named(&self, node: &NodeName) -> Option<&Member> {
        self.members.iter().find(|member| member.node_name == *node)
    }

    /// What a member should be.
    pub fn role(&self, node: NodeId) -> Role {
        if self.primary == Some(node) { Role::Primary } else { Role::Replica }
    }

    /// The term that commands about its data bear: data are made under the first one before there is a primary.
    pub fn command_term(&self) -> Term {
        self.term.max(Term::FIRST)
    }

    /// The primary's member record.
    pub fn primary_member(&self) -> Option<&Member> {
        self.primary.and_then(|node| self.member(node))
    }

    /// Members that are or will be replicas.
    pub fn replicas(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| self.primary != Some(member.node_id))
    }

    /// How others reach a member.
    pub fn peer(&self, member: &Member) -> Peer {
        Peer {
            node_id: member.node_id,
            name: member.node_name.clone(),
            address: member.address,
            port: self.replication_port.unwrap_or(self.port),
        }
    }

    /// How patient those are that wait for a lease to end.
    pub fn patience(&self) -> Profile {
        self.lease_patience.unwrap_or(self.lease_profile)
    }

    /// All ports that belong to it on its nodes.
    pub fn ports(&self) -> Vec<u16> {
        std::iter::once(self.port)
            .chain(self.replication_port)
            .chain(self.gated_ports.iter().copied())
            .collect()
    }

    /// The synchronous set that the declared durability asks for, from the replicas that are active.
    pub fn wanted_synchronous(&self) -> Synchronous {
        let nodes: Vec<NodeId> = self
            .replicas()
            .filter(|member| member.phase == MemberPhase::Active)
            .map(|member| member.node_id)
            .collect();
        self.synchronous_of(nodes)
    }

    /// The same from these replicas.
    pub fn synchronous_of(&self, nodes: Vec<NodeId>) -> Synchronous {
        let count = self.durability.synchronous_count(nodes.len() + 1).min(nodes.len());
        if count == 0 {
            return Synchronous::default();
        }
        Synchronous { count: u32::try_from(count).unwrap_or(u32::MAX), nodes }
    }

    /// What the primary should enforce now: the stronger set while one is being introduced, else the recorded one.
    pub fn enforced_synchronous(&self) -> &Synchronous {
        self.strengthening.as_ref().unwrap_or(&self.synchronous)
    }
}

/// The more patient of both.
pub fn more_patient(one: Profile, other: Profile) -> Profile {
    if other.timings().lease > one.timings().lease { other } else { one }
}
