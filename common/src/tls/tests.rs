//! Real handshakes, in memory. Time is moved by issuing certificates for another time, never by waiting.

mod joining;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::HandshakeKind;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tower::Service as _;

use super::*;
use crate::id::{FleetId, NodeId};
use crate::pki::{Authority, NodeKey, PeerKind, SigningRequest, TrustBundle, Validity};

const ADDRESS: &str = "10.9.8.7";

struct Fleet {
    authority: Authority,
    now: Timestamp,
}

impl Fleet {
    fn new() -> Self {
        let now = Timestamp::now();
        Self { authority: Authority::create(FleetId::generate(), now).unwrap(), now }
    }

    fn id(&self) -> FleetId {
        self.authority.fleet()
    }

    fn coordinator(&self, validity: Validity) -> Credentials {
        let address: IpAddr = ADDRESS.parse().unwrap();
        let dns = ["coordinator.example".to_owned()];
        let (issued, key) =
            self.authority.issue_coordinator(&"main".parse().unwrap(), &dns, &[address], validity).unwrap();
        issued.credentials(&key).unwrap()
    }

    fn node(&self, id: NodeId, validity: Validity) -> Credentials {
        let key = NodeKey::generate().unwrap();
        let request = SigningRequest::parse(&key.signing_request().unwrap()).unwrap();
        let addresses = [ADDRESS.parse().unwrap()];
        let issued =
            self.authority.issue_node(&request, id, &"n1".parse().unwrap(), &addresses, validity).unwrap();
        issued.credentials(&key).unwrap()
    }

    fn day(&self) -> Validity {
        Validity::day(self.now)
    }

    /// Valid for a day that ended a day ago.
    fn past(&self) -> Validity {
        Validity::day(self.now - SignedDuration::from_hours(48))
    }

    fn server(&self, client_certificate: ClientCertificate) -> ServerTls {
        let settings = ServerSettings { fleet: self.id(), client_certificate, protocols: Protocols::H2 };
        ServerTls::new(settings, &self.coordinator(self.day()), &self.authority.bundle()).unwrap()
    }

    fn client(&self, credentials: Option<&Credentials>) -> ClientTls {
        ClientTls::new(self.id(), Expect::Coordinator, credentials, &self.authority.bundle()).unwrap()
    }
}

fn address() -> ServerName<'static> {
    ServerName::try_from(ADDRESS).unwrap()
}

type Outcome = (Result<Accepted<DuplexStream>, AcceptError>, Result<Connected<DuplexStream>, ConnectError>);

async fn handshake(server: &ServerTls, client: &ClientTls) -> Outcome {
    let (near, far) = duplex(64 * 1024);
    tokio::join!(server.accept(far, HANDSHAKE_DEADLINE), client.connect(address(), near, HANDSHAKE_DEADLINE))
}

/// One byte there and one back.
async fn exchange(server: &mut Accepted<DuplexStream>, client: &mut Connected<DuplexStream>) {
    client.stream.write_all(b"?").await.unwrap();
    assert_eq!(server.stream.read_u8().await.unwrap(), b'?');
    server.stream.write_all(b"!").await.unwrap();
    assert_eq!(client.stream.read_u8().await.unwrap(), b'!');
}

fn refused_for(error: &AcceptError, wanted: &str) {
    let AcceptError::Handshake(source) = error else { panic!("{error:?}") };
    assert!(source.to_string().contains(wanted), "{source}");
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let fleet = Fleet::new();
    let id = NodeId::generate();
    let node = fleet.node(id, fleet.day());
    let (accepted, connected) =
        handshake(&fleet.server(ClientCertificate::Optional), &fleet.client(Some(&node))).await;
    let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
    exchange(&mut accepted, &mut connected).await;

    let peer = accepted.peer.unwrap();
    assert_eq!((peer.fleet, &peer.kind), (fleet.id(), &PeerKind::Node(id)));
    assert_eq!(peer, node.identity().unwrap());
    assert_eq!(connected.peer.kind, PeerKind::Coordinator("main".parse().unwrap()));
    let (_, connection) = accepted.stream.get_ref();
    assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[tokio::test]
async fn without_a_certificate_a_client_is_nobody_or_refused() {
    let fleet = Fleet::new();
    let client = fleet.client(None);

    let (accepted, _) = handshake(&fleet.server(ClientCertificate::Optional), &client).await;
    assert_eq!(accepted.unwrap().peer, None);

    let (accepted, connected) = handshake(&fleet.server(ClientCertificate::Required), &client).await;
    refused_for(&accepted.unwrap_err(), "sent no certificates");
    // In TLS 1.3 the client learns of it with its first read.
    connected.unwrap().stream.read_u8().await.expect_err("the server closed the connection");
}

#[tokio::test]
async fn an_expired_client_is_refused_even_where_none_is_needed() {
    let fleet = Fleet::new();
    let expired = fleet.node(NodeId::generate(), fleet.past());
    let (accepted, _) =
        handshake(&fleet.server(ClientCertificate::Optional), &fleet.client(Some(&expired))).await;
    refused_for(&accepted.unwrap_err(), "expired");
}

#[tokio::test]
async fn a_client_that_is_not_valid_yet_is_refused() {
    let fleet = Fleet::new();
    let early = fleet.node(NodeId::generate(), Validity::day(fleet.now + SignedDuration::from_hours(1)));
    let (accepted, _) =
        handshake(&fleet.server(ClientCertificate::Optional), &fleet.client(Some(&early))).await;
    refused_for(&accepted.unwrap_err(), "not valid yet");
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let stranger = theirs.node(NodeId::generate(), theirs.day());
    let (accepted, _) =
        handshake(&ours.server(ClientCertificate::Optional), &ours.client(Some(&stranger))).await;
    refused_for(&accepted.unwrap_err(), "UnknownIssuer");
}

#[tokio::test]
async fn a_client_of_another_fleet_below_a_trusted_root_is_refused() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let both = ours.authority.bundle().union(&theirs.authority.bundle()).unwrap();
    let settings = ServerSettings {
        fleet: ours.id(),
        client_certificate: ClientCertificate::Optional,
        protocols: Protocols::H2,
    };
    let server = ServerTls::new(settings, &ours.coordinator(ours.day()), &both).unwrap();
    let stranger = theirs.node(NodeId::generate(), theirs.day());
    let (accepted, _) = handshake(&server, &ours.client(Some(&stranger))).await;
    let expected = IdentityErrorOf { found: theirs.id(), expected: ours.id() };
    assert!(expected.is(&accepted.unwrap_err()));
}

struct IdentityErrorOf {
    found: FleetId,
    expected: FleetId,
}

impl IdentityErrorOf {
    fn is(&self, error: &AcceptError) -> bool {
        let wanted = crate::pki::IdentityError::OtherFleet { found: self.found, expected: self.expected };
        matches!(error, AcceptError::Identity(inner) if *inner == wanted)
    }
}

#[tokio::test]
async fn an_operators_certificate_is_not_good_for_serving() {
    let fleet = Fleet::new();
    let (issued, key) =
        fleet.authority.issue_operator(&"alice".parse().unwrap(), Validity::day(fleet.now)).unwrap();
    let settings = ServerSettings {
        fleet: fleet.id(),
        client_certificate: ClientCertificate::Optional,
        protocols: Protocols::H2,
    };
    let server =
        ServerTls::new(settings, &issued.credentials(&key).unwrap(), &fleet.authority.bundle()).unwrap();
    let (_, connected) = handshake(&server, &fleet.client(None)).await;
    assert!(matches!(connected, Err(ConnectError::Untrusted(_))));
}

#[tokio::test]
async fn a_server_must_be_of_the_fleet_in_date_and_valid_for_the_address() {
    let (ours, theirs) = (Fleet::new(), Fleet::new());
    let client = ours.client(None);

    let (_, connected) = handshake(&theirs.server(ClientCertificate::Optional), &client).await;
    assert!(matches!(connected, Err(ConnectError::Untrusted(_))), "another authority");

    let server = ours.server(ClientCertificate::Optional);
    server.reload(&ours.coordinator(ours.past()), &ours.authority.bundle()).unwrap();
    let (_, connected) = handshake(&server, &client).await;
    assert!(matches!(connected, Err(ConnectError::Untrusted(_))), "expired");

    let server = ours.server(ClientCertificate::Optional);
    let (near, far) = duplex(64 * 1024);
    let elsewhere = ServerName::try_from("other.example").unwrap();
    let (_, connected) = tokio::join!(
        server.accept(far, HANDSHAKE_DEADLINE),
        client.connect(elsewhere, near, HANDSHAKE_DEADLINE)
    );
    assert!(matches!(connected, Err(ConnectError::Untrusted(_))), "another address");
}

#[tokio::test]
async fn a_node_cannot_pass_for_a_coordinator_nor_for_another_node() {
    let fleet = Fleet::new();
    let (id, other) = (NodeId::generate(), NodeId::generate());
    let server = fleet.server(ClientCertificate::Optional);
    server.reload(&fleet.node(id, fleet.day()), &fleet.authority.bundle()).unwrap();
    let expecting = |expect| ClientTls::new(fleet.id(), expect, None, &fleet.authority.bundle()).unwrap();

    let (_, connected) = handshake(&server, &fleet.client(None)).await;
    assert!(matches!(connected, Err(ConnectError::Untrusted(_))), "as a coordinator");
    let (_, connected) = handshake(&server, &expecting(Expect::Node(other))).await;
    assert!(matches!(connected, Err(ConnectError::Untrusted(_))), "as another node");
    let (_, connected) = handshake(&server, &expecting(Expect::Node(id))).await;
    assert_eq!(connected.unwrap().peer.kind, PeerKind::Node(id));
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let fleet = Fleet::new();
    let server = fleet.server(ClientCertificate::Optional);
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(&hello_of_tls_1_2()).await.unwrap();
    let error = server.accept(far, HANDSHAKE_DEADLINE).await.unwrap_err();
    refused_for(&error, "SupportedVersionsExtensionRequired");
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    // Record type 21 (alert), level 2 (fatal), description 70 (protocol_version).
    assert_eq!((answer[0], &answer[5..]), (21, &[2, 70][..]));
}

/// A greeting that offers TLS 1.2 and nothing newer.
fn hello_of_tls_1_2() -> Vec<u8> {
    let extensions: &[u8] = &[
        0, 10, 0, 4, 0, 2, 0, 23, // supported_groups: P-256
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
        0, 23, 0, 0, // extended_master_secret
    ];
    let mut body = vec![3, 3];
    body.extend([7; 32]); // random
    body.push(0); // no session
    body.extend([0, 2, 0xc0, 0x2b]); // TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    body.extend([1, 0]); // no compression
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u16::try_from(body.len()).unwrap();
    let mut hello = vec![22, 3, 1];
    hello.extend((length + 4).to_be_bytes());
    hello.extend([1, 0]);
    hello.extend(length.to_be_bytes());
    hello.extend(body);
    hello
}

#[tokio::test]
async fn a_reload_serves_new_connections_and_keeps_the_old_ones() {
    let fleet = Fleet::new();
    let server = fleet.server(ClientCertificate::Optional);
    let client = fleet.client(None);
    let (old_server, old_client) = handshake(&server, &client).await;
    let (mut old_server, mut old_client) = (old_server.unwrap(), old_client.unwrap());

    let renewed = fleet.coordinator(fleet.day());
    server.reload(&renewed, &fleet.authority.bundle()).unwrap();
    let (_, new_client) = handshake(&server, &client).await;
    let new_client = new_client.unwrap();
    assert_eq!(new_client.peer, renewed.identity().unwrap());
    assert_ne!(new_client.peer.serial, old_client.peer.serial);
    exchange(&mut old_server, &mut old_client).await;

    // A client reloads in the same way.
    let (first, second) =
        (fleet.node(NodeId::generate(), fleet.day()), fleet.node(NodeId::generate(), fleet.day()));
    for credentials in [first, second] {
        client.reload(Some(&credentials), &fleet.authority.bundle()).unwrap();
        let (accepted, _) = handshake(&server, &client).await;
        assert_eq!(accepted.unwrap().peer, Some(credentials.identity().unwrap()));
    }
}

#[tokio::test]
async fn a_failed_reload_changes_nothing() {
    let fleet = Fleet::new();
    let server = fleet.server(ClientCertificate::Optional);
    let stolen = fleet.coordinator(fleet.day()).with_chain(&fleet.authority.certificate_pem());
    let error = server.reload(&stolen, &fleet.authority.bundle()).unwrap_err();
    assert!(matches!(error, BuildError::Credentials(_)), "{error:?}");
    let (_, connected) = handshake(&server, &fleet.client(None)).await;
    connected.unwrap();
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let fleet = Fleet::new();
    let node = fleet.node(NodeId::generate(), fleet.day());
    let (server, client) = (fleet.server(ClientCertificate::Required), fleet.client(Some(&node)));
    for _ in 0..3 {
        let (accepted, connected) = handshake(&server, &client).await;
        let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
        exchange(&mut accepted, &mut connected).await;
        assert_eq!(accepted.stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(connected.stream.get_ref().1.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn both_roots_are_good_during_a_rotation_and_only_the_new_one_after_it() {
    let old = Fleet::new();
    let new = Fleet { authority: Authority::create(old.id(), old.now).unwrap(), now: old.now };
    let both: TrustBundle = old.authority.bundle().union(&new.authority.bundle()).unwrap();
    let id = NodeId::generate();
    let (before, after) = (old.node(id, old.day()), new.node(id, new.day()));
    let server = old.server(ClientCertificate::Required);

    for (serving, roots, welcome) in [
        (&old, &both, [true, true]),
        (&new, &both, [true, true]),
        (&new, &new.authority.bundle(), [false, true]),
    ] {
        server.reload(&serving.coordinator(serving.day()), roots).unwrap();
        for (credentials, welcome) in [&before, &after].into_iter().zip(welcome) {
            let client = ClientTls::new(old.id(), Expect::Coordinator, Some(credentials), &both).unwrap();
            let (accepted, _) = handshake(&server, &client).await;
            assert_eq!(
                accepted.map(|accepted| accepted.peer).ok(),
                welcome.then(|| credentials.identity().ok())
            );
        }
    }
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_dropped_at_the_deadline() {
    let fleet = Fleet::new();
    let deadline = Duration::from_millis(20);
    let (near, far) = duplex(64);
    let accepted = fleet.server(ClientCertificate::Optional).accept(far, deadline).await;
    assert!(matches!(accepted, Err(AcceptError::Deadline(_))));
    drop(near);
    let (near, far) = duplex(64 * 1024);
    let connected = fleet.client(None).connect(address(), near, deadline).await;
    assert!(matches!(connected, Err(ConnectError::Deadline(_))));
    drop(far);
}

#[test]
fn installing_the_provider_twice_is_harmless() {
    install_provider();
    install_provider();
    assert!(CryptoProvider::get_default().is_some());
}

#[tokio::test]
async fn a_connector_dials_and_says_what_went_wrong() {
    let now = Timestamp::now();
    let authority = Authority::create(FleetId::generate(), now).unwrap();
    let addresses: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    let (issued, key) =
        authority.issue_coordinator(&"main".parse().unwrap(), &[], &addresses, Validity::day(now)).unwrap();
    let settings = ServerSettings {
        fleet: authority.fleet(),
        client_certificate: ClientCertificate::Optional,
        protocols: Protocols::H2,
    };
    let server = ServerTls::new(settings, &issued.credentials(&key).unwrap(), &authority.bundle()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = ClientTls::new(authority.fleet(), Expect::Coordinator, None, &authority.bundle()).unwrap();
    let stranger = ClientTls::joining(Fleet::new().authority.fingerprint()).unwrap();
    let (mut good, mut bad) = (Connector::new(Arc::new(tls)), Connector::new(Arc::new(stranger)));

    let accept = async || {
        let (tcp, _) = listener.accept().await.unwrap();
        server.accept(tcp, HANDSHAKE_DEADLINE).await
    };
    let uri = |text: String| text.parse::<http::Uri>().unwrap();
    let here = uri(format!("http://127.0.0.1:{port}"));
    let (accepted, dialled) = tokio::join!(accept(), good.call(here.clone()));
    accepted.unwrap();
    dialled.unwrap();
    let (_, dialled) = tokio::join!(accept(), bad.call(here.clone()));
    assert!(matches!(dialled, Err(DialError::Tls { source: ConnectError::PinMismatch, .. })));

    let error = good.call(uri("http://127.0.0.1".to_owned())).await.unwrap_err();
    assert!(matches!(error, DialError::Address { .. }));
    drop(listener);
    let error = good.call(here).await.unwrap_err();
    assert_eq!(error.to_string(), format!("connect to 127.0.0.1:{port}"));
    // Brackets are the URI's, not the address's.
    let v6 = good.call(uri(format!("http://[::1]:{port}"))).await.unwrap_err();
    assert!(matches!(v6, DialError::Connect { .. }), "{v6:?}");
}
