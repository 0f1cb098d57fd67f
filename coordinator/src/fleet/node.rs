//! What is known of one node, in memory; rebuilt by its reports after a restart.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_common::assignment::Assignment;
use holdfast_common::id::{EventId, NodeId, SessionId};
use holdfast_common::report::NodeReport;
use holdfast_common::role::Availability;
use holdfast_common::telemetry::Sample;
use jiff::Timestamp;
use tokio::time::Instant;

use super::liveness::{self, Signs};
use super::pending::Calls;
use super::questions::Questions;
use super::session::Mailbox;
use super::{Handle, Transition};
use crate::directory;

/// One node. Its lock is held for moments only, and nobody else's with it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) record: Arc<directory::Node>,
    pub(super) facts: Option<Arc<directory::NodeFacts>>,
    pub(super) availability: Availability,
    pub(super) since: Timestamp,
    pub(super) report: Option<ReceivedReport>,
    pub(super) sample: Option<Arc<Sample>>,
    pub(super) clock_offset_seconds: Option<f64>,
    pub(super) boot: Option<Boot>,
    pub(super) assignment: Option<Arc<Assignment>>,
    pub(super) session: Option<Arc<Mailbox>>,
    pub(super) calls: Calls,
    pub(super) questions: Questions,
    pub(super) recent_events: VecDeque<EventId>,
    pub(super) heard: Instant,
    /// The last event about availability said that it is gone.
    told_offline: bool,
    closed: Option<Instant>,
    version: u64,
}

/// A node's newest report.
#[derive(Debug, Clone)]
pub struct ReceivedReport {
    pub report: Arc<NodeReport>,
    /// By the coordinator's clock.
    pub received_at: Timestamp,
    /// The same, unmoved by any clock that is set.
    pub heard: Instant,
}

/// One run of a node's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    pub id: String,
    /// When this run of the coordinator first heard of it, by its own clock. Reports that came before are of an earlier boot.
    pub heard_of_at: Timestamp,
}

/// All that is known of a node, at one moment. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NodeView {
    pub record: Arc<directory::Node>,
    pub availability: Availability,
    /// Since when it has been so.
    pub since: Timestamp,
    /// The last report, however old: see `received_at` and `availability`.
    pub report: Option<ReceivedReport>,
    /// As last told; `None` before the first session.
    pub facts: Option<Arc<directory::NodeFacts>>,
    pub sample: Option<Arc<Sample>>,
    /// How far the node's wall clock is ahead of the coordinator's.
    pub clock_offset_seconds: Option<f64>,
    /// The one that its newest session is of.
    pub boot: Option<Boot>,
    /// What it was last told to keep true.
    pub assignment: Option<Arc<Assignment>>,
    pub has_session: bool,
    /// Rises with every change of this view; comparable between nodes.
    pub version: u64,
}

// === impl Node ===

impl Node {
    pub(super) fn new(
        record: Arc<directory::Node>,
        facts: Option<Arc<directory::NodeFacts>>,
        version: u64,
    ) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            record: Arc::clone(&record),
            facts,
            // Not yet heard of: neither here nor gone.
            availability: Availability::Late,
            since: Timestamp::now(),
            report: None,
            sample: None,
            clock_offset_seconds: None,
            boot: None,
            assignment: None,
            session: None,
            calls: Calls::default(),
            questions: Questions::default(),
            recent_events: VecDeque::new(),
            heard: now,
            told_offline: false,
            closed: None,
            version,
        };
        Arc::new(Self { id: record.id, state: Mutex::new(state) })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sign of life from the session: applies `change`, which says whether others should look. False: the session is
    /// not the node's any more, nothing was done.
    pub(super) fn observe(
        &self,
        fleet: &Handle,
        session: SessionId,
        change: impl FnOnce(&mut State) -> bool,
    ) -> bool {
        let mut state = self.lock();
        if state.session.as_ref().is_none_or(|mailbox| mailbox.id != session) {
            return false;
        }
        let now = Instant::now();
        state.heard = now;
        let changed = change(&mut state);
        let settled = state.settle(now);
        self.finish(fleet, state, changed, settled);
        true
    }

    /// The session is over.
    pub(super) fn detach(&self, fleet: &Handle, session: SessionId) {
        let mut state = self.lock();
        if state.session.as_ref().is_some_and(|mailbox| mailbox.id == session) {
            state.session = None;
            state.questions.clear();
            state.closed = Some(Instant::now());
            self.finish(fleet, state, true, None);
        }
    }

    /// A look at the clock.
    pub(super) fn tick(&self, fleet: &Handle, now: Instant) {
        let mut state = self.lock();
        if let Some(mailbox) = state.session.as_ref().filter(|mailbox| mailbox.is_stalled(now)) {
            tracing::warn!(node = %state.record.name, "the agent reads nothing; its session is cut off");
            mailbox.cut();
        }
        let settled = state.settle(now);
        if settled.is_some() {
            self.finish(fleet, state, true, settled);
        }
    }

    /// Tells the others, after the lock is gone.
    pub(super) fn finish(
        &self,
        fleet: &Handle,
        mut state: MutexGuard<'_, State>,
        changed: bool,
        settled: Option<Availability>,
    ) {
        if !changed && settled.is_none() {
            return;
        }
        state.version = fleet.next_version();
        let news = state.news(settled);
        drop(state);
        if let Some(transition) = news {
            fleet.tell(transition);
        }
        fleet.bump();
    }

    pub(super) fn view(&self) -> NodeView {
        let state = self.lock();
        NodeView {
            record: Arc::clone(&state.record),
            availability: state.availability,
            since: state.since,
            report: state.report.clone(),
            facts: state.facts.clone(),
            sample: state.sample.clone(),
            clock_offset_seconds: state.clock_offset_seconds,
            boot: state.boot.clone(),
            assignment: state.assignment.clone(),
            has_session: state.session.is_some(),
            version: state.version,
        }
    }
}

// === impl State ===

impl State {
    /// Whether anything but the time has changed.
    pub(super) fn report(&mut self, report: NodeReport, received_at: Timestamp) -> bool {
        self.clock_offset_seconds = Some(offset_seconds(report.node_time, received_at));
        let changed = self.report.as_ref().is_none_or(|last| {
            last.report.members != report.members
                || last.report.assignment_generation != report.assignment_generation
        });
        self.report = Some(ReceivedReport { report: Arc::new(report), received_at, heard: Instant::now() });
        changed
    }

    pub(super) fn attach(&mut self, mailbox: Arc<Mailbox>, now: Instant) {
        self.session = Some(mailbox);
        self.questions.clear();
        self.closed = None;
        self.heard = now;
    }

    /// What is worth an event: that it is gone, and that one which was gone is back.
    fn news(&mut self, settled: Option<Availability>) -> Option<Transition> {
        let availability = settled.filter(|availability| match availability {
            Availability::Online => self.told_offline,
            Availability::Late => false,
            Availability::Offline => !self.told_offline,
        })?;
        self.told_offline = availability == Availability::Offline;
        Some(Transition { node: self.record.name.clone(), availability })
    }

    /// The new availability, if it has changed.
    pub(super) fn settle(&mut self, now: Instant) -> Option<Availability> {
        // Never heard of since the start: late until the time is over.
        let heard_of = self.session.is_some() || self.closed.is_some();
        let signs = Signs {
            silent_for: now.duration_since(self.heard),
            closed_for: self.closed.map(|closed| now.duration_since(closed)),
        };
        let availability = match liveness::availability(signs) {
            Availability::Online if !heard_of => Availability::Late,
            other => other,
        };
        if availability == self.availability {
            return None;
        }
        self.availability = availability;
        self.since = Timestamp::now();
        Some(availability)
    }
}

// === impl NodeView ===

impl NodeView {
    pub fn id(&self) -> NodeId {
        self.record.id
    }
}

pub(super) fn offset_seconds(node: Timestamp, coordinator: Timestamp) -> f64 {
    node.duration_since(coordinator).as_secs_f64()
}
