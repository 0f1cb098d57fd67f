//! Wiring of the lease thread, which shares nothing with the rest but what it is handed here.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::surroundings::Known;
use super::{state_files, telling};
use crate::firewall::Kernel;
use crate::identity::Identity;
use crate::lease::{Handle, Means, Service};
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
    pub(super) held: &'a Handle,
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
    /// From here on the engines know of leases and firewall too.
    pub(super) fn new(service: Service, parts: Parts<'_>) -> Self {
        let Parts { held, state, identity, coordinators, node, machine, kernel, session } = parts;
        let (contact, contacts) = link::lease::contact(
            &identity.record(),
            identity.certificates(),
            identity.tls(),
            coordinators.clone(),
        );
        let known = Known { leases: held.subscribe(), firewall: machine.firewall.subscribe() };
        machine.engines.set_amid(Arc::new(known));
        let means = Means {
            assignment: node.assignments.subscribe(),
            report: node.members.subscribe(),
            firewall: machine.firewall.subscribe(),
            kernel,
            files: state_files(state),
            state: state.to_owned(),
            engines: machine.engines.clone(),
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
