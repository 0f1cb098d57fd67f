//! Runs what is to be run: everything unfinished at start, then whatever is submitted, a bounded number at a time.
//!
//! The store's index of active operations is looked at afresh each time something happens, so nothing that was
//! stored is ever overlooked.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use holdfast_common::{
    backoff::Backoff,
    clock::Clock,
    error::{Chain, Failure, Reason},
    id::OperationId,
};
use tokio::{
    sync::Notify,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Error,
    handle::{Handle, Inner},
    live::Live,
    procedure::Procedure,
    record::{ACTIVE, FINISHED, Operation},
    runner::{self, Runner},
};
use crate::store::{Op, Range, Shared, Txn};

/// Operations that run at a time; the others wait.
const MAX_RUNNING: usize = 64;
/// Finished operations that are kept.
const KEEP_FINISHED: usize = 1000;

/// The engine: owns all operations under way.
pub struct Service<P: Procedure> {
    shared: Arc<Inner>,
    means: Arc<P::Means>,
    keep: usize,
}

// === impl Service ===

impl<P: Procedure> Service<P> {
    /// An engine over `store`, whose steps use `means`.
    pub fn new(store: Shared, means: Arc<P::Means>) -> Self {
        Self::with_clock(store, means, Clock::system())
    }

    /// The same, with times of that clock.
    pub fn with_clock(store: Shared, means: Arc<P::Means>, clock: Clock) -> Self {
        let shared = Inner { store, clock, live: Arc::new(Live::default()), wake: Notify::new() };
        Self { shared: Arc::new(shared), means, keep: KEEP_FINISHED }
    }

    /// The same as [`Self::new`], with means that may begin operations too.
    pub fn with_handle(store: Shared, means: impl FnOnce(Handle<P>) -> Arc<P::Means>) -> Self {
        let clock = Clock::system();
        let shared = Arc::new(Inner { store, clock, live: Arc::new(Live::default()), wake: Notify::new() });
        let means = means(Handle::new(Arc::clone(&shared)));
        Self { shared, means, keep: KEEP_FINISHED }
    }

    /// The same, keeping so many finished operations (at most the thousand that is kept otherwise).
    #[must_use]
    pub fn keeping(mut self, finished: usize) -> Self {
        self.keep = finished.min(KEEP_FINISHED);
        self
    }

    /// Talks to this engine.
    pub fn handle(&self) -> Handle<P> {
        Handle::new(Arc::clone(&self.shared))
    }

    /// What its steps may use.
    pub fn means(&self) -> Arc<P::Means> {
        Arc::clone(&self.means)
    }

    /// Runs until `shutdown`. Steps under way are dropped then, and repeated at the next start.
    ///
    /// # Cancel safety
    /// Dropping it stops everything at once, like a crash; the next start goes on from what is stored.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut running = JoinSet::new();
        let mut owned: HashMap<Id, OperationId> = HashMap::new();
        let mut pause = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        loop {
            let again = match self.start_new(&mut running, &mut owned, &shutdown).await {
                Ok(()) => {
                    pause.reset();
                    None
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "operations: cannot read what is to be run, trying again");
                    Some(pause.next_wait())
                }
            };
            // All arms are cancel-safe.
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.shared.wake.notified() => {}
                () = runner::sleep(again) => {}
                Some(ended) = running.join_next_with_id() => self.reap(ended, &mut owned).await,
            }
        }
        // Each of them has seen the same token.
        while let Some(ended) = running.join_next_with_id().await {
            self.reap(ended, &mut owned).await;
        }
        self.shared.live.clear();
    }

    async fn start_new(
        &self,
        running: &mut JoinSet<()>,
        owned: &mut HashMap<Id, OperationId>,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let active = self.shared.store.range(Range::prefix(ACTIVE)).await?;
        let busy: HashSet<_> = owned.values().copied().collect();
        let ids = active.records.iter().filter_map(|kv| kv.key.as_str().strip_prefix(ACTIVE)?.parse().ok());
        for id in ids.filter(|id: &OperationId| !busy.contains(id)) {
            let found = self.shared.load(id).await?;
            self.shared.live.adopt(&found.value);
            if running.len() >= MAX_RUNNING {
                continue;
            }
            let Operation { kind, resource, .. } = &found.value;
            let span = tracing::info_span!("operation", %id, kind, resource);
            let runner = Runner::<P>::new(&self.shared, &self.means, found, shutdown.clone());
            let task = running.spawn(Box::pin(runner.run()).instrument(span));
            owned.insert(task.id(), id);
        }
        Ok(())
    }

    async fn reap(
        &self,
        ended: Result<(Id, ()), tokio::task::JoinError>,
        owned: &mut HashMap<Id, OperationId>,
    ) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(error) => error.id(),
        };
        let Some(id) = owned.remove(&task) else { return };
        if let Err(error) = ended {
            // Only a defect of ours. (In a release build it has ended the process already.)
            tracing::error!(operation = %id, error = %Chain(&error), "operation: a step panicked");
            let failure = Failure::new(Reason::Internal, format!("a step panicked: {error}"));
            if let Err(error) = runner::block(&self.shared, id, failure).await {
                tracing::error!(operation = %id, error = %Chain(&error), "operation: cannot record the panic");
            }
        }
        if let Err(error) = self.forget_old().await {
            tracing::warn!(error = %Chain(&error), "operations: cannot remove old records");
        }
    }

    /// Removes the oldest finished operations beyond those that are kept.
    async fn forget_old(&self) -> Result<(), Error> {
        loop {
            let kept = Range::prefix(FINISHED).descending().limit(self.keep.max(1));
            let kept = self.shared.store.range(kept).await?;
            let Some(oldest_kept) = kept.records.last().filter(|_| kept.more) else { return Ok(()) };
            let excess = Range::prefix(FINISHED).descending().after(&oldest_kept.key).limit(32);
            for kv in self.shared.store.range(excess).await?.records {
                let mut txn = Txn::new().then(Op::delete(&kv.key));
                if let Some(id) = kv.key.as_str().strip_prefix(FINISHED).and_then(|id| id.parse().ok()) {
                    match self.shared.load(id).await {
                        Ok(found) => {
                            let Operation { request, requested_by, .. } = &found.value;
                            if let Some(mark) = request {
                                txn = txn.then(Op::delete(mark.key(requested_by)));
                            }
                            txn = txn.then(Op::delete(Operation::key(id)));
                        }
                        Err(Error::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                self.shared.store.txn(txn).await?;
            }
        }
    }
}

impl<P: Procedure> fmt::Debug for Service<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("shared", &self.shared).finish_non_exhaustive()
    }
}
