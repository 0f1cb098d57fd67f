//! Roles of members, availability of nodes, durability of clusters.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A member's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Follows a primary.
    Replica,
}

/// Whether a node is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    Online,
    /// Its heartbeat is overdue.
    Late,
    Offline,
}

/// When a commit is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Once the primary has it. A failover may lose the last instants.
    Async,
    /// Once the primary and W replicas have it.
    Quorum,
}

// === impl Durability ===

impl Durability {
    /// W: how many replicas must have a commit, in a cluster of so many members (the primary included).
    pub const fn synchronous_count(self, members: usize) -> usize {
        match self {
            Self::Async => 0,
            Self::Quorum => members / 2,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        })
    }
}

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Online => "online",
            Self::Late => "late",
            Self::Offline => "offline",
        })
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Async => "async",
            Self::Quorum => "quorum",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_half_of_the_members_rounded_down() {
        let counts: Vec<usize> =
            (1..=5).map(|members| Durability::Quorum.synchronous_count(members)).collect();
        assert_eq!(counts, [0, 1, 1, 2, 2]);
        assert_eq!(Durability::Async.synchronous_count(5), 0);
    }
}
