//! Joining, renewing and holding a session over real TLS on loopback, against a small coordinator; and what damage does.

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use holdfast_common::clock::{Clock, ManualClock};
use holdfast_common::generation::Generation;
use holdfast_common::id::{FleetId, SessionId};
use holdfast_common::link::{Enroll, Enrolled, FromAgent, FromCoordinator, Renewed, Welcome};
use holdfast_common::pki::{Authority, Issued, JoinToken, PeerIdentity, SigningRequest, Validity};
use holdfast_common::tls::{ClientCertificate, HANDSHAKE_DEADLINE, Protocols, ServerSettings, ServerTls};
use holdfast_proto::link::v1::agent_service_server::{AgentService, AgentServiceServer};
use holdfast_proto::link::v1::enrollment_service_server::{EnrollmentService, EnrollmentServiceServer};
use holdfast_proto::link::v1::{
    EnrollRequest, EnrollResponse, RenewCertificateRequest, RenewCertificateResponse, SessionRequest,
    SessionResponse,
};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::host::fake::FakeTree;
use crate::link::client::CallError;
use crate::outbox::Outbox;

const STATE: &str = "/state";
const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator that issues, remembers and can lose its answers.
#[derive(Clone)]
struct Coordinator {
    inner: Arc<Inner>,
    token: JoinToken,
    address: Address,
    /// Ends it when dropped.
    _stop: Arc<tokio_util::sync::DropGuard>,
}

struct Inner {
    authority: Authority,
    node: NodeId,
    asked: Mutex<Vec<Enroll>>,
    renewed: AtomicU32,
    /// Answers to enrollments that are lost.
    losses: AtomicU32,
    /// Enrollments that make another node.
    strangers: AtomicU32,
    /// An answer is never given.
    mute: bool,
    peers: Mutex<Vec<Option<PeerIdentity>>>,
}

impl Inner {
    fn issue(&self, request: &str, node: NodeId, name: &str) -> Result<Renewed, Status> {
        let request =
            SigningRequest::parse(request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let validity = Validity::day(Timestamp::now());
        let issued: Issued = self
            .authority
            .issue_node(&request, node, &name.parse().unwrap(), &[Ipv4Addr::LOCALHOST.into()], validity)
            .unwrap();
        Ok(Renewed {
            certificate_chain: issued.chain_pem(),
            trust_bundle: self.authority.certificate_pem(),
            not_after: validity.now + validity.lifetime,
        })
    }
}

#[tonic::async_trait]
impl EnrollmentService for Coordinator {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let enroll = Enroll::try_from(request.into_inner()).unwrap();
        let take = |left: u32| left.checked_sub(1);
        let stranger = self.inner.strangers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        let node_id = if stranger { NodeId::generate() } else { self.inner.node };
        let request = &enroll.certificate_signing_request;
        let certificate = self.inner.issue(request, node_id, enroll.node_name.as_str())?;
        self.inner.asked.lock().unwrap().push(enroll);
        if self.inner.mute {
            std::future::pending::<()>().await;
        }
        if self.inner.losses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            return Err(Status::unavailable("the answer is lost"));
        }
        let enrolled = Enrolled { fleet_id: self.inner.authority.fleet(), node_id, certificate };
        Ok(Response::new((&enrolled).into()))
    }
}

#[tonic::async_trait]
impl AgentService for Coordinator {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let answers: BoxStream<'static, _> = request
            .into_inner()
            .filter_map(|message| async move {
                let answer = match FromAgent::try_from(message.ok()?).ok()? {
                    FromAgent::Hello(_) => FromCoordinator::Welcome(Welcome {
                        version: 1,
                        session_id: SessionId::generate(),
                        heartbeat_interval: Duration::from_millis(50),
                        metrics_interval: Duration::from_secs(5),
                        coordinator_generation: Generation::new(1),
                        coordinator_time: Timestamp::now(),
                    }),
                    FromAgent::Heartbeat(heartbeat) => {
                        FromCoordinator::HeartbeatAck { sequence: heartbeat.sequence }
                    }
                    FromAgent::Metrics(_)
                    | FromAgent::CommandUpdate(_)
                    | FromAgent::Event(_)
                    | FromAgent::Answer(_) => return None,
                };
                Some(Ok(SessionResponse::from(&answer)))
            })
            .boxed();
        Ok(Response::new(answers))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let renewed =
            self.inner.issue(&request.into_inner().certificate_signing_request, self.inner.node, "n1")?;
        self.inner.renewed.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new((&renewed).into()))
    }
}

impl Coordinator {
    async fn start(losses: u32, mute: bool) -> Self {
        let now = Timestamp::now();
        let authority = Authority::create(FleetId::generate(), now).unwrap();
        let addresses = [Ipv4Addr::LOCALHOST.into()];
        let name = "main".parse().unwrap();
        let (issued, key) = authority.issue_coordinator(&name, &[], &addresses, Validity::day(now)).unwrap();
        let settings = ServerSettings {
            fleet: authority.fleet(),
            client_certificate: ClientCertificate::Optional,
            protocols: Protocols::H2,
        };
        let tls = ServerTls::new(settings, &issued.credentials(&key).unwrap(), &authority.bundle()).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = format!("127.0.0.1:{}", listener.local_addr().unwrap().port()).parse().unwrap();
        let token = JoinToken::generate(authority.fingerprint());
        let inner = Arc::new(Inner {
            authority,
            node: NodeId::generate(),
            asked: Mutex::default(),
            renewed: AtomicU32::new(0),
            losses: AtomicU32::new(losses),
            strangers: AtomicU32::new(0),
            mute,
            peers: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let coordinator = Self { inner, token, address, _stop: Arc::new(stop.clone().drop_guard()) };
        let (give, incoming) = mpsc::channel::<Result<DuplexStream, std::io::Error>>(16);
        tokio::spawn(accept(listener, Arc::new(tls), Arc::clone(&coordinator.inner), give, stop.clone()));
        // The services hold no guard: they end with the test's.
        let service = Self { _stop: Arc::new(CancellationToken::new().drop_guard()), ..coordinator.clone() };
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(EnrollmentServiceServer::new(service.clone()))
                .add_service(AgentServiceServer::new(service))
                .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.cancelled_owned()),
        );
        coordinator
    }

    fn join(&self, name: &str) -> Join {
        Join {
            token: self.token.clone(),
            coordinators: Coordinators::new(vec![self.address.clone()]).unwrap(),
            name: name.parse().unwrap(),
            address: None,
            data_dir: "/data".into(),
            again: Again::IfEnded,
            patience: PATIENCE,
        }
    }

    fn asked(&self) -> Vec<Enroll> {
        self.inner.asked.lock().unwrap().clone()
    }
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    inner: Arc<Inner>,
    give: mpsc::Sender<Result<DuplexStream, std::io::Error>>,
    stop: CancellationToken,
) {
    loop {
        let (tcp, _) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted.unwrap(),
        };
        let Ok(mut accepted) = tls.accept(tcp, HANDSHAKE_DEADLINE).await else { continue };
        inner.peers.lock().unwrap().push(accepted.peer);
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                _ = tokio::io::copy_bidirectional(&mut accepted.stream, &mut theirs) => {}
            }
        });
        if give.send(Ok(ours)).await.is_err() {
            return;
        }
    }
}

fn disk() -> (FakeTree, Files) {
    let tree = FakeTree::new([PathBuf::from(STATE)]);
    (tree.clone(), Files::new(Arc::new(tree)))
}

async fn joined(coordinator: &Coordinator, files: &Files) -> Joined {
    join(files, Path::new(STATE), &Clock::system(), coordinator.join("n1")).await.unwrap()
}

#[tokio::test]
async fn a_machine_joins_once_and_joining_again_changes_nothing() {
    let coordinator = Coordinator::start(0, false).await;
    let (tree, files) = disk();
    let (fleet, node) = (coordinator.inner.authority.fleet(), coordinator.inner.node);
    assert_eq!(joined(&coordinator, &files).await, Joined::Now { fleet, node });
    let before = tree.contents("/state/node");
    assert_eq!(joined(&coordinator, &files).await, Joined::Already { fleet, node });
    assert_eq!(tree.contents("/state/node"), before);
    assert_eq!(coordinator.asked().len(), 1);
    assert_eq!(coordinator.asked()[0].address, Ipv4Addr::LOCALHOST, "the address towards the coordinator");
    assert!(tree.contents("/state/joining").is_none());

    let record = Identity::open(files.clone(), Path::new(STATE)).await.unwrap().record();
    assert_eq!((record.fleet_id, record.node_id), (fleet, node));

    let another = join(&files, Path::new(STATE), &Clock::system(), coordinator.join("n2")).await;
    assert!(matches!(another, Err(JoinError::OtherIdentity { .. })));
    let elsewhere = Coordinator::start(0, false).await;
    let other_fleet = join(&files, Path::new(STATE), &Clock::system(), elsewhere.join("n1")).await;
    assert!(matches!(other_fleet, Err(JoinError::OtherIdentity { .. })));
    assert!(elsewhere.asked().is_empty());
    assert_eq!(tree.contents("/state/node"), before);
}

#[tokio::test]
async fn a_machine_whose_certificate_has_ended_comes_back_as_what_it_was() {
    let coordinator = Coordinator::start(0, false).await;
    let (tree, files) = disk();
    joined(&coordinator, &files).await;
    let before = Identity::open(files.clone(), Path::new(STATE)).await.unwrap().record();
    let terms = tree.contents("/state/accepted");
    let (fleet, node) = (before.fleet_id, before.node_id);
    let later = ManualClock::at(before.not_after);
    // Where its databases lie is not the joining's to change.
    let elsewhere = Join { data_dir: "/elsewhere".into(), ..coordinator.join("n1") };
    let back = join(&files, Path::new(STATE), &later.clock(), elsewhere).await.unwrap();
    assert_eq!(back, Joined::Back { fleet, node });
    let after = Identity::open(files.clone(), Path::new(STATE)).await.unwrap().record();
    assert_ne!(after.key, before.key);
    assert_eq!((after.node_id, &after.data_dir), (node, &before.data_dir));
    assert_eq!(tree.contents("/state/accepted"), terms, "what it has accepted stays");
    // And at once, if a person says so.
    let again = Join { again: Again::Always, ..coordinator.join("n1") };
    let back = join(&files, Path::new(STATE), &Clock::system(), again).await.unwrap();
    assert_eq!(back, Joined::Back { fleet, node });
}

#[tokio::test]
async fn a_machine_never_becomes_another_node_by_coming_back() {
    let coordinator = Coordinator::start(0, false).await;
    let (tree, files) = disk();
    joined(&coordinator, &files).await;
    let before = tree.contents("/state/node");
    coordinator.inner.strangers.store(1, Ordering::SeqCst);
    let again = Join { again: Again::Always, ..coordinator.join("n1") };
    let refused = join(&files, Path::new(STATE), &Clock::system(), again).await;
    assert!(matches!(refused, Err(JoinError::OtherNode { .. })), "{refused:?}");
    assert_eq!(tree.contents("/state/node"), before);
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_under_the_same_request_and_key() {
    let coordinator = Coordinator::start(1, false).await;
    let (_, files) = disk();
    joined(&coordinator, &files).await;
    let asked = coordinator.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].request_id, asked[1].request_id);
    assert_eq!(key_of(&asked[0]), key_of(&asked[1]));
}

#[tokio::test]
async fn an_agent_that_ends_before_the_answer_goes_on_with_the_same_request() {
    let mute = Coordinator::start(0, true).await;
    let (tree, files) = disk();
    let clock = Clock::system();
    let ended = join(&files, Path::new(STATE), &clock, mute.join("n1"));
    let asked = async {
        while mute.asked().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = ended => panic!("there is no answer"),
        reached = timeout(PATIENCE, asked) => reached.unwrap(),
    }
    assert!(tree.contents("/state/node").is_none());
    let again = join(&files, Path::new(STATE), &clock, mute.join("n1"));
    let asked = async {
        while mute.asked().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = again => panic!("there is no answer"),
        reached = timeout(PATIENCE, asked) => reached.unwrap(),
    }
    let asked = mute.asked();
    assert_eq!(asked[0].request_id, asked[1].request_id);
    assert_eq!(key_of(&asked[0]), key_of(&asked[1]));
}

fn key_of(enroll: &Enroll) -> [u8; 32] {
    SigningRequest::parse(&enroll.certificate_signing_request).unwrap().key_digest()
}

#[tokio::test]
async fn a_server_of_another_authority_never_gets_the_secret() {
    let (real, imposter) = (Coordinator::start(0, false).await, Coordinator::start(0, false).await);
    let (tree, files) = disk();
    let wanted = Join { token: real.token.clone(), ..imposter.join("n1") };
    let refused = timeout(PATIENCE, join(&files, Path::new(STATE), &Clock::system(), wanted)).await;
    let Err(JoinError::Enroll(error)) = refused.expect("at once, without trying for a minute") else {
        panic!("joined an imposter")
    };
    assert!(matches!(error, CallError::Connect { .. }) && error.is_distrust());
    assert!(imposter.asked().is_empty());
    assert!(imposter.inner.peers.lock().unwrap().is_empty(), "the handshake was not finished");
    // Nor does the secret lie on the disk.
    let secret = real.token.secret.reveal();
    for path in tree.paths_below(STATE) {
        let contents = tree.contents(&path).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&contents).contains(secret.as_str()), "{}", path.display());
    }
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_told_with_what_to_look_at() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let coordinator = Coordinator::start(0, false).await;
    let wanted = Join {
        coordinators: Coordinators::new(vec![free.to_string().parse().unwrap()]).unwrap(),
        patience: Duration::from_millis(100),
        ..coordinator.join("n1")
    };
    let error = join(&disk().1, Path::new(STATE), &Clock::system(), wanted).await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains(&free.to_string()) && said.contains("does it run"), "{said}");
}

#[tokio::test]
async fn a_damaged_identity_is_refused_and_left_as_it_is() {
    let coordinator = Coordinator::start(0, false).await;
    let (tree, files) = disk();
    joined(&coordinator, &files).await;
    let good = tree.contents("/state/node").unwrap();
    let cuts = (0..good.len()).step_by(41).map(|end| good[..end].to_vec());
    let flips = (0..good.len()).step_by(41).map(|position| {
        let mut bad = good.clone();
        bad[position] ^= 0x04;
        bad
    });
    for bad in cuts.chain(flips) {
        tree.put("/state/node", bad.clone());
        let opened = Identity::open(files.clone(), Path::new(STATE)).await;
        assert!(matches!(opened, Err(Error::Damaged(_))));
        // Not even joining takes it for none.
        let again = join(&files, Path::new(STATE), &Clock::system(), coordinator.join("n1")).await;
        assert!(matches!(again, Err(JoinError::Before(Error::Damaged(_)))));
        assert_eq!(tree.contents("/state/node"), Some(bad));
    }
    assert_eq!(coordinator.asked().len(), 1);
    files.remove_file("/state/node").await.unwrap();
    let opened = Identity::open(files, Path::new(STATE)).await;
    assert!(matches!(opened, Err(Error::NotJoined { .. })));
}

#[tokio::test]
async fn a_certificate_is_renewed_at_two_thirds_and_used_from_the_next_connection_on() {
    let coordinator = Coordinator::start(0, false).await;
    let (_, files) = disk();
    joined(&coordinator, &files).await;
    let identity = Arc::new(Identity::open(files.clone(), Path::new(STATE)).await.unwrap());
    let first = identity.record();
    let mut certificates = identity.certificates();
    let time = ManualClock::at(first.renew_at() - Duration::from_secs(1));
    let stop = CancellationToken::new();
    let renewal = |clock| Renewal {
        identity: Arc::clone(&identity),
        coordinators: first.coordinators().unwrap(),
        clock,
        outbox: Outbox::default(),
    };
    // A second too early nothing happens.
    let early = renewal(time.clock()).run(stop.clone());
    assert!(timeout(Duration::from_millis(300), early).await.is_err());
    assert_eq!(coordinator.inner.renewed.load(Ordering::SeqCst), 0);

    time.advance(Duration::from_secs(1));
    let running = tokio::spawn(renewal(time.clock()).run(stop.clone()));
    timeout(PATIENCE, certificates.changed()).await.unwrap().unwrap();
    stop.cancel();
    timeout(PATIENCE, running).await.unwrap().unwrap();
    let second = identity.record();
    assert_ne!(first.certificate_chain, second.certificate_chain);
    assert_ne!(first.key, second.key, "a new key each time");
    assert_eq!(second.node_id, first.node_id);
    assert_eq!(certificates.borrow().chain, second.certificate_chain);
    // It is what the next start of the agent finds, too.
    let reopened = Identity::open(files, Path::new(STATE)).await.unwrap();
    assert_eq!(reopened.record(), second);

    let serial = |record: &Record| record.credentials().unwrap().0.identity().unwrap().serial;
    let tls = identity.tls();
    let _channel = crate::link::client::attach(&tls, &coordinator.address).await.unwrap();
    // The client has done its part of the handshake a moment before the server.
    let seen = async {
        let last =
            || coordinator.inner.peers.lock().unwrap().last().cloned().flatten().map(|peer| peer.serial);
        while last() != Some(serial(&second)) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, seen).await.unwrap();
    assert_ne!(serial(&first), serial(&second));
}
