//! Why a call to the operation engine was refused.

use holdfast_common::{
    error::{Classify, Metadata, Reason, Resource, Retry},
    id::OperationId,
};

use super::lock::Holder;
use crate::store;

/// Why a call to the operation engine was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another operation has the resource.
    #[error("{resource} is held by operation {} ({}) since {}; wait for it or cancel it", .holder.operation,
        .holder.kind, .holder.since)]
    InProgress {
        /// What is held.
        resource: String,
        /// By whom.
        holder: Holder,
    },
    /// The request id was used for something else.
    #[error(
        "request id {request_id} was used before, for another request (operation {operation}); give a new one"
    )]
    RequestIdReused {
        /// The id.
        request_id: String,
        /// What it was used for.
        operation: OperationId,
    },
    /// What the caller had read has changed meanwhile.
    #[error("{resource} has changed meanwhile; look again and repeat")]
    Conflict {
        /// What was to be changed.
        resource: String,
    },
    /// There is no such operation, or no more.
    #[error("operation {id} does not exist (finished ones are kept for a while only)")]
    NotFound {
        /// Which.
        id: OperationId,
    },
    /// It is too late to cancel it.
    #[error("operation {id} cannot be cancelled: {why}")]
    NotCancellable {
        /// Which.
        id: OperationId,
        /// Why.
        why: &'static str,
    },
    /// It needs no person's help.
    #[error("operation {id} is not blocked, so there is nothing to resume")]
    NotBlocked {
        /// Which.
        id: OperationId,
    },
    /// Too many operations are under way.
    #[error("{max} operations are under way already; wait until some have ended")]
    QueueFull {
        /// The bound.
        max: usize,
    },
    /// The engine stopped while the caller waited. The operation goes on after the restart.
    #[error("the coordinator is shutting down; operation {id} goes on after its restart")]
    ShuttingDown {
        /// Which.
        id: OperationId,
    },
    /// The procedure or its record cannot be stored as it is.
    #[error("encode operation")]
    Encode(#[source] serde_json::Error),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

// === impl Error ===

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::InProgress { .. } => Reason::OperationInProgress,
            Self::RequestIdReused { .. } => Reason::RequestIdReused,
            Self::Conflict { .. } => Reason::VersionConflict,
            Self::NotFound { .. } => Reason::OperationNotFound,
            Self::NotCancellable { .. } => Reason::NotCancellable,
            Self::NotBlocked { .. } => Reason::PreconditionFailed,
            Self::QueueFull { .. } => Reason::QueueFull,
            Self::ShuttingDown { .. } => Reason::ShuttingDown,
            Self::Encode(_) => Reason::Internal,
            Self::Store(error) => error.reason(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Conflict { .. } | Self::QueueFull { .. } | Self::ShuttingDown { .. } => Retry::Later(None),
            Self::Store(error) => error.retry(),
            Self::InProgress { .. }
            | Self::RequestIdReused { .. }
            | Self::NotFound { .. }
            | Self::NotCancellable { .. }
            | Self::NotBlocked { .. }
            | Self::Encode(_) => Retry::Never,
        }
    }

    fn metadata(&self) -> Metadata {
        let pairs: Vec<(&str, String)> = match self {
            Self::InProgress { resource, holder: lock } => vec![
                ("resource", resource.clone()),
                ("operation", lock.operation.to_string()),
                ("kind", lock.kind.clone()),
                ("since", lock.since.to_string()),
            ],
            Self::RequestIdReused { request_id, operation } => {
                vec![("requestId", request_id.clone()), ("operation", operation.to_string())]
            }
            Self::Conflict { resource } => vec![("resource", resource.clone())],
            Self::NotFound { id } | Self::NotBlocked { id } | Self::ShuttingDown { id } => {
                vec![("operation", id.to_string())]
            }
            Self::NotCancellable { id, why } => {
                vec![("operation", id.to_string()), ("why", (*why).to_owned())]
            }
            Self::QueueFull { max } => vec![("max", max.to_string())],
            Self::Encode(_) => Vec::new(),
            Self::Store(error) => return error.metadata(),
        };
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn resource(&self) -> Option<Resource> {
        let operation =
            |id: &OperationId| Some(Resource { kind: "operation".to_owned(), name: id.to_string() });
        match self {
            Self::InProgress { holder, .. } => operation(&holder.operation),
            Self::RequestIdReused { operation: id, .. }
            | Self::NotFound { id }
            | Self::NotCancellable { id, .. }
            | Self::NotBlocked { id }
            | Self::ShuttingDown { id } => operation(id),
            Self::Conflict { resource } => {
                let (kind, name) = resource.split_once('/').unwrap_or(("resource", resource));
                Some(Resource { kind: kind.to_owned(), name: name.to_owned() })
            }
            Self::QueueFull { .. } | Self::Encode(_) => None,
            Self::Store(error) => error.resource(),
        }
    }
}
