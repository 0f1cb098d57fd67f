//! The calls on the wire: tonic over our own TLS. The only file of the agent that names generated types.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use holdfast_common::error::{Classify, Failure, Reason, Retry, status};
use holdfast_common::id::CommandId;
use holdfast_common::link::{
    Enroll, Enrolled, FromAgent, FromCoordinator, MAX_ASSIGNMENT_BYTES, MAX_MESSAGE_BYTES, Renewed,
};
use holdfast_common::tls::{ClientTls, ConnectError, Connector, DialError};
use holdfast_common::wire;
use holdfast_proto::link::v1 as proto;
use proto::agent_service_client::AgentServiceClient;
use proto::enrollment_service_client::EnrollmentServiceClient;
use proto::session_response::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::session::{Inbound, OUTBOUND};

/// The most coordinator addresses.
pub const MAX_ADDRESSES: usize = 8;
/// For the calls that are no stream, the handshakes included.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Flow-control window: small, for every session has one.
const WINDOW_BYTES: u32 = 256 * 1024;

/// `host:port` of a coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(Box<str>);

/// The addresses of the coordinators, taken in turns.
#[derive(Debug)]
pub struct Coordinators {
    addresses: Vec<Address>,
    turn: AtomicUsize,
}

/// Why an address, or a list of them, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error(
        "`{text}` is no coordinator address; give host:port, such as 192.0.2.10:7443 or [2001:db8::1]:7443"
    )]
    Malformed { text: String },
    #[error("give at least one coordinator address")]
    None,
    #[error("{count} coordinator addresses; at most {MAX_ADDRESSES} are allowed")]
    TooMany { count: usize },
}

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nothing of the call was sent.
    #[error("reach the coordinator at {coordinator}")]
    Connect { coordinator: Address, source: tonic::transport::Error },
    /// The call may have been done.
    #[error("the coordinator at {coordinator} did not answer within {} s", CALL_DEADLINE.as_secs())]
    Unanswered { coordinator: Address },
    /// The coordinator's own answer.
    #[error("the coordinator refused: {}", .0.message)]
    Refused(Box<Failure>),
    #[error("understand the coordinator's answer")]
    Answer(#[source] wire::Error),
}

/// The two halves of a session's stream.
pub struct Attached {
    pub to_coordinator: mpsc::Sender<FromAgent>,
    pub from_coordinator: BoxStream<'static, Inbound>,
    pub trouble: Trouble,
}

/// With what status the stream ended, if it did not end cleanly.
#[derive(Debug, Clone, Default)]
pub struct Trouble(Arc<Mutex<Option<Failure>>>);

/// Opens the session's stream.
///
/// # Errors
/// [`CallError::Connect`]; whatever comes later ends the stream and is the [`Trouble`].
pub async fn attach(tls: &Arc<ClientTls>, coordinator: &Address) -> Result<Attached, CallError> {
    let mut client = AgentServiceClient::new(connect(tls, coordinator).await?)
        .max_decoding_message_size(MAX_ASSIGNMENT_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (to_coordinator, outgoing) = mpsc::channel::<FromAgent>(OUTBOUND);
    let outgoing = ReceiverStream::new(outgoing).map(|message| proto::SessionRequest::from(&message));
    let trouble = Trouble::default();
    let (of_call, of_stream) = (trouble.clone(), trouble.clone());
    // The server may read the hello before it answers, so the halves are handed out before there is an answer.
    let from_coordinator =
        stream::once(async move { client.session(outgoing).await.map(Response::into_inner) })
            .filter_map(move |opened| {
                let opened = opened.map_err(|status| of_call.note(&status)).ok();
                std::future::ready(opened)
            })
            .flatten()
            .scan(of_stream, |trouble, message| {
                let message = message.map_err(|status| trouble.note(&status)).ok();
                std::future::ready(message.map(translate))
            })
            .boxed();
    Ok(Attached { to_coordinator, from_coordinator, trouble })
}

/// Asks for a node's identity. Send it again with the same `request_id` where the answer was lost.
///
/// # Errors
/// [`CallError`]. With [`CallError::Connect`] the token was not sent.
pub async fn enroll(
    tls: &Arc<ClientTls>,
    coordinator: &Address,
    request: &Enroll,
) -> Result<Enrolled, CallError> {
    call(coordinator, async {
        let mut client = EnrollmentServiceClient::new(connect(tls, coordinator).await?);
        let answer = client.enroll(proto::EnrollRequest::from(request)).await;
        let answer = answer.map_err(|status| CallError::refused(&status))?;
        Enrolled::try_from(answer.into_inner()).map_err(CallError::Answer)
    })
    .await
}

/// Asks for a fresh certificate, over a connection of its own.
///
/// # Errors
/// [`CallError`].
pub async fn renew(
    tls: &Arc<ClientTls>,
    coordinator: &Address,
    signing_request: String,
) -> Result<Renewed, CallError> {
    call(coordinator, async {
        let mut client = AgentServiceClient::new(connect(tls, coordinator).await?);
        let request = proto::RenewCertificateRequest { certificate_signing_request: signing_request };
        let answer = client.renew_certificate(request).await;
        let answer = answer.map_err(|status| CallError::refused(&status))?;
        Renewed::try_from(answer.into_inner()).map_err(CallError::Answer)
    })
    .await
}

async fn call<T>(
    coordinator: &Address,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let unanswered = |_| CallError::Unanswered { coordinator: coordinator.clone() };
    timeout(CALL_DEADLINE, call).await.map_err(unanswered)?
}

async fn connect(tls: &Arc<ClientTls>, coordinator: &Address) -> Result<Channel, CallError> {
    let failed = |source| CallError::Connect { coordinator: coordinator.clone(), source };
    // The connector encrypts; tonic must not know of it.
    Endpoint::from_shared(format!("http://{coordinator}"))
        .map_err(failed)?
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_with_connector(Connector::new(Arc::clone(tls)))
        .await
        .map_err(failed)
}

/// A message as the session takes it. Of a bad command the id is kept, so that it can be answered.
fn translate(response: proto::SessionResponse) -> Inbound {
    let command: Option<CommandId> = match &response.message {
        Some(Message::Command(command)) => command.command_id.parse().ok(),
        _ => None,
    };
    match FromCoordinator::try_from(response) {
        Ok(message) => Inbound::Message(message),
        Err(error) => Inbound::Refused { command, error },
    }
}

// === impl Address ===

impl Address {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let malformed = || AddressError::Malformed { text: text.chars().take(64).collect() };
        let uri: http::Uri = format!("http://{text}").parse().map_err(|_| malformed())?;
        let (host, port) = uri.host().zip(uri.port_u16()).ok_or_else(malformed)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let named = rustls::pki_types::ServerName::try_from(bare).is_ok();
        let plain = uri.path() == "/" && uri.query().is_none() && format!("{host}:{port}") == text;
        if named && plain && port != 0 && text.len() <= 300 {
            Ok(Self(text.into()))
        } else {
            Err(malformed())
        }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.0.into()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Coordinators ===

impl Coordinators {
    /// # Errors
    /// For none, or too many.
    pub fn new(addresses: Vec<Address>) -> Result<Self, AddressError> {
        match addresses.len() {
            0 => Err(AddressError::None),
            count if count > MAX_ADDRESSES => Err(AddressError::TooMany { count }),
            _ => Ok(Self { addresses, turn: AtomicUsize::new(0) }),
        }
    }

    /// The one to try now; each call another one.
    pub fn next(&self) -> &Address {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.addresses.len();
        &self.addresses[turn]
    }

    pub fn all(&self) -> &[Address] {
        &self.addresses
    }
}

impl Clone for Coordinators {
    fn clone(&self) -> Self {
        Self { addresses: self.addresses.clone(), turn: AtomicUsize::new(0) }
    }
}

// === impl Trouble ===

impl Trouble {
    pub fn take(&self) -> Option<Failure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, status: &Status) {
        // A stream that a peer's end cut is an ordinary loss.
        let failure = status::to_failure(status);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }
}

// === impl CallError ===

impl CallError {
    fn refused(status: &Status) -> Self {
        Self::Refused(Box::new(status::to_failure(status)))
    }

    /// Whether there is a server that is not to be trusted: trying again does not help, and something is wrong.
    pub fn is_distrust(&self) -> bool {
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            if let Some(DialError::Tls { source, .. }) = error.downcast_ref() {
                return matches!(source, ConnectError::PinMismatch | ConnectError::Untrusted(_));
            }
            cause = error.source();
        }
        false
    }

    /// Whether the call may have been done although there is no answer.
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::Connect { .. } => false,
            Self::Unanswered { .. } | Self::Answer(_) => true,
            Self::Refused(failure) => {
                matches!(failure.reason, Reason::AgentOffline | Reason::CommandTimedOut | Reason::Internal)
            }
        }
    }
}

impl Classify for CallError {
    fn reason(&self) -> Reason {
        match self {
            Self::Connect { .. } | Self::Unanswered { .. } => Reason::NotActive,
            Self::Refused(failure) => failure.reason,
            Self::Answer(_) => Reason::Internal,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Connect { .. } | Self::Unanswered { .. } => Retry::Later(None),
            Self::Refused(failure) => failure.retry,
            Self::Answer(_) => Retry::Never,
        }
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port_and_nothing_else() {
        for good in ["192.0.2.10:7443", "[2001:db8::1]:7443", "coordinator.example:1", "localhost:65535"] {
            assert_eq!(good.parse::<Address>().map(String::from).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "192.0.2.10",
            "192.0.2.10:",
            "192.0.2.10:0",
            "192.0.2.10:65536",
            "2001:db8::1:7443",
            "http://x:1",
            "x:1/path",
            "user@x:1",
            "x:1?q",
            " x:1",
            "x :1",
            "x:1\n",
            "-:1",
            &format!("{}:1", "a".repeat(400)),
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn coordinators_are_tried_in_turns() {
        let addresses = ["a:1", "b:1"].map(|text| text.parse().unwrap());
        let coordinators = Coordinators::new(addresses.to_vec()).unwrap();
        let tried: Vec<&str> = (0..3).map(|_| coordinators.next().as_str()).collect();
        assert_eq!(tried, ["a:1", "b:1", "a:1"]);
        assert_eq!(Coordinators::new(Vec::new()).err(), Some(AddressError::None));
    }

    #[test]
    fn a_bad_command_keeps_its_id() {
        let id = CommandId::generate();
        let command = proto::Command { command_id: id.to_string(), ..proto::Command::default() };
        let response = proto::SessionResponse { message: Some(Message::Command(command)) };
        assert!(matches!(translate(response), Inbound::Refused { command: Some(found), .. } if found == id));
        let empty = proto::SessionResponse { message: None };
        assert!(matches!(translate(empty), Inbound::Refused { command: None, .. }));
    }
}
