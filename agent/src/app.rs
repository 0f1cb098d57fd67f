//! Wiring: which parts there are, and who is handed what. No decisions.
//!
//! ```text
//!  link ──► assignments ─┬─► converge ──► engines ──► host
//!    │ │                  ├─► firewall ─────▲
//!    │ │   link/lease ──► lease (a thread) ─▲
//!    │ └──► dispatch ─────────────────────▲    health ◄── assignments, converge, lease
//!    └──◄── outbox, newest report, newest sample
//! ```

mod boot;
mod leases;
mod surroundings;

pub use boot::load_firewall;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::assignment::Assignment;
use holdfast_common::clock::Clock;
use holdfast_common::id::InstanceId;
use holdfast_common::report::Severity;
use holdfast_common::shutdown::{Drained, Tasks};
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::leases::Leases;
use crate::assignment::Assignments;
use crate::config::Config;
use crate::converge;
use crate::dispatch;
use crate::engine::postgresql::{
    Credentials, DEBIAN_PROGRAMS, ENGINE_USER, Postgresql, SYSTEM_FOLDERS, Settings,
};
use crate::engine::room;
use crate::engine::{self, Engines};
use crate::firewall::{self, Firewall};
use crate::health;
use crate::host::files::{Disk, Files};
use crate::host::system::Privilege;
use crate::host::units::Supervisor;
use crate::host::{self, Host, Limits};
use crate::identity::{self, Certificates, Identity, Renewal};
use crate::lease;
use crate::link::addresses::Addresses;
use crate::link::{self, Coordinators, Link, Patience, Status};
use crate::outbox::{Outbox, Tell, node_event};
use crate::reboot::Deeds;
use crate::report::{Inventories, Machine, Node, Samples};
use crate::statefile;
use crate::terms::{Finding, Terms};

/// How long the parts may take to end.
pub const GRACE: Duration = Duration::from_secs(10);

/// The agent, put together and not running yet.
#[derive(Debug)]
pub struct App {
    link: Link<Node>,
    assignments: Arc<Assignments>,
    commands: dispatch::Service,
    converge: converge::Service,
    firewall: firewall::Service,
    leases: Leases,
    health: health::Service,
    addresses: Addresses,
    renewal: Renewal,
    samples: Samples,
    inventories: Inventories,
    machine: Machine,
    certificates: watch::Receiver<Arc<Certificates>>,
    credentials: watch::Sender<Arc<Credentials>>,
    room: room::Service,
    clock: Clock,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error("use the coordinators' addresses")]
    Coordinators(#[from] link::client::AddressError),
    #[error("open the machine")]
    Host(#[from] host::units::Error),
    #[error("read the machine's boot id")]
    BootId(#[from] host::system::Error),
    #[error("read the agent's state")]
    State(#[from] statefile::Error),
    #[error("put back what an installation has left")]
    Engine(#[from] engine::Error),
    #[error("load the firewall: {0}")]
    Firewall(String),
    #[error("listen for signals")]
    Signals(#[source] std::io::Error),
}

impl Config {
    /// Opens everything that the agent needs. Changes nothing but damaged files, which are set aside.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn build(self, state: &Path) -> Result<App, Error> {
        let (clock, files) = (Clock::system(), state_files(state));
        let identity = Arc::new(Identity::open(files.clone(), state).await?);
        let record = identity.record();
        let coordinators = self.coordinators(&record)?;
        let host = open_host(state, &record, self.supervisor).await?;
        let certificates = identity.certificates();
        let credentials = watch::Sender::new(credentials(&certificates.borrow()));
        let outbox = Outbox::default();
        let means = (&host, telling(&outbox), &clock);
        let (engines, room) = open_engines(&record, self.memory_bytes, &credentials, means).await?;
        let (terms, assigned, commands, orders) = accepted(state, (&engines, &host), &outbox, &clock).await?;
        let (addresses, coordinator_addresses) = Addresses::new(coordinators.all().to_vec());
        let table = Firewall::new(host.clone());
        let kernel = table.kernel().clone();
        let known = (assigned.subscribe(), coordinator_addresses);
        let means = guarding(known, &engines, &host, &clock, telling(&outbox));
        let (firewall, filtering) = firewall::Service::open(table, state_files(state), state, means).await?;
        let (leases, held, found) = lease::Service::open(&state_files(state), state).await?;
        tell(found, &outbox, &clock);
        let (converge, members) = converge::Service::new(converge::Means {
            engines: engines.clone(),
            assignment: assigned.subscribe(),
            firewall: filtering.subscribe(),
            leases: held.subscribe(),
            clock: clock.clone(),
            tell: telling(&outbox),
        });
        let (samples, inventories) = (Samples::new(), Inventories::new());
        let machine =
            Machine { host, service_manager: self.supervisor.manager(), engines, firewall: filtering };
        let node = Node {
            instance: InstanceId::generate(),
            boot_id: machine.host.system().boot_id()?,
            inventories: inventories.clone(),
            terms,
            assignments: Arc::clone(&assigned),
            commands: orders,
            engines: machine.engines.clone(),
            members,
            samples: samples.clone(),
            outbox: outbox.clone(),
            clock: clock.clone(),
        };
        let health = answering(self.health, &identity.record(), &node, &held);
        let node = Arc::new(node);
        let link = Link::new(Arc::clone(&node), identity.tls(), coordinators.clone(), Patience::default());
        let parts = leases::Parts {
            held: &held,
            state,
            identity: &identity,
            coordinators: &coordinators,
            node: &node,
            machine: &machine,
            kernel,
            session: link.status(),
        };
        let leases = Leases::new(leases, parts);
        Ok(App {
            link,
            assignments: assigned,
            commands,
            converge,
            firewall,
            leases,
            health,
            addresses,
            renewal: Renewal { identity, coordinators, clock: clock.clone(), outbox },
            samples,
            inventories,
            machine,
            certificates,
            credentials,
            room,
            clock,
        })
    }
}

impl Config {
    /// Those of the configuration, else those that the node joined with.
    fn coordinators(&self, record: &identity::Record) -> Result<Coordinators, link::client::AddressError> {
        if self.coordinators.is_empty() {
            record.coordinators()
        } else {
            Coordinators::new(self.coordinators.clone())
        }
    }
}

// === impl App ===

impl App {
    /// Runs until a signal, or until a part is lost. Databases go on running.
    ///
    /// # Errors
    /// If the process cannot listen for signals.
    pub async fn run(self) -> Result<Drained, Error> {
        let Self {
            link,
            assignments,
            commands,
            converge,
            mut firewall,
            leases,
            health,
            addresses,
            renewal,
            samples,
            inventories,
            machine,
            certificates,
            credentials,
            room,
            clock,
        } = self;
        let tasks = Tasks::new();
        tasks.stop_on_signals().map_err(Error::Signals)?;
        let stop = tasks.token();
        // Before any engine is started.
        firewall.prepare().await;
        tasks.spawn("firewall", firewall.run(stop.clone()));
        tasks.spawn("leases", leases.run(stop.clone()));
        tasks.spawn("health", health.run(stop.clone()));
        tasks.spawn("addresses", addresses.run(stop.clone()));
        tasks.spawn("notify", notify(link.status(), stop.clone()));
        tasks.spawn("assignments", assignments.run(stop.clone()));
        tasks.spawn("commands", commands.run(stop.clone()));
        tasks.spawn("converge", converge.run(stop.clone()));
        tasks.spawn("inventory", inventories.run(machine, stop.clone()));
        tasks.spawn("renewal", renewal.run(stop.clone()));
        tasks.spawn("credentials", hand_on(certificates, credentials, stop.clone()));
        tasks.spawn("room", room.run(stop.clone()));
        tasks.spawn("telemetry", samples.run(clock, stop.clone()));
        tasks.spawn("link", link.run(stop.clone()));
        stop.cancelled().await;
        // Best effort: without systemd nobody listens.
        let _unheard = sd_notify::notify(&[NotifyState::Stopping]);
        Ok(tasks.drain(GRACE).await)
    }
}

/// The machine, with the folders that the agent may change.
async fn open_host(
    state: &Path,
    record: &identity::Record,
    supervisor: Supervisor,
) -> Result<Host, host::units::Error> {
    let mut roots = vec![state.to_owned(), record.data_dir.clone()];
    roots.extend(SYSTEM_FOLDERS.iter().map(PathBuf::from));
    Host::open(Limits { roots, unit_records: state.join("units"), supervisor }).await
}

/// What the node has accepted, its assignment, and its commands; what was found damaged is told.
async fn accepted(
    state: &Path,
    (engines, host): (&Engines, &Host),
    outbox: &Outbox,
    clock: &Clock,
) -> Result<(Arc<Terms>, Arc<Assignments>, dispatch::Service, dispatch::Handle), Error> {
    let files = state_files(state);
    let (terms, mut findings) = Terms::open(files.clone(), state).await?;
    let terms = Arc::new(terms);
    let (assignments, found) = Assignments::open(files.clone(), state, Arc::clone(&terms)).await?;
    findings.extend(found);
    let means = dispatch::Means {
        execute: Arc::new(Deeds {
            engines: engines.clone(),
            host: host.clone(),
            assignment: assignments.subscribe(),
        }),
        terms: Arc::clone(&terms),
        outbox: outbox.clone(),
        clock: clock.clone(),
    };
    let (commands, orders, found) = dispatch::Service::open(files, state, means).await?;
    findings.extend(found);
    tell(findings, outbox, clock);
    Ok((terms, Arc::new(assignments), commands, orders))
}

/// The drivers, with what an earlier agent has left half done put back, and who tells them of their disk.
async fn open_engines(
    record: &identity::Record,
    memory_bytes: Option<u64>,
    credentials: &watch::Sender<Arc<Credentials>>,
    (host, tell, clock): (&Host, Tell, &Clock),
) -> Result<(Engines, room::Service), engine::Error> {
    let settings = Settings {
        node_id: record.node_id,
        address: record.address,
        data_dir: record.data_dir.clone(),
        programs: PathBuf::from(DEBIAN_PROGRAMS),
        memory_bytes,
    };
    let room = room::Service::new(host.files(), &record.data_dir, clock, tell);
    let postgresql = Postgresql::new(settings, host.clone(), credentials.subscribe(), room.subscribe());
    postgresql.recover().await?;
    Ok((Engines::new(vec![Arc::new(postgresql)]), room))
}

/// What the firewall goes by.
fn guarding(
    (assignment, coordinators): (watch::Receiver<Arc<Assignment>>, watch::Receiver<Vec<IpAddr>>),
    engines: &Engines,
    host: &Host,
    clock: &Clock,
    tell: Tell,
) -> firewall::service::Means {
    let (has_data, users) = (having_data(engines), replicating(host));
    firewall::service::Means { assignment, coordinators, has_data, users, clock: clock.clone(), tell }
}

/// Whether a cluster's data are on this node; what cannot be listed may be.
fn having_data(engines: &Engines) -> firewall::service::HasData {
    let engines = engines.clone();
    Arc::new(move |cluster| {
        let engines = engines.clone();
        Box::pin(async move {
            let found = engines.members().await;
            found.map_or(true, |found| found.iter().any(|(_, member)| member.cluster_id == cluster))
        })
    })
}

/// As whom engines and this agent run.
fn replicating(host: &Host) -> firewall::service::Users {
    let host = host.clone();
    Arc::new(move || {
        let mut users = vec![nix::unistd::geteuid().as_raw()];
        if host.system().privilege() == Privilege::Root {
            users.extend(host.system().user(ENGINE_USER).ok()?.map(|engine| engine.uid));
        }
        Some(users)
    })
}

/// Who answers load balancers.
fn answering(
    settings: health::Settings,
    record: &identity::Record,
    node: &Node,
    leases: &lease::Handle,
) -> health::Service {
    let means = health::Means {
        assignment: node.assignments.subscribe(),
        report: node.members.subscribe(),
        leases: leases.subscribe(),
        clock: node.clock.clone(),
        tell: telling(&node.outbox),
    };
    health::Service::new(settings, record.address, means)
}

/// Events go to the coordinator.
fn telling(outbox: &Outbox) -> Tell {
    let outbox = outbox.clone();
    Arc::new(move |event| outbox.event(event))
}

/// The engines serve with the node's own certificate: each renewal is handed on to them.
async fn hand_on(
    mut certificates: watch::Receiver<Arc<Certificates>>,
    engines: watch::Sender<Arc<Credentials>>,
    stop: CancellationToken,
) {
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => return,
            changed = certificates.changed() => if changed.is_err() { return },
        }
        engines.send_replace(credentials(&certificates.borrow_and_update()));
    }
}

fn credentials(certificates: &Certificates) -> Arc<Credentials> {
    let Certificates { chain, key, trust, not_after: _ } = certificates;
    Arc::new(Credentials { chain: chain.clone(), key: key.clone(), fleet: trust.clone() })
}

/// The files of the state folder.
pub fn state_files(state: &Path) -> Files {
    Files::new(Arc::new(Disk::new(vec![state.to_owned()])))
}

/// Tells systemd that the agent is ready, how it stands with the coordinator, and that it is alive.
async fn notify(mut status: watch::Receiver<Status>, stop: CancellationToken) {
    // All of it is best effort: without systemd nobody listens.
    let _unheard = sd_notify::notify(&[NotifyState::Ready]);
    // Half of the time that systemd allows, or, without a watchdog, seldom.
    let alive = sd_notify::watchdog_enabled().map_or(Duration::from_secs(3600), |limit| limit / 2);
    let mut watchdog = tokio::time::interval(alive);
    loop {
        // All arms are cancel-safe.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = watchdog.tick() => {
                let _unheard = sd_notify::notify(&[NotifyState::Watchdog]);
            }
            Ok(()) = status.changed() => {
                let text = match &*status.borrow_and_update() {
                    Status::Open { coordinator, .. } => format!("in session with {coordinator}"),
                    Status::Connecting { problem: None, .. } => "connecting".to_owned(),
                    Status::Connecting { problem: Some(problem), .. } => format!("no session: {problem}"),
                };
                let _unheard = sd_notify::notify(&[NotifyState::Status(&text)]);
            }
        }
    }
}

/// Damage that was found is logged, and told to the coordinator.
fn tell(findings: impl IntoIterator<Item = Finding>, outbox: &Outbox, clock: &Clock) {
    for Finding(finding) in findings {
        tracing::error!(%finding, "the agent's state is damaged");
        outbox.event(node_event(clock, Severity::Error, "STATE_DAMAGED", finding));
    }
}
