//! Clusters that Holdfast does not keep, to be compared with: hosts, a folder of PostgreSQL's own user on each, a certificate, a
//! password. They show too that a check can fail: see [`by_hand`].

pub mod by_hand;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::client::{Client, TABLE};
use crate::cluster::NODES;
use crate::fleet::Uri;
use crate::host::{Host, Plug};
use crate::network::Network;
use crate::process::Program;
use crate::wait::wait_until;

/// Longer than a server takes to come up.
const SOON: Duration = Duration::from_secs(300);
/// Where every server listens.
pub const PORT: u16 = 5432;
/// Of the user `postgres` everywhere. A secret of a network that ends with the run.
pub const PASSWORD: &str = "contest";
/// As the host sees it.
pub const FOLDER: &str = "/var/lib/holdfast/contest";
/// What every server is told beyond its defaults.
pub const ACCESS: [&str; 3] = [
    "local all all trust",
    "host all all 0.0.0.0/0 scram-sha-256",
    "host replication all 0.0.0.0/0 scram-sha-256",
];

/// Four hosts and a controller, without any agent.
#[derive(Debug)]
pub struct Servers {
    pub network: Network,
    pub controller: Host,
    pub nodes: Vec<Host>,
}

// === impl Servers ===

impl Servers {
    /// Boots them.
    ///
    /// # Errors
    ///
    /// When one does not come up.
    pub async fn boot() -> anyhow::Result<Self> {
        let network = Network::new().await?;
        let controller = network.controller(Plug::default()).await?;
        let mut nodes = Vec::new();
        let pair = rcgen::generate_simple_self_signed(["contest".to_owned()]).context("a certificate")?;
        for name in NODES.into_iter().chain(["n4"]) {
            let host = network.host(name).await?;
            host.run(Program::new("chmod").args(["755", "/var/lib/holdfast"])).await?;
            let owner = ["-d", "-o", "postgres", "-g", "postgres", "-m", "700", FOLDER];
            host.run(Program::new("install").args(owner)).await?;
            for (file, text) in
                [("server.crt", pair.cert.pem()), ("server.key", pair.signing_key.serialize_pem())]
            {
                let save = format!("umask 077; cat > {FOLDER}/{file}");
                host.run(as_postgres(&["sh", "-c", &save]).input(text)).await?;
            }
            nodes.push(host);
        }
        Ok(Self { network, controller, nodes })
    }

    /// One of them.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn node(&self, name: &str) -> anyhow::Result<&Host> {
        self.nodes.iter().find(|host| host.name() == name).with_context(|| format!("no node {name}"))
    }

    /// The client, once n1 serves it.
    ///
    /// # Errors
    ///
    /// When n1 does not, in time.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let mut members = Vec::new();
        for name in NODES {
            members.push((name, SocketAddr::new(self.node(name)?.address(), PORT)));
        }
        wait_until("a primary", SOON, || self.ask("n1", TABLE)).await?;
        let uri = Uri::parse(&format!("postgresql://postgres:{PASSWORD}@{}/postgres?", members[0].1))?;
        let client = Client::start(self.node("n4")?, &uri, &members).await?;
        client.is_served_by("n1", 0.0, SOON).await?;
        Ok(client)
    }

    /// What this server answers.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn ask(&self, node: &str, sql: &str) -> anyhow::Result<String> {
        let host = self.node(node)?;
        host.run(psql(host.address(), sql)).await
    }

    /// Whether two replicas stream from it.
    ///
    /// # Errors
    ///
    /// When not so.
    pub async fn is_followed(&self, node: &str) -> anyhow::Result<()> {
        let query = "select count(*) from pg_stat_replication where state = 'streaming'";
        let rows = self.ask(node, query).await?;
        ensure!(rows.trim() == "2", "{} replicas stream", rows.trim());
        Ok(())
    }
}

/// What asks a server.
#[must_use]
pub fn psql(at: IpAddr, sql: &str) -> Program {
    let psql = Program::new("psql").args(["--no-psqlrc", "--no-password", "-qAt", "-v", "ON_ERROR_STOP=1"]);
    let target = format!("host={at} port={PORT} user=postgres dbname=postgres");
    psql.args(["-d", &target, "-c", sql]).env("PGPASSWORD", PASSWORD).env("PGCONNECT_TIMEOUT", "2")
}

/// As the user who owns the servers.
#[must_use]
pub fn as_postgres(words: &[&str]) -> Program {
    Program::new("setpriv").args(AS_POSTGRES).args(words)
}

/// The arguments of `setpriv` for it.
pub const AS_POSTGRES: [&str; 3] = ["--reuid=postgres", "--regid=postgres", "--init-groups"];

/// Where Debian keeps the newest server's programs.
///
/// # Errors
///
/// When there is none.
pub fn programs() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").context("look for PostgreSQL")?;
    let mut found: Vec<PathBuf> = versions.flatten().map(|version| version.path().join("bin")).collect();
    found.retain(|bin| bin.join("postgres").is_file());
    found.sort();
    found.pop().context("no PostgreSQL is installed")
}
