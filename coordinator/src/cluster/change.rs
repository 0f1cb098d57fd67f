//! The legal changes of a cluster: each takes the record as it is and gives the record as it must be stored.

use std::collections::BTreeSet;

use holdfast_common::assignment::Synchronous;
use holdfast_common::error::{Classify, Metadata, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::term::Term;

use super::{Cluster, Member, MemberPhase, Phase, invariants};

/// A change that would not be legal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("node {node} is no member of cluster {cluster}")]
    NoMember { cluster: String, node: NodeId },
    #[error("node {node} already has a member of cluster {cluster}")]
    MemberExists { cluster: String, node: NodeId },
    #[error("node {node} has the primary of cluster {cluster}; promote another member first")]
    IsPrimary { cluster: String, node: NodeId },
    #[error("cluster {cluster} already has a primary")]
    HasPrimary { cluster: String },
    #[error("the change would break an invariant")]
    Invariant(#[source] invariants::Broken),
}

impl Cluster {
    /// The first primary: its data exist and have this identity.
    ///
    /// # Errors
    /// If there is one already, or `node` is no member.
    pub fn with_first_primary(self, node: NodeId, system_identifier: String) -> Result<Self, ChangeError> {
        if self.primary.is_some_and(|primary| primary != node) {
            return Err(ChangeError::HasPrimary { cluster: self.name.to_string() });
        }
        let activated = self.with_phase_of(node, MemberPhase::Active)?;
        Self {
            term: Term::FIRST,
            primary: Some(node),
            system_identifier: Some(system_identifier),
            ..activated
        }
        .checked()
    }

    /// Another member is primary of a later term; the replicas that its commits wait for are those given.
    ///
    /// # Errors
    /// If the node has no active member, or the set names others than active replicas.
    pub fn with_primary(
        self,
        node: NodeId,
        term: Term,
        synchronous: Synchronous,
    ) -> Result<Self, ChangeError> {
        Self { term, primary: Some(node), synchronous, strengthening: None, ..self }.checked()
    }

    /// The same primary in a later term.
    ///
    /// # Errors
    /// If an invariant does not hold.
    pub fn with_term(self, term: Term) -> Result<Self, ChangeError> {
        Self { term, ..self }.checked()
    }

    /// A new member whose data are still to be made.
    ///
    /// # Errors
    /// If the node has one already.
    pub fn with_joining(mut self, member: Member) -> Result<Self, ChangeError> {
        if self.member(member.node_id).is_some() {
            return Err(ChangeError::MemberExists { cluster: self.name.to_string(), node: member.node_id });
        }
        self.members.push(Member { phase: MemberPhase::Joining, ..member });
        self.checked()
    }

    /// The member's data are there.
    ///
    /// # Errors
    /// If there is no such member.
    pub fn with_active(self, node: NodeId) -> Result<Self, ChangeError> {
        self.with_phase_of(node, MemberPhase::Active)?.checked()
    }

    /// The replica's data are about to be aligned with the primary's: it leaves the synchronous set with that.
    ///
    /// # Errors
    /// If it is the primary, or no member.
    pub fn with_aligning(self, node: NodeId) -> Result<Self, ChangeError> {
        if self.primary == Some(node) {
            return Err(ChangeError::IsPrimary { cluster: self.name.to_string(), node });
        }
        let synchronous = self.synchronous_without(node);
        let cluster = self.with_phase_of(node, MemberPhase::Aligning)?;
        Self { synchronous, strengthening: None, ..cluster }.checked()
    }

    /// The replica's data are about to be removed. It must have left the synchronous set before.
    ///
    /// # Errors
    /// If it is the primary or still in the set.
    pub fn with_leaving(self, node: NodeId) -> Result<Self, ChangeError> {
        if self.primary == Some(node) {
            return Err(ChangeError::IsPrimary { cluster: self.name.to_string(), node });
        }
        self.with_phase_of(node, MemberPhase::Leaving)?.checked()
    }

    /// The member is gone; nothing where it was not there.
    ///
    /// # Errors
    /// If it is the primary.
    pub fn without(mut self, node: NodeId) -> Result<Self, ChangeError> {
        if self.primary == Some(node) {
            return Err(ChangeError::IsPrimary { cluster: self.name.to_string(), node });
        }
        self.members.retain(|member| member.node_id != node);
        self.checked()
    }

    /// Strengthening: the primary is told first.
    ///
    /// # Errors
    /// If the set names others than active replicas.
    pub fn with_strengthening(self, set: Synchronous) -> Result<Self, ChangeError> {
        Self { strengthening: Some(set), ..self }.checked()
    }

    /// Strengthening, second half: the primary enforces the set and all of it has caught up.
    ///
    /// # Errors
    /// If the set names others than active replicas.
    pub fn with_strengthened(self) -> Result<Self, ChangeError> {
        match self.strengthening.clone() {
            Some(set) => Self { synchronous: set, strengthening: None, ..self }.checked(),
            None => Ok(self),
        }
    }

    /// Relaxing: recorded first, then the primary is told.
    ///
    /// # Errors
    /// If the set names others than active replicas.
    pub fn with_relaxed(self, set: Synchronous) -> Result<Self, ChangeError> {
        Self { synchronous: set, strengthening: None, ..self }.checked()
    }

    /// The synchronous set without a replica that is about to leave.
    pub fn synchronous_without(&self, node: NodeId) -> Synchronous {
        let nodes: Vec<NodeId> =
            self.synchronous.nodes.iter().copied().filter(|member| *member != node).collect();
        let members = self.members.iter().filter(|member| member.node_id != node).count();
        let count = self.durability.synchronous_count(members).min(nodes.len());
        if count == 0 {
            return Synchronous::default();
        }
        Synchronous { count: u32::try_from(count).unwrap_or(u32::MAX), nodes }
    }

    /// The synchronous set of another primary: all other active members, of which as many are waited for as now.
    pub fn synchronous_under(&self, primary: NodeId) -> Synchronous {
        let count = self.synchronous.count;
        let others = self
            .members
            .iter()
            .filter(|member| member.node_id != primary && member.phase == MemberPhase::Active && count > 0);
        Synchronous { count, nodes: others.map(|member| member.node_id).collect() }
    }

    /// The same, where a person has said that the others are lost: only of these members, and of as many of them as there are.
    pub fn synchronous_among(&self, primary: NodeId, there: &BTreeSet<NodeId>) -> Synchronous {
        let Synchronous { count, mut nodes } = self.synchronous_under(primary);
        nodes.retain(|node| there.contains(node));
        let count = count.min(u32::try_from(nodes.len()).unwrap_or(u32::MAX));
        if count == 0 { Synchronous::default() } else { Synchronous { count, nodes } }
    }

    /// All that was asked for at its creation is there.
    ///
    /// # Errors
    /// If an invariant does not hold.
    pub fn finished(self) -> Result<Self, ChangeError> {
        Self { phase: Phase::Active, ..self }.checked()
    }

    /// It is being removed.
    #[must_use]
    pub fn deleting(self) -> Self {
        Self { phase: Phase::Deleting, ..self }
    }

    fn with_phase_of(mut self, node: NodeId, phase: MemberPhase) -> Result<Self, ChangeError> {
        let cluster = self.name.to_string();
        let member = self
            .members
            .iter_mut()
            .find(|member| member.node_id == node)
            .ok_or(ChangeError::NoMember { cluster, node })?;
        member.phase = phase;
        Ok(self)
    }

    fn checked(self) -> Result<Self, ChangeError> {
        invariants::check(&self).map_err(ChangeError::Invariant)?;
        Ok(self)
    }
}

impl Classify for ChangeError {
    fn reason(&self) -> Reason {
        match self {
            Self::NoMember { .. } => Reason::MemberNotFound,
            Self::MemberExists { .. } => Reason::MemberExists,
            Self::IsPrimary { .. } | Self::HasPrimary { .. } => Reason::PreconditionFailed,
            Self::Invariant(_) => Reason::Internal,
        }
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        match self {
            Self::NoMember { cluster, node }
            | Self::MemberExists { cluster, node }
            | Self::IsPrimary { cluster, node } => {
                metadata.insert("cluster".into(), cluster.clone());
                metadata.insert("node".into(), node.to_string());
            }
            Self::HasPrimary { cluster } => {
                metadata.insert("cluster".into(), cluster.clone());
            }
            Self::Invariant(_) => {}
        }
        metadata
    }
}
