//! Wiring of the lease thread, which shares nothing with the rest but what it is handed here.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{state_files, telling};
use crate::engine::Engines;
use crate::firewall::Kernel;
use crate::identity::Identity;
use crate::lease::{Deeds, Means, Service};
use crate::link::{self, Coordinators};
use crate::report::{Machine, Node};

/// The thread, not running yet.
#[derive(Debug)]
pub(super) struct Leases {
    service: Service,
    means: Means,
    contacts: link::lease::Tasks,
}

/// What it is made of.
pub(super) struct Parts<'a> {
    pub(super) state: &'a Path,
    pub(super) identity: &'a Identity,
    pub(super) coordinators: &'a Coordinators,
    pub(super) node: &'a Node,
    pub(super) machine: &'a Machine,
    pub(super) kernel: Kernel,
    pub(super) session: watch::Receiver<link::Status>,
}

// === impl Leases ===

impl Leases {
    pub(super) fn new(service: Service, parts: Parts<'_>) -> Self {
        let Parts { state, identity, coordinators, node, machine, kernel, session } = parts;
        let (contact, contacts) = link::lease::contact(
            &identity.record(),
            identity.certificates(),
            identity.tls(),
            coordinators.clone(),
        );
        let means = Means {
            assignment: node.assignments.subscribe(),
            report: node.members.subscribe(),
            firewall: machine.firewall.subscribe(),
            kernel,
            files: state_files(state),
            state: state.to_owned(),
            deeds: deeds(&machine.engines),
            contact,
            session,
            clock: node.clock.clone(),
            tell: telling(&node.outbox),
        };
        Self { service, means, contacts }
    }

    /// Runs until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        self.service.run(self.means, self.contacts, stop).await;
    }
}

/// What the lease thread may have done to engines.
fn deeds(engines: &Engines) -> Deeds {
    let (halting, resting, sealing) = (engines.clone(), engines.clone(), engines.clone());
    Deeds {
        halt: Arc::new(move |cluster| {
            let engines = halting.clone();
            Box::pin(async move { engines.halt(cluster).await })
        }),
        rest: Arc::new(move |cluster| {
            let engines = resting.clone();
            Box::pin(async move { engines.rest(cluster).await })
        }),
        seal: Arc::new(move |cluster| {
            let engines = sealing.clone();
            Box::pin(async move { engines.seal(cluster).await })
        }),
    }
}
