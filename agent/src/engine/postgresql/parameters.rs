//! Parameters that an operator may not set are refused on the node too, whatever the coordinator says.

use holdfast_common::engine::{Engine, Parameters};
use holdfast_common::error::Violation;

use crate::engine::Error;

/// # Errors
/// `INVALID_FIELD` with the first parameter that may not be set.
pub(super) fn check(parameters: &Parameters) -> Result<(), Error> {
    match Engine::Postgresql.violations(parameters).into_iter().next() {
        Some(Violation { name, message, .. }) => Err(Error::Field { field: name, message }),
        None => Ok(()),
    }
}
