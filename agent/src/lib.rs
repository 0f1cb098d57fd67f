//! The Holdfast agent: the daemon on every node. It holds one session with the coordinator, keeps what its assignment
//! says true, runs commands once, and reports what it observes.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`app`], [`config`] | wiring; the configuration file |
//! | [`identity`] | key, enrollment, renewal |
//! | [`link`] | one session with the coordinator: connect, translate, back off, reconnect |
//! | [`assignment`], [`converge`] | the node's assignment on disk; making it true, round by round |
//! | [`dispatch`] | commands: term check, journal, one at a time per resource |
//! | [`terms`], [`statefile`] | what was accepted and is never gone back behind; files that damage cannot fool |
//! | [`outbox`] | what waits to be told to the coordinator |
//! | [`reboot`] | what is done with the node as a whole, once, on the coordinator's word |
//! | [`engine`] | the drivers of the database engines |
//! | [`firewall`] | the one nftables table: who reaches the engines, and the gate |
//! | [`lease`] | who may serve as primary, until when, by whose word |
//! | [`health`] | tells load balancers, over HTTP, who is primary and who is a replica |
//! | [`telemetry`], [`report`], [`progress`] | what the node says of itself |
//! | [`host`] | the one door to programs, files and units of the machine |

pub mod app;
pub mod assignment;
pub mod config;
pub mod converge;
pub mod dispatch;
pub mod engine;
pub mod firewall;
pub mod health;
pub mod host;
pub mod identity;
pub mod lease;
pub mod link;
pub mod outbox;
pub mod progress;
pub mod reboot;
pub mod report;
pub mod statefile;
pub mod telemetry;
pub mod terms;
