//! Loops that look at everything afresh each time: woken by a change or a timer, without input; they never retry inside, the
//! next round is the retry.
//!
//! | loop | keeps true |
//! | --- | --- |
//! | [`assignments`] | every node's assignment is what the clusters' records ask for, stored before it is sent |
//! | [`leases`] | the list of promotable members of every cluster, and that its primary knows it |
//! | [`trials`] | access rules that were not confirmed in time are told to nobody any more |
//! | [`failover`] | a cluster whose primary is gone gets another, or a person is told why not |
//! | [`leftovers`] | a node that returns is cleaned of what a forced removal left there |

pub mod assignments;
pub mod failover;
pub mod leases;
pub mod leftovers;
pub mod trials;

use std::time::Duration;

use holdfast_common::error::Chain;
use tokio_util::sync::CancellationToken;

use crate::store::{Shared, Watch};

/// What begins so is about clusters: their records, ports, access rules.
const ABOUT_CLUSTERS: &str = "cluster";
/// A round at least this often, whatever wakes us otherwise.
const INTERVAL: Duration = Duration::from_secs(5);
/// Rounds are at least this far apart: what comes in between is looked at together.
const PAUSE: Duration = Duration::from_millis(20);

/// One loop.
pub(crate) trait Loop: Send {
    /// The error that ends a round.
    type Error: std::error::Error + Send;

    /// For the log.
    const NAME: &'static str;

    /// Looks at everything and does what is to be done.
    fn round(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Runs a loop until `shutdown`, a round for every change of a cluster's record.
pub(crate) async fn run<L: Loop>(mut body: L, store: Shared, shutdown: CancellationToken) {
    let mut records = None;
    loop {
        if records.is_none() {
            records = follow(&store).await;
        }
        if let Err(error) = body.round().await {
            tracing::warn!(reconcile = L::NAME, error = %Chain(&error), "a round ended early; the next one goes on");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
        // All arms are cancel-safe: what is missed here is looked at after the interval at the latest.
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
            broken = next_change(&mut records) => if broken { records = None },
        }
    }
}

async fn follow(store: &Shared) -> Option<Watch> {
    let from = store.status().await.ok()?.revision.next();
    store.watch(ABOUT_CLUSTERS, from).await.ok()
}

/// Waits for the next change; true: the watch ended.
async fn next_change(records: &mut Option<Watch>) -> bool {
    match records {
        Some(watch) => watch.next().await.is_err(),
        None => std::future::pending().await,
    }
}
