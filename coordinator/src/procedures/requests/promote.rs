//! `PromoteMember`.

use holdfast_common::error::{Failure, Reason};
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::report::{EngineState, MemberReport, TroubleKind};
use holdfast_common::role::{Availability, Role};

use super::members::active;
use super::preconditions::{Precondition, about_node, not_draining, online};
use super::{Asker, Desk, Prepare, Prepared, store_failure};
use crate::cluster::{Cluster, Member, MemberPhase};
use crate::procedures::Means;
use crate::procedures::promote::{self, Promote};
use crate::procedures::records::{self, cluster_key};
use crate::store::Compare;

/// Behind by more, the target would keep clients waiting while it catches up.
const MAX_LAG_BYTES: u64 = 16 * 1024 * 1024;
const MAX_LAG_SECONDS: f64 = 10.0;

/// The request, checked field by field.
#[derive(Debug, Clone)]
pub struct PromoteMember {
    pub cluster: ClusterName,
    pub node: NodeName,
    /// Also where the target's machine has less than the primary's.
    pub allow_smaller: bool,
}

impl Prepare for PromoteMember {
    async fn prepare(&self, desk: &Desk, asker: &Asker) -> Result<Prepared, Failure> {
        let found = desk.cluster(&self.cluster).await?;
        let cluster = found.value;
        let target = member_named(&cluster, &self.node)?;
        let mut preconditions = vec![active(&cluster), is_replica(&cluster, target)];
        let nodes = [Some(target), cluster.primary_member()].into_iter().flatten();
        let named: Vec<_> = nodes.map(|member| (member.node_id, member.node_name.clone())).collect();
        preconditions.extend(online(&desk.means, cluster.id, &named));
        let drained = desk.means.records.drained(&cluster).await.map_err(|error| store_failure(&error))?;
        preconditions.push(not_draining(&target.node_name, drained.get(&target.node_id)));
        if let Some(primary) = cluster.primary_member().filter(|primary| primary.node_id != target.node_id) {
            preconditions.push(serves(&desk.means, &cluster, primary));
            preconditions.extend(receives(&desk.means, &cluster, target, primary));
            preconditions.push(is_as_large(&desk.means, target, primary, self.allow_smaller));
            preconditions.push(may_be_promoted(&desk.means, &cluster, target));
        }
        let submit = Promote::new(&cluster, target).map(|procedure| {
            let key = cluster_key(&cluster.name);
            asker.submit(procedure, &cluster).when(Compare::unchanged(&key, found.revision))
        });
        let notes = vec![
            "writes wait, and open connections to the old primary are cut, from the stop until the new one serves"
                .to_owned(),
            "nothing that was acknowledged is lost; the same command promotes the old one again".to_owned(),
        ];
        Ok(Prepared { preconditions, steps: promote::plan(), notes, submit })
    }
}

/// The cluster's member on the node.
///
/// # Errors
/// `MEMBER_NOT_FOUND`.
pub(super) fn member_named<'a>(cluster: &'a Cluster, node: &NodeName) -> Result<&'a Member, Failure> {
    cluster.member_named(node).ok_or_else(|| {
        let message = format!(
            "cluster `{0}` has no member on node `{node}`; `holdfast cluster show {0}` names them",
            cluster.name
        );
        Failure::about(Reason::MemberNotFound, "member", node, message)
    })
}

/// The member that could best take the primary's place now; or, in words, why each cannot.
///
/// # Errors
/// Those of the store.
pub(in crate::procedures) async fn successor<'a>(
    means: &Means,
    cluster: &'a Cluster,
) -> Result<Result<&'a Member, String>, records::Error> {
    let Some(primary) = cluster.primary_member() else { return Ok(Err("it has no primary".to_owned())) };
    let drained = means.records.drained(cluster).await?;
    let ready = [active(cluster), serves(means, cluster, primary)];
    let mut obstacles = unmet(&ready);
    let mut candidates = Vec::new();
    for target in cluster.replicas() {
        let named = [(target.node_id, target.node_name.clone())];
        let mut conditions = vec![
            is_replica(cluster, target),
            not_draining(&target.node_name, drained.get(&target.node_id)),
            may_be_promoted(means, cluster, target),
        ];
        conditions.extend(online(means, cluster.id, &named));
        conditions.extend(receives(means, cluster, target, primary));
        let in_the_way = unmet(&conditions);
        if in_the_way.is_empty() {
            let large = is_as_large(means, target, primary, false).met;
            let position = report(means, cluster, target).and_then(|it| it.replayed.or(it.position));
            candidates.push(((large, position), target));
        }
        obstacles.extend(in_the_way);
    }
    // With a primary that cannot hand over, nobody can take over.
    let best = candidates.into_iter().max_by_key(|(worth, _)| *worth).map(|(_, target)| target);
    Ok(match best.filter(|_| unmet(&ready).is_empty()) {
        Some(best) => Ok(best),
        None if obstacles.is_empty() => Err("it has no other member".to_owned()),
        None => Err(obstacles.join("; ")),
    })
}

fn unmet(conditions: &[Precondition]) -> Vec<String> {
    let unmet = conditions.iter().filter(|condition| !condition.met);
    unmet.map(|condition| format!("{}: {}", condition.subject, condition.message)).collect()
}

fn is_replica(cluster: &Cluster, target: &Member) -> Precondition {
    let (met, message) = match (cluster.role(target.node_id), target.phase) {
        (Role::Primary, _) => (false, "it is the primary already; name another member"),
        (Role::Replica, MemberPhase::Active) => (true, "it is a replica"),
        (Role::Replica, MemberPhase::Joining) => {
            (false, "its data are still being made; wait for that operation")
        }
        (Role::Replica, MemberPhase::Aligning) => {
            (false, "its data are being aligned with the primary's; wait for that, or name another member")
        }
        (Role::Replica, MemberPhase::Leaving) => (false, "it is being removed; name another member"),
    };
    Precondition::new("is_replica", about_node(&target.node_name), met, message)
}

fn report(means: &Means, cluster: &Cluster, member: &Member) -> Option<MemberReport> {
    let state = means.nodes.state(member.node_id, cluster.id)?;
    let fresh = matches!(state.availability, Availability::Online | Availability::Late);
    state.report.filter(|_| fresh).map(|(report, _)| report)
}

pub(super) fn serves(means: &Means, cluster: &Cluster, primary: &Member) -> Precondition {
    let report = report(means, cluster, primary);
    let met = report.is_some_and(|report| {
        report.state == EngineState::Running
            && report.role == Some(Role::Primary)
            && report.lease.is_none_or(|lease| lease.open)
    });
    let message = if met {
        "the primary serves"
    } else {
        "the primary does not serve now, so it cannot hand over; `cluster show` says why"
    };
    Precondition::new("primary_serves", about_node(&primary.node_name), met, message)
}

fn receives(means: &Means, cluster: &Cluster, target: &Member, primary: &Member) -> Vec<Precondition> {
    let subject = about_node(&target.node_name);
    let Some(of_target) = report(means, cluster, target) else {
        let message = "it has not told how it stands";
        return vec![Precondition::new("streaming", subject, false, message)];
    };
    let streams = of_target.streaming == Some(true) && of_target.role == Some(Role::Replica);
    let message =
        if streams { "it receives from the primary" } else { "it does not receive from the primary" };
    let streaming = Precondition::new("streaming", subject.clone(), streams, message);
    let of_primary = report(means, cluster, primary).and_then(|report| report.position);
    let bytes = of_target.replayed.or(of_target.position).zip(of_primary).map(|(own, its)| own.behind(its));
    let seconds = of_target.lag_seconds.unwrap_or_default();
    let (met, message) = match bytes {
        Some(bytes) => (
            bytes <= MAX_LAG_BYTES && seconds <= MAX_LAG_SECONDS,
            format!(
                "it is {bytes} bytes and {seconds:.1} s behind; at most {MAX_LAG_BYTES} bytes and {MAX_LAG_SECONDS} s are allowed"
            ),
        ),
        None => (false, "how far it is behind is not known".to_owned()),
    };
    let lag = Precondition::new("lag_within_bounds", subject.clone(), met, message);
    vec![streaming, lag, applies(&of_target, subject)]
}

/// A seal waits until all is applied that was received, and clients with it.
fn applies(target: &MemberReport, subject: String) -> Precondition {
    let paused = target.troubles.iter().find(|trouble| trouble.kind == TroubleKind::ReplayPaused);
    let message = paused.map_or("it applies what it receives", |trouble| trouble.message.as_str());
    Precondition::new("applies", subject, paused.is_none(), message)
}

fn is_as_large(means: &Means, target: &Member, primary: &Member, allow_smaller: bool) -> Precondition {
    let subject = about_node(&target.node_name);
    let machines = (means.nodes.machine(target.node_id), means.nodes.machine(primary.node_id));
    let (Some(own), Some(its)) = machines else {
        let message = "how large the machines are is not known";
        return Precondition::new("machine_as_large", subject, allow_smaller, message);
    };
    // Machines of one kind differ by some pages.
    let enough = own.cores >= its.cores && own.memory_bytes >= its.memory_bytes / 100 * 98;
    let size = |machine: &crate::procedures::nodes::Machine| {
        format!("{} cores and {} MiB", machine.cores, machine.memory_bytes >> 20)
    };
    let mut message = format!("it has {}, the primary {}", size(&own), size(&its));
    if !enough && !allow_smaller {
        message += "; --allow-smaller promotes it nevertheless";
    }
    Precondition::new("machine_as_large", subject, enough || allow_smaller, message)
}

fn may_be_promoted(means: &Means, cluster: &Cluster, target: &Member) -> Precondition {
    let subject = about_node(&target.node_name);
    let regent = means.leases.regent(cluster.id);
    let (met, message) = match regent.map(|regent| regent.reign) {
        None => (false, "the cluster's lease is not known yet; try again in a moment"),
        Some(reign) if reign.intended.is_some() => (false, "another change of primary is under way"),
        Some(reign) if !reign.is_settled() => (
            false,
            "the primary has not confirmed the newest list of promotable members; try again in a moment",
        ),
        Some(reign) if !reign.is_promotable(target.node_id) => {
            (false, "the primary does not count on it; it is put on the list once it receives")
        }
        Some(_) => (true, "the primary counts on it"),
    };
    Precondition::new("promotable", subject, met, message)
}

#[cfg(test)]
mod tests {
    use holdfast_common::engine::Engine;
    use holdfast_common::id::ClusterId;
    use holdfast_common::report::Trouble;
    use holdfast_common::term::Term;

    use super::*;

    #[test]
    fn a_replica_that_is_kept_from_applying_is_not_promoted() {
        let (id, state) = (ClusterId::generate(), EngineState::Running);
        let mut report = MemberReport::only(id, Engine::Postgresql, state, Term::FIRST);
        assert!(applies(&report, "nodes/n1".to_owned()).met);
        report.troubles = vec![Trouble { kind: TroubleKind::ReplayPaused, message: "resume it".to_owned() }];
        let unmet = applies(&report, "nodes/n1".to_owned());
        assert_eq!((unmet.met, unmet.message.as_str()), (false, "resume it"));
    }
}
