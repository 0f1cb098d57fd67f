//! What waits to be told to the coordinator: outcomes until they are acknowledged, the newest progress of each running
//! command, and events in a bounded queue that loses its oldest.
//!
//! Between those who work (who put in) and the session (who takes out). A lost session loses nothing: the next one begins
//! by taking everything again. Outcomes survive a restart of the agent in the journal, not here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_common::clock::Clock;
use holdfast_common::command::{Outcome, Progress};
use holdfast_common::id::{CommandId, EventId};
use holdfast_common::link::{CommandUpdate, FromAgent, Update};
use holdfast_common::report::{NodeEvent, Severity};
use tokio::sync::Notify;

/// The most events that wait.
pub const MAX_EVENTS: usize = 256;

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    updates: BTreeMap<CommandId, Entry>,
    events: VecDeque<(NodeEvent, Sent)>,
    dropped_events: u64,
}

#[derive(Debug)]
struct Entry {
    sequence: u64,
    update: Arc<Update>,
    sent: Sent,
}

/// Whether the present session has had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    No,
    Yes,
}

// === impl Outbox ===

impl Outbox {
    /// Tells where a command stands. `sequence` rises; a lower one, or one after the outcome, is ignored.
    pub fn progress(&self, command: CommandId, sequence: u64, progress: Progress) {
        self.put(command, sequence, Update::Progress(progress));
    }

    /// Tells how a command ended.
    pub fn outcome(&self, command: CommandId, sequence: u64, outcome: Outcome) {
        self.put(command, sequence, Update::Outcome(outcome));
    }

    /// The coordinator has stored the outcome.
    pub fn acknowledge(&self, command: CommandId) {
        let mut waiting = self.lock();
        if waiting.updates.get(&command).is_some_and(|entry| matches!(*entry.update, Update::Outcome(_))) {
            waiting.updates.remove(&command);
        }
    }

    /// Takes back what is told of a command: it is not there any more.
    pub fn forget(&self, command: CommandId) {
        self.lock().updates.remove(&command);
    }

    /// Says again what is known of a command.
    pub fn repeat(&self, command: CommandId) {
        if let Some(entry) = self.lock().updates.get_mut(&command) {
            entry.sent = Sent::No;
        }
        self.inner.changed.notify_one();
    }

    /// Tells something that a person may want to know. The oldest goes if there are too many.
    pub fn event(&self, event: NodeEvent) {
        let mut waiting = self.lock();
        if waiting.events.len() >= MAX_EVENTS {
            waiting.events.pop_front();
            waiting.dropped_events = waiting.dropped_events.saturating_add(1);
        }
        waiting.events.push_back((event, Sent::No));
        drop(waiting);
        self.inner.changed.notify_one();
    }

    /// The coordinator has stored the event.
    pub fn acknowledge_event(&self, id: EventId) {
        self.lock().events.retain(|(event, _)| event.id != id);
    }

    /// How many outcomes wait for their acknowledgement.
    pub fn unacknowledged(&self) -> usize {
        self.lock().updates.values().filter(|entry| matches!(*entry.update, Update::Outcome(_))).count()
    }

    /// A session begins: everything is to be said again.
    pub fn rewind(&self) {
        let mut waiting = self.lock();
        for entry in waiting.updates.values_mut() {
            entry.sent = Sent::No;
        }
        for (_, sent) in &mut waiting.events {
            *sent = Sent::No;
        }
        drop(waiting);
        self.inner.changed.notify_one();
    }

    /// The next thing to say in this session: outcomes before events.
    pub fn take(&self, clock: &Clock) -> Option<FromAgent> {
        let mut waiting = self.lock();
        if let Some(update) = waiting.take_update(|update| matches!(update, Update::Outcome(_))) {
            return Some(update);
        }
        if waiting.dropped_events > 0 {
            let message =
                format!("{} events were lost: the coordinator did not take them", waiting.dropped_events);
            waiting.dropped_events = 0;
            waiting
                .events
                .push_front((node_event(clock, Severity::Warning, "EVENTS_LOST", message), Sent::No));
        }
        let (event, sent) = waiting.events.iter_mut().find(|(_, sent)| *sent == Sent::No)?;
        *sent = Sent::Yes;
        Some(FromAgent::Event(Box::new(event.clone())))
    }

    /// The next progress to say in this session.
    pub fn take_progress(&self) -> Option<FromAgent> {
        self.lock().take_update(|update| matches!(update, Update::Progress(_)))
    }

    /// Whether any command has progress to tell.
    pub fn has_progress(&self) -> bool {
        let waiting = self.lock();
        waiting
            .updates
            .values()
            .any(|entry| entry.sent == Sent::No && matches!(*entry.update, Update::Progress(_)))
    }

    /// Waits until there may be something new to take.
    ///
    /// # Cancel safety
    /// A notification that nobody waited for is kept.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    fn put(&self, command: CommandId, sequence: u64, update: Update) {
        let mut waiting = self.lock();
        if let Some(known) = waiting.updates.get(&command)
            && (known.sequence >= sequence || matches!(*known.update, Update::Outcome(_)))
        {
            return;
        }
        waiting.updates.insert(command, Entry { sequence, update: Arc::new(update), sent: Sent::No });
        drop(waiting);
        self.inner.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No change of these lists can panic half-way.
        self.inner.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Waiting ===

impl Waiting {
    fn take_update(&mut self, wanted: impl Fn(&Update) -> bool) -> Option<FromAgent> {
        let (id, entry) =
            self.updates.iter_mut().find(|(_, entry)| entry.sent == Sent::No && wanted(&entry.update))?;
        entry.sent = Sent::Yes;
        let (command_id, sequence, update) = (*id, entry.sequence, Update::clone(&entry.update));
        Some(FromAgent::CommandUpdate(Box::new(CommandUpdate { command_id, sequence, update })))
    }
}

/// Where parts that know no outbox tell of what happened.
pub type Tell = Arc<dyn Fn(NodeEvent) + Send + Sync>;

/// An event that concerns the node as a whole.
pub fn node_event(clock: &Clock, severity: Severity, reason: &str, message: impl Into<String>) -> NodeEvent {
    NodeEvent {
        id: EventId::generate(),
        time: clock.now(),
        severity,
        reason: reason.to_owned(),
        message: message.into(),
        cluster_id: None,
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::command::Success;

    use super::*;

    fn progress(message: &str) -> Progress {
        Progress { message: message.into(), ..Progress::default() }
    }

    fn sequences(outbox: &Outbox) -> Vec<u64> {
        std::iter::from_fn(|| outbox.take(&Clock::system()).or_else(|| outbox.take_progress()))
            .map(|message| match message {
                FromAgent::CommandUpdate(update) => update.sequence,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn an_outcome_is_told_in_every_session_until_it_is_acknowledged() {
        let (outbox, id) = (Outbox::default(), CommandId::generate());
        outbox.outcome(id, 5, Ok(Success::SetPassword));
        assert_eq!(sequences(&outbox), [5]);
        assert!(sequences(&outbox).is_empty(), "once in a session");
        outbox.rewind();
        assert_eq!(sequences(&outbox), [5]);
        outbox.acknowledge(id);
        outbox.rewind();
        assert!(sequences(&outbox).is_empty());
    }

    #[test]
    fn only_the_newest_progress_is_told_and_none_after_the_outcome() {
        let (outbox, id) = (Outbox::default(), CommandId::generate());
        outbox.progress(id, 1, progress("a"));
        outbox.progress(id, 3, progress("c"));
        outbox.progress(id, 2, progress("b"));
        assert_eq!(sequences(&outbox), [3]);
        outbox.acknowledge(id);
        outbox.outcome(id, 4, Ok(Success::SetPassword));
        outbox.progress(id, 5, progress("late"));
        assert_eq!(sequences(&outbox), [4]);
    }

    #[test]
    fn events_are_bounded_and_the_loss_is_told() {
        let outbox = Outbox::default();
        let clock = Clock::system();
        for number in 0..MAX_EVENTS + 3 {
            outbox.event(node_event(&clock, Severity::Info, "NUMBER", number.to_string()));
        }
        let mut told = Vec::new();
        while let Some(FromAgent::Event(event)) = outbox.take(&clock) {
            told.push(event);
        }
        assert_eq!(told.len(), MAX_EVENTS + 1);
        assert_eq!((told[0].reason.as_str(), told[1].message.as_str()), ("EVENTS_LOST", "3"));
        for event in told {
            outbox.acknowledge_event(event.id);
        }
        outbox.rewind();
        assert!(outbox.take(&clock).is_none());
    }
}
