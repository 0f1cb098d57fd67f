//! The fleet's certificate authority: makes its own certificate and issues all others.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use super::credentials::{Credentials, CredentialsError, TrustBundle, certificate_pem, chain_pem};
use super::digest::{Fingerprint, Serial};
use super::identity::{self, PeerKind};
use super::request::{NodeKey, RequestError, SigningRequest};
use crate::id::{FleetId, NodeId};
use crate::name::{CoordinatorName, NodeName, OperatorName};

/// How long a certificate lives unless someone says otherwise.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// How far a certificate reaches back, for clocks that are behind.
const SKEW: Duration = Duration::from_secs(5 * 60);
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// More names than any machine has addresses that matter.
const MAX_SUBJECT_NAMES: usize = 64;

/// A certificate authority of one fleet.
pub struct Authority {
    fleet: FleetId,
    certificate: CertificateDer<'static>,
    not_after: Timestamp,
    issuer: Issuer<'static, KeyPair>,
}

/// From when and for how long a certificate is to be valid; it also reaches five minutes back, for clocks that are
/// behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The present.
    pub now: Timestamp,
    /// How long from now.
    pub lifetime: Duration,
}

/// A new certificate with its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The leaf, then the root: joining nodes look for the pinned root in what a server presents.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's serial.
    pub serial: Serial,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

/// Why the authority could not be made or loaded, or did not issue.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate cannot be read, or names no fleet.
    #[error("read the authority's certificate")]
    Certificate,
    /// The private key cannot be read.
    #[error("read the authority's private key")]
    Key(#[source] rcgen::Error),
    /// The key belongs to another certificate.
    #[error("the authority's private key does not belong to its certificate")]
    KeyMismatch,
    /// The authority's own certificate has ended.
    #[error("the authority's certificate ended at {not_after}; rotate the authority")]
    Expired {
        /// When.
        not_after: Timestamp,
    },
    /// Too many names or addresses.
    #[error("a certificate for {found} names was asked for; at most {MAX_SUBJECT_NAMES} are allowed")]
    TooManyNames {
        /// How many.
        found: usize,
    },
    /// A text that is no DNS name.
    #[error("`{name}` is not a DNS name")]
    DnsName {
        /// The text.
        name: String,
    },
    /// A time outside of what a certificate can say.
    #[error("the validity is out of range")]
    Validity,
    /// The cryptographic library refused.
    #[error("sign a certificate")]
    Sign(#[source] rcgen::Error),
    /// No key could be made.
    #[error(transparent)]
    NewKey(#[from] RequestError),
    /// The new certificate could not be read back.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// What a certificate is to say besides its public key.
struct Subject {
    kind: PeerKind,
    addresses: Vec<IpAddr>,
    dns_names: Vec<String>,
    usages: Vec<ExtendedKeyUsagePurpose>,
}

// === impl Authority ===

impl Authority {
    /// A new authority with a new key, valid for ten years.
    ///
    /// # Errors
    /// [`AuthorityError::Sign`], [`AuthorityError::Validity`].
    pub fn create(fleet: FleetId, now: Timestamp) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Sign)?;
        let (not_before, not_after) = Validity { now, lifetime: AUTHORITY_VALIDITY }.bounds()?;
        let serial = new_serial();
        let mut params = CertificateParams::default();
        params.not_before = not_before;
        params.not_after = not_after;
        // Two roots of one fleet must differ in their name, or a verifier cannot tell them apart during a rotation.
        let name = format!("Holdfast {fleet} {}", &Serial::from_bytes(&serial).as_str()[..8]);
        params.distinguished_name = common_name(name);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.subject_alt_names = vec![uri(identity::authority_uri(fleet))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(AuthorityError::Sign)?;
        Ok(Self {
            fleet,
            certificate: certificate.der().clone(),
            not_after: timestamp(not_after)?,
            issuer: Issuer::new(params, key),
        })
    }

    /// Loads what [`Authority::certificate_pem`] and [`Authority::key_pem`] gave.
    ///
    /// # Errors
    /// [`AuthorityError::Certificate`], [`AuthorityError::Key`], [`AuthorityError::KeyMismatch`].
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, AuthorityError> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| AuthorityError::Certificate)?;
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(key_pem, &PKCS_ECDSA_P256_SHA256)
            .map_err(AuthorityError::Key)?;
        let (fleet, not_after) = {
            let (rest, parsed) =
                X509Certificate::from_der(&certificate).map_err(|_| AuthorityError::Certificate)?;
            if !rest.is_empty() || !parsed.is_ca() {
                return Err(AuthorityError::Certificate);
            }
            if parsed.public_key().raw != key.subject_public_key_info() {
                return Err(AuthorityError::KeyMismatch);
            }
            let fleet = identity::authority_fleet(&parsed).map_err(|_| AuthorityError::Certificate)?;
            let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp())
                .map_err(|_| AuthorityError::Certificate)?;
            (fleet, not_after)
        };
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| AuthorityError::Certificate)?;
        Ok(Self { fleet, certificate, not_after, issuer })
    }

    /// The fleet that this authority speaks for.
    pub fn fleet(&self) -> FleetId {
        self.fleet
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's own certificate, as PEM text.
    pub fn certificate_pem(&self) -> String {
        certificate_pem(&self.certificate)
    }

    /// The private key in PKCS#8 PEM, for a file of mode 0600.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// SHA-256 of the certificate: the pin of join tokens.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// A bundle with this authority alone.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::from_der(vec![self.certificate.clone()])
            .expect("an authority's own certificate is that of an authority")
    }

    /// A certificate for a node: both client and server, since members talk to each other.
    ///
    /// Names and addresses are those given here, which must come from the coordinator's own records; of `request`
    /// only the public key is used.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn issue_node(
        &self,
        request: &SigningRequest,
        node: NodeId,
        name: &NodeName,
        addresses: &[IpAddr],
        validity: Validity,
    ) -> Result<Issued, AuthorityError> {
        let subject = Subject {
            kind: PeerKind::Node(node),
            addresses: addresses.to_vec(),
            dns_names: vec![name.to_string()],
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        self.issue(&request.public_key, subject, validity)
    }

    /// Credentials for an operator, with a new key.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn issue_operator(
        &self,
        name: &OperatorName,
        validity: Validity,
    ) -> Result<(Issued, NodeKey), AuthorityError> {
        let subject = Subject {
            kind: PeerKind::Operator(name.clone()),
            addresses: Vec::new(),
            dns_names: Vec::new(),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        self.issue_with_new_key(subject, validity)
    }

    /// Credentials for a coordinator's listeners, with a new key; good for the DNS names and addresses given.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn issue_coordinator(
        &self,
        name: &CoordinatorName,
        dns_names: &[String],
        addresses: &[IpAddr],
        validity: Validity,
    ) -> Result<(Issued, NodeKey), AuthorityError> {
        let subject = Subject {
            kind: PeerKind::Coordinator(name.clone()),
            addresses: addresses.to_vec(),
            dns_names: dns_names.to_vec(),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
        };
        self.issue_with_new_key(subject, validity)
    }

    fn issue_with_new_key(
        &self,
        subject: Subject,
        validity: Validity,
    ) -> Result<(Issued, NodeKey), AuthorityError> {
        let key = NodeKey::generate()?;
        let issued = self.issue(key.pair(), subject, validity)?;
        Ok((issued, key))
    }

    fn issue(
        &self,
        public_key: &impl PublicKeyData,
        subject: Subject,
        validity: Validity,
    ) -> Result<Issued, AuthorityError> {
        if validity.now >= self.not_after {
            return Err(AuthorityError::Expired { not_after: self.not_after });
        }
        let (not_before, mut not_after) = validity.bounds()?;
        // A leaf that outlives its authority would fail in some verifiers and pass in others.
        if timestamp(not_after)? > self.not_after {
            not_after = offset(self.not_after)?;
        }
        let serial = new_serial();
        let params = subject.params(self.fleet, not_before, not_after, &serial)?;
        let leaf = params.signed_by(public_key, &self.issuer).map_err(AuthorityError::Sign)?;
        Ok(Issued {
            chain: vec![leaf.der().clone(), self.certificate.clone()],
            serial: Serial::from_bytes(&serial),
            not_after: timestamp(not_after)?,
        })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("fleet", &self.fleet)
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

// === impl Validity ===

impl Validity {
    /// Twenty-four hours from `now`.
    pub fn day(now: Timestamp) -> Self {
        Self { now, lifetime: DEFAULT_VALIDITY }
    }

    fn bounds(self) -> Result<(OffsetDateTime, OffsetDateTime), AuthorityError> {
        let Self { now, lifetime } = self;
        let not_before = now.checked_sub(SKEW).map_err(|_| AuthorityError::Validity)?;
        let not_after = now.checked_add(lifetime).map_err(|_| AuthorityError::Validity)?;
        Ok((offset(not_before)?, offset(not_after)?))
    }
}

// === impl Issued ===

impl Issued {
    /// The chain as PEM text, leaf first, root included.
    pub fn chain_pem(&self) -> String {
        chain_pem(&self.chain)
    }

    /// The chain with its key.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn credentials(&self, key: &NodeKey) -> Result<Credentials, CredentialsError> {
        Credentials::from_pem(&self.chain_pem(), &key.to_pem())
    }
}

// === impl Subject ===

impl Subject {
    fn params(
        self,
        fleet: FleetId,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
        serial: &[u8],
    ) -> Result<CertificateParams, AuthorityError> {
        let Self { kind, addresses, dns_names, usages } = self;
        let found = addresses.len() + dns_names.len();
        if found > MAX_SUBJECT_NAMES {
            return Err(AuthorityError::TooManyNames { found });
        }
        let mut names = vec![uri(kind.uri(fleet))?];
        for name in dns_names {
            names.push(SanType::DnsName(dns_name(name)?));
        }
        names.extend(addresses.into_iter().map(SanType::IpAddress));

        // Each field is set: the defaults of rcgen are those of a test certificate.
        let mut params = CertificateParams::default();
        params.not_before = not_before;
        params.not_after = not_after;
        params.serial_number = Some(SerialNumber::from_slice(serial));
        params.subject_alt_names = names;
        params.distinguished_name = common_name(match &kind {
            PeerKind::Node(id) => id.to_string(),
            PeerKind::Operator(name) => name.to_string(),
            PeerKind::Coordinator(name) => name.to_string(),
        });
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

fn common_name(name: String) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn uri(text: String) -> Result<SanType, AuthorityError> {
    Ia5String::try_from(text).map(SanType::URI).map_err(AuthorityError::Sign)
}

/// Only a name that a verifier will match: no wildcard, no address in disguise.
fn dns_name(name: String) -> Result<Ia5String, AuthorityError> {
    let valid = rustls_pki_types::DnsName::try_from(name.as_str()).is_ok() && name.parse::<IpAddr>().is_err();
    if !valid {
        return Err(AuthorityError::DnsName { name: name.chars().take(253).collect() });
    }
    Ia5String::try_from(name.clone()).map_err(|_| AuthorityError::DnsName { name })
}

/// Sixteen bytes, random, positive and without a leading zero. rcgen's own choice is a digest of the public key, the
/// same for every renewal, which could not be revoked one by one.
fn new_serial() -> [u8; 16] {
    let mut serial = super::random_bytes::<16>();
    serial[0] = (serial[0] & 0x7f) | 0x40;
    serial
}

fn offset(at: Timestamp) -> Result<OffsetDateTime, AuthorityError> {
    OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|_| AuthorityError::Validity)
}

fn timestamp(at: OffsetDateTime) -> Result<Timestamp, AuthorityError> {
    Timestamp::from_second(at.unix_timestamp()).map_err(|_| AuthorityError::Validity)
}
