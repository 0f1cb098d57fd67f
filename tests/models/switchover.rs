//! A switchover: the primary is stopped, and confirms it after the last seal.

use holdfast_common::id::NodeId;
use holdfast_common::protocol::{Attempt, Decree, Regent, Tail, ToCoordinator, ToMember};
use holdfast_common::term::Term;

use super::model::{Action, Model};
use super::rules::Rule;
use super::world::{Node, Packet, World, id};

// === impl Model ===

impl Model {
    pub(crate) fn may_switch_over(&self, world: &World, regent: &Regent, actions: &mut Vec<Action>) {
        match &regent.stop {
            None if world.attempts < self.attempts => actions.push(Action::Halt),
            None => {}
            Some(_) => actions.push(Action::Resume),
        }
        if world.outlived.is_some() {
            actions.push(Action::Recall);
        }
    }

    /// The coordinator begins a stop, under a number that was never used: also of a primary that nobody could replace.
    pub(crate) fn halt(&self, world: &mut World) -> Option<()> {
        let regent = world.regent.as_mut()?;
        (regent.reign.term.get() < self.terms).then_some(())?;
        let reused = self.leaves_out(Rule::AttemptsAreNeverReused);
        let attempt = if reused { Attempt(1) } else { Attempt(world.attempts + 1) };
        let decrees = regent.rest(attempt).ok()?;
        world.attempts += 1;
        self.carry_out(world, decrees);
        Some(())
    }

    pub(crate) fn resume(&self, world: &mut World) -> Option<()> {
        let decrees = world.regent.as_mut()?.resume();
        // It wakes one that rests; where none does it says nothing new.
        if self.silence > 0 {
            self.carry_out(world, decrees);
        }
        Some(())
    }

    /// A later run takes over what an earlier one has heard.
    pub(crate) fn recall(&self, world: &mut World) -> Option<()> {
        let regent = world.regent.as_mut().filter(|regent| regent.stop.is_none())?;
        regent.stop = world.outlived.take();
        Some(())
    }

    /// What is to be said; where confirmations count before the seals they are asked for before them too.
    pub(crate) fn orders(&self, regent: &Regent) -> Vec<Decree> {
        let mut orders = regent.orders(&self.replicas(regent));
        if let (Some(stop), Some(_)) = (regent.stop, regent.reign.intended)
            && self.leaves_out(Rule::ConfirmAfterTheSeals)
        {
            let (to, term) = (regent.reign.primary, regent.reign.term);
            let message = ToMember::Confirm { term, attempt: stop.attempt };
            orders.push(Decree::Send { to, message });
        }
        orders
    }

    /// The engine was to be stopped for this, and may be down now. Until then replicas that receive get its log; some do not.
    pub(crate) fn may_tell(&self, node: &Node) -> bool {
        let down = !node.engine.running || self.leaves_out(Rule::StoppedOnlyIfStill);
        node.telling.is_some() && down && node.undone.is_empty()
    }

    /// Where the log ends is read, and told if the engine was not started again.
    pub(crate) fn tell_stopped(&self, world: &mut World, index: usize) {
        let node = &mut world.nodes[index];
        let Some((term, attempt)) = node.telling.take() else { return };
        node.engine.down = !node.engine.running;
        if node.member.is_stopped_for(term, attempt) || self.leaves_out(Rule::StoppedOnlyIfStill) {
            let message = ToCoordinator::Stopped { term, attempt, tail: node.tail() };
            self.send(world, Packet::Up { from: index, message });
        }
    }

    /// The primary is stopped, and its log ends there.
    pub(crate) fn confirmed(
        &self,
        regent: &mut Regent,
        from: NodeId,
        term: Term,
        attempt: Attempt,
        tail: Tail,
    ) {
        let place = regent.stop.and_then(|stop| stop.tail);
        let told = if self.leaves_out(Rule::ConfirmThePlace) { place.unwrap_or(tail) } else { tail };
        let seals = regent.seals.clone();
        if self.leaves_out(Rule::ConfirmAfterTheSeals) {
            regent.seals.extend((0..self.nodes).map(|node| (id(node), tail)));
        }
        regent.confirmed(from, term, attempt, told);
        regent.seals = seals;
    }
}
