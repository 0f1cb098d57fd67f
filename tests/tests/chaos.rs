//! Every kind of fault on every role, once each in either durability, in an order by chance that is told; `cargo xtask chaos` goes on
//! for longer.

use anyhow::Context as _;
use holdfast_tests::chaos::{Chaos, Fault, Strike};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// How long faults last, in seconds: about as long as a lease of the profile `fast`, so that some are over before it is.
const SHORTEST: f64 = 1.0;
const LONGEST: f64 = 5.0;

/// Needs root for the gate and the network. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn no_fault_loses_what_was_acknowledged_in_quorum_mode() -> anyhow::Result<()> {
        all(true).await
    }

    #[tokio::test]
    async fn no_fault_makes_two_serve_at_once_in_async_mode() -> anyhow::Result<()> {
        all(false).await
    }
}

async fn all(quorum: bool) -> anyhow::Result<()> {
    let seed = u64::from(std::process::id());
    let mut random = SmallRng::seed_from_u64(seed);
    let mut all = Fault::all();
    all.shuffle(&mut random);
    let chaos = Chaos::begin(quorum, &["--lease-profile", "fast"]).await?;
    let mut done = Vec::new();
    for (fault, role) in all {
        let strike = Strike { fault, role, seconds: random.random_range(SHORTEST..LONGEST) };
        let outcome = chaos.strike(strike).await;
        outcome.with_context(|| format!("{strike}, seed {seed}, after {done:?}"))?;
        done.push(strike.to_string());
    }
    Ok(())
}
