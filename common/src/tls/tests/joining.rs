//! Those that join: they trust one pinned authority, and nobody else learns the secret.

use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::pki::JoinToken;

#[tokio::test]
async fn a_joining_node_trusts_the_pinned_authority_alone() {
    let fleet = Fleet::new();
    let client = ClientTls::joining(fleet.authority.fingerprint()).unwrap();
    let (accepted, connected) = handshake(&fleet.server(ClientCertificate::Optional), &client).await;
    let mut connected = connected.unwrap();
    assert_eq!(connected.peer.fleet, fleet.id());
    exchange(&mut accepted.unwrap(), &mut connected).await;

    let server = fleet.server(ClientCertificate::Optional);
    server.reload(&fleet.node(NodeId::generate(), fleet.day()), &fleet.authority.bundle()).unwrap();
    let (_, connected) = handshake(&server, &client).await;
    assert!(matches!(connected, Err(ConnectError::Untrusted(_))), "a node of the fleet is no coordinator");
    server.reload(&fleet.coordinator(fleet.past()), &fleet.authority.bundle()).unwrap();
    let (_, connected) = handshake(&server, &client).await;
    assert!(matches!(connected, Err(ConnectError::Untrusted(_))), "expired");
}

/// Passes everything on and keeps a copy of all that is written.
struct Recorded {
    io: DuplexStream,
    written: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.lock().unwrap().extend_from_slice(&buf[..bytes]);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What a joining agent does: connect, and only then send the secret.
async fn join(client: &ClientTls, token: &JoinToken, io: Recorded) -> Result<(), ConnectError> {
    let mut connected = client.connect(address(), io, HANDSHAKE_DEADLINE).await?;
    connected.stream.write_all(token.secret.reveal().as_bytes()).await.unwrap();
    connected.stream.shutdown().await.unwrap();
    Ok(())
}

/// What the server read in plain text, what crossed the wire, and how the joining ended.
async fn join_through(server: &ServerTls, token: &JoinToken) -> (Vec<u8>, Vec<u8>, Result<(), ConnectError>) {
    let client = ClientTls::joining(token.pin).unwrap();
    let (near, far) = duplex(64 * 1024);
    let written = Arc::new(Mutex::new(Vec::new()));
    let recorded = Recorded { io: near, written: Arc::clone(&written) };
    let serve = async {
        let mut plain = Vec::new();
        if let Ok(mut accepted) = server.accept(far, HANDSHAKE_DEADLINE).await {
            // A broken end is as good as a clean one: what counts is what arrived.
            let _ended = accepted.stream.read_to_end(&mut plain).await;
        }
        plain
    };
    let (plain, joined) = tokio::join!(serve, join(&client, token, recorded));
    let wire = written.lock().unwrap().clone();
    (plain, wire, joined)
}

#[tokio::test]
async fn the_secret_reaches_the_pinned_authority_and_nobody_else() {
    let (fleet, evil) = (Fleet::new(), Fleet::new());
    let token = JoinToken::generate(fleet.authority.fingerprint());

    // The recording works: the right server reads the secret.
    let (plain, right_wire, joined) = join_through(&fleet.server(ClientCertificate::Optional), &token).await;
    joined.unwrap();
    assert_eq!(plain, token.secret.reveal().as_bytes());

    // A server of another authority; one that shows the real root beside its own chain; one that shows it as its own.
    let mut beside = evil.coordinator(evil.day());
    let mut instead = evil.coordinator(evil.day());
    let root = fleet.authority.certificate_pem();
    for (credentials, keep) in [(&mut beside, 2), (&mut instead, 1)] {
        let own = crate::pki::chain_pem(&credentials.chain()[..keep]);
        *credentials = credentials.with_chain(&format!("{own}{root}"));
    }
    for credentials in [evil.coordinator(evil.day()), beside, instead] {
        let server = evil.server(ClientCertificate::Optional);
        server.reload(&credentials, &evil.authority.bundle()).unwrap();
        let (plain, wire, joined) = join_through(&server, &token).await;
        assert!(matches!(joined, Err(ConnectError::PinMismatch)), "{joined:?}");
        assert_eq!(plain, b"", "the other server read something");
        // Nothing but the greeting and an alert crossed: the secret's record alone would be longer than the difference.
        assert!(wire.len() + 43 < right_wire.len(), "{} of {} bytes", wire.len(), right_wire.len());
        assert!(!wire.windows(8).any(|bytes| token.secret.reveal().as_bytes().starts_with(bytes)));
    }
}
