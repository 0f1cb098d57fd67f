//! What happened: a bounded log of events for people, and one of all changing calls (the audit).
//!
//! Both are the same thing: records under a prefix of the store, by a number that rises, the newest ten thousand kept. A
//! record is on the disk before [`Handle::record`] answers. Whoever follows a log reads it from the store page by page, so a
//! slow reader costs nothing here.
//!
//! Each audit record also bears the SHA-256 of the one before it, so that one which was edited or taken out shows.
//!
//! Not here: who hears of events (`notify`, a later issue), or the operators' service (`rpc/events`).

mod audit;

pub use audit::{Audit, AuditRecord, Decision, Entry};

use std::sync::Arc;

use holdfast_common::report::Severity;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::store::record::{self, encode};
use crate::store::{self, Compare, Key, Op, Range, Shared, Txn};

/// How many records of a log are kept.
pub const KEPT: u64 = 10_000;
/// The longest message of an event, in bytes.
const MAX_MESSAGE: usize = 4096;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rises with time.
    pub id: u64,
    pub time: Timestamp,
    #[serde(flatten)]
    pub what: NewEvent,
}

/// Something that happened just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    pub severity: Severity,
    /// Upper snake case, stable.
    pub reason: String,
    pub message: String,
    /// Names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Who caused it: `operator/NAME`, `node/NAME`, `coordinator`.
    pub actor: String,
}

/// The log of events. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    log: Arc<Log>,
}

/// Records under a prefix by rising number.
#[derive(Debug)]
pub(super) struct Log {
    store: Shared,
    prefix: &'static str,
    kept: u64,
    /// The number that the next record gets. Held while one is written, so that numbers and order agree.
    next: Mutex<u64>,
    newest: watch::Sender<u64>,
}

/// Reads a log from a place on, waiting at its end.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    after: u64,
    newest: watch::Receiver<u64>,
}

/// What a reader found.
#[derive(Debug)]
pub enum ReadError {
    /// What was asked for is not kept any more; this is the oldest that is.
    Compacted {
        oldest: u64,
    },
    Store(store::Error),
}

// === impl NewEvent ===

impl NewEvent {
    pub fn new(severity: Severity, reason: &str, message: impl Into<String>) -> Self {
        Self {
            severity,
            reason: reason.to_owned(),
            message: message.into(),
            node: None,
            cluster: None,
            operation: None,
            actor: "coordinator".to_owned(),
        }
    }

    #[must_use]
    pub fn by(mut self, actor: impl Into<String>) -> Self {
        self.actor = actor.into();
        self
    }

    #[must_use]
    pub fn on_node(mut self, node: impl Into<String>) -> Self {
        self.node = Some(node.into());
        self
    }

    #[must_use]
    pub fn on_cluster(mut self, cluster: impl Into<String>) -> Self {
        self.cluster = Some(cluster.into());
        self
    }
}

// === impl Handle ===

impl Handle {
    /// Goes on where the stored log ends.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn open(store: Shared) -> Result<Self, store::Error> {
        Self::open_bounded(store, KEPT).await
    }

    /// The same, keeping so many.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn open_bounded(store: Shared, kept: u64) -> Result<Self, store::Error> {
        Ok(Self { log: Log::open(store, "events/", kept).await? })
    }

    /// Writes an event. It is on the disk when this answers.
    ///
    /// # Errors
    /// Those of the store: nothing was written then.
    pub async fn record(&self, mut what: NewEvent) -> Result<Event, store::Error> {
        if what.message.len() > MAX_MESSAGE {
            what.message.truncate(what.message.floor_char_boundary(MAX_MESSAGE));
            what.message.push('…');
        }
        self.log.append(|id| Event { id, time: Timestamp::now(), what: what.clone() }).await
    }

    /// At most `limit` events that `admit` lets through, newest first, below number `before` (0: from the end); and where
    /// to go on.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(
        &self,
        before: u64,
        limit: usize,
        admit: impl Fn(&Event) -> bool,
    ) -> Result<(Vec<Event>, Option<u64>), store::Error> {
        let mut found = Vec::new();
        let mut range = Range::prefix(self.log.prefix).limit(200).descending();
        range.after = (before > 0).then(|| self.log.key(before));
        loop {
            let listing = self.log.store.range(range.clone()).await?;
            for kv in &listing.records {
                let event = record::decode::<Event>(kv)?.value;
                if !admit(&event) {
                    continue;
                }
                if found.len() == limit {
                    let next = found.last().map(|last: &Event| last.id);
                    return Ok((found, next));
                }
                found.push(event);
            }
            match listing.records.last() {
                Some(last) if listing.more => range = range.after(&last.key),
                _ => return Ok((found, None)),
            }
        }
    }

    /// Those after number `after`, then each as it happens; `None`: from now on.
    pub fn follow(&self, after: Option<u64>) -> Reader {
        let newest = self.log.newest.subscribe();
        let after = after.unwrap_or_else(|| *newest.borrow());
        Reader { log: Arc::clone(&self.log), after, newest }
    }
}

// === impl Log ===

impl Log {
    pub(super) async fn open(
        store: Shared,
        prefix: &'static str,
        kept: u64,
    ) -> Result<Arc<Self>, store::Error> {
        let last = store.range(Range::prefix(prefix).limit(1).descending()).await?;
        let last = last.records.first().and_then(|kv| number(prefix, &kv.key)).unwrap_or(0);
        let newest = watch::Sender::new(last);
        Ok(Arc::new(Self { store, prefix, kept, next: Mutex::new(last + 1), newest }))
    }

    pub(super) async fn append<T: Serialize>(&self, make: impl Fn(u64) -> T) -> Result<T, store::Error> {
        let mut next = self.next.lock().await;
        loop {
            let key = self.key(*next);
            let value = make(*next);
            let mut txn = Txn::new().when(Compare::absent(&key)).then(Op::put(&key, encode(&key, &value)?));
            if let Some(over) = next.checked_sub(self.kept).filter(|over| *over > 0) {
                txn = txn.then(Op::delete(self.key(over)));
            }
            let written = self.store.txn(txn).await?.succeeded;
            // Not written: an attempt whose answer was lost did take place, and its number is used up.
            self.newest.send_replace(*next);
            *next += 1;
            if written {
                return Ok(value);
            }
        }
    }

    pub(super) async fn last<T: DeserializeOwned>(&self) -> Result<Option<T>, store::Error> {
        let last = self.store.range(Range::prefix(self.prefix).limit(1).descending()).await?;
        last.records.first().map(|kv| Ok(record::decode(kv)?.value)).transpose()
    }

    fn key(&self, number: u64) -> Key {
        Key::from(format!("{}{number:020}", self.prefix))
    }
}

fn number(prefix: &str, key: &Key) -> Option<u64> {
    key.as_str().strip_prefix(prefix)?.parse().ok()
}

// === impl Reader ===

impl Reader {
    /// The next events, in order; waits for one.
    ///
    /// # Errors
    /// See [`ReadError`].
    ///
    /// # Cancel safety
    /// Nothing is lost when dropped.
    pub async fn next(&mut self) -> Result<Vec<Event>, ReadError> {
        loop {
            let newest = *self.newest.borrow_and_update();
            if self.after < newest {
                let range = Range::prefix(self.log.prefix).limit(200).after(self.log.key(self.after));
                let listing = self.log.store.range(range).await.map_err(ReadError::Store)?;
                let events = listing.records.iter().map(|kv| Ok(record::decode::<Event>(kv)?.value));
                let events = events.collect::<Result<Vec<_>, _>>().map_err(ReadError::Store)?;
                let Some((first, last)) = events.first().zip(events.last()) else {
                    self.after = newest;
                    continue;
                };
                // Something between was dropped before it was read.
                if first.id > self.after + 1 && self.after + self.log.kept < newest {
                    return Err(ReadError::Compacted { oldest: first.id });
                }
                self.after = last.id;
                return Ok(events);
            }
            if self.newest.changed().await.is_err() {
                return Err(ReadError::Store(store::Error::Closed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::Memory;

    async fn log(kept: u64, count: u64) -> (Shared, Handle) {
        let store = Memory::shared();
        let events = Handle::open_bounded(store.clone(), kept).await.unwrap();
        for number in 1..=count {
            events.record(NewEvent::new(Severity::Info, "TEST", format!("event {number}"))).await.unwrap();
        }
        (store, events)
    }

    #[tokio::test]
    async fn only_the_newest_are_kept_and_numbers_rise_over_a_restart() {
        let (store, _) = log(5, 12).await;
        let again = Handle::open_bounded(store.clone(), 5).await.unwrap();
        assert_eq!(again.record(NewEvent::new(Severity::Info, "TEST", "x")).await.unwrap().id, 13);
        let (listed, next) = again.list(0, 100, |_| true).await.unwrap();
        assert_eq!(listed.iter().map(|event| event.id).collect::<Vec<_>>(), [13, 12, 11, 10, 9]);
        assert_eq!(next, None);
    }

    #[tokio::test]
    async fn pages_neither_repeat_nor_skip() {
        let (_, events) = log(100, 25).await;
        let (mut before, mut seen) = (0, Vec::new());
        loop {
            let (page, next) = events.list(before, 10, |event| event.id % 2 == 1).await.unwrap();
            seen.extend(page.iter().map(|event| event.id));
            let Some(next) = next else { break };
            before = next;
        }
        assert_eq!(seen, (1..=25).rev().filter(|id| id % 2 == 1).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_reader_gets_the_old_ones_then_the_new_ones_then_is_told_that_it_is_too_slow() {
        let (_, events) = log(10, 3).await;
        let mut reader = events.follow(Some(1));
        assert_eq!(reader.next().await.unwrap().iter().map(|event| event.id).collect::<Vec<_>>(), [2, 3]);
        events.record(NewEvent::new(Severity::Info, "TEST", "4")).await.unwrap();
        assert_eq!(reader.next().await.unwrap()[0].id, 4);
        for _ in 0..20 {
            events.record(NewEvent::new(Severity::Info, "TEST", "more")).await.unwrap();
        }
        assert!(matches!(reader.next().await, Err(ReadError::Compacted { oldest: 15 })));
    }
}
