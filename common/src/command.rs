//! Work done once on a node, and how it ended.
//!
//! A command's payload says what is to be done; its doc comment says what must hold before. The node checks each of it
//! again, against its own state.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::assignment::{MemberAssignment, Peer};
use crate::budget::Budget;
use crate::engine::{Engine, EngineVersion, ExtensionName};
use crate::error::Failure;
use crate::generation::Generation;
use crate::id::{ClusterId, CommandId};
use crate::name::ClusterName;
use crate::term::Term;

/// The most checks in one answer.
pub const MAX_CHECKS: usize = 64;
/// The longest name of a check, or version.
pub const MAX_LABEL_BYTES: usize = 128;
/// The longest message of progress or of a check.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// An order to one agent, applied at most once: a repeat of the id gets the recorded outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    pub id: CommandId,
    pub coordinator_generation: Generation,
    /// Refused if the node has accepted a higher one for the cluster; [`Term::NONE`] for payloads that touch no role.
    pub term: Term,
    /// After it the command is not begun, and is cancelled where it runs.
    pub deadline: Timestamp,
    pub payload: Payload,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// Looks whether a member could be made here; changes nothing.
    CheckMember(CheckMember),
    /// Installs the engine's packages where they are missing. Never starts a server.
    InstallEngine(InstallEngine),
    /// Makes a new, empty database. Before: no data of this cluster here but such as this very command left unfinished.
    InitialiseMember(Box<InitialiseMember>),
    /// Copies the data of another member. Before: as above.
    CloneMember(Box<CloneMember>),
    /// Stops the member and removes its data. Before: `confirm` is the cluster's name as recorded on the node.
    DestroyMember(DestroyMember),
    /// Gives a database user another password. Before: the member runs as primary.
    SetPassword(SetPassword),
    /// Has the engine write out what it has in memory. Before: the member runs.
    CheckpointMember(CheckpointMember),
    /// Makes a replica's data what the primary's are. Before: by the node's own record it is no primary, nor does its engine run as
    /// one, and the source answers and is the same database.
    ResyncMember(Box<ResyncMember>),
    /// Stops a replica's server and starts it again, until it receives. Before: its data are no primary's.
    RestartMember(Box<RestartMember>),
    /// Brings the engine's packages of one major version up to what the node's package sources offer. Stops and starts no server.
    UpgradeEngine(UpgradeEngine),
    /// Has a member's settings go by another part of its machine. Before: it has data here that can be started.
    RetuneMember(RetuneMember),
    /// Has the machine shut down in order and boot again; done once it has. Before: no member here is a primary, or that may be.
    RebootNode(RebootNode),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckMember {
    pub cluster_id: ClusterId,
    pub engine: Engine,
    /// `None`: the newest that the node has or can install.
    pub engine_version: Option<EngineVersion>,
    pub port: u16,
    /// `None`: there will be none.
    pub replication_port: Option<u16>,
    pub extensions: Vec<ExtensionName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallEngine {
    pub engine: Engine,
    pub engine_version: EngineVersion,
    pub extensions: Vec<ExtensionName>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitialiseMember {
    pub member: MemberAssignment,
    pub database: DatabaseName,
    pub user: DatabaseName,
    pub password: Verifier,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneMember {
    pub member: MemberAssignment,
    pub source: Peer,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestroyMember {
    pub cluster_id: ClusterId,
    pub confirm: ClusterName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPassword {
    pub cluster_id: ClusterId,
    pub user: DatabaseName,
    pub password: Verifier,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMember {
    pub cluster_id: ClusterId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncMember {
    /// As a replica.
    pub member: MemberAssignment,
    /// The primary.
    pub source: Peer,
    pub mode: ResyncMode,
    /// The old data are removed before the copy is made, where the disk has no room for both.
    pub in_place: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartMember {
    /// As a replica.
    pub member: MemberAssignment,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeEngine {
    pub engine: Engine,
    pub engine_version: EngineVersion,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetuneMember {
    pub cluster_id: ClusterId,
    /// `None`: as it would be decided for a new member.
    pub budget: Option<Budget>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebootNode {
    /// The boot that is to end: once there is another, nothing is left to be done.
    pub boot_id: String,
    /// Also where a member is its cluster's primary.
    pub with_primaries: bool,
}

/// How far a resync may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResyncMode {
    /// Whatever is the least: to follow, to rewind, to copy.
    Auto,
    /// Never a copy.
    Rewind,
    /// Always a copy.
    Full,
}

/// What a resync came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResyncedBy {
    /// Its log is all in the primary's.
    Followed,
    Rewound,
    Copied,
}

/// Name of a database or of a database user: 1–63 characters of a–z, 0–9 and `_`, the first a letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatabaseName(Box<str>);

/// `SCRAM-SHA-256$…`, from which the password cannot be had. Still not for logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Verifier(Box<str>);

/// A text that is no database name or no verifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("is no database name: 1–63 characters of a–z, 0–9 and `_`, the first a letter")]
    DatabaseName,
    #[error(
        "is no password verifier of the form SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>"
    )]
    Verifier,
}

/// What a command says while it runs; the newest wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub message: String,
    pub done_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
}

/// How a command ended. Exactly one per command.
pub type Outcome = Result<Success, Failure>;

/// The results, a variant for each payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Success {
    CheckMember(CheckedMember),
    InstallEngine {
        installed_version: String,
    },
    InitialiseMember {
        system_identifier: String,
    },
    CloneMember {
        system_identifier: String,
        copied_bytes: u64,
    },
    /// `removed` is false where there was nothing.
    DestroyMember {
        removed: bool,
    },
    SetPassword,
    CheckpointMember,
    ResyncMember {
        how: ResyncedBy,
        system_identifier: String,
        copied_bytes: u64,
        /// Of the log that perhaps only this member has, kept on its disk.
        set_aside_bytes: u64,
    },
    RestartMember,
    /// Which build a start of the server runs from here on.
    UpgradeEngine {
        installed_build: String,
    },
    /// What the settings are to go by.
    RetuneMember {
        budget: Budget,
    },
    /// The boot that followed.
    RebootNode {
        boot_id: String,
    },
}

/// What [`CheckMember`] found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckedMember {
    pub checks: Vec<Check>,
    /// The version that would be used; `None` if there is none.
    pub engine_version: Option<EngineVersion>,
    pub engine_installed: bool,
    pub memory_bytes: u64,
    pub cores: u32,
    pub free_bytes: u64,
    pub node_time: Timestamp,
}

/// One precondition, looked at on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Lower snake case, such as `port_free`.
    pub name: String,
    pub met: bool,
    /// What was found, and where it is not met, what to do.
    pub message: String,
}

// === impl Payload ===

impl Payload {
    /// The kind's name, for logs and progress.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::CheckMember(_) => "check_member",
            Self::InstallEngine(_) => "install_engine",
            Self::InitialiseMember(_) => "initialise_member",
            Self::CloneMember(_) => "clone_member",
            Self::DestroyMember(_) => "destroy_member",
            Self::SetPassword(_) => "set_password",
            Self::CheckpointMember(_) => "checkpoint_member",
            Self::ResyncMember(_) => "resync_member",
            Self::RestartMember(_) => "restart_member",
            Self::UpgradeEngine(_) => "upgrade_engine",
            Self::RetuneMember(_) => "retune_member",
            Self::RebootNode(_) => "reboot_node",
        }
    }

    /// The cluster it is about.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        match self {
            Self::CheckMember(check) => Some(check.cluster_id),
            Self::InstallEngine(_) | Self::UpgradeEngine(_) | Self::RebootNode(_) => None,
            Self::InitialiseMember(initialise) => Some(initialise.member.cluster_id),
            Self::CloneMember(clone) => Some(clone.member.cluster_id),
            Self::DestroyMember(destroy) => Some(destroy.cluster_id),
            Self::SetPassword(set) => Some(set.cluster_id),
            Self::CheckpointMember(checkpoint) => Some(checkpoint.cluster_id),
            Self::ResyncMember(resync) => Some(resync.member.cluster_id),
            Self::RestartMember(restart) => Some(restart.member.cluster_id),
            Self::RetuneMember(retune) => Some(retune.cluster_id),
        }
    }
}

// === impl DatabaseName ===

impl DatabaseName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DatabaseName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let sound = (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if sound { Ok(Self(text.into())) } else { Err(Error::DatabaseName) }
    }
}

impl From<DatabaseName> for String {
    fn from(name: DatabaseName) -> Self {
        name.0.into()
    }
}

// === impl Verifier ===

impl Verifier {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Verifier {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let sound = text.len() <= 512
            && text.starts_with("SCRAM-SHA-256$")
            && text.matches('$').count() == 2
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-$:+/=".contains(&b));
        if sound { Ok(Self(text.into())) } else { Err(Error::Verifier) }
    }
}

impl From<Verifier> for String {
    fn from(verifier: Verifier) -> Self {
        verifier.0.into()
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(…)")
    }
}
