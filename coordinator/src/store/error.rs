//! What can go wrong with the store.

use std::path::PathBuf;

use holdfast_common::error::{Classify, Metadata, Reason, Retry};

use super::{Key, LeaseId, Revision};

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full. Nothing was changed; the next call works as soon as there is room.
    #[error("the coordinator's disk is full, nothing was stored ({deed})")]
    NoSpace {
        /// What was attempted.
        deed: &'static str,
    },
    /// The disk or the server below did not do it now. It may be repeated.
    #[error("store is not available ({deed})")]
    Unavailable {
        /// What was attempted.
        deed: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The caller broke a rule of the interface.
    #[error("refused by the store: {rule}")]
    Refused {
        /// Which.
        rule: String,
    },
    /// The changes asked for are not kept any more: list again.
    #[error("changes up to revision {at} are not kept any more")]
    Compacted {
        /// A watch may begin behind this revision.
        at: Revision,
    },
    /// The lease is over or never was.
    #[error("lease {:x} is over", .lease.0)]
    LeaseOver {
        /// Which.
        lease: LeaseId,
    },
    /// A record is not what its reader expects.
    #[error("record `{key}` cannot be read or written as what it should be")]
    Codec {
        /// Which.
        key: Key,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Another coordinator has this database open.
    #[error("database {} is in use by another coordinator", .path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// The database was written by a newer Holdfast.
    #[error("database {} has schema {found}, this program knows up to {known}: use a newer one", .path.display())]
    Schema {
        /// The database.
        path: PathBuf,
        /// What it has.
        found: i64,
        /// What is known.
        known: i64,
    },
    /// The database cannot be opened.
    #[error("open database {}", .path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store was closed.
    #[error("store is closed")]
    Closed,
}

// === impl Error ===

impl Error {
    pub(super) fn refused(rule: impl Into<String>) -> Self {
        Self::Refused { rule: rule.into() }
    }

    /// Whether the same call may succeed later without anybody changing it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoSpace { .. } | Self::Unavailable { .. } => true,
            Self::Refused { .. }
            | Self::Compacted { .. }
            | Self::LeaseOver { .. }
            | Self::Codec { .. }
            | Self::InUse { .. }
            | Self::Schema { .. }
            | Self::Open { .. }
            | Self::Closed => false,
        }
    }
}

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::NoSpace { .. } => Reason::StorageFull,
            Self::Compacted { .. } => Reason::HistoryCompacted,
            Self::Closed => Reason::ShuttingDown,
            Self::LeaseOver { .. } => Reason::NotActive,
            Self::Codec { .. } => Reason::StateDamaged,
            Self::Unavailable { .. }
            | Self::Refused { .. }
            | Self::InUse { .. }
            | Self::Schema { .. }
            | Self::Open { .. } => Reason::Internal,
        }
    }

    fn retry(&self) -> Retry {
        if self.is_transient() { Retry::Later(None) } else { Retry::Never }
    }

    fn metadata(&self) -> Metadata {
        let pair = match self {
            Self::NoSpace { deed } | Self::Unavailable { deed, .. } => ("deed", (*deed).to_owned()),
            Self::Refused { rule } => ("rule", rule.clone()),
            Self::Compacted { at } => ("compacted", at.to_string()),
            Self::LeaseOver { lease } => ("lease", format!("{:x}", lease.0)),
            Self::Codec { key, .. } => ("key", key.to_string()),
            Self::InUse { path } | Self::Schema { path, .. } | Self::Open { path, .. } => {
                ("path", path.display().to_string())
            }
            Self::Closed => return Metadata::new(),
        };
        [(pair.0.to_owned(), pair.1)].into()
    }
}
