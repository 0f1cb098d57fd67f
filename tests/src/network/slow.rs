//! A cable on which everything takes time, for kernels that cannot delay packets themselves. Where it does not take the same
//! time for each frame, they overtake each other.
//!
//! ```text
//!  host's end ─► tap ─► [frame, due] ─► tap ─► the switch's port      and the same the other way
//! ```
//! The taps hand over what a card would, checksums and segments still to be made, and take it as it is.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::future;
use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::runtime;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// The largest that a tap hands over: segments that are still one, and what is said of them.
const FRAME: usize = 70_000;
/// What is under way at most, each way. More is lost, as in any switch.
const UNDER_WAY: usize = 4096;

/// Delays what passes between two taps, until it is dropped.
#[derive(Debug)]
pub(super) struct Slow {
    delay: Arc<Delay>,
    stop: CancellationToken,
}

/// How long each frame takes, each for itself.
#[derive(Debug)]
struct Delay(Mutex<RangeInclusive<Duration>>);

// === impl Slow ===

impl Slow {
    /// Between two taps, each given by its device's number (`MAJOR:MINOR`) and a place for its node.
    ///
    /// # Errors
    ///
    /// When one cannot be opened.
    pub(super) fn between(one: (&str, &Path), other: (&str, &Path)) -> anyhow::Result<Self> {
        let (one, other) = (open(one)?, open(other)?);
        let delay = Arc::new(Delay(Mutex::new(Duration::ZERO..=Duration::ZERO)));
        let stop = CancellationToken::new();
        let (each, stopped) = (delay.clone(), stop.clone());
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
        std::thread::Builder::new().name("slow-cable".to_owned()).spawn(move || {
            runtime.block_on(stopped.run_until_cancelled(async {
                tokio::try_join!(carry(&one, &other, &each), carry(&other, &one, &each)).map(drop)
            }))
        })?;
        Ok(Self { delay, stop })
    }

    /// How long each way takes from now on.
    pub(super) fn takes(&self, each_way: RangeInclusive<Duration>) {
        *self.delay.0.lock().unwrap_or_else(PoisonError::into_inner) = each_way;
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

// === impl Delay ===

impl Delay {
    fn of_one(&self, random: &mut SmallRng) -> Duration {
        let each_way = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        random.random_range(each_way)
    }
}

fn open((number, node): (&str, &Path)) -> anyhow::Result<File> {
    let numbers = number.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let (major, minor) = numbers.with_context(|| format!("{number:?} is no device's number"))?;
    mknod(node, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(major, minor))
        .with_context(|| format!("make {}", node.display()))?;
    let tap = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(node);
    tap.with_context(|| format!("open {}", node.display()))
}

/// One way, until it fails. Frames that take equally long stay in order.
async fn carry(from: &File, to: &File, delay: &Delay) -> std::io::Result<()> {
    // They are no pipes, but wait and read as those do.
    let from = Receiver::from_file_unchecked(from.try_clone()?)?;
    let to = Sender::from_file_unchecked(to.try_clone()?)?;
    // Any order will do.
    let mut random = SmallRng::seed_from_u64(1);
    let (mut frame, mut number) = (vec![0; FRAME], 0_u64);
    let mut under_way: BTreeMap<(Instant, u64), Vec<u8>> = BTreeMap::new();
    loop {
        let first = under_way.first_key_value().map(|((at, _), _)| *at);
        let due = async {
            match first {
                Some(at) => sleep_until(at).await,
                None => future::pending().await,
            }
        };
        // Both arms are cancel-safe.
        tokio::select! {
            readable = from.readable() => {
                readable?;
                match from.try_read(&mut frame) {
                    // More is lost.
                    Ok(_) if under_way.len() >= UNDER_WAY => {}
                    Ok(length) => {
                        let at = Instant::now() + delay.of_one(&mut random);
                        number += 1;
                        under_way.insert((at, number), frame[..length].to_vec());
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            () = due => {
                to.writable().await?;
                if let Some((_, frame)) = under_way.pop_first() {
                    // A port that is down, or has no room, loses what it is given.
                    let _lost = to.try_write(&frame);
                }
            }
        }
    }
}
