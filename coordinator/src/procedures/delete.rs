//! Deletes a cluster: stops it and removes its data on every node, replicas first, then the record.
//!
//! Before: the record is in phase `Deleting`, stored in the transaction that stored the operation, so that nothing starts its
//! members again. There is no way back.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::create::tell;
use super::steps::{self, Absent};
use super::{ClusterRef, Means};
use crate::cluster::{Cluster, Member};
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delete {
    pub cluster: ClusterRef,
    pub absent: Absent,
    pub step: Step,
}

/// The step that runs next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    DestroyReplicas,
    DestroyPrimary,
    Forget,
}

impl Delete {
    /// From the beginning.
    pub fn new(cluster: &Cluster, absent: Absent) -> Self {
        let cluster = ClusterRef { id: cluster.id, name: cluster.name.clone() };
        Self { cluster, absent, step: Step::DestroyReplicas }
    }

    pub(super) fn kind(&self) -> &'static str {
        "delete_cluster"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        plan()
    }

    pub(super) fn step(&self) -> String {
        match self.step {
            Step::DestroyReplicas => "destroy_replicas",
            Step::DestroyPrimary => "destroy_primary",
            Step::Forget => "forget",
        }
        .into()
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let records = &ctx.means().records;
        let Some(cluster) = records
            .find(&self.cluster.name)
            .await?
            .map(|found| found.value)
            .filter(|found| found.id == self.cluster.id)
        else {
            return Ok(Next::done(json!({ "cluster": self.cluster.name })));
        };
        match self.step {
            Step::DestroyReplicas => {
                let replicas: Vec<&Member> = cluster.replicas().collect();
                steps::destroy(ctx, &cluster, &replicas, self.absent).await?;
                Ok(Next::Step(Self { step: Step::DestroyPrimary, ..self }))
            }
            Step::DestroyPrimary => {
                let primary: Vec<&Member> = cluster.primary_member().into_iter().collect();
                steps::destroy(ctx, &cluster, &primary, self.absent).await?;
                Ok(Next::Step(Self { step: Step::Forget, ..self }))
            }
            Step::Forget => {
                records.remove(&self.cluster).await?;
                let message = format!("cluster {} and its data were removed", cluster.name);
                tell(ctx, &cluster, "CLUSTER_DELETED", message).await?;
                Ok(Next::done(json!({ "cluster": self.cluster.name })))
            }
        }
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        None
    }

    pub(super) fn may_cancel(&self) -> bool {
        false
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { attempts: 1_000, deadline: Duration::from_secs(60 * 60) }
    }
}

/// The steps as they stand in a plan.
pub fn plan() -> Vec<StepLabel> {
    vec![
        StepLabel::new("destroy_replicas", "Remove the replicas and their data"),
        StepLabel::new("destroy_primary", "Remove the primary and its data"),
        StepLabel::new("forget", "Forget the cluster"),
    ]
}
