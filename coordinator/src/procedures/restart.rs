//! Restarts the servers of a cluster, or some of them: replicas one after the other, then the primary by a switchover.
//!
//! ```text
//!  each replica: stop, start, until it receives ─┬─► choose ─► switch: [`promote`](super::promote) ─┬─► finish
//!                                                └─ the primary is left alone ─────────────────────┘
//! ```
//! The old primary is stopped and started by the switchover, and stays a replica. What was restarted before a failure stays so.

use std::time::Duration;

use holdfast_common::command::{Payload, RestartMember, Success};
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::name::NodeName;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::create::tell;
use super::promote::{self, Promote};
use super::requests::successor;
use super::resync::Target;
use super::steps::{Order, call_all, unexpected};
use super::{ClusterRef, Means};
use crate::cluster::{Cluster, Member, assignment};
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// A stop that writes out a large memory, and a start that replays much.
const RESTART_TIME: Duration = Duration::from_secs(5 * 60);
/// How long the others are waited for before the next is stopped.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);

/// Of the step that restarts one replica.
pub(super) const REPLICA: Limits = Limits { attempts: 3, deadline: RESTART_TIME.saturating_mul(3) };

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    pub cluster: ClusterRef,
    /// In this order.
    pub replicas: Vec<Target>,
    /// When it began: it comes last.
    pub primary: Target,
    #[serde(default)]
    pub last: Last,
    pub writes: Writes,
    pub step: Step,
}

/// What becomes of the primary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Last {
    /// Another takes over.
    #[default]
    Switchover,
    /// It is left alone.
    Stays,
}

/// Whether writes may wait meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writes {
    /// A replica is restarted only while enough others receive.
    GoOn,
    MayWait,
}

/// The step that runs next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The replica of this number.
    Replica(usize),
    Choose,
    Switch(Box<Promote>),
    Finish,
    /// The way back: what was restarted goes on as it is.
    Leave,
}

impl Restart {
    /// From the beginning, of these members; none where the cluster has no primary.
    pub fn new(cluster: &Cluster, members: &[NodeId], writes: Writes) -> Option<Self> {
        let target = |member: &Member| Target { node: member.node_id, name: member.node_name.clone() };
        let primary = cluster.primary_member().map(target)?;
        let last = if members.contains(&primary.node) { Last::Switchover } else { Last::Stays };
        let replicas = cluster.replicas().filter(|member| members.contains(&member.node_id));
        let replicas = replicas.map(target).collect();
        let cluster = ClusterRef { id: cluster.id, name: cluster.name.clone() };
        Some(Self { cluster, replicas, primary, last, writes, step: Step::Replica(0) })
    }

    fn after_replicas(&self) -> Step {
        match self.last {
            Last::Switchover => Step::Choose,
            Last::Stays => Step::Finish,
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        "restart_cluster"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match &self.step {
            Step::Replica(_) | Step::Choose | Step::Finish => self.plan(),
            // Behind those known so far come only those of its way back.
            Step::Switch(promote) if promote.goes_on() => self.plan(),
            Step::Switch(promote) => promote.steps(),
            Step::Leave => vec![StepLabel::new("as_it_is", "Leave those that were restarted as they are")],
        }
    }

    pub(super) fn step(&self) -> String {
        match &self.step {
            Step::Replica(at) => match self.replicas.get(*at) {
                Some(replica) => format!("restart/{}", replica.name),
                None => "choose".into(),
            },
            Step::Choose => "choose".into(),
            Step::Switch(promote) => promote.step(),
            Step::Finish => "finish".into(),
            Step::Leave => "as_it_is".into(),
        }
    }

    fn at(self, step: Step) -> Next<Self> {
        Next::Step(Self { step, ..self })
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        match self.step.clone() {
            Step::Replica(at) => {
                if let Some(replica) = self.replicas.get(at) {
                    restart_replica(ctx, &self.cluster, replica.node, self.writes).await?;
                }
                let more = at + 1 < self.replicas.len();
                let next = if more { Step::Replica(at + 1) } else { self.after_replicas() };
                Ok(self.at(next))
            }
            Step::Choose => match self.choose(ctx).await? {
                Some(promote) => Ok(self.at(Step::Switch(Box::new(promote)))),
                None => Ok(self.at(Step::Finish)),
            },
            Step::Switch(promote) => {
                let forwards = promote.goes_on();
                Ok(match promote.next(ctx).await? {
                    Next::Step(promote) => self.at(Step::Switch(Box::new(promote))),
                    Next::Done(_) if forwards => self.at(Step::Finish),
                    Next::Done(summary) => Next::Done(summary),
                })
            }
            Step::Leave => Ok(Next::done(json!({ "cluster": self.cluster.name }))),
            Step::Finish => {
                let cluster = ctx.means().records.get(&self.cluster).await?;
                let primary = cluster.primary_member().map(|member| &member.node_name);
                let now = primary.map(NodeName::as_str).unwrap_or_default();
                let message = format!("{} restarted; {now} is the primary", self.restarted(&cluster));
                tell(ctx, &cluster, "CLUSTER_RESTARTED", message).await?;
                Ok(Next::done(json!({ "cluster": self.cluster.name, "primary": primary })))
            }
        }
    }

    /// Which servers were.
    fn restarted(&self, cluster: &Cluster) -> String {
        let primary = (self.last == Last::Switchover).then_some(&self.primary);
        let names: Vec<&str> =
            self.replicas.iter().chain(primary).map(|member| member.name.as_str()).collect();
        if names.len() == cluster.members.len() {
            "all servers were".to_owned()
        } else {
            format!("the servers of {} were", names.join(", "))
        }
    }

    /// Who takes over; none where somebody has done so already.
    async fn choose(&self, ctx: &Context<Means>) -> Result<Option<Promote>, Error> {
        let begun = Instant::now();
        loop {
            let cluster = ctx.means().records.get(&self.cluster).await?;
            if cluster.primary != Some(self.primary.node) {
                return Ok(None);
            }
            match successor(ctx.means(), &cluster).await? {
                Ok(target) => return Ok(Promote::new(&cluster, target)),
                Err(why) if begun.elapsed() >= PATIENCE => {
                    let message = format!("the primary is not restarted: nobody can take over: {why}");
                    return Err(Error::new(Failure::new(Reason::PreconditionFailed, message)));
                }
                Err(why) => pause(ctx, why).await?,
            }
        }
    }

    pub(super) fn way_back(&self, why: &Error) -> Option<Self> {
        match &self.step {
            Step::Replica(_) | Step::Choose => Some(Self { step: Step::Leave, ..self.clone() }),
            Step::Finish | Step::Leave => None,
            Step::Switch(promote) => {
                promote.way_back(why).map(|back| Self { step: Step::Switch(Box::new(back)), ..self.clone() })
            }
        }
    }

    pub(super) fn may_cancel(&self) -> bool {
        match &self.step {
            Step::Replica(_) | Step::Choose => true,
            Step::Switch(promote) => promote.may_cancel(),
            Step::Finish | Step::Leave => false,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        match &self.step {
            Step::Replica(_) => REPLICA,
            Step::Choose | Step::Finish | Step::Leave => Limits::default(),
            Step::Switch(promote) => promote.limits(),
        }
    }

    /// The steps as they stand in a plan.
    pub fn plan(&self) -> Vec<StepLabel> {
        let replicas = self.replicas.iter().map(|replica| {
            let title = format!("Restart {}, until it receives again", replica.name);
            StepLabel::new(format!("restart/{}", replica.name), title)
        });
        let last = match self.last {
            Last::Switchover => {
                let title = format!("Choose who takes over from {}", self.primary.name);
                [StepLabel::new("choose", title)].into_iter().chain(promote::plan()).collect()
            }
            Last::Stays => Vec::new(),
        };
        replicas.chain(last).chain([StepLabel::new("finish", "Tell of it")]).collect()
    }
}

/// Stops a replica and starts it, until it receives. One that has become the primary meanwhile, or is no member any more, is passed over.
pub(super) async fn restart_replica(
    ctx: &Context<Means>,
    cluster: &ClusterRef,
    node: NodeId,
    writes: Writes,
) -> Result<(), Error> {
    let begun = Instant::now();
    let cluster = loop {
        let cluster = ctx.means().records.get(cluster).await?;
        let Some(waits) = waits_for(ctx.means(), &cluster, node, writes) else { break cluster };
        if begun.elapsed() >= PATIENCE {
            return Err(Error::new(Failure::new(Reason::PreconditionFailed, waits)));
        }
        pause(ctx, waits).await?;
    };
    let Some(member) = cluster.member(node).filter(|_| cluster.primary != Some(node)) else {
        return Ok(());
    };
    let restart = RestartMember { member: assignment::prospective(&cluster, member) };
    let payload = Payload::RestartMember(Box::new(restart));
    let orders = vec![Order { member, term: cluster.term, payload }];
    match call_all(ctx, RESTART_TIME, orders).await?.remove(&node) {
        Some(Success::RestartMember) | None => Ok(()),
        Some(other) => Err(unexpected(&other)),
    }
}

/// What must come about before this one may be stopped.
fn waits_for(means: &Means, cluster: &Cluster, node: NodeId, writes: Writes) -> Option<String> {
    if writes == Writes::MayWait {
        return None;
    }
    let (there, needed) = without(means, cluster, node);
    let message = format!("too few other replicas receive: {there} of the {needed} that commits wait for");
    (there < needed).then_some(message)
}

/// How many replicas that commits may wait for receive, without this one; and for how many they wait.
pub(super) fn without(means: &Means, cluster: &Cluster, node: NodeId) -> (usize, usize) {
    let set = cluster.enforced_synchronous();
    let receives =
        |other: &&NodeId| means.nodes.state(**other, cluster.id).is_some_and(|state| state.receives());
    let there = set.nodes.iter().filter(|other| **other != node).filter(receives).count();
    (there, usize::try_from(set.count).unwrap_or(usize::MAX))
}

async fn pause(ctx: &Context<Means>, waits: String) -> Result<(), Error> {
    ctx.say(waits);
    // Both arms are cancel-safe.
    tokio::select! {
        () = tokio::time::sleep(AGAIN) => Ok(()),
        () = ctx.cancelled().cancelled() => Err(Error::cancelled()),
    }
}
