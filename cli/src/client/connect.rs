//! The connection: whom to call as whom, and what to check if it does not come about.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::context::Context;
use holdfast_common::pki::{Credentials, TrustBundle};
use holdfast_common::tls::{ClientTls, ConnectError, Connector, DialError, Expect};
use http::Uri;
use http::uri::Authority;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::time::error::Elapsed;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, TimeoutExpired};

use super::Lost;
use crate::error::Error;

const CUT: &str = "the connection broke off before the answer";

/// A coordinator, and as whom to call it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) server: String,
    tls: ClientTls,
    token: Option<SecretString>,
}

// === impl Target ===

impl Target {
    /// As the context says; a token, if there is one, comes before the certificate.
    pub(crate) fn new(context: &Context, token: Option<SecretString>) -> Result<Self, Error> {
        let bad = |what: &str| format!("the context's {what} cannot be used");
        let roots = TrustBundle::from_pem(&context.trust_bundle)
            .map_err(|error| Error::local(bad("trust_bundle"), error))?;
        let fleet = roots.fleet().map_err(|error| Error::local(bad("trust_bundle"), error))?;
        let credentials = match (&token, &context.certificate, &context.key) {
            (Some(_), _, _) => None,
            (None, Some(certificate), Some(key)) => {
                let pair = Credentials::from_pem(certificate, key.expose_secret());
                Some(pair.map_err(|error| Error::local(bad("certificate or key"), error))?)
            }
            (None, _, _) => {
                return Err(Error::Usage(
                    "the context has no certificate and key; set HOLDFAST_TOKEN to an access token"
                        .to_owned(),
                ));
            }
        };
        let tls = ClientTls::new(fleet, Expect::Coordinator, credentials.as_ref(), &roots)
            .map_err(|error| Error::local(bad("certificate, key or trust_bundle"), error))?;
        Ok(Self { server: context.server.clone(), tls, token })
    }

    pub(super) fn bearer(&self) -> Result<Option<MetadataValue<Ascii>>, Error> {
        let Some(token) = &self.token else { return Ok(None) };
        let value = MetadataValue::try_from(format!("Bearer {}", token.expose_secret().trim()));
        let mut value = value.map_err(|_| {
            Error::Usage("HOLDFAST_TOKEN is no access token: it has characters that none has".to_owned())
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

pub(super) async fn channel(target: Target) -> Result<Channel, Error> {
    let Target { server, tls, token: _ } = target;
    let authority: Authority =
        server.parse().ok().filter(|authority: &Authority| authority.port().is_some()).ok_or_else(|| {
            Error::Usage(format!(
                "the context's server `{server}` is no address; it is HOST:PORT, such as 10.0.0.1:7443"
            ))
        })?;
    // The encryption is the connector's part, hence the scheme.
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query("/").build();
    let uri = uri.map_err(|error| Error::local("address the coordinator", error))?;
    Endpoint::from(uri)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| Error::local("address the coordinator", error))?
        .connect_with_connector(Connector::new(Arc::new(tls)))
        .await
        .map_err(|error| explain(&server, &error, Lost::Nothing))
}

/// Nobody answered within the time that the caller gave.
pub(super) fn too_slow(server: &str, timeout: Duration) -> Error {
    let problem = format!("no connection within {} s", timeout.as_secs());
    Error::Unreachable { server: server.to_owned(), problem, check: hanging(server) }
}

/// It has the call, or at least the connection, and says nothing.
pub(super) fn hangs(server: &str, timeout: Duration, lost: Lost) -> Error {
    let problem = format!("it took the connection, but did not answer within {} s", timeout.as_secs());
    Error::Unreachable { server: server.to_owned(), problem, check: with_loss(hanging(server), lost) }
}

fn hanging(server: &str) -> String {
    format!(
        "Is the coordinator at {server} stopped, hung or very busy? Look at it there (`systemctl status holdfast-coordinator`), or \
         give it longer with --timeout."
    )
}

/// A change whose answer was lost is repeated only by someone who knows.
fn with_loss(check: String, lost: Lost) -> String {
    match lost {
        Lost::Nothing => check,
        Lost::Change => format!(
            "{check} The change may have been made or not: look (`holdfast operation list`, or `show` what you changed) before \
             you ask for it again."
        ),
    }
}

/// The end of the time that we gave, as a status.
pub(super) fn unanswered(elapsed: Elapsed) -> Status {
    let mut status = Status::deadline_exceeded("no answer within the time allowed");
    status.set_source(Arc::new(elapsed));
    status
}

/// Whether the time that we gave was over, by our own clock or by tonic's, which keeps the same deadline.
pub(super) fn is_late(error: &(dyn StdError + 'static)) -> bool {
    find::<Elapsed>(error).is_some() || find::<TimeoutExpired>(error).is_some()
}

/// Whether the call may have reached the coordinator though its answer did not reach us.
pub(super) fn may_have_arrived(status: &Status) -> bool {
    status.source().is_some_and(|source| find::<DialError>(source).is_none())
}

/// The connection's error in words, with what to check.
pub(super) fn explain(server: &str, error: &(dyn StdError + 'static), lost: Lost) -> Error {
    let check = match find::<DialError>(error) {
        Some(DialError::Tls { source: ConnectError::Deadline(_), .. }) => format!(
            "Something took the connection at {server}, but does not answer. {} Or is it not the coordinator's port for operators?",
            hanging(server)
        ),
        Some(DialError::Tls { source: ConnectError::Handshake(_), .. }) => {
            format!("Something listens at {server}, but speaks no TLS with us: is it the coordinator's port for operators?")
        }
        Some(DialError::Tls { .. }) => "Somebody else answers there, or the coordinator of another fleet: check `server` and \
             `trust_bundle` of the context (`holdfast context show`); after a change of the authority get a new context file. A \
             clock that is wrong here or there looks the same. Nothing was sent."
            .to_owned(),
        Some(DialError::Connect { source, .. }) if source.kind() == io::ErrorKind::ConnectionRefused => format!(
            "Nothing listens at {server}: does the coordinator run (`systemctl status holdfast-coordinator`), and is the \
             context's `server` its port for operators?"
        ),
        Some(DialError::Connect { .. } | DialError::Unreachable { .. } | DialError::Address { .. }) => {
            format!("Check that the name and address of {server} are right and that no firewall is between here and there.")
        }
        None if text_of(error).contains("fatal alert") => {
            "The coordinator refuses our certificate: it has expired, was revoked, or is of another fleet. `holdfast context show` \
             says until when it is valid; an admin makes a new one with `holdfast operator create`."
                .to_owned()
        }
        None => format!(
            "The connection to {server} broke off: does the coordinator run (`systemctl status holdfast-coordinator`)?"
        ),
    };
    let problem = if is_cut(error) { CUT.to_owned() } else { text_of(error) };
    Error::Unreachable { server: server.to_owned(), problem, check: with_loss(check, lost) }
}

/// The other end is gone. The layers below have words of their own for it, and one of them a link to its manual.
fn is_cut(error: &(dyn StdError + 'static)) -> bool {
    find::<DialError>(error).is_none()
        && find::<io::Error>(error).is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
            )
        })
}

/// The first error of that type in the chain, also inside I/O errors.
fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    chain(error).find_map(|cause| cause.downcast_ref::<T>())
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let cause = next?;
        // What is wrapped by an I/O error is not its `source`.
        next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
        Some(cause)
    })
}

/// All causes, each once: the layers below repeat each other.
fn text_of(error: &(dyn StdError + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in chain(error) {
        let text = cause.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
    }
    // The first is tonic's "transport error", which says nothing.
    if parts.len() > 1 && parts[0] == "transport error" {
        parts.remove(0);
    }
    parts.join(": ")
}
