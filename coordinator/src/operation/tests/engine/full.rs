//! The coordinator's disk is full.

use futures::future::BoxFuture;

use super::*;
use crate::operation::harness::Stopping;
use crate::store::{self, Store};

#[tokio::test(start_paused = true)]
async fn a_full_disk_delays_an_operation_and_fails_it_not() {
    let mut bench = Bench::new();
    let full = Arc::new(Full::new(Arc::clone(&bench.store)));
    bench.store = Arc::clone(&full) as Shared;
    let gate = bench.world.hold("copy/1");
    let engine = bench.start();
    let id = engine.submit().await;
    engine.at(id, "copy/1").await;
    full.set(true);
    let refused = engine.handle.submit(Submit::new(Build::Reserve, "cluster/other", "a")).await.unwrap_err();
    assert_eq!((refused.reason(), refused.retry()), (Reason::StorageFull, Retry::Later(None)));
    gate.add_permits(1);
    // Far longer than any step's deadline.
    tokio::time::advance(Duration::from_secs(3600)).await;
    let deadline = tokio::time::timeout(Duration::from_secs(3600), engine.handle.wait(id)).await;
    assert!(deadline.is_err(), "it went on without having been stored");
    assert!(!bench.world.lock().copies.contains(&2), "a step ran before it was stored");
    full.set(false);
    assert_eq!(engine.wait(id).await.state, State::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_finds_the_disk_full_is_not_given_up() {
    let bench = Bench::new();
    let failure = Failure { retry: Retry::Later(None), ..Failure::new(Reason::StorageFull, "full") };
    bench.world.trouble("copy/1", failure, 50);
    let engine = bench.start();
    let id = engine.submit().await;
    assert_eq!(engine.wait(id).await.state, State::Succeeded);
}

/// A store that says it is full as long as one wishes.
#[derive(Debug)]
struct Full {
    store: Stopping,
    full: std::sync::atomic::AtomicBool,
}

impl Full {
    fn new(store: Shared) -> Self {
        Self { store: Stopping::new(store, None), full: false.into() }
    }

    fn set(&self, full: bool) {
        self.full.store(full, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Store for Full {
    fn get<'a>(&'a self, key: &'a store::Key) -> BoxFuture<'a, store::Result<Option<store::Kv>>> {
        self.store.get(key)
    }

    fn range(&self, range: store::Range) -> BoxFuture<'_, store::Result<store::Listing>> {
        self.store.range(range)
    }

    fn txn(&self, txn: store::Txn) -> BoxFuture<'_, store::Result<store::Outcome>> {
        if self.full.load(std::sync::atomic::Ordering::Relaxed) {
            return Box::pin(async { Err(store::Error::NoSpace { deed: "write" }) });
        }
        self.store.txn(txn)
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        from: store::Revision,
    ) -> BoxFuture<'a, store::Result<store::Watch>> {
        self.store.watch(prefix, from)
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, store::Result<store::LeaseId>> {
        self.store.lease_grant(ttl)
    }

    fn lease_keep_alive(&self, lease: store::LeaseId) -> BoxFuture<'_, store::Result<()>> {
        self.store.lease_keep_alive(lease)
    }

    fn lease_revoke(&self, lease: store::LeaseId) -> BoxFuture<'_, store::Result<()>> {
        self.store.lease_revoke(lease)
    }

    fn status(&self) -> BoxFuture<'_, store::Result<store::Status>> {
        self.store.status()
    }
}
