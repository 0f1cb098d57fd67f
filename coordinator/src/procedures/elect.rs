//! From an intended term to a stored new primary, or back: what switchover and failover have in common.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::protocol::{Need, Obstacle, Regent, Reign};
use holdfast_common::term::Term;
use tokio::time::timeout;

use super::{ClusterRef, Means, steps};
use crate::cluster::{Cluster, Member, OnReplicaLoss};
use crate::lease;
use crate::operation::procedure::{Context, Error, StepLabel};

/// How often a record that somebody else changes in this moment is tried again.
const TRIES: usize = 20;
/// From a stored primary to one that serves; after it a person must look.
pub(super) const SERVE_TIME: Duration = Duration::from_secs(5 * 60);

/// Waits until `found` sees in what the nodes have answered what it looks for.
pub(super) async fn answered<T>(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    time: Duration,
    mut found: impl FnMut(&Regent) -> Result<Option<T>, Failure>,
) -> Result<T, Error> {
    let leases = &ctx.means().leases;
    let mut answers = leases.answers();
    // Time alone may bring it about too: a lease that ends.
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let mut told = String::new();
    let wait = async {
        loop {
            answers.borrow_and_update();
            let regent = known(ctx, cluster)?;
            match found(&regent) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(failure) => return Err(Error::new(failure)),
            }
            if let Some(obstacle) = obstacle(&regent)
                && told != obstacle
            {
                ctx.say(obstacle.clone());
                told = obstacle;
            }
            // Both arms are cancel-safe.
            tokio::select! {
                _changed = answers.changed() => {}
                _now = look.tick() => {}
            }
        }
    };
    match timeout(time, wait).await {
        Ok(ended) => ended,
        Err(_) => {
            let what = leases.regent(cluster.id).and_then(|regent| obstacle(&regent));
            let what = what.unwrap_or_else(|| "a node that was asked has not answered".to_owned());
            let message = format!("still waiting after {} s: {what}", time.as_secs());
            Err(Error::new(Failure::new(Reason::CommandTimedOut, message)))
        }
    }
}

/// What is in the way at the moment.
fn obstacle(regent: &Regent) -> Option<String> {
    if regent.reign.intended.is_none() {
        return regent.stop.filter(|stop| stop.tail.is_none()).map(|_| Obstacle::NotStopped.to_string());
    }
    regent.choose(&[]).err().map(|obstacle| obstacle.to_string())
}

/// What is known of the lease.
pub(super) fn known(ctx: &Context<Means>, cluster: &ClusterRef) -> Result<Regent, Error> {
    let regent = ctx.means().leases.regent(cluster.id);
    // A coordinator that has just started reads it in a moment.
    regent.ok_or_else(|| Error::from(lease::Error::NoPrimary(cluster.id)))
}

/// The reign, if it is still this primary's in this term.
pub(super) fn reign_of(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    (primary, term): (NodeId, Term),
) -> Result<Reign, Error> {
    let reign = known(ctx, cluster)?.reign;
    if (reign.primary, reign.term) == (primary, term) { Ok(reign) } else { Err(overtaken(term)) }
}

/// Waits until the recorded primary serves. Gives the record.
pub(super) async fn served(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    time: Duration,
) -> Result<Cluster, Error> {
    let record = ctx.means().records.get(cluster).await?;
    let primary: Vec<&Member> = record.primary_member().into_iter().collect();
    // Both arms are cancel-safe: they only look.
    tokio::select! {
        serves = steps::serving_within(ctx, &record, &primary, time) => serves?,
        name = gone(ctx, &record) => {
            let message = format!("{name}, which is to be the primary, is offline");
            return Err(Error::new(Failure::new(Reason::AgentOffline, message)));
        }
    }
    Ok(record)
}

/// Waits until the recorded primary's node is offline. Gives its name.
pub(super) async fn gone(ctx: &Context<Means>, record: &Cluster) -> String {
    let nodes = &ctx.means().nodes;
    let mut changes = nodes.changes();
    loop {
        changes.borrow_and_update();
        let Some(primary) = record.primary_member() else { return std::future::pending().await };
        if nodes.is_silent(primary.node_id) {
            return primary.node_name.to_string();
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The step after a new primary was stored that does not serve.
pub(super) fn leave() -> StepLabel {
    StepLabel::new("leave", "Leave it as it is: a further failover may begin")
}

/// Somebody else has changed the primary.
fn overtaken(term: Term) -> Error {
    let message = format!("the primary of term {term} has been replaced meanwhile");
    Error::new(Failure::new(Reason::PreconditionFailed, message))
}

/// Stores the member as primary of the intended term, in the reign and in the record, or neither.
pub(super) async fn succeed(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    chosen: NodeId,
    preference: &[NodeId],
) -> Result<(), Error> {
    let Means { records, leases, .. } = ctx.means();
    for _ in 0..TRIES {
        let regent = known(ctx, cluster)?;
        let intended = regent.reign.intended.ok_or(Obstacle::NothingIntended).map_err(lease::Error::from)?;
        // Who is not sealed is as lost as the primary.
        let there = regent.goes_by_word().then(|| regent.seals.keys().copied().collect::<BTreeSet<_>>());
        let (record, writes) = records
            .writes_of_change(cluster, |cluster| {
                let shrinks = cluster.on_replica_loss == OnReplicaLoss::Shrink;
                let set = match there.as_ref().filter(|_| shrinks) {
                    Some(there) => cluster.synchronous_among(chosen, there),
                    None => cluster.synchronous_under(chosen),
                };
                cluster.with_primary(chosen, intended, set)
            })
            .await?;
        let need = Need::of(record.synchronous.count);
        let members: Vec<NodeId> = match need {
            Need::Any(_) => record.synchronous.nodes.clone(),
            // The old one is put on once it follows.
            Need::All => {
                let is_there = |node: &NodeId| there.as_ref().is_none_or(|there| there.contains(node));
                regent.reign.promotable().into_iter().filter(is_there).collect()
            }
        };
        match leases.succeed(cluster.id, preference, &members, need, writes).await {
            Ok(()) => return Ok(()),
            Err(lease::Error::Contended(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::from(lease::Error::Contended(cluster.id)))
}

/// Gives the change up: the old primary gets a term above every seal. Nothing where none is intended.
pub(super) async fn abandon(ctx: &Context<Means>, cluster: &ClusterRef) -> Result<(), Error> {
    let Means { records, leases, .. } = ctx.means();
    leases.resume(cluster.id);
    for _ in 0..TRIES {
        let regent = known(ctx, cluster)?;
        let Some(intended) = regent.reign.intended else { return Ok(()) };
        let term = intended.next();
        let (_, writes) = records.writes_of_change(cluster, |cluster| cluster.with_term(term)).await?;
        match leases.abandon(cluster.id, writes).await {
            Ok(()) => return Ok(()),
            Err(lease::Error::Contended(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::from(lease::Error::Contended(cluster.id)))
}
