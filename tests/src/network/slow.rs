//! A cable on which everything takes time, for kernels that cannot delay packets themselves.
//!
//! ```text
//!  host's end ─► tap ─► [frame, due] ─► tap ─► the switch's port      and the same the other way
//! ```
//! The taps hand over what a card would, checksums and segments still to be made, and take it as it is.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// The largest that a tap hands over: segments that are still one, and what is said of them.
const FRAME: usize = 70_000;
/// What is under way at most, each way. More is lost, as in any switch.
const UNDER_WAY: usize = 4096;

/// Delays what passes between two taps, until it is dropped.
#[derive(Debug)]
pub(super) struct Slow {
    delay: Arc<AtomicU64>,
    stop: CancellationToken,
}

// === impl Slow ===

impl Slow {
    /// Between two taps, each given by its device's number (`MAJOR:MINOR`) and a place for its node.
    ///
    /// # Errors
    ///
    /// When one cannot be opened.
    pub(super) fn between(one: (&str, &Path), other: (&str, &Path)) -> anyhow::Result<Self> {
        let (one, other) = (open(one)?, open(other)?);
        let (delay, stop) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
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
    pub(super) fn takes(&self, each_way: Duration) {
        self.delay.store(u64::try_from(each_way.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.stop.cancel();
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

/// One way, until it fails. In order: a frame is never due before the one ahead of it.
async fn carry(from: &File, to: &File, delay: &AtomicU64) -> std::io::Result<()> {
    // They are no pipes, but wait and read as those do.
    let from = Receiver::from_file_unchecked(from.try_clone()?)?;
    let to = Sender::from_file_unchecked(to.try_clone()?)?;
    let (ahead, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let take = async {
        let mut frame = vec![0; FRAME];
        loop {
            from.readable().await?;
            let length = match from.try_read(&mut frame) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            let at = Instant::now() + Duration::from_micros(delay.load(Ordering::Relaxed));
            let _lost = ahead.try_send((at, frame[..length].to_vec()));
        }
    };
    let give = async {
        while let Some((at, frame)) = due.recv().await {
            sleep_until(at).await;
            to.writable().await?;
            // A port that is down, or has no room, loses what it is given.
            let _lost = to.try_write(&frame);
        }
        Ok(())
    };
    tokio::select! {
        ended = take => ended,
        ended = give => ended,
    }
}
