//! The two slots of the gate, as the agent remembers them. The kernel enforces; this decides which slot is armed and which
//! answer may open it.
//!
//! A packet passes while one slot is both armed (an element with a timeout) and granted. A slot is armed *before* its
//! request is sent, in one transaction that also takes back what it was granted, so that an agent that stalls between
//! "granted" and "write it to the kernel" cannot open late: the time runs since the arming.
//!
//! ```text
//!   Free ──ask──► Asked ──answer, engine not ready──► Held ──engine ready──► Open
//!    ▲              │ └─────answer, engine ready──────────────────────────────▲ │
//!    └──────────────┴──────────── time over, shut ──────────────────────────────┘
//! ```
//!
//! The slot that has the least to lose is armed: one that keeps the gate open is left alone while the other asks in vain, or
//! is held for an engine that was not seen to be ready yet.

use std::time::Duration;

use super::membership::List;
use super::number::RequestNumber;
use super::timing::Countdown;
use crate::id::NodeId;

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    A,
    B,
}

/// What the agent knows of its gate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Gate {
    slots: [Hold; 2],
    /// Open without a timeout: a lone primary.
    alone: bool,
    /// The last request, while the coordinator has not answered it and any slot has time left.
    unheard: Option<RequestNumber>,
}

/// One slot. Time is left only while it is not free.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Hold {
    left: Countdown,
    phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
enum Phase {
    #[default]
    Free,
    /// Armed for this request, and not answered enough.
    Asked {
        number: RequestNumber,
        promised: Vec<NodeId>,
    },
    /// The lease is there; the engine is not ready.
    Held,
    Open,
    /// The lease is there, for what is left of it; the engine was not ready any more, and this lets nobody in again.
    Closed,
}

// === impl Slot ===

impl Slot {
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    pub const fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

// === impl Gate ===

impl Gate {
    /// As a starting agent finds it in the kernel: how long each slot is still open, and whether there is an element without
    /// timeout.
    pub fn found(open: [Duration; 2], alone: bool) -> Self {
        let hold = |left: Duration| match left.is_zero() {
            true => Hold::default(),
            false => Hold { left: Countdown::from(left), phase: Phase::Open },
        };
        Self { slots: open.map(hold), alone, unheard: None }
    }

    pub(super) fn pass(&mut self, elapsed: Duration) {
        for slot in &mut self.slots {
            slot.left.pass(elapsed);
            if slot.left.is_over() {
                *slot = Hold::default();
            }
        }
        if self.slots.iter().all(|slot| slot.phase == Phase::Free) {
            self.unheard = None;
        }
    }

    /// Arms a slot for a new request; what it was armed for before is forgotten.
    pub(super) fn ask(&mut self, number: RequestNumber, timeout: Duration) -> Slot {
        let [a, b] = &self.slots;
        let slot = if a.worth() <= b.worth() { Slot::A } else { Slot::B };
        let phase = Phase::Asked { number, promised: Vec::new() };
        self.unheard = Some(number);
        self.slots[slot.index()] = Hold { left: Countdown::from(timeout), phase };
        slot
    }

    /// The slot that was last armed for this request, while it is still waited for.
    pub(super) fn asked(&self, number: RequestNumber) -> Option<Slot> {
        Slot::BOTH.into_iter().find(|slot| match &self.slots[slot.index()].phase {
            Phase::Asked { number: asked, .. } => *asked == number,
            Phase::Free | Phase::Held | Phase::Open | Phase::Closed => false,
        })
    }

    /// The coordinator answers: whether before the next request.
    pub(super) fn is_heard_in_time(&mut self, number: RequestNumber) -> bool {
        self.unheard.take_if(|unheard| *unheard == number).is_some()
    }

    /// Remembers who promised for this request; the slot once the promises suffice.
    pub(super) fn promised(&mut self, number: RequestNumber, by: NodeId, list: &List) -> Option<Slot> {
        let slot = self.asked(number)?;
        let Phase::Asked { promised, .. } = &mut self.slots[slot.index()].phase else { return None };
        if let Err(place) = promised.binary_search(&by) {
            promised.insert(place, by);
        }
        list.is_promised_by(promised).then_some(slot)
    }

    /// The request was answered: what is left of its time may be served.
    pub(super) fn hold(&mut self, slot: Slot) {
        self.slots[slot.index()].phase = Phase::Held;
    }

    /// Opens what is held.
    pub(super) fn open(&mut self) -> Vec<Slot> {
        let held =
            Slot::BOTH.into_iter().filter(|slot| self.slots[slot.index()].phase == Phase::Held).collect();
        for slot in &held {
            let slot: &Slot = slot;
            self.slots[slot.index()].phase = Phase::Open;
        }
        held
    }

    pub(super) fn open_alone(&mut self) {
        self.alone = true;
    }

    /// From open without a timeout to open for so long.
    pub(super) fn limit(&mut self, timeout: Duration) -> Slot {
        self.alone = false;
        self.slots[Slot::A.index()] = Hold { left: Countdown::from(timeout), phase: Phase::Open };
        Slot::A
    }

    /// Forgets every request in hand; what is open stays so.
    pub(super) fn forget(&mut self) {
        self.unheard = None;
        for slot in &mut self.slots {
            if matches!(slot.phase, Phase::Asked { .. }) {
                *slot = Hold::default();
            }
        }
    }

    /// Shuts it, and forgets every request in hand, since the kernel forgets what was armed for it; the lease goes on. Only a
    /// request that is made afterwards opens it again.
    pub(super) fn close(&mut self) {
        self.forget();
        self.alone = false;
        for slot in &mut self.slots {
            if matches!(slot.phase, Phase::Held | Phase::Open) {
                slot.phase = Phase::Closed;
            }
        }
    }

    /// Shuts it, gives up the lease, and forgets every request in hand.
    pub(super) fn shut(&mut self) {
        *self = Self::default();
    }

    /// The requests in hand: an answer to any other opens nothing.
    pub fn requests(&self) -> impl Iterator<Item = RequestNumber> + '_ {
        self.slots.iter().filter_map(|slot| match &slot.phase {
            Phase::Asked { number, .. } => Some(*number),
            Phase::Free | Phase::Held | Phase::Open | Phase::Closed => None,
        })
    }

    /// The requests whose answers mean anything: those in hand, and the last one that the coordinator has not answered.
    pub fn answerable(&self) -> impl Iterator<Item = RequestNumber> + '_ {
        self.requests().chain(self.unheard)
    }

    /// Open without a timeout.
    pub const fn is_alone(&self) -> bool {
        self.alone
    }

    /// As far as the agent knows; the kernel may have shut it.
    pub fn is_open(&self) -> bool {
        self.alone || self.slots.iter().any(|slot| slot.phase == Phase::Open)
    }

    /// For how long there is a lease.
    pub fn left(&self) -> Duration {
        self.slots.iter().map(Hold::at_stake).max().unwrap_or_default()
    }
}

// === impl Hold ===

impl Hold {
    /// What is lost if it is armed anew: an open slot lets clients in, one that is held does not yet.
    fn worth(&self) -> (bool, Duration) {
        (self.phase == Phase::Open, self.at_stake())
    }

    /// The time that is lost with it.
    fn at_stake(&self) -> Duration {
        match self.phase {
            Phase::Free | Phase::Asked { .. } => Duration::ZERO,
            Phase::Held | Phase::Open | Phase::Closed => self.left.left(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(4);
    const SECOND: Duration = Duration::from_secs(1);

    fn number(place: u64) -> RequestNumber {
        RequestNumber::new(1, place)
    }

    fn answered(gate: &mut Gate, place: u64) -> Vec<Slot> {
        gate.asked(number(place)).into_iter().for_each(|slot| gate.hold(slot));
        gate.open()
    }

    #[test]
    fn the_slots_alternate_while_answers_come() {
        let mut gate = Gate::default();
        let slots: Vec<Slot> = (0..4)
            .map(|place| {
                gate.pass(SECOND);
                let slot = gate.ask(number(place), TIMEOUT);
                assert_eq!(answered(&mut gate, place), [slot]);
                slot
            })
            .collect();
        assert_eq!(slots, [Slot::A, Slot::B, Slot::A, Slot::B]);
    }

    /// As after a restart of the agent: the kernel lets clients in, and the engine was not looked at yet.
    #[test]
    fn a_slot_that_is_open_is_left_alone_while_the_other_is_only_held() {
        let mut gate = Gate::found([TIMEOUT, SECOND * 2], false);
        for place in 0..3 {
            assert_eq!(gate.ask(number(place), TIMEOUT), Slot::B);
            gate.asked(number(place)).into_iter().for_each(|slot| gate.hold(slot));
            gate.pass(SECOND);
            assert!(gate.is_open());
        }
        assert_eq!(gate.open(), [Slot::B]);
    }

    #[test]
    fn a_slot_that_is_open_is_left_alone_while_the_other_asks_in_vain() {
        let mut gate = Gate::default();
        gate.ask(number(0), TIMEOUT);
        answered(&mut gate, 0);
        for place in 1..4 {
            gate.pass(SECOND);
            assert_eq!(gate.ask(number(place), TIMEOUT), Slot::B);
        }
        assert_eq!(gate.left(), SECOND);
        gate.pass(SECOND);
        assert!(!gate.is_open());
    }

    #[test]
    fn only_the_answer_to_the_request_that_a_slot_was_last_armed_for_opens_it() {
        let mut gate = Gate::default();
        gate.ask(number(0), TIMEOUT);
        gate.ask(number(1), TIMEOUT);
        assert_eq!(gate.asked(number(0)), None);
        assert_eq!(answered(&mut gate, 0), []);
        assert_eq!(answered(&mut gate, 1), [Slot::A]);
        assert_eq!(gate.asked(number(1)), None, "answered twice");
    }

    #[test]
    fn an_answer_after_the_time_opens_nothing() {
        let mut gate = Gate::default();
        gate.ask(number(0), TIMEOUT);
        gate.pass(TIMEOUT);
        assert_eq!(gate, Gate::default());
        assert_eq!(answered(&mut gate, 0), []);
    }

    #[test]
    fn shut_forgets_and_forget_leaves_open() {
        let mut gate = Gate::default();
        gate.ask(number(0), TIMEOUT);
        answered(&mut gate, 0);
        gate.ask(number(1), TIMEOUT);
        gate.forget();
        assert!(gate.is_open());
        assert_eq!(gate.asked(number(1)), None);
        gate.ask(number(2), TIMEOUT);
        gate.shut();
        assert!(!gate.is_open());
        assert_eq!(gate.asked(number(2)), None);
    }

    #[test]
    fn what_is_closed_is_a_lease_that_lets_nobody_in() {
        let mut gate = Gate::default();
        gate.ask(number(0), TIMEOUT);
        answered(&mut gate, 0);
        gate.ask(number(1), TIMEOUT);
        gate.pass(SECOND);
        gate.close();
        assert_eq!((gate.is_open(), gate.left()), (false, 3 * SECOND));
        assert_eq!((gate.asked(number(1)), gate.open()), (None, vec![]));
        assert_eq!(gate.ask(number(2), TIMEOUT), Slot::B);
        assert_eq!(answered(&mut gate, 2), [Slot::B]);
        gate.close();
        gate.pass(TIMEOUT);
        assert_eq!(gate, Gate::default());
    }

    #[test]
    fn a_starting_agent_arms_the_slot_that_keeps_nothing_open() {
        let mut gate = Gate::found([SECOND, Duration::ZERO], false);
        assert!(gate.is_open());
        assert_eq!(gate.ask(number(0), TIMEOUT), Slot::B);
        let mut gate = Gate::found([SECOND, 2 * SECOND], false);
        assert_eq!(gate.ask(number(0), TIMEOUT), Slot::A);
        assert_eq!(gate.left(), 2 * SECOND);
    }
}
