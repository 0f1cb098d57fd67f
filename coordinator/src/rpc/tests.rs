//! The servers over real TLS on loopback, with scripted agents and operators.

mod changes;
mod joining;
mod limits;
mod matrix;
mod operators;
mod sessions;
mod set_aside;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use holdfast_common::error::{Failure, Reason, status};
use holdfast_common::generation::Generation;
use holdfast_common::id::{InstanceId, NodeId};
use holdfast_common::link::{FromAgent, FromCoordinator, Heartbeat, Hello, VERSIONS, Welcome};
use holdfast_common::pki::{Authority, Credentials, Issued, NodeKey, SigningRequest, TrustBundle, Validity};
use holdfast_common::report::NodeReport;
use holdfast_common::shutdown::Tasks;
use holdfast_common::telemetry::{Bounded, Inventory, OperatingSystem, Privilege, ServiceManager};
use holdfast_common::tls::{ClientTls, Connector, Expect};
use holdfast_proto::link::v1::agent_service_client::AgentServiceClient;
use holdfast_proto::link::v1::enrollment_service_client::EnrollmentServiceClient;
use holdfast_proto::link::v1::{EnrollRequest, EnrollResponse, SessionRequest, SessionResponse};
use holdfast_proto::v1::identity_service_client::IdentityServiceClient;
use holdfast_proto::v1::node_service_client::NodeServiceClient;
use holdfast_proto::v1::{self as proto};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use uuid::Uuid;

use crate::app::{App, Parts, Sockets};
use crate::config::{Config, StateDir};
use crate::directory::{self, IssuedCertificate, Node, OperatorRole};
use crate::identity::NewOperator;
use crate::init;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator that runs, and what its first operator has.
struct Coordinator {
    _folder: TempDir,
    state: StateDir,
    agents: SocketAddr,
    operators: SocketAddr,
    parts: Parts,
    authority: Authority,
    admin: Credentials,
    tasks: Tasks,
}

/// One end of a session, scripted.
struct Agent {
    to: mpsc::Sender<SessionRequest>,
    from: Streaming<SessionResponse>,
}

/// What a node has after joining.
#[derive(Debug, Clone)]
struct Member {
    id: NodeId,
    name: String,
    credentials: Credentials,
}

impl Coordinator {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().join("state"));
        let context_file = folder.path().join("context.toml");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = init::Options {
            state: state.clone(),
            operators: any,
            agents: any,
            advertise: Vec::new(),
            context_file: context_file.clone(),
        };
        init::init(&options).await.unwrap();
        let context = holdfast_common::context::ContextFile::load(&context_file).unwrap();
        let context = context.context(None).unwrap();
        let key = secrecy::ExposeSecret::expose_secret(context.key.as_ref().unwrap()).to_owned();
        let admin = Credentials::from_pem(context.certificate.as_ref().unwrap(), &key).unwrap();
        let mut config = Config::load(&state).unwrap();
        config.limits.enroll_burst = 1000.try_into().unwrap();
        config.limits.enroll_per_second = 1000.try_into().unwrap();
        change(&mut config);
        let pem = |path| std::fs::read_to_string(path).unwrap();
        let authority =
            Authority::load(&pem(state.authority_certificate()), &pem(state.authority_key())).unwrap();
        let sockets = Sockets {
            agents: TcpListener::bind(any).await.unwrap(),
            operators: TcpListener::bind(any).await.unwrap(),
        };
        let (agents, operators) =
            (sockets.agents.local_addr().unwrap(), sockets.operators.local_addr().unwrap());
        let app = App::build(state.clone(), config).await.unwrap();
        let parts = app.parts().clone();
        let tasks = Tasks::new();
        let (ready, is_ready) = oneshot::channel();
        let running = tasks.clone();
        tokio::spawn(async move { app.run(sockets, running, || ready.send(()).unwrap()).await.unwrap() });
        is_ready.await.unwrap();
        Self { _folder: folder, state, agents, operators, parts, authority, admin, tasks }
    }

    fn roots(&self) -> TrustBundle {
        self.authority.bundle()
    }

    fn channel(&self, address: SocketAddr, credentials: Option<&Credentials>) -> Channel {
        let tls =
            ClientTls::new(self.authority.fleet(), Expect::Coordinator, credentials, &self.roots()).unwrap();
        Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect_with_connector_lazy(Connector::new(Arc::new(tls)))
    }

    fn to_agents(&self, credentials: Option<&Credentials>) -> Channel {
        self.channel(self.agents, credentials)
    }

    fn to_operators(&self, credentials: Option<&Credentials>) -> Channel {
        self.channel(self.operators, credentials)
    }

    fn identities(&self) -> IdentityServiceClient<Channel> {
        IdentityServiceClient::new(self.to_operators(Some(&self.admin)))
    }

    fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.to_operators(Some(&self.admin)))
    }

    async fn join_token(&self, uses: u32) -> String {
        let request = proto::CreateJoinTokenRequest { uses: Some(uses), ..Default::default() };
        self.identities().create_join_token(request).await.unwrap().into_inner().token
    }

    async fn access_token(&self) -> String {
        let request = proto::CreateAccessTokenRequest::default();
        self.identities().create_access_token(request).await.unwrap().into_inner().token
    }

    async fn enroll(&self, request: EnrollRequest) -> Result<EnrollResponse, Failure> {
        let mut client = EnrollmentServiceClient::new(self.to_agents(None));
        client
            .enroll(request)
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| status::to_failure(&status))
    }

    async fn join(&self, name: &str) -> Member {
        let (key, request) = enroll_request(&self.join_token(1).await, name);
        let response = self.enroll(request).await.unwrap();
        Member {
            id: response.node_id.parse().unwrap(),
            name: name.to_owned(),
            credentials: Credentials::from_pem(&response.certificate_chain, &key.to_pem()).unwrap(),
        }
    }

    /// A certificate of the fleet's own authority, whatever the records say.
    fn node_certificate(&self, id: NodeId, validity: Validity) -> (Issued, Credentials) {
        let key = NodeKey::generate().unwrap();
        let request = SigningRequest::parse(&key.signing_request().unwrap()).unwrap();
        let issued = self.authority.issue_node(&request, id, &"n".parse().unwrap(), &[], validity).unwrap();
        let credentials = issued.credentials(&key).unwrap();
        (issued, credentials)
    }

    /// An operator with a certificate, straight into the records.
    async fn operator(&self, name: &str, role: OperatorRole) -> Credentials {
        let new = NewOperator { name: name.parse().unwrap(), role, ttl: Duration::from_secs(3600) };
        let (record, credentials) = new.issue(&self.authority).unwrap();
        self.parts.directory.create(&directory::operator_key(&record.name), &record).await.unwrap();
        Credentials::from_pem(&credentials.certificate_chain, &credentials.private_key).unwrap()
    }

    async fn session(&self, member: &Member) -> Agent {
        let mut agent = self.open(member).await;
        agent.say(FromAgent::Hello(Box::new(hello()))).await;
        agent.welcomed().await;
        agent
    }

    /// A stream on which nothing was said yet.
    async fn open(&self, member: &Member) -> Agent {
        let (to, requests) = mpsc::channel(16);
        let mut client = AgentServiceClient::new(self.to_agents(Some(&member.credentials)));
        let from = client.session(ReceiverStream::new(requests)).await.unwrap().into_inner();
        Agent { to, from }
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&Parts) -> bool) {
        let mut changes = self.parts.fleet.changes();
        let wait = async {
            while !holds(&self.parts) {
                let _ = tokio::time::timeout(Duration::from_millis(100), changes.changed()).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "not in time: {what}");
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl Agent {
    async fn say(&self, message: FromAgent) {
        self.to.send((&message).into()).await.unwrap();
    }

    async fn hear(&mut self) -> Result<Option<FromCoordinator>, Status> {
        let message =
            tokio::time::timeout(PATIENCE, self.from.message()).await.expect("an answer in time")?;
        Ok(message.map(|message| message.try_into().unwrap()))
    }

    async fn welcomed(&mut self) -> Welcome {
        match self.hear().await.unwrap().unwrap() {
            FromCoordinator::Welcome(welcome) => welcome,
            other => panic!("not a welcome: {other:?}"),
        }
    }

    /// The first message that `wanted` picks; heartbeat acknowledgements are passed over.
    async fn wait_for<T>(&mut self, mut wanted: impl FnMut(&FromCoordinator) -> Option<T>) -> T {
        loop {
            let message = self.hear().await.unwrap().expect("the session goes on");
            if let Some(found) = wanted(&message) {
                return found;
            }
        }
    }

    async fn heartbeat(&self, sequence: u64) {
        let report = NodeReport {
            members: Vec::new(),
            assignment_generation: Generation::NONE,
            node_time: Timestamp::now(),
        };
        self.say(FromAgent::Heartbeat(Box::new(Heartbeat { sequence, report }))).await;
    }
}

fn enroll_request(token: &str, name: &str) -> (NodeKey, EnrollRequest) {
    let key = NodeKey::generate().unwrap();
    let request = EnrollRequest {
        token: token.to_owned(),
        certificate_signing_request: key.signing_request().unwrap(),
        node_name: name.to_owned(),
        address: "192.0.2.1".to_owned(),
        request_id: Uuid::now_v7().to_string(),
    };
    (key, request)
}

fn hello() -> Hello {
    Hello {
        versions: VERSIONS,
        agent_version: "0.1.0".into(),
        boot_id: "boot".into(),
        instance_id: InstanceId::generate(),
        inventory: inventory(),
        assignment_generation: Generation::NONE,
        coordinator_generation: Generation::NONE,
        unfinished: Vec::new(),
        node_time: Timestamp::now(),
    }
}

pub(crate) fn inventory() -> Inventory {
    Inventory {
        hostname: "host".into(),
        os: OperatingSystem { id: "debian".into(), version: Some("12".into()), pretty_name: "Debian".into() },
        kernel: "6.1".into(),
        architecture: "x86_64".into(),
        cpu_model: None,
        logical_cores: 2,
        physical_cores: None,
        memory_bytes: 1 << 30,
        swap_bytes: 0,
        disks: Bounded::default(),
        addresses: Bounded::default(),
        virtualisation: None,
        service_manager: ServiceManager::Plain,
        privilege: Privilege::Unprivileged,
        engines: Bounded::default(),
        filtering: holdfast_common::telemetry::Filtering::Unknown,
    }
}

/// A record of a node that has joined with this certificate.
fn record(id: NodeId, name: &str, issued: &Issued) -> Node {
    Node {
        id,
        name: name.parse().unwrap(),
        address: [192, 0, 2, 7].into(),
        joined_at: Timestamp::now(),
        certificates: vec![IssuedCertificate {
            serial: issued.serial.clone(),
            issued_at: Timestamp::now(),
            not_after: issued.not_after,
        }],
        drained: None,
    }
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn reason(status: &Status) -> Reason {
    status::to_failure(status).reason
}

async fn first<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    let next = futures::StreamExt::next(stream);
    tokio::time::timeout(PATIENCE, next).await.expect("an answer in time").expect("the stream goes on")
}
