//! Which replicas a primary's commits wait for, and who may be promoted: changed together, one step at a time.
//!
//! ```text
//!  declare the new list beside the old one, with the record ─► the primary enforces it, and confirms ─► the old one counts no more
//! ```
//! From the first write on, a failover must satisfy both sets, so that it does not matter which of them the primary goes by.

use std::time::Duration;

use holdfast_common::assignment::Synchronous;
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::protocol::Need;
use holdfast_common::role::Durability;
use tokio::time::timeout;

use super::steps::{CONVERGE_TIME, not_serving, observe};
use super::{ClusterRef, Means};
use crate::cluster::observed::NodeState;
use crate::cluster::{ChangeError, Cluster, MemberPhase};
use crate::lease::Led;
use crate::operation::procedure::{Context, Error};

/// Between two looks at what a primary has confirmed.
const LOOK: Duration = Duration::from_millis(50);

/// How long a replica is waited for that the quorum could begin with.
const RECEIVE_TIME: Duration = Duration::from_secs(10);

/// Makes the primary enforce the set that the declared durability asks for: first enforced, then recorded.
pub(super) async fn strengthen(ctx: &Context<Means>, cluster: &ClusterRef) -> Result<Cluster, Error> {
    let wanted = ctx.means().records.get(cluster).await?.wanted_synchronous();
    strengthen_to(ctx, cluster, &wanted).await
}

/// The same with this set, of active replicas that receive.
pub(super) async fn strengthen_to(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    wanted: &Synchronous,
) -> Result<Cluster, Error> {
    let records = &ctx.means().records;
    let now = records.get(cluster).await?;
    if now.synchronous == *wanted && now.strengthening.is_none() {
        return Ok(now);
    }
    let told = record(ctx, cluster, None, |cluster| cluster.with_strengthening(wanted.clone())).await?;
    caught_up(ctx, &told, wanted).await?;
    Ok(records.update(cluster, Cluster::with_strengthened).await?)
}

/// Waits until the primary enforces the set, and all of it has what the primary has.
async fn caught_up(ctx: &Context<Means>, told: &Cluster, wanted: &Synchronous) -> Result<(), Error> {
    observe(ctx, told, CONVERGE_TIME, |state| {
        told.replicas()
            .filter(|member| wanted.nodes.contains(&member.node_id))
            .find_map(|member| not_serving(told, member, state(member.node_id)))
            .or_else(|| not_enforced(told, wanted, state))
    })
    .await
}

/// Durability quorum, from the active replicas that receive now: first enforced, then recorded.
pub(super) async fn begin(ctx: &Context<Means>, cluster: &ClusterRef) -> Result<(), Error> {
    let Means { records, nodes, .. } = ctx.means();
    let now = records.get(cluster).await?;
    if now.durability == Durability::Quorum {
        return Ok(());
    }
    let receives = |node: &NodeId| nodes.state(*node, now.id).is_some_and(|state| state.receives());
    let active = || now.replicas().filter(|member| member.phase == MemberPhase::Active);
    // One that is only late is not left out; for one that is lost nobody waits longer.
    let all = observe(ctx, &now, RECEIVE_TIME, |_| {
        let lacks = active().find(|member| !receives(&member.node_id))?;
        Some(format!("{} does not receive from the primary", lacks.node_name))
    });
    let _some = all.await;
    let set = active().map(|member| member.node_id).filter(receives).collect();
    let wanted = Cluster { durability: Durability::Quorum, ..now.clone() }.synchronous_of(set);
    if wanted.count == 0 {
        let message = "no replica receives from the primary, so that commits could wait for none";
        return Err(Error::again(Failure::new(Reason::PreconditionFailed, message)));
    }
    let told = match now.strengthening.as_ref() {
        Some(set) if *set == wanted => now,
        Some(_) | None => {
            record(ctx, cluster, None, |cluster| cluster.with_strengthening(wanted.clone())).await?
        }
    };
    caught_up(ctx, &told, &wanted).await?;
    let quorum = |cluster| Cluster { durability: Durability::Quorum, ..cluster };
    records.update(cluster, |cluster| cluster.with_strengthened().map(quorum)).await?;
    Ok(())
}

/// Durability async: first recorded, then relaxed by the primary. Gives what was recorded.
pub(super) async fn give_up(ctx: &Context<Means>, cluster: &ClusterRef) -> Result<Cluster, Error> {
    let now = ctx.means().records.get(cluster).await?;
    let nobody = now.synchronous == Synchronous::default() && now.strengthening.is_none();
    if now.durability == Durability::Async && nobody {
        return Ok(now);
    }
    record(ctx, cluster, None, |cluster| {
        Cluster { durability: Durability::Async, ..cluster }.with_relaxed(Synchronous::default())
    })
    .await
}

/// The set that the declared durability asks for, from the active replicas that receive now.
pub(super) async fn receiving(ctx: &Context<Means>, cluster: &ClusterRef) -> Result<Synchronous, Error> {
    let Means { records, nodes, .. } = ctx.means();
    let cluster = records.get(cluster).await?;
    let receives = |node: &NodeId| nodes.state(*node, cluster.id).is_some_and(|state| state.receives());
    let active = cluster.replicas().filter(|member| member.phase == MemberPhase::Active);
    Ok(cluster.synchronous_of(active.map(|member| member.node_id).filter(receives).collect()))
}

/// Gives up what is being strengthened: the recorded set is what counts.
pub(super) async fn stay(ctx: &Context<Means>, cluster: &ClusterRef) -> Result<Cluster, Error> {
    let now = ctx.means().records.get(cluster).await?;
    if now.strengthening.is_none() {
        return Ok(now);
    }
    record(ctx, cluster, None, |cluster| {
        let set = cluster.synchronous.clone();
        cluster.with_relaxed(set)
    })
    .await
}

/// Takes the replica out of the synchronous set: first recorded, then relaxed by the primary.
pub(super) async fn relax(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    node: NodeId,
) -> Result<Cluster, Error> {
    let now = ctx.means().records.get(cluster).await?;
    let set = now.synchronous_without(node);
    let told = if now.synchronous == set && now.strengthening.is_none() {
        now
    } else {
        record(ctx, cluster, Some(node), |cluster| cluster.with_relaxed(set.clone())).await?
    };
    is_enforced(ctx, &told).await?;
    Ok(told)
}

/// Takes a replica out of all that counts on its data, until it is active again, and waits until its primary goes by that.
pub(super) async fn set_aside(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    node: NodeId,
) -> Result<Cluster, Error> {
    let told = record(ctx, cluster, Some(node), |cluster| cluster.with_aligning(node)).await?;
    is_enforced(ctx, &told).await?;
    let counts_on_it = || {
        let view = ctx.means().leases.view(told.id);
        view.is_some_and(|view| view.reign.lists.iter().any(|list| list.has(node)))
    };
    let forgotten = async {
        while counts_on_it() {
            tokio::time::sleep(LOOK).await;
        }
    };
    if timeout(CONVERGE_TIME, forgotten).await.is_err() {
        let message = "the primary has not confirmed that it does not count on the replica any more";
        return Err(Error::again(Failure::new(Reason::CommandTimedOut, message)));
    }
    Ok(told)
}

pub(super) async fn is_enforced(ctx: &Context<Means>, told: &Cluster) -> Result<(), Error> {
    let wanted = told.synchronous.clone();
    observe(ctx, told, CONVERGE_TIME, |state| not_enforced(told, &wanted, state)).await
}

/// Stores a change of the record together with the list of who may be promoted by it, so that no failover goes by one alone. Of a
/// cluster whose commits wait for nobody, `without` leaves the list.
async fn record(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    without: Option<NodeId>,
    change: impl Fn(Cluster) -> Result<Cluster, ChangeError>,
) -> Result<Cluster, Error> {
    let Means { records, leases, .. } = ctx.means();
    let Some(led) = Led::of(&records.get(cluster).await?) else {
        return Ok(records.update(cluster, change).await?);
    };
    leases.open_one(&led).await?;
    let (told, writes) = records.writes_of_change(cluster, change).await?;
    let set = told.enforced_synchronous();
    let members: Vec<NodeId> = if set.count > 0 {
        set.nodes.clone()
    } else {
        // Who is promotable already, but for that one: others are put on once they receive.
        let reign = leases.regent(told.id).map(|regent| regent.reign);
        let stays = |node: &NodeId| {
            let active = told.member(*node).is_some_and(|member| member.phase == MemberPhase::Active);
            active && without != Some(*node) && reign.as_ref().is_none_or(|reign| reign.newest().has(*node))
        };
        told.replicas().map(|member| member.node_id).filter(stays).collect()
    };
    leases.declare_with(told.id, &members, Need::of(set.count), writes).await?;
    Ok(told)
}

fn not_enforced(
    cluster: &Cluster,
    wanted: &Synchronous,
    state: &dyn Fn(NodeId) -> Option<NodeState>,
) -> Option<String> {
    let primary = cluster.primary_member()?;
    if let Some(missing) = not_serving(cluster, primary, state(primary.node_id)) {
        return Some(missing);
    }
    let (report, _) = state(primary.node_id)?.report?;
    let mut enforced = report.synchronous.nodes.clone();
    let mut named = wanted.nodes.clone();
    enforced.sort();
    named.sort();
    (report.synchronous.count != wanted.count || enforced != named).then(|| {
        format!(
            "{} does not wait for {} of {} replicas yet",
            primary.node_name,
            wanted.count,
            wanted.nodes.len()
        )
    })
}
