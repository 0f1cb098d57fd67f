//! Who may serve as primary on this node, until when, by whose word: drives `common::protocol` with a clock, a kernel, a disk
//! and the network, on a thread of its own.
//!
//! ```text
//!  assignment, report of converge ─┐                       ┌─► gate, in the kernel, by this thread itself
//!  link/lease: what was said ──────┼─► driver ─► keeper ───┼─► link/lease: what is to be said
//!  time ───────────────────────────┘    one for each member├─► records on the disk (beside; renewals do not wait for it)
//!                                                          └─► engine stopped at once; what converge may start: status
//! ```
//!
//! | part | answers for |
//! | --- | --- |
//! | `keeper` | one member: the state machine's effects, carried out in their order |
//! | `readiness` | from what is observed: may the engine serve, does it enforce the list (pure) |
//! | `driver` | all members: time, inputs, status |
//! | `hands` | gate, disk, network, engine, as the keepers use them |
//! | `records` | what is on the disk |
//! | `thread` | the thread: locked memory, priority |
//!
//! Not here: what is safe (`common::protocol`), the wire (`link::lease`), starting engines (`converge`).

mod driver;
mod hands;
mod keeper;
mod readiness;
mod records;
mod thread;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_common::assignment::{Assignment, MemberAssignment};
use holdfast_common::clock::Clock;
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::link::{AskPromise, Leased, Promised};
use holdfast_common::protocol::{Attempt, Record, Standing, Tail, Timings, ToMember};
use holdfast_common::report::{LeaseReport, NodeReport};
use holdfast_common::term::Term;
use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::Engines;
use crate::firewall::{self, Kernel};
use crate::host::files::Files;
use crate::link;
use crate::link::lease::Contact;
use crate::outbox::Tell;
use crate::statefile;
use crate::terms::Finding;

/// What arrives and was not looked at yet.
const INPUTS: usize = 256;

/// What the driver uses.
#[derive(Clone)]
pub struct Means {
    pub assignment: watch::Receiver<Arc<Assignment>>,
    /// What is observed of the engines.
    pub report: watch::Receiver<Arc<NodeReport>>,
    /// Which ports are filtered: those have a gate.
    pub firewall: watch::Receiver<Arc<firewall::service::Status>>,
    pub kernel: Kernel,
    pub files: Files,
    pub state: PathBuf,
    pub engines: Engines,
    pub contact: Contact,
    /// Whether there is a session with the coordinator.
    pub session: watch::Receiver<link::Status>,
    pub clock: Clock,
    pub tell: Tell,
}

/// What arrives.
#[derive(Debug)]
pub enum Input {
    /// There is a stream with the coordinator.
    Open,
    /// The coordinator says.
    Told(Leased<ToMember>),
    /// Another node's agent asks.
    Asked { from: NodeId, asked: AskPromise, answer: oneshot::Sender<Promised> },
    /// Another node's agent has answered.
    Promised { from: NodeId, cluster: ClusterId, promised: Promised },
    /// What was on the disk.
    Loaded { cluster: ClusterId, found: records::Found },
    /// This record is on the disk.
    Stored { cluster: ClusterId, record: Record },
    /// A primary is stopped for another to take over, and its log ends there.
    Rested { cluster: ClusterId, term: Term, attempt: Attempt, asked: Asked, tail: Tail },
    /// A replica receives from nobody any more, and its log ends there.
    Cut { cluster: ClusterId, term: Term, tail: Tail },
    /// Other agents do not reach this one.
    Unreachable { why: String },
}

/// What the coordinator has asked of a primary that is stopped for another to take over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    ToStop,
    /// Whether it still is.
    ToConfirm,
}

/// How the leases of this node stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Clusters of which nothing is known yet are not named.
    pub members: BTreeMap<ClusterId, Held>,
}

/// How one stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What it is, and in which term.
    pub standing: (Term, Standing),
    /// Whether the engine may run as primary.
    pub serve: Serve,
    /// Of a primary.
    pub report: Option<LeaseReport>,
    /// It has promised a primary not to take its place yet.
    pub has_promised: bool,
    /// How often this run of the agent has had the engine stopped: it may be to run again before anybody has looked.
    pub stops: u32,
    pub pace: Pace,
}

/// By which times a member goes: as a primary, and as one that promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pub serving: Timings,
    pub promising: Timings,
}

/// Whether an engine may run as primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    May,
    /// Not without a new lease: it is stopped.
    MustNot,
    /// It is being stopped for another to take over, or was: neither started nor ended.
    Rests,
}

/// Reads the newest status. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    status: watch::Receiver<Arc<Status>>,
}

/// The lease thread, not running yet.
#[derive(Debug)]
pub struct Service {
    status: watch::Sender<Arc<Status>>,
    inputs: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    run: u64,
}

// === impl Service ===

impl Service {
    /// Begins a new run of requests: none of its numbers was ever used. Says what was found damaged.
    ///
    /// # Errors
    /// Where that cannot be written down.
    pub async fn open(
        files: &Files,
        state: &Path,
    ) -> Result<(Self, Handle, Option<Finding>), statefile::Error> {
        let (run, finding) = records::begin_run(files, state).await?;
        let (status, newest) = watch::channel(Arc::default());
        let service = Self { status, inputs: mpsc::channel(INPUTS), run };
        Ok((service, Handle { status: newest }, finding))
    }
}

// === impl Handle ===

impl Handle {
    /// The newest status, now and after every change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }
}

// === impl Status ===

impl Status {
    /// Whether the engine of this cluster may run as primary; `None`: not known yet.
    pub fn serve(&self, cluster: ClusterId) -> Option<Serve> {
        self.members.get(&cluster).map(|held| held.serve)
    }
}

// === impl Pace ===

impl From<&MemberAssignment> for Pace {
    fn from(member: &MemberAssignment) -> Self {
        let promising = member.patience.unwrap_or(member.profile).timings();
        Self { serving: member.profile.timings(), promising }
    }
}

impl From<Timings> for Pace {
    fn from(timings: Timings) -> Self {
        Self { serving: timings, promising: timings }
    }
}

impl Pace {
    /// The times of a member that stands like this.
    pub(crate) fn of(&self, standing: Standing) -> Timings {
        match standing {
            Standing::Primary => self.serving,
            Standing::Replica | Standing::Sealed => self.promising,
        }
    }
}

impl std::fmt::Debug for Means {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Means").finish_non_exhaustive()
    }
}
