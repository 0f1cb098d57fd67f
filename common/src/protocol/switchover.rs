//! A switchover's first half and its confirmation: the primary is stopped before a term is intended, and asked once more after the
//! last seal.
//!
//! ```text
//!   halt ─► stopped, its log ends there ─► intend ─► seal the replicas ─► confirmed: still stopped ─► choose ─► succeed
//!     └──────────┴─► resume (it is granted its lease again)   └───────────────┴─► abandon
//! ```
//!
//! A primary is stopped by the same order to be started again where it is (`rest`, then `resume`), also where nobody may be promoted.
//!
//! What is asked and answered is remembered by one run of the coordinator alone: a later run waits for the lease, as in a
//! failover, or abandons.

use super::election::{Obstacle, Tail};
use super::message::{Attempt, ToMember};
use super::reign::{Decree, Regent, Reign};
use crate::id::NodeId;
use crate::term::Term;

/// The primary's stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stop {
    pub attempt: Attempt,
    /// Where its log ends, once it has said so.
    pub tail: Option<Tail>,
}

// === impl Stop ===

impl Stop {
    pub(super) fn order(&self, term: Term, primary: NodeId) -> Decree {
        Decree::Send { to: primary, message: ToMember::Stop { term, attempt: self.attempt } }
    }

    pub(super) fn confirmation(&self, term: Term, primary: NodeId) -> Decree {
        Decree::Send { to: primary, message: ToMember::Confirm { term, attempt: self.attempt } }
    }
}

// === impl Regent ===

impl Regent {
    /// Asks the primary to stop cleanly for another to take over, under a number that was never used. From here on it is granted no
    /// lease.
    ///
    /// # Errors
    /// Those of [`Regent::rest`], and [`Obstacle::NobodyPromotable`]; nothing was changed.
    pub fn halt(&mut self, attempt: Attempt) -> Result<Vec<Decree>, Obstacle> {
        self.may_stop()?;
        if self.reign.promotable().is_empty() {
            return Err(Obstacle::NobodyPromotable);
        }
        Ok(self.ask_to_stop(attempt))
    }

    /// The same, to be started again where it is: it is granted its lease again once [`Regent::resume`] is called, or by another run
    /// of the coordinator. One that nobody could replace starts by itself once nobody tells it any more to stay stopped.
    ///
    /// # Errors
    /// [`Obstacle::UnderWay`], [`Obstacle::Stopping`], [`Obstacle::NotEnforced`]; nothing was changed.
    pub fn rest(&mut self, attempt: Attempt) -> Result<Vec<Decree>, Obstacle> {
        self.may_stop()?;
        Ok(self.ask_to_stop(attempt))
    }

    fn may_stop(&self) -> Result<(), Obstacle> {
        let reign = &self.reign;
        if let Some(intended) = reign.intended {
            return Err(Obstacle::UnderWay(intended));
        }
        if self.stop.is_some() {
            return Err(Obstacle::Stopping(reign.term));
        }
        if !reign.enforced {
            return Err(Obstacle::NotEnforced(reign.term));
        }
        Ok(())
    }

    fn ask_to_stop(&mut self, attempt: Attempt) -> Vec<Decree> {
        let stop = Stop { attempt, tail: None };
        self.stop = Some(stop);
        vec![stop.order(self.reign.term, self.reign.primary)]
    }

    /// The primary has stopped for this attempt, and its log ends there.
    pub fn stopped(&mut self, from: NodeId, term: Term, attempt: Attempt, tail: Tail) {
        let Reign { primary, term: ours, intended, .. } = &self.reign;
        let counts = from == *primary && term == *ours && intended.is_none();
        if let Some(stop) = self.stop.as_mut().filter(|stop| counts && stop.attempt == attempt) {
            stop.tail = Some(tail);
        }
    }

    /// The primary is stopped, and its log ends there. It is asked after the last seal: from here on it cannot serve again. In between
    /// it may have, by promises, and been stopped again; so it is this place that whoever is promoted must have.
    pub fn confirmed(&mut self, from: NodeId, term: Term, attempt: Attempt, tail: Tail) {
        let seals = self.reign.intended.is_some() && self.has_enough_seals();
        let counts = seals && from == self.reign.primary && term == self.reign.term;
        if let Some(stop) = self.stop.as_mut().filter(|stop| counts && stop.attempt == attempt) {
            stop.tail = Some(tail);
            self.fenced = true;
        }
    }

    /// The way back before a term is intended: the primary is granted its lease again, and starts. It is told so once; where it does not
    /// hear that, it asks by itself once nobody tells it any more to stay stopped.
    pub fn resume(&mut self) -> Vec<Decree> {
        let stopped = self.reign.intended.is_none() && self.stop.take().is_some();
        stopped.then(|| self.lead()).into_iter().collect()
    }
}
