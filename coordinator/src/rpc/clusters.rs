//! `ClusterService`: parse, call, render.

mod parse;
mod render;

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, stream};
use holdfast_common::error::Violations;
use holdfast_common::name::ClusterName;
use holdfast_proto::v1 as proto;
use holdfast_proto::v1::cluster_service_server::ClusterService;
use prost::Message;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::changing::{self, Done, asker};
use super::convert::{self, PageRequest, refuse};
use super::peer::Caller;
use super::repeat::{decoded, repeat};
use crate::cluster::Cluster;
use crate::identity::Identity;
use crate::lease::Leases;
use crate::procedures::requests::connection::{Connection, Reveal};
use crate::procedures::requests::{
    AddMember, Asker, DeleteCluster, Desk, Prepare, PromoteMember, RemoveMember, ResumeCluster, SetCluster,
    UpgradeCluster,
};
use crate::store::Txn;

/// What a node measures changes without notice: a watched cluster is looked at as often as this.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Changes within this time are told together.
const WATCH_PAUSE: Duration = Duration::from_millis(200);

/// The operators' view of the clusters.
#[derive(Debug, Clone)]
pub struct Clusters {
    pub desk: Desk,
    pub identity: Identity,
    pub leases: Leases,
}

#[tonic::async_trait]
impl ClusterService for Clusters {
    type WatchClusterStream = Pin<Box<dyn Stream<Item = Result<proto::WatchClusterResponse, Status>> + Send>>;

    async fn create_cluster(
        &self,
        request: Request<proto::CreateClusterRequest>,
    ) -> Result<Response<proto::CreateClusterResponse>, Status> {
        let asker = asker(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let parsed = parse::create(request).map_err(refuse)?;
        let outcome = match self.change(&parsed, &asker, validate_only).await? {
            Done::Begun(operation) => proto::create_cluster_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::create_cluster_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::CreateClusterResponse { outcome: Some(outcome) }))
    }

    async fn list_clusters(
        &self,
        request: Request<proto::ListClustersRequest>,
    ) -> Result<Response<proto::ListClustersResponse>, Status> {
        let proto::ListClustersRequest { page_size, page_token } = request.into_inner();
        let mut violations = Violations::default();
        let page = PageRequest::read(page_size, &page_token, "clusters", &mut violations);
        convert::check(violations)?;
        let clusters = self.desk.means.records.all().await.map_err(refuse)?;
        let mut rest = clusters
            .iter()
            .filter(|cluster| page.after.as_deref().is_none_or(|after| cluster.name.as_str() > after));
        let mut shown = Vec::new();
        for cluster in rest.by_ref().take(page.size) {
            shown.push(self.show(cluster).await?);
        }
        let next_page_token = match (rest.next(), shown.last()) {
            (Some(_), Some(last)) => page.token(&last.name),
            _ => String::new(),
        };
        Ok(Response::new(proto::ListClustersResponse { clusters: shown, next_page_token }))
    }

    async fn get_cluster(
        &self,
        request: Request<proto::GetClusterRequest>,
    ) -> Result<Response<proto::GetClusterResponse>, Status> {
        let name = parse::cluster_name("name", &request.get_ref().name).map_err(refuse)?;
        let cluster = self.desk.cluster(&name).await.map_err(refuse)?.value;
        Ok(Response::new(proto::GetClusterResponse { cluster: Some(self.show(&cluster).await?) }))
    }

    async fn watch_cluster(
        &self,
        request: Request<proto::WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        let name = parse::cluster_name("name", &request.get_ref().name).map_err(refuse)?;
        let cluster = self.desk.cluster(&name).await.map_err(refuse)?.value;
        let watched = Watched {
            clusters: self.clone(),
            name,
            id: cluster.id,
            changes: self.desk.means.nodes.changes(),
            last: None,
        };
        let told = stream::unfold(watched, |mut watched| async move {
            let next = watched.next().await?;
            Some((next.map(|cluster| proto::WatchClusterResponse { cluster: Some(cluster) }), watched))
        });
        Ok(Response::new(Box::pin(told)))
    }

    async fn delete_cluster(
        &self,
        request: Request<proto::DeleteClusterRequest>,
    ) -> Result<Response<proto::DeleteClusterResponse>, Status> {
        let asker = asker(&request, &request.get_ref().request_id)?;
        let proto::DeleteClusterRequest { name, confirm, force, validate_only, request_id: _ } =
            request.into_inner();
        let cluster = parse::cluster_name("name", &name).map_err(refuse)?;
        let parsed = DeleteCluster { cluster, confirm, absent: parse::absent(force) };
        let outcome = match self.change(&parsed, &asker, validate_only).await? {
            Done::Begun(operation) => proto::delete_cluster_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::delete_cluster_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::DeleteClusterResponse { outcome: Some(outcome) }))
    }

    async fn add_member(
        &self,
        request: Request<proto::AddMemberRequest>,
    ) -> Result<Response<proto::AddMemberResponse>, Status> {
        let asker = asker(&request, &request.get_ref().request_id)?;
        let proto::AddMemberRequest { cluster, node, validate_only, request_id: _ } = request.into_inner();
        let (cluster, node) = parse::member(&cluster, &node).map_err(refuse)?;
        let outcome = match self.change(&AddMember { cluster, node }, &asker, validate_only).await? {
            Done::Begun(operation) => proto::add_member_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::add_member_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::AddMemberResponse { outcome: Some(outcome) }))
    }

    async fn remove_member(
        &self,
        request: Request<proto::RemoveMemberRequest>,
    ) -> Result<Response<proto::RemoveMemberResponse>, Status> {
        let asker = asker(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let proto::RemoveMemberRequest { cluster, node, confirm, force, validate_only, request_id: _ } =
            request;
        let (cluster, node) = parse::member(&cluster, &node).map_err(refuse)?;
        let parsed = RemoveMember { cluster, node, confirm, absent: parse::absent(force) };
        let outcome = match self.change(&parsed, &asker, validate_only).await? {
            Done::Begun(operation) => proto::remove_member_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::remove_member_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::RemoveMemberResponse { outcome: Some(outcome) }))
    }

    async fn promote_member(
        &self,
        request: Request<proto::PromoteMemberRequest>,
    ) -> Result<Response<proto::PromoteMemberResponse>, Status> {
        let asker = asker(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let proto::PromoteMemberRequest { cluster, node, allow_smaller, validate_only, request_id: _ } =
            request;
        let (cluster, node) = parse::member(&cluster, &node).map_err(refuse)?;
        let parsed = PromoteMember { cluster, node, allow_smaller };
        let outcome = match self.change(&parsed, &asker, validate_only).await? {
            Done::Begun(operation) => proto::promote_member_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::promote_member_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::PromoteMemberResponse { outcome: Some(outcome) }))
    }

    async fn failover_cluster(
        &self,
        request: Request<proto::FailoverClusterRequest>,
    ) -> Result<Response<proto::FailoverClusterResponse>, Status> {
        let asker = asker(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let parsed = parse::failover(request).map_err(refuse)?;
        let outcome = match self.change(&parsed, &asker, validate_only).await? {
            Done::Begun(operation) => proto::failover_cluster_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::failover_cluster_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::FailoverClusterResponse { outcome: Some(outcome) }))
    }

    async fn resync_cluster(
        &self,
        request: Request<proto::ResyncClusterRequest>,
    ) -> Result<Response<proto::ResyncClusterResponse>, Status> {
        let asker = asker(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let parsed = parse::resync(request).map_err(refuse)?;
        let outcome = match self.change(&parsed, &asker, validate_only).await? {
            Done::Begun(operation) => proto::resync_cluster_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::resync_cluster_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::ResyncClusterResponse { outcome: Some(outcome) }))
    }

    async fn restart_cluster(
        &self,
        request: Request<proto::RestartClusterRequest>,
    ) -> Result<Response<proto::RestartClusterResponse>, Status> {
        let asker = asker(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let parsed = parse::restart(request).map_err(refuse)?;
        let outcome = match self.change(&parsed, &asker, validate_only).await? {
            Done::Begun(operation) => proto::restart_cluster_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::restart_cluster_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::RestartClusterResponse { outcome: Some(outcome) }))
    }

    async fn upgrade_cluster(
        &self,
        request: Request<proto::UpgradeClusterRequest>,
    ) -> Result<Response<proto::UpgradeClusterResponse>, Status> {
        let asker = asker(&request, &request.get_ref().request_id)?;
        let proto::UpgradeClusterRequest { cluster, force, request_id: _, validate_only } =
            request.into_inner();
        let cluster = parse::cluster_name("cluster", &cluster).map_err(refuse)?;
        let parsed = UpgradeCluster { cluster, writes: parse::writes(force) };
        let outcome = match self.change(&parsed, &asker, validate_only).await? {
            Done::Begun(operation) => proto::upgrade_cluster_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::upgrade_cluster_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::UpgradeClusterResponse { outcome: Some(outcome) }))
    }

    async fn pause_cluster(
        &self,
        request: Request<proto::PauseClusterRequest>,
    ) -> Result<Response<proto::PauseClusterResponse>, Status> {
        use proto::pause_cluster_response::Outcome;
        let caller = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &caller, "PauseCluster", &request).map_err(refuse)?;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await.map_err(refuse)? {
            return decoded(&answer);
        }
        let parsed = parse::pause(&request.cluster, &request.reason).map_err(refuse)?;
        if request.validate_only {
            let plan = changing::planned(&self.desk, &parsed, &Asker { caller, request: None }).await?;
            return Ok(Response::new(proto::PauseClusterResponse { outcome: Some(Outcome::Plan(plan)) }));
        }
        let cluster = self.desk.pause(parsed, caller).await.map_err(refuse)?;
        let outcome = Some(Outcome::Cluster(self.show(&cluster).await?));
        let answer = proto::PauseClusterResponse { outcome }.encode_to_vec();
        let answer = self.identity.commit(Txn::new(), repeat.as_ref(), answer).await;
        decoded(&answer.map_err(refuse)?)
    }

    async fn resume_cluster(
        &self,
        request: Request<proto::ResumeClusterRequest>,
    ) -> Result<Response<proto::ResumeClusterResponse>, Status> {
        use proto::resume_cluster_response::Outcome;
        let caller = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &caller, "ResumeCluster", &request).map_err(refuse)?;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await.map_err(refuse)? {
            return decoded(&answer);
        }
        let cluster = parse::cluster_name("cluster", &request.cluster).map_err(refuse)?;
        let parsed = ResumeCluster { cluster };
        if request.validate_only {
            let plan = changing::planned(&self.desk, &parsed, &Asker { caller, request: None }).await?;
            return Ok(Response::new(proto::ResumeClusterResponse { outcome: Some(Outcome::Plan(plan)) }));
        }
        let cluster = self.desk.resume(parsed, caller).await.map_err(refuse)?;
        let outcome = Some(Outcome::Cluster(self.show(&cluster).await?));
        let answer = proto::ResumeClusterResponse { outcome }.encode_to_vec();
        let answer = self.identity.commit(Txn::new(), repeat.as_ref(), answer).await;
        decoded(&answer.map_err(refuse)?)
    }

    async fn update_cluster(
        &self,
        request: Request<proto::UpdateClusterRequest>,
    ) -> Result<Response<proto::UpdateClusterResponse>, Status> {
        use proto::update_cluster_response::Outcome;
        let asker = asker(&request, &request.get_ref().request_id)?;
        let validate_only = request.get_ref().validate_only;
        let parsed = parse::set(request.into_inner()).map_err(refuse)?;
        let outcome = if parsed.needs_operation() || validate_only {
            match self.change(&parsed, &asker, validate_only).await? {
                Done::Begun(operation) => Outcome::Operation(*operation),
                Done::Planned(plan) => Outcome::Plan(plan),
            }
        } else {
            let SetCluster { cluster, settings, .. } = parsed;
            let cluster = self.desk.set(&cluster, asker.caller, settings).await.map_err(refuse)?;
            Outcome::Cluster(self.show(&cluster).await?)
        };
        Ok(Response::new(proto::UpdateClusterResponse { outcome: Some(outcome) }))
    }

    async fn get_connection(
        &self,
        request: Request<proto::GetConnectionRequest>,
    ) -> Result<Response<proto::GetConnectionResponse>, Status> {
        let proto::GetConnectionRequest { cluster, reveal_password } = request.into_inner();
        let name = parse::cluster_name("cluster", &cluster).map_err(refuse)?;
        let reveal = if reveal_password { Reveal::Yes } else { Reveal::No };
        let connection = self.desk.connection(&name, reveal).await.map_err(refuse)?;
        Ok(Response::new(proto::GetConnectionResponse { connection: Some(self.show_connection(connection)) }))
    }

    async fn reset_password(
        &self,
        request: Request<proto::ResetPasswordRequest>,
    ) -> Result<Response<proto::ResetPasswordResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &actor, "ResetPassword", &request).map_err(refuse)?;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await.map_err(refuse)? {
            return decoded(&answer);
        }
        let name = parse::cluster_name("cluster", &request.cluster).map_err(refuse)?;
        let connection = self.desk.reset_password(&name).await.map_err(refuse)?;
        let response = proto::ResetPasswordResponse { connection: Some(self.show_connection(connection)) };
        let answer = self.identity.commit(Txn::new(), repeat.as_ref(), response.encode_to_vec()).await;
        decoded(&answer.map_err(refuse)?)
    }
}

impl Clusters {
    async fn change(
        &self,
        request: &impl Prepare,
        asker: &Asker,
        validate_only: bool,
    ) -> Result<Done, Status> {
        changing::change(&self.desk, request, asker, validate_only).await
    }

    async fn show(&self, cluster: &Cluster) -> Result<proto::Cluster, Status> {
        let resource = crate::procedures::resource(&cluster.name);
        let holder = self.desk.operations.holder(&resource).await.map_err(refuse)?;
        let operation = holder.map(|holder| holder.operation);
        let lease = self.leases.view(cluster.id);
        let state = |node| self.desk.means.nodes.state(node, cluster.id);
        let now = self.desk.means.clock.now();
        Ok(render::cluster(cluster, operation, lease.as_ref(), now, state))
    }

    fn show_connection(&self, connection: Connection) -> proto::Connection {
        let Connection { uri, read_uri, user, database, password, shown_before } = connection;
        proto::Connection {
            uri,
            read_uri,
            user,
            database,
            password: password.unwrap_or_default(),
            password_shown_before: shown_before,
            trust_bundle: self.identity.trust_bundle().to_pem(),
        }
    }
}

/// A cluster that somebody watches.
struct Watched {
    clusters: Clusters,
    name: ClusterName,
    id: holdfast_common::id::ClusterId,
    changes: watch::Receiver<u64>,
    /// What was told last, without times.
    last: Option<proto::Cluster>,
}

impl Watched {
    /// What is to be told next; `None` once the cluster is gone.
    async fn next(&mut self) -> Option<Result<proto::Cluster, Status>> {
        loop {
            if self.last.is_some() {
                tokio::time::sleep(WATCH_PAUSE).await;
                // Cancel-safe; without a change the interval brings the next look.
                let _ = tokio::time::timeout(WATCH_INTERVAL, self.changes.changed()).await;
            }
            let found = match self.clusters.desk.means.records.find(&self.name).await {
                Ok(found) => found.filter(|found| found.value.id == self.id)?,
                Err(error) => return Some(Err(refuse(error))),
            };
            match self.clusters.show(&found.value).await {
                Ok(cluster) if self.last.as_ref() != Some(&without_times(&cluster)) => {
                    self.last = Some(without_times(&cluster));
                    return Some(Ok(cluster));
                }
                Ok(_) => {}
                Err(status) => return Some(Err(status)),
            }
        }
    }
}

/// That a node has reported again is no change; what it reported may be one.
fn without_times(cluster: &proto::Cluster) -> proto::Cluster {
    let mut cluster = cluster.clone();
    for member in &mut cluster.members {
        member.observe_time = None;
    }
    if let Some(lease) = &mut cluster.lease {
        (lease.expire_time, lease.remembered_until_time) = (None, None);
    }
    cluster
}
