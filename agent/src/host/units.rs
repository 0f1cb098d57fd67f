//! Runs the databases: services that outlive the agent.
//!
//! ```text
//!             start                     ends by itself, code 0
//! NotFound ──────────► Running ─────────────────────────────────► Exited
//!    ▲                   │  │   any other end                       ▲
//!    │                   │  └─────────────────────► Failed          │
//!    └── forget ◄─ (not Running) ◄── stop ───────────────────────────┘
//! ```
//!
//! There is no restart policy: what should run is decided by the agent's converge rounds alone. Two supervisors:
//! [`Systemd`] where the machine has it, [`Plain`] elsewhere. An agent that restarts finds its services again with both.
//! Not here: whether the database in the process is healthy; that is asked of the engine.

mod plain;
mod systemd;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use holdfast_common::error::{Classify, Metadata, Reason};
use holdfast_common::telemetry::ServiceManager;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use plain::Plain;
pub use systemd::Systemd;

use super::exec::variable_allowed;
use super::system::Owner;

/// The longest name of a service.
pub const MAX_NAME_BYTES: usize = 96;
/// Present if and only if systemd is PID 1.
const SYSTEMD_MARKER: &str = "/run/systemd/system";

/// Starts, stops and watches services: systemd, the plain supervisor, or the fake.
pub trait Units: fmt::Debug + Send + Sync {
    /// Makes sure that the service runs. One that runs already is left alone, whatever its definition was.
    ///
    /// # Errors
    /// If it could not be started; that it failed later is told by [`Units::status`].
    fn start<'a>(&'a self, service: &'a Service) -> BoxFuture<'a, Result<Started, Error>>;

    /// Ends the service: `how.signal` to its main process, and SIGKILL to all of its processes once `how.deadline` is
    /// over. On return none of its processes is left.
    ///
    /// # Errors
    /// If it could not be made sure that it stopped.
    fn stop<'a>(&'a self, name: &'a ServiceName, how: Stop) -> BoxFuture<'a, Result<Stopped, Error>>;

    /// What is known of the service; a question that cannot be answered is [`Status::Unknown`].
    fn status<'a>(&'a self, name: &'a ServiceName) -> BoxFuture<'a, Status>;

    /// Sends a signal to the main process, such as a hang-up to reload.
    ///
    /// # Errors
    /// [`Error::NotRunning`], or if the signal could not be sent.
    fn signal<'a>(&'a self, name: &'a ServiceName, signal: Signal) -> BoxFuture<'a, Result<(), Error>>;

    /// Forgets a service that does not run.
    ///
    /// # Errors
    /// [`Error::StillRunning`], or if its traces could not be removed.
    fn forget<'a>(&'a self, name: &'a ServiceName) -> BoxFuture<'a, Result<(), Error>>;
}

/// Which supervisor to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supervisor {
    /// Systemd if it is PID 1, else plain.
    #[default]
    Auto,
    Systemd,
    Plain,
}

/// The name of a service: lower-case letters, digits and single hyphens, such as `holdfast-postgresql-shop`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

/// A service as it is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: ServiceName,
    /// For people, as `systemctl status` shows it.
    pub description: String,
    /// An absolute path.
    pub program: PathBuf,
    /// Visible to every user of the machine: no secrets.
    pub args: Vec<OsString>,
    /// From the same allow-list as for programs.
    pub variables: Vec<(String, String)>,
    /// `None`: the agent's own user.
    pub owner: Option<Owner>,
    pub directory: PathBuf,
    /// Where stdout and stderr go, under either supervisor. It must lie in a folder that the service's user cannot
    /// write, or the user's own.
    pub log: PathBuf,
    /// How it is stopped when the machine shuts down.
    pub shutdown: Stop,
}

/// How to stop a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    pub signal: Signal,
    /// After it, SIGKILL.
    pub deadline: Duration,
}

/// The signals that services are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Hangup,
    Interrupt,
    Quit,
    Terminate,
    Kill,
}

/// What is known of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Running {
        pid: u32,
        since: Timestamp,
    },
    /// Ended as it should: it was stopped, ended with code 0, or the machine was restarted.
    Exited,
    /// Ended in any other way.
    Failed {
        ending: Ending,
    },
    /// Never started here, or forgotten.
    NotFound,
    /// Could not be found out; assume nothing.
    Unknown {
        why: String,
    },
}

/// How the main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Code(i32),
    Signal(i32),
    /// While no agent was there to see it.
    Unseen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    Now,
    Already,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It left by itself after the signal.
    Gently,
    /// The deadline passed and it was killed.
    Killed,
    /// It did not run.
    Already,
}

/// Why a service could not be started, stopped or asked about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is no service name: use 1 to {MAX_NAME_BYTES} lower-case letters, digits and hyphens")]
    Name(String),
    #[error("service {service}: variable {variable} may not be set")]
    Variable { service: String, variable: String },
    #[error("service {service}: {} must be an absolute path", path.display())]
    Path { service: String, path: PathBuf },
    #[error("{deed} service {service}")]
    Io { deed: &'static str, service: String, source: std::io::Error },
    #[error("{deed} service {service}: systemd refused")]
    Bus { deed: &'static str, service: String, source: Box<zbus::Error> },
    #[error("{deed} service {service}: systemd ended the work with {result:?}")]
    Result { deed: &'static str, service: String, result: String },
    #[error("{deed} service {service}: no end after {} s", after.as_secs())]
    Deadline { deed: &'static str, service: String, after: Duration },
    #[error("service {service} does not run")]
    NotRunning { service: String },
    #[error("service {service} still runs")]
    StillRunning { service: String },
    #[error("service {service}: its state is not known: {why}")]
    Unknown { service: String, why: String },
    #[error("connect to systemd, which is there, over the system bus")]
    NoBus { source: Box<zbus::Error> },
    #[error("start reboot.target: systemd refused")]
    Machine { source: Box<zbus::Error> },
}

// === impl Supervisor ===

impl Supervisor {
    /// Who runs the services with this choice.
    pub fn manager(self) -> ServiceManager {
        match self {
            Self::Auto if systemd_is_there() => ServiceManager::Systemd,
            Self::Systemd => ServiceManager::Systemd,
            Self::Auto | Self::Plain => ServiceManager::Plain,
        }
    }

    /// Opens the supervisor; `state` is the folder in which the plain one keeps its records.
    ///
    /// # Errors
    /// If systemd is PID 1 but its bus does not answer: falling back to the plain supervisor could then start a
    /// database a second time, and would tie it to the agent's own unit.
    pub async fn open(self, state: &Path) -> Result<std::sync::Arc<dyn Units>, Error> {
        let systemd = match self {
            Self::Auto => systemd_is_there(),
            Self::Systemd => true,
            Self::Plain => false,
        };
        if systemd {
            Ok(std::sync::Arc::new(Systemd::connect().await?))
        } else {
            Ok(std::sync::Arc::new(Plain::open(state)?))
        }
    }
}

// === impl ServiceName ===

impl ServiceName {
    /// # Errors
    /// [`Error::Name`] with the rule.
    pub fn new(name: impl Into<String>) -> Result<Self, Error> {
        let name = name.into();
        let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let edges = !name.starts_with('-') && !name.ends_with('-') && !name.is_empty();
        if letters && edges && name.len() <= MAX_NAME_BYTES { Ok(Self(name)) } else { Err(Error::Name(name)) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Service ===

impl Service {
    /// Refuses variables outside of the allow-list and relative paths.
    pub(crate) fn checked(&self) -> Result<(), Error> {
        let service = || self.name.to_string();
        if let Some((variable, _)) = self.variables.iter().find(|(name, _)| !variable_allowed(name)) {
            return Err(Error::Variable { service: service(), variable: variable.clone() });
        }
        match [&self.program, &self.directory, &self.log].into_iter().find(|path| !path.is_absolute()) {
            Some(path) => Err(Error::Path { service: service(), path: path.clone() }),
            None => Ok(()),
        }
    }
}

// === impl Signal ===

impl Signal {
    pub fn number(self) -> i32 {
        self.named().as_raw()
    }

    fn named(self) -> rustix::process::Signal {
        match self {
            Self::Hangup => rustix::process::Signal::HUP,
            Self::Interrupt => rustix::process::Signal::INT,
            Self::Quit => rustix::process::Signal::QUIT,
            Self::Terminate => rustix::process::Signal::TERM,
            Self::Kill => rustix::process::Signal::KILL,
        }
    }
}

// === impl Status ===

impl Status {
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// How a service stands whose main process ended like this.
    pub(crate) fn ended(ending: Ending, asked_to_stop: bool) -> Self {
        if asked_to_stop || ending == Ending::Code(0) { Self::Exited } else { Self::Failed { ending } }
    }
}

// === impl Error ===

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Variable { .. } | Self::Path { .. } | Self::Name(_) => Reason::NotPermitted,
            Self::StillRunning { .. } | Self::NotRunning { .. } => Reason::PreconditionFailed,
            Self::NoBus { .. } => Reason::EngineUnavailable,
            Self::Deadline { .. } => Reason::CommandTimedOut,
            Self::Io { .. }
            | Self::Bus { .. }
            | Self::Machine { .. }
            | Self::Result { .. }
            | Self::Unknown { .. } => Reason::EngineFailed,
        }
    }

    fn metadata(&self) -> Metadata {
        let service = match self {
            Self::Name(service)
            | Self::Variable { service, .. }
            | Self::Path { service, .. }
            | Self::Io { service, .. }
            | Self::Bus { service, .. }
            | Self::Result { service, .. }
            | Self::Deadline { service, .. }
            | Self::NotRunning { service }
            | Self::StillRunning { service }
            | Self::Unknown { service, .. } => service,
            Self::NoBus { .. } | Self::Machine { .. } => return Metadata::new(),
        };
        Metadata::from([("service".to_owned(), service.clone())])
    }
}

/// Whether systemd is PID 1.
pub(crate) fn systemd_is_there() -> bool {
    Path::new(SYSTEMD_MARKER).is_dir()
}
