//! The Holdfast coordinator: it knows the fleet, decides, and streams work to the agents.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`app`], [`config`], [`init`] | wiring; the configuration file; making the state directory |
//! | [`rpc`] | the servers: who calls, what may be called, parse, call, render |
//! | [`procedures`], [`operation`] | durable programs of steps; the engine that runs them |
//! | [`reconcile`] | loops that look at everything afresh |
//! | [`fleet`] | live agents, in memory: last report, availability, a handle to each |
//! | [`cluster`] | clusters and what must hold for them (pure) |
//! | [`store`] | durable records: compare-and-set, watch, leadership |
//! | [`directory`] | typed records over the store: nodes, tokens, operators, clusters |
//! | [`event`], [`history`], [`metrics`] | what happened; telemetry over time; Prometheus |

pub mod app;
pub mod cluster;
pub mod config;
pub mod directory;
pub mod event;
pub mod fleet;
pub mod history;
pub mod identity;
pub mod init;
pub mod lease;
pub mod metrics;
pub mod operation;
pub mod procedures;
pub mod reconcile;
pub mod rpc;
pub mod store;
