//! A machine in memory, for the tests of drivers: it keeps state, remembers what it was told, and fails on request.
//!
//! It says yes to nothing by itself: a program without an answer is not installed, a folder that was not made does not
//! exist, a user that was not added is unknown. Its files pass the same contract suite as the real disk.

mod exec;
mod files;
#[cfg(test)]
pub(crate) mod mortal;
mod units;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use nix::errno::Errno;

pub use exec::{Answer, Ends, FakeExec};
pub use files::FakeTree;
pub use units::FakeUnits;

use super::Host;
use super::files::Files;
use super::netlink::Closed;
use super::system::{Error, Owner, Privilege, Size, System};

/// The parts of a fake machine; each is a cheap clone and can be kept to script it and to look at it later.
#[derive(Debug, Clone)]
pub struct Fake {
    pub exec: FakeExec,
    pub tree: FakeTree,
    pub units: FakeUnits,
    pub system: FakeSystem,
}

/// Users and identity of the fake machine.
#[derive(Debug, Clone)]
pub struct FakeSystem {
    state: Arc<Mutex<SystemState>>,
}

#[derive(Debug)]
struct SystemState {
    users: BTreeMap<String, Owner>,
    privilege: Privilege,
    boot: u64,
    asked_to_reboot: u32,
    size: Size,
}

// === impl Fake ===

impl Fake {
    /// A machine on which the agent is root and may change files below `roots`, which exist and are empty.
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            exec: FakeExec::default(),
            tree: FakeTree::new(roots),
            units: FakeUnits::default(),
            system: FakeSystem::default(),
        }
    }

    pub fn host(&self) -> Host {
        Host::from_parts(
            Arc::new(self.exec.clone()),
            Files::new(Arc::new(self.tree.clone())),
            Arc::new(self.units.clone()),
            Arc::new(self.system.clone()),
            // A kernel that nobody has leave to change: nftables is tested on real ones.
            Arc::new(Closed(Errno::EPERM)),
        )
    }

    /// Restarts the machine: files stay, services end, the boot id changes.
    pub fn reboot(&self) {
        self.units.reboot();
        locked(&self.system.state).boot += 1;
    }
}

// === impl FakeSystem ===

impl FakeSystem {
    pub fn add_user(&self, name: &str, owner: Owner) {
        locked(&self.state).users.insert(name.to_owned(), owner);
    }

    pub fn set_privilege(&self, privilege: Privilege) {
        locked(&self.state).privilege = privilege;
    }

    /// The machine is given more, or less.
    pub fn resize(&self, size: Size) {
        locked(&self.state).size = size;
    }

    /// How often it was asked to boot again. It does so only by [`Fake::reboot`].
    pub fn reboots(&self) -> u32 {
        locked(&self.state).asked_to_reboot
    }
}

impl Default for FakeSystem {
    fn default() -> Self {
        let users = BTreeMap::from([("root".to_owned(), Owner { uid: 0, gid: 0 })]);
        let size = Size { memory_bytes: 4 << 30, cores: 2 };
        let state = SystemState { users, privilege: Privilege::Root, boot: 1, asked_to_reboot: 0, size };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl System for FakeSystem {
    fn user(&self, name: &str) -> Result<Option<Owner>, Error> {
        Ok(locked(&self.state).users.get(name).copied())
    }

    fn privilege(&self) -> Privilege {
        locked(&self.state).privilege
    }

    fn boot_id(&self) -> Result<String, Error> {
        Ok(format!("00000000-0000-4000-8000-{:012}", locked(&self.state).boot))
    }

    fn size(&self) -> Size {
        locked(&self.state).size
    }

    fn reboot(&self) -> BoxFuture<'_, Result<(), Error>> {
        locked(&self.state).asked_to_reboot += 1;
        std::future::ready(Ok(())).boxed()
    }
}

/// A test that panicked in another thread must not hide behind a second panic.
fn locked<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
