//! TLS 1.3 for both ends: configurations that reload, handshakes with a deadline, and who is at the other end.
//!
//! ```text
//! listener ── TCP ──► ServerTls::accept ──► Accepted { stream, peer: None | Some(PeerIdentity) } ──► rpc authorises
//! program  ── TCP ──► ClientTls::connect ──► Connected { stream, peer }    trust: the fleet's roots, or a join pin
//! ```
//!
//! Every reload builds a whole new configuration, and sessions are never resumed: a resumed session would skip the check
//! of the client's certificate, and with it a revocation. Connections that are open keep what they began with; ending
//! those of a removed node is the coordinator's part (`fleet`), as is every question of who may call what.
//!
//! A server's certificate must be valid for the address that was dialled *and* name the expected kind of peer: node
//! certificates carry addresses too, and a node must not pass for a coordinator.

mod client;
mod connector;
mod server;
mod verify;

#[cfg(test)]
mod tests;

pub use client::{ClientTls, ConnectError, Connected, Expect};
pub use connector::{Connector, DialError};
pub use server::{AcceptError, Accepted, ClientCertificate, Protocols, ServerSettings, ServerTls};
pub use verify::VerifyError;

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;

use crate::pki::Credentials;

/// How long a handshake may take, unless a caller has a reason for another time.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

const H2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";
/// As PostgreSQL 17 and newer want it; older ones do not look.
const POSTGRESQL: &[u8] = b"postgresql";

/// Why a TLS configuration cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The certificate is unreadable, or the key is not its own.
    #[error("use the certificate chain and its key")]
    Credentials(#[source] rustls::Error),
    /// A root of the trust bundle is unusable.
    #[error("use a root of the trust bundle")]
    Root(#[source] rustls::Error),
    /// The verifier of certificates refuses the roots.
    #[error("build the verifier of certificates")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// The provider lacks TLS 1.3.
    #[error("restrict the protocol to TLS 1.3")]
    Version(#[source] rustls::Error),
}

/// Makes aws-lc-rs the process's provider, for libraries that ask for the default one. Called first in every `main`;
/// calling it again does nothing.
pub fn install_provider() {
    // The only error is that there is one already: from an earlier call, since no other provider is built in.
    let _already = aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certified_key(
    credentials: &Credentials,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, BuildError> {
    CertifiedKey::from_der(credentials.chain().to_vec(), credentials.key().clone_key(), provider)
        .map(Arc::new)
        .map_err(BuildError::Credentials)
}
