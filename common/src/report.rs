//! What a node says of its members: its whole state each time, the newest wins.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::assignment::Synchronous;
use crate::budget::Tuning;
use crate::engine::Engine;
use crate::generation::Generation;
use crate::id::{ClusterId, NodeId};
use crate::position::Position;
use crate::protocol::Version;
use crate::role::Role;
use crate::term::Term;

/// The most members that a report may name (those that are not assigned any more count too).
pub const MAX_MEMBERS: usize = 128;
/// The most followers of one primary that a report names (those that are no members count too).
pub const MAX_FOLLOWERS: usize = 32;
/// The most parameters that wait for a restart.
pub const MAX_PENDING_RESTART: usize = 200;
/// The most troubles of a member that a report names.
pub const MAX_TROUBLES: usize = 16;
/// The longest version, identifier or reason.
pub const MAX_LABEL_BYTES: usize = 128;
/// The longest message of a report or event.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// A node's members as it observes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    pub members: Vec<MemberReport>,
    /// Of the assignment that the node has stored.
    pub assignment_generation: Generation,
    /// The node's wall clock.
    pub node_time: Timestamp,
}

/// A member as its own node observes it; `None` is unknown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberReport {
    pub cluster_id: ClusterId,
    pub engine: Engine,
    pub state: EngineState,
    /// The role that the engine itself says it has.
    pub role: Option<Role>,
    /// The term that the node has accepted.
    pub term: Term,
    /// Primary: written and flushed. Replica: flushed.
    pub position: Option<Position>,
    /// Replica: applied, visible to readers.
    pub replayed: Option<Position>,
    /// Replica: how old the newest applied change is; 0 while it receives and there is nothing left to apply.
    pub lag_seconds: Option<f64>,
    /// Replica: connected to its upstream and receiving.
    pub streaming: Option<bool>,
    /// Primary: who follows.
    pub followers: Vec<Follower>,
    /// Primary: what the engine enforces now.
    pub synchronous: Synchronous,
    /// The engine's own identity of the data.
    pub system_identifier: Option<String>,
    pub engine_version: Option<String>,
    /// Which build of the engine the server runs.
    pub server_build: Option<String>,
    /// Which one a start of it would run.
    pub installed_build: Option<String>,
    pub started_at: Option<Timestamp>,
    /// Why it is not as it should be; empty where it is.
    pub message: String,
    /// Generation of the assignment that is fully true for this member.
    pub converged_generation: Generation,
    /// Parameters that wait for a restart of the engine.
    pub pending_restart: Vec<String>,
    pub data_bytes: Option<u64>,
    /// Who may reach it, as the kernel enforces it; `None`: nothing is enforced, or not known.
    pub access: Option<AccessReport>,
    /// Primary: its lease, without its time: that would make every report another one.
    pub lease: Option<LeaseReport>,
    /// Replica: it has promised a primary, in the coordinator's silence, not to take its place yet.
    pub has_promised: bool,
    /// Primary: how often in a row a new connection could not write in time.
    pub failed_probes: u32,
    /// Its data cannot follow the present primary unless they are rewound or copied; `message` says why.
    pub needs_resync: bool,
    /// What is not as it should be with its replication; `message` has it too.
    pub troubles: Vec<Trouble>,
    /// What it counts on of its machine.
    pub tuning: Option<Tuning>,
}

/// Something about a member's replication that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    pub kind: TroubleKind,
    /// With its cause, as far as that is known.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleKind {
    /// Replica: it runs, and receives nothing from its primary.
    NotReceiving,
    /// Replica: log that it needs is gone from its primary.
    LogRemoved,
    /// Replica: its log has parted from its primary's.
    Diverged,
    /// Replica: somebody has paused its replay.
    ReplayPaused,
    /// Replica: a parameter is lower than its primary's, so that it replays no further.
    ParameterTooLow,
    /// Replica: its replay waits for queries on it.
    ReplayDelayed,
    /// Primary: a member's slot was gone.
    SlotMissing,
    /// Primary: a member's slot has lost the log that it kept.
    SlotLost,
    /// Primary: slots that are no member's keep much log.
    SlotRetainsLog,
}

// === impl TroubleKind ===

impl TroubleKind {
    /// As events name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotReceiving => "NOT_RECEIVING",
            Self::LogRemoved => "LOG_REMOVED",
            Self::Diverged => "DIVERGED",
            Self::ReplayPaused => "REPLAY_PAUSED",
            Self::ParameterTooLow => "PARAMETER_TOO_LOW",
            Self::ReplayDelayed => "REPLAY_DELAYED",
            Self::SlotMissing => "SLOT_MISSING",
            Self::SlotLost => "SLOT_LOST",
            Self::SlotRetainsLog => "SLOT_RETAINS_LOG",
        }
    }

    /// Whether nothing helps but that the member's data are rewound or copied.
    pub const fn needs_resync(self) -> bool {
        match self {
            Self::LogRemoved | Self::Diverged => true,
            Self::NotReceiving
            | Self::ReplayPaused
            | Self::ParameterTooLow
            | Self::ReplayDelayed
            | Self::SlotMissing
            | Self::SlotLost
            | Self::SlotRetainsLog => false,
        }
    }
}

// === impl MemberReport ===

impl MemberReport {
    /// Nothing is known but these.
    pub fn only(cluster_id: ClusterId, engine: Engine, state: EngineState, term: Term) -> Self {
        Self {
            cluster_id,
            engine,
            state,
            role: None,
            term,
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
            message: String::new(),
            converged_generation: Generation::NONE,
            pending_restart: Vec::new(),
            data_bytes: None,
            access: None,
            lease: None,
            has_promised: false,
            failed_probes: 0,
            needs_resync: false,
            troubles: Vec::new(),
            tuning: None,
        }
    }
}

/// A primary's lease, as its own agent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReport {
    pub source: LeaseSource,
    /// Of the stored list of promotable members; `None`: unknown.
    pub version: Option<Version>,
    /// It lost its lease and is to be stopped; it serves again once it has a new one.
    pub fenced: bool,
    /// Clients are let in.
    pub open: bool,
}

/// By whose word a primary serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseSource {
    /// Nobody's: it does not serve.
    None,
    Coordinator,
    /// The coordinator is silent; the promotable members have promised.
    Promises,
    /// There is nobody who could take its place.
    Alone,
}

/// How the access rules of a member stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessReport {
    /// Of the assignment whose rules are in the kernel.
    pub generation: Generation,
    /// What is left of a trial; `None`: the kept rules hold.
    pub trial_left: Option<Duration>,
    /// What has come in since the rules were loaded.
    pub accepted: Traffic,
    pub refused: Traffic,
}

/// What went through a counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

/// What the engine's process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    /// Not observed.
    Unknown,
    /// There are no data.
    Absent,
    Stopped,
    /// The process runs and does not accept connections yet.
    Starting,
    Running,
    /// It should run and does not.
    Failed,
    /// A command is making or replacing its data.
    Building,
}

/// A replica as its primary sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    pub node_id: NodeId,
    /// What it has flushed to its disk.
    pub flushed_offset: Option<u64>,
    /// Counts toward the quorum now.
    pub synchronous: bool,
    pub streaming: bool,
}

/// Something that a person may want to know later, told by a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEvent {
    /// Drawn by the agent; the same on a repeat.
    pub id: crate::id::EventId,
    pub time: Timestamp,
    pub severity: Severity,
    /// Upper snake case, stable.
    pub reason: String,
    pub message: String,
    pub cluster_id: Option<ClusterId>,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    Warning,
    Error,
}
