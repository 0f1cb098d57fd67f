//! The coordinator's durable state: small records behind one interface of the etcd kind.
//!
//! Answerable for: ordered keys, one transaction of compares and writes, a watch that misses nothing, leases.
//! Not answerable for what the records mean (see [`record`] for the typed view, and the module of each record).
//!
//! ```text
//! get(key)                      -> Option<Kv>
//! range(prefix, after, limit)   -> (Vec<Kv>, store revision)
//! txn(compares, then, or_else)  -> (succeeded, store revision, results)      the only way to write
//! watch(prefix, from)           -> one Batch per revision, or Compacted
//! lease_*, campaign             -> keys that vanish with their lease; leadership with a fencing revision
//! ```
//!
//! Revisions are one global counter that every writing transaction raises by one. Rules that keep all
//! implementations honest (etcd has the same limits): at most [`MAX_OPS`] compares or operations in a
//! transaction, values of at most [`MAX_VALUE`] bytes, keys of visible ASCII of at most [`MAX_KEY`] bytes, no
//! key written twice in one transaction, no read-modify-write outside [`Store::txn`].
//!
//! ```
//! # use holdfast_coordinator::store::{memory::Memory, record, Compare, Key, Op, Shared, Txn};
//! # async fn example(store: Shared) -> Result<(), Box<dyn std::error::Error>> {
//! let key = Key::from("cluster/main");
//! let create = Txn::new().when(Compare::absent(&key)).then(Op::put(&key, record::encode(&key, &"spec")?));
//! assert!(store.txn(create).await?.succeeded);
//! let found = record::get::<String>(&*store, &key).await?.expect("just written");
//! let replace = Txn::new()
//!     .when(Compare::unchanged(&key, found.revision))
//!     .then(Op::put(&key, record::encode(&key, &"other")?));
//! assert!(store.txn(replace).await?.succeeded);
//! # Ok(()) }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example(Memory::shared())).unwrap();
//! ```

#[cfg(any(test, feature = "test-harness"))]
pub mod contract;
mod error;
pub mod leadership;
pub mod memory;
pub mod record;
pub mod sqlite;
mod txn;
mod watch;

use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use self::{
    error::Error,
    leadership::{Leadership, campaign},
    txn::{Compare, Op, Outcome, Range, Reply, Txn},
    watch::{Batch, Event, Watch},
};

/// Most compares, and most operations in either branch, of one transaction.
pub const MAX_OPS: usize = 128;
/// Most bytes in one value.
pub const MAX_VALUE: usize = 1024 * 1024;
/// Most bytes in one key.
pub const MAX_KEY: usize = 512;
/// Most records that one [`Store::range`] returns.
pub const MAX_RANGE: usize = 1000;

/// A store that several owners share.
pub type Shared = Arc<dyn Store>;

/// What an answer of the store is.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Durable records with compare-and-set, watch and leases. What was answered `Ok` survives a crash.
///
/// # Cancel safety
/// Dropping a call of [`Store::txn`] leaves open whether the transaction took place; the others only read.
///
/// # Errors
/// [`Error::NoSpace`] and [`Error::Unavailable`] changed nothing that may be relied on and may be repeated;
/// [`Error::is_transient`] tells. [`Error::Refused`] is a broken rule of the caller's.
pub trait Store: fmt::Debug + Send + Sync {
    /// The record under `key`.
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Kv>>>;

    /// Records of a prefix in the order of their keys, and the store's revision they were read at.
    fn range(&self, range: Range) -> BoxFuture<'_, Result<Listing>>;

    /// If all compares hold, does `then`, otherwise `or_else`; all or nothing, in one revision.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome>>;

    /// All changes under `prefix` from revision `from` on, in order, without a gap.
    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watch>>;

    /// A lease that ends after `ttl` unless it is kept alive.
    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId>>;

    /// Gives the lease its whole time again.
    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>>;

    /// Ends the lease; its keys vanish.
    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>>;

    /// How the store stands.
    fn status(&self) -> BoxFuture<'_, Result<Status>>;
}

/// The name of a record: visible ASCII, parts separated by `/`, ordered by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// A point in the store's history. Zero is before everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// Which lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A record as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kv {
    /// Its name.
    pub key: Key,
    /// Its content.
    pub value: Vec<u8>,
    /// The revision that created it.
    pub create_rev: Revision,
    /// The revision that last wrote it.
    pub mod_rev: Revision,
    /// How often it was written since it was created.
    pub version: u64,
    /// The lease it vanishes with.
    pub lease: Option<LeaseId>,
}

/// What a range read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The records, in the order asked for.
    pub records: Vec<Kv>,
    /// The store's revision they were read at: watch from the next one to miss nothing.
    pub revision: Revision,
    /// There is more behind the last of them.
    pub more: bool,
}

/// How the store stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The newest revision.
    pub revision: Revision,
    /// A watch may begin behind this revision.
    pub compacted: Revision,
    /// Records there are.
    pub records: u64,
    /// Changes kept for watchers.
    pub events: u64,
}

// === impl Key ===

impl Key {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.0.is_empty() || self.0.len() > MAX_KEY {
            return Err(Error::refused(format!("a key has 1 to {MAX_KEY} bytes, not {}", self.0.len())));
        }
        if !self.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::refused(format!("a key is visible ASCII, not {:?}", self.0)));
        }
        Ok(())
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&Key> for Key {
    fn from(key: &Key) -> Self {
        key.clone()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

// === impl Revision ===

impl Revision {
    /// Before everything: what the creation revision of an absent record is compared with.
    pub const ZERO: Self = Self(0);

    /// The one that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl LeaseId ===

impl LeaseId {
    /// A lease id that no other process made either. Never negative as the signed number databases keep.
    pub(crate) fn random() -> Self {
        let (_, low) = uuid::Uuid::new_v4().as_u64_pair();
        Self((low & (u64::MAX >> 1)).max(1))
    }
}
