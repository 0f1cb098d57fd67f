//! What agents and the coordinator say to each other, as plain values: the messages of the one stream, joining, and what
//! carries leases.
//!
//! A value that exists is valid; [`crate::wire`] makes them from what arrives. Not here: the stream itself (the agent's
//! `link`, the coordinator's `rpc/link`), and what follows from a message.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::assignment::Assignment;
use crate::command::{Command, Outcome, Progress};
use crate::error::Failure;
use crate::generation::Generation;
use crate::id::{ClusterId, CommandId, EventId, FleetId, InstanceId, NodeId, SessionId};
use crate::name::NodeName;
use crate::protocol::RequestNumber;
use crate::question;
use crate::report::{NodeEvent, NodeReport};
use crate::telemetry::{Inventory, Sample};
use crate::term::Term;

/// The versions of the session's protocol that this build speaks.
pub const VERSIONS: Versions = Versions { oldest: 1, newest: 1 };
/// The largest message that a coordinator accepts.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// The largest message that an agent accepts: an assignment with all the access rules of its members.
pub const MAX_ASSIGNMENT_BYTES: usize = 4 * 1024 * 1024;
/// The most unfinished commands that a hello names.
pub const MAX_UNFINISHED: usize = 256;
/// The longest agent version, boot id and the like.
pub const MAX_LABEL_BYTES: usize = 64;
/// The longest token, request or certificate chain in an enrollment.
pub const MAX_PEM_BYTES: usize = 64 * 1024;
/// Where an agent serves the agents of its members' clusters.
pub const PEER_PORT: u16 = 7445;
/// Where an agent answers load balancers, unless its configuration says otherwise.
pub const HEALTH_PORT: NonZeroU16 = NonZeroU16::new(7483).expect("it is not 0");
/// The largest message about a lease.
pub const MAX_LEASE_BYTES: u32 = 16 * 1024;
/// What intervals the coordinator may ask for.
pub const INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(3600);

/// From an agent.
#[derive(Debug, Clone, PartialEq)]
pub enum FromAgent {
    /// The first message, and only the first.
    Hello(Box<Hello>),
    Heartbeat(Box<Heartbeat>),
    Metrics(Box<Sample>),
    CommandUpdate(Box<CommandUpdate>),
    Event(Box<NodeEvent>),
    Answer(Box<Answer>),
}

/// From the coordinator.
#[derive(Debug, Clone, PartialEq)]
pub enum FromCoordinator {
    /// The first message, and only the first.
    Welcome(Welcome),
    Assignment(Box<Assignment>),
    Command(Box<Command>),
    CancelCommand(CommandId),
    HeartbeatAck {
        sequence: u64,
    },
    /// The outcome is stored; the agent may forget it.
    OutcomeAck(CommandId),
    Close(Close),
    EventAck(EventId),
    Question(Box<Question>),
}

/// Who the agent is. Which node it is for is in its certificate, not here.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    pub versions: Versions,
    /// The agent's own release, such as `0.1.0`.
    pub agent_version: String,
    /// Changes with every boot of the machine.
    pub boot_id: String,
    /// Changes with every start of the agent.
    pub instance_id: InstanceId,
    pub inventory: Inventory,
    /// Of the assignment on the node's disk; [`Generation::NONE`] where there is none.
    pub assignment_generation: Generation,
    /// The highest that the node has obeyed.
    pub coordinator_generation: Generation,
    /// Begun and not ended.
    pub unfinished: Vec<CommandId>,
    pub node_time: Timestamp,
}

/// Protocol versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    pub oldest: u32,
    pub newest: u32,
}

/// The session is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version chosen.
    pub version: u32,
    pub session_id: SessionId,
    pub heartbeat_interval: Duration,
    pub metrics_interval: Duration,
    pub coordinator_generation: Generation,
    pub coordinator_time: Timestamp,
}

/// The node's whole state; the newest wins.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    /// Rises with every heartbeat of a session.
    pub sequence: u64,
    pub report: NodeReport,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandUpdate {
    pub command_id: CommandId,
    /// Rises with every update of the command, across sessions too.
    pub sequence: u64,
    pub update: Update,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    Progress(Progress),
    Outcome(Outcome),
}

/// Something that the coordinator wants to know; it changes nothing, and is answered within the session or never.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Never used twice within a session.
    pub number: u64,
    pub cluster_id: ClusterId,
    pub about: question::Question,
}

/// What the node says to the question of this number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub number: u64,
    pub answer: Result<question::Answer, Failure>,
}

/// Why the coordinator ends the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    pub reason: CloseReason,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The coordinator stops; come back.
    Shutdown,
    /// Another session of the same node has begun.
    Superseded,
    /// The node is no longer in the fleet.
    NodeRemoved,
    VersionUnsupported,
    ProtocolViolation,
}

/// Something about the lease of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased<M> {
    pub cluster_id: ClusterId,
    pub message: M,
}

/// A primary's agent asks another member's for its promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskPromise {
    pub cluster_id: ClusterId,
    pub number: RequestNumber,
    pub term: Term,
}

/// The promise that was asked for under this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promised {
    pub number: RequestNumber,
    pub term: Term,
}

/// Asks for a node's identity.
#[derive(Clone, PartialEq, Eq)]
pub struct Enroll {
    /// Secret.
    pub token: String,
    /// PEM; only its public key is taken from it.
    pub certificate_signing_request: String,
    pub node_name: NodeName,
    /// Where other members reach this node.
    pub address: IpAddr,
    /// The same on a retry, so that a lost answer does not use the token up twice.
    pub request_id: Uuid,
}

/// A node's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    pub fleet_id: FleetId,
    pub node_id: NodeId,
    pub certificate: Renewed,
}

/// A fresh certificate, and whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// PEM, leaf first.
    pub certificate_chain: String,
    /// All roots of the fleet, PEM.
    pub trust_bundle: String,
    pub not_after: Timestamp,
}

// === impl Versions ===

impl Versions {
    pub const fn contains(self, version: u32) -> bool {
        self.oldest <= version && version <= self.newest
    }

    /// The newest version that both speak.
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}–{}", self.oldest, self.newest)
    }
}

// === impl Enroll ===

impl fmt::Debug for Enroll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token: _, certificate_signing_request: _, node_name, address, request_id } = self;
        f.debug_struct("Enroll")
            .field("node_name", node_name)
            .field("address", address)
            .field("request_id", request_id)
            .finish_non_exhaustive()
    }
}

// === impl CloseReason ===

impl CloseReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Superseded => "superseded",
            Self::NodeRemoved => "node removed",
            Self::VersionUnsupported => "version unsupported",
            Self::ProtocolViolation => "protocol violation",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        let versions = |oldest, newest| Versions { oldest, newest };
        assert_eq!(versions(1, 3).common(versions(2, 5)), Some(3));
        assert_eq!(versions(2, 5).common(versions(1, 3)), Some(3));
        assert_eq!(versions(1, 1).common(versions(1, 1)), Some(1));
        assert_eq!(versions(1, 1).common(versions(2, 2)), None);
    }

    #[test]
    fn a_token_is_not_printed() {
        let enroll = Enroll {
            token: "hf1.canary".into(),
            certificate_signing_request: String::new(),
            node_name: "n1".parse().unwrap(),
            address: [192, 0, 2, 1].into(),
            request_id: Uuid::nil(),
        };
        assert!(!format!("{enroll:?}").contains("canary"));
    }
}
