//! A state of the world: nodes with their disk, kernel and engine, the coordinator, packets under way.

use std::collections::VecDeque;
use std::time::Duration;

use holdfast_common::id::NodeId;
use holdfast_common::position::Position;
use holdfast_common::protocol::{
    Attempt, Countdown, Effect, Gate, List, Member, Need, Record, Regent, Reign, Slot, Standing, Stop, Tail,
    Timings, ToCoordinator, ToMember, ToPeer, Version,
};
use holdfast_common::term::Term;
use uuid::Uuid;

use super::profiles::Paces;

/// How long a tick is on a clock that goes right.
pub(crate) const TICK: u64 = 10;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    /// The coordinator's disk, and its memory while it runs.
    pub(crate) stored: Reign,
    pub(crate) regent: Option<Regent>,
    /// Under way, in order, each once.
    pub(crate) packets: Vec<Packet>,
    pub(crate) faults: Faults,
    /// In which term the entry at each place was acknowledged.
    pub(crate) acknowledged: Vec<Term>,
    /// Two different entries were acknowledged at one place.
    pub(crate) contradicted: bool,
    /// How much of a tick each node's clock sees, then the coordinator's.
    pub(crate) clocks: Vec<u64>,
    /// How often the primary was asked to stop: each time under the next number.
    pub(crate) attempts: u64,
    /// What an earlier run of the coordinator knew of a stop; only where that rule is left out.
    pub(crate) outlived: Option<Stop>,
    /// By which times each of them goes.
    pub(crate) paces: Paces,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) disk: Record,
    pub(crate) member: Member,
    /// Decided and not yet done, where agents may stall.
    pub(crate) undone: VecDeque<Deed>,
    pub(crate) kernel: Kernel,
    pub(crate) engine: Engine,
    /// What a helper process of a dead agent is about to write to the kernel; only where that rule is left out.
    pub(crate) orphan: Option<Slot>,
    /// To be told once the engine is stopped.
    pub(crate) telling: Option<(Term, Attempt)>,
    /// Its machine is off, for good.
    pub(crate) off: bool,
}

/// One action of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Deed {
    Effect(Effect),
    /// The second half of an arming that is not one transaction; only where that rule is left out.
    TakeBack(Slot),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Kernel {
    pub(crate) armed: [Countdown; 2],
    pub(crate) granted: [bool; 2],
    pub(crate) alone: bool,
}

/// The database, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Engine {
    pub(crate) running: bool,
    /// As primary of this term.
    pub(crate) leads: Option<Term>,
    /// Receives from the primary of this term.
    pub(crate) follows: Option<Term>,
    pub(crate) list: Option<List>,
    /// In which term each entry was written.
    pub(crate) log: Vec<Term>,
    /// Since its start it was followed by enough.
    pub(crate) proven: bool,
    /// What it recovered was seen by clients.
    pub(crate) seen: bool,
    /// Its clean stop has ended: nothing of it is under way any more.
    pub(crate) down: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Packet {
    Up { from: usize, message: ToCoordinator },
    Down { to: usize, message: ToMember },
    Peer { from: usize, to: usize, message: ToPeer },
}

/// How many may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Faults {
    pub(crate) restarts: u8,
    pub(crate) crashes: u8,
    /// Of engines.
    pub(crate) falls: u8,
}

// === impl World ===

impl World {
    /// A healthy cluster of term 1 whose primary is node 0; its gate is shut, all else is at rest.
    pub(crate) fn at_rest(members: &[usize], need: Need, timings: &Timings, paces: Paces) -> Self {
        let size = paces.size();
        let list = List::new(Version::FIRST, members.iter().map(|&index| id(index)), need);
        let node = |index| match index {
            0 => Node::at_rest(Record::primary(Term::FIRST, list.clone()), timings),
            _ => Node::at_rest(Record::replica(Term::FIRST), timings),
        };
        let mut stored = Reign::first(id(0), list.clone());
        stored.enforced = true;
        let mut regent = Regent::started(stored.clone(), timings);
        regent.pass(timings.remembered());
        Self {
            nodes: (0..size).map(node).collect(),
            regent: Some(regent),
            stored,
            packets: Vec::new(),
            faults: Faults::default(),
            acknowledged: Vec::new(),
            contradicted: false,
            clocks: vec![TICK; size + 1],
            attempts: 0,
            outlived: None,
            paces,
        }
    }

    /// The nodes whose clients get through.
    pub(crate) fn open(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|&index| self.nodes[index].kernel.is_open())
    }

    /// The primary of the newest term that serves has all that was ever acknowledged.
    pub(crate) fn has_all_that_was_acknowledged(&self) -> bool {
        let newest = self.open().max_by_key(|&index| self.nodes[index].disk.term);
        !self.contradicted
            && newest.is_none_or(|index| self.nodes[index].engine.log.starts_with(&self.acknowledged))
    }

    pub(crate) fn acknowledge(&mut self, index: usize, upto: usize) {
        let log = &self.nodes[index].engine.log[..upto];
        let known = log.len().min(self.acknowledged.len());
        self.contradicted |= log[..known] != self.acknowledged[..known];
        if upto > self.acknowledged.len() {
            self.acknowledged = log.to_vec();
        }
    }

    /// What an async failover to this node loses was lost, and is not missed any more.
    pub(crate) fn lose(&mut self, index: usize) {
        let log = &self.nodes[index].engine.log;
        let kept = log.iter().zip(&self.acknowledged).take_while(|(has, told)| has == told).count();
        self.acknowledged.truncate(kept);
    }

    /// How many of the primary's list have its log up to there and receive from it.
    pub(crate) fn followers(&self, primary: usize, upto: usize) -> usize {
        let engine = &self.nodes[primary].engine;
        let Some(list) = &engine.list else { return 0 };
        let has = |index: &usize| {
            let other = &self.nodes[*index].engine;
            let receives = other.follows.is_some() && other.follows == engine.leads;
            list.has(id(*index)) && receives && other.log.starts_with(&engine.log[..upto])
        };
        (0..self.nodes.len()).filter(has).count()
    }
}

// === impl Node ===

impl Node {
    fn at_rest(record: Record, timings: &Timings) -> Self {
        let primary = record.standing == Standing::Primary;
        let mut member = Member::started(record.clone(), Gate::default(), timings);
        member.pass(timings.remembered());
        let engine = Engine {
            running: true,
            leads: primary.then_some(record.term),
            follows: (!primary).then_some(record.term),
            list: record.list.clone(),
            proven: primary,
            seen: primary,
            log: Vec::new(),
            down: false,
        };
        Self {
            disk: record,
            member,
            undone: VecDeque::new(),
            kernel: Kernel::default(),
            engine,
            orphan: None,
            telling: None,
            off: false,
        }
    }

    pub(crate) fn tail(&self) -> Tail {
        let log = &self.engine.log;
        let position = Position { era: 0, offset: log.len() as u64 };
        Tail { term: log.last().copied().unwrap_or(Term::NONE), position }
    }
}

// === impl Kernel ===

impl Kernel {
    pub(crate) fn pass(&mut self, elapsed: Duration) {
        self.armed.iter_mut().for_each(|armed| armed.pass(elapsed));
    }

    pub(crate) fn is_open(&self) -> bool {
        self.alone || (0..2).any(|slot| !self.armed[slot].is_over() && self.granted[slot])
    }

    /// What a starting agent finds.
    pub(crate) fn found(&self) -> Gate {
        let open = [0, 1].map(|slot| match self.granted[slot] {
            true => self.armed[slot].left(),
            false => Duration::ZERO,
        });
        Gate::found(open, self.alone)
    }
}

// === impl Engine ===

impl Engine {
    /// As it was.
    pub(crate) fn start(&mut self) {
        self.running = true;
        self.down = false;
    }

    pub(crate) fn stop(&mut self) {
        self.running = false;
        self.proven = false;
        self.seen = false;
    }

    pub(crate) fn lead(&mut self, term: Term, list: List) {
        self.start();
        self.leads = Some(term);
        self.follows = None;
        self.list = Some(list);
        self.proven = false;
        self.seen = false;
    }

    pub(crate) fn follow(&mut self, term: Term) {
        self.start();
        self.leads = None;
        self.follows = Some(term);
        self.list = None;
    }
}

pub(crate) fn id(index: usize) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(index as u128 + 1))
}

pub(crate) fn index_of(node: NodeId) -> usize {
    usize::try_from(node.as_uuid().as_u128()).expect("a small number") - 1
}
