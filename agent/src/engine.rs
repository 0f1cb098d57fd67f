//! The drivers of the database engines: one trait, one folder for each engine.
//!
//! A driver knows how to check and install its packages, to make, copy, start, stop, configure, observe and destroy
//! members. It knows nothing of the coordinator, of leases or of gRPC, and does not decide: what should be done comes as
//! a command, out of [`crate::converge`] or of [`crate::lease`].
//!
//! ```text
//!             initialise │ copy_from                   start              observe: Starting → Running
//!  Absent ───────────────┴──────────────► Stopped ───────────────────────► (process, owned by the supervisor)
//!    ▲        (Building while at work)       │  ▲           stop               │
//!    └──────────── destroy ──────────────────┘  └──────────────────────────────┘
//! ```
//!
//! What a driver never does: change or remove data but in `destroy`, which is asked for by name, and in `resync`, under the wipe guard
//! and with what only they have set aside; stop a running server because the agent starts or ends; report something that it did
//! not read.

pub mod execute;
pub mod fake;
pub mod postgresql;
mod restart;
pub mod room;
mod work;

#[cfg(test)]
mod contract;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use holdfast_common::assignment::{MemberAssignment, Synchronous};
use holdfast_common::budget::{Budget, Tuning};
use holdfast_common::command::{
    CheckMember, CheckedMember, CloneMember, DestroyMember, InitialiseMember, InstallEngine, ResyncMember,
    ResyncedBy, RetuneMember, SetPassword, UpgradeEngine,
};
use holdfast_common::engine::Engine as Kind;
use holdfast_common::error::{Classify, Metadata, Reason, Resource, Retry, Violation};
use holdfast_common::id::ClusterId;
use holdfast_common::name::ClusterName;
use holdfast_common::position::Position;
use holdfast_common::protocol::{Standing, Tail, wipe};
use holdfast_common::question::{Retuning, Upgrades};
use holdfast_common::report::{EngineState, Follower, Trouble};
use holdfast_common::role::Role;
use holdfast_common::set_aside;
use holdfast_common::telemetry::EngineOffer;
use holdfast_common::term::Term;
use jiff::Timestamp;

pub use execute::{Engines, Held, Waker};
pub use work::Work;

/// What a driver's deed comes to.
pub type Deed<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// One engine on this node. Deeds on one cluster are called one at a time ([`Engines::hold`]); `observe` at any time.
pub trait Engine: fmt::Debug + Send + Sync {
    fn kind(&self) -> Kind;

    /// Whom to wake when a member's server has ended by itself. Once.
    fn set_waker(&self, waker: Waker);

    /// The versions that this node has, or could install.
    fn offers(&self) -> Deed<'_, Vec<EngineOffer>>;

    /// Looks whether a member could be made here. Changes nothing; what is unmet stands in the checks.
    fn check<'a>(&'a self, request: &'a CheckMember) -> Deed<'a, CheckedMember>;

    /// Installs what is missing, and returns the installed version. Starts no server. Safe to repeat.
    fn install<'a>(&'a self, request: &'a InstallEngine, work: &'a Work) -> Deed<'a, String>;

    /// What the package sources offer for a member's major version, as far as they were read. Changes nothing.
    fn upgrades(&self, cluster: ClusterId) -> Deed<'_, Upgrades>;

    /// Brings the version's packages up to what the sources offer, and returns the installed build. Servers that run are neither
    /// stopped nor changed. Safe to repeat.
    fn upgrade<'a>(&'a self, request: &'a UpgradeEngine, work: &'a Work) -> Deed<'a, String>;

    /// What [`Engine::retune`] would change. Changes nothing.
    fn retuning(&self, cluster: ClusterId) -> Deed<'_, Retuning>;

    /// Notes by what of its machine a member's settings are to go from now on, and returns it: [`Engine::compare`] finds the rest.
    fn retune<'a>(&'a self, request: &'a RetuneMember) -> Deed<'a, Budget>;

    /// Notes that somebody is told of the machine's size; `false` where that was done before. To be called where a member's
    /// [`Tuning`] says that it is another one.
    fn note_resized(&self, cluster: ClusterId) -> Deed<'_, bool>;

    /// Makes an empty database with its user, and returns the identity of the data. The member is stopped afterwards.
    ///
    /// What this very command left unfinished is begun again; what it finished is returned again.
    ///
    /// # Errors
    /// `WOULD_DESTROY_DATA` where data of the cluster lie here that another command made.
    fn initialise<'a>(&'a self, request: &'a InitialiseMember, work: &'a Work) -> Deed<'a, String>;

    /// Copies the data of another member, which must run. The member is stopped afterwards.
    ///
    /// # Errors
    /// As [`Engine::initialise`]; and `PRECONDITION_FAILED` where the source is another database than expected.
    fn copy_from<'a>(&'a self, request: &'a CloneMember, work: &'a Work) -> Deed<'a, Copied>;

    /// Makes a replica's data what the source's are: by following, by rewinding, by a copy beside the old data that replaces them. The
    /// log that perhaps only this member has is set aside before. Whoever was stopped for it may be started again
    /// afterwards, also where it fails.
    ///
    /// What was cut is gone on with, by the same command or by another. The old data are kept until the copy streams.
    ///
    /// # Errors
    /// `WOULD_DESTROY_DATA` where the [wipe guard](holdfast_common::protocol::wipe) refuses; then nothing has changed.
    fn resync<'a>(&'a self, request: &'a ResyncMember, work: &'a Work) -> Deed<'a, Resynced>;

    /// Tells of the logs that a member has set aside. Changes nothing.
    ///
    /// # Errors
    /// `SET_ASIDE_NOT_FOUND`.
    fn set_aside<'a>(
        &'a self,
        cluster: ClusterId,
        question: &'a set_aside::Question,
    ) -> Deed<'a, set_aside::Answer>;

    /// Stops the member and removes its data; `false` where there were none.
    ///
    /// # Errors
    /// `NOT_CONFIRMED` if `confirm` is not the name recorded with the data.
    fn destroy<'a>(&'a self, request: &'a DestroyMember, work: &'a Work) -> Deed<'a, bool>;

    /// Gives a database user another password. The member must run as primary.
    fn set_password<'a>(&'a self, request: &'a SetPassword) -> Deed<'a, ()>;

    /// All members that have data here, assigned or not.
    fn members(&self) -> Deed<'_, Vec<LocalMember>>;

    /// What is true of a member now. Reads only, cheap enough for every second, and never fails: what could not be
    /// read is unknown.
    fn observe(&self, cluster: ClusterId) -> BoxFuture<'_, Observation>;

    /// Whether a client could use a primary now: a connection of its own, and a write that reaches the disk; of replicas it waits
    /// for none. Unbounded: the caller drops it.
    fn probe(&self, cluster: ClusterId) -> Deed<'_, ()>;

    /// How the member's configuration differs from its assignment. Reads only.
    fn compare<'a>(&'a self, member: &'a MemberAssignment, observed: &'a Observation) -> Deed<'a, Drift>;

    /// Writes the configuration and certificates that the assignment asks for; a running member takes them over at
    /// once as far as it can without a restart. Never changes a member's role.
    fn configure<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()>;

    /// Makes a running primary ready to be followed by exactly the members of the assignment, and a replica by nobody.
    fn admit<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()>;

    /// Starts the process, in the role that its data have. `Ok` once it runs, which may be before it accepts clients.
    fn start<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()>;

    /// Stops the process; `Ok` only when it is proven gone.
    fn stop(&self, cluster: ClusterId) -> Deed<'_, ()>;

    /// The same at once, without waiting for sessions or a checkpoint: the next start recovers. May be called whatever else
    /// is being done to the member.
    fn halt(&self, cluster: ClusterId) -> Deed<'_, ()>;

    /// Writes out what a running member has in memory, so that a stop that follows is short.
    fn checkpoint(&self, cluster: ClusterId) -> Deed<'_, ()>;

    /// Stops a primary in such a way that whoever receives from it has all of its log, and says where that ends. Of one that was
    /// stopped so before it says it again. Nothing of it writes or sends any more by then; what is left of its process ends by itself.
    ///
    /// # Errors
    /// Where the log does not end cleanly.
    fn rest(&self, cluster: ClusterId) -> Deed<'_, Tail>;

    /// Has a running replica receive from nobody any more, not after a restart either, until it leads or follows; and says
    /// where its log ends, of which all is replayed.
    fn seal(&self, cluster: ClusterId) -> Deed<'_, Tail>;

    /// Makes a running member primary of the assignment's term, which is written into its data, and ready to be followed. Safe to
    /// repeat.
    fn lead<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()>;

    /// Makes a member a replica of the assignment's upstream: one that was sealed, or a primary that is stopped.
    ///
    /// # Errors
    /// `PRECONDITION_FAILED` (`log_is_a_prefix`) where a former primary's log is not known to be all in the upstream's. Nothing
    /// has changed then.
    fn follow<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()>;
}

/// What is true around a member now, for a deed that may replace its data: asked at the moment of action.
pub trait Surroundings: fmt::Debug + Send + Sync {
    /// What the member is by its lease's record, and in which term; `None`: not known.
    fn standing(&self, cluster: ClusterId) -> Option<(Term, Standing)>;

    /// Whether its access rules are in the kernel.
    fn covers(&self, cluster: ClusterId) -> bool;
}

/// Shared among all deeds.
pub type Around = Arc<dyn Surroundings>;

/// A finished copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    pub system_identifier: String,
    pub bytes: u64,
}

/// A member whose data are what its source's are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resynced {
    pub how: ResyncedBy,
    pub system_identifier: String,
    pub copied_bytes: u64,
    /// Of the log that perhaps only this member has.
    pub set_aside_bytes: u64,
}

/// A member that has data on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalMember {
    pub cluster_id: ClusterId,
    pub cluster_name: ClusterName,
    /// The data are complete: no command is, or was interrupted while, making them.
    pub complete: bool,
}

/// What is true of a member now; `None` is unknown or does not apply.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    pub state: EngineState,
    /// The role that the running engine says it has.
    pub role: Option<Role>,
    /// The role in which the data would start.
    pub data_role: Option<Role>,
    /// Of a running primary: the newest term that is written in its data.
    pub term: Option<Term>,
    /// It is to receive from nobody.
    pub sealed: bool,
    pub position: Option<Position>,
    pub replayed: Option<Position>,
    pub lag_seconds: Option<f64>,
    pub streaming: Option<bool>,
    pub followers: Vec<Follower>,
    pub synchronous: Synchronous,
    pub system_identifier: Option<String>,
    pub engine_version: Option<String>,
    /// Which build the running server is of.
    pub server_build: Option<String>,
    /// Which one a start of it would run.
    pub installed_build: Option<String>,
    pub started_at: Option<Timestamp>,
    pub pending_restart: Vec<String>,
    pub data_bytes: Option<u64>,
    /// Why it is not as it should be, as far as the engine can tell.
    pub message: String,
    /// Its data cannot be started: what was replacing them was cut.
    pub needs_resync: bool,
    /// What is not as it should be with its replication.
    pub troubles: Vec<Trouble>,
    pub tuning: Option<Tuning>,
}

/// In what a member's configuration differs from its assignment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drift {
    /// [`Engine::configure`] is needed.
    pub configuration: bool,
    /// [`Engine::admit`] is needed.
    pub admission: bool,
}

/// Why a deed failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("engine {engine} is not known to this agent")]
    UnknownEngine { engine: Kind },
    #[error("cluster {cluster} has no data on this node")]
    Absent { cluster: ClusterId },
    #[error(
        "cluster {cluster} has data on this node already, made by another command; destroy the member first"
    )]
    Exists { cluster: ClusterId },
    /// Doing it would, or might, lose data.
    #[error("refused, because data could be lost: {why}")]
    WouldDestroyData { why: String },
    #[error("`confirm` is `{given}`, but the cluster's name is `{recorded}` on this node")]
    NotConfirmed { given: ClusterName, recorded: ClusterName },
    /// What must hold before does not.
    #[error("{message}")]
    Unmet { check: &'static str, message: String },
    #[error("`{field}` {message}")]
    Field { field: String, message: String },
    #[error("no log `{id}` is set aside here, or no such file is in it; it may have been removed")]
    NotSetAside { id: set_aside::Id },
    /// It may be done a little later.
    #[error("not now: {why}")]
    NotNow { why: String },
    /// The engine does not answer now.
    #[error("{deed}: the engine does not answer")]
    Unavailable { deed: String, source: Cause },
    #[error("{deed}")]
    Failed { deed: String, source: Cause },
    #[error("{deed}: {problem}")]
    Wrong { deed: String, problem: String },
    /// The state that was kept beside the data cannot be trusted.
    #[error("{what} is damaged: {problem}; nothing was changed")]
    Damaged { what: String, problem: String },
    #[error("{deed} was cancelled")]
    Cancelled { deed: String },
    #[error("{deed} did not end within {seconds} s")]
    TimedOut { deed: String, seconds: u64 },
}

/// What lies behind an error.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

// === impl Observation ===

impl Observation {
    /// Nothing but the state of the process.
    pub fn only(state: EngineState) -> Self {
        Self {
            state,
            role: None,
            data_role: None,
            term: None,
            sealed: false,
            position: None,
            replayed: None,
            lag_seconds: None,
            streaming: None,
            followers: Vec::new(),
            synchronous: Synchronous::default(),
            system_identifier: None,
            engine_version: None,
            server_build: None,
            installed_build: None,
            started_at: None,
            pending_restart: Vec::new(),
            data_bytes: None,
            message: String::new(),
            needs_resync: false,
            troubles: Vec::new(),
            tuning: None,
        }
    }
}

// === impl Drift ===

impl Drift {
    pub const NONE: Self = Self { configuration: false, admission: false };
}

// === impl Error ===

impl Error {
    pub fn failed(deed: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self::Failed { deed: deed.into(), source: source.into() }
    }
}

impl From<wipe::Refusal> for Error {
    fn from(refusal: wipe::Refusal) -> Self {
        let why = refusal.to_string();
        if refusal.may_pass() { Self::NotNow { why } } else { Self::WouldDestroyData { why } }
    }
}

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::UnknownEngine { .. } | Self::Field { .. } => Reason::InvalidField,
            Self::Absent { .. } => Reason::MemberNotFound,
            Self::Exists { .. } | Self::WouldDestroyData { .. } => Reason::WouldDestroyData,
            Self::NotConfirmed { .. } => Reason::NotConfirmed,
            Self::Unmet { .. } => Reason::PreconditionFailed,
            Self::NotSetAside { .. } => Reason::SetAsideNotFound,
            Self::NotNow { .. } | Self::Unavailable { .. } => Reason::EngineUnavailable,
            Self::Failed { .. } | Self::Wrong { .. } => Reason::EngineFailed,
            Self::Damaged { .. } => Reason::StateDamaged,
            Self::Cancelled { .. } => Reason::Cancelled,
            Self::TimedOut { .. } => Reason::CommandTimedOut,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::NotNow { .. } | Self::Unavailable { .. } => Retry::Later(None),
            _ => Retry::Never,
        }
    }

    fn metadata(&self) -> Metadata {
        let entry = |key: &str, value: String| BTreeMap::from([(key.to_owned(), value)]);
        match self {
            Self::UnknownEngine { engine } => entry("engine", engine.to_string()),
            Self::Absent { cluster } | Self::Exists { cluster } => entry("cluster", cluster.to_string()),
            Self::NotConfirmed { given, recorded } => {
                let mut both = entry("given", given.to_string());
                both.insert("recorded".to_owned(), recorded.to_string());
                both
            }
            Self::Unavailable { deed, .. }
            | Self::Failed { deed, .. }
            | Self::Wrong { deed, .. }
            | Self::Cancelled { deed } => entry("deed", deed.clone()),
            Self::TimedOut { deed, seconds } => {
                let mut both = entry("deed", deed.clone());
                both.insert("seconds".to_owned(), seconds.to_string());
                both
            }
            Self::Damaged { what, .. } => entry("what", what.clone()),
            Self::WouldDestroyData { why } | Self::NotNow { why } => entry("why", why.clone()),
            Self::Unmet { check, .. } => entry("check", (*check).to_owned()),
            Self::Field { field, .. } => entry("field", field.clone()),
            Self::NotSetAside { id } => entry("id", id.to_string()),
        }
    }

    fn violations(&self) -> Vec<Violation> {
        let violation = |name: &str, message: &str| {
            vec![Violation { name: name.to_owned(), subject: String::new(), message: message.to_owned() }]
        };
        match self {
            Self::UnknownEngine { .. } => violation("engine", &self.to_string()),
            Self::Field { field, message } => violation(field, message),
            Self::Unmet { check, message } => violation(check, message),
            _ => Vec::new(),
        }
    }

    fn resource(&self) -> Option<Resource> {
        match self {
            Self::Absent { cluster } | Self::Exists { cluster } => {
                Some(Resource { kind: "member".to_owned(), name: cluster.to_string() })
            }
            _ => None,
        }
    }
}
