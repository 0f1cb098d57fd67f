//! What engines do: write, receive, acknowledge, be followed by enough.

use holdfast_common::protocol::Version;

use super::model::{Action, Model};
use super::rules::Rule;
use super::world::World;

// === impl Model ===

impl Model {
    pub(crate) fn engines_can(&self, world: &World, actions: &mut Vec<Action>) {
        if self.log == 0 && !self.quorum() {
            return;
        }
        for (index, node) in world.nodes.iter().enumerate() {
            let engine = &node.engine;
            if engine.leads.is_none() {
                let from = (0..world.nodes.len()).filter(|&from| self.receives(world, from, index));
                actions.extend(from.map(|from| Action::Receive { from, to: index }));
                continue;
            }
            let length = engine.log.len();
            if engine.running && !engine.proven && self.has_enough(world, index, length) {
                actions.push(Action::Prove(index));
            }
            if node.undone.is_empty() && self.enforces(world, index).is_some() {
                actions.push(Action::Enforce(index));
            }
            if node.kernel.is_open() && engine.running {
                if length < self.log {
                    actions.push(Action::Write(index));
                }
                let first = world.acknowledged.len().min(length) + 1;
                let upto = (first..=length).filter(|&upto| self.acknowledges(world, index, upto));
                actions.extend(upto.map(|upto| Action::Acknowledge { by: index, upto }));
            }
        }
    }

    pub(crate) fn receive(&self, world: &mut World, from: usize, to: usize) {
        let primary = world.nodes[from].engine.clone();
        let log = &mut world.nodes[to].engine.log;
        let same = log.iter().zip(&primary.log).take_while(|(ours, theirs)| ours == theirs).count();
        log.truncate(same);
        log.extend(primary.log.get(same));
    }

    pub(crate) fn receives(&self, world: &World, from: usize, to: usize) -> bool {
        let (primary, replica) = (&world.nodes[from].engine, &world.nodes[to].engine);
        from != to
            && primary.leads.is_some()
            && !primary.down
            && replica.follows == primary.leads
            && replica.log != primary.log
    }

    /// Enough of the primary's list have its log so far.
    pub(crate) fn has_enough(&self, world: &World, by: usize, upto: usize) -> bool {
        let Some(list) = &world.nodes[by].engine.list else { return false };
        list.need.is_followed_by(world.followers(by, upto))
    }

    pub(crate) fn acknowledges(&self, world: &World, by: usize, upto: usize) -> bool {
        !self.quorum() || self.has_enough(world, by, upto)
    }

    pub(crate) fn enforces(&self, world: &World, index: usize) -> Option<Version> {
        let node = &world.nodes[index];
        let list = node.engine.list.as_ref()?;
        let enough = match self.leaves_out(Rule::ConfirmWhenAllHaveCaughtUp) {
            true => 0,
            false => list.members().len(),
        };
        let caught_up = world.followers(index, world.acknowledged.len().min(node.engine.log.len()));
        (node.engine.proven && caught_up >= enough).then_some(list.version)
    }
}
