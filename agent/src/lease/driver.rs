//! All members of the node: time, what arrives, and what is told of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::assignment::{Assignment, MemberAssignment, RoleAssignment};
use holdfast_common::clock::Boottime;
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::link::{AskPromise, Leased, Promised};
use holdfast_common::protocol::{Event, Numbers, Record, Standing, ToPeer};
use holdfast_common::report::{NodeReport, Severity};
use holdfast_common::telemetry::Filtering;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::hands::{Agents, Deed, Hands as _};
use super::keeper::Keeper;
use super::records::Found;
use super::{Input, Means, Pace, Status};
use crate::link;
use crate::outbox::node_event;

/// The shortest sleep: the thread goes before all others, and must never keep a processor from them.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);
/// The longest sleep: time goes on while the machine does not run, and timers do not notice.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);

pub(super) struct Driver {
    means: Means,
    hands: Agents,
    numbers: Numbers,
    keepers: BTreeMap<ClusterId, Keeper>,
    /// Members whose records are being read.
    loading: BTreeSet<ClusterId>,
    status: watch::Sender<Arc<Status>>,
    /// Until when time was counted.
    at: Boottime,
}

// === impl Driver ===

impl Driver {
    pub(super) fn new(
        means: Means,
        run: u64,
        elsewhere: runtime::Handle,
        inputs: mpsc::Sender<Input>,
        status: watch::Sender<Arc<Status>>,
    ) -> Self {
        Self {
            hands: Agents::new(means.clone(), elsewhere, inputs),
            numbers: Numbers::of_run(run),
            keepers: BTreeMap::new(),
            loading: BTreeSet::new(),
            status,
            at: means.clock.boottime(),
            means,
        }
    }

    /// Runs until `stop`. Then everything is left as it is: the next agent goes on, or the kernel shuts the gate.
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) {
        let mut assignment = self.means.assignment.clone();
        let mut report = self.means.report.clone();
        let mut firewall = self.means.firewall.clone();
        self.assigned(&assignment.borrow_and_update().clone());
        loop {
            let wait = self.keepers.values().map(Keeper::due_in).min().unwrap_or(LONGEST_SLEEP);
            // All arms are cancel-safe.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(input) = inputs.recv() => {
                    self.time();
                    self.take(input);
                }
                Ok(()) = assignment.changed() => {
                    self.time();
                    self.assigned(&assignment.borrow_and_update().clone());
                }
                Ok(()) = firewall.changed() => {
                    self.time();
                    firewall.mark_unchanged();
                    self.assigned(&assignment.borrow().clone());
                }
                Ok(()) = report.changed() => {
                    self.time();
                    self.seen(&report.borrow_and_update().clone());
                }
                () = tokio::time::sleep(wait.clamp(SHORTEST_SLEEP, LONGEST_SLEEP)) => self.time(),
            }
            let contact = matches!(*self.means.session.borrow(), link::Status::Open { .. });
            let assigned = assignment.borrow().clone();
            let seen = report.borrow().clone();
            for (cluster, keeper) in &mut self.keepers {
                let streaming = seen
                    .members
                    .iter()
                    .any(|member| member.cluster_id == *cluster && member.streaming == Some(true));
                keeper.due(&mut self.numbers, contact || streaming, &mut self.hands);
                follow(keeper, assigned.member(*cluster), &mut self.hands);
            }
            self.publish();
        }
    }

    /// Counts the time that went by.
    fn time(&mut self) {
        let now = self.means.clock.boottime();
        let elapsed = now.since(self.at);
        self.at = now;
        for keeper in self.keepers.values_mut() {
            keeper.pass(elapsed);
        }
    }

    /// Takes over who is a member here, and lets go of who is none any more.
    fn assigned(&mut self, assignment: &Assignment) {
        let gone: Vec<ClusterId> =
            self.keepers.keys().filter(|cluster| assignment.member(**cluster).is_none()).copied().collect();
        for cluster in gone {
            let Some(keeper) = self.keepers.remove(&cluster) else { continue };
            tracing::info!(%cluster, ports = ?keeper.ports(), "no member here any more: its gate is shut");
            if let Err(error) = self.hands.gate(keeper.ports(), Deed::Shut) {
                tracing::warn!(%cluster, %error, "shut the gate of a member that is gone; the firewall does it");
            }
            if keeper.is_free() {
                self.hands.forget(cluster);
            }
        }
        for member in &assignment.members {
            let cluster = member.cluster_id;
            if let Some(keeper) = self.keepers.get_mut(&cluster) {
                keeper.keep_pace(Pace::from(member));
            }
            if !self.keepers.contains_key(&cluster)
                && !self.loading.contains(&cluster)
                && self.has_gate(cluster)
            {
                self.loading.insert(cluster);
                self.hands.load(cluster);
            }
        }
        self.means.contact.wanted(!assignment.members.is_empty());
    }

    /// Whether the port is in the table, or never will be.
    fn has_gate(&self, cluster: ClusterId) -> bool {
        let status = self.means.firewall.borrow();
        status.covers(cluster) || matches!(status.filtering, Filtering::Unavailable { .. })
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Open => self.keepers.values_mut().for_each(Keeper::hurry),
            Input::Told(Leased { cluster_id, message }) => self.happen(cluster_id, Event::Told(message)),
            Input::Asked { from, asked, answer } => self.asked(from, asked, answer),
            Input::Promised { from, cluster, promised: Promised { number, term } } => {
                let message = ToPeer::Promise { number, term };
                self.happen(cluster, Event::Peer { from, message });
            }
            Input::Unreachable { why } => {
                let message = format!(
                    "other members' agents cannot ask this one for promises: {why}; it is tried again"
                );
                tracing::error!("{message}");
                let event = node_event(&self.means.clock, Severity::Error, "PEERS_NOT_SERVED", message);
                (self.means.tell)(event);
            }
            Input::Loaded { cluster, found } => self.loaded(cluster, found),
            Input::Rested { cluster, term, attempt, asked, tail } => {
                if let Some(keeper) = self.keepers.get(&cluster) {
                    keeper.rested(term, attempt, asked, tail, &mut self.hands);
                }
            }
            Input::Cut { cluster, term, tail } => {
                if let Some(keeper) = self.keepers.get(&cluster) {
                    keeper.is_cut(term, tail, &mut self.hands);
                }
            }
            Input::Stored { cluster, record } => {
                if let Some(keeper) = self.keepers.get_mut(&cluster) {
                    keeper.stored(record, &mut self.hands);
                }
            }
        }
    }

    /// Answers where a promise is given; else the asker hears nothing.
    fn asked(&mut self, from: NodeId, asked: AskPromise, answer: oneshot::Sender<Promised>) {
        let AskPromise { cluster_id, number, term } = asked;
        let assignment = self.means.assignment.borrow().clone();
        let is_member = assignment
            .member(cluster_id)
            .is_some_and(|member| member.members.iter().any(|peer| peer.node_id == from));
        if !is_member {
            tracing::warn!(cluster = %cluster_id, %from, "a node that is no member asks for a promise");
            return;
        }
        self.hands.given.clear();
        self.happen(cluster_id, Event::Peer { from, message: ToPeer::AskPromise { number, term } });
        let given =
            self.hands.given.drain(..).find(|(to, promised)| *to == from && promised.number == number);
        if let Some((_, promised)) = given {
            // Who does not wait any more has asked in vain.
            let _late = answer.send(promised);
        }
    }

    fn happen(&mut self, cluster: ClusterId, event: Event) {
        if let Some(keeper) = self.keepers.get_mut(&cluster) {
            keeper.happen(event, &mut self.hands);
        }
    }

    fn loaded(&mut self, cluster: ClusterId, found: Found) {
        self.loading.remove(&cluster);
        let assignment = self.means.assignment.borrow().clone();
        let Some(member) = assignment.member(cluster) else { return };
        let (ports, pace) = (member.client_ports(), Pace::from(member));
        let keeper = match found {
            Found::Nothing => Keeper::fresh(cluster, ports, pace, &mut self.hands),
            Found::Record(record) => Keeper::started(cluster, ports, pace, record, &mut self.hands),
            Found::Damaged(finding) => {
                self.hands.event(cluster, Severity::Error, "STATE_DAMAGED", &finding);
                Keeper::started(cluster, ports, pace, unreadable(member), &mut self.hands)
            }
        };
        self.keepers.insert(cluster, keeper);
        let seen = self.means.report.borrow().clone();
        self.seen(&seen);
    }

    fn seen(&mut self, report: &NodeReport) {
        for seen in &report.members {
            if let Some(keeper) = self.keepers.get_mut(&seen.cluster_id) {
                keeper.see(seen, &mut self.hands);
            }
        }
    }

    fn publish(&self) {
        let members = self.keepers.iter().map(|(cluster, keeper)| (*cluster, keeper.held())).collect();
        let status = Status { members };
        self.status.send_if_modified(|current| {
            let changed = **current != status;
            *current = Arc::new(status);
            changed
        });
    }
}

/// A replica follows whom the assignment names: it comes from the coordinator too, and is on the disk.
fn follow(keeper: &mut Keeper, member: Option<&MemberAssignment>, hands: &mut Agents) {
    if let Some(member) = member
        && let RoleAssignment::Replica { upstream } = &member.role
    {
        keeper.follow(member.term, upstream.node_id, hands);
    }
}

/// In place of a record that cannot be read: as assigned, and a primary's list is unknown, never empty.
fn unreadable(member: &MemberAssignment) -> Record {
    match member.role {
        RoleAssignment::Primary { .. } => {
            Record { term: member.term, standing: Standing::Primary, list: None, fenced: false }
        }
        RoleAssignment::Replica { .. } => Record::replica(member.term),
    }
}
