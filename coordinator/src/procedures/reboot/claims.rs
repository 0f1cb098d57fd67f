//! Which node of a cluster is being rebooted: one at a time, however many are asked for at once.

use holdfast_common::id::{ClusterId, NodeId, OperationId};
use holdfast_common::name::NodeName;
use serde::{Deserialize, Serialize};

use super::super::records::{Error, Records};
use crate::directory::{Node, node_key, put};
use crate::store::{Compare, Key, Op, Txn};

const CLAIMS: &str = "cluster-reboots/";
/// How often a compare-and-set is repeated.
const ATTEMPTS: usize = 20;

/// The node of a cluster that is being rebooted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    pub(super) node: NodeId,
    pub(super) name: NodeName,
    pub(super) operation: OperationId,
}

fn key(cluster: ClusterId) -> Key {
    Key::from(format!("{CLAIMS}{cluster}"))
}

impl Records {
    /// Notes that this one is, unless another is: then that one's claim is given. Safe to repeat.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn claim(&self, cluster: ClusterId, claim: &Claim) -> Result<Option<Claim>, Error> {
        let key = key(cluster);
        for _ in 0..ATTEMPTS {
            let found = self.directory().get::<Claim>(&key).await?;
            let compare = match found {
                None => Compare::absent(&key),
                Some(found) if found.value == *claim => return Ok(None),
                Some(found) if self.is_away(found.value.node).await? => return Ok(Some(found.value)),
                // Left over: nobody is rebooted without being drained.
                Some(found) => Compare::unchanged(&key, found.revision),
            };
            let txn = Txn::new().when(compare).then(put(&key, claim)?);
            if self.directory().store().txn(txn).await?.succeeded {
                return Ok(None);
            }
        }
        Err(crate::directory::Error::Contended { key }.into())
    }

    /// The operation reboots nothing any more.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn release_claims(&self, operation: OperationId) -> Result<(), Error> {
        for found in self.directory().list::<Claim>(CLAIMS).await? {
            if found.value.operation == operation {
                let unchanged = Compare::unchanged(&found.key, found.revision);
                let txn = Txn::new().when(unchanged).then(Op::delete(&found.key));
                self.directory().store().txn(txn).await?;
            }
        }
        Ok(())
    }

    async fn is_away(&self, node: NodeId) -> Result<bool, Error> {
        let found = self.directory().get::<Node>(&node_key(node)).await?;
        Ok(found.is_some_and(|found| found.value.drained.is_some()))
    }
}
