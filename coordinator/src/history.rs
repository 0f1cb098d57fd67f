//! Telemetry over time: the last hour of every node at full resolution in memory, minutes for 14 days on disk.
//!
//! ```text
//! record ─► recent (memory, ≈ 30 KiB a node) ──ten minutes are over──► history.db (own file, SQLite)
//!                │                                                          │
//!                └──────────────────────── query ◄──────────────────────────┘
//! ```
//!
//! Rollups are made from what is in memory, once ten minutes are over, on a thread where blocking is allowed. A graceful
//! stop writes what is unfinished, and the next start goes on with it; a crash loses at most the last ten minutes of
//! rollups, and the hour in memory. A disk that is full, or a file that cannot be opened, costs rollups after 50 minutes
//! (logged, and counted in [`Stats`]) and nothing else: neither `record` nor anybody else ever waits for the disk.
//!
//! Times are the node's own, as long as they are within 30 s of ours; otherwise the time of arrival counts. A sample that
//! is not newer than the one before is refused and counted. If our own clock was set back, the node's hour begins anew.
//!
//! Not here: collecting (the agent), the newest sample of a node (`fleet`), Prometheus (`metrics`).

mod column;
mod database;
mod gather;
mod keeper;
mod recent;
mod rollup;
mod series;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_common::error::{Classify, Reason, Violation};
use holdfast_common::id::NodeId;
use holdfast_common::telemetry::Sample;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

pub use self::gather::{MAX_POINTS, MAX_TOTAL};
use self::keeper::{Counts, Flush, Node, Search, Shared};
use self::recent::Recorded;
use self::series::Kind;

/// How long rollups are kept.
pub const KEPT_ROLLUPS: Duration = Duration::from_secs(14 * 24 * 3600);
const KEPT_ROLLUPS_MS: i64 = 14 * 24 * 3_600_000;
/// How far a node's clock may be off before the time of arrival is taken instead.
const CLOCK_TOLERANCE_MS: i64 = 30_000;
const TICK: Duration = Duration::from_secs(15);

/// Where rollups are kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// `history.db` in the state directory.
    pub file: PathBuf,
}

/// What is wanted of one node.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// Names such as `cpu_busy_fraction`; empty: all.
    pub series: Vec<String>,
    pub start: Timestamp,
    /// Not included.
    pub end: Timestamp,
    /// `None`: the finest that is kept for the whole span and fits into an answer. A finer one than is kept is not given.
    pub step: Option<Duration>,
}

/// What was found; series without a point in the span are not there.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Distance of the points.
    pub step: Duration,
    pub series: Vec<Series>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub name: &'static str,
    pub labels: BTreeMap<&'static str, String>,
    /// In order of time.
    pub points: Vec<Point>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Of the sample, or the start of the step.
    pub time: Timestamp,
    /// Mean over the step.
    pub value: f64,
    /// Least and greatest; `None` at full resolution.
    pub range: Option<(f64, f64)>,
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}", told(.0))]
    Invalid(Vec<Violation>),
    #[error("nothing is kept from before {oldest}; ask for a later time")]
    Compacted { oldest: Timestamp },
    #[error("rollups cannot be read")]
    Rollups(#[source] RollupError),
}

/// The rollups' file refuses; the coordinator's log has more.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RollupError(String);

/// Counts since the start, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub nodes: usize,
    pub memory_bytes: usize,
    pub samples_recorded: u64,
    /// Not newer than the sample before.
    pub samples_out_of_order: u64,
    /// Values of series beyond the bound of a node.
    pub values_refused: u64,
    /// Ten minutes of one node each.
    pub rollups_written: u64,
    pub rollups_dropped: u64,
}

/// Keeps the rollups; everything else goes through its [`Handle`].
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
}

/// A cheap clone that talks to the history.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

// === impl Query ===

impl Query {
    /// All that is wrong with it, field by field.
    pub fn problems(&self) -> Vec<Violation> {
        let problem = |name: String, message: String| Violation { name, subject: String::new(), message };
        let mut found = Vec::new();
        if self.start >= self.end {
            found.push(problem("start_time".to_owned(), "must be before `end_time`".to_owned()));
        }
        if self.step.is_some_and(|step| step_ms(step).is_none()) {
            found.push(problem("step".to_owned(), "must be from 1 ms to 14 days, such as 60s".to_owned()));
        }
        // All names are told once, and last: they are many.
        let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        let unknown = self.series.iter().enumerate().filter(|(_, name)| Kind::of_name(name).is_none());
        let mut unknown = unknown.peekable();
        while let Some((place, name)) = unknown.next() {
            let shown: String = name.chars().take(64).collect();
            let known = if unknown.peek().is_none() {
                format!("; there are {}", known.join(", "))
            } else {
                String::new()
            };
            let message = format!("names no series: `{shown}`{known}");
            found.push(problem(format!("series[{place}]"), message));
        }
        found
    }
}

// === impl Service ===

impl Service {
    /// Touches no disk yet. `now` is the wall clock.
    pub fn new(config: Config, now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let shared = Shared {
            file: config.file,
            now: Box::new(now),
            nodes: Mutex::default(),
            forgotten: Mutex::default(),
            database: Mutex::default(),
            counts: Counts::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared) }
    }

    /// Writes rollups until it is told to stop, and then what is unfinished.
    pub async fn run(self, shutdown: CancellationToken) {
        loop {
            // Both arms are cancel-safe.
            let stop = tokio::select! {
                () = shutdown.cancelled() => true,
                () = tokio::time::sleep(TICK) => false,
            };
            let shared = Arc::clone(&self.shared);
            let flush = if stop { Flush::All } else { Flush::Finished };
            if let Err(error) = tokio::task::spawn_blocking(move || shared.flush(flush)).await {
                tracing::error!(%error, "writing rollups broke off");
            }
            if stop {
                return;
            }
        }
    }
}

// === impl Handle ===

impl Handle {
    /// Never waits for a disk.
    pub fn record(&self, node: NodeId, sample: &Sample) {
        let now_ms = self.shared.now_ms();
        let taken_ms = sample.taken_at.as_millisecond();
        let time_ms = if (taken_ms - now_ms).abs() <= CLOCK_TOLERANCE_MS { taken_ms } else { now_ms };
        let entry = Arc::clone(lock(&self.shared.nodes).entry(node).or_default());
        let mut entry = lock(&entry);
        // Our own clock was set back: no sample would be newer than the last for a long time.
        if entry.recent.last_ms().is_some_and(|last| last > now_ms + 2 * CLOCK_TOLERANCE_MS) {
            *entry = Node::default();
        }
        let counts = &self.shared.counts;
        match entry.recent.record(time_ms, sample) {
            Recorded::Taken { series_refused } => {
                entry.written_ms.get_or_insert(time_ms);
                counts.recorded.fetch_add(1, Ordering::Relaxed);
                counts.refused.fetch_add(series_refused.into(), Ordering::Relaxed);
            }
            Recorded::OutOfOrder => {
                counts.out_of_order.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Points of a node that is known; one that never sent any has none.
    ///
    /// # Errors
    /// `InvalidField`, `HistoryCompacted` if the whole span is older than what is kept, `Internal` if the file is unreadable.
    pub async fn query(&self, node: NodeId, query: Query) -> Result<Answer, Error> {
        let problems = query.problems();
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        let wanted = kinds(&query.series);
        let now_ms = self.shared.now_ms();
        let (start, end) = (query.start.as_millisecond(), query.end.as_millisecond());
        let oldest = now_ms - KEPT_ROLLUPS_MS;
        if end <= oldest {
            return Err(Error::Compacted { oldest: timestamp(oldest) });
        }
        let asked_ms = query.step.and_then(step_ms);
        let shared = Arc::clone(&self.shared);
        let search = Search { node, wanted, start: start.max(oldest), end, asked_ms, now_ms };
        match tokio::task::spawn_blocking(move || shared.search(&search)).await {
            Ok(answer) => answer,
            Err(error) => Err(Error::Rollups(RollupError(error.to_string()))),
        }
    }

    /// The node is gone for good, and so is all that is kept of it.
    pub fn forget(&self, node: NodeId) {
        lock(&self.shared.nodes).remove(&node);
        lock(&self.shared.forgotten).push(node);
    }

    pub fn stats(&self) -> Stats {
        let nodes: Vec<_> = lock(&self.shared.nodes).values().cloned().collect();
        let counts = &self.shared.counts;
        Stats {
            nodes: nodes.len(),
            memory_bytes: nodes.iter().map(|node| lock(node).recent.bytes()).sum(),
            samples_recorded: counts.recorded.load(Ordering::Relaxed),
            samples_out_of_order: counts.out_of_order.load(Ordering::Relaxed),
            values_refused: counts.refused.load(Ordering::Relaxed),
            rollups_written: counts.written.load(Ordering::Relaxed),
            rollups_dropped: counts.dropped.load(Ordering::Relaxed),
        }
    }
}

// === impl Error ===

impl Error {
    fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation { name: field.into(), subject: String::new(), message: problem.into() }])
    }
}

impl From<database::Error> for Error {
    fn from(error: database::Error) -> Self {
        Self::Rollups(RollupError(holdfast_common::error::Chain(&error).to_string()))
    }
}

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Invalid(_) => Reason::InvalidField,
            Self::Compacted { .. } => Reason::HistoryCompacted,
            Self::Rollups(_) => Reason::Internal,
        }
    }

    fn violations(&self) -> Vec<Violation> {
        match self {
            Self::Invalid(violations) => violations.clone(),
            Self::Compacted { .. } | Self::Rollups(_) => Vec::new(),
        }
    }
}

/// The series of these names, each once; what is none was refused before.
fn kinds(names: &[String]) -> Vec<Kind> {
    let mut kinds = Vec::with_capacity(names.len().min(Kind::ALL.len()));
    for kind in names.iter().filter_map(|name| Kind::of_name(name)) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// The step in milliseconds, if it is one that can be given.
fn step_ms(step: Duration) -> Option<i64> {
    i64::try_from(step.as_millis()).ok().filter(|step| (1..=KEPT_ROLLUPS_MS).contains(step))
}

fn told(violations: &[Violation]) -> String {
    violations.iter().map(|it| format!("`{}` {}", it.name, it.message)).collect::<Vec<_>>().join("; ")
}

fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
