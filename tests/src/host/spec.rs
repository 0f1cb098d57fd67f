//! What the testbed tells pid 1 of a host, and what that tells back: small JSON files in the host's folder.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::run::Isolation;

/// A host, as its pid 1 is told. Written once, before each boot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Its hostname.
    pub name: String,
    /// The run that it belongs to.
    pub run: String,
    /// What it is made of.
    pub isolation: IsolationName,
    /// Its folder: `lib`, `etc`, `log`, `services`.
    pub folder: PathBuf,
    /// The file whose lock says that the owner lives, if there is an owner.
    pub owner_lock: Option<PathBuf>,
    /// New with every boot, as a machine's is.
    pub boot_id: String,
    /// The same for the host's whole life.
    pub machine_id: String,
    /// What it has on disks of their own.
    pub disks: Vec<Disk>,
}

/// A disk of a host: a file with a file system in it, and where the host has it mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub image: PathBuf,
    pub place: PathBuf,
}

/// [`Isolation`], as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IsolationName {
    /// Namespaces.
    Hosts,
    /// Plain processes.
    Processes,
}

/// A program that pid 1 keeps running, as a systemd unit with `Restart=on-failure` and `RestartSec=1` would.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Its name, also that of its log.
    pub name: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its environment, beyond a path, a language and a home.
    pub env: Vec<(String, String)>,
    /// If the host was plugged a listening socket: hand it over under this name, as systemd hands over a socket.
    pub socket: Option<String>,
}

/// What pid 1 says of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// Its pid as the host sees it, while it runs.
    pub pid: Option<u32>,
    /// How often it was started since the host booted.
    pub starts: u32,
    /// How it ended last.
    pub last_end: Option<String>,
}

// === impl IsolationName ===

impl From<Isolation> for IsolationName {
    fn from(isolation: Isolation) -> Self {
        match isolation {
            Isolation::Hosts => Self::Hosts,
            Isolation::Processes => Self::Processes,
        }
    }
}

/// The folder of a host's services, inside its folder.
#[must_use]
pub fn services(folder: &Path) -> PathBuf {
    folder.join("services")
}

/// The description of a service.
#[must_use]
pub fn service_file(folder: &Path, name: &str) -> PathBuf {
    services(folder).join(format!("{name}.json"))
}

/// While this exists the service is not started again.
#[must_use]
pub fn hold_file(folder: &Path, name: &str) -> PathBuf {
    services(folder).join(format!("{name}.hold"))
}

/// What pid 1 says of a service.
#[must_use]
pub fn state_file(folder: &Path, name: &str) -> PathBuf {
    services(folder).join(format!("{name}.state"))
}

/// Written by pid 1 when the host is up: the boot id.
#[must_use]
pub fn ready_file(folder: &Path) -> PathBuf {
    folder.join("ready")
}

/// Writes a file whole: a reader sees the old one or the new one.
///
/// # Errors
///
/// When it cannot be written.
pub fn write<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let next = path.with_extension("next");
    std::fs::write(&next, serde_json::to_vec(value)?).with_context(|| format!("write {}", next.display()))?;
    std::fs::rename(&next, path).with_context(|| format!("put {} in place", path.display()))
}

/// Reads one of these files.
///
/// # Errors
///
/// When it is missing or says something else.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("understand {}", path.display()))
}
