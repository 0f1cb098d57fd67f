//! Every timing constant of the protocol, and the countdown that all of its parts measure time with.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a starting agent whose lease is over asks for a new one before it stops the engine: a restart or upgrade
/// of the agent costs nothing.
pub const STARTING_ASKS_FOR: Duration = Duration::from_secs(2);

/// By how much a clock may run fast or slow, in per cent. The margins of all profiles cover two clocks that err in
/// opposite directions.
pub const CLOCKS_ERR_BY_PER_CENT: u32 = 10;

/// How patient a cluster is: what a fault costs, against what the network and the machines may do to messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    #[default]
    Default,
    /// Half of the default, for machines in one place.
    Fast,
    /// Four times the default, for machines far apart.
    Wide,
}

/// The times of one profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timings {
    /// L.
    pub lease: Duration,
    /// M: for the drift of clocks and for scheduling.
    pub margin: Duration,
    /// How often a primary asks for its lease.
    pub renewal: Duration,
    /// For how long the coordinator says nothing before promises are asked for.
    pub silence: Duration,
    /// For how long a primary's session is lost before it is suspected.
    pub suspicion: Duration,
}

/// Time that is left. It ends by [`Countdown::pass`] alone, so that no part needs a clock, and one that is over is equal
/// to any other that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Countdown(Duration);

// === impl Profile ===

impl Profile {
    pub const fn timings(self) -> Timings {
        match self {
            Self::Default => Timings::in_quarters(4),
            Self::Fast => Timings::in_quarters(2),
            Self::Wide => Timings::in_quarters(16),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Default => "default",
            Self::Fast => "fast",
            Self::Wide => "wide",
        })
    }
}

// === impl Timings ===

impl Timings {
    const fn in_quarters(quarters: u64) -> Self {
        let unit = 250 * quarters;
        Self {
            lease: Duration::from_millis(5 * unit),
            margin: Duration::from_millis(unit),
            renewal: Duration::from_millis(unit),
            silence: Duration::from_millis(2 * unit),
            suspicion: Duration::from_millis(3 * unit),
        }
    }

    /// L − M: for how long after the sending of a request its answer opens the gate.
    pub const fn served(&self) -> Duration {
        self.lease.saturating_sub(self.margin)
    }

    /// L: for how long after the asking a promise binds the member that gave it.
    pub const fn promised(&self) -> Duration {
        self.lease
    }

    /// L + M: for how long after its reply, or after its start, the coordinator believes in a lease.
    pub const fn remembered(&self) -> Duration {
        self.lease.saturating_add(self.margin)
    }
}

// === impl Countdown ===

impl Countdown {
    pub const OVER: Self = Self(Duration::ZERO);

    pub const fn from(left: Duration) -> Self {
        Self(left)
    }

    /// So much time went by.
    pub fn pass(&mut self, elapsed: Duration) {
        self.0 = self.0.saturating_sub(elapsed);
    }

    pub const fn left(self) -> Duration {
        self.0
    }

    pub const fn is_over(self) -> bool {
        self.0.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profiles_are_those_that_are_documented() {
        let table = [
            (Profile::Default, [5000, 1000, 1000, 2000, 3000]),
            (Profile::Fast, [2500, 500, 500, 1000, 1500]),
            (Profile::Wide, [20_000, 4000, 4000, 8000, 12_000]),
        ];
        for (profile, millis) in table {
            let Timings { lease, margin, renewal, silence, suspicion } = profile.timings();
            let told = [lease, margin, renewal, silence, suspicion].map(|time| time.as_millis());
            assert_eq!(told, millis, "{profile}");
        }
    }

    #[test]
    fn a_slow_primary_is_shut_before_any_fast_clock_lets_another_be_promoted() {
        for profile in [Profile::Default, Profile::Fast, Profile::Wide] {
            let timings = profile.timings();
            let slow = timings.served() * 100 / (100 - CLOCKS_ERR_BY_PER_CENT);
            let fast = |time: Duration| time * 100 / (100 + CLOCKS_ERR_BY_PER_CENT);
            assert!(slow < fast(timings.promised()), "{profile}: the promise ends first");
            assert!(slow < fast(timings.remembered()), "{profile}: the coordinator goes on first");
        }
    }

    #[test]
    fn a_lease_outlives_three_renewals_that_are_lost() {
        for profile in [Profile::Default, Profile::Fast, Profile::Wide] {
            let timings = profile.timings();
            assert!(timings.renewal * 4 <= timings.served(), "{profile}");
            assert!(timings.silence + timings.renewal < timings.served(), "{profile}: no time for promises");
        }
    }

    #[test]
    fn a_countdown_ends_and_stays_over() {
        let mut left = Countdown::from(Duration::from_secs(1));
        left.pass(Duration::from_millis(999));
        assert!(!left.is_over());
        left.pass(Duration::from_secs(1));
        assert_eq!(left, Countdown::OVER);
        left.pass(Duration::MAX);
        assert!(left.is_over());
    }
}
