//! What every call passes: its row, its limits, its caller, its deadline. Handlers see only calls that may be.
//!
//! ```text
//! call ─► row of the table ─► room? ─► joining too often? ─► Gate (identity, right, audit) ─► deadline ─► handler
//!                                                                                              │
//! caller ◄── ends with the credential, the coordinator's stop, or the call ◄── counted ◄───────┘
//! ```

use std::convert::Infallible;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures::future::BoxFuture;
use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use holdfast_common::error::{Failure, Reason, status};
use http::{Request, Response, StatusCode, header};
use hyper::body::Body as HttpBody;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tower::{Service, ServiceExt as _};

use super::body::{self, Ended, Recorder};
use super::deadline;
use super::live::{Place, Streams};
use super::oversize;
use super::peer::{Admitted, Caller, Gate, Peer};
use super::rules::{self, Length, Rule, Who};
use crate::metrics;

/// Addresses whose joining is counted; more than that are not told apart.
const MAX_ADDRESSES: usize = 10_000;
/// What a caller is told to wait when there is no room.
const PAUSE: Duration = Duration::from_secs(1);

/// How much may go on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallLimits {
    /// Calls under way.
    pub calls: usize,
    /// Streams open.
    pub streams: usize,
    /// Joining, by address: so many at once, and then so many a second.
    pub enroll_burst: NonZeroU32,
    pub enroll_per_second: NonZeroU32,
    /// Joining, all together.
    pub enroll_burst_all: NonZeroU32,
    pub enroll_per_second_all: NonZeroU32,
}

/// The guard of one listener. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guard {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    gate: Gate,
    streams: Streams,
    rpcs: metrics::Rpcs,
    calls: Arc<Semaphore>,
    open: Arc<Semaphore>,
    enroll: EnrollLimit,
    shutdown: CancellationToken,
}

#[derive(Debug)]
struct EnrollLimit {
    each: RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>,
    all: RateLimiter<NotKeyed, InMemoryState, DefaultClock>,
}

/// The calls of one connection.
#[derive(Debug, Clone)]
pub(super) struct Guarded {
    guard: Guard,
    peer: Arc<Peer>,
    routes: Router,
}

/// Counts a call when it ends, and gives its room back.
struct Ending {
    rpcs: metrics::Rpcs,
    method: &'static str,
    _room: Option<OwnedSemaphorePermit>,
}

/// How a refusal is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Grpc,
    Http,
}

// === impl CallLimits ===

impl Default for CallLimits {
    fn default() -> Self {
        let number = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
        Self {
            calls: 512,
            streams: 12_000,
            enroll_burst: number(100),
            enroll_per_second: number(20),
            enroll_burst_all: number(1000),
            enroll_per_second_all: number(200),
        }
    }
}

// === impl EnrollLimit ===

impl EnrollLimit {
    fn new(limits: &CallLimits) -> Self {
        let quota = |burst, rate| Quota::per_second(rate).allow_burst(burst);
        Self {
            each: RateLimiter::hashmap(quota(limits.enroll_burst, limits.enroll_per_second)),
            all: RateLimiter::direct(quota(limits.enroll_burst_all, limits.enroll_per_second_all)),
        }
    }

    fn check(&self, address: IpAddr) -> Result<(), Failure> {
        let address = neighbourhood(address);
        if self.each.len() >= MAX_ADDRESSES {
            self.each.retain_recent();
        }
        // With the map full of recent ones, a new address is only counted with all.
        let room = self.each.len() < MAX_ADDRESSES;
        if room && self.each.check_key(&address).is_err() {
            return Err(too_many(format!("too many attempts to join from {address}; wait a moment")));
        }
        self.all.check().map_err(|_| too_many("too many attempts to join; wait a moment".to_owned()))
    }
}

/// One machine has a whole /64.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => std::net::Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

fn too_long(deadline: Duration) -> Failure {
    let message = format!("the call took longer than it may: {deadline:?}");
    Failure::new(Reason::CommandTimedOut, message)
}

fn too_many(message: String) -> Failure {
    Failure::new(Reason::TooManyRequests, message).retry_after(PAUSE)
}

// === impl Guard ===

impl Guard {
    pub fn new(
        gate: Gate,
        streams: Streams,
        rpcs: metrics::Rpcs,
        limits: &CallLimits,
        shutdown: CancellationToken,
    ) -> Self {
        let inner = Inner {
            gate,
            streams,
            rpcs,
            calls: Arc::new(Semaphore::new(limits.calls)),
            open: Arc::new(Semaphore::new(limits.streams)),
            enroll: EnrollLimit::new(limits),
            shutdown,
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn connection(&self, peer: Peer, routes: Router) -> Guarded {
        Guarded { guard: self.clone(), peer: Arc::new(peer), routes }
    }

    async fn call(&self, peer: Arc<Peer>, routes: Router, request: Request<Body>) -> Response<Body> {
        let dialect = Dialect::of(&request);
        let Some(rule) = rules::rule(request.uri().path()) else {
            self.inner.rpcs.count("unknown", Code::Unimplemented);
            let message = "this coordinator has no such method on this listener";
            return dialect.refuse(&Failure::new(Reason::UnknownCommand, message));
        };
        match self.admitted(rule, &peer, routes, request).await {
            Ok(response) => response,
            Err(failure) => {
                let refusal = status::from_error(&failure);
                self.inner.rpcs.count(rule.method, refusal.code());
                dialect.write(refusal)
            }
        }
    }

    async fn admitted(
        &self,
        rule: &'static Rule,
        peer: &Arc<Peer>,
        routes: Router,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let room = self.room(rule)?;
        if rule.who == Who::Open {
            self.inner.enroll.check(peer.address.ip())?;
        }
        let authorization = request.headers().get(header::AUTHORIZATION).cloned();
        let Admitted { caller, entry } = self.inner.gate.admit(rule, peer, authorization.as_ref()).await?;
        let place = match rule.length {
            Length::Call(_) => None,
            Length::Stream => {
                let place = self.inner.streams.place(&caller);
                // Looked at again: what was revoked between the first look and the place would go unheard. On record it is already.
                self.inner.gate.still_admits(rule, peer, authorization.as_ref()).await?;
                Some(place)
            }
        };
        let deadline = deadline::of(rule.length, request.headers());
        let ended = place.and_then(|place| self.ended(&caller, place, deadline));
        request.extensions_mut().insert(caller);
        request.extensions_mut().insert(Arc::clone(peer));
        let response = match deadline.filter(|_| rule.length != Length::Stream) {
            None => routes.oneshot(request).await.map_err(|never| match never {}),
            Some(deadline) => match tokio::time::timeout(deadline, routes.oneshot(request)).await {
                Ok(response) => response.map_err(|never| match never {}),
                Err(_) => Err(too_long(deadline)),
            },
        };
        if let Some(entry) = entry {
            let code = response.as_ref().map_or(Code::DeadlineExceeded, |response| {
                // What has no status among its headers has an answer, and ends well.
                body::code_of(response.headers()).unwrap_or(Code::Ok)
            });
            self.inner.gate.write_end(entry, code).await;
        }
        let response = response?;
        let ending = Ending { rpcs: self.inner.rpcs.clone(), method: rule.method, _room: Some(room) };
        Ok(body::answer(response, ended, ending))
    }

    fn room(&self, rule: &Rule) -> Result<OwnedSemaphorePermit, Failure> {
        let room = match rule.length {
            Length::Call(_) => &self.inner.calls,
            Length::Stream => &self.inner.open,
        };
        Arc::clone(room).try_acquire_owned().map_err(|_| {
            too_many("the coordinator has as many calls under way as it can bear; try again".to_owned())
        })
    }

    /// When a stream of an operator's ends, whatever its handler does. Nodes' sessions are ended by the fleet, with a word.
    fn ended(&self, caller: &Caller, place: Place, deadline: Option<Duration>) -> Option<Ended> {
        let Caller::Operator(operator) = caller else { return None };
        let left = Duration::try_from(operator.expires_at.duration_since(Timestamp::now()))
            .unwrap_or(Duration::ZERO);
        let shutdown = self.inner.shutdown.clone();
        let over = async move {
            match deadline {
                Some(deadline) => {
                    tokio::time::sleep(deadline).await;
                    too_long(deadline)
                }
                None => std::future::pending().await,
            }
        };
        Some(Box::pin(async move {
            let failure = tokio::select! {
                failure = over => failure,
                () = place.ended() => {
                    Failure::new(Reason::NotPermitted, "the credential that this stream began with was revoked")
                }
                () = tokio::time::sleep(left) => {
                    Failure::new(Reason::NoIdentity, "the credential that this stream began with has ended")
                }
                () = shutdown.cancelled() => {
                    Failure::new(Reason::ShuttingDown, "the coordinator stops; come back in a moment").retry_after(PAUSE)
                }
            };
            status::from_failure(&failure)
        }))
    }
}

// === impl Guarded ===

impl<B> Service<Request<B>> for Guarded
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { guard, peer, routes } = self.clone();
        let request = match Dialect::of(&request) {
            Dialect::Grpc => {
                let rule = rules::rule(request.uri().path());
                let fields = rule.and_then(|rule| oversize::fields(rule.method));
                body::measured(request, fields, rule.map_or(rules::MESSAGE_BYTES, |rule| rule.message_bytes))
            }
            // A scrape has no body.
            Dialect::Http => request.map(|_| Body::empty()),
        };
        Box::pin(async move { Ok(guard.call(peer, routes, request).await) })
    }
}

// === impl Ending ===

impl Recorder for Ending {
    fn ended(self, code: Code) {
        self.rpcs.count(self.method, code);
    }
}

// === impl Dialect ===

impl Dialect {
    fn of<B>(request: &Request<B>) -> Self {
        let grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if grpc { Self::Grpc } else { Self::Http }
    }

    fn refuse(self, failure: &Failure) -> Response<Body> {
        self.write(status::from_failure(failure))
    }

    fn write(self, status: Status) -> Response<Body> {
        match self {
            Self::Grpc => status.into_http(),
            Self::Http => {
                let mut response = Response::new(Body::from(format!("{}\n", status.message())));
                *response.status_mut() = match status.code() {
                    Code::Unauthenticated => StatusCode::UNAUTHORIZED,
                    Code::PermissionDenied => StatusCode::FORBIDDEN,
                    Code::Unimplemented => StatusCode::NOT_FOUND,
                    Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
                    Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                response
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_is_bounded_by_address_and_in_all_and_so_is_the_memory_for_it() {
        let number = |number| NonZeroU32::new(number).unwrap();
        let limits = CallLimits {
            enroll_burst: number(3),
            enroll_per_second: number(1),
            enroll_burst_all: number(5),
            enroll_per_second_all: number(1),
            ..CallLimits::default()
        };
        let limit = EnrollLimit::new(&limits);
        let allowed = |address: &str| limit.check(address.parse().unwrap()).is_ok();
        assert_eq!([(); 4].map(|()| allowed("192.0.2.1")), [true, true, true, false]);
        assert_eq!([(); 3].map(|()| allowed("192.0.2.2")), [true, true, false], "five in all");
        for number in 0..20_000_u32 {
            let _ = limit.check(std::net::Ipv4Addr::from_bits(number).into());
        }
        assert!(limit.each.len() <= MAX_ADDRESSES);
    }

    #[test]
    fn a_machine_cannot_hide_in_its_own_network() {
        let one: IpAddr = "2001:db8:1:2::1".parse().unwrap();
        let other: IpAddr = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        assert_eq!(neighbourhood(one), neighbourhood(other));
        assert_ne!(neighbourhood(one), neighbourhood("2001:db8:1:3::1".parse().unwrap()));
        assert_eq!(neighbourhood("::ffff:192.0.2.1".parse().unwrap()), IpAddr::from([192, 0, 2, 1]));
    }
}
