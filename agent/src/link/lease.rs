//! What is said of leases, on the wire: the stream with the coordinator, promises asked of other agents, promises given to them.
//!
//! ```text
//!  lease::driver ── tell ──► Exchange, to any of the coordinators, opened again and again ──► Input::Told
//!                ── ask ───► Promise, to another member's agent ──► Input::Promised
//!  other agents  ──────────► PeerService, with a node's certificate ──► Input::Asked
//! ```
//! All of it runs on the lease thread. What cannot be sent now is dropped: a late renewal is worth nothing. Beside `client` the
//! only file of the agent that names generated types.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use holdfast_common::backoff::Backoff;
use holdfast_common::error::{Chain, Classify as _, Failure, Reason, status};
use holdfast_common::id::{FleetId, NodeId};
use holdfast_common::link::{AskPromise, Leased, MAX_LEASE_BYTES, PEER_PORT, Promised};
use holdfast_common::pki::{Credentials, PeerIdentity, PeerKind, TrustBundle};
use holdfast_common::protocol::{ToCoordinator, ToMember};
use holdfast_common::tls::{
    ClientCertificate, ClientTls, Connector, Expect, HANDSHAKE_DEADLINE, Protocols, ServerSettings, ServerTls,
};
use holdfast_proto::link::v1 as proto;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use proto::lease_service_client::LeaseServiceClient;
use proto::peer_service_client::PeerServiceClient;
use proto::peer_service_server::{PeerService, PeerServiceServer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tower::ServiceExt as _;

use super::Coordinators;
use crate::identity::{Certificates, Record};
use crate::lease::Input;

/// What waits to be sent to the coordinator; a renewal each second for each of at most 64 members.
const OUTGOING: usize = 128;
/// A connection that does not answer is given up after these together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an agent that asks for nothing now is looked after.
const IDLE_INTERVAL: Duration = Duration::from_secs(20);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// An answer that comes later is of no use.
const PROMISE_DEADLINE: Duration = Duration::from_secs(2);
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Connections of other agents.
const MAX_CONNECTIONS: usize = 128;
const MAX_STREAMS: u32 = 64;
const MAX_HEADERS: u32 = 8 * 1024;
/// So many failures to listen are told: the address may come a little later than the agent.
const TELL_AFTER: u32 = 10;
/// After a failure to listen or to accept.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// Sends for the driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Contact {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fleet: FleetId,
    certificates: watch::Receiver<Arc<Certificates>>,
    /// To the stream that is open.
    outgoing: Mutex<Option<mpsc::Sender<Leased<ToCoordinator>>>>,
    wanted: watch::Sender<bool>,
    peers: Mutex<HashMap<NodeId, Peer>>,
}

/// Another member's agent.
#[derive(Debug, Clone)]
struct Peer {
    address: IpAddr,
    /// With the certificate of which it was made.
    certificates: Arc<Certificates>,
    client: PeerServiceClient<Channel>,
}

/// What is to run beside the driver.
#[derive(Debug)]
pub struct Tasks {
    contact: Contact,
    address: IpAddr,
    tls: Arc<ClientTls>,
    coordinators: Coordinators,
}

/// Why nobody can be reached, or reach us.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("use this node's certificate")]
    Certificate(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("name {0} as a server")]
    Address(String, #[source] tonic::transport::Error),
    #[error("listen on {0}")]
    Listen(SocketAddr, #[source] io::Error),
}

/// Answers other agents.
#[derive(Debug, Clone)]
struct Promises {
    inputs: mpsc::Sender<Input>,
}

/// The two ends of one node's talk about leases.
pub fn contact(
    record: &Record,
    certificates: watch::Receiver<Arc<Certificates>>,
    tls: Arc<ClientTls>,
    coordinators: Coordinators,
) -> (Contact, Tasks) {
    let shared = Shared {
        fleet: record.fleet_id,
        certificates,
        outgoing: Mutex::default(),
        wanted: watch::Sender::new(false),
        peers: Mutex::default(),
    };
    let contact = Contact { shared: Arc::new(shared) };
    (contact.clone(), Tasks { contact, address: record.address, tls, coordinators })
}

// === impl Contact ===

impl Contact {
    /// Whether there is anything to talk about.
    pub fn wanted(&self, wanted: bool) {
        self.shared.wanted.send_if_modified(|current| std::mem::replace(current, wanted) != wanted);
    }

    /// Sends, if there is a stream that takes it.
    pub fn tell(&self, message: Leased<ToCoordinator>) {
        let outgoing = self.shared.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = outgoing.as_ref().map(|outgoing| outgoing.try_send(message));
        if !matches!(sent, Some(Ok(()))) {
            tracing::debug!("nothing is said to the coordinator: there is no stream, or it is full");
        }
    }

    /// Asks another member's agent for its promise; the answer, if there is one, is an input.
    pub fn ask(&self, to: NodeId, address: IpAddr, asked: AskPromise, inputs: mpsc::Sender<Input>) {
        let client = match self.client(to, address) {
            Ok(client) => client,
            Err(error) => {
                return tracing::warn!(%to, error = %Chain(&error), "ask for a promise");
            }
        };
        tokio::spawn(async move {
            let mut client = client;
            let answer = timeout(PROMISE_DEADLINE, client.promise(proto::PromiseRequest::from(&asked))).await;
            let promised = match answer {
                Ok(Ok(answer)) => Promised::try_from(answer.into_inner()),
                Ok(Err(status)) => return tracing::debug!(%to, status = %status.message(), "no promise"),
                Err(_) => return tracing::debug!(%to, "no answer to the request for a promise"),
            };
            match promised {
                Ok(promised) => {
                    let _full =
                        inputs.try_send(Input::Promised { from: to, cluster: asked.cluster_id, promised });
                }
                Err(error) => tracing::warn!(%to, %error, "understand a promise"),
            }
        });
    }

    fn client(&self, to: NodeId, address: IpAddr) -> Result<PeerServiceClient<Channel>, Error> {
        let certificates = Arc::clone(&self.shared.certificates.borrow());
        let mut peers = self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&to)
            && peer.address == address
            && Arc::ptr_eq(&peer.certificates, &certificates)
        {
            return Ok(peer.client.clone());
        }
        let (credentials, roots) = credentials(&certificates)?;
        let tls = ClientTls::new(self.shared.fleet, Expect::Node(to), Some(&credentials), &roots)
            .map_err(|error| Error::Certificate(error.into()))?;
        let channel = endpoint(&SocketAddr::new(address, PEER_PORT).to_string())?
            // One that asks nothing need not know whether it is still connected: the next request finds out.
            .keep_alive_while_idle(false)
            .connect_with_connector_lazy(Connector::new(Arc::new(tls)));
        let client = PeerServiceClient::new(channel).max_decoding_message_size(MAX_LEASE_BYTES as usize);
        if peers.len() >= MAX_CONNECTIONS {
            peers.clear();
        }
        peers.insert(to, Peer { address, certificates, client: client.clone() });
        Ok(client)
    }
}

// === impl Tasks ===

impl Tasks {
    /// Holds the stream and serves other agents, until `stop`.
    pub async fn run(self, inputs: mpsc::Sender<Input>, stop: CancellationToken) {
        let serving = serve(self.contact.clone(), self.address, inputs.clone(), stop.clone());
        tokio::join!(self.exchange(inputs, stop), serving);
    }

    /// One stream after another, while this node has members.
    async fn exchange(self, inputs: mpsc::Sender<Input>, stop: CancellationToken) {
        let mut wanted = self.contact.shared.wanted.subscribe();
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            // Both arms are cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                wanted = wanted.wait_for(|wanted| *wanted) => if wanted.is_err() { return },
            }
            // Dropping a stream ends it.
            let heard = tokio::select! {
                () = stop.cancelled() => return,
                Ok(_) = wanted.wait_for(|wanted| !*wanted) => continue,
                heard = self.once(&inputs) => heard,
            };
            *self.contact.shared.outgoing.lock().unwrap_or_else(PoisonError::into_inner) = None;
            if heard {
                backoff.reset();
            }
            // Both arms are cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(backoff.next_wait()) => {}
            }
        }
    }

    /// One stream, until it ends. Whether anything was heard on it.
    async fn once(&self, inputs: &mpsc::Sender<Input>) -> bool {
        let coordinator = self.coordinators.next();
        let (sender, outgoing) = mpsc::channel::<Leased<ToCoordinator>>(OUTGOING);
        let outgoing = ReceiverStream::new(outgoing).map(|message| proto::ExchangeRequest::from(&message));
        let opened = timeout(CONNECT_DEADLINE, async {
            let endpoint = endpoint(coordinator.as_str()).map_err(|error| Chain(&error).to_string())?;
            let channel = endpoint
                .connect_with_connector(Connector::new(Arc::clone(&self.tls)))
                .await
                .map_err(|error| Chain(&error).to_string())?;
            let mut client =
                LeaseServiceClient::new(channel).max_decoding_message_size(MAX_LEASE_BYTES as usize);
            client.exchange(outgoing).await.map_err(|status| status.message().to_owned())
        });
        let mut stream = match opened.await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(problem)) => {
                tracing::debug!(%coordinator, problem, "no stream for leases");
                return false;
            }
            Err(_) => {
                tracing::debug!(%coordinator, "no stream for leases in time");
                return false;
            }
        };
        *self.contact.shared.outgoing.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        if inputs.send(Input::Open).await.is_err() {
            return false;
        }
        let mut heard = false;
        while let Some(Ok(message)) = stream.next().await {
            heard = true;
            match Leased::<ToMember>::try_from(message) {
                Ok(told) => {
                    if inputs.send(Input::Told(told)).await.is_err() {
                        break;
                    }
                }
                Err(error) => tracing::warn!(%error, "a message about a lease is not understood"),
            }
        }
        heard
    }
}

fn endpoint(address: &str) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Error::Address(address.to_owned(), error))?;
    Ok(endpoint
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

fn credentials(certificates: &Certificates) -> Result<(Credentials, TrustBundle), Error> {
    let own = Credentials::from_pem(&certificates.chain, &certificates.key)
        .map_err(|error| Error::Certificate(error.into()))?;
    let roots =
        TrustBundle::from_pem(&certificates.trust).map_err(|error| Error::Certificate(error.into()))?;
    Ok((own, roots))
}

/// Serves the agents of other members. Where that does not work now, it is tried again: the address may come later than we.
async fn serve(contact: Contact, address: IpAddr, inputs: mpsc::Sender<Input>, stop: CancellationToken) {
    let mut failures = 0_u32;
    while !stop.is_cancelled() {
        // Dropping the server closes its connections; whoever asks asks again.
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = listen(&contact, address, &inputs) => ended,
        };
        if let Err(error) = ended {
            failures = failures.saturating_add(1);
            if failures == TELL_AFTER {
                // The driver is gone: then so is this.
                let _ended = inputs.send(Input::Unreachable { why: Chain(&error).to_string() }).await;
            }
        }
        // Both arms are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(LISTEN_PAUSE) => {}
        }
    }
}

async fn listen(contact: &Contact, address: IpAddr, inputs: &mpsc::Sender<Input>) -> Result<(), Error> {
    let socket = SocketAddr::new(address, PEER_PORT);
    let listener = TcpListener::bind(socket).await.map_err(|error| Error::Listen(socket, error))?;
    let mut certificates = contact.shared.certificates.clone();
    let (own, roots) = credentials(&certificates.borrow_and_update().clone())?;
    let settings = ServerSettings {
        fleet: contact.shared.fleet,
        client_certificate: ClientCertificate::Required,
        protocols: Protocols::H2,
    };
    let tls = ServerTls::new(settings, &own, &roots).map_err(|error| Error::Certificate(error.into()))?;
    let tls = Arc::new(tls);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // All arms are cancel-safe.
        let accepted = tokio::select! {
            Ok(()) = certificates.changed() => {
                let (own, roots) = credentials(&certificates.borrow_and_update().clone())?;
                tls.reload(&own, &roots).map_err(|error| Error::Certificate(error.into()))?;
                continue;
            }
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept another agent's connection");
                sleep(LISTEN_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let (tls, promises) = (Arc::clone(&tls), Promises { inputs: inputs.clone() });
        connections.spawn(async move {
            let _held = permit;
            if let Err(problem) = connection(stream, &tls, promises).await {
                tracing::debug!(problem, "another agent's connection ended");
            }
        });
    }
}

async fn connection(stream: TcpStream, tls: &ServerTls, promises: Promises) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let accepted = tls.accept(stream, HANDSHAKE_DEADLINE).await.map_err(|error| Chain(&error).to_string())?;
    let peer = accepted.peer.ok_or("no certificate")?;
    let server = PeerServiceServer::new(promises).max_decoding_message_size(MAX_LEASE_BYTES as usize);
    let routes = Routes::new(server).prepare().map_request(move |mut request: http::Request<_>| {
        request.extensions_mut().insert(peer.clone());
        request
    });
    let mut http = auto::Builder::new(TokioExecutor::new()).http2_only();
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(IDLE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS);
    http.serve_connection(TokioIo::new(accepted.stream), TowerToHyperService::new(routes))
        .await
        .map_err(|error| error.to_string())
}

#[tonic::async_trait]
impl PeerService for Promises {
    async fn promise(
        &self,
        request: Request<proto::PromiseRequest>,
    ) -> Result<Response<proto::PromiseResponse>, Status> {
        let caller = request.extensions().get::<PeerIdentity>().map(|peer| peer.kind.clone());
        let Some(PeerKind::Node(from)) = caller else {
            return Err(refuse(Reason::NotPermitted, "only a node's agent may ask for a promise"));
        };
        let asked = AskPromise::try_from(request.into_inner())
            .map_err(|error| status::from_failure(&error.to_failure()))?;
        let (answer, answered) = oneshot::channel();
        let busy = || refuse(Reason::TooManyRequests, "too many requests wait");
        self.inputs.try_send(Input::Asked { from, asked, answer }).map_err(|_| busy())?;
        match timeout(PROMISE_DEADLINE, answered).await {
            Ok(Ok(promised)) => Ok(Response::new((&promised).into())),
            Ok(Err(_)) | Err(_) => Err(refuse(Reason::PreconditionFailed, "no promise is given")),
        }
    }
}

fn refuse(reason: Reason, message: &str) -> Status {
    status::from_failure(&Failure::new(reason, message))
}
