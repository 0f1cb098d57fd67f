//! How errors look from outside: a closed list of reasons, the failure that crosses the wire, and the trait that every
//! error which can reach a caller implements.
//!
//! [`status`] turns a [`Failure`] into a `tonic::Status` and back; it is the only place that does.

pub mod status;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Every variable of a failure's message, keys in lowerCamelCase.
pub type Metadata = BTreeMap<String, String>;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// Why a call was refused or a piece of work failed: the stable, machine-readable part of an error.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$doc])* #[serde(rename = $text)] $name,)+
        }

        impl Reason {
            /// All of them, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The name on the wire, without the enum's prefix.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

reasons! {
    /// A field has no legal value; all bad fields are in `violations`.
    InvalidField = "INVALID_FIELD",
    NodeNotFound = "NODE_NOT_FOUND",
    ClusterNotFound = "CLUSTER_NOT_FOUND",
    MemberNotFound = "MEMBER_NOT_FOUND",
    OperationNotFound = "OPERATION_NOT_FOUND",
    TokenNotFound = "TOKEN_NOT_FOUND",
    OperatorNotFound = "OPERATOR_NOT_FOUND",
    /// No log of that name is set aside there.
    SetAsideNotFound = "SET_ASIDE_NOT_FOUND",
    ClusterExists = "CLUSTER_EXISTS",
    NodeExists = "NODE_EXISTS",
    MemberExists = "MEMBER_EXISTS",
    OperatorExists = "OPERATOR_EXISTS",
    /// The request bears a lower term than has been accepted.
    StaleTerm = "STALE_TERM",
    /// A precondition does not hold; which is in `violations`.
    PreconditionFailed = "PRECONDITION_FAILED",
    /// `confirm` does not name what would be destroyed.
    NotConfirmed = "NOT_CONFIRMED",
    OperationInProgress = "OPERATION_IN_PROGRESS",
    VersionConflict = "VERSION_CONFLICT",
    RequestIdReused = "REQUEST_ID_REUSED",
    NotCancellable = "NOT_CANCELLABLE",
    AgentOffline = "AGENT_OFFLINE",
    NotActive = "NOT_ACTIVE",
    ShuttingDown = "SHUTTING_DOWN",
    QueueFull = "QUEUE_FULL",
    /// No room on the coordinator's disk; nothing was lost.
    StorageFull = "STORAGE_FULL",
    TooManyRequests = "TOO_MANY_REQUESTS",
    MessageTooLarge = "MESSAGE_TOO_LARGE",
    NoIdentity = "NO_IDENTITY",
    NotPermitted = "NOT_PERMITTED",
    TokenInvalid = "TOKEN_INVALID",
    CommandTimedOut = "COMMAND_TIMED_OUT",
    UnknownCommand = "UNKNOWN_COMMAND",
    VersionUnsupported = "VERSION_UNSUPPORTED",
    /// A program or the engine on the node failed.
    EngineFailed = "ENGINE_FAILED",
    EngineUnavailable = "ENGINE_UNAVAILABLE",
    /// The node refused, because doing it would destroy data that it must keep.
    WouldDestroyData = "WOULD_DESTROY_DATA",
    Cancelled = "CANCELLED",
    HistoryCompacted = "HISTORY_COMPACTED",
    Internal = "INTERNAL",
    /// State on a disk cannot be trusted; it was set aside.
    StateDamaged = "STATE_DAMAGED",
}

/// Whether trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    #[default]
    Never,
    /// After this long, or when the caller thinks fit.
    Later(Option<Duration>),
}

/// One thing that is wrong with a request: a field (`nodes[1]`) or a precondition (`port_free`), about what, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The field's path, or the precondition's name.
    pub name: String,
    /// What it is about, such as `nodes/n1`; empty for fields.
    #[serde(default)]
    pub subject: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// The resource that an error is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// `cluster`, `node`, `operation` …
    pub kind: String,
    pub name: String,
}

/// How work ended that did not succeed, in the form that crosses the wire and is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub reason: Reason,
    /// The whole chain of causes, for a person.
    pub message: String,
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
    #[serde(default)]
    pub retry: Retry,
    /// All bad fields (`InvalidField`) or unmet preconditions (`PreconditionFailed`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Violation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<Resource>,
}

/// How an error looks from outside. Every error that can reach a caller has it.
pub trait Classify: std::error::Error {
    fn reason(&self) -> Reason;

    fn retry(&self) -> Retry {
        Retry::Never
    }

    fn metadata(&self) -> Metadata {
        Metadata::new()
    }

    fn violations(&self) -> Vec<Violation> {
        Vec::new()
    }

    fn resource(&self) -> Option<Resource> {
        None
    }

    /// All of it as data. Of an internal error only that it happened; its cause belongs into our own log.
    fn to_failure(&self) -> Failure
    where
        Self: Sized,
    {
        Failure {
            reason: self.reason(),
            message: Chain(self).to_string(),
            metadata: self.metadata(),
            retry: self.retry(),
            violations: self.violations(),
            resource: self.resource(),
        }
    }
}

/// Prints an error and all its causes, separated by `: `.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'a));

/// Collects everything that is wrong with a request, so that all of it is told at once.
#[derive(Debug, Default)]
pub struct Violations {
    found: Vec<Violation>,
}

// === impl Failure ===

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            metadata: Metadata::new(),
            retry: Retry::Never,
            violations: Vec::new(),
            resource: None,
        }
    }

    /// Something that only a defect of ours explains.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(Reason::Internal, Chain(error).to_string())
    }

    /// One bad field.
    pub fn invalid_field(field: impl Into<String>, message: impl fmt::Display) -> Self {
        let mut violations = Violations::default();
        violations.add(field, message);
        violations.into_failure()
    }

    /// Something of this kind and name does not exist; `reason` is one of the `…NotFound` or `…Exists`.
    pub fn about(reason: Reason, kind: &str, name: impl fmt::Display, message: impl Into<String>) -> Self {
        let resource = Resource { kind: kind.to_owned(), name: name.to_string() };
        Self { resource: Some(resource), ..Self::new(reason, message) }.with(kind, name)
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    #[must_use]
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.retry = Retry::Later(Some(pause));
        self
    }
}

impl Classify for Failure {
    fn reason(&self) -> Reason {
        self.reason
    }

    fn retry(&self) -> Retry {
        self.retry
    }

    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn violations(&self) -> Vec<Violation> {
        self.violations.clone()
    }

    fn resource(&self) -> Option<Resource> {
        self.resource.clone()
    }
}

// === impl Chain ===

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

// === impl Violations ===

impl Violations {
    pub fn add(&mut self, field: impl Into<String>, message: impl fmt::Display) {
        self.found.push(Violation {
            name: field.into(),
            subject: String::new(),
            message: message.to_string(),
        });
    }

    pub fn extend(&mut self, more: impl IntoIterator<Item = Violation>) {
        self.found.extend(more);
    }

    /// The value, or `None` and the error noted under `field`.
    pub fn take<T, E: fmt::Display>(&mut self, field: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|error| self.add(field, error)).ok()
    }

    /// The fields that have an entry.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.found.iter().map(|violation| violation.name.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// # Errors
    /// `InvalidField` with all that was found, if anything was.
    pub fn check(self) -> Result<(), Failure> {
        if self.is_empty() { Ok(()) } else { Err(self.into_failure()) }
    }

    pub fn into_failure(self) -> Failure {
        let mut message = String::new();
        for violation in &self.found {
            let gap = if message.is_empty() { "" } else { "; " };
            let _ = write!(message, "{gap}`{}` {}", violation.name, violation.message);
        }
        Failure { violations: self.found, ..Failure::new(Reason::InvalidField, message) }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
