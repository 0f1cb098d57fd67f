//! One member: hands what happens to the state machine of `common::protocol`, and carries its effects out in their order.
//!
//! ```text
//!  event ─► Member ─► effects ─┬─► gate, renewals, promises, stopping the engine: now
//!                              └─► a record: to the disk; what follows it waits until it is there
//! ```
//! If the gate cannot be changed the rest of the batch is dropped, and the member begins again from its stored record and
//! from what the kernel says, as at the agent's start. But its engine runs on without a lease no longer than for what was left of the
//! last one: a failure to renew is no renewal, and no loss of what there is.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::protocol::timing::STARTING_ASKS_FOR;
use holdfast_common::protocol::{
    Attempt, Effect, Event, Gate, List, Member, Numbers, Record, Standing, Tail, Timings, ToCoordinator,
    ToMember, ToPeer,
};
use holdfast_common::report::{EngineState, LeaseReport, LeaseSource, MemberReport, Severity};
use holdfast_common::role::Role;
use holdfast_common::term::Term;

use super::hands::{Deed, Hands};
use super::readiness::Readiness;
use super::{Asked, Held, Pace, Serve};

/// Effects that wait for the disk; a member whose disk hangs for so long begins anew.
const MAX_WAITING: usize = 64;

/// How soon a kernel that could not be told is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// A gate that has longer to be open is, by the kernel's clock too.
const SURELY_OPEN: Duration = Duration::from_millis(500);

/// The lease of one member.
#[derive(Debug)]
pub(super) struct Keeper {
    cluster: ClusterId,
    /// The engine's own first; all of them open and shut together.
    ports: Vec<u16>,
    pace: Pace,
    member: Member,
    /// On the disk.
    stored: Record,
    /// On its way to the disk.
    storing: Option<Record>,
    waiting: VecDeque<Effect>,
    serve: Serve,
    stops: u32,
    source: LeaseSource,
    readiness: Readiness,
    /// Since the last round of renewals.
    since_round: Duration,
    /// The kernel could not be told: the member is to begin again.
    broken: bool,
    /// Its engine was last seen in recovery, which is what a replica's does.
    recovers: bool,
    /// It was never here, and its first record is not on the disk: it promises nothing yet.
    unborn: bool,
}

// === impl Keeper ===

impl Keeper {
    /// A member that was never here. Its first record goes to the disk before anything else.
    pub(super) fn fresh(
        cluster: ClusterId,
        ports: Vec<u16>,
        pace: impl Into<Pace>,
        hands: &mut dyn Hands,
    ) -> Self {
        let pace = pace.into();
        let member = Member::fresh(&pace.promising);
        let mut keeper = Self { unborn: true, ..Self::around(cluster, ports, pace, member) };
        keeper.begin_store(keeper.stored.clone(), hands);
        keeper
    }

    /// A starting agent's, with what was found on the disk.
    pub(super) fn started(
        cluster: ClusterId,
        ports: Vec<u16>,
        pace: impl Into<Pace>,
        record: Record,
        hands: &mut dyn Hands,
    ) -> Self {
        let found = hands.observe(&ports);
        let broken = found.is_err();
        let pace = pace.into();
        let timings = pace.of(record.standing);
        let member = Member::started(record, found.unwrap_or_default(), &timings);
        Self { broken, ..Self::around(cluster, ports, pace, member) }
    }

    fn around(cluster: ClusterId, ports: Vec<u16>, pace: Pace, member: Member) -> Self {
        let source = if member.gate.is_alone() { LeaseSource::Alone } else { LeaseSource::None };
        Self {
            cluster,
            ports,
            pace,
            stored: member.record.clone(),
            serve: serve(&member.record),
            stops: 0,
            member,
            storing: None,
            waiting: VecDeque::new(),
            source,
            readiness: Readiness::default(),
            // The first round is due at once.
            since_round: Duration::MAX,
            broken: false,
            recovers: false,
            unborn: false,
        }
    }

    /// By which times it goes from here on. What was promised before stays so for as long as it was.
    pub(super) fn keep_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    fn timings(&self) -> Timings {
        self.pace.of(self.member.record.standing)
    }

    pub(super) fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Nothing binds it to its cluster any more.
    pub(super) fn is_free(&self) -> bool {
        self.storing.is_none() && self.member.promise.is_over()
    }

    /// So much time went by.
    pub(super) fn pass(&mut self, elapsed: Duration) {
        self.member.pass(elapsed);
        self.since_round = self.since_round.saturating_add(elapsed);
    }

    /// Somebody can be asked now who could not be before: the next round is due at once.
    pub(super) fn hurry(&mut self) {
        self.since_round = Duration::MAX;
    }

    /// When [`Keeper::due`] has something to do, if nothing else happens.
    pub(super) fn due_in(&self) -> Duration {
        if self.unborn || self.broken {
            // Nothing can be done before the disk answers, or the kernel does: no reason to spin.
            return AGAIN;
        }
        let round = self.timings().renewal.saturating_sub(self.since_round);
        self.member.due_in().map_or(round, |due| due.min(round))
    }

    /// What time alone brings about.
    pub(super) fn due(&mut self, numbers: &mut Numbers, contact: bool, hands: &mut dyn Hands) {
        if self.unborn {
            return;
        }
        if self.broken && !self.mend(hands) {
            return;
        }
        if self.since_round >= self.timings().renewal {
            self.since_round = Duration::ZERO;
            self.look_after_gate(contact, hands);
            self.happen(Event::Round { number: numbers.take() }, hands);
        }
        let effects = self.member.due(&self.timings());
        self.carry(effects, hands);
    }

    /// What the assignment says of a replica: the coordinator told it whom to follow.
    pub(super) fn follow(&mut self, term: Term, primary: NodeId, hands: &mut dyn Hands) {
        if self.member.record != Record::replica(term) && term >= self.member.record.term {
            self.happen(Event::Told(ToMember::Follow { term, primary }), hands);
        }
    }

    /// What is observed of the engine.
    pub(super) fn see(&mut self, seen: &MemberReport, hands: &mut dyn Hands) {
        self.note_recovery(seen, hands);
        if self.member.record.standing != Standing::Primary {
            return;
        }
        // Until the term is written in its data, nobody that follows could have all of its beginning.
        if seen.state == EngineState::Running && seen.term < self.member.record.term {
            return;
        }
        let list: Option<List> = self.member.record.list.clone();
        if let Some(ready) = self.readiness.is_ready(seen, list.as_ref()) {
            let was_open = self.member.gate.is_open();
            self.happen(Event::Ready(ready), hands);
            if was_open && !self.member.gate.is_open() {
                // What opens it again is asked for while the engine is started anew.
                self.hurry();
            }
        }
        if let Some(version) = list.and_then(|list| self.readiness.enforces(seen, &list)) {
            self.happen(Event::Enforced { version }, hands);
        }
    }

    /// Readers are let in to an engine in recovery, and to no other: somebody may have promoted or started it by hand, and then it
    /// would take writes beside the primary.
    fn note_recovery(&mut self, seen: &MemberReport, hands: &mut dyn Hands) {
        let recovers = seen.state == EngineState::Running && seen.role == Some(Role::Replica);
        let before = std::mem::replace(&mut self.recovers, recovers);
        if before == recovers || self.member.record.standing == Standing::Primary {
            return;
        }
        if recovers {
            self.hurry();
        } else if let Err(error) = hands.gate(&self.ports, Deed::Shut) {
            tracing::warn!(cluster = %self.cluster, %error, "readers have time to leave until the gate's end");
        }
    }

    /// Something happened to the member.
    pub(super) fn happen(&mut self, event: Event, hands: &mut dyn Hands) {
        if self.unborn || self.broken {
            return;
        }
        let source = match &event {
            Event::Told(ToMember::Granted { .. }) => Some(LeaseSource::Coordinator),
            Event::Peer { message: ToPeer::Promise { .. }, .. } => Some(LeaseSource::Promises),
            _ => None,
        };
        let (left, rests) = (self.member.gate.left(), self.member.is_at_rest());
        let effects = self.member.handle(event, &self.timings());
        if rests && !self.member.is_at_rest() {
            self.hurry();
        }
        if let Some(source) = source.filter(|_| self.member.gate.left() > left) {
            self.source = source;
        }
        self.carry(effects, hands);
        let effects = self.member.due(&self.timings());
        self.carry(effects, hands);
    }

    /// The record is on the disk: what waited for it goes on.
    pub(super) fn stored(&mut self, record: Record, hands: &mut dyn Hands) {
        if self.storing.as_ref() != Some(&record) {
            return;
        }
        self.storing = None;
        self.stored = record;
        self.unborn = false;
        let waiting: Vec<Effect> = std::mem::take(&mut self.waiting).into();
        if !self.broken {
            self.carry_on(waiting, hands);
        }
    }

    /// It is stopped: told, if it has been ever since that was asked for.
    pub(super) fn rested(
        &self,
        term: Term,
        attempt: Attempt,
        asked: Asked,
        tail: Tail,
        hands: &mut dyn Hands,
    ) {
        if !self.broken && self.member.is_stopped_for(term, attempt) {
            let message = match asked {
                Asked::ToStop => ToCoordinator::Stopped { term, attempt, tail },
                Asked::ToConfirm => ToCoordinator::Confirmed { term, attempt, tail },
            };
            hands.tell(self.cluster, message);
        }
    }

    /// It receives from nobody: told, if it is to.
    pub(super) fn is_cut(&self, term: Term, tail: Tail, hands: &mut dyn Hands) {
        if self.stored.standing == Standing::Sealed && self.stored.term == term && self.storing.is_none() {
            hands.tell(self.cluster, ToCoordinator::Sealed { term, tail });
        }
    }

    /// How it stands.
    pub(super) fn held(&self) -> Held {
        let Record { term, standing, list, fenced } = &self.member.record;
        let report = (*standing == Standing::Primary).then(|| {
            let alone = self.member.gate.is_alone();
            let source = match (alone, self.member.gate.left().is_zero()) {
                (true, _) => LeaseSource::Alone,
                (false, true) => LeaseSource::None,
                (false, false) => self.source,
            };
            LeaseReport {
                source,
                version: list.as_ref().map(|list| list.version),
                fenced: *fenced,
                open: !self.broken && self.member.gate.is_open(),
            }
        });
        let has_promised = *standing == Standing::Replica && !self.member.promise.is_over();
        let Self { serve, stops, pace, .. } = *self;
        Held { standing: (*term, *standing), serve, report, has_promised, stops, pace }
    }

    /// Effects of one event: behind those that wait for the disk, but for what must not wait.
    fn carry(&mut self, effects: Vec<Effect>, hands: &mut dyn Hands) {
        if !self.broken {
            self.carry_on(effects, hands);
        }
    }

    fn carry_on(&mut self, effects: Vec<Effect>, hands: &mut dyn Hands) {
        let mut effects = effects.into_iter().peekable();
        while let Some(effect) = effects.next() {
            let deed = match effect {
                Effect::Arm { slot, timeout } if effects.peek() == Some(&Effect::Grant { slot }) => {
                    effects.next();
                    Deed::Limit(slot, timeout)
                }
                Effect::Arm { slot, timeout } => Deed::Arm(slot, timeout),
                Effect::Grant { slot } => Deed::Grant(slot),
                Effect::OpenAlone => Deed::OpenForEver,
                Effect::Shut => Deed::Shut,
                // The element without an end was that of the slot that has just been limited.
                Effect::CloseAlone => continue,
                other => {
                    self.carry_other(other, hands);
                    continue;
                }
            };
            if let Err(error) = hands.gate(&self.ports, deed) {
                tracing::warn!(cluster = %self.cluster, ?deed, %error, "the gate cannot be changed");
                let stops =
                    effects.any(|rest| matches!(rest, Effect::StopEngine | Effect::StopEngineCleanly));
                self.break_off(stops, hands);
                return;
            }
        }
    }

    fn carry_other(&mut self, effect: Effect, hands: &mut dyn Hands) {
        match effect {
            Effect::Tell(message @ ToCoordinator::Renew { .. }) => return hands.tell(self.cluster, message),
            Effect::Send { to, message } => return hands.send(self.cluster, to, message),
            // Stopping is never wrong; but what waits before it may start the engine, so there it keeps its place too.
            Effect::StopEngine if self.storing.is_some() => self.halt(hands),
            _ => {}
        }
        if self.storing.is_some() {
            if self.waiting.len() >= MAX_WAITING {
                return self.break_off(false, hands);
            }
            return self.waiting.push_back(effect);
        }
        match effect {
            Effect::Store(record) => self.begin_store(record, hands),
            Effect::StopEngine => self.halt(hands),
            Effect::StartEngine => self.may_serve(hands),
            Effect::Lead { .. } => {
                self.may_serve(hands);
                // Its lease is asked for while the engine gets ready, not after.
                self.hurry();
            }
            Effect::Tell(message) => hands.tell(self.cluster, message),
            Effect::StopEngineCleanly => {
                self.serve = Serve::Rests;
                self.stops = self.stops.saturating_add(1);
                self.readiness = Readiness::default();
            }
            Effect::TellStopped { term, attempt } => hands.rest(self.cluster, term, attempt, Asked::ToStop),
            Effect::TellConfirmed { term, attempt } => {
                hands.rest(self.cluster, term, attempt, Asked::ToConfirm);
            }
            Effect::TellSealed { term } => hands.seal(self.cluster, term),
            // The assignment tells the engine, and what it enforces is seen; the receiver is cut by whoever tells that it is.
            Effect::Enforce { .. } | Effect::Follow { .. } | Effect::CutReceiver => {}
            Effect::Arm { .. }
            | Effect::Grant { .. }
            | Effect::OpenAlone
            | Effect::CloseAlone
            | Effect::Shut
            | Effect::Send { .. } => {}
        }
    }

    fn may_serve(&mut self, hands: &mut dyn Hands) {
        hands.go_on(self.cluster);
        self.readiness = Readiness::default();
        self.serve = Serve::May;
    }

    fn begin_store(&mut self, record: Record, hands: &mut dyn Hands) {
        if record.fenced && !self.stored.fenced {
            let message = "it lost its lease: its port is shut and its engine is being stopped; it serves again once it has a new one";
            hands.event(self.cluster, Severity::Error, "LEASE_LOST", message);
        } else if self.stored.fenced && !record.fenced && record.standing == Standing::Primary {
            hands.event(self.cluster, Severity::Info, "LEASE_REGAINED", "it has a lease again, and serves");
        }
        self.storing = Some(record.clone());
        hands.store(self.cluster, record);
    }

    fn halt(&mut self, hands: &mut dyn Hands) {
        let rests = std::mem::replace(&mut self.serve, Serve::MustNot) == Serve::Rests;
        self.stops = self.stops.saturating_add(1);
        self.readiness = Readiness::default();
        // Else it could hit the replica that is started in its place; what still runs as primary is ended by the next round.
        if !rests {
            hands.halt(self.cluster);
        }
    }

    fn break_off(&mut self, stops: bool, hands: &mut dyn Hands) {
        if stops {
            self.halt(hands);
        }
        self.waiting.clear();
        self.broken = true;
    }

    /// Begins again from the disk and the kernel; false while that is not possible.
    fn mend(&mut self, hands: &mut dyn Hands) -> bool {
        let found = match hands.observe(&self.ports) {
            Ok(found) if self.storing.is_none() => found,
            Ok(_) | Err(_) => {
                let over = self.runs_on_for().is_zero();
                let lone = self.stored.list.as_ref().is_some_and(List::is_lone);
                if over && self.stored.standing == Standing::Primary && !lone && self.serve == Serve::May {
                    self.halt(hands);
                }
                return false;
            }
        };
        self.broken = false;
        let left = self.runs_on_for();
        self.member =
            Member::started(self.stored.clone(), Gate::default(), &self.pace.of(self.stored.standing));
        // It is no start: nobody waits beyond the lease that there was, and what its member has promised is not over.
        let promise = self.member.promise;
        self.member.pass(STARTING_ASKS_FOR.saturating_sub(left));
        (self.member.promise, self.member.gate) = (promise, found);
        // What opens the gate again is asked for at once.
        self.hurry();
        self.serve = serve(&self.stored);
        hands.go_on(self.cluster);
        self.readiness = Readiness::default();
        true
    }

    /// For how long the engine of a member that was broken off may run yet without a new lease: time goes on for it.
    fn runs_on_for(&self) -> Duration {
        let is_its_term = self.member.record.term == self.stored.term;
        self.member.due_in().filter(|_| is_its_term).unwrap_or_default()
    }

    /// Somebody else may have emptied the table: an element without an end comes back, those with one by the next renewal.
    /// Readers are let in to a replica that recovers and is in contact.
    fn look_after_gate(&mut self, contact: bool, hands: &mut dyn Hands) {
        let gate = &self.member.gate;
        let alone = gate.is_alone();
        let surely_open = alone || gate.is_open() && gate.left() > SURELY_OPEN;
        let found = if surely_open { hands.observe(&self.ports).ok() } else { None };
        if found.as_ref().is_some_and(|found| !found.is_open()) {
            let message = "somebody else has taken its ports out of the gate's sets; they are put back";
            hands.event(self.cluster, Severity::Warning, "FIREWALL_DRIFT", message);
        }
        let deed = if alone {
            found.is_some_and(|found| !found.is_alone()).then_some(Deed::OpenForEver)
        } else if self.member.record.standing == Standing::Replica && self.recovers && contact {
            Some(Deed::OpenToReaders(self.timings().lease))
        } else {
            None
        };
        let Some(deed) = deed else { return };
        if let Err(error) = hands.gate(&self.ports, deed) {
            tracing::debug!(cluster = %self.cluster, %error, "the gate is looked after in the next round");
        }
    }
}

/// What a record says of the engine before anything has happened.
fn serve(record: &Record) -> Serve {
    if record.standing == Standing::Primary && !record.fenced { Serve::May } else { Serve::MustNot }
}
