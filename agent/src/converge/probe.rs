//! Whether clients could use a primary: looked at beside the rounds, one probe at a time.
//!
//! What observes a member keeps its connection, which a server that lets nobody in any more may go on answering.

use std::sync::Arc;
use std::time::Duration;

use holdfast_common::error::Chain;
use holdfast_common::id::ClusterId;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::engine::Engine;

/// From the beginning of one probe to that of the next.
const PERIOD: Duration = Duration::from_secs(1);
/// What a slow machine may take; longer, and it has failed. Load is no death: three in a row must fail.
const DEADLINE: Duration = Duration::from_secs(2);

/// The probes of one member.
#[derive(Debug, Default)]
pub(super) struct Probe {
    work: JoinSet<bool>,
    begun: Option<Instant>,
    failed: u32,
}

impl Probe {
    /// Takes note of one that has ended, and begins the next. Where `serves` is false, clients need not be let in: nothing is known.
    pub(super) fn look(&mut self, engine: &Arc<dyn Engine>, cluster: ClusterId, serves: bool) {
        if !serves {
            *self = Self::default();
            return;
        }
        while let Some(ended) = self.work.try_join_next() {
            self.failed = if ended.is_ok_and(|wrote| wrote) { 0 } else { self.failed.saturating_add(1) };
        }
        if self.work.is_empty() && self.begun.is_none_or(|begun| begun.elapsed() >= PERIOD) {
            self.begun = Some(Instant::now());
            let engine = Arc::clone(engine);
            self.work.spawn(async move {
                match timeout(DEADLINE, engine.probe(cluster)).await {
                    Ok(Ok(())) => true,
                    Ok(Err(error)) => {
                        tracing::info!(%cluster, error = %Chain(&error), "a probe failed");
                        false
                    }
                    Err(_) => {
                        tracing::info!(%cluster, "a probe was not answered in {DEADLINE:?}");
                        false
                    }
                }
            });
        }
    }

    /// How many in a row have failed.
    pub(super) fn failed(&self) -> u32 {
        self.failed
    }
}
