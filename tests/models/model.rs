//! A model: its bounds, the actions that are possible, what each brings about, what must always hold.

use std::time::Duration;

use holdfast_common::protocol::{Decree, Event, Need, Timings};
use stateright::Property;

use super::profiles::{Change, Move, Paces};
use super::rules::Rule;
use super::world::{Faults, Packet, TICK, World, index_of};

/// A world and its bounds.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) nodes: usize,
    /// Promotable at the beginning, beside node 0.
    pub(crate) members: &'static [usize],
    pub(crate) need: Need,
    /// L and M, in ticks.
    pub(crate) lease: u64,
    pub(crate) margin: u64,
    /// In ticks: of the coordinator before promises are asked for, and of a primary that was stopped.
    pub(crate) silence: u64,
    /// The lease profile is changed, once.
    pub(crate) change: Option<Change>,
    pub(crate) drift: Drift,
    /// Agents may stall between any two of their actions.
    pub(crate) stalls: bool,
    pub(crate) promises: bool,
    pub(crate) failover: bool,
    /// How often the coordinator asks the primary to stop for a switchover.
    pub(crate) attempts: u64,
    pub(crate) fences: bool,
    /// The first primary's machine may be turned off for good, and a person may say so.
    pub(crate) word: bool,
    pub(crate) abandon: bool,
    /// Every packet may arrive again.
    pub(crate) repeats: bool,
    /// A restarting agent may find its list unreadable.
    pub(crate) unreadable: bool,
    /// A restart may be one of the machine: nothing is left in the kernel.
    pub(crate) reboots: bool,
    pub(crate) faults: Faults,
    pub(crate) packets: usize,
    pub(crate) terms: u64,
    pub(crate) versions: u64,
    /// Entries of the log.
    pub(crate) log: usize,
    /// A healthy cluster is one that every replica follows.
    pub(crate) all_follow: bool,
    /// The rules that are left out.
    pub(crate) without: &'static [Rule],
}

/// Whose word is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Coordinator,
    Members,
}

/// How clocks err: by ten per cent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drift {
    None,
    /// One node's is slow and all others are fast, for each node.
    OneSlow,
    /// Each is slow or fast.
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Tick,
    /// The primary begins to renew; what it asks of the others is lost.
    Round(usize, Via),
    /// The agent carries out the next of what it has decided.
    Act(usize),
    Restart(usize),
    RestartUnreadable(usize),
    Reboot(usize),
    /// The engine of a primary ends by itself, and is started again in its place.
    Fall(usize),
    /// A dead agent's helper writes.
    OrphanWrites(usize),
    Lose(Packet),
    Deliver(Packet),
    /// Another copy of it is still under way.
    DeliverCopy(Packet),
    Write(usize),
    Receive {
        from: usize,
        to: usize,
    },
    /// The primary's engine was followed by enough since its start.
    Prove(usize),
    /// Its engine enforces its list, and all in it have what was acknowledged.
    Enforce(usize),
    Acknowledge {
        by: usize,
        upto: usize,
    },
    Crash,
    Start,
    Intend,
    TurnOff,
    /// A person says that the primary is off.
    Vouch,
    /// The coordinator says, or says again, what is not answered.
    Order(usize),
    Succeed(usize),
    Abandon,
    /// Puts a member on the list, or takes it off.
    Declare(usize),
    /// The primary is to stop for a switchover.
    Halt,
    /// The way back before a term is intended.
    Resume,
    /// The engine is down after its clean stop, and its agent says so.
    TellStopped(usize),
    /// A later run of the coordinator goes by the stop of an earlier one.
    Recall,
    /// A node takes over by which times it is to go.
    Hear(usize),
    /// A loop of the coordinator reads that, and goes by what it has read.
    Read,
    GoBy,
    /// The operation that changes it goes on, or is given up.
    Move(Move),
}

// === impl Model ===

impl Model {
    /// With a lease of so many ticks.
    pub(crate) fn timings(&self, lease: u64) -> Timings {
        let ticks = |ticks: u64| Duration::from_secs(ticks * TICK);
        let zero = Duration::ZERO;
        let margin = if self.leaves_out(Rule::MarginForDrift) { 0 } else { self.margin };
        let (lease, margin, silence) = (ticks(lease), ticks(margin), ticks(self.silence));
        Timings { lease, margin, renewal: zero, silence, suspicion: zero }
    }

    pub(crate) fn leaves_out(&self, rule: Rule) -> bool {
        self.without.contains(&rule)
    }

    pub(crate) fn quorum(&self) -> bool {
        self.need != Need::All
    }

    fn initial(&self) -> World {
        let paces = Paces::at_rest(self.nodes, self.lease);
        let mut world = World::at_rest(self.members, self.need, &self.timings(self.lease), paces);
        world.faults = self.faults;
        self.settle(&mut world, 0);
        world
    }

    pub(crate) fn decree(&self, world: &mut World, decree: Decree) {
        match decree {
            Decree::Store(reign) => world.stored = reign,
            Decree::Send { to, message } => self.send(world, Packet::Down { to: index_of(to), message }),
        }
    }

    fn tick(&self, world: &mut World) {
        let clocks = world.clocks.clone();
        for (index, node) in world.nodes.iter_mut().enumerate() {
            let elapsed = Duration::from_secs(clocks[index]);
            node.member.pass(elapsed);
            node.kernel.pass(elapsed);
        }
        if let Some(regent) = &mut world.regent {
            regent.pass(Duration::from_secs(clocks[self.nodes]));
            world.paces.pass(Duration::from_secs(clocks[self.nodes]));
        }
        (0..self.nodes).for_each(|index| self.settle(world, index));
    }

    /// What came of an action; none where it is not possible.
    fn after(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        match action {
            Action::Tick => self.tick(&mut world),
            Action::Round(index, via) => self.renew(&mut world, index, via),
            Action::Act(index) => {
                self.act(&mut world, index);
                self.settle(&mut world, index);
            }
            Action::Restart(index) => self.restart(&mut world, index),
            Action::RestartUnreadable(index) => self.restart_unreadable(&mut world, index),
            Action::Reboot(index) => self.reboot(&mut world, index),
            Action::Fall(index) => self.fall(&mut world, index),
            Action::OrphanWrites(index) => self.orphan_writes(&mut world, index),
            Action::Lose(packet) => world.packets.retain(|other| *other != packet),
            Action::Deliver(packet) => {
                world.packets.retain(|other| *other != packet);
                self.deliver(&mut world, packet);
            }
            Action::DeliverCopy(packet) => self.deliver(&mut world, packet),
            Action::Write(index) => {
                let term = world.nodes[index].disk.term;
                world.nodes[index].engine.log.push(term);
            }
            Action::Receive { from, to } => {
                self.receive(&mut world, from, to);
            }
            Action::Prove(index) => {
                world.nodes[index].engine.proven = true;
                self.settle(&mut world, index);
            }
            Action::Enforce(index) => {
                let version = self.enforces(&world, index)?;
                self.happens(&mut world, index, Event::Enforced { version });
            }
            Action::Acknowledge { by, upto } => world.acknowledge(by, upto),
            Action::Crash => self.crash(&mut world),
            Action::Start => self.start(&mut world),
            Action::Intend => self.intend(&mut world)?,
            Action::TurnOff => self.turn_off(&mut world),
            Action::Vouch => self.vouch(&mut world)?,
            Action::Order(place) => self.order(&mut world, place)?,
            Action::Succeed(index) => self.succeed(&mut world, index)?,
            Action::Abandon => self.abandon(&mut world)?,
            Action::Declare(index) => self.declare(&mut world, index)?,
            Action::Halt => self.halt(&mut world)?,
            Action::Resume => self.resume(&mut world)?,
            Action::TellStopped(index) => self.tell_stopped(&mut world, index),
            Action::Recall => self.recall(&mut world)?,
            Action::Hear(index) => self.hear(&mut world, index),
            Action::Read => self.read(&mut world),
            Action::GoBy => self.go_by(&mut world)?,
            Action::Move(step) => self.step(&mut world, step)?,
        }
        self.drop_what_is_inert(&mut world);
        (world != *last).then_some(world)
    }
}

impl stateright::Model for Model {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let world = self.initial();
        let (slow, fast) = (TICK - 1, TICK + 1);
        let clocks: Vec<Vec<u64>> = match self.drift {
            Drift::None => vec![world.clocks.clone()],
            Drift::OneSlow => {
                let clocks =
                    |one| (0..=self.nodes).map(|node| if node == one { slow } else { fast }).collect();
                (0..self.nodes).map(clocks).collect()
            }
            Drift::Any => (0..=self.nodes).fold(vec![Vec::new()], |all, _| {
                let longer =
                    |clocks: &Vec<u64>| [slow, fast].map(|rate| [clocks.as_slice(), &[rate]].concat());
                all.iter().flat_map(longer).collect()
            }),
        };
        clocks.into_iter().map(|clocks| World { clocks, ..world.clone() }).collect()
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        self.agents_can(world, actions);
        self.engines_can(world, actions);
        self.packets_can(world, actions);
        self.coordinator_can(world, actions);
        self.profiles_can(world, actions);
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        self.after(last, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![Property::always("never two open gates", |_: &Self, world: &World| {
            world.open().count() < 2
        })];
        if self.quorum() || self.log > 0 {
            let name = match self.quorum() {
                true => "no acknowledged entry is missing",
                false => "a switchover loses nothing",
            };
            properties.push(Property::always(name, |_, world: &World| world.has_all_that_was_acknowledged()));
        }
        if !self.promises {
            properties.push(Property::always(
                "the gate is shut before the coordinator goes on",
                |_, world: &World| {
                    world.regent.as_ref().is_none_or(|regent| {
                        let primary = &world.nodes[index_of(regent.reign.primary)];
                        let goes_on =
                            regent.reign.intended.is_some() && (regent.lease.is_over() || regent.fenced);
                        !(goes_on && primary.kernel.is_open())
                    })
                },
            ));
        }
        properties
    }
}
