//! What agents call: joining, their one stream, their renewal.
//!
//! ```text
//! stream ──► Hello within 10 s ──► fleet.open ──► Welcome …            reader task: stream ─► Session::receive
//!                │ late, other, refused                                 answer: Session::next ─► stream
//!                └──► Close with the reason, then the status
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _, stream};
use holdfast_common::error::{Chain, Failure, Reason, Violations, status};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::link::{Close, CloseReason, Enroll, FromAgent, FromCoordinator, Hello};
use holdfast_common::name::ClusterName;
use holdfast_common::report::{NodeEvent, Severity};
use holdfast_proto::link::v1::agent_service_server::AgentService;
use holdfast_proto::link::v1::enrollment_service_server::EnrollmentService;
use holdfast_proto::link::v1::{
    EnrollRequest, EnrollResponse, RenewCertificateRequest, RenewCertificateResponse, SessionRequest,
    SessionResponse,
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::convert::refuse;
use super::peer::Caller;
use crate::directory;
use crate::event::{self, NewEvent};
use crate::fleet::{self, Received, Session};
use crate::history;
use crate::identity::Identity;

/// How long a new session may be silent.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// The agents' services. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    pub identity: Identity,
    pub fleet: fleet::Handle,
    pub events: event::Handle,
    pub history: history::Handle,
    /// Owns the sessions' reading ends.
    pub tasks: TaskTracker,
}

#[tonic::async_trait]
impl EnrollmentService for Link {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let enroll = parse_enroll(request.into_inner()).map_err(refuse)?;
        let (enrolled, new) = self.identity.enroll(&enroll).await.map_err(refuse)?;
        self.admit(enrolled.node_id).await.map_err(refuse)?;
        if new {
            let message = format!("node {} joined with address {}", enroll.node_name, enroll.address);
            let event =
                NewEvent::new(Severity::Info, "NODE_JOINED", message).on_node(enroll.node_name.as_str());
            self.note(event.by(format!("node/{}", enroll.node_name))).await;
        }
        Ok(Response::new((&enrolled).into()))
    }
}

#[tonic::async_trait]
impl AgentService for Link {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (node, _) = Caller::of(&request).node().map_err(refuse)?;
        let (opened, open) = oneshot::channel();
        let link = self.clone();
        let inbound = request.into_inner();
        // The answer begins at once: an agent may wait for it before it says hello.
        self.tasks.spawn(async move { link.attend(node, inbound, opened).await });
        let messages =
            stream::once(async move { open.await.ok() }).filter_map(std::future::ready).flat_map(answers);
        Ok(Response::new(Box::pin(messages)))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let (node, serial) =
            Caller::of(&request).node().map(|(node, serial)| (node, serial.clone())).map_err(refuse)?;
        let signing_request = request.into_inner().certificate_signing_request;
        let (renewed, record) = self.identity.renew(node, &serial, &signing_request).await.map_err(refuse)?;
        self.fleet.admit(record, None);
        Ok(Response::new((&renewed).into()))
    }
}

/// What came of a hello.
type Opened = Result<Arc<Session>, (Close, Status)>;

/// What the agent is told.
fn answers(opened: Opened) -> Pin<Box<dyn Stream<Item = Result<SessionResponse, Status>> + Send>> {
    match opened {
        Err((close, status)) => {
            let close = SessionResponse::from(&FromCoordinator::Close(close));
            Box::pin(stream::iter([Ok(close), Err(status)]))
        }
        Ok(session) => {
            let taken = Taken(session);
            Box::pin(stream::unfold(taken, |taken| async move {
                let message = taken.0.next().await?;
                Some((Ok(SessionResponse::from(&message)), taken))
            }))
        }
    }
}

/// The sending end of a session: with it the session ends.
struct Taken(Arc<Session>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.cut();
    }
}

impl Link {
    /// Reads what the agent says until it or the session ends.
    async fn attend(
        self,
        node: NodeId,
        mut inbound: Streaming<SessionRequest>,
        opened: oneshot::Sender<Opened>,
    ) {
        let hello = match tokio::time::timeout(HELLO_DEADLINE, hello(&mut inbound)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(Some(refusal))) => return drop(opened.send(Err(violation(&refusal)))),
            // It went away before it said a word.
            Ok(Err(None)) => return,
            Err(_) => {
                let message = format!("no hello within {} s", HELLO_DEADLINE.as_secs());
                return drop(opened.send(Err(violation(&Failure::new(Reason::InvalidField, message)))));
            }
        };
        let (session, facts) = match self.fleet.open(node, hello) {
            Ok(open) => open,
            Err(fleet::Refused { close }) => {
                tracing::warn!(%node, why = %close.message, "session refused");
                let failure = Failure::new(reason(close.reason), close.message.clone());
                return drop(opened.send(Err((close, status::from_failure(&failure)))));
            }
        };
        let session = Arc::new(session);
        if opened.send(Ok(Arc::clone(&session))).is_err() {
            return;
        }
        tracing::info!(%node, session = %session.id(), "session begins");
        if let Some(facts) = facts {
            self.remember(node, &facts).await;
        }
        self.listen(&session, &mut inbound).await;
        session.cut();
        tracing::info!(%node, session = %session.id(), "session ended");
    }

    async fn listen(&self, session: &Session, inbound: &mut Streaming<SessionRequest>) {
        loop {
            // Both arms are cancel-safe; the second one is not run again after it is over.
            let message = tokio::select! {
                () = session.over() => return,
                message = inbound.next() => message,
            };
            let message = match message {
                Some(Ok(message)) => message,
                // A clean end is a lost agent too.
                None => return,
                Some(Err(status)) => {
                    tracing::debug!(session = %session.id(), status = %status.message(), "stream broke");
                    return;
                }
            };
            let taken = FromAgent::try_from(message)
                .map_err(|error| Chain(&error).to_string())
                .and_then(|message| session.receive(message).map_err(|error| error.to_string()));
            match taken {
                Ok(Received::Done) => {}
                Ok(Received::Sample) => {
                    if let Some(sample) = session.sample() {
                        self.history.record(session.node(), &sample);
                    }
                }
                Ok(Received::Event(event)) => self.node_event(session, *event).await,
                Err(problem) => {
                    tracing::warn!(node = %session.node(), problem, "protocol violation");
                    session.close(CloseReason::ProtocolViolation, problem);
                    // Until the agent has been told, or does not listen.
                    let _ = tokio::time::timeout(HELLO_DEADLINE, session.over()).await;
                    return;
                }
            }
        }
    }

    /// Stored, then acknowledged; without room it is neither, and the agent repeats it.
    async fn node_event(&self, session: &Session, event: NodeEvent) {
        let NodeEvent { id, time: _, severity, reason, message, cluster_id } = event;
        let Some(view) = self.fleet.node(session.node()) else { return };
        if !session.is_new_event(id) {
            session.acknowledge_event(id);
            return;
        }
        let name = view.record.name.to_string();
        let mut event =
            NewEvent::new(severity, &reason, message).on_node(name.clone()).by(format!("node/{name}"));
        if let Some(cluster) = cluster_id {
            // Of one that is not on record any more only the id is known.
            let known = self.cluster_name(session.node(), cluster).await;
            event = event.on_cluster(known.map_or_else(|| cluster.to_string(), |name| name.to_string()));
        }
        match self.events.record(event).await {
            Ok(_) => {
                session.remember_event(id);
                session.acknowledge_event(id);
            }
            Err(error) => tracing::warn!(error = %Chain(&error), "a node's event is not recorded"),
        }
    }

    /// The name of a cluster that has a member on the node.
    async fn cluster_name(&self, node: NodeId, cluster: ClusterId) -> Option<ClusterName> {
        let key = directory::membership_key(node, cluster);
        let found = self.identity.directory().get::<ClusterName>(&key).await;
        found.ok().flatten().map(|found| found.value)
    }

    async fn remember(&self, node: NodeId, facts: &directory::NodeFacts) {
        let stored = self.identity.directory().put(&directory::node_facts_key(node), facts).await;
        if let Err(error) = stored {
            tracing::warn!(%node, error = %Chain(&error), "what the node tells of itself is not stored");
        }
    }

    async fn admit(&self, node: NodeId) -> Result<(), Failure> {
        let found = self.identity.directory().get::<directory::Node>(&directory::node_key(node)).await?;
        if let Some(record) = found {
            self.fleet.admit(record.value, None);
        }
        Ok(())
    }

    async fn note(&self, event: NewEvent) {
        if let Err(error) = self.events.record(event).await {
            tracing::warn!(error = %Chain(&error), "an event is not recorded");
        }
    }
}

/// The first message, which must be a hello. `None`: there is none.
async fn hello(inbound: &mut Streaming<SessionRequest>) -> Result<Hello, Option<Failure>> {
    let message = match inbound.next().await {
        Some(Ok(message)) => message,
        Some(Err(status)) => return Err(Some(status::to_failure(&status))),
        None => return Err(None),
    };
    match FromAgent::try_from(message) {
        Ok(FromAgent::Hello(hello)) => Ok(*hello),
        Ok(_) => Err(Some(Failure::invalid_field("message", "must be `hello` before anything else"))),
        Err(error) => Err(Some(holdfast_common::error::Classify::to_failure(&error))),
    }
}

fn violation(failure: &Failure) -> (Close, Status) {
    let close = Close { reason: CloseReason::ProtocolViolation, message: failure.message.clone() };
    (close, status::from_failure(failure))
}

fn reason(close: CloseReason) -> Reason {
    match close {
        CloseReason::Shutdown => Reason::ShuttingDown,
        CloseReason::Superseded => Reason::Cancelled,
        CloseReason::NodeRemoved => Reason::NotPermitted,
        CloseReason::VersionUnsupported => Reason::VersionUnsupported,
        CloseReason::ProtocolViolation => Reason::PreconditionFailed,
    }
}

/// All bad fields at once.
fn parse_enroll(request: EnrollRequest) -> Result<Enroll, Failure> {
    let mut violations = Violations::default();
    violations.take("node_name", request.node_name.parse::<holdfast_common::name::NodeName>());
    violations.take(
        "address",
        request.address.parse::<std::net::IpAddr>().map_err(|_| "must be an IPv4 or IPv6 address"),
    );
    violations.take("request_id", request.request_id.parse::<uuid::Uuid>().map_err(|_| "must be a UUID"));
    violations.check()?;
    Enroll::try_from(request).map_err(|error| holdfast_common::error::Classify::to_failure(&error))
}
