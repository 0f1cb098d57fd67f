//! A store in memory, for tests and for trying things. It forgets everything with the process.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt};
use tokio::time::Instant;

use super::{
    Error, Event, Key, Kv, LeaseId, Listing, Op, Outcome, Range, Reply, Result, Revision, Shared, Status,
    Store, Txn,
    txn::check_prefix,
    watch::{Log, Page, Signals, Watch},
};

/// Changes kept for watchers.
const KEEP_EVENTS: usize = 10_000;

/// A store in memory. Cheap to clone; all clones are the same store.
#[derive(Debug, Clone)]
pub struct Memory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    signals: Signals,
    keep: usize,
}

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    compacted: Revision,
    records: BTreeMap<Key, Kv>,
    events: VecDeque<(Revision, Event)>,
    leases: BTreeMap<LeaseId, Lease>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

// === impl Memory ===

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::with_events(KEEP_EVENTS)
    }

    /// An empty store that keeps so many changes for watchers.
    pub fn with_events(keep: usize) -> Self {
        let signals = Signals::new(Revision::ZERO);
        Self { inner: Arc::new(Inner { state: Mutex::default(), signals, keep }) }
    }

    /// An empty store, as most callers want it.
    pub fn shared() -> Shared {
        Arc::new(Self::new())
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for Memory {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Kv>>> {
        async move {
            key.check()?;
            Ok(self.inner.lock().records.get(key).cloned())
        }
        .boxed()
    }

    fn range(&self, range: Range) -> BoxFuture<'_, Result<Listing>> {
        async move {
            range.check()?;
            Ok(self.inner.lock().range(&range))
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome>> {
        async move {
            txn.check()?;
            let mut state = self.inner.lock();
            if let Some(lease) = txn.leases().find(|lease| !state.leases.contains_key(lease)) {
                return Err(Error::LeaseOver { lease });
            }
            let outcome = state.txn(&txn);
            self.inner.changed(&mut state);
            Ok(outcome)
        }
        .boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Watch>> {
        async move {
            check_prefix(prefix)?;
            self.inner.lock().check_kept(from)?;
            Ok(Watch::follow(&self.inner, &self.inner.signals, prefix, from))
        }
        .boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId>> {
        async move {
            let lease = LeaseId::random();
            let mut state = self.inner.lock();
            state.leases.insert(lease, Lease { ttl, ends: Instant::now() + ttl });
            self.inner.changed(&mut state);
            Ok(lease)
        }
        .boxed()
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        async move {
            let mut state = self.inner.lock();
            let found = state.leases.get_mut(&lease).ok_or(Error::LeaseOver { lease })?;
            found.ends = Instant::now() + found.ttl;
            self.inner.changed(&mut state);
            Ok(())
        }
        .boxed()
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<()>> {
        async move {
            let mut state = self.inner.lock();
            state.leases.remove(&lease).ok_or(Error::LeaseOver { lease })?;
            state.drop_keys_of(&[lease]);
            self.inner.changed(&mut state);
            Ok(())
        }
        .boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<Status>> {
        async move {
            let state = self.inner.lock();
            let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
            Ok(Status {
                revision: state.revision,
                compacted: state.compacted,
                records: count(state.records.len()),
                events: count(state.events.len()),
            })
        }
        .boxed()
    }
}

// === impl Inner ===

impl Inner {
    /// The state, without what leases that are over have left.
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here panics half-way through a change, so a poisoned lock still guards a whole state.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let over: Vec<_> = state.leases.iter().filter(|(_, l)| l.ends <= now).map(|(id, _)| *id).collect();
        if !over.is_empty() {
            state.leases.retain(|id, _| !over.contains(id));
            state.drop_keys_of(&over);
            self.changed(&mut state);
        }
        state
    }

    /// Bounds the log and tells the watchers.
    fn changed(&self, state: &mut State) {
        if state.events.len() > self.keep {
            let cut = state.events[state.events.len() - self.keep].0;
            // A revision is kept whole or not at all.
            state.events.retain(|(revision, _)| *revision >= cut);
            state.compacted = Revision(cut.0 - 1);
        }
        let next = state.leases.values().map(|lease| lease.ends).min();
        self.signals.expiry.send_if_modified(|due| std::mem::replace(due, next) != next);
        let head = state.revision;
        self.signals.head.send_if_modified(|seen| std::mem::replace(seen, head) != head);
    }
}

impl Log for Inner {
    fn events<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, Result<Page>> {
        async move {
            let state = self.lock();
            state.check_kept(from)?;
            let mut page = Page::new(from, state.revision);
            let matching =
                state.events.iter().filter(|(rev, e)| *rev >= from && e.key().0.starts_with(prefix));
            for (revision, event) in matching {
                if !page.push(*revision, event.clone()) {
                    break;
                }
            }
            Ok(page)
        }
        .boxed()
    }

    fn expire(&self) -> BoxFuture<'_, Result<()>> {
        async move {
            drop(self.lock());
            Ok(())
        }
        .boxed()
    }
}

// === impl State ===

impl State {
    fn range(&self, range: &Range) -> Listing {
        let Range { prefix, after, limit, descending } = range;
        let first = Key(prefix.clone());
        let end = Key(Range::end(prefix));
        let (mut low, mut high) = (Bound::Included(&first), Bound::Excluded(&end));
        match after {
            Some(after) if *descending && *after < end => high = Bound::Excluded(after),
            Some(after) if !*descending && *after >= first => low = Bound::Excluded(after),
            Some(_) | None => {}
        }
        let empty = match (low, high) {
            (Bound::Included(l), Bound::Excluded(h)) => l >= h,
            (Bound::Excluded(l), Bound::Excluded(h)) => l >= h,
            _ => false,
        };
        let mut records: Vec<Kv> = if empty {
            Vec::new()
        } else {
            let all = self.records.range::<Key, _>((low, high)).map(|(_, kv)| kv.clone());
            if *descending { all.rev().take(limit + 1).collect() } else { all.take(limit + 1).collect() }
        };
        let more = records.len() > *limit;
        records.truncate(*limit);
        Listing { records, revision: self.revision, more }
    }

    fn txn(&mut self, txn: &Txn) -> Outcome {
        let succeeded = txn.compares.iter().all(|compare| compare.holds(self.records.get(compare.key())));
        let revision = self.revision.next();
        let ops = if succeeded { &txn.then } else { &txn.or_else };
        let replies = ops.iter().map(|op| self.apply(op, revision)).collect();
        Outcome { succeeded, revision: self.revision, replies }
    }

    fn apply(&mut self, op: &Op, revision: Revision) -> Reply {
        match op {
            Op::Put { key, value, lease } => {
                let old = self.records.get(key).map(|kv| (kv.create_rev, kv.version));
                let (create_rev, version) = old.unwrap_or((revision, 0));
                let kv = Kv {
                    key: key.clone(),
                    value: value.clone(),
                    create_rev,
                    mod_rev: revision,
                    version: version + 1,
                    lease: *lease,
                };
                self.records.insert(key.clone(), kv.clone());
                self.log(revision, Event::Put(kv));
                Reply::Put
            }
            Op::Delete { key } => {
                let found = self.records.remove(key).is_some();
                if found {
                    self.log(revision, Event::Deleted { key: key.clone(), mod_rev: revision });
                }
                Reply::Deleted(found)
            }
            Op::Get { key } => Reply::Got(self.records.get(key).cloned()),
        }
    }

    fn log(&mut self, revision: Revision, event: Event) {
        self.revision = revision;
        self.events.push_back((revision, event));
    }

    fn drop_keys_of(&mut self, leases: &[LeaseId]) {
        let hanging = |kv: &&Kv| kv.lease.is_some_and(|lease| leases.contains(&lease));
        let keys: Vec<Key> = self.records.values().filter(hanging).map(|kv| kv.key.clone()).collect();
        let revision = self.revision.next();
        for key in keys {
            self.apply(&Op::Delete { key }, revision);
        }
    }

    fn check_kept(&self, from: Revision) -> Result<()> {
        if from.max(Revision(1)) <= self.compacted {
            Err(Error::Compacted { at: self.compacted })
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Runtime;

    use super::*;
    use crate::store::contract::{self, Subject};

    struct Fresh;

    impl Subject for Fresh {
        fn fresh(&self) -> BoxFuture<'_, Shared> {
            async { Memory::shared() }.boxed()
        }

        fn reopen(&self, _store: Shared) -> BoxFuture<'_, Option<Shared>> {
            async { None }.boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_contract_holds() {
        contract::holds(&Fresh).await;
    }

    #[test]
    fn random_histories_agree_with_the_model() {
        contract::agrees_with_the_model(300, &Runtime::new().unwrap(), &Fresh);
    }

    #[tokio::test]
    async fn the_log_is_bounded_and_says_so() {
        let store = Memory::with_events(10);
        contract::the_log_is_bounded(&store, 10).await;
    }
}
