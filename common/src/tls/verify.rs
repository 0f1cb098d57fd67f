//! What a server must prove: the library's own checks (chain, validity, usage, address), and then that it is the kind of
//! peer that was expected.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::client::Expect;
use super::{BuildError, H2, POSTGRESQL, provider};
use crate::id::FleetId;
use crate::pki::{Fingerprint, IdentityError, PeerIdentity, PeerKind, TrustBundle, is_authority};

/// What our own checks add to those of the library.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// No certificate of the chain is the pinned one, or the chain does not lead to it.
    #[error("the certificate chain does not lead to the pinned authority")]
    PinMismatch,
    /// The certificate is good, but its holder is somebody else.
    #[error("the certificate is that of {found}, not of {expected}")]
    WrongPeer {
        /// Whom it names.
        found: String,
        /// Who was expected.
        expected: String,
    },
    /// The certificate names nobody that we know.
    #[error("identify the server by its certificate")]
    Identity(#[source] IdentityError),
}

/// Trusts a server of the fleet.
#[derive(Debug)]
pub(super) struct FleetVerifier {
    fleet: FleetId,
    expect: Expect,
    inner: Arc<WebPkiServerVerifier>,
}

/// Trusts a coordinator below the pinned root.
pub(super) struct PinVerifier {
    pin: Fingerprint,
    provider: Arc<CryptoProvider>,
}

// === impl VerifyError ===

impl VerifyError {
    /// Ours, if that is what made a handshake fail.
    pub(super) fn inside(error: &Error) -> Option<&Self> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
            _ => None,
        }
    }
}

impl From<VerifyError> for Error {
    fn from(error: VerifyError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

// === impl FleetVerifier ===

impl FleetVerifier {
    pub(super) fn new(fleet: FleetId, expect: Expect, roots: &TrustBundle) -> Result<Self, BuildError> {
        let inner = WebPkiServerVerifier::builder_with_provider(root_store(roots)?, provider())
            .build()
            .map_err(BuildError::Verifier)?;
        Ok(Self { fleet, expect, inner })
    }
}

impl ServerCertVerifier for FleetVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let peer = PeerIdentity::parse_of(self.fleet, end_entity).map_err(VerifyError::Identity)?;
        self.expect.check(&peer)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

// === impl PinVerifier ===

impl PinVerifier {
    pub(super) fn new(pin: Fingerprint) -> Self {
        Self { pin, provider: provider() }
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // That the pinned certificate is *presented* proves nothing, it is public; the leaf must be signed by it.
        let root = intermediates
            .iter()
            .find(|certificate| Fingerprint::of(certificate) == self.pin && is_authority(certificate))
            .ok_or(VerifyError::PinMismatch)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned()).map_err(|_| VerifyError::PinMismatch)?;
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, intermediates, now, algorithms).map_err(
            |error| match error {
                Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature,
                ) => VerifyError::PinMismatch.into(),
                other => other,
            },
        )?;
        verify_server_name(&leaf, server_name)?;
        let peer = PeerIdentity::parse(end_entity).map_err(VerifyError::Identity)?;
        Expect::Coordinator.check(&peer)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for PinVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinVerifier").field("pin", &self.pin).finish_non_exhaustive()
    }
}

// === impl Expect ===

impl Expect {
    fn check(self, peer: &PeerIdentity) -> Result<(), VerifyError> {
        let expected = match (self, &peer.kind) {
            (Self::Coordinator, PeerKind::Coordinator(_)) => return Ok(()),
            (Self::Node(id) | Self::Database(id), PeerKind::Node(found)) if id == *found => return Ok(()),
            (Self::Coordinator, _) => "a coordinator".to_owned(),
            (Self::Node(id) | Self::Database(id), _) => PeerKind::Node(id).to_string(),
        };
        Err(VerifyError::WrongPeer { found: peer.kind.to_string(), expected })
    }

    /// What is spoken with it, as it is named in the handshake (ALPN).
    pub(super) fn protocol(self) -> &'static [u8] {
        match self {
            Self::Coordinator | Self::Node(_) => H2,
            Self::Database(_) => POSTGRESQL,
        }
    }
}

pub(super) fn root_store(roots: &TrustBundle) -> Result<Arc<RootCertStore>, BuildError> {
    let mut store = RootCertStore::empty();
    for root in roots.roots() {
        store.add(root.clone()).map_err(BuildError::Root)?;
    }
    Ok(Arc::new(store))
}
