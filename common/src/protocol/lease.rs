//! A primary's lease: renewed before its gate shuts, lost without a word, taken away by a fence.

use std::time::Duration;

use super::Countdown;
use super::gate::Slot;
use super::member::{Effect, Member, Standing};
use super::membership::{List, Version};
use super::message::{Attempt, ToCoordinator, ToPeer};
use super::number::RequestNumber;
use super::timing::Timings;
use crate::id::NodeId;
use crate::term::Term;

/// Where a list came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// With the answer to a request in hand: not older than the request.
    Answer,
    /// It may be late.
    Order,
}

// === impl Member ===

impl Member {
    /// One round: arms a slot, then asks the coordinator, and all promotable members where that was silent for a while.
    /// Both answer to the same number.
    pub(super) fn renew(&mut self, number: RequestNumber, timings: &Timings) -> Vec<Effect> {
        let term = self.record.term;
        let needless = self.gate.is_alone() && self.is_lone();
        if self.record.standing != Standing::Primary || needless || !self.rest.is_over() {
            return Vec::new();
        }
        let timeout = timings.served();
        let slot = self.gate.ask(number, timeout);
        let version = self.record.list.as_ref().map(|list| list.version);
        let mut effects =
            vec![Effect::Arm { slot, timeout }, Effect::Tell(ToCoordinator::Renew { number, term, version })];
        if self.heard.is_over() {
            let peers = self.record.list.iter().flat_map(List::members);
            effects
                .extend(peers.map(|&to| Effect::Send { to, message: ToPeer::AskPromise { number, term } }));
        }
        effects
    }

    /// The coordinator granted the lease.
    pub(super) fn granted(
        &mut self,
        number: RequestNumber,
        term: Term,
        list: Option<List>,
        timings: &Timings,
    ) -> Vec<Effect> {
        if !self.leads(term) {
            return Vec::new();
        }
        // Also where promises were quicker: else they would be asked for ever, by whoever is nearer to its members. An answer to
        // any older request that is in no hand is no sign of one that answers in time.
        let in_time = self.gate.is_heard_in_time(number);
        let asked = self.gate.asked(number);
        if in_time || asked.is_some() {
            self.heard = Countdown::from(timings.silence);
        }
        let Some(slot) = asked else { return Vec::new() };
        let mut effects = self.answered(slot);
        effects.extend(list.into_iter().flat_map(|list| self.take_list(list, Source::Answer, timings)));
        effects
    }

    /// A promotable member promised.
    pub(super) fn promised(&mut self, from: NodeId, number: RequestNumber, term: Term) -> Vec<Effect> {
        if !self.leads(term) {
            return Vec::new();
        }
        let Some(list) = &self.record.list else { return Vec::new() };
        match self.gate.promised(number, from, list) {
            Some(slot) => self.answered(slot),
            None => Vec::new(),
        }
    }

    /// There is a lease until the slot's time is over.
    fn answered(&mut self, slot: Slot) -> Vec<Effect> {
        // A second wall: it was not promoted before this was over.
        if !self.promise.is_over() {
            return Vec::new();
        }
        self.gate.hold(slot);
        self.stopped = None;
        if self.ready {
            return self.open();
        }
        if self.running {
            return Vec::new();
        }
        self.running = true;
        vec![Effect::StartEngine]
    }

    fn open(&mut self) -> Vec<Effect> {
        let slots = self.gate.open();
        let opened = !slots.is_empty();
        let mut effects: Vec<Effect> = slots.into_iter().map(|slot| Effect::Grant { slot }).collect();
        if opened && self.record.fenced {
            self.record.fenced = false;
            effects.push(Effect::Store(self.record.clone()));
        }
        effects
    }

    pub(super) fn engine_is_ready(&mut self, ready: bool) -> Vec<Effect> {
        if self.ready == ready || self.record.standing != Standing::Primary {
            return Vec::new();
        }
        if ready && !self.running {
            // An engine that was told to stop, and is not down yet.
            return Vec::new();
        }
        self.ready = ready;
        if ready {
            return self.open();
        }
        // It may be started in its place, for as long as the lease goes on.
        self.gate.close();
        vec![Effect::Shut]
    }

    /// The lease ended, or is not needed.
    pub(super) fn lease_is_due(&mut self) -> Vec<Effect> {
        if self.stops_without_lease() && self.gate.left().is_zero() && self.patience.is_over() {
            return self.lose();
        }
        if self.is_lone() && self.ready && !self.record.fenced && !self.gate.is_alone() {
            self.gate.open_alone();
            return vec![Effect::OpenAlone];
        }
        if self.starts_by_itself() && self.rest.is_over() {
            self.stopped = None;
            self.running = true;
            return vec![Effect::StartEngine];
        }
        Vec::new()
    }

    /// Whether it was stopped, and needs nobody's word to go on: whoever had it stopped is waited for no longer than it is heard.
    pub(super) fn starts_by_itself(&self) -> bool {
        self.is_lone() && self.stopped.is_some() && !self.record.fenced
    }

    /// Whether the engine runs as a primary that somebody else could replace.
    pub(super) fn stops_without_lease(&self) -> bool {
        self.record.standing == Standing::Primary && self.running && !self.gate.is_alone() && !self.is_lone()
    }

    fn is_lone(&self) -> bool {
        self.record.standing == Standing::Primary && self.record.list.as_ref().is_some_and(List::is_lone)
    }

    /// Shuts the gate, forgets every request in hand, stops the engine and marks that durably.
    fn lose(&mut self) -> Vec<Effect> {
        self.halt();
        self.record.fenced = true;
        vec![Effect::Shut, Effect::StopEngine, Effect::Store(self.record.clone())]
    }

    /// In memory: no gate, no request, no engine.
    pub(super) fn halt(&mut self) {
        self.gate.shut();
        self.ready = false;
        self.running = false;
        self.stopped = None;
    }

    /// Fence, stop and confirm first shut the gate and forget every request in hand, and only then answer: only a request
    /// that is made afterwards opens it again.
    pub(super) fn fence(&mut self, term: Term, attempt: Attempt) -> Vec<Effect> {
        if !self.leads(term) {
            return Vec::new();
        }
        let mut effects = self.lose();
        effects.push(Effect::Tell(ToCoordinator::Fenced { term, attempt }));
        effects
    }

    pub(super) fn stop(&mut self, term: Term, attempt: Attempt, timings: &Timings) -> Vec<Effect> {
        if !self.leads(term) {
            return Vec::new();
        }
        self.halt();
        self.stopped = Some(attempt);
        self.rest = Countdown::from(timings.silence);
        vec![Effect::Shut, Effect::StopEngineCleanly, Effect::TellStopped { term, attempt }]
    }

    pub(super) fn confirm(&mut self, term: Term, attempt: Attempt, timings: &Timings) -> Vec<Effect> {
        if !self.leads(term) {
            return Vec::new();
        }
        self.gate.shut();
        let mut effects = vec![Effect::Shut];
        if self.stopped == Some(attempt) {
            self.rest = Countdown::from(timings.silence);
            effects.push(Effect::TellConfirmed { term, attempt });
        }
        effects
    }

    /// Takes a newer list. An element without timeout becomes timed before the list is confirmed.
    pub(super) fn take_list(&mut self, list: List, source: Source, timings: &Timings) -> Vec<Effect> {
        match &self.record.list {
            // Which of two late ones is the newer cannot be told any more.
            None if source == Source::Order => return Vec::new(),
            Some(known) if list.version < known.version => return Vec::new(),
            Some(known) if list.version == known.version => return self.confirm_list(),
            _ => {}
        }
        let mut effects = self.limit(&list, timings.served());
        self.record.list = Some(list.clone());
        effects.extend([Effect::Store(self.record.clone()), Effect::Enforce { list }]);
        effects.extend(self.confirm_list());
        effects
    }

    pub(super) fn limit(&mut self, list: &List, timeout: Duration) -> Vec<Effect> {
        if list.is_lone() || !self.gate.is_alone() {
            return Vec::new();
        }
        let slot = self.gate.limit(timeout);
        vec![Effect::Arm { slot, timeout }, Effect::Grant { slot }, Effect::CloseAlone]
    }

    /// In quorum mode only once the engine enforces it: until then commits are acknowledged by the one before.
    pub(super) fn confirm_list(&self) -> Vec<Effect> {
        let Some(list) = &self.record.list else { return Vec::new() };
        let enforced = match list.need {
            super::Need::All => true,
            super::Need::Any(_) => self.enforced == Some(list.version),
        };
        let told = ToCoordinator::ListStored { term: self.record.term, version: list.version };
        enforced.then_some(Effect::Tell(told)).into_iter().collect()
    }

    pub(super) fn engine_enforces(&mut self, version: Version) -> Vec<Effect> {
        if self.record.standing != Standing::Primary {
            return Vec::new();
        }
        self.enforced = Some(version);
        self.confirm_list()
    }
}
