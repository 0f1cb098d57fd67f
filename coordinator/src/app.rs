//! Wiring: what the coordinator is made of, started and stopped together.
//!
//! ```text
//! Parts::open ── store, directory, identity, fleet, events, history, metrics ──► App::build ── operations, services, TLS
//!                                                                                   │
//! App::run ── fleet · operations · revocations · history · upkeep · certificate · agents' listener · operators' listener
//! ```

mod certificate;
mod clusters;
mod sockets;

pub use sockets::Sockets;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::clock::Clock;
use holdfast_common::config;
use holdfast_common::error::{Chain, Failure};
use holdfast_common::generation::Generation;
use holdfast_common::id::NodeId;
use holdfast_common::pki::{Authority, AuthorityError, CipherError, Keyring, MasterKey};
use holdfast_common::shutdown::Tasks;
use holdfast_common::tls::{self, Protocols};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use self::certificate::Certificate;
use crate::config::{Config, StateDir};
use crate::directory::{self, Directory};
use crate::event::{self, Audit};
use crate::fleet::{self, liveness};
use crate::history;
use crate::identity::Identity;
use crate::lease::Leases;
use crate::metrics::{self, Metrics};
use crate::operation::{self, Filter, State};
use crate::procedures::Procedures;
use crate::procedures::requests::Desk;
use crate::rpc::{
    self, Anonymous, ConnectionLimits, Gate, Guard, Listener, Operators, Streams, events::Events,
    identity::Identities, lease::Exchange, link::Link, nodes::Nodes, operations::Operations,
};
use crate::store::{self, Shared, sqlite::Sqlite};

/// How long calls and streams have to end when the coordinator stops.
pub const GRACE: Duration = Duration::from_secs(5);
/// After that, for everything else.
const LAST_GRACE: Duration = Duration::from_secs(5);
/// How often gauges are looked at anew, and how often old records are removed.
const LOOK: Duration = Duration::from_secs(15);
const PRUNE: Duration = Duration::from_secs(3600);
/// This coordinator's generation, until one adopts another's fleet.
const COORDINATOR_GENERATION: Generation = Generation::new(1);

/// What everything else is made from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Parts {
    pub config: Arc<Config>,
    pub store: Shared,
    pub directory: Directory,
    pub keyring: Arc<Keyring>,
    pub identity: Identity,
    pub fleet: fleet::Handle,
    pub events: event::Handle,
    pub audit: Audit,
    pub history: history::Handle,
    pub leases: Leases,
    pub metrics: Metrics,
}

/// The services that run, besides the parts that talk to them.
#[derive(Debug)]
struct Services {
    fleet: fleet::Service,
    history: history::Service,
}

/// A coordinator that is ready to run.
#[derive(Debug)]
pub struct App {
    parts: Parts,
    services: Services,
    certificate: Certificate,
    operations: operation::Service<Procedures>,
    desk: Desk,
    others: Routes,
    state: StateDir,
}

/// Why the coordinator does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    File(#[from] config::FileError),
    #[error("load the certificate authority")]
    Authority(#[from] AuthorityError),
    #[error("load the master key")]
    MasterKey(#[from] CipherError),
    #[error("open the store")]
    Store(#[from] store::Error),
    #[error("read the fleet's records")]
    Directory(#[from] directory::Error),
    #[error(transparent)]
    Sockets(#[from] sockets::Error),
    #[error("make the coordinator's own certificate")]
    Certificate(#[from] certificate::Error),
    #[error("set TLS up")]
    Tls(#[from] tls::BuildError),
    #[error(transparent)]
    Routes(#[from] rpc::RoutesError),
}

// === impl Parts ===

impl Parts {
    async fn open(state: &StateDir, config: Config) -> Result<(Self, Services, Authority), Error> {
        let authority = || -> Result<Authority, Error> {
            let certificate = config::read(&state.authority_certificate(), config::Privacy::Public)?;
            let key = config::read(&state.authority_key(), config::Privacy::Private)?;
            Ok(Authority::load(&certificate, &key)?)
        };
        let master = config::read(&state.master_key(), config::Privacy::Private)?;
        let keyring = Arc::new(Keyring::new(MasterKey::from_text(&master)?, Vec::new()));
        let store: Shared = Arc::new(Sqlite::open(state.store())?);
        let directory = Directory::new(Arc::clone(&store));
        let fleet = fleet::Service::new(fleet::Settings {
            coordinator_generation: COORDINATOR_GENERATION,
            heartbeat_interval: liveness::HEARTBEAT_INTERVAL,
            metrics_interval: liveness::METRICS_INTERVAL,
        });
        let history = history::Service::new(history::Config { file: state.history() }, Timestamp::now);
        let parts = Self {
            config: Arc::new(config),
            identity: Identity::new(directory.clone(), authority()?, Arc::clone(&keyring)),
            keyring,
            fleet: fleet.handle(),
            events: event::Handle::open(Arc::clone(&store)).await?,
            audit: Audit::open(Arc::clone(&store)).await?,
            history: history.handle(),
            leases: Leases::new(directory.clone(), Clock::system()),
            metrics: Metrics::new(fleet.handle()),
            store,
            directory,
        };
        parts.load_fleet().await?;
        Ok((parts, Services { fleet, history }, authority()?))
    }

    pub(crate) async fn load_fleet(&self) -> Result<(), Error> {
        let mut facts = BTreeMap::new();
        for record in self.directory.list::<directory::NodeFacts>(directory::NODE_FACTS).await? {
            let id = record
                .key
                .as_str()
                .strip_prefix(directory::NODE_FACTS)
                .and_then(|id| id.parse::<NodeId>().ok());
            if let Some(id) = id {
                facts.insert(id, record.value);
            }
        }
        for record in self.directory.list::<directory::Node>(directory::NODES).await? {
            let facts = facts.remove(&record.value.id);
            self.fleet.admit(record.value, facts);
        }
        Ok(())
    }
}

// === impl App ===

impl App {
    /// Opens the state and puts everything together.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn build(state: StateDir, config: Config) -> Result<Self, Error> {
        let (parts, services, authority) = Parts::open(&state, config).await?;
        let certificate = Certificate::new(authority, &parts.config);
        let (operations, desk) = clusters::operations(&parts);
        let others = clusters::routes(&parts, desk.clone());
        Ok(Self { parts, services, certificate, operations, desk, others, state })
    }

    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Serves on `sockets` until `tasks` are stopped; `ready` is called when connections are accepted.
    ///
    /// # Errors
    /// See [`Error`]: then nothing runs.
    pub async fn run(self, sockets: Sockets, tasks: Tasks, ready: impl FnOnce()) -> Result<(), Error> {
        let Self { parts, services, certificate, operations, desk, others, state } = self;
        let shutdown = tasks.token();
        let streams = Streams::default();
        let sessions = TaskTracker::new();
        let health = HealthReporter::new();
        let (agents_tls, operators_tls) = certificate.listeners(&parts)?;
        let handle = operations.handle();
        let gate = Gate::new(parts.identity.fleet(), parts.directory.clone(), parts.audit.clone());
        let limits = parts.config.limits;
        let guard = || {
            Guard::new(gate.clone(), streams.clone(), parts.metrics.rpcs(), &limits.calls(), shutdown.clone())
        };
        let agents = Listener {
            name: "agents",
            socket: sockets.agents,
            tls: Arc::clone(&agents_tls),
            protocols: Protocols::H2,
            limits: ConnectionLimits {
                connections: limits.agent_connections,
                connections_per_address: limits.agent_connections_per_address,
                streams: 16,
                anonymous: Anonymous::MustHurry,
            },
        };
        let operators = Listener {
            name: "operators",
            socket: sockets.operators,
            tls: Arc::clone(&operators_tls),
            protocols: Protocols::H2AndHttp1,
            limits: ConnectionLimits {
                connections: limits.operator_connections,
                connections_per_address: limits.operator_connections_per_address,
                streams: 128,
                anonymous: Anonymous::MayStay,
            },
        };
        let schedules = desk.clone();
        let routes = served(&parts, handle.clone(), desk).routes(health.clone(), others)?;
        let link = Link {
            identity: parts.identity.clone(),
            fleet: parts.fleet.clone(),
            events: parts.events.clone(),
            history: parts.history.clone(),
            tasks: sessions.clone(),
        };
        let exchange = Exchange { leases: parts.leases.clone(), tasks: sessions.clone() };
        tasks.spawn("fleet", services.fleet.run(parts.events.clone(), shutdown.clone()));
        tasks.spawn("history", services.history.run(shutdown.clone()));
        tasks.spawn("operations", operations.run(shutdown.clone()));
        clusters::reconcile(&parts, schedules, &tasks);
        tasks.spawn(
            "revocations",
            streams.clone().follow(parts.directory.clone(), parts.fleet.clone(), shutdown.clone()),
        );
        tasks.spawn("upkeep", upkeep(parts.clone(), handle, state, shutdown.clone()));
        tasks.spawn("certificate", certificate.renew(agents_tls, operators_tls, shutdown.clone()));
        tasks.spawn("agents", agents.serve(guard(), rpc::agents(link, exchange), shutdown.clone(), GRACE));
        tasks.spawn("operators", operators.serve(guard(), routes, shutdown.clone(), GRACE));
        health.set_service_status("", ServingStatus::Serving).await;
        tracing::info!(fleet = %parts.identity.fleet(), "coordinator is ready");
        ready();
        shutdown.cancelled().await;
        health.set_service_status("", ServingStatus::NotServing).await;
        let drained = tasks.drain(GRACE + LAST_GRACE).await;
        sessions.close();
        if !drained.unfinished.is_empty() || !drained.panicked.is_empty() {
            tracing::warn!(?drained, "not everything ended in time");
        }
        Ok(())
    }
}

fn served(parts: &Parts, handle: operation::Handle<Procedures>, desk: Desk) -> Operators<Procedures> {
    Operators {
        nodes: Nodes {
            directory: parts.directory.clone(),
            identity: parts.identity.clone(),
            fleet: parts.fleet.clone(),
            history: parts.history.clone(),
            events: parts.events.clone(),
            desk,
        },
        identities: Identities {
            identity: parts.identity.clone(),
            agent_endpoints: parts.config.agent_endpoints(),
        },
        events: Events { events: parts.events.clone(), directory: parts.directory.clone() },
        operations: Operations { handle, directory: parts.directory.clone() },
        metrics: parts.metrics.clone(),
    }
}

/// Gauges that take a look at the store, and old records.
async fn upkeep(
    parts: Parts,
    operations: operation::Handle<Procedures>,
    state: StateDir,
    shutdown: CancellationToken,
) {
    let mut pruned = tokio::time::Instant::now();
    loop {
        // Both arms are cancel-safe.
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        if let Err(failure) = look(&parts, &operations, &state).await {
            tracing::warn!(error = %failure.message, "the store's gauges are out of date");
        }
        if pruned.elapsed() >= PRUNE {
            pruned = tokio::time::Instant::now();
            match parts.directory.prune(Timestamp::now()).await {
                Ok(0) => {}
                Ok(removed) => {
                    tracing::debug!(removed, "records that nobody may ask for any more were removed")
                }
                Err(error) => tracing::warn!(error = %Chain(&error), "old records stay"),
            }
        }
    }
}

async fn look(
    parts: &Parts,
    operations: &operation::Handle<Procedures>,
    state: &StateDir,
) -> Result<(), Failure> {
    use holdfast_common::error::Classify as _;
    let status = parts.store.status().await?;
    let file = state.store();
    let bytes = tokio::task::spawn_blocking(move || {
        let wal = file.with_extension("db-wal");
        [file, wal]
            .iter()
            .filter_map(|path| std::fs::metadata(path).ok())
            .map(|metadata| metadata.len())
            .sum()
    });
    parts.metrics.set_store(status, bytes.await.unwrap_or(0));
    let unfinished = State::HOLDING;
    let mut counts: BTreeMap<&'static str, i64> =
        unfinished.iter().map(|state| (metrics::state_label(*state), 0)).collect();
    let filter = Filter { states: unfinished.to_vec(), ..Filter::default() };
    let page = operations.list(&filter, None, 1000).await.map_err(|error| error.to_failure())?;
    for operation in page.operations {
        *counts.entry(metrics::state_label(operation.state)).or_default() += 1;
    }
    parts.metrics.set_operations(&counts);
    let clusters = crate::procedures::Records::new(parts.directory.clone()).all().await;
    parts.metrics.set_clusters(clusters.map_err(|error| error.to_failure())?);
    Ok(())
}
