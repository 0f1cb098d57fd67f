//! A coordinator and joined agents on hosts of the testbed, and the command line against them.
//!
//! The coordinator runs in the controller's network, where agents reach it. Operators reach it on loopback of the
//! machine's own network: that listening socket is made by us and handed over as systemd hands over sockets. So no
//! interface, route or rule of the machine is ever touched, and the coordinator's own connections stay inside.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_common::context::ContextFile;
use holdfast_common::pki::{Credentials, TrustBundle};
use holdfast_common::tls::{ClientTls, Connector, Expect};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use crate::binaries;
use crate::host::{Host, Plug, Service};
use crate::network::Network;
use crate::process::Program;
use crate::run::Isolation;
use crate::wait::wait_until;

/// The coordinator's service on the controller.
pub const COORDINATOR: &str = "coordinator";

/// The agent's service on every node.
pub const AGENT: &str = "agent";

/// Where agents reach the coordinator, on the controller's address.
const AGENTS_PORT: u16 = 7444;

/// How long a coordinator may take to answer, or an agent to come online.
const SOON: Duration = Duration::from_secs(60);

/// A coordinator and the nodes that joined it.
#[derive(Debug)]
pub struct Fleet {
    network: Network,
    controller: Host,
    nodes: Vec<Host>,
    operators: SocketAddr,
    agents: SocketAddr,
}

// === impl Fleet ===

impl Fleet {
    /// Makes a coordinator and starts it. Operators reach it on `operators`, whose port may be 0.
    ///
    /// # Errors
    ///
    /// When it cannot be made, or does not answer.
    pub async fn start(network: Network, operators: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpListener::bind(operators).with_context(|| format!("listen on {operators}"))?;
        let operators = socket.local_addr().context("ask for the address of a socket")?;
        let controller = network.controller(Plug { socket: Some(socket) }).await?;
        let agents = SocketAddr::new(controller.address(), AGENTS_PORT);
        let fleet = Self { network, controller, nodes: Vec::new(), operators, agents };

        let init = Program::new(binaries::coordinator()?).arg("init").arg("--state-dir").arg(fleet.state());
        let init = init.args(["--operators", &operators.to_string(), "--agents", &agents.to_string()]);
        let init =
            init.args(["--advertise", &agents.to_string()]).arg("--context-file").arg(fleet.context_file());
        fleet.controller.run(init).await.context("make the coordinator's state")?;
        fleet.controller.serve(&fleet.coordinator_service()?).await?;
        wait_until("the coordinator to answer", SOON, || fleet.json(["whoami"])).await?;
        Ok(fleet)
    }

    /// Boots a host, joins it to the coordinator under the host's name, and starts its agent. It may not be online yet.
    ///
    /// # Errors
    ///
    /// When it cannot join.
    pub async fn join(&mut self, name: &str) -> anyhow::Result<&Host> {
        let host = self.joined(name).await?;
        self.nodes.push(host);
        self.node(name)
    }

    /// Joins several hosts at the same time and waits until all of them are online.
    ///
    /// # Errors
    ///
    /// When one cannot join, or does not come online.
    pub async fn join_all(&mut self, names: &[&str]) -> anyhow::Result<()> {
        let joined = futures::future::try_join_all(names.iter().map(|name| self.joined(name))).await?;
        self.nodes.extend(joined);
        for name in names {
            self.online(name).await?;
        }
        Ok(())
    }

    /// Waits until the coordinator says that a node is online.
    ///
    /// # Errors
    ///
    /// When it is not in time.
    pub async fn online(&self, name: &str) -> anyhow::Result<()> {
        wait_until(format!("node {name} to be online"), SOON, || async {
            let node = self.json(["node", "show", name]).await?;
            let availability = &node["availability"];
            ensure!(availability == "online", "it is {availability}");
            Ok(())
        })
        .await
    }

    /// The network that it is on.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The host of the coordinator, from where clients connect too.
    #[must_use]
    pub fn controller(&self) -> &Host {
        &self.controller
    }

    /// The nodes, in the order in which they joined.
    #[must_use]
    pub fn nodes(&self) -> &[Host] {
        &self.nodes
    }

    /// A node by name.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub fn node(&self, name: &str) -> anyhow::Result<&Host> {
        self.nodes
            .iter()
            .find(|host| host.name() == name)
            .with_context(|| format!("no node {name} in this fleet"))
    }

    /// Where operators reach the coordinator, from this process's network.
    #[must_use]
    pub fn operators(&self) -> SocketAddr {
        self.operators
    }

    /// Where agents reach the coordinator.
    #[must_use]
    pub fn agents(&self) -> SocketAddr {
        self.agents
    }

    /// The first operator's context file.
    #[must_use]
    pub fn context_file(&self) -> PathBuf {
        self.controller.folder().join("operator.toml")
    }

    /// The coordinator's state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.controller.folder().join("lib/coordinator")
    }

    /// `holdfast ARGUMENTS`, as the first operator.
    ///
    /// # Errors
    ///
    /// When the command line is not built.
    pub fn cli<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Program> {
        let cli = Program::new(binaries::cli()?).env("HOLDFAST_CONFIG", self.context_file());
        Ok(cli.without_env("HOLDFAST_TOKEN").without_env("HOLDFAST_CONTEXT").args(arguments))
    }

    /// A connection to the operators' interface, as the first operator, made when it is first used.
    ///
    /// # Errors
    ///
    /// When the context file cannot be used.
    pub fn channel(&self) -> anyhow::Result<Channel> {
        let file = ContextFile::load(&self.context_file())?;
        let context = file.context(None)?;
        let roots = TrustBundle::from_pem(&context.trust_bundle)?;
        let certificate = context.certificate.as_ref().context("a certificate")?;
        let key = context.key.as_ref().context("a key")?;
        let credentials = Credentials::from_pem(certificate, key.expose_secret())?;
        let tls = ClientTls::new(roots.fleet()?, Expect::Coordinator, Some(&credentials), &roots)?;
        let endpoint = Endpoint::from_shared(format!("http://{}", context.server))?;
        Ok(endpoint.connect_with_connector_lazy(Connector::new(Arc::new(tls))))
    }

    /// `holdfast --output json ARGUMENTS`, understood.
    ///
    /// # Errors
    ///
    /// When it fails, or says something that is not JSON.
    pub async fn json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> anyhow::Result<Value> {
        let said = self.cli(["--output", "json"].into_iter().chain(arguments))?.run().await?;
        serde_json::from_str(&said).with_context(|| format!("understand {said:?}"))
    }

    /// A join token for one node.
    ///
    /// # Errors
    ///
    /// When the coordinator gives none.
    pub async fn token(&self) -> anyhow::Result<String> {
        let said = self.json(["node", "token", "create"]).await?;
        said["token"].as_str().map(String::from).with_context(|| format!("no token in {said}"))
    }

    /// What `cluster create` needs where hosts are plain processes, which cannot filter who reaches them.
    #[must_use]
    pub fn unfiltered(&self) -> Option<&'static str> {
        match self.network.isolation() {
            Isolation::Hosts => None,
            Isolation::Processes => Some("--allow-unfiltered"),
        }
    }

    /// Runs SQL on the controller, which is always let in.
    ///
    /// # Errors
    ///
    /// Those of [`psql`].
    pub async fn psql(&self, uri: &Uri, sql: &str) -> anyhow::Result<String> {
        psql(&self.controller, uri, sql).await
    }

    async fn joined(&self, name: &str) -> anyhow::Result<Host> {
        let (host, token) = tokio::try_join!(self.network.host(name), self.token())?;
        let file = host.folder().join("lib/join-token");
        write_secret(&file, &token)?;
        let state = host.state_folder();
        let join = Program::new(binaries::agent()?).args(["join", "--coordinator", &self.agents.to_string()]);
        let join = join.args(["--name", name, "--address", &host.address().to_string()]);
        let join = join
            .arg("--token-file")
            .arg(state.join("join-token"))
            .arg("--state-dir")
            .arg(state.join("agent"));
        let join = join.arg("--data-dir").arg(state.join("data"));
        host.run(join).await.with_context(|| format!("join {name}"))?;
        std::fs::remove_file(&file).context("remove the used token")?;
        host.serve(&agent_service(&host)?).await?;
        Ok(host)
    }

    fn coordinator_service(&self) -> anyhow::Result<Service> {
        let argv = [binaries::coordinator()?, "run".into(), "--state-dir".into(), self.state()];
        let argv = argv.map(|word: PathBuf| word.to_string_lossy().into_owned()).to_vec();
        Ok(Service { name: COORDINATOR.into(), argv, env: Vec::new(), socket: Some("operators".into()) })
    }
}

/// Runs SQL on a host, as any client would, against the hosts of a libpq URI. The password in it is handed over in a file, since
/// arguments can be read by everybody.
///
/// # Errors
///
/// When the database refuses, or does not answer in time.
pub async fn psql(host: &Host, uri: &Uri, sql: &str) -> anyhow::Result<String> {
    let file = host.folder().join(format!("pgpass-{}", uuid::Uuid::new_v4().simple()));
    uri.write_passwords(&file)?;
    let psql = Program::new("psql").args(["--no-psqlrc", "--no-password", "-qAt", "-v", "ON_ERROR_STOP=1"]);
    let psql = psql.args(["-d", &uri.without_password(), "-c", sql]).env("PGPASSFILE", &file);
    let said = host.run(psql.env("PGCONNECT_TIMEOUT", "5").deadline(SOON)).await;
    std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    said
}

fn agent_service(host: &Host) -> anyhow::Result<Service> {
    let argv = [binaries::agent()?, "run".into(), "--state-dir".into(), host.state_folder().join("agent")];
    let argv = argv.map(|word: PathBuf| word.to_string_lossy().into_owned()).to_vec();
    Ok(Service { name: AGENT.into(), argv, env: Vec::new(), socket: None })
}

/// Writes a file that only its owner can read.
///
/// # Errors
///
/// When it cannot be written.
pub fn write_secret(file: &std::path::Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut open = std::fs::OpenOptions::new();
    let made = open.write(true).create(true).truncate(true).mode(0o600).open(file);
    let written = made.and_then(|mut made| made.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}", file.display()))
}

/// A libpq URI, taken apart as far as the tests need it.
#[derive(Clone, PartialEq, Eq)]
pub struct Uri {
    scheme: String,
    user: String,
    password: Option<String>,
    hosts: Vec<String>,
    rest: String,
}

// === impl Uri ===

impl Uri {
    /// Takes `postgresql://USER[:PASSWORD]@HOST:PORT,…/DATABASE?…` apart.
    ///
    /// # Errors
    ///
    /// When it has another shape.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let parts = || {
            let (scheme, rest) = text.trim().split_once("://")?;
            let (login, rest) = rest.split_once('@')?;
            let (hosts, rest) = rest.split_once('/')?;
            let (user, password) = match login.split_once(':') {
                Some((user, password)) => (user, Some(password.to_owned())),
                None => (login, None),
            };
            let hosts = hosts.split(',').map(String::from).collect();
            Some(Self { scheme: scheme.into(), user: user.into(), password, hosts, rest: rest.into() })
        };
        parts().context("a URI of the shape postgresql://USER@HOST:PORT/DATABASE")
    }

    /// The same for one of the hosts, whatever its role.
    ///
    /// # Errors
    ///
    /// When no host has that address.
    pub fn only(&self, address: std::net::IpAddr) -> anyhow::Result<Self> {
        let mut hosts = self.hosts.iter().filter(|host| {
            host.parse::<SocketAddr>().is_ok_and(|at| at.ip() == address) || **host == address.to_string()
        });
        let host = hosts.next().with_context(|| format!("{address} is not in the URI"))?;
        let rest = self.rest.replace("target_session_attrs=read-write", "target_session_attrs=any");
        Ok(Self { hosts: vec![host.clone()], rest, ..self.clone() })
    }

    /// The same server by another of its addresses, for which its certificate need not be made.
    ///
    /// # Errors
    ///
    /// When the URI names no port.
    pub fn at(&self, address: std::net::IpAddr) -> anyhow::Result<Self> {
        let port = self.hosts.iter().find_map(|host| host.parse::<SocketAddr>().ok());
        let port = port.context("a host with its port")?.port();
        Ok(self.through(SocketAddr::new(address, port)))
    }

    /// The same database by whoever leads there, for whom no certificate need be made.
    #[must_use]
    pub fn through(&self, at: SocketAddr) -> Self {
        let rest = self.rest.replace("target_session_attrs=read-write", "target_session_attrs=any");
        let rest = rest.replace("sslmode=verify-full", "sslmode=require");
        Self { hosts: vec![at.to_string()], rest, ..self.clone() }
    }

    /// What a pooler that knows its clients by name and password is told, in its own form.
    #[must_use]
    pub fn as_userlist(&self) -> String {
        format!("\"{}\" \"{}\"\n", self.user, self.password.as_deref().unwrap_or_default())
    }

    /// User, password and database.
    #[must_use]
    pub fn login(&self) -> (&str, &str, &str) {
        let database = self.rest.split('?').next().unwrap_or_default();
        (&self.user, self.password.as_deref().unwrap_or_default(), database)
    }

    /// The URI as it may be shown.
    #[must_use]
    pub fn without_password(&self) -> String {
        format!("{}://{}@{}/{}", self.scheme, self.user, self.hosts.join(","), self.rest)
    }

    /// Writes libpq's password file for it, for this user only.
    ///
    /// # Errors
    ///
    /// When it cannot be written, or the password has characters that such a file does not take.
    pub fn write_passwords(&self, file: &std::path::Path) -> anyhow::Result<()> {
        let password = self.password.as_deref().unwrap_or_default();
        ensure!(!password.contains([':', '\\', '%', '\n']), "this password needs quoting");
        write_secret(file, &format!("*:*:*:{}:{password}\n", self.user))
    }
}

impl std::fmt::Debug for Uri {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Uri({})", self.without_password())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str =
        "postgresql://app:s3cret@203.0.113.1:5432,203.0.113.2:5432/app?target_session_attrs=read-write";

    #[test]
    fn a_uri_is_shown_without_its_password() -> anyhow::Result<()> {
        let uri = Uri::parse(WHOLE)?;
        assert_eq!(uri.without_password(), WHOLE.replace(":s3cret", ""));
        assert!(!format!("{uri:?}").contains("s3cret"));
        let refused = Uri::parse("postgresql://").unwrap_err();
        assert!(refused.to_string().contains("shape"));
        Ok(())
    }

    #[test]
    fn one_host_of_a_uri_is_asked_whatever_its_role() -> anyhow::Result<()> {
        let uri = Uri::parse(WHOLE)?.only([203, 0, 113, 2].into())?;
        assert_eq!(uri.without_password(), "postgresql://app@203.0.113.2:5432/app?target_session_attrs=any");
        Uri::parse(WHOLE)?.only([203, 0, 113, 9].into()).unwrap_err();
        Ok(())
    }
}
