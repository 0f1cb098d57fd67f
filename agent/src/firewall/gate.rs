//! The gate of a member's ports, for those who hold a lease: each deed is one transaction in the kernel and starts no process.
//!
//! ```text
//! a packet of a client passes while  port ∈ armed_i and port ∈ granted_i  for the same i, or port ∈ readers
//! ```
//! Only `armed_i` has a time: it is set *before* a renewal is sent, so an agent that stalls between the answer and the
//! kernel cannot open late. Which slot is armed when is not decided here (`common::protocol`); that the old agent is gone
//! is the caller's care too. All of it may be called from a thread without a runtime; a refused deed has changed nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_common::protocol::Slot;

use super::kernel::Kernel;
use super::plan::{Change, remove, renew};
use super::sets::{PortElement, SetId};
use crate::host::netlink::Error;

/// Opens and shuts ports. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    kernel: Kernel,
}

/// How a port's gate stands in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// By slot: armed, and for how long yet; `Some(None)`: for ever.
    pub armed: [Option<Option<Duration>>; 2],
    pub granted: [bool; 2],
    /// Open to readers, and for how long yet.
    pub readers: Option<Option<Duration>>,
}

// === impl Gate ===

impl Gate {
    /// With a connection of its own to the kernel, so that it waits for nobody else's.
    ///
    /// # Errors
    /// Where none can be opened.
    pub fn open(kernel: &Kernel) -> Result<Self, Error> {
        Ok(Self { kernel: kernel.apart()? })
    }

    /// Before a renewal is sent: takes the ports out of `granted` and puts them anew into `armed`, for so long. No primary is open to
    /// readers, whoever put it there: that would outlive its lease.
    ///
    /// # Errors
    /// Then the renewal must not be sent.
    pub fn arm(&self, ports: &[u16], slot: Slot, lasts: Duration) -> Result<(), Error> {
        self.each(ports, |port| {
            let gone = [SetId::Granted(slot), SetId::Readers];
            let mut changes: Vec<Change> = gone.into_iter().flat_map(|set| remove(set, port)).collect();
            changes.extend(renew(SetId::Armed(slot), PortElement::lasting_for(port, lasts)));
            changes
        })
    }

    /// After the answer to the renewal for which this slot was last armed.
    ///
    /// # Errors
    /// Then it is no renewal.
    pub fn grant(&self, ports: &[u16], slot: Slot) -> Result<(), Error> {
        self.each(ports, |port| renew(SetId::Granted(slot), PortElement::lasting(port)).into())
    }

    /// From open without an end to open for so long, without being shut in between.
    ///
    /// # Errors
    /// Then it is as it was.
    pub fn limit(&self, ports: &[u16], slot: Slot, lasts: Duration) -> Result<(), Error> {
        self.each(ports, |port| {
            let mut changes: Vec<Change> =
                renew(SetId::Armed(slot), PortElement::lasting_for(port, lasts)).into();
            changes.extend(renew(SetId::Granted(slot), PortElement::lasting(port)));
            changes
        })
    }

    /// Shuts the ports for clients and readers, whatever was armed or granted.
    ///
    /// # Errors
    /// Then they may still be open.
    pub fn shut(&self, ports: &[u16]) -> Result<(), Error> {
        self.each(ports, |port| SetId::GATE.into_iter().flat_map(|set| remove(set, port)).collect())
    }

    /// Opens the ports without an end: for a primary without promotable members.
    ///
    /// # Errors
    /// Then they are as they were.
    pub fn open_for_ever(&self, ports: &[u16]) -> Result<(), Error> {
        self.each(ports, |port| {
            let sets = [SetId::Armed(Slot::A), SetId::Granted(Slot::A)];
            sets.into_iter().flat_map(|set| renew(set, PortElement::lasting(port))).collect()
        })
    }

    /// Opens the ports to readers of a replica, for so long.
    ///
    /// # Errors
    /// Then they are as they were.
    pub fn open_to_readers(&self, ports: &[u16], lasts: Duration) -> Result<(), Error> {
        self.each(ports, |port| renew(SetId::Readers, PortElement::lasting_for(port, lasts)).into())
    }

    /// The changes of all ports in one transaction.
    fn each(&self, ports: &[u16], changes: impl Fn(u16) -> Vec<Change>) -> Result<(), Error> {
        let changes: Vec<Change> = ports.iter().flat_map(|port| changes(*port)).collect();
        // Somebody else has removed the table: a lease waits for it.
        self.kernel.change(&changes).inspect_err(|error| {
            if error.is_absent() {
                self.kernel.miss();
            }
        })
    }

    /// # Errors
    /// Where the kernel does not tell it, or there is no table.
    pub fn observe(&self, port: u16) -> Result<Standing, Error> {
        let left = |set| {
            let ports = self.kernel.ports(set)?;
            Ok::<_, Error>(
                ports.into_iter().find(|element| element.port == port).map(|element| element.lasts),
            )
        };
        Ok(Standing {
            armed: [left(SetId::Armed(Slot::A))?, left(SetId::Armed(Slot::B))?],
            granted: [left(SetId::Granted(Slot::A))?.is_some(), left(SetId::Granted(Slot::B))?.is_some()],
            readers: left(SetId::Readers)?,
        })
    }

    /// The ports that are open to clients for ever.
    ///
    /// # Errors
    /// As [`Self::observe`].
    pub fn lasting(&self) -> Result<BTreeSet<u16>, Error> {
        let lasting = |set| {
            let ports = self.kernel.ports(set)?;
            Ok::<BTreeSet<u16>, Error>(
                ports
                    .into_iter()
                    .filter(|element| element.lasts.is_none())
                    .map(|element| element.port)
                    .collect(),
            )
        };
        let (armed, granted) = (lasting(SetId::Armed(Slot::A))?, lasting(SetId::Granted(Slot::A))?);
        Ok(armed.intersection(&granted).copied().collect())
    }
}

// === impl Standing ===

impl Standing {
    /// For how long this slot lets clients in yet; nothing for one that does not, or does so for ever.
    pub fn left(&self, slot: Slot) -> Duration {
        let armed = self.armed[slot.index()].flatten();
        armed.filter(|_| self.granted[slot.index()]).unwrap_or_default()
    }

    /// Whether clients are let in without an end.
    pub fn is_for_ever(&self) -> bool {
        Slot::BOTH
            .into_iter()
            .any(|slot| self.armed[slot.index()] == Some(None) && self.granted[slot.index()])
    }

    /// Whether clients that may come in do come in.
    pub fn is_open(&self) -> bool {
        self.readers.is_some()
            || self.armed.iter().zip(self.granted).any(|(armed, granted)| armed.is_some() && granted)
    }
}
