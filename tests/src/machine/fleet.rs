//! A coordinator and nodes on machines, made as the documentation tells users to: packages, cloud-init, units.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{Disk, Machine, boot};
use crate::binaries;
use crate::network::Network;
use crate::process::Program;
use crate::wait::wait_until;

/// The unit of a coordinator.
pub const COORDINATOR: &str = "holdfast-coordinator.service";

/// The unit of an agent.
pub const AGENT: &str = "holdfast-agent.service";

/// What `init` is told, and what it is told to be called by nodes.
const OPERATORS: &str = "0.0.0.0:7443";
const AGENTS: &str = "0.0.0.0:7444";
const AGENTS_PORT: u16 = 7444;

/// How long a node may take to be online.
const SOON: Duration = Duration::from_secs(60);

/// A coordinator on a machine, and nodes on others.
#[derive(Debug)]
pub struct MachineFleet {
    network: Network,
    packages: PathBuf,
    coordinator: Machine,
    nodes: Vec<Machine>,
}

// === impl MachineFleet ===

impl MachineFleet {
    /// Packages the programs that are tested, and installs a coordinator from them.
    ///
    /// # Errors
    ///
    /// When there can be no machines here, or one of the documented steps fails.
    pub async fn start() -> anyhow::Result<Self> {
        super::possible()?;
        let network = Network::new().await?;
        let packages = package(network.run().folder()).await.context("package the programs")?;
        let disk = Disk { packages: Some(packages.clone()), user_data: None };
        let coordinator = network.machine("ctl", disk).await?;
        let fleet = Self { network, packages, coordinator, nodes: Vec::new() };
        fleet.install_coordinator().await.context("install the coordinator")?;
        Ok(fleet)
    }

    /// Boots machines with user data that makes nodes of them, all at the same time, and waits until they are online.
    ///
    /// # Errors
    ///
    /// When one does not boot, join or come online.
    pub async fn join(&mut self, names: &[&str]) -> anyhow::Result<()> {
        let joined = futures::future::try_join_all(names.iter().map(|name| self.node_by_cloud_init(name)));
        let joined = joined.await?;
        self.nodes.extend(joined);
        for name in names {
            self.online(name).await?;
        }
        Ok(())
    }

    /// The coordinator's machine, from where the command line is used too.
    #[must_use]
    pub fn coordinator(&self) -> &Machine {
        &self.coordinator
    }

    /// The nodes, in the order in which they joined.
    #[must_use]
    pub fn nodes(&self) -> &[Machine] {
        &self.nodes
    }

    /// `holdfast ARGUMENTS` as root of the coordinator's machine, whom `init` has made the first operator.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub async fn cli(&self, arguments: &[&str], deadline: Duration) -> anyhow::Result<String> {
        self.coordinator.run(Program::new("holdfast").args(arguments).deadline(deadline)).await
    }

    /// `holdfast --output json ARGUMENTS`, understood.
    ///
    /// # Errors
    ///
    /// When it fails, or says something that is not JSON.
    pub async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let said = self.cli(&[&["--output", "json"], arguments].concat(), SOON).await?;
        serde_json::from_str(&said).with_context(|| format!("understand {said:?}"))
    }

    /// Waits until the coordinator says that a node is online, and gives what else it says of it.
    ///
    /// # Errors
    ///
    /// When it is not in time.
    pub async fn online(&self, name: &str) -> anyhow::Result<Value> {
        wait_until(format!("node {name} to be online"), SOON, || async {
            let node = self.json(&["node", "show", name]).await?;
            let availability = &node["availability"];
            ensure!(availability == "online", "it is {availability}");
            Ok(node)
        })
        .await
    }

    /// As the documentation says, word for word.
    async fn install_coordinator(&self) -> anyhow::Result<()> {
        let here = format!("{}:{AGENTS_PORT}", self.coordinator.address());
        let steps = format!(
            "set -e
            echo '{}' > /etc/apt/sources.list.d/holdfast.list
            apt-get -q update
            apt-get -q install --yes holdfast-coordinator holdfast
            holdfast-coordinator init --state-dir /var/lib/holdfast-coordinator \\
                --operators {OPERATORS} --agents {AGENTS} --advertise {here}
            chown -R holdfast:holdfast /var/lib/holdfast-coordinator
            systemctl enable --now holdfast-coordinator",
            source()
        );
        self.coordinator.run(Program::new("sh").args(["-c", &steps])).await?;
        wait_until("the coordinator to answer", SOON, || self.json(&["whoami"])).await.map(drop)
    }

    async fn node_by_cloud_init(&self, name: &str) -> anyhow::Result<Machine> {
        let source = source();
        let user_data = ["node", "cloud-init", name, "--package-source", &source];
        let user_data = self.cli(&user_data, SOON).await?;
        let disk = Disk { packages: Some(self.packages.clone()), user_data: Some(user_data) };
        self.network.machine(name, disk).await
    }
}

/// The package source that machines are given, as a line of apt's.
fn source() -> String {
    format!("deb [trusted=yes] file:{} ./", boot::PACKAGES)
}

/// A package source with the programs that are tested, as `cargo xtask package` makes packages of a release.
async fn package(folder: &Path) -> anyhow::Result<PathBuf> {
    let into = folder.join("packages");
    let programs = binaries::agent()?;
    let programs = programs.parent().context("the agent is in a folder")?;
    let package = Program::new(binaries::xtask()?).arg("package").arg("--programs").arg(programs);
    package.arg("--into").arg(&into).run().await?;
    let index = Program::new("apt-ftparchive").args(["packages", "."]).folder(&into).run().await?;
    std::fs::write(into.join("Packages"), index).context("write the index")?;
    // Read in the machines by apt's own user.
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&into, open).with_context(|| format!("open {}", into.display()))?;
    Ok(into)
}
