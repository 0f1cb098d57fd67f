//! Facts about users and the machine that drivers need to decide, and how the machine is booted again.

use std::fmt;

use futures::FutureExt as _;
use futures::future::BoxFuture;
pub use holdfast_common::telemetry::Privilege;
use nix::unistd::{Uid, User, geteuid};
use serde::{Deserialize, Serialize};

use super::units;

/// Users and identity of the machine: the real one, or the fake. Lookups may block for a moment.
pub trait System: fmt::Debug + Send + Sync {
    /// The ids of a user; `None` if there is no such user.
    ///
    /// # Errors
    /// If the user database cannot be read.
    fn user(&self, name: &str) -> Result<Option<Owner>, Error>;

    /// Whether the agent may act for the whole machine.
    fn privilege(&self) -> Privilege;

    /// Changes at every boot of the machine, also where that is a container, whose kernel goes on.
    ///
    /// # Errors
    /// If the kernel does not tell it.
    fn boot_id(&self) -> Result<String, Error>;

    /// How large it is now; where the kernel does not tell, as small as one may be.
    fn size(&self) -> Size;

    /// Has the machine shut everything down in order and boot again. On return it was asked to; it does so by itself.
    ///
    /// # Errors
    /// If it was not.
    fn reboot(&self) -> BoxFuture<'_, Result<(), Error>>;
}

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// What a machine has for all that runs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub memory_bytes: u64,
    /// That the agent may use.
    pub cores: u32,
}

/// This machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("look up user {name}")]
    User { name: String, source: std::io::Error },
    #[error("read the boot id")]
    BootId { source: std::io::Error },
    #[error("have systemd boot the machine again")]
    Systemd(#[source] Box<units::Error>),
    #[error("have pid 1 boot the machine again")]
    Init { source: std::io::Error },
}

// === impl Machine ===

impl Machine {
    /// Changes at every boot of the kernel.
    ///
    /// # Errors
    /// If it does not tell it.
    pub fn kernel_boot_id() -> Result<String, Error> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        text.map(|id| id.trim().to_owned()).map_err(|source| Error::BootId { source })
    }
}

impl System for Machine {
    fn user(&self, name: &str) -> Result<Option<Owner>, Error> {
        match User::from_name(name) {
            Ok(found) => Ok(found.map(|user| Owner { uid: user.uid.as_raw(), gid: user.gid.as_raw() })),
            Err(errno) => Err(Error::User { name: name.to_owned(), source: errno.into() }),
        }
    }

    fn privilege(&self) -> Privilege {
        if geteuid() == Uid::from_raw(0) { Privilege::Root } else { Privilege::Unprivileged }
    }

    fn boot_id(&self) -> Result<String, Error> {
        let init = procfs::process::Process::new(1).and_then(|init| init.stat());
        let init = init.map_err(|error| Error::BootId { source: std::io::Error::other(error) })?;
        Ok(format!("{}.{}", Self::kernel_boot_id()?, init.starttime))
    }

    fn size(&self) -> Size {
        use procfs::Current as _;
        let cores = std::thread::available_parallelism();
        Size {
            memory_bytes: procfs::Meminfo::current().map_or(1 << 30, |info| info.mem_total),
            cores: cores.map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX)),
        }
    }

    fn reboot(&self) -> BoxFuture<'_, Result<(), Error>> {
        async {
            if units::systemd_is_there() {
                let asked = units::Systemd::reboot_machine().await;
                return asked.map_err(|error| Error::Systemd(Box::new(error)));
            }
            // What the kernel does at Ctrl-Alt-Del. A pid 1 that does not listen to it never gets it.
            rustix::process::kill_process(rustix::process::Pid::INIT, rustix::process::Signal::INT)
                .map_err(|errno| Error::Init { source: errno.into() })
        }
        .boxed()
    }
}
