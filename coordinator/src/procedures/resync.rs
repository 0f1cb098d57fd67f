//! Aligns replicas' data with the primary's, one after the other: by following, rewinding or copying.
//!
//! ```text
//!  each replica:  set aside (nobody counts on it) ─► align (a command, checked once more on the node) ─► follow ─► count on it again
//! ```
//! One that could not be aligned keeps what it has, and nobody counts on it before it receives again.

use std::time::Duration;

use holdfast_common::command::{Payload, ResyncMember, ResyncMode, ResyncedBy, Success};
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::name::NodeName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::create::tell;
use super::steps::{self, Order, call_all, unexpected};
use super::{ClusterRef, Means, quorum};
use crate::cluster::{Cluster, Member, MemberPhase, assignment};
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// Copying a large database.
const ALIGN_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resync {
    pub cluster: ClusterRef,
    /// In this order.
    pub targets: Vec<Target>,
    /// Which of them is at work.
    pub at: usize,
    pub mode: ResyncMode,
    pub in_place: bool,
    /// What became of those before.
    pub done: Vec<Value>,
    pub step: Step,
}

/// A replica that is to be aligned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub node: NodeId,
    pub name: NodeName,
}

/// The step that runs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    SetAside,
    Align,
    Follow,
    Grow,
    /// It could not be aligned: it goes on with what it has, if it can.
    Return,
}

impl Resync {
    /// From the beginning.
    pub fn new(cluster: &Cluster, targets: &[&Member], mode: ResyncMode, in_place: bool) -> Self {
        let cluster = ClusterRef { id: cluster.id, name: cluster.name.clone() };
        let target = |member: &&Member| Target { node: member.node_id, name: member.node_name.clone() };
        let targets = targets.iter().map(target).collect();
        Self { cluster, targets, at: 0, mode, in_place, done: Vec::new(), step: Step::SetAside }
    }

    pub(super) fn kind(&self) -> &'static str {
        "resync"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match self.step {
            Step::Return => {
                let data =
                    if self.in_place { ", if they are not gone: then it is aligned once more" } else { "" };
                vec![StepLabel::new("return", format!("Have it go on with the data that it has{data}"))]
            }
            Step::SetAside | Step::Align | Step::Follow | Step::Grow => {
                plan(self.targets.iter().map(|target| &target.name))
            }
        }
    }

    pub(super) fn step(&self) -> String {
        let deed = match self.step {
            Step::SetAside => "set_aside",
            Step::Align => "align",
            Step::Follow => "follow",
            Step::Grow => "grow",
            Step::Return => return "return".into(),
        };
        match self.targets.get(self.at) {
            Some(target) => named(deed, &target.name),
            None => deed.into(),
        }
    }

    fn at(self, step: Step) -> Next<Self> {
        Next::Step(Self { step, ..self })
    }

    pub(super) async fn next(mut self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let Some(Target { node, .. }) = self.targets.get(self.at).cloned() else {
            return Ok(self.ended());
        };
        match self.step {
            Step::SetAside => {
                quorum::set_aside(ctx, &self.cluster, node).await?;
                Ok(self.at(Step::Align))
            }
            Step::Align => {
                let result = self.align(ctx, node).await?;
                self.done.push(result);
                Ok(self.at(Step::Follow))
            }
            Step::Follow => {
                self.follow(ctx, node).await?;
                Ok(self.at(Step::Grow))
            }
            Step::Grow => {
                let wanted = quorum::receiving(ctx, &self.cluster).await?;
                quorum::strengthen_to(ctx, &self.cluster, &wanted).await?;
                self.at += 1;
                if self.at == self.targets.len() { Ok(self.ended()) } else { Ok(self.at(Step::SetAside)) }
            }
            Step::Return => {
                quorum::stay(ctx, &self.cluster).await?;
                active_again(ctx, &self.cluster, node).await?;
                Ok(self.ended())
            }
        }
    }

    async fn align(&self, ctx: &Context<Means>, node: NodeId) -> Result<Value, Error> {
        let cluster = ctx.means().records.get(&self.cluster).await?;
        let (Some(primary), Some(member)) = (cluster.primary_member(), cluster.member(node)) else {
            let message = "there is no primary to align with, or no member to align";
            return Err(Error::new(Failure::new(Reason::PreconditionFailed, message)));
        };
        let payload = Payload::ResyncMember(Box::new(ResyncMember {
            member: assignment::prospective(&cluster, member),
            source: cluster.peer(primary),
            mode: self.mode,
            in_place: self.in_place,
        }));
        let orders = vec![Order { member, term: cluster.term, payload }];
        match call_all(ctx, ALIGN_TIME, orders).await?.remove(&node) {
            Some(Success::ResyncMember { how, copied_bytes, set_aside_bytes, .. }) => {
                let name = &member.node_name;
                let deed = match how {
                    ResyncedBy::Followed => format!("{name} follows: its log is all in the primary's"),
                    ResyncedBy::Rewound => format!("{name} was rewound to the primary's log"),
                    ResyncedBy::Copied => format!("{name} has a new copy of {copied_bytes} bytes"),
                };
                let aside = match set_aside_bytes {
                    0 => String::new(),
                    bytes => {
                        format!("; {bytes} bytes of log that perhaps only it had are set aside on its disk")
                    }
                };
                tell(ctx, &cluster, "MEMBER_RESYNCED", format!("{deed}{aside}")).await?;
                Ok(json!({
                    "node": name,
                    "how": how,
                    "copied_bytes": copied_bytes,
                    "set_aside_bytes": set_aside_bytes,
                }))
            }
            Some(other) => Err(unexpected(&other)),
            None => Err(Error::new(Failure::new(Reason::Internal, "a command without an outcome"))),
        }
    }

    async fn follow(&self, ctx: &Context<Means>, node: NodeId) -> Result<(), Error> {
        let cluster = ctx.means().records.get(&self.cluster).await?;
        let members: Vec<&Member> = cluster.member(node).into_iter().collect();
        steps::serving(ctx, &cluster, &members).await?;
        active_again(ctx, &self.cluster, node).await
    }

    fn ended(&self) -> Next<Self> {
        Next::done(json!({ "cluster": self.cluster.name, "members": self.done }))
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        match self.step {
            Step::SetAside | Step::Align | Step::Follow | Step::Grow => {
                Some(Self { step: Step::Return, ..self.clone() })
            }
            Step::Return => None,
        }
    }

    pub(super) fn may_cancel(&self) -> bool {
        self.step != Step::Return
    }

    pub(super) fn limits(&self) -> Limits {
        match self.step {
            Step::SetAside | Step::Follow | Step::Grow => {
                Limits { attempts: 3, deadline: Duration::from_secs(10 * 60) }
            }
            Step::Align => Limits { attempts: 3, deadline: 2 * ALIGN_TIME },
            Step::Return => Limits { attempts: 1_000, deadline: Duration::from_secs(24 * 60 * 60) },
        }
    }
}

/// It counts again, as soon as it receives.
async fn active_again(ctx: &Context<Means>, cluster: &ClusterRef, node: NodeId) -> Result<(), Error> {
    let records = &ctx.means().records;
    let aligning = |member: &Member| member.phase == MemberPhase::Aligning;
    if records.get(cluster).await?.member(node).is_some_and(aligning) {
        records.update(cluster, |cluster| cluster.with_active(node)).await?;
    }
    Ok(())
}

fn named(deed: &str, node: &NodeName) -> String {
    format!("{deed}/{node}")
}

/// The steps as they stand in a plan.
pub fn plan<'a>(nodes: impl IntoIterator<Item = &'a NodeName>) -> Vec<StepLabel> {
    let of_node = |node: &NodeName| {
        [
            ("set_aside", format!("Count on {node} no more")),
            ("align", format!("Align {node}'s data with the primary's")),
            ("follow", format!("Have {node} follow")),
            ("grow", format!("Count on {node} again")),
        ]
        .map(|(deed, title)| StepLabel::new(named(deed, node), title))
    };
    nodes.into_iter().flat_map(of_node).collect()
}
