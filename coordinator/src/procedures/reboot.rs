//! Reboots a node's machine: no primary is there when it goes down, and it gets no role before its members are whole again.
//!
//! ```text
//!  its drain ([`drain`]) ─► claim ─► reboot ─► return ─► undrain
//!      └─────────────────────┴─► put back  └───────┴─► settle: as it was where all is whole, else it stays drained
//! ```
//! The claim makes it the only node of its clusters that is rebooted, and sees that their commits have enough replicas without it.
//! What tells that the machine has booted is its boot id, whatever became of the command.

mod claims;
pub mod schedule;

use std::time::Duration;

use holdfast_common::command::{Command, Payload, RebootNode, Success};
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::name::NodeName;
use holdfast_common::report::Severity;
use holdfast_common::role::Durability;
use holdfast_common::term::Term;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use self::claims::Claim;
use super::Means;
use super::drain::{self, Drain};
use super::nodes::{Boot, step_error};
use super::restart;
use super::steps::{deadline, not_serving, unexpected};
use crate::cluster::{Cluster, Member, MemberPhase, Phase};
use crate::directory::{Change, Drained, Node, node_key};
use crate::event::NewEvent;
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// How long others are waited for before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// From the order until an agent tells of another boot: large machines take minutes to look at their memory.
const REBOOT_TIME: Duration = Duration::from_secs(20 * 60);
/// How long its members may take to be whole again: one may have to be copied.
const RETURN_TIME: Duration = Duration::from_secs(2 * 60 * 60);
const AGAIN: Duration = Duration::from_secs(1);
/// The step that tells the machine.
const ORDER: &str = "reboot";

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reboot {
    /// How its primaries are moved off.
    pub drain: Drain,
    pub service: Service,
    pub step: Step,
}

/// Whether clusters may be without service meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Enough others must be there.
    GoesOn,
    MayStop,
}

/// The step that runs next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// That of the drain.
    Drain,
    Claim,
    Reboot {
        /// The boot that is to end.
        boot_id: String,
    },
    Return {
        boot_id: String,
    },
    Undrain,
    /// The ways back: nothing has happened to the machine; or something may have.
    PutBack,
    Settle,
}

impl Reboot {
    /// From the beginning.
    pub fn new(drain: Drain, service: Service) -> Self {
        Self { drain, service, step: Step::Drain }
    }

    fn node(&self) -> NodeId {
        self.drain.node
    }

    fn name(&self) -> &NodeName {
        &self.drain.name
    }

    pub(super) fn kind(&self) -> &'static str {
        "reboot_node"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match self.step {
            Step::Drain if self.drain.goes_on() => self.plan(),
            Step::Drain => self.drain.steps(),
            Step::Claim | Step::Reboot { .. } | Step::Return { .. } | Step::Undrain => self.plan(),
            Step::PutBack => {
                vec![StepLabel::new("put_back", format!("Let {} have new roles again", self.name()))]
            }
            Step::Settle => {
                let title = format!("Let {} have new roles again, if it is whole", self.name());
                vec![StepLabel::new("settle", title)]
            }
        }
    }

    pub(super) fn step(&self) -> String {
        match self.step {
            Step::Drain => self.drain.step(),
            Step::Claim => "claim".into(),
            Step::Reboot { .. } => ORDER.into(),
            Step::Return { .. } => "return".into(),
            Step::Undrain => "undrain".into(),
            Step::PutBack => "put_back".into(),
            Step::Settle => "settle".into(),
        }
    }

    /// The steps as they stand in a plan.
    pub fn plan(&self) -> Vec<StepLabel> {
        let name = self.name();
        let own = [
            StepLabel::new(
                "claim",
                "See that enough others are there, and that no other of them is rebooted",
            ),
            StepLabel::new(ORDER, format!("Have the machine of {name} shut down and boot again")),
            StepLabel::new("return", format!("Wait until the members on {name} are whole and counted on")),
            StepLabel::new("undrain", format!("Let {name} have new roles again, if it could before")),
        ];
        drain::plan(name, &self.drain.clusters).into_iter().chain(own).collect()
    }

    fn at(self, step: Step) -> Next<Self> {
        Next::Step(Self { step, ..self })
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        match self.step.clone() {
            Step::Drain => {
                let forwards = self.drain.goes_on();
                Ok(match self.drain.clone().next(ctx).await? {
                    Next::Step(drain) => Next::Step(Self { drain, ..self }),
                    Next::Done(_) => self.at(if forwards { Step::Claim } else { Step::PutBack }),
                })
            }
            Step::Claim => {
                let boot_id = self.claim(ctx).await?;
                Ok(self.at(Step::Reboot { boot_id }))
            }
            Step::Reboot { boot_id } => {
                self.reboot(ctx, &boot_id).await?;
                Ok(self.at(Step::Return { boot_id }))
            }
            Step::Return { boot_id } => {
                self.returned(ctx, &boot_id).await?;
                Ok(self.at(Step::Undrain))
            }
            Step::Undrain => {
                self.as_before(ctx).await?;
                self.tell(ctx, Severity::Info, "NODE_REBOOTED", "was rebooted; its members are whole")
                    .await?;
                Ok(Next::done(self.summary()))
            }
            Step::PutBack => {
                self.as_before(ctx).await?;
                Ok(Next::done(self.summary()))
            }
            Step::Settle => self.settle(ctx).await,
        }
    }

    /// Waits until it may go down, and gives the boot that ends then.
    async fn claim(&self, ctx: &Context<Means>) -> Result<String, Error> {
        let begun = Instant::now();
        loop {
            let boot = ctx.means().nodes.boot(self.node());
            let waits = match (self.waits_for(ctx).await?, boot) {
                (None, Some(Boot { id, .. })) => return Ok(id),
                (None, None) => format!("{} is not in session", self.name()),
                (Some(waits), _) => waits,
            };
            if begun.elapsed() >= PATIENCE {
                let message = format!("{} is not rebooted: {waits}", self.name());
                return Err(Error::new(Failure::new(Reason::PreconditionFailed, message)));
            }
            pause(ctx, waits).await?;
        }
    }

    /// What must come about before it may go down.
    async fn waits_for(&self, ctx: &Context<Means>) -> Result<Option<String>, Error> {
        if self.service == Service::MayStop {
            return Ok(None);
        }
        let records = &ctx.means().records;
        let claim = Claim { node: self.node(), name: self.name().clone(), operation: ctx.operation() };
        // In one order for all, so that two never wait for each other.
        let all = records.all().await?;
        for cluster in members_of(&all, self.node()) {
            if let Some(other) = records.claim(cluster.id, &claim).await? {
                let waits = format!(
                    "{}, another member of {}, is being rebooted (operation {})",
                    other.name, cluster.name, other.operation
                );
                return Ok(Some(waits));
            }
            let (there, needed) = restart::without(ctx.means(), cluster, self.node());
            if there < needed {
                return Ok(Some(too_few(cluster, there, needed)));
            }
        }
        Ok(None)
    }

    /// Sends the order, and waits until an agent of another boot tells of itself.
    async fn reboot(&self, ctx: &Context<Means>, boot_id: &str) -> Result<(), Error> {
        let Means { nodes, clock, coordinator_generation, .. } = ctx.means();
        if self.has_booted(ctx, boot_id).is_some() {
            return Ok(());
        }
        let with_primaries = self.service == Service::MayStop;
        let payload = Payload::RebootNode(RebootNode { boot_id: boot_id.to_owned(), with_primaries });
        let command = Command {
            id: ctx.command_id(payload.kind()),
            coordinator_generation: *coordinator_generation,
            term: Term::NONE,
            deadline: deadline(clock.now(), REBOOT_TIME),
            payload,
        };
        let told = |progress: holdfast_common::command::Progress| ctx.say(progress.message);
        let call = nodes.call(self.node(), command, &told);
        let watch = async {
            let begun = Instant::now();
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if self.is_offline(ctx) {
                    ctx.say(format!(
                        "{} is away, for {} s since the order",
                        self.name(),
                        begun.elapsed().as_secs()
                    ));
                }
            }
        };
        // Both arms are cancel-safe: a repeat of the command gets the same outcome.
        let outcome = tokio::select! {
            outcome = call => outcome,
            () = watch => unreachable!("it watches for ever"),
        };
        match outcome {
            Ok(Success::RebootNode { .. }) => Ok(()),
            _ if self.has_booted(ctx, boot_id).is_some() => Ok(()),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(step_error(self.name(), error)),
        }
    }

    async fn returned(&self, ctx: &Context<Means>, boot_id: &str) -> Result<(), Error> {
        let begun = Instant::now();
        while let Some(waits) = self.is_missing(ctx, Some(boot_id)).await? {
            if begun.elapsed() >= RETURN_TIME {
                let message = format!(
                    "it has booted, and is not whole: {waits}; if it stays so, `holdfast node undrain {}` is for you",
                    self.name()
                );
                return Err(Error::new(Failure::new(Reason::CommandTimedOut, message)));
            }
            pause(ctx, waits).await?;
        }
        Ok(())
    }

    /// What is not as it should be there: after this boot has ended, where one is named.
    async fn is_missing(&self, ctx: &Context<Means>, ended: Option<&str>) -> Result<Option<String>, Error> {
        let name = self.name();
        let booted = match ended {
            Some(boot_id) => self.has_booted(ctx, boot_id),
            None => ctx.means().nodes.boot(self.node()),
        };
        let Some(boot) = booted.filter(|_| !self.is_offline(ctx)) else {
            return Ok(Some(format!("{name} has not come back yet")));
        };
        let all = ctx.means().records.all().await?;
        let clusters = members_of(&all, self.node());
        Ok(clusters.iter().find_map(|cluster| {
            let member = cluster.member(self.node())?;
            let missing = is_missing(ctx.means(), cluster, member, &boot)?;
            Some(format!("{}: {missing}", cluster.name))
        }))
    }

    /// The boot that the node is in, if it is another.
    fn has_booted(&self, ctx: &Context<Means>, ended: &str) -> Option<Boot> {
        ctx.means().nodes.boot(self.node()).filter(|boot| boot.id != ended)
    }

    fn is_offline(&self, ctx: &Context<Means>) -> bool {
        ctx.means().nodes.is_silent(self.node())
    }

    /// Its mark goes if this operation has set it, and so do its claims.
    async fn as_before(&self, ctx: &Context<Means>) -> Result<(), Error> {
        let records = &ctx.means().records;
        records.release_claims(ctx.operation()).await?;
        let key = node_key(self.node());
        let undrained = records.directory().update(&key, |node: Node| {
            if node.drained.as_ref() == Some(&self.drain.mark) {
                Change::Write(Node { drained: None, ..node }, ())
            } else {
                Change::Keep(())
            }
        });
        undrained.await?;
        Ok(())
    }

    async fn settle(&self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let Some(missing) = self.is_missing(ctx, None).await? else {
            self.as_before(ctx).await?;
            return Ok(Next::done(self.summary()));
        };
        ctx.means().records.release_claims(ctx.operation()).await?;
        let message = format!(
            "was told to reboot, and is not whole: {missing}; it stays drained until `holdfast node undrain {}`",
            self.name()
        );
        self.tell(ctx, Severity::Warning, "NODE_NOT_WHOLE", &message).await?;
        Ok(Next::done(self.summary()))
    }

    async fn tell(
        &self,
        ctx: &Context<Means>,
        severity: Severity,
        reason: &str,
        what: &str,
    ) -> Result<(), Error> {
        let message = format!("node {} {what}", self.name());
        let event = NewEvent {
            operation: Some(ctx.operation().to_string()),
            ..NewEvent::new(severity, reason, message).on_node(self.name().as_str()).by(self
                .drain
                .mark
                .by
                .clone())
        };
        ctx.means().events.record(event).await?;
        Ok(())
    }

    fn summary(&self) -> serde_json::Value {
        json!({ "node": self.name(), "moved": self.drain.moved, "left": self.drain.left })
    }

    pub(super) fn way_back(&self, why: &Error) -> Option<Self> {
        let step = match &self.step {
            Step::Drain => {
                let back = self.drain.way_back(why);
                let step = if back.is_some() { Step::Drain } else { Step::PutBack };
                let drain = back.unwrap_or_else(|| self.drain.clone());
                return Some(Self { drain, step, ..self.clone() });
            }
            Step::Claim => Step::PutBack,
            Step::Reboot { .. } | Step::Return { .. } => Step::Settle,
            Step::Undrain | Step::PutBack | Step::Settle => return None,
        };
        Some(Self { step, ..self.clone() })
    }

    pub(super) fn may_cancel(&self) -> bool {
        match self.step {
            Step::Drain => self.drain.may_cancel(),
            Step::Claim | Step::Return { .. } => true,
            Step::Reboot { .. } | Step::Undrain | Step::PutBack | Step::Settle => false,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        match self.step {
            Step::Drain => self.drain.limits(),
            Step::Claim => Limits { attempts: 3, deadline: 3 * PATIENCE },
            Step::Reboot { .. } => Limits { attempts: 10, deadline: REBOOT_TIME + 3 * PATIENCE },
            Step::Return { .. } => Limits { attempts: 5, deadline: RETURN_TIME + 3 * PATIENCE },
            Step::Undrain | Step::PutBack | Step::Settle => {
                Limits { attempts: 1_000, deadline: Duration::from_secs(24 * 60 * 60) }
            }
        }
    }
}

/// The living clusters that have a member on the node.
pub(super) fn members_of(clusters: &[Cluster], node: NodeId) -> Vec<&Cluster> {
    let here = |cluster: &&Cluster| cluster.phase == Phase::Active && cluster.member(node).is_some();
    clusters.iter().filter(here).collect()
}

/// Why commits would wait without a node.
pub(super) fn too_few(cluster: &Cluster, there: usize, needed: usize) -> String {
    format!(
        "commits of {} wait for {needed} replicas, and without it {there} of those that count receive",
        cluster.name
    )
}

/// What keeps a member of this boot from being all that it was.
fn is_missing(means: &Means, cluster: &Cluster, member: &Member, boot: &Boot) -> Option<String> {
    let Member { node_id, node_name, phase, .. } = member;
    if *phase != MemberPhase::Active {
        return Some(format!("{node_name} is not an active member"));
    }
    let state = means.nodes.state(*node_id, cluster.id);
    let told = state.as_ref().and_then(|state| state.report.as_ref());
    if told.is_none_or(|(_, at)| *at < boot.heard_of_at) {
        return Some(format!("{node_name} has not reported since it has booted"));
    }
    if let Some(missing) = not_serving(cluster, member, state) {
        return Some(missing);
    }
    if cluster.primary == Some(*node_id) {
        return None;
    }
    let counted = cluster.durability == Durability::Async || cluster.synchronous.nodes.contains(node_id);
    let reign = means.leases.regent(cluster.id).map(|regent| regent.reign);
    let promotable = reign.is_some_and(|reign| reign.is_promotable(*node_id));
    (!counted || !promotable).then(|| format!("{node_name} is not counted on again yet"))
}

async fn pause(ctx: &Context<Means>, waits: String) -> Result<(), Error> {
    ctx.say(waits);
    // Both arms are cancel-safe.
    tokio::select! {
        () = tokio::time::sleep(AGAIN) => Ok(()),
        () = ctx.cancelled().cancelled() => Err(Error::cancelled()),
    }
}

/// The mark of a node that is rebooted.
pub(super) fn mark(by: String, since: jiff::Timestamp, reason: &str) -> Drained {
    let reason = if reason.is_empty() { "reboot".to_owned() } else { format!("reboot: {reason}") };
    Drained { by, since, reason }
}
