//! Why a lease's list or primary was not changed.

use holdfast_common::error::{Classify, Reason, Retry};
use holdfast_common::id::ClusterId;
use holdfast_common::protocol;

use crate::{directory, store};

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Directory(#[from] directory::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("somebody else has changed who may be promoted in cluster {0}")]
    Contended(ClusterId),
    #[error("cluster {0} has no primary whose lease is kept")]
    NoPrimary(ClusterId),
    /// The protocol does not allow it now.
    #[error(transparent)]
    Obstacle(#[from] protocol::Obstacle),
}

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Directory(error) => error.reason(),
            Self::Store(error) => error.reason(),
            Self::Contended(_) => Reason::VersionConflict,
            Self::NoPrimary(_) | Self::Obstacle(_) => Reason::PreconditionFailed,
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Directory(error) => error.retry(),
            Self::Store(error) => error.retry(),
            Self::Contended(_) | Self::NoPrimary(_) => Retry::Later(None),
            Self::Obstacle(_) => Retry::Never,
        }
    }
}
