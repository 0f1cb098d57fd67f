//! Makes another member primary although the present one cannot hand over: it is gone, or does not answer.
//!
//! ```text
//!  [vouch] ─► elect: intend ─► fence the old primary, or wait until its lease has surely ended ─► seal the replicas ─► store the new primary
//!                │                                                                                    (no way back from here)
//!              abandon: the old primary may serve again, in a term above the seals
//! ```
//! Where the seals cannot prove that the old primary serves no more, a person's word that it is off takes their place; it is told who gave
//! it, and kept with the operation.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::name::NodeName;
use holdfast_common::protocol::{Need, Regent};
use holdfast_common::report::Severity;
use holdfast_common::role::Availability;
use holdfast_common::term::Term;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::create::tell;
use super::elect::{self, SERVE_TIME, answered, known, leave, reign_of, served};
use super::steps;
use super::{ClusterRef, Means};
use crate::cluster::{Cluster, Member, MemberPhase};
use crate::directory::Drained;
use crate::event::NewEvent;
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// Beside the times of the cluster's leases: for messages and disks.
const ALLOWANCE: Duration = Duration::from_secs(30);
/// How long a replica that can be reached is waited for once others suffice: it may have more.
const PATIENCE: Duration = Duration::from_secs(3);
const UNKNOWN_LOSS: &str = "what the old one had beyond its log is not known";

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failover {
    pub cluster: ClusterRef,
    /// Who is to be primary; none: whoever has most.
    pub target: Option<NodeId>,
    /// Whose place it takes, and in which term.
    pub from: NodeId,
    pub term: Term,
    /// How many bytes of log it may lose at most; none: as many as it takes, or nothing can be lost.
    #[serde(default)]
    pub budget: Option<u64>,
    /// What of the old one's log the new one does not have, in words; none where a restart has forgotten it.
    pub loss: Option<String>,
    /// A person has said that the old primary is off.
    #[serde(default)]
    pub word: Option<Word>,
    pub step: Step,
}

/// That the old primary is off, and stays so until it has heard of its successor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// Whose it is: `operator/NAME`.
    pub by: String,
    /// The old primary's node.
    pub of: NodeName,
}

/// The step that runs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A person's word is told before anything is done by it.
    Vouch,
    Elect,
    Serve,
    Follow,
    /// The way back.
    Abandon,
    /// The new one is stored and does not serve: left as it is, so that a further failover may begin.
    Leave,
}

impl Failover {
    /// From the beginning; none where the cluster has no primary.
    pub fn new(cluster: &Cluster, target: Option<NodeId>) -> Option<Self> {
        let (from, term) = (cluster.primary?, cluster.term);
        let cluster = ClusterRef { id: cluster.id, name: cluster.name.clone() };
        let step = Step::Elect;
        Some(Self { cluster, target, from, term, budget: None, loss: None, word: None, step })
    }

    /// The same by this word.
    #[must_use]
    pub fn by_word(self, word: Word) -> Self {
        Self { word: Some(word), step: Step::Vouch, ..self }
    }

    pub(super) fn kind(&self) -> &'static str {
        "failover"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match self.step {
            Step::Abandon => {
                vec![StepLabel::new("abandon", "Let the old primary serve again, in a new term")]
            }
            Step::Leave => vec![leave()],
            Step::Vouch | Step::Elect | Step::Serve | Step::Follow => self.plan(),
        }
    }

    pub(super) fn step(&self) -> String {
        match self.step {
            Step::Vouch => "vouch",
            Step::Elect => "elect",
            Step::Serve => "serve",
            Step::Follow => "follow",
            Step::Abandon => "abandon",
            Step::Leave => "leave",
        }
        .into()
    }

    fn at(self, step: Step) -> Next<Self> {
        Next::Step(Self { step, ..self })
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        match self.step {
            Step::Vouch => {
                self.vouch(ctx).await?;
                Ok(self.at(Step::Elect))
            }
            Step::Elect if self.is_done(ctx) => Ok(self.at(Step::Serve)),
            Step::Elect => {
                let loss = Some(self.elect(ctx).await?);
                Ok(Next::Step(Self { loss, step: Step::Serve, ..self }))
            }
            Step::Serve => {
                let cluster = served(ctx, &self.cluster, SERVE_TIME).await?;
                let name =
                    cluster.primary_member().map(|member| member.node_name.as_str()).unwrap_or_default();
                let loss = self.loss.as_deref().unwrap_or(UNKNOWN_LOSS);
                let message =
                    format!("{name} is the primary of term {}, by a failover; {loss}", cluster.term);
                tell(ctx, &cluster, "PRIMARY_CHANGED", message).await?;
                Ok(self.at(Step::Follow))
            }
            Step::Leave => Ok(Next::done(json!({ "cluster": self.cluster.name }))),
            Step::Follow => self.follow(ctx).await,
            Step::Abandon => {
                if self.is_done(ctx) {
                    return Ok(self.at(Step::Serve));
                }
                elect::abandon(ctx, &self.cluster).await?;
                Ok(Next::done(json!({ "cluster": self.cluster.name })))
            }
        }
    }

    /// Tells of the word that it goes by; not where the old primary is heard of.
    async fn vouch(&self, ctx: &Context<Means>) -> Result<(), Error> {
        let Some(word) = &self.word else { return Ok(()) };
        let Means { nodes, events, .. } = ctx.means();
        if !nodes.is_silent(self.from) {
            let message = format!("node {} is heard of: it is not off", word.of);
            return Err(Error::new(Failure::new(Reason::PreconditionFailed, message)));
        }
        let event = NewEvent {
            operation: Some(ctx.operation().to_string()),
            ..NewEvent::new(Severity::Warning, "PRIMARY_VOUCHED_OFF", word.to_string())
        };
        events.record(event.by(&word.by).on_cluster(self.cluster.name.as_str())).await?;
        Ok(())
    }

    /// Gives what is lost by it, in words.
    async fn elect(&self, ctx: &Context<Means>) -> Result<String, Error> {
        let Means { leases, records, .. } = ctx.means();
        let record = records.get(&self.cluster).await?;
        let intended = reign_of(ctx, &self.cluster, (self.from, self.term))?.intended;
        match (intended, &self.word) {
            (None, None) => leases.intend(self.cluster.id).await?,
            (None, Some(_)) => leases.intend_by_word(self.cluster.id).await?,
            (Some(_), None) => {}
            (Some(_), Some(_)) => leases.vouch(self.cluster.id)?,
        }
        let timings = record.patience().timings();
        let time = timings.remembered() + timings.promised() + ALLOWANCE;
        let preference = self.preference(&record, &records.drained(&record).await?);
        let mut enough_since = None;
        let chosen = answered(ctx, &self.cluster, time, |regent| {
            let Ok(chosen) = regent.choose(&preference) else { return Ok(None) };
            let waited = enough_since.get_or_insert_with(Instant::now).elapsed();
            Ok((waited >= PATIENCE || all_reachable_are_sealed(ctx, &record, regent)).then_some(chosen))
        });
        let chosen = chosen.await?;
        if self.target.is_some_and(|target| target != chosen) {
            let name =
                record.member(chosen).map_or_else(|| chosen.to_string(), |it| it.node_name.to_string());
            let message = format!("{name} has more of the log than the member that was asked for");
            return Err(Error::new(Failure::new(Reason::PreconditionFailed, message)));
        }
        let loss = self.loss(ctx, chosen)?;
        elect::succeed(ctx, &self.cluster, chosen, &preference).await?;
        Ok(loss)
    }

    /// Of members that have as much: whoever was asked for, and those on drained nodes last. One that alone has everything is
    /// chosen wherever it is.
    fn preference(&self, cluster: &Cluster, drained: &BTreeMap<NodeId, Drained>) -> Vec<NodeId> {
        let mut members: Vec<NodeId> = cluster.members.iter().map(|member| member.node_id).collect();
        members.sort_unstable();
        let others = members.into_iter().filter(|node| !drained.contains_key(node));
        self.target.into_iter().chain(others).collect()
    }

    /// How many bytes of what the old primary last reported the chosen one does not have; none where that is not known.
    fn lost_bytes(&self, ctx: &Context<Means>, chosen: NodeId) -> Option<u64> {
        let leases = &ctx.means().leases;
        let tail = leases.regent(self.cluster.id)?.seals.get(&chosen).copied()?;
        Some(tail.position.behind(leases.view(self.cluster.id)?.last?))
    }

    /// What of the old primary's log the chosen one does not have, in words.
    ///
    /// # Errors
    /// `PRECONDITION_FAILED` where it is more than may be lost.
    fn loss(&self, ctx: &Context<Means>, chosen: NodeId) -> Result<String, Error> {
        let regent = known(ctx, &self.cluster)?;
        if regent.reign.newest().need != Need::All && !regent.goes_by_word() {
            return Ok("nothing that was acknowledged is lost".to_owned());
        }
        let bytes = self.lost_bytes(ctx, chosen);
        if let Some(budget) = self.budget.filter(|budget| bytes.is_none_or(|bytes| bytes > *budget)) {
            let found =
                bytes.map_or_else(|| UNKNOWN_LOSS.to_owned(), |bytes| format!("{bytes} bytes would be lost"));
            let message = format!(
                "{found}, and {budget} may be; `cluster failover --accept-data-loss` goes on nevertheless"
            );
            return Err(Error::new(Failure::new(Reason::PreconditionFailed, message)));
        }
        Ok(match bytes {
            Some(bytes) => format!("{bytes} bytes of what the old one last reported are not in its log"),
            None => UNKNOWN_LOSS.to_owned(),
        })
    }

    /// The steps as they stand in a plan.
    pub fn plan(&self) -> Vec<StepLabel> {
        let vouch = self.word.as_ref().map(|word| StepLabel::new("vouch", format!("Tell that {word}")));
        let elect = "Fence the old primary or outwait its lease, seal the replicas, store the new primary";
        let rest = [
            StepLabel::new("elect", elect),
            StepLabel::new("serve", "Promote it: writes go on"),
            StepLabel::new("follow", "Have the others follow it"),
        ];
        vouch.into_iter().chain(rest).collect()
    }

    async fn follow(&self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let cluster = ctx.means().records.get(&self.cluster).await?;
        let there = |member: &&Member| {
            let state = ctx.means().nodes.state(member.node_id, cluster.id);
            member.node_id != self.from
                && member.phase == MemberPhase::Active
                && state.is_some_and(|state| state.availability == Availability::Online)
        };
        let members: Vec<&Member> = cluster.members.iter().filter(there).collect();
        let waits = steps::following(ctx, &cluster, &members).await.err();
        Ok(Next::done(json!({
            "cluster": self.cluster.name,
            "primary": cluster.primary_member().map(|member| &member.node_name),
            "term": cluster.term,
            "waits_for": waits.map(|error| error.failure().message.clone()),
        })))
    }

    /// Whether another primary is stored: there is no way back any more.
    fn is_done(&self, ctx: &Context<Means>) -> bool {
        let reign = ctx.means().leases.regent(self.cluster.id).map(|regent| regent.reign);
        reign.is_some_and(|reign| reign.primary != self.from && reign.term > self.term)
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        match self.step {
            Step::Vouch | Step::Elect => Some(Self { step: Step::Abandon, ..self.clone() }),
            Step::Serve => Some(Self { step: Step::Leave, ..self.clone() }),
            Step::Follow | Step::Abandon | Step::Leave => None,
        }
    }

    pub(super) fn may_cancel(&self) -> bool {
        matches!(self.step, Step::Vouch | Step::Elect)
    }

    pub(super) fn limits(&self) -> Limits {
        match self.step {
            Step::Vouch => Limits::default(),
            Step::Elect => Limits { attempts: 3, deadline: Duration::from_secs(10 * 60) },
            // Longer, and it would keep a further failover away.
            Step::Serve => Limits { attempts: 3, deadline: 2 * SERVE_TIME },
            Step::Follow | Step::Abandon | Step::Leave => {
                Limits { attempts: 1_000, deadline: Duration::from_secs(24 * 60 * 60) }
            }
        }
    }
}

/// Whether nobody is left who could have more.
fn all_reachable_are_sealed(ctx: &Context<Means>, cluster: &Cluster, regent: &Regent) -> bool {
    let reachable = |member: &&Member| {
        let state = ctx.means().nodes.state(member.node_id, cluster.id);
        state.is_some_and(|state| state.availability == Availability::Online)
    };
    let active = cluster.replicas().filter(|member| member.phase == MemberPhase::Active);
    active.filter(reachable).all(|member| regent.seals.contains_key(&member.node_id))
}

// === impl Word ===

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, of } = self;
        write!(
            f,
            "{by} vouches that {of} is powered off, or cut off from all clients and members, and stays so until it has heard of its \
             successor: nothing else keeps it from acknowledging writes beside the new primary"
        )
    }
}
