//! What must hold for every stored cluster; checked before each write, and by the tests after each event.

use std::collections::BTreeSet;

use holdfast_common::assignment::Synchronous;
use holdfast_common::id::NodeId;
use holdfast_common::term::Term;

use super::{Cluster, MemberPhase, Phase};

/// An invariant that does not hold: a defect of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("node {0} is named twice among the members")]
    MemberTwice(NodeId),
    #[error("the primary {0} is no active member")]
    PrimaryNotActive(NodeId),
    #[error("there is a primary without a term, or a term without a primary")]
    TermWithoutPrimary,
    #[error("{0} is in the synchronous set and no active replica")]
    SynchronousNotActive(NodeId),
    #[error("{count} of {nodes} nodes cannot be synchronous")]
    SynchronousCount { count: u32, nodes: usize },
    #[error("an active cluster has no primary")]
    ActiveWithoutPrimary,
    #[error("a cluster with a primary has no system identifier")]
    NoSystemIdentifier,
}

/// Whether the record may be stored.
///
/// # Errors
/// The first invariant that does not hold.
pub fn check(cluster: &Cluster) -> Result<(), Broken> {
    let mut seen = BTreeSet::new();
    for member in &cluster.members {
        if !seen.insert(member.node_id) {
            return Err(Broken::MemberTwice(member.node_id));
        }
    }
    if cluster.primary.is_some() != (cluster.term > Term::NONE) {
        return Err(Broken::TermWithoutPrimary);
    }
    if let Some(primary) = cluster.primary {
        if !is_active(cluster, primary) {
            return Err(Broken::PrimaryNotActive(primary));
        }
        if cluster.system_identifier.is_none() {
            return Err(Broken::NoSystemIdentifier);
        }
    }
    if cluster.phase == Phase::Active && cluster.primary.is_none() {
        return Err(Broken::ActiveWithoutPrimary);
    }
    for set in [Some(&cluster.synchronous), cluster.strengthening.as_ref()].into_iter().flatten() {
        check_set(cluster, set)?;
    }
    Ok(())
}

fn check_set(cluster: &Cluster, set: &Synchronous) -> Result<(), Broken> {
    let Synchronous { count, nodes } = set;
    if usize::try_from(*count).map_or(true, |count| count > nodes.len()) || (*count == 0) != nodes.is_empty()
    {
        return Err(Broken::SynchronousCount { count: *count, nodes: nodes.len() });
    }
    match nodes.iter().find(|node| cluster.primary == Some(**node) || !is_active(cluster, **node)) {
        Some(node) => Err(Broken::SynchronousNotActive(*node)),
        None => Ok(()),
    }
}

fn is_active(cluster: &Cluster, node: NodeId) -> bool {
    cluster.member(node).is_some_and(|member| member.phase == MemberPhase::Active)
}
