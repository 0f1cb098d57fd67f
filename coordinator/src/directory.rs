//! Typed records over the store: who belongs to the fleet, who may call, and with which secrets.
//!
//! ```text
//! nodes/<id>                      Node           node-names/<name>   NodeId (makes names unique)
//! node-facts/<id>                 NodeFacts      what the node last told of itself
//! node-members/<node>/<cluster>   ClusterName    written with every cluster that has a member there
//! join-tokens/<id>                JoinToken      enrollments/<request>  Enrollment
//! operators/<name>                Operator       access-tokens/<id>     AccessToken
//! requests/<hash>                 Remembered     answers of calls with a request id, encrypted
//! ```
//!
//! The store is the revocation list: what is not here, or not here any more, is refused (`rpc/peer` looks at every call).
//! Whoever adds a member to a node writes `node-members/…` *and* `nodes/<id>` anew in the same transaction; removing a node
//! compares the latter, so neither overtakes the other.
//!
//! Not here: who may do what ([`crate::rpc`]), clusters (`cluster/record`), operations.

mod record;

pub use record::{
    AccessToken, Drained, Enrollment, IssuedCertificate, JoinToken, Node, NodeFacts, Operator, OperatorRole,
    Remembered,
};

use holdfast_common::error::{Classify, Failure, Metadata, Reason, Retry};
use holdfast_common::id::{ClusterId, NodeId, TokenId};
use holdfast_common::name::{ClusterName, NodeName, OperatorName};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::record::{Record, encode};
use crate::store::{self, Compare, Key, Op, Range, Shared, Txn};

pub const NODES: &str = "nodes/";
pub const NODE_FACTS: &str = "node-facts/";
pub const OPERATORS: &str = "operators/";
pub const JOIN_TOKENS: &str = "join-tokens/";
pub const ACCESS_TOKENS: &str = "access-tokens/";
pub const ENROLLMENTS: &str = "enrollments/";
pub const REQUESTS: &str = "requests/";

/// How often a compare-and-set is repeated before the caller is told that somebody else is faster.
const ATTEMPTS: usize = 20;

/// Records by type. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Directory {
    store: Shared,
}

/// Some records of a kind, and where the next page begins.
#[derive(Debug)]
pub struct Page<T> {
    pub records: Vec<T>,
    pub next: Option<Key>,
}

/// Why a record was not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{key}` was changed by somebody else at the same time, again and again; repeat the call")]
    Contended { key: Key },
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What [`Directory::update`] does with a record.
#[derive(Debug)]
pub enum Change<T, R> {
    /// Writes it, then answers.
    Write(T, R),
    /// Leaves it, and answers.
    Keep(R),
}

// === keys ===

pub fn node_key(id: NodeId) -> Key {
    Key::from(format!("{NODES}{id}"))
}

/// What is said of a name that no node has.
pub fn no_node(name: &NodeName) -> Failure {
    Failure::about(Reason::NodeNotFound, "node", name, format!("there is no node `{name}`"))
}

pub fn node_name_key(name: &NodeName) -> Key {
    Key::from(format!("node-names/{name}"))
}

pub fn node_facts_key(id: NodeId) -> Key {
    Key::from(format!("{NODE_FACTS}{id}"))
}

/// Written with every cluster that has a member on the node; see the module's words on `nodes/<id>`.
pub fn membership_key(node: NodeId, cluster: ClusterId) -> Key {
    Key::from(format!("{}{cluster}", memberships(node)))
}

fn memberships(node: NodeId) -> String {
    format!("node-members/{node}/")
}

pub fn join_token_key(id: TokenId) -> Key {
    Key::from(format!("{JOIN_TOKENS}{id}"))
}

pub fn access_token_key(id: TokenId) -> Key {
    Key::from(format!("{ACCESS_TOKENS}{id}"))
}

pub fn operator_key(name: &OperatorName) -> Key {
    Key::from(format!("{OPERATORS}{name}"))
}

// === impl Directory ===

impl Directory {
    pub fn new(store: Shared) -> Self {
        Self { store }
    }

    pub fn store(&self) -> &Shared {
        &self.store
    }

    /// The record under `key`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn get<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<Record<T>>, Error> {
        Ok(store::record::get(&*self.store, key).await?)
    }

    /// All records of a prefix, by key.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<Record<T>>, Error> {
        Ok(store::record::list(&*self.store, prefix).await?)
    }

    /// At most `limit` records of a prefix behind `after`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn page<T: DeserializeOwned>(
        &self,
        prefix: &str,
        after: Option<Key>,
        limit: usize,
    ) -> Result<Page<T>, Error> {
        let mut range = Range::prefix(prefix).limit(limit);
        range.after = after;
        let listing = self.store.range(range).await?;
        let next = listing.records.last().filter(|_| listing.more).map(|kv| kv.key.clone());
        let records = listing
            .records
            .iter()
            .map(|kv| Ok(store::record::decode(kv)?.value))
            .collect::<Result<_, Error>>()?;
        Ok(Page { records, next })
    }

    /// Writes a new record. False: there is one already, nothing was written.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn create<T: Serialize>(&self, key: &Key, value: &T) -> Result<bool, Error> {
        let txn = Txn::new().when(Compare::absent(key)).then(put(key, value)?);
        Ok(self.store.txn(txn).await?.succeeded)
    }

    /// Writes a record whatever there is. Only for records with one owner.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn put<T: Serialize>(&self, key: &Key, value: &T) -> Result<(), Error> {
        self.store.txn(Txn::new().then(put(key, value)?)).await?;
        Ok(())
    }

    /// Reads, changes and writes a record by compare-and-set; `change` may be asked more than once. `None`: there is no
    /// such record.
    ///
    /// # Errors
    /// [`Error::Contended`], or those of the store.
    pub async fn update<T, R>(
        &self,
        key: &Key,
        mut change: impl FnMut(T) -> Change<T, R>,
    ) -> Result<Option<R>, Error>
    where
        T: Serialize + DeserializeOwned,
    {
        for _ in 0..ATTEMPTS {
            let Some(found) = self.get::<T>(key).await? else { return Ok(None) };
            match change(found.value) {
                Change::Keep(answer) => return Ok(Some(answer)),
                Change::Write(value, answer) => {
                    let txn =
                        Txn::new().when(Compare::unchanged(key, found.revision)).then(put(key, &value)?);
                    if self.store.txn(txn).await?.succeeded {
                        return Ok(Some(answer));
                    }
                }
            }
        }
        Err(Error::Contended { key: key.clone() })
    }

    /// Names of the clusters that have a member on the node.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn clusters_on(&self, node: NodeId) -> Result<Vec<ClusterName>, Error> {
        Ok(self.list(&memberships(node)).await?.into_iter().map(|record| record.value).collect())
    }

    /// Removes what is older than anybody may ask for: remembered requests, enrollments, ended tokens.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn prune(&self, now: jiff::Timestamp) -> Result<usize, Error> {
        let mut removed = 0;
        removed += self.prune_kind::<Remembered>(REQUESTS, |record| record.keep_until < now).await?;
        removed += self.prune_kind::<Enrollment>(ENROLLMENTS, |record| record.keep_until < now).await?;
        removed += self.prune_kind::<JoinToken>(JOIN_TOKENS, |record| record.forgettable(now)).await?;
        removed += self.prune_kind::<AccessToken>(ACCESS_TOKENS, |record| record.forgettable(now)).await?;
        Ok(removed)
    }

    async fn prune_kind<T: DeserializeOwned>(
        &self,
        prefix: &str,
        over: impl Fn(&T) -> bool,
    ) -> Result<usize, Error> {
        let mut removed = 0;
        for record in self.list::<T>(prefix).await? {
            if over(&record.value) {
                let txn = Txn::new()
                    .when(Compare::unchanged(&record.key, record.revision))
                    .then(Op::delete(&record.key));
                removed += usize::from(self.store.txn(txn).await?.succeeded);
            }
        }
        Ok(removed)
    }
}

/// A write of `value` as JSON.
///
/// # Errors
/// [`store::Error::Codec`].
pub fn put<T: Serialize + ?Sized>(key: &Key, value: &T) -> Result<Op, store::Error> {
    Ok(Op::put(key, encode(key, value)?))
}

// === impl Error ===

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Contended { .. } => Reason::VersionConflict,
            Self::Store(error) => error.reason(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Contended { .. } => Retry::Later(None),
            Self::Store(error) => error.retry(),
        }
    }

    fn metadata(&self) -> Metadata {
        match self {
            Self::Contended { key } => [("key".to_owned(), key.to_string())].into(),
            Self::Store(error) => error.metadata(),
        }
    }
}
