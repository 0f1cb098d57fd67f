//! `EventService`.

use std::pin::Pin;

use futures::{Stream, stream};
use holdfast_common::error::{Classify as _, Failure, Reason, Violations};
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::report::Severity;
use holdfast_proto::v1::event_service_server::EventService;
use holdfast_proto::v1::{self as proto, WatchEventsResponse};
use tonic::{Request, Response, Status};

use super::convert::{self, PageRequest, refuse};
use super::named;
use crate::directory::{self, Directory};
use crate::event::{self, Event, ReadError, Reader};
use crate::procedures::requests::no_cluster;

/// The operators' view of what happened.
#[derive(Debug, Clone)]
pub struct Events {
    pub events: event::Handle,
    pub directory: Directory,
}

/// Which events are wanted.
#[derive(Debug, Clone)]
struct Filter {
    node: Option<NodeName>,
    cluster: Option<ClusterName>,
    least: Severity,
}

#[tonic::async_trait]
impl EventService for Events {
    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<WatchEventsResponse, Status>> + Send>>;

    async fn list_events(
        &self,
        request: Request<proto::ListEventsRequest>,
    ) -> Result<Response<proto::ListEventsResponse>, Status> {
        let proto::ListEventsRequest { page_size, page_token, node, cluster, severity } =
            request.into_inner();
        let mut violations = Violations::default();
        let list = format!("events?node={node}&cluster={cluster}&severity={severity}");
        let page = PageRequest::read(page_size, &page_token, &list, &mut violations);
        let before =
            page.after.as_deref().and_then(|after| violations.take("page_token", after.parse())).unwrap_or(0);
        let filter = Filter::read(&mut violations, &node, &cluster, severity);
        convert::check(violations)?;
        let (found, next) =
            self.events.list(before, page.size, |event| filter.admits(event)).await.map_err(refuse)?;
        if found.is_empty() && page.after.is_none() {
            self.check_names(&filter).await.map_err(refuse)?;
        }
        Ok(Response::new(proto::ListEventsResponse {
            events: found.iter().map(convert::event).collect(),
            next_page_token: next.map(|last| page.token(&last.to_string())).unwrap_or_default(),
        }))
    }

    async fn watch_events(
        &self,
        request: Request<proto::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let proto::WatchEventsRequest { after_id, node, cluster, severity } = request.into_inner();
        let mut violations = Violations::default();
        let after = match &after_id[..] {
            "" => None,
            id => violations
                .take("after_id", id.parse().map_err(|_| "is no event id; give one that an event bears")),
        };
        let filter = Filter::read(&mut violations, &node, &cluster, severity);
        convert::check(violations)?;
        self.check_names(&filter).await.map_err(refuse)?;
        Ok(Response::new(Box::pin(follow(self.events.follow(after), filter))))
    }
}

impl Events {
    /// Of what is gone there may be events still; what neither is there nor in any event was never there, as far as is known.
    async fn check_names(&self, filter: &Filter) -> Result<(), Failure> {
        let told = async |admit: &(dyn Fn(&Event) -> bool + Sync)| {
            let found = self.events.list(0, 1, admit).await;
            found.map(|(events, _)| !events.is_empty()).map_err(|error| error.to_failure())
        };
        if let Some(name) = &filter.node
            && !named::has_node(&self.directory, name).await?
            && !told(&|event: &Event| event.what.node.as_deref() == Some(name.as_str())).await?
        {
            return Err(directory::no_node(name));
        }
        if let Some(name) = &filter.cluster
            && !named::has_cluster(&self.directory, name).await?
            && !told(&|event: &Event| event.what.cluster.as_deref() == Some(name.as_str())).await?
        {
            return Err(no_cluster(name));
        }
        Ok(())
    }
}

impl Filter {
    fn read(violations: &mut Violations, node: &str, cluster: &str, severity: i32) -> Self {
        Self {
            node: named::optional(violations, "node", node),
            cluster: named::optional(violations, "cluster", cluster),
            least: convert::severity(violations, "severity", severity),
        }
    }

    fn admits(&self, event: &Event) -> bool {
        let same = |wanted: Option<&str>, has: &Option<String>| wanted.is_none() || has.as_deref() == wanted;
        same(self.node.as_ref().map(NodeName::as_str), &event.what.node)
            && same(self.cluster.as_ref().map(ClusterName::as_str), &event.what.cluster)
            && event.what.severity >= self.least
    }
}

fn follow(reader: Reader, filter: Filter) -> impl Stream<Item = Result<WatchEventsResponse, Status>> + Send {
    let state = Some((reader, filter, Vec::new().into_iter()));
    stream::unfold(state, |state| async move {
        let (mut reader, filter, mut ready) = state?;
        loop {
            let next: Option<Event> = ready.next();
            if let Some(event) = next {
                let response = WatchEventsResponse { event: Some(convert::event(&event)) };
                return Some((Ok(response), Some((reader, filter, ready))));
            }
            match reader.next().await {
                Ok(events) => {
                    let wanted: Vec<Event> =
                        events.into_iter().filter(|event| filter.admits(event)).collect();
                    ready = wanted.into_iter();
                }
                Err(error) => return Some((Err(refusal(error)), None)),
            }
        }
    })
}

fn refusal(error: ReadError) -> Status {
    match error {
        ReadError::Store(error) => refuse(error),
        ReadError::Compacted { oldest } => {
            let message = format!(
                "events before {oldest} are not kept any more; list what there is and follow from there"
            );
            refuse(Failure::new(Reason::HistoryCompacted, message).with("oldest", oldest))
        }
    }
}
