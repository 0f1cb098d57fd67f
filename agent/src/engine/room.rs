//! Room on the disk that the members' data are on: told before there is none, and when there is hardly any, what engines keep for
//! replicas that are away is the first to go, so that it is never that which stops a primary.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_common::clock::Clock;
use holdfast_common::report::Severity;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::host::files::{Files, Space};
use crate::outbox::{Tell, node_event};

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// Used parts of the disk, in per cent, from which it is scarce or tight; and below which it is so no more.
const SCARCE: u64 = 95;
const TIGHT: u64 = 98;
const BACK: u64 = 2;

/// How much is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Room {
    #[default]
    Enough,
    /// A person should make room.
    Scarce,
    /// Nothing is kept that is not needed.
    Tight,
}

/// Looks at the disk.
pub struct Service {
    files: Files,
    data_dir: PathBuf,
    room: watch::Sender<Room>,
    clock: Clock,
    tell: Tell,
}

// === impl Room ===

impl Room {
    /// What it is now, if it was this before: a disk at the border does not go to and fro.
    #[must_use]
    pub fn next(self, space: Space) -> Self {
        let used = space.total_bytes.saturating_sub(space.available_bytes);
        let is_at =
            |percent: u64| u128::from(used) * 100 >= u128::from(space.total_bytes) * u128::from(percent);
        let holds = |room: Self, percent| is_at(if self >= room { percent - BACK } else { percent });
        match space.total_bytes {
            // Nothing can be said of it.
            0 => Self::Enough,
            _ if holds(Self::Tight, TIGHT) => Self::Tight,
            _ if holds(Self::Scarce, SCARCE) => Self::Scarce,
            _ => Self::Enough,
        }
    }

    fn told(self) -> (Severity, &'static str, &'static str) {
        match self {
            Self::Enough => (Severity::Info, "DISK_HAS_ROOM", "there is room on it again"),
            Self::Scarce => (Severity::Warning, "DISK_NEARLY_FULL", "make room, or give it more"),
            Self::Tight => (
                Severity::Error,
                "DISK_FULL",
                "make room, or give it more: databases stop where there is none; log that was kept for replicas that are \
                 away is given up, and those are resynced when they return",
            ),
        }
    }
}

// === impl Service ===

impl Service {
    pub fn new(files: &Files, data_dir: &Path, clock: &Clock, tell: Tell) -> Self {
        let (files, data_dir, clock) = (files.clone(), data_dir.to_owned(), clock.clone());
        Self { files, data_dir, room: watch::Sender::default(), clock, tell }
    }

    pub fn subscribe(&self) -> watch::Receiver<Room> {
        self.room.subscribe()
    }

    /// Until `stop`. Each change is told once.
    pub async fn run(self, stop: CancellationToken) {
        let Self { files, data_dir, room, clock, tell } = self;
        loop {
            if let Ok(space) = files.space(&data_dir).await {
                let next = room.borrow().next(space);
                if room.send_if_modified(|room| std::mem::replace(room, next) != next) {
                    let (severity, reason, remedy) = next.told();
                    let (left, total) = (space.available_bytes >> 20, space.total_bytes >> 20);
                    let place = data_dir.display();
                    let message = format!("the disk of {place} has {left} of {total} MiB left: {remedy}");
                    tell(node_event(&clock, severity, reason, message));
                }
            }
            // Both arms are cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("room", &self.room.borrow()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(room: Room, used: u64) -> Room {
        room.next(Space { total_bytes: 1000, available_bytes: 1000 - used, inodes: None })
    }

    #[test]
    fn a_disk_that_fills_is_scarce_then_tight_and_does_not_go_to_and_fro() {
        use Room::{Enough, Scarce, Tight};
        for (before, used, now) in [
            (Enough, 0, Enough),
            (Enough, 949, Enough),
            (Enough, 950, Scarce),
            (Scarce, 931, Scarce),
            (Scarce, 929, Enough),
            (Scarce, 979, Scarce),
            (Scarce, 980, Tight),
            (Enough, 1000, Tight),
            (Tight, 961, Tight),
            (Tight, 959, Scarce),
            (Tight, 100, Enough),
        ] {
            assert_eq!(after(before, used), now, "{before:?} at {used}");
        }
        let nothing = Space { total_bytes: 0, available_bytes: 0, inodes: None };
        assert_eq!(Tight.next(nothing), Enough);
    }
}
