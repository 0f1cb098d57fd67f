//! Commands of one node that somebody waits for.
//!
//! ```text
//! enlist ──► waiting ──sent──► sent ──outcome──► ended: every waiter gets it
//!                                └── session lost: sent again, with the same id, by the next session
//! ```
//!
//! Nothing here is durable, and needs not be: an operation that is resumed asks again with the same id, and the node
//! answers from its journal.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_common::command::{Command, Outcome, Progress};
use holdfast_common::id::CommandId;
use tokio::sync::watch;

/// The most commands of one node that may be waited for at a time.
pub const MAX_CALLS: usize = 256;

/// All calls of one node.
#[derive(Debug, Default)]
pub(super) struct Calls {
    calls: HashMap<CommandId, Call>,
}

/// How a call stands; the newest wins.
#[derive(Debug, Clone, Default)]
pub(super) enum CallState {
    #[default]
    Waiting,
    Progress(Progress),
    Ended(Outcome),
    /// The node is no longer in the fleet.
    NodeRemoved,
}

#[derive(Debug)]
struct Call {
    command: Arc<Command>,
    sent: bool,
    waiters: usize,
    sequence: u64,
    state: watch::Sender<CallState>,
}

// === impl Calls ===

impl Calls {
    /// Another waiter. True: the command is new and must be sent. `None`: there are too many.
    pub(super) fn enlist(&mut self, command: &Arc<Command>) -> Option<(watch::Receiver<CallState>, bool)> {
        if let Some(call) = self.calls.get_mut(&command.id) {
            call.waiters += 1;
            // Marked changed, so that a second waiter also sees what there is already.
            let mut state = call.state.subscribe();
            state.mark_changed();
            return Some((state, false));
        }
        if self.calls.len() >= MAX_CALLS {
            return None;
        }
        let state = watch::Sender::new(CallState::Waiting);
        let receiver = state.subscribe();
        let call = Call { command: Arc::clone(command), sent: false, waiters: 1, sequence: 0, state };
        self.calls.insert(command.id, call);
        Some((receiver, true))
    }

    /// A waiter less. The command itself goes on: only `cancel` stops it.
    pub(super) fn leave(&mut self, id: CommandId) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.waiters -= 1;
            if call.waiters == 0 {
                self.calls.remove(&id);
            }
        }
    }

    /// Those without an outcome, for a new session.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = &Arc<Command>> {
        self.calls
            .values()
            .filter(|call| !matches!(&*call.state.borrow(), CallState::Ended(_) | CallState::NodeRemoved))
            .map(|call| &call.command)
    }

    pub(super) fn mark_sent(&mut self, id: CommandId) {
        if let Some(call) = self.calls.get_mut(&id) {
            call.sent = true;
        }
    }

    /// Whether it may have reached the node.
    pub(super) fn was_sent(&self, id: CommandId) -> bool {
        self.calls.get(&id).is_some_and(|call| call.sent)
    }

    /// Progress that is older than what is known is dropped.
    pub(super) fn progress(&mut self, id: CommandId, sequence: u64, progress: Progress) {
        let Some(call) = self.calls.get_mut(&id) else { return };
        if sequence <= call.sequence || matches!(&*call.state.borrow(), CallState::Ended(_)) {
            return;
        }
        call.sequence = sequence;
        call.state.send_replace(CallState::Progress(progress));
    }

    /// The first outcome counts. False: nobody waits for it.
    pub(super) fn end(&mut self, id: CommandId, outcome: Outcome) -> bool {
        let Some(call) = self.calls.get_mut(&id) else { return false };
        if !matches!(&*call.state.borrow(), CallState::Ended(_)) {
            call.state.send_replace(CallState::Ended(outcome));
        }
        true
    }

    pub(super) fn node_removed(&mut self) {
        for call in self.calls.values() {
            if !matches!(&*call.state.borrow(), CallState::Ended(_)) {
                call.state.send_replace(CallState::NodeRemoved);
            }
        }
    }
}
