//! The live agents, in memory: what each node last said, how available it is, and a way to tell it something.
//!
//! Answerable for: sessions, commands and their outcomes, assignments, availability. Not for: what any of it is for (it knows
//! no operations and no clusters), nor for the wire ([`crate::rpc`]). Nothing here is durable but in [`crate::directory`].
//!
//! ```text
//! rpc/link ──open──► Session ──► Node { record, report, sample, availability, calls, assignment }
//!                                  ▲ nodes(), node()       ▲ call(), assign()      ▲ tick: Service
//!                                reconcile, rpc            procedures, reconcile    late, offline, stalled
//! ```
//!
//! `changes()` is a number that rises whenever a view changed (not with a heartbeat that says nothing new).

mod error;
pub mod liveness;
mod node;
mod pending;
mod questions;
mod session;
#[cfg(test)]
mod tests;

pub use error::CallError;
pub use node::{Boot, NodeView, ReceivedReport};
pub use pending::MAX_CALLS;
pub use session::{Received, STALLED_AFTER, Session, Violation};

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use holdfast_common::assignment::Assignment;
use holdfast_common::command::{Command, Progress, Success};
use holdfast_common::generation::Generation;
use holdfast_common::id::{CommandId, NodeId, SessionId};
use holdfast_common::link::{Close, CloseReason, Hello, VERSIONS, Welcome};
use holdfast_common::name::NodeName;
use holdfast_common::report::Severity;
use holdfast_common::role::Availability;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::node::Node;
use self::pending::CallState;
use self::session::Mailbox;
use crate::directory;
use crate::event;

/// How often availability is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long after a command's deadline its outcome is still waited for: the node cancels it then and says so.
pub const OUTCOME_GRACE: Duration = Duration::from_secs(5);
/// Changes of availability that wait to be recorded as events.
const MAX_TRANSITIONS: usize = 4096;

/// Talks to the fleet. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// Watches the clock for the fleet, and records changes of availability.
#[derive(Debug)]
pub struct Service {
    handle: Handle,
    transitions: mpsc::Receiver<Transition>,
}

/// What agents are told in their welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub coordinator_generation: Generation,
    pub heartbeat_interval: Duration,
    pub metrics_interval: Duration,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    nodes: RwLock<HashMap<NodeId, Arc<Node>>>,
    version: AtomicU64,
    changes: watch::Sender<u64>,
    transitions: mpsc::Sender<Transition>,
}

#[derive(Debug, Clone)]
struct Transition {
    node: NodeName,
    availability: Availability,
}

/// Why a session is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .close.message)]
pub struct Refused {
    pub close: Close,
}

// === impl Service ===

impl Service {
    pub fn new(settings: Settings) -> Self {
        let (transitions, receiver) = mpsc::channel(MAX_TRANSITIONS);
        let shared = Shared {
            settings,
            nodes: RwLock::default(),
            version: AtomicU64::new(1),
            changes: watch::Sender::new(0),
            transitions,
        };
        Self { handle: Handle { shared: Arc::new(shared) }, transitions: receiver }
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs until `shutdown`; then every agent is told.
    pub async fn run(self, events: event::Handle, shutdown: CancellationToken) {
        let Self { handle, mut transitions } = self;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // All arms are cancel-safe.
            let transition = tokio::select! {
                () = shutdown.cancelled() => break,
                _ = ticks.tick() => {
                    handle.tick();
                    continue;
                }
                Some(transition) = transitions.recv() => transition,
            };
            if let Err(error) = events.record(transition.event()).await {
                tracing::warn!(error = %holdfast_common::error::Chain(&error), "a change of availability is not recorded");
            }
        }
        handle.close_all();
    }
}

// === impl Handle ===

impl Handle {
    /// All nodes, by name.
    pub fn nodes(&self) -> Vec<NodeView> {
        let mut views: Vec<NodeView> = self.all().iter().map(|node| node.view()).collect();
        views.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        views
    }

    pub fn node(&self, id: NodeId) -> Option<NodeView> {
        self.find(id).map(|node| node.view())
    }

    /// Since the node's last message, or since it became known.
    pub fn unheard_for(&self, id: NodeId) -> Option<Duration> {
        Some(self.find(id)?.lock().heard.elapsed())
    }

    pub fn node_by_name(&self, name: &NodeName) -> Option<NodeView> {
        self.all().iter().find(|node| node.lock().record.name == *name).map(|node| node.view())
    }

    /// A number that rises whenever a view has changed, or a node came or went.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    pub fn coordinator_generation(&self) -> Generation {
        self.shared.settings.coordinator_generation
    }

    /// Has the node do `command`, and waits for its outcome: across reconnects (the same id is sent again) until the
    /// command's deadline. Progress is given newest-only.
    ///
    /// Repeating a call with the same command is safe: the node does it at most once.
    ///
    /// # Cancel safety
    /// When dropped, the command goes on; [`Handle::cancel`] stops it.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call(
        &self,
        node: NodeId,
        command: Command,
        mut on_progress: impl FnMut(Progress) + Send,
    ) -> Result<Success, CallError> {
        let id = command.id;
        let left = command.deadline.duration_since(Timestamp::now());
        let deadline = Instant::now() + Duration::try_from(left).unwrap_or(Duration::ZERO);
        let mut call = self.enlist(node, command)?;
        let mut overdue = false;
        loop {
            let until = if overdue { deadline + OUTCOME_GRACE } else { deadline };
            // Both arms are cancel-safe.
            tokio::select! {
                changed = call.state.changed() => {
                    let state = if changed.is_ok() { call.state.borrow_and_update().clone() } else { CallState::NodeRemoved };
                    match state {
                        CallState::Waiting => {}
                        CallState::Progress(progress) => on_progress(progress),
                        CallState::Ended(outcome) => return outcome.map_err(CallError::Failed),
                        CallState::NodeRemoved => return Err(call.failed("it was removed from the fleet")),
                    }
                }
                () = tokio::time::sleep_until(until) => {
                    let error = call.failed("it is offline");
                    if overdue || matches!(error, CallError::NotSent { .. }) {
                        return Err(error);
                    }
                    self.cancel(node, id);
                    overdue = true;
                }
            }
        }
    }

    /// Asks the node to stop a command. Its outcome still comes, and says what became of it.
    pub fn cancel(&self, node: NodeId, command: CommandId) {
        if let Some(node) = self.find(node)
            && let Some(mailbox) = node.lock().session.clone()
        {
            mailbox.cancel(command);
        }
    }

    /// What the node must keep true from now on. An older one than the node was told already is ignored.
    pub fn assign(&self, node: NodeId, assignment: Assignment) {
        let Some(node) = self.find(node) else { return };
        let mut state = node.lock();
        if state.assignment.as_ref().is_some_and(|known| known.order() >= assignment.order()) {
            return;
        }
        let assignment = Arc::new(assignment);
        if let Some(mailbox) = &state.session {
            mailbox.assign(Arc::clone(&assignment));
        }
        state.assignment = Some(assignment);
        node.finish(self, state, true, None);
    }

    /// Takes a node into the fleet, or its record as it is now.
    pub fn admit(&self, record: directory::Node, facts: Option<directory::NodeFacts>) {
        let record = Arc::new(record);
        if let Some(node) = self.find(record.id) {
            let mut state = node.lock();
            state.record = record;
            node.finish(self, state, true, None);
            return;
        }
        let node = Node::new(record, facts.map(Arc::new), self.next_version());
        self.shared.nodes.write().unwrap_or_else(PoisonError::into_inner).insert(node.id, node);
        self.bump();
    }

    /// A node's record as it is now, if the node is known.
    pub fn refresh(&self, record: directory::Node) {
        if self.find(record.id).is_some() {
            self.admit(record, None);
        }
    }

    /// The node is no longer in the fleet: its session ends, its calls fail.
    pub fn remove(&self, id: NodeId) {
        let removed = self.shared.nodes.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let Some(node) = removed else { return };
        let mailbox = {
            let mut state = node.lock();
            state.calls.node_removed();
            state.session.take()
        };
        if let Some(mailbox) = mailbox {
            let message = "the node was removed from the fleet; join again with a new token".to_owned();
            mailbox.close(Close { reason: CloseReason::NodeRemoved, message });
        }
        self.bump();
    }

    /// Opens a session for the node; one that it has already is superseded. The second value is what the node told of
    /// itself, if that is new and to be stored.
    ///
    /// # Errors
    /// [`Refused`], with what to tell the agent.
    pub fn open(
        &self,
        id: NodeId,
        hello: Hello,
    ) -> Result<(Session, Option<Arc<directory::NodeFacts>>), Refused> {
        let refused = |reason, message: String| Refused { close: Close { reason, message } };
        let Settings { coordinator_generation, heartbeat_interval, metrics_interval } = self.shared.settings;
        let Some(version) = VERSIONS.common(hello.versions) else {
            let message = format!(
                "the agent speaks protocol versions {}, this coordinator {VERSIONS}; update the older one",
                hello.versions
            );
            return Err(refused(CloseReason::VersionUnsupported, message));
        };
        if hello.coordinator_generation > coordinator_generation {
            let message = format!(
                "the node has obeyed coordinator generation {}, this one is {coordinator_generation}: it was replaced, stop it",
                hello.coordinator_generation
            );
            return Err(refused(CloseReason::ProtocolViolation, message));
        }
        let Some(node) = self.find(id) else {
            return Err(refused(CloseReason::NodeRemoved, "the node is not in the fleet".to_owned()));
        };
        let now = Timestamp::now();
        let mailbox = Mailbox::new(Welcome {
            version,
            session_id: SessionId::generate(),
            heartbeat_interval,
            metrics_interval,
            coordinator_generation,
            coordinator_time: now,
        });
        let facts = directory::NodeFacts { agent_version: hello.agent_version, inventory: hello.inventory };
        let told = (hello.coordinator_generation, hello.assignment_generation);
        let mut state = node.lock();
        if let Some(older) = state.session.take() {
            let message = "another session of this node has begun".to_owned();
            older.close(Close { reason: CloseReason::Superseded, message });
        }
        if let Some(assignment) = state.assignment.as_ref().filter(|assignment| assignment.order() > told) {
            mailbox.assign(Arc::clone(assignment));
        }
        for command in state.calls.unanswered() {
            mailbox.command(Arc::clone(command));
        }
        state.clock_offset_seconds = Some(node::offset_seconds(hello.node_time, now));
        if state.boot.as_ref().is_none_or(|boot| boot.id != hello.boot_id) {
            state.boot = Some(Boot { id: hello.boot_id, heard_of_at: now });
        }
        let new_facts = if state.facts.as_deref() == Some(&facts) { None } else { Some(Arc::new(facts)) };
        if let Some(facts) = &new_facts {
            state.facts = Some(Arc::clone(facts));
        }
        let instant = Instant::now();
        state.attach(Arc::clone(&mailbox), instant);
        let settled = state.settle(instant);
        node.finish(self, state, true, settled);
        Ok((Session::new(self.clone(), Arc::clone(&node), mailbox), new_facts))
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> usize {
        self.all().iter().filter(|node| node.lock().session.is_some()).count()
    }

    fn enlist(&self, id: NodeId, command: Command) -> Result<Enlisted, CallError> {
        let not_sent = |node: String, why| Err(CallError::NotSent { node, why });
        let Some(node) = self.find(id) else { return not_sent(id.to_string(), "it is not in the fleet") };
        let command = Arc::new(command);
        let mut state = node.lock();
        let Some((receiver, new)) = state.calls.enlist(&command) else {
            return not_sent(state.record.name.to_string(), "too many commands wait for it");
        };
        if new && let Some(mailbox) = &state.session {
            mailbox.command(Arc::clone(&command));
        }
        drop(state);
        Ok(Enlisted { node, command: command.id, state: receiver })
    }

    fn tick(&self) {
        let now = Instant::now();
        for node in self.all() {
            node.tick(self, now);
        }
    }

    fn close_all(&self) {
        for node in self.all() {
            if let Some(mailbox) = &node.lock().session {
                let message = "the coordinator stops; it will be back".to_owned();
                mailbox.close(Close { reason: CloseReason::Shutdown, message });
            }
        }
    }

    fn find(&self, id: NodeId) -> Option<Arc<Node>> {
        self.shared.nodes.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn all(&self) -> Vec<Arc<Node>> {
        self.shared.nodes.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn next_version(&self) -> u64 {
        self.shared.version.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn bump(&self) {
        self.shared.changes.send_modify(|number| *number += 1);
    }

    fn tell(&self, transition: Transition) {
        if self.shared.transitions.try_send(transition).is_err() {
            tracing::warn!("too many changes of availability at once; one is not recorded as an event");
        }
    }
}

/// A waiter's place. Dropping it gives it up.
struct Enlisted {
    node: Arc<Node>,
    command: CommandId,
    state: watch::Receiver<CallState>,
}

// === impl Enlisted ===

impl Enlisted {
    fn failed(&self, why: &'static str) -> CallError {
        let state = self.node.lock();
        let node = state.record.name.to_string();
        if state.calls.was_sent(self.command) {
            CallError::Unanswered { node }
        } else {
            CallError::NotSent { node, why }
        }
    }
}

impl Drop for Enlisted {
    fn drop(&mut self) {
        self.node.lock().calls.leave(self.command);
    }
}

// === impl Transition ===

impl Transition {
    fn event(self) -> event::NewEvent {
        let Self { node, availability } = self;
        let (severity, reason, message) = match availability {
            Availability::Online => (Severity::Info, "NODE_ONLINE", format!("node {node} is online")),
            Availability::Late | Availability::Offline => {
                (Severity::Warning, "NODE_OFFLINE", format!("node {node} is offline"))
            }
        };
        event::NewEvent { node: Some(node.to_string()), ..event::NewEvent::new(severity, reason, message) }
    }
}
