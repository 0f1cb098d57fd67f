//! The coordinator's part in the leases: grants them, keeps the lists of promotable members, and remembers for how long a
//! primary may hold one.
//!
//! ```text
//!  rpc/lease ── renewals ──► hear ──► Regent (common::protocol), in memory ──► granted, on the same stream, at once
//!            ── list stored ► hear ──┐
//!  reconcile/leases ──► declare ─────┴─► Regent ──► stored ──► told, and told again until it is confirmed
//! ```
//! A change of primary is asked for step by step (`succession`). What must be told is stored before. Nothing here decides what is safe, who should be a member, or to fail over.

mod error;
mod led;
mod outlook;
mod succession;

pub use error::Error;
pub use led::Led;
pub use outlook::{Obstacle, Outlook, outlook};

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_common::clock::{Boottime, Clock};
use holdfast_common::error::Chain;
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::link::Leased;
use holdfast_common::position::Position;
use holdfast_common::protocol::{
    self, Decree, List, Need, Profile, Regent, Reign, Timings, ToCoordinator, ToMember, Version,
};
use holdfast_common::term::Term;
use tokio::sync::{mpsc, watch};

use crate::cluster::{Cluster, more_patient};
use crate::directory::{Directory, put};
use crate::procedures::records::{Writes, cluster_key};
use crate::store::{Compare, Key, Op, Revision, Txn};

/// Prefix of the reigns.
const REIGNS: &str = "cluster-reigns/";
/// Messages that wait for one node.
const OUTGOING: usize = 256;

/// The leases of all clusters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leases {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: Directory,
    clock: Clock,
    seats: Mutex<BTreeMap<ClusterId, Seat>>,
    streams: Mutex<BTreeMap<NodeId, Stream>>,
    next: AtomicU64,
    /// Counts what nodes have answered.
    answers: watch::Sender<u64>,
    /// One change at a time, from the rule to the store.
    change: tokio::sync::Mutex<()>,
}

/// One cluster's.
#[derive(Debug)]
struct Seat {
    regent: Regent,
    timings: Timings,
    /// Leases are remembered for as long as by this at least.
    at_least: Option<Profile>,
    /// The members beside the primary.
    replicas: Vec<NodeId>,
    /// Until when its time was counted.
    at: Boottime,
    /// Of the stored reign.
    revision: Revision,
    /// When it last granted the lease.
    granted: Option<Boottime>,
    /// How far the primary of a term was when it last told.
    last: Option<(Term, Position)>,
}

#[derive(Debug)]
struct Stream {
    number: u64,
    outgoing: mpsc::Sender<Leased<ToMember>>,
}

/// How a cluster's lease stands, as the coordinator knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    pub reign: Reign,
    /// For how long the primary may hold a lease of the coordinator's at most.
    pub remembered: Duration,
    /// For how long the last grant lets it serve, counted from the answer; `None`: there is none that still does.
    pub serves: Option<Duration>,
    /// Since the last grant; `None`: this coordinator has given none.
    pub granted_for: Option<Duration>,
    /// How far the primary was when it last told; `None`: it has not told this coordinator.
    pub last: Option<Position>,
}

/// A node's end of the talk, as long as it is held.
#[derive(Debug)]
pub struct Attached {
    leases: Leases,
    node: NodeId,
    number: u64,
}

/// Where a cluster's reign is stored.
pub fn reign_key(cluster: ClusterId) -> Key {
    Key::from(format!("{REIGNS}{cluster}"))
}

// === impl Seat ===

impl Seat {
    /// Whether its primary is being changed.
    fn changes(&self) -> bool {
        self.regent.stop.is_some() || self.regent.reign.intended.is_some()
    }

    /// What is to be said now: else replicas know whom to follow by their assignments.
    fn orders(&self) -> Vec<Decree> {
        let replicas: &[NodeId] = if self.changes() { &self.replicas } else { &[] };
        self.regent.orders(replicas)
    }
}

// === impl Leases ===

impl Leases {
    pub fn new(directory: Directory, clock: Clock) -> Self {
        Self {
            shared: Arc::new(Shared {
                directory,
                clock,
                seats: Mutex::default(),
                streams: Mutex::default(),
                next: AtomicU64::new(0),
                answers: watch::Sender::new(0),
                change: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// A node's stream begins; an earlier one of the same node gets nothing any more.
    pub fn attach(&self, node: NodeId) -> (Attached, mpsc::Receiver<Leased<ToMember>>) {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        self.streams().insert(node, Stream { number, outgoing });
        let led: Vec<(ClusterId, Decree)> = self
            .seats()
            .iter()
            .flat_map(|(cluster, seat)| seat.orders().into_iter().map(|order| (*cluster, order)))
            .filter(|(_, order)| matches!(order, Decree::Send { to, .. } if *to == node))
            .collect();
        for (cluster, decree) in led {
            self.send(cluster, decree);
        }
        (Attached { leases: self.clone(), node, number }, messages)
    }

    /// A node's agent says. What takes the store is given back as work: no renewal waits for a disk.
    #[must_use]
    pub fn hear(
        &self,
        from: NodeId,
        said: Leased<ToCoordinator>,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let Leased { cluster_id, message } = said;
        match message {
            ToCoordinator::Renew { number, term, version } => {
                let decree = self.with(cluster_id, |seat, now| {
                    let timings = seat.timings;
                    let decree = seat.regent.renew(from, number, term, version, &timings)?;
                    seat.granted = Some(now);
                    Some(decree)
                });
                match decree.flatten() {
                    Some(decree) => self.send(cluster_id, decree),
                    None => {
                        tracing::debug!(cluster = %cluster_id, %from, %term, "a renewal that is not granted")
                    }
                }
                None
            }
            ToCoordinator::ListStored { term, version } => {
                let leases = self.clone();
                Some(async move { leases.confirmed(cluster_id, from, term, version).await })
            }
            ToCoordinator::Fenced { term, attempt } => {
                self.answered(cluster_id, |regent| regent.fenced(from, term, attempt));
                None
            }
            ToCoordinator::Stopped { term, attempt, tail } => {
                self.answered(cluster_id, |regent| regent.stopped(from, term, attempt, tail));
                None
            }
            ToCoordinator::Confirmed { term, attempt, tail } => {
                self.answered(cluster_id, |regent| regent.confirmed(from, term, attempt, tail));
                None
            }
            ToCoordinator::Sealed { term, tail } => {
                self.answered(cluster_id, |regent| regent.sealed(from, term, tail));
                None
            }
        }
    }

    /// Takes note of an answer, says what follows from it, and wakes whoever waits for it.
    fn answered(&self, cluster: ClusterId, note: impl FnOnce(&mut Regent)) {
        let news = self.with(cluster, |seat, _| {
            let before = seat.regent.clone();
            note(&mut seat.regent);
            seat.regent != before
        });
        // What was known already is no reason to say anything: each order is answered, so there would be no end.
        if news == Some(true) {
            self.press(cluster);
            self.shared.answers.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    async fn confirmed(&self, cluster: ClusterId, from: NodeId, term: Term, version: Version) {
        let rule = |regent: &mut Regent, timings: &Timings| {
            Ok(regent.list_stored(from, term, version, timings).into_iter().collect())
        };
        if let Err(error) = self.change(cluster, rule, Writes::default()).await {
            tracing::warn!(%cluster, error = %Chain(&error), "a confirmed list is not recorded; it is confirmed again");
        }
    }

    /// Reads the reigns of these clusters, or makes their first ones; all others are forgotten.
    ///
    /// # Errors
    /// Those of the store. What was done until then stays.
    pub async fn open(&self, led: &[Led]) -> Result<(), Error> {
        self.seats().retain(|cluster, _| led.iter().any(|led| led.cluster == *cluster));
        for led in led {
            self.open_one(led).await?;
        }
        Ok(())
    }

    /// Declares who is to be promotable; nothing where the newest list says so already.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn declare(&self, cluster: ClusterId, members: &[NodeId], need: Need) -> Result<(), Error> {
        // While a primary is being changed no list is: it is declared afterwards.
        let rule = |regent: &mut Regent, _: &Timings| Ok(declared(regent, members, need).unwrap_or_default());
        self.change(cluster, rule, Writes::default()).await
    }

    /// The same, together with these writes: none without the other.
    ///
    /// # Errors
    /// [`Error::Obstacle`] where no list may change now; those of the store.
    pub async fn declare_with(
        &self,
        cluster: ClusterId,
        members: &[NodeId],
        need: Need,
        writes: Writes,
    ) -> Result<(), Error> {
        self.change(cluster, |regent, _| declared(regent, members, need), writes).await
    }

    /// Says again what a primary has not confirmed. `knows` is the version that it reports as stored.
    pub fn remind(&self, knows: impl Fn(ClusterId, NodeId) -> Option<Version>) {
        let open: Vec<(ClusterId, Vec<Decree>)> = self
            .seats()
            .iter()
            .filter(|(cluster, seat)| {
                let reign = &seat.regent.reign;
                let known = knows(**cluster, reign.primary) == Some(reign.newest().version);
                seat.changes() || !known || !reign.is_settled()
            })
            .map(|(cluster, seat)| (*cluster, seat.orders()))
            .collect();
        for (cluster, orders) in open {
            orders.into_iter().for_each(|order| self.send(cluster, order));
        }
    }

    pub fn view(&self, cluster: ClusterId) -> Option<View> {
        self.with(cluster, |seat, now| View {
            reign: seat.regent.reign.clone(),
            remembered: seat.regent.lease.left(),
            serves: seat
                .granted
                .map(|granted| seat.timings.served().saturating_sub(now.since(granted)))
                .filter(|left| !left.is_zero()),
            granted_for: seat.granted.map(|granted| now.since(granted)),
            last: seat.last.filter(|(term, _)| *term == seat.regent.reign.term).map(|(_, last)| last),
        })
    }

    /// The primary of this term has told how far it is. It is remembered beyond its end: it tells what a failover loses.
    pub fn note_position(&self, cluster: ClusterId, term: Term, position: Position) {
        self.with(cluster, |seat, _| {
            let told = (term, position);
            seat.last = seat.last.max(Some(told));
        });
    }

    /// From here on leases of this cluster are remembered for as long as by this profile at least, whatever else is told of it.
    pub fn at_least(&self, cluster: ClusterId, profile: Profile) {
        self.with(cluster, |seat, _| {
            seat.at_least = Some(profile);
            let timings = profile.timings();
            if timings.lease > seat.timings.lease {
                seat.timings = timings;
            }
        });
    }

    /// The same of one, and the others stay as they are.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn open_one(&self, led: &Led) -> Result<(), Error> {
        let Led { cluster, replicas, profile, .. } = led;
        let timings = profile.timings();
        if let Some(seat) = self.seats().get_mut(cluster) {
            seat.timings = seat.at_least.into_iter().fold(*profile, more_patient).timings();
            seat.replicas.clone_from(replicas);
            return Ok(());
        }
        let _one_at_a_time = self.shared.change.lock().await;
        let key = reign_key(*cluster);
        let (reign, revision) = match self.shared.directory.get::<Reign>(&key).await? {
            Some(found) => (found.value, found.revision),
            None => match self.first(led, &key).await? {
                Some(first) => first,
                None => return Ok(()),
            },
        };
        let regent = Regent::started(reign, &timings);
        let at = self.shared.clock.boottime();
        let seat = Seat {
            regent,
            timings,
            at_least: None,
            replicas: replicas.clone(),
            at,
            revision,
            granted: None,
            last: None,
        };
        let orders = seat.orders();
        self.seats().insert(*cluster, seat);
        orders.into_iter().for_each(|order| self.send(*cluster, order));
        Ok(())
    }

    /// Stores a cluster's first reign; none for a cluster that was deleted or changed since it was read.
    async fn first(&self, led: &Led, key: &Key) -> Result<Option<(Reign, Revision)>, Error> {
        let record = cluster_key(&led.name);
        let found = self.shared.directory.get::<Cluster>(&record).await?;
        let Some(found) = found.filter(|found| Led::of(&found.value).as_ref() == Some(led)) else {
            return Ok(None);
        };
        let list = List::new(Version::FIRST, [], Need::All);
        let reign = Reign { term: led.term, ..Reign::first(led.primary, list) };
        let txn = Txn::new()
            .when(Compare::absent(key))
            .when(Compare::unchanged(&record, found.revision))
            .then(put(key, &reign)?);
        let outcome = self.shared.directory.store().txn(txn).await?;
        if !outcome.succeeded {
            return Err(Error::Contended(led.cluster));
        }
        Ok(Some((reign, outcome.revision)))
    }

    /// Asks the rule, stores what it says together with these writes, and only then believes it and tells it.
    async fn change(
        &self,
        cluster: ClusterId,
        rule: impl FnOnce(&mut Regent, &Timings) -> Result<Vec<Decree>, protocol::Obstacle>,
        writes: Writes,
    ) -> Result<(), Error> {
        let _one_at_a_time = self.shared.change.lock().await;
        let seat = self.with(cluster, |seat, _| (seat.regent.clone(), seat.timings, seat.revision));
        let Some((mut regent, timings, revision)) = seat else { return Err(Error::NoPrimary(cluster)) };
        let before = regent.reign.clone();
        let decrees = rule(&mut regent, &timings)?;
        if decrees.is_empty() && writes.ops.is_empty() {
            return Ok(());
        }
        let mut txn = Txn::new();
        if regent.reign != before {
            let key = reign_key(cluster);
            txn = txn.when(Compare::unchanged(&key, revision)).then(put(&key, &regent.reign)?);
        }
        let Writes { compares, ops } = writes;
        let alone = compares.is_empty();
        let stores = regent.reign != before || !ops.is_empty();
        txn = ops.into_iter().fold(compares.into_iter().fold(txn, Txn::when), Txn::then);
        let revision = if stores {
            let outcome = self.shared.directory.store().txn(txn).await;
            if outcome.as_ref().map_or(true, |outcome| alone && !outcome.succeeded) {
                // What is stored is not known any more: it is read anew.
                self.seats().remove(&cluster);
            }
            let outcome = outcome?;
            if !outcome.succeeded {
                return Err(Error::Contended(cluster));
            }
            if regent.reign == before { revision } else { outcome.revision }
        } else {
            revision
        };
        self.with(cluster, |seat, _| {
            // A lease that was granted meanwhile counts too; of another primary there was none.
            if regent.reign.primary == before.primary {
                regent.lease = regent.lease.max(seat.regent.lease);
            }
            seat.regent = regent;
            seat.revision = revision;
        });
        for decree in decrees {
            self.send(cluster, decree);
        }
        Ok(())
    }

    /// Looks at one seat, after its time was counted.
    fn with<T>(&self, cluster: ClusterId, look: impl FnOnce(&mut Seat, Boottime) -> T) -> Option<T> {
        let mut seats = self.seats();
        let seat = seats.get_mut(&cluster)?;
        // Under the lock: no two counts of the same time.
        let now = self.shared.clock.boottime();
        seat.regent.pass(now.since(seat.at));
        seat.at = now;
        Some(look(seat, now))
    }

    /// Sends, if the node's stream takes it; what matters is said again.
    fn send(&self, cluster: ClusterId, decree: Decree) {
        let Decree::Send { to, message } = decree else { return };
        let streams = self.streams();
        if let Some(stream) = streams.get(&to) {
            let _full = stream.outgoing.try_send(Leased { cluster_id: cluster, message });
        }
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<ClusterId, Seat>> {
        self.shared.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<NodeId, Stream>> {
        self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest list as asked for; nothing where it is so already.
fn declared(regent: &mut Regent, members: &[NodeId], need: Need) -> Result<Vec<Decree>, protocol::Obstacle> {
    let newest = regent.reign.newest();
    if *newest == List::new(newest.version, members.iter().copied(), need) {
        return Ok(Vec::new());
    }
    regent.declare(members.iter().copied(), need)
}

/// Forgets the reign together with its cluster.
pub fn no_reign(cluster: ClusterId) -> Op {
    Op::delete(reign_key(cluster))
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut streams = self.leases.streams();
        if streams.get(&self.node).is_some_and(|stream| stream.number == self.number) {
            streams.remove(&self.node);
        }
    }
}
