//! What agents and the coordinator say to each other about leases. Who speaks is known from the connection.
//!
//! A message of a lower term than the receiver's is dropped. Seal, promote and follow of a higher term raise the
//! receiver's; all others must match the term exactly. Every message may be lost, late, repeated or out of order.

use serde::{Deserialize, Serialize};

use super::election::Tail;
use super::membership::{List, Version};
use super::number::RequestNumber;
use crate::id::NodeId;
use crate::term::Term;

/// Which of the coordinator's attempts a fence, stop or confirmation belongs to, so that the word given to one never counts for
/// another. No two stops bear the same; a fence bears the intended term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u64);

/// From a primary's agent, or from that of a member that was sealed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToCoordinator {
    /// Asks for the lease. No version: the list is unknown.
    Renew { number: RequestNumber, term: Term, version: Option<Version> },
    /// The list of this version is stored, and enforced.
    ListStored { term: Term, version: Version },
    /// The gate is shut and no request is in hand.
    Fenced { term: Term, attempt: Attempt },
    /// The engine is stopped, its log ends there, and no request is in hand.
    Stopped { term: Term, attempt: Attempt, tail: Tail },
    /// It is stopped for this attempt, its log ends there, and no request is in hand.
    Confirmed { term: Term, attempt: Attempt, tail: Tail },
    /// It receives nothing of a lower term any more; its log ends there.
    Sealed { term: Term, tail: Tail },
}

/// From the coordinator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToMember {
    /// The lease, for the request of this number. With the newest list, where the asker has another.
    Granted {
        number: RequestNumber,
        term: Term,
        list: Option<List>,
    },
    Fence {
        term: Term,
        attempt: Attempt,
    },
    Stop {
        term: Term,
        attempt: Attempt,
    },
    /// Are you still stopped, as you were for this attempt?
    Confirm {
        term: Term,
        attempt: Attempt,
    },
    /// Receive from no primary of a lower term any more.
    Seal {
        term: Term,
    },
    /// Be the primary of this term, with this list. Said again until it is confirmed, and anew for each newer list.
    Promote {
        term: Term,
        list: List,
    },
    /// Follow the primary of this term.
    Follow {
        term: Term,
        primary: NodeId,
    },
}

/// Between the agents of a cluster's members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToPeer {
    /// From a primary: promise not to take my place for a while.
    AskPromise {
        number: RequestNumber,
        term: Term,
    },
    Promise {
        number: RequestNumber,
        term: Term,
    },
}
