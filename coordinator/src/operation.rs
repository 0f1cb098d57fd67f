//! Operations: changes asked for by a person or by the coordinator itself, durable step by step.
//!
//! Answerable for: storing each step before it runs, one operation per resource, repeat and resume after a crash,
//! retry, the way back, cancelling, watching. Not answerable for what the steps do (see
//! [`crate::procedures`]), and it knows no agents.
//!
//! ```text
//!   Handle::submit ──one transaction──▶ record + lock + request id        Service::run
//!                                          │ wakes                      ┌─ one task per operation ─┐
//!                                          └───────────────────────────▶│ store the step, run it,  │
//!   Handle::watch ◀── newest snapshot ◀─────────────────────────────────│ store what came of it    │
//!   Handle::cancel ──compare-and-set, then a token──────────────────────▶└──────────────────────────┘
//! ```
//!
//! ```
//! # use std::sync::Arc;
//! use holdfast_coordinator::operation::{Handle, Request, Service, Submit, procedure::Procedure};
//! use holdfast_coordinator::store::Shared;
//! use tokio_util::sync::CancellationToken;
//!
//! async fn example<P: Procedure>(store: Shared, means: Arc<P::Means>, procedure: P) -> anyhow::Result<()> {
//!     let service = Service::<P>::new(store, means);
//!     let handle: Handle<P> = service.handle();
//!     let shutdown = CancellationToken::new();
//!     let running = tokio::spawn(service.run(shutdown.clone()));
//!
//!     let submit = Submit::new(procedure, "cluster/main", "operator/alice")
//!         .request(Request::new("0190d2c4-0000-7000-8000-000000000001", b"the request's bytes")?);
//!     let operation = handle.submit(submit).await?;
//!     let ended = handle.wait(operation.id).await?;
//!     assert!(ended.is_settled());
//!
//!     shutdown.cancel();
//!     running.await?;
//!     Ok(())
//! }
//! ```

mod error;
mod handle;
#[cfg(any(test, feature = "test-harness"))]
pub mod harness;
mod live;
pub mod lock;
pub mod procedure;
mod record;
mod runner;
mod service;
#[cfg(test)]
mod tests;

pub use self::{
    error::Error,
    handle::{Filter, Handle, Page, Submit},
    live::Snapshots,
    procedure::{Context, Limits, Next, Procedure, StepLabel},
    record::{InvalidRequestId, Operation, Progress, Request, RequestMark, State, Step, StepState, Unit},
    service::Service,
};
