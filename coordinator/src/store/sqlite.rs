//! The embedded default store: SQLite in WAL mode, every commit on the disk before it is answered.
//!
//! ```text
//!   txn, lease_* ──bounded queue──▶ writer thread: many transactions, one commit, then the answers
//!   get, range, watch ──bounded queue──▶ reader thread: its own connection, a snapshot each
//! ```
//! A file lock beside the database keeps a second coordinator out. Leases live in memory: at the next start
//! the lock proves that their holders are gone, so what hung on them is removed then. A full disk is
//! [`Error::NoSpace`]; the transaction is rolled back, and the next call works as soon as there is room.

mod reader;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use self::{reader::Read, writer::Write};
use super::{
    Error, Key, Kv, LeaseId, Listing, Outcome, Range, Result, Revision, Shared, Status, Store, Txn,
    txn::check_prefix,
    watch::{Log, Page, Signals, Watch},
};

/// Calls that may wait for a thread before callers have to.
const QUEUE: usize = 1024;

/// How much is kept for watchers before the oldest half is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Changes.
    pub events: u64,
    /// Bytes of their values.
    pub bytes: u64,
}

/// A store in an SQLite database. Cheap to clone; closed when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Sqlite {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    // Taken out by `drop`, which ends the threads.
    channels: Option<Channels>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    signals: Arc<Signals>,
}

struct Channels {
    write: mpsc::Sender<Write>,
    read: mpsc::Sender<Read>,
}

// === impl Keep ===

impl Default for Keep {
    fn default() -> Self {
        Self { events: 10_000, bytes: 64 * 1024 * 1024 }
    }
}

// === impl Sqlite ===

impl Sqlite {
    /// Opens the database, making it if it is not there. Its files are for their owner only (mode 0600).
    ///
    /// Blocks for as long as the disk takes: call it at start, or from a blocking task.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::Schema`], [`Error::Open`], [`Error::NoSpace`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_keeping(path, Keep::default())
    }

    /// As [`Self::open`], keeping so much for watchers.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_keeping(path: impl AsRef<Path>, keep: Keep) -> Result<Self> {
        let path = path.as_ref();
        let lock = schema::lock(path)?;
        let database = schema::open(path)?;
        let signals = Arc::new(Signals::new(database.revision));
        let (write, writes) = mpsc::channel(QUEUE);
        let (read, reads) = mpsc::channel(QUEUE);
        let reader = reader::start(path, schema::open_reader(path)?, reads)?;
        // The writer owns the lock: it ends last, and with it the claim to the database.
        let writer = writer::start(path, database, lock, keep, Arc::clone(&signals), writes)?;
        let inner = Inner {
            path: path.to_owned(),
            channels: Some(Channels { write, read }),
            threads: Mutex::new(vec![reader, writer]),
            signals,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// As [`Self::open`], as most callers want it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn shared(path: impl AsRef<Path>) -> Result<Shared> {
        Ok(Arc::new(Self::open(path)?))
    }
}

impl Store for Sqlite {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Kv>>> {
        async move {
            key.check()?;
            self.inner.read(|reply| Read::Get { key: key.clone(), reply }).await
        }
        .boxed()
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Listing>> {
        async move {
            range.check()?;
            self.inner.read(|reply| Read::Range { range, reply }).await
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome>> {
        async move {
            txn.check()?;
            self.inner.write(|now, reply| Write::Txn { txn, now, reply }).await
        }
        .boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watch>> {
        async move {
            check_prefix(prefix)?;
            let compacted = self.status().await?.compacted;
            if from.max(Revision(1)) <= compacted {
                return Err(Error::Compacted { at: compacted });
            }
            Ok(Watch::follow(&self.inner, &self.inner.signals, prefix, from))
        }
        .boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId>> {
        self.inner.write(move |now, reply| Write::Grant { ttl, now, reply }).boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.inner.write(move |now, reply| Write::KeepAlive { lease, now, reply }).boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        self.inner.write(move |now, reply| Write::Revoke { lease, now, reply }).boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<Status>> {
        self.inner.read(|reply| Read::Status { reply }).boxed()
    }
}

// === impl Inner ===

impl Inner {
    async fn read<T>(&self, order: impl FnOnce(oneshot::Sender<Result<T>>) -> Read) -> Result<T> {
        let due = *self.signals.expiry.borrow();
        if due.is_some_and(|at| at <= Instant::now()) {
            Log::expire(self).await?;
        }
        let (reply, answer) = oneshot::channel();
        let channel = &self.channels.as_ref().ok_or(Error::Closed)?.read;
        channel.send(order(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    async fn write<T>(&self, order: impl FnOnce(Instant, oneshot::Sender<Result<T>>) -> Write) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let channel = &self.channels.as_ref().ok_or(Error::Closed)?.write;
        channel.send(order(Instant::now(), reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

impl Log for Inner {
    fn events<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Page>> {
        self.read(move |reply| Read::Events { prefix: prefix.to_owned(), from, reply }).boxed()
    }

    fn expire(&self) -> BoxFuture<'_, Result<()>> {
        self.write(|now, reply| Write::Expire { now, reply }).boxed()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    /// Waits for what was accepted, and for the lock to be free, so that the database may be opened again.
    fn drop(&mut self) {
        self.channels = None;
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// What an error of SQLite means to our callers.
fn classify(deed: &'static str, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::NoSpace { deed },
        _ => Error::Unavailable { deed, source: error.into() },
    }
}
