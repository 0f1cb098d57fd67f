//! [`Failure`] to and from `tonic::Status`: one `ErrorInfo` (reason, domain, metadata), then the detail that fits.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, PreconditionViolation, StatusExt as _};

use super::{Classify, Failure, Reason, Resource, Retry, Violation};

/// The domain of every `ErrorInfo` that Holdfast sends.
pub const DOMAIN: &str = "holdfast.dev";

/// The code that callers see for a reason.
pub const fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidField | Reason::NotConfirmed | Reason::RequestIdReused => Code::InvalidArgument,
        Reason::NodeNotFound
        | Reason::ClusterNotFound
        | Reason::MemberNotFound
        | Reason::OperationNotFound
        | Reason::TokenNotFound
        | Reason::OperatorNotFound
        | Reason::SetAsideNotFound => Code::NotFound,
        Reason::ClusterExists | Reason::NodeExists | Reason::MemberExists | Reason::OperatorExists => {
            Code::AlreadyExists
        }
        Reason::StaleTerm
        | Reason::PreconditionFailed
        | Reason::NotCancellable
        | Reason::EngineUnavailable
        | Reason::WouldDestroyData
        | Reason::StateDamaged
        | Reason::VersionUnsupported => Code::FailedPrecondition,
        Reason::OperationInProgress | Reason::VersionConflict => Code::Aborted,
        Reason::AgentOffline | Reason::NotActive | Reason::ShuttingDown => Code::Unavailable,
        Reason::QueueFull | Reason::StorageFull | Reason::TooManyRequests | Reason::MessageTooLarge => {
            Code::ResourceExhausted
        }
        Reason::NoIdentity | Reason::TokenInvalid => Code::Unauthenticated,
        Reason::NotPermitted => Code::PermissionDenied,
        Reason::CommandTimedOut => Code::DeadlineExceeded,
        Reason::UnknownCommand => Code::Unimplemented,
        Reason::Cancelled => Code::Cancelled,
        Reason::HistoryCompacted => Code::OutOfRange,
        Reason::EngineFailed | Reason::Internal => Code::Internal,
    }
}

/// What a caller gets. Of an internal error only that it happened: its cause is for our own log.
pub fn from_error<E: Classify>(error: &E) -> Status {
    let failure = error.to_failure();
    if failure.reason == Reason::Internal {
        tracing::error!(error = %failure.message, "internal error");
        let hidden = Failure::new(Reason::Internal, "internal error; the coordinator's log has its cause");
        return from_failure(&hidden);
    }
    from_failure(&failure)
}

/// The status that says what `failure` says.
pub fn from_failure(failure: &Failure) -> Status {
    let Failure { reason, message, metadata, retry, violations, resource } = failure;
    let metadata = metadata
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect::<std::collections::HashMap<_, _>>();
    let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata);
    if let Retry::Later(pause) = retry {
        details.set_retry_info(Some(pause.unwrap_or(Duration::from_secs(1))));
    }
    if let Some(Resource { kind, name }) = resource {
        details.set_resource_info(kind.as_str(), name.as_str(), "", message.as_str());
    }
    if !violations.is_empty() {
        if *reason == Reason::PreconditionFailed {
            let list = violations
                .iter()
                .map(|Violation { name, subject, message }| {
                    PreconditionViolation::new(name, subject, message)
                })
                .collect::<Vec<_>>();
            details.set_precondition_failure(list);
        } else {
            let list = violations
                .iter()
                .map(|violation| FieldViolation::new(&violation.name, &violation.message))
                .collect::<Vec<_>>();
            details.set_bad_request(list);
        }
    }
    Status::with_error_details(code(*reason), bounded(message), details)
}

/// The failure that a status carries; one that no Holdfast server made gets the reason that fits its code best.
pub fn to_failure(status: &Status) -> Failure {
    let details = status.get_error_details();
    let known = details.error_info().filter(|info| info.domain == DOMAIN);
    let reason = known
        .and_then(|info| Reason::ALL.iter().copied().find(|reason| reason.as_str() == info.reason))
        .unwrap_or_else(|| foreign(status.code()));
    let mut violations = Vec::new();
    if let Some(bad) = details.bad_request() {
        violations.extend(bad.field_violations.iter().map(|field| Violation {
            name: field.field.clone(),
            subject: String::new(),
            message: field.description.clone(),
        }));
    }
    if let Some(unmet) = details.precondition_failure() {
        violations.extend(unmet.violations.iter().map(|violation| Violation {
            name: violation.r#type.clone(),
            subject: violation.subject.clone(),
            message: violation.description.clone(),
        }));
    }
    let retry = match details.retry_info() {
        Some(info) => Retry::Later(info.retry_delay),
        None => Retry::Never,
    };
    Failure {
        reason,
        message: status.message().to_owned(),
        metadata: known.map(|info| info.metadata.clone().into_iter().collect()).unwrap_or_default(),
        retry,
        violations,
        resource: details
            .resource_info()
            .map(|info| Resource { kind: info.resource_type.clone(), name: info.resource_name.clone() }),
    }
}

const fn foreign(code: Code) -> Reason {
    match code {
        Code::InvalidArgument => Reason::InvalidField,
        Code::Unauthenticated => Reason::NoIdentity,
        Code::PermissionDenied => Reason::NotPermitted,
        Code::Unavailable => Reason::AgentOffline,
        Code::ResourceExhausted | Code::OutOfRange => Reason::MessageTooLarge,
        Code::DeadlineExceeded => Reason::CommandTimedOut,
        Code::Unimplemented => Reason::UnknownCommand,
        Code::Cancelled => Reason::Cancelled,
        Code::Ok
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Internal
        | Code::DataLoss => Reason::Internal,
    }
}

/// Headers carry the message: it must stay far below their limit.
fn bounded(message: &str) -> String {
    const MAX: usize = 2048;
    match message.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way_through_a_status() {
        for reason in Reason::ALL {
            let failure = Failure {
                violations: vec![Violation {
                    name: "nodes[1]".into(),
                    subject: if *reason == Reason::PreconditionFailed {
                        "nodes/n1".into()
                    } else {
                        String::new()
                    },
                    message: "is unknown".into(),
                }],
                ..Failure::about(*reason, "cluster", "demo", "it went wrong")
                    .retry_after(Duration::from_secs(3))
            };
            assert_eq!(to_failure(&from_failure(&failure)), failure);
        }
    }

    #[test]
    fn the_cause_of_an_internal_error_stays_inside() {
        let status = from_error(&Failure::new(Reason::Internal, "secret path"));
        assert!(!status.message().contains("secret"));
        assert_eq!(status.code(), Code::Internal);
    }

    #[test]
    fn the_table_of_reasons_and_codes_changes_only_on_purpose() {
        let table: Vec<String> =
            Reason::ALL.iter().map(|reason| format!("{reason} {:?}", code(*reason))).collect();
        insta::assert_snapshot!(table.join("\n"));
    }

    #[test]
    fn a_long_message_is_cut() {
        let status = from_failure(&Failure::new(Reason::EngineFailed, "x".repeat(1_000_000)));
        assert!(status.message().len() < 3000);
    }
}
