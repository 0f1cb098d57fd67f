//! Another lease profile for a living cluster: who goes by what meanwhile, and the order in which that changes. As the coordinator's
//! operation does it (`procedures/set/profile`), with the cluster's lock: while it is at work no failover begins.

use holdfast_common::protocol::{Countdown, Standing, Timings};

use super::model::{Action, Model};
use super::rules::Rule;
use super::world::{World, id};

/// From one lease to another, in ticks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) to: u64,
}

/// The leases that a member goes by, in ticks: as a primary, and while it waits for one to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Pace {
    pub(crate) serving: u64,
    pub(crate) promising: u64,
}

/// Who goes by what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Paces {
    /// The cluster's record.
    pub(crate) recorded: Pace,
    /// Each node's assignment.
    nodes: Vec<Pace>,
    /// The coordinator, while it runs; what it was told not to go below; what one of its loops has read and not yet gone by.
    remembers: u64,
    at_least: u64,
    read: Option<u64>,
    step: Step,
}

/// The operation's, each of which may be begun anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    NotBegun,
    Widen,
    Profile,
    /// The old leases run out; only in memory.
    Rest(Countdown),
    /// It has ended, or was given up.
    Over,
}

/// What the operation does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    Widen,
    Profile,
    Rest,
    Narrow,
    Leave,
}

const MOVES: [Move; 5] = [Move::Widen, Move::Profile, Move::Rest, Move::Narrow, Move::Leave];

// === impl Paces ===

impl Paces {
    pub(crate) fn at_rest(nodes: usize, lease: u64) -> Self {
        let pace = Pace { serving: lease, promising: lease };
        Self {
            recorded: pace,
            nodes: vec![pace; nodes],
            remembers: lease,
            at_least: 0,
            read: None,
            step: Step::NotBegun,
        }
    }

    /// How many nodes there are.
    pub(crate) fn size(&self) -> usize {
        self.nodes.len()
    }

    /// No operation holds the cluster.
    pub(crate) fn is_free(&self) -> bool {
        matches!(self.step, Step::NotBegun | Step::Over)
    }

    /// All have come to go by the new one, and by nothing else.
    pub(crate) fn has_changed(&self, to: u64) -> bool {
        let wanted = Pace { serving: to, promising: to };
        self.step == Step::Over && self.remembers == to && self.nodes.iter().all(|pace| *pace == wanted)
    }

    /// With the coordinator's memory.
    pub(crate) fn forget(&mut self) {
        (self.read, self.at_least) = (None, 0);
        if let Step::Rest(_) = self.step {
            self.step = Step::Profile;
        }
    }

    pub(crate) fn start(&mut self) {
        self.remembers = self.recorded.promising;
    }

    pub(crate) fn pass(&mut self, elapsed: std::time::Duration) {
        if let Step::Rest(rest) = &mut self.step {
            rest.pass(elapsed);
        }
    }
}

// === impl Model ===

impl Model {
    /// By which times the node goes, as it stands.
    pub(crate) fn timings_of(&self, world: &World, index: usize) -> Timings {
        let pace = &world.paces.nodes[index];
        self.timings(match world.nodes[index].disk.standing {
            Standing::Primary => pace.serving,
            Standing::Replica | Standing::Sealed => pace.promising,
        })
    }

    /// By which times the coordinator goes.
    pub(crate) fn remembered(&self, world: &World) -> Timings {
        self.timings(world.paces.remembers)
    }

    pub(crate) fn profiles_can(&self, world: &World, actions: &mut Vec<Action>) {
        if self.change.is_none() {
            return;
        }
        let paces = &world.paces;
        let late = (0..self.nodes).filter(|&index| paces.nodes[index] != paces.recorded);
        actions.extend(late.map(Action::Hear));
        if world.regent.is_none() {
            return;
        }
        actions.push(if paces.read.is_none() { Action::Read } else { Action::GoBy });
        actions.extend(MOVES.map(Action::Move));
    }

    /// The node takes its assignment over.
    pub(crate) fn hear(&self, world: &mut World, index: usize) {
        world.paces.nodes[index] = world.paces.recorded;
    }

    /// A loop of the coordinator reads the record.
    pub(crate) fn read(&self, world: &mut World) {
        world.paces.read = Some(world.paces.recorded.promising);
    }

    /// And goes by what it has read, however long that was ago.
    pub(crate) fn go_by(&self, world: &mut World) -> Option<()> {
        let read = world.paces.read.take()?;
        world.paces.remembers = read.max(world.paces.at_least);
        Some(())
    }

    pub(crate) fn step(&self, world: &mut World, step: Move) -> Option<()> {
        let Change { to } = self.change?;
        let regent = world.regent.as_ref()?;
        let led = regent.reign.primary == id(0) && regent.reign.intended.is_none() && regent.stop.is_none();
        let patience = world.paces.recorded.promising;
        let paces = &mut world.paces;
        match (step, paces.step) {
            (Move::Widen, Step::NotBegun) if led => {
                paces.recorded.promising = patience.max(to);
                paces.step = Step::Widen;
                self.at_least(world, patience.max(to));
            }
            (Move::Profile, Step::Widen) => {
                let wide = |pace: &Pace| pace.promising == patience;
                let goes_on = paces.nodes.iter().all(wide) || self.leaves_out(Rule::WidenFirst);
                (led && goes_on).then_some(())?;
                paces.recorded.serving = to;
                paces.step = Step::Profile;
                // A coordinator that was restarted since.
                self.at_least(world, patience);
            }
            (Move::Rest, Step::Profile) => {
                let told = match self.leaves_out(Rule::AllKnowTheProfile) {
                    true => &paces.nodes[..1],
                    false => &paces.nodes[..],
                };
                let known = told.iter().all(|pace| pace.serving == to);
                (led && (known || self.leaves_out(Rule::NarrowLast))).then_some(())?;
                let lowers = to < patience && !self.leaves_out(Rule::OldLeasesRunOut);
                let rest =
                    if lowers { self.timings(patience).remembered() } else { std::time::Duration::ZERO };
                paces.step = Step::Rest(Countdown::from(rest));
            }
            (Move::Narrow, Step::Rest(Countdown::OVER)) => {
                paces.recorded.promising = to;
                paces.step = Step::Over;
                self.at_least(world, to);
            }
            (Move::Leave, Step::Widen | Step::Profile | Step::Rest(_)) => {
                paces.step = Step::Over;
                if paces.recorded.serving == self.lease {
                    paces.recorded.promising = self.lease;
                    self.at_least(world, self.lease);
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Not less, whatever its loops have read before.
    fn at_least(&self, world: &mut World, lease: u64) {
        if !self.leaves_out(Rule::AtLeast) {
            world.paces.at_least = lease;
        }
        world.paces.remembers = world.paces.remembers.max(lease);
    }
}
