//! Dials and does the handshake, in the shape that an HTTP/2 client takes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tower::Service;

use super::HANDSHAKE_DEADLINE;
use super::client::{ClientTls, ConnectError};

const DIAL_DEADLINE: Duration = Duration::from_secs(5);

/// For tonic's `Endpoint::connect_with_connector`. The endpoint's URI must begin with `http://`: the encryption is done
/// here, with whatever the [`ClientTls`] holds at the time of each connection.
#[derive(Debug, Clone)]
pub struct Connector {
    tls: Arc<ClientTls>,
}

/// Why there is no connection to a server.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The URI has no host or port, or the host is neither a DNS name nor an address.
    #[error("`{uri}` does not name a host and a port, such as `http://10.0.0.1:7400`")]
    Address {
        /// The URI.
        uri: String,
    },
    /// Nobody answered in time.
    #[error("reach {address} within {} s", DIAL_DEADLINE.as_secs())]
    Unreachable {
        /// Host and port.
        address: String,
    },
    /// No such host, or nobody listens there.
    #[error("connect to {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is a server, but no trust.
    #[error("open a secure connection to {address}")]
    Tls {
        /// Host and port.
        address: String,
        /// Why not.
        #[source]
        source: ConnectError,
    },
}

// === impl Connector ===

impl Connector {
    /// Dials with `tls`, which may be reloaded meanwhile.
    pub fn new(tls: Arc<ClientTls>) -> Self {
        Self { tls }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(dial(Arc::clone(&self.tls), uri))
    }
}

async fn dial(tls: Arc<ClientTls>, uri: Uri) -> Result<TokioIo<TlsStream<TcpStream>>, DialError> {
    let wrong = || DialError::Address { uri: uri.to_string() };
    let (host, port) = uri.host().zip(uri.port_u16()).ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
    let address = || format!("{}:{port}", uri.host().unwrap_or_default());

    let tcp = timeout(DIAL_DEADLINE, TcpStream::connect((host, port)))
        .await
        .map_err(|_| DialError::Unreachable { address: address() })?
        .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
        .map_err(|source| DialError::Connect { address: address(), source })?;
    let connected = tls
        .connect(name, tcp, HANDSHAKE_DEADLINE)
        .await
        .map_err(|source| DialError::Tls { address: address(), source })?;
    Ok(TokioIo::new(connected.stream))
}
