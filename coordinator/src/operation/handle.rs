//! What others do with operations: submit, look, watch, wait, cancel, resume.

use std::{fmt, marker::PhantomData, sync::Arc};

use futures::{StreamExt, stream};
use holdfast_common::{clock::Clock, id::OperationId};
use tokio::sync::Notify;

use super::{
    Error,
    live::{Live, Snapshots},
    lock::{self, Holder},
    procedure::Procedure,
    record::{Operation, RECORDS, Request, RequestMark, State},
};
use crate::store::{Compare, Key, Op, Range, Revision, Shared, Txn, record};

/// Most operations that may be under way at a time.
const MAX_ACTIVE: usize = 1000;
/// Records looked at in one piece when listing.
const LIST_CHUNK: usize = 100;

/// Talks to the engine. Cheap to clone.
pub struct Handle<P> {
    pub(super) shared: Arc<Inner>,
    procedure: PhantomData<fn(P)>,
}

/// What the handles and the service share.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) store: Shared,
    pub(super) clock: Clock,
    pub(super) live: Arc<Live>,
    /// Something may have to be run.
    pub(super) wake: Notify,
}

/// What is to be done, and for whom.
#[derive(Debug, Clone)]
pub struct Submit<P> {
    id: OperationId,
    procedure: P,
    resource: String,
    caller: String,
    request: Option<Request>,
    compares: Vec<Compare>,
    ops: Vec<Op>,
}

/// Which operations to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only of this resource.
    pub resource: Option<String>,
    /// Only of this kind.
    pub kind: Option<String>,
    /// Only in one of these states; empty: all.
    pub states: Vec<State>,
}

/// Some operations, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// They.
    pub operations: Vec<Operation>,
    /// Give it as `after` to get those behind; none: that was all.
    pub next: Option<OperationId>,
}

// === impl Submit ===

impl<P: Procedure> Submit<P> {
    /// `caller` asks for `procedure`, which holds `resource` (such as `cluster/main`) until it has ended.
    pub fn new(procedure: P, resource: impl Into<String>, caller: impl Into<String>) -> Self {
        Self {
            id: OperationId::generate(),
            procedure,
            resource: resource.into(),
            caller: caller.into(),
            request: None,
            compares: Vec::new(),
            ops: Vec::new(),
        }
    }

    /// The id that the operation will have, for records that name it.
    pub fn id(&self) -> OperationId {
        self.id
    }

    /// A repeat of this request gets the same operation.
    #[must_use]
    pub fn request(mut self, request: Request) -> Self {
        self.request = Some(request);
        self
    }

    /// Also a condition for the operation to begin.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Written together with the operation, or not at all.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }
}

// === impl Filter ===

impl Filter {
    fn admits(&self, operation: &Operation) -> bool {
        let Self { resource, kind, states } = self;
        resource.as_ref().is_none_or(|wanted| *wanted == operation.resource)
            && kind.as_ref().is_none_or(|wanted| *wanted == operation.kind)
            && (states.is_empty() || states.contains(&operation.state))
    }
}

// === impl Handle ===

impl<P: Procedure> Handle<P> {
    pub(super) fn new(shared: Arc<Inner>) -> Self {
        Self { shared, procedure: PhantomData }
    }

    /// Stores the operation; the service runs it. A request that was made before gets the operation it made then.
    ///
    /// # Cancel safety
    /// Dropping it leaves open whether the operation was stored; a repeat with the same request id tells.
    ///
    /// # Errors
    /// [`Error::InProgress`], [`Error::RequestIdReused`], [`Error::Conflict`], [`Error::QueueFull`], those of the
    /// store.
    pub async fn submit(&self, submit: Submit<P>) -> Result<Operation, Error> {
        if let Some(request) = &submit.request
            && let Some(operation) = self.find_request(&submit.caller, request).await?
        {
            return Ok(operation);
        }
        if self.shared.live.count() >= MAX_ACTIVE {
            return Err(Error::QueueFull { max: MAX_ACTIVE });
        }
        let Submit { id, procedure, resource, caller, request, compares, ops } = submit;
        let mut operation = Operation::pending(id, &procedure, resource, caller, self.shared.clock.now())
            .map_err(Error::Encode)?;
        operation.request = request.as_ref().map(|request| request.mark().clone());
        let txn = Self::first_write(&operation, compares, ops)?;
        let outcome = self.shared.store.txn(txn).await?;
        if outcome.succeeded {
            self.shared.live.adopt(&operation);
            self.shared.wake.notify_one();
            return Ok(operation);
        }
        // A rival was first. The same request, perhaps: then its operation is ours too.
        if let Some(request) = &request
            && let Some(operation) = self.find_request(&operation.requested_by, request).await?
        {
            return Ok(operation);
        }
        match outcome.got(0) {
            Some(lock) => {
                let holder = record::decode(lock)?.value;
                Err(Error::InProgress { resource: operation.resource, holder })
            }
            None => Err(Error::Conflict { resource: operation.resource }),
        }
    }

    /// The operation that an earlier call of this request has made.
    ///
    /// Ask it before checking whether the request makes sense: the repeat of one that succeeded does not.
    ///
    /// # Errors
    /// [`Error::RequestIdReused`], those of the store.
    pub async fn find_request(&self, caller: &str, request: &Request) -> Result<Option<Operation>, Error> {
        let RequestMark { id, hash } = request.mark();
        let key = request.mark().key(caller);
        let Some(noted) = record::get::<(OperationId, RequestMark)>(&*self.shared.store, &key).await? else {
            return Ok(None);
        };
        let (operation, mark) = noted.value;
        if mark.hash != *hash {
            return Err(Error::RequestIdReused { request_id: id.clone(), operation });
        }
        self.get(operation).await.map(Some)
    }

    /// Who holds the resource now.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn holder(&self, resource: &str) -> Result<Option<Holder>, Error> {
        Ok(record::get(&*self.shared.store, &lock::key(resource)).await?.map(|record| record.value))
    }

    /// The operation as it stands, with the progress of its step.
    ///
    /// # Errors
    /// [`Error::NotFound`], those of the store.
    pub async fn get(&self, id: OperationId) -> Result<Operation, Error> {
        if let Some(live) = self.shared.live.get(id) {
            return Ok((*live).clone());
        }
        Ok(self.shared.load(id).await?.value)
    }

    /// Operations, newest first, behind `after`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(
        &self,
        filter: &Filter,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Page, Error> {
        let mut range = Range::prefix(RECORDS).limit(LIST_CHUNK).descending();
        range.after = after.map(Operation::key);
        let mut operations: Vec<Operation> = Vec::new();
        loop {
            let chunk = self.shared.store.range(range.clone()).await?;
            for kv in &chunk.records {
                let stored = record::decode::<Operation>(kv)?.value;
                let operation = self.shared.live.get(stored.id).map_or(stored, |live| (*live).clone());
                if !filter.admits(&operation) {
                    continue;
                }
                if operations.len() == limit {
                    let next = operations.last().map(|last| last.id);
                    return Ok(Page { operations, next });
                }
                operations.push(operation);
            }
            match chunk.records.last() {
                Some(last) if chunk.more => range = range.after(&last.key),
                _ => return Ok(Page { operations, next: None }),
            }
        }
    }

    /// Snapshots, from now until the operation is settled. The newest wins. The stream also ends when the engine
    /// stops.
    ///
    /// # Errors
    /// [`Error::NotFound`], those of the store.
    pub async fn watch(&self, id: OperationId) -> Result<Snapshots, Error> {
        if let Some(snapshots) = self.shared.live.watch(id) {
            return Ok(snapshots);
        }
        let operation = self.shared.load(id).await?.value;
        if !operation.is_settled() {
            // The service has not come to it yet.
            self.shared.live.adopt(&operation);
            if let Some(snapshots) = self.shared.live.watch(id) {
                return Ok(snapshots);
            }
        }
        Ok(stream::once(async move { Arc::new(operation) }).boxed())
    }

    /// Waits until the operation is settled.
    ///
    /// # Cancel safety
    /// Only waits.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::ShuttingDown`], those of the store.
    pub async fn wait(&self, id: OperationId) -> Result<Operation, Error> {
        let mut snapshots = self.watch(id).await?;
        while let Some(operation) = snapshots.next().await {
            if operation.is_settled() {
                return Ok((*operation).clone());
            }
        }
        let operation = self.shared.load(id).await?.value;
        if operation.is_settled() { Ok(operation) } else { Err(Error::ShuttingDown { id }) }
    }

    /// Asks that the operation be cancelled: its way back begins as soon as the step under way has ended. Of a
    /// blocked one: gives it up as it is, and lets go of what it holds.
    ///
    /// # Errors
    /// [`Error::NotCancellable`], [`Error::NotFound`], those of the store.
    pub async fn cancel(&self, id: OperationId) -> Result<Operation, Error> {
        loop {
            let mut found = self.shared.load(id).await?;
            let operation = &mut found.value;
            if operation.cancel_requested && !operation.is_settled() {
                return self.get(id).await;
            }
            let too_late = |why| Err(Error::NotCancellable { id, why });
            match operation.state {
                State::Succeeded | State::Failed | State::Cancelled => return too_late("it has ended"),
                State::RollingBack => return too_late("it is already undoing what it did"),
                State::Blocked => {
                    operation.state = State::Failed;
                    operation.ended = Some(self.shared.clock.now());
                    operation.skip_rest();
                }
                State::Pending | State::Running if !operation.cancellable => {
                    return too_late("it is past its point of no return, and can only go on");
                }
                State::Pending | State::Running => {}
            }
            operation.cancel_requested = true;
            operation.updated = self.shared.clock.now();
            if self.shared.replace(operation, found.revision).await?.is_some() {
                if operation.is_settled() {
                    self.shared.live.publish(operation);
                } else {
                    self.shared.live.cancel(id);
                }
                return self.get(id).await;
            }
        }
    }

    /// Tries a blocked operation's step again.
    ///
    /// # Errors
    /// [`Error::NotBlocked`], [`Error::NotFound`], those of the store.
    pub async fn resume(&self, id: OperationId) -> Result<Operation, Error> {
        loop {
            let mut found = self.shared.load(id).await?;
            let operation = &mut found.value;
            if operation.state != State::Blocked {
                return Err(Error::NotBlocked { id });
            }
            operation.state = if operation.back.is_some() { State::RollingBack } else { State::Running };
            operation.failure = operation.back.clone();
            operation.updated = self.shared.clock.now();
            if self.shared.replace(operation, found.revision).await?.is_some() {
                self.shared.live.publish(operation);
                self.shared.wake.notify_one();
                return self.get(id).await;
            }
        }
    }

    fn first_write(operation: &Operation, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Txn, Error> {
        let lock = lock::key(&operation.resource);
        let key = Operation::key(operation.id);
        let mut txn = Txn { compares, then: ops, or_else: Vec::new() }
            .when(Compare::absent(&lock))
            .then(Op::put(&lock, record::encode(&lock, &Holder::of(operation))?))
            .then(Op::put(&key, record::encode(&key, operation)?))
            .then(Op::put(Operation::active_key(operation.id), ""))
            .or_else(Op::get(&lock));
        if let Some(mark) = &operation.request {
            let key = mark.key(&operation.requested_by);
            txn = txn.when(Compare::absent(&key));
            txn = txn.then(Op::put(&key, record::encode(&key, &(operation.id, mark))?));
        }
        Ok(txn)
    }
}

impl<P> Clone for Handle<P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), procedure: PhantomData }
    }
}

impl<P> fmt::Debug for Handle<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

// === impl Inner ===

impl Inner {
    pub(super) async fn load(&self, id: OperationId) -> Result<record::Record<Operation>, Error> {
        record::get(&*self.store, &Operation::key(id)).await?.ok_or(Error::NotFound { id })
    }

    /// Writes the record back if it is still as it was read, with the lock and the indexes that its state asks for.
    /// `None`: somebody else has written it.
    pub(super) async fn replace(
        &self,
        operation: &Operation,
        read: Revision,
    ) -> Result<Option<Revision>, Error> {
        let key = Operation::key(operation.id);
        let mut txn = Txn::new()
            .when(Compare::unchanged(&key, read))
            .then(Op::put(&key, record::encode(&key, operation)?));
        let active: Key = Operation::active_key(operation.id);
        txn = match operation.state {
            State::Pending | State::Running | State::RollingBack => txn.then(Op::put(active, "")),
            State::Blocked => txn.then(Op::delete(active)),
            State::Succeeded | State::Failed | State::Cancelled => txn
                .then(Op::delete(active))
                .then(Op::delete(lock::key(&operation.resource)))
                .then(Op::put(Operation::finished_key(operation.id), "")),
        };
        let outcome = self.store.txn(txn).await?;
        Ok(outcome.succeeded.then_some(outcome.revision))
    }
}
