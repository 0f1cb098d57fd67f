//! One session of one agent, over plain domain messages: what arrives changes the node's state, what is to be said waits
//! in a mailbox.
//!
//! ```text
//!            rpc/link                       here                                   fleet
//! agent ──► stream ──► FromAgent ──► Session::receive ──► report, sample, outcomes of calls, events
//! agent ◄── stream ◄── FromCoordinator ◄── Session::next ◄── Mailbox ◄── assignment, commands, acknowledgements
//! ```
//!
//! The mailbox holds state, not a history: one assignment, one heartbeat acknowledgement, a bounded number of the rest. An
//! agent that does not read costs that much and no more, and is cut off after [`STALLED_AFTER`].
//!
//! **Outcomes.** Every outcome is acknowledged as soon as it is here, whether somebody waits for it or not; the
//! acknowledgement only ends its repeats. The *agent* is the one who remembers: it keeps an outcome in its journal for seven
//! days, acknowledged or not, and answers a command of the same id from there without doing anything. So an outcome that
//! comes while nobody waits is dropped here, and one whose receiver is killed before it has stored what follows from it is
//! lost here: in both cases the resumed operation sends the same id again and gets the recorded outcome. Nothing is lost and
//! nothing is done twice, without a write per outcome here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_common::assignment::Assignment;
use holdfast_common::command::Command;
use holdfast_common::id::{CommandId, EventId, NodeId, SessionId};
use holdfast_common::link::{
    Close, CloseReason, CommandUpdate, FromAgent, FromCoordinator, Heartbeat, Question, Update, Welcome,
};
use holdfast_common::report::NodeEvent;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Handle;
use super::node::Node;

/// An agent that reads nothing for so long is cut off.
pub const STALLED_AFTER: Duration = Duration::from_secs(20);
/// How many events of a node are known by their id, so that a repeat is not stored twice.
const RECENT_EVENTS: usize = 64;
/// The most acknowledgements of one kind that wait.
const MAX_ACKS: usize = 256;

/// What is to be said to one agent.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub(super) id: SessionId,
    outgoing: Mutex<Outgoing>,
    wake: Notify,
    over: CancellationToken,
}

#[derive(Debug, Default)]
struct Outgoing {
    welcome: Option<Welcome>,
    assignment: Option<Arc<Assignment>>,
    commands: VecDeque<Arc<Command>>,
    cancels: VecDeque<CommandId>,
    outcome_acks: VecDeque<CommandId>,
    event_acks: VecDeque<EventId>,
    questions: VecDeque<Question>,
    heartbeat_ack: Option<u64>,
    close: Option<Close>,
    closed: bool,
    /// Since when something waits that nobody takes.
    waiting_since: Option<Instant>,
}

/// The coordinator's end of one session. Dropping it ends the session.
#[derive(Debug)]
pub struct Session {
    fleet: Handle,
    node: Arc<Node>,
    mailbox: Arc<Mailbox>,
}

/// What a message asks of the caller.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Done,
    /// To be stored, then acknowledged by [`Session::acknowledge_event`].
    Event(Box<NodeEvent>),
    /// To be kept as history.
    Sample,
}

/// An agent that does not keep to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("a second hello; it is only the first message of a session")]
    SecondHello,
}

// === impl Mailbox ===

impl Mailbox {
    pub(super) fn new(welcome: Welcome) -> Arc<Self> {
        let id = welcome.session_id;
        let outgoing =
            Outgoing { waiting_since: Some(Instant::now()), welcome: Some(welcome), ..Outgoing::default() };
        Self::holding(id, outgoing)
    }

    fn holding(id: SessionId, outgoing: Outgoing) -> Arc<Self> {
        Arc::new(Self {
            id,
            outgoing: Mutex::new(outgoing),
            wake: Notify::new(),
            over: CancellationToken::new(),
        })
    }

    pub(super) fn assign(&self, assignment: Arc<Assignment>) {
        self.put(|outgoing| outgoing.assignment = Some(assignment));
    }

    pub(super) fn command(&self, command: Arc<Command>) {
        // Bounded by MAX_CALLS: only commands that somebody waits for come here, each once.
        self.put(|outgoing| {
            if !outgoing.commands.iter().any(|waiting| waiting.id == command.id) {
                outgoing.commands.push_back(command);
            }
        });
    }

    pub(super) fn cancel(&self, id: CommandId) {
        self.put(|outgoing| {
            // Not yet on its way: then the node never hears of it.
            let before = outgoing.commands.len();
            outgoing.commands.retain(|command| command.id != id);
            if before == outgoing.commands.len() {
                push_bounded(&mut outgoing.cancels, id);
            }
        });
    }

    pub(super) fn ask(&self, question: Question) {
        // Bounded by MAX_QUESTIONS: only what somebody waits for comes here.
        self.put(|outgoing| outgoing.questions.push_back(question));
    }

    fn heartbeat(&self, sequence: u64) {
        self.put(|outgoing| outgoing.heartbeat_ack = Some(sequence));
    }

    fn outcome(&self, id: CommandId) {
        self.put(|outgoing| push_bounded(&mut outgoing.outcome_acks, id));
    }

    fn event(&self, id: EventId) {
        self.put(|outgoing| push_bounded(&mut outgoing.event_acks, id));
    }

    /// Says why, and ends.
    pub(super) fn close(&self, close: Close) {
        self.put(|outgoing| {
            outgoing.close.get_or_insert(close);
        });
    }

    /// Ends at once, saying nothing.
    pub(super) fn cut(&self) {
        self.lock().closed = true;
        self.over.cancel();
        self.wake.notify_one();
    }

    /// Whether the agent has not taken anything for too long.
    pub(super) fn is_stalled(&self, now: Instant) -> bool {
        self.lock().waiting_since.is_some_and(|since| now.duration_since(since) > STALLED_AFTER)
    }

    fn put(&self, change: impl FnOnce(&mut Outgoing)) {
        {
            let mut outgoing = self.lock();
            if outgoing.closed {
                return;
            }
            change(&mut outgoing);
            outgoing.waiting_since.get_or_insert_with(Instant::now);
        }
        self.wake.notify_one();
    }

    fn take(&self) -> Take {
        let mut outgoing = self.lock();
        if outgoing.closed {
            return Take::Over;
        }
        let Some(message) = outgoing.pop() else {
            outgoing.waiting_since = None;
            return Take::Nothing;
        };
        outgoing.waiting_since = Some(Instant::now());
        if outgoing.closed {
            self.over.cancel();
        }
        Take::Message(message)
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Take {
    Message(FromCoordinator),
    Nothing,
    Over,
}

// === impl Outgoing ===

impl Outgoing {
    fn pop(&mut self) -> Option<FromCoordinator> {
        if let Some(close) = self.close.take() {
            self.closed = true;
            return Some(FromCoordinator::Close(close));
        }
        if let Some(welcome) = self.welcome.take() {
            return Some(FromCoordinator::Welcome(welcome));
        }
        if let Some(assignment) = self.assignment.take() {
            return Some(FromCoordinator::Assignment(Box::new((*assignment).clone())));
        }
        if let Some(command) = self.commands.pop_front() {
            return Some(FromCoordinator::Command(Box::new((*command).clone())));
        }
        if let Some(id) = self.cancels.pop_front() {
            return Some(FromCoordinator::CancelCommand(id));
        }
        if let Some(id) = self.outcome_acks.pop_front() {
            return Some(FromCoordinator::OutcomeAck(id));
        }
        if let Some(id) = self.event_acks.pop_front() {
            return Some(FromCoordinator::EventAck(id));
        }
        if let Some(sequence) = self.heartbeat_ack.take() {
            return Some(FromCoordinator::HeartbeatAck { sequence });
        }
        self.questions.pop_front().map(|question| FromCoordinator::Question(Box::new(question)))
    }
}

/// What does not fit is dropped: the agent repeats what was not acknowledged.
fn push_bounded<T: PartialEq>(queue: &mut VecDeque<T>, entry: T) {
    if queue.len() < MAX_ACKS && !queue.contains(&entry) {
        queue.push_back(entry);
    }
}

// === impl Session ===

impl Session {
    pub(super) fn new(fleet: Handle, node: Arc<Node>, mailbox: Arc<Mailbox>) -> Self {
        Self { fleet, node, mailbox }
    }

    pub fn id(&self) -> SessionId {
        self.mailbox.id
    }

    pub fn node(&self) -> NodeId {
        self.node.id
    }

    /// The next message for the agent; waits for one. `None`: the session is over.
    ///
    /// # Cancel safety
    /// Nothing is lost when dropped.
    pub async fn next(&self) -> Option<FromCoordinator> {
        loop {
            match self.take() {
                Take::Message(message) => return Some(message),
                Take::Over => return None,
                Take::Nothing => self.mailbox.wake.notified().await,
            }
        }
    }

    /// Under the node's lock, so that a command that is on its way is never taken for one that was not sent.
    fn take(&self) -> Take {
        let mut state = self.node.lock();
        let taken = self.mailbox.take();
        if let Take::Message(FromCoordinator::Command(command)) = &taken {
            state.calls.mark_sent(command.id);
        }
        taken
    }

    /// Takes in a message of the agent's.
    ///
    /// # Errors
    /// [`Violation`]: the session must end.
    pub fn receive(&self, message: FromAgent) -> Result<Received, Violation> {
        match message {
            FromAgent::Hello(_) => return Err(Violation::SecondHello),
            FromAgent::Heartbeat(heartbeat) => self.heartbeat(*heartbeat),
            FromAgent::Metrics(sample) => {
                let taken = self.node.observe(&self.fleet, self.id(), |state| {
                    state.sample = Some(Arc::new(*sample));
                    true
                });
                return Ok(if taken { Received::Sample } else { Received::Done });
            }
            FromAgent::CommandUpdate(update) => self.update(*update),
            FromAgent::Event(event) => return Ok(Received::Event(event)),
            FromAgent::Answer(answer) => {
                self.node.observe(&self.fleet, self.id(), |state| {
                    state.questions.answered(*answer);
                    false
                });
            }
        }
        Ok(Received::Done)
    }

    fn heartbeat(&self, heartbeat: Heartbeat) {
        let Heartbeat { sequence, report } = heartbeat;
        let received_at = Timestamp::now();
        let taken = self.node.observe(&self.fleet, self.id(), |state| state.report(report, received_at));
        if taken {
            self.mailbox.heartbeat(sequence);
        }
    }

    fn update(&self, update: CommandUpdate) {
        let CommandUpdate { command_id, sequence, update } = update;
        self.node.observe(&self.fleet, self.id(), |state| {
            match update {
                Update::Progress(progress) => state.calls.progress(command_id, sequence, progress),
                Update::Outcome(outcome) => {
                    if !state.calls.end(command_id, outcome) {
                        tracing::debug!(command = %command_id, "outcome that nobody waits for");
                    }
                    self.mailbox.outcome(command_id);
                }
            }
            false
        });
    }

    /// Whether the event has not been stored lately. After a restart of the coordinator one may be stored twice.
    pub fn is_new_event(&self, id: EventId) -> bool {
        !self.node.lock().recent_events.contains(&id)
    }

    /// The event is stored.
    pub fn remember_event(&self, id: EventId) {
        let mut state = self.node.lock();
        if state.recent_events.len() >= RECENT_EVENTS {
            state.recent_events.pop_front();
        }
        state.recent_events.push_back(id);
    }

    /// The event is stored; the agent may forget it.
    pub fn acknowledge_event(&self, id: EventId) {
        self.mailbox.event(id);
    }

    /// The newest sample, as received.
    pub fn sample(&self) -> Option<Arc<holdfast_common::telemetry::Sample>> {
        self.node.lock().sample.clone()
    }

    /// Says why, and ends.
    pub fn close(&self, reason: CloseReason, message: impl Into<String>) {
        self.mailbox.close(Close { reason, message: message.into() });
    }

    /// Ends at once: the other end is gone.
    pub fn cut(&self) {
        self.mailbox.cut();
    }

    /// Waits until the session is over.
    ///
    /// # Cancel safety
    /// Nothing is lost when dropped.
    pub async fn over(&self) {
        self.mailbox.over.cancelled().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.mailbox.cut();
        self.node.detach(&self.fleet, self.mailbox.id);
    }
}
