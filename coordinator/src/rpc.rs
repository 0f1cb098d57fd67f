//! The servers: one listener for agents, one for operators; what is served on each, and what every call passes.
//!
//! ```text
//!  agents    ──► listener ──► guard ──► EnrollmentService, AgentService, LeaseService   (link, lease)
//!  operators ──► listener ──► guard ──► NodeService, ClusterService, OperationService,  (nodes, clusters, …)
//!                                       EventService, IdentityService, reflection, health, /metrics
//! ```
//!
//! | part | answers for |
//! | --- | --- |
//! | `listener` | connections: accepted, shaken hands with, bounded, let go |
//! | `guard`, `body`, `deadline` | calls: room, rate, size, deadline, count |
//! | `peer`, `rules` | who calls, and who may call what |
//! | `repeat` | a repeat of a call gets the first answer |
//! | `named` | names in the filters of lists mean something |
//! | `live` | streams end with the credential that they began with |
//! | the others | parse, call, render: one service each |
//!
//! To serve another service: a row per method in `rules`, and one line in [`Operators::routes`].

pub mod access;
pub mod body;
mod changing;
pub mod clusters;
pub mod convert;
mod deadline;
pub mod events;
pub mod guard;
pub mod identity;
pub mod lease;
pub mod link;
pub mod listener;
pub mod live;
mod named;
pub mod nodes;
pub mod operations;
mod oversize;
pub mod peer;
pub mod repeat;
pub mod rules;
pub mod set_aside;
#[cfg(test)]
pub(crate) mod tests;

pub use guard::{CallLimits, Guard};
pub use listener::{Anonymous, ConnectionLimits, Listener};
pub use live::Streams;
pub use peer::{Caller, Gate, OperatorCaller};

use std::collections::BTreeSet;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse as _;
use holdfast_common::link::MAX_LEASE_BYTES;
use holdfast_proto::link::v1::agent_service_server::AgentServiceServer;
use holdfast_proto::link::v1::enrollment_service_server::EnrollmentServiceServer;
use holdfast_proto::link::v1::lease_service_server::LeaseServiceServer;
use holdfast_proto::v1::event_service_server::EventServiceServer;
use holdfast_proto::v1::identity_service_server::IdentityServiceServer;
use holdfast_proto::v1::node_service_server::NodeServiceServer;
use holdfast_proto::v1::operation_service_server::OperationServiceServer;
use http::{StatusCode, header};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::metrics::{self, Metrics};
use crate::operation::Procedure;

/// A second line behind `body`: what the codec itself refuses.
pub(crate) const MAX_DECODED: usize = rules::MESSAGE_BYTES as usize + 1;

/// The same for access rules, which may be long.
pub(crate) const MAX_DECODED_ACCESS: usize = rules::LIST_BYTES as usize + 1;

/// What the operators' listener serves.
#[derive(Debug)]
pub struct Operators<P> {
    pub nodes: nodes::Nodes,
    pub identities: identity::Identities,
    pub events: events::Events,
    pub operations: operations::Operations<P>,
    pub metrics: Metrics,
}

/// Why the services cannot be put together: a defect of ours.
#[derive(Debug, thiserror::Error)]
#[error("register the descriptors for reflection")]
pub struct RoutesError(#[from] tonic_reflection::server::Error);

/// What the agents' listener serves.
pub fn agents(link: link::Link, leases: lease::Exchange) -> Router {
    Routes::default()
        .add_service(EnrollmentServiceServer::new(link.clone()).max_decoding_message_size(MAX_DECODED))
        .add_service(AgentServiceServer::new(link).max_decoding_message_size(MAX_DECODED))
        .add_service(LeaseServiceServer::new(leases).max_decoding_message_size(MAX_LEASE_BYTES as usize))
        .prepare()
        .into_axum_router()
}

impl<P: Procedure> Operators<P> {
    /// All routes of the operators' listener. `others` are services that are made elsewhere.
    ///
    /// # Errors
    /// [`RoutesError`].
    pub fn routes(self, health: HealthReporter, others: Routes) -> Result<Router, RoutesError> {
        let Self { nodes, identities, events, operations, metrics } = self;
        let routes = others
            .add_service(NodeServiceServer::new(nodes).max_decoding_message_size(MAX_DECODED))
            .add_service(IdentityServiceServer::new(identities).max_decoding_message_size(MAX_DECODED))
            .add_service(EventServiceServer::new(events).max_decoding_message_size(MAX_DECODED))
            .add_service(OperationServiceServer::new(operations).max_decoding_message_size(MAX_DECODED))
            .add_service(tonic_health::pb::health_server::HealthServer::new(
                tonic_health::server::HealthService::from_health_reporter(health),
            ))
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .prepare();
        let scrape = axum::routing::get(scrape).with_state(metrics);
        Ok(routes.into_axum_router().route("/metrics", scrape))
    }
}

/// With all that our messages refer to: without google.rpc's descriptors, clients show error details as bytes.
fn reflection<'a>() -> tonic_reflection::server::Builder<'a> {
    let mut builder = tonic_reflection::server::Builder::configure();
    // What agents speak is described too, but not served here, and so not named.
    let served = rules::RULES.iter().filter(|rule| !matches!(rule.who, rules::Who::Open | rules::Who::Node));
    let services: BTreeSet<&str> = served.filter_map(|rule| Some(rule.method.split_once('/')?.0)).collect();
    for service in services {
        builder = builder.with_service_name(service);
    }
    builder
        .register_encoded_file_descriptor_set(holdfast_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        // Both versions are served and so named: each answers for the other too.
        .include_reflection_service(false)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

async fn scrape(State(metrics): State<Metrics>) -> axum::response::Response {
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
