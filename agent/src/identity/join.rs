//! Joining a fleet: once for a machine, safe to repeat.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::backoff::Backoff;
use holdfast_common::clock::Clock;
use holdfast_common::error::{Chain, Classify, Metadata, Reason};
use holdfast_common::id::{FleetId, NodeId, TokenId};
use holdfast_common::link::{Enroll, Enrolled};
use holdfast_common::name::NodeName;
use holdfast_common::pki::{Fingerprint, JoinToken, NodeKey, RequestError, TrustBundle};
use holdfast_common::tls::{BuildError, ClientTls};
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Error, KIND, NAME, Record};
use crate::host::files::{self, Access, Files};
use crate::link::client::{Address, CallError, Coordinators, enroll};
use crate::statefile::{self, Kind};
use crate::terms::Terms;

const JOINING: Kind = Kind { name: "joining", version: 1 };
const JOINING_NAME: &str = "joining";
/// Between two words of one that waits.
const WORD_INTERVAL: Duration = Duration::from_secs(15);

/// What joining needs.
#[derive(Debug)]
pub struct Join {
    pub token: JoinToken,
    pub coordinators: Coordinators,
    pub name: NodeName,
    /// `None`: the one from which the coordinator is reached.
    pub address: Option<IpAddr>,
    pub data_dir: PathBuf,
    pub again: Again,
    /// How long to try while no coordinator answers.
    pub patience: Duration,
}

/// What to do if the machine is this node already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// Nothing while its certificate is good; else get a new one.
    IfEnded,
    /// Get a new certificate.
    Always,
}

/// How joining ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    Now {
        fleet: FleetId,
        node: NodeId,
    },
    /// The machine was this node, and has a new certificate.
    Back {
        fleet: FleetId,
        node: NodeId,
    },
    /// The machine was this node of the same fleet already; nothing was changed.
    Already {
        fleet: FleetId,
        node: NodeId,
    },
}

/// What is on the disk before anything is sent, so that a lost answer can be asked for again.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Joining {
    request_id: Uuid,
    token_id: TokenId,
    pin: Fingerprint,
    name: NodeName,
    address: IpAddr,
    #[serde(with = "super::secret_text")]
    key: Zeroizing<String>,
}

/// What joining leaves on the disk.
struct Kept {
    joining: Joining,
    /// What the machine was before.
    known: Option<Record>,
    enrolled: Enrolled,
}

/// What is said while no coordinator lets the node in: each trouble once, and then only that it still waits.
struct Waiting {
    until: Instant,
    told: BTreeSet<String>,
    word: Instant,
}

/// Of one that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Trouble,
    Still,
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(
        "this machine is node `{name}` of fleet {fleet} already; remove {} to make it another one (the databases in its data folder are then no longer managed)",
        state.display()
    )]
    OtherIdentity { name: NodeName, fleet: FleetId, state: PathBuf },
    #[error("look whether this machine has joined before")]
    Before(#[source] Error),
    #[error("make the node's key")]
    Key(#[from] RequestError),
    #[error("prepare TLS")]
    Tls(#[from] BuildError),
    #[error("find the address from which {coordinator} is reached; give it with --address")]
    OwnAddress { coordinator: Address, source: std::io::Error },
    #[error("enroll this node")]
    Enroll(#[from] CallError),
    #[error(
        "no coordinator let this node in within {} s, at {}; does it run, is that its address for agents, and is no firewall between? Joining can be repeated, and --wait gives it longer",
        waited.as_secs(), listed(coordinators)
    )]
    NoAnswer { coordinators: Vec<Address>, waited: Duration, source: CallError },
    #[error("the coordinator's answer is not for this key, fleet or token")]
    Answer(#[source] Error),
    #[error("the coordinator's trust bundle does not have the authority that the token names")]
    ForeignRoots,
    #[error(
        "the token makes a new node, but this machine is node `{name}` already; create one for it with `holdfast node token create --rejoin {name}`"
    )]
    OtherNode { name: NodeName },
    #[error("keep the node's state")]
    State(#[from] statefile::Error),
    #[error("keep the node's state")]
    Files(#[from] files::Error),
}

// === impl Waiting ===

impl Waiting {
    fn new(patience: Duration) -> Self {
        let now = Instant::now();
        Self { until: now + patience, told: BTreeSet::new(), word: now }
    }

    fn tell(&mut self, error: &CallError) {
        let now = Instant::now();
        let left = format!("{} s", (self.until - now).as_secs());
        match self.word(Chain(error).to_string(), now) {
            Some(Word::Trouble) => {
                tracing::warn!(error = %Chain(error), left, "not enrolled yet; trying again")
            }
            Some(Word::Still) => {
                tracing::info!(left, "still waiting for a coordinator that lets this node in")
            }
            None => {}
        }
    }

    fn word(&mut self, trouble: String, now: Instant) -> Option<Word> {
        let word = if self.told.insert(trouble) {
            Some(Word::Trouble)
        } else {
            (now - self.word >= WORD_INTERVAL).then_some(Word::Still)
        };
        if word.is_some() {
            self.word = now;
        }
        word
    }
}

/// Makes this machine a node. The token's secret goes to nobody but a server that the token's pin vouches for.
///
/// # Errors
/// [`JoinError`]. It can be repeated after each of them; a lost answer is asked for again under the same request.
pub async fn join(files: &Files, state: &Path, clock: &Clock, join: Join) -> Result<Joined, JoinError> {
    files.create_dir(state, Access::PRIVATE_DIR).await?;
    let known = before(files, state, &join).await?;
    if let Some(Record { fleet_id, node_id, not_after, .. }) = &known
        && join.again == Again::IfEnded
        && *not_after > clock.now()
    {
        return Ok(Joined::Already { fleet: *fleet_id, node: *node_id });
    }
    let tls = Arc::new(ClientTls::joining(join.token.pin)?);
    let address = match (join.address, &known) {
        (Some(address), _) => address,
        (None, Some(known)) => known.address,
        (None, None) => own_address(join.coordinators.next()).await?,
    };
    let joining = prepare(files, state, &join, address).await?;
    let key = NodeKey::from_pem(&joining.key)?;
    let request = Enroll {
        token: join.token.reveal().as_str().to_owned(),
        certificate_signing_request: key.signing_request()?,
        node_name: joining.name.clone(),
        address: joining.address,
        request_id: joining.request_id,
    };
    let enrolled = match ask(&tls, &join, &request).await {
        // Only a token for another purpose finds the name taken.
        Err(JoinError::Enroll(CallError::Refused(failure)))
            if known.is_some() && failure.reason == Reason::NodeExists =>
        {
            return Err(JoinError::OtherNode { name: join.name });
        }
        enrolled => enrolled?,
    };
    let (fleet, node) = (enrolled.fleet_id, enrolled.node_id);
    let back = known.is_some();
    keep(files, state, clock, &join, Kept { joining, known, enrolled }).await?;
    Ok(if back { Joined::Back { fleet, node } } else { Joined::Now { fleet, node } })
}

/// Who the machine is, if it is what it is to be.
async fn before(files: &Files, state: &Path, join: &Join) -> Result<Option<Record>, JoinError> {
    let path = state.join(NAME);
    let record = match statefile::read::<Record>(files, &path, KIND).await {
        Ok(None) => return Ok(None),
        Ok(Some(record)) => record,
        Err(error) if error.is_damage() => return Err(JoinError::Before(Error::Damaged(error))),
        Err(error) => return Err(JoinError::Before(error.into())),
    };
    let (_, roots) = record.credentials().map_err(JoinError::Before)?;
    if record.name == join.name && roots.fingerprints().any(|root| root == join.token.pin) {
        return Ok(Some(record));
    }
    Err(JoinError::OtherIdentity { name: record.name, fleet: record.fleet_id, state: state.to_owned() })
}

/// What an earlier try with the same token left, or a new key and request, on the disk in any case.
async fn prepare(files: &Files, state: &Path, join: &Join, address: IpAddr) -> Result<Joining, JoinError> {
    let path = state.join(JOINING_NAME);
    let earlier = match statefile::read::<Joining>(files, &path, JOINING).await {
        Ok(earlier) => earlier,
        // It holds nothing that cannot be made anew.
        Err(error) if error.is_damage() => {
            tracing::warn!(error = %Chain(&error), "begin to join anew");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let same = |earlier: &Joining| {
        earlier.token_id == join.token.id
            && earlier.pin == join.token.pin
            && earlier.name == join.name
            && earlier.address == address
    };
    if let Some(earlier) = earlier.filter(same) {
        return Ok(earlier);
    }
    let joining = Joining {
        request_id: Uuid::now_v7(),
        token_id: join.token.id,
        pin: join.token.pin,
        name: join.name.clone(),
        address,
        key: NodeKey::generate()?.to_pem(),
    };
    statefile::write(files, &path, JOINING, &joining).await?;
    Ok(joining)
}

async fn ask(tls: &Arc<ClientTls>, join: &Join, request: &Enroll) -> Result<Enrolled, JoinError> {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
    let mut waiting = Waiting::new(join.patience);
    loop {
        let coordinator = join.coordinators.next();
        let error = match enroll(tls, coordinator, request).await {
            Ok(enrolled) => return Ok(enrolled),
            Err(error) => error,
        };
        let wait = backoff.next_wait();
        let (hopeless, silent) = match &error {
            CallError::Connect { .. } | CallError::Unanswered { .. } => (error.is_distrust(), true),
            CallError::Refused(failure) => (
                !matches!(
                    failure.reason,
                    Reason::AgentOffline | Reason::NotActive | Reason::ShuttingDown | Reason::TooManyRequests
                ),
                false,
            ),
            CallError::Answer(_) => (true, false),
        };
        if hopeless {
            return Err(error.into());
        }
        if Instant::now() + wait > waiting.until {
            let coordinators = join.coordinators.all().to_vec();
            return Err(match silent {
                true => JoinError::NoAnswer { coordinators, waited: join.patience, source: error },
                false => error.into(),
            });
        }
        waiting.tell(&error);
        sleep(wait).await;
    }
}

async fn keep(files: &Files, state: &Path, clock: &Clock, join: &Join, kept: Kept) -> Result<(), JoinError> {
    let Kept { joining, known, enrolled } = kept;
    let Enrolled { fleet_id, node_id, certificate } = enrolled;
    if known.as_ref().is_some_and(|known| (known.fleet_id, known.node_id) != (fleet_id, node_id)) {
        return Err(JoinError::OtherNode { name: joining.name });
    }
    let record = Record {
        fleet_id,
        node_id,
        name: joining.name,
        address: joining.address,
        coordinators: join.coordinators.all().to_vec(),
        data_dir: known.as_ref().map_or(&join.data_dir, |known| &known.data_dir).clone(),
        certificate_chain: certificate.certificate_chain,
        trust_bundle: certificate.trust_bundle,
        issued_at: clock.now(),
        not_after: certificate.not_after,
        key: joining.key,
    };
    let (_, roots): (_, TrustBundle) = record.credentials().map_err(JoinError::Answer)?;
    if !roots.fingerprints().any(|root| root == join.token.pin) {
        return Err(JoinError::ForeignRoots);
    }
    // The identity last: with it the machine is a node, and everything else must be there.
    if known.is_none() {
        Terms::create(files, state).await?;
    }
    statefile::write(files, &state.join(NAME), KIND, &record).await?;
    files.remove_file(state.join(JOINING_NAME)).await?;
    Ok(())
}

/// The address of this machine from which packets to the coordinator leave. Sends nothing.
async fn own_address(coordinator: &Address) -> Result<IpAddr, JoinError> {
    let failed = |source| JoinError::OwnAddress { coordinator: coordinator.clone(), source };
    let mut targets = tokio::net::lookup_host(coordinator.as_str()).await.map_err(failed)?;
    let target: SocketAddr = targets.next().ok_or_else(|| {
        failed(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"))
    })?;
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await.map_err(failed)?;
    socket.connect(target).await.map_err(failed)?;
    socket.local_addr().map(|own| own.ip()).map_err(failed)
}

fn listed(coordinators: &[Address]) -> String {
    coordinators.iter().map(Address::as_str).collect::<Vec<_>>().join(", ")
}

impl Classify for JoinError {
    fn reason(&self) -> Reason {
        match self {
            Self::OtherIdentity { .. } | Self::OtherNode { .. } => Reason::NodeExists,
            Self::Before(error) | Self::Answer(error) => error.reason(),
            Self::Key(error) => error.reason(),
            Self::Tls(_) | Self::Files(_) => Reason::Internal,
            Self::OwnAddress { .. } => Reason::InvalidField,
            Self::Enroll(error) | Self::NoAnswer { source: error, .. } => error.reason(),
            Self::ForeignRoots => Reason::TokenInvalid,
            Self::State(error) => error.reason(),
        }
    }

    fn metadata(&self) -> Metadata {
        match self {
            Self::OtherIdentity { name, fleet, .. } => Metadata::from([
                ("node".to_owned(), name.to_string()),
                ("fleet".to_owned(), fleet.to_string()),
            ]),
            _ => Metadata::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_trouble_is_told_once_and_then_only_that_it_still_waits() {
        let mut waiting = Waiting::new(Duration::from_secs(60));
        let begun = Instant::now();
        let mut word =
            |trouble: &str, seconds| waiting.word(trouble.to_owned(), begun + Duration::from_secs(seconds));
        assert_eq!(word("refused", 0), Some(Word::Trouble));
        assert_eq!(word("refused", 1), None);
        assert_eq!(word("late", 2), Some(Word::Trouble));
        assert_eq!((word("refused", 3), word("late", 16)), (None, None));
        assert_eq!(word("late", 17), Some(Word::Still));
        assert_eq!(word("late", 18), None);
    }
}
