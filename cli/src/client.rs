//! Calls to the coordinator: the connection (TLS 1.3, by certificate or bearer token), deadlines, repeats, refusals.
//!
//! A call is repeated only where the answer was UNAVAILABLE, a few times, and with the same `request_id`: if the first one
//! did arrive, the coordinator gives its answer again and does nothing twice. A watch that breaks off is opened anew.
//!
//! Not here: what is called for (`commands`), how it is shown (`output`).

mod connect;

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use holdfast_common::error::status::to_failure;
use holdfast_common::error::{Failure, Reason};
use holdfast_proto::v1;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

pub(crate) use self::connect::Target;
use crate::error::Error;

const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// Pauses before a call is repeated.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// How the names of calls that change nothing begin.
const READS: [&str; 3] = ["get_", "list_", "query_"];
/// How long a watch tries to get back to the coordinator: a restart takes less.
const WATCH_PATIENCE: Duration = Duration::from_secs(60);

/// One coordinator.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
    server: String,
    bearer: Option<MetadataValue<Ascii>>,
    timeout: Duration,
}

/// What may have been done though no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Nothing,
    Change,
}

type Opening<T> = Pin<Box<dyn Future<Output = Result<Response<Streaming<T>>, Status>>>>;

/// Messages of a watch, across interruptions.
pub(crate) struct Watch<Q, T> {
    client: Client,
    /// What is asked for when it is opened again.
    pub(crate) request: Q,
    open: fn(Channel, Request<Q>) -> Opening<T>,
    stream: Option<Streaming<T>>,
}

macro_rules! calls {
    ($($service:ident :: $client:ident { $($method:ident($request:ident) -> $response:ident;)+ })+) => {
        impl Client {
            $($(
                pub(crate) async fn $method(&self, request: v1::$request) -> Result<v1::$response, Error> {
                    self.unary(stringify!($method), request, async |channel, request| {
                        let client = v1::$service::$client::new(channel);
                        client.max_decoding_message_size(MAX_ANSWER_BYTES).$method(request).await
                    }).await
                }
            )+)+
        }
    };
}

macro_rules! watches {
    ($($service:ident :: $client:ident . $method:ident($request:ident) -> $response:ident;)+) => {
        impl Client {
            $(
                pub(crate) async fn $method(&self, request: v1::$request) -> Result<Watch<v1::$request, v1::$response>, Error> {
                    let open: fn(Channel, Request<v1::$request>) -> Opening<v1::$response> = |channel, request| {
                        Box::pin(async move {
                            let client = v1::$service::$client::new(channel);
                            client.max_decoding_message_size(MAX_ANSWER_BYTES).$method(request).await
                        })
                    };
                    let mut watch = Watch { client: self.clone(), request, open, stream: None };
                    watch.stream = Some(watch.opened().await.map_err(|status| self.told(&status, Lost::Nothing))?);
                    Ok(watch)
                }
            )+
        }
    };
}

calls! {
    node_service_client::NodeServiceClient {
        list_nodes(ListNodesRequest) -> ListNodesResponse;
        get_node(GetNodeRequest) -> GetNodeResponse;
        remove_node(RemoveNodeRequest) -> RemoveNodeResponse;
        drain_node(DrainNodeRequest) -> DrainNodeResponse;
        undrain_node(UndrainNodeRequest) -> UndrainNodeResponse;
        reboot_node(RebootNodeRequest) -> RebootNodeResponse;
        set_reboot_schedule(SetRebootScheduleRequest) -> SetRebootScheduleResponse;
        list_reboot_schedules(ListRebootSchedulesRequest) -> ListRebootSchedulesResponse;
        remove_reboot_schedule(RemoveRebootScheduleRequest) -> RemoveRebootScheduleResponse;
        query_metrics(QueryMetricsRequest) -> QueryMetricsResponse;
    }
    cluster_service_client::ClusterServiceClient {
        create_cluster(CreateClusterRequest) -> CreateClusterResponse;
        list_clusters(ListClustersRequest) -> ListClustersResponse;
        get_cluster(GetClusterRequest) -> GetClusterResponse;
        delete_cluster(DeleteClusterRequest) -> DeleteClusterResponse;
        add_member(AddMemberRequest) -> AddMemberResponse;
        promote_member(PromoteMemberRequest) -> PromoteMemberResponse;
        failover_cluster(FailoverClusterRequest) -> FailoverClusterResponse;
        resync_cluster(ResyncClusterRequest) -> ResyncClusterResponse;
        restart_cluster(RestartClusterRequest) -> RestartClusterResponse;
        upgrade_cluster(UpgradeClusterRequest) -> UpgradeClusterResponse;
        pause_cluster(PauseClusterRequest) -> PauseClusterResponse;
        resume_cluster(ResumeClusterRequest) -> ResumeClusterResponse;
        update_cluster(UpdateClusterRequest) -> UpdateClusterResponse;
        remove_member(RemoveMemberRequest) -> RemoveMemberResponse;
        get_connection(GetConnectionRequest) -> GetConnectionResponse;
        reset_password(ResetPasswordRequest) -> ResetPasswordResponse;
    }
    access_service_client::AccessServiceClient {
        get_access(GetAccessRequest) -> GetAccessResponse;
        set_access(SetAccessRequest) -> SetAccessResponse;
        add_access_entries(AddAccessEntriesRequest) -> AddAccessEntriesResponse;
        remove_access_entries(RemoveAccessEntriesRequest) -> RemoveAccessEntriesResponse;
        confirm_access(ConfirmAccessRequest) -> ConfirmAccessResponse;
    }
    set_aside_service_client::SetAsideServiceClient {
        list_set_aside_logs(ListSetAsideLogsRequest) -> ListSetAsideLogsResponse;
    }
    operation_service_client::OperationServiceClient {
        list_operations(ListOperationsRequest) -> ListOperationsResponse;
        get_operation(GetOperationRequest) -> GetOperationResponse;
        cancel_operation(CancelOperationRequest) -> CancelOperationResponse;
        resume_operation(ResumeOperationRequest) -> ResumeOperationResponse;
    }
    event_service_client::EventServiceClient {
        list_events(ListEventsRequest) -> ListEventsResponse;
    }
    identity_service_client::IdentityServiceClient {
        get_caller(GetCallerRequest) -> GetCallerResponse;
        create_join_token(CreateJoinTokenRequest) -> CreateJoinTokenResponse;
        list_join_tokens(ListJoinTokensRequest) -> ListJoinTokensResponse;
        revoke_join_token(RevokeJoinTokenRequest) -> RevokeJoinTokenResponse;
        create_operator(CreateOperatorRequest) -> CreateOperatorResponse;
        list_operators(ListOperatorsRequest) -> ListOperatorsResponse;
        remove_operator(RemoveOperatorRequest) -> RemoveOperatorResponse;
        create_access_token(CreateAccessTokenRequest) -> CreateAccessTokenResponse;
        list_access_tokens(ListAccessTokensRequest) -> ListAccessTokensResponse;
        revoke_access_token(RevokeAccessTokenRequest) -> RevokeAccessTokenResponse;
    }
}

watches! {
    node_service_client::NodeServiceClient.watch_nodes(WatchNodesRequest) -> WatchNodesResponse;
    cluster_service_client::ClusterServiceClient.watch_cluster(WatchClusterRequest) -> WatchClusterResponse;
    set_aside_service_client::SetAsideServiceClient.fetch_set_aside_log(FetchSetAsideLogRequest) -> FetchSetAsideLogResponse;
    operation_service_client::OperationServiceClient.watch_operation(WatchOperationRequest) -> WatchOperationResponse;
    event_service_client::EventServiceClient.watch_events(WatchEventsRequest) -> WatchEventsResponse;
}

// === impl Client ===

impl Client {
    /// Connects at once, so that what is wrong with the connection is told as such.
    pub(crate) async fn connect(target: Target, timeout: Duration) -> Result<Self, Error> {
        let bearer = target.bearer()?;
        let server = target.server.clone();
        let connecting = tokio::time::timeout(timeout, connect::channel(target));
        let channel = connecting.await.unwrap_or_else(|_| Err(connect::too_slow(&server, timeout)))?;
        Ok(Self { channel, server, bearer, timeout })
    }

    async fn unary<Q: Clone, R>(
        &self,
        method: &str,
        message: Q,
        send: impl AsyncFn(Channel, Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let mut pauses = PAUSES.iter();
        let mut lost = Lost::Nothing;
        loop {
            let mut request = self.signed(message.clone());
            request.set_timeout(self.timeout);
            // The deadline is also kept here: a server that hangs does not keep its own.
            let answer = tokio::time::timeout(self.timeout, send(self.channel.clone(), request)).await;
            let status = match answer.unwrap_or_else(|elapsed| Err(connect::unanswered(elapsed))) {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            if connect::may_have_arrived(&status) && !READS.iter().any(|read| method.starts_with(read)) {
                lost = Lost::Change;
            }
            match pauses.next().filter(|_| status.code() == Code::Unavailable) {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => return Err(self.told(&status, lost)),
            }
        }
    }

    fn signed<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        request
    }

    /// What a status means for a person: the coordinator's own refusal, or that the connection is gone.
    fn told(&self, status: &Status, lost: Lost) -> Error {
        match std::error::Error::source(status) {
            Some(source) if connect::is_late(source) => {
                return connect::hangs(&self.server, self.timeout, lost);
            }
            Some(source) => return connect::explain(&self.server, source, lost),
            None => {}
        }
        let failure = match status.code() {
            Code::DeadlineExceeded => Failure::new(Reason::CommandTimedOut, status.message()),
            _ => to_failure(status),
        };
        Error::Refused(Box::new(failure))
    }
}

// === impl Watch ===

impl<Q: Clone, T> Watch<Q, T> {
    /// The next message; `None` when the coordinator has said all.
    ///
    /// # Cancel safety
    /// A message is not lost: an interrupted reconnection begins anew.
    pub(crate) async fn next(&mut self) -> Result<Option<T>, Error> {
        let mut pause = PAUSES[0];
        let mut waited = Duration::ZERO;
        loop {
            if self.stream.is_none() {
                match self.opened().await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(status) if status.code() == Code::Unavailable && waited < WATCH_PATIENCE => {
                        tokio::time::sleep(pause).await;
                        waited += pause;
                        pause = (pause * 2).min(Duration::from_secs(5));
                        continue;
                    }
                    Err(status) => return Err(self.client.told(&status, Lost::Nothing)),
                }
            }
            let Some(stream) = &mut self.stream else { continue };
            match stream.message().await {
                Ok(message) => return Ok(message),
                Err(status) if is_interruption(&status) && waited < WATCH_PATIENCE => {
                    self.stream = None;
                    // A server that drops every stream at once is not asked at full speed.
                    tokio::time::sleep(pause).await;
                    waited += pause;
                }
                Err(status) => return Err(self.client.told(&status, Lost::Nothing)),
            }
        }
    }

    /// The same of what goes on only where it began: it is not opened again.
    ///
    /// # Cancel safety
    /// A message is not lost.
    pub(crate) async fn next_of_this_stream(&mut self) -> Result<Option<T>, Error> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        stream.message().await.map_err(|status| self.client.told(&status, Lost::Nothing))
    }

    async fn opened(&self) -> Result<Streaming<T>, Status> {
        let request = self.client.signed(self.request.clone());
        // Only the opening has a deadline; the stream goes on as long as it may.
        let opening =
            tokio::time::timeout(self.client.timeout, (self.open)(self.client.channel.clone(), request));
        match opening.await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(elapsed) => Err(connect::unanswered(elapsed)),
        }
    }
}

impl<Q: fmt::Debug, T> fmt::Debug for Watch<Q, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("request", &self.request).finish_non_exhaustive()
    }
}

/// The connection ended, and not the watch.
fn is_interruption(status: &Status) -> bool {
    status.code() == Code::Unavailable
        || (matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Internal)
            && std::error::Error::source(status).is_some())
}

/// A new `request_id`: one for each change that is asked for, however often it is sent.
pub(crate) fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
