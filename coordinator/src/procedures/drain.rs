//! Keeps new roles off a node, and moves the primaries that are there to other members, one cluster after the other.
//!
//! ```text
//!  mark ─► move: a switchover of its own ([`promote`]) for each cluster ─► finish
//!             │                                                       └─ a primary has come back: move
//!           stay: the mark stays, and so does what has moved
//! ```
//! Replicas stay where they are. The mark is the node's own ([`Drained`]); `UndrainNode` takes it away.

use std::time::Duration;

use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::report::Severity;
use holdfast_common::term::Term;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::parts::Part;
use super::promote::Promote;
use super::requests::successor;
use super::{ClusterRef, Means};
use crate::cluster::{Cluster, Phase};
use crate::directory::{self, Change, Drained, Node, node_key};
use crate::event::NewEvent;
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// How long a cluster may have nobody who could take over, or be busy, before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(1);

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    pub node: NodeId,
    pub name: NodeName,
    pub mark: Drained,
    pub unmovable: Unmovable,
    #[serde(default)]
    pub purpose: Purpose,
    /// Those whose primary was there when it began, or has come since.
    pub clusters: Vec<ClusterName>,
    pub moved: Vec<ClusterName>,
    pub left: Vec<ClusterName>,
    pub step: Step,
}

/// What becomes of a primary that nobody can take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmovable {
    /// The drain fails.
    Refuse,
    /// It is left where it is.
    Leave,
}

/// What it is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Nothing more: a person undrains the node.
    #[default]
    KeepAway,
    /// A part of a reboot, which tells of it and undrains the node.
    Reboot,
}

/// The step that runs next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Mark,
    /// The cluster's primary, of this term.
    Move {
        cluster: ClusterRef,
        term: Term,
    },
    Finish,
    /// The way back; with the move that was under way.
    Stay {
        part: Option<String>,
    },
}

impl Drain {
    /// From the beginning; `clusters` have their primary there.
    pub fn new(node: &Node, mark: Drained, how: (Unmovable, Purpose), clusters: Vec<ClusterName>) -> Self {
        let (node, name) = (node.id, node.name.clone());
        let (moved, left) = (Vec::new(), Vec::new());
        let (unmovable, purpose) = how;
        Self { node, name, mark, unmovable, purpose, clusters, moved, left, step: Step::Mark }
    }

    /// Whether it is on its way forwards, not back.
    pub(super) fn goes_on(&self) -> bool {
        !matches!(self.step, Step::Stay { .. })
    }

    pub(super) fn kind(&self) -> &'static str {
        "drain_node"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match self.step {
            Step::Stay { .. } => {
                let title = match self.purpose {
                    Purpose::KeepAway => {
                        format!("Node {} stays drained, and what has moved stays moved", self.name)
                    }
                    Purpose::Reboot => "What has moved stays moved".to_owned(),
                };
                vec![StepLabel::new("stay", title)]
            }
            Step::Mark | Step::Move { .. } | Step::Finish => plan(&self.name, &self.clusters),
        }
    }

    pub(super) fn step(&self) -> String {
        match &self.step {
            Step::Mark => "mark".into(),
            Step::Move { cluster, .. } => format!("move/{}", cluster.name),
            Step::Finish => "finish".into(),
            Step::Stay { .. } => "stay".into(),
        }
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        match self.step.clone() {
            Step::Mark => {
                self.mark(ctx).await?;
                self.onward(ctx).await
            }
            Step::Move { cluster, term } => {
                let moved = self.hand_over(ctx, &cluster, term).await.map_err(|error| self.stays(&error))?;
                let mut drain = self;
                let list = if moved { &mut drain.moved } else { &mut drain.left };
                if !list.contains(&cluster.name) {
                    list.push(cluster.name);
                }
                drain.onward(ctx).await
            }
            Step::Finish => self.finish(ctx).await,
            Step::Stay { part } => {
                if let Some(part) = part {
                    ctx.means().parts.give_up(ctx, &part).await?;
                }
                Ok(Next::done(self.summary()))
            }
        }
    }

    /// Whoever drained it first is remembered.
    async fn mark(&self, ctx: &Context<Means>) -> Result<(), Error> {
        let directory = ctx.means().records.directory();
        let key = node_key(self.node);
        let marked = directory.update(&key, |node: Node| match node.drained {
            Some(_) => Change::Keep(()),
            None => Change::Write(Node { drained: Some(self.mark.clone()), ..node }, ()),
        });
        match marked.await? {
            Some(()) => Ok(()),
            // It has left the fleet, and no role can come there.
            None => Err(Error::new(directory::no_node(&self.name))),
        }
    }

    /// The next primary that is there.
    async fn onward(mut self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let all = ctx.means().records.all().await?;
        let here = primaries(&all, self.node).find(|cluster| !self.left.contains(&cluster.name));
        let Some(cluster) = here else { return Ok(Next::Step(Self { step: Step::Finish, ..self })) };
        if !self.clusters.contains(&cluster.name) {
            self.clusters.push(cluster.name.clone());
        }
        let (term, cluster) = (cluster.term, ClusterRef { id: cluster.id, name: cluster.name.clone() });
        Ok(Next::Step(Self { step: Step::Move { cluster, term }, ..self }))
    }

    /// Has the best other member become primary. False: nobody can, and it is left.
    async fn hand_over(&self, ctx: &Context<Means>, cluster: &ClusterRef, term: Term) -> Result<bool, Error> {
        let parts = &ctx.means().parts;
        let name = part_name(cluster, term);
        let begun = Instant::now();
        while !parts.is_begun(ctx, &name).await? {
            let found = ctx.means().records.find(&cluster.name).await?;
            let found = found.filter(|it| it.value.id == cluster.id && it.value.primary == Some(self.node));
            // Gone, or changed hands by other ways.
            let Some(found) = found else { return Ok(true) };
            let waits = match successor(ctx.means(), &found.value).await? {
                Ok(target) => {
                    let procedure = Promote::new(&found.value, target).map(Into::into);
                    let Some(procedure) = procedure else { return Ok(true) };
                    let part = Part { name: &name, cluster: &found, procedure };
                    if parts.begin(ctx, part).await? {
                        break;
                    }
                    "another operation has the cluster".to_owned()
                }
                Err(obstacle) => obstacle,
            };
            if begun.elapsed() >= PATIENCE {
                return match self.unmovable {
                    Unmovable::Leave => Ok(false),
                    Unmovable::Refuse => Err(nobody(cluster, &waits)),
                };
            }
            ctx.say(format!("{} waits: {waits}", cluster.name));
            // Cancel-safe.
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = ctx.cancelled().cancelled() => return Err(Error::cancelled()),
            }
        }
        parts.wait(ctx, &name).await.map(|()| true)
    }

    async fn finish(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        // A failover may have brought one back: it alone had everything.
        let next = self.clone().onward(ctx).await?;
        if matches!(&next, Next::Step(Self { step: Step::Move { .. }, .. })) {
            return Ok(next);
        }
        if self.purpose == Purpose::Reboot {
            return Ok(Next::done(self.summary()));
        }
        let left = match self.left.as_slice() {
            [] => "no primary is there any more".to_owned(),
            left => format!("the primaries of {} are still there", join(left)),
        };
        let message = format!("node {} is drained: {left}", self.name);
        let event = NewEvent {
            operation: Some(ctx.operation().to_string()),
            ..NewEvent::new(Severity::Info, "NODE_DRAINED", message)
                .on_node(self.name.as_str())
                .by(self.mark.by.clone())
        };
        ctx.means().events.record(event).await?;
        Ok(Next::done(self.summary()))
    }

    fn summary(&self) -> serde_json::Value {
        json!({ "node": self.name, "moved": self.moved, "left": self.left })
    }

    /// The same failure, saying what is as it was.
    fn stays(&self, error: &Error) -> Error {
        if self.purpose == Purpose::Reboot {
            return error.clone();
        }
        let failure = error.failure().clone();
        let Self { name, .. } = self;
        let message = format!(
            "{}; node {name} stays drained: repeat `node drain {name}` to go on, or `node undrain {name}`",
            failure.message
        );
        Error::new(Failure { message, ..failure })
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        let part = match &self.step {
            Step::Mark | Step::Finish => None,
            Step::Move { cluster, term } => Some(part_name(cluster, *term)),
            Step::Stay { .. } => return None,
        };
        Some(Self { step: Step::Stay { part }, ..self.clone() })
    }

    pub(super) fn may_cancel(&self) -> bool {
        !matches!(self.step, Step::Stay { .. })
    }

    pub(super) fn limits(&self) -> Limits {
        match self.step {
            Step::Mark | Step::Finish => Limits::default(),
            // As long as a switchover may take, and more: it has limits of its own.
            Step::Move { .. } => Limits { attempts: 5, deadline: Duration::from_secs(2 * 60 * 60) },
            Step::Stay { .. } => Limits { attempts: 1_000, deadline: Duration::from_secs(24 * 60 * 60) },
        }
    }
}

/// The clusters whose primary is on the node.
pub(super) fn primaries(clusters: &[Cluster], node: NodeId) -> impl Iterator<Item = &Cluster> {
    let here = move |cluster: &&Cluster| cluster.primary == Some(node) && cluster.phase == Phase::Active;
    clusters.iter().filter(here)
}

/// The steps as they stand in a plan.
pub fn plan(node: &NodeName, clusters: &[ClusterName]) -> Vec<StepLabel> {
    let moves = clusters.iter().map(|cluster| {
        StepLabel::new(format!("move/{cluster}"), format!("Make another member of {cluster} the primary"))
    });
    [StepLabel::new("mark", format!("Keep new roles off {node}"))]
        .into_iter()
        .chain(moves)
        .chain([StepLabel::new("finish", "See that no primary is left there")])
        .collect()
}

pub(super) fn join(clusters: &[ClusterName]) -> String {
    clusters.iter().map(ClusterName::as_str).collect::<Vec<_>>().join(", ")
}

fn part_name(cluster: &ClusterRef, term: Term) -> String {
    format!("move/{}/{}", cluster.id, term.get())
}

fn nobody(cluster: &ClusterRef, why: &str) -> Error {
    let message = format!("the primary of {} cannot move: {why}", cluster.name);
    Error::new(Failure::new(Reason::PreconditionFailed, message))
}
