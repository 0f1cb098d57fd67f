//! Tells load balancers whether the member on this node is primary or a replica: HTTP, read only, on a port of its own.
//!
//! ```text
//!  assignment: names ─┐
//!  converge: report ──┼─► Node ──┐
//!  lease: status ─────┘          ├─► answer (pure) ─► 200 or 503, and why, as JSON
//!  GET /primary ──► request (pure) ┘
//! ```
//! Paths and answers are those that HAProxy configurations written for Patroni expect. No request asks a database or
//! waits for anything; nothing that is told is secret, and nothing is decided here: that a member that is no primary
//! any more gets no writes is the gate's doing, with or without these answers.
//!
//! Not here: who may serve (`lease`), what is observed (`converge`), who may reach a database (`firewall`).

mod answer;
mod request;
mod room;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_common::assignment::Assignment;
use holdfast_common::clock::{Boottime, Clock};
use holdfast_common::link::HEALTH_PORT;
use holdfast_common::report::{NodeReport, Severity};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::answer::{Answer, Node, answer};
use self::request::Asked;
use self::room::Room;
use crate::lease;
use crate::outbox::{Tell, node_event};

/// How long a connection may take for a request's head, and be idle between two.
const IDLE: Duration = Duration::from_secs(5);
/// How long a connection may live, however busy: one that takes no answers must not stay.
const LIFE: Duration = Duration::from_secs(60);
/// A request's head: the smallest bound that the library knows.
const MAX_HEAD_BYTES: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
/// So many failures to listen are told: the address may come a little later than the agent.
const TELL_AFTER: u32 = 10;
/// After a failure to listen or to accept.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

/// What an administrator may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whether load balancers are answered at all.
    pub enabled: bool,
    /// On the address that the node joined with.
    pub port: NonZeroU16,
}

/// Who knows what is answered.
#[derive(Clone)]
pub struct Means {
    pub assignment: watch::Receiver<Arc<Assignment>>,
    pub report: watch::Receiver<Arc<NodeReport>>,
    pub leases: watch::Receiver<Arc<lease::Status>>,
    pub clock: Clock,
    pub tell: Tell,
}

/// The server, not running yet.
#[derive(Debug)]
pub struct Service {
    settings: Settings,
    address: IpAddr,
    view: View,
}

/// What is known now. Cheap to clone.
#[derive(Debug, Clone)]
struct View {
    means: Means,
    /// When the newest report came.
    reported: Arc<Mutex<Boottime>>,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, port: HEALTH_PORT }
    }
}

// === impl Means ===

impl std::fmt::Debug for Means {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Means").finish_non_exhaustive()
    }
}

// === impl Service ===

impl Service {
    pub fn new(settings: Settings, address: IpAddr, means: Means) -> Self {
        let reported = Arc::new(Mutex::new(means.clock.boottime()));
        Self { settings, address, view: View { means, reported } }
    }

    /// Serves until `stop`; connections are cut then.
    pub async fn run(self, stop: CancellationToken) {
        let Self { settings: Settings { enabled, port }, address, view } = self;
        if !enabled {
            return;
        }
        let socket = SocketAddr::new(address, port.get());
        // Dropping the others half-way leaves nothing half done.
        tokio::select! {
            () = stop.cancelled() => {}
            () = view.follow() => {}
            never = serve(socket, &view) => match never {},
        }
    }
}

// === impl View ===

impl View {
    /// Notes when reports come, until there are no more.
    async fn follow(&self) {
        let mut report = self.means.report.clone();
        while report.changed().await.is_ok() {
            report.mark_unchanged();
            *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = self.means.clock.boottime();
        }
    }

    fn answer(&self, path: &str, query: Option<&str>) -> Answer {
        let assignment = self.means.assignment.borrow().clone();
        let report = self.means.report.borrow().clone();
        let leases = self.means.leases.borrow().clone();
        let reported = *self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let age = self.means.clock.boottime().since(reported);
        answer(Asked::parse(path, query), &Node::new(&assignment, &report, &leases, age))
    }
}

/// Listens, now or as soon as that works: the address may come later than we.
async fn listen(socket: SocketAddr, means: &Means) -> TcpListener {
    let mut failures = 0_u32;
    loop {
        let error = match TcpListener::bind(socket).await {
            Ok(listener) => return listener,
            Err(error) => error,
        };
        failures = failures.saturating_add(1);
        if failures == TELL_AFTER {
            let message = format!(
                "load balancers get no answer from this node: listen on {socket}: {error}; it is tried again"
            );
            tracing::error!("{message}");
            (means.tell)(node_event(&means.clock, Severity::Error, "HEALTH_NOT_SERVED", message));
        }
        sleep(LISTEN_PAUSE).await;
    }
}

async fn serve(socket: SocketAddr, view: &View) -> Infallible {
    let listener = listen(socket, &view.means).await;
    tracing::info!(%socket, "load balancers are answered");
    let room = Room::default();
    let mut connections = JoinSet::new();
    loop {
        // Both arms are cancel-safe.
        let accepted = tokio::select! {
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let Some(place) = room.take(from.ip()) else {
                    tracing::debug!(%from, "no room for another load balancer's connection");
                    continue;
                };
                let view = view.clone();
                connections.spawn(async move {
                    let _held = place;
                    connection(stream, view).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a load balancer's connection");
                sleep(LISTEN_PAUSE).await;
            }
        }
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(stream: S, view: View) {
    let answering = service_fn(|request| {
        let response = respond(&request, &view);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    match timeout(LIFE, http.serve_connection(TokioIo::new(stream), answering)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a load balancer's connection ended"),
        Err(_) => tracing::debug!("a load balancer's connection was cut: its time is over"),
    }
}

/// The body of the request is not read; the answer's is left out where nobody wants it.
fn respond<B>(request: &Request<B>, view: &View) -> Response<String> {
    let answered = match *request.method() {
        Method::GET | Method::HEAD | Method::OPTIONS => {
            view.answer(request.uri().path(), request.uri().query())
        }
        _ => Answer::refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "this is read only: GET, HEAD and OPTIONS are there",
        ),
    };
    let Answer { status, body } = answered;
    // To HEAD the library sends the length alone.
    let body = if request.method() == Method::OPTIONS { String::new() } else { body };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    }
    response
}
