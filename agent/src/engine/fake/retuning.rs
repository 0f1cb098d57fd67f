//! What the fake's members count on of their machines.

use holdfast_common::budget::{Budget, Tuning};
use holdfast_common::command::RetuneMember;
use holdfast_common::id::NodeId;
use holdfast_common::question::{Retuning, SettingChange};

use super::World;
use super::state::State;

const FIRST: Budget = Budget { memory_bytes: 4 << 30, cores: 2, disk_bytes: 64 << 30 };

impl World {
    /// The node's machine has this from here on.
    pub fn resize(&self, node: NodeId, possible: Budget) {
        let mut state = self.lock();
        let kept = state.tuning(node).kept;
        let resized = kept.differs_noticeably(possible);
        state.tunings.insert(node, Tuning { kept, possible, resized });
    }
}

impl State {
    pub(super) fn tuning(&self, node: NodeId) -> Tuning {
        let first = Tuning { kept: FIRST, possible: FIRST, resized: false };
        self.tunings.get(&node).copied().unwrap_or(first)
    }
}

pub(super) fn preview(state: &State, node: NodeId) -> Retuning {
    let Tuning { kept, possible, .. } = state.tuning(node);
    let megabytes = |budget: Budget| format!("{}MB", budget.memory_bytes >> 22);
    let name = "shared_buffers".to_owned();
    let change = SettingChange { name, from: megabytes(kept), to: megabytes(possible) };
    let changes = if change.from == change.to { Vec::new() } else { vec![change] };
    Retuning { kept, possible, changes }
}

pub(super) fn retune(state: &mut State, node: NodeId, request: &RetuneMember) -> Budget {
    let possible = state.tuning(node).possible;
    let kept = request.budget.unwrap_or(possible);
    let resized = kept.differs_noticeably(possible);
    state.tunings.insert(node, Tuning { kept, possible, resized });
    state.told.remove(&node);
    kept
}

pub(super) fn note_resized(state: &mut State, node: NodeId) -> bool {
    let possible = state.tuning(node).possible;
    state.told.insert(node, possible) != Some(possible)
}
