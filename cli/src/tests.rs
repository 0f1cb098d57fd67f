//! Commands against a coordinator of this process: real TLS, real gRPC, answers made up here.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser as _;
use holdfast_common::context::{Context, ContextFile};
use holdfast_common::error::status::from_failure;
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::FleetId;
use holdfast_common::pki::{Authority, Credentials, TrustBundle, Validity};
use holdfast_common::tls::{ClientCertificate, HANDSHAKE_DEADLINE, Protocols, ServerSettings, ServerTls};
use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1::{self, cluster_service_server as clusters, identity_service_server as identity};
use holdfast_proto::v1::{node_service_server as nodes, operation_service_server as operations};
use jiff::Timestamp;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::args::Cli;
use crate::commands::{self, Session};
use crate::error::{Error, ExitCode};
use crate::output::Output;

type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the made-up coordinator was asked, and how it is to answer.
#[derive(Debug, Default)]
struct State {
    request_ids: Mutex<Vec<String>>,
    authorizations: Mutex<Vec<Option<String>>>,
    /// So many calls are answered UNAVAILABLE first.
    unavailable: AtomicUsize,
    watches: AtomicUsize,
}

#[derive(Debug, Clone)]
struct Fake(Arc<State>);

struct Bench {
    folder: tempfile::TempDir,
    state: Arc<State>,
    authority: Authority,
    server: String,
}

impl Bench {
    async fn new() -> Self {
        holdfast_common::tls::install_provider();
        let authority = Authority::create(FleetId::generate(), Timestamp::now()).unwrap();
        let state = Arc::new(State::default());
        let server = serve(&authority, Fake(Arc::clone(&state))).await;
        Self { folder: tempfile::tempdir().unwrap(), state, authority, server }
    }

    /// A context file for this coordinator, with a certificate or without.
    fn config(&self, certificate: bool, trust: &Authority) -> PathBuf {
        let (issued, key) =
            trust.issue_operator(&"alice".parse().unwrap(), Validity::day(Timestamp::now())).unwrap();
        let context = Context {
            server: self.server.clone(),
            trust_bundle: trust.bundle().to_pem(),
            certificate: certificate.then(|| issued.chain_pem()),
            key: certificate.then(|| key.to_pem().as_str().to_owned().into()),
        };
        let path = self.folder.path().join(format!("{certificate}-{}.toml", trust.fleet()));
        ContextFile { current: "default".into(), contexts: BTreeMap::from([("default".into(), context)]) }
            .save(&path)
            .unwrap();
        path
    }

    async fn run(&self, arguments: &[&str]) -> (String, Result<(), Error>) {
        run_with(&self.config(true, &self.authority), None, arguments).await
    }
}

/// What a test reads back.
#[derive(Debug, Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn run_with(
    config: &std::path::Path,
    token: Option<&str>,
    arguments: &[&str],
) -> (String, Result<(), Error>) {
    let config = config.to_str().unwrap();
    let cli = Cli::try_parse_from(["holdfast", "--config", config].iter().chain(arguments)).unwrap();
    let page = Page::default();
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let mut session =
        Session::new(cli.global, |format| Output::to(format, Box::new(page.clone()), now), false);
    session.token = token.map(|token| token.to_owned().into());
    let result = commands::run(&mut session, cli.command).await;
    let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
    (text, result)
}

async fn serve(authority: &Authority, fake: Fake) -> String {
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
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            // A client that does not trust us is not this server's problem.
            if let Ok(accepted) = tls.accept(tcp, HANDSHAKE_DEADLINE).await {
                let (inner, mut outer) = tokio::io::duplex(64 * 1024);
                let mut stream = accepted.stream;
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut stream, &mut outer).await });
                let _ = send.send(Ok::<_, io::Error>(inner)).await;
            }
        }
    });
    let router = tonic::transport::Server::builder()
        .add_service(nodes::NodeServiceServer::new(fake.clone()))
        .add_service(clusters::ClusterServiceServer::new(fake.clone()))
        .add_service(operations::OperationServiceServer::new(fake.clone()))
        .add_service(identity::IdentityServiceServer::new(fake));
    tokio::spawn(router.serve_with_incoming(ReceiverStream::new(connections)));
    server
}

impl Fake {
    fn seen<T>(&self, request: &Request<T>) -> Result<(), Status> {
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

fn time(second: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: 1_800_000_000 + second, nanos: 0 })
}

fn node(name: &str, availability: v1::Availability) -> v1::Node {
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

fn cluster() -> v1::Cluster {
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

fn operation(state: v1::OperationState) -> v1::Operation {
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

#[tonic::async_trait]
impl nodes::NodeService for Fake {
    type WatchNodesStream = Answers<v1::WatchNodesResponse>;

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.seen(&request)?;
        // Two pages.
        let first = request.get_ref().page_token.is_empty();
        let (name, next) = if first { ("n1", "2") } else { ("n2", "") };
        let availability = if first { v1::Availability::Online } else { v1::Availability::Offline };
        Ok(Response::new(v1::ListNodesResponse {
            nodes: vec![node(name, availability)],
            next_page_token: next.into(),
        }))
    }

    async fn get_node(
        &self,
        request: Request<v1::GetNodeRequest>,
    ) -> Result<Response<v1::GetNodeResponse>, Status> {
        let name = &request.get_ref().name;
        Err(from_failure(&Failure::about(
            Reason::NodeNotFound,
            "node",
            name,
            format!("there is no node `{name}`"),
        )))
    }

    async fn watch_nodes(
        &self,
        _: Request<v1::WatchNodesRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        let changed = v1::WatchNodesResponse {
            kind: v1::WatchKind::Changed.into(),
            node: Some(node("n1", v1::Availability::Online)),
        };
        let synced = v1::WatchNodesResponse { kind: v1::WatchKind::Synced.into(), node: None };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(changed), Ok(synced)]))))
    }

    async fn remove_node(
        &self,
        _: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        panic!("not without a confirmation")
    }

    async fn query_metrics(
        &self,
        _: Request<v1::QueryMetricsRequest>,
    ) -> Result<Response<v1::QueryMetricsResponse>, Status> {
        let point = v1::Point { time: time(-5), value: 0.25, ..Default::default() };
        let series =
            v1::Series { name: "cpu_busy_fraction".into(), points: vec![point], ..Default::default() };
        let step = Some(prost_types::Duration { seconds: 5, nanos: 0 });
        Ok(Response::new(v1::QueryMetricsResponse { series: vec![series], step }))
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

    async fn reset_password(
        &self,
        _: Request<v1::ResetPasswordRequest>,
    ) -> Result<Response<v1::ResetPasswordResponse>, Status> {
        Err(Status::unimplemented("not here"))
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

const CREATE: [&str; 7] = ["cluster", "create", "demo", "--engine", "postgresql", "--nodes", "n1,n2,n3"];

#[tokio::test]
async fn a_cluster_is_shown_as_a_table_and_as_json() {
    let bench = Bench::new().await;
    let (table, result) = bench.run(&["cluster", "show", "demo"]).await;
    result.unwrap();
    insta::assert_snapshot!(table);
    let (json, result) = bench.run(&["--output", "json", "cluster", "show", "demo"]).await;
    result.unwrap();
    insta::assert_snapshot!(json);
}

#[tokio::test]
async fn nodes_are_listed_over_all_pages_and_the_silent_one_says_nothing() {
    let bench = Bench::new().await;
    let (table, result) = bench.run(&["node", "list"]).await;
    result.unwrap();
    insta::assert_snapshot!(table);
    let (json, result) = bench.run(&["-o", "json", "node", "list"]).await;
    result.unwrap();
    insta::assert_snapshot!(json);
    let (top, result) = bench.run(&["node", "top"]).await;
    result.unwrap();
    insta::assert_snapshot!(top);
    let (_, result) = bench.run(&["node", "top", "n9"]).await;
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::NotFound);
    let (metrics, result) = bench.run(&["node", "metrics", "n1", "--series", "cpu_busy_fraction"]).await;
    result.unwrap();
    insta::assert_snapshot!(metrics);
}

#[tokio::test]
async fn a_change_is_sent_again_with_the_same_request_id_and_a_watch_survives_a_restart() {
    let bench = Bench::new().await;
    bench.state.unavailable.store(2, Ordering::SeqCst);
    let (text, result) = bench.run(&CREATE).await;
    result.unwrap();
    assert!(text.contains("Cluster demo is ready"), "{text}");
    let ids = bench.state.request_ids.lock().unwrap().clone();
    assert_eq!(ids.len(), 3);
    assert!(!ids[0].is_empty() && ids.iter().all(|id| *id == ids[0]));
    assert_eq!(bench.state.watches.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn calls_are_not_repeated_for_ever() {
    let bench = Bench::new().await;
    bench.state.unavailable.store(usize::MAX, Ordering::SeqCst);
    let (_, result) = bench.run(&["cluster", "show", "demo"]).await;
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::Unavailable);
    assert_eq!(bench.state.authorizations.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn detach_prints_the_id_and_nothing_else() {
    let bench = Bench::new().await;
    let (text, result) = bench.run(&[&CREATE[..], &["--detach"]].concat()).await;
    result.unwrap();
    assert_eq!(text, "o1\n");
    assert_eq!(bench.state.watches.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_plan_with_an_unmet_precondition_is_shown_and_is_a_refusal() {
    let bench = Bench::new().await;
    let (text, result) = bench.run(&[&CREATE[..], &["--plan"]].concat()).await;
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::Refused);
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn every_bad_field_is_told() {
    let bench = Bench::new().await;
    let (_, result) =
        bench.run(&["cluster", "create", "demo", "--engine", "postgresql", "--nodes", "nowhere"]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    let text = error.to_text();
    assert!(text.contains("nodes[0]: names no node") && text.contains("port: must be"), "{text}");
}

#[tokio::test]
async fn refusals_have_their_exit_codes() {
    let bench = Bench::new().await;
    for (arguments, code) in [
        (&["node", "show", "n9"][..], ExitCode::NotFound),
        (&["operation", "cancel", "o1"], ExitCode::Refused),
        (&["cluster", "watch", "demo"], ExitCode::Failed),
        (&["operator", "list"], ExitCode::NotPermitted),
        // Nobody can be asked here, so nothing is destroyed.
        (&["cluster", "delete", "demo"], ExitCode::Refused),
        (&["cluster", "delete", "demo", "--confirm", "dema"], ExitCode::Refused),
        (&["cluster", "remove-member", "demo", "n1", "--confirm", "demo"], ExitCode::Refused),
        (&["node", "remove", "n1"], ExitCode::Refused),
        (&["operation", "wait", "endless", "--for", "1s"], ExitCode::Unavailable),
        (&["context", "show", "other"], ExitCode::NotFound),
        (
            &["cluster", "create", "d", "--engine", "postgresql", "--nodes", "n1", "--port", "0"],
            ExitCode::Usage,
        ),
    ] {
        let (text, result) = bench.run(arguments).await;
        assert_eq!(result.unwrap_err().exit_code(), code, "{arguments:?}");
        assert_eq!(text, "", "{arguments:?}");
    }
}

#[tokio::test]
async fn a_password_is_printed_only_where_it_was_asked_for() {
    let bench = Bench::new().await;
    assert!(!bench.run(&["cluster", "connection", "demo"]).await.0.contains("hush"));
    assert!(bench.run(&["cluster", "connection", "demo", "--reveal-password"]).await.0.contains("hush"));
    assert_eq!(bench.run(&["cluster", "connection", "demo", "--uri"]).await.0, "postgresql://x\n");
}

#[tokio::test]
async fn a_token_goes_without_the_certificate_and_is_never_shown() {
    let bench = Bench::new().await;
    let config = bench.config(false, &bench.authority);
    let (text, result) = run_with(&config, Some("hfo1.a.b\n"), &["-o", "json", "whoami"]).await;
    result.unwrap();
    assert!(text.contains(r#""method": "token""#) && !text.contains("hfo1"), "{text}");
    assert_eq!(*bench.state.authorizations.lock().unwrap(), [Some("Bearer hfo1.a.b".to_owned())]);
    let (_, result) = run_with(&config, None, &["whoami"]).await;
    assert!(result.unwrap_err().to_text().contains("HOLDFAST_TOKEN"));
    let (_, result) = run_with(&config, Some("a\nb"), &["whoami"]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert!(!error.to_text().contains("a\nb"));
}

#[tokio::test]
async fn a_coordinator_of_another_fleet_gets_nothing_from_us() {
    let bench = Bench::new().await;
    let other = Authority::create(FleetId::generate(), Timestamp::now()).unwrap();
    let (_, result) = run_with(&bench.config(true, &other), None, &["whoami"]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Unavailable);
    assert!(error.to_text().contains("another fleet"), "{}", error.to_text());
    assert!(bench.state.authorizations.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_coordinator_that_is_not_there_is_told_with_what_to_check() {
    let mut bench = Bench::new().await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    bench.server = free.to_string();
    let (_, result) = bench.run(&["whoami"]).await;
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Unavailable);
    assert!(error.to_text().contains(&format!("Nothing listens at {free}")), "{}", error.to_text());
    assert_eq!(error.to_json()["error"]["exit_code"], 5);
    bench.server = "no port".into();
    let (_, result) = bench.run(&["whoami"]).await;
    assert_eq!(result.unwrap_err().exit_code(), ExitCode::Usage);
}

#[tokio::test]
async fn a_coordinator_that_hangs_is_given_up() {
    let bench = Bench::new().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut hanging = Bench { server: silent.local_addr().unwrap().to_string(), ..bench };
    let held = tokio::spawn(async move {
        let connection = silent.accept().await;
        // Closes once the client's hello has come: no TLS is spoken.
        if let Ok((tcp, _)) = connection {
            tcp.readable().await.unwrap();
        }
    });
    let waiting = tokio::time::timeout(Duration::from_secs(30), hanging.run(&["whoami"]));
    let (_, result) = waiting.await.unwrap();
    assert!(result.unwrap_err().to_text().contains("no TLS"));
    held.await.unwrap();
    hanging.server.clear();
}

#[tokio::test]
async fn a_context_file_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new().await;
    let config = bench.config(true, &bench.authority);
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (_, result) = run_with(&config, None, &["whoami"]).await;
    assert!(result.unwrap_err().to_text().contains("chmod 600"));
}

#[tokio::test]
async fn contexts_are_shown_without_their_keys_and_completion_needs_none() {
    let bench = Bench::new().await;
    let (text, result) = bench.run(&["-o", "json", "context", "show"]).await;
    result.unwrap();
    assert!(text.contains("operator/alice") && !text.contains("PRIVATE"), "{text}");
    let missing = bench.folder.path().join("missing.toml");
    for shell in ["bash", "zsh", "fish"] {
        let (text, result) = run_with(&missing, None, &["completion", shell]).await;
        result.unwrap();
        assert!(text.contains("add-member"));
    }
    let (text, result) = run_with(&missing, None, &["man"]).await;
    result.unwrap();
    assert!(text.contains(".TH holdfast"));
}
