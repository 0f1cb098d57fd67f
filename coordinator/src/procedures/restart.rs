//! Restarts the servers of a cluster, or some of them: replicas one after the other, then the primary by a switchover.
//!
//! ```text
//!  each replica: stop, start, until it receives ─┬─► choose ─► switch: [`promote`](super::promote) ────┬─► finish
//!                                                ├─► checkpoint ─► stop ─► serve: [`in_place`](super::in_place) ─┤
//!                                                │        └─────────┴─► resume                         │
//!                                                └─ the primary is left alone ─────────────────────────┘
//! ```
//! The old primary is stopped and started by the switchover, and stays a replica. Where nobody can take over it is restarted where it
//! is, if a person has said that writes may wait. What was restarted before a failure stays so.

use std::time::Duration;

use holdfast_common::command::{Payload, RestartMember, Success};
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::name::NodeName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::create::tell;
use super::elect::served;
use super::promote::{self, Afterwards, Promote};
use super::requests::successor;
use super::resync::Target;
use super::steps::{CONVERGE_TIME, Order, call_all, unexpected};
use super::{ClusterRef, Means, in_place};
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
    /// When the primary's server was started that is restarted where it is.
    #[serde(default)]
    pub started: Option<Timestamp>,
    pub step: Step,
}

/// What becomes of the primary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Last {
    /// Another takes over.
    #[default]
    Switchover,
    /// It is restarted where it is, and writes wait meanwhile.
    InPlace,
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
    /// Of the primary that is restarted where it is.
    Checkpoint,
    Stop,
    Serve,
    Finish,
    /// The ways back: the primary is started again; what was restarted goes on as it is.
    Resume,
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
        let restart =
            Self { cluster, replicas, primary, last, writes, started: None, step: Step::Replica(0) };
        Some(restart.at_the_beginning())
    }

    /// The same with the primary restarted where it is, if it is to be restarted.
    #[must_use]
    pub fn in_place(self) -> Self {
        let last = match self.last {
            Last::Switchover | Last::InPlace => Last::InPlace,
            Last::Stays => Last::Stays,
        };
        Self { last, ..self }.at_the_beginning()
    }

    fn at_the_beginning(self) -> Self {
        let step = if self.replicas.is_empty() { self.after_replicas() } else { Step::Replica(0) };
        Self { step, ..self }
    }

    /// The same of the primary alone.
    pub(super) fn without_replicas(self) -> Self {
        Self { replicas: Vec::new(), ..self }.at_the_beginning()
    }

    /// Whether it is on its way forwards, not back.
    pub(super) fn goes_on(&self) -> bool {
        match &self.step {
            Step::Replica(_) | Step::Choose | Step::Checkpoint | Step::Stop | Step::Serve | Step::Finish => {
                true
            }
            Step::Switch(promote) => promote.goes_on(),
            Step::Resume | Step::Leave => false,
        }
    }

    fn after_replicas(&self) -> Step {
        match self.last {
            Last::Switchover => Step::Choose,
            Last::InPlace => Step::Checkpoint,
            Last::Stays => Step::Finish,
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        "restart_cluster"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match &self.step {
            Step::Replica(_) | Step::Choose | Step::Checkpoint | Step::Stop | Step::Serve | Step::Finish => {
                self.plan()
            }
            // Behind those known so far come only those of its way back.
            Step::Switch(promote) if promote.goes_on() => self.plan(),
            Step::Switch(promote) => promote.steps(),
            Step::Resume => vec![StepLabel::new("resume", "Have the primary serve again")],
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
            Step::Checkpoint => "checkpoint".into(),
            Step::Stop => "stop".into(),
            Step::Serve => "serve".into(),
            Step::Finish => "finish".into(),
            Step::Resume => "resume".into(),
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
            Step::Checkpoint | Step::Stop | Step::Serve => self.next_in_place(ctx).await,
            Step::Resume => {
                ctx.means().leases.resume(self.cluster.id);
                // Whether it does is its own matter from here: one that is gone must not keep a failover away.
                let waits = served(ctx, &self.cluster, CONVERGE_TIME).await.err();
                let waits = waits.map(|error| error.failure().message.clone());
                Ok(Next::done(json!({ "cluster": self.cluster.name, "waits_for": waits })))
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

    /// A step of the primary that is restarted where it is. One that is the primary no more has been replaced meanwhile, and that was
    /// its stop.
    async fn next_in_place(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let cluster = ctx.means().records.get(&self.cluster).await?;
        if cluster.primary != Some(self.primary.node) {
            return Ok(self.at(Step::Finish));
        }
        let primary = (self.primary.node, cluster.term);
        match self.step {
            Step::Stop => {
                promote::stop(ctx, &self.cluster, primary, Afterwards::ItServesAgain).await?;
                Ok(self.at(Step::Serve))
            }
            Step::Serve => {
                in_place::serve(ctx, &cluster, &self.primary, self.started).await?;
                Ok(self.at(Step::Finish))
            }
            _ => {
                promote::checkpoint(ctx, &self.cluster, primary).await?;
                let started = in_place::started(ctx, &self.cluster, self.primary.node);
                Ok(Next::Step(Self { started, step: Step::Stop, ..self }))
            }
        }
    }

    /// Which servers were.
    fn restarted(&self, cluster: &Cluster) -> String {
        let primary = (self.last != Last::Stays).then_some(&self.primary);
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
            Step::Replica(_) | Step::Choose | Step::Serve => Some(Self { step: Step::Leave, ..self.clone() }),
            Step::Checkpoint | Step::Stop => Some(Self { step: Step::Resume, ..self.clone() }),
            Step::Finish | Step::Resume | Step::Leave => None,
            Step::Switch(promote) => {
                promote.way_back(why).map(|back| Self { step: Step::Switch(Box::new(back)), ..self.clone() })
            }
        }
    }

    pub(super) fn may_cancel(&self) -> bool {
        match &self.step {
            Step::Replica(_) | Step::Choose | Step::Checkpoint | Step::Stop => true,
            Step::Switch(promote) => promote.may_cancel(),
            // Clients wait while it serves again: that is the quickest way out.
            Step::Serve | Step::Finish | Step::Resume | Step::Leave => false,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        match &self.step {
            Step::Replica(_) => REPLICA,
            Step::Choose | Step::Finish | Step::Leave => Limits::default(),
            Step::Checkpoint => promote::CHECKPOINT,
            Step::Stop => promote::STOP,
            Step::Serve => in_place::SERVE,
            Step::Resume => Limits { attempts: 1_000, deadline: Duration::from_secs(24 * 60 * 60) },
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
            Last::InPlace => in_place::plan(&self.primary).to_vec(),
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
