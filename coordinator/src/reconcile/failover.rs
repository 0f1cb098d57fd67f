//! Watches over the primaries: one that is suspected to be gone is replaced, or a person is told why not.
//!
//! What makes a suspicion, and what follows from it, is [`suspicion`]. A failover is an operation like one that a person asks for.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_common::clock::Clock;
use holdfast_common::error::{Chain, Classify as _, Reason};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::protocol::Timings;
use holdfast_common::report::{MemberReport, Severity};
use holdfast_common::role::Role;
use tokio::time::Instant;

use super::Look;
use crate::cluster::suspicion::{self, Hold, Signs, Suspicion, Verdict, Watch, Witness};
use crate::cluster::{Cluster, Hung, Phase};
use crate::event::{self, NewEvent};
use crate::fleet;
use crate::lease::{self, Leases, View};
use crate::operation::{self, Operation, State, Submit};
use crate::procedures::failover::Failover;
use crate::procedures::records::{self, Records, Writes};
use crate::procedures::{ClusterRef, Procedures, resource};

/// Of the time between two looks at most so much counts as silence.
const LONGEST: Duration = Duration::from_millis(400);
/// After a failover that was given up.
const AGAIN: Duration = Duration::from_secs(30);

/// The loop's means.
#[derive(Debug)]
pub struct Means {
    pub records: Records,
    pub clock: Clock,
    pub fleet: fleet::Handle,
    pub leases: Leases,
    pub operations: operation::Handle<Procedures>,
    pub events: event::Handle,
}

/// Owns what is remembered of the primaries.
#[derive(Debug)]
pub struct Failovers {
    means: Means,
    kept: BTreeMap<ClusterId, Kept>,
}

/// What is remembered of one cluster's primary.
#[derive(Debug, Default)]
struct Kept {
    primary: Option<NodeId>,
    watch: Watch,
    /// What was told of the suspicion that lasts.
    told: Option<String>,
    /// Whose place was last to be taken, and when: one that was given up is not tried again at once.
    tried: Option<(NodeId, Instant)>,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Operation(#[from] operation::Error),
    #[error(transparent)]
    Records(#[from] records::Error),
    #[error(transparent)]
    Events(#[from] crate::store::Error),
}

impl Failovers {
    pub fn new(means: Means) -> Self {
        Self { means, kept: BTreeMap::new() }
    }
}

impl Look for Failovers {
    const TICK: Duration = Duration::from_millis(200);

    async fn look(&mut self, clusters: &[Cluster], elapsed: Duration) {
        let Self { means, kept } = self;
        kept.retain(|id, _| clusters.iter().any(|cluster| cluster.id == *id));
        for cluster in clusters.iter().filter(|cluster| cluster.phase == Phase::Active) {
            let kept = kept.entry(cluster.id).or_default();
            if let Err(error) = means.look(cluster, kept, elapsed).await {
                tracing::warn!(cluster = %cluster.name, error = %Chain(&error), "the primary is looked after in the next round");
            }
        }
    }
}

impl Means {
    async fn look(&self, cluster: &Cluster, kept: &mut Kept, elapsed: Duration) -> Result<(), Error> {
        let (Some(view), Some(regent)) = (self.leases.view(cluster.id), self.leases.regent(cluster.id))
        else {
            return Ok(());
        };
        let primary = view.reign.primary;
        // A record that lags behind its reign is another primary's.
        if regent.reign.intended.is_some()
            || kept.primary != Some(primary)
            || cluster.primary != Some(primary)
        {
            *kept = Kept { primary: Some(primary), tried: kept.tried, ..Kept::default() };
            return Ok(());
        }
        let Some(unheard) = self.unheard(primary, &view) else { return Ok(()) };
        let timings = cluster.lease_profile.timings();
        let report = self.report(primary, cluster.id).map(|(report, _)| report);
        self.note_position(&view, report.as_ref(), cluster.id);
        // One that is stopped for another to take over does not run.
        let stops = regent.stop.is_some();
        let signs = Signs { unheard, report: report.as_ref().filter(|_| !stops) };
        let Some(suspicion) = kept.watch.look(elapsed, LONGEST, signs, &timings) else {
            kept.told = None;
            return Ok(());
        };
        if stops {
            return self.clear_the_way(cluster, kept, suspicion).await;
        }
        let promised = match suspicion {
            Suspicion::Silent => match self.is_promised(cluster.id, &view, kept.watch.silent(), &timings) {
                Some(promised) => promised,
                None => return Ok(()),
            },
            Suspicion::Down | Suspicion::Stuck => false,
        };
        let outlook = lease::outlook(&view.reign, view.last, |node| {
            let (report, age) = self.report(node, cluster.id)?;
            (age < timings.suspicion).then_some(report.position)
        });
        let before = suspicion::predecessor_hung(cluster, self.clock.now());
        let verdict = suspicion::verdict(cluster, &view.reign, &outlook, promised);
        match suspicion::unless_it_flaps(verdict, suspicion, before) {
            Verdict::FailOver { budget } => self.fail_over(cluster, kept, suspicion, budget).await,
            // A promise that was given before it fell silent may last so long.
            Verdict::Hold(Hold::Promised) if kept.watch.silent() < timings.suspicion + timings.promised() => {
                Ok(())
            }
            Verdict::Hold(hold) => self.hold(cluster, kept, suspicion, &hold).await,
        }
    }

    /// How far the primary is: what is lost is counted from there.
    fn note_position(&self, view: &View, report: Option<&MemberReport>, cluster: ClusterId) {
        let Some(report) = report else { return };
        let leads = report.role == Some(Role::Primary) && report.term == view.reign.term;
        if let Some(position) = report.position.filter(|_| leads) {
            self.leases.note_position(cluster, report.term, position);
        }
    }

    /// Since the primary's agent was last heard, over its session or when it asked for its lease.
    fn unheard(&self, primary: NodeId, view: &View) -> Option<Duration> {
        let session = self.fleet.unheard_for(primary);
        session.into_iter().chain(view.granted_for).min()
    }

    /// What the node last told of its member, and how long ago.
    fn report(&self, node: NodeId, cluster: ClusterId) -> Option<(MemberReport, Duration)> {
        let received = self.fleet.node(node)?.report?;
        let member = received.report.members.iter().find(|member| member.cluster_id == cluster)?;
        Some((member.clone(), received.heard.elapsed()))
    }

    /// Whether promises keep a primary going that is silent for so long; not known before every member that can be reached has
    /// said what it does since the primary could have asked for them.
    fn is_promised(
        &self,
        cluster: ClusterId,
        view: &View,
        silent: Duration,
        timings: &Timings,
    ) -> Option<bool> {
        let since = silent.checked_sub(timings.suspicion + timings.renewal / 2)?;
        let witnesses: BTreeMap<NodeId, Witness> = (view.reign.newest().members().iter())
            .map(|&node| {
                let witness = match self.report(node, cluster) {
                    Some((_, age)) if age >= timings.suspicion => Some(Witness::Silent),
                    None => Some(Witness::Silent),
                    Some((_, age)) if age > since => None,
                    Some((report, _)) if report.has_promised => Some(Witness::Promises),
                    Some(_) => Some(Witness::Free),
                };
                Some((node, witness?))
            })
            .collect::<Option<_>>()?;
        let witness = |node| witnesses.get(&node).copied().unwrap_or(Witness::Silent);
        Some(suspicion::is_promised(&view.reign, witness))
    }

    async fn fail_over(
        &self,
        cluster: &Cluster,
        kept: &mut Kept,
        suspicion: Suspicion,
        budget: Option<u64>,
    ) -> Result<(), Error> {
        let tried = |(node, at): (NodeId, Instant)| kept.primary == Some(node) && at.elapsed() < AGAIN;
        if kept.tried.is_some_and(tried) {
            return Ok(());
        }
        let Some(failover) = Failover::new(cluster, None) else { return Ok(()) };
        let failover = Failover { budget, ..failover };
        let mut submit = Submit::new(failover.into(), resource(&cluster.name), "coordinator");
        if let (Suspicion::Stuck, Some(node)) = (suspicion, cluster.primary) {
            submit = noting(&self.records, cluster, Hung { node, at: self.clock.now() }, submit).await?;
        }
        match self.operations.submit(submit).await {
            Ok(_) => {
                kept.tried = kept.primary.map(|primary| (primary, Instant::now()));
                let message = format!("{suspicion}: another member takes its place");
                self.tell(cluster, "FAILOVER_STARTED", message).await
            }
            Err(error) if error.reason() == Reason::OperationInProgress => {
                self.clear_the_way(cluster, kept, suspicion).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whatever else is being done to the cluster cannot be done without a primary: it is given up where that is still possible.
    async fn clear_the_way(
        &self,
        cluster: &Cluster,
        kept: &mut Kept,
        suspicion: Suspicion,
    ) -> Result<(), Error> {
        let Some(holder) = self.operations.holder(&resource(&cluster.name)).await? else { return Ok(()) };
        let operation = self.operations.get(holder.operation).await?;
        let Operation { id, kind, .. } = &operation;
        if operation.cancel_requested && operation.state != State::Blocked {
            return Ok(());
        }
        let given_up = self.operations.cancel(*id).await.is_ok();
        let what = if given_up { "is given up for a failover" } else { "has to end before a failover" };
        let message = format!("{suspicion}; operation {id} ({kind}) {what}");
        if kept.told.as_ref() == Some(&message) {
            return Ok(());
        }
        kept.told = Some(message.clone());
        self.tell(cluster, "FAILOVER_DELAYED", message).await
    }

    async fn hold(
        &self,
        cluster: &Cluster,
        kept: &mut Kept,
        suspicion: Suspicion,
        hold: &Hold,
    ) -> Result<(), Error> {
        let reason = if *hold == Hold::Promised { "PRIMARY_UNREACHABLE" } else { "FAILOVER_BLOCKED" };
        // What changes from look to look, such as a count of bytes, is no news.
        let kind = format!("{reason} {:?}", std::mem::discriminant(hold));
        if kept.told.as_ref() == Some(&kind) {
            return Ok(());
        }
        kept.told = Some(kind);
        self.tell(cluster, reason, format!("{suspicion}, and nothing is done: {hold}")).await
    }

    async fn tell(&self, cluster: &Cluster, reason: &str, message: String) -> Result<(), Error> {
        let name = cluster.primary_member().map(|member| member.node_name.as_str()).unwrap_or_default();
        let message = format!("primary {name}: {message}");
        tracing::warn!(cluster = %cluster.name, reason, "{message}");
        let event = NewEvent::new(Severity::Error, reason, message).on_cluster(cluster.name.as_str());
        self.events.record(event).await?;
        Ok(())
    }
}

/// The same, by which it is stored that the primary hung: a coordinator that is restarted must not replace its successor for the same
/// reason.
pub(crate) async fn noting(
    records: &Records,
    cluster: &Cluster,
    hung: Hung,
    submit: Submit<Procedures>,
) -> Result<Submit<Procedures>, records::Error> {
    let cluster = ClusterRef { id: cluster.id, name: cluster.name.clone() };
    let change = |cluster| Ok(Cluster { hung: Some(hung), ..cluster });
    let (_, Writes { compares, ops }) = records.writes_of_change(&cluster, change).await?;
    let submit = compares.into_iter().fold(submit, Submit::when);
    Ok(ops.into_iter().fold(submit, Submit::then))
}
