//! What keepers do things with: the gate in the kernel, the disk, the engine, the network.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_common::error::Chain;
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::link::{AskPromise, Leased, Promised};
use holdfast_common::protocol::{self, Attempt, Record, Slot, Tail, ToCoordinator, ToPeer};
use holdfast_common::report::{NodeEvent, Severity};
use holdfast_common::telemetry::Filtering;
use holdfast_common::term::Term;
use tokio::runtime;
use tokio::sync::mpsc;

use super::{Asked, Input, Means, records};
use crate::firewall::{self, Gate};
use crate::host::files::Files;
use crate::host::netlink::Error;
use crate::outbox::node_event;

/// After a record could not be written.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// One deed on the gate of a member's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Arm(Slot, Duration),
    Grant(Slot),
    /// Arms and grants at once what was open already: not shut in between.
    Limit(Slot, Duration),
    OpenForEver,
    OpenToReaders(Duration),
    Shut,
}

/// What a keeper can do. Only the gate answers at once; nothing here waits for a disk or the network.
pub(super) trait Hands {
    /// # Errors
    /// Then nothing has changed in the kernel.
    fn gate(&mut self, ports: &[u16], deed: Deed) -> Result<(), Error>;

    /// What the kernel lets in: as these ports are changed together, the first one tells.
    fn observe(&mut self, ports: &[u16]) -> Result<protocol::Gate, Error>;

    /// Writes the record, again and again until it is on the disk; then [`Input::Stored`] comes.
    fn store(&mut self, cluster: ClusterId, record: Record);

    /// Ends the engine at once.
    fn halt(&mut self, cluster: ClusterId);

    /// Stops the engine for another to take over; then [`Input::Rested`] comes.
    fn rest(&mut self, cluster: ClusterId, term: Term, attempt: Attempt, asked: Asked);

    /// The engine may run again: a stop that has not begun yet is none any more.
    fn go_on(&mut self, cluster: ClusterId);

    /// Has the engine receive from nobody any more; then [`Input::Cut`] comes.
    fn seal(&mut self, cluster: ClusterId, term: Term);

    fn tell(&mut self, cluster: ClusterId, message: ToCoordinator);

    fn send(&mut self, cluster: ClusterId, to: NodeId, message: ToPeer);

    /// Tells a person.
    fn event(&mut self, cluster: ClusterId, severity: Severity, reason: &str, message: &str);
}

/// What takes its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Rest(Asked),
    Seal,
}

/// The real ones.
pub(super) struct Agents {
    means: Means,
    gate: Option<Gate>,
    /// For what waits: the disk, engines.
    elsewhere: runtime::Handle,
    inputs: mpsc::Sender<Input>,
    /// What is being done to engines: once more is not begun.
    at_work: Arc<Mutex<BTreeSet<(ClusterId, Work)>>>,
    /// Whose engines are to stay stopped.
    resting: Arc<Mutex<BTreeSet<ClusterId>>>,
    /// Promises that were given for the input at hand.
    pub(super) given: Vec<(NodeId, Promised)>,
}

// === impl Agents ===

impl Agents {
    pub(super) fn new(means: Means, elsewhere: runtime::Handle, inputs: mpsc::Sender<Input>) -> Self {
        let (at_work, resting) = (Arc::default(), Arc::default());
        Self { means, gate: None, elsewhere, inputs, at_work, resting, given: Vec::new() }
    }

    pub(super) fn load(&self, cluster: ClusterId) {
        let (files, state, inputs) = self.disk();
        self.elsewhere.spawn(async move {
            loop {
                match records::load(&files, &state, cluster).await {
                    Ok(found) => return drop(inputs.send(Input::Loaded { cluster, found }).await),
                    Err(error) => tracing::error!(%cluster, error = %Chain(&error), "read a lease's record"),
                }
                tokio::time::sleep(STORE_PAUSE).await;
            }
        });
    }

    pub(super) fn forget(&self, cluster: ClusterId) {
        let (files, state, _) = self.disk();
        self.elsewhere.spawn(async move {
            if let Err(error) = records::forget(&files, &state, cluster).await {
                tracing::warn!(%cluster, error = %Chain(&error), "remove a lease's record");
            }
        });
    }

    /// Has it done, unless it is being done. What fails is asked for again by whoever wants it.
    fn cut(&self, cluster: ClusterId, work: Work, done: impl FnOnce(Tail) -> Input + Send + 'static) {
        if !self.at_work.lock().unwrap_or_else(PoisonError::into_inner).insert((cluster, work)) {
            return;
        }
        let (engines, inputs, at_work) =
            (self.means.engines.clone(), self.inputs.clone(), Arc::clone(&self.at_work));
        let resting = Arc::clone(&self.resting);
        self.elsewhere.spawn(async move {
            let begun = tokio::time::Instant::now();
            let ended = match work {
                Work::Rest(_) => engines.rest(cluster, || has(&resting, &cluster)).await,
                Work::Seal => engines.seal(cluster).await,
            };
            let took = begun.elapsed();
            at_work.lock().unwrap_or_else(PoisonError::into_inner).remove(&(cluster, work));
            match ended {
                Ok(tail) => {
                    tracing::info!(%cluster, ?work, ?took, position = %tail.position, "an order of the coordinator is carried out");
                    drop(inputs.send(done(tail)).await);
                }
                Err(error) => tracing::warn!(%cluster, ?work, error = %Chain(&error), "an order of the coordinator"),
            }
        });
    }

    fn disk(&self) -> (Files, PathBuf, mpsc::Sender<Input>) {
        (self.means.files.clone(), self.means.state.clone(), self.inputs.clone())
    }

    /// The gate; none where nothing is filtered, and the engine's stop is all there is.
    fn kernel(&mut self) -> Result<Option<&Gate>, Error> {
        if matches!(self.means.firewall.borrow().filtering, Filtering::Unavailable { .. }) {
            return Ok(None);
        }
        if self.gate.is_none() {
            self.gate = Some(Gate::open(&self.means.kernel)?);
        }
        Ok(self.gate.as_ref())
    }
}

impl Hands for Agents {
    fn gate(&mut self, ports: &[u16], deed: Deed) -> Result<(), Error> {
        let Some(gate) = self.kernel()? else { return Ok(()) };
        match deed {
            Deed::Arm(slot, lasts) => gate.arm(ports, slot, lasts),
            Deed::Grant(slot) => gate.grant(ports, slot),
            Deed::Limit(slot, lasts) => gate.limit(ports, slot, lasts),
            Deed::OpenForEver => gate.open_for_ever(ports),
            Deed::OpenToReaders(lasts) => gate.open_to_readers(ports, lasts),
            Deed::Shut => gate.shut(ports),
        }
    }

    fn observe(&mut self, ports: &[u16]) -> Result<protocol::Gate, Error> {
        let (Some(gate), Some(port)) = (self.kernel()?, ports.first()) else {
            return Ok(protocol::Gate::default());
        };
        let found: firewall::gate::Standing = gate.observe(*port)?;
        Ok(protocol::Gate::found(Slot::BOTH.map(|slot| found.left(slot)), found.is_for_ever()))
    }

    fn store(&mut self, cluster: ClusterId, record: Record) {
        let (files, state, inputs) = self.disk();
        self.elsewhere.spawn(async move {
            while let Err(error) = records::store(&files, &state, cluster, &record).await {
                tracing::error!(%cluster, error = %Chain(&error), "store a lease's record; it is tried again");
                tokio::time::sleep(STORE_PAUSE).await;
            }
            drop(inputs.send(Input::Stored { cluster, record }).await);
        });
    }

    fn halt(&mut self, cluster: ClusterId) {
        let engines = self.means.engines.clone();
        self.elsewhere.spawn(async move {
            if let Err(error) = engines.halt(cluster).await {
                tracing::error!(%cluster, error = %Chain(&error), "stop an engine that has no lease; the next round tries again");
            }
        });
    }

    fn rest(&mut self, cluster: ClusterId, term: Term, attempt: Attempt, asked: Asked) {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster);
        self.cut(cluster, Work::Rest(asked), move |tail| Input::Rested {
            cluster,
            term,
            attempt,
            asked,
            tail,
        });
    }

    fn go_on(&mut self, cluster: ClusterId) {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner).remove(&cluster);
    }

    fn seal(&mut self, cluster: ClusterId, term: Term) {
        self.cut(cluster, Work::Seal, move |tail| Input::Cut { cluster, term, tail });
    }

    fn tell(&mut self, cluster: ClusterId, message: ToCoordinator) {
        self.means.contact.tell(Leased { cluster_id: cluster, message });
    }

    fn send(&mut self, cluster: ClusterId, to: NodeId, message: ToPeer) {
        match message {
            ToPeer::AskPromise { number, term } => {
                let assignment = self.means.assignment.borrow();
                let address = assignment
                    .member(cluster)
                    .and_then(|member| member.members.iter().find(|peer| peer.node_id == to))
                    .map(|peer| peer.address);
                drop(assignment);
                let asked = AskPromise { cluster_id: cluster, number, term };
                if let Some(address) = address {
                    self.means.contact.ask(to, address, asked, self.inputs.clone());
                }
            }
            ToPeer::Promise { number, term } => self.given.push((to, Promised { number, term })),
        }
    }

    fn event(&mut self, cluster: ClusterId, severity: Severity, reason: &str, message: &str) {
        let event = node_event(&self.means.clock, severity, reason, message);
        (self.means.tell)(NodeEvent { cluster_id: Some(cluster), ..event });
    }
}

fn has<T: Ord>(set: &Mutex<BTreeSet<T>>, what: &T) -> bool {
    set.lock().unwrap_or_else(PoisonError::into_inner).contains(what)
}
