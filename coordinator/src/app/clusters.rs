//! Wiring of clusters: the operation engine with its procedures, the service, the reconcile loops.

use std::sync::Arc;

use holdfast_common::clock::Clock;
use holdfast_common::shutdown::Tasks;
use holdfast_proto::v1::access_service_server::AccessServiceServer;
use holdfast_proto::v1::cluster_service_server::ClusterServiceServer;
use holdfast_proto::v1::set_aside_service_server::SetAsideServiceServer;
use tonic::service::Routes;

use super::Parts;
use crate::operation;
use crate::procedures::requests::Desk;
use crate::procedures::{Means, Nodes, Procedures, Records};
use crate::reconcile;
use crate::rpc::access::AccessRules;
use crate::rpc::clusters::Clusters;
use crate::rpc::set_aside::SetAside;
use crate::rpc::{MAX_DECODED, MAX_DECODED_ACCESS};

/// The engine of all procedures.
pub(super) fn operations(parts: &Parts) -> (operation::Service<Procedures>, Desk) {
    let means = |handle| {
        Arc::new(Means {
            records: Records::new(parts.directory.clone()),
            nodes: Arc::new(parts.fleet.clone()),
            parts: Arc::new(handle),
            events: parts.events.clone(),
            leases: parts.leases.clone(),
            clock: Clock::system(),
            coordinator_generation: parts.fleet.coordinator_generation(),
        })
    };
    let service = operation::Service::with_handle(Arc::clone(&parts.store), means);
    let (means, operations) = (service.means(), service.handle());
    let desk = Desk { means, operations, keyring: Arc::clone(&parts.keyring) };
    (service, desk)
}

/// What operators call.
pub(super) fn routes(parts: &Parts, desk: Desk) -> Routes {
    let identity = || parts.identity.clone();
    let access = AccessRules { desk: desk.clone(), identity: identity(), fleet: parts.fleet.clone() };
    let set_aside = SetAside::new(desk.clone(), parts.fleet.clone());
    let clusters = Clusters { desk, identity: identity(), leases: parts.leases.clone() };
    Routes::new(ClusterServiceServer::new(clusters).max_decoding_message_size(MAX_DECODED))
        .add_service(AccessServiceServer::new(access).max_decoding_message_size(MAX_DECODED_ACCESS))
        .add_service(SetAsideServiceServer::new(set_aside).max_decoding_message_size(MAX_DECODED))
}

/// Starts the loops.
pub(super) fn reconcile(parts: &Parts, desk: Desk, tasks: &Tasks) {
    let operations = desk.operations.clone();
    let records = Records::new(parts.directory.clone());
    let assignments = reconcile::assignments::Assignments::new(records.clone(), parts.fleet.clone());
    let nodes: Arc<dyn Nodes> = Arc::new(parts.fleet.clone());
    let trials = reconcile::trials::Trials {
        records: records.clone(),
        events: parts.events.clone(),
        clock: Clock::system(),
    };
    let leases = reconcile::leases::Keep {
        records: records.clone(),
        fleet: parts.fleet.clone(),
        leases: parts.leases.clone(),
    };
    let failovers = reconcile::failover::Failovers::new(reconcile::failover::Means {
        records: records.clone(),
        clock: Clock::system(),
        fleet: parts.fleet.clone(),
        leases: parts.leases.clone(),
        operations: operations.clone(),
        events: parts.events.clone(),
    });
    let replicas =
        reconcile::replicas::Replicas::new(Arc::clone(&nodes), parts.leases.clone(), operations.clone());
    let looked_at = records.clone();
    let leftovers = reconcile::leftovers::Leftovers { records, nodes, operations };
    let store = || Arc::clone(&parts.store);
    tasks.spawn("reconcile assignments", reconcile::run(assignments, store(), tasks.token()));
    tasks.spawn("reconcile leases", reconcile::run(leases, store(), tasks.token()));
    let reminder = reconcile::leases::remind(parts.leases.clone(), parts.fleet.clone(), tasks.token());
    tasks.spawn("leases", reminder);
    let failovers = reconcile::watch_over(failovers, looked_at.clone(), store(), tasks.token());
    tasks.spawn("reconcile failovers", failovers);
    let replicas = reconcile::watch_over(replicas, looked_at, store(), tasks.token());
    tasks.spawn("reconcile replicas", replicas);
    tasks.spawn("reconcile trials", reconcile::run(trials, store(), tasks.token()));
    let reboots = reconcile::reboots::Reboots::new(desk);
    tasks.spawn("reconcile reboots", reconcile::run(reboots, store(), tasks.token()));
    tasks.spawn("reconcile leftovers", reconcile::run(leftovers, store(), tasks.token()));
}
