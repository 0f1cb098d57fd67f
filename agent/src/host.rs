//! The one door to the machine: programs, files, services and users are reached through [`Host`] and nowhere else.
//!
//! | part | answers for |
//! | --- | --- |
//! | [`exec`] | programs that run and end, with deadline and bounded output |
//! | [`files`] | atomic writes, bounded reads, changes only below the agent's own folders |
//! | [`netlink`] | the kernel's firewall, without a process |
//! | [`units`] | services that outlive the agent: systemd, or a plain supervisor |
//! | [`system`] | users, privilege, boot id, reboot |
//! | [`fake`] | all of it in memory, which keeps state and can be told to fail |
//!
//! A [`Host`] is a cheap clone. It decides nothing: what should run or stand where is the drivers' business.

pub mod exec;
pub mod fake;
pub mod files;
pub mod netlink;
pub mod system;
pub mod units;

use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use self::exec::{Exec, LineSink, Output, Processes, Program};
use self::files::{Disk, Files};
use self::netlink::Netlink;
use self::system::{Machine, System};
use self::units::{Supervisor, Units};

/// The machine, or a fake of it.
#[derive(Debug, Clone)]
pub struct Host {
    exec: Arc<dyn Exec>,
    files: Files,
    units: Arc<dyn Units>,
    system: Arc<dyn System>,
    netlink: Arc<dyn Netlink>,
}

/// What of the real machine the agent may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The folders below which it may change files.
    pub roots: Vec<PathBuf>,
    /// Where the plain supervisor keeps its records; must survive a restart of the agent.
    pub unit_records: PathBuf,
    pub supervisor: Supervisor,
}

// === impl Host ===

impl Host {
    /// Opens the real machine.
    ///
    /// # Errors
    /// If the supervisor cannot be reached.
    pub async fn open(limits: Limits) -> Result<Self, units::Error> {
        let Limits { roots, unit_records, supervisor } = limits;
        let units = supervisor.open(&unit_records).await?;
        let files = Files::new(Arc::new(Disk::new(roots)));
        Ok(Self {
            exec: Arc::new(Processes),
            files,
            units,
            system: Arc::new(Machine),
            netlink: netlink::open(),
        })
    }

    /// Puts a host together from parts.
    pub fn from_parts(
        exec: Arc<dyn Exec>,
        files: Files,
        units: Arc<dyn Units>,
        system: Arc<dyn System>,
        netlink: Arc<dyn Netlink>,
    ) -> Self {
        Self { exec, files, units, system, netlink }
    }

    pub fn exec(&self) -> &dyn Exec {
        self.exec.as_ref()
    }

    pub fn files(&self) -> &Files {
        &self.files
    }

    pub fn units(&self) -> &dyn Units {
        self.units.as_ref()
    }

    pub fn system(&self) -> &dyn System {
        self.system.as_ref()
    }

    pub fn netlink(&self) -> Arc<dyn Netlink> {
        Arc::clone(&self.netlink)
    }

    /// Runs a short program whose lines nobody watches.
    ///
    /// # Errors
    /// As [`Exec::run`].
    pub async fn run(&self, program: Program, cancel: &CancellationToken) -> Result<Output, exec::Error> {
        self.exec.run(program, None, cancel).await
    }

    /// Runs a program and passes each line on as it comes.
    ///
    /// # Errors
    /// As [`Exec::run`].
    pub async fn run_with_lines(
        &self,
        program: Program,
        lines: LineSink,
        cancel: &CancellationToken,
    ) -> Result<Output, exec::Error> {
        self.exec.run(program, Some(lines), cancel).await
    }
}
