//! Makes another member primary, by plan: nothing that was acknowledged is lost.
//!
//! ```text
//!  checkpoint ─► stop ─► elect: intend, seal, confirm, store the new primary ─► serve ─► follow
//!                 │           │                                   (no way back from here)
//!               resume     abandon: the old primary serves again, in a term above the seals
//! ```
//! A coordinator that is restarted before the new primary is stored has the old one serve, and begins again with its stop.
//!
//! Whether the target has all of the old primary's log is told by its seal's own answer: waiting for its next report would keep
//! clients waiting too.

use std::time::Duration;

use holdfast_common::command::{CheckpointMember, Payload, Success};
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::name::NodeName;
use holdfast_common::protocol::Obstacle;
use holdfast_common::term::Term;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::create::tell;
use super::elect::{self, SERVE_TIME, answered, known, leave, reign_of, served};
use super::steps::{self, CONVERGE_TIME, Order, call_all, unexpected};
use super::{ClusterRef, Means};
use crate::cluster::{Cluster, Member, MemberPhase};
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// A large memory on a slow disk.
const CHECKPOINT_TIME: Duration = Duration::from_secs(10 * 60);
/// How long the primary may take to stop before it serves again: clients wait for it.
pub(super) const STOP_TIME: Duration = Duration::from_secs(20);
/// The same of what follows; a replica that has promised to the primary is sealed only when that is over.
const ELECT_TIME: Duration = Duration::from_secs(30);

/// Of the steps that stop a primary by plan.
pub(super) const CHECKPOINT: Limits = Limits { attempts: 3, deadline: CHECKPOINT_TIME.saturating_mul(2) };
pub(super) const STOP: Limits = Limits { attempts: 3, deadline: STOP_TIME.saturating_mul(3) };

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Promote {
    pub cluster: ClusterRef,
    /// Who is to be primary.
    pub target: NodeId,
    pub target_name: NodeName,
    /// Whose place it takes, and in which term.
    pub from: NodeId,
    pub term: Term,
    pub step: Step,
}

/// The step that runs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Checkpoint,
    Stop,
    Elect,
    Serve,
    Follow,
    /// The ways back.
    Resume,
    Abandon,
    /// The new one is stored and does not serve: left as it is, so that a failover may begin.
    Leave,
}

/// What a primary is stopped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Afterwards {
    AnotherServes,
    /// Also where nobody could take over.
    ItServesAgain,
}

impl Promote {
    /// From the beginning; none where the cluster has no primary.
    pub fn new(cluster: &Cluster, target: &Member) -> Option<Self> {
        let from = cluster.primary?;
        let (target_name, term) = (target.node_name.clone(), cluster.term);
        let cluster = ClusterRef { id: cluster.id, name: cluster.name.clone() };
        Some(Self { cluster, target: target.node_id, target_name, from, term, step: Step::Checkpoint })
    }

    pub(super) fn kind(&self) -> &'static str {
        "promote_member"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match self.step {
            Step::Resume => vec![StepLabel::new("resume", "Have the old primary serve again")],
            Step::Abandon => {
                vec![StepLabel::new("abandon", "Have the old primary serve again, in a new term")]
            }
            Step::Leave => vec![leave()],
            Step::Checkpoint | Step::Stop | Step::Elect | Step::Serve | Step::Follow => plan(),
        }
    }

    pub(super) fn step(&self) -> String {
        match self.step {
            Step::Checkpoint => "checkpoint",
            Step::Stop => "stop",
            Step::Elect => "elect",
            Step::Serve => "serve",
            Step::Follow => "follow",
            Step::Resume => "resume",
            Step::Abandon => "abandon",
            Step::Leave => "leave",
        }
        .into()
    }

    /// Whether it is on its way forwards, not back.
    pub(super) fn goes_on(&self) -> bool {
        match self.step {
            Step::Checkpoint | Step::Stop | Step::Elect | Step::Serve | Step::Follow => true,
            Step::Resume | Step::Abandon | Step::Leave => false,
        }
    }

    fn at(self, step: Step) -> Next<Self> {
        Next::Step(Self { step, ..self })
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        match self.step {
            Step::Checkpoint => {
                checkpoint(ctx, &self.cluster, (self.from, self.term)).await?;
                self.are_free(ctx).await?;
                Ok(self.at(Step::Stop))
            }
            Step::Stop => {
                stop(ctx, &self.cluster, (self.from, self.term), Afterwards::AnotherServes).await?;
                Ok(self.at(Step::Elect))
            }
            Step::Elect if self.is_done(ctx) => Ok(self.at(Step::Serve)),
            Step::Elect if self.was_forgotten(ctx)? => self.begin_anew(ctx).await,
            Step::Elect => {
                self.elect(ctx).await?;
                Ok(self.at(Step::Serve))
            }
            Step::Serve => {
                served(ctx, &self.cluster, SERVE_TIME).await?;
                Ok(self.at(Step::Follow))
            }
            Step::Follow => self.follow(ctx).await,
            Step::Resume | Step::Abandon => self.back(ctx).await,
            Step::Leave => Ok(Next::done(json!({ "cluster": self.cluster.name }))),
        }
    }

    /// Waits while a replica is bound by a promise: it could not be sealed until that is over, and nobody could write meanwhile.
    /// Where promises go on and on, or somebody does not say, that is taken into the bargain.
    async fn are_free(&self, ctx: &Context<Means>) -> Result<(), Error> {
        let cluster = ctx.means().records.get(&self.cluster).await?;
        let nodes = &ctx.means().nodes;
        let state = |member: &Member| nodes.state(member.node_id, cluster.id);
        let replicas: Vec<&Member> =
            cluster.members.iter().filter(|member| member.node_id != self.from).collect();
        let before: Vec<_> = replicas.iter().map(|member| Some(state(member)?.report?.1)).collect();
        let is_bound = |(member, before): (&&Member, &Option<Timestamp>)| {
            state(member).is_some_and(|state| state.may_have_promised(*before))
        };
        let free = async {
            let mut changes = nodes.changes();
            loop {
                changes.borrow_and_update();
                if !replicas.iter().zip(&before).any(is_bound) {
                    return;
                }
                ctx.say("waiting until no replica is bound by a promise to the primary".to_owned());
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let patience = 2 * cluster.patience().timings().promised();
        let _or_not = tokio::time::timeout(patience, free).await;
        Ok(())
    }

    async fn elect(&self, ctx: &Context<Means>) -> Result<(), Error> {
        let leases = &ctx.means().leases;
        if reign_of(ctx, &self.cluster, (self.from, self.term))?.intended.is_none() {
            leases.intend(self.cluster.id).await?;
        }
        let preference = [self.target];
        let chosen = answered(ctx, &self.cluster, ELECT_TIME, |regent| match regent.choose(&preference) {
            // Others may be sealed before it, and be enough.
            _ if !regent.seals.contains_key(&self.target) => Ok(None),
            Ok(chosen) => Ok(Some(chosen)),
            // It is sealed, so it gets no more.
            Err(obstacle @ (Obstacle::Behind | Obstacle::NoCandidate)) => {
                Err(Failure::new(Reason::PreconditionFailed, obstacle.to_string()))
            }
            Err(_) => Ok(None),
        });
        let chosen = chosen.await?;
        if chosen != self.target {
            let message = format!("another replica has more of the log than {}", self.target_name);
            return Err(Error::new(Failure::new(Reason::PreconditionFailed, message)));
        }
        elect::succeed(ctx, &self.cluster, chosen, &preference).await
    }

    /// Whether the coordinator was restarted since it had the primary stopped: what it was told then counts no more.
    fn was_forgotten(&self, ctx: &Context<Means>) -> Result<bool, Error> {
        let regent = known(ctx, &self.cluster)?;
        Ok(regent.stop.is_none() && regent.reign.primary == self.from)
    }

    /// The old primary serves first: else it would not be known what it has written by the word of its members' promises.
    async fn begin_anew(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        elect::abandon(ctx, &self.cluster).await?;
        let cluster = served(ctx, &self.cluster, SERVE_TIME).await?;
        Ok(Next::Step(Self { term: cluster.term, step: Step::Stop, ..self }))
    }

    async fn follow(&self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let cluster = ctx.means().records.get(&self.cluster).await?;
        let active = cluster.members.iter().filter(|member| member.phase == MemberPhase::Active);
        let members: Vec<&Member> = active.collect();
        let all = steps::serving(ctx, &cluster, &members).await;
        let term = cluster.term;
        let message = format!("{} is the primary of term {term}, by a switchover", self.target_name);
        tell(ctx, &cluster, "PRIMARY_CHANGED", message).await?;
        // It has changed hands all the same; who does not follow yet is shown, and goes on trying.
        let waits = all.err().map(|error| error.failure().message.clone());
        Ok(Next::done(json!({
            "cluster": self.cluster.name,
            "primary": self.target_name,
            "term": term,
            "waits_for": waits,
        })))
    }

    async fn back(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        if self.is_done(ctx) {
            return Ok(self.at(Step::Serve));
        }
        elect::abandon(ctx, &self.cluster).await?;
        // It may serve again. Whether it does is its own matter from here: one that is gone must not keep a failover away.
        let waits = served(ctx, &self.cluster, CONVERGE_TIME).await.err();
        let waits = waits.map(|error| error.failure().message.clone());
        Ok(Next::done(json!({ "cluster": self.cluster.name, "waits_for": waits })))
    }

    /// Whether the target is stored as primary: there is no way back any more.
    fn is_done(&self, ctx: &Context<Means>) -> bool {
        let reign = ctx.means().leases.regent(self.cluster.id).map(|regent| regent.reign);
        reign.is_some_and(|reign| reign.primary == self.target && reign.term > self.term)
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        match self.step {
            Step::Checkpoint | Step::Stop => Some(Self { step: Step::Resume, ..self.clone() }),
            Step::Elect => Some(Self { step: Step::Abandon, ..self.clone() }),
            Step::Serve => Some(Self { step: Step::Leave, ..self.clone() }),
            Step::Follow | Step::Resume | Step::Abandon | Step::Leave => None,
        }
    }

    pub(super) fn may_cancel(&self) -> bool {
        matches!(self.step, Step::Checkpoint | Step::Stop | Step::Elect)
    }

    pub(super) fn limits(&self) -> Limits {
        let day = Duration::from_secs(24 * 60 * 60);
        match self.step {
            Step::Checkpoint => CHECKPOINT,
            Step::Stop => STOP,
            Step::Elect => Limits { attempts: 3, deadline: SERVE_TIME + ELECT_TIME },
            // Longer, and it would keep a failover away.
            Step::Serve => Limits { attempts: 3, deadline: 2 * SERVE_TIME },
            Step::Follow | Step::Resume | Step::Abandon | Step::Leave => {
                Limits { attempts: 1_000, deadline: day }
            }
        }
    }
}

/// Has the primary of this term write out its memory, so that its stop is short.
pub(super) async fn checkpoint(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    (primary, term): (NodeId, Term),
) -> Result<(), Error> {
    reign_of(ctx, cluster, (primary, term))?;
    let record = ctx.means().records.get(cluster).await?;
    let Some(member) = record.member(primary) else { return Ok(()) };
    let payload = Payload::CheckpointMember(CheckpointMember { cluster_id: record.id });
    let orders = vec![Order { member, term: record.term, payload }];
    match call_all(ctx, CHECKPOINT_TIME, orders).await?.remove(&primary) {
        Some(Success::CheckpointMember) | None => Ok(()),
        Some(other) => Err(unexpected(&other)),
    }
}

/// Has the primary of this term stop cleanly, behind a shut gate; it stays so until it is told otherwise.
pub(super) async fn stop(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    (primary, term): (NodeId, Term),
    afterwards: Afterwards,
) -> Result<(), Error> {
    let leases = &ctx.means().leases;
    // What an earlier try of this step has asked for.
    leases.forget_stop(cluster.id);
    reign_of(ctx, cluster, (primary, term))?;
    match afterwards {
        Afterwards::AnotherServes => leases.halt(cluster.id).await?,
        Afterwards::ItServesAgain => leases.rest(cluster.id).await?,
    }
    answered(ctx, cluster, STOP_TIME, |regent| Ok(regent.stop.and_then(|stop| stop.tail))).await?;
    Ok(())
}

/// The steps as they stand in a plan.
pub fn plan() -> Vec<StepLabel> {
    vec![
        StepLabel::new("checkpoint", "Write out what the primary has in memory"),
        StepLabel::new("stop", "Stop the primary: writes wait from here"),
        StepLabel::new("elect", "Seal the replicas and store the new primary"),
        StepLabel::new("serve", "Promote it: writes go on"),
        StepLabel::new("follow", "Have the others follow it"),
    ]
}
