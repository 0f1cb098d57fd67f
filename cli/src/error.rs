//! Why a command failed, how it is told, and with which exit code.

use std::io;

use holdfast_common::error::{Chain, Failure, Reason, Retry};
use serde_json::{Value, json};

use crate::output::plain;

/// Exit codes are an interface: `holdfast --help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitCode {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Unavailable = 5,
    NotPermitted = 6,
    Detached = 7,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What the coordinator answered.
    #[error("{}", .0.message)]
    Refused(Box<Failure>),
    /// No coordinator was reached.
    #[error("cannot reach the coordinator at {server}: {problem}")]
    Unreachable { server: String, problem: String, check: String },
    /// The operation ended otherwise than it should.
    #[error("operation {id} {state}: {message}")]
    Operation { id: String, state: String, reason: Reason, message: String },
    #[error("{0}")]
    Usage(String),
    #[error("not confirmed: {0}")]
    NotConfirmed(String),
    #[error(transparent)]
    Context(#[from] holdfast_common::context::Error),
    #[error("{what}")]
    Local {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Ctrl-C while an operation went on.
    #[error("operation {id} goes on; watch it with: holdfast operation watch {id}")]
    Detached { id: String },
    #[error("the wait is over, and operation {id} goes on; watch it with: holdfast operation watch {id}")]
    StillRunning { id: String },
    #[error("the coordinator's answer lacks `{0}`; is it of another version?")]
    Incomplete(&'static str),
    #[error("write the output")]
    Output(#[from] io::Error),
}

// === impl Error ===

impl Error {
    pub(crate) fn local(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Local { what: what.into(), source: source.into() }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Refused(failure) => of_reason(failure.reason),
            Self::Operation { reason, .. } => match of_reason(*reason) {
                // The command line was right; it is the work that failed.
                ExitCode::Usage | ExitCode::NotPermitted => ExitCode::Failed,
                code => code,
            },
            Self::Unreachable { .. } | Self::StillRunning { .. } => ExitCode::Unavailable,
            Self::Usage(_) => ExitCode::Usage,
            Self::NotConfirmed(_) => ExitCode::Refused,
            Self::Context(holdfast_common::context::Error::Unknown { .. }) => ExitCode::NotFound,
            Self::Context(_) | Self::Local { .. } | Self::Incomplete(_) => ExitCode::Failed,
            Self::Detached { .. } => ExitCode::Detached,
            // A reader that went away (`| head`) has what it wanted.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::Done,
            Self::Output(_) => ExitCode::Failed,
        }
    }

    /// For people: what happened, each thing that is wrong, what to do.
    pub(crate) fn to_text(&self) -> String {
        let mut lines = Vec::new();
        match self {
            Self::Refused(failure) if !failure.violations.is_empty() => {
                lines.push(format!("error: {}", failure.reason));
                for violation in &failure.violations {
                    let about = match violation.subject.as_str() {
                        "" => violation.name.clone(),
                        // Of a field it is the place where a person wrote it.
                        place if failure.reason == Reason::InvalidField => place.to_owned(),
                        subject => format!("{} ({subject})", violation.name),
                    };
                    lines.push(format!("  {about}: {}", violation.message));
                }
            }
            Self::Refused(failure) => lines.push(format!("error: {}: {}", failure.reason, failure.message)),
            Self::Operation { reason, .. } => lines.push(format!("error: {reason}: {self}")),
            Self::Detached { .. } | Self::StillRunning { .. } => lines.push(self.to_string()),
            _ => lines.push(format!("error: {}", Chain(self))),
        }
        match self {
            Self::Refused(failure) => {
                if let Retry::Later(Some(pause)) = failure.retry {
                    lines.push(format!("Trying again may help, in {} s.", pause.as_secs().max(1)));
                }
                lines.extend(advice(failure.reason).map(ToOwned::to_owned));
            }
            Self::Unreachable { check, .. } => lines.push(check.clone()),
            Self::Operation { id, .. } => {
                lines.push(format!("See its steps with: holdfast operation show {id}"))
            }
            _ => {}
        }
        lines.iter().map(|line| plain(line)).collect::<Vec<_>>().join("\n")
    }

    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        let (reason, message) = match self {
            Self::Refused(failure) => (failure.reason.as_str(), failure.message.clone()),
            Self::Operation { reason, .. } => (reason.as_str(), self.to_string()),
            Self::Unreachable { .. } => ("UNREACHABLE", self.to_string()),
            Self::Usage(_) => ("USAGE", self.to_string()),
            Self::NotConfirmed(_) => (Reason::NotConfirmed.as_str(), self.to_string()),
            Self::Detached { .. } => ("DETACHED", self.to_string()),
            Self::StillRunning { .. } => ("STILL_RUNNING", self.to_string()),
            Self::Context(_) => ("CONTEXT_FILE", Chain(self).to_string()),
            Self::Local { .. } | Self::Incomplete(_) | Self::Output(_) => ("FAILED", Chain(self).to_string()),
        };
        let failure = if let Self::Refused(failure) = self { Some(failure) } else { None };
        let violations = failure.map(|failure| {
            let each = failure.violations.iter();
            each.map(|one| json!({"field": one.name, "subject": super::output::text_or_null(&one.subject), "message": one.message}))
                .collect::<Vec<_>>()
        });
        let operation_id = match self {
            Self::Operation { id, .. } | Self::Detached { id } | Self::StillRunning { id } => Some(id),
            _ => None,
        };
        let retry = failure.and_then(|failure| match failure.retry {
            Retry::Later(pause) => Some(pause.map_or(1.0, |pause| pause.as_secs_f64())),
            Retry::Never => None,
        });
        json!({"error": {
            "reason": reason,
            "message": message,
            "violations": violations.unwrap_or_default(),
            "metadata": failure.map(|failure| &failure.metadata),
            "resource": failure.and_then(|failure| failure.resource.as_ref()),
            "retry_after_seconds": retry,
            "check": if let Self::Unreachable { check, .. } = self { Some(check) } else { None },
            "operation_id": operation_id,
            "exit_code": self.exit_code() as u8,
        }})
    }
}

const fn of_reason(reason: Reason) -> ExitCode {
    match reason {
        Reason::InvalidField | Reason::RequestIdReused | Reason::MessageTooLarge => ExitCode::Usage,
        Reason::NodeNotFound
        | Reason::ClusterNotFound
        | Reason::MemberNotFound
        | Reason::OperationNotFound
        | Reason::TokenNotFound
        | Reason::OperatorNotFound
        | Reason::SetAsideNotFound => ExitCode::NotFound,
        Reason::ClusterExists
        | Reason::NodeExists
        | Reason::MemberExists
        | Reason::OperatorExists
        | Reason::StaleTerm
        | Reason::PreconditionFailed
        | Reason::NotConfirmed
        | Reason::OperationInProgress
        | Reason::VersionConflict
        | Reason::NotCancellable
        | Reason::WouldDestroyData
        | Reason::HistoryCompacted
        | Reason::VersionUnsupported => ExitCode::Refused,
        Reason::AgentOffline
        | Reason::NotActive
        | Reason::ShuttingDown
        | Reason::QueueFull
        | Reason::StorageFull
        | Reason::TooManyRequests
        | Reason::CommandTimedOut
        | Reason::EngineUnavailable => ExitCode::Unavailable,
        Reason::NoIdentity | Reason::NotPermitted | Reason::TokenInvalid => ExitCode::NotPermitted,
        Reason::UnknownCommand
        | Reason::EngineFailed
        | Reason::Cancelled
        | Reason::Internal
        | Reason::StateDamaged => ExitCode::Failed,
    }
}

fn advice(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::NoIdentity | Reason::TokenInvalid => {
            Some("Check who you are: `holdfast context show`, HOLDFAST_CONFIG and HOLDFAST_TOKEN.")
        }
        Reason::NotPermitted => Some("`holdfast whoami` shows your role; an admin can give you another."),
        Reason::OperationInProgress => Some("See it with: holdfast operation list --unfinished"),
        Reason::UnknownCommand => {
            Some("The coordinator does not know this call: `holdfast whoami` shows its version.")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_common::error::Violation;

    use super::*;

    fn refused(reason: Reason) -> Error {
        Error::Refused(Box::new(Failure::new(reason, "m")))
    }

    #[test]
    fn every_reason_has_the_exit_code_that_the_help_promises() {
        let table: Vec<_> = Reason::ALL
            .iter()
            .map(|reason| format!("{} {reason}", refused(*reason).exit_code() as u8))
            .collect();
        insta::assert_snapshot!(table.join("\n"));
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let mut failure = Failure::new(Reason::InvalidField, "x").retry_after(Duration::from_secs(3));
        for field in ["nodes[1]", "port"] {
            failure.violations.push(Violation {
                name: field.into(),
                subject: String::new(),
                message: "is wrong; do that\x1b[2J".into(),
            });
        }
        let error = Error::Refused(Box::new(failure));
        insta::assert_snapshot!(error.to_text());
        insta::assert_snapshot!(format!("{:#}", error.to_json()));
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure() {
        assert_eq!(Error::Output(io::ErrorKind::BrokenPipe.into()).exit_code(), ExitCode::Done);
        assert_eq!(Error::Output(io::ErrorKind::StorageFull.into()).exit_code(), ExitCode::Failed);
    }
}
