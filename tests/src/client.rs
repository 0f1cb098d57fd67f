//! A client that writes numbered rows to whoever takes them: it has a connection to every member at once, so that its own retries
//! do not dominate what it sees, and knows which rows were acknowledged to it, when and by whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::time::{sleep, timeout};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

use crate::fleet::Uri;
use crate::host::Host;
use crate::scene::now;
use crate::wait::wait_until;

/// Between two rows.
const PAUSE: Duration = Duration::from_millis(5);
/// Before a server that refused is asked again.
const AGAIN: Duration = Duration::from_millis(10);
const CONNECT: Duration = Duration::from_secs(1);
/// A commit that waits for replicas waits for ever; then nobody knows.
const ANSWER: Duration = Duration::from_secs(10);
/// What a database needs for it, once.
pub const TABLE: &str = "create table if not exists numbered (id int8 primary key)";

/// Writes until it is dropped.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    acknowledged: Mutex<Vec<Ack>>,
}

/// One acknowledged row. Times are of the wall clock, in seconds since 1970.
#[derive(Debug, Clone, PartialEq)]
pub struct Ack {
    pub id: u64,
    pub node: String,
    pub sent: f64,
    pub acked: f64,
}

// === impl Client ===

impl Client {
    /// Starts it on `host`, against all of these members.
    ///
    /// # Errors
    ///
    /// When its thread does not start.
    pub async fn start(host: &Host, uri: &Uri, members: &[(&str, SocketAddr)]) -> anyhow::Result<Self> {
        let (shared, stop) = (Arc::new(Shared::default()), CancellationToken::new());
        let members: Vec<(String, SocketAddr)> =
            members.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect();
        let (uri, told, ended) = (uri.clone(), Arc::clone(&shared), stop.clone());
        let begun = host.in_network(move || {
            // Threads of the runtime would be elsewhere: all sockets are made on this one.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::Builder::new().name("client".to_owned()).spawn(move || {
                runtime.block_on(async move {
                    let writing = members.into_iter().map(|(name, at)| write(name, at, &uri, &told));
                    let all = futures::future::join_all(writing);
                    // Both arms are cancel-safe: what is under way is unknown.
                    tokio::select! {
                        () = ended.cancelled() => {}
                        _never = all => {}
                    }
                });
            })
        });
        begun.await?.context("start a client")?;
        Ok(Self { shared, stop })
    }

    /// All that was acknowledged, in the order of the answers.
    #[must_use]
    pub fn acknowledged(&self) -> Vec<Ack> {
        self.shared.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was acknowledged last.
    #[must_use]
    pub fn last(&self) -> Option<Ack> {
        self.shared.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }

    /// Waits until this member has acknowledged something that was sent after `since`.
    ///
    /// # Errors
    ///
    /// When it has not, in time.
    pub async fn is_served_by(&self, node: &str, since: f64, deadline: Duration) -> anyhow::Result<()> {
        let served = self.is_served(|ack| ack.node == node && ack.sent > since, deadline);
        served.await.with_context(|| format!("by {node}"))
    }

    /// Waits until the last row that was acknowledged is such a one.
    ///
    /// # Errors
    ///
    /// When it is not, in time.
    pub async fn is_served(&self, by: impl Fn(&Ack) -> bool, deadline: Duration) -> anyhow::Result<()> {
        wait_until("such a row to be acknowledged", deadline, || {
            std::future::ready(match self.last() {
                Some(ack) if by(&ack) => Ok(()),
                other => Err(anyhow::anyhow!("the last was {other:?}")),
            })
        })
        .await
    }

    /// Who acknowledged, one after the other: each anew whenever another one did in between.
    #[must_use]
    pub fn served(&self) -> Vec<String> {
        let mut all: Vec<String> = self.acknowledged().into_iter().map(|ack| ack.node).collect();
        all.dedup();
        all
    }

    /// The longest time between two rows that were acknowledged one after the other, in seconds.
    #[must_use]
    pub fn longest_gap(&self) -> f64 {
        self.longest_gap_since(0.0)
    }

    /// The same of those that were acknowledged after `since`, and the last one before.
    #[must_use]
    pub fn longest_gap_since(&self, since: f64) -> f64 {
        let all = self.acknowledged();
        let first = all.partition_point(|ack| ack.acked <= since).saturating_sub(1);
        all[first..].windows(2).map(|pair| pair[1].acked - pair[0].acked).fold(0.0, f64::max)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Checks that those who acknowledged did so one after the other, while the primary changed so often.
///
/// # Errors
///
/// When two did at once.
pub fn one_at_a_time(served: &[String], changes: u64) -> anyhow::Result<()> {
    let switched = served.len().saturating_sub(1);
    ensure!(
        switched as u64 <= changes,
        "two served at once: {served:?}, in {changes} changes of the primary"
    );
    Ok(())
}

/// Checks that all acknowledged rows are among those that the server has.
///
/// # Errors
///
/// When one is missing.
pub fn nothing_is_missing(acknowledged: &[Ack], found: &str) -> anyhow::Result<()> {
    let mut by_node: BTreeMap<&str, Vec<&Ack>> = BTreeMap::new();
    for ack in missing(acknowledged, found)? {
        by_node.entry(&ack.node).or_default().push(ack);
    }
    ensure!(by_node.is_empty(), "acknowledged and missing: {by_node:?}");
    Ok(())
}

/// The acknowledged rows that are not among those that the server has.
///
/// # Errors
///
/// When it says something that is no row.
pub fn missing<'a>(acknowledged: &'a [Ack], found: &str) -> anyhow::Result<Vec<&'a Ack>> {
    let found: BTreeSet<u64> =
        found.split_whitespace().map(str::parse).collect::<Result<_, _>>().context("read the rows")?;
    Ok(acknowledged.iter().filter(|ack| !found.contains(&ack.id)).collect())
}

/// Writes to one member for ever, as soon as it takes anything.
async fn write(node: String, at: SocketAddr, uri: &Uri, shared: &Shared) {
    let (user, password, database) = uri.login();
    let mut config = tokio_postgres::Config::new();
    config
        .hostaddr(at.ip())
        .host(at.ip().to_string())
        .port(at.port())
        .user(user)
        .password(password)
        .dbname(database)
        .ssl_mode(SslMode::Require)
        .connect_timeout(CONNECT);
    loop {
        if let Ok(Ok((client, connection))) = timeout(2 * CONNECT, config.connect(tls())).await {
            let writing =
                async { while let Ok(Wrote::Yes | Wrote::Refused) = row(&client, &node, shared).await {} };
            // Both arms are cancel-safe: what is under way is unknown.
            tokio::select! {
                _ended = connection => {}
                () = writing => {}
            }
        }
        sleep(AGAIN).await;
    }
}

enum Wrote {
    Yes,
    /// It is no primary.
    Refused,
}

async fn row(client: &tokio_postgres::Client, node: &str, shared: &Shared) -> anyhow::Result<Wrote> {
    let id = shared.next.fetch_add(1, Ordering::Relaxed);
    let sent = now();
    let statement = format!("insert into numbered values ({id})");
    match timeout(ANSWER, client.batch_execute(&statement)).await? {
        Ok(()) => {
            let ack = Ack { id, node: node.to_owned(), sent, acked: now() };
            shared.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(ack);
            sleep(PAUSE).await;
            Ok(Wrote::Yes)
        }
        Err(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
            sleep(AGAIN).await;
            Ok(Wrote::Refused)
        }
        Err(error) => Err(error.into()),
    }
}

/// Who answers is not what is tested here.
fn tls() -> MakeRustlsConnect {
    let config = ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    MakeRustlsConnect::new(config.with_no_client_auth())
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA256,
        ]
    }
}
