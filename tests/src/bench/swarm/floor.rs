//! What is compared against: a bare server that takes the same connections with the same TLS and certificates, and
//! answers each line with a line. It has no HTTP/2, no messages, no state, so it is below what any coordinator can cost.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::join_all;
use holdfast_common::config::{self, Privacy};
use holdfast_common::pki::{Authority, Validity};
use holdfast_common::tls::{
    self, ClientCertificate, ClientTls, HANDSHAKE_DEADLINE, Protocols, ServerSettings, ServerTls,
};
use holdfast_coordinator::config::{Config, StateDir};
use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::coordinator::Coordinator;
use crate::wait::wait_until;

/// How this program is told to be such a server.
pub(in crate::bench) const FLOOR: &str = "floor";
/// What a heartbeat and its answer weigh on the wire, about.
const LINE: [u8; 200] = [b'.'; 200];
const ANSWER: [u8; 20] = [b'.'; 20];
const BEAT: Duration = Duration::from_secs(1);
/// How long all may take to connect.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves on the agents' address of a state directory.
///
/// # Errors
///
/// When it cannot.
pub(in crate::bench) fn serve(state: &Path) -> anyhow::Result<()> {
    tls::install_provider();
    let state = StateDir::new(state);
    let config = Config::load(&state)?;
    let certificate = config::read(&state.authority_certificate(), Privacy::Public)?;
    let authority = Authority::load(&certificate, &config::read(&state.authority_key(), Privacy::Private)?)?;
    let validity = Validity::day(Timestamp::now());
    let (issued, key) =
        authority.issue_coordinator(&"floor".parse()?, &[], &[config.agents.ip()], validity)?;
    let settings = ServerSettings {
        fleet: authority.fleet(),
        client_certificate: ClientCertificate::Required,
        protocols: Protocols::H2,
    };
    let tls = Arc::new(ServerTls::new(settings, &issued.credentials(&key)?, &authority.bundle())?);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("make a runtime")?;
    runtime.block_on(async {
        let listener = TcpListener::bind(config.agents).await.context("listen")?;
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.context("accept")?;
            let tls = Arc::clone(&tls);
            connections.spawn(async move { attend(&tls, stream).await });
            while connections.try_join_next().is_some() {}
        }
    })
}

/// Until the other end goes, which is no failure.
async fn attend(tls: &ServerTls, stream: TcpStream) -> Option<()> {
    let mut stream = tls.accept(stream, HANDSHAKE_DEADLINE).await.ok()?.stream;
    let mut line = LINE;
    loop {
        stream.read_exact(&mut line).await.ok()?;
        stream.write_all(&ANSWER).await.ok()?;
    }
}

/// Connections to such a server, each saying a line a second.
#[derive(Debug)]
pub(super) struct Lines {
    /// How long all took to connect and have their first answer.
    pub(super) connected_in: Duration,
    _beating: JoinSet<anyhow::Result<()>>,
}

// === impl Lines ===

impl Lines {
    pub(super) async fn open(
        coordinator: &Coordinator,
        all: impl Iterator<Item = Arc<ClientTls>>,
    ) -> anyhow::Result<Self> {
        let address = coordinator.agents();
        let listens = || async { TcpStream::connect(address).await.map(drop).context("reach it") };
        wait_until("the floor to listen", PATIENCE, listens).await?;
        let begun = Instant::now();
        let mut beating = JoinSet::new();
        let mut first = Vec::new();
        for tls in all {
            let (told, heard) = tokio::sync::oneshot::channel();
            first.push(heard);
            beating.spawn(async move {
                let mut stream = connect(&tls, address).await?;
                let mut told = Some(told);
                let mut beats = interval(BEAT);
                beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut answer = ANSWER;
                loop {
                    beats.tick().await;
                    stream.write_all(&LINE).await?;
                    stream.read_exact(&mut answer).await?;
                    // Whoever waits for it may have given up.
                    told.take().map(|told| told.send(()));
                }
            });
        }
        let all = tokio::time::timeout(PATIENCE, join_all(first)).await.context("not all connect in time")?;
        all.into_iter().collect::<Result<Vec<()>, _>>().context("a bare connection failed")?;
        Ok(Self { connected_in: begun.elapsed(), _beating: beating })
    }
}

async fn connect(
    tls: &ClientTls,
    address: std::net::SocketAddr,
) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(tls.connect(address.ip().into(), stream, HANDSHAKE_DEADLINE).await?.stream)
}
