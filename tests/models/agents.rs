//! What agents do: events in, effects out, each carried out in a world that may stop them between any two.

use std::collections::VecDeque;

use holdfast_common::protocol::{
    Countdown, Effect, Event, List, Member, Need, RequestNumber, Standing, ToCoordinator, ToMember,
};

use super::model::{Action, Model, Via};
use super::rules::Rule;
use super::world::{Deed, Engine, Kernel, Node, Packet, World, index_of};

// === impl Model ===

impl Model {
    pub(crate) fn agents_can(&self, world: &World, actions: &mut Vec<Action>) {
        if self.word && !world.nodes[0].off {
            actions.push(Action::TurnOff);
        }
        for (index, node) in world.nodes.iter().enumerate().filter(|(_, node)| !node.off) {
            if !node.undone.is_empty() {
                actions.push(Action::Act(index));
            } else if node.member.record.standing == Standing::Primary && self.may_ask(node) {
                actions.push(Action::Round(index, Via::Coordinator));
                if self.promises {
                    actions.push(Action::Round(index, Via::Members));
                }
            }
            if node.orphan.is_some() {
                actions.push(Action::OrphanWrites(index));
            }
            if self.may_tell(node) {
                actions.push(Action::TellStopped(index));
            }
            let leads = node.engine.running && node.engine.leads.is_some();
            if world.faults.falls > 0 && node.undone.is_empty() && leads {
                actions.push(Action::Fall(index));
            }
            if world.faults.restarts > 0 {
                actions.push(Action::Restart(index));
                if self.unreadable && node.disk.list.is_some() {
                    actions.push(Action::RestartUnreadable(index));
                }
                if self.reboots {
                    actions.push(Action::Reboot(index));
                }
            }
        }
    }

    /// With stalls at any time; else only when nothing is in hand, which keeps the state small.
    pub(crate) fn may_ask(&self, node: &Node) -> bool {
        self.stalls || node.member.gate.requests().next().is_none()
    }

    /// What an event makes the agent of this node do, at once or, where it may stall, later.
    pub(crate) fn happens(&self, world: &mut World, index: usize, event: Event) {
        let timings = self.timings_of(world, index);
        let fence = matches!(event, Event::Told(ToMember::Fence { .. }));
        let effects = self.tampered(&mut world.nodes[index], event, &timings);
        if fence && self.leaves_out(Rule::FenceOnTheLeaseThread) {
            // Another thread does it at once, whatever this one is about to do.
            let undone = std::mem::replace(&mut world.nodes[index].undone, effects.into());
            while self.act(world, index) {}
            world.nodes[index].undone = undone;
        } else {
            self.begin(world, index, effects);
        }
        self.settle(world, index);
    }

    pub(crate) fn begin(&self, world: &mut World, index: usize, deeds: Vec<Deed>) {
        world.nodes[index].undone.extend(deeds);
        while !self.stalls && self.act(world, index) {}
    }

    /// What follows by itself: the engine is ready, time is over.
    pub(crate) fn settle(&self, world: &mut World, index: usize) {
        loop {
            let timings = self.timings_of(world, index);
            let node = &mut world.nodes[index];
            if node.off || !node.undone.is_empty() {
                return;
            }
            let ready = node.engine.running
                && node.engine.leads.is_some()
                && (!self.quorum() || node.engine.proven || self.leaves_out(Rule::ServeOnlyWhenFollowed));
            let mut effects = match ready {
                true => node.member.handle(Event::Ready(true), &timings),
                false => Vec::new(),
            };
            let due = node.member.due(&timings);
            let shuts = |effect: &Effect| *effect == Effect::Shut && self.leaves_out(Rule::DeadlineShuts);
            effects.extend(due.into_iter().filter(|effect| !shuts(effect)));
            if effects.is_empty() {
                return;
            }
            self.begin(world, index, effects.into_iter().map(Deed::Effect).collect());
        }
    }

    /// Carries out what is next; whether there was anything.
    pub(crate) fn act(&self, world: &mut World, index: usize) -> bool {
        let node = &mut world.nodes[index];
        match node.undone.pop_front() {
            None => return false,
            Some(Deed::TakeBack(slot)) => node.kernel.granted[slot.index()] = false,
            Some(Deed::Effect(effect)) => self.perform(world, index, effect),
        }
        true
    }

    pub(crate) fn perform(&self, world: &mut World, index: usize, effect: Effect) {
        let served = self.timings_of(world, index).served();
        let node = &mut world.nodes[index];
        match effect {
            Effect::Arm { slot, timeout } => {
                node.kernel.armed[slot.index()] = Countdown::from(timeout);
                if !self.leaves_out(Rule::ArmingTakesBack) && !self.leaves_out(Rule::ArmInOneTransaction) {
                    node.kernel.granted[slot.index()] = false;
                }
            }
            Effect::Grant { slot } => {
                node.kernel.granted[slot.index()] = true;
                if self.leaves_out(Rule::TimeRunsFromTheArming) {
                    node.kernel.armed[slot.index()] = Countdown::from(served);
                }
                self.show(world, index);
            }
            Effect::OpenAlone => {
                node.kernel.alone = true;
                self.show(world, index);
            }
            Effect::CloseAlone if self.leaves_out(Rule::LoneBecomesTimed) => {}
            Effect::CloseAlone => node.kernel.alone = false,
            Effect::Shut if self.leaves_out(Rule::ShuttingDisarms) => {
                node.kernel = Kernel { armed: node.kernel.armed, ..Kernel::default() };
            }
            Effect::Shut => node.kernel = Kernel::default(),
            Effect::Store(record) => {
                let forgets = record.standing == Standing::Sealed && self.leaves_out(Rule::SealsAreDurable);
                if !forgets {
                    node.disk = record;
                }
            }
            Effect::StopEngine | Effect::StopEngineCleanly => node.engine.stop(),
            Effect::StartEngine => node.engine.start(),
            Effect::Lead { list } => {
                let term = node.disk.term;
                node.engine.lead(term, list);
                if node.engine.log.len() < self.log {
                    node.engine.log.push(term);
                }
            }
            Effect::Enforce { list } => {
                node.engine.leads = Some(node.disk.term);
                node.engine.list = Some(list);
            }
            Effect::CutReceiver if self.leaves_out(Rule::SealsCutTheReceiver) => {}
            Effect::CutReceiver => node.engine.follows = None,
            Effect::Follow { term, .. } => node.engine.follow(term),
            Effect::Tell(message) => self.send(world, Packet::Up { from: index, message }),
            Effect::TellSealed { term } => {
                let message = ToCoordinator::Sealed { term, tail: node.tail() };
                self.send(world, Packet::Up { from: index, message });
            }
            Effect::TellStopped { term, attempt } => node.telling = Some((term, attempt)),
            Effect::TellConfirmed { term, attempt } => {
                let message = ToCoordinator::Confirmed { term, attempt, tail: node.tail() };
                self.send(world, Packet::Up { from: index, message });
            }
            Effect::Send { to, message } => {
                self.send(world, Packet::Peer { from: index, to: index_of(to), message });
            }
        }
    }

    /// Clients see what the engine recovered: as good as acknowledged.
    pub(crate) fn show(&self, world: &mut World, index: usize) {
        let engine = &mut world.nodes[index].engine;
        if self.quorum() && !engine.seen {
            engine.seen = true;
            let upto = engine.log.len();
            world.acknowledge(index, upto);
        }
    }

    /// The primary begins to renew.
    pub(crate) fn renew(&self, world: &mut World, index: usize, via: Via) {
        let number = self.fresh(world, index);
        let event = Event::Round { number };
        let timings = self.timings_of(world, index);
        let mut deeds = self.tampered(&mut world.nodes[index], event, &timings);
        deeds.retain(|deed| match deed {
            Deed::Effect(Effect::Tell(_)) => via == Via::Coordinator,
            Deed::Effect(Effect::Send { .. }) => via == Via::Members,
            _ => true,
        });
        self.begin(world, index, deeds);
        self.settle(world, index);
    }

    pub(crate) fn restart(&self, world: &mut World, index: usize) {
        let timings = self.timings_of(world, index);
        let node = &mut world.nodes[index];
        world.faults.restarts -= 1;
        node.orphan = self.orphaned(node);
        node.undone.clear();
        node.telling = None;
        node.member = Member::started(node.disk.clone(), node.kernel.found(), &timings);
        self.remembers_after_restart(node);
        if node.disk.standing == Standing::Replica {
            node.engine.follow(node.disk.term);
        } else if node.disk.standing == Standing::Primary && !node.disk.fenced {
            node.engine.start();
        }
        self.settle(world, index);
    }

    /// The agent starts again and cannot read its list.
    pub(crate) fn restart_unreadable(&self, world: &mut World, index: usize) {
        let disk = &mut world.nodes[index].disk;
        let list = disk.list.take();
        if self.leaves_out(Rule::UnknownIsNotEmpty) {
            disk.list = list.map(|list| List::new(list.version, [], Need::All));
        }
        self.restart(world, index);
    }

    /// The machine starts again.
    pub(crate) fn reboot(&self, world: &mut World, index: usize) {
        let node = &mut world.nodes[index];
        node.kernel = Kernel::default();
        node.engine.stop();
        node.engine.start();
        self.restart(world, index);
    }

    /// Nothing is left but its disk.
    pub(crate) fn turn_off(&self, world: &mut World) {
        let timings = self.timings_of(world, 0);
        let node = &mut world.nodes[0];
        let mut member = Member::started(node.disk.clone(), Kernel::default().found(), &timings);
        member.pass(timings.remembered());
        let engine = Engine { log: node.engine.log.clone(), ..Engine::default() };
        let (disk, kernel) = (node.disk.clone(), Kernel::default());
        let undone = VecDeque::new();
        *node = Node { disk, member, undone, kernel, engine, orphan: None, telling: None, off: true };
    }

    /// The engine recovers in its place; until enough have followed it is not ready.
    pub(crate) fn fall(&self, world: &mut World, index: usize) {
        let timings = self.timings_of(world, index);
        world.faults.falls -= 1;
        let node = &mut world.nodes[index];
        node.engine.stop();
        node.engine.start();
        let mut effects = node.member.handle(Event::Ready(false), &timings);
        effects.retain(|effect| !(*effect == Effect::Shut && self.leaves_out(Rule::NotReadyShuts)));
        self.begin(world, index, effects.into_iter().map(Deed::Effect).collect());
        self.settle(world, index);
    }

    /// What a dead agent's helper was about to write.
    pub(crate) fn orphan_writes(&self, world: &mut World, index: usize) {
        let node = &mut world.nodes[index];
        if let Some(slot) = node.orphan.take() {
            node.kernel.granted[slot.index()] = true;
        }
    }

    /// A number that is in no hand and in no packet: as good as one that was never used.
    pub(crate) fn fresh(&self, world: &World, index: usize) -> RequestNumber {
        let in_hand: Vec<RequestNumber> = world.nodes[index].member.gate.answerable().collect();
        let mut numbers = (0..).map(|place| RequestNumber::new(0, place));
        let reused = self.leaves_out(Rule::NumbersAreNeverReused);
        let under_way = |number| {
            let asked = Some((index, number));
            let sent = world.packets.iter().any(|packet| packet.request() == asked);
            let decided =
                |(other, node): (usize, &Node)| node.undone.iter().any(|deed| deed.request(other) == asked);
            !reused && (sent || world.nodes.iter().enumerate().any(decided))
        };
        numbers.find(|number| !in_hand.contains(number) && !under_way(*number)).expect("numbers do not end")
    }
}
