//! Keeps this node's members as the assignment says, round by round, and reports what it observes.
//!
//! ```text
//!            assignment changed · certificates renewed · every second
//!                                   ▼
//!  each member:   observe ─► compare (when due) ─► plan (pure) ─► execute (beside, one at a time) ─► report
//! ```
//!
//! A round takes no input but the assignment and never retries inside: the next round is the retry, with a growing pause
//! after each start or failure. It makes no data and changes no role. Members whose data are here without being assigned
//! are observed, reported and otherwise left as they are. Nothing is stopped when the agent ends.

pub mod plan;
mod probe;
mod rounds;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_common::assignment::Assignment;
use holdfast_common::clock::Clock;
use holdfast_common::error::Chain;
use holdfast_common::id::ClusterId;
use holdfast_common::report::{MAX_MEMBERS, MemberReport, NodeReport};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::rounds::Member;
use crate::engine::Engines;
use crate::firewall;
use crate::lease;
use crate::outbox::Tell;

/// How often the data directories are looked through for members.
const DISCOVER_PERIOD: Duration = Duration::from_secs(10);

/// What the rounds use.
#[derive(Clone)]
pub struct Means {
    pub engines: Engines,
    pub assignment: watch::Receiver<Arc<Assignment>>,
    /// Whether access rules stand.
    pub firewall: watch::Receiver<Arc<firewall::service::Status>>,
    /// Who may run as primary.
    pub leases: watch::Receiver<Arc<lease::Status>>,
    pub clock: Clock,
    pub tell: Tell,
}

/// Reads the newest report, and wakes the rounds. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    report: watch::Receiver<Arc<NodeReport>>,
}

/// Owns the rounds of all members.
pub struct Service {
    means: Means,
    shared: Arc<Shared>,
    wake: watch::Receiver<u64>,
}

#[derive(Debug)]
struct Shared {
    reports: Mutex<BTreeMap<ClusterId, MemberReport>>,
    report: watch::Sender<Arc<NodeReport>>,
    /// There is something in the reports that others wait for, and nobody was told yet.
    news: Notify,
    wake: watch::Sender<u64>,
}

// === impl Service ===

impl Service {
    pub fn new(means: Means) -> (Self, Handle) {
        let first = NodeReport {
            members: Vec::new(),
            assignment_generation: means.assignment.borrow().generation,
            node_time: means.clock.now(),
        };
        let (report, newest) = watch::channel(Arc::new(first));
        let (waker, wake) = watch::channel(0);
        let shared = Arc::new(Shared { reports: Mutex::default(), report, news: Notify::new(), wake: waker });
        let handle = Handle { shared: Arc::clone(&shared), report: newest };
        (Self { means, shared, wake }, handle)
    }

    /// Runs until `shutdown`. The members go on running as they are.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { mut means, shared, mut wake } = self;
        let mut rounds: JoinSet<ClusterId> = JoinSet::new();
        let mut kept = BTreeMap::new();
        let mut tick = interval(DISCOVER_PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for cluster in known(&means).await {
                kept.entry(cluster).or_insert_with(|| {
                    let member = Member::new(cluster, means.clone(), Arc::clone(&shared));
                    rounds.spawn(member.keep(wake.clone(), shutdown.clone()))
                });
            }
            publish(&means, &shared);
            // All arms are cancel-safe.
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = means.assignment.changed() => if changed.is_err() { break },
                _woken = wake.changed() => {}
                _now = tick.tick() => {}
                Some(ended) = rounds.join_next() => {
                    match ended {
                        Ok(cluster) => drop(kept.remove(&cluster)),
                        // The rounds of the member that panicked are begun anew.
                        Err(error) => kept.retain(|_, handle| handle.id() != error.id()),
                    }
                }
            }
        }
        rounds.shutdown().await;
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl fmt::Debug for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Means").field("engines", &self.engines).finish_non_exhaustive()
    }
}

// === impl Handle ===

impl Handle {
    /// The newest report; its time is that of this call.
    pub fn report(&self) -> Arc<NodeReport> {
        Arc::clone(&self.report.borrow())
    }

    /// The newest report, now and after every round.
    pub fn subscribe(&self) -> watch::Receiver<Arc<NodeReport>> {
        self.report.clone()
    }

    /// Returns when a member is in another state than was told last: another role, say, or it receives again. Cancel-safe.
    pub async fn news(&self) {
        self.shared.news.notified().await;
    }

    /// Begins a full round of every member now: certificates were renewed, a command has ended.
    pub fn wake(&self) {
        self.shared.wake.send_modify(|count| *count = count.wrapping_add(1));
    }
}

// === impl Shared ===

impl Shared {
    fn put(&self, report: MemberReport) {
        let waited_for = waited_for(&report);
        let cluster = report.cluster_id;
        let before = self.reports.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster, report);
        if before.as_ref().map(self::waited_for).as_ref() != Some(&waited_for) {
            self.news.notify_one();
        }
    }

    fn forget(&self, cluster: ClusterId) {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).remove(&cluster);
    }
}

/// What of a report others wait for: all that changes seldom.
fn waited_for(report: &MemberReport) -> impl PartialEq + use<> {
    let followers: Vec<_> =
        report.followers.iter().map(|follower| (follower.node_id, follower.streaming)).collect();
    let roles = (report.state, report.role, report.term, report.streaming, report.needs_resync);
    (roles, report.failed_probes, report.converged_generation, report.synchronous.clone(), followers)
}

/// The members that are assigned, or have data here.
async fn known(means: &Means) -> Vec<ClusterId> {
    let mut found: Vec<ClusterId> =
        means.assignment.borrow().members.iter().map(|member| member.cluster_id).collect();
    match means.engines.members().await {
        Ok(members) => found.extend(members.into_iter().map(|(_, member)| member.cluster_id)),
        Err(error) => tracing::warn!(error = %Chain(&error), "look for members on the disk"),
    }
    found
}

/// Makes the node's report from its members'.
fn publish(means: &Means, shared: &Shared) {
    let members: Vec<MemberReport> = shared
        .reports
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .values()
        .take(MAX_MEMBERS)
        .cloned()
        .collect();
    let assignment_generation = means.assignment.borrow().generation;
    shared.report.send_replace(Arc::new(NodeReport {
        members,
        assignment_generation,
        node_time: means.clock.now(),
    }));
}
