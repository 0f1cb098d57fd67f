//! Clusters and plans as operators see them.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_common::assignment::Exposure;
use holdfast_common::id::{NodeId, OperationId};
use holdfast_common::role::{Availability, Durability, Role};
use holdfast_common::term::Term;
use holdfast_common::wire::{WireEnum as _, time_to_wire};
use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1 as proto;
use jiff::Timestamp;

use crate::cluster::observed::{self, Health, MemberState, MemberView, NodeState};
use crate::cluster::{Cluster, OnReplicaLoss, Pause};
use crate::lease;

pub(super) fn cluster(
    cluster: &Cluster,
    operation: Option<OperationId>,
    lease: Option<&lease::View>,
    now: Timestamp,
    state: impl Fn(NodeId) -> Option<NodeState>,
) -> proto::Cluster {
    let lease = lease.map(|view| self::lease(cluster, view, now, &state));
    let view = observed::view(cluster, state);
    let durability = match cluster.durability {
        Durability::Async => nouns::Durability::Async,
        Durability::Quorum => nouns::Durability::Quorum,
    };
    let parameters: BTreeMap<String, String> = cluster.parameters.clone().into();
    proto::Cluster {
        id: cluster.id.to_string(),
        name: cluster.name.to_string(),
        engine: engine(cluster.engine).into(),
        engine_version: cluster.engine_version.to_string(),
        state: health(view.health).into(),
        message: view.message,
        term: cluster.term.get(),
        primary_node: cluster.primary_member().map(|member| member.node_name.to_string()).unwrap_or_default(),
        durability: durability.into(),
        synchronous_count: view.synchronous_count.unwrap_or(0),
        port: u32::from(cluster.port),
        parameters: parameters.into_iter().collect(),
        extensions: cluster.extensions.iter().map(ToString::to_string).collect(),
        members: view.members.into_iter().map(member).collect(),
        create_time: Some(time_to_wire(cluster.created_at)),
        operation_id: operation.map(|id| id.to_string()).unwrap_or_default(),
        allow_unfiltered: cluster.exposure == Exposure::AlsoUnfiltered,
        lease_profile: cluster.lease_profile.to_wire(),
        lease,
        replication_port: cluster.replication_port.map_or(0, u32::from),
        gated_ports: cluster.gated_ports.iter().copied().map(u32::from).collect(),
        pause: cluster.paused.as_ref().map(pause),
        max_lag_on_failover_bytes: cluster.max_lag_on_failover,
        on_replica_loss: on_replica_loss(cluster.on_replica_loss).into(),
    }
}

fn pause(pause: &Pause) -> proto::ClusterPause {
    let Pause { by, reason, since } = pause;
    proto::ClusterPause { by: by.clone(), reason: reason.clone(), since_time: Some(time_to_wire(*since)) }
}

const fn on_replica_loss(on_loss: OnReplicaLoss) -> proto::OnReplicaLoss {
    match on_loss {
        OnReplicaLoss::Shrink => proto::OnReplicaLoss::Shrink,
        OnReplicaLoss::Block => proto::OnReplicaLoss::Block,
    }
}

fn lease(
    cluster: &Cluster,
    view: &lease::View,
    now: Timestamp,
    state: &impl Fn(NodeId) -> Option<NodeState>,
) -> proto::ClusterLease {
    let lease::View { reign, remembered, serves, granted_for: _, last } = view;
    let name = |node: NodeId| {
        let member = cluster.member(node);
        member.map_or_else(|| node.to_string(), |member| member.node_name.to_string())
    };
    let report = |node| state(node).and_then(|state| Some((state.availability, state.report?.0)));
    let primary = report(reign.primary);
    let held = primary
        .as_ref()
        .filter(|(availability, _)| *availability == Availability::Online)
        .and_then(|(_, report)| report.lease.clone());
    let last = primary.and_then(|(_, report)| report.position).max(*last);
    let outlook = lease::outlook(reign, last, |node| {
        let (availability, report) = report(node)?;
        (availability == Availability::Online).then_some(report.position)
    });
    let after = |left: Duration| now.checked_add(left).ok().map(time_to_wire);
    proto::ClusterLease {
        holder: name(reign.primary),
        source: held.as_ref().map_or(0, |held| held.source.to_wire()),
        expire_time: serves.and_then(after),
        remembered_until_time: Some(*remembered).filter(|left| !left.is_zero()).and_then(after),
        list_version: reign.newest().version.get(),
        promotable_nodes: reign.promotable().into_iter().map(name).collect(),
        settled: reign.is_settled(),
        fenced: held.is_some_and(|held| held.fenced),
        failover: Some(proto::Failover {
            possible: outlook.obstacle.is_none(),
            candidate_node: outlook.candidate.map(name).unwrap_or_default(),
            behind_bytes: outlook.behind,
            message: outlook.obstacle.map(|obstacle| obstacle.to_string()).unwrap_or_default(),
        }),
    }
}

fn member(view: MemberView) -> proto::Member {
    let MemberView {
        node_id,
        node_name,
        address,
        role,
        state,
        message,
        term,
        position,
        lag_bytes,
        lag_seconds,
        streaming,
        synchronous,
        engine_version,
        server_build,
        installed_build,
        observed_at,
        troubles,
        tuning,
    } = view;
    let role = match role {
        Role::Primary => nouns::Role::Primary,
        Role::Replica => nouns::Role::Replica,
    };
    proto::Member {
        node: node_name.to_string(),
        node_id: node_id.to_string(),
        address: address.to_string(),
        role: role.into(),
        state: state.map_or(proto::MemberState::Unspecified, member_state).into(),
        message,
        term: term.map_or(0, Term::get),
        position: position.map(|position| nouns::Position { era: position.era, offset: position.offset }),
        lag_bytes,
        lag_seconds,
        synchronous,
        engine_version: engine_version.unwrap_or_default(),
        server_build: server_build.unwrap_or_default(),
        installed_build: installed_build.unwrap_or_default(),
        observe_time: observed_at.map(time_to_wire),
        streaming,
        troubles: troubles.iter().map(Into::into).collect(),
        tuning: tuning.as_ref().map(Into::into),
    }
}

const fn engine(engine: holdfast_common::engine::Engine) -> nouns::Engine {
    match engine {
        holdfast_common::engine::Engine::Postgresql => nouns::Engine::Postgresql,
    }
}

const fn health(health: Health) -> proto::ClusterState {
    match health {
        Health::Creating => proto::ClusterState::Creating,
        Health::Healthy => proto::ClusterState::Healthy,
        Health::Degraded => proto::ClusterState::Degraded,
        Health::Unavailable => proto::ClusterState::Unavailable,
        Health::Deleting => proto::ClusterState::Deleting,
        Health::Unknown => proto::ClusterState::Unknown,
    }
}

const fn member_state(state: MemberState) -> proto::MemberState {
    match state {
        MemberState::Running => proto::MemberState::Running,
        MemberState::Streaming => proto::MemberState::Streaming,
        MemberState::Starting => proto::MemberState::Starting,
        MemberState::Stopped => proto::MemberState::Stopped,
        MemberState::Failed => proto::MemberState::Failed,
        MemberState::Building => proto::MemberState::Building,
        MemberState::Absent => proto::MemberState::Absent,
    }
}
