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
        if name == "n1" {
            let members = vec![
                member("demo", Some((3 << 30, 4 << 30))),
                member("orders", Some((1 << 30, 1 << 30))),
                member("stock", None),
            ];
            let node = v1::Node { members, ..node(name, v1::Availability::Online) };
            return Ok(Response::new(v1::GetNodeResponse { node: Some(node) }));
        }
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

    async fn set_reboot_schedule(
        &self,
        request: Request<v1::SetRebootScheduleRequest>,
    ) -> Result<Response<v1::SetRebootScheduleResponse>, Status> {
        let request = request.into_inner();
        let Some(v1::set_reboot_schedule_request::When::Cron(cron)) = request.when else {
            return Err(Status::unimplemented("not here"));
        };
        let shown = schedule(&request.name, &cron, &request.time_zone);
        let outcome = Some(v1::set_reboot_schedule_response::Outcome::Schedule(shown));
        Ok(Response::new(v1::SetRebootScheduleResponse { outcome }))
    }

    async fn list_reboot_schedules(
        &self,
        request: Request<v1::ListRebootSchedulesRequest>,
    ) -> Result<Response<v1::ListRebootSchedulesResponse>, Status> {
        let all = [schedule("n1", "0 3 * * SUN", "Europe/Berlin"), schedule("n2", "0 4 L * *", "UTC")];
        let node = &request.get_ref().node;
        let schedules = all.into_iter().filter(|it| node.is_empty() || it.node == *node).collect();
        Ok(Response::new(v1::ListRebootSchedulesResponse { schedules, next_page_token: String::new() }))
    }

    async fn remove_reboot_schedule(
        &self,
        request: Request<v1::RemoveRebootScheduleRequest>,
    ) -> Result<Response<v1::RemoveRebootScheduleResponse>, Status> {
        let name = &request.get_ref().name;
        let schedule = (name == "n1").then(|| schedule(name, "0 3 * * SUN", "UTC"));
        Ok(Response::new(v1::RemoveRebootScheduleResponse { schedule }))
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

/// With the memory that it goes by, and that it could.
fn member(cluster: &str, memory_bytes: Option<(u64, u64)>) -> v1::NodeMember {
    let budget = |memory_bytes| {
        Some(nouns::Budget { memory_bytes, cores: 1 + u32::from(cluster == "demo"), disk_bytes: 40 << 30 })
    };
    let tuning = memory_bytes.map(|(kept, possible)| nouns::MemberTuning {
        kept: budget(kept),
        possible: budget(possible),
        resized: kept != possible,
    });
    v1::NodeMember { cluster: cluster.into(), tuning }
}

fn schedule(node: &str, cron: &str, time_zone: &str) -> v1::RebootSchedule {
    let week = 7 * 24 * 3600;
    v1::RebootSchedule {
        node: node.into(),
        when: Some(v1::reboot_schedule::When::Cron(cron.into())),
        time_zone: time_zone.into(),
        only_if_needed: true,
        by: "operator/alice".into(),
        set_time: time(-week),
        next_times: [1, 2, 3].into_iter().filter_map(|weeks| time(weeks * week)).collect(),
        last: (node == "n1").then(|| v1::LastScheduledReboot {
            due_time: time(-3600),
            state: v1::ScheduledRebootState::Missed.into(),
            operation_id: String::new(),
            message: "n2, another member of demo, is being drained or rebooted".into(),
        }),
        ..Default::default()
    }
}
