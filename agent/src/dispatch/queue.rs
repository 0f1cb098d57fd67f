//! Commands that wait for their turn: in order, but none behind one that waits for another cluster.

use std::collections::VecDeque;
use std::sync::Arc;

use holdfast_common::command::Command;
use holdfast_common::id::{ClusterId, CommandId};

use super::MAX_WAITING;

/// A command that is recorded and has not begun.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) command: Arc<Command>,
    pub(super) runs: u32,
}

#[derive(Debug)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
}

// === impl Queue ===

impl Queue {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    pub(super) fn remove(&mut self, id: CommandId) -> Option<Waiting> {
        let index = self.waiting.iter().position(|waiting| waiting.command.id == id)?;
        self.waiting.remove(index)
    }

    /// The first whose cluster (or, for those about none, the machine's packages) is not busy.
    pub(super) fn pop(&mut self, busy: impl Fn(Option<ClusterId>) -> bool) -> Option<Waiting> {
        let index = self.waiting.iter().position(|waiting| !busy(waiting.command.payload.cluster_id()))?;
        self.waiting.remove(index)
    }
}
