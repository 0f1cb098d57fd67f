//! What the authority writes into certificates, and what it does not take over from requests.

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, SanType,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::*;
use crate::id::{FleetId, NodeId};

fn authority() -> Authority {
    Authority::create(FleetId::generate(), Timestamp::now()).unwrap()
}

fn request() -> SigningRequest {
    SigningRequest::parse(&NodeKey::generate().unwrap().signing_request().unwrap()).unwrap()
}

fn issue(authority: &Authority, request: &SigningRequest, validity: Validity) -> Issued {
    let addresses: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    authority.issue_node(request, NodeId::generate(), &"n1".parse().unwrap(), &addresses, validity).unwrap()
}

/// Asks for everything that a request can ask for.
fn greedy(key: &KeyPair) -> String {
    let mut params = CertificateParams::new(vec!["*.evil.example".to_owned(), "6.6.6.6".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("spiffe://evil/operator/root".try_into().unwrap()));
    params.distinguished_name.push(DnType::CommonName, "postgres");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    params.serialize_request(key).unwrap().pem().unwrap()
}

#[test]
fn of_a_request_only_the_key_reaches_the_certificate() {
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let request = SigningRequest::parse(&greedy(&key)).unwrap();
    let node = NodeId::generate();
    let now = Timestamp::now();
    let addresses: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    let issued =
        authority.issue_node(&request, node, &"n1".parse().unwrap(), &addresses, Validity::day(now)).unwrap();

    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    assert_eq!(leaf.subject().to_string(), format!("CN={node}"));
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert_eq!(usage.flags, 1, "digital signature alone");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.code_signing && !extended.any);
    let uri = format!("spiffe://{}/node/{node}", authority.fleet());
    let v6 = addresses[1];
    let IpAddr::V6(v6) = v6 else { panic!("{v6}") };
    assert_eq!(
        leaf.subject_alternative_name().unwrap().unwrap().value.general_names,
        [
            GeneralName::URI(&uri),
            GeneralName::DNSName("n1"),
            GeneralName::IPAddress(&[10, 0, 0, 1]),
            GeneralName::IPAddress(&v6.octets()),
        ]
    );
    assert_eq!(leaf.validity().not_before.timestamp(), now.as_second() - 300);
    assert_eq!(leaf.validity().not_after.timestamp(), now.as_second() + 24 * 3600);
    leaf.verify_signature(Some(X509Certificate::from_der(&issued.chain[1]).unwrap().1.public_key())).unwrap();

    let identity = PeerIdentity::parse(&issued.chain[0]).unwrap();
    assert_eq!(identity.kind, PeerKind::Node(node));
    assert_eq!((identity.serial, identity.not_after), (issued.serial, issued.not_after));
}

#[test]
fn an_unusual_request_is_refused_for_what_is_wrong_with_it() {
    let good = NodeKey::generate().unwrap().signing_request().unwrap();
    let refused = |pem: &str| SigningRequest::parse(pem).unwrap_err();
    let of = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap().pem().unwrap();

    assert!(matches!(refused(""), RequestError::Encoding));
    assert!(matches!(refused("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"), RequestError::Encoding));
    assert!(matches!(refused(&good.repeat(2)), RequestError::Encoding));
    assert!(matches!(refused(&authority().certificate_pem()), RequestError::Encoding));
    assert!(matches!(refused(&"x".repeat(MAX_REQUEST_BYTES + 1)), RequestError::TooLong { bytes: 16385 }));
    for unwanted in [&PKCS_ED25519, &PKCS_RSA_SHA256, &rcgen::PKCS_ECDSA_P521_SHA512] {
        let key = KeyPair::generate_for(unwanted).unwrap();
        assert!(matches!(refused(&of(&key)), RequestError::KeyType), "{unwanted:?}");
    }
    SigningRequest::parse(&of(&KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap())).unwrap();
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    let good = NodeKey::generate().unwrap().signing_request().unwrap();
    let body: String = good.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(body).unwrap();
    // Somewhere in the public key, in the middle of the request: the signature no longer fits.
    let mut changed = 0;
    for at in 40..60 {
        let mut der = der.clone();
        der[at] ^= 1;
        let pem = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            STANDARD.encode(der)
        );
        let error = SigningRequest::parse(&pem).unwrap_err();
        changed += u32::from(matches!(error, RequestError::Signature));
    }
    assert!(changed > 10, "only {changed} were refused for their signature");
}

#[test]
fn every_renewal_has_a_serial_of_its_own() {
    let (authority, request) = (authority(), request());
    let day = Validity::day(Timestamp::now());
    let serials: std::collections::BTreeSet<_> =
        (0..50).map(|_| issue(&authority, &request, day).serial).collect();
    assert_eq!(serials.len(), 50);
    assert!(serials.iter().all(|serial| serial.as_str().len() == 32), "{serials:?}");
}

#[test]
fn a_loaded_authority_goes_on_where_the_first_left_off() {
    let first = authority();
    let again = Authority::load(&first.certificate_pem(), &first.key_pem()).unwrap();
    assert_eq!((again.fleet(), again.fingerprint()), (first.fleet(), first.fingerprint()));

    let issued = issue(&again, &request(), Validity::day(Timestamp::now()));
    let (_, root) = X509Certificate::from_der(first.certificate()).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(leaf.issuer(), root.subject());
    assert_eq!(issued.chain[1], *first.certificate());
}

#[test]
fn an_authority_is_not_loaded_with_anothers_key_nor_from_a_leaf() {
    let (one, two) = (authority(), authority());
    let mismatch = Authority::load(&one.certificate_pem(), &two.key_pem()).unwrap_err();
    assert!(matches!(mismatch, AuthorityError::KeyMismatch));
    let (issued, key) =
        one.issue_operator(&"alice".parse().unwrap(), Validity::day(Timestamp::now())).unwrap();
    let leaf = Authority::load(&issued.chain_pem(), &key.to_pem()).unwrap_err();
    assert!(matches!(leaf, AuthorityError::Certificate));
    assert!(matches!(Authority::load("", &one.key_pem()), Err(AuthorityError::Certificate)));
    assert!(matches!(Authority::load(&one.certificate_pem(), "x"), Err(AuthorityError::Key(_))));
}

#[test]
fn no_certificate_outlives_its_authority() {
    let authority = authority();
    let (_, root) = X509Certificate::from_der(authority.certificate()).unwrap();
    let end = Timestamp::from_second(root.validity().not_after.timestamp()).unwrap();

    let late = Validity { now: end - SignedDuration::from_hours(1), lifetime: DEFAULT_VALIDITY };
    assert_eq!(issue(&authority, &request(), late).not_after, end);
    let too_late = Validity { now: end, lifetime: Duration::from_secs(5) };
    let error = authority.issue_operator(&"alice".parse().unwrap(), too_late).unwrap_err();
    assert!(matches!(error, AuthorityError::Expired { .. }));
}

#[test]
fn a_coordinator_gets_no_name_that_a_verifier_would_not_match() {
    let authority = authority();
    let name = "main".parse().unwrap();
    let day = Validity::day(Timestamp::now());
    for bad in ["*.example", "", "a b", "10.0.0.1", "ä.example", "a..b", "-a", &"a".repeat(64)] {
        let error = authority.issue_coordinator(&name, &[bad.to_owned()], &[], day).unwrap_err();
        assert!(matches!(error, AuthorityError::DnsName { .. }), "{bad:?}: {error:?}");
    }
    let many = vec!["a.example".to_owned(); 65];
    let error = authority.issue_coordinator(&name, &many, &[], day).unwrap_err();
    assert!(matches!(error, AuthorityError::TooManyNames { found: 65 }));
}

#[test]
fn an_authoritys_certificate_identifies_no_peer() {
    assert_eq!(PeerIdentity::parse(authority().certificate()), Err(IdentityError::Authority));
    assert_eq!(PeerIdentity::parse(b""), Err(IdentityError::Unreadable));
    let key = KeyPair::generate().unwrap();
    let nameless = CertificateParams::default().self_signed(&key).unwrap();
    assert_eq!(PeerIdentity::parse(nameless.der()), Err(IdentityError::UriCount { found: 0 }));
    let mut params = CertificateParams::default();
    for kind in ["operator/a", "operator/b"] {
        let uri = format!("spiffe://{}/{kind}", FleetId::generate());
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    }
    let twofold = params.self_signed(&key).unwrap();
    assert_eq!(PeerIdentity::parse(twofold.der()), Err(IdentityError::UriCount { found: 2 }));
    let issued = issue(&authority(), &request(), Validity::day(Timestamp::now()));
    let mut trailing = issued.chain[0].to_vec();
    trailing.push(0);
    assert_eq!(PeerIdentity::parse(&trailing), Err(IdentityError::Unreadable));
}

#[test]
fn a_bundle_holds_authorities_only_and_each_once() {
    let (one, two) = (authority(), authority());
    let both = one.bundle().union(&two.bundle()).unwrap().union(&one.bundle()).unwrap();
    assert_eq!(both.fingerprints().collect::<Vec<_>>(), [one.fingerprint(), two.fingerprint()]);
    assert_eq!(TrustBundle::from_pem(&both.to_pem()).unwrap(), both);

    let (leaf, _) = one.issue_operator(&"alice".parse().unwrap(), Validity::day(Timestamp::now())).unwrap();
    let error = TrustBundle::from_pem(&leaf.chain_pem()).unwrap_err();
    assert!(matches!(error, CredentialsError::NotAnAuthority { .. }));
    assert!(matches!(TrustBundle::from_pem(""), Err(CredentialsError::CertificateCount { found: 0 })));
    let nine = one.certificate_pem().repeat(9);
    assert!(matches!(TrustBundle::from_pem(&nine), Err(CredentialsError::CertificateCount { found: 9 })));
}

#[test]
fn a_key_comes_back_from_its_file_and_never_shows_in_debug() {
    let key = NodeKey::generate().unwrap();
    let pem = key.to_pem();
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----"), "PKCS#8");
    let again = NodeKey::from_pem(&pem).unwrap();
    let digest = |key: &NodeKey| SigningRequest::parse(&key.signing_request().unwrap()).unwrap().key_digest();
    assert_eq!(digest(&again), digest(&key));

    let authority = authority();
    let (issued, key) =
        authority.issue_operator(&"alice".parse().unwrap(), Validity::day(Timestamp::now())).unwrap();
    let shown = format!("{key:?} {authority:?} {:?}", issued.credentials(&key).unwrap());
    let pem = key.to_pem();
    assert!(!pem.lines().filter(|line| line.len() > 20).any(|line| shown.contains(line)), "{shown}");
}
