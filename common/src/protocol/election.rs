//! A failover's order, up to the stored new primary, and the way back before it.
//!
//! ```text
//!   intend (store T + 1) ─► fence the primary, seal the replicas ─► choose ─► succeed (store the new primary) ─► promote
//!            └──────────────────────────┴─► abandon (store T + 2 for the old one)          from here only a higher term
//! ```
//!
//! A planned change has the primary stopped before ([`switchover`](super::switchover)). Not here: when one begins and
//! what it may lose, which only its conductor can weigh.
//!
//! What seals prove of a primary that is not heard, a person can vouch for: that it is off, and stays so until it has heard of its
//! successor (`intend_by_word`). Then whoever of the sealed has most is promoted, however few they are and whether the primary counted on
//! them or not. Its lease is outwaited all the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::membership::List;
use super::message::{Attempt, ToMember};
use super::quorum::Need;
use super::reign::{Decree, Regent, Reign};
use super::timing::Countdown;
use crate::id::NodeId;
use crate::position::Position;
use crate::term::Term;

/// Where a sealed member's log ends: the higher has more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tail {
    /// In which the last record was written.
    pub term: Term,
    pub position: Position,
}

/// Why there cannot be a failover, or not yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error("term {0} is intended already")]
    UnderWay(Term),
    #[error("no term is intended")]
    NothingIntended,
    #[error("the primary of term {0} has not confirmed that it depends on enough members")]
    NotEnforced(Term),
    #[error("no member may be promoted")]
    NobodyPromotable,
    #[error("the primary may hold its lease for another {0:?}")]
    Lease(Duration),
    #[error("too few members are sealed")]
    TooFewSeals,
    #[error("none of the sealed members may be promoted and has everything")]
    NoCandidate,
    #[error("the primary of term {0} is being stopped for a switchover")]
    Stopping(Term),
    #[error("the primary has not said where its log ends")]
    NotStopped,
    #[error("the primary has not confirmed that it is still stopped")]
    NotConfirmed,
    #[error("no sealed member has all of the stopped primary's log")]
    Behind,
}

// === impl Regent ===

impl Regent {
    /// Stores the intended term. From here on nothing of the present one is renewed, and no list changes.
    ///
    /// # Errors
    /// [`Obstacle::UnderWay`], [`Obstacle::NotEnforced`], [`Obstacle::NobodyPromotable`]; nothing was changed.
    pub fn intend(&mut self) -> Result<Vec<Decree>, Obstacle> {
        if let Some(intended) = self.reign.intended {
            return Err(Obstacle::UnderWay(intended));
        }
        if !self.reign.enforced {
            return Err(Obstacle::NotEnforced(self.reign.term));
        }
        if self.reign.promotable().is_empty() {
            return Err(Obstacle::NobodyPromotable);
        }
        if self.stop.is_some_and(|stop| stop.tail.is_none()) {
            return Err(Obstacle::NotStopped);
        }
        self.reign.intended = Some(self.reign.term.next());
        self.forget();
        Ok(vec![self.store()])
    }

    /// The same by a person's word that the primary is off: also where nobody may be promoted, or it is not known on whom the primary
    /// depends.
    ///
    /// # Errors
    /// [`Obstacle::UnderWay`], [`Obstacle::Stopping`]; nothing was changed.
    pub fn intend_by_word(&mut self) -> Result<Vec<Decree>, Obstacle> {
        if let Some(intended) = self.reign.intended {
            return Err(Obstacle::UnderWay(intended));
        }
        if self.stop.is_some() {
            return Err(Obstacle::Stopping(self.reign.term));
        }
        self.reign.intended = Some(self.reign.term.next());
        self.forget();
        self.vouched = true;
        Ok(vec![self.store()])
    }

    /// Takes the same word again: what a later run of the coordinator goes on with is what was vouched for. It is forgotten with this
    /// change of primary.
    ///
    /// # Errors
    /// [`Obstacle::NothingIntended`].
    pub fn vouch(&mut self) -> Result<(), Obstacle> {
        self.reign.intended.ok_or(Obstacle::NothingIntended)?;
        self.vouched = true;
        Ok(())
    }

    /// Whether only a person's word says that the primary cannot serve, and nothing that all which it acknowledged is there.
    pub fn goes_by_word(&self) -> bool {
        self.vouched && !self.has_enough_seals()
    }

    /// What must be said, and said again until it is answered; `replicas` are all members beside the primary.
    pub fn orders(&self, replicas: &[NodeId]) -> Vec<Decree> {
        let Reign { term, primary, intended, .. } = self.reign;
        let Some(intended) = intended else {
            if let Some(stop) = &self.stop {
                return vec![stop.order(term, primary)];
            }
            let follow = |&to| Decree::Send { to, message: ToMember::Follow { term, primary } };
            return std::iter::once(self.lead()).chain(replicas.iter().map(follow)).collect();
        };
        let fence = match &self.stop {
            // Only what it says after the last seal counts; until then it is kept at rest.
            Some(stop) if self.has_enough_seals() => stop.confirmation(term, primary),
            Some(stop) => stop.order(term, primary),
            None => {
                let message = ToMember::Fence { term, attempt: Attempt(intended.get()) };
                Decree::Send { to: primary, message }
            }
        };
        let fence = (!self.fenced).then_some(fence);
        let open = replicas.iter().filter(|node| !self.seals.contains_key(node));
        let seal = |&to| Decree::Send { to, message: ToMember::Seal { term: intended } };
        fence.into_iter().chain(open.map(seal)).collect()
    }

    /// The primary has shut its gate for this attempt and has forgotten what it had asked: no need to wait for its lease.
    pub fn fenced(&mut self, from: NodeId, term: Term, attempt: Attempt) {
        let asked = self.reign.intended.is_some_and(|intended| attempt == Attempt(intended.get()));
        if asked && from == self.reign.primary && term == self.reign.term {
            self.fenced = true;
        }
    }

    /// A member is sealed at this term, and its log ends there.
    pub fn sealed(&mut self, from: NodeId, term: Term, tail: Tail) {
        if self.reign.intended == Some(term) && from != self.reign.primary {
            self.seals.insert(from, tail);
        }
    }

    /// Who is to be promoted: of the sealed members that may be the one with the most; ties by `preference`, then by id.
    ///
    /// # Errors
    /// What is missing; nothing depends on how often it is asked.
    pub fn choose(&self, preference: &[NodeId]) -> Result<NodeId, Obstacle> {
        if self.reign.intended.is_none() {
            return Err(Obstacle::NothingIntended);
        }
        if self.stop.is_none() && !self.lease.is_over() && !self.fenced {
            return Err(Obstacle::Lease(self.lease.left()));
        }
        if self.seals.is_empty() || !self.vouched && !self.has_enough_seals() {
            return Err(Obstacle::TooFewSeals);
        }
        if self.stop.is_some() && !self.fenced {
            return Err(Obstacle::NotConfirmed);
        }
        let rank = |node: &NodeId| {
            preference.iter().position(|preferred| preferred == node).unwrap_or(preference.len())
        };
        let may = |node: &NodeId| self.vouched || self.reign.is_promotable(*node);
        let candidates = self.seals.iter().filter(|(node, _)| may(node));
        let (chosen, tail) = candidates
            .max_by(|(node, tail), (other, other_tail)| {
                tail.cmp(other_tail).then_with(|| (rank(other), other).cmp(&(rank(node), node)))
            })
            .ok_or(Obstacle::NoCandidate)?;
        if self.stop.is_some_and(|stop| stop.tail > Some(*tail)) {
            return Err(Obstacle::Behind);
        }
        let quorums = self.reign.lists.iter().filter(|list| list.need != Need::All);
        let has_all = |list: &List| self.seals.iter().all(|(node, other)| !list.has(*node) || other <= tail);
        if quorums.into_iter().all(has_all) { Ok(*chosen) } else { Err(Obstacle::NoCandidate) }
    }

    /// Stores the chosen one as primary of the intended term, with the list that it is promoted with. There is no way back from
    /// here. In quorum mode there is no further failover before the new primary enforces that list.
    ///
    /// # Errors
    /// As [`Regent::choose`].
    pub fn succeed(
        &mut self,
        preference: &[NodeId],
        members: impl IntoIterator<Item = NodeId>,
        need: Need,
    ) -> Result<Vec<Decree>, Obstacle> {
        let chosen = self.choose(preference)?;
        let term = self.reign.intended.ok_or(Obstacle::NothingIntended)?;
        let others = members.into_iter().filter(|node| *node != chosen);
        let list = List::new(self.reign.newest().version.next(), others, need);
        let enforced = need == Need::All;
        self.reign = Reign { term, primary: chosen, intended: None, lists: vec![list], enforced };
        self.forget();
        self.stop = None;
        // That of the old primary is over; the new one has had none.
        self.lease = Countdown::OVER;
        Ok(vec![self.store(), self.lead()])
    }

    /// Gives the failover up: the old primary gets a term above every seal, which its replicas take. It keeps what is left
    /// of its lease, and the coordinator remembers it.
    ///
    /// # Errors
    /// [`Obstacle::NothingIntended`]: it is too late, or there was none.
    pub fn abandon(&mut self) -> Result<Vec<Decree>, Obstacle> {
        let intended = self.reign.intended.ok_or(Obstacle::NothingIntended)?;
        let newest = self.reign.newest();
        let list = List::new(newest.version.next(), newest.members().iter().copied(), newest.need);
        self.reign.lists.push(list);
        self.reign.term = intended.next();
        self.reign.intended = None;
        self.forget();
        self.stop = None;
        Ok(vec![self.store(), self.lead()])
    }

    /// Whether so many are sealed that the primary cannot go on without one of them.
    pub(super) fn has_enough_seals(&self) -> bool {
        self.reign.lists.iter().all(|list| list.is_sealed_by(self.seals.keys()))
    }

    fn forget(&mut self) {
        self.seals.clear();
        self.fenced = false;
        self.vouched = false;
    }
}
