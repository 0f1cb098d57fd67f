//! Calls that begin operations: who asks, and the operation or its plan.

use holdfast_common::error::Failure;
use holdfast_proto::v1 as proto;
use prost::Message;
use tonic::{Request, Status};

use super::convert::{self, refuse};
use super::peer::Caller;
use crate::operation::{self, StepLabel};
use crate::procedures::requests::{Asker, Desk, Precondition, Prepare, Prepared};

/// What came of such a call.
pub(super) enum Done {
    Begun(Box<proto::Operation>),
    Planned(proto::Plan),
}

/// Begins the operation, or only tells what it would be.
pub(super) async fn change(
    desk: &Desk,
    request: &impl Prepare,
    asker: &Asker,
    validate_only: bool,
) -> Result<Done, Status> {
    if validate_only {
        return planned(desk, request, asker).await.map(Done::Planned);
    }
    let operation = desk.begin(request, asker).await.map_err(refuse)?;
    Ok(Done::Begun(Box::new(convert::operation(&operation))))
}

/// What it would be, of a request that need not be an operation.
pub(super) async fn planned(
    desk: &Desk,
    request: &impl Prepare,
    asker: &Asker,
) -> Result<proto::Plan, Status> {
    Ok(plan(desk.plan(request, asker).await.map_err(refuse)?))
}

/// Who asks, and under which request id.
pub(super) fn asker<T: Message>(request: &Request<T>, request_id: &str) -> Result<Asker, Status> {
    let caller = Caller::of(request).actor();
    if request_id.is_empty() {
        return Ok(Asker { caller, request: None });
    }
    // The kind of request is part of what must be the same.
    let mut body = std::any::type_name::<T>().as_bytes().to_vec();
    body.extend(request.get_ref().encode_to_vec());
    let request = operation::Request::new(request_id, &body)
        .map_err(|error| refuse(Failure::invalid_field("request_id", error)))?;
    Ok(Asker { caller, request: Some(request) })
}

fn plan(prepared: Prepared) -> proto::Plan {
    let steps =
        prepared.steps.into_iter().map(|StepLabel { name, title }| proto::PlannedStep { name, title });
    let preconditions = prepared.preconditions.into_iter().map(|condition| {
        let Precondition { name, subject, met, message } = condition;
        proto::Precondition { name, subject, met, message }
    });
    proto::Plan { steps: steps.collect(), preconditions: preconditions.collect(), notes: prepared.notes }
}
