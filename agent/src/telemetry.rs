//! What the node measures of itself.
//!
//! [`Collector`] takes a sample of the machine every few seconds, from `/proc` alone, in well under a millisecond of
//! processor time; [`inventory`] tells once per session what the machine is. Here is *how*; *when* is the caller's.
//!
//! | part | reads |
//! | --- | --- |
//! | [`counters`] | the raw counters of processors, disks, interfaces and the agent itself |
//! | [`rates`] | what two readings say together (pure) |
//! | [`mounts`] | which mounted file systems are real, and how full (the choice is pure) |
//! | [`inventory`] | operating system, processors, addresses, disks |

mod collector;
pub mod counters;
pub mod inventory;
pub mod mounts;
pub mod rates;

pub use collector::{Collector, Moment};
pub use inventory::take_inventory;
