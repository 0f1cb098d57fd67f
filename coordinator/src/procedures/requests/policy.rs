//! What may happen to a cluster by itself: changes of its record alone, so that no operation is needed, and none in its way.

use holdfast_common::error::{Classify as _, Failure};
use holdfast_common::name::ClusterName;
use holdfast_common::report::Severity;

use super::{Asker, Desk, Prepare, Prepared, reference};
use crate::cluster::{Cluster, OnReplicaLoss, Pause};
use crate::event::NewEvent;
use crate::operation::StepLabel;

/// What is to be changed; none: as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub max_lag_on_failover: Option<u64>,
    pub on_replica_loss: Option<OnReplicaLoss>,
}

/// No failover is to begin by itself.
#[derive(Debug, Clone)]
pub struct PauseCluster {
    pub cluster: ClusterName,
    /// One line, or nothing.
    pub reason: String,
}

/// Failovers may begin by themselves again.
#[derive(Debug, Clone)]
pub struct ResumeCluster {
    pub cluster: ClusterName,
}

impl Prepare for PauseCluster {
    async fn prepare(&self, desk: &Desk, _: &Asker) -> Result<Prepared, Failure> {
        let cluster = desk.cluster(&self.cluster).await?.value;
        let before = cluster.paused.map(|pause| format!("paused already, {pause}; this takes its place"));
        let title = format!("Keep failovers of {} from beginning by themselves", self.cluster);
        let goes_on = "a failover that has begun goes on, and a person's `cluster failover` and `cluster promote` still work";
        Ok(recorded("pause_cluster", title, before.into_iter().chain([goes_on.to_owned()])))
    }
}

impl Prepare for ResumeCluster {
    async fn prepare(&self, desk: &Desk, _: &Asker) -> Result<Prepared, Failure> {
        let cluster = desk.cluster(&self.cluster).await?.value;
        let title = format!("Let failovers of {} begin by themselves again", self.cluster);
        let before = match cluster.paused {
            Some(pause) => format!("paused {pause}"),
            None => "it is not paused".to_owned(),
        };
        Ok(recorded("resume_cluster", title, [before]))
    }
}

/// A plan of a change of the record alone.
fn recorded(name: &str, title: String, notes: impl IntoIterator<Item = String>) -> Prepared {
    let at_once = "recorded at once: nothing is done on the nodes".to_owned();
    Prepared {
        preconditions: Vec::new(),
        steps: vec![StepLabel::new(name, title)],
        notes: notes.into_iter().chain([at_once]).collect(),
        submit: None,
    }
}

impl Desk {
    /// Keeps failovers from beginning by themselves.
    ///
    /// # Errors
    /// `CLUSTER_NOT_FOUND`; those of the store.
    pub async fn pause(&self, request: PauseCluster, by: String) -> Result<Cluster, Failure> {
        let PauseCluster { cluster, reason } = request;
        let since = self.means.clock.now();
        let pause = Pause { by: by.clone(), reason, since };
        let message = format!("no failover begins by itself: paused {pause}");
        let change = |cluster| Cluster { paused: Some(pause.clone()), ..cluster };
        self.change(&cluster, by, "CLUSTER_PAUSED", message, change).await
    }

    /// Allows them again.
    ///
    /// # Errors
    /// As [`Desk::pause`].
    pub async fn resume(&self, request: ResumeCluster, by: String) -> Result<Cluster, Failure> {
        let message = "failovers may begin by themselves again".to_owned();
        let change = |cluster| Cluster { paused: None, ..cluster };
        self.change(&request.cluster, by, "CLUSTER_RESUMED", message, change).await
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
