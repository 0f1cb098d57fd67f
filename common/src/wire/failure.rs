//! [`Failure`] to and from its message. A text of a failure is cut rather than refused: it must arrive.

use std::time::Duration;

use holdfast_proto::r#type::v1 as proto;

use super::field::wire_enum;
use super::{Error, Field, WireEnum as _, cut, duration_to_wire};
use crate::error::{Failure, Metadata, Reason, Resource, Retry, Violation};

/// The longest message of a failure, or of one violation.
const MAX_MESSAGE_BYTES: usize = 16 * 1024;
/// The longest name or value in a failure's details.
const MAX_DETAIL_BYTES: usize = 1024;
const MAX_DETAILS: usize = 64;

wire_enum!(
    Reason,
    proto::ErrorReason,
    InvalidField,
    NodeNotFound,
    ClusterNotFound,
    MemberNotFound,
    OperationNotFound,
    TokenNotFound,
    OperatorNotFound,
    SetAsideNotFound,
    ClusterExists,
    NodeExists,
    MemberExists,
    OperatorExists,
    StaleTerm,
    PreconditionFailed,
    NotConfirmed,
    OperationInProgress,
    VersionConflict,
    RequestIdReused,
    NotCancellable,
    AgentOffline,
    NotActive,
    ShuttingDown,
    QueueFull,
    StorageFull,
    TooManyRequests,
    MessageTooLarge,
    NoIdentity,
    NotPermitted,
    TokenInvalid,
    CommandTimedOut,
    UnknownCommand,
    VersionUnsupported,
    EngineFailed,
    EngineUnavailable,
    WouldDestroyData,
    Cancelled,
    HistoryCompacted,
    Internal,
    StateDamaged,
);

impl From<&Failure> for proto::Failure {
    fn from(failure: &Failure) -> Self {
        let Failure { reason, message, metadata, retry, violations, resource } = failure;
        Self {
            reason: reason.to_wire(),
            message: cut(message, MAX_MESSAGE_BYTES),
            metadata: metadata
                .iter()
                .take(MAX_DETAILS)
                .map(|(key, value)| (cut(key, MAX_DETAIL_BYTES), cut(value, MAX_DETAIL_BYTES)))
                .collect(),
            retry_after: match retry {
                Retry::Never => None,
                Retry::Later(pause) => Some(duration_to_wire(pause.unwrap_or(Duration::ZERO))),
            },
            violations: violations.iter().take(MAX_DETAILS).map(Into::into).collect(),
            resource: resource.as_ref().map(|Resource { kind, name }| proto::Resource {
                kind: cut(kind, MAX_DETAIL_BYTES),
                name: cut(name, MAX_DETAIL_BYTES),
            }),
        }
    }
}

impl TryFrom<proto::Failure> for Failure {
    type Error = Error;

    fn try_from(failure: proto::Failure) -> Result<Self, Error> {
        let proto::Failure { reason, message, metadata, retry_after, violations, resource } = failure;
        if metadata.len() > MAX_DETAILS {
            let problem = super::Problem::TooMany { count: metadata.len(), most: MAX_DETAILS };
            return Err(Field("metadata").refuse(problem));
        }
        let mut details = Metadata::new();
        for (key, value) in metadata {
            let key = Field("metadata").text(key, MAX_DETAIL_BYTES)?;
            details.insert(key, Field("metadata").text_or_empty(value, MAX_DETAIL_BYTES)?);
        }
        Ok(Self {
            reason: Field("reason").enumerated(reason)?,
            message: Field("message").text(message, MAX_MESSAGE_BYTES)?,
            metadata: details,
            retry: match retry_after {
                None => Retry::Never,
                Some(pause) => {
                    let pause = Field("retry_after").duration(Some(pause))?;
                    Retry::Later(Some(pause).filter(|pause| !pause.is_zero()))
                }
            },
            violations: Field("violations").list(violations, MAX_DETAILS)?,
            resource: Field("resource").optional_message(resource)?,
        })
    }
}

impl From<&Violation> for proto::Violation {
    fn from(violation: &Violation) -> Self {
        let Violation { name, subject, message } = violation;
        Self {
            name: cut(name, MAX_DETAIL_BYTES),
            subject: cut(subject, MAX_DETAIL_BYTES),
            message: cut(message, MAX_DETAIL_BYTES),
        }
    }
}

impl TryFrom<proto::Violation> for Violation {
    type Error = Error;

    fn try_from(violation: proto::Violation) -> Result<Self, Error> {
        let proto::Violation { name, subject, message } = violation;
        Ok(Self {
            name: Field("name").text(name, MAX_DETAIL_BYTES)?,
            subject: Field("subject").text_or_empty(subject, MAX_DETAIL_BYTES)?,
            message: Field("message").text_or_empty(message, MAX_DETAIL_BYTES)?,
        })
    }
}

impl TryFrom<proto::Resource> for Resource {
    type Error = Error;

    fn try_from(resource: proto::Resource) -> Result<Self, Error> {
        let proto::Resource { kind, name } = resource;
        Ok(Self {
            kind: Field("kind").text(kind, MAX_DETAIL_BYTES)?,
            name: Field("name").text_or_empty(name, MAX_DETAIL_BYTES)?,
        })
    }
}
