//! A made-up coordinator.

mod access;
mod machines;

use super::*;

pub(super) type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the made-up coordinator was asked, and how it is to answer.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) request_ids: Mutex<Vec<String>>,
    pub(super) authorizations: Mutex<Vec<Option<String>>>,
    /// So many calls are answered UNAVAILABLE first.
    pub(super) unavailable: AtomicUsize,
    pub(super) watches: AtomicUsize,
    /// Cuts every connection, without a word.
    pub(super) cut: tokio::sync::Notify,
}

#[derive(Debug, Clone)]
pub(super) struct Fake(pub(super) Arc<State>);

pub(super) async fn serve(authority: &Authority, fake: Fake) -> String {
    let address = "127.0.0.1".parse().unwrap();
    let validity = Validity::day(Timestamp::now());
    let (issued, key) =
        authority.issue_coordinator(&"c1".parse().unwrap(), &[], &[address], validity).unwrap();
    let credentials: Credentials = issued.credentials(&key).unwrap();
    let roots: TrustBundle = authority.bundle();
    let settings = ServerSettings {
        fleet: authority.fleet(),
        client_certificate: ClientCertificate::Optional,
        protocols: Protocols::H2,
    };
    let tls = Arc::new(ServerTls::new(settings, &credentials, &roots).unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap().to_string();
    let (send, connections) = tokio::sync::mpsc::channel(16);
    let state = Arc::clone(&fake.0);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // A client that does not trust us is not this server's problem.
            if let Ok(accepted) = tls.accept(tcp, HANDSHAKE_DEADLINE).await {
                let (inner, mut outer) = tokio::io::duplex(64 * 1024);
                let mut stream = accepted.stream;
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut stream, &mut outer) => {}
                        () = state.cut.notified() => {}
                    }
                });
                let _ = send.send(Ok::<_, io::Error>(inner)).await;
            }
        }
    });
    let router = tonic::transport::Server::builder()
        .add_service(nodes::NodeServiceServer::new(fake.clone()))
        .add_service(clusters::ClusterServiceServer::new(fake.clone()))
        .add_service(operations::OperationServiceServer::new(fake.clone()))
        .add_service(v1::access_service_server::AccessServiceServer::new(fake.clone()))
        .add_service(identity::IdentityServiceServer::new(fake));
    tokio::spawn(router.serve_with_incoming(ReceiverStream::new(connections)));
    server
}

impl Fake {
    pub(super) fn seen<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let header = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.0.authorizations.lock().unwrap().push(header);
        let left = self.0.unavailable.load(Ordering::SeqCst);
        if left > 0 {
            self.0.unavailable.store(left - 1, Ordering::SeqCst);
            return Err(Status::unavailable("starting"));
        }
        Ok(())
    }
}

pub(super) fn time(second: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: 1_800_000_000 + second, nanos: 0 })
}

pub(super) fn node(name: &str, availability: v1::Availability) -> v1::Node {
    v1::Node {
        id: format!("id-{name}"),
        name: name.into(),
        address: "10.0.0.1".into(),
        availability: availability.into(),
        availability_time: time(-3700),
        last_heartbeat_time: time(-1),
        sample: Some(nouns::Sample {
            cpu: Some(nouns::Cpu {
                logical_cores: 2,
                usage: Some(nouns::CpuUsage {
                    idle_fraction: 0.7,
                    iowait_fraction: 0.1,
                    ..Default::default()
                }),
            }),
            memory: Some(nouns::Memory { total_bytes: 8 << 30, used_bytes: 3 << 30, ..Default::default() }),
            file_systems: vec![nouns::FileSystem {
                mount_point: "/".into(),
                total_bytes: 100,
                used_bytes: 40,
                available_bytes: 60,
                ..Default::default()
            }],
            interfaces: vec![nouns::Interface {
                name: "ens3".into(),
                rates: Some(nouns::InterfaceRates { received_bytes_per_second: 2e6, ..Default::default() }),
            }],
            ..Default::default()
        }),
        clusters: vec!["demo".into()],
        ..Default::default()
    }
}

pub(super) fn cluster() -> v1::Cluster {
    let member = |node: &str, role: nouns::Role, state: v1::MemberState| v1::Member {
        node: node.into(),
        node_id: format!("id-{node}"),
        address: "10.0.0.1".into(),
        role: role.into(),
        state: state.into(),
        term: 1,
        ..Default::default()
    };
    let position = |offset| Some(nouns::Position { era: 1, offset });
    v1::Cluster {
        id: "c".into(),
        name: "demo".into(),
        engine: nouns::Engine::Postgresql.into(),
        engine_version: "15.14".into(),
        state: v1::ClusterState::Degraded.into(),
        message: "n3 is silent".into(),
        term: 1,
        primary_node: "n1".into(),
        durability: nouns::Durability::Quorum.into(),
        synchronous_count: 1,
        port: 5432,
        parameters: [("work_mem".to_owned(), "8MB".to_owned())].into(),
        members: vec![
            v1::Member {
                position: position(0x1_0300_0060),
                ..member("n1", nouns::Role::Primary, v1::MemberState::Running)
            },
            v1::Member {
                position: position(0x1_0300_0000),
                lag_bytes: Some(96),
                lag_seconds: Some(0.0),
                synchronous: true,
                streaming: Some(true),
                ..member("n2", nouns::Role::Replica, v1::MemberState::Streaming)
            },
            member("n3", nouns::Role::Replica, v1::MemberState::Unspecified),
        ],
        create_time: time(-7200),
        ..Default::default()
    }
}

pub(super) fn operation(state: v1::OperationState) -> v1::Operation {
    let done = matches!(state, v1::OperationState::Succeeded | v1::OperationState::Failed);
    v1::Operation {
        id: "o1".into(),
        kind: "create_cluster".into(),
        resource: "clusters/demo".into(),
        state: state.into(),
        steps: vec![v1::OperationStep {
            name: "initialise".into(),
            title: "Initialise n1".into(),
            state: if done { v1::StepState::Done } else { v1::StepState::Running }.into(),
            ..Default::default()
        }],
        done,
        ..Default::default()
    }
}

/// Of a change that is no operation.
fn recorded() -> v1::Plan {
    v1::Plan {
        steps: vec![v1::PlannedStep { name: "record".into(), title: "Write it down".into() }],
        preconditions: Vec::new(),
        notes: vec!["nothing is done on the nodes".into()],
    }
}

#[tonic::async_trait]
impl clusters::ClusterService for Fake {
    type WatchClusterStream = Answers<v1::WatchClusterResponse>;

    async fn create_cluster(
        &self,
        request: Request<v1::CreateClusterRequest>,
    ) -> Result<Response<v1::CreateClusterResponse>, Status> {
        self.0.request_ids.lock().unwrap().push(request.get_ref().request_id.clone());
        self.seen(&request)?;
        let request = request.into_inner();
        if request.nodes.contains(&"nowhere".to_owned()) {
            let mut violations = holdfast_common::error::Violations::default();
            violations.add("nodes[0]", "names no node; `holdfast node list` shows all");
            violations.add("port", "must be 1024–65535");
            return Err(from_failure(&violations.into_failure()));
        }
        let outcome = if request.validate_only {
            v1::create_cluster_response::Outcome::Plan(v1::Plan {
                steps: vec![v1::PlannedStep { name: "initialise".into(), title: "Initialise n1".into() }],
                preconditions: vec![v1::Precondition {
                    name: "port_free".into(),
                    subject: "nodes/n1".into(),
                    met: false,
                    message: "port 5432 is in use; choose another".into(),
                }],
                notes: Vec::new(),
            })
        } else {
            v1::create_cluster_response::Outcome::Operation(operation(v1::OperationState::Pending))
        };
        Ok(Response::new(v1::CreateClusterResponse { outcome: Some(outcome) }))
    }

    async fn list_clusters(
        &self,
        _: Request<v1::ListClustersRequest>,
    ) -> Result<Response<v1::ListClustersResponse>, Status> {
        Ok(Response::new(v1::ListClustersResponse {
            clusters: vec![cluster()],
            next_page_token: String::new(),
        }))
    }

    async fn get_cluster(
        &self,
        request: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::GetClusterResponse>, Status> {
        self.seen(&request)?;
        Ok(Response::new(v1::GetClusterResponse { cluster: Some(cluster()) }))
    }

    async fn watch_cluster(
        &self,
        _: Request<v1::WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn delete_cluster(
        &self,
        _: Request<v1::DeleteClusterRequest>,
    ) -> Result<Response<v1::DeleteClusterResponse>, Status> {
        panic!("not without a confirmation")
    }

    async fn add_member(
        &self,
        _: Request<v1::AddMemberRequest>,
    ) -> Result<Response<v1::AddMemberResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn promote_member(
        &self,
        _: Request<v1::PromoteMemberRequest>,
    ) -> Result<Response<v1::PromoteMemberResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn failover_cluster(
        &self,
        _: Request<v1::FailoverClusterRequest>,
    ) -> Result<Response<v1::FailoverClusterResponse>, Status> {
        panic!("not without a confirmation")
    }

    async fn restart_cluster(
        &self,
        _: Request<v1::RestartClusterRequest>,
    ) -> Result<Response<v1::RestartClusterResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn upgrade_cluster(
        &self,
        _: Request<v1::UpgradeClusterRequest>,
    ) -> Result<Response<v1::UpgradeClusterResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn resync_cluster(
        &self,
        _: Request<v1::ResyncClusterRequest>,
    ) -> Result<Response<v1::ResyncClusterResponse>, Status> {
        panic!("not without a confirmation")
    }

    async fn pause_cluster(
        &self,
        request: Request<v1::PauseClusterRequest>,
    ) -> Result<Response<v1::PauseClusterResponse>, Status> {
        use v1::pause_cluster_response::Outcome;
        let outcome = if request.get_ref().validate_only {
            Outcome::Plan(recorded())
        } else {
            Outcome::Cluster(cluster())
        };
        Ok(Response::new(v1::PauseClusterResponse { outcome: Some(outcome) }))
    }

    async fn resume_cluster(
        &self,
        request: Request<v1::ResumeClusterRequest>,
    ) -> Result<Response<v1::ResumeClusterResponse>, Status> {
        use v1::resume_cluster_response::Outcome;
        let outcome = if request.get_ref().validate_only {
            Outcome::Plan(recorded())
        } else {
            Outcome::Cluster(cluster())
        };
        Ok(Response::new(v1::ResumeClusterResponse { outcome: Some(outcome) }))
    }

    async fn update_cluster(
        &self,
        _: Request<v1::UpdateClusterRequest>,
    ) -> Result<Response<v1::UpdateClusterResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn remove_member(
        &self,
        _: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        panic!("not without a confirmation")
    }

    async fn get_connection(
        &self,
        request: Request<v1::GetConnectionRequest>,
    ) -> Result<Response<v1::GetConnectionResponse>, Status> {
        let password = if request.get_ref().reveal_password { "hush" } else { "" };
        let connection =
            v1::Connection { uri: "postgresql://x".into(), password: password.into(), ..Default::default() };
        Ok(Response::new(v1::GetConnectionResponse { connection: Some(connection) }))
    }

    /// Dies at it, or hangs.
    async fn reset_password(
        &self,
        request: Request<v1::ResetPasswordRequest>,
    ) -> Result<Response<v1::ResetPasswordResponse>, Status> {
        if request.get_ref().cluster == "deadly" {
            self.0.cut.notify_waiters();
        }
        std::future::pending().await
    }
}

#[tonic::async_trait]
impl operations::OperationService for Fake {
    type WatchOperationStream = Answers<v1::WatchOperationResponse>;

    async fn list_operations(
        &self,
        _: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        Ok(Response::new(v1::ListOperationsResponse::default()))
    }

    async fn get_operation(
        &self,
        _: Request<v1::GetOperationRequest>,
    ) -> Result<Response<v1::GetOperationResponse>, Status> {
        let operation = Some(operation(v1::OperationState::Running));
        Ok(Response::new(v1::GetOperationResponse { operation }))
    }

    /// The first watch breaks off as at a restart of the coordinator; the second sees the end.
    async fn watch_operation(
        &self,
        request: Request<v1::WatchOperationRequest>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        if request.get_ref().id == "endless" {
            return Ok(Response::new(Box::pin(tokio_stream::pending())));
        }
        let running = v1::WatchOperationResponse { operation: Some(operation(v1::OperationState::Running)) };
        let ended = v1::WatchOperationResponse { operation: Some(operation(v1::OperationState::Succeeded)) };
        let second = if self.0.watches.fetch_add(1, Ordering::SeqCst) == 0 {
            Err(Status::unavailable("shutting down"))
        } else {
            Ok(ended)
        };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(running), second]))))
    }

    async fn wait_operation(
        &self,
        _: Request<v1::WaitOperationRequest>,
    ) -> Result<Response<v1::WaitOperationResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn cancel_operation(
        &self,
        _: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::CancelOperationResponse>, Status> {
        Err(from_failure(&Failure::new(Reason::NotCancellable, "past its point of no return")))
    }

    async fn resume_operation(
        &self,
        _: Request<v1::ResumeOperationRequest>,
    ) -> Result<Response<v1::ResumeOperationResponse>, Status> {
        Err(from_failure(&Failure::new(Reason::PreconditionFailed, "it is not blocked")))
    }
}

macro_rules! absent {
    ($($method:ident($request:ident) -> $response:ident;)+) => {
        #[tonic::async_trait]
        impl identity::IdentityService for Fake {
            async fn get_caller(
                &self,
                request: Request<v1::GetCallerRequest>,
            ) -> Result<Response<v1::GetCallerResponse>, Status> {
                self.seen(&request)?;
                let method = if request.metadata().contains_key("authorization") { "token" } else { "certificate" };
                Ok(Response::new(v1::GetCallerResponse { method: method.into(), ..Default::default() }))
            }

            $(
                async fn $method(&self, _: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                    Err(Status::permission_denied("only for admins"))
                }
            )+
        }
    };
}

absent! {
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
