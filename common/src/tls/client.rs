//! The dialling side.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::version::TLS13;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::verify::{FleetVerifier, PinVerifier, VerifyError};
use super::{BuildError, certified_key, provider};
use crate::id::{FleetId, NodeId};
use crate::pki::{Credentials, Fingerprint, IdentityError, PeerIdentity, TrustBundle};

/// The TLS side of a program that dials; shared by reference, reloaded in place.
#[derive(Debug)]
pub struct ClientTls {
    config: ArcSwap<rustls::ClientConfig>,
    trust: Trust,
}

/// Whom the dialled server must be, besides being valid for the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// A coordinator of the fleet.
    Coordinator,
    /// Exactly this node.
    Node(NodeId),
    /// The database server of exactly this node, which speaks PostgreSQL's protocol.
    Database(NodeId),
}

/// A connection to a server that proved who it is.
#[derive(Debug)]
pub struct Connected<IO> {
    /// The encrypted stream.
    pub stream: TlsStream<IO>,
    /// Who the server is.
    pub peer: PeerIdentity,
}

/// Why there is no connection. Not one byte of the program's was sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The handshake took too long.
    #[error("finish the TLS handshake within {} ms", .0.as_millis())]
    Deadline(Duration),
    /// The server does not belong to the authority that the join token names.
    #[error("the server does not belong to the fleet that the token is for")]
    PinMismatch,
    /// The server's certificate is not trusted, for another address, expired, or of another kind of peer.
    #[error("trust the server's certificate")]
    Untrusted(#[source] rustls::Error),
    /// No common protocol, or a broken connection.
    #[error("TLS handshake with the server")]
    Handshake(#[source] io::Error),
    /// The server's certificate names nobody that we know.
    #[error("identify the server by its certificate")]
    Identity(#[source] IdentityError),
}

/// What a reload must keep.
#[derive(Debug)]
enum Trust {
    Fleet { fleet: FleetId, expect: Expect },
    Pin(Fingerprint),
}

// === impl ClientTls ===

impl ClientTls {
    /// Trusts servers of `fleet` that `roots` vouch for and that are whom to `expect`; presents `credentials` to them.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn new(
        fleet: FleetId,
        expect: Expect,
        credentials: Option<&Credentials>,
        roots: &TrustBundle,
    ) -> Result<Self, BuildError> {
        let verifier = Arc::new(FleetVerifier::new(fleet, expect, roots)?);
        let config = build(verifier, credentials, expect.protocol())?;
        Ok(Self { config: ArcSwap::new(config), trust: Trust::Fleet { fleet, expect } })
    }

    /// For joining: trusts coordinators whose chain ends in the certificate with the fingerprint `pin`, and no others.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn joining(pin: Fingerprint) -> Result<Self, BuildError> {
        let config = build(Arc::new(PinVerifier::new(pin)), None, Expect::Coordinator.protocol())?;
        Ok(Self { config: ArcSwap::new(config), trust: Trust::Pin(pin) })
    }

    /// Uses other credentials and roots from the next connection on; open ones are left alone. After an error the
    /// earlier ones stay in use. A client that was made for joining goes on trusting its pin alone.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn reload(&self, credentials: Option<&Credentials>, roots: &TrustBundle) -> Result<(), BuildError> {
        let (verifier, expect): (Arc<dyn ServerCertVerifier>, Expect) = match self.trust {
            Trust::Fleet { fleet, expect } => (Arc::new(FleetVerifier::new(fleet, expect, roots)?), expect),
            Trust::Pin(pin) => (Arc::new(PinVerifier::new(pin)), Expect::Coordinator),
        };
        self.config.store(build(verifier, credentials, expect.protocol())?);
        Ok(())
    }

    /// Does the handshake on a connection just made to `server`. When this returns, the server has proved who it is;
    /// before, nothing of the program's is sent.
    ///
    /// That the *server* refuses our own certificate shows only at the first read: so is TLS 1.3.
    ///
    /// # Errors
    /// See [`ConnectError`].
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn connect<IO>(
        &self,
        server: ServerName<'static>,
        io: IO,
        deadline: Duration,
    ) -> Result<Connected<IO>, ConnectError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(self.config.load_full());
        let stream = timeout(deadline, connector.connect(server, io))
            .await
            .map_err(|_| ConnectError::Deadline(deadline))?
            .map_err(ConnectError::from_handshake)?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let peer = leaf.map_or(Err(IdentityError::Unreadable), |leaf| PeerIdentity::parse(leaf));
        Ok(Connected { stream, peer: peer.map_err(ConnectError::Identity)? })
    }
}

// === impl ConnectError ===

impl ConnectError {
    fn from_handshake(error: io::Error) -> Self {
        let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return Self::Handshake(error);
        };
        match VerifyError::inside(cause) {
            Some(VerifyError::PinMismatch) => Self::PinMismatch,
            _ if matches!(cause, rustls::Error::InvalidCertificate(_)) => Self::Untrusted(cause.clone()),
            _ => Self::Handshake(error),
        }
    }
}

fn build(
    verifier: Arc<dyn ServerCertVerifier>,
    credentials: Option<&Credentials>,
    protocol: &[u8],
) -> Result<Arc<rustls::ClientConfig>, BuildError> {
    let provider = provider();
    let key = credentials.map(|credentials| certified_key(credentials, &provider)).transpose()?;
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(BuildError::Version)?
        // "Dangerous" is rustls's word for any verifier but its own; ours add checks to it, see `verify`.
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match key {
        Some(key) => config.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key))),
        None => config.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}
