//! The actions of the coordinator.

use std::collections::BTreeSet;

use holdfast_common::id::NodeId;
use holdfast_common::protocol::{
    Countdown, Decree, Need, Obstacle, Regent, Standing, ToCoordinator, ToMember,
};

use super::model::{Action, Model};
use super::rules::Rule;
use super::world::{World, id, index_of};

// === impl Model ===

impl Model {
    pub(crate) fn coordinator_can(&self, world: &World, actions: &mut Vec<Action>) {
        let Some(regent) = &world.regent else {
            actions.push(Action::Start);
            return;
        };
        if world.faults.crashes > 0 {
            actions.push(Action::Crash);
        }
        let orders = self.orders(regent).len();
        actions.extend((0..orders).map(Action::Order));
        if regent.reign.intended.is_some() {
            actions.extend((0..self.nodes).map(Action::Succeed));
        } else {
            actions.push(Action::Intend);
            actions.extend((1..self.nodes).map(Action::Declare));
        }
        let primary = &world.nodes[index_of(regent.reign.primary)];
        if self.word && (primary.off || self.leaves_out(Rule::TheWordIsTrue)) {
            actions.push(Action::Vouch);
        }
        actions.push(Action::Abandon);
        self.may_switch_over(world, regent, actions);
    }

    pub(crate) fn replicas(&self, regent: &Regent) -> Vec<NodeId> {
        (0..self.nodes).map(id).filter(|node| *node != regent.reign.primary).collect()
    }

    pub(crate) fn crash(&self, world: &mut World) {
        world.faults.crashes -= 1;
        world.paces.forget();
        let stop = world.regent.take().and_then(|regent| regent.stop);
        if self.leaves_out(Rule::OnlyThisRunHasAsked) {
            world.outlived = stop;
        }
    }

    pub(crate) fn start(&self, world: &mut World) {
        world.paces.start();
        let mut regent = Regent::started(world.stored.clone(), &self.remembered(world));
        if self.leaves_out(Rule::WaitAfterAStart) {
            regent.lease = Countdown::OVER;
        }
        world.regent = Some(regent);
    }

    pub(crate) fn intend(&self, world: &mut World) -> Option<()> {
        let free = world.paces.is_free();
        let regent = world.regent.as_mut()?;
        ((free && self.failover || regent.stop.is_some()) && regent.reign.term.get() < self.terms)
            .then_some(())?;
        let decrees = regent.intend().ok()?;
        self.carry_out(world, decrees);
        Some(())
    }

    /// A person's word that the primary is off: for a change that begins, or for the one that is under way.
    pub(crate) fn vouch(&self, world: &mut World) -> Option<()> {
        let regent = world.regent.as_mut()?;
        if regent.reign.intended.is_some() {
            return regent.vouch().ok();
        }
        (regent.reign.term.get() < self.terms).then_some(())?;
        let decrees = regent.intend_by_word().ok()?;
        self.carry_out(world, decrees);
        Some(())
    }

    /// One of what is to be said; not what was heard already.
    pub(crate) fn order(&self, world: &mut World, place: usize) -> Option<()> {
        let regent = world.regent.as_ref()?;
        let reign = &regent.reign;
        let decree = self.orders(regent).into_iter().nth(place)?;
        let Decree::Send { to, message } = &decree else { return None };
        let node = &world.nodes[index_of(*to)].disk;
        let needed = match message {
            ToMember::Fence { .. } => self.fences,
            ToMember::Promote { term, .. } => {
                let leads = node.term == *term && node.standing == Standing::Primary;
                !(leads && reign.is_settled())
            }
            ToMember::Follow { term, .. } => !(node.term == *term && node.standing == Standing::Replica),
            _ => true,
        };
        (needed && world.packets.len() < self.packets).then_some(())?;
        self.decree(world, decree);
        Some(())
    }

    pub(crate) fn succeed(&self, world: &mut World, index: usize) -> Option<()> {
        let mut regent = world.regent.clone()?;
        self.tampered_election(&mut regent);
        let chosen = match regent.choose(&[id(index)]) {
            Err(Obstacle::TooFewSeals) if self.leaves_out(Rule::EnoughSeals) => {
                regent.seals.keys().copied().find(|node| *node == id(index))?
            }
            chosen => chosen.ok()?,
        };
        (chosen == id(index)).then_some(())?;
        let by_word = regent.goes_by_word();
        let sealed: BTreeSet<NodeId> = regent.seals.keys().copied().collect();
        let need = if by_word && sealed.len() == 1 { Need::All } else { self.need };
        let members = match self.quorum() {
            true if by_word => sealed,
            false if by_word => &regent.reign.promotable() & &sealed,
            true => self.replicas(&regent).into_iter().chain([regent.reign.primary]).collect::<BTreeSet<_>>(),
            false => regent.reign.promotable(),
        };
        if self.leaves_out(Rule::EnoughSeals) {
            regent.reign.lists.iter_mut().for_each(|list| list.need = Need::All);
        }
        let planned = regent.stop.is_some();
        let decrees = regent.succeed(&[chosen], members, need).ok()?;
        if !planned && (by_word || !self.quorum()) {
            world.lose(index);
        }
        world.regent = Some(regent);
        self.carry_out(world, decrees);
        Some(())
    }

    pub(crate) fn abandon(&self, world: &mut World) -> Option<()> {
        let reign = &world.regent.as_ref()?.reign;
        let above = reign.intended.unwrap_or(reign.term).next();
        (self.abandon && above.get() <= self.terms).then_some(())?;
        let decrees = match self.abandoned_too_late(world) {
            Some(decrees) => decrees,
            None => world.regent.as_mut()?.abandon().ok()?,
        };
        self.carry_out(world, decrees);
        Some(())
    }

    /// Puts a node on the list of a primary, or takes it off.
    pub(crate) fn declare(&self, world: &mut World, index: usize) -> Option<()> {
        let regent = world.regent.as_mut()?;
        let newest = regent.reign.newest();
        (newest.version.get() < self.versions && id(index) != regent.reign.primary).then_some(())?;
        let mut members: BTreeSet<NodeId> = newest.members().iter().copied().collect();
        if !members.remove(&id(index)) {
            members.insert(id(index));
        }
        let stored = world.stored.clone();
        let decrees = regent.declare(members, self.need).ok()?;
        self.tampered_declaration(regent);
        let reign = regent.reign.clone();
        self.carry_out(world, decrees);
        world.stored = match self.leaves_out(Rule::VersionsAreStoredFirst) {
            true => stored,
            false => reign,
        };
        Some(())
    }

    /// The coordinator hears from a node.
    pub(crate) fn hears(&self, world: &mut World, from: usize, message: ToCoordinator) {
        let Some(mut regent) = world.regent.take() else { return };
        let timings = self.remembered(world);
        let from = id(from);
        let decree = match message {
            ToCoordinator::Renew { number, term, version } => {
                let intended = regent.reign.intended;
                if self.leaves_out(Rule::NoRenewalOnceIntended) {
                    regent.reign.intended = None;
                }
                let (lease, stop) = (regent.lease, regent.stop);
                if self.leaves_out(Rule::NoRenewalWhileStopping) {
                    regent.stop = None;
                }
                let decree = regent.renew(from, number, term, version, &timings);
                (regent.reign.intended, regent.stop) = (intended, stop);
                if self.leaves_out(Rule::GrantsAreRemembered) {
                    regent.lease = lease;
                }
                decree
            }
            ToCoordinator::ListStored { term, version } => {
                let newest = regent.reign.newest().version;
                let version = if self.leaves_out(Rule::OnlyTheNewestConfirmation) { newest } else { version };
                let lease = regent.lease;
                let decree = regent.list_stored(from, term, version, &timings);
                if self.leaves_out(Rule::WaitAfterAdding) {
                    regent.lease = lease;
                }
                decree
            }
            ToCoordinator::Fenced { term, attempt } => {
                regent.fenced(from, term, attempt);
                None
            }
            ToCoordinator::Sealed { term, tail } => {
                regent.sealed(from, term, tail);
                None
            }
            ToCoordinator::Stopped { term, attempt, tail } => {
                regent.stopped(from, term, attempt, tail);
                None
            }
            ToCoordinator::Confirmed { term, attempt, tail } => {
                self.confirmed(&mut regent, from, term, attempt, tail);
                None
            }
        };
        world.regent = Some(regent);
        self.carry_out(world, decree);
    }

    pub(crate) fn carry_out(&self, world: &mut World, decrees: impl IntoIterator<Item = Decree>) {
        decrees.into_iter().for_each(|decree| self.decree(world, decree));
    }
}
