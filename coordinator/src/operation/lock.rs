//! One operation per resource; says who holds it and since when.

use holdfast_common::id::OperationId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::record::Operation;
use crate::store::Key;

/// Who holds a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The operation.
    pub operation: OperationId,
    /// Its kind.
    pub kind: String,
    /// When it took the resource.
    pub since: Timestamp,
}

// === impl Holder ===

impl Holder {
    pub(super) fn of(operation: &Operation) -> Self {
        Self { operation: operation.id, kind: operation.kind.clone(), since: operation.created }
    }
}

/// Where it is written who holds `resource`.
pub(super) fn key(resource: &str) -> Key {
    Key::from(format!("operation/lock/{resource}"))
}
