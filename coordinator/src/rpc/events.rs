//! `EventService`.

use std::pin::Pin;

use futures::{Stream, stream};
use holdfast_common::error::{Failure, Reason, Violations};
use holdfast_common::report::Severity;
use holdfast_proto::v1::event_service_server::EventService;
use holdfast_proto::v1::{self as proto, WatchEventsResponse};
use tonic::{Request, Response, Status};

use super::convert::{self, PageRequest, refuse};
use crate::event::{self, Event, ReadError, Reader};

/// The operators' view of what happened.
#[derive(Debug, Clone)]
pub struct Events {
    pub events: event::Handle,
}

/// Which events are wanted.
#[derive(Debug, Clone)]
struct Filter {
    node: String,
    cluster: String,
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
        let filter = Filter::read(&mut violations, node, cluster, severity);
        convert::check(violations)?;
        let (found, next) =
            self.events.list(before, page.size, |event| filter.admits(event)).await.map_err(refuse)?;
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
        let filter = Filter::read(&mut violations, node, cluster, severity);
        convert::check(violations)?;
        Ok(Response::new(Box::pin(follow(self.events.follow(after), filter))))
    }
}

impl Filter {
    fn read(violations: &mut Violations, node: String, cluster: String, severity: i32) -> Self {
        Self {
            node: convert::text(violations, "node", node),
            cluster: convert::text(violations, "cluster", cluster),
            least: convert::severity(violations, "severity", severity),
        }
    }

    fn admits(&self, event: &Event) -> bool {
        let same = |wanted: &str, has: &Option<String>| wanted.is_empty() || has.as_deref() == Some(wanted);
        same(&self.node, &event.what.node)
            && same(&self.cluster, &event.what.cluster)
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
