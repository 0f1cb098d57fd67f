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
mod recent;
mod rollup;
mod series;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_common::error::{Classify, Reason, Violation};
use holdfast_common::id::NodeId;
use holdfast_common::telemetry::Sample;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::database::Database;
use self::gather::{Gather, TooMany};
pub use self::gather::{MAX_POINTS, MAX_TOTAL};
use self::recent::{KEPT_MS, Recent, Recorded};
use self::rollup::{BLOCK_MS, Block, MINUTE_MS, Summary, block_start};
use self::series::Kind;

/// How long rollups are kept.
pub const KEPT_ROLLUPS: Duration = Duration::from_secs(14 * 24 * 3600);
/// Distance of the samples that agents send by default.
const RESOLUTION_MS: i64 = 5000;
const KEPT_ROLLUPS_MS: i64 = 14 * 24 * 3_600_000;
/// How far a node's clock may be off before the time of arrival is taken instead.
const CLOCK_TOLERANCE_MS: i64 = 30_000;
/// When a block is written after its end: all samples that belong to it have then come.
const GRACE_MS: i64 = CLOCK_TOLERANCE_MS + 5000;
/// How long a block waits for a disk that takes nothing.
const PATIENCE_MS: i64 = 50 * 60_000;
const TICK: Duration = Duration::from_secs(15);
const PRUNE_EVERY_MS: i64 = 3_600_000;
/// Blocks in one transaction: a query waits no longer than for one of them.
const BATCH: usize = 100;

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
    #[error("`{field}` {problem}")]
    Invalid { field: String, problem: String },
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

struct Shared {
    file: PathBuf,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    nodes: Mutex<HashMap<NodeId, Arc<Mutex<Node>>>>,
    forgotten: Mutex<Vec<NodeId>>,
    /// Locked only where blocking is allowed.
    database: Mutex<Disk>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Disk {
    database: Option<Database>,
    failing: bool,
    pruned_ms: i64,
}

#[derive(Debug, Default)]
struct Counts {
    recorded: AtomicU64,
    out_of_order: AtomicU64,
    refused: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Node {
    recent: Recent,
    /// Everything before is on the disk, or given up.
    written_ms: Option<i64>,
}

/// Which blocks a flush writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    Finished,
    /// Also those that go on: the coordinator stops.
    All,
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
        let wanted = kinds(&query.series)?;
        let now_ms = self.shared.now_ms();
        let (start, end) = (query.start.as_millisecond(), query.end.as_millisecond());
        if start >= end {
            return Err(Error::invalid("start_time", "must be before `end_time`"));
        }
        let oldest = now_ms - KEPT_ROLLUPS_MS;
        if end <= oldest {
            return Err(Error::Compacted { oldest: timestamp(oldest) });
        }
        let asked_ms = match query.step {
            None => None,
            Some(step) => Some(
                i64::try_from(step.as_millis())
                    .ok()
                    .filter(|step| (1..=KEPT_ROLLUPS_MS).contains(step))
                    .ok_or_else(|| Error::invalid("step", "must be from 1 ms to 14 days, such as 60s"))?,
            ),
        };
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

// === impl Shared ===

#[derive(Debug)]
struct Search {
    node: NodeId,
    wanted: Vec<Kind>,
    start: i64,
    end: i64,
    asked_ms: Option<i64>,
    now_ms: i64,
}

impl Shared {
    fn now_ms(&self) -> i64 {
        (self.now)().as_millisecond()
    }

    fn search(&self, search: &Search) -> Result<Answer, Error> {
        let entry = lock(&self.nodes).get(&search.node).cloned();
        let recent_start = entry.as_ref().and_then(|entry| lock(entry).recent.start_ms());
        if self.is_in_memory(search, recent_start)? {
            let mut gather = Gather::new(RESOLUTION_MS, search.asked_ms);
            let found =
                entry.map(|entry| lock(&entry).recent.points(&(search.start..search.end), &search.wanted));
            for (key, points) in found.unwrap_or_default() {
                for (time, value) in points {
                    gather.add(&key, time, Summary::of(value)).map_err(|TooMany| search.too_many())?;
                }
            }
            return Ok(answer(gather, RESOLUTION_MS));
        }
        let mut gather = Gather::new(MINUTE_MS, search.asked_ms);
        let mut memory = BTreeMap::new();
        let mut disk = lock(&self.database);
        // Under the lock, so that a block is neither missed nor counted twice while it is being written.
        if let Some(entry) = entry {
            memory = lock(&entry).unwritten(search);
        }
        self.opened(&mut disk).map_err(Error::from)?.read(
            search.node,
            &(block_start(search.start)..search.end),
            |start, mut block| {
                if let Some(rest) = memory.remove(&start) {
                    block.merge(rest);
                }
                search.add(&mut gather, start, block)
            },
        )?;
        drop(disk);
        for (start, block) in memory {
            search.add(&mut gather, start, block)?;
        }
        Ok(answer(gather, MINUTE_MS))
    }

    /// Whether full resolution covers the whole span, as far as the node has any history of it.
    fn is_in_memory(&self, search: &Search, recent_start: Option<i64>) -> Result<bool, Error> {
        if recent_start.is_some_and(|start| search.start >= start) {
            return Ok(true);
        }
        if search.start < search.now_ms - KEPT_MS {
            return Ok(false);
        }
        let mut disk = lock(&self.database);
        let before = block_start(search.start)..recent_start.unwrap_or(search.end);
        // The block in which memory begins may hold what came before a restart, and is asked for too.
        let found = match self.opened(&mut disk) {
            Ok(database) => database.has(search.node, &before).map_err(Error::from)?,
            // What memory has is better than nothing.
            Err(_) => false,
        };
        Ok(!found)
    }

    fn opened<'a>(&self, disk: &'a mut Disk) -> Result<&'a mut Database, database::Error> {
        if disk.database.is_none() {
            disk.database = Some(Database::open(&self.file, (self.now)().as_second())?);
        }
        disk.database.as_mut().ok_or_else(|| rusqlite::Error::InvalidQuery.into())
    }

    fn flush(&self, flush: Flush) {
        let now_ms = self.now_ms();
        let nodes: Vec<_> = lock(&self.nodes).iter().map(|(id, node)| (*id, Arc::clone(node))).collect();
        // A disk that refuses is asked once a round: making blocks for nothing would cost all nodes' history each time.
        if !nodes.chunks(BATCH).all(|nodes| self.write(nodes, now_ms, flush)) {
            let dropped: u64 = nodes.iter().map(|(_, node)| lock(node).give_up(now_ms)).sum();
            self.counts.dropped.fetch_add(dropped, Ordering::Relaxed);
        }
        self.clean(now_ms);
    }

    /// Whether what is due of these nodes is on the disk.
    fn write(&self, nodes: &[(NodeId, Arc<Mutex<Node>>)], now_ms: i64, flush: Flush) -> bool {
        let due: Vec<_> =
            nodes.iter().filter_map(|(id, node)| Some((*id, node, lock(node).due(now_ms, flush)?))).collect();
        if due.is_empty() {
            return true;
        }
        let mut disk = lock(&self.database);
        let mut count = 0;
        let result = self.opened(&mut disk).and_then(|database| {
            let each = due.iter().map(|(id, node, until)| (*id, lock(node).blocks(*until)));
            let blocks: Vec<_> = each
                .flat_map(|(id, blocks)| blocks.into_iter().map(move |(start, block)| (id, start, block)))
                .collect();
            count = blocks.len() as u64;
            database.add(&blocks)
        });
        if !self.told(&mut disk, result) {
            return false;
        }
        for (_, node, until) in due {
            lock(node).written_ms = Some(until);
        }
        self.counts.written.fetch_add(count, Ordering::Relaxed);
        true
    }

    /// Deletes what is forgotten or old.
    fn clean(&self, now_ms: i64) {
        let forgotten = std::mem::take(&mut *lock(&self.forgotten));
        let mut disk = lock(&self.database);
        let prune = now_ms >= disk.pruned_ms + PRUNE_EVERY_MS;
        if forgotten.is_empty() && !prune {
            return;
        }
        let mut rest = forgotten.iter();
        let result = self.opened(&mut disk).and_then(|database| {
            for node in forgotten.iter() {
                database.forget(*node)?;
                rest.next();
            }
            if prune { database.prune(now_ms - KEPT_ROLLUPS_MS) } else { Ok(()) }
        });
        let rest: Vec<_> = rest.copied().collect();
        if self.told(&mut disk, result) && prune {
            disk.pruned_ms = now_ms;
        }
        drop(disk);
        lock(&self.forgotten).extend(rest);
    }

    /// Says once that writing fails, and once that it works again.
    fn told(&self, disk: &mut Disk, result: Result<(), database::Error>) -> bool {
        match result {
            Ok(()) => {
                if std::mem::take(&mut disk.failing) {
                    tracing::info!("rollups are written again");
                }
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut disk.failing, true) {
                    let full = error.is_full();
                    tracing::warn!(%error, full, file = %self.file.display(), "rollups cannot be written; they are kept for 50 minutes");
                }
                // A file that refuses is opened anew next time.
                disk.database = None;
                false
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("file", &self.file).finish_non_exhaustive()
    }
}

// === impl Node ===

impl Node {
    /// Until when blocks are to be written now; `None`: none are.
    fn due(&self, now_ms: i64, flush: Flush) -> Option<i64> {
        let written = self.written_ms?;
        let until = match flush {
            Flush::Finished => block_start(now_ms - GRACE_MS),
            Flush::All => self.recent.last_ms()?.checked_add(1)?,
        };
        (until > written).then_some(until)
    }

    fn blocks(&self, until: i64) -> Vec<(i64, Block)> {
        let Some(mut from) = self.written_ms else { return Vec::new() };
        // Older than memory there is nothing to be found.
        from = from.max(self.recent.start_ms().unwrap_or(until));
        let mut blocks = Vec::new();
        while from < until {
            let end = (block_start(from) + BLOCK_MS).min(until);
            let block = Block::of_recent(&self.recent, &(from..end), &[]);
            if !block.series.is_empty() {
                blocks.push((block_start(from), block));
            }
            from = end;
        }
        blocks
    }

    fn unwritten(&self, search: &Search) -> BTreeMap<i64, Block> {
        let until = self.recent.last_ms().map_or(0, |last| last + 1);
        self.blocks(until)
            .into_iter()
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .filter(|(start, _)| *start < search.end)
            .collect()
    }

    /// Blocks too old to wait longer for the disk; how many they were.
    fn give_up(&mut self, now_ms: i64) -> u64 {
        let Some(written) = self.written_ms else { return 0 };
        let limit = block_start(now_ms - PATIENCE_MS);
        if written >= limit {
            return 0;
        }
        self.written_ms = Some(limit);
        u64::try_from((limit - block_start(written)) / BLOCK_MS).unwrap_or(0)
    }
}

// === impl Search ===

impl Search {
    fn add(&self, gather: &mut Gather, start: i64, block: Block) -> Result<(), Error> {
        for (key, minutes) in block.series {
            if !self.wanted.is_empty() && !self.wanted.contains(&key.kind) {
                continue;
            }
            for (time, minute) in (start..).step_by(60_000).zip(minutes) {
                // A minute counts if any of it lies in the span.
                if let Some(minute) = minute.filter(|_| time < self.end && time + MINUTE_MS > self.start) {
                    gather.add(&key, time, minute).map_err(|TooMany| self.too_many())?;
                }
            }
        }
        Ok(())
    }

    fn too_many(&self) -> Error {
        Error::invalid(
            "step",
            format!(
                "is too fine: an answer has at most {MAX_POINTS} points a series and {MAX_TOTAL} in all; ask for a larger step, a shorter span or fewer series"
            ),
        )
    }
}

// === impl Error ===

impl Error {
    fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
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
            Self::Invalid { .. } => Reason::InvalidField,
            Self::Compacted { .. } => Reason::HistoryCompacted,
            Self::Rollups(_) => Reason::Internal,
        }
    }

    fn violations(&self) -> Vec<Violation> {
        match self {
            Self::Invalid { field, problem } => {
                vec![Violation { name: field.clone(), subject: String::new(), message: problem.clone() }]
            }
            Self::Compacted { .. } | Self::Rollups(_) => Vec::new(),
        }
    }
}

fn kinds(names: &[String]) -> Result<Vec<Kind>, Error> {
    let mut kinds = Vec::with_capacity(names.len().min(Kind::ALL.len()));
    for (place, name) in names.iter().enumerate() {
        let Some(kind) = Kind::of_name(name) else {
            let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
            let shown: String = name.chars().take(64).collect();
            return Err(Error::invalid(
                format!("series[{place}]"),
                format!("names no series: `{shown}`; there are {}", known.join(", ")),
            ));
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds)
}

fn answer(gather: Gather, native_ms: i64) -> Answer {
    let (step_ms, series) = gather.finish();
    let ranges = step_ms != RESOLUTION_MS || native_ms != RESOLUTION_MS;
    let series = series.into_iter().map(|(key, points)| Series {
        name: key.kind.name(),
        labels: key.kind.label().name().map(|label| (label, key.label.to_string())).into_iter().collect(),
        points: points
            .into_iter()
            .map(|(time, Summary { mean, min, max, .. })| Point {
                time: timestamp(time),
                value: mean,
                range: ranges.then_some((min, max)),
            })
            .collect(),
    });
    Answer { step: Duration::from_millis(step_ms.unsigned_abs()), series: series.collect() }
}

fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
