//! `NodeService`.

mod drain;
mod schedule;

use std::collections::{BTreeMap, HashSet};
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, stream};
use holdfast_common::error::{Failure, Reason, Violation, Violations};
use holdfast_common::id::NodeId;
use holdfast_common::name::NodeName;
use holdfast_common::report::Severity;
use holdfast_common::wire::time_to_wire;
use holdfast_proto::v1::node_service_server::NodeService;
use holdfast_proto::v1::{self as proto, WatchKind, WatchNodesResponse, remove_node_response::Outcome};
use jiff::{SignedDuration, Timestamp};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::changing::{self, Done};
use super::convert::{self, PageRequest, refuse};
use super::peer::Caller;
use super::repeat::{decoded, repeat};
use crate::directory::{self, Directory};
use crate::event::{self, NewEvent};
use crate::fleet::{self, NodeView};
use crate::history;
use crate::identity::{Identity, RequestId};
use crate::procedures::reboot::schedule::schedule_key;
use crate::procedures::requests::Desk;
use crate::store::{Compare, Op, Txn};

/// The most names that a watch may list.
const MAX_NAMES: usize = 1000;
/// Changes of a node within this time are one.
const COALESCE: Duration = Duration::from_millis(200);
const ATTEMPTS: usize = 20;

/// The operators' view of the machines.
#[derive(Debug, Clone)]
pub struct Nodes {
    pub directory: Directory,
    pub identity: Identity,
    pub fleet: fleet::Handle,
    pub history: history::Handle,
    pub events: event::Handle,
    pub desk: Desk,
}

#[tonic::async_trait]
impl NodeService for Nodes {
    type WatchNodesStream = Pin<Box<dyn Stream<Item = Result<WatchNodesResponse, Status>> + Send>>;

    async fn list_nodes(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Result<Response<proto::ListNodesResponse>, Status> {
        let proto::ListNodesRequest { page_size, page_token } = request.into_inner();
        let mut violations = Violations::default();
        let page = PageRequest::read(page_size, &page_token, "nodes", &mut violations);
        convert::check(violations)?;
        let mut rest = self
            .fleet
            .nodes()
            .into_iter()
            .filter(|view| page.after.as_deref().is_none_or(|after| view.record.name.as_str() > after));
        let nodes: Vec<proto::Node> =
            rest.by_ref().take(page.size).map(|view| convert::node(&view)).collect();
        let next_page_token = match (rest.next(), nodes.last()) {
            (Some(_), Some(last)) => page.token(&last.name),
            _ => String::new(),
        };
        Ok(Response::new(proto::ListNodesResponse { nodes, next_page_token }))
    }

    async fn get_node(
        &self,
        request: Request<proto::GetNodeRequest>,
    ) -> Result<Response<proto::GetNodeResponse>, Status> {
        let view = self.find("name", &request.into_inner().name).map_err(refuse)?;
        Ok(Response::new(proto::GetNodeResponse { node: Some(convert::node(&view)) }))
    }

    async fn watch_nodes(
        &self,
        request: Request<proto::WatchNodesRequest>,
    ) -> Result<Response<Self::WatchNodesStream>, Status> {
        let names = parse_names(&request.into_inner().names).map_err(refuse)?;
        for name in &names {
            self.named(name).map_err(refuse)?;
        }
        Ok(Response::new(Box::pin(watch(self.fleet.clone(), names))))
    }

    async fn remove_node(
        &self,
        request: Request<proto::RemoveNodeRequest>,
    ) -> Result<Response<proto::RemoveNodeResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &actor, "RemoveNode", &request).map_err(refuse)?;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await.map_err(refuse)? {
            return decoded(&answer);
        }
        let view = self.find("name", &request.name).map_err(refuse)?;
        let members = self.members(view.id()).await.map_err(refuse)?;
        if request.validate_only {
            let outcome = Some(Outcome::Plan(plan(&view, &members)));
            return Ok(Response::new(proto::RemoveNodeResponse { outcome }));
        }
        confirmed(&view, &request.confirm).map_err(refuse)?;
        let answer = self.remove(&view, repeat.as_ref()).await.map_err(refuse)?;
        let message = format!("node {} was removed from the fleet", view.record.name);
        let event = NewEvent::new(Severity::Info, "NODE_REMOVED", message)
            .on_node(view.record.name.as_str())
            .by(actor);
        if let Err(error) = self.events.record(event).await {
            tracing::warn!(error = %holdfast_common::error::Chain(&error), "an event is not recorded");
        }
        decoded(&answer)
    }

    async fn drain_node(
        &self,
        request: Request<proto::DrainNodeRequest>,
    ) -> Result<Response<proto::DrainNodeResponse>, Status> {
        let asker = changing::asker(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let parsed = drain::parse(request).map_err(refuse)?;
        let outcome = match changing::change(&self.desk, &parsed, &asker, validate_only).await? {
            Done::Begun(operation) => proto::drain_node_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::drain_node_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::DrainNodeResponse { outcome: Some(outcome) }))
    }

    async fn undrain_node(
        &self,
        request: Request<proto::UndrainNodeRequest>,
    ) -> Result<Response<proto::UndrainNodeResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        let repeat = repeat(&request.request_id, &actor, "UndrainNode", &request).map_err(refuse)?;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await.map_err(refuse)? {
            return decoded(&answer);
        }
        let view = self.find("name", &request.name).map_err(refuse)?;
        decoded(&self.undrain(&view, actor, repeat.as_ref()).await.map_err(refuse)?)
    }

    async fn reboot_node(
        &self,
        request: Request<proto::RebootNodeRequest>,
    ) -> Result<Response<proto::RebootNodeResponse>, Status> {
        let asker = changing::asker(&request, &request.get_ref().request_id)?;
        let request = request.into_inner();
        let validate_only = request.validate_only;
        let parsed = drain::parse_reboot(request).map_err(refuse)?;
        let outcome = match changing::change(&self.desk, &parsed, &asker, validate_only).await? {
            Done::Begun(operation) => proto::reboot_node_response::Outcome::Operation(*operation),
            Done::Planned(plan) => proto::reboot_node_response::Outcome::Plan(plan),
        };
        Ok(Response::new(proto::RebootNodeResponse { outcome: Some(outcome) }))
    }

    async fn set_reboot_schedule(
        &self,
        request: Request<proto::SetRebootScheduleRequest>,
    ) -> Result<Response<proto::SetRebootScheduleResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        self.set_schedule(actor, request).await.map(Response::new).map_err(refuse)
    }

    async fn list_reboot_schedules(
        &self,
        request: Request<proto::ListRebootSchedulesRequest>,
    ) -> Result<Response<proto::ListRebootSchedulesResponse>, Status> {
        self.schedules(request.into_inner()).await.map(Response::new).map_err(refuse)
    }

    async fn remove_reboot_schedule(
        &self,
        request: Request<proto::RemoveRebootScheduleRequest>,
    ) -> Result<Response<proto::RemoveRebootScheduleResponse>, Status> {
        let actor = Caller::of(&request).actor();
        let request = request.into_inner();
        self.remove_schedule(actor, request).await.map(Response::new).map_err(refuse)
    }

    async fn query_metrics(
        &self,
        request: Request<proto::QueryMetricsRequest>,
    ) -> Result<Response<proto::QueryMetricsResponse>, Status> {
        let request = request.into_inner();
        let mut violations = Violations::default();
        let now = Timestamp::now();
        let end = convert::time(&mut violations, "end_time", request.end_time).unwrap_or(now);
        let hour_before = end.checked_sub(SignedDuration::from_hours(1)).unwrap_or(Timestamp::MIN);
        let start = convert::time(&mut violations, "start_time", request.start_time).unwrap_or(hour_before);
        if request.series.len() > MAX_NAMES {
            violations.add(
                "series",
                format!("names {} series; at most {MAX_NAMES} are allowed", request.series.len()),
            );
        }
        let bounds = (Duration::from_secs(1), Duration::from_secs(14 * 24 * 3600));
        let step =
            request.step.map(|step| convert::duration(&mut violations, "step", Some(step), bounds.0, bounds));
        let name = violations.take("node", request.node.parse::<NodeName>());
        let mut query = history::Query { series: request.series, start, end, step };
        // More names than are allowed are not looked at.
        query.series.truncate(MAX_NAMES);
        let told: Vec<String> = violations.fields().map(str::to_owned).collect();
        violations.extend(query.problems().into_iter().filter(|problem| !told.contains(&problem.name)));
        convert::check(violations)?;
        let name = name.ok_or_else(|| refuse(Failure::invalid_field("node", "is missing")))?;
        let view = self.named(&name).map_err(refuse)?;
        let answer = self.history.query(view.id(), query).await.map_err(refuse)?;
        Ok(Response::new(proto::QueryMetricsResponse {
            step: Some(convert::step_duration(answer.step)),
            series: answer.series.into_iter().map(series).collect(),
        }))
    }
}

impl Nodes {
    fn find(&self, field: &str, name: &str) -> Result<NodeView, Failure> {
        self.named(&name.parse().map_err(|error| Failure::invalid_field(field, error))?)
    }

    fn named(&self, name: &NodeName) -> Result<NodeView, Failure> {
        self.fleet.node_by_name(name).ok_or_else(|| directory::no_node(name))
    }

    /// Clusters that have a member there: those recorded, and those that the node still reports.
    async fn members(&self, node: NodeId) -> Result<Vec<String>, Failure> {
        let recorded = self.directory.clusters_on(node).await?;
        Ok(recorded.iter().map(ToString::to_string).collect())
    }

    /// The record goes, if it has no members then; what adds a member writes the record too, so neither overtakes the other.
    /// The answer is written with it, for repeats of the call.
    async fn remove(&self, view: &NodeView, request: Option<&RequestId>) -> Result<Vec<u8>, Failure> {
        let key = directory::node_key(view.id());
        let response = proto::RemoveNodeResponse { outcome: Some(Outcome::Node(convert::node(view))) };
        for _ in 0..ATTEMPTS {
            let found = self.directory.get::<directory::Node>(&key).await?;
            let found = found.ok_or_else(|| directory::no_node(&view.record.name))?;
            let members = self.members(view.id()).await?;
            if !members.is_empty() {
                return Err(has_members(view, &members));
            }
            let txn = Txn::new()
                .when(Compare::unchanged(&key, found.revision))
                .then(Op::delete(&key))
                .then(Op::delete(directory::node_name_key(&view.record.name)))
                .then(Op::delete(directory::node_facts_key(view.id())))
                .then(Op::delete(schedule_key(view.id())));
            match self.identity.commit(txn, request, response.encode_to_vec()).await {
                Ok(answer) => {
                    self.fleet.remove(view.id());
                    self.history.forget(view.id());
                    return Ok(answer);
                }
                Err(failure) if failure.reason == Reason::VersionConflict => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::new(Reason::VersionConflict, "the node's record keeps changing; repeat the call"))
    }
}

fn watch(
    fleet: fleet::Handle,
    names: HashSet<NodeName>,
) -> impl Stream<Item = Result<WatchNodesResponse, Status>> + Send {
    struct Watching {
        fleet: fleet::Handle,
        names: HashSet<NodeName>,
        changes: tokio::sync::watch::Receiver<u64>,
        sent: BTreeMap<NodeId, NodeView>,
        ready: std::vec::IntoIter<WatchNodesResponse>,
        synced: bool,
    }

    impl Watching {
        /// Everything that differs from what was sent: only the newest state of each node, however slow the reader is.
        fn look(&mut self) {
            let mut ready = Vec::new();
            let mut gone = std::mem::take(&mut self.sent);
            for view in self.fleet.nodes() {
                if !self.names.is_empty() && !self.names.contains(&view.record.name) {
                    continue;
                }
                let known = gone.remove(&view.id());
                if known.is_none_or(|known| known.version != view.version) {
                    ready.push(response(WatchKind::Changed, Some(&view)));
                }
                self.sent.insert(view.id(), view);
            }
            ready.extend(gone.values().map(|view| response(WatchKind::Removed, Some(view))));
            if !self.synced {
                self.synced = true;
                ready.push(response(WatchKind::Synced, None));
            }
            self.ready = ready.into_iter();
        }
    }

    let changes = fleet.changes();
    let watching = Watching {
        fleet,
        names,
        changes,
        sent: BTreeMap::new(),
        ready: Vec::new().into_iter(),
        synced: false,
    };
    stream::unfold(watching, |mut watching| async move {
        loop {
            if let Some(response) = watching.ready.next() {
                return Some((Ok(response), watching));
            }
            if watching.synced {
                watching.changes.changed().await.ok()?;
                tokio::time::sleep(COALESCE).await;
            }
            watching.changes.mark_unchanged();
            watching.look();
        }
    })
}

fn response(kind: WatchKind, view: Option<&NodeView>) -> WatchNodesResponse {
    WatchNodesResponse { kind: kind.into(), node: view.map(convert::node) }
}

fn parse_names(names: &[String]) -> Result<HashSet<NodeName>, Failure> {
    let mut violations = Violations::default();
    if names.len() > MAX_NAMES {
        violations.add("names", format!("has {} names; at most {MAX_NAMES} are allowed", names.len()));
        return Err(violations.into_failure());
    }
    let parsed = names.iter().enumerate();
    let parsed = parsed
        .filter_map(|(index, name)| violations.take(&format!("names[{index}]"), name.parse()))
        .collect();
    violations.check().map(|()| parsed)
}

fn plan(view: &NodeView, members: &[String]) -> proto::Plan {
    let message = if members.is_empty() {
        "the node has no members".to_owned()
    } else {
        format!("the node has members of {}; remove those first", members.join(", "))
    };
    proto::Plan {
        steps: vec![proto::PlannedStep {
            name: "remove_node".to_owned(),
            title: format!(
                "Remove node {}: its certificates are refused, its session ends",
                view.record.name
            ),
        }],
        preconditions: vec![proto::Precondition {
            name: "no_members".to_owned(),
            subject: format!("nodes/{}", view.record.name),
            met: members.is_empty(),
            message,
        }],
        notes: vec!["To come back, the machine must join again with a new token.".to_owned()],
    }
}

fn confirmed(view: &NodeView, confirm: &str) -> Result<(), Failure> {
    if confirm == view.record.name.as_str() {
        return Ok(());
    }
    let message =
        format!("`confirm` must be `{}`, the name of the node that is to be removed", view.record.name);
    let violation =
        Violation { name: "confirm".to_owned(), subject: String::new(), message: message.clone() };
    Err(Failure { violations: vec![violation], ..Failure::new(Reason::NotConfirmed, message) })
}

fn has_members(view: &NodeView, members: &[String]) -> Failure {
    let message = format!(
        "node {} has members of {}; remove those members or delete those clusters first",
        view.record.name,
        members.join(", ")
    );
    let violation = Violation {
        name: "no_members".to_owned(),
        subject: format!("nodes/{}", view.record.name),
        message: message.clone(),
    };
    Failure { violations: vec![violation], ..Failure::new(Reason::PreconditionFailed, message) }
}

fn series(series: history::Series) -> proto::Series {
    proto::Series {
        name: series.name.to_owned(),
        labels: series.labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        points: series
            .points
            .into_iter()
            .map(|point| proto::Point {
                time: Some(time_to_wire(point.time)),
                value: point.value,
                min: point.range.map(|(min, _)| min),
                max: point.range.map(|(_, max)| max),
            })
            .collect(),
    }
}
