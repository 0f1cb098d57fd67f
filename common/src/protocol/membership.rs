//! Versioned lists of promotable members.
//!
//! The coordinator stores a version before it sends it, and uses none twice. The primary stores the list and confirms
//! it; only the confirmation of the newest counts. A list that is absent or unreadable is *unknown*, never empty.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::quorum::Need;
use crate::id::NodeId;

/// The version of a cluster's list, rising over all terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(u64);

/// The members beside the primary that may be promoted, and on how many of them the primary depends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    pub version: Version,
    /// In order, each once.
    members: Vec<NodeId>,
    pub need: Need,
}

// === impl Version ===

impl Version {
    /// That of a cluster's first list.
    pub const FIRST: Self = Self(1);

    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl List ===

impl List {
    pub fn new(version: Version, members: impl IntoIterator<Item = NodeId>, need: Need) -> Self {
        let mut members: Vec<NodeId> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        Self { version, members, need }
    }

    pub fn members(&self) -> &[NodeId] {
        &self.members
    }

    pub fn has(&self, node: NodeId) -> bool {
        self.members.binary_search(&node).is_ok()
    }

    /// Whether a primary with this list has nobody who could take its place, and needs nobody's word.
    pub fn is_lone(&self) -> bool {
        self.members.is_empty() && self.need == Need::All
    }

    /// Whether the promises of these let a primary serve; those of strangers count for nothing.
    pub fn is_promised_by(&self, promised: &[NodeId]) -> bool {
        self.need.is_promised_by(self.count(promised), self.members.len())
    }

    /// Whether enough of it are among these for a failover.
    pub fn is_sealed_by<'a>(&self, sealed: impl IntoIterator<Item = &'a NodeId>) -> bool {
        self.count(sealed) >= self.need.seals(self.members.len())
    }

    fn count<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeId>) -> usize {
        nodes.into_iter().filter(|node| self.has(**node)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::node;
    use super::*;

    #[test]
    fn the_words_of_strangers_count_for_nothing() {
        let list = List::new(Version::FIRST, [node(1), node(2), node(1)], Need::All);
        assert_eq!(list.members(), [node(1), node(2)]);
        assert!(!list.is_promised_by(&[node(1), node(3)]));
        assert!(list.is_promised_by(&[node(1), node(2)]));
        let quorum = List::new(Version::FIRST, [node(1), node(2)], Need::of(1));
        assert!(quorum.is_promised_by(&[node(2)]));
        assert!(!quorum.is_sealed_by(&[node(2), node(3)]));
        assert!(quorum.is_sealed_by(&[node(2), node(1)]));
    }

    #[test]
    fn a_quorum_without_members_is_not_alone() {
        assert!(List::new(Version::FIRST, [], Need::All).is_lone());
        assert!(!List::new(Version::FIRST, [], Need::of(1)).is_lone());
    }
}
