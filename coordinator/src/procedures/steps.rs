//! Steps that several procedures share. Each is safe to repeat.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use futures::future::join_all;
use holdfast_common::command::{
    CloneMember, Command, DestroyMember, InstallEngine, Payload, Progress as Said, Success,
};
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::report::EngineState;
use holdfast_common::role::{Availability, Role};
use holdfast_common::term::Term;
use jiff::Timestamp;

use super::nodes::{CallError, on_node, step_error};
use super::records::{Leftover, Records, Writes};
use super::{ClusterRef, Means};
use crate::cluster::observed::NodeState;
use crate::cluster::{Cluster, Member, assignment};
use crate::operation::procedure::{Context, Error};
use crate::operation::{Progress, Unit};

/// Longer than any package manager needs.
const INSTALL_TIME: Duration = Duration::from_secs(15 * 60);
/// Stopping an engine that checkpoints, and removing its files.
const DESTROY_TIME: Duration = Duration::from_secs(5 * 60);
/// Copying a large database.
const CLONE_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// From an assignment to an engine that does what it says.
pub(super) const CONVERGE_TIME: Duration = Duration::from_secs(2 * 60);
/// After so many a server that does not start is not waited for any longer.
const FAILED_STARTS: u32 = 3;
/// How long a node may be away before its data are left for later, on the way back.
const PATIENCE: Duration = Duration::from_secs(20);

/// One command for one member.
pub(super) struct Order<'a> {
    pub(super) member: &'a Member,
    pub(super) term: Term,
    pub(super) payload: Payload,
}

/// Sends all orders at once and waits for all outcomes; the first failure counts.
///
/// When a person cancels, the nodes are asked to give up, and their outcomes are awaited.
pub(super) async fn call_all(
    ctx: &Context<Means>,
    time: Duration,
    orders: Vec<Order<'_>>,
) -> Result<BTreeMap<NodeId, Success>, Error> {
    let said: Mutex<BTreeMap<&str, Said>> = Mutex::new(BTreeMap::new());
    let calls = orders.iter().map(|order| {
        let Order { member, term, payload } = order;
        let said = &said;
        async move {
            let progress = move |update: Said| {
                let Ok(mut all) = said.lock() else { return };
                all.insert(member.node_name.as_str(), update);
                tell(ctx, &all);
            };
            let command = Command {
                id: ctx.command_id(&format!("{}/{}", payload.kind(), member.node_name)),
                coordinator_generation: ctx.means().coordinator_generation,
                term: *term,
                deadline: deadline(ctx.means().clock.now(), time),
                payload: payload.clone(),
            };
            let id = command.id;
            let nodes = &ctx.means().nodes;
            let call = nodes.call(member.node_id, command, &progress);
            tokio::pin!(call);
            let outcome = tokio::select! {
                outcome = &mut call => outcome,
                () = ctx.cancelled().cancelled() => {
                    nodes.cancel(member.node_id, id);
                    call.await
                }
            };
            outcome.map(|success| (member.node_id, success)).map_err(|error| (member, error))
        }
    });
    let outcomes = join_all(calls).await;
    if ctx.cancelled().is_cancelled() {
        return Err(Error::cancelled());
    }
    // A command that may still run forbids new ids for the others too.
    let running = outcomes
        .iter()
        .any(|outcome| matches!(outcome, Err((_, CallError::NotSent { .. } | CallError::Unanswered { .. }))));
    let mut successes = BTreeMap::new();
    let mut failed = None;
    for outcome in outcomes {
        match outcome {
            Ok((node, success)) => {
                successes.insert(node, success);
            }
            Err((member, error)) => {
                failed.get_or_insert_with(|| match error {
                    CallError::Failed(failure) if running => Error::new(on_node(&member.node_name, failure)),
                    other => step_error(&member.node_name, other),
                });
            }
        }
    }
    failed.map_or(Ok(successes), Err)
}

fn tell(ctx: &Context<Means>, all: &BTreeMap<&str, Said>) {
    let done: u64 = all.values().filter_map(|said| said.done_bytes).sum();
    let total: Option<u64> = all.values().map(|said| said.total_bytes).sum();
    let message =
        all.iter().map(|(node, said)| format!("{node}: {}", said.message)).collect::<Vec<_>>().join("; ");
    if all.values().any(|said| said.done_bytes.is_some()) {
        ctx.progress(Progress { done, total, unit: Unit::Bytes }, message);
    } else {
        ctx.say(message);
    }
}

pub(super) fn deadline(now: Timestamp, time: Duration) -> Timestamp {
    now.checked_add(time).unwrap_or(Timestamp::MAX)
}

/// The result of another command than was sent: a defect of ours.
pub(super) fn unexpected(success: &Success) -> Error {
    Error::new(Failure::new(Reason::Internal, format!("unexpected result of a command: {success:?}")))
}

/// Installs the engine where it is missing.
pub(super) async fn install(
    ctx: &Context<Means>,
    cluster: &Cluster,
    members: &[&Member],
) -> Result<(), Error> {
    let payload = Payload::InstallEngine(InstallEngine {
        engine: cluster.engine,
        engine_version: cluster.engine_version.clone(),
        extensions: cluster.extensions.clone(),
    });
    let orders =
        members.iter().map(|member| Order { member, term: Term::NONE, payload: payload.clone() }).collect();
    call_all(ctx, INSTALL_TIME, orders).await?;
    Ok(())
}

/// Copies the primary's data to the members.
pub(super) async fn clone_members(
    ctx: &Context<Means>,
    cluster: &Cluster,
    members: &[&Member],
) -> Result<(), Error> {
    let Some(primary) = cluster.primary_member() else {
        return Err(Error::new(Failure::new(Reason::PreconditionFailed, "there is no primary to copy from")));
    };
    let orders = members
        .iter()
        .map(|member| Order {
            member,
            term: cluster.term,
            payload: Payload::CloneMember(Box::new(CloneMember {
                member: assignment::prospective(cluster, member),
                source: cluster.peer(primary),
            })),
        })
        .collect();
    for success in call_all(ctx, CLONE_TIME, orders).await?.values() {
        match success {
            Success::CloneMember { system_identifier, .. }
                if cluster.system_identifier.as_ref() == Some(system_identifier) => {}
            Success::CloneMember { system_identifier, .. } => {
                let message =
                    format!("the copy has system identifier {system_identifier}, not that of the cluster");
                return Err(Error::new(Failure::new(Reason::EngineFailed, message)));
            }
            other => return Err(unexpected(other)),
        }
    }
    Ok(())
}

/// Waits until `missing` finds nothing missing any more; what it finds is shown meanwhile.
pub(super) async fn observe(
    ctx: &Context<Means>,
    cluster: &Cluster,
    time: Duration,
    missing: impl Fn(&dyn Fn(NodeId) -> Option<NodeState>) -> Option<String>,
) -> Result<(), Error> {
    observe_starts(ctx, cluster, time, &[], missing).await
}

/// The same, and not any longer than until the server of one of `starting` has ended again and again.
pub(super) async fn observe_starts(
    ctx: &Context<Means>,
    cluster: &Cluster,
    time: Duration,
    starting: &[&Member],
    missing: impl Fn(&dyn Fn(NodeId) -> Option<NodeState>) -> Option<String>,
) -> Result<(), Error> {
    let nodes = &ctx.means().nodes;
    let mut changes = nodes.changes();
    let mut told = String::new();
    let mut starts = FailedStarts::default();
    let wait = async {
        loop {
            changes.borrow_and_update();
            let Some(what) = missing(&|node| nodes.state(node, cluster.id)) else { return Ok(()) };
            told = reasoned(&told, what);
            ctx.say(told.clone());
            for member in starting {
                let report = nodes.state(member.node_id, cluster.id).and_then(|state| state.report);
                // One that is fenced was stopped by us.
                if let Some((report, _)) = report
                    && report.lease.as_ref().is_none_or(|lease| !lease.fenced)
                    && starts.note(member.node_id, report.state) >= FAILED_STARTS
                {
                    return Err(format!("{FAILED_STARTS} starts failed: {told}"));
                }
            }
            if changes.changed().await.is_err() {
                // The fleet is going away, and this coordinator with it.
                std::future::pending::<()>().await;
            }
        }
    };
    match tokio::time::timeout(time, wait).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(hopeless)) => return Err(Error::new(Failure::new(Reason::EngineFailed, hopeless))),
        Err(_) => {}
    }
    match missing(&|node| nodes.state(node, cluster.id)) {
        None => Ok(()),
        Some(what) => {
            let message = format!("still waiting after {} s: {}", time.as_secs(), reasoned(&told, what));
            let failure = Failure::new(Reason::CommandTimedOut, message);
            // A server that ends again and again does so however often it is waited for.
            let ends =
                cluster.members.iter().filter_map(|member| nodes.state(member.node_id, cluster.id)?.report);
            let hopeless = ends.into_iter().any(|(report, _)| report.state == EngineState::Failed);
            Err(if hopeless { Error::new(failure) } else { Error::again(failure) })
        }
    }
}

/// How often each node's server has ended when it should have started.
#[derive(Debug, Default)]
struct FailedStarts(BTreeMap<NodeId, (u32, EngineState)>);

impl FailedStarts {
    /// A start that failed is seen as failed for a while, until the next.
    fn note(&mut self, node: NodeId, state: EngineState) -> u32 {
        let (count, last) = self.0.entry(node).or_insert((0, EngineState::Unknown));
        if state == EngineState::Failed && *last != EngineState::Failed {
            *count += 1;
        }
        *last = state;
        *count
    }
}

/// What is missing, with the reason that was told for just that before: a server that ends again and again is seen starting
/// in between, which says nothing of why.
fn reasoned(told: &str, what: String) -> String {
    if told.starts_with(&what) { told.to_owned() } else { what }
}

/// What keeps a member from being in its role, running, in the cluster's term.
pub(super) fn not_serving(cluster: &Cluster, member: &Member, state: Option<NodeState>) -> Option<String> {
    let name = &member.node_name;
    let role = cluster.role(member.node_id);
    let Some(NodeState { availability, report }) = state else {
        return Some(format!("{name} has left the fleet"));
    };
    if availability == Availability::Offline {
        return Some(format!("{name} is offline"));
    }
    let Some((report, _)) = report else { return Some(format!("{name} has not reported the member yet")) };
    let why = if report.message.is_empty() { String::new() } else { format!(" ({})", report.message) };
    if report.state != EngineState::Running {
        return Some(format!("{name} does not run yet{why}"));
    }
    if report.role != Some(role) || report.term != cluster.term {
        return Some(format!("{name} is not {role} in term {} yet{why}", cluster.term));
    }
    if role == Role::Replica && report.streaming != Some(true) {
        return Some(format!("{name} does not receive from the primary yet{why}"));
    }
    None
}

/// Waits until all of `members` serve.
pub(super) async fn serving(
    ctx: &Context<Means>,
    cluster: &Cluster,
    members: &[&Member],
) -> Result<(), Error> {
    serving_within(ctx, cluster, members, CONVERGE_TIME).await
}

/// The same, for so long.
pub(super) async fn serving_within(
    ctx: &Context<Means>,
    cluster: &Cluster,
    members: &[&Member],
    time: Duration,
) -> Result<(), Error> {
    observe_starts(ctx, cluster, time, members, |state| {
        members.iter().find_map(|member| not_serving(cluster, member, state(member.node_id)))
    })
    .await
}

/// Waits until those serve that need no resync: that is an operation of its own, which waits for this one.
pub(super) async fn following(
    ctx: &Context<Means>,
    cluster: &Cluster,
    members: &[&Member],
) -> Result<(), Error> {
    observe_starts(ctx, cluster, CONVERGE_TIME, members, |state| {
        members.iter().find_map(|member| not_following(cluster, member, state(member.node_id)))
    })
    .await
}

fn not_following(cluster: &Cluster, member: &Member, state: Option<NodeState>) -> Option<String> {
    let report = state.as_ref().and_then(|state| state.report.as_ref());
    let is_apart = report.is_some_and(|(report, _)| report.needs_resync);
    if is_apart { None } else { not_serving(cluster, member, state) }
}

/// What becomes of a node that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Absent {
    /// Its data are removed when it returns.
    LeaveBehind,
    /// It is waited for.
    Wait,
}

/// Stops the members and removes their data. Gives the names of the nodes that were left for later.
pub(super) async fn destroy(
    ctx: &Context<Means>,
    cluster: &Cluster,
    members: &[&Member],
    absent: Absent,
) -> Result<Vec<String>, Error> {
    let away = |member: &Member| ctx.means().nodes.is_silent(member.node_id);
    let mut orders = Vec::new();
    let mut left = Vec::new();
    for member in members {
        if absent == Absent::LeaveBehind && away(member) && !returns(ctx, cluster, member).await {
            leave_behind(ctx, cluster, member).await?;
            left.push(member.node_name.to_string());
        } else {
            orders.push(Order {
                member,
                term: cluster.command_term(),
                payload: Payload::DestroyMember(DestroyMember {
                    cluster_id: cluster.id,
                    confirm: cluster.name.clone(),
                }),
            });
        }
    }
    call_all(ctx, DESTROY_TIME, orders).await?;
    Ok(left)
}

/// Whether a node that is away comes back soon: after a restart of the coordinator all are away for a moment.
async fn returns(ctx: &Context<Means>, cluster: &Cluster, member: &Member) -> bool {
    let back = observe(ctx, cluster, PATIENCE, |state| match state(member.node_id) {
        Some(NodeState { availability, .. }) if availability != Availability::Offline => None,
        Some(_) | None => Some(format!("waiting {} s for {}", PATIENCE.as_secs(), member.node_name)),
    });
    back.await.is_ok()
}

async fn leave_behind(ctx: &Context<Means>, cluster: &Cluster, member: &Member) -> Result<(), Error> {
    let leftover = Leftover {
        node_id: member.node_id,
        cluster: ClusterRef { id: cluster.id, name: cluster.name.clone() },
        term: cluster.command_term(),
        since: ctx.means().clock.now(),
    };
    Ok(ctx.means().records.leave_behind(&leftover).await?)
}

/// Removes a member from the record, with its port.
pub(super) async fn forget_member(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    node: NodeId,
) -> Result<Cluster, Error> {
    let records = &ctx.means().records;
    let now = records.get(cluster).await?;
    if now.member(node).is_none() {
        return Ok(now);
    }
    let also = || Writes { compares: Vec::new(), ops: Records::writes_of_gone(&now, node) };
    Ok(records.update_with(cluster, |cluster| cluster.without(node), also).await?)
}

#[cfg(test)]
mod tests {
    use holdfast_common::engine::Engine;
    use holdfast_common::id::NodeId;
    use holdfast_common::report::EngineState::{Failed, Starting};
    use holdfast_common::report::MemberReport;
    use holdfast_common::role::Availability;
    use jiff::Timestamp;

    use super::{FailedStarts, NodeState, not_following, reasoned};
    use crate::cluster::tests::Sample;

    #[test]
    fn whoever_must_be_resynced_first_is_not_waited_for() {
        let cluster = Sample::new().active(2);
        let member = &cluster.members[1];
        let waits = |needs_resync| {
            let report = MemberReport::only(cluster.id, Engine::Postgresql, Failed, cluster.term);
            let report = Some((MemberReport { needs_resync, ..report }, Timestamp::UNIX_EPOCH));
            not_following(&cluster, member, Some(NodeState { availability: Availability::Online, report }))
        };
        assert_eq!(waits(true), None);
        assert!(waits(false).is_some_and(|why| why.contains("does not run yet")));
    }

    #[test]
    fn a_start_that_failed_counts_once_and_each_node_for_itself() {
        let (one, other) = (NodeId::generate(), NodeId::generate());
        let mut starts = FailedStarts::default();
        let mut count = |node, states: &[_]| states.iter().map(|state| starts.note(node, *state)).last();
        assert_eq!(count(one, &[Starting, Failed, Failed, Starting, Failed]), Some(2));
        assert_eq!(count(other, &[Failed, Failed]), Some(1));
        assert_eq!(count(one, &[Failed, Starting, Starting, Failed]), Some(3));
    }

    #[test]
    fn why_a_server_ended_is_not_forgotten_while_it_is_started_again() {
        let why = "n1 does not run yet (the server ended with code 1: FATAL:  no room)";
        let again = reasoned(why, "n1 does not run yet".to_owned());
        assert_eq!(again, why);
        let other = "n1 does not run yet (the server ended with code 1: FATAL:  bad luck)".to_owned();
        assert_eq!(reasoned(&again, other.clone()), other);
        assert_eq!(reasoned(why, "n2 is offline".to_owned()), "n2 is offline");
    }
}
