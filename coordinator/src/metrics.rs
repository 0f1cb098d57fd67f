//! What Prometheus sees, in OpenMetrics text: the coordinator itself, its calls, every node's newest sample, every cluster.
//!
//! Nodes' series are made at each scrape from what the fleet knows then: those of a removed node are gone with it, and there
//! are no more than a node may report. Names and units are Prometheus's: base units in the name, shares as `_ratio`.
//!
//! Not here: history (Prometheus keeps its own; [`crate::history`] keeps ours).

mod clusters;
mod nodes;

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tonic::Code;

use crate::cluster::Cluster;
use crate::fleet;
use crate::operation::State;
use crate::store::Status;

/// The kind of text that [`Metrics::render`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that a scrape shows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    rpcs: Rpcs,
    operations: Family<StateLabel, Gauge>,
    store: StoreGauges,
    clusters: clusters::Known,
}

/// Counts calls. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Rpcs {
    ended: Family<RpcLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    /// Of the table of rules, or `unknown`: so there are no more than that.
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, Default)]
struct StoreGauges {
    records: Gauge,
    revision: Gauge,
    bytes: Gauge,
}

// === impl Metrics ===

impl Metrics {
    pub fn new(fleet: fleet::Handle) -> Self {
        let mut registry = Registry::with_prefix("holdfast");
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What this coordinator is", build);
        let rpcs = Rpcs::default();
        registry.register("rpcs", "Calls that have ended", rpcs.ended.clone());
        let operations = Family::<StateLabel, Gauge>::default();
        registry.register("operations", "Operations that have not ended, by state", operations.clone());
        let store = StoreGauges::default();
        registry.register("store_records", "Records in the store", store.records.clone());
        registry.register("store_revision", "Newest revision of the store", store.revision.clone());
        registry.register("store_size_bytes", "Size of the store's files", store.bytes.clone());
        registry.register_collector(Box::new(nodes::Nodes::new(fleet.clone())));
        let clusters = clusters::Known::default();
        registry.register_collector(Box::new(clusters::Clusters { fleet, known: clusters.clone() }));
        Self { registry: Arc::new(registry), rpcs, operations, store, clusters }
    }

    pub fn rpcs(&self) -> Rpcs {
        self.rpcs.clone()
    }

    /// Operations that have not ended, counted.
    pub fn set_operations(&self, counts: &BTreeMap<&'static str, i64>) {
        self.operations.clear();
        for (state, count) in counts {
            self.operations.get_or_create(&StateLabel { state }).set(*count);
        }
    }

    /// The clusters' records.
    pub fn set_clusters(&self, clusters: Vec<Cluster>) {
        self.clusters.set(clusters);
    }

    pub fn set_store(&self, status: Status, bytes: u64) {
        self.store.records.set(i64::try_from(status.records).unwrap_or(i64::MAX));
        self.store.revision.set(i64::try_from(status.revision.0).unwrap_or(i64::MAX));
        self.store.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The text of a scrape.
    ///
    /// # Errors
    /// None but those of formatting, which do not happen with a string.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The word for a state.
pub fn state_label(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Running => "running",
        State::RollingBack => "rolling_back",
        State::Blocked => "blocked",
        State::Succeeded => "succeeded",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
    }
}

// === impl Rpcs ===

impl Rpcs {
    pub fn count(&self, method: &'static str, code: Code) {
        self.ended.get_or_create(&RpcLabels { method, code: code_label(code) }).inc();
    }
}

fn code_label(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
