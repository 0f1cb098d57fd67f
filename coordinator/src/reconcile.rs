//! Loops that look at everything afresh each time: woken by a change or a timer, without input; they never retry inside, the
//! next round is the retry. Those that go by how long something has been so ([`Look`]) remember that, and nothing else.
//!
//! | loop | keeps true |
//! | --- | --- |
//! | [`assignments`] | every node's assignment is what the clusters' records ask for, stored before it is sent |
//! | [`leases`] | the list of promotable members of every cluster, and that its primary knows it |
//! | [`trials`] | access rules that were not confirmed in time are told to nobody any more |
//! | [`failover`] | a cluster whose primary is gone gets another, or a person is told why not |
//! | [`replicas`] | a quorum counts on the replicas that are there; one that cannot follow by itself is aligned |
//! | [`reboots`] | nodes are rebooted at the times that were set for them |
//! | [`leftovers`] | a node that returns is cleaned of what a forced removal left there |

pub mod assignments;
pub mod failover;
pub mod leases;
pub mod leftovers;
pub mod reboots;
pub mod replicas;
pub mod trials;

use std::time::Duration;

use holdfast_common::error::Chain;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::procedures::Records;
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

/// A loop that looks at all clusters all the time, by what their nodes say and by how long they have said it.
pub(crate) trait Look: Send {
    /// Between two looks.
    const TICK: Duration;

    /// One look, so long after the one before.
    fn look(&mut self, clusters: &[Cluster], elapsed: Duration) -> impl Future<Output = ()> + Send;
}

/// Looks until `shutdown`, at records that are read again after every change.
pub(crate) async fn watch_over<L: Look>(
    mut body: L,
    records: Records,
    store: Shared,
    shutdown: CancellationToken,
) {
    let (mut changes, mut read_at, mut clusters) = (None, None::<Instant>, Vec::new());
    let mut tick = tokio::time::interval(L::TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Instant::now();
    loop {
        if changes.is_none() {
            changes = follow(&store).await;
            read_at = None;
        }
        // All arms are cancel-safe.
        tokio::select! {
            () = shutdown.cancelled() => return,
            broken = next_change(&mut changes) => {
                read_at = None;
                if broken {
                    changes = None;
                }
                continue;
            }
            _now = tick.tick() => {}
        }
        if read_at.is_none_or(|at| at.elapsed() >= INTERVAL) {
            match records.all().await {
                Ok(found) => (clusters, read_at) = (found, Some(Instant::now())),
                Err(error) => tracing::warn!(error = %Chain(&error), "the clusters cannot be read"),
            }
        }
        let now = Instant::now();
        body.look(&clusters, now.duration_since(before)).await;
        before = now;
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
