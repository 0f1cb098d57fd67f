//! The rounds of one member: observe, compare, plan, begin to execute, report.

mod apart;
mod around;
mod hurry;
mod lasting;
mod pace;
mod report;
mod size;
mod steps;
mod troubles;

use std::sync::Arc;
use std::time::Duration;

use holdfast_common::assignment::{MemberAssignment, Power};
use holdfast_common::budget::Budget;
use holdfast_common::error::Chain;
use holdfast_common::generation::Generation;
use holdfast_common::id::ClusterId;
use holdfast_common::report::{EngineState, NodeEvent, Severity};
use holdfast_common::role::Role;
use holdfast_common::term::Term;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use self::apart::Apart;
use self::hurry::Hurry;
use self::lasting::Told;
use self::pace::Pace;
use self::report::report;
use self::steps::{Done, execute};
use self::troubles::Troubles;
use super::plan::{self, Cover, Leave, Plan, Step};
use super::probe::Probe;
use super::{Means, Shared, publish};
use crate::engine::{Drift, Engine, Error, Observation};
use crate::lease::Serve;
use crate::outbox::node_event;

/// How often members are observed.
const OBSERVE_PERIOD: Duration = Duration::from_secs(1);
/// How often the configuration is compared when nothing has changed.
const COMPARE_PERIOD: Duration = Duration::from_secs(5);
/// A server that ran for so long has started well.
const SETTLED: Duration = Duration::from_secs(10);
/// The longest text that is told of a member.
const MAX_MESSAGE_CHARS: usize = 500;

/// The rounds of one member.
pub(super) struct Member {
    cluster: ClusterId,
    means: Means,
    shared: Arc<Shared>,
    memory: Memory,
    probe: Probe,
}

/// What a member's rounds remember.
struct Memory {
    pace: Pace,
    compared_at: Option<Instant>,
    drift: Option<Drift>,
    /// Generation and observation of the last comparison, whose change makes a new one due.
    compared: Option<(Generation, EngineState)>,
    starts: u32,
    running_since: Option<Instant>,
    hurry: Hurry,
    /// Why the last step failed.
    failure: Option<String>,
    /// What could not be mended, since when, and whether that was told.
    problem: Option<(String, Instant, Told)>,
    /// Since when nobody assigns it, and whether that was told.
    orphan: Option<(Instant, Told)>,
    apart: Apart,
    troubles: Troubles,
    /// What was possible when somebody was told of the machine's size.
    resized: Option<Budget>,
    /// It is being stopped to be started.
    restarting: bool,
    /// Stops by its lease, when it was last seen to run as it may.
    stops: u32,
}

// === impl Member ===

impl Member {
    pub(super) fn new(cluster: ClusterId, means: Means, shared: Arc<Shared>) -> Self {
        Self { cluster, means, shared, memory: Memory::new(), probe: Probe::default() }
    }

    /// Round after round, until the agent ends or there is nothing left to look after.
    pub(super) async fn keep(
        mut self,
        mut wake: watch::Receiver<u64>,
        shutdown: CancellationToken,
    ) -> ClusterId {
        let mut assignment = self.means.assignment.clone();
        let mut firewall = self.means.firewall.clone();
        let mut leases = self.means.leases.clone();
        let mut news = self.means.engines.news();
        let mut tick = interval(OBSERVE_PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut work: JoinSet<Done> = JoinSet::new();
        let mut engine_of_data = None;
        loop {
            let hurry = self.memory.hurry.pause();
            // All arms are cancel-safe.
            tokio::select! {
                () = shutdown.cancelled() => break,
                _now = tick.tick() => {}
                () = sleep(hurry.unwrap_or_default()), if hurry.is_some() => {}
                changed = assignment.changed() => if changed.is_err() { break } else { self.memory.compared_at = None },
                changed = wake.changed() => if changed.is_err() { break } else { self.memory.compared_at = None },
                Ok(()) = news.changed() => self.memory.compared_at = None,
                Ok(()) = firewall.changed() => {}
                Ok(()) = leases.changed() => {}
                Some(done) = work.join_next() => self.note(done),
            }
            let current = assignment.borrow_and_update().clone();
            let wanted = current.member(self.cluster);
            let Some(engine) = self.engine(wanted, &mut engine_of_data).await else {
                if wanted.is_none() {
                    break;
                }
                continue;
            };
            let observed = engine.observe(self.cluster).await;
            if wanted.is_none() && observed.state == EngineState::Absent && observed.message.is_empty() {
                break;
            }
            self.round(engine, wanted, current.generation, observed, &mut work).await;
        }
        self.shared.forget(self.cluster);
        publish(&self.means, &self.shared);
        self.cluster
    }

    /// Notes whether clients wait for it, a primary that has its lease and whose gate is still shut, or whether it comes up: it
    /// is to start, starts, or has not begun to receive.
    fn note_hurry(&mut self, wanted: Option<&MemberAssignment>, observed: &Observation) {
        let leases = self.means.leases.borrow();
        let shut = leases.members.get(&self.cluster).is_some_and(|held| {
            held.serve == Serve::May && held.report.as_ref().is_some_and(|report| !report.open)
        });
        let primary = wanted.is_some_and(|wanted| wanted.role.role() == Role::Primary);
        let runs = wanted.is_some_and(|wanted| wanted.power == Power::Running);
        let comes = match observed.state {
            EngineState::Stopped | EngineState::Failed | EngineState::Starting => true,
            EngineState::Running => observed.role == Some(Role::Replica) && observed.streaming != Some(true),
            _ => false,
        };
        self.memory.hurry.note(shut && primary, runs && comes);
    }

    /// The engine that the assignment names, or that has the data.
    async fn engine(
        &self,
        wanted: Option<&MemberAssignment>,
        of_data: &mut Option<Arc<dyn Engine>>,
    ) -> Option<Arc<dyn Engine>> {
        if let Some(wanted) = wanted {
            return match self.means.engines.of(wanted.engine) {
                Ok(engine) => Some(Arc::clone(engine)),
                Err(error) => {
                    let mut report = report(
                        self.cluster,
                        wanted.term,
                        wanted.engine,
                        Observation::only(EngineState::Unknown),
                    );
                    report.message = error.to_string();
                    self.shared.put(report);
                    publish(&self.means, &self.shared);
                    None
                }
            };
        }
        if of_data.is_none() {
            let found = self.means.engines.members().await.unwrap_or_default();
            *of_data = found
                .into_iter()
                .find(|(_, member)| member.cluster_id == self.cluster)
                .map(|(engine, _)| engine);
        }
        of_data.clone()
    }

    /// One round: compare if due, plan, begin to execute, report.
    async fn round(
        &mut self,
        engine: Arc<dyn Engine>,
        wanted: Option<&MemberAssignment>,
        generation: Generation,
        observed: Observation,
        work: &mut JoinSet<Done>,
    ) {
        self.note_state(wanted, &observed);
        self.note_hurry(wanted, &observed);
        self.note_size(engine.as_ref(), &observed).await;
        self.probe.look(&engine, self.cluster, self.serves(wanted, &observed));
        let building = self.means.engines.building(self.cluster);
        if building.is_some() {
            self.memory.pace.reset();
        }
        let mut converged = Generation::NONE;
        if self.memory.hurry.is_for_clients() {
            // Their gate opens by it; the rest takes its time.
            let problem = self.memory.problem.as_ref().map(|(problem, ..)| problem.clone());
            self.publish(engine.as_ref(), wanted, observed.clone(), building, converged, problem);
        }
        let mut problem = None;
        if let (Some(wanted), None) = (wanted, building) {
            if !plan::leads(&plan::plan(wanted, &observed, None, self.leave(wanted))) {
                self.compare(engine.as_ref(), wanted, generation, &observed).await;
            }
            let leave = self.leave(wanted);
            let Plan { steps, problem: found } = plan::plan(wanted, &observed, self.memory.drift, leave);
            problem = found.map(|problem| problem.to_string());
            // What is still being done is not done, though its files may be written.
            if work.is_empty()
                && self.is_enforced(wanted, generation)
                && self.keeps_pace(wanted)
                && self.memory.drift.is_some_and(|drift| plan::is_converged(wanted, &observed, drift, leave))
            {
                converged = generation;
            }
            self.memory.pace.note(leave.standing);
            if !steps.is_empty()
                && self.memory.pace.is_due()
                && work.is_empty()
                && let Some(held) = self.means.engines.try_hold(self.cluster)
                // Not by what was true before somebody else was done with the member.
                && self.leave(wanted) == leave
            {
                self.begin(&steps, wanted);
                work.spawn(execute(Arc::clone(&engine), wanted.clone(), steps, held));
            }
        }
        self.publish(engine.as_ref(), wanted, observed, building, converged, problem);
    }

    /// Whether clients are to be let in: a server that is gone, or comes up, needs no probe to be known as such.
    fn serves(&self, wanted: Option<&MemberAssignment>, observed: &Observation) -> bool {
        let seen = matches!(observed.state, EngineState::Running | EngineState::Unknown);
        let leases = self.means.leases.borrow();
        let open = leases.members.get(&self.cluster).and_then(|held| held.report.as_ref());
        let primary = wanted.is_some_and(|wanted| wanted.role.role() == Role::Primary);
        seen && primary && open.is_some_and(|report| report.open)
    }

    fn leave(&self, wanted: &MemberAssignment) -> Leave {
        let covers = self.means.firewall.borrow().covers(wanted.cluster_id);
        let cover = if covers { Cover::Stands } else { Cover::Missing };
        let leases = self.means.leases.borrow();
        let standing = leases.members.get(&wanted.cluster_id).map(|held| held.standing);
        Leave { cover, serve: leases.serve(wanted.cluster_id), standing }
    }

    async fn compare(
        &mut self,
        engine: &dyn Engine,
        wanted: &MemberAssignment,
        generation: Generation,
        observed: &Observation,
    ) {
        let key = (generation, observed.state);
        let fresh = self.memory.compared_at.is_some_and(|at| at.elapsed() < COMPARE_PERIOD);
        if fresh && self.memory.compared == Some(key) && self.memory.drift.is_some() {
            return;
        }
        self.memory.compared_at = Some(Instant::now());
        self.memory.compared = Some(key);
        self.memory.drift = match observed.state {
            _ if observed.needs_resync => None,
            EngineState::Stopped | EngineState::Running | EngineState::Starting | EngineState::Failed => {
                match engine.compare(wanted, observed).await {
                    Ok(drift) => Some(drift),
                    Err(error) => {
                        self.fail("compare", &error);
                        None
                    }
                }
            }
            EngineState::Unknown | EngineState::Absent | EngineState::Building => None,
        };
    }

    fn begin(&mut self, steps: &[Step], wanted: &MemberAssignment) {
        self.memory.apart.begin(steps, wanted);
        self.memory.restarting = steps.contains(&Step::Restart);
        if self.memory.restarting {
            self.memory.pace.wait();
        }
        if steps.contains(&Step::Start) {
            self.memory.starts = self.memory.starts.saturating_add(1);
            // Also if it succeeds: a server that ends again soon after is not started in a tight loop.
            self.memory.pace.wait();
        }
    }

    fn note(&mut self, done: Result<Done, tokio::task::JoinError>) {
        self.memory.compared_at = None;
        self.memory.restarting = false;
        match done {
            Ok(Ok(steps)) => {
                self.memory.failure = None;
                if steps.contains(&Step::Start) {
                    self.tell(Severity::Info, "ENGINE_STARTED", "the engine was started".to_owned());
                }
                if steps.contains(&Step::Restart) {
                    let message = "the engine was restarted, with what its primary's log asks for";
                    self.tell(Severity::Info, "ENGINE_STARTED", message.to_owned());
                }
                if steps.contains(&Step::Lead) {
                    self.tell(
                        Severity::Info,
                        "MEMBER_PROMOTED",
                        "it is the primary of a new term".to_owned(),
                    );
                }
                if steps.contains(&Step::Stop) {
                    self.tell(Severity::Info, "ENGINE_STOPPED", "the engine was stopped".to_owned());
                }
                if steps.contains(&Step::Halt) {
                    let message = "the engine ran as a primary that it may not be, and was stopped at once";
                    self.tell(Severity::Warning, "ENGINE_STOPPED", message.to_owned());
                }
            }
            // By plan its successor is being promoted: soon it is.
            Ok(Err((step, error @ Error::Unmet { check: "source_is_primary", .. })))
                if self.memory.hurry.pause().is_some() =>
            {
                self.memory.pace.wait_briefly();
                self.memory.failure = Some(format!("{}: {error}", step.name()));
            }
            Ok(Err((step, error))) => {
                self.memory.pace.wait();
                self.memory.apart.failed(step, &error);
                self.fail(step.name(), &error);
            }
            Err(join) => {
                self.memory.pace.wait_long();
                self.memory.failure = Some(join.to_string());
            }
        }
    }

    /// Remembers a failure, and tells of it once until another one or a success follows.
    fn fail(&mut self, deed: &str, error: &Error) {
        let message = format!("{deed}: {}", Chain(error));
        if self.memory.failure.as_ref() != Some(&message) {
            tracing::warn!(cluster = %self.cluster, "{message}");
            self.tell(Severity::Warning, "CONVERGE_FAILED", message.clone());
            self.memory.failure = Some(message);
        }
    }

    /// Tells of an engine that ended by itself, and forgets old failures of one that runs well.
    fn note_state(&mut self, wanted: Option<&MemberAssignment>, observed: &Observation) {
        let held = self.means.leases.borrow().members.get(&self.cluster).map(|held| (held.serve, held.stops));
        let memory = &mut self.memory;
        match observed.state {
            EngineState::Running => {
                memory.stops =
                    held.filter(|(serve, _)| *serve == Serve::May).map_or(memory.stops, |held| held.1);
                let since = *memory.running_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= SETTLED {
                    memory.pace.reset();
                }
            }
            EngineState::Stopped | EngineState::Failed | EngineState::Absent => {
                let ran = memory.running_since.take().is_some();
                // By its lease: a primary without one, or one that another has taken over from.
                let stopped = |(serve, stops)| serve != Serve::May || stops != memory.stops;
                let halted = held.is_some_and(stopped) && observed.data_role == Some(Role::Primary);
                let expected = halted || wanted.is_none_or(|wanted| wanted.power == Power::Stopped);
                let by_command =
                    self.means.engines.building(self.cluster).is_some() || self.memory.restarting;
                if ran && expected {
                    self.memory.pace.reset();
                }
                if ran && !expected && !by_command {
                    let why =
                        if observed.message.is_empty() { "the server ended" } else { &observed.message };
                    let message = format!("the engine ended by itself: {why}");
                    self.tell(Severity::Error, "ENGINE_ENDED", message);
                }
            }
            EngineState::Unknown | EngineState::Starting | EngineState::Building => {}
        }
        self.note_orphan(wanted.is_none());
    }

    fn publish(
        &mut self,
        engine: &dyn Engine,
        wanted: Option<&MemberAssignment>,
        observed: Observation,
        building: Option<&'static str>,
        converged: Generation,
        problem: Option<String>,
    ) {
        self.note_problem(problem.as_ref().filter(|_| observed.state != EngineState::Absent));
        let term = wanted.map_or(Term::NONE, |wanted| wanted.term);
        let apart = self.memory.apart.holds(wanted, &observed);
        for trouble in self.memory.troubles.note(&observed.troubles, Instant::now()) {
            self.tell(Severity::Warning, trouble.kind.as_str(), trouble.message);
        }
        let mut report = report(self.cluster, term, engine.kind(), observed);
        report.needs_resync |= apart;
        let should_run = wanted.is_some_and(|wanted| wanted.power == Power::Running);
        if let Some(kind) = building {
            report.state = EngineState::Building;
            report.message = format!("{kind} is at work");
        } else if should_run && report.state == EngineState::Stopped && self.memory.starts > 0 {
            report.state = EngineState::Failed;
        }
        let troubles = report.troubles.iter().map(|trouble| trouble.message.clone());
        let reasons = troubles.chain([report.message]).chain(problem).chain(self.memory.failure.clone());
        let reasons: Vec<String> = reasons.filter(|reason| !reason.is_empty()).collect();
        report.message = reasons.join("; ").chars().take(MAX_MESSAGE_CHARS).collect();
        report.converged_generation = converged;
        report.failed_probes = self.probe.failed();
        if let Some(held) = self.means.leases.borrow().members.get(&self.cluster) {
            report.lease.clone_from(&held.report);
            report.has_promised = held.has_promised;
        }
        report.access = self.means.firewall.borrow().clusters.get(&self.cluster).cloned();
        self.shared.put(report);
        publish(&self.means, &self.shared);
    }

    fn tell(&self, severity: Severity, reason: &str, message: String) {
        let message: String = message.chars().take(MAX_MESSAGE_CHARS).collect();
        let event = node_event(&self.means.clock, severity, reason, message);
        (self.means.tell)(NodeEvent { cluster_id: Some(self.cluster), ..event });
    }
}

// === impl Memory ===

impl Memory {
    fn new() -> Self {
        Self {
            pace: Pace::new(),
            compared_at: None,
            drift: None,
            compared: None,
            starts: 0,
            running_since: None,
            hurry: Hurry::default(),
            failure: None,
            problem: None,
            orphan: None,
            apart: Apart::default(),
            troubles: Troubles::default(),
            resized: None,
            restarting: false,
            stops: 0,
        }
    }
}
