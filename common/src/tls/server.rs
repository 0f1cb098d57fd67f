//! The listening side.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{BuildError, H2, HTTP_1_1, certified_key, provider, verify};
use crate::id::FleetId;
use crate::pki::{Credentials, IdentityError, PeerIdentity, TrustBundle};

/// What stays the same over all reloads of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerSettings {
    /// The fleet that clients' certificates must belong to.
    pub fleet: FleetId,
    /// Whether a client may come without one.
    pub client_certificate: ClientCertificate,
    /// What may be spoken inside.
    pub protocols: Protocols,
}

/// Whether a client must present a certificate. One that is presented must always be good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// Without one the peer is nobody, and each call decides (joining, bearer tokens).
    Optional,
    /// Without one there is no connection.
    Required,
}

/// The protocols offered in the handshake (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocols {
    /// gRPC only.
    H2,
    /// gRPC, and HTTP/1.1 for browsers.
    H2AndHttp1,
}

/// The TLS side of one listener; shared by reference, reloaded in place.
#[derive(Debug)]
pub struct ServerTls {
    settings: ServerSettings,
    config: ArcSwap<rustls::ServerConfig>,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct Accepted<IO> {
    /// The encrypted stream.
    pub stream: TlsStream<IO>,
    /// Who the client is; `None` if it presented no certificate.
    pub peer: Option<PeerIdentity>,
}

/// Why a connection was dropped before its first byte.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The handshake took too long.
    #[error("finish the TLS handshake within {} ms", .0.as_millis())]
    Deadline(Duration),
    /// No common protocol, a bad certificate, or a broken connection.
    #[error("TLS handshake with a client")]
    Handshake(#[source] io::Error),
    /// The certificate is the fleet's own, but names nobody that we know.
    #[error("identify a client by its certificate")]
    Identity(#[source] IdentityError),
}

// === impl ServerTls ===

impl ServerTls {
    /// A listener that presents `credentials` and believes clients that `roots` vouch for.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn new(
        settings: ServerSettings,
        credentials: &Credentials,
        roots: &TrustBundle,
    ) -> Result<Self, BuildError> {
        Ok(Self { settings, config: ArcSwap::new(build(settings, credentials, roots)?) })
    }

    /// Uses other credentials and roots from the next connection on. Open connections are left alone. After an error the
    /// earlier ones stay in use.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn reload(&self, credentials: &Credentials, roots: &TrustBundle) -> Result<(), BuildError> {
        self.config.store(build(self.settings, credentials, roots)?);
        Ok(())
    }

    /// Does the handshake on a connection just accepted. The caller runs it in a task of its own: a slow client must not
    /// hold up the listener.
    ///
    /// # Errors
    /// See [`AcceptError`]; the connection is closed.
    ///
    /// # Cancel safety
    /// Cancelling closes the connection.
    pub async fn accept<IO>(&self, io: IO, deadline: Duration) -> Result<Accepted<IO>, AcceptError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let acceptor = TlsAcceptor::from(self.config.load_full());
        let stream = timeout(deadline, acceptor.accept(io))
            .await
            .map_err(|_| AcceptError::Deadline(deadline))?
            .map_err(AcceptError::Handshake)?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let peer = leaf
            .map(|leaf| PeerIdentity::parse_of(self.settings.fleet, leaf))
            .transpose()
            .map_err(AcceptError::Identity)?;
        Ok(Accepted { stream, peer })
    }
}

fn build(
    settings: ServerSettings,
    credentials: &Credentials,
    roots: &TrustBundle,
) -> Result<Arc<rustls::ServerConfig>, BuildError> {
    let ServerSettings { fleet: _, client_certificate, protocols } = settings;
    let provider = provider();
    let key = certified_key(credentials, &provider)?;
    let clients =
        WebPkiClientVerifier::builder_with_provider(verify::root_store(roots)?, Arc::clone(&provider));
    let clients = match client_certificate {
        ClientCertificate::Optional => clients.allow_unauthenticated(),
        ClientCertificate::Required => clients,
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(BuildError::Version)?
        .with_client_cert_verifier(clients.build().map_err(BuildError::Verifier)?)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    // Nothing to resume a session with: each connection proves anew who the client is.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = match protocols {
        Protocols::H2 => vec![H2.to_vec()],
        Protocols::H2AndHttp1 => vec![H2.to_vec(), HTTP_1_1.to_vec()],
    };
    Ok(Arc::new(config))
}
