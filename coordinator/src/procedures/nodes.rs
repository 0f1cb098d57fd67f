//! What procedures see of the nodes: the seam between them and the live fleet.

use std::fmt;

use futures::future::BoxFuture;
use holdfast_common::assignment::MemberAssignment;
use holdfast_common::command::{Command, Progress, Success};
use holdfast_common::error::{Classify as _, Failure};
use holdfast_common::id::{ClusterId, CommandId, NodeId};
use holdfast_common::question::{Answer, Question};
use holdfast_common::role::Availability;
use holdfast_common::telemetry::Filtering;
use tokio::sync::watch;

use crate::cluster::observed::NodeState;
use crate::fleet;
use crate::operation::procedure::Error;

pub use crate::fleet::{Boot, CallError};

/// The nodes as procedures see them.
pub trait Nodes: fmt::Debug + Send + Sync {
    /// What is known of a node and its member of the cluster; `None`: the node is not in the fleet.
    fn state(&self, node: NodeId, cluster: ClusterId) -> Option<NodeState>;

    /// Whether a node gives signs of life; `None`: it is not in the fleet.
    fn availability(&self, node: NodeId) -> Option<Availability>;

    /// Whether nothing is heard of a node, or it is not in the fleet.
    fn is_silent(&self, node: NodeId) -> bool {
        self.availability(node).is_none_or(|availability| availability == Availability::Offline)
    }

    /// The member's assignment that is fully true on its node, as far as that has said; none while it has a newer one to make true.
    fn converged(&self, node: NodeId, cluster: ClusterId) -> Option<MemberAssignment>;

    /// Whether the node can keep anybody away from its engines, as it last told.
    fn filtering(&self, node: NodeId) -> Filtering;

    /// How large the node's machine is, as it last told.
    fn machine(&self, node: NodeId) -> Option<Machine>;

    /// The boot that the node's newest session is of; `None` before its first to this run of the coordinator.
    fn boot(&self, node: NodeId) -> Option<Boot>;

    /// Whether the node waits for a boot that makes installed packages take effect, as it tells now; `None`: it does not.
    fn needs_reboot(&self, node: NodeId) -> Option<bool>;

    /// Asks about the node's member of the cluster. Changes nothing there; a silent node is waited for at most 20 s.
    fn ask(
        &self,
        node: NodeId,
        cluster: ClusterId,
        question: Question,
    ) -> BoxFuture<'_, Result<Answer, CallError>>;

    /// Changes whenever something may have become known.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Sends the command and waits for its outcome, until the command's deadline; a repeat of an id gets the same outcome.
    ///
    /// # Cancel safety
    /// Dropping it leaves the command running on the node.
    fn call<'a>(
        &'a self,
        node: NodeId,
        command: Command,
        progress: &'a (dyn Fn(Progress) + Send + Sync),
    ) -> BoxFuture<'a, Result<Success, CallError>>;

    /// Asks the node to give a command up. Its outcome still comes.
    fn cancel(&self, node: NodeId, command: CommandId);
}

/// A node's machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    pub cores: u32,
    pub memory_bytes: u64,
}

impl Nodes for fleet::Handle {
    fn state(&self, node: NodeId, cluster: ClusterId) -> Option<NodeState> {
        let view = self.node(node)?;
        let report = view.report.as_ref().map(|received| (&*received.report, received.received_at));
        Some(NodeState::new(view.availability, report, cluster))
    }

    fn availability(&self, node: NodeId) -> Option<Availability> {
        Some(self.node(node)?.availability)
    }

    fn converged(&self, node: NodeId, cluster: ClusterId) -> Option<MemberAssignment> {
        let view = self.node(node)?;
        let (assignment, report) = (view.assignment?, view.report?);
        let member = report.report.members.iter().find(|member| member.cluster_id == cluster)?;
        let member = (member.converged_generation == assignment.generation).then_some(member)?;
        assignment.member(member.cluster_id).cloned()
    }

    fn filtering(&self, node: NodeId) -> Filtering {
        let facts = self.node(node).and_then(|view| view.facts);
        facts.map(|facts| facts.inventory.filtering.clone()).unwrap_or_default()
    }

    fn machine(&self, node: NodeId) -> Option<Machine> {
        let facts = self.node(node)?.facts?;
        let (cores, memory_bytes) = (facts.inventory.logical_cores, facts.inventory.memory_bytes);
        Some(Machine { cores, memory_bytes })
    }

    fn boot(&self, node: NodeId) -> Option<Boot> {
        self.node(node)?.boot
    }

    fn needs_reboot(&self, node: NodeId) -> Option<bool> {
        let view = self.node(node).filter(|view| view.availability == Availability::Online)?;
        view.sample?.reboot_required
    }

    fn ask(
        &self,
        node: NodeId,
        cluster: ClusterId,
        question: Question,
    ) -> BoxFuture<'_, Result<Answer, CallError>> {
        Box::pin(Self::ask(self, node, cluster, question))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        Self::changes(self)
    }

    fn call<'a>(
        &'a self,
        node: NodeId,
        command: Command,
        progress: &'a (dyn Fn(Progress) + Send + Sync),
    ) -> BoxFuture<'a, Result<Success, CallError>> {
        Box::pin(Self::call(self, node, command, progress))
    }

    fn cancel(&self, node: NodeId, command: CommandId) {
        Self::cancel(self, node, command);
    }
}

/// As the failure of a step: what the node refused is final unless it says otherwise, silence is tried again.
pub(super) fn step_error(node: &impl fmt::Display, error: CallError) -> Error {
    match error {
        CallError::NotSent { .. } | CallError::Unanswered { .. } => Error::again(error.to_failure()),
        CallError::Failed(failure) => Error::new(on_node(node, failure)).commands_ended(),
    }
}

/// The same failure, saying on which node.
pub(super) fn on_node(node: &impl fmt::Display, mut failure: Failure) -> Failure {
    failure.message = format!("node {node}: {}", failure.message);
    failure.with("node", node)
}
