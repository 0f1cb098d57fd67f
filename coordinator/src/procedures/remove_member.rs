//! Removes a replica and its data.
//!
//! It leaves the synchronous set first (recorded, then relaxed by the primary), then its data go, then its record. There is no
//! way back once its removal has begun; before, cancelling leaves the cluster as it was but for the set, which the next
//! strengthening restores.

use std::time::Duration;

use holdfast_common::id::NodeId;
use holdfast_common::name::NodeName;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::add_member::member;
use super::create::tell;
use super::quorum;
use super::steps::{self, Absent};
use super::{ClusterRef, Means};
use crate::cluster::Cluster;
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoveMember {
    pub cluster: ClusterRef,
    pub node: NodeId,
    pub node_name: NodeName,
    pub absent: Absent,
    pub step: Step,
}

/// The step that runs next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Relax,
    Destroy,
    Forget,
    /// The way back.
    Strengthen,
}

impl RemoveMember {
    /// From the beginning.
    pub fn new(cluster: &Cluster, node: NodeId, node_name: NodeName, absent: Absent) -> Self {
        let cluster = ClusterRef { id: cluster.id, name: cluster.name.clone() };
        Self { cluster, node, node_name, absent, step: Step::Relax }
    }

    pub(super) fn kind(&self) -> &'static str {
        "remove_member"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match self.step {
            Step::Strengthen => vec![StepLabel::new("strengthen", "Enforce the durability again")],
            Step::Relax | Step::Destroy | Step::Forget => plan(),
        }
    }

    pub(super) fn step(&self) -> String {
        match self.step {
            Step::Relax => "relax",
            Step::Destroy => "destroy",
            Step::Forget => "forget",
            Step::Strengthen => "strengthen",
        }
        .into()
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let records = &ctx.means().records;
        let node = self.node;
        match self.step {
            Step::Relax => {
                quorum::relax(ctx, &self.cluster, node).await?;
                Ok(Next::Step(Self { step: Step::Destroy, ..self }))
            }
            Step::Destroy => {
                let cluster = records.get(&self.cluster).await?;
                if cluster.member(node).is_some() {
                    let cluster = records.update(&self.cluster, |cluster| cluster.with_leaving(node)).await?;
                    steps::destroy(ctx, &cluster, &member(&cluster, node), self.absent).await?;
                }
                Ok(Next::Step(Self { step: Step::Forget, ..self }))
            }
            Step::Forget => {
                let cluster = steps::forget_member(ctx, &self.cluster, node).await?;
                let message = format!("node {} left cluster {}", self.node_name, cluster.name);
                tell(ctx, &cluster, "MEMBER_REMOVED", message).await?;
                Ok(Next::done(json!({ "cluster": self.cluster.name, "node": self.node_name })))
            }
            Step::Strengthen => {
                quorum::strengthen(ctx, &self.cluster).await?;
                Ok(Next::done(json!({ "cluster": self.cluster.name })))
            }
        }
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        match self.step {
            Step::Relax => Some(Self { step: Step::Strengthen, ..self.clone() }),
            Step::Destroy | Step::Forget | Step::Strengthen => None,
        }
    }

    pub(super) fn may_cancel(&self) -> bool {
        self.step == Step::Relax
    }

    pub(super) fn limits(&self) -> Limits {
        match self.step {
            Step::Relax => Limits { attempts: 3, deadline: Duration::from_secs(7 * 60) },
            Step::Destroy | Step::Forget | Step::Strengthen => {
                Limits { attempts: 1_000, deadline: Duration::from_secs(60 * 60) }
            }
        }
    }
}

/// The steps as they stand in a plan.
pub fn plan() -> Vec<StepLabel> {
    vec![
        StepLabel::new("relax", "Take it out of the synchronous set"),
        StepLabel::new("destroy", "Remove its data"),
        StepLabel::new("forget", "Forget the member"),
    ]
}
