//! Time: the wall clock for what people read, and a clock that never jumps for everything that is measured.
//!
//! Every wait, lease and age counts [`Boottime`] (`CLOCK_BOOTTIME`): it goes on while the machine sleeps and knows
//! nothing of time servers. Wall time is for timestamps and certificates only. A [`Clock`] is handed in, never global, so
//! that a test can set it.

use std::ops::{Add, Sub};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// Tells the time; a cheap clone that shares its source.
#[derive(Debug, Clone, Default)]
pub struct Clock(Source);

/// A moment since the machine was started, counting sleep. Of no meaning on another machine or after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Boottime(Duration);

/// Sets the time of the [`Clock`]s that it made.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<Manual>>);

#[derive(Debug, Clone, Default)]
enum Source {
    #[default]
    System,
    Manual(ManualClock),
}

#[derive(Debug)]
struct Manual {
    wall: Timestamp,
    boottime: Duration,
}

// === impl Clock ===

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// Wall time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Manual(manual) => manual.with(|time| time.wall),
        }
    }

    /// Wall time in milliseconds since 1970.
    pub fn unix_millis(&self) -> i64 {
        self.now().as_millisecond()
    }

    /// The clock for measuring.
    pub fn boottime(&self) -> Boottime {
        match &self.0 {
            Source::System => {
                let time =
                    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39");
                Boottime(Duration::from(time))
            }
            Source::Manual(manual) => Boottime(manual.with(|time| time.boottime)),
        }
    }
}

// === impl Boottime ===

impl Boottime {
    /// The moment that is `since_boot` after the start of the machine.
    pub const fn from_duration(since_boot: Duration) -> Self {
        Self(since_boot)
    }

    /// How long the machine has been running at this moment.
    pub const fn since_boot(self) -> Duration {
        self.0
    }

    /// How long `earlier` was ago; zero if it is yet to come.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Boottime {
    type Output = Self;

    /// Saturates, some 584 thousand million years from now.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for Boottime {
    type Output = Self;

    /// Not before the start of the machine.
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

// === impl ManualClock ===

impl ManualClock {
    /// A time that stands still at `wall`, one day after the machine was started.
    pub fn at(wall: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(Manual { wall, boottime: Duration::from_secs(24 * 3600) })))
    }

    /// A clock that shows this time.
    pub fn clock(&self) -> Clock {
        Clock(Source::Manual(self.clone()))
    }

    /// Lets time pass, on both clocks.
    ///
    /// # Panics
    /// If wall time leaves the range of `Timestamp` (the year 9999).
    pub fn advance(&self, by: Duration) {
        self.with(|time| {
            time.wall = time.wall.checked_add(by).expect("a test stays within the year 9999");
            time.boottime = time.boottime.saturating_add(by);
        });
    }

    /// Somebody sets the wall clock; the other one knows nothing of it.
    pub fn set_wall(&self, wall: Timestamp) {
        self.with(|time| time.wall = wall);
    }

    fn with<T>(&self, read: impl FnOnce(&mut Manual) -> T) -> T {
        // A panic elsewhere cannot leave two plain numbers half written.
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A time as it is written on the command line: `90s` is `1m30s`. Whole seconds.
pub fn span(duration: Duration) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let mut left = duration.as_secs();
    let mut text = String::new();
    for (unit, seconds) in UNITS {
        if left >= seconds {
            text.push_str(&format!("{}{unit}", left / seconds));
            left %= seconds;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_set_wall_clock_moves_no_measured_time() {
        let manual = ManualClock::at(Timestamp::UNIX_EPOCH);
        let clock = manual.clock();
        let start = clock.boottime();
        manual.set_wall(Timestamp::from_second(-86_400).unwrap());
        assert_eq!((clock.unix_millis(), clock.boottime()), (-86_400_000, start));
        manual.advance(HOUR);
        assert_eq!((clock.unix_millis(), clock.boottime().since(start)), (-82_800_000, HOUR));
        assert_eq!(start.since(clock.boottime()), Duration::ZERO);
    }

    #[test]
    fn the_machines_clocks_run_forward() {
        let clock = Clock::system();
        let (wall, start) = (clock.now(), clock.boottime());
        assert!(start.since_boot() > Duration::ZERO);
        while clock.boottime() == start {}
        assert!(clock.boottime() > start);
        // A generous bound: a wall clock may be set while the test runs.
        assert!(clock.now().duration_since(wall).abs() < jiff::SignedDuration::from_hours(1));
    }

    #[test]
    fn times_are_told_as_they_are_written() {
        let told = |seconds| span(Duration::from_secs(seconds));
        assert_eq!([0, 5, 60, 90, 3600].map(told), ["0s", "5s", "1m", "1m30s", "1h"]);
        assert_eq!([3661, 86_400, 31_536_000].map(told), ["1h1m1s", "1d", "365d"]);
    }

    #[test]
    fn arithmetic_saturates() {
        let start = Boottime::from_duration(HOUR);
        assert_eq!(start - HOUR - HOUR, Boottime::from_duration(Duration::ZERO));
        assert_eq!(start + Duration::MAX, Boottime::from_duration(Duration::MAX));
        assert_eq!((start + HOUR).since(start), HOUR);
    }
}
