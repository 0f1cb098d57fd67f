//! Clusters' records in the store.
//!
//! ```text
//! clusters/<name>                    Cluster
//! cluster-access/…                  who may reach it ([`super::access`])
//! cluster-reigns/<cluster>           who is primary, who may be promoted ([`crate::lease`])
//! cluster-ports/<node>/<port>        ClusterName: makes a port of a node belong to one cluster
//! cluster-leftovers/<node>/<id>      Leftover: data to be removed when the node returns
//! ```
//! With every member `node-members/…` and `nodes/…` are written too ([`crate::directory`]).

use std::collections::BTreeMap;

use holdfast_common::access::RulesError;
use holdfast_common::error::{Classify, Failure, Metadata, Reason, Retry};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::term::Term;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::ClusterRef;
use crate::cluster::{ChangeError, Cluster, Member};
use crate::directory::{self, Directory, Drained, Node, membership_key, node_key, put};
use crate::store::record::Record;
use crate::store::{self, Compare, Key, Op, Txn};

/// Prefix of the clusters' records.
pub const CLUSTERS: &str = "clusters/";
const LEFTOVERS: &str = "cluster-leftovers/";
/// How often a compare-and-set is repeated.
const ATTEMPTS: usize = 20;

/// Typed access to them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Records {
    directory: Directory,
}

/// Data of a removed cluster or member that a node still has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    pub node_id: NodeId,
    pub cluster: ClusterRef,
    /// The cluster's last one: the node refuses the removal if it has accepted a higher.
    pub term: Term,
    pub since: Timestamp,
}

/// Why a record could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no cluster `{0}`")]
    NoCluster(ClusterName),
    #[error("node {0} has left the fleet")]
    NoNode(NodeId),
    #[error("node {0} gets no new members: it is drained; `holdfast node undrain {0}` allows them")]
    Drained(NodeName),
    #[error("cluster `{0}` was changed by somebody else at the same time, again and again")]
    Contended(ClusterName),
    #[error("the stored access rules make no sense")]
    Access(#[source] RulesError),
    #[error("the stored access rules of cluster {0} are not complete; set them anew")]
    AccessIncomplete(ClusterId),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Directory(#[from] directory::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Compares and writes that go into one transaction.
#[derive(Debug, Default)]
pub struct Writes {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

pub fn cluster_key(name: &ClusterName) -> Key {
    Key::from(format!("{CLUSTERS}{name}"))
}

pub fn port_key(node: NodeId, port: u16) -> Key {
    Key::from(format!("cluster-ports/{node}/{port}"))
}

fn leftover_key(node: NodeId, cluster: ClusterId) -> Key {
    Key::from(format!("{LEFTOVERS}{node}/{cluster}"))
}

// === impl Records ===

impl Records {
    pub fn new(directory: Directory) -> Self {
        Self { directory }
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// # Errors
    /// Those of the store.
    pub async fn find(&self, name: &ClusterName) -> Result<Option<Record<Cluster>>, Error> {
        Ok(self.directory.get(&cluster_key(name)).await?)
    }

    /// The cluster of this name and id.
    ///
    /// # Errors
    /// `NoCluster` where there is none, or only a namesake that came later.
    pub async fn get(&self, cluster: &ClusterRef) -> Result<Cluster, Error> {
        match self.find(&cluster.name).await? {
            Some(found) if found.value.id == cluster.id => Ok(found.value),
            Some(_) | None => Err(Error::NoCluster(cluster.name.clone())),
        }
    }

    /// # Errors
    /// Those of the store.
    pub async fn all(&self) -> Result<Vec<Cluster>, Error> {
        Ok(self.directory.list(CLUSTERS).await?.into_iter().map(|record| record.value).collect())
    }

    /// Those of the cluster's members whose nodes get no new roles.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn drained(&self, cluster: &Cluster) -> Result<BTreeMap<NodeId, Drained>, Error> {
        let mut drained = BTreeMap::new();
        for member in &cluster.members {
            let found = self.directory.get::<Node>(&node_key(member.node_id)).await?;
            drained.extend(found.and_then(|node| Some((member.node_id, node.value.drained?))));
        }
        Ok(drained)
    }

    /// Changes the record by compare-and-set and gives it as it then is. `change` must be safe to repeat.
    ///
    /// # Errors
    /// Those of `change`; `NoCluster`; `Contended`.
    pub async fn update(
        &self,
        cluster: &ClusterRef,
        change: impl Fn(Cluster) -> Result<Cluster, ChangeError>,
    ) -> Result<Cluster, Error> {
        self.update_with(cluster, change, Writes::default).await
    }

    /// The same, with further writes in the same transaction.
    ///
    /// # Errors
    /// As above.
    pub async fn update_with(
        &self,
        cluster: &ClusterRef,
        change: impl Fn(Cluster) -> Result<Cluster, ChangeError>,
        also: impl Fn() -> Writes,
    ) -> Result<Cluster, Error> {
        let key = cluster_key(&cluster.name);
        for _ in 0..ATTEMPTS {
            let found = self
                .directory
                .get::<Cluster>(&key)
                .await?
                .filter(|found| found.value.id == cluster.id)
                .ok_or_else(|| Error::NoCluster(cluster.name.clone()))?;
            let changed = change(found.value.clone())?;
            let Writes { compares, ops } = also();
            if changed == found.value && ops.is_empty() {
                return Ok(changed);
            }
            let mut txn =
                Txn::new().when(Compare::unchanged(&key, found.revision)).then(put(&key, &changed)?);
            for compare in compares {
                txn = txn.when(compare);
            }
            for op in ops {
                txn = txn.then(op);
            }
            if self.directory.store().txn(txn).await?.succeeded {
                return Ok(changed);
            }
        }
        Err(Error::Contended(cluster.name.clone()))
    }

    /// A change of the record, to be written together with something else; refused by the compare if it changes meanwhile.
    ///
    /// # Errors
    /// Those of `change`; `NoCluster`.
    pub async fn writes_of_change(
        &self,
        cluster: &ClusterRef,
        change: impl FnOnce(Cluster) -> Result<Cluster, ChangeError>,
    ) -> Result<(Cluster, Writes), Error> {
        let found = self.find(&cluster.name).await?.filter(|found| found.value.id == cluster.id);
        let found = found.ok_or_else(|| Error::NoCluster(cluster.name.clone()))?;
        let key = cluster_key(&cluster.name);
        let changed = change(found.value)?;
        let ops = vec![put(&key, &changed)?];
        Ok((changed, Writes { compares: vec![Compare::unchanged(&key, found.revision)], ops }))
    }

    /// What must be written together with a new member: its ports, and that the node has it. Refused by the compares if the
    /// port is taken or the node changes meanwhile.
    ///
    /// # Errors
    /// `NoNode`, `Drained`; those of the store.
    pub async fn writes_of_new(&self, cluster: &Cluster, member: &Member) -> Result<Writes, Error> {
        let node = node_key(member.node_id);
        let ports: Vec<Key> =
            cluster.ports().into_iter().map(|port| port_key(member.node_id, port)).collect();
        let record = self.directory.get::<Node>(&node).await?.ok_or(Error::NoNode(member.node_id))?;
        // Since it was looked at.
        if record.value.drained.is_some() {
            return Err(Error::Drained(record.value.name));
        }
        let mut writes = Writes {
            compares: vec![Compare::unchanged(&node, record.revision)],
            ops: vec![
                put(&node, &record.value)?,
                put(&membership_key(member.node_id, cluster.id), &cluster.name)?,
            ],
        };
        for port in ports {
            writes.ops.push(put(&port, &cluster.name)?);
            writes.compares.push(Compare::absent(port));
        }
        Ok(writes)
    }

    /// What must be removed together with a member.
    pub fn writes_of_gone(cluster: &Cluster, node: NodeId) -> Vec<Op> {
        let ports = cluster.ports().into_iter().map(|port| Op::delete(port_key(node, port)));
        ports.chain([Op::delete(membership_key(node, cluster.id))]).collect()
    }

    /// Removes the record and all that goes with it. Nothing where it is gone.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove(&self, cluster: &ClusterRef) -> Result<(), Error> {
        let key = cluster_key(&cluster.name);
        for _ in 0..ATTEMPTS {
            let Some(found) = self.find(&cluster.name).await?.filter(|found| found.value.id == cluster.id)
            else {
                return Ok(());
            };
            let mut txn = Txn::new().when(Compare::unchanged(&key, found.revision)).then(Op::delete(&key));
            for member in &found.value.members {
                for op in Self::writes_of_gone(&found.value, member.node_id) {
                    txn = txn.then(op);
                }
            }
            txn = txn.then(crate::lease::no_reign(cluster.id));
            for op in self.writes_of_no_access(cluster.id).await? {
                txn = txn.then(op);
            }
            if self.directory.store().txn(txn).await?.succeeded {
                return Ok(());
            }
        }
        Err(Error::Contended(cluster.name.clone()))
    }

    /// Notes that a node has data to be removed when it returns.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn leave_behind(&self, leftover: &Leftover) -> Result<(), Error> {
        Ok(self.directory.put(&leftover_key(leftover.node_id, leftover.cluster.id), leftover).await?)
    }

    /// # Errors
    /// Those of the store.
    pub async fn leftovers(&self) -> Result<Vec<Leftover>, Error> {
        Ok(self.directory.list(LEFTOVERS).await?.into_iter().map(|record| record.value).collect())
    }

    /// The node has nothing of the cluster any more.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn cleaned(&self, node: NodeId, cluster: ClusterId) -> Result<(), Error> {
        self.directory.store().txn(Txn::new().then(Op::delete(leftover_key(node, cluster)))).await?;
        Ok(())
    }
}

// === impl Error ===

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::NoCluster(_) => Reason::ClusterNotFound,
            Self::NoNode(_) => Reason::NodeNotFound,
            Self::Drained(_) => Reason::PreconditionFailed,
            Self::Contended(_) => Reason::VersionConflict,
            Self::Access(_) | Self::AccessIncomplete(_) => Reason::StateDamaged,
            Self::Change(error) => error.reason(),
            Self::Directory(error) => error.reason(),
            Self::Store(error) => error.reason(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Contended(_) => Retry::Later(None),
            Self::NoCluster(_)
            | Self::NoNode(_)
            | Self::Drained(_)
            | Self::Access(_)
            | Self::AccessIncomplete(_) => Retry::Never,
            Self::Change(error) => error.retry(),
            Self::Directory(error) => error.retry(),
            Self::Store(error) => error.retry(),
        }
    }

    fn metadata(&self) -> Metadata {
        match self {
            Self::NoCluster(name) | Self::Contended(name) => {
                Failure::new(self.reason(), "").with("cluster", name).metadata
            }
            Self::NoNode(node) => Failure::new(self.reason(), "").with("node", node).metadata,
            Self::Drained(node) => Failure::new(self.reason(), "").with("node", node).metadata,
            Self::Access(_) | Self::AccessIncomplete(_) => Metadata::new(),
            Self::Change(error) => error.metadata(),
            Self::Directory(error) => error.metadata(),
            Self::Store(error) => error.metadata(),
        }
    }
}
