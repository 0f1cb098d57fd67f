//! Identities: nodes join and renew, operators and tokens come and go. Parses nothing and renders nothing ([`crate::rpc`]).
//!
//! ```text
//! join token ──Enroll──► one transaction: a use of the token, the node, its name, the request ──► certificate
//! node certificate ──RenewCertificate──► its serial joins those that are welcome ──► certificate
//! ```
//!
//! Secrets are shown once and stored as digests. Which credentials are welcome is decided call by call from
//! [`crate::directory`] (`rpc/peer`).

mod enroll;
mod operators;
mod remember;
#[cfg(test)]
mod tests;
mod tokens;

pub use operators::{NewOperator, OperatorCredentials};
pub use remember::RequestId;
pub use tokens::{NewAccessToken, NewJoinToken};

use std::sync::Arc;
use std::time::Duration;

use holdfast_common::error::{Classify as _, Failure, Reason};
use holdfast_common::id::{FleetId, NodeId};
use holdfast_common::name::NodeName;
use holdfast_common::pki::{Authority, Issued, Keyring, TrustBundle, Validity};
use jiff::{SignedDuration, Timestamp};

use crate::directory::{self, Directory, IssuedCertificate};
use crate::store;

/// How long a node's certificate lives. It renews at two thirds.
pub const NODE_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long a repeat of a request gets the first answer.
pub(crate) const REMEMBER_FOR: SignedDuration = SignedDuration::from_hours(24);

/// Issues identities. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: Directory,
    authority: Authority,
    keyring: Arc<Keyring>,
    node_lifetime: Duration,
}

// === impl Identity ===

impl Identity {
    pub fn new(directory: Directory, authority: Authority, keyring: Arc<Keyring>) -> Self {
        Self::with_lifetime(directory, authority, keyring, NODE_CERTIFICATE_LIFETIME)
    }

    /// The same, with another life of node certificates.
    pub fn with_lifetime(
        directory: Directory,
        authority: Authority,
        keyring: Arc<Keyring>,
        node_lifetime: Duration,
    ) -> Self {
        Self { inner: Arc::new(Inner { directory, authority, keyring, node_lifetime }) }
    }

    pub fn fleet(&self) -> FleetId {
        self.inner.authority.fleet()
    }

    pub fn trust_bundle(&self) -> TrustBundle {
        self.inner.authority.bundle()
    }

    /// The node of this name.
    ///
    /// # Errors
    /// `NodeNotFound`, those of the store.
    pub async fn node_named(&self, name: &NodeName) -> Result<NodeId, Failure> {
        let found = self.inner.directory.get::<NodeId>(&directory::node_name_key(name)).await?;
        found.map(|found| found.value).ok_or_else(|| directory::no_node(name))
    }

    pub fn directory(&self) -> &Directory {
        &self.inner.directory
    }

    fn validity(&self) -> Validity {
        Validity { now: Timestamp::now(), lifetime: self.inner.node_lifetime }
    }
}

fn issued(issued: &Issued) -> IssuedCertificate {
    IssuedCertificate {
        serial: issued.serial.clone(),
        issued_at: Timestamp::now(),
        not_after: issued.not_after,
    }
}

/// When something that lives for `ttl` ends.
fn end(now: Timestamp, ttl: Duration) -> Timestamp {
    SignedDuration::try_from(ttl).ok().and_then(|ttl| now.checked_add(ttl).ok()).unwrap_or(Timestamp::MAX)
}

fn contended() -> Failure {
    Failure::new(
        Reason::VersionConflict,
        "somebody else changed the same records at the same time; repeat the call",
    )
    .retry_after(Duration::from_secs(1))
}

impl From<directory::Error> for Failure {
    fn from(error: directory::Error) -> Self {
        error.to_failure()
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        error.to_failure()
    }
}
