//! One listener: accepts, shakes hands, serves HTTP/2, and lets go, each within a bound.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use holdfast_common::error::Chain;
use holdfast_common::tls::{HANDSHAKE_DEADLINE, Protocols, ServerTls};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::guard::Guard;
use super::peer::Peer;

/// How often an idle connection is asked whether the other end still lives, and how long it has to answer.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_DEADLINE: Duration = Duration::from_secs(10);
/// The longest header list.
const MAX_HEADERS: u32 = 16 * 1024;
/// Flow control: what one stream, and all streams of a connection, may send before they are read.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// How much of answers is held for a connection that does not take them.
const SEND_BUFFER: usize = 64 * 1024;
/// How long a peer that has no certificate may stay on a listener where it can only join.
const ANONYMOUS_FOR: Duration = Duration::from_secs(60);
/// After a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds of one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    pub connections: usize,
    pub connections_per_address: usize,
    /// Calls and streams of one connection.
    pub streams: u32,
    /// Whether peers without a certificate may stay.
    pub anonymous: Anonymous,
}

/// What a peer without a certificate is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// Bearer tokens.
    MayStay,
    /// One call.
    MustHurry,
}

/// A socket that listens, and how it serves.
#[derive(Debug)]
pub struct Listener {
    pub name: &'static str,
    pub socket: TcpListener,
    pub tls: Arc<ServerTls>,
    pub protocols: Protocols,
    pub limits: ConnectionLimits,
}

/// Connections by address.
#[derive(Debug, Clone, Default)]
struct Addresses {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

struct Counted {
    addresses: Addresses,
    address: IpAddr,
}

// === impl Listener ===

impl Listener {
    /// Serves until `shutdown`, then lets calls end for `grace`, then cuts what is left.
    pub async fn serve(self, guard: Guard, routes: Router, shutdown: CancellationToken, grace: Duration) {
        let room = Arc::new(Semaphore::new(self.limits.connections));
        let addresses = Addresses::default();
        let tasks = TaskTracker::new();
        let cut = CancellationToken::new();
        let connections = Connections {
            tls: Arc::clone(&self.tls),
            http: http(self.protocols, &self.limits),
            anonymous: self.limits.anonymous,
            guard,
            routes,
            shutdown: shutdown.clone(),
            cut: cut.clone(),
        };
        loop {
            // Both arms are cancel-safe.
            let (stream, address) = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.socket.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        self.accept_failed(&error).await;
                        continue;
                    }
                },
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                tracing::debug!(listener = self.name, %address, "no room for another connection");
                continue;
            };
            let Some(counted) = addresses.count(address.ip(), self.limits.connections_per_address) else {
                tracing::debug!(listener = self.name, %address, "too many connections of this address");
                continue;
            };
            let connection = connections.clone();
            tasks.spawn(async move {
                let _held = (permit, counted);
                connection.serve(stream, address).await;
            });
        }
        drop(self.socket);
        tasks.close();
        if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
            tracing::info!(
                listener = self.name,
                connections = tasks.len(),
                "connections are cut: their time is over"
            );
            cut.cancel();
            tasks.wait().await;
        }
    }

    async fn accept_failed(&self, error: &io::Error) {
        tracing::warn!(listener = self.name, error = %Chain(error), "accept a connection");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

fn http(protocols: Protocols, limits: &ConnectionLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_DEADLINE)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(PING_INTERVAL)
        .max_headers(64)
        .max_buf_size(64 * 1024);
    match protocols {
        Protocols::H2 => builder.http2_only(),
        Protocols::H2AndHttp1 => builder,
    }
}

/// What all connections of a listener share.
#[derive(Clone)]
struct Connections {
    tls: Arc<ServerTls>,
    http: auto::Builder<TokioExecutor>,
    anonymous: Anonymous,
    guard: Guard,
    routes: Router,
    shutdown: CancellationToken,
    cut: CancellationToken,
}

// === impl Connections ===

impl Connections {
    async fn serve(self, stream: TcpStream, address: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%address, error = %Chain(&error), "set no-delay");
        }
        let accepted = tokio::select! {
            () = self.shutdown.cancelled() => return,
            accepted = self.tls.accept(stream, HANDSHAKE_DEADLINE) => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%address, error = %Chain(&error), "handshake");
                    return;
                }
            },
        };
        let hurry = accepted.peer.is_none() && self.anonymous == Anonymous::MustHurry;
        let peer = Peer { address, identity: accepted.peer };
        let service = TowerToHyperService::new(self.guard.connection(peer, self.routes.clone()));
        let connection = self.http.serve_connection(TokioIo::new(accepted.stream), service);
        let mut connection = std::pin::pin!(connection);
        let anonymous_end = async {
            if hurry {
                tokio::time::sleep(ANONYMOUS_FOR).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let mut anonymous_end = std::pin::pin!(anonymous_end);
        let mut leaving = false;
        loop {
            // All arms are cancel-safe: the connection is polled on in the next round.
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%address, error = %Chain(&*error), "connection ended");
                    }
                    return;
                }
                () = self.cut.cancelled() => return,
                () = &mut anonymous_end => return,
                () = self.shutdown.cancelled(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

// === impl Addresses ===

impl Addresses {
    fn count(&self, address: IpAddr, most: usize) -> Option<Counted> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted { addresses: self.clone(), address })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut entry) = counts.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_address_are_bounded_and_forgotten() {
        let addresses = Addresses::default();
        let address = IpAddr::from([192, 0, 2, 1]);
        let held: Vec<_> = (0..3).filter_map(|_| addresses.count(address, 2)).collect();
        assert_eq!(held.len(), 2);
        assert!(addresses.count([192, 0, 2, 2].into(), 2).is_some(), "others are not concerned");
        drop(held);
        assert!(addresses.counts.lock().unwrap().is_empty());
    }
}
