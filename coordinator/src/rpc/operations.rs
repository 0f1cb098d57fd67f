//! `OperationService`.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use holdfast_common::error::{Classify as _, Failure, Violations};
use holdfast_common::id::OperationId;
use holdfast_common::name::ClusterName;
use holdfast_proto::v1::operation_service_server::OperationService;
use holdfast_proto::v1::{self as proto, WatchOperationResponse};
use tonic::{Request, Response, Status};

use super::convert::{self, PageRequest, refuse};
use super::named;
use crate::directory::Directory;
use crate::operation::{Filter, Handle, Procedure, State};
use crate::procedures::requests::no_cluster;

const UNFINISHED: [State; 4] = [State::Pending, State::Running, State::RollingBack, State::Blocked];
/// How long a wait is, if the caller does not say, and at most.
const WAIT: Duration = Duration::from_secs(30);
const MAX_WAIT: Duration = Duration::from_secs(600);

/// The operators' view of operations.
#[derive(Debug)]
pub struct Operations<P> {
    pub handle: Handle<P>,
    pub directory: Directory,
}

#[tonic::async_trait]
impl<P: Procedure> OperationService for Operations<P> {
    type WatchOperationStream = Pin<Box<dyn Stream<Item = Result<WatchOperationResponse, Status>> + Send>>;

    async fn list_operations(
        &self,
        request: Request<proto::ListOperationsRequest>,
    ) -> Result<Response<proto::ListOperationsResponse>, Status> {
        let proto::ListOperationsRequest { page_size, page_token, resource, unfinished } =
            request.into_inner();
        let mut violations = Violations::default();
        let list = format!("operations?resource={resource}&unfinished={unfinished}");
        let page = PageRequest::read(page_size, &page_token, &list, &mut violations);
        let resource = convert::text(&mut violations, "resource", resource);
        let after = page.after.as_deref().and_then(|after| violations.take("page_token", after.parse()));
        convert::check(violations)?;
        let filter = Filter {
            resource: (!resource.is_empty()).then_some(resource),
            kind: None,
            states: if unfinished { UNFINISHED.to_vec() } else { Vec::new() },
        };
        let found = self.handle.list(&filter, after, page.size).await.map_err(refuse)?;
        if let Some(resource) = filter.resource.filter(|_| found.operations.is_empty() && after.is_none()) {
            self.check_resource(resource).await.map_err(refuse)?;
        }
        Ok(Response::new(proto::ListOperationsResponse {
            operations: found.operations.iter().map(convert::operation).collect(),
            next_page_token: found.next.map(|last| page.token(&last.to_string())).unwrap_or_default(),
        }))
    }

    async fn get_operation(
        &self,
        request: Request<proto::GetOperationRequest>,
    ) -> Result<Response<proto::GetOperationResponse>, Status> {
        let operation = self.handle.get(parse(&request.into_inner().id)?).await.map_err(refuse)?;
        Ok(Response::new(proto::GetOperationResponse { operation: Some(convert::operation(&operation)) }))
    }

    async fn watch_operation(
        &self,
        request: Request<proto::WatchOperationRequest>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        let snapshots = self.handle.watch(parse(&request.into_inner().id)?).await.map_err(refuse)?;
        let responses = snapshots
            .map(|operation| Ok(WatchOperationResponse { operation: Some(convert::operation(&operation)) }));
        Ok(Response::new(Box::pin(responses)))
    }

    async fn wait_operation(
        &self,
        request: Request<proto::WaitOperationRequest>,
    ) -> Result<Response<proto::WaitOperationResponse>, Status> {
        let proto::WaitOperationRequest { id, timeout } = request.into_inner();
        let mut violations = Violations::default();
        let timeout =
            convert::duration(&mut violations, "timeout", timeout, WAIT, (Duration::ZERO, MAX_WAIT));
        convert::check(violations)?;
        let id = parse(&id)?;
        let operation = match tokio::time::timeout(timeout, self.handle.wait(id)).await {
            Ok(waited) => waited.map_err(refuse)?,
            Err(_) => self.handle.get(id).await.map_err(refuse)?,
        };
        Ok(Response::new(proto::WaitOperationResponse { operation: Some(convert::operation(&operation)) }))
    }

    async fn cancel_operation(
        &self,
        request: Request<proto::CancelOperationRequest>,
    ) -> Result<Response<proto::CancelOperationResponse>, Status> {
        let operation = self.handle.cancel(parse(&request.into_inner().id)?).await.map_err(refuse)?;
        Ok(Response::new(proto::CancelOperationResponse { operation: Some(convert::operation(&operation)) }))
    }

    async fn resume_operation(
        &self,
        request: Request<proto::ResumeOperationRequest>,
    ) -> Result<Response<proto::ResumeOperationResponse>, Status> {
        let operation = self.handle.resume(parse(&request.into_inner().id)?).await.map_err(refuse)?;
        Ok(Response::new(proto::ResumeOperationResponse { operation: Some(convert::operation(&operation)) }))
    }
}

impl<P: Procedure> Operations<P> {
    /// Of a cluster that is gone there may be operations still; a resource that neither is there nor in any operation was never
    /// there, as far as is known.
    async fn check_resource(&self, resource: String) -> Result<(), Failure> {
        let cluster = resource.strip_prefix("clusters/").map(str::parse::<ClusterName>);
        let Some(Ok(cluster)) = cluster else {
            let message = format!("`{resource}` is no resource; give clusters/NAME");
            return Err(Failure::invalid_field("resource", message));
        };
        if named::has_cluster(&self.directory, &cluster).await? {
            return Ok(());
        }
        let ever = Filter { resource: Some(resource), kind: None, states: Vec::new() };
        let found = self.handle.list(&ever, None, 1).await.map_err(|error| error.to_failure())?;
        if found.operations.is_empty() { Err(no_cluster(&cluster)) } else { Ok(()) }
    }
}

fn parse(id: &str) -> Result<OperationId, Status> {
    id.parse().map_err(|error| refuse(Failure::invalid_field("id", error)))
}
