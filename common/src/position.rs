//! A comparable place in the replication log of any engine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place in a cluster's log. Comparable within one cluster: first by era, then by offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// PostgreSQL: the timeline.
    pub era: u64,
    /// PostgreSQL: the log sequence number, in bytes.
    pub offset: u64,
}

impl Position {
    /// By how many bytes `self` is behind `other`; 0 where it is not.
    pub const fn behind(self, other: Self) -> u64 {
        other.offset.saturating_sub(self.offset)
    }
}

impl fmt::Display for Position {
    /// `era:hi/lo`, the second part as PostgreSQL writes its log sequence numbers.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:X}/{:X}", self.era, self.offset >> 32, self.offset & 0xffff_ffff)
    }
}
