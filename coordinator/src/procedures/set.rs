//! Changes what was declared of a living cluster: its engine's parameters, its durability, how it behaves. All of it, or none.
//!
//! ```text
//!  strengthen ─► record ─► reload ─► [`retune`] ─► each replica ─► checkpoint, stop, serve ─► each replica again ─► relax ─► [`profile`] ─► finish
//!      └────────────┴─────────┴───────────┴──────────────┴─► put back                └──────────────────┴──► leave
//! ```
//! Only what is asked for is gone through. Servers are restarted where they say themselves that a parameter waits for that.
//!
//! The order is PostgreSQL's: a replica with less connections (or the like) than its primary stops replaying. What is raised comes to
//! the replicas first; what is lowered to the primary first, and to a replica once that has replayed that it was. A replica that is
//! started in between keeps what its log was written with: its node sees to it.
//!
//! The primary's server is restarted where it is ([`in_place`]): a switchover could never lower anything, because no
//! replica can run with less before its primary does.

mod back;
mod labels;
mod profile;
mod retune;

pub use retune::Retune;

use std::time::Duration;

use holdfast_common::engine::Parameters;
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::protocol::Profile;
use holdfast_common::report::MemberReport;
use holdfast_common::role::{Availability, Durability};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::create::tell;
use super::promote::Afterwards;
use super::restart::{self, Writes};
use super::resync::Target;
use super::steps::{CONVERGE_TIME, observe};
use super::{ClusterRef, Means, in_place, promote, quorum};
use crate::cluster::{Cluster, Member, OnReplicaLoss};
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// What an operator can declare anew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Declared {
    pub parameters: Parameters,
    pub durability: Durability,
    pub max_lag_on_failover: u64,
    pub on_replica_loss: OnReplicaLoss,
    #[serde(default)]
    pub lease_profile: Profile,
}

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Set {
    pub cluster: ClusterRef,
    pub from: Declared,
    pub to: Declared,
    /// Parameters that the primary must take over before its replicas do.
    pub lowered: Vec<String>,
    /// An earlier change of the lease profile has not come to its end.
    #[serde(default)]
    pub patience: Option<Profile>,
    /// Members decide anew by what of their machines their settings go.
    #[serde(default)]
    pub retune: Option<Retune>,
    pub restarts: Restarts,
    /// In this order.
    pub replicas: Vec<Target>,
    pub primary: Target,
    pub writes: Writes,
    pub step: Step,
}

/// Whether servers are restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restarts {
    None,
    /// Those that say that a parameter waits for it.
    WhereNeeded,
}

/// The step that runs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Strengthen,
    Record,
    Reload,
    Retune,
    /// The replica of this number, with all but what is lowered.
    Replica(usize),
    Checkpoint,
    Stop,
    Serve,
    /// The replica of this number, with what the primary has by now.
    Lower(usize),
    Relax,
    /// Of the lease profile ([`profile`]).
    Widen,
    Profile,
    Narrow,
    Finish,
    /// The ways back: as it was, or as far as it has come.
    PutBack,
    Leave,
}

// === impl Declared ===

impl Declared {
    pub fn of(cluster: &Cluster) -> Self {
        Self {
            parameters: cluster.parameters.clone(),
            durability: cluster.durability,
            max_lag_on_failover: cluster.max_lag_on_failover,
            on_replica_loss: cluster.on_replica_loss,
            lease_profile: cluster.lease_profile,
        }
    }

    /// Durability and lease profile are recorded by steps of their own.
    fn record(&self, cluster: Cluster) -> Cluster {
        let Self { parameters, durability: _, max_lag_on_failover, on_replica_loss, lease_profile: _ } =
            self.clone();
        Cluster { parameters, max_lag_on_failover, on_replica_loss, ..cluster }
    }
}

// === impl Set ===

impl Set {
    /// From the beginning; none where the cluster has no primary.
    pub fn new(cluster: &Cluster, to: Declared, restarts: Restarts, writes: Writes) -> Option<Self> {
        let target = |member: &Member| Target { node: member.node_id, name: member.node_name.clone() };
        let from = Declared::of(cluster);
        let lowered = cluster.engine.lowered(&from.parameters, &to.parameters);
        let set = Self {
            cluster: ClusterRef { id: cluster.id, name: cluster.name.clone() },
            lowered: lowered.into_iter().map(str::to_owned).collect(),
            patience: cluster.lease_patience,
            retune: None,
            from,
            to,
            restarts,
            replicas: cluster.replicas().map(target).collect(),
            primary: cluster.primary_member().map(target)?,
            writes,
            step: Step::Finish,
        };
        Some(set.begun_anew())
    }

    /// The same, with settings decided anew.
    #[must_use]
    pub fn retuning(self, retune: Retune) -> Self {
        Self { retune: Some(retune), ..self }.begun_anew()
    }

    fn begun_anew(self) -> Self {
        let step = self.program().first().copied().unwrap_or(Step::Finish);
        Self { step, ..self }
    }

    /// The steps that this change takes, in order.
    fn program(&self) -> Vec<Step> {
        let Self { from, to, .. } = self;
        let reloads = from.parameters != to.parameters;
        let retunes = self.retune.is_some();
        let restarts = (reloads || retunes) && self.restarts == Restarts::WhereNeeded;
        let mut program = Vec::new();
        let mut add = |when: bool, steps: &[Step]| program.extend(steps.iter().filter(|_| when));
        let replicas = |step: fn(usize) -> Step| (0..self.replicas.len()).map(step).collect::<Vec<_>>();
        let changes = |from_is, to_is| (from.durability, to.durability) == (from_is, to_is);
        add(changes(Durability::Async, Durability::Quorum), &[Step::Strengthen]);
        let Declared { durability, lease_profile, .. } = *from;
        add(Declared { durability, lease_profile, ..to.clone() } != *from, &[Step::Record]);
        add(reloads, &[Step::Reload]);
        add(retunes, &[Step::Retune]);
        add(restarts, &replicas(Step::Replica));
        add(restarts, &[Step::Checkpoint, Step::Stop, Step::Serve]);
        add(restarts && !self.lowered.is_empty(), &replicas(Step::Lower));
        add(changes(Durability::Quorum, Durability::Async), &[Step::Relax]);
        let paced = from.lease_profile != to.lease_profile || self.patience.is_some();
        add(paced, &[Step::Widen, Step::Profile, Step::Narrow]);
        add(true, &[Step::Finish]);
        program
    }

    /// The steps as they stand in a plan.
    pub fn plan(&self) -> Vec<StepLabel> {
        self.program().into_iter().map(|step| self.label(step)).collect()
    }

    pub(super) fn kind(&self) -> &'static str {
        "set_cluster"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match self.step {
            Step::PutBack | Step::Leave => vec![self.label(self.step)],
            _ => self.plan(),
        }
    }

    pub(super) fn step(&self) -> String {
        self.label(self.step).name
    }

    /// The step that follows this one.
    fn after(self, step: Step) -> Next<Self> {
        let program = self.program();
        let next = program.iter().skip_while(|it| **it != step).nth(1).copied();
        Next::Step(Self { step: next.unwrap_or(Step::Finish), ..self })
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let records = &ctx.means().records;
        let step = self.step;
        match step {
            Step::Strengthen => quorum::begin(ctx, &self.cluster).await?,
            Step::Record => {
                records.update(&self.cluster, |cluster| Ok(self.to.record(cluster))).await?;
            }
            Step::Reload => {
                let waiting = self.reload(ctx).await?;
                let restarts = if waiting { Restarts::WhereNeeded } else { self.restarts };
                return Ok(Self { restarts, ..self }.after(step));
            }
            Step::Retune => {
                let waiting = self.decide_anew(ctx).await?;
                let restarts = if waiting { Restarts::WhereNeeded } else { self.restarts };
                return Ok(Self { restarts, ..self }.after(step));
            }
            Step::Replica(at) => self.replica(ctx, at).await?,
            Step::Checkpoint => {
                let cluster = self.led(ctx).await?;
                if waiting(ctx.means(), &cluster, self.primary.node).is_empty() {
                    return Ok(self.after(Step::Serve));
                }
                promote::checkpoint(ctx, &self.cluster, (self.primary.node, cluster.term)).await?;
            }
            Step::Stop => {
                let cluster = self.led(ctx).await?;
                let primary = (self.primary.node, cluster.term);
                promote::stop(ctx, &self.cluster, primary, Afterwards::ItServesAgain).await?;
            }
            Step::Serve => self.serve(ctx).await?,
            Step::Lower(at) => self.lower(ctx, at).await?,
            Step::Relax => {
                let told = quorum::give_up(ctx, &self.cluster).await?;
                quorum::is_enforced(ctx, &told).await?;
            }
            Step::Widen => self.widen(ctx).await?,
            Step::Profile => self.profile(ctx).await?,
            Step::Narrow => self.narrow(ctx).await?,
            Step::Finish => return self.finish(ctx).await,
            Step::PutBack => return self.put_back(ctx).await,
            Step::Leave => {
                self.leave_profile(ctx).await?;
                return Ok(Next::done(json!({ "cluster": self.cluster.name })));
            }
        }
        Ok(self.after(step))
    }

    /// The record, while the primary is the one that it began with.
    async fn led(&self, ctx: &Context<Means>) -> Result<Cluster, Error> {
        let cluster = ctx.means().records.get(&self.cluster).await?;
        if cluster.primary == Some(self.primary.node) {
            return Ok(cluster);
        }
        let message = format!("{} is not the primary any more", self.primary.name);
        Err(Error::new(Failure::new(Reason::PreconditionFailed, message)))
    }

    /// Waits until every server goes by the new parameters as far as it can without a restart. Whether one waits for that.
    async fn reload(&self, ctx: &Context<Means>) -> Result<bool, Error> {
        let means = ctx.means();
        let cluster = means.records.get(&self.cluster).await?;
        // One that is away reads them when it is back, where nobody is restarted who could leave it behind.
        let is_there = |member: &&Member| {
            let state = means.nodes.state(member.node_id, cluster.id);
            self.restarts == Restarts::WhereNeeded
                || member.node_id == self.primary.node
                || state.is_none_or(|state| state.availability != Availability::Offline)
        };
        observe(ctx, &cluster, CONVERGE_TIME, |state| {
            cluster.members.iter().filter(is_there).find_map(|member| {
                let goes_by = means.nodes.converged(member.node_id, cluster.id);
                let there = goes_by.is_some_and(|it| it.parameters == cluster.parameters);
                let report = state(member.node_id).and_then(|state| Some(state.report?.0));
                let why = report.map(|report| report.message).filter(|why| !why.is_empty());
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                (!there).then(|| format!("{} does not go by its parameters yet{why}", member.node_name))
            })
        })
        .await?;
        for member in cluster.members.iter().filter(is_there) {
            let report =
                means.nodes.state(member.node_id, cluster.id).and_then(|state| Some(state.report?.0));
            if let Some(why) = report.and_then(|report| self.refused(&report)) {
                let message = format!("node {} does not take a parameter: {why}", member.node_name);
                return Err(Error::new(Failure::new(Reason::InvalidField, message)));
            }
        }
        let mut members = cluster.members.iter().filter(is_there);
        Ok(members.any(|member| !waiting(means, &cluster, member.node_id).is_empty()))
    }

    /// What a server says of a changed parameter that it does not take.
    fn refused(&self, report: &MemberReport) -> Option<String> {
        let changed = self.from.parameters.changed(&self.to.parameters);
        let told = |part: &&str| changed.iter().any(|name| part.starts_with(&format!("{name}: ")));
        report.message.split("; ").find(told).map(str::to_owned)
    }

    async fn replica(&self, ctx: &Context<Means>, at: usize) -> Result<(), Error> {
        let Some(replica) = self.replicas.get(at) else { return Ok(()) };
        let cluster = self.led(ctx).await?;
        let mut names = waiting(ctx.means(), &cluster, replica.node);
        names.retain(|name| !self.lowered.contains(name));
        if names.is_empty() {
            ctx.say("nothing waits for a restart");
            return Ok(());
        }
        restart::restart_replica(ctx, &self.cluster, replica.node, self.writes).await
    }

    async fn serve(&self, ctx: &Context<Means>) -> Result<(), Error> {
        ctx.means().leases.resume(self.cluster.id);
        let cluster = self.led(ctx).await?;
        in_place::serve(ctx, &cluster, &self.primary, None).await
    }

    /// The replica has replayed that its primary has less, so that it can start with as much.
    async fn lower(&self, ctx: &Context<Means>, at: usize) -> Result<(), Error> {
        let Some(replica) = self.replicas.get(at) else { return Ok(()) };
        let means = ctx.means();
        let cluster = self.led(ctx).await?;
        let report = |node| means.nodes.state(node, cluster.id).and_then(|state| Some(state.report?.0));
        let goal = report(self.primary.node).and_then(|report| report.position);
        observe(ctx, &cluster, CONVERGE_TIME, |state| {
            let report = state(replica.node).and_then(|state| Some(state.report?.0))?;
            let there = report.replayed.or(report.position);
            (there < goal).then(|| format!("{} has not replayed what the primary has written", replica.name))
        })
        .await?;
        if waiting(means, &cluster, replica.node).is_empty() {
            ctx.say("nothing waits for a restart");
            return Ok(());
        }
        restart::restart_replica(ctx, &self.cluster, replica.node, self.writes).await
    }

    async fn finish(&self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let cluster = ctx.means().records.get(&self.cluster).await?;
        tell(ctx, &cluster, "CLUSTER_CHANGED", self.changes().join("; ")).await?;
        Ok(Next::done(json!({ "cluster": self.cluster.name, "changed": self.changes() })))
    }

    /// What becomes of it, for a person.
    fn changes(&self) -> Vec<String> {
        let Self { from, to, .. } = self;
        let mut told: Vec<String> = (from.parameters.changed(&to.parameters).into_iter())
            .map(|name| match to.parameters.get(name) {
                Some(value) => format!("{name} = {value}"),
                None => format!("{name} as Holdfast sets it"),
            })
            .collect();
        if from.durability != to.durability {
            told.push(format!("durability {}", to.durability));
        }
        if from.max_lag_on_failover != to.max_lag_on_failover {
            told.push(format!("a failover may lose {} bytes of log", to.max_lag_on_failover));
        }
        if from.lease_profile != to.lease_profile {
            told.push(format!("lease profile {}", to.lease_profile));
        }
        if self.retune.is_some() {
            told.push("settings for the machines as they are now".to_owned());
        }
        if from.on_replica_loss != to.on_replica_loss {
            told.push(format!("a quorum that lost a replica is to {}", to.on_replica_loss));
        }
        told
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        let step = match self.step {
            Step::Strengthen
            | Step::Record
            | Step::Reload
            | Step::Retune
            | Step::Replica(_)
            | Step::Checkpoint
            | Step::Stop
            | Step::Serve => Step::PutBack,
            // The primary goes by it.
            Step::Lower(_) | Step::Relax | Step::Widen | Step::Profile | Step::Narrow => Step::Leave,
            Step::Finish | Step::PutBack | Step::Leave => return None,
        };
        Some(Self { step, ..self.clone() })
    }

    pub(super) fn may_cancel(&self) -> bool {
        // Clients wait while it serves again: that is the quickest way out.
        !matches!(self.step, Step::Serve | Step::Finish | Step::PutBack | Step::Leave)
    }

    pub(super) fn limits(&self) -> Limits {
        match self.step {
            Step::Replica(_) | Step::Lower(_) => restart::REPLICA,
            Step::Checkpoint => promote::CHECKPOINT,
            Step::Stop => promote::STOP,
            Step::Serve => in_place::SERVE,
            Step::Strengthen | Step::Relax => Limits { attempts: 2, deadline: Duration::from_secs(5 * 60) },
            Step::Reload | Step::Retune | Step::Widen | Step::Profile | Step::Narrow => {
                Limits { attempts: 3, deadline: 2 * CONVERGE_TIME }
            }
            Step::Record | Step::Finish | Step::Leave => Limits::default(),
            Step::PutBack => Limits { attempts: 100, deadline: Duration::from_secs(60 * 60) },
        }
    }
}

/// The parameters that wait for a restart of this member's server, as it said last.
fn waiting(means: &Means, cluster: &Cluster, node: NodeId) -> Vec<String> {
    let report = means.nodes.state(node, cluster.id).and_then(|state| state.report);
    report.map(|(report, _)| report.pending_restart).unwrap_or_default()
}
