//! How a member changes its term: sealed, promoted, told to follow. All three raise it; none goes back.
//!
//! A minimal version: who is told what, and when, is decided by the coordinator ([`election`](super::election)).

use super::lease::Source;
use super::member::{Effect, Member, Record, Standing};
use super::membership::List;
use super::message::ToMember;
use super::timing::{Countdown, Timings};
use crate::id::NodeId;
use crate::term::Term;

// === impl Member ===

impl Member {
    /// Refuses, durably, to receive from any primary of a lower term. Only following one of this term or a higher lifts it.
    pub(super) fn seal(&mut self, term: Term) -> Vec<Effect> {
        let sealed = self.record.standing == Standing::Sealed && self.record.term == term;
        if sealed {
            // Since then it has promised nothing.
            return vec![Effect::TellSealed { term }];
        }
        if term <= self.record.term || self.waits_for_promise(term, ToMember::Seal { term }) {
            return Vec::new();
        }
        let mut effects = self.step_down();
        self.record = Record { term, standing: Standing::Sealed, list: None, fenced: false };
        effects.extend([
            Effect::Store(self.record.clone()),
            Effect::CutReceiver,
            Effect::TellSealed { term },
        ]);
        effects
    }

    /// Becomes primary, or takes a newer term or list as one.
    pub(super) fn promote(&mut self, term: Term, list: List, timings: &Timings) -> Vec<Effect> {
        if self.leads(term) {
            // Whoever is told to lead is not to be kept stopped any more. Only how long it asks for nothing hangs on that.
            self.rest = Countdown::OVER;
            return self.take_list(list, Source::Order, timings);
        }
        let sealed = self.record.standing == Standing::Sealed && self.record.term == term;
        let order = ToMember::Promote { term, list: list.clone() };
        if !(term > self.record.term || sealed) || self.waits_for_promise(term, order) {
            return Vec::new();
        }
        // An abandoned failover gives the old primary a new term; what is left of its lease stays its own.
        let stays = self.record.standing == Standing::Primary;
        let mut effects = if stays { self.limit(&list, timings.served()) } else { vec![Effect::Shut] };
        if stays {
            self.gate.forget();
        } else {
            self.halt();
            self.running = true;
            self.patience = Countdown::from(timings.served());
        }
        // The coordinator has just been heard: asking for promises would only keep others from being sealed.
        (self.heard, self.rest) = (Countdown::from(timings.silence), Countdown::OVER);
        self.enforced = None;
        self.record = Record::primary(term, list.clone());
        let engine = if stays { Effect::Enforce { list } } else { Effect::Lead { list } };
        effects.extend([Effect::Store(self.record.clone()), engine]);
        effects.extend(self.confirm_list());
        effects
    }

    /// Receives from the primary of this term.
    pub(super) fn follow(&mut self, term: Term, primary: NodeId) -> Vec<Effect> {
        if term < self.record.term || self.leads(term) {
            return Vec::new();
        }
        if self.waiting.as_ref().is_some_and(|order| order_term(order) <= Some(term)) {
            self.waiting = None;
        }
        let follow = Effect::Follow { term, primary };
        if self.record == Record::replica(term) {
            return vec![follow];
        }
        let mut effects = self.step_down();
        self.record = Record::replica(term);
        effects.extend([Effect::Store(self.record.clone()), follow]);
        effects
    }

    /// Whether the order must wait until a promise is over; it is kept, and meanwhile nothing is promised anew.
    fn waits_for_promise(&mut self, term: Term, order: ToMember) -> bool {
        if self.promise.is_over() {
            return false;
        }
        if self.waiting.as_ref().is_none_or(|kept| order_term(kept) <= Some(term)) {
            self.waiting = Some(order);
        }
        true
    }

    /// A primary gives up its gate and its engine.
    fn step_down(&mut self) -> Vec<Effect> {
        if self.record.standing != Standing::Primary {
            return Vec::new();
        }
        self.halt();
        vec![Effect::Shut, Effect::StopEngine]
    }
}

/// The term of an order that can wait.
const fn order_term(order: &ToMember) -> Option<Term> {
    match order {
        ToMember::Seal { term } | ToMember::Promote { term, .. } => Some(*term),
        ToMember::Granted { .. }
        | ToMember::Fence { .. }
        | ToMember::Stop { .. }
        | ToMember::Confirm { .. }
        | ToMember::Follow { .. } => None,
    }
}
