//! What is kept: nodes in memory, blocks on the disk; flushing the one to the other, and searching both.
//!
//! Order of locks: the disk before a node, a node before nothing; the map of nodes only by itself. All but `now_ms` may wait
//! for the disk, and is called where blocking is allowed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_common::id::NodeId;
use jiff::Timestamp;

use super::database::{self, Database};
use super::gather::{Gather, MAX_POINTS, MAX_TOTAL, TooMany};
use super::recent::{KEPT_MS, Recent};
use super::rollup::{BLOCK_MS, Block, MINUTE_MS, Summary, block_start};
use super::series::Kind;
use super::{Answer, CLOCK_TOLERANCE_MS, Error, KEPT_ROLLUPS_MS, Point, Series, lock, timestamp};

/// Distance of the samples that agents send by default.
const RESOLUTION_MS: i64 = 5000;
/// When a block is written after its end: all samples that belong to it have then come.
const GRACE_MS: i64 = CLOCK_TOLERANCE_MS + 5000;
/// How long a block waits for a disk that takes nothing.
const PATIENCE_MS: i64 = 50 * 60_000;
const PRUNE_EVERY_MS: i64 = 3_600_000;
/// Blocks in one transaction: a query waits no longer than for one of them.
const BATCH: usize = 100;

pub(super) struct Shared {
    pub(super) file: PathBuf,
    pub(super) now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    pub(super) nodes: Mutex<HashMap<NodeId, Arc<Mutex<Node>>>>,
    pub(super) forgotten: Mutex<Vec<NodeId>>,
    /// Locked only where blocking is allowed.
    pub(super) database: Mutex<Disk>,
    pub(super) counts: Counts,
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) database: Option<Database>,
    pub(super) failing: bool,
    pub(super) pruned_ms: i64,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) recorded: AtomicU64,
    pub(super) out_of_order: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) dropped: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) recent: Recent,
    /// Everything before is on the disk, or given up.
    pub(super) written_ms: Option<i64>,
}

/// Which blocks a flush writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    Finished,
    /// Also those that go on: the coordinator stops.
    All,
}

#[derive(Debug)]
pub(super) struct Search {
    pub(super) node: NodeId,
    pub(super) wanted: Vec<Kind>,
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) asked_ms: Option<i64>,
    pub(super) now_ms: i64,
}

// === impl Shared ===

impl Shared {
    pub(super) fn now_ms(&self) -> i64 {
        (self.now)().as_millisecond()
    }

    pub(super) fn search(&self, search: &Search) -> Result<Answer, Error> {
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

    pub(super) fn flush(&self, flush: Flush) {
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
