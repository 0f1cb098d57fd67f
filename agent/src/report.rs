//! What the node says of itself on the link: identity and inventory when a session begins, then the newest report of its
//! members and the newest sample.
//!
//! Answerable for putting these together from those who know; not for observing (the drivers and `converge`), measuring
//! (`telemetry`), or sending (`link`).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use holdfast_common::assignment::Assignment;
use holdfast_common::clock::Clock;
use holdfast_common::error::{Chain, Failure};
use holdfast_common::id::InstanceId;
use holdfast_common::link::{Hello, MAX_UNFINISHED, Question, VERSIONS, Welcome};
use holdfast_common::question;
use holdfast_common::report::NodeReport;
use holdfast_common::telemetry::{Inventory, Sample, ServiceManager};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::assignment::{self, Assignments};
use crate::converge;
use crate::dispatch::{self, Order};
use crate::engine::Engines;
use crate::firewall;
use crate::host::Host;
use crate::link::Below;
use crate::outbox::Outbox;
use crate::telemetry::counters::Roots;
use crate::telemetry::inventory::Known;
use crate::telemetry::{Collector, Moment, take_inventory};
use crate::terms::Terms;

/// Between samples until the coordinator says otherwise.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
const INVENTORY_INTERVAL: Duration = Duration::from_secs(600);
const OFFERS_DEADLINE: Duration = Duration::from_secs(30);

/// The agent's parts, as the link sees them.
#[derive(Debug)]
pub struct Node {
    pub instance: InstanceId,
    pub boot_id: String,
    pub inventories: Inventories,
    pub terms: Arc<Terms>,
    pub assignments: Arc<Assignments>,
    pub commands: dispatch::Handle,
    pub engines: Engines,
    pub members: converge::Handle,
    pub samples: Samples,
    pub outbox: Outbox,
    pub clock: Clock,
}

/// What an inventory is made of.
#[derive(Debug, Clone)]
pub struct Machine {
    pub host: Host,
    pub service_manager: ServiceManager,
    pub engines: Engines,
    pub firewall: firewall::Handle,
}

/// What the machine is, looked at now and then. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inventories {
    newest: watch::Sender<Option<Arc<Inventory>>>,
}

/// The newest sample, and how often there should be one. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Samples {
    newest: Arc<Mutex<Option<Box<Sample>>>>,
    interval: watch::Sender<Duration>,
}

// === impl Inventories ===

impl Inventories {
    pub fn new() -> Self {
        Self { newest: watch::Sender::new(None) }
    }

    /// Looks at the machine now and then, until it is stopped. Engines' package lists take seconds to read: no session
    /// waits for that but the first.
    pub async fn run(self, machine: Machine, stop: CancellationToken) {
        loop {
            // Dropping a look half-way loses nothing.
            let looked = tokio::select! {
                () = stop.cancelled() => return,
                looked = machine.look() => looked,
            };
            self.newest.send_replace(Some(Arc::new(looked)));
            // Both arms are cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INVENTORY_INTERVAL) => {}
            }
        }
    }

    async fn first(&self) {
        let mut newest = self.newest.subscribe();
        // The sender is in `self`: it is not gone.
        let _first = newest.wait_for(Option::is_some).await;
    }

    fn newest(&self) -> Option<Arc<Inventory>> {
        self.newest.borrow().clone()
    }
}

impl Default for Inventories {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Machine ===

impl Machine {
    async fn look(&self) -> Inventory {
        let Self { host, service_manager, engines, firewall } = self;
        let mut offers = Vec::new();
        for engine in engines.all() {
            match tokio::time::timeout(OFFERS_DEADLINE, engine.offers()).await {
                Ok(Ok(found)) => offers.extend(found),
                Ok(Err(error)) => {
                    tracing::warn!(engine = %engine.kind(), error = %Chain(&error), "list engines")
                }
                Err(_) => {
                    tracing::warn!(engine = %engine.kind(), "listing the engine's versions takes too long")
                }
            }
        }
        let (privilege, service_manager) = (host.system().privilege(), *service_manager);
        let filtering = firewall.status().filtering.clone();
        let known = Known { privilege, service_manager, engines: offers, filtering };
        match tokio::task::spawn_blocking(move || take_inventory(&Roots::default(), known)).await {
            Ok(inventory) => inventory,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

// === impl Node ===

impl Below for Node {
    fn ready(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.inventories.first())
    }

    fn hello(&self) -> BoxFuture<'_, Hello> {
        Box::pin(async {
            self.inventories.first().await;
            let inventory = self.inventories.newest();
            let inventory =
                inventory.as_deref().expect("the first one is there, and none is taken away").clone();
            let accepted = self.terms.accepted().await.unwrap_or_default();
            let mut unfinished = self.commands.unfinished();
            unfinished.truncate(MAX_UNFINISHED);
            Hello {
                versions: VERSIONS,
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                boot_id: self.boot_id.clone(),
                instance_id: self.instance,
                inventory,
                assignment_generation: self.assignments.newest().generation,
                coordinator_generation: accepted.coordinator_generation,
                unfinished,
                node_time: self.clock.now(),
            }
        })
    }

    fn report(&self) -> NodeReport {
        let members = self.members.report().members.clone();
        NodeReport {
            members,
            assignment_generation: self.assignments.newest().generation,
            node_time: self.clock.now(),
        }
    }

    fn news(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.members.news())
    }

    fn sample(&self) -> Option<Box<Sample>> {
        self.samples.take()
    }

    fn assign(&self, assignment: Box<Assignment>) -> BoxFuture<'_, Result<(), assignment::Error>> {
        Box::pin(async move { self.assignments.accept(*assignment).await.map(|_| ()) })
    }

    fn order(&self, order: Order) -> BoxFuture<'_, ()> {
        Box::pin(self.commands.give(order))
    }

    fn answer(&self, question: Question) -> BoxFuture<'_, Result<question::Answer, Failure>> {
        Box::pin(async move { self.engines.answer(question.cluster_id, &question.about).await })
    }

    fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn opened(&self, welcome: &Welcome) {
        self.samples.set_interval(welcome.metrics_interval);
    }
}

// === impl Samples ===

impl Samples {
    pub fn new() -> Self {
        Self { newest: Arc::default(), interval: watch::Sender::new(SAMPLE_INTERVAL) }
    }

    fn take(&self) -> Option<Box<Sample>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set_interval(&self, interval: Duration) {
        self.interval.send_if_modified(|known| std::mem::replace(known, interval) != interval);
    }

    /// Measures until it is stopped. A disk that hangs holds up the samples and nothing else.
    pub async fn run(self, clock: Clock, stop: CancellationToken) {
        let mut collector = Collector::new(Roots::default());
        let mut interval = self.interval.subscribe();
        loop {
            let moment = Moment::now(&clock);
            let collecting = tokio::task::spawn_blocking(move || {
                let sample = collector.collect(moment);
                (collector, sample)
            });
            // A measurement that hangs must not hold up the end of the agent.
            let collected = tokio::select! {
                () = stop.cancelled() => return,
                collected = collecting => collected,
            };
            collector = match collected {
                Ok((collector, sample)) => {
                    *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(sample));
                    collector
                }
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            let pause = *interval.borrow_and_update();
            // All arms are cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                Ok(()) = interval.changed() => {}
            }
        }
    }
}

impl Default for Samples {
    fn default() -> Self {
        Self::new()
    }
}
