//! How long to wait before the next try: exponential, with full jitter, bounded.
//!
//! The n-th wait is drawn evenly from zero to `first × 2ⁿ`, at most `longest`, so that a thousand agents that lost the
//! same coordinator do not come back in step. Answerable for numbers only: whoever tries also sleeps, and can be
//! interrupted.

use std::time::Duration;

use crate::pki::random_bytes;

/// The waits between tries.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
    random: SplitMix,
}

/// Enough randomness to spread waits, and the same again for the same seed; no secret depends on it.
#[derive(Debug, Clone)]
struct SplitMix(u64);

// === impl Backoff ===

impl Backoff {
    /// Waits of at most `first` at first, and of at most `longest` in the end.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self::with_seed(first, longest, u64::from_ne_bytes(random_bytes()))
    }

    /// The same, with waits that the seed decides.
    pub fn with_seed(first: Duration, longest: Duration, seed: u64) -> Self {
        Self { first, longest: longest.max(first), tries: 0, random: SplitMix(seed) }
    }

    /// The wait before the next try.
    pub fn next_wait(&mut self) -> Duration {
        let bound = self.first.saturating_mul(2_u32.saturating_pow(self.tries)).min(self.longest);
        self.tries = self.tries.saturating_add(1);
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.random.up_to(nanos))
    }

    /// How many waits were asked for since the last success.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// A try succeeded, and held for long enough to count: the next wait is a first one again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

// === impl SplitMix ===

impl SplitMix {
    fn up_to(&mut self, max: u64) -> u64 {
        let product = u128::from(self.next()) * (u128::from(max) + 1);
        u64::try_from(product >> 64)
            .expect("a product of two numbers below 2^64 and 2^64 + 1, shifted by 64, fits")
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn waits_double_their_bound_up_to_the_longest_and_begin_anew_after_a_success() {
        // The longest of many draws comes close to the bound, and never passes it.
        let longest_seen = |skip: u32| {
            let draw = |seed| {
                let mut backoff = Backoff::with_seed(FIRST, LONGEST, seed);
                (0..skip).for_each(|_| {
                    backoff.next_wait();
                });
                backoff.next_wait()
            };
            (0..1000).map(draw).max().unwrap()
        };
        for (tries, bound) in [(0, 100), (1, 200), (3, 800), (6, 5000), (40, 5000)] {
            let bound = Duration::from_millis(bound);
            let seen = longest_seen(tries);
            assert!(
                seen <= bound && seen > bound.mul_f64(0.98),
                "after {tries} tries: {seen:?} of {bound:?}"
            );
        }
        let mut backoff = Backoff::with_seed(FIRST, LONGEST, 1);
        (0..10).for_each(|_| {
            backoff.next_wait();
        });
        backoff.reset();
        assert_eq!(backoff.tries(), 0);
        assert!(backoff.next_wait() <= FIRST);
    }

    #[test]
    fn a_thousand_agents_do_not_come_back_in_step() {
        let waits: std::collections::BTreeSet<_> =
            (0..1000).map(|_| Backoff::new(FIRST, LONGEST).next_wait()).collect();
        assert!(waits.len() > 990, "{} different waits", waits.len());
        let early = waits.iter().filter(|wait| **wait < FIRST / 2).count();
        assert!((400..600).contains(&early), "{early} of 1000 in the first half");
    }

    proptest! {
        #[test]
        fn no_wait_passes_its_bound_and_a_seed_repeats_its_waits(seed: u64, first: u32, longest: u64) {
            let (first, longest) = (Duration::from_micros(first.into()), Duration::from_micros(longest));
            let mut backoff = Backoff::with_seed(first, longest, seed);
            let mut again = backoff.clone();
            for _ in 0..80 {
                let wait = backoff.next_wait();
                prop_assert!(wait <= longest.max(first));
                prop_assert_eq!(wait, again.next_wait());
            }
        }
    }
}
