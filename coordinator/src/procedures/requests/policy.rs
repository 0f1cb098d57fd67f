//! What may happen to a cluster by itself: changes of its record alone, so that no operation is needed, and none in its way.

use holdfast_common::error::{Classify as _, Failure};
use holdfast_common::name::ClusterName;
use holdfast_common::report::Severity;

use super::{Desk, reference};
use crate::cluster::{Cluster, OnReplicaLoss, Pause};
use crate::event::NewEvent;

/// What is to be changed; none: as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub max_lag_on_failover: Option<u64>,
    pub on_replica_loss: Option<OnReplicaLoss>,
}

impl Desk {
    /// Keeps failovers from beginning by themselves.
    ///
    /// # Errors
    /// `CLUSTER_NOT_FOUND`; those of the store.
    pub async fn pause(&self, name: &ClusterName, by: String, reason: String) -> Result<Cluster, Failure> {
        let since = self.means.clock.now();
        let pause = Pause { by: by.clone(), reason, since };
        let message = format!("no failover begins by itself: paused {pause}");
        let change = |cluster| Cluster { paused: Some(pause.clone()), ..cluster };
        self.change(name, by, "CLUSTER_PAUSED", message, change).await
    }

    /// Allows them again.
    ///
    /// # Errors
    /// As [`Desk::pause`].
    pub async fn resume(&self, name: &ClusterName, by: String) -> Result<Cluster, Failure> {
        let message = "failovers may begin by themselves again".to_owned();
        let change = |cluster| Cluster { paused: None, ..cluster };
        self.change(name, by, "CLUSTER_RESUMED", message, change).await
    }

    /// Changes the settings.
    ///
    /// # Errors
    /// As [`Desk::pause`].
    pub async fn set(&self, name: &ClusterName, by: String, settings: Settings) -> Result<Cluster, Failure> {
        let Settings { max_lag_on_failover, on_replica_loss } = settings;
        let lag = max_lag_on_failover.map(|bytes| format!("a failover may lose {bytes} bytes of log"));
        let loss = on_replica_loss.map(|on_loss| format!("a quorum that lost a replica is to {on_loss}"));
        let message = lag.into_iter().chain(loss).collect::<Vec<_>>().join("; ");
        let change = |cluster: Cluster| Cluster {
            max_lag_on_failover: max_lag_on_failover.unwrap_or(cluster.max_lag_on_failover),
            on_replica_loss: on_replica_loss.unwrap_or(cluster.on_replica_loss),
            ..cluster
        };
        self.change(name, by, "CLUSTER_CHANGED", message, change).await
    }

    async fn change(
        &self,
        name: &ClusterName,
        by: String,
        reason: &str,
        message: String,
        change: impl Fn(Cluster) -> Cluster,
    ) -> Result<Cluster, Failure> {
        let cluster = reference(&self.cluster(name).await?.value);
        let changed = self.means.records.update(&cluster, |cluster| Ok(change(cluster))).await;
        let changed = changed.map_err(|error| error.to_failure())?;
        let event = NewEvent::new(Severity::Info, reason, message).by(by).on_cluster(name.as_str());
        self.means.events.record(event).await.map_err(|error| error.to_failure())?;
        Ok(changed)
    }
}
