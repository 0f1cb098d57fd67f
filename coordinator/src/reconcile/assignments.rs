//! Every node's assignment is what the clusters' records ask for. It is stored, with a generation above all earlier ones,
//! before it is sent; the fleet sends it to whoever has an older one.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::assignment::Assignment;
use holdfast_common::generation::Generation;
use holdfast_common::id::NodeId;

use super::Loop;
use crate::cluster::{Cluster, assignment};
use crate::directory::{self, NODES, Node};
use crate::fleet;
use crate::procedures::records::{self, Records};
use crate::store::{self, Key, Op, Txn};

const ASSIGNMENTS: &str = "assignments/";

/// The loop's means.
#[derive(Debug)]
pub struct Assignments {
    records: Records,
    fleet: fleet::Handle,
    /// As stored, to read them only once.
    stored: Option<BTreeMap<NodeId, Assignment>>,
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
        Self { records, fleet, stored: None }
    }

    /// What is stored; from the store only the first time, since nobody else writes it.
    async fn stored(&mut self) -> Result<&mut BTreeMap<NodeId, Assignment>, Error> {
        if self.stored.is_none() {
            let mut stored = BTreeMap::new();
            for record in self.records.directory().list::<Assignment>(ASSIGNMENTS).await? {
                let node = record.key.as_str().trim_start_matches(ASSIGNMENTS).parse();
                if let Ok(node) = node {
                    stored.insert(node, record.value);
                }
            }
            self.stored = Some(stored);
        }
        Ok(self.stored.get_or_insert_with(BTreeMap::new))
    }

    async fn bring_up_to_date(&mut self, clusters: &[Cluster], node: NodeId) -> Result<(), Error> {
        let directory = self.records.directory().clone();
        let coordinator_generation = self.fleet.coordinator_generation();
        let members = assignment::members_of(clusters, node);
        let stored = self.stored().await?;
        let current = match stored.get(&node) {
            Some(known)
                if known.members == members && known.coordinator_generation == coordinator_generation =>
            {
                known.clone()
            }
            None if members.is_empty() => return Ok(()),
            other => {
                let generation = other.map_or(Generation::NONE, |known| known.generation).next();
                let assignment = Assignment { coordinator_generation, generation, members };
                directory.put(&key(node), &assignment).await?;
                stored.insert(node, assignment.clone());
                assignment
            }
        };
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

impl Loop for Assignments {
    type Error = Error;
    const NAME: &'static str = "assignments";

    async fn round(&mut self) -> Result<(), Error> {
        let clusters = self.records.all().await?;
        let nodes: BTreeSet<NodeId> = self
            .records
            .directory()
            .list::<Node>(NODES)
            .await?
            .into_iter()
            .map(|record| record.value.id)
            .collect();
        self.forget(&nodes).await?;
        for node in nodes {
            self.bring_up_to_date(&clusters, node).await?;
        }
        Ok(())
    }
}
