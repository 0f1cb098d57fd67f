//! What a program presents, and what it trusts.

use std::fmt;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::digest::Fingerprint;
use super::identity::{IdentityError, PeerIdentity, authority_fleet};
use crate::id::FleetId;

/// No fleet needs more roots at once: the old one, the new one, and room for a rotation that went wrong.
const MAX_ROOTS: usize = 8;
const MAX_CHAIN: usize = 8;
const MAX_PEM_BYTES: usize = 128 * 1024;

/// A certificate chain, leaf first and root included, with the leaf's private key.
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// The roots that a fleet trusts: one, or the old and the new one during a rotation. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
}

/// Why PEM text is refused.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Longer than any real bundle.
    #[error("the PEM text has {bytes} bytes, more than the {MAX_PEM_BYTES} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// No certificate, or too many.
    #[error("found {found} certificates where 1 to {MAX_CHAIN} are expected")]
    CertificateCount {
        /// How many there are.
        found: usize,
    },
    /// Broken PEM.
    #[error("read certificates in PEM")]
    Certificate(#[source] rustls_pki_types::pem::Error),
    /// No private key, or a broken one.
    #[error("read a private key in PEM")]
    Key(#[source] rustls_pki_types::pem::Error),
    /// A certificate in a trust bundle that is not an authority's.
    #[error("the certificate {fingerprint} in the trust bundle is not that of an authority")]
    NotAnAuthority {
        /// Which one.
        fingerprint: Fingerprint,
    },
}

// === impl Credentials ===

impl Credentials {
    /// Reads a chain (leaf first) and its key. That they belong together is checked when a TLS configuration is built.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, CredentialsError> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(CredentialsError::Key)?;
        Ok(Self { chain, key })
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Who the holder is.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn identity(&self) -> Result<PeerIdentity, IdentityError> {
        self.chain.first().ok_or(IdentityError::Unreadable).and_then(|leaf| PeerIdentity::parse(leaf))
    }

    /// Another chain with the same key, whether they fit or not.
    #[cfg(test)]
    pub(crate) fn with_chain(&self, chain: &str) -> Self {
        Self { chain: certificates(chain).unwrap(), key: self.key.clone_key() }
    }

    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = self.chain.first().map(|leaf| Fingerprint::of(leaf));
        f.debug_struct("Credentials").field("leaf", &leaf).field("key", &"redacted").finish()
    }
}

// === impl TrustBundle ===

impl TrustBundle {
    /// Reads one or more authorities' certificates; a repeated one counts once.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn from_pem(pem: &str) -> Result<Self, CredentialsError> {
        Self::from_der(certificates(pem)?)
    }

    /// The same from DER.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn from_der(certificates: Vec<CertificateDer<'static>>) -> Result<Self, CredentialsError> {
        let mut roots: Vec<CertificateDer<'static>> = Vec::with_capacity(certificates.len());
        for der in certificates {
            if !is_authority(&der) {
                return Err(CredentialsError::NotAnAuthority { fingerprint: Fingerprint::of(&der) });
            }
            if !roots.contains(&der) {
                roots.push(der);
            }
        }
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(CredentialsError::CertificateCount { found: roots.len() });
        }
        Ok(Self { roots })
    }

    /// The roots of both bundles.
    ///
    /// # Errors
    /// [`CredentialsError::CertificateCount`] if these are too many.
    pub fn union(&self, other: &Self) -> Result<Self, CredentialsError> {
        Self::from_der(self.roots.iter().chain(&other.roots).cloned().collect())
    }

    /// The fleet whose roots these are.
    ///
    /// # Errors
    /// [`IdentityError`] if a root names none, or two roots name different ones.
    pub fn fleet(&self) -> Result<FleetId, IdentityError> {
        let mut fleets = self.roots.iter().map(|root| {
            let (_, certificate) = X509Certificate::from_der(root).map_err(|_| IdentityError::Unreadable)?;
            authority_fleet(&certificate)
        });
        let expected = fleets.next().unwrap_or(Err(IdentityError::Unreadable))?;
        for found in fleets {
            let found = found?;
            if found != expected {
                return Err(IdentityError::OtherFleet { found, expected });
            }
        }
        Ok(expected)
    }

    /// The roots in DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots' fingerprints, in the bundle's order.
    pub fn fingerprints(&self) -> impl Iterator<Item = Fingerprint> {
        self.roots.iter().map(|root| Fingerprint::of(root))
    }

    /// The bundle as PEM text.
    pub fn to_pem(&self) -> String {
        chain_pem(&self.roots)
    }
}

/// Certificates as PEM text.
pub(crate) fn chain_pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|certificate| certificate_pem(certificate)).collect()
}

/// One certificate as PEM text.
pub(super) fn certificate_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::with_capacity(body.len() + body.len() / 64 + 60);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Whether `der` is one readable certificate that may sign others.
pub(crate) fn is_authority(der: &[u8]) -> bool {
    matches!(X509Certificate::from_der(der), Ok((rest, certificate)) if rest.is_empty() && certificate.is_ca())
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    if pem.len() > MAX_PEM_BYTES {
        return Err(CredentialsError::TooLong { bytes: pem.len() });
    }
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(CredentialsError::Certificate)?;
    if found.is_empty() || found.len() > MAX_CHAIN {
        return Err(CredentialsError::CertificateCount { found: found.len() });
    }
    Ok(found)
}
