//! Has a quorum count on other replicas: without one that is lost, or with those that are back.

use std::time::Duration;

use holdfast_common::assignment::Synchronous;
use holdfast_common::id::NodeId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::create::tell;
use super::{ClusterRef, Means, quorum};
use crate::cluster::Cluster;
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Regroup {
    pub cluster: ClusterRef,
    pub step: Step,
}

/// The step that runs next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Without this replica.
    Shrink(NodeId),
    /// With exactly these.
    Grow(Synchronous),
    /// The way back from growing.
    Stay,
}

impl Regroup {
    pub fn new(cluster: &Cluster, step: Step) -> Self {
        Self { cluster: ClusterRef { id: cluster.id, name: cluster.name.clone() }, step }
    }

    pub(super) fn kind(&self) -> &'static str {
        "regroup"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        let title = match self.step {
            Step::Shrink(_) => "Count on the replica no more",
            Step::Grow(_) => "Count on the replicas that are back",
            Step::Stay => "Count on those as before",
        };
        vec![StepLabel::new(self.step(), title)]
    }

    pub(super) fn step(&self) -> String {
        match self.step {
            Step::Shrink(_) => "shrink",
            Step::Grow(_) => "grow",
            Step::Stay => "stay",
        }
        .into()
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let (cluster, reason, deed) = match &self.step {
            Step::Shrink(node) => {
                let cluster = quorum::relax(ctx, &self.cluster, *node).await?;
                let name =
                    cluster.member(*node).map_or_else(|| node.to_string(), |it| it.node_name.to_string());
                (cluster, "QUORUM_SHRUNK", format!("{name} is lost"))
            }
            Step::Grow(wanted) => {
                let cluster = quorum::strengthen_to(ctx, &self.cluster, wanted).await?;
                (cluster, "QUORUM_GROWN", "replicas are back".to_owned())
            }
            Step::Stay => {
                quorum::stay(ctx, &self.cluster).await?;
                return Ok(Next::done(json!({ "cluster": self.cluster.name })));
            }
        };
        let Synchronous { count, nodes } = &cluster.synchronous;
        let message = match count {
            0 => format!("{deed}: commits wait for no replica"),
            _ => format!("{deed}: commits wait for {count} of {} replicas", nodes.len()),
        };
        tell(ctx, &cluster, reason, message).await?;
        Ok(Next::done(
            json!({ "cluster": cluster.name, "synchronous_count": count, "replicas": nodes.len() }),
        ))
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        match self.step {
            Step::Grow(_) => Some(Self { step: Step::Stay, ..self.clone() }),
            Step::Shrink(_) | Step::Stay => None,
        }
    }

    pub(super) fn may_cancel(&self) -> bool {
        matches!(self.step, Step::Shrink(_) | Step::Grow(_))
    }

    pub(super) fn limits(&self) -> Limits {
        match self.step {
            Step::Shrink(_) | Step::Grow(_) => Limits { attempts: 2, deadline: Duration::from_secs(5 * 60) },
            Step::Stay => Limits { attempts: 100, deadline: Duration::from_secs(60 * 60) },
        }
    }
}
