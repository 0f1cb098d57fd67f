//! The coordinator's side of one cluster: which leases may be alive, which list is confirmed.
//!
//! A [`Reign`] is stored; what a [`Regent`] remembers beside it is lost with the coordinator's memory, and counts as the worst
//! after a start: a lease that was just granted, no seal, no word of a fence.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::election::{Obstacle, Tail};
use super::membership::{List, Version};
use super::message::ToMember;
use super::number::RequestNumber;
use super::quorum::Need;
use super::switchover::Stop;
use super::timing::{Countdown, Timings};
use crate::id::NodeId;
use crate::term::Term;

/// What is stored of a cluster's primary.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reign {
    pub term: Term,
    pub primary: NodeId,
    /// The term of a failover under way. Once it is stored nothing of the present term is renewed.
    pub intended: Option<Term>,
    /// The list that the primary has confirmed, then those that were declared since; never empty.
    pub lists: Vec<List>,
    /// Whether the first of them is enforced by the primary of this term.
    pub enforced: bool,
}

/// The coordinator's part in one cluster. Plain data, as [`Member`](super::Member) is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Regent {
    pub reign: Reign,
    /// Until when the primary may hold a lease of the coordinator's.
    pub lease: Countdown,
    /// Which members are sealed at the intended term, and where their logs end.
    pub seals: BTreeMap<NodeId, Tail>,
    /// The primary has said that it is fenced, or still stopped, for this change of primary.
    pub fenced: bool,
    /// A person has said that the primary is off, and stays so until it has heard of its successor.
    pub vouched: bool,
    /// The primary's stop, as this run of the coordinator has asked for it.
    pub stop: Option<Stop>,
}

/// What the coordinator is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Decree {
    /// Durably, before anything that follows.
    Store(Reign),
    Send {
        to: NodeId,
        message: ToMember,
    },
}

// === impl Reign ===

impl Reign {
    /// A cluster's first. The primary gets term and list before anybody else is a member.
    pub fn first(primary: NodeId, list: List) -> Self {
        Self {
            term: Term::FIRST,
            primary,
            intended: None,
            enforced: list.need == Need::All,
            lists: vec![list],
        }
    }

    /// The newest list, confirmed or not.
    pub fn newest(&self) -> &List {
        self.lists.last().expect("a reign has a list")
    }

    /// Whether the member may be promoted by any list that the primary may have. Where one depends on all of its members, only
    /// they may: so a member is taken off before the primary hears of it, and put on after. Where one depends on W of them,
    /// the number of seals says that the primary cannot serve.
    pub fn is_promotable(&self, node: NodeId) -> bool {
        let all = self.lists.iter().filter(|list| list.need == Need::All);
        all.clone().all(|list| list.has(node)) && self.lists.iter().any(|list| list.has(node))
    }

    /// The members that may be promoted, once each.
    pub fn promotable(&self) -> BTreeSet<NodeId> {
        let members = self.lists.iter().flat_map(List::members).copied();
        members.filter(|node| self.is_promotable(*node)).collect()
    }

    /// Whether the newest list is the one that the primary works by.
    pub fn is_settled(&self) -> bool {
        self.enforced && self.lists.len() == 1
    }
}

// === impl Regent ===

impl Regent {
    /// A starting coordinator's: any lease may have been granted just before.
    pub fn started(reign: Reign, timings: &Timings) -> Self {
        let lease = Countdown::from(timings.remembered());
        Self { reign, lease, seals: BTreeMap::new(), fenced: false, vouched: false, stop: None }
    }

    /// So much time went by. To be told before every other call.
    pub fn pass(&mut self, elapsed: Duration) {
        self.lease.pass(elapsed);
    }

    /// A member asks for the lease. The grant is remembered from the moment of the reply, so the reply is to be sent at once.
    pub fn renew(
        &mut self,
        from: NodeId,
        number: RequestNumber,
        term: Term,
        version: Option<Version>,
        timings: &Timings,
    ) -> Option<Decree> {
        let Reign { term: ours, primary, intended, .. } = &self.reign;
        if from != *primary || term != *ours || intended.is_some() || self.stop.is_some() {
            return None;
        }
        self.lease = Countdown::from(timings.remembered());
        let newest = self.reign.newest();
        let list = (version != Some(newest.version)).then(|| newest.clone());
        Some(Decree::Send { to: from, message: ToMember::Granted { number, term, list } })
    }

    /// Declares which members are to be promotable, under a version that is stored before it is sent.
    ///
    /// # Errors
    /// [`Obstacle::UnderWay`]: nothing changes while a term is intended.
    pub fn declare(
        &mut self,
        members: impl IntoIterator<Item = NodeId>,
        need: Need,
    ) -> Result<Vec<Decree>, Obstacle> {
        if let Some(intended) = self.reign.intended {
            return Err(Obstacle::UnderWay(intended));
        }
        if self.stop.is_some() {
            return Err(Obstacle::Stopping(self.reign.term));
        }
        let list = List::new(self.reign.newest().version.next(), members, need);
        self.reign.lists.push(list);
        Ok(vec![self.store(), self.lead()])
    }

    /// The primary has stored the list of this version. Only the newest counts; from then on its members are promotable,
    /// after as long as if a lease had just been granted: the primary may serve by promises that its new members did not give.
    pub fn list_stored(
        &mut self,
        from: NodeId,
        term: Term,
        version: Version,
        timings: &Timings,
    ) -> Option<Decree> {
        let Reign { term: ours, primary, intended, .. } = &self.reign;
        let counts = from == *primary && term == *ours && intended.is_none();
        if !counts || version != self.reign.newest().version || self.reign.is_settled() {
            return None;
        }
        let newest = self.reign.newest().clone();
        self.reign.lists = vec![newest];
        self.reign.enforced = true;
        self.lease = Countdown::from(timings.remembered());
        Some(self.store())
    }

    pub(super) fn store(&self) -> Decree {
        Decree::Store(self.reign.clone())
    }

    /// What the primary is to know; said again until it is confirmed.
    pub(super) fn lead(&self) -> Decree {
        let Reign { term, primary, .. } = self.reign;
        let message = ToMember::Promote { term, list: self.reign.newest().clone() };
        Decree::Send { to: primary, message }
    }
}
