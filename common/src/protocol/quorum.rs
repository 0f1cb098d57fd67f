//! How many promises, seals and followers are enough.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// On how many of its promotable members a primary depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// `async`: any one of them may be promoted alone, so all must have promised.
    All,
    /// `quorum`: W of them must have a commit before it is acknowledged, and must have promised.
    Any(NonZeroU32),
}

// === impl Need ===

impl Need {
    /// For W; with none there is no quorum, so all count.
    pub const fn of(synchronous: u32) -> Self {
        match NonZeroU32::new(synchronous) {
            Some(count) => Self::Any(count),
            None => Self::All,
        }
    }

    /// Whether so many promises of `members` let a primary serve. None of none is no promise.
    pub const fn is_promised_by(self, promises: usize, members: usize) -> bool {
        match self {
            Self::All => members > 0 && promises >= members,
            Self::Any(count) => promises >= count.get() as usize,
        }
    }

    /// How many of `members` must be sealed before one of them is promoted: with N − W + 1 of them at least one has every
    /// acknowledged commit, and the primary finds W promises no more.
    pub const fn seals(self, members: usize) -> usize {
        match self {
            Self::All => 1,
            Self::Any(count) => match (members + 1).saturating_sub(count.get() as usize) {
                0 => 1,
                seals => seals,
            },
        }
    }

    /// Whether a primary that was started or promoted may serve, when so many members have flushed past the end of its
    /// recovery: a crash makes commits visible that were not replicated.
    pub const fn is_followed_by(self, followers: usize) -> bool {
        match self {
            Self::All => true,
            Self::Any(count) => followers >= count.get() as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn seals_are_n_minus_w_plus_one() {
        let table = [(Need::of(1), 1, 1), (Need::of(1), 2, 2), (Need::of(2), 4, 3), (Need::of(2), 2, 1)];
        for (need, members, seals) in table {
            assert_eq!(need.seals(members), seals, "{need:?} of {members}");
        }
        assert_eq!(Need::of(0), Need::All);
        assert_eq!(Need::All.seals(5), 1);
    }

    #[test]
    fn nobody_promises_for_nobody() {
        assert!(!Need::All.is_promised_by(0, 0));
        assert!(!Need::of(1).is_promised_by(0, 0));
    }

    proptest! {
        /// Whoever acknowledges or promises, one of them is among the sealed.
        #[test]
        fn what_lets_a_primary_serve_and_what_lets_another_be_promoted_always_meet(members in 1_u32..16, synchronous in 0_u32..16) {
            let need = Need::of(synchronous.min(members));
            let members = members as usize;
            let promises = (0..=members).find(|&count| need.is_promised_by(count, members)).unwrap();
            prop_assert!(promises + need.seals(members) > members);
            prop_assert!(need.seals(members) >= 1);
        }
    }
}
