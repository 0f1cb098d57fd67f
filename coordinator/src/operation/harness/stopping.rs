//! A store that ends like that of a coordinator that is killed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use tokio_util::sync::CancellationToken;

use super::Stop;
use crate::store::{
    self, Key, Kv, LeaseId, Listing, Outcome, Range, Revision, Shared, Status, Store, Txn, Watch,
};

/// A store that at some write ceases to answer: what a coordinator that is killed sees.
#[derive(Debug)]
pub struct Stopping {
    store: Shared,
    stop: Option<Stop>,
    pub(super) writes: AtomicU64,
    pub(super) stopped: CancellationToken,
}

// === impl Stopping ===

impl Stopping {
    /// Stops then, or never.
    pub fn new(store: Shared, stop: Option<Stop>) -> Self {
        Self { store, stop, writes: AtomicU64::new(0), stopped: CancellationToken::new() }
    }

    /// How many writes have taken place.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Ends when it has stopped.
    pub fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }

    async fn alive(&self) {
        if self.stopped.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

impl Store for Stopping {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, store::Result<Option<Kv>>> {
        async move {
            self.alive().await;
            self.store.get(key).await
        }
        .boxed()
    }

    fn range(&self, range: Range) -> BoxFuture<'_, store::Result<Listing>> {
        async move {
            self.alive().await;
            self.store.range(range).await
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, store::Result<Outcome>> {
        async move {
            self.alive().await;
            let next = self.writes.load(Ordering::Relaxed) + 1;
            if txn.writes() && self.stop == Some(Stop::Before(next)) {
                self.stopped.cancel();
            }
            self.alive().await;
            let before = self.store.status().await?.revision;
            let outcome = self.store.txn(txn).await?;
            if outcome.revision > before {
                self.writes.store(next, Ordering::Relaxed);
                if self.stop == Some(Stop::After(next)) {
                    self.stopped.cancel();
                }
            }
            self.alive().await;
            Ok(outcome)
        }
        .boxed()
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> BoxFuture<'a, store::Result<Watch>> {
        async move {
            self.alive().await;
            self.store.watch(prefix, from).await
        }
        .boxed()
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, store::Result<LeaseId>> {
        self.store.lease_grant(ttl)
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, store::Result<()>> {
        self.store.lease_keep_alive(lease)
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, store::Result<()>> {
        self.store.lease_revoke(lease)
    }

    fn status(&self) -> BoxFuture<'_, store::Result<Status>> {
        self.store.status()
    }
}
