//! The safety protocol: who may serve as primary, until when, and by whose word.
//!
//! Pure state machines: no clock, no I/O, no `async`, no logging. Time is an event ([`Member::pass`], [`Regent::pass`]); what
//! must be done comes back as effects, plain data, to be carried out in their order. The agent's lease thread, the
//! coordinator and the explicit-state models of `tests/models` drive this very code.
//!
//! ```text
//!  coordinator                    the primary's agent               a promotable member's agent
//!  Regent (reign, election)       Member (lease, gate, membership)  Member (promise, seal)
//!     ◄──────── Renew ───────────────  arm slot, then send
//!     ───────── Granted ────────────►  grant slot                   (silent coordinator:)
//!                                      ────── AskPromise ──────────►
//!                                      ◄───── Promise ─────────────  not promoted, not sealed for L
//!     ───────── Fence ──────────────►  shut, forget, then answer
//!     ───────── Stop, Confirm ──────►  shut, forget, stop the engine
//!     ───────── Seal ─────────────────────────────────────────────►  store, cut the receiver, then answer
//!     ───────── Promote ──────────────────────────────────────────►  store, promote, renew
//! ```
//!
//! | module | answers for |
//! | --- | --- |
//! | [`timing`] | every timing constant, [`Countdown`] |
//! | [`number`] | numbers of requests, never used twice |
//! | [`membership`] | versioned lists of promotable members |
//! | [`quorum`] | how many promises, seals and followers are enough |
//! | [`gate`] | the two slots of the gate, as the agent remembers them |
//! | [`member`] | one member on its agent: what it keeps, which messages it obeys |
//! | `lease`, `promise`, `seal` | its parts: renewing and losing the lease; promising; being sealed, promoted, told to follow |
//! | [`reign`] | the coordinator's side of one cluster: grants, lists |
//! | [`election`] | the order of a failover up to the stored new primary, and the way back |
//! | [`switchover`] | the stop and the confirmation of a primary that is replaced by plan |
//! | [`message`] | what they say to each other |
//! | [`wipe`] | whether a member's data may be rewound or replaced, by what its own node knows |

pub mod election;
pub mod gate;
mod lease;
pub mod member;
pub mod membership;
pub mod message;
pub mod number;
mod promise;
pub mod quorum;
pub mod reign;
mod seal;
pub mod switchover;
pub mod timing;
pub mod wipe;

pub use election::{Obstacle, Tail};
pub use gate::{Gate, Slot};
pub use member::{Effect, Event, Member, Record, Standing};
pub use membership::{List, Version};
pub use message::{Attempt, ToCoordinator, ToMember, ToPeer};
pub use number::{Numbers, RequestNumber};
pub use quorum::Need;
pub use reign::{Decree, Regent, Reign};
pub use switchover::Stop;
pub use timing::{Countdown, Profile, Timings};

#[cfg(test)]
mod tests;
