//! What must hold before a change of a cluster, looked at now.

use std::time::Duration;

use futures::future::join_all;
use holdfast_common::assignment::Exposure;
use holdfast_common::command::{CheckMember, CheckedMember, Command, Payload, Success};
use holdfast_common::engine::{Engine, Parameters};
use holdfast_common::error::Violation;
use holdfast_common::id::{ClusterId, CommandId, NodeId};
use holdfast_common::name::NodeName;
use holdfast_common::role::Availability;
use holdfast_common::telemetry::Filtering;
use holdfast_common::term::Term;
use jiff::Timestamp;

use super::Desk;
use crate::cluster::Cluster;
use crate::directory::{Drained, Node};
use crate::procedures::Means;
use crate::procedures::nodes::CallError;
use crate::procedures::steps::deadline;

/// How long a node may take to look.
const CHECK_TIME: Duration = Duration::from_secs(20);
/// Wall clocks may differ by this: certificates and recovery targets bear it.
const MAX_CLOCK_OFFSET: Duration = Duration::from_secs(5);

/// One thing that must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Precondition {
    /// Lower snake case, such as `port_free`.
    pub name: String,
    /// What it is about, such as `nodes/n1`.
    pub subject: String,
    pub met: bool,
    /// What was found, and where it is not met, what to do.
    pub message: String,
}

// === impl Precondition ===

impl Precondition {
    pub(super) fn new(name: &str, subject: String, met: bool, message: impl Into<String>) -> Self {
        Self { name: name.into(), subject, met, message: message.into() }
    }
}

pub(super) fn about_node(name: &NodeName) -> String {
    format!("nodes/{name}")
}

/// Whether each node is online.
pub(super) fn online(means: &Means, cluster: ClusterId, nodes: &[(NodeId, NodeName)]) -> Vec<Precondition> {
    nodes
        .iter()
        .map(|(id, name)| {
            let state = means.nodes.state(*id, cluster).map(|state| state.availability);
            let message = match state {
                Some(availability) => format!("the node is {availability}"),
                None => "the node is not known".to_owned(),
            };
            let met = matches!(state, Some(Availability::Online | Availability::Late));
            let remedy = if met {
                ""
            } else {
                "; start its agent (systemctl start holdfast-agent) and look at its log"
            };
            Precondition::new("node_online", about_node(name), met, message + remedy)
        })
        .collect()
}

/// Whether a node may get new roles.
pub(super) fn not_draining(name: &NodeName, drained: Option<&Drained>) -> Precondition {
    let message = match drained {
        None => "the node is not drained".to_owned(),
        Some(drained) => {
            format!("the node gets no new roles: drained {drained}; holdfast node undrain {name} allows them")
        }
    };
    Precondition::new("not_draining", about_node(name), drained.is_none(), message)
}

/// Whether each node can keep people away from the port, or need not.
pub(super) fn filters(desk: &Desk, exposure: Exposure, nodes: &[&Node]) -> Vec<Precondition> {
    let remedy =
        "; --allow-unfiltered makes the cluster there nevertheless, open to everybody who reaches the port";
    let look = |node: &&Node| {
        let (can, message) = match desk.means.nodes.filtering(node.id) {
            Filtering::Available => (true, "the node filters who reaches the port".to_owned()),
            // It may work by then; without it nothing is started there.
            Filtering::Failed { reason } => {
                (true, format!("the node filters, once this is mended: {reason}"))
            }
            Filtering::Unavailable { reason } => (false, format!("the node cannot filter: {reason}")),
            Filtering::Unknown => (false, "the node has not told whether it can filter".to_owned()),
        };
        let met = can || exposure == Exposure::AlsoUnfiltered;
        let message = if met { message } else { message + remedy };
        Precondition::new("port_filtered", about_node(&node.name), met, message)
    };
    nodes.iter().map(look).collect()
}

/// Asks each node whether it could have a member, and gives what it found where it answered.
pub(super) async fn check_nodes(
    desk: &Desk,
    nodes: &[&Node],
    check: &CheckMember,
) -> (Vec<Precondition>, Vec<(NodeId, CheckedMember)>) {
    // The time is taken with each answer: another node's may come much later.
    let asked = nodes.iter().map(|node| async move {
        let answer = ask(desk, node.id, check).await;
        (node, answer, desk.means.clock.now())
    });
    let answers = join_all(asked).await;
    let mut conditions = Vec::new();
    let mut found = Vec::new();
    for (node, answer, now) in answers {
        let subject = about_node(&node.name);
        match answer {
            Ok(Success::CheckMember(checked)) => {
                conditions.extend(checked.checks.iter().map(|check| {
                    Precondition::new(&check.name, subject.clone(), check.met, check.message.clone())
                }));
                conditions.push(clock(now, &checked, subject));
                found.push((node.id, checked));
            }
            Ok(_) => conditions.push(Precondition::new(
                "node_answers",
                subject,
                false,
                "gave an unexpected answer",
            )),
            Err(error) => {
                conditions.push(Precondition::new("node_answers", subject, false, error.to_string()))
            }
        }
    }
    (conditions, found)
}

async fn ask(desk: &Desk, node: NodeId, check: &CheckMember) -> Result<Success, CallError> {
    let means = &desk.means;
    let command = Command {
        id: CommandId::generate(),
        coordinator_generation: means.coordinator_generation,
        term: Term::NONE,
        deadline: deadline(means.clock.now(), CHECK_TIME),
        payload: Payload::CheckMember(check.clone()),
    };
    means.nodes.call(node, command, &|_| {}).await
}

fn clock(now: Timestamp, checked: &CheckedMember, subject: String) -> Precondition {
    let offset = now.duration_since(checked.node_time).unsigned_abs();
    let message = format!("the node's clock differs by {:.1} s from the coordinator's", offset.as_secs_f64());
    let met = offset <= MAX_CLOCK_OFFSET;
    let remedy = if met { "" } else { "; at most 5 s are allowed: set it right, best with an NTP service" };
    Precondition::new("clock_in_step", subject, met, message + remedy)
}

/// The parameters that ask for more memory than the node has; none if all fit.
pub(super) fn parameters_fit(
    engine: Engine,
    parameters: &Parameters,
    node: &Node,
    checked: &CheckedMember,
) -> Vec<Precondition> {
    let beyond = engine.beyond_memory(parameters, checked.memory_bytes);
    let unmet = |it: Violation| Precondition::new(&it.name, about_node(&node.name), false, it.message);
    beyond.into_iter().map(unmet).collect()
}

/// The ports that another cluster already has on a node.
pub(super) fn ports_not_taken(
    clusters: &[Cluster],
    own: ClusterId,
    nodes: &[&Node],
    ports: &[u16],
    remedy: &str,
) -> Vec<Precondition> {
    let taken = |node: &&Node, port: &u16| {
        let rival = clusters.iter().find(|cluster| {
            cluster.id != own && cluster.ports().contains(port) && cluster.member(node.id).is_some()
        })?;
        let message = format!("port {port} belongs to cluster `{}` there; {remedy}", rival.name);
        Some(Precondition::new("port_free", about_node(&node.name), false, message))
    };
    nodes.iter().flat_map(|node| ports.iter().filter_map(move |port| taken(node, port))).collect()
}
