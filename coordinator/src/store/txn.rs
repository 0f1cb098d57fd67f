//! What may be asked of a store, and the rules that every implementation enforces alike.

use std::collections::HashSet;

use super::{Error, Key, Kv, LeaseId, MAX_KEY, MAX_OPS, MAX_RANGE, MAX_VALUE, Result, Revision};

/// A condition on one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// It was last written in this revision; zero: it is absent.
    ModRev(Key, Revision),
    /// It was created in this revision; zero: it is absent.
    CreateRev(Key, Revision),
    /// It is there and holds exactly this.
    Value(Key, Vec<u8>),
}

/// A deed within a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a record.
    Put {
        /// Which.
        key: Key,
        /// Its content.
        value: Vec<u8>,
        /// The lease it vanishes with.
        lease: Option<LeaseId>,
    },
    /// Removes a record if it is there.
    Delete {
        /// Which.
        key: Key,
    },
    /// Reads a record, as left by the operations before it.
    Get {
        /// Which.
        key: Key,
    },
}

/// Compares and writes that take place together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All of these must hold …
    pub compares: Vec<Compare>,
    /// … for this to be done …
    pub then: Vec<Op>,
    /// … and otherwise this.
    pub or_else: Vec<Op>,
}

/// What came of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// All compares held, `then` was done.
    pub succeeded: bool,
    /// The store's revision afterwards.
    pub revision: Revision,
    /// One for each operation of the branch done.
    pub replies: Vec<Reply>,
}

/// What came of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Written.
    Put,
    /// Whether there was something to delete.
    Deleted(bool),
    /// What was read.
    Got(Option<Kv>),
}

/// Which records to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// Only keys that begin so; empty: all.
    pub prefix: String,
    /// Only keys behind this one, in the order of the listing.
    pub after: Option<Key>,
    /// At most so many.
    pub limit: usize,
    /// From the highest key down.
    pub descending: bool,
}

// === impl Compare ===

impl Compare {
    /// The record is not there.
    pub fn absent(key: impl Into<Key>) -> Self {
        Self::CreateRev(key.into(), Revision::ZERO)
    }

    /// The record is still as it was read.
    pub fn unchanged(key: impl Into<Key>, mod_rev: Revision) -> Self {
        Self::ModRev(key.into(), mod_rev)
    }

    /// The record it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::ModRev(key, _) | Self::CreateRev(key, _) | Self::Value(key, _) => key,
        }
    }

    /// Whether it holds of what is stored.
    pub(super) fn holds(&self, stored: Option<&Kv>) -> bool {
        match self {
            Self::ModRev(_, rev) => stored.map_or(Revision::ZERO, |kv| kv.mod_rev) == *rev,
            Self::CreateRev(_, rev) => stored.map_or(Revision::ZERO, |kv| kv.create_rev) == *rev,
            Self::Value(_, value) => stored.is_some_and(|kv| kv.value == *value),
        }
    }
}

// === impl Op ===

impl Op {
    /// Writes a record that stays.
    pub fn put(key: impl Into<Key>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }

    /// Writes a record that vanishes with the lease.
    pub fn put_leased(key: impl Into<Key>, value: impl Into<Vec<u8>>, lease: LeaseId) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: Some(lease) }
    }

    /// Removes a record if it is there.
    pub fn delete(key: impl Into<Key>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Reads a record.
    pub fn get(key: impl Into<Key>) -> Self {
        Self::Get { key: key.into() }
    }

    /// The record it is about.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Get { key } => key,
        }
    }

    /// Whether it may change the store.
    pub fn writes(&self) -> bool {
        match self {
            Self::Put { .. } | Self::Delete { .. } => true,
            Self::Get { .. } => false,
        }
    }
}

// === impl Txn ===

impl Txn {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds a deed for when all conditions hold.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// Adds a deed for when some condition does not hold.
    #[must_use]
    pub fn or_else(mut self, op: Op) -> Self {
        self.or_else.push(op);
        self
    }

    /// Whether any branch may change the store.
    pub fn writes(&self) -> bool {
        self.then.iter().chain(&self.or_else).any(Op::writes)
    }

    /// Leases named in it.
    pub(super) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.then.iter().chain(&self.or_else).filter_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } | Op::Get { .. } => None,
        })
    }

    /// Refuses what the rules of the interface forbid, before anything is done.
    pub(super) fn check(&self) -> Result<()> {
        let Self { compares, then, or_else } = self;
        for (what, count) in [("compares", compares.len()), ("then", then.len()), ("else", or_else.len())] {
            if count > MAX_OPS {
                return Err(Error::refused(format!(
                    "a transaction has at most {MAX_OPS} entries in `{what}`, not {count}"
                )));
            }
        }
        compares.iter().try_for_each(|compare| compare.key().check())?;
        check_branch(then)?;
        check_branch(or_else)
    }
}

fn check_branch(ops: &[Op]) -> Result<()> {
    let mut written = HashSet::new();
    for op in ops {
        op.key().check()?;
        if let Op::Put { key, value, .. } = op
            && value.len() > MAX_VALUE
        {
            return Err(Error::refused(format!(
                "a value has at most {MAX_VALUE} bytes; the one of `{key}` has {}",
                value.len()
            )));
        }
        if op.writes() && !written.insert(op.key()) {
            return Err(Error::refused(format!("key `{}` is written twice in one transaction", op.key())));
        }
    }
    Ok(())
}

// === impl Outcome ===

impl Outcome {
    /// What the `index`-th operation of the branch done has read, if it was a read that found something.
    pub fn got(&self, index: usize) -> Option<&Kv> {
        match self.replies.get(index) {
            Some(Reply::Got(found)) => found.as_ref(),
            Some(Reply::Put | Reply::Deleted(_)) | None => None,
        }
    }
}

// === impl Range ===

impl Range {
    /// All keys that begin with `prefix`, as many as one listing may hold.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), after: None, limit: MAX_RANGE, descending: false }
    }

    /// Only keys behind `key`, in the order of the listing.
    #[must_use]
    pub fn after(mut self, key: impl Into<Key>) -> Self {
        self.after = Some(key.into());
        self
    }

    /// At most `limit` of them.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// From the highest key down.
    #[must_use]
    pub fn descending(mut self) -> Self {
        self.descending = true;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.limit == 0 || self.limit > MAX_RANGE {
            return Err(Error::refused(format!(
                "a listing has 1 to {MAX_RANGE} records, not {}",
                self.limit
            )));
        }
        check_prefix(&self.prefix)?;
        self.after.as_ref().map_or(Ok(()), Key::check)
    }

    /// The first key above all that begin with the prefix. Keys are visible ASCII, so DEL is above them.
    pub(super) fn end(prefix: &str) -> String {
        format!("{prefix}\u{7f}")
    }
}

pub(super) fn check_prefix(prefix: &str) -> Result<()> {
    if prefix.len() > MAX_KEY || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::refused(format!("a prefix is visible ASCII of at most {MAX_KEY} bytes")));
    }
    Ok(())
}
