//! What agent, coordinator and command line share: the nouns of the domain, how they cross the wire, identities and
//! TLS, and the small services (clock, backoff, shutdown, configuration, logging) that every program needs.
//!
//! | modules | what they hold |
//! | --- | --- |
//! | [`id`], [`name`], [`term`], [`generation`], [`position`], [`role`] | newtypes; parsing and ordering |
//! | [`budget`] | how much of its machine a member counts on |
//! | [`access`] | who may reach a cluster: addresses, lists, what follows from them |
//! | [`assignment`], [`command`], [`report`], [`telemetry`] | the two kinds of work, and what nodes say |
//! | [`protocol`] | leases, promises, seals, lists, elections: who may serve as primary; pure |
//! | [`question`], [`set_aside`] | what nodes are asked; logs kept before data were replaced |
//! | [`link`] | the messages between agents and coordinator, as plain values |
//! | [`error`] | `Reason`, `Failure`, `Classify`, and the one place that makes a `tonic::Status` |
//! | [`wire`] | domain types to and from the generated ones |
//! | [`pki`], [`tls`] | certificates, tokens, peer identity; TLS configurations that reload |
//! | [`clock`], [`backoff`], [`shutdown`], [`config`], [`logging`] | small services |

pub mod access;
pub mod assignment;
pub mod backoff;
pub mod budget;
pub mod clock;
pub mod command;
pub mod config;
pub mod context;
pub mod engine;
pub mod error;
pub mod generation;
pub mod id;
pub mod link;
pub mod logging;
pub mod name;
pub mod pki;
pub mod position;
pub mod protocol;
pub mod question;
pub mod report;
pub mod role;
pub mod set_aside;
pub mod shutdown;
pub mod telemetry;
pub mod term;
pub mod tls;
pub mod wire;
