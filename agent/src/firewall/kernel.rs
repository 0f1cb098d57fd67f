//! Elements, counters and the ruleset's number, in the kernel: [`Change`] in, [`Observed`] out.
//!
//! Every transaction of anybody raises the kernel's number of its rules by one. All transactions of the agent are
//! counted here, whichever part made them: so one question tells whether anybody else has changed anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

use super::layers::Layers;
use super::netlink::{self, Counter};
use super::plan::{Addresses, Change, Observed, PortSets};
use super::sets::{Family, PortElement, SetId};
use crate::host::netlink::connections::Connection;
use crate::host::netlink::{Error, Netlink};

/// Changes and lists elements of the table. Cheap to clone; needs no runtime.
#[derive(Debug, Clone)]
pub struct Kernel {
    netlink: Arc<dyn Netlink>,
    /// Transactions of the agent, of all clones.
    ours: Arc<AtomicU32>,
    missed: Arc<Notify>,
}

/// A moment: the kernel's number, and how many of its transactions were ours until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    generation: u32,
    ours: u32,
}

// === impl Kernel ===

impl Kernel {
    pub fn new(netlink: Arc<dyn Netlink>) -> Self {
        Self { netlink, ours: Arc::default(), missed: Arc::default() }
    }

    /// The same, by a connection of its own: one that does not wait for what others have under way.
    ///
    /// # Errors
    /// Where none can be opened.
    pub fn apart(&self) -> Result<Self, Error> {
        Ok(Self { netlink: self.netlink.another()?, ..self.clone() })
    }

    /// Says that something of the table was not there.
    pub(super) fn miss(&self) {
        self.missed.notify_one();
    }

    /// Waits until that is said of any clone.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn is_missed(&self) {
        self.missed.notified().await;
    }

    /// One transaction.
    ///
    /// # Errors
    /// Where the kernel refuses: nothing has changed then.
    pub fn change(&self, changes: &[Change]) -> Result<(), Error> {
        let messages: Vec<_> = changes.iter().flat_map(netlink::encode).collect();
        if messages.is_empty() {
            return Ok(());
        }
        self.netlink.transact(&messages)?;
        self.ours.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// The same on a thread for work that blocks: a hundred thousand elements take the kernel a while. The changes that
    /// were made come back.
    ///
    /// # Errors
    /// As above.
    pub async fn change_beside(&self, changes: Vec<Change>) -> Result<Vec<Change>, super::Error> {
        let kernel = self.clone();
        let done = tokio::task::spawn_blocking(move || kernel.change(&changes).map(|()| changes)).await;
        Ok(done.map_err(|_| super::Error::Lost)??)
    }

    /// The kernel's number of its rules.
    ///
    /// # Errors
    /// Also where there is no leave to use nftables.
    pub fn generation(&self) -> Result<u32, Error> {
        netlink::generation(&self.netlink.ask(&netlink::get_generation())?)
    }

    /// # Errors
    /// As [`Self::generation`].
    pub fn mark(&self) -> Result<Mark, Error> {
        // Ours first: one that comes in between then looks like somebody else's, and only costs another look.
        let ours = self.ours.load(Ordering::SeqCst);
        Ok(Mark { generation: self.generation()?, ours })
    }

    /// # Errors
    /// Also where there is no such set.
    pub fn ports(&self, set: SetId) -> Result<Vec<PortElement>, Error> {
        netlink::ports(&self.netlink.ask(&netlink::list_elements(set))?)
    }

    /// # Errors
    /// Where the kernel does not tell them.
    pub fn counters(&self) -> Result<Vec<(String, Counter)>, Error> {
        netlink::counters(&self.netlink.ask(&netlink::list_counters())?)
    }

    /// Which ports are in the gate's sets and on trial, by now, and which of them by somebody else's hand.
    pub(super) fn read_gate(&self, observed: &mut Observed) -> Result<(), Error> {
        observed.foreign.clear();
        for set in SetId::OF_PORTS {
            let told = self.netlink.ask(&netlink::list_elements(set))?;
            let ports = netlink::ports(&told)?.into_iter().map(|element| element.port).collect();
            observed.foreign.extend(netlink::foreign_ports(&told)?.into_iter().map(|port| (set, port)));
            match set {
                SetId::Trial => observed.trials = ports,
                set => drop(observed.gated.insert(set, ports)),
            }
        }
        Ok(())
    }

    /// The addresses of these ports; on a thread for work that blocks.
    pub(super) async fn read_ports(&self, ports: Vec<u16>) -> Result<BTreeMap<u16, PortSets>, super::Error> {
        let kernel = self.clone();
        let read = move || {
            ports.into_iter().map(|port| Ok((port, kernel.port(port)?))).collect::<Result<_, Error>>()
        };
        Ok(tokio::task::spawn_blocking(read).await.map_err(|_| super::Error::Lost)??)
    }

    /// The connections from other machines to these ports; on a thread for work that blocks.
    pub(super) async fn connections(&self, ports: Vec<u16>) -> Result<Vec<(u16, Connection)>, super::Error> {
        let kernel = self.clone();
        let list = move || {
            let mut found = Vec::new();
            for port in ports {
                found.extend(kernel.netlink.connections(port)?.into_iter().map(|it| (port, it)));
            }
            Ok::<_, Error>(found)
        };
        Ok(tokio::task::spawn_blocking(list).await.map_err(|_| super::Error::Lost)??)
    }

    /// Ends them, on such a thread too.
    pub(super) async fn end(&self, connections: Vec<Connection>) -> Result<(), super::Error> {
        let kernel = self.clone();
        let end = move || connections.iter().try_for_each(|connection| kernel.netlink.end(connection));
        Ok(tokio::task::spawn_blocking(end).await.map_err(|_| super::Error::Lost)??)
    }

    fn port(&self, port: u16) -> Result<PortSets, Error> {
        Ok(PortSets {
            members: self.addresses(|family| SetId::Members(port, family))?,
            kept: Layers {
                base: self.addresses(|family| SetId::Kept(port, family))?,
                added: self.addresses(|family| SetId::Added(port, family))?,
                withdrawn: self.addresses(|family| SetId::Withdrawn(port, family))?,
            },
            tried: self.addresses(|family| SetId::Tried(port, family))?,
        })
    }

    fn addresses(&self, set: impl Fn(Family) -> SetId) -> Result<Addresses, Error> {
        let list = |family| self.netlink.ask(&netlink::list_elements(set(family)));
        Ok(Addresses {
            v4: netlink::intervals(&list(Family::V4)?)?,
            v6: netlink::intervals(&list(Family::V6)?)?,
        })
    }
}

// === impl Mark ===

impl Mark {
    /// Whether all that has happened since were transactions of ours.
    pub fn is_before_only_ours(&self, later: &Self) -> bool {
        later.generation.wrapping_sub(self.generation) == later.ours.wrapping_sub(self.ours)
    }
}
