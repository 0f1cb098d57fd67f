//! Makes a cluster: installs the engine, initialises the primary, copies it to the replicas, enforces the durability.
//!
//! Before: the record is stored in phase `Creating`, with all members `Joining`, in the transaction that stored the
//! operation. The way back destroys what the nodes have of it, then removes the record.

use std::time::Duration;

use holdfast_common::command::{InitialiseMember, Payload, Success};
use holdfast_common::report::Severity;
use holdfast_common::term::Term;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::quorum;
use super::steps::{self, Absent, Order};
use super::{ClusterRef, Means};
use crate::cluster::{Cluster, Member, MemberPhase, assignment};
use crate::event::NewEvent;
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// initdb on a slow disk.
const INITIALISE_TIME: Duration = Duration::from_secs(5 * 60);

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Create {
    pub cluster: ClusterRef,
    /// The member that becomes the first primary.
    pub first: holdfast_common::id::NodeId,
    pub step: Step,
}

/// The step that runs next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Install,
    Initialise,
    StartPrimary {
        system_identifier: String,
    },
    Clone,
    Follow,
    Enforce,
    Finish,
    /// The way back.
    Destroy,
    Forget,
}

impl Create {
    /// From the beginning.
    pub fn new(cluster: &Cluster, first: holdfast_common::id::NodeId) -> Self {
        let cluster = ClusterRef { id: cluster.id, name: cluster.name.clone() };
        Self { cluster, first, step: Step::Install }
    }

    pub(super) fn kind(&self) -> &'static str {
        "create_cluster"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match self.step {
            Step::Destroy | Step::Forget => vec![
                StepLabel::new("destroy", "Remove what was made"),
                StepLabel::new("forget", "Forget the cluster"),
            ],
            Step::Install
            | Step::Initialise
            | Step::StartPrimary { .. }
            | Step::Clone
            | Step::Follow
            | Step::Enforce
            | Step::Finish => plan(),
        }
    }

    pub(super) fn step(&self) -> String {
        match self.step {
            Step::Install => "install",
            Step::Initialise => "initialise",
            Step::StartPrimary { .. } => "start_primary",
            Step::Clone => "clone",
            Step::Follow => "follow",
            Step::Enforce => "enforce",
            Step::Finish => "finish",
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
        match self.step.clone() {
            Step::Install => {
                let cluster = records.get(&self.cluster).await?;
                steps::install(ctx, &cluster, &cluster.members.iter().collect::<Vec<_>>()).await?;
                Ok(self.at(Step::Initialise))
            }
            Step::Initialise => {
                let cluster = records.get(&self.cluster).await?;
                let system_identifier = initialise(ctx, &cluster, self.first).await?;
                Ok(self.at(Step::StartPrimary { system_identifier }))
            }
            Step::StartPrimary { system_identifier } => {
                let first = self.first;
                let cluster = records
                    .update(&self.cluster, |cluster| {
                        cluster.with_first_primary(first, system_identifier.clone())
                    })
                    .await?;
                steps::serving(ctx, &cluster, &cluster.primary_member().into_iter().collect::<Vec<_>>())
                    .await?;
                Ok(self.at(Step::Clone))
            }
            Step::Clone => {
                let cluster = records.get(&self.cluster).await?;
                steps::clone_members(ctx, &cluster, &replicas(&cluster, MemberPhase::Joining)).await?;
                Ok(self.at(Step::Follow))
            }
            Step::Follow => {
                let cluster = records
                    .update(&self.cluster, |cluster| {
                        let nodes: Vec<_> = cluster.replicas().map(|member| member.node_id).collect();
                        nodes.into_iter().try_fold(cluster, Cluster::with_active)
                    })
                    .await?;
                steps::serving(ctx, &cluster, &replicas(&cluster, MemberPhase::Active)).await?;
                Ok(self.at(Step::Enforce))
            }
            Step::Enforce => {
                quorum::strengthen(ctx, &self.cluster).await?;
                Ok(self.at(Step::Finish))
            }
            Step::Finish => {
                let cluster = records.update(&self.cluster, Cluster::finished).await?;
                let message =
                    format!("cluster {} is ready with {} members", cluster.name, cluster.members.len());
                tell(ctx, &cluster, "CLUSTER_CREATED", message).await?;
                Ok(Next::done(json!({ "cluster": self.cluster.name, "primary": primary_name(&cluster) })))
            }
            Step::Destroy => {
                if let Some(found) =
                    records.find(&self.cluster.name).await?.filter(|it| it.value.id == self.cluster.id)
                {
                    let cluster = records.update(&self.cluster, |cluster| Ok(cluster.deleting())).await?;
                    let members: Vec<&Member> = found.value.members.iter().collect();
                    steps::destroy(ctx, &cluster, &members, Absent::LeaveBehind).await?;
                }
                Ok(self.at(Step::Forget))
            }
            Step::Forget => {
                records.remove(&self.cluster).await?;
                Ok(Next::done(json!({ "cluster": self.cluster.name })))
            }
        }
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        match self.step {
            Step::Install
            | Step::Initialise
            | Step::StartPrimary { .. }
            | Step::Clone
            | Step::Follow
            | Step::Enforce
            | Step::Finish => Some(Self { step: Step::Destroy, ..self.clone() }),
            Step::Destroy | Step::Forget => None,
        }
    }

    pub(super) fn may_cancel(&self) -> bool {
        !matches!(self.step, Step::Finish | Step::Destroy | Step::Forget)
    }

    pub(super) fn limits(&self) -> Limits {
        match self.step {
            Step::Clone => Limits { attempts: 3, deadline: Duration::from_secs(24 * 60 * 60) },
            Step::Install | Step::Initialise => {
                Limits { attempts: 3, deadline: Duration::from_secs(30 * 60) }
            }
            Step::StartPrimary { .. } | Step::Follow | Step::Enforce | Step::Finish => {
                Limits { attempts: 3, deadline: Duration::from_secs(7 * 60) }
            }
            Step::Destroy | Step::Forget => {
                Limits { attempts: 1_000, deadline: Duration::from_secs(24 * 60 * 60) }
            }
        }
    }
}

/// The steps as they stand in a plan.
pub fn plan() -> Vec<StepLabel> {
    vec![
        StepLabel::new("install", "Install the engine where it is missing"),
        StepLabel::new("initialise", "Initialise the primary"),
        StepLabel::new("start_primary", "Start the primary"),
        StepLabel::new("clone", "Copy the data to the replicas"),
        StepLabel::new("follow", "Start the replicas"),
        StepLabel::new("enforce", "Enforce the durability"),
        StepLabel::new("finish", "Record the cluster as active"),
    ]
}

async fn initialise(
    ctx: &Context<Means>,
    cluster: &Cluster,
    first: holdfast_common::id::NodeId,
) -> Result<String, Error> {
    let member = cluster.member(first).ok_or_else(|| {
        super::records::Error::Change(crate::cluster::ChangeError::NoMember {
            cluster: cluster.name.to_string(),
            node: first,
        })
    })?;
    let payload = Payload::InitialiseMember(Box::new(InitialiseMember {
        member: assignment::prospective(cluster, member),
        database: cluster.access.database.clone(),
        user: cluster.access.user.clone(),
        password: cluster.access.password.verifier.clone(),
    }));
    let order = Order { member, term: Term::FIRST, payload };
    match steps::call_all(ctx, INITIALISE_TIME, vec![order]).await?.into_values().next() {
        Some(Success::InitialiseMember { system_identifier }) => Ok(system_identifier),
        Some(other) => Err(steps::unexpected(&other)),
        None => Err(Error::cancelled()),
    }
}

fn replicas(cluster: &Cluster, phase: MemberPhase) -> Vec<&Member> {
    cluster.replicas().filter(|member| member.phase == phase).collect()
}

pub(super) fn primary_name(cluster: &Cluster) -> Option<&str> {
    cluster.primary_member().map(|member| member.node_name.as_str())
}

/// Records an event about the cluster.
pub(super) async fn tell(
    ctx: &Context<Means>,
    cluster: &Cluster,
    reason: &'static str,
    message: String,
) -> Result<(), Error> {
    let event = NewEvent {
        cluster: Some(cluster.name.to_string()),
        operation: Some(ctx.operation().to_string()),
        ..NewEvent::new(Severity::Info, reason, message)
    };
    ctx.means().events.record(event).await?;
    Ok(())
}
