//! Faults of every kind, on every role, one after the other, with a client that writes all the time: after each of them the cluster must
//! become whole again by itself, no two servers may have acknowledged writes at the same time, and in quorum mode nothing that was
//! acknowledged may be missing.

mod fault;

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_common::protocol::Profile;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

pub use self::fault::{Fault, Role};
use crate::client::one_at_a_time;
use crate::scene::now;
use crate::stage::Stage;
use crate::wait::wait_until;

/// How long a cluster may take to be whole after a fault has ended.
const WHOLE: Duration = Duration::from_secs(180);
/// Of each member's disk. It takes what it is given: a file that grows.
const DISK_MIB: u32 = 4096;
/// After so many seconds a server that was killed serves nobody any more, and its agent and the coordinator know of it.
const NOTICED: f64 = 2.0;
/// How long faults last: the shortest in seconds, the longest in leases.
const SHORTEST: f64 = 0.2;
const LONGEST: f64 = 2.8;

/// What is done to a cluster, and to whom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strike {
    pub fault: Fault,
    pub role: Role,
    /// Of those that last.
    pub seconds: f64,
}

/// A cluster under faults.
#[derive(Debug)]
pub struct Chaos {
    stage: Stage,
    quorum: bool,
}

/// What one fault came to, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The longest time without an acknowledged write.
    pub gap: f64,
    /// From the end of the fault until all was whole.
    pub whole: f64,
    /// How often the primary changed.
    pub changes: u64,
}

// === impl Strike ===

impl Strike {
    /// One by chance.
    pub fn by_chance(random: &mut SmallRng, profile: Profile) -> Self {
        let (fault, role) = *Fault::all().choose(random).expect("there are faults");
        let longest = profile.timings().lease.as_secs_f64() * LONGEST;
        Self { fault, role, seconds: random.random_range(SHORTEST..longest) }
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?} for {:.1} s", self.fault, self.role, self.seconds)
    }
}

// === impl Chaos ===

impl Chaos {
    /// A whole cluster of three, whose client writes.
    ///
    /// # Errors
    ///
    /// When it does not come about.
    pub async fn begin(quorum: bool, more: &[&str]) -> anyhow::Result<Self> {
        let durability = if quorum { "quorum" } else { "async" };
        let arguments: Vec<&str> =
            ["--durability", durability].into_iter().chain(more.iter().copied()).collect();
        let stage = Stage::set_on_disks(DISK_MIB, &arguments).await?;
        stage.is_whole_under("n1").await?;
        Ok(Self { stage, quorum })
    }

    /// One fault, from its beginning until all is whole again.
    ///
    /// # Errors
    ///
    /// When a promise is broken.
    pub async fn strike(&self, strike: Strike) -> anyhow::Result<Outcome> {
        let (primary, term) = self.primary().await?;
        let (begun, served) = (now(), self.stage.client.served().len());
        self.inflict(strike, &primary).await.with_context(|| format!("inflict {strike}"))?;
        self.stage.fleet.network().heal().await?;
        let ended = now();
        let serves = || async {
            let (primary, _) = self.stage.whole().await?;
            let last = self.stage.client.last().context("nothing is acknowledged")?;
            ensure!(
                last.node == primary && last.sent > ended + NOTICED,
                "the primary is {primary}, and the last was {last:?}"
            );
            Ok(primary)
        };
        let primary = wait_until("a whole cluster that serves, by itself", WHOLE, serves).await?;
        let whole = now() - ended;
        // The term is asked for later: what comes in between may only make it higher.
        let found = self.stage.client.served();
        let changes = self.primary().await?.1 - term;
        one_at_a_time(&found[served.saturating_sub(1)..], changes)?;
        if self.quorum {
            self.stage.nothing_is_lost(&primary).await?;
        }
        Ok(Outcome { gap: self.stage.client.longest_gap_since(begun), whole, changes })
    }

    async fn primary(&self) -> anyhow::Result<(String, u64)> {
        let shown = self.stage.fleet.json(["cluster", "show", "orders"]).await?;
        let primary = shown["primary"].as_str().with_context(|| format!("no primary in {shown}"))?;
        Ok((primary.to_owned(), shown["term"].as_u64().unwrap_or_default()))
    }
}

/// Faults by chance until the time is over; a line is told of each.
///
/// # Errors
///
/// When a promise is broken: what was done is in the message.
pub async fn run(
    quorum: bool,
    seed: u64,
    minutes: u64,
    profile: Profile,
    mut tell: impl FnMut(String),
) -> anyhow::Result<Vec<(Strike, Outcome)>> {
    let mut random = SmallRng::seed_from_u64(seed);
    let chaos = Chaos::begin(quorum, &["--lease-profile", &profile.to_string()]).await?;
    let (begun, mut all) = (now(), Vec::new());
    while now() - begun < minutes as f64 * 60.0 {
        let strike = Strike::by_chance(&mut random, profile);
        let number = all.len() + 1;
        let outcome = chaos.strike(strike).await;
        let outcome = outcome.with_context(|| format!("fault {number} of seed {seed}: {strike}"))?;
        let Outcome { gap, whole, changes } = outcome;
        tell(format!("{number}\t{strike}\tgap {gap:.1} s\twhole after {whole:.1} s\t{changes} terms"));
        all.push((strike, outcome));
    }
    Ok(all)
}

/// `holdfast-chaos MODE MINUTES PROFILE [SEED]`: by the chance of its process number, if no seed is given.
///
/// # Errors
///
/// When a promise is broken, or the arguments are not understood.
pub fn chaos_main(arguments: &[String]) -> anyhow::Result<()> {
    let (mode, minutes, profile, seed) = match arguments {
        [mode, minutes, profile] => (mode, minutes, profile, u64::from(std::process::id())),
        [mode, minutes, profile, seed] => (mode, minutes, profile, seed.parse().context("read the seed")?),
        _ => anyhow::bail!("usage: holdfast-chaos async|quorum MINUTES default|fast|wide [SEED]"),
    };
    let profiles = [Profile::Default, Profile::Fast, Profile::Wide];
    let profile = profiles.into_iter().find(|known| known.to_string() == *profile);
    let profile = profile.context("no such lease profile: default, fast and wide are")?;
    let quorum = match mode.as_str() {
        "quorum" => true,
        "async" => false,
        other => anyhow::bail!("{other} is no durability: async and quorum are"),
    };
    let minutes = minutes.parse().context("read the minutes")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("begin")?;
    let tell = |line: String| crate::say(&line);
    crate::say(&format!("seed {seed}, {minutes} minutes, durability {mode}, lease profile {profile}"));
    let all = runtime.block_on(run(quorum, seed, minutes, profile, tell))?;
    let worst = |of: fn(&Outcome) -> f64| all.iter().map(|(_, outcome)| of(outcome)).fold(0.0, f64::max);
    crate::say(&format!(
        "{} faults; longest gap {:.1} s, longest way back {:.1} s; no promise was broken",
        all.len(),
        worst(|outcome| outcome.gap),
        worst(|outcome| outcome.whole),
    ));
    Ok(())
}
