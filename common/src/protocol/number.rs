//! Numbers of requests: never used twice, not after a restart either.
//!
//! An answer counts only for the request whose number it bears. A number is the agent's run and a place in it; a run is
//! stored durably before its first request is made, so that no later run has the same numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestNumber {
    run: u64,
    place: u64,
}

/// Hands out the numbers of one run.
///
/// Not `Clone`: two copies would hand out the same numbers.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Numbers {
    run: u64,
    next: u64,
}

// === impl RequestNumber ===

impl RequestNumber {
    pub const fn new(run: u64, place: u64) -> Self {
        Self { run, place }
    }

    pub const fn run(self) -> u64 {
        self.run
    }

    pub const fn place(self) -> u64 {
        self.place
    }
}

impl fmt::Display for RequestNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.run, self.place)
    }
}

// === impl Numbers ===

impl Numbers {
    /// Those of a run that was stored, and that no earlier start has used.
    pub const fn of_run(run: u64) -> Self {
        Self { run, next: 0 }
    }

    pub fn take(&mut self) -> RequestNumber {
        let number = RequestNumber::new(self.run, self.next);
        self.next += 1;
        number
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_number_comes_twice_in_any_run() {
        let mut seen = BTreeSet::new();
        for run in 1..=50 {
            let mut numbers = Numbers::of_run(run);
            assert!((0..50).all(|_| seen.insert(numbers.take())));
        }
    }
}
