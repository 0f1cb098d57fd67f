//! What the fake's members have, and how they replicate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use holdfast_common::assignment::{MemberAssignment, Peer, RoleAssignment, Synchronous};
use holdfast_common::budget::{Budget, Tuning};
use holdfast_common::command::Verifier;
use holdfast_common::id::{ClusterId, CommandId, NodeId};
use holdfast_common::name::ClusterName;
use holdfast_common::position::Position;
use holdfast_common::protocol::Tail;
use holdfast_common::report::{EngineState, Follower};
use holdfast_common::role::Role;
use holdfast_common::term::Term;
use jiff::Timestamp;

use super::{COPY_BYTES, Step};
use crate::engine::{Error, Observation, Resynced};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) members: BTreeMap<(ClusterId, NodeId), Member>,
    pub(super) failures: BTreeMap<(NodeId, Step), VecDeque<String>>,
    pub(super) cut: BTreeSet<NodeId>,
    pub(super) systems: u64,
    /// Which build the package sources have.
    pub(super) offered: Option<String>,
    /// Which one each node has, where that is another than the first.
    pub(super) installed: BTreeMap<NodeId, String>,
    /// What each node's member counts on, and could.
    pub(super) tunings: BTreeMap<NodeId, Tuning>,
    /// Which node's size somebody was told of.
    pub(super) told: BTreeMap<NodeId, Budget>,
    pub(super) deeds: BTreeMap<(NodeId, Step), u64>,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) cluster_name: ClusterName,
    pub(super) made_by: CommandId,
    pub(super) complete: bool,
    pub(super) system_identifier: String,
    pub(super) role: Role,
    /// The newest term that is written in its data.
    pub(super) term: Term,
    pub(super) sealed: bool,
    pub(super) running_since: Option<Timestamp>,
    /// Which build the running server is of.
    pub(super) build: Option<String>,
    pub(super) offset: u64,
    /// Which terms are written in its log, and where each begins.
    pub(super) begun: Vec<(Term, u64)>,
    /// Its data were being rewound or replaced, and are neither the old ones nor the new.
    pub(super) broken: bool,
    /// The last command that resynced it, and what came of it.
    pub(super) resynced: Option<(CommandId, Resynced)>,
    pub(super) listens: Option<(IpAddr, u16)>,
    pub(super) configured: Option<Configured>,
    pub(super) admitted: BTreeSet<NodeId>,
    pub(super) passwords: BTreeMap<String, Verifier>,
}

/// What [`Engine::configure`](crate::engine::Engine::configure) took over.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Configured {
    pub(super) role: RoleAssignment,
    pub(super) members: Vec<Peer>,
    pub(super) parameters: holdfast_common::engine::Parameters,
}

// === impl State ===

impl State {
    pub(super) fn begin(&mut self, node: NodeId, step: Step) -> Result<(), Error> {
        *self.deeds.entry((node, step)).or_default() += 1;
        match self.failures.get_mut(&(node, step)).and_then(VecDeque::pop_front) {
            Some(problem) => Err(Error::Wrong { deed: format!("{step:?}"), problem }),
            None => Ok(()),
        }
    }

    pub(super) fn installed(&self, node: NodeId) -> String {
        self.installed.get(&node).cloned().unwrap_or_else(|| "15.0".to_owned())
    }

    pub(super) fn complete(&self, cluster: ClusterId, node: NodeId) -> Result<&Member, Error> {
        self.members.get(&(cluster, node)).filter(|member| member.complete).ok_or(Error::Absent { cluster })
    }

    pub(super) fn complete_mut(&mut self, cluster: ClusterId, node: NodeId) -> Result<&mut Member, Error> {
        let found = self.members.get_mut(&(cluster, node)).filter(|member| member.complete);
        found.ok_or(Error::Absent { cluster })
    }

    /// The same, with data that can be started.
    pub(super) fn whole_mut(&mut self, cluster: ClusterId, node: NodeId) -> Result<&mut Member, Error> {
        self.complete_mut(cluster, node)
            .and_then(|member| if member.broken { Err(Error::Absent { cluster }) } else { Ok(member) })
    }

    /// Whether this command may (still) make the member here; the result if it has done so already.
    pub(super) fn vacancy(
        &self,
        cluster: ClusterId,
        node: NodeId,
        command: CommandId,
    ) -> Result<Option<&Member>, Error> {
        match self.members.get(&(cluster, node)) {
            None => Ok(None),
            Some(member) if member.made_by != command => Err(Error::Exists { cluster }),
            Some(member) => Ok(member.complete.then_some(member)),
        }
    }

    /// The running primary that a member would reach at `peer`.
    pub(super) fn upstream(&self, cluster: ClusterId, node: NodeId, peer: &Peer) -> Option<&Member> {
        if self.cut.contains(&node) || self.cut.contains(&peer.node_id) {
            return None;
        }
        let found = self.members.get(&(cluster, peer.node_id))?;
        let reachable = found.running_since.is_some() && found.listens == Some((peer.address, peer.port));
        (reachable && found.role == Role::Primary).then_some(found)
    }

    /// Whether all of a member's log is in that of the primary at `peer`; none if that cannot be reached.
    pub(super) fn has_all_of(&self, cluster: ClusterId, node: NodeId, peer: &Peer) -> Option<bool> {
        let source = self.upstream(cluster, node, peer)?;
        Some(self.members.get(&(cluster, node)).is_some_and(|member| source.has_all_of(member)))
    }

    /// Brings a running replica to where its upstream is, and says whether it streams.
    pub(super) fn stream(&mut self, cluster: ClusterId, node: NodeId) -> bool {
        let Some(member) = self.members.get(&(cluster, node)) else { return false };
        let Some(Configured { role: RoleAssignment::Replica { upstream }, .. }) = &member.configured else {
            return false;
        };
        let Some(source) = self.upstream(cluster, node, upstream) else { return false };
        let streams = member.running_since.is_some()
            && !member.sealed
            && source.system_identifier == member.system_identifier
            && source.has_all_of(member)
            && source.admitted.contains(&node);
        let (offset, term, begun) = (source.offset, source.term, source.begun.clone());
        if streams && let Some(member) = self.members.get_mut(&(cluster, node)) {
            (member.offset, member.term, member.begun) = (offset, term, begun);
        }
        streams
    }

    pub(super) fn followers(&mut self, cluster: ClusterId, node: NodeId) -> Vec<Follower> {
        let Some(primary) = self.members.get(&(cluster, node)) else { return Vec::new() };
        let named = match &primary.configured {
            Some(Configured { role: RoleAssignment::Primary { synchronous }, .. }) => {
                synchronous.nodes.clone()
            }
            _ => Vec::new(),
        };
        let others: Vec<NodeId> = primary.admitted.iter().copied().collect();
        others
            .into_iter()
            .filter_map(|other| {
                let streaming = self.stream(cluster, other);
                let offset = self.members.get(&(cluster, other))?.offset;
                streaming.then(|| Follower {
                    node_id: other,
                    flushed_offset: Some(offset),
                    synchronous: named.contains(&other),
                    streaming,
                })
            })
            .collect()
    }

    pub(super) fn observe(&mut self, cluster: ClusterId, node: NodeId) -> Observation {
        let streaming = self.stream(cluster, node);
        let followers = self.followers(cluster, node);
        let Some(member) = self.members.get(&(cluster, node)).filter(|member| member.complete) else {
            return Observation::only(EngineState::Absent);
        };
        if member.broken {
            return Observation {
                system_identifier: Some(member.system_identifier.clone()),
                message: "a resync of its data was cut".to_owned(),
                needs_resync: true,
                ..Observation::only(EngineState::Stopped)
            };
        }
        let running = member.running_since.is_some();
        let installed = self.installed(node);
        let primary = member.role == Role::Primary;
        let position = Position { era: 1, offset: member.offset };
        let synchronous = match &member.configured {
            Some(Configured { role: RoleAssignment::Primary { synchronous }, .. }) if running => {
                synchronous.clone()
            }
            _ => Synchronous::default(),
        };
        Observation {
            role: running.then_some(member.role),
            data_role: Some(member.role),
            term: (running && primary).then_some(member.term),
            sealed: member.sealed,
            position: running.then_some(position),
            replayed: (running && !primary).then_some(position),
            lag_seconds: (running && !primary && streaming).then_some(0.0),
            streaming: (running && !primary).then_some(streaming),
            followers: if running && primary { followers } else { Vec::new() },
            synchronous: if primary { synchronous } else { Synchronous::default() },
            system_identifier: Some(member.system_identifier.clone()),
            engine_version: Some("15.0".to_owned()),
            server_build: running.then(|| member.build.clone().unwrap_or_else(|| installed.clone())),
            installed_build: Some(installed),
            started_at: member.running_since,
            data_bytes: Some(COPY_BYTES),
            tuning: Some(self.tuning(node)),
            ..Observation::only(if running { EngineState::Running } else { EngineState::Stopped })
        }
    }
}

// === impl Member ===

impl Member {
    /// Whether all of the other's log is in this one.
    pub(super) fn has_all_of(&self, other: &Self) -> bool {
        let next = self.begun.get(other.begun.len()).map_or(self.offset, |(_, at)| *at);
        self.begun.starts_with(&other.begun) && other.offset <= next
    }

    pub(super) fn tail(&self) -> Tail {
        Tail { term: self.term.max(Term::FIRST), position: Position { era: 1, offset: self.offset } }
    }
}

// === impl Configured ===

impl Configured {
    pub(super) fn of(member: &MemberAssignment) -> Self {
        let (role, members) = (member.role.clone(), member.members.clone());
        Self { role, members, parameters: member.parameters.clone() }
    }
}

/// Who may follow it, as it is assigned.
pub(super) fn admitted(member: &MemberAssignment, own: NodeId) -> BTreeSet<NodeId> {
    match member.role {
        RoleAssignment::Primary { .. } => others(member, own),
        RoleAssignment::Replica { .. } => BTreeSet::new(),
    }
}

/// The other members.
pub(super) fn others(member: &MemberAssignment, own: NodeId) -> BTreeSet<NodeId> {
    member.members.iter().map(|peer| peer.node_id).filter(|id| *id != own).collect()
}
