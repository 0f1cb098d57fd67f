//! The identity inside a certificate: one `spiffe` URI, read strictly.

use std::fmt;

use jiff::Timestamp;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::digest::{Fingerprint, Serial};
use crate::error::{Classify, Reason};
use crate::id::{FleetId, NodeId};
use crate::name::{CoordinatorName, OperatorName};

const SCHEME: &str = "spiffe://";

/// Who a peer is, according to a certificate whose signature has been checked already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The fleet that issued the certificate.
    pub fleet: FleetId,
    /// What the peer is.
    pub kind: PeerKind,
    /// The certificate's serial, by which it is revoked.
    pub serial: Serial,
    /// Until when the certificate is valid.
    pub not_after: Timestamp,
    /// SHA-256 of the certificate.
    pub fingerprint: Fingerprint,
}

/// The kinds of peers of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerKind {
    /// An agent; the id is the only one it may speak for.
    Node(NodeId),
    /// A person or a program of the fleet's operators.
    Operator(OperatorName),
    /// A coordinator.
    Coordinator(CoordinatorName),
}

/// Why a certificate identifies nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not one certificate in DER.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// A certificate authority's own certificate was presented as a peer's.
    #[error("the certificate is that of an authority, not of a peer")]
    Authority,
    /// None or several URIs.
    #[error("the certificate has {found} URI names where exactly one is expected")]
    UriCount {
        /// How many there are.
        found: usize,
    },
    /// The URI is not of the three known forms.
    #[error("the certificate's name `{uri}` is not of a known form")]
    UnknownName {
        /// The URI, cut to 200 characters.
        uri: String,
    },
    /// Issued for another fleet.
    #[error("the certificate belongs to fleet {found}, not to {expected}")]
    OtherFleet {
        /// The fleet in the certificate.
        found: FleetId,
        /// The fleet that was expected.
        expected: FleetId,
    },
}

// === impl PeerIdentity ===

impl PeerIdentity {
    /// Reads the identity from a leaf certificate in DER, of whatever fleet. The signature is *not* checked here.
    ///
    /// # Errors
    /// See [`IdentityError`]; never [`IdentityError::OtherFleet`].
    pub fn parse(der: &[u8]) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
        if !rest.is_empty() {
            return Err(IdentityError::Unreadable);
        }
        if certificate.is_ca() {
            return Err(IdentityError::Authority);
        }
        let (fleet, kind) = parse_name(only_uri(&certificate)?)?;
        let not_after = Timestamp::from_second(certificate.validity().not_after.timestamp())
            .map_err(|_| IdentityError::Unreadable)?;
        Ok(Self {
            fleet,
            kind,
            serial: Serial::from_bytes(certificate.raw_serial()),
            not_after,
            fingerprint: Fingerprint::of(der),
        })
    }

    /// Like [`PeerIdentity::parse`], and of the fleet `expected`.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn parse_of(expected: FleetId, der: &[u8]) -> Result<Self, IdentityError> {
        let identity = Self::parse(der)?;
        if identity.fleet != expected {
            return Err(IdentityError::OtherFleet { found: identity.fleet, expected });
        }
        Ok(identity)
    }
}

// === impl PeerKind ===

impl PeerKind {
    /// The URI that names this peer in `fleet`.
    pub fn uri(&self, fleet: FleetId) -> String {
        format!("{SCHEME}{fleet}/{self}")
    }
}

impl fmt::Display for PeerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node/{id}"),
            Self::Operator(name) => write!(f, "operator/{name}"),
            Self::Coordinator(name) => write!(f, "coordinator/{name}"),
        }
    }
}

// === impl IdentityError ===

impl Classify for IdentityError {
    fn reason(&self) -> Reason {
        Reason::NoIdentity
    }
}

/// The URI by which an authority's own certificate names its fleet.
pub(super) fn authority_uri(fleet: FleetId) -> String {
    format!("{SCHEME}{fleet}")
}

/// The fleet of an authority's certificate.
pub(super) fn authority_fleet(certificate: &X509Certificate<'_>) -> Result<FleetId, IdentityError> {
    let uri = only_uri(certificate)?;
    uri.strip_prefix(SCHEME).and_then(|text| text.parse().ok()).ok_or_else(|| unknown(uri))
}

fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityError> {
    // An extension that is there twice is an error here, not a choice.
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    let [uri] = uris[..] else {
        return Err(IdentityError::UriCount { found: uris.len() });
    };
    Ok(uri)
}

fn parse_name(uri: &str) -> Result<(FleetId, PeerKind), IdentityError> {
    let parsed = || {
        let mut parts = uri.strip_prefix(SCHEME)?.split('/');
        let (fleet, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        let kind = match kind {
            "node" => PeerKind::Node(name.parse().ok()?),
            "operator" => PeerKind::Operator(name.parse().ok()?),
            "coordinator" => PeerKind::Coordinator(name.parse().ok()?),
            _ => return None,
        };
        // Ids have one spelling, so two different URIs never mean the same peer.
        Some((fleet.parse().ok()?, kind))
    };
    parsed().ok_or_else(|| unknown(uri))
}

fn unknown(uri: &str) -> IdentityError {
    IdentityError::UnknownName { uri: uri.chars().take(200).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_back_as_it_went_in() {
        let fleet = FleetId::generate();
        for kind in [
            PeerKind::Node(NodeId::generate()),
            PeerKind::Operator("alice".parse().unwrap()),
            PeerKind::Coordinator("main".parse().unwrap()),
        ] {
            assert_eq!(parse_name(&kind.uri(fleet)), Ok((fleet, kind)));
        }
    }

    #[test]
    fn a_name_of_any_other_form_is_refused() {
        let fleet = FleetId::generate();
        let node = NodeId::generate();
        for uri in [
            String::new(),
            format!("spiffe://{fleet}"),
            format!("spiffe://{fleet}/node"),
            format!("spiffe://{fleet}/node/"),
            format!("spiffe://{fleet}/node/{node}/"),
            format!("spiffe://{fleet}/node/{node}/x"),
            format!("spiffe://{fleet}//{node}"),
            format!("spiffe://{fleet}/Node/{node}"),
            format!("spiffe://{fleet}/admin/alice"),
            format!("spiffe://{fleet}/operator/Alice"),
            format!("spiffe://{fleet}/operator/.."),
            format!("spiffe://{fleet}/operator/a%20b"),
            format!("SPIFFE://{fleet}/node/{node}"),
            format!("https://{fleet}/node/{node}"),
            format!("spiffe://{}/node/{node}", fleet.to_string().to_uppercase()),
            format!("spiffe://{}/node/{node}", fleet.to_string().replace('-', "")),
            format!("spiffe://{fleet}/node/{}", node.to_string().to_uppercase()),
            format!("spiffe://{fleet}:80/node/{node}"),
        ] {
            assert_eq!(parse_name(&uri), Err(unknown(&uri)), "{uri}");
        }
    }
}
