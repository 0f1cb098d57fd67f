//! The one table `inet holdfast`: who reaches the engines of this node, and the gate.
//!
//! ```text
//!  assignment, coordinators ─► Declared ┐
//!                                       ├─► plan (pure) ─► structure by `nft -j -f -`, elements by netlink
//!  kernel ─► Observed ──────────────────┘                  (both all or nothing; other tables are never named)
//!
//!  lease ─► Gate ─► elements by netlink
//! ```
//!
//! | part | answers for |
//! | --- | --- |
//! | [`plan`] | what must change, from what is declared and what is there |
//! | `render`, `parse` | the structure as a document for nft, and as nft lists it |
//! | [`layers`] | a long list in three sets, so that changing a little of it costs little |
//! | [`sets`], [`netlink`] | the table's sets; their elements as netlink messages |
//! | [`kernel`] | changes and listings, in the kernel |
//! | [`gate`] | opening and shutting a port, for the lease |
//! | [`service`], `trials`, `refusals` | keeping it so; which trials were begun; when refused packets are told of |
//! | `strangers` | ending connections whose other end is let in no more |
//!
//! Only ports of managed engines are filtered: a packet to any other port meets no rule of ours, so nobody can be locked
//! out of the machine. What somebody else changes in the table is noticed (the kernel numbers its transactions), told, and
//! put right.

pub mod gate;
pub mod kernel;
pub mod layers;
pub mod netlink;
mod parse;
pub mod plan;
mod refusals;
mod render;
pub mod service;
pub mod sets;
mod strangers;
#[cfg(test)]
pub(crate) mod tests;
mod trials;

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_common::error::{Classify, Metadata, Reason};
use tokio_util::sync::CancellationToken;

pub use self::gate::Gate;
pub use self::kernel::Kernel;
pub use self::netlink::Counter;
pub use self::service::{Handle, Service};

use self::layers::Bounds;
use self::parse::Listing;
use self::plan::{Change, Declared, Observed, Plan, Structure};
use crate::host::exec::{self, MAX_OUTPUT_BYTES, Program};
use crate::host::{self, Host};

/// The one table that is ours.
pub const TABLE: &str = "holdfast";

/// How long `nft` may take; beside large sets of others it takes seconds.
const NFT_DEADLINE: Duration = Duration::from_secs(60);
/// Look, load, look, change: more often only if somebody else changes the table at the same moment.
const ROUNDS: usize = 4;

/// Keeps the table as declared.
#[derive(Debug)]
pub struct Firewall {
    host: Host,
    kernel: Kernel,
    bounds: Bounds,
    known: Option<Known>,
    /// How this nft lists what it was told last, where that differs from what it was told.
    spelling: Option<(Listing, Listing)>,
}

/// What is in the kernel, as long as nobody else has changed anything.
#[derive(Debug)]
struct Known {
    at: kernel::Mark,
    structure: Listing,
    observed: Observed,
}

/// What came of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// What somebody else had changed, and was put right.
    pub drift: Option<Drift>,
    pub loaded: bool,
    pub changed: usize,
}

/// What was not as the agent had left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drift {
    /// The table was gone: for a moment everything passed.
    Removed,
    Structure,
    Elements,
    /// Somebody else opened a gate, or put a port on trial.
    Ports,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("change or list the table's elements")]
    Kernel(#[from] host::netlink::Error),
    #[error("load or list the table")]
    Nft(#[from] exec::Error),
    #[error("read the table")]
    Listing(#[from] parse::Error),
    #[error("somebody else changes the table again and again")]
    Contended,
    #[error("a part of the agent that changes the table has failed")]
    Lost,
}

// === impl Firewall ===

impl Firewall {
    pub fn new(host: Host) -> Self {
        let kernel = Kernel::new(host.netlink());
        Self { host, kernel, bounds: Bounds::USUAL, known: None, spelling: None }
    }

    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// Whether nftables can be used here.
    ///
    /// # Errors
    /// Why not: no leave, no support by the kernel, or no `nft`.
    pub async fn probe(&self) -> Result<(), Error> {
        self.kernel.generation()?;
        self.list().await.map(drop)
    }

    /// Whether nobody but the agent has changed anything since the last [`Self::apply`].
    ///
    /// # Errors
    /// Where the kernel does not tell it.
    pub fn is_untouched(&self) -> Result<bool, Error> {
        let Some(known) = &self.known else { return Ok(false) };
        Ok(known.at.is_before_only_ours(&self.kernel.mark()?))
    }

    /// Makes the table as declared.
    ///
    /// # Errors
    /// [`Error`]. Whatever was done until then is whole by itself: the next round goes on from what it finds.
    pub async fn apply(&mut self, declared: &Declared) -> Result<Applied, Error> {
        let wanted = render::structure(declared);
        let mut applied = Applied::default();
        for _ in 0..ROUNDS {
            let drift = self.observe(&wanted).await?;
            applied.drift = applied.drift.or(drift);
            let nothing = Observed::default();
            let observed = self.known.as_ref().map_or(&nothing, |known| &known.observed);
            let Plan { load, before, changes } = plan::plan(declared, observed, self.bounds);
            if load {
                self.load(&wanted).await?;
                applied.loaded = true;
                continue;
            }
            applied.changed += self.change(before).await?;
            applied.changed += self.change(changes).await?;
            return Ok(applied);
        }
        Err(Error::Contended)
    }

    /// One transaction; of how many elements.
    async fn change(&mut self, changes: Vec<Change>) -> Result<usize, Error> {
        if changes.is_empty() {
            return Ok(0);
        }
        let made = self.kernel.change_beside(changes).await.inspect_err(|_| self.known = None)?;
        if let Some(known) = &mut self.known {
            known.observed.apply(&made);
        }
        Ok(made.iter().map(|change| change.elements.len()).sum())
    }

    /// Makes `known` what the kernel has now: the gate and the trials afresh, the rest too if anybody else has changed
    /// anything. Where the structure is not as wanted, nothing is known.
    async fn observe(&mut self, wanted: &Listing) -> Result<Option<Drift>, Error> {
        let at = self.kernel.mark()?;
        if let Some(known) = &mut self.known
            && known.at.is_before_only_ours(&at)
            && known.structure.same(wanted)
        {
            self.kernel.read_gate(&mut known.observed)?;
            return Ok(known.observed.drift_of_ports());
        }
        let found = self.list().await?;
        let structure = match &found {
            None => Structure::Absent,
            Some(found) if found.same(wanted) || self.spells(wanted, found) => Structure::AsDeclared,
            Some(_) => Structure::Differs,
        };
        let mut observed = Observed { structure, ..Observed::default() };
        if structure == Structure::AsDeclared {
            self.kernel.read_gate(&mut observed)?;
            let ports: Vec<u16> = service::ports_of(wanted.sets.keys());
            observed.ports = self.kernel.read_ports(ports).await?;
        }
        let drift = self.drift(found.as_ref(), &observed);
        self.known =
            (structure == Structure::AsDeclared).then(|| Known { at, structure: wanted.clone(), observed });
        Ok(drift)
    }

    /// What differs from what the agent has left, for any reason but its own deeds. A starting one knows its ports by their mark alone.
    fn drift(&self, found: Option<&Listing>, observed: &Observed) -> Option<Drift> {
        let Some(known) = &self.known else { return observed.drift_of_ports() };
        match found {
            None => Some(Drift::Removed),
            Some(found) if !found.same(&known.structure) && !self.spells(&known.structure, found) => {
                Some(Drift::Structure)
            }
            Some(_)
                if observed.structure == Structure::AsDeclared && observed.ports != known.observed.ports =>
            {
                Some(Drift::Elements)
            }
            Some(_) => observed.drift_of_ports(),
        }
    }

    /// Whether this nft lists what is wanted so, in words of its own.
    fn spells(&self, wanted: &Listing, found: &Listing) -> bool {
        self.spelling.as_ref().is_some_and(|(told, listed)| told.same(wanted) && listed.same(found))
    }

    async fn list(&self) -> Result<Option<Listing>, Error> {
        let program = Program::new("nft")
            .args(["-j", "-t", "list", "table", "inet", TABLE])
            .accept(1)
            .deadline(NFT_DEADLINE)
            .output_bytes(MAX_OUTPUT_BYTES);
        let output = self.host.run(program, &CancellationToken::new()).await?;
        if output.code == 0 {
            return Ok(Some(parse::parse(&output.stdout.bytes)?));
        }
        let stderr = output.stderr.text();
        if stderr.contains("No such file or directory") {
            return Ok(None);
        }
        Err(exec::Error::Exit {
            program: "nft".to_owned(),
            code: output.code,
            stderr: stderr.trim().to_owned(),
        }
        .into())
    }

    async fn load(&mut self, wanted: &Listing) -> Result<(), Error> {
        self.known = None;
        let found = self.list().await?.unwrap_or_default();
        let document = render::document(wanted, &found).to_string();
        let program = Program::new("nft").args(["-j", "-f", "-"]).stdin(document).deadline(NFT_DEADLINE);
        self.host.run(program, &CancellationToken::new()).await?;
        let listed = self.list().await?.unwrap_or_default();
        // Another nft may write the same thing differently; a rule too many or too few is no spelling.
        let size = |listing: &Listing| (listing.rules.len(), listing.chains.len(), listing.sets.len());
        if !listed.same(wanted) && size(&listed) == size(wanted) && listed.foreign.is_empty() {
            tracing::debug!("this nft lists the table in words of its own");
            self.spelling = Some((wanted.clone(), listed));
        }
        Ok(())
    }
}

/// What was let in and refused, by port.
pub type Counted = BTreeMap<u16, (Counter, Counter)>;

impl Firewall {
    /// The counters of these ports, since the table was loaded.
    ///
    /// # Errors
    /// Where the kernel does not tell them.
    pub fn counted(&self, ports: impl IntoIterator<Item = u16>) -> Result<Counted, Error> {
        let counters: BTreeMap<String, Counter> = self.kernel.counters()?.into_iter().collect();
        let of = |name: String| counters.get(&name).copied().unwrap_or_default();
        let counted =
            ports.into_iter().map(|port| (port, (of(render::accepted(port)), of(render::refused(port)))));
        Ok(counted.collect())
    }
}

// === impl Observed ===

impl Observed {
    /// Ports bear the agent's mark, whichever agent has put them in.
    fn drift_of_ports(&self) -> Option<Drift> {
        (!self.foreign.is_empty()).then_some(Drift::Ports)
    }
}

// === impl Drift ===

impl Drift {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Removed => "the table was gone",
            Self::Structure => "its chains, rules or sets were changed",
            Self::Elements => "addresses in its sets were changed",
            Self::Ports => "ports were put into its sets",
        }
    }
}

// === impl Error ===

impl Error {
    /// Whether nftables cannot be used on this machine at all, rather than not at this moment.
    pub fn is_no_leave(&self) -> bool {
        match self {
            Self::Kernel(error) => error.is_no_leave(),
            Self::Nft(error) => matches!(error, exec::Error::Missing { .. }),
            Self::Listing(_) | Self::Contended | Self::Lost => false,
        }
    }
}

impl Classify for Error {
    fn reason(&self) -> Reason {
        Reason::EngineFailed
    }

    fn metadata(&self) -> Metadata {
        Metadata::new()
    }
}
