//! Watching: replay of what happened, then what happens, read from the same log, so that nothing falls between.
//!
//! ```text
//!   read events from `from` on ──some──▶ one batch per revision ──▶ caller
//!        ▲        └─none─▶ wait: newer revision, or a lease's end (which makes one)
//!        └──────────────────────────────────────────────────────────┘
//! ```
//! A slow watcher costs no memory here: it reads pages from the store, and learns when it fell behind the
//! compaction.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Weak},
};

use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::{sync::watch, time::Instant};

use super::{Error, Key, Kv, Result, Revision};

/// How many revisions a watcher reads at once.
const PAGE: usize = 128;

/// One change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Written: the record as it was then.
    Put(Kv),
    /// Removed, or vanished with its lease.
    Deleted {
        /// Which.
        key: Key,
        /// In which revision.
        mod_rev: Revision,
    },
}

/// All changes of one revision that the watcher asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision: go on from the next one after a restart.
    pub revision: Revision,
    /// Its changes, at least one.
    pub events: Vec<Event>,
}

/// A watch under way.
pub struct Watch {
    stream: BoxStream<'static, Result<Batch>>,
}

/// A piece of the log.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) batches: Vec<Batch>,
    /// From where to read next.
    pub(super) next: Revision,
    /// The end of the log was reached.
    pub(super) end: bool,
}

/// The log that a store keeps of itself.
pub(super) trait Log: Send + Sync {
    /// Changes from a revision on; [`Error::Compacted`] if they are not kept any more.
    fn events<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Page>>;
    /// Removes what leases that are over have left.
    fn expire(&self) -> BoxFuture<'_, Result<()>>;
}

/// What tells watchers that there is something to do.
#[derive(Debug)]
pub(super) struct Signals {
    pub(super) head: watch::Sender<Revision>,
    pub(super) expiry: watch::Sender<Option<Instant>>,
}

struct Cursor<L> {
    log: Weak<L>,
    prefix: String,
    from: Revision,
    ready: VecDeque<Batch>,
    head: watch::Receiver<Revision>,
    expiry: watch::Receiver<Option<Instant>>,
}

// === impl Watch ===

impl Watch {
    /// Wraps what an implementation has.
    pub fn new(stream: BoxStream<'static, Result<Batch>>) -> Self {
        Self { stream }
    }

    /// The next batch; waits for it. After an error the watch is over.
    ///
    /// # Cancel safety
    /// Nothing is lost when dropped.
    ///
    /// # Errors
    /// [`Error::Compacted`]: too slow, list again. [`Error::Closed`]: the store was closed.
    pub async fn next(&mut self) -> Result<Batch> {
        self.stream.next().await.unwrap_or(Err(Error::Closed))
    }

    pub(super) fn follow<L: Log + 'static>(
        log: &Arc<L>,
        signals: &Signals,
        prefix: &str,
        from: Revision,
    ) -> Self {
        let cursor = Cursor {
            log: Arc::downgrade(log),
            prefix: prefix.to_owned(),
            from,
            ready: VecDeque::new(),
            head: signals.head.subscribe(),
            expiry: signals.expiry.subscribe(),
        };
        let stream = stream::unfold(Some(cursor), |cursor| async {
            let mut cursor = cursor?;
            match cursor.next().await {
                Ok(batch) => Some((Ok(batch), Some(cursor))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Self::new(stream.boxed())
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

// === impl Event ===

impl Event {
    /// The record it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Deleted { key, .. } => key,
        }
    }
}

// === impl Page ===

impl Page {
    /// An empty one, that ends with `head`.
    pub(super) fn new(from: Revision, head: Revision) -> Self {
        Self { batches: Vec::new(), next: from.max(head.next()), end: true }
    }

    /// Adds a change; false if the page was full, and so was left.
    pub(super) fn push(&mut self, revision: Revision, event: Event) -> bool {
        match self.batches.last_mut() {
            Some(batch) if batch.revision == revision => {
                batch.events.push(event);
                return true;
            }
            Some(_) | None => {}
        }
        if self.batches.len() == PAGE {
            (self.next, self.end) = (revision, false);
            return false;
        }
        self.batches.push(Batch { revision, events: vec![event] });
        true
    }
}

// === impl Signals ===

impl Signals {
    pub(super) fn new(head: Revision) -> Self {
        Self { head: watch::Sender::new(head), expiry: watch::Sender::new(None) }
    }
}

// === impl Cursor ===

impl<L: Log> Cursor<L> {
    async fn next(&mut self) -> Result<Batch> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            // Seen before the read: a revision that comes in between wakes the wait below at once.
            self.head.borrow_and_update();
            let page = {
                let log = self.log.upgrade().ok_or(Error::Closed)?;
                log.events(&self.prefix, self.from).await?
            };
            self.from = page.next;
            self.ready = page.batches.into();
            if self.ready.is_empty() && page.end {
                self.wait().await?;
            }
        }
    }

    async fn wait(&mut self) -> Result<()> {
        let due = *self.expiry.borrow_and_update();
        let lease_ends = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // All three arms are cancel-safe.
        let over = tokio::select! {
            changed = self.head.changed() => return changed.map_err(|_| Error::Closed),
            changed = self.expiry.changed() => return changed.map_err(|_| Error::Closed),
            () = lease_ends => self.log.upgrade().ok_or(Error::Closed)?,
        };
        over.expire().await
    }
}
