//! Why a node did not do what it was called for.

use holdfast_common::error::{Classify, Failure, Metadata, Reason, Resource, Retry, Violation};

/// How a call failed: whether the command may have run is the difference.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CallError {
    /// The node has not got it.
    #[error("the command was not sent to node {node}: {why}")]
    NotSent { node: String, why: &'static str },
    /// The node may have got it; it did not answer in time.
    #[error("node {node} did not answer the command in time; it may have run")]
    Unanswered { node: String },
    /// The node said no, or tried and failed.
    #[error(transparent)]
    Failed(Failure),
}

// === impl CallError ===

impl Classify for CallError {
    fn reason(&self) -> Reason {
        match self {
            Self::NotSent { .. } => Reason::AgentOffline,
            Self::Unanswered { .. } => Reason::CommandTimedOut,
            Self::Failed(failure) => failure.reason,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::NotSent { .. } | Self::Unanswered { .. } => Retry::Later(None),
            Self::Failed(failure) => failure.retry,
        }
    }

    fn metadata(&self) -> Metadata {
        match self {
            Self::NotSent { node, why } => {
                [("node".to_owned(), node.clone()), ("why".to_owned(), (*why).to_owned())].into()
            }
            Self::Unanswered { node } => [("node".to_owned(), node.clone())].into(),
            Self::Failed(failure) => failure.metadata.clone(),
        }
    }

    fn violations(&self) -> Vec<Violation> {
        match self {
            Self::NotSent { .. } | Self::Unanswered { .. } => Vec::new(),
            Self::Failed(failure) => failure.violations.clone(),
        }
    }

    fn resource(&self) -> Option<Resource> {
        match self {
            Self::NotSent { node, .. } | Self::Unanswered { node } => {
                Some(Resource { kind: "node".to_owned(), name: node.clone() })
            }
            Self::Failed(failure) => failure.resource.clone(),
        }
    }
}
