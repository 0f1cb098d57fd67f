//! One machine: Debian with systemd as pid 1, in a container of systemd-nspawn that is plugged into the switch.
//!
//! ```text
//!  unshare --mount ─► holdfast-testbed machine FILE ─► systemd-nspawn ─► systemd, pid 1 of the machine ─► services
//!                     starts it again when the machine reboots
//! ```
//!
//! Where a [`crate::host::Host`] has what the agent needs, a machine is what a user has: its own root file system, units,
//! journal, package manager, cloud-init. Its disk is kept through reboots and power cuts, and goes with the run. Not
//! here: limits of resources, which need a kernel of their own.

pub mod boot;
pub mod cgroup;
pub mod fleet;
pub mod root;

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;

use crate::binaries;
use crate::host::{Addresses, spec};
use crate::proc::{self, Entry, Process};
use crate::process::{Output, Program, Running};
use crate::run::{MARK, Run};
use crate::wait::{wait_for, wait_until};

/// How long a machine may take to boot with cloud-init, on a machine that is busy.
const BOOT: Duration = Duration::from_secs(90);

/// What a new machine finds on its disk besides Debian.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// A folder of packages, which the machine sees as a source of its own.
    pub packages: Option<PathBuf>,
    /// Given to cloud-init, as a provider would.
    pub user_data: Option<String>,
}

/// A machine. All that runs in it ends with it, and it ends with its run.
#[derive(Debug)]
pub struct Machine {
    run: Arc<Run>,
    name: String,
    addresses: Addresses,
    folder: PathBuf,
    packages: Option<PathBuf>,
    up: Mutex<Option<Running>>,
}

/// There can be no machines here, through no fault of Holdfast's: tests on them are to be left out, and that said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impossible(String);

// === impl Machine ===

impl Machine {
    pub(crate) async fn new(
        run: Arc<Run>,
        name: &str,
        addresses: Addresses,
        disk: Disk,
    ) -> anyhow::Result<Self> {
        possible()?;
        let folder = run.folder().join(name);
        for part in ["changes", "work", "root", "log"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        let Disk { packages, user_data } = disk;
        if let Some(user_data) = user_data {
            seed(&folder.join("changes"), name, &user_data).context("give the machine its user data")?;
        }
        Ok(Self { run, name: name.into(), addresses, folder, packages, up: Mutex::new(None) })
    }

    /// Its name, which is its hostname.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.addresses.v4
    }

    /// What its console said, journal included.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.console_log()).unwrap_or_default()).into_owned()
    }

    /// Its systemd, as seen from outside.
    ///
    /// # Errors
    ///
    /// When it is down.
    pub fn init(&self) -> anyhow::Result<Process> {
        let up = self.up.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = up.as_ref().map(Running::process);
        let tree = kept.map(proc::tree).unwrap_or_default();
        let init = tree.into_iter().find(|one| one.inner_pid == 1 && !one.zombie);
        init.map(|one| one.process).with_context(|| format!("machine {} is down", self.name))
    }

    /// Boots it, and waits until systemd has started all that belongs to a boot, cloud-init included.
    ///
    /// # Errors
    ///
    /// When it does not come up, or a unit has failed; the message says which.
    pub async fn boot(&self) -> anyhow::Result<()> {
        let file = self.folder.join("machine.json");
        let told = boot::Spec {
            name: self.name.clone(),
            run: self.run.id().into(),
            namespace: self.run.namespace(&self.name),
            folder: self.folder.clone(),
            root: root::ready().await.context("make the machines' file system")?,
            packages: self.packages.clone(),
        };
        spec::write(&file, &told)?;
        let program = Program::new(binaries::testbed()?).arg("machine").arg(&file);
        let program = program.wrapped(["unshare", "--mount", "--propagation", "slave", "--"]);
        let program = program.clean_env().env(MARK, self.run.id()).folder("/");
        let running = program.start(&self.console_log())?;
        *self.up.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        self.started(None).await
    }

    /// Reboots it in order, and waits as [`Machine::boot`] does.
    ///
    /// # Errors
    ///
    /// When it is down, or does not come up again.
    pub async fn reboot(&self) -> anyhow::Result<()> {
        let before = self.init()?;
        // The answer may be cut off by what was asked for.
        self.output(Program::new("systemctl").arg("reboot")).await.ok();
        self.started(Some(before)).await
    }

    /// Cuts its power: everything in it is killed at once. Its disk stays.
    ///
    /// # Errors
    ///
    /// When something in it does not end.
    pub async fn cut_power(&self) -> anyhow::Result<()> {
        let all = self.processes()?;
        let init = self.init()?;
        init.signal(Signal::SIGKILL)?;
        wait_for(format!("all of machine {} to end", self.name), BOOT, || async {
            all.iter().all(|one| !one.process.is_alive())
        })
        .await?;
        let up = self.up.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut up) = up {
            up.wait();
        }
        Ok(())
    }

    /// Runs a program in it, as root, to its end.
    ///
    /// # Errors
    ///
    /// When it is down, or the program does not start or end in time.
    pub async fn output(&self, program: Program) -> anyhow::Result<Output> {
        self.inside(program)?.output().await
    }

    /// Runs a program in it, as root; it must succeed; gives its standard output.
    ///
    /// # Errors
    ///
    /// As [`Program::run`], and when it is down.
    pub async fn run(&self, program: Program) -> anyhow::Result<String> {
        self.inside(program)?.run().await
    }

    /// A property of one of its units, as `systemctl show` says it; empty for one that does not exist.
    ///
    /// # Errors
    ///
    /// When it is down, or systemd does not answer.
    pub async fn property(&self, unit: &str, property: &str) -> anyhow::Result<String> {
        let show = Program::new("systemctl").args(["show", "--property", property, "--value", unit]);
        Ok(self.run(show).await?.trim().to_owned())
    }

    /// What the journal has of a unit since the machine booted.
    ///
    /// # Errors
    ///
    /// When it is down.
    pub async fn journal(&self, unit: &str) -> anyhow::Result<String> {
        self.run(Program::new("journalctl").args(["--boot", "--no-pager", "--output=cat", "--unit", unit]))
            .await
    }

    /// All of its processes, as seen from outside.
    ///
    /// # Errors
    ///
    /// When it is down.
    pub fn processes(&self) -> anyhow::Result<Vec<Entry>> {
        Ok(proc::in_pid_namespace_of(self.init()?.pid))
    }

    /// The program, to be run inside. Killing nsenter would leave its child behind, so the deadline is kept in there too.
    fn inside(&self, program: Program) -> anyhow::Result<Program> {
        let seconds = (program.patience().as_secs() + 1).to_string();
        let target = self.init()?.pid.to_string();
        let program = program.clean_env().env("HOME", "/root").env(MARK, self.run.id());
        let program = program.wrapped(["timeout", "--signal=KILL", &seconds]);
        Ok(program.wrapped(["nsenter", "--all", "--target", &target, "--"]))
    }

    async fn started(&self, before: Option<Process>) -> anyhow::Result<()> {
        let state = wait_until(format!("machine {} to boot", self.name), BOOT, || async {
            ensure!(Some(self.init()?) != before, "it has not gone down yet");
            let asked = Program::new("systemctl").args(["is-system-running", "--wait"]);
            let state = self.output(asked).await?.stdout.trim().to_owned();
            ensure!(["running", "degraded"].contains(&state.as_str()), "it is {state:?}");
            Ok(state)
        });
        let state = state.await.with_context(|| last_lines(&self.console()))?;
        if state == "degraded" {
            let failed =
                self.run(Program::new("systemctl").args(["--failed", "--no-legend", "--plain"])).await?;
            bail!("machine {} has units that failed: {failed}{}", self.name, last_lines(&self.console()));
        }
        Ok(())
    }

    fn console_log(&self) -> PathBuf {
        self.folder.join("log/console.log")
    }
}

// === impl Impossible ===

impl fmt::Display for Impossible {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "there can be no machines with systemd here, and tests on them are skipped: {}", self.0)
    }
}

impl std::error::Error for Impossible {}

/// Whether there can be machines here.
///
/// # Errors
///
/// [`Impossible`], which says why not.
pub fn possible() -> Result<(), Impossible> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Impossible("they need root".to_owned()));
    }
    let missing = ["systemd-nspawn", "mmdebstrap", "apt-ftparchive"].into_iter().find(|name| !on_path(name));
    if let Some(name) = missing {
        return Err(Impossible(format!("{name} is not installed")));
    }
    cgroup::hierarchies().map(drop).map_err(|error| Impossible(format!("{error:#}")))
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// What cloud-init's NoCloud source reads.
fn seed(disk: &Path, name: &str, user_data: &str) -> anyhow::Result<()> {
    let seed = disk.join("var/lib/cloud/seed/nocloud");
    fs::create_dir_all(&seed).with_context(|| format!("make {}", seed.display()))?;
    let id = uuid::Uuid::new_v4();
    fs::write(seed.join("meta-data"), format!("instance-id: {id}\nlocal-hostname: {name}\n"))?;
    crate::fleet::write_secret(&seed.join("user-data"), user_data)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    format!("the end of its console:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
}
