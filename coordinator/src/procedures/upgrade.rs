//! A minor upgrade of the engine, member by member: packages, then the server, if it runs an older program. Built on [`restart`].
//!
//! ```text
//!  each replica: packages ─► restart, until it receives ─┬─► the primary's packages ─┬─► [`restart`] of the primary alone ─┬─► finish
//!                                                        │                           └─ it runs what is installed ─────────┘
//! ```
//! A replica is never of an older program than its primary: log of a newer one is not promised to be understood by an older. So the
//! primary's packages come last and before it hands over: it comes back with the new program. Packages change no server that runs.
//! Members of other clusters on the same nodes go on with what they were started with. What was upgraded before a failure stays so.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_common::command::{Payload, Success, UpgradeEngine};
use holdfast_common::id::NodeId;
use holdfast_common::name::NodeName;
use holdfast_common::term::Term;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::create::tell;
use super::restart::{self, Restart, Writes};
use super::resync::Target;
use super::steps::{CONVERGE_TIME, Order, call_all, observe, unexpected};
use super::{ClusterRef, Means};
use crate::cluster::Cluster;
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

/// Longer than any package manager needs.
const PACKAGES_TIME: Duration = Duration::from_secs(25 * 60);

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Upgrade {
    pub cluster: ClusterRef,
    /// In this order.
    pub replicas: Vec<Target>,
    /// When it began: it comes last.
    pub primary: Target,
    pub writes: Writes,
    /// Which build each node has installed, once its packages are done.
    pub installed: BTreeMap<NodeId, String>,
    /// Of the primary alone.
    pub last: Box<Restart>,
    pub step: Step,
}

/// The step that runs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The packages of the replica of this number.
    Packages(usize),
    /// Its server.
    Replica(usize),
    PrimaryPackages,
    /// Where [`Upgrade::last`] is.
    Primary,
    Finish,
    /// The way back: what was upgraded goes on as it is.
    Leave,
}

impl Upgrade {
    /// From the beginning, of those that this would restart.
    pub fn new(restart: Restart) -> Self {
        let step = if restart.replicas.is_empty() { Step::PrimaryPackages } else { Step::Packages(0) };
        Self {
            cluster: restart.cluster.clone(),
            replicas: restart.replicas.clone(),
            primary: restart.primary.clone(),
            writes: restart.writes,
            installed: BTreeMap::new(),
            last: Box::new(restart.without_replicas()),
            step,
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        "upgrade_cluster"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        match self.step {
            Step::Leave => vec![leave()],
            Step::Primary if !self.last.goes_on() => self.last.steps(),
            Step::Packages(_) | Step::Replica(_) | Step::PrimaryPackages | Step::Primary | Step::Finish => {
                self.plan()
            }
        }
    }

    pub(super) fn step(&self) -> String {
        let name = |at: usize| self.replicas.get(at).map_or_else(String::new, |it| it.name.to_string());
        match self.step {
            Step::Packages(at) => format!("packages/{}", name(at)),
            Step::Replica(at) => format!("restart/{}", name(at)),
            Step::PrimaryPackages => format!("packages/{}", self.primary.name),
            Step::Primary => self.last.step(),
            Step::Finish => "finish".into(),
            Step::Leave => "as_it_is".into(),
        }
    }

    fn at(self, step: Step) -> Next<Self> {
        Next::Step(Self { step, ..self })
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        match self.step {
            Step::Packages(at) => {
                let node = self.replicas.get(at).map(|replica| replica.node);
                Ok(self.packages(ctx, node).await?.at(Step::Replica(at)))
            }
            Step::Replica(at) => {
                if let Some(replica) = self.replicas.get(at) {
                    self.restart_replica(ctx, replica).await?;
                }
                let more = at + 1 < self.replicas.len();
                Ok(self.at(if more { Step::Packages(at + 1) } else { Step::PrimaryPackages }))
            }
            Step::PrimaryPackages => {
                let node = self.primary.node;
                let upgraded = self.packages(ctx, Some(node)).await?;
                let cluster = ctx.means().records.get(&upgraded.cluster).await?;
                if upgraded.runs_installed(ctx.means(), node) {
                    return Ok(upgraded.at(Step::Finish));
                }
                if cluster.primary == Some(node) {
                    return Ok(upgraded.at(Step::Primary));
                }
                // Another has taken over meanwhile: it is a replica, or none any more.
                upgraded.restart_replica(ctx, &upgraded.primary).await?;
                Ok(upgraded.at(Step::Finish))
            }
            Step::Primary => Ok(match self.last.clone().next(ctx).await? {
                Next::Step(last) if last.step == restart::Step::Finish => self.at(Step::Finish),
                Next::Step(last) => Next::Step(Self { last: Box::new(last), ..self }),
                Next::Done(summary) => Next::Done(summary),
            }),
            Step::Finish => self.finish(ctx).await,
            Step::Leave => Ok(Next::done(json!({ "cluster": self.cluster.name }))),
        }
    }

    /// Brings a node's packages up to date, and notes which build it has then. A node that is no member any more is passed over.
    async fn packages(self, ctx: &Context<Means>, node: Option<NodeId>) -> Result<Self, Error> {
        let cluster = ctx.means().records.get(&self.cluster).await?;
        let Some(member) = node.and_then(|node| cluster.member(node)) else { return Ok(self) };
        let upgrade =
            UpgradeEngine { engine: cluster.engine, engine_version: cluster.engine_version.clone() };
        let payload = Payload::UpgradeEngine(upgrade);
        let orders = vec![Order { member, term: Term::NONE, payload }];
        let mut installed = self.installed.clone();
        for (node, success) in call_all(ctx, PACKAGES_TIME, orders).await? {
            let Success::UpgradeEngine { installed_build } = success else {
                return Err(unexpected(&success));
            };
            installed.insert(node, installed_build);
        }
        Ok(Self { installed, ..self })
    }

    async fn restart_replica(&self, ctx: &Context<Means>, replica: &Target) -> Result<(), Error> {
        if self.runs_installed(ctx.means(), replica.node) {
            ctx.say("it runs what is installed: it is not restarted");
            return Ok(());
        }
        restart::restart_replica(ctx, &self.cluster, replica.node, self.writes).await?;
        let cluster = ctx.means().records.get(&self.cluster).await?;
        self.run_installed(ctx, &cluster, |node| node == replica.node).await
    }

    /// Whether the server on the node is of the build that is installed there, as it said last.
    fn runs_installed(&self, means: &Means, node: NodeId) -> bool {
        let report = means.nodes.state(node, self.cluster.id).and_then(|state| Some(state.report?.0));
        let runs = report.and_then(|report| report.server_build);
        // One that is no member any more has none.
        self.installed.get(&node).is_none_or(|installed| runs.as_ref() == Some(installed))
    }

    /// Waits until the servers of these say that they do.
    async fn run_installed(
        &self,
        ctx: &Context<Means>,
        cluster: &Cluster,
        these: impl Fn(NodeId) -> bool,
    ) -> Result<(), Error> {
        observe(ctx, cluster, CONVERGE_TIME, |_| {
            let members = cluster.members.iter().filter(|member| these(member.node_id));
            let mut late = members.filter(|member| !self.runs_installed(ctx.means(), member.node_id));
            late.next().map(|member| format!("{} does not run what is installed yet", member.node_name))
        })
        .await
    }

    async fn finish(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let cluster = ctx.means().records.get(&self.cluster).await?;
        self.run_installed(ctx, &cluster, |_| true).await?;
        let builds: BTreeMap<&NodeName, &String> = cluster
            .members
            .iter()
            .filter_map(|member| Some((&member.node_name, self.installed.get(&member.node_id)?)))
            .collect();
        let told: Vec<String> = builds.iter().map(|(name, build)| format!("{name} {build}")).collect();
        tell(ctx, &cluster, "CLUSTER_UPGRADED", format!("the servers run: {}", told.join(", "))).await?;
        let primary = cluster.primary_member().map(|member| &member.node_name);
        Ok(Next::done(json!({ "cluster": self.cluster.name, "primary": primary, "builds": builds })))
    }

    pub(super) fn way_back(&self, why: &Error) -> Option<Self> {
        match self.step {
            Step::Packages(_) | Step::Replica(_) | Step::PrimaryPackages | Step::Finish => {
                Some(Self { step: Step::Leave, ..self.clone() })
            }
            Step::Primary => {
                self.last.way_back(why).map(|last| Self { last: Box::new(last), ..self.clone() })
            }
            Step::Leave => None,
        }
    }

    pub(super) fn may_cancel(&self) -> bool {
        match self.step {
            Step::Packages(_) | Step::Replica(_) | Step::PrimaryPackages => true,
            Step::Primary => self.last.may_cancel(),
            Step::Finish | Step::Leave => false,
        }
    }

    pub(super) fn limits(&self) -> Limits {
        match self.step {
            // The old primary of a cluster that has another by then is restarted in the same step.
            Step::Packages(_) | Step::PrimaryPackages => {
                Limits { attempts: 3, deadline: PACKAGES_TIME.saturating_mul(2) }
            }
            Step::Replica(_) => restart::REPLICA,
            Step::Primary => self.last.limits(),
            Step::Finish => Limits { attempts: 3, deadline: CONVERGE_TIME.saturating_mul(4) },
            Step::Leave => Limits::default(),
        }
    }

    /// The steps as they stand in a plan.
    pub fn plan(&self) -> Vec<StepLabel> {
        let packages = |target: &Target| {
            let title = format!("Bring the engine's packages on {} up to date", target.name);
            StepLabel::new(format!("packages/{}", target.name), title)
        };
        let replicas = self.replicas.iter().flat_map(|replica| {
            let title =
                format!("Restart {} if it runs an older program, until it receives again", replica.name);
            [packages(replica), StepLabel::new(format!("restart/{}", replica.name), title)]
        });
        let last = self.last.plan().into_iter().filter(|step| step.name != "finish");
        let finish = StepLabel::new("finish", "See that all run what is installed, and tell of it");
        replicas.chain([packages(&self.primary)]).chain(last).chain([finish]).collect()
    }
}

fn leave() -> StepLabel {
    StepLabel::new("as_it_is", "Leave those that were upgraded as they are")
}
