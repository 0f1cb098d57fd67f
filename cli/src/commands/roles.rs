//! `holdfast cluster promote | failover | resync | restart | upgrade | pause | resume | set`: who is the primary, and what may change that.

use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1;

use super::Session;
use crate::args::{Cluster, Durability, OnReplicaLoss, PlanFlag, ResyncMode, Run};
use crate::client::request_id;
use crate::error::Error;
use crate::output::json;

pub(super) async fn run(session: &mut Session, command: Cluster) -> Result<(), Error> {
    match command {
        Cluster::Promote { cluster, node, allow_smaller, run } => {
            promote(session, cluster, node, allow_smaller, run).await
        }
        Cluster::Pause { cluster, reason, plan } => {
            pause(session, cluster, reason.unwrap_or_default(), plan).await
        }
        Cluster::Resume { cluster, plan } => resume(session, cluster, plan).await,
        Cluster::Set { .. } => set(session, command).await,
        Cluster::Resync { .. } => resync(session, command).await,
        Cluster::Restart { cluster, node, force, run } => restart(session, (cluster, node), force, run).await,
        Cluster::Upgrade { cluster, force, run } => upgrade(session, cluster, force, run).await,
        // `cluster::run` sends no others here.
        other => failover(session, other).await,
    }
}

fn changed(session: &mut Session, cluster: &v1::Cluster, done: &str) -> Result<(), Error> {
    if session.out.is_json() {
        return Ok(session.out.json(&json::cluster(cluster))?);
    }
    Ok(session.out.line(done)?)
}

async fn pause(session: &mut Session, cluster: String, reason: String, plan: PlanFlag) -> Result<(), Error> {
    let done = format!("No failover of {cluster} begins by itself until: holdfast cluster resume {cluster}");
    let request =
        v1::PauseClusterRequest { cluster, reason, request_id: request_id(), validate_only: plan.plan };
    let answer = session.client().await?.pause_cluster(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::pause_cluster_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::pause_cluster_response::Outcome::Cluster(cluster) => changed(session, &cluster, &done),
    }
}

async fn resume(session: &mut Session, cluster: String, plan: PlanFlag) -> Result<(), Error> {
    let done = format!("Failovers of {cluster} may begin by themselves.");
    let request = v1::ResumeClusterRequest { cluster, request_id: request_id(), validate_only: plan.plan };
    let answer = session.client().await?.resume_cluster(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::resume_cluster_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::resume_cluster_response::Outcome::Cluster(cluster) => changed(session, &cluster, &done),
    }
}

async fn set(session: &mut Session, command: Cluster) -> Result<(), Error> {
    let Cluster::Set {
        cluster,
        max_lag_on_failover,
        on_replica_loss,
        parameter,
        reset_parameter,
        durability,
        lease_profile,
        retune,
        force,
        run,
    } = command
    else {
        return Ok(());
    };
    let done = format!("Changed. See it with: holdfast cluster show {cluster}");
    let on_replica_loss = match on_replica_loss {
        None => v1::OnReplicaLoss::Unspecified,
        Some(OnReplicaLoss::Shrink) => v1::OnReplicaLoss::Shrink,
        Some(OnReplicaLoss::Block) => v1::OnReplicaLoss::Block,
    };
    let durability = match durability {
        None => nouns::Durability::Unspecified,
        Some(Durability::Async) => nouns::Durability::Async,
        Some(Durability::Quorum) => nouns::Durability::Quorum,
    };
    let request = v1::UpdateClusterRequest {
        cluster,
        max_lag_on_failover_bytes: max_lag_on_failover,
        on_replica_loss: on_replica_loss.into(),
        parameters: super::cluster::parameters(parameter)?,
        reset_parameters: reset_parameter,
        durability: durability.into(),
        lease_profile: lease_profile.map_or(nouns::LeaseProfile::Unspecified, super::cluster::profile).into(),
        retune,
        force,
        request_id: request_id(),
        validate_only: run.plan.plan,
    };
    let answer = session.client().await?.update_cluster(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::update_cluster_response::Outcome::Cluster(cluster) => changed(session, &cluster, &done),
        v1::update_cluster_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::update_cluster_response::Outcome::Operation(operation) => {
            session.follow(operation, run, &done).await
        }
    }
}

async fn promote(
    session: &mut Session,
    cluster: String,
    node: String,
    allow_smaller: bool,
    run: Run,
) -> Result<(), Error> {
    let done =
        format!("Node {node} is the primary of {cluster}. See it with: holdfast cluster show {cluster}");
    let (request_id, validate_only) = (request_id(), run.plan.plan);
    let request = v1::PromoteMemberRequest { cluster, node, allow_smaller, request_id, validate_only };
    let answer = session.client().await?.promote_member(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::promote_member_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::promote_member_response::Outcome::Operation(operation) => {
            session.follow(operation, run, &done).await
        }
    }
}

async fn failover(session: &mut Session, command: Cluster) -> Result<(), Error> {
    let Cluster::Failover { cluster, to, accept_data_loss, old_primary_is_off, confirm, run } = command
    else {
        return Ok(());
    };
    let deed = "makes another member the primary, without the present one";
    let validate_only = run.plan.plan;
    let confirm = if validate_only { cluster.clone() } else { session.confirmed(&cluster, confirm, deed)? };
    let done = format!("{cluster} has another primary. See it with: holdfast cluster show {cluster}");
    let request = v1::FailoverClusterRequest {
        cluster,
        node: to.unwrap_or_default(),
        confirm,
        accept_data_loss,
        old_primary_is_off,
        request_id: request_id(),
        validate_only,
    };
    let answer = session.client().await?.failover_cluster(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::failover_cluster_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::failover_cluster_response::Outcome::Operation(operation) => {
            session.follow(operation, run, &done).await
        }
    }
}

async fn restart(
    session: &mut Session,
    (cluster, nodes): (String, Vec<String>),
    force: bool,
    run: Run,
) -> Result<(), Error> {
    let which = match nodes.as_slice() {
        [] => "All servers".to_owned(),
        nodes => format!("The servers on {}", nodes.join(", ")),
    };
    let done = format!("{which} of {cluster} were restarted. See them with: holdfast cluster show {cluster}");
    let (request_id, validate_only) = (request_id(), run.plan.plan);
    let request = v1::RestartClusterRequest { cluster, nodes, force, request_id, validate_only };
    let answer = session.client().await?.restart_cluster(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::restart_cluster_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::restart_cluster_response::Outcome::Operation(operation) => {
            session.follow(operation, run, &done).await
        }
    }
}

async fn upgrade(session: &mut Session, cluster: String, force: bool, run: Run) -> Result<(), Error> {
    let done =
        format!("All servers of {cluster} run what is installed. See: holdfast cluster show {cluster}");
    let (request_id, validate_only) = (request_id(), run.plan.plan);
    let request = v1::UpgradeClusterRequest { cluster, force, request_id, validate_only };
    let answer = session.client().await?.upgrade_cluster(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::upgrade_cluster_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::upgrade_cluster_response::Outcome::Operation(operation) => {
            session.follow(operation, run, &done).await
        }
    }
}

async fn resync(session: &mut Session, command: Cluster) -> Result<(), Error> {
    let Cluster::Resync { cluster, node, mode, in_place, confirm, run } = command else { return Ok(()) };
    let deed = "replaces replicas' data by the primary's where they differ";
    let validate_only = run.plan.plan;
    let confirm = if validate_only { cluster.clone() } else { session.confirmed(&cluster, confirm, deed)? };
    let done = format!("The replicas follow. See them with: holdfast cluster show {cluster}");
    let mode = match mode {
        ResyncMode::Auto => v1::ResyncMode::Auto,
        ResyncMode::Rewind => v1::ResyncMode::Rewind,
        ResyncMode::Full => v1::ResyncMode::Full,
    };
    let request = v1::ResyncClusterRequest {
        cluster,
        nodes: node,
        mode: mode.into(),
        in_place,
        confirm,
        request_id: request_id(),
        validate_only,
    };
    let answer = session.client().await?.resync_cluster(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::resync_cluster_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::resync_cluster_response::Outcome::Operation(operation) => {
            session.follow(operation, run, &done).await
        }
    }
}
