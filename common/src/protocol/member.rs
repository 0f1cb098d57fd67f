//! One member on its agent: what it keeps, which messages it obeys, what must be done.
//!
//! Every effect is carried out in the order given. If one fails, the rest of its batch is dropped and the member is
//! [`started`](Member::started) again from its stored record: any failure to renew, of whatever kind, is no renewal.
//! What follows an [`Effect::Store`], in its batch or in later ones, waits until the record is on the disk; only the gate,
//! renewals and promises may go before.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::gate::{Gate, Slot};
use super::membership::{List, Version};
use super::message::{Attempt, ToCoordinator, ToMember, ToPeer};
use super::number::RequestNumber;
use super::timing::{Countdown, STARTING_ASKS_FOR, Timings};
use crate::id::NodeId;
use crate::term::Term;

/// What is on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The highest that was accepted.
    pub term: Term,
    pub standing: Standing,
    /// A primary's list. None: unknown, which is never empty.
    pub list: Option<List>,
    /// FENCED: as primary of this term it lost its lease; only a new one, or a higher term, lets it serve.
    pub fenced: bool,
}

/// What a member is in its term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    Primary,
    Replica,
    /// It receives from no primary of a lower term, and from none of this one until it is told to follow it.
    Sealed,
}

/// A member on its agent. Plain data, so that the driver can tell what it is and the models can tamper with it; whoever
/// else writes a field leaves what is proven.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Member {
    pub record: Record,
    pub gate: Gate,
    /// Until when it may not be promoted, nor sealed.
    pub promise: Countdown,
    /// A seal or promotion that waits for that; meanwhile nothing is promised anew.
    pub(super) waiting: Option<ToMember>,
    /// Until when the coordinator counts as heard.
    pub(super) heard: Countdown,
    /// How long the engine runs without a lease before it is stopped.
    pub(super) patience: Countdown,
    /// The engine was told to run.
    pub(super) running: bool,
    /// The engine may serve: it runs as primary and, in quorum mode, is followed by enough.
    pub(super) ready: bool,
    /// The list that the engine enforces.
    pub(super) enforced: Option<Version>,
    /// The attempt for which the engine was stopped, and has been ever since.
    pub(super) stopped: Option<Attempt>,
    /// While it is being stopped it asks for nothing, and a lone one does not start: else it would start again by promises, or by itself,
    /// under the coordinator's hands.
    pub(super) rest: Countdown,
}

/// What happens to a member.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Event {
    /// It is time to renew, under a number that was never used.
    Round { number: RequestNumber },
    /// The coordinator says.
    Told(ToMember),
    /// Another member's agent says.
    Peer { from: NodeId, message: ToPeer },
    /// The engine may serve as primary ([`Need::is_followed_by`](super::Need::is_followed_by)), or may not any more.
    Ready(bool),
    /// The engine enforces the list of this version, and every member in it has all that was acknowledged.
    Enforced { version: Version },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Effect {
    /// In one transaction: take back what the slot was granted, and arm it anew.
    Arm {
        slot: Slot,
        timeout: Duration,
    },
    Grant {
        slot: Slot,
    },
    /// Open without a timeout.
    OpenAlone,
    /// Take the element without timeout away.
    CloseAlone,
    /// Take every element away.
    Shut,
    /// Durably, before anything that follows.
    Store(Record),
    /// At once, not waiting for sessions.
    StopEngine,
    /// Cleanly: the log ends with a checkpoint that replicas have.
    StopEngineCleanly,
    /// As it was, with the gate shut.
    StartEngine,
    /// Make the engine primary, with this list enforced.
    Lead {
        list: List,
    },
    /// Make the engine depend on this list.
    Enforce {
        list: List,
    },
    /// Receive nothing any more.
    CutReceiver,
    /// Receive from this primary.
    Follow {
        term: Term,
        primary: NodeId,
    },
    Tell(ToCoordinator),
    /// Read where the log ends and tell it, as [`ToCoordinator::Sealed`].
    TellSealed {
        term: Term,
    },
    /// Once the engine is stopped read where its log ends and tell it, as [`ToCoordinator::Stopped`].
    TellStopped {
        term: Term,
        attempt: Attempt,
    },
    /// Read once more where the stopped engine's log ends and tell it, as [`ToCoordinator::Confirmed`].
    TellConfirmed {
        term: Term,
        attempt: Attempt,
    },
    Send {
        to: NodeId,
        message: ToPeer,
    },
}

// === impl Record ===

impl Record {
    /// Of a member that follows, or is to.
    pub const fn replica(term: Term) -> Self {
        Self { term, standing: Standing::Replica, list: None, fenced: false }
    }

    pub const fn primary(term: Term, list: List) -> Self {
        Self { term, standing: Standing::Primary, list: Some(list), fenced: false }
    }
}

// === impl Member ===

impl Member {
    /// A starting agent's, with what it found on its disk and in the kernel.
    ///
    /// Promises are lost with the memory that held them, so one whose member is not a primary counts as having promised.
    pub fn started(record: Record, gate: Gate, timings: &Timings) -> Self {
        let primary = record.standing == Standing::Primary;
        let (promise, patience) =
            if primary { (Duration::ZERO, STARTING_ASKS_FOR) } else { (timings.promised(), Duration::ZERO) };
        Self {
            running: primary && !record.fenced,
            record,
            gate,
            promise: Countdown::from(promise),
            waiting: None,
            heard: Countdown::OVER,
            patience: Countdown::from(patience),
            ready: false,
            enforced: None,
            stopped: None,
            rest: Countdown::OVER,
        }
    }

    /// One that was never on this node: a record is stored before the first promise is given, so without one it has promised
    /// nothing. It is what [`started`](Self::started) becomes when its promise is over.
    pub fn fresh(timings: &Timings) -> Self {
        let mut member = Self::started(Record::replica(Term::NONE), Gate::default(), timings);
        member.pass(timings.promised());
        member
    }

    /// So much time went by. To be told before every event.
    pub fn pass(&mut self, elapsed: Duration) {
        self.gate.pass(elapsed);
        for countdown in [&mut self.promise, &mut self.heard, &mut self.patience, &mut self.rest] {
            countdown.pass(elapsed);
        }
    }

    pub fn handle(&mut self, event: Event, timings: &Timings) -> Vec<Effect> {
        match event {
            Event::Round { number } => self.renew(number, timings),
            Event::Told(message) => self.obey(message, timings),
            Event::Peer { from, message: ToPeer::AskPromise { number, term } } => {
                self.asked_to_promise(from, number, term, timings)
            }
            Event::Peer { from, message: ToPeer::Promise { number, term } } => {
                self.promised(from, number, term)
            }
            Event::Ready(ready) => self.engine_is_ready(ready),
            Event::Enforced { version } => self.engine_enforces(version),
        }
    }

    /// What time alone brings about. To be asked after [`Member::pass`], and after every event.
    pub fn due(&mut self, timings: &Timings) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.promise.is_over()
            && let Some(message) = self.waiting.take()
        {
            effects.extend(self.obey(message, timings));
        }
        effects.extend(self.lease_is_due());
        effects
    }

    /// When [`Member::due`] has something to say, if nothing else happens.
    pub fn due_in(&self) -> Option<Duration> {
        let waiting = self.waiting.as_ref().map(|_| self.promise.left());
        let lease = self.stops_without_lease().then(|| self.gate.left().max(self.patience.left()));
        let rest = self.starts_by_itself().then(|| self.rest.left());
        waiting.into_iter().chain(lease).chain(rest).min()
    }

    fn obey(&mut self, message: ToMember, timings: &Timings) -> Vec<Effect> {
        match message {
            ToMember::Granted { number, term, list } => self.granted(number, term, list, timings),
            ToMember::Fence { term, attempt } => self.fence(term, attempt),
            ToMember::Stop { term, attempt } => self.stop(term, attempt, timings),
            ToMember::Confirm { term, attempt } => self.confirm(term, attempt, timings),
            ToMember::Seal { term } => self.seal(term),
            ToMember::Promote { term, list } => self.promote(term, list, timings),
            ToMember::Follow { term, primary } => self.follow(term, primary),
        }
    }

    /// Whether it was stopped for this attempt of its own term, and has been ever since.
    pub fn is_stopped_for(&self, term: Term, attempt: Attempt) -> bool {
        self.leads(term) && self.stopped == Some(attempt)
    }

    /// Whether it asks for nothing, because it is to stay stopped.
    pub fn is_at_rest(&self) -> bool {
        !self.rest.is_over()
    }

    /// Whether it is primary in exactly this term.
    pub(super) fn leads(&self, term: Term) -> bool {
        self.record.standing == Standing::Primary && self.record.term == term
    }
}
