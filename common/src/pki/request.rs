//! A node's key and its signing request: made on the node, read by the coordinator.
//!
//! Of a request only the public key is believed. Whatever else is in it (names, usages, "I am an authority") is the
//! client's wish and is dropped here, so that it cannot reach a certificate.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::error::{Classify, Reason, Violation};

/// A longer signing request is refused unread.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// A private key of our own making: ECDSA P-256, which rustls, OpenSSL and PostgreSQL all take.
pub struct NodeKey(KeyPair);

/// A signing request whose signature proves that the sender holds the private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningRequest {
    pub(super) public_key: SubjectPublicKeyInfo,
}

/// Why a signing request or a key is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Longer than [`MAX_REQUEST_BYTES`].
    #[error("the signing request has {bytes} bytes, more than the {MAX_REQUEST_BYTES} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not exactly one `CERTIFICATE REQUEST` in PEM.
    #[error("the signing request is not exactly one CERTIFICATE REQUEST in PEM")]
    Encoding,
    /// The signature is not by the key in the request.
    #[error("the signing request is not signed by its own key")]
    Signature,
    /// Neither P-256 nor P-384.
    #[error("the key of the signing request is neither ECDSA P-256 nor P-384")]
    KeyType,
    /// A stored private key cannot be read, or is not ECDSA P-256.
    #[error("read the private key (ECDSA P-256 in PKCS#8 PEM)")]
    PrivateKey(#[source] rcgen::Error),
    /// The request could not be made.
    #[error("make a signing request")]
    Make(#[source] rcgen::Error),
}

// === impl NodeKey ===

impl NodeKey {
    /// A new key.
    ///
    /// # Errors
    /// [`RequestError::Make`] if the cryptographic library fails.
    pub fn generate() -> Result<Self, RequestError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(RequestError::Make)
    }

    /// Reads a key that [`NodeKey::to_pem`] wrote.
    ///
    /// # Errors
    /// [`RequestError::PrivateKey`] for anything else.
    pub fn from_pem(pem: &str) -> Result<Self, RequestError> {
        KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(RequestError::PrivateKey)
    }

    /// The key in PKCS#8 PEM, for a file of mode 0600.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// A signing request for this key, in PEM. It asks for no name: the authority gives it.
    ///
    /// # Errors
    /// [`RequestError::Make`] if the cryptographic library fails.
    pub fn signing_request(&self) -> Result<String, RequestError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(&self.0).and_then(|request| request.pem()).map_err(RequestError::Make)
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(redacted)")
    }
}

// === impl SigningRequest ===

impl SigningRequest {
    /// Reads a request in PEM and checks its signature, size and kind of key.
    ///
    /// # Errors
    /// One variant of [`RequestError`] for each check.
    pub fn parse(pem: &str) -> Result<Self, RequestError> {
        if pem.len() > MAX_REQUEST_BYTES {
            return Err(RequestError::TooLong { bytes: pem.len() });
        }
        let mut sections = CertificateSigningRequestDer::pem_slice_iter(pem.as_bytes());
        let (Some(Ok(der)), None) = (sections.next(), sections.next()) else {
            return Err(RequestError::Encoding);
        };
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Encoding)?;
        if !rest.is_empty() {
            return Err(RequestError::Encoding);
        }
        // The kind of key comes from the key itself; rcgen's own parser infers it from the signature's algorithm, and
        // would write a wrong one for a P-384 key that signs with SHA-256.
        let key = &request.certification_request_info.subject_pki;
        let public_key = SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| RequestError::KeyType)?;
        let point_bytes = if public_key.algorithm() == &PKCS_ECDSA_P256_SHA256 {
            65
        } else if public_key.algorithm() == &PKCS_ECDSA_P384_SHA384 {
            97
        } else {
            return Err(RequestError::KeyType);
        };
        // Compressed points are legal, but not every TLS library takes them.
        if public_key.der_bytes().len() != point_bytes || public_key.der_bytes().first() != Some(&4) {
            return Err(RequestError::KeyType);
        }
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        Ok(Self { public_key })
    }

    /// SHA-256 of the public key: the same for every request with this key.
    pub fn key_digest(&self) -> [u8; 32] {
        super::sha256(&self.public_key.subject_public_key_info())
    }
}

// === impl RequestError ===

impl Classify for RequestError {
    fn reason(&self) -> Reason {
        match self {
            Self::TooLong { .. } | Self::Encoding | Self::Signature | Self::KeyType => Reason::InvalidField,
            Self::PrivateKey(_) | Self::Make(_) => Reason::Internal,
        }
    }

    fn violations(&self) -> Vec<Violation> {
        match self {
            Self::TooLong { .. } | Self::Encoding | Self::Signature | Self::KeyType => {
                let name = "certificate_signing_request".to_owned();
                vec![Violation { name, subject: String::new(), message: self.to_string() }]
            }
            Self::PrivateKey(_) | Self::Make(_) => Vec::new(),
        }
    }
}
