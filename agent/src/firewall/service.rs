//! Keeps the table as the assignment says, and tells how it stands.
//!
//! ```text
//!  assignment changed · coordinators' addresses changed · a lease missed the table · every second
//!                      ▼
//!  declare (trials are written down before they begin) ─► Firewall::apply ─► gates ─► strangers ─► status, events
//! ```
//! Before the first engine is started the table is loaded, shut ([`Service::prepare`]). The gate is opened by
//! the leases (`crate::lease`) alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use holdfast_common::access::{Access, Cidr};
use holdfast_common::assignment::{Assignment, MemberAssignment};
use holdfast_common::clock::Clock;
use holdfast_common::error::Chain;
use holdfast_common::id::ClusterId;
use holdfast_common::report::{AccessReport, NodeEvent, Severity, Traffic};
use holdfast_common::telemetry::Filtering;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::gate::Gate;
use super::plan::{Addresses, Declared, Port, Replication, Trial, TrialPhase};
use super::refusals::Refusals;
use super::sets::SetId;
use super::strangers::Strangers;
use super::trials::Trials;
use super::{Applied, Counter, Error, Firewall};
use crate::host::files::Files;
use crate::outbox::{Tell, node_event};
use crate::statefile;

/// How often the kernel is asked whether somebody has changed anything.
const ROUND: Duration = Duration::from_secs(1);
/// How long a round may trust that nobody has changed anything, by the kernel's number alone.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Whether a cluster's data are still on this node.
pub type HasData = Arc<dyn Fn(ClusterId) -> BoxFuture<'static, bool> + Send + Sync>;

/// The ids of the users that may replicate from other members; `None` where that cannot be told now.
pub type Users = Arc<dyn Fn() -> Option<Vec<u32>> + Send + Sync>;

/// What the rounds use.
#[derive(Clone)]
pub struct Means {
    pub assignment: watch::Receiver<Arc<Assignment>>,
    /// The coordinators' addresses, who may reach the engines too.
    pub coordinators: watch::Receiver<Vec<IpAddr>>,
    pub has_data: HasData,
    /// As whom engines and agent run here.
    pub users: Users,
    pub clock: Clock,
    pub tell: Tell,
}

/// How the firewall of this node stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub filtering: Filtering,
    /// Clusters whose rules are in the kernel, as they were declared last.
    pub clusters: BTreeMap<ClusterId, AccessReport>,
}

/// Reads the newest status. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    status: watch::Receiver<Arc<Status>>,
}

/// Owns the table.
pub struct Service {
    firewall: Firewall,
    gate: Option<Gate>,
    trials: Trials,
    means: Means,
    status: watch::Sender<Arc<Status>>,
    /// As last told.
    users: Vec<u32>,
    /// Ports of members that are assigned no more, whose engines may still run: shut until their data are gone.
    retired: BTreeMap<u16, Had>,
    /// Ports that were assigned in the last round.
    assigned: BTreeMap<u16, Had>,
    /// Trials that are under way, to tell of their end.
    on_trial: BTreeSet<ClusterId>,
    refusals: Refusals,
    strangers: Strangers,
    /// The last round, if it left nothing to be done.
    settled: Option<Settled>,
    /// What went wrong last, told once.
    failure: Option<String>,
}

/// Whose a port was, and what opened and shut with it.
#[derive(Debug, Clone)]
struct Had {
    cluster: ClusterId,
    gated: Vec<u16>,
}

/// A round after which only time or somebody else makes a difference.
struct Settled {
    assignment: Arc<Assignment>,
    coordinators: Vec<IpAddr>,
    at: Instant,
}

/// What is to be done with a trial that is assigned.
enum Assigned {
    Begin(Duration),
    Begun,
    Over,
}

// === impl Service ===

impl Service {
    /// # Errors
    /// Where the record of begun trials cannot be read.
    pub async fn open(
        firewall: Firewall,
        files: Files,
        state: &Path,
        means: Means,
    ) -> Result<(Self, Handle), statefile::Error> {
        let trials = Trials::open(files, state).await?;
        let (status, newest) = watch::channel(Arc::default());
        let service = Self {
            firewall,
            gate: None,
            trials,
            means,
            status,
            users: Vec::new(),
            retired: BTreeMap::new(),
            assigned: BTreeMap::new(),
            on_trial: BTreeSet::new(),
            refusals: Refusals::default(),
            strangers: Strangers::default(),
            settled: None,
            failure: None,
        };
        Ok((service, Handle { status: newest }))
    }

    /// Loads the table for what is assigned: shut, unless it was open before the agent was restarted.
    pub async fn prepare(&mut self) {
        if let Err(error) = self.firewall.probe().await
            && error.is_no_leave()
        {
            let reason = Chain(&error).to_string();
            tracing::warn!(%reason, "nftables cannot be used: nothing is filtered on this node");
            self.status.send_replace(Arc::new(Status {
                filtering: Filtering::Unavailable { reason },
                clusters: BTreeMap::new(),
            }));
            return;
        }
        self.round().await;
    }

    /// Runs until `shutdown`; the table stays as it is.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = interval(ROUND);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // All arms are cancel-safe.
            tokio::select! {
                () = shutdown.cancelled() => return,
                _now = tick.tick() => {}
                changed = self.means.assignment.changed() => if changed.is_err() { return },
                Ok(()) = self.means.coordinators.changed() => {}
                () = self.firewall.kernel().is_missed() => {}
            }
            if !matches!(self.status.borrow().filtering, Filtering::Unavailable { .. }) {
                self.round().await;
            }
        }
    }

    async fn round(&mut self) {
        let assignment = Arc::clone(&self.means.assignment.borrow_and_update());
        let coordinators = self.means.coordinators.borrow_and_update().clone();
        match self.keep(&assignment, &coordinators).await {
            Ok(status) => {
                self.failure = None;
                self.publish(status);
            }
            Err(error) => {
                self.settled = None;
                let message = Chain(&error).to_string();
                if self.failure.as_ref() != Some(&message) {
                    tracing::warn!(%message, "keep the firewall");
                    self.tell(None, Severity::Warning, "FIREWALL_FAILED", message.clone());
                }
                self.publish(Status {
                    filtering: Filtering::Failed { reason: message.clone() },
                    clusters: BTreeMap::new(),
                });
                self.failure = Some(message);
            }
        }
    }

    async fn keep(
        &mut self,
        assignment: &Arc<Assignment>,
        coordinators: &[IpAddr],
    ) -> Result<Status, KeepError> {
        if self.is_settled(assignment, coordinators)? {
            return Ok(self.observe(assignment)?);
        }
        let begins = self.trials_to_begin(assignment).await?;
        self.retire(assignment).await;
        if let Some(users) = (self.means.users)() {
            self.users = users;
        }
        let mut declared = declare(assignment, coordinators, &self.users, |id| match begins.get(&id) {
            Some(lasts) => Assigned::Begin(*lasts),
            None if self.trials.is_begun(id) => Assigned::Begun,
            None => Assigned::Over,
        });
        for (port, had) in &self.retired {
            declared.ports.entry(*port).or_default().gated.clone_from(&had.gated);
        }
        let Applied { drift, loaded, changed } = self.firewall.apply(&declared).await?;
        if let Some(drift) = drift {
            let message = format!(
                "somebody else changed the table inet {}: {}; it was put right",
                super::TABLE,
                drift.as_str()
            );
            tracing::warn!("{message}");
            self.tell(None, Severity::Warning, "FIREWALL_DRIFT", message);
        }
        self.shut_retired()?;
        self.strangers.end(&self.firewall, &declared).await;
        let over = !loaded && changed == 0 && self.retired.is_empty() && !has_trial(assignment);
        self.settled = over.then(|| Settled {
            assignment: Arc::clone(assignment),
            coordinators: coordinators.to_vec(),
            at: Instant::now(),
        });
        Ok(self.observe(assignment)?)
    }

    /// Whether a round would find everything as the last one left it, by one question to the kernel.
    fn is_settled(&self, assignment: &Arc<Assignment>, coordinators: &[IpAddr]) -> Result<bool, Error> {
        let Some(settled) = &self.settled else { return Ok(false) };
        Ok(Arc::ptr_eq(&settled.assignment, assignment)
            && settled.coordinators == coordinators
            && settled.at.elapsed() < LOOK_AGAIN
            && self.firewall.is_untouched()?)
    }

    /// Those that begin now, and how long they may last yet. They are on the disk by then.
    async fn trials_to_begin(
        &mut self,
        assignment: &Assignment,
    ) -> Result<BTreeMap<Uuid, Duration>, KeepError> {
        let now = self.means.clock.now();
        let assigned: Vec<_> =
            assignment.members.iter().filter_map(|member| member.access.trial.as_ref()).collect();
        let begins: BTreeMap<Uuid, Duration> = assigned
            .iter()
            .filter(|trial| !self.trials.is_begun(trial.id))
            .filter_map(|trial| Some((trial.id, left(trial, now)?)))
            .collect();
        if !begins.is_empty() {
            self.trials.begin(assigned.iter().map(|trial| trial.id).collect()).await?;
        }
        Ok(begins)
    }

    /// A port whose member is gone stays, shut, while its engine may run: without rules it would be open to everybody.
    async fn retire(&mut self, assignment: &Assignment) {
        let had =
            |member: &MemberAssignment| Had { cluster: member.cluster_id, gated: member.gated_ports.clone() };
        let assigned: BTreeMap<u16, Had> =
            assignment.members.iter().map(|member| (member.port, had(member))).collect();
        let before = std::mem::replace(&mut self.assigned, assigned);
        self.retired.extend(before);
        self.retired.retain(|port, _| !self.assigned.contains_key(port));
        for (port, Had { cluster, gated: _ }) in self.retired.clone() {
            if !(self.means.has_data)(cluster).await {
                self.retired.remove(&port);
            }
        }
    }

    /// Whatever was open of members that are gone is shut; who is let in to the others is for the leases to say.
    fn shut_retired(&mut self) -> Result<(), Error> {
        if self.retired.is_empty() {
            return Ok(());
        }
        let gate = match &self.gate {
            Some(gate) => gate.clone(),
            None => self.gate.insert(Gate::open(self.firewall.kernel())?).clone(),
        };
        let open = gate.lasting()?;
        let open = |port: &u16| open.contains(port);
        let retired = self.retired.iter().flat_map(|(port, had)| std::iter::once(port).chain(&had.gated));
        let still: Vec<u16> = retired.copied().filter(open).collect();
        if !still.is_empty() {
            gate.shut(&still)?;
        }
        Ok(())
    }

    fn observe(&self, assignment: &Assignment) -> Result<Status, Error> {
        let counted = self.firewall.counted(assignment.members.iter().map(|member| member.port))?;
        let trials =
            if has_trial(assignment) { self.firewall.kernel().ports(SetId::Trial)? } else { Vec::new() };
        let trials: BTreeMap<u16, Option<Duration>> =
            trials.into_iter().map(|element| (element.port, element.lasts)).collect();
        let report = |member: &MemberAssignment| {
            let (accepted, refused) = counted.get(&member.port).copied().unwrap_or_default();
            AccessReport {
                generation: assignment.generation,
                trial_left: trials.get(&member.port).copied().flatten(),
                accepted: traffic(accepted),
                refused: traffic(refused),
            }
        };
        let clusters = assignment.members.iter().map(|member| (member.cluster_id, report(member))).collect();
        Ok(Status { filtering: Filtering::Available, clusters })
    }

    fn publish(&mut self, status: Status) {
        let on_trial: BTreeSet<ClusterId> =
            status.clusters.iter().filter(|(_, it)| it.trial_left.is_some()).map(|(id, _)| *id).collect();
        for begun in on_trial.difference(&self.on_trial) {
            self.tell(
                Some(*begun),
                Severity::Info,
                "ACCESS_TRIAL_BEGUN",
                "new access rules hold on trial".to_owned(),
            );
        }
        for ended in self.on_trial.difference(&on_trial) {
            let message = "the trial of new access rules is over on this node".to_owned();
            self.tell(Some(*ended), Severity::Info, "ACCESS_TRIAL_ENDED", message);
        }
        self.on_trial = on_trial;
        for (cluster, message) in self.refusals.note(&status.clusters, self.means.clock.now()) {
            self.tell(Some(cluster), Severity::Info, "ACCESS_REFUSED", message);
        }
        // What is counted changes all the time, and wakes nobody.
        self.status.send_if_modified(|current| {
            let changed = !current.same_rules(&status);
            *current = Arc::new(status);
            changed
        });
    }

    fn tell(&self, cluster: Option<ClusterId>, severity: Severity, reason: &str, message: String) {
        let event = node_event(&self.means.clock, severity, reason, message);
        (self.means.tell)(NodeEvent { cluster_id: cluster, ..event });
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("firewall", &self.firewall).finish_non_exhaustive()
    }
}

impl fmt::Debug for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Means").finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Firewall(#[from] Error),
    #[error("write down which trials begin")]
    Trials(#[from] statefile::Error),
}

// === impl Handle ===

impl Handle {
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    /// The newest status, now and after every change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }
}

// === impl Status ===

impl Status {
    /// Whether the port of this cluster is filtered: engines are not started without that, unless they were allowed to.
    pub fn covers(&self, cluster: ClusterId) -> bool {
        self.filtering == Filtering::Available && self.clusters.contains_key(&cluster)
    }

    /// Whether the same holds, whatever was counted and however long it holds yet.
    fn same_rules(&self, other: &Self) -> bool {
        let rules = |status: &Self| -> Vec<_> {
            let rule = |(id, it): (&ClusterId, &AccessReport)| (*id, it.generation, it.trial_left.is_some());
            status.clusters.iter().map(rule).collect()
        };
        self.filtering == other.filtering && rules(self) == rules(other)
    }
}

/// Whether anything is on trial, or was and is not settled yet.
fn has_trial(assignment: &Assignment) -> bool {
    assignment.members.iter().any(|member| member.access.trial.is_some())
}

/// What the table must be for an assignment. Pure.
fn declare(
    assignment: &Assignment,
    coordinators: &[IpAddr],
    users: &[u32],
    assigned: impl Fn(Uuid) -> Assigned,
) -> Declared {
    let port = |member: &MemberAssignment| {
        let Access { kept, trial, log_refused } = &member.access;
        let coordinators = || coordinators.iter().copied().map(Cidr::from);
        let trial = trial.as_ref().and_then(|trial| {
            let phase = match assigned(trial.id) {
                Assigned::Begin(lasts) => TrialPhase::Begin(lasts),
                Assigned::Begun => TrialPhase::Begun,
                Assigned::Over => return None,
            };
            Some(Trial { tried: Addresses::from(&trial.reach.with(coordinators())), phase })
        });
        let members = member.members.iter().map(|peer| peer.address).chain([member.address]);
        Port {
            members: members.collect(),
            kept: Addresses::from(&kept.with(coordinators())),
            trial,
            log_refused: log_refused.then(|| member.cluster_name.to_string()),
            replication: member.replication_port.map(|port| Replication { port, users: users.to_vec() }),
            gated: member.gated_ports.clone(),
        }
    };
    Declared { ports: assignment.members.iter().map(|member| (member.port, port(member))).collect() }
}

/// What is left of a trial that has not begun here; `None`: it is over.
fn left(trial: &holdfast_common::access::Trial, now: Timestamp) -> Option<Duration> {
    let until = Duration::try_from(trial.ends_at.duration_since(now)).ok()?;
    let left = until.min(trial.lasts);
    (!left.is_zero()).then_some(left)
}

/// The ports whose sets are among these.
pub(super) fn ports_of<'a>(sets: impl Iterator<Item = &'a String>) -> Vec<u16> {
    let port = |name: &'a String| name.strip_prefix('p')?.strip_suffix("_kept4")?.parse().ok();
    sets.filter_map(port).collect()
}

fn traffic(Counter { packets, bytes }: Counter) -> Traffic {
    Traffic { packets, bytes }
}
