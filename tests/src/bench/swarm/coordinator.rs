//! The coordinator under load: a process of its own on a loopback address of its own, killed and started at will.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use super::floor::FLOOR;
use super::orders::COORDINATE;
use crate::binaries;
use crate::proc::Process;
use crate::process::{Program, Running};
use crate::run::{MARK, Run};
use crate::wait::wait_until;

/// Ports below those that the kernel gives to clients: one that dials its own dead server's port must not get itself.
const OPERATORS: u16 = 7443;
const AGENTS: u16 = 7444;
/// How long it may take to answer.
const SOON: Duration = Duration::from_secs(30);

/// What runs on the state of a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The release program.
    Program,
    /// The same code in a program that can be asked to send a command to every node.
    WithOrders,
    /// No coordinator at all: a bare server with its certificates.
    Floor,
}

/// A coordinator and its state.
#[derive(Debug)]
pub(super) struct Coordinator {
    run: String,
    folder: PathBuf,
    address: Ipv4Addr,
    running: Option<Running>,
}

// === impl Coordinator ===

impl Coordinator {
    /// Makes the state of a new fleet. Nothing runs yet.
    pub(super) async fn new(run: &Run, name: &str) -> anyhow::Result<Self> {
        let folder = run.folder().join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 83, high, low.max(1));
        let coordinator = Self { run: run.id().to_owned(), folder, address, running: None };
        let init = Program::new(binaries::coordinator()?).arg("init");
        let init = init.arg("--state-dir").arg(coordinator.state());
        let init = init.arg("--context-file").arg(coordinator.context_file());
        let operators = SocketAddr::from((address, OPERATORS)).to_string();
        let agents = coordinator.agents().to_string();
        let init = init.args(["--operators", &operators, "--agents", &agents, "--advertise", &agents]);
        init.run().await.context("make the coordinator's state")?;
        let_many_join(&coordinator.state())?;
        Ok(coordinator)
    }

    /// Starts it; it may not answer yet.
    pub(super) fn start(&mut self, kind: Kind) -> anyhow::Result<()> {
        ensure!(self.running.is_none(), "it runs already");
        let program = match kind {
            Kind::Program => {
                Program::new(binaries::coordinator()?).arg("run").arg("--state-dir").arg(self.state())
            }
            Kind::WithOrders => {
                std::fs::remove_file(self.socket()).ok();
                Program::new(binaries::bench()?).arg(COORDINATE).arg(self.state()).arg(self.socket())
            }
            Kind::Floor => Program::new(binaries::bench()?).arg(FLOOR).arg(self.state()).arg("tls"),
        };
        let program = program.env(MARK, &self.run).clean_env();
        self.running = Some(program.start(&self.folder.join("coordinator.log"))?);
        Ok(())
    }

    /// Kills it as kill -9 does.
    pub(super) fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill();
        }
    }

    /// Waits until operators are answered.
    pub(super) async fn answers(&self) -> anyhow::Result<()> {
        wait_until("the coordinator to answer", SOON, || self.json(["whoami"])).await.map(drop)
    }

    /// Which process it is.
    pub(super) fn process(&self) -> anyhow::Result<Process> {
        Ok(self.running.as_ref().context("it does not run")?.process())
    }

    /// `holdfast --output json ARGUMENTS`, understood.
    pub(super) async fn json<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> anyhow::Result<Value> {
        let cli = Program::new(binaries::cli()?).env("HOLDFAST_CONFIG", self.context_file());
        let cli = cli.without_env("HOLDFAST_TOKEN").without_env("HOLDFAST_CONTEXT");
        let said = cli.args(["--output", "json"]).args(arguments).run().await?;
        serde_json::from_str(&said).with_context(|| format!("understand {said:?}"))
    }

    /// Has a command sent to every node, and gives what came of it. Only of [`Kind::WithOrders`].
    pub(super) async fn order_all(&self) -> anyhow::Result<Value> {
        let socket = self.socket();
        let mut stream = wait_until("the coordinator to take orders", SOON, || async {
            UnixStream::connect(&socket).await.context("reach it")
        })
        .await?;
        let mut said = String::new();
        tokio::time::timeout(SOON, stream.read_to_string(&mut said))
            .await
            .context("no outcome in time")??;
        serde_json::from_str(&said).with_context(|| format!("understand {said:?}"))
    }

    /// Where agents reach it.
    pub(super) fn agents(&self) -> SocketAddr {
        (self.address, AGENTS).into()
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("orders")
    }

    fn context_file(&self) -> PathBuf {
        self.folder.join("operator.toml")
    }
}

/// Has the coordinator whose state this is take a thousand nodes from one address, where no fleet has them, from its next start.
pub(in crate::bench) fn let_many_join(state: &Path) -> anyhow::Result<()> {
    let file = state.join("coordinator.toml");
    let text = std::fs::read_to_string(&file).context("read the coordinator's configuration")?;
    let mut config: toml::Table = text.parse().context("understand the coordinator's configuration")?;
    let limits = config.entry("limits").or_insert_with(|| toml::Table::new().into());
    let limits = limits.as_table_mut().context("limits are a table")?;
    limits.insert("enroll_burst".into(), 1000.into());
    limits.insert("enroll_per_second".into(), 200.into());
    limits.insert("agent_connections_per_address".into(), 10_000.into());
    std::fs::write(&file, toml::to_string(&config)?).context("write the coordinator's configuration")
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.kill();
    }
}
