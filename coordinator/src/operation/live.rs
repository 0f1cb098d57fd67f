//! What is going on now: the newest snapshot of every operation under way, for those who watch.
//!
//! The store knows every step; this knows the progress within it too. The newest snapshot wins, so a slow watcher
//! costs nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use holdfast_common::id::OperationId;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::record::{Operation, Progress};

/// The operations under way.
#[derive(Debug, Default)]
pub(super) struct Live {
    entries: Mutex<HashMap<OperationId, Entry>>,
}

#[derive(Debug)]
struct Entry {
    snapshot: watch::Sender<Arc<Operation>>,
    cancelled: CancellationToken,
}

/// Snapshots of one operation, the newest only; ends after one that is settled.
pub type Snapshots = BoxStream<'static, Arc<Operation>>;

// === impl Live ===

impl Live {
    /// Takes an operation up. What is known of it already is newer.
    pub(super) fn adopt(&self, operation: &Operation) {
        self.lock().entry(operation.id).or_insert_with(|| Entry::new(operation.clone()));
    }

    /// Tells the watchers what was stored. A settled operation is not followed any further.
    pub(super) fn publish(&self, operation: &Operation) {
        let mut entries = self.lock();
        let entry = entries.entry(operation.id).or_insert_with(|| Entry::new(operation.clone()));
        entry.snapshot.send_replace(Arc::new(operation.clone()));
        if operation.is_settled() {
            entries.remove(&operation.id);
        }
    }

    /// Notes how far a step is, and when that was.
    pub(super) fn progress(
        &self,
        id: OperationId,
        step: &str,
        progress: Option<Progress>,
        message: String,
        at: Timestamp,
    ) {
        if let Some(entry) = self.lock().get(&id) {
            entry.snapshot.send_modify(|operation| {
                let operation = Arc::make_mut(operation);
                operation.updated = at;
                let step = operation.step_mut(step);
                step.progress = progress.or(step.progress);
                step.say(message);
            });
        }
    }

    /// Tells the step under way that it is cancelled.
    pub(super) fn cancel(&self, id: OperationId) {
        if let Some(entry) = self.lock().get(&id) {
            entry.snapshot.send_modify(|operation| Arc::make_mut(operation).cancel_requested = true);
            entry.cancelled.cancel();
        }
    }

    /// Ends when the operation is cancelled.
    pub(super) fn cancelled(&self, id: OperationId) -> CancellationToken {
        self.lock().get(&id).map(|entry| entry.cancelled.clone()).unwrap_or_default()
    }

    pub(super) fn get(&self, id: OperationId) -> Option<Arc<Operation>> {
        self.lock().get(&id).map(|entry| Arc::clone(&entry.snapshot.borrow()))
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn watch(&self, id: OperationId) -> Option<Snapshots> {
        let receiver = self.lock().get(&id)?.snapshot.subscribe();
        let snapshots = stream::unfold((receiver, true), |(mut receiver, first)| async move {
            if !first {
                // Without a sender nothing can follow: either the last one was settled, or the engine stopped.
                receiver.changed().await.ok()?;
            }
            let snapshot = Arc::clone(&receiver.borrow_and_update());
            Some((snapshot, (receiver, false)))
        });
        Some(snapshots.boxed())
    }

    /// Lets go of all: streams end.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<OperationId, Entry>> {
        // Nothing here panics half-way through a change.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Entry ===

impl Entry {
    fn new(operation: Operation) -> Self {
        Self { snapshot: watch::Sender::new(Arc::new(operation)), cancelled: CancellationToken::new() }
    }
}
