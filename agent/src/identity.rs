//! Who this node is: its key, its certificate, its fleet; renewed before the certificate ends.
//!
//! ```text
//! (nothing) ── join ──► joining (key, request id: on disk before anything is sent) ──► node ──► renewed, again and again
//!                             └──── the answer was lost: the same request once more ────┘
//! ```
//!
//! Key and certificate lie in one file, replaced as one, so that they always fit. A damaged file is never taken for none:
//! the agent refuses to run and says what to do. Not here: the calls themselves ([`crate::link::client`]).

mod join;
mod renewal;

#[cfg(test)]
mod tests;

pub use join::{Again, Join, JoinError, Joined, join};
pub use renewal::Renewal;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_common::error::{Classify, Reason};
use holdfast_common::id::{FleetId, NodeId};
use holdfast_common::name::NodeName;
use holdfast_common::pki::{Credentials, CredentialsError, IdentityError, PeerKind, TrustBundle};
use holdfast_common::tls::{BuildError, ClientTls, Expect};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::host::files::Files;
use crate::link::client::{Address, Coordinators};
use crate::statefile::{self, Kind};

const KIND: Kind = Kind { name: "node", version: 1 };
const NAME: &str = "node";

/// All that joining brought, as it lies on the disk.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub fleet_id: FleetId,
    pub node_id: NodeId,
    pub name: NodeName,
    /// Where others reach this node.
    pub address: IpAddr,
    pub coordinators: Vec<Address>,
    pub data_dir: PathBuf,
    pub certificate_chain: String,
    pub trust_bundle: String,
    pub issued_at: Timestamp,
    pub not_after: Timestamp,
    /// PKCS #8, PEM.
    #[serde(with = "secret_text")]
    pub key: Zeroizing<String>,
}

/// What the node proves itself with now, as PEM, for those who need files of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificates {
    pub chain: String,
    pub key: Zeroizing<String>,
    pub trust: String,
    pub not_after: Timestamp,
}

/// The node's identity in use. Cheap to share.
#[derive(Debug)]
pub struct Identity {
    files: Files,
    path: PathBuf,
    tls: Arc<ClientTls>,
    record: watch::Sender<Arc<Record>>,
    certificates: watch::Sender<Arc<Certificates>>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this machine has not joined a fleet: there is no {}; run `holdfast-agent join`", path.display())]
    NotJoined { path: PathBuf },
    /// Nothing was changed.
    #[error("use this node's identity; put a good copy back, or remove the node and join it anew")]
    Damaged(#[source] statefile::Error),
    #[error("use this node's identity")]
    State(#[from] statefile::Error),
    #[error("use this node's certificate")]
    Credentials(#[from] CredentialsError),
    #[error("use this node's certificate")]
    Identity(#[from] IdentityError),
    #[error("the certificate is that of another node or fleet than {node} of {fleet}")]
    Foreign { node: NodeId, fleet: FleetId },
    #[error("use this node's certificate")]
    Tls(#[from] BuildError),
}

/// A text that is wiped from memory, as plain text on the disk.
mod secret_text {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(
        text: &Zeroizing<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(deserializer).map(Zeroizing::new)
    }
}

// === impl Identity ===

impl Identity {
    /// Reads the identity that joining left.
    ///
    /// # Errors
    /// [`Error`]; the files are left as they are.
    pub async fn open(files: Files, state: &Path) -> Result<Self, Error> {
        let path = state.join(NAME);
        let record: Record = match statefile::read(&files, &path, KIND).await {
            Ok(Some(record)) => record,
            Ok(None) => return Err(Error::NotJoined { path }),
            Err(error) if error.is_damage() => return Err(Error::Damaged(error)),
            Err(error) => return Err(error.into()),
        };
        let (credentials, roots) = record.credentials()?;
        let tls = ClientTls::new(record.fleet_id, Expect::Coordinator, Some(&credentials), &roots)?;
        let (certificates, _) = watch::channel(Arc::new(record.certificates()));
        let (record, _) = watch::channel(Arc::new(record));
        Ok(Self { files, path, tls: Arc::new(tls), record, certificates })
    }

    pub fn record(&self) -> Arc<Record> {
        Arc::clone(&self.record.borrow())
    }

    /// For every connection to a coordinator; reloads by itself.
    pub fn tls(&self) -> Arc<ClientTls> {
        Arc::clone(&self.tls)
    }

    /// The certificate now, and after every renewal.
    pub fn certificates(&self) -> watch::Receiver<Arc<Certificates>> {
        self.certificates.subscribe()
    }

    /// Keeps a renewed certificate, then uses it.
    ///
    /// # Errors
    /// [`Error`]; the earlier one then stays in use.
    async fn replace(&self, record: Record) -> Result<(), Error> {
        let (credentials, roots) = record.credentials()?;
        // Both are checked before anything is replaced.
        statefile::write(&self.files, &self.path, KIND, &record).await?;
        self.tls.reload(Some(&credentials), &roots)?;
        self.certificates.send_replace(Arc::new(record.certificates()));
        self.record.send_replace(Arc::new(record));
        Ok(())
    }
}

// === impl Record ===

impl Record {
    /// # Errors
    /// Where the coordinators are none or too many.
    pub fn coordinators(&self) -> Result<Coordinators, crate::link::client::AddressError> {
        Coordinators::new(self.coordinators.clone())
    }

    /// When to renew: two thirds of its life after it was issued.
    pub fn renew_at(&self) -> Timestamp {
        let life = self.not_after.duration_since(self.issued_at);
        self.issued_at.saturating_add(life * 2 / 3).unwrap_or(self.not_after)
    }

    /// Key and certificate, proved to be this node's.
    fn credentials(&self) -> Result<(Credentials, TrustBundle), Error> {
        let credentials = Credentials::from_pem(&self.certificate_chain, &self.key)?;
        let roots = TrustBundle::from_pem(&self.trust_bundle)?;
        let identity = credentials.identity()?;
        if identity.fleet == self.fleet_id && identity.kind == PeerKind::Node(self.node_id) {
            Ok((credentials, roots))
        } else {
            Err(Error::Foreign { node: self.node_id, fleet: self.fleet_id })
        }
    }

    fn certificates(&self) -> Certificates {
        Certificates {
            chain: self.certificate_chain.clone(),
            key: self.key.clone(),
            trust: self.trust_bundle.clone(),
            not_after: self.not_after,
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("fleet_id", &self.fleet_id)
            .field("node_id", &self.node_id)
            .field("name", &self.name)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

// === impl Error ===

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::NotJoined { .. } => Reason::NoIdentity,
            Self::Damaged(_)
            | Self::Credentials(_)
            | Self::Identity(_)
            | Self::Foreign { .. }
            | Self::Tls(_) => Reason::StateDamaged,
            Self::State(error) => error.reason(),
        }
    }
}
