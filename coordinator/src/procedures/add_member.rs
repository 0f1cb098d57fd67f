//! Adds a replica to a cluster.
//!
//! Before: the record has the member as `Joining`, stored in the transaction that stored the operation. The way back removes
//! what its node has, then the member from the record.

use std::time::Duration;

use holdfast_common::id::NodeId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::create::tell;
use super::quorum;
use super::steps::{self, Absent};
use super::{ClusterRef, Means};
use crate::cluster::{Cluster, Member};
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AddMember {
    pub cluster: ClusterRef,
    pub node: NodeId,
    pub step: Step,
}

/// The step that runs next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Install,
    Clone,
    Follow,
    Enforce,
    /// The way back.
    Relax,
    Destroy,
    Forget,
}

impl AddMember {
    /// From the beginning.
    pub fn new(cluster: &Cluster, node: NodeId) -> Self {
        let cluster = ClusterRef { id: cluster.id, name: cluster.name.clone() };
        Self { cluster, node, step: Step::Install }
    }

    pub(super) fn kind(&self) -> &'static str {
        "add_member"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match self.step {
            Step::Relax | Step::Destroy | Step::Forget => vec![
                StepLabel::new("relax", "Take it out of the synchronous set"),
                StepLabel::new("destroy", "Remove what was made"),
                StepLabel::new("forget", "Forget the member"),
            ],
            Step::Install | Step::Clone | Step::Follow | Step::Enforce => plan(),
        }
    }

    pub(super) fn step(&self) -> String {
        match self.step {
            Step::Install => "install",
            Step::Clone => "clone",
            Step::Follow => "follow",
            Step::Enforce => "enforce",
            Step::Relax => "relax",
            Step::Destroy => "destroy",
            Step::Forget => "forget",
        }
        .into()
    }

    fn at(self, step: Step) -> Next<Self> {
        Next::Step(Self { step, ..self })
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let records = &ctx.means().records;
        let node = self.node;
        match self.step {
            Step::Install => {
                let cluster = records.get(&self.cluster).await?;
                steps::install(ctx, &cluster, &member(&cluster, node)).await?;
                Ok(self.at(Step::Clone))
            }
            Step::Clone => {
                let cluster = records.get(&self.cluster).await?;
                steps::clone_members(ctx, &cluster, &member(&cluster, node)).await?;
                Ok(self.at(Step::Follow))
            }
            Step::Follow => {
                let cluster = records.update(&self.cluster, |cluster| cluster.with_active(node)).await?;
                steps::serving(ctx, &cluster, &member(&cluster, node)).await?;
                Ok(self.at(Step::Enforce))
            }
            Step::Enforce => {
                let cluster = quorum::strengthen(ctx, &self.cluster).await?;
                let name = cluster.member(node).map(|member| member.node_name.to_string());
                let message =
                    format!("node {} joined cluster {}", name.as_deref().unwrap_or("?"), cluster.name);
                tell(ctx, &cluster, "MEMBER_ADDED", message).await?;
                Ok(Next::done(json!({ "cluster": self.cluster.name, "node": name })))
            }
            Step::Relax => {
                quorum::relax(ctx, &self.cluster, node).await?;
                Ok(self.at(Step::Destroy))
            }
            Step::Destroy => {
                let cluster = records.get(&self.cluster).await?;
                if cluster.member(node).is_some() {
                    let cluster = records.update(&self.cluster, |cluster| cluster.with_leaving(node)).await?;
                    steps::destroy(ctx, &cluster, &member(&cluster, node), Absent::LeaveBehind).await?;
                }
                Ok(self.at(Step::Forget))
            }
            Step::Forget => {
                steps::forget_member(ctx, &self.cluster, node).await?;
                Ok(Next::done(json!({ "cluster": self.cluster.name })))
            }
        }
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        match self.step {
            Step::Install | Step::Clone => Some(Self { step: Step::Destroy, ..self.clone() }),
            Step::Follow | Step::Enforce => Some(Self { step: Step::Relax, ..self.clone() }),
            Step::Relax | Step::Destroy | Step::Forget => None,
        }
    }

    pub(super) fn may_cancel(&self) -> bool {
        matches!(self.step, Step::Install | Step::Clone | Step::Follow | Step::Enforce)
    }

    pub(super) fn limits(&self) -> Limits {
        match self.step {
            Step::Clone => Limits { attempts: 3, deadline: Duration::from_secs(24 * 60 * 60) },
            Step::Install => Limits { attempts: 3, deadline: Duration::from_secs(30 * 60) },
            Step::Follow | Step::Enforce => Limits { attempts: 3, deadline: Duration::from_secs(7 * 60) },
            Step::Relax | Step::Destroy | Step::Forget => {
                Limits { attempts: 1_000, deadline: Duration::from_secs(24 * 60 * 60) }
            }
        }
    }
}

/// The steps as they stand in a plan.
pub fn plan() -> Vec<StepLabel> {
    vec![
        StepLabel::new("install", "Install the engine where it is missing"),
        StepLabel::new("clone", "Copy the primary's data"),
        StepLabel::new("follow", "Start the replica"),
        StepLabel::new("enforce", "Enforce the durability"),
    ]
}

pub(super) fn member(cluster: &Cluster, node: NodeId) -> Vec<&Member> {
    cluster.member(node).into_iter().collect()
}
