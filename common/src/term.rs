//! The number of a reign.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Rises by one with every change of primary; the fencing token. The first primary of a cluster has term 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Term(u64);

impl Term {
    /// Before the first primary; also that of commands that touch no role.
    pub const NONE: Self = Self(0);
    /// That of a cluster's first primary.
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

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
