//! Calls that are no operations and bear a request id: a repeat gets the first answer, whole.

use holdfast_common::error::Failure;
use prost::Message;
use tonic::{Response, Status};

use super::convert::refuse;
use crate::identity::RequestId;

/// The request id, bound to its caller, the call and everything else in the request. `None`: there is none.
///
/// # Errors
/// `InvalidField` about `request_id`.
pub fn repeat<M: Message>(
    id: &str,
    actor: &str,
    method: &str,
    request: &M,
) -> Result<Option<RequestId>, Failure> {
    RequestId::new(id, actor, method, &request.encode_to_vec())
}

/// The first answer, as it was kept.
///
/// # Errors
/// `Internal`, if it is no such answer.
pub fn kept<M: Message + Default>(answer: &[u8]) -> Result<M, Failure> {
    M::decode(answer).map_err(|error| Failure::internal(&error))
}

/// The same, for the caller.
///
/// # Errors
/// As [`kept`].
pub fn decoded<M: Message + Default>(answer: &[u8]) -> Result<Response<M>, Status> {
    kept(answer).map(Response::new).map_err(refuse)
}
