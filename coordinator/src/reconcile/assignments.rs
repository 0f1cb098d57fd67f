//! Every node's assignment is what the clusters' records ask for. It is stored, with a generation above all earlier ones,
//! before it is sent; the fleet sends it to whoever has an older one.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::access::Access;
use holdfast_common::assignment::{Assignment, MemberAssignment};
use holdfast_common::generation::Generation;
use holdfast_common::id::NodeId;
use holdfast_common::pki::Fingerprint;
use serde::{Deserialize, Serialize};

use super::Loop;
use crate::cluster::{Cluster, assignment};
use crate::directory::{self, NODES, Node};
use crate::fleet;
use crate::procedures::access::AllStored;
use crate::procedures::records::{self, Records};
use crate::store::{self, Key, Op, Txn};

const ASSIGNMENTS: &str = "assignments/";

/// The loop's means.
#[derive(Debug)]
pub struct Assignments {
    records: Records,
    fleet: fleet::Handle,
    /// As stored, to read them only once.
    stored: Option<BTreeMap<NodeId, Known>>,
    /// As read last: they are large, and change seldom.
    access: AllStored,
}

/// What a node must keep true, as it is stored: without the access rules, which have records of their own and may be larger
/// than a record may be. What they add up to tells whether they have changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    assignment: Assignment,
    #[serde(default)]
    access: Option<Fingerprint>,
}

/// What a node was told last.
#[derive(Debug)]
enum Known {
    /// In full.
    Told(Assignment),
    /// As it was stored by an earlier run.
    Kept(Kept),
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Records(#[from] records::Error),
    #[error(transparent)]
    Directory(#[from] directory::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

fn key(node: NodeId) -> Key {
    Key::from(format!("{ASSIGNMENTS}{node}"))
}

// === impl Assignments ===

impl Assignments {
    pub fn new(records: Records, fleet: fleet::Handle) -> Self {
        Self { records, fleet, stored: None, access: AllStored::new() }
    }

    /// What is stored; from the store only the first time, since nobody else writes it.
    async fn stored(&mut self) -> Result<&mut BTreeMap<NodeId, Known>, Error> {
        if self.stored.is_none() {
            let mut stored = BTreeMap::new();
            for record in self.records.directory().list::<Kept>(ASSIGNMENTS).await? {
                let node = record.key.as_str().trim_start_matches(ASSIGNMENTS).parse();
                if let Ok(node) = node {
                    stored.insert(node, Known::Kept(record.value));
                }
            }
            self.stored = Some(stored);
        }
        Ok(self.stored.get_or_insert_with(BTreeMap::new))
    }

    async fn bring_up_to_date(&mut self, clusters: &[Cluster], node: NodeId) -> Result<(), Error> {
        let directory = self.records.directory().clone();
        let coordinator_generation = self.fleet.coordinator_generation();
        let members = assignment::members_of(
            clusters,
            |cluster| self.access.get(&cluster).map(|stored| &stored.declared),
            node,
        );
        let stored = self.stored().await?;
        let known = stored.get(&node);
        if known.is_none() && members.is_empty() {
            return Ok(());
        }
        let generation = known.map_or(Generation::NONE, Known::generation);
        let same = known.is_some_and(|known| known.is(coordinator_generation, &members));
        let generation = if same { generation } else { generation.next() };
        let current = Assignment { coordinator_generation, generation, members };
        if !same {
            directory.put(&key(node), &Kept::of(&current)).await?;
        }
        stored.insert(node, Known::Told(current.clone()));
        self.fleet.assign(node, current);
        Ok(())
    }

    async fn forget(&mut self, nodes: &BTreeSet<NodeId>) -> Result<(), Error> {
        let directory = self.records.directory().clone();
        let stored = self.stored().await?;
        let gone: Vec<NodeId> = stored.keys().filter(|node| !nodes.contains(node)).copied().collect();
        for node in gone {
            directory.store().txn(Txn::new().then(Op::delete(key(node)))).await?;
            stored.remove(&node);
        }
        Ok(())
    }
}

// === impl Kept ===

impl Kept {
    fn of(assignment: &Assignment) -> Self {
        let members = without_access(&assignment.members);
        Self { assignment: Assignment { members, ..*assignment }, access: Some(sum(&assignment.members)) }
    }
}

// === impl Known ===

impl Known {
    fn generation(&self) -> Generation {
        match self {
            Self::Told(assignment) | Self::Kept(Kept { assignment, .. }) => assignment.generation,
        }
    }

    fn is(&self, coordinator: Generation, members: &[MemberAssignment]) -> bool {
        match self {
            Self::Told(told) => told.coordinator_generation == coordinator && told.members == members,
            Self::Kept(Kept { assignment, access }) => {
                assignment.coordinator_generation == coordinator
                    && assignment.members == without_access(members)
                    && *access == Some(sum(members))
            }
        }
    }
}

fn without_access(members: &[MemberAssignment]) -> Vec<MemberAssignment> {
    members.iter().map(|member| MemberAssignment { access: Access::default(), ..member.clone() }).collect()
}

/// What the members' access rules add up to.
fn sum(members: &[MemberAssignment]) -> Fingerprint {
    let rules: Vec<&Access> = members.iter().map(|member| &member.access).collect();
    Fingerprint::of(&serde_json::to_vec(&rules).expect("rules are plain lists and texts"))
}

impl Loop for Assignments {
    type Error = Error;
    const NAME: &'static str = "assignments";

    async fn round(&mut self) -> Result<(), Error> {
        let clusters = self.records.all().await?;
        self.records.read_access(&mut self.access).await?;
        let nodes: BTreeSet<NodeId> = self
            .records
            .directory()
            .list::<Node>(NODES)
            .await?
            .into_iter()
            .map(|record| record.value.id)
            .collect();
        self.forget(&nodes).await?;
        // Clients may wait for a new primary to hear of it.
        let leading: BTreeSet<NodeId> = clusters.iter().filter_map(|cluster| cluster.primary).collect();
        let (primaries, others): (Vec<_>, Vec<_>) =
            nodes.into_iter().partition(|node| leading.contains(node));
        for node in primaries.into_iter().chain(others) {
            self.bring_up_to_date(&clusters, node).await?;
        }
        Ok(())
    }
}
