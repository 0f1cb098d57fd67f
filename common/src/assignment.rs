//! What a node must keep true, as one document.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::access::Access;
use crate::engine::{Engine, EngineVersion, ExtensionName, Parameters};
use crate::generation::Generation;
use crate::id::{ClusterId, NodeId};
use crate::name::{ClusterName, NodeName};
use crate::protocol::Profile;
use crate::role::Role;
use crate::term::Term;

/// The most members on one node.
pub const MAX_MEMBERS: usize = 64;
/// The most members of one cluster.
pub const MAX_PEERS: usize = 15;
/// The most ports that open and shut with a cluster's own.
pub const MAX_GATED_PORTS: usize = 8;
/// The longest identity that an engine gives its data.
pub const MAX_SYSTEM_IDENTIFIER_BYTES: usize = 128;

/// All that a node must keep true. Ordered by (coordinator generation, generation); an older one is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Of the coordinator that sent it; rises when a fleet is adopted by a new one.
    pub coordinator_generation: Generation,
    pub generation: Generation,
    pub members: Vec<MemberAssignment>,
}

/// A member that this node must keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAssignment {
    pub cluster_id: ClusterId,
    pub cluster_name: ClusterName,
    pub engine: Engine,
    pub engine_version: EngineVersion,
    pub term: Term,
    pub role: RoleAssignment,
    /// Where clients reach the engine.
    pub port: u16,
    /// This node's own address.
    pub address: IpAddr,
    /// Where members reach the engine to replicate, and nobody else does; the node leads it on to `port`. `None`: at
    /// `port` itself, because nodes of this cluster need not filter.
    #[serde(default)]
    pub replication_port: Option<u16>,
    /// Ports of other programs of this node, such as poolers, that open and shut with `port`.
    #[serde(default)]
    pub gated_ports: Vec<u16>,
    /// What the operator has set.
    pub parameters: Parameters,
    /// All members, this one included.
    pub members: Vec<Peer>,
    pub extensions: Vec<ExtensionName>,
    /// The engine's identity of the data; `None` before they exist.
    pub system_identifier: Option<String>,
    pub power: Power,
    /// Who may reach the engine, besides members and coordinators.
    #[serde(default)]
    pub access: Access,
    /// Whether the engine may run where nobody can be kept away from it.
    #[serde(default)]
    pub exposure: Exposure,
    /// How patient leases are.
    #[serde(default)]
    pub profile: Profile,
    /// How patient promises are; `None`: as leases. More patient while that is being changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<Profile>,
}

/// Whether a member may run on a node that cannot filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exposure {
    #[default]
    OnlyFiltered,
    /// The operator said so.
    AlsoUnfiltered,
}

/// What a member must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleAssignment {
    Primary { synchronous: Synchronous },
    Replica { upstream: Peer },
}

/// Whom a commit must reach before it is acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synchronous {
    /// How many of `nodes`; 0: none, commits are acknowledged by the primary alone.
    pub count: u32,
    pub nodes: Vec<NodeId>,
}

/// Whether the engine should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    Running,
    Stopped,
}

/// A member as others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub node_id: NodeId,
    pub name: NodeName,
    pub address: IpAddr,
    /// Where other members reach its engine.
    pub port: u16,
}

// === impl Assignment ===

impl Assignment {
    /// What orders assignments.
    pub fn order(&self) -> (Generation, Generation) {
        (self.coordinator_generation, self.generation)
    }

    pub fn member(&self, cluster: ClusterId) -> Option<&MemberAssignment> {
        self.members.iter().find(|member| member.cluster_id == cluster)
    }
}

// === impl MemberAssignment ===

impl MemberAssignment {
    /// The ports that stand behind the member's gate, the engine's own first.
    pub fn client_ports(&self) -> Vec<u16> {
        std::iter::once(self.port).chain(self.gated_ports.iter().copied()).collect()
    }
}

// === impl RoleAssignment ===

impl RoleAssignment {
    pub fn role(&self) -> Role {
        match self {
            Self::Primary { .. } => Role::Primary,
            Self::Replica { .. } => Role::Replica,
        }
    }
}
