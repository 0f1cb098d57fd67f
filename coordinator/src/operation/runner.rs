//! Runs one operation: stores the step, runs it, stores what came of it.
//!
//! ```text
//!            ┌──────────── retry: pause, jittered ◀── failed, may be retried
//!            ▼                                        │
//!  store ▶ run ──▶ another step ──▶ store …           ├── for good, or cancelled: store the way back, run it
//!                  └─ done ──▶ store the end          └── no way back, past the point of no return: store Blocked
//! ```
//! The runner is the only writer of a record that is under way, but for [`super::Handle::cancel`]; each write
//! compares, and whoever comes second looks again.

use std::{sync::Arc, time::Duration};

use holdfast_common::{
    backoff::Backoff,
    error::{Chain, Failure, Reason, Retry},
    id::OperationId,
};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Error,
    handle::Inner,
    procedure::{self, Context, Next, Procedure, Run},
    record::{Operation, State, StepState},
};
use crate::store::{self, Revision, record::Record};

/// How long a step that was told that it is cancelled may take to end by itself.
const CANCEL_GRACE: Duration = Duration::from_secs(10);

pub(super) struct Runner<P: Procedure> {
    shared: Arc<Inner>,
    means: Arc<P::Means>,
    operation: Operation,
    revision: Revision,
    shutdown: CancellationToken,
    cancelled: CancellationToken,
}

/// The runner has to leave the operation as it is stored.
#[derive(Debug)]
enum Leave {
    Shutdown,
    Store(Error),
}

/// What became of a step, after all its tries.
enum Verdict<P> {
    Next(Next<P>),
    Failed(procedure::Error),
    Cancelled,
}

/// Somebody cancelled while the runner was about to store something else.
struct Overtaken;

/// Waits so long, or for ever.
pub(super) async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// Marks an operation whose runner is lost.
pub(super) async fn block(shared: &Inner, id: OperationId, failure: Failure) -> Result<(), Error> {
    loop {
        let mut found = shared.load(id).await?;
        if found.value.is_settled() {
            return Ok(());
        }
        mark_blocked(&mut found.value, failure.clone(), shared.clock.now());
        if shared.replace(&found.value, found.revision).await?.is_some() {
            shared.live.publish(&found.value);
            return Ok(());
        }
    }
}

fn mark_blocked(operation: &mut Operation, failure: Failure, now: Timestamp) {
    operation.end_step(StepState::Failed, now);
    operation.state = State::Blocked;
    operation.cancellable = true;
    operation.updated = now;
    let message = format!(
        "{}; it can go neither on nor back by itself: remove the cause and resume it, or cancel it to give it up \
         as it is",
        failure.message
    );
    operation.failure = Some(Failure { message, ..failure });
}

// === impl Runner ===

impl<P: Procedure> Runner<P> {
    pub(super) fn new(
        shared: &Arc<Inner>,
        means: &Arc<P::Means>,
        found: Record<Operation>,
        shutdown: CancellationToken,
    ) -> Self {
        let Record { value: operation, revision, .. } = found;
        let cancelled = shared.live.cancelled(operation.id);
        Self {
            shared: Arc::clone(shared),
            means: Arc::clone(means),
            operation,
            revision,
            shutdown,
            cancelled,
        }
    }

    pub(super) async fn run(mut self) {
        match self.drive().await {
            Ok(()) => {
                let Operation { state, failure, .. } = &self.operation;
                let failure = failure.as_ref().map(|failure| failure.message.as_str());
                tracing::info!(?state, failure, "operation: settled");
            }
            Err(Leave::Shutdown) => tracing::info!("operation: left for the next start"),
            Err(Leave::Store(error)) => {
                tracing::error!(error = %Chain(&error), "operation: cannot be stored, left as it is");
            }
        }
    }

    /// Step after step until it is settled.
    async fn drive(&mut self) -> Result<(), Leave> {
        let mut state = match serde_json::from_value::<P>(self.operation.procedure.clone()) {
            Ok(state) => state,
            Err(error) => {
                let message =
                    format!("its record cannot be read by this version of the coordinator: {error}");
                return self.settle_blocked(Failure::new(Reason::StateDamaged, message)).await;
            }
        };
        // The state whose step was just done, as long as the next one is not stored: a request to cancel that comes
        // in between still counts, even if the next state is past the point of no return.
        let mut left: Option<P> = None;
        loop {
            if let Some(from) = self.cancel_point(&state, left.as_ref()) {
                match self.turn_back(&from, procedure::Error::cancelled()).await? {
                    Some(back) => state = back,
                    None => return Ok(()),
                }
            }
            if let Err(Overtaken) = self.enter(&state, left.as_ref()).await? {
                continue;
            }
            left = None;
            match self.attempts(&state).await? {
                Verdict::Next(Next::Step(next)) => {
                    self.operation.end_step(StepState::Succeeded, self.shared.clock.now());
                    left = Some(std::mem::replace(&mut state, next));
                }
                Verdict::Next(Next::Done(summary)) => return self.finish(summary).await,
                Verdict::Failed(error) => match self.turn_back(&state, error).await? {
                    Some(back) => state = back,
                    None => return Ok(()),
                },
                Verdict::Cancelled => {}
            }
        }
    }

    /// The state to turn back from, if somebody cancelled in time.
    fn cancel_point(&self, state: &P, left: Option<&P>) -> Option<P> {
        [Some(state), left].into_iter().flatten().find(|state| self.must_cancel(state)).cloned()
    }

    fn must_cancel(&self, state: &P) -> bool {
        let Operation { cancel_requested, back, .. } = &self.operation;
        *cancel_requested && back.is_none() && state.may_cancel()
    }

    /// Stores that this state's step is about to run.
    async fn enter(&mut self, state: &P, left: Option<&P>) -> Result<Result<(), Overtaken>, Leave> {
        let now = self.shared.clock.now();
        let procedure = serde_json::to_value(state).map_err(|error| Leave::Store(Error::Encode(error)))?;
        let operation = &mut self.operation;
        let going_back = operation.back.is_some();
        operation.state = if going_back { State::RollingBack } else { State::Running };
        operation.cancellable = !going_back && state.may_cancel();
        operation.procedure = procedure;
        operation.add_steps(state.steps());
        let step = operation.step_mut(&state.step());
        step.state = StepState::Running;
        step.started.get_or_insert(now);
        step.ended = None;
        step.attempts += 1;
        self.persist(state, left).await
    }

    /// Runs the stored step until it is done, its bounds are reached, or it is cancelled.
    async fn attempts(&mut self, state: &P) -> Result<Verdict<P>, Leave> {
        let limits = state.limits();
        let mut deadline = Instant::now() + limits.deadline;
        let mut tried = 0;
        let mut pause = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        loop {
            tried += 1;
            let error = match self.attempt(state, deadline).await? {
                Verdict::Failed(error) => error,
                verdict => return Ok(verdict),
            };
            if self.must_cancel(state) {
                return Ok(Verdict::Cancelled);
            }
            let wait = match error.failure().retry {
                Retry::Never if !error.waits_for_room() => return Ok(Verdict::Failed(error)),
                Retry::Never => pause.next_wait(),
                Retry::Later(asked) => pause.next_wait().max(asked.unwrap_or_default()),
            };
            if error.waits_for_room() {
                // A full disk of the coordinator is nobody's failure.
                (tried, deadline) = (0, Instant::now() + limits.deadline);
            } else if tried >= limits.attempts || Instant::now() + wait >= deadline {
                return Ok(Verdict::Failed(error));
            }
            tracing::warn!(step = state.step(), tried, error = %Chain(&error), "operation: step failed, trying again");
            self.note_failure(state, &error);
            // All arms are cancel-safe.
            tokio::select! {
                () = self.shutdown.cancelled() => return Err(Leave::Shutdown),
                () = self.cancelled.cancelled(), if state.may_cancel() && self.operation.back.is_none() => {
                    self.operation.cancel_requested = true;
                    return Ok(Verdict::Cancelled);
                }
                () = tokio::time::sleep(wait) => {}
            }
            if let Err(Overtaken) = self.enter(state, None).await? {
                return Ok(Verdict::Cancelled);
            }
        }
    }

    async fn attempt(&self, state: &P, deadline: Instant) -> Result<Verdict<P>, Leave> {
        let name = state.step();
        let step = self.operation.steps.iter().find(|step| step.name == name);
        let cancellable = state.may_cancel() && self.operation.back.is_none();
        // Past the point of no return nobody may think that it can be cancelled.
        let cancelled = if cancellable { self.cancelled.clone() } else { CancellationToken::new() };
        let run = Run {
            operation: self.operation.id,
            attempt: step.map_or(1, |step| step.attempts),
            round: step.map_or(0, |step| step.round),
            step: name,
            cancelled: cancelled.clone(),
            live: Arc::clone(&self.shared.live),
            clock: self.shared.clock.clone(),
        };
        let context = Context::new(Arc::clone(&self.means), run);
        let given_up = async {
            cancelled.cancelled().await;
            tokio::time::sleep(CANCEL_GRACE).await;
        };
        // The step is dropped if another arm wins, which procedures are told to bear.
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Err(Leave::Shutdown),
            result = Box::pin(state.clone().next(&context)) => Ok(match result {
                Ok(next) => Verdict::Next(next),
                Err(error) => Verdict::Failed(error),
            }),
            () = given_up => Ok(Verdict::Cancelled),
            () = tokio::time::sleep_until(deadline) => {
                let message = format!("step `{}` was not done within {:?}", state.step(), state.limits().deadline);
                Ok(Verdict::Failed(Failure::new(Reason::CommandTimedOut, message).into()))
            }
        }
    }

    /// What an operator sees while the runner waits for the next try; stored together with it.
    fn note_failure(&mut self, state: &P, error: &procedure::Error) {
        let step = self.operation.step_mut(&state.step());
        step.say(format!("try {} failed: {}", step.attempts, error.failure().message));
        if error.wants_fresh_commands() {
            step.round += 1;
        }
        let message = step.message.clone();
        let now = self.shared.clock.now();
        self.shared.live.progress(self.operation.id, &state.step(), None, message, now);
    }

    /// Begins the way back. `None`: there is none, and the operation is settled.
    async fn turn_back(&mut self, state: &P, why: procedure::Error) -> Result<Option<P>, Leave> {
        let now = self.shared.clock.now();
        let was_back = self.operation.back.is_some();
        let cancelled = self.operation.cancel_requested && why.failure().reason == Reason::Cancelled;
        let failure = why.failure().clone();
        tracing::warn!(step = state.step(), error = %Chain(&why), "operation: step given up");
        if was_back {
            return self.settle_blocked(failure).await.map(|()| None);
        }
        let back = state.way_back(&why);
        if back.is_none() && !state.may_cancel() {
            return self.settle_blocked(failure).await.map(|()| None);
        }
        let step = self.operation.step_mut(&state.step());
        step.say(failure.message.clone());
        self.operation.end_step(if cancelled { StepState::Skipped } else { StepState::Failed }, now);
        self.operation.skip_rest();
        self.operation.back = Some(failure.clone());
        self.operation.failure = Some(failure);
        if back.is_none() {
            self.finish_back().await?;
        }
        Ok(back)
    }

    async fn finish(&mut self, summary: serde_json::Value) -> Result<(), Leave> {
        self.operation.end_step(StepState::Succeeded, self.shared.clock.now());
        if self.operation.back.is_some() {
            return self.finish_back().await;
        }
        self.operation.state = State::Succeeded;
        self.operation.result = (!summary.is_null()).then_some(summary);
        self.settle().await
    }

    async fn finish_back(&mut self) -> Result<(), Leave> {
        let operation = &mut self.operation;
        let cancelled = operation.cancel_requested
            && operation.back.as_ref().is_some_and(|failure| failure.reason == Reason::Cancelled);
        operation.state = if cancelled { State::Cancelled } else { State::Failed };
        self.settle().await
    }

    async fn settle_blocked(&mut self, failure: Failure) -> Result<(), Leave> {
        mark_blocked(&mut self.operation, failure, self.shared.clock.now());
        self.settle().await
    }

    async fn settle(&mut self) -> Result<(), Leave> {
        if self.operation.is_finished() {
            self.operation.skip_rest();
            self.operation.ended = Some(self.shared.clock.now());
            self.operation.cancellable = false;
        }
        // A request to cancel that came too late changes nothing.
        while self.store().await?.is_err() {}
        Ok(())
    }

    /// Stores the record before a step; a request to cancel that was first, and still may, goes before.
    async fn persist(&mut self, state: &P, left: Option<&P>) -> Result<Result<(), Overtaken>, Leave> {
        loop {
            match self.store().await? {
                Ok(()) => return Ok(Ok(())),
                Err(Overtaken) if self.cancel_point(state, left).is_some() => return Ok(Err(Overtaken)),
                Err(Overtaken) => {}
            }
        }
    }

    /// Stores the record and tells the watchers. However long the store cannot: it waits, and loses nothing.
    async fn store(&mut self) -> Result<Result<(), Overtaken>, Leave> {
        let mut pause = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        self.operation.updated = self.shared.clock.now();
        self.keep_progress();
        loop {
            let error = match self.shared.replace(&self.operation, self.revision).await {
                Ok(Some(revision)) => {
                    self.revision = revision;
                    self.shared.live.publish(&self.operation);
                    return Ok(Ok(()));
                }
                Ok(None) => match self.look_again().await {
                    Ok(verdict) => return Ok(verdict),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let transient = matches!(&error, Error::Store(error) if error.is_transient());
            if !transient {
                return Err(Leave::Store(error));
            }
            tracing::warn!(error = %Chain(&error), "operation: cannot store the step, trying again");
            // Both arms are cancel-safe.
            tokio::select! {
                () = self.shutdown.cancelled() => return Err(Leave::Shutdown),
                () = tokio::time::sleep(pause.next_wait()) => {}
            }
        }
    }

    /// Somebody has written the record: a request to cancel, or ourselves, without having learnt of it.
    async fn look_again(&mut self) -> Result<Result<(), Overtaken>, Error> {
        let found = self.shared.load(self.operation.id).await?;
        self.revision = found.revision;
        if found.value == self.operation {
            self.shared.live.publish(&self.operation);
            return Ok(Ok(()));
        }
        self.operation.cancel_requested |= found.value.cancel_requested;
        Ok(Err(Overtaken))
    }

    /// What the step has said so far is known to the watchers only.
    fn keep_progress(&mut self) {
        let Some(live) = self.shared.live.get(self.operation.id) else { return };
        for step in &mut self.operation.steps {
            if let Some(seen) = live.steps.iter().find(|seen| seen.name == step.name)
                && seen.state == StepState::Running
            {
                step.progress = seen.progress;
                // A failed one has its failure to tell, one that is done has nothing.
                if !matches!(step.state, StepState::Failed | StepState::Succeeded) {
                    step.message.clone_from(&seen.message);
                }
            }
        }
    }
}

impl From<store::Error> for Leave {
    fn from(error: store::Error) -> Self {
        Self::Store(error.into())
    }
}
