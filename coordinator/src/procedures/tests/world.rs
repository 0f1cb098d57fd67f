//! Nodes in memory that outlive the coordinator: what they have, which commands they did, and a report that follows from the
//! clusters' records as a converged agent's would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_common::assignment::{MemberAssignment, RoleAssignment, Synchronous};
use holdfast_common::budget::{Budget, Tuning};
use holdfast_common::clock::{Clock, ManualClock};
use holdfast_common::command::{Command, Outcome, Payload, Progress, RebootNode, Success, Verifier};
use holdfast_common::engine::{Parameters, TakesEffect};
use holdfast_common::generation::Generation;
use holdfast_common::id::{ClusterId, CommandId, NodeId};
use holdfast_common::position::Position;
use holdfast_common::protocol::Reign;
use holdfast_common::question::{self, Question};
use holdfast_common::report::{EngineState, MemberReport};
use holdfast_common::role::{Availability, Durability};
use holdfast_common::telemetry::Filtering;
use holdfast_common::term::Term;
use jiff::Timestamp;
use tokio::sync::watch;

use super::agents::Agents;
use super::deeds;
use super::parts::{Driven, Kept};
use crate::cluster::observed::NodeState;
use crate::cluster::tests::{SYSTEM, Sample, node, report};
use crate::cluster::{Cluster, MemberPhase, assignment};
use crate::directory::{self, Directory};
use crate::event;
use crate::fleet::CallError;
use crate::lease::{Leases, reign_key};
use crate::procedures::nodes::{Boot, Machine};
use crate::procedures::records::{Records, cluster_key};
use crate::procedures::{Means, Nodes};
use crate::store::memory::Memory;
use crate::store::{Shared, record};

/// The build that all nodes have at first, and the one that their package sources offer.
pub(super) const OLD: &str = "15.1";
pub(super) const NEW: &str = "15.2";
/// What every member counts on at first, and what its machine has by now.
pub(super) const SMALL: Budget = Budget { memory_bytes: 4 << 30, cores: 2, disk_bytes: 64 << 30 };
pub(super) const LARGE: Budget = Budget { memory_bytes: 8 << 30, ..SMALL };

/// All that outlives a coordinator but its store.
#[derive(Debug)]
pub(super) struct World {
    sample: Sample,
    nodes: Vec<NodeId>,
    state: Mutex<State>,
    agents: Agents,
    /// By which leases end: as long as the agents talk it goes with the time of the test.
    pub(super) clock: ManualClock,
    /// The parts of operations.
    pub(super) parts: Kept,
    changes: watch::Sender<u64>,
    pub(super) wall: Clock,
}

#[derive(Debug, Default)]
struct State {
    /// System identifier by node.
    data: BTreeMap<NodeId, String>,
    outcomes: BTreeMap<CommandId, Outcome>,
    effects: BTreeMap<CommandId, u32>,
    /// What clients must know to be let in.
    password: Option<Verifier>,
    /// Of the next command.
    fate: Fate,
    away: bool,
    gone: BTreeSet<NodeId>,
    /// What each server that runs was started with; those that are not named start with what is recorded.
    started: BTreeMap<NodeId, Parameters>,
    /// How often each server was stopped to be started anew.
    starts: BTreeMap<NodeId, u32>,
    /// Which build each server that runs is of; those that are not named start with what is installed.
    builds: BTreeMap<NodeId, String>,
    /// Which build each node has, where its packages were upgraded.
    upgraded: BTreeMap<NodeId, String>,
    /// By what each member's settings go, and by what its server was started.
    tuned: BTreeMap<NodeId, Budget>,
    started_by: BTreeMap<NodeId, Budget>,
    /// How often each node was rebooted.
    reboots: BTreeMap<NodeId, u32>,
    /// What nodes say of whether they need one.
    needs_reboot: BTreeMap<NodeId, bool>,
    /// Nodes that do not come back from a reboot.
    lost: bool,
    /// No server starts: what it says at each try.
    refuses: Option<(EngineState, String)>,
}

/// What becomes of a command on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Fate {
    #[default]
    Answered,
    NotSent,
    /// It is done, and its answer lost.
    Unanswered,
}

/// The world through the eyes of one coordinator.
#[derive(Debug)]
struct Seen {
    world: Arc<World>,
    store: Shared,
}

// === impl State ===

impl State {
    fn tuned(&self, node: NodeId) -> Budget {
        self.tuned.get(&node).copied().unwrap_or(SMALL)
    }

    fn installed(&self, node: NodeId) -> String {
        self.upgraded.get(&node).map_or(OLD, String::as_str).to_owned()
    }
}

// === impl World ===

impl World {
    pub(super) fn new(nodes: usize) -> Self {
        let nodes = (0..nodes).map(node).collect();
        let (state, agents, parts) = (Mutex::default(), Agents::default(), Kept::default());
        let (clock, changes) = (ManualClock::at(Timestamp::UNIX_EPOCH), watch::Sender::new(0));
        Self { sample: Sample::new(), nodes, state, agents, clock, wall: Clock::system(), parts, changes }
    }

    pub(super) fn node(&self, index: usize) -> NodeId {
        self.nodes[index]
    }

    pub(super) fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// Their records.
    pub(super) fn records(&self) -> impl Iterator<Item = directory::Node> {
        self.active(self.nodes.len()).members.into_iter().map(|member| directory::Node {
            id: member.node_id,
            name: member.node_name,
            address: member.address,
            joined_at: Timestamp::UNIX_EPOCH,
            certificates: Vec::new(),
            drained: None,
        })
    }

    pub(super) fn agents(&self) -> &Agents {
        &self.agents
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// About to be created.
    pub(super) fn draft(&self, members: usize, durability: Durability) -> Cluster {
        self.sample.draft(members, durability)
    }

    /// Whole, with the durability enforced.
    pub(super) fn active(&self, members: usize) -> Cluster {
        self.sample.active(members)
    }

    /// Whole, and one more about to join.
    pub(super) fn joining(&self, members: usize) -> Cluster {
        self.sample.joining(members)
    }

    /// The nodes have what the record says.
    pub(super) fn populate(&self, cluster: &Cluster) {
        let active = cluster.members.iter().filter(|member| member.phase == MemberPhase::Active);
        self.lock().data = active.map(|member| (member.node_id, SYSTEM.to_owned())).collect();
        let all = cluster.members.iter().map(|member| (member.node_id, cluster.parameters.clone()));
        self.lock().started = all.collect();
        self.lock().builds = cluster.members.iter().map(|member| (member.node_id, OLD.to_owned())).collect();
        self.lock().started_by = cluster.members.iter().map(|member| (member.node_id, SMALL)).collect();
        self.agents.populate(cluster);
    }

    /// Its server is started anew with what is recorded when it is looked at next.
    pub(super) fn stop(&self, node: NodeId) {
        let mut state = self.lock();
        state.started.remove(&node);
        *state.starts.entry(node).or_default() += 1;
        state.builds.remove(&node);
        state.started_by.remove(&node);
        drop(state);
        self.changes.send_modify(|number| *number += 1);
    }

    /// How often it was.
    pub(super) fn starts(&self, node: NodeId) -> u32 {
        self.lock().starts.get(&node).copied().unwrap_or_default()
    }

    /// What the servers have that run, of the members in the record.
    pub(super) fn started(&self, cluster: &Cluster) -> Vec<Parameters> {
        let started = &self.lock().started;
        cluster.members.iter().filter_map(|member| started.get(&member.node_id).cloned()).collect()
    }

    /// Of which build its server is.
    pub(super) fn build(&self, node: NodeId) -> String {
        let mut state = self.lock();
        let installed = state.installed(node);
        state.builds.entry(node).or_insert(installed).clone()
    }

    /// By what its settings go, and by what its server was started.
    pub(super) fn tuning(&self, node: NodeId) -> (Budget, Budget) {
        let mut state = self.lock();
        let tuned = state.tuned(node);
        (tuned, *state.started_by.entry(node).or_insert(tuned))
    }

    /// As if it had run the newest build from the beginning.
    pub(super) fn is_new(&self, node: NodeId) {
        self.lock().builds.insert(node, NEW.to_owned());
    }

    pub(super) fn means(self: &Arc<Self>, store: &Shared) -> Arc<Means> {
        let leases = Leases::new(Directory::new(Arc::clone(store)), self.clock.clock());
        Agents::attach(self, &leases, store);
        Arc::new(Means {
            records: Records::new(Directory::new(Arc::clone(store))),
            nodes: Arc::new(Seen { world: Arc::clone(self), store: Arc::clone(store) }),
            parts: Arc::new(Driven { world: Arc::clone(self) }),
            events: events(store),
            leases,
            clock: self.wall.clone(),
            coordinator_generation: Generation::new(1),
        })
    }

    pub(super) fn cluster(&self, store: &Shared) -> Option<Cluster> {
        let key = cluster_key(&self.sample.template().name);
        let found = record::get::<Cluster>(&**store, &key).now_or_never()?;
        found.ok().flatten().map(|found| found.value)
    }

    pub(super) fn reign(&self, store: &Shared) -> Option<Reign> {
        let key = reign_key(self.sample.template().id);
        let found = record::get::<Reign>(&**store, &key).now_or_never()?;
        found.ok().flatten().map(|found| found.value)
    }

    /// All nodes are known to be offline.
    pub(super) fn go_away(&self) {
        self.lock().away = true;
    }

    /// A server that should run ends at each start, or is just starting again.
    pub(super) fn refuse(&self, state: EngineState, why: &str) {
        self.lock().refuses = Some((state, why.to_owned()));
        self.changes.send_modify(|number| *number += 1);
    }

    /// How often it was rebooted.
    pub(super) fn reboots(&self, node: NodeId) -> u32 {
        self.lock().reboots.get(&node).copied().unwrap_or_default()
    }

    /// The node says from here on whether it needs a reboot.
    pub(super) fn say_whether_it_needs_a_reboot(&self, node: NodeId, needs: bool) {
        self.lock().needs_reboot.insert(node, needs);
    }

    /// A node that is rebooted from here on stays away.
    pub(super) fn lose_whoever_reboots(&self) {
        self.lock().lost = true;
    }

    /// This node is known to be offline.
    pub(super) fn lose(&self, node: NodeId) {
        self.lock().gone.insert(node);
    }

    pub(super) fn is_lost(&self, node: NodeId) -> bool {
        self.lock().gone.contains(&node)
    }

    fn available(&self, node: NodeId) -> Availability {
        let state = self.lock();
        if state.away || state.gone.contains(&node) { Availability::Offline } else { Availability::Online }
    }

    pub(super) fn next_command_is(&self, fate: Fate) {
        self.lock().fate = fate;
    }

    pub(super) fn password(&self) -> Option<Verifier> {
        self.lock().password.clone()
    }

    pub(super) fn nodes_with_data(&self) -> Vec<NodeId> {
        self.lock().data.keys().copied().collect()
    }

    pub(super) fn at_most_once(&self) -> Result<(), String> {
        match self.lock().effects.iter().find(|(_, count)| **count > 1) {
            Some((command, count)) => Err(format!("{command} took effect {count} times")),
            None => Ok(()),
        }
    }

    fn apply(&self, node: NodeId, command: &Command) -> Outcome {
        let mut state = self.lock();
        if let Some(known) = state.outcomes.get(&command.id) {
            return known.clone();
        }
        *state.effects.entry(command.id).or_default() += 1;
        if let Payload::SetPassword(set) = &command.payload {
            state.password = Some(set.password.clone());
        }
        if let Payload::RestartMember(restart) = &command.payload {
            let started = no_less_than_its_primary(&state.started, &restart.member);
            state.started.insert(node, started);
            let installed = state.installed(node);
            state.builds.insert(node, installed);
            let tuned = state.tuned(node);
            state.started_by.insert(node, tuned);
        }
        if let Payload::UpgradeEngine(_) = &command.payload {
            state.upgraded.insert(node, NEW.to_owned());
        }
        let outcome = match &command.payload {
            Payload::RebootNode(request) => reboot(&mut state, node, request),
            Payload::RetuneMember(request) => {
                let budget = request.budget.unwrap_or(LARGE);
                state.tuned.insert(node, budget);
                Ok(Success::RetuneMember { budget })
            }
            _ => deeds::act(&mut state.data, node, command),
        };
        state.outcomes.insert(command.id, outcome.clone());
        drop(state);
        self.changes.send_modify(|number| *number += 1);
        outcome
    }
}

/// The log of events; one of its own where the store has stopped, and nobody goes on.
fn events(store: &Shared) -> event::Handle {
    let open = |store: Shared| event::Handle::open(store).now_or_never();
    let opened = open(Arc::clone(store)).unwrap_or_else(|| open(Memory::shared()).unwrap());
    opened.unwrap()
}

/// What a replica is started with: where it would have too little, what its primary runs with.
fn no_less_than_its_primary(started: &BTreeMap<NodeId, Parameters>, member: &MemberAssignment) -> Parameters {
    let RoleAssignment::Replica { upstream } = &member.role else { return member.parameters.clone() };
    let Some(its) = started.get(&upstream.node_id) else { return member.parameters.clone() };
    let mut own = BTreeMap::from(member.parameters.clone());
    for name in member.engine.lowered(its, &member.parameters) {
        own.insert(name.to_owned(), its.get(name).unwrap().to_owned());
    }
    own.try_into().unwrap()
}

fn boot_id(reboots: u32) -> String {
    format!("boot-{reboots}")
}

/// A repeat finds another boot, and ends none.
fn reboot(state: &mut State, node: NodeId, request: &RebootNode) -> Outcome {
    let lost = state.lost;
    let reboots = state.reboots.entry(node).or_default();
    if boot_id(*reboots) == request.boot_id {
        *reboots += 1;
        if lost {
            state.gone.insert(node);
        }
    }
    Ok(Success::RebootNode { boot_id: boot_id(*reboots) })
}

// === impl Seen ===

impl Nodes for Seen {
    fn state(&self, node: NodeId, cluster: ClusterId) -> Option<NodeState> {
        let record = self.world.cluster(&self.store).filter(|record| record.id == cluster);
        let assigned = record.as_ref().and_then(|record| assignment::member_assignment(record, None, node));
        let system_identifier = self.world.lock().data.get(&node).cloned();
        let state = match (&system_identifier, &assigned) {
            (None, _) => EngineState::Absent,
            (Some(_), None) => EngineState::Stopped,
            (Some(_), Some(_)) => EngineState::Running,
        };
        let refuses = self.world.lock().refuses.clone();
        let (state, message) = match refuses {
            Some(refuses) if state == EngineState::Running => refuses,
            Some(_) | None => (state, String::new()),
        };
        let synchronous = match assigned.as_ref().map(|assigned| &assigned.role) {
            Some(RoleAssignment::Primary { synchronous }) => synchronous.clone(),
            Some(RoleAssignment::Replica { .. }) | None => Synchronous::default(),
        };
        let (kept, started_by) = self.world.tuning(node);
        let mut pending_restart = assigned.as_ref().map_or_else(Vec::new, |assigned| {
            let mut state = self.world.lock();
            let started = state.started.entry(node).or_insert_with(|| assigned.parameters.clone());
            let waits = |name: &&str| {
                assigned.engine.takes_effect(name, &assigned.engine_version) == TakesEffect::AtStart
            };
            started.changed(&assigned.parameters).into_iter().filter(waits).map(str::to_owned).collect()
        });
        pending_restart.extend((kept != started_by).then(|| "shared_buffers".to_owned()));
        let starts = i64::from(self.world.starts(node));
        let started_at = Timestamp::from_second(starts).unwrap();
        let report = MemberReport {
            state,
            started_at: Some(started_at),
            tuning: Some(Tuning { kept, possible: LARGE, resized: kept != LARGE }),
            pending_restart,
            role: assigned.as_ref().map(|assigned| assigned.role.role()),
            term: assigned.as_ref().map_or(Term::NONE, |assigned| assigned.term),
            synchronous,
            system_identifier,
            message,
            server_build: Some(self.world.build(node)),
            position: Some(Position { era: 1, offset: 100 }),
            ..report(cluster)
        };
        let availability = self.world.available(node);
        Some(NodeState { availability, report: Some((report, Timestamp::UNIX_EPOCH)) })
    }

    fn availability(&self, node: NodeId) -> Option<Availability> {
        Some(self.world.available(node))
    }

    fn boot(&self, node: NodeId) -> Option<Boot> {
        Some(Boot { id: boot_id(self.world.reboots(node)), heard_of_at: Timestamp::MIN })
    }

    fn converged(&self, node: NodeId, cluster: ClusterId) -> Option<MemberAssignment> {
        let record = self.world.cluster(&self.store).filter(|record| record.id == cluster)?;
        let there = self.world.available(node) == Availability::Online;
        assignment::member_assignment(&record, None, node).filter(|_| there)
    }

    fn filtering(&self, _: NodeId) -> Filtering {
        Filtering::Available
    }

    fn machine(&self, _: NodeId) -> Option<Machine> {
        Some(Machine { cores: 2, memory_bytes: 4 << 30 })
    }

    fn needs_reboot(&self, node: NodeId) -> Option<bool> {
        self.world.lock().needs_reboot.get(&node).copied()
    }

    fn ask(
        &self,
        node: NodeId,
        _: ClusterId,
        _: Question,
    ) -> BoxFuture<'_, Result<question::Answer, CallError>> {
        let node = node.to_string();
        std::future::ready(Err(CallError::NotSent { node, why: "it answers nothing" })).boxed()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.world.changes.subscribe()
    }

    fn call<'a>(
        &'a self,
        node: NodeId,
        command: Command,
        _progress: &'a (dyn Fn(Progress) + Send + Sync),
    ) -> BoxFuture<'a, Result<Success, CallError>> {
        let fate = std::mem::take(&mut self.world.lock().fate);
        let outcome = match fate {
            Fate::Answered => self.world.apply(node, &command).map_err(CallError::Failed),
            Fate::NotSent => Err(CallError::NotSent { node: node.to_string(), why: "it is offline" }),
            Fate::Unanswered => {
                let _ = self.world.apply(node, &command);
                Err(CallError::Unanswered { node: node.to_string() })
            }
        };
        std::future::ready(outcome).boxed()
    }

    fn cancel(&self, _node: NodeId, _command: CommandId) {}
}
