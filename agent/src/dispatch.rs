//! Commands: each is applied at most once, its outcome kept until the coordinator has it.
//!
//! ```text
//! Order::Run ─► known? ─ yes ─► told again
//!                 │ no
//!                 ├─ deadline, generation, term, queue ─ refused ─► outcome recorded ─► outbox
//!                 ▼
//!            recorded (fsync) ─► waits for its cluster ─► Execute ─► outcome recorded (fsync) ─► outbox
//! ```
//!
//! One task owns the journal; commands run beside it, one at a time for each cluster and few at once. What was begun when
//! the agent ended is run again under the same id at the next start: every payload is made so that a repeat of the same
//! command goes on or finds it done. Not here: what a command does (the drivers), and what crosses the wire.

pub mod journal;
mod queue;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use holdfast_common::clock::Clock;
use holdfast_common::command::{Command, Outcome, Payload, Progress, Success};
use holdfast_common::error::{Chain, Classify, Failure, Reason};
use holdfast_common::id::{ClusterId, CommandId};
use holdfast_common::report::Severity;
use holdfast_common::term::Term;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::journal::{Begun, Ended, Journal, State, first_sequence};
use self::queue::{Queue, Waiting};
use crate::engine::Work;
use crate::host::files::Files;
use crate::outbox::{Outbox, node_event};
use crate::statefile;
use crate::terms::{Finding, Terms};

/// The most commands that run at once.
pub const MAX_RUNNING: usize = 4;
/// The most commands that wait.
pub const MAX_WAITING: usize = 32;
/// The most commands whose end the coordinator has not acknowledged.
pub const MAX_OPEN: usize = 1000;
/// How long a cancelled command may take to end.
const CANCEL_GRACE: Duration = Duration::from_secs(60);
/// How often a machine is told to boot again by one command: where that does not change its boot id, nobody would ever stop.
const MAX_REBOOTS: u32 = 2;
const INBOX: usize = 16;

/// Does what a command says. The engines do; tests and simulations have their own.
pub trait Execute: Send + Sync + 'static {
    /// Runs a payload to its end. Safe to repeat with the same command; ends soon once `work` is cancelled.
    fn execute<'a>(&'a self, payload: &'a Payload, work: &'a Work) -> BoxFuture<'a, Outcome>;

    /// What came of a payload that an earlier run of the agent has begun, where that is plain at once.
    fn is_done(&self, _payload: &Payload) -> Option<Success> {
        None
    }
}

/// What the coordinator says about commands.
#[derive(Debug)]
pub enum Order {
    Run(Box<Command>),
    /// A command arrived that cannot be understood.
    Refuse(CommandId, Failure),
    Cancel(CommandId),
    Acknowledged(CommandId),
}

/// Hands orders to the [`Service`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    inbox: mpsc::Sender<Order>,
    unfinished: watch::Receiver<Vec<CommandId>>,
}

/// Owns the journal and all commands at work.
pub struct Service {
    inbox: mpsc::Receiver<Order>,
    unfinished: watch::Sender<Vec<CommandId>>,
    means: Means,
    journal: Journal,
    queue: Queue,
    running: JoinSet<(CommandId, Outcome)>,
    at_work: HashMap<CommandId, AtWork>,
    /// Left out to prove the tests: an outcome is told before it is recorded.
    #[cfg(test)]
    tells_first: bool,
}

/// What the service uses.
#[derive(Clone)]
pub struct Means {
    pub execute: Arc<dyn Execute>,
    pub terms: Arc<Terms>,
    pub outbox: Outbox,
    pub clock: Clock,
}

/// A command that runs.
#[derive(Debug)]
struct AtWork {
    cancelled: CancellationToken,
    cluster: Option<ClusterId>,
    sequence: Arc<AtomicU64>,
    task: tokio::task::Id,
}

// === impl Handle ===

impl Handle {
    /// Waits for room, then hands over. An order to a service that has ended is lost, as if the agent had been.
    ///
    /// # Cancel safety
    /// A cancelled call has handed over nothing.
    pub async fn give(&self, order: Order) {
        let _ended = self.inbox.send(order).await;
    }

    /// Commands begun and not ended.
    pub fn unfinished(&self) -> Vec<CommandId> {
        self.unfinished.borrow().clone()
    }
}

// === impl Service ===

impl Service {
    /// Reads the journal, and takes up what an earlier run of the agent left.
    ///
    /// # Errors
    /// Where the disk cannot be read; damage is a finding.
    pub async fn open(
        files: Files,
        state: &Path,
        means: Means,
    ) -> Result<(Self, Handle, Vec<Finding>), statefile::Error> {
        let (journal, found) = Journal::open(files, state, means.clock.clone()).await?;
        let (give, inbox) = mpsc::channel(INBOX);
        let (tell_unfinished, unfinished) = watch::channel(journal.unfinished());
        let mut service = Self {
            inbox,
            unfinished: tell_unfinished,
            means,
            journal,
            queue: Queue::new(),
            running: JoinSet::new(),
            at_work: HashMap::new(),
            #[cfg(test)]
            tells_first: false,
        };
        for Ended { command_id, sequence, outcome, acknowledged: _ } in found.unacknowledged {
            service.means.outbox.outcome(command_id, sequence, outcome);
        }
        for begun in found.begun {
            service.resume(begun).await;
        }
        Ok((service, Handle { inbox: give, unfinished }, found.findings))
    }

    /// Works until it is stopped. What runs then is dropped, and run again at the next start.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.start_waiting().await;
            self.unfinished.send_if_modified(|known| {
                let unfinished = self.journal.unfinished();
                let changed = *known != unfinished;
                *known = unfinished;
                changed
            });
            // All arms are cancel-safe: a token, a join set, a channel.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(ended) = self.running.join_next_with_id() => self.ended(ended).await,
                order = self.inbox.recv() => match order {
                    Some(order) => self.order(order).await,
                    None => return,
                },
            }
        }
    }

    async fn order(&mut self, order: Order) {
        match order {
            Order::Run(command) => self.take(*command).await,
            Order::Refuse(id, failure) => {
                if self.journal.state(id).is_none() {
                    self.refuse(id, failure).await;
                }
            }
            Order::Cancel(id) => self.cancel(id).await,
            Order::Acknowledged(id) => {
                if let Err(error) = self.journal.acknowledge(id).await {
                    tracing::warn!(command = %id, error = %Chain(&error), "record an acknowledgement");
                }
                self.means.outbox.acknowledge(id);
            }
        }
    }

    /// A command arrives, for the first time or again.
    async fn take(&mut self, command: Command) {
        let id = command.id;
        match self.journal.state(id) {
            // It is told to whoever listens as it goes.
            Some(State::Begun) => self.means.outbox.repeat(id),
            Some(State::Ended { sequence, .. }) => self.tell_again(id, sequence).await,
            None if self.journal.open_count() >= MAX_OPEN => {
                tracing::warn!(command = %id, "not taken: too many outcomes wait for the coordinator");
            }
            None => match self.admit(&command).await {
                Ok(()) => self.begin(Begun { command, runs: 1 }).await,
                Err(failure) => self.refuse(id, failure).await,
            },
        }
    }

    async fn tell_again(&self, id: CommandId, sequence: u64) {
        let outcome = match self.journal.ended(id).await {
            Ok(Some(ended)) => ended.outcome,
            Ok(None) => {
                Err(Failure::new(Reason::StateDamaged, "the command has ended, but its outcome was not kept"))
            }
            Err(error) => Err(error.to_failure()),
        };
        self.means.outbox.outcome(id, sequence, outcome);
        self.means.outbox.repeat(id);
    }

    /// Whether a command may run now. Raises the accepted term.
    async fn admit(&self, command: &Command) -> Result<(), Failure> {
        if command.deadline <= self.means.clock.now() {
            let message =
                format!("the command came after its deadline {}; it was not begun", command.deadline);
            return Err(Failure::new(Reason::CommandTimedOut, message));
        }
        if self.queue.is_full() {
            let message = format!("{MAX_WAITING} commands wait on this node already; try again later");
            return Err(Failure::new(Reason::QueueFull, message).retry_after(Duration::from_secs(5)));
        }
        let term = term_of(command).map_err(|failure| *failure)?;
        let cluster = command.payload.cluster_id();
        let accepted = self.means.terms.accept_command(command.coordinator_generation, cluster, term).await;
        accepted.map_err(|error| error.to_failure())
    }

    /// Records the intent, then lets it wait for its turn.
    async fn begin(&mut self, begun: Begun) {
        let waiting = Waiting { command: Arc::new(begun.command.clone()), runs: begun.runs };
        let id = begun.command.id;
        match self.journal.begin(begun).await {
            Ok(()) => self.queue.push(waiting),
            Err(error) => self.refuse(id, error.to_failure()).await,
        }
    }

    /// Goes on with what an earlier run of the agent began.
    async fn resume(&mut self, begun: Begun) {
        let Begun { command, runs } = begun;
        let runs = runs.saturating_add(1);
        tracing::info!(command = %command.id, kind = command.payload.kind(), runs, "resume a command");
        // Also after its deadline.
        if let Some(success) = self.means.execute.is_done(&command.payload) {
            return self.end(command.id, first_sequence(runs), Ok(success)).await;
        }
        if matches!(command.payload, Payload::RebootNode(_)) && runs > MAX_REBOOTS {
            let message = format!(
                "the machine was told to boot again {MAX_REBOOTS} times, and its boot id is still the same"
            );
            let failure = Failure::new(Reason::PreconditionFailed, message);
            return self.end(command.id, first_sequence(runs), Err(failure)).await;
        }
        match self.admit(&command).await {
            Ok(()) => self.begin(Begun { command, runs }).await,
            Err(failure) => self.end(command.id, first_sequence(runs), Err(failure)).await,
        }
    }

    async fn refuse(&mut self, id: CommandId, failure: Failure) {
        tracing::warn!(command = %id, reason = %failure.reason, error = %failure.message, "refuse a command");
        self.end(id, first_sequence(1), Err(failure)).await;
    }

    /// Records an outcome, then tells it.
    async fn end(&mut self, command_id: CommandId, sequence: u64, outcome: Outcome) {
        #[cfg(test)]
        if self.tells_first {
            self.means.outbox.outcome(command_id, sequence, outcome.clone());
        }
        let ended = Ended { command_id, sequence, outcome: outcome.clone(), acknowledged: None };
        if let Err(error) = self.journal.end(ended).await {
            // It stands in memory, and is told; should the agent end now, the command is run again and finds itself done.
            tracing::error!(command = %command_id, error = %Chain(&error), "record an outcome");
            let message =
                format!("the outcome of command {command_id} could not be recorded: {}", Chain(&error));
            let event = node_event(&self.means.clock, Severity::Error, "JOURNAL_UNWRITABLE", message);
            self.means.outbox.event(event);
        }
        self.means.outbox.outcome(command_id, sequence, outcome);
    }

    async fn cancel(&mut self, id: CommandId) {
        if let Some(at_work) = self.at_work.get(&id) {
            at_work.cancelled.cancel();
        } else if let Some(Waiting { runs, .. }) = self.queue.remove(id) {
            let failure = Failure::new(Reason::Cancelled, "cancelled before it began");
            self.end(id, first_sequence(runs), Err(failure)).await;
        }
    }

    /// Begins what waits and may run.
    async fn start_waiting(&mut self) {
        while self.running.len() < MAX_RUNNING {
            let busy = |cluster| self.at_work.values().any(|at_work| at_work.cluster == cluster);
            let Some(Waiting { command, runs }) = self.queue.pop(busy) else { return };
            let now = self.means.clock.now();
            if command.deadline <= now {
                let failure =
                    Failure::new(Reason::CommandTimedOut, "its deadline passed while it waited for its turn");
                self.end(command.id, first_sequence(runs), Err(failure)).await;
                continue;
            }
            let left = Duration::try_from(command.deadline.duration_since(now)).unwrap_or(Duration::ZERO);
            self.start(command, runs, left);
        }
    }

    fn start(&mut self, command: Arc<Command>, runs: u32, left: Duration) {
        let (id, cluster) = (command.id, command.payload.cluster_id());
        let sequence = Arc::new(AtomicU64::new(first_sequence(runs)));
        let cancelled = CancellationToken::new();
        let (outbox, numbers) = (self.means.outbox.clone(), Arc::clone(&sequence));
        let work = Work::new(id, cancelled.clone(), move |progress: Progress| {
            outbox.progress(id, numbers.fetch_add(1, Ordering::Relaxed), progress);
        });
        let execute = Arc::clone(&self.means.execute);
        tracing::info!(command = %id, kind = command.payload.kind(), runs, "run a command");
        let task =
            self.running.spawn(async move { (id, work_on(execute.as_ref(), &command, &work, left).await) });
        self.at_work.insert(id, AtWork { cancelled, cluster, sequence, task: task.id() });
    }

    async fn ended(
        &mut self,
        ended: Result<(tokio::task::Id, (CommandId, Outcome)), tokio::task::JoinError>,
    ) {
        let (id, outcome) = match ended {
            Ok((_, (id, outcome))) => (id, outcome),
            Err(error) => {
                let task = error.id();
                let Some(id) =
                    self.at_work.iter().find(|(_, at_work)| at_work.task == task).map(|(id, _)| *id)
                else {
                    return;
                };
                (id, Err(Failure::internal(&error)))
            }
        };
        let Some(at_work) = self.at_work.remove(&id) else { return };
        match &outcome {
            Ok(_) => tracing::info!(command = %id, "a command is done"),
            Err(failure) => {
                tracing::warn!(command = %id, reason = %failure.reason, error = %failure.message, "a command failed");
            }
        }
        self.end(id, at_work.sequence.fetch_add(1, Ordering::Relaxed), outcome).await;
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service")
            .field("journal", &self.journal)
            .field("at_work", &self.at_work)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Means {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Means").field("terms", &self.terms).finish_non_exhaustive()
    }
}

/// Runs a command until it ends, its time is over, or it is cancelled; then it has a grace to end by itself.
async fn work_on(execute: &dyn Execute, command: &Command, work: &Work, left: Duration) -> Outcome {
    let mut deed = execute.execute(&command.payload, work);
    // The deed is kept across the arms; the others may be dropped at any time.
    let reason = tokio::select! {
        outcome = &mut deed => return outcome,
        () = work.cancelled.cancelled() => Reason::Cancelled,
        () = tokio::time::sleep(left) => Reason::CommandTimedOut,
    };
    work.cancelled.cancel();
    match tokio::time::timeout(CANCEL_GRACE, deed).await {
        Ok(Err(failure)) if failure.reason == Reason::Cancelled => Err(Failure { reason, ..failure }),
        Ok(outcome) => outcome,
        Err(_) => {
            let seconds = CANCEL_GRACE.as_secs();
            Err(Failure::new(
                reason,
                format!("it was told to end and did not within {seconds} s; it was dropped"),
            ))
        }
    }
}

/// The term that the command must be checked against.
fn term_of(command: &Command) -> Result<Term, Box<Failure>> {
    let member = match &command.payload {
        Payload::InitialiseMember(initialise) => &initialise.member,
        Payload::CloneMember(clone) => &clone.member,
        Payload::ResyncMember(resync) => &resync.member,
        Payload::RestartMember(restart) => &restart.member,
        Payload::CheckMember(_)
        | Payload::InstallEngine(_)
        | Payload::UpgradeEngine(_)
        | Payload::RebootNode(_) => {
            return Ok(command.term);
        }
        // Without a term there would be nothing to hold it to, not even on a node whose own record is lost.
        Payload::DestroyMember(_)
        | Payload::SetPassword(_)
        | Payload::CheckpointMember(_)
        | Payload::RetuneMember(_)
            if command.term == Term::NONE =>
        {
            let message = format!("is 0: {} needs the cluster's term", command.payload.kind());
            return Err(Box::new(Failure::invalid_field("term", message)));
        }
        Payload::DestroyMember(_)
        | Payload::SetPassword(_)
        | Payload::CheckpointMember(_)
        | Payload::RetuneMember(_) => {
            return Ok(command.term);
        }
    };
    if command.term == member.term {
        Ok(member.term)
    } else {
        let field = format!("{}.member.term", command.payload.kind());
        Err(Box::new(Failure::invalid_field(
            field,
            format!("is {}, but the command's is {}", member.term, command.term),
        )))
    }
}
