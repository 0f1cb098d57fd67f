//! The link to the coordinator: connects, translates, holds one session after another, and waits in between.
//!
//! ```text
//!            ┌────────────── backoff (full jitter) ◄─────────────┐
//!            ▼                                                    │
//!   any of the addresses ─ TCP ─ TLS ─ HTTP/2 ─ Session ─ hold ───┘ until stopped
//! ```
//!
//! Generic over what lies [`Below`]: the agent's parts, or, in a swarm of simulated agents, next to nothing. Also here: the
//! two calls that get and renew certificates. Losing the coordinator changes nothing on the node. Not here: what a
//! message means ([`session`], dispatch, assignment), certificates on disk (identity).

pub mod addresses;
pub mod client;
pub mod lease;
pub mod session;

pub use client::{CallError, Coordinators, enroll, renew};
pub use session::{Below, End, Inbound};

use std::sync::Arc;
use std::time::Duration;

use holdfast_common::backoff::Backoff;
use holdfast_common::error::Chain;
use holdfast_common::id::SessionId;
use holdfast_common::link::{CloseReason, Welcome};
use holdfast_common::tls::ClientTls;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::session::Watcher;

/// Waits between tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub first: Duration,
    /// The longest wait while the loss is fresh: after a restart of the coordinator everybody is back at once.
    pub longest: Duration,
    /// How long a loss is fresh.
    pub fresh: Duration,
    /// The longest wait after that.
    pub longest_later: Duration,
    /// The longest wait while the coordinator does not want this node.
    pub longest_unwanted: Duration,
}

/// Whether there is a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Connecting { tries: u32, problem: Option<String> },
    Open { session: SessionId, coordinator: String },
}

/// Holds sessions until it is stopped.
pub struct Link<B> {
    below: Arc<B>,
    tls: Arc<ClientTls>,
    coordinators: Coordinators,
    patience: Patience,
    status: watch::Sender<Status>,
}

/// Why there is no session any more.
enum Lost {
    Call(CallError),
    Ended(End),
}

struct Opened<'a> {
    status: &'a watch::Sender<Status>,
    coordinator: &'a str,
    at: Option<Instant>,
}

// === impl Patience ===

impl Default for Patience {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(2),
            fresh: Duration::from_secs(60),
            longest_later: Duration::from_secs(10),
            longest_unwanted: Duration::from_secs(60),
        }
    }
}

// === impl Link ===

impl<B: Below> Link<B> {
    pub fn new(below: Arc<B>, tls: Arc<ClientTls>, coordinators: Coordinators, patience: Patience) -> Self {
        let (status, _) = watch::channel(Status::Connecting { tries: 0, problem: None });
        Self { below, tls, coordinators, patience, status }
    }

    /// Whether there is a session, now and after every change.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Works until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let Patience { first, longest, fresh, longest_later, longest_unwanted } = self.patience;
        let mut quick = Backoff::new(first, longest);
        let mut slow = Backoff::new(longest, longest_later);
        let mut unwanted = Backoff::new(longest, longest_unwanted);
        // Both arms are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.below.ready() => {}
        }
        let mut lost_at = Instant::now();
        let mut tries = 0_u32;
        while !stop.is_cancelled() {
            let (lost, opened) = self.once(&stop).await;
            if opened {
                lost_at = Instant::now();
                tries = 0;
                quick.reset();
                slow.reset();
                unwanted.reset();
            }
            if matches!(lost, Lost::Ended(End::Stopped)) {
                return;
            }
            tries = tries.saturating_add(1);
            let wait = if lost.is_unwanted() {
                unwanted.next_wait()
            } else if lost_at.elapsed() < fresh {
                quick.next_wait()
            } else {
                slow.next_wait()
            };
            let problem = lost.to_string();
            // One line for each loss and then each tenth try: a coordinator that is down for hours fills no disk.
            if opened || tries % 10 == 1 {
                tracing::warn!(%problem, tries, "no session with the coordinator");
            }
            self.status.send_replace(Status::Connecting { tries, problem: Some(problem) });
            // Both arms are cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(wait) => {}
            }
        }
    }

    /// One try: connects, and holds the session while it lasts. Says whether there was one.
    async fn once(&self, stop: &CancellationToken) -> (Lost, bool) {
        let coordinator = self.coordinators.next();
        // Dropping a try to connect closes its connection.
        let attached = tokio::select! {
            () = stop.cancelled() => return (Lost::Ended(End::Stopped), false),
            attached = client::attach(&self.tls, coordinator) => attached,
        };
        let client::Attached { to_coordinator, from_coordinator, trouble } = match attached {
            Ok(attached) => attached,
            Err(error) => return (Lost::Call(error), false),
        };
        let mut opened = Opened { status: &self.status, coordinator: coordinator.as_str(), at: None };
        let end =
            session::hold(self.below.as_ref(), to_coordinator, from_coordinator, &mut opened, stop).await;
        let was_open = opened.at.is_some();
        let lost = match (end, trouble.take()) {
            (End::Lost, Some(status)) => Lost::Call(CallError::Refused(Box::new(status))),
            (end, _) => Lost::Ended(end),
        };
        (lost, was_open)
    }
}

impl<B> std::fmt::Debug for Link<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("coordinators", &self.coordinators).finish_non_exhaustive()
    }
}

// === impl Opened ===

impl Watcher for Opened<'_> {
    fn opened(&mut self, welcome: &Welcome) {
        let coordinator = self.coordinator.to_owned();
        tracing::info!(session = %welcome.session_id, coordinator, "session open");
        self.at = Some(Instant::now());
        self.status.send_replace(Status::Open { session: welcome.session_id, coordinator });
    }
}

// === impl Lost ===

impl Lost {
    /// Whether trying soon again is pointless.
    fn is_unwanted(&self) -> bool {
        match self {
            Self::Ended(End::Closed(close)) => match close.reason {
                CloseReason::NodeRemoved | CloseReason::VersionUnsupported => true,
                // Whoever runs a second agent with this identity should not see the two throw each other out in turns.
                CloseReason::Superseded => true,
                CloseReason::Shutdown | CloseReason::ProtocolViolation => false,
            },
            Self::Ended(End::Version(_) | End::Violated(_)) => true,
            Self::Ended(End::Stopped | End::Lost | End::Silent | End::Unwelcome) | Self::Call(_) => false,
        }
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Call(error) => Chain(error).fmt(f),
            Self::Ended(End::Closed(close)) => {
                write!(f, "the coordinator closed the session ({}): {}", close.reason.as_str(), close.message)
            }
            Self::Ended(End::Version(version)) => {
                write!(f, "the coordinator chose protocol version {version}, which this agent does not speak")
            }
            Self::Ended(End::Violated(what)) => write!(f, "the coordinator broke the protocol: {what}"),
            Self::Ended(End::Silent) => f.write_str("the coordinator left heartbeats unanswered"),
            Self::Ended(End::Unwelcome) => f.write_str("the coordinator did not welcome this node in time"),
            Self::Ended(End::Lost) => f.write_str("the stream ended"),
            Self::Ended(End::Stopped) => f.write_str("stopped"),
        }
    }
}
