//! What it says of nodes.

use super::*;

#[tonic::async_trait]
impl nodes::NodeService for Fake {
    type WatchNodesStream = Answers<v1::WatchNodesResponse>;

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.seen(&request)?;
        // Two pages.
        let first = request.get_ref().page_token.is_empty();
        let (name, next) = if first { ("n1", "2") } else { ("n2", "") };
        let availability = if first { v1::Availability::Online } else { v1::Availability::Offline };
        Ok(Response::new(v1::ListNodesResponse {
            nodes: vec![node(name, availability)],
            next_page_token: next.into(),
        }))
    }

    async fn get_node(
        &self,
        request: Request<v1::GetNodeRequest>,
    ) -> Result<Response<v1::GetNodeResponse>, Status> {
        let name = &request.get_ref().name;
        Err(from_failure(&Failure::about(
            Reason::NodeNotFound,
            "node",
            name,
            format!("there is no node `{name}`"),
        )))
    }

    async fn watch_nodes(
        &self,
        _: Request<v1::WatchNodesRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        let changed = v1::WatchNodesResponse {
            kind: v1::WatchKind::Changed.into(),
            node: Some(node("n1", v1::Availability::Online)),
        };
        let synced = v1::WatchNodesResponse { kind: v1::WatchKind::Synced.into(), node: None };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(changed), Ok(synced)]))))
    }

    async fn remove_node(
        &self,
        _: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        panic!("not without a confirmation")
    }

    async fn drain_node(
        &self,
        _: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn reboot_node(
        &self,
        _: Request<v1::RebootNodeRequest>,
    ) -> Result<Response<v1::RebootNodeResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn undrain_node(
        &self,
        _: Request<v1::UndrainNodeRequest>,
    ) -> Result<Response<v1::UndrainNodeResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn query_metrics(
        &self,
        _: Request<v1::QueryMetricsRequest>,
    ) -> Result<Response<v1::QueryMetricsResponse>, Status> {
        let point = v1::Point { time: time(-5), value: 0.25, ..Default::default() };
        let series =
            v1::Series { name: "cpu_busy_fraction".into(), points: vec![point], ..Default::default() };
        let step = Some(prost_types::Duration { seconds: 5, nanos: 0 });
        Ok(Response::new(v1::QueryMetricsResponse { series: vec![series], step }))
    }
}
