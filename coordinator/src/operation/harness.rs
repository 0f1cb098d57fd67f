//! The one harness for all procedures: proves that a program of steps bears what will happen to it.
//!
//! [`walk`] first runs the procedure undisturbed, to learn its steps and how often it writes. Then it runs it again
//! and again, each time in a fresh world, with
//!
//! - every step run twice, with its first answer lost;
//! - at each step in turn: refused; done but reported failed; done but reported failed for the moment; cancelled;
//! - and for each of these, the coordinator stopped before and after every single write to the store (before: what
//!   the step did is done, but nobody knows), and started again.
//!
//! After each stop, and at each end, the [`Subject`] looks whether what must always hold does. An operation that
//! ended without success must have left a world in which it can be repeated with success; one that is blocked must
//! be able to go on when it is resumed without the trouble.
//!
//! Use it under paused time: `#[tokio::test(start_paused = true)]`.

#![allow(clippy::expect_used, reason = "a harness for tests")]

mod faulty;
mod stopping;

pub use stopping::Stopping;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures::future::BoxFuture;
use holdfast_common::id::OperationId;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use self::faulty::{Faulty, Tried};
use super::{
    Operation, Request, Service, State, Submit, lock,
    procedure::Procedure,
    record::{ACTIVE, RECORDS},
};
use crate::store::{self, Op, Range, Shared, memory::Memory};

/// Longest (paused) time that an operation may take to settle.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A procedure to be tried, and the world it acts on.
pub trait Subject: Send + Sync {
    /// The procedure.
    type Procedure: Procedure;
    /// What outlives the coordinator: nodes and their data.
    type World: Send + Sync;

    /// A fresh world.
    fn world(&self) -> Self::World;

    /// What a coordinator that just started has: nothing of the memory of the one before.
    fn means(&self, world: &Arc<Self::World>, store: &Shared) -> Arc<<Self::Procedure as Procedure>::Means>;

    /// The procedure, about to begin.
    fn procedure(&self, world: &Self::World) -> Self::Procedure;

    /// What the request writes in the transaction that stores the operation.
    fn writes(&self, _world: &Self::World) -> Vec<Op> {
        Vec::new()
    }

    /// What must hold now, whatever has happened: `operation` is running, or settled in some state. Says what does
    /// not.
    fn invariants<'a>(
        &'a self,
        world: &'a Self::World,
        store: &'a Shared,
        operation: &'a Operation,
    ) -> BoxFuture<'a, Result<(), String>>;

    /// Whether the same procedure must succeed after it failed or was cancelled.
    fn can_be_repeated(&self) -> bool {
        true
    }
}

/// What was walked through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Runs, each in a fresh world.
    pub runs: usize,
    /// Steps of the undisturbed run.
    pub steps: usize,
    /// Its writes to the store.
    pub writes: u64,
}

/// What the procedure did not bear.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{scenario}: {what}")]
pub struct Violation {
    /// What was done to it.
    pub scenario: String,
    /// What did not hold.
    pub what: String,
}

/// What is done to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scenario {
    fault: Fault,
    stop: Option<Stop>,
}

/// When a coordinator is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The n-th write does not take place any more.
    Before(u64),
    /// The n-th write takes place, and nobody learns of it.
    After(u64),
}

/// What a coordinator is asked for.
#[derive(Debug, Clone, Copy)]
enum Ask {
    Submit(&'static str),
    Resume(OperationId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Every step runs twice.
    Twice,
    /// At the n-th step.
    At(usize, How),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Refused,
    DoneButFailed,
    DoneButRetried,
    Cancelled,
}

/// A run, seen from the procedure.
#[derive(Debug)]
struct Plan {
    fault: Fault,
    /// States in the order in which they were first seen: a repeat of one is the same visit.
    visits: Mutex<Vec<String>>,
    retried: Mutex<bool>,
    /// What came of cancelling.
    cancelled: Mutex<Option<bool>>,
}

struct Ran {
    operation: Operation,
    visits: usize,
    writes: u64,
}

/// Walks a procedure through everything that it must bear.
///
/// # Errors
/// The first thing that it did not.
pub async fn walk<S: Subject>(subject: &S) -> Result<Report, Violation> {
    let calm = run(subject, Scenario { fault: Fault::None, stop: None }).await?;
    let mut runs = 1;
    let steps = calm.visits;
    let ways = [How::Refused, How::DoneButFailed, How::DoneButRetried, How::Cancelled];
    let faults = (0..steps).flat_map(|step| ways.map(|how| Fault::At(step, how)));
    for fault in [Fault::None, Fault::Twice].into_iter().chain(faults) {
        let whole = run(subject, Scenario { fault, stop: None }).await?;
        for write in 1..=whole.writes {
            for stop in [Stop::Before(write), Stop::After(write)] {
                run(subject, Scenario { fault, stop: Some(stop) }).await?;
                runs += 1;
            }
        }
        runs += 1;
    }
    Ok(Report { runs, steps, writes: calm.writes })
}

async fn run<S: Subject>(subject: &S, scenario: Scenario) -> Result<Ran, Violation> {
    let violation = |what: String| Violation { scenario: scenario.to_string(), what };
    let world = Arc::new(subject.world());
    let store = Memory::shared();
    let plan = Arc::new(Plan::new(scenario.fault));
    let stopping = Arc::new(Stopping::new(Arc::clone(&store), scenario.stop));
    let procedure = subject.procedure(&world);
    let life = |on: Shared, plan: &Arc<Plan>, ask: Ask| {
        live(
            subject.means(&world, &on),
            on,
            Arc::clone(plan),
            (procedure.clone(), subject.writes(&world)),
            ask,
        )
    };
    // The first life ends with the operation, or with the write it may not survive.
    let first = tokio::select! {
        biased;
        ended = life(Arc::clone(&stopping) as Shared, &plan, Ask::Submit("first")) => Some(ended.map_err(violation)?),
        () = stopping.stopped.cancelled() => None,
    };
    let ended = match first {
        Some(ended) => ended,
        None => {
            if let Some(stored) = only_operation(&store).await {
                subject.invariants(&world, &store, &stored).await.map_err(|what| {
                    violation(format!("after the stop, in state {:?}: {what}", stored.state))
                })?;
            }
            life(Arc::clone(&store), &plan, Ask::Submit("first")).await.map_err(violation)?
        }
    };
    subject.invariants(&world, &store, &ended).await.map_err(|what| {
        let why = ended.failure.as_ref().map_or("", |failure| failure.message.as_str());
        violation(format!("ended as {:?} ({why}): {what}", ended.state))
    })?;
    engine_keeps_its_word(&store, &ended).await.map_err(violation)?;
    plan.judge(&ended).map_err(violation)?;
    let calm = Arc::new(Plan::new(Fault::None));
    if ended.state == State::Blocked {
        let resumed = life(Arc::clone(&store), &calm, Ask::Resume(ended.id)).await.map_err(violation)?;
        if !resumed.is_finished() {
            let why = resumed.failure.map_or(String::new(), |failure| failure.message);
            return Err(violation(format!("blocked, and again after it was resumed: {why}")));
        }
        subject
            .invariants(&world, &store, &resumed)
            .await
            .map_err(|what| violation(format!("blocked, resumed, ended as {:?}: {what}", resumed.state)))?;
    }
    if matches!(ended.state, State::Failed | State::Cancelled) && subject.can_be_repeated() {
        let again = life(Arc::clone(&store), &calm, Ask::Submit("again")).await.map_err(violation)?;
        if again.state != State::Succeeded {
            let why = again.failure.map_or(String::new(), |failure| failure.message);
            return Err(violation(format!("ended as {:?}, and the repeat failed: {why}", ended.state)));
        }
        subject
            .invariants(&world, &store, &again)
            .await
            .map_err(|what| violation(format!("after a repeat: {what}")))?;
    }
    let visits = plan.visits.lock().unwrap_or_else(PoisonError::into_inner).len();
    Ok(Ran { operation: ended, visits, writes: stopping.writes.load(Ordering::Relaxed) }.checked())
}

/// A coordinator's life, up to the end of the operation. Dropping it is the coordinator's sudden end.
async fn live<P: Procedure>(
    means: Arc<P::Means>,
    store: Shared,
    plan: Arc<Plan>,
    (procedure, writes): (P, Vec<Op>),
    ask: Ask,
) -> Result<Operation, String> {
    let handle_for_steps = Arc::new(std::sync::OnceLock::new());
    let means = Arc::new(Tried { means, plan, handle: Arc::clone(&handle_for_steps) });
    let service = Service::<Faulty<P>>::new(store, means);
    let handle = service.handle();
    handle_for_steps.set(handle.clone()).map_err(|_| "set twice")?;
    let shutdown = CancellationToken::new();
    let operator = async {
        let operation = match ask {
            Ask::Submit(request) => {
                let request = Request::new(request, b"the same").map_err(|error| error.to_string())?;
                let submit =
                    Submit::new(Faulty(procedure), "cluster/main", "operator/harness").request(request);
                handle.submit(writes.into_iter().fold(submit, Submit::then)).await
            }
            Ask::Resume(id) => handle.resume(id).await,
        };
        let operation = operation.map_err(|error| error.to_string())?;
        match tokio::time::timeout(PATIENCE, handle.wait(operation.id)).await {
            Ok(ended) => ended.map_err(|error| error.to_string()),
            Err(_) => Err(format!("not settled after {PATIENCE:?}")),
        }
    };
    // Polled in one task, so that dropping this drops all of the coordinator's own work with it.
    tokio::select! {
        ended = operator => ended,
        () = service.run(shutdown) => Err("the service ended by itself".to_owned()),
    }
}

async fn only_operation(store: &Shared) -> Option<Operation> {
    let found = store::record::list::<Operation>(&**store, RECORDS).await.expect("the memory store reads");
    found.into_iter().next().map(|record| record.value)
}

async fn engine_keeps_its_word(store: &Shared, ended: &Operation) -> Result<(), String> {
    let stored = only_operation(store).await;
    if stored.as_ref() != Some(ended) {
        return Err(format!("what is stored is not what was shown: {stored:?}, {ended:?}"));
    }
    let locked = store.get(&lock::key(&ended.resource)).await.map_err(|error| error.to_string())?.is_some();
    let active = store.range(Range::prefix(ACTIVE)).await.map_err(|error| error.to_string())?;
    if locked == ended.is_finished() || !active.records.is_empty() {
        return Err(format!("ended as {:?}, locked {locked}, active {}", ended.state, active.records.len()));
    }
    Ok(())
}

// === impl Ran ===

impl Ran {
    fn checked(self) -> Self {
        debug_assert!(self.operation.is_settled(), "runs end with a settled operation");
        self
    }
}

// === impl Plan ===

impl Plan {
    fn new(fault: Fault) -> Self {
        Self { fault, visits: Mutex::default(), retried: Mutex::default(), cancelled: Mutex::default() }
    }

    fn visit(&self, state: &impl Serialize) -> usize {
        let state = serde_json::to_string(state).expect("states are JSON");
        let mut visits = self.visits.lock().unwrap_or_else(PoisonError::into_inner);
        visits.iter().position(|seen| *seen == state).unwrap_or_else(|| {
            visits.push(state);
            visits.len() - 1
        })
    }

    fn first_retry(&self) -> bool {
        !std::mem::replace(&mut *self.retried.lock().unwrap_or_else(PoisonError::into_inner), true)
    }

    fn note_cancelled(&self, accepted: Option<bool>) -> Option<bool> {
        std::mem::replace(&mut *self.cancelled.lock().unwrap_or_else(PoisonError::into_inner), accepted)
    }

    /// Whether the operation could end so, given what was done to it.
    fn judge(&self, ended: &Operation) -> Result<(), String> {
        let cancelled = *self.cancelled.lock().unwrap_or_else(PoisonError::into_inner);
        let why = ended.failure.as_ref().map_or("", |failure| failure.message.as_str());
        let legal = match (self.fault, cancelled) {
            (Fault::None | Fault::Twice | Fault::At(_, How::DoneButRetried), _) => {
                ended.state == State::Succeeded
            }
            (Fault::At(_, How::Refused | How::DoneButFailed), _) => {
                matches!(ended.state, State::Failed | State::Blocked)
            }
            // The last step may be done before the request is seen.
            (Fault::At(_, How::Cancelled), Some(true)) => {
                ended.state == State::Cancelled || (ended.state == State::Succeeded && ended.result.is_some())
            }
            (Fault::At(_, How::Cancelled), _) => ended.state == State::Succeeded,
        };
        if legal { Ok(()) } else { Err(format!("ended as {:?} ({why})", ended.state)) }
    }
}

// === impl Scenario ===

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault {
            Fault::None => f.write_str("undisturbed")?,
            Fault::Twice => f.write_str("every step twice")?,
            Fault::At(step, how) => write!(f, "step {} {how:?}", step + 1)?,
        }
        match self.stop {
            Some(Stop::Before(write)) => write!(f, ", coordinator stopped before write {write}"),
            Some(Stop::After(write)) => write!(f, ", coordinator stopped after write {write}"),
            None => Ok(()),
        }
    }
}
