//! The rounds on fake engines, in paused time.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use holdfast_common::access::Access;
use holdfast_common::assignment::{Exposure, MemberAssignment, Peer, Power, RoleAssignment, Synchronous};
use holdfast_common::budget::Budget;
use holdfast_common::command::{
    CloneMember, DatabaseName, DestroyMember, InitialiseMember, Payload, ResyncMember, ResyncMode,
    ResyncedBy, RetuneMember, Success, Verifier,
};
use holdfast_common::engine::{Engine as Kind, Parameters};
use holdfast_common::error::Retry;
use holdfast_common::generation::Generation;
use holdfast_common::id::{CommandId, NodeId, OperationId};
use holdfast_common::protocol::{Profile, Standing};
use holdfast_common::report::{EngineState, NodeEvent};
use holdfast_common::role::Role;
use holdfast_common::term::Term;
use tokio::time::timeout;

use super::*;
use crate::engine::fake::{Step as Deed, World};
use crate::engine::{Surroundings, Work};
use crate::lease::Serve;

const CLUSTER: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

struct Node {
    peer: Peer,
    engines: Engines,
    assign: watch::Sender<Arc<Assignment>>,
    leases: watch::Sender<Arc<lease::Status>>,
    handle: Handle,
    events: Arc<Mutex<Vec<NodeEvent>>>,
    shutdown: CancellationToken,
    rounds: JoinSet<()>,
}

/// Every primary may serve.
fn all_held(members: &[MemberAssignment]) -> lease::Status {
    let held = |member: &MemberAssignment| {
        let standing = match member.role {
            RoleAssignment::Primary { .. } => Standing::Primary,
            RoleAssignment::Replica { .. } => Standing::Replica,
        };
        lease::Held {
            standing: (member.term, standing),
            serve: Serve::May,
            report: None,
            has_promised: false,
            stops: 0,
            pace: member.into(),
        }
    };
    lease::Status { members: members.iter().map(|member| (member.cluster_id, held(member))).collect() }
}

impl Node {
    fn new(world: &World, name: &str, last: u8) -> Self {
        let node_id = NodeId::generate();
        let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        let peer = Peer { node_id, name: name.parse().unwrap(), address, port: 5432 };
        let engines = Engines::new(vec![Arc::new(world.engine(node_id))]);
        Self::with(peer, engines, Assignment::default())
    }

    fn with(peer: Peer, engines: Engines, assignment: Assignment) -> Self {
        let (assign, assignment) = watch::channel(Arc::new(assignment));
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&events);
        let tell: Tell = Arc::new(move |event| told.lock().unwrap().push(event));
        // Whoever owns the sender may be gone: what it said last stands.
        let (_, firewall) = watch::channel(Arc::default());
        let (leases, held) = watch::channel(Arc::new(all_held(&assignment.borrow().members)));
        let clock = Clock::system();
        let means = Means { engines: engines.clone(), assignment, firewall, leases: held, clock, tell };
        let (service, handle) = Service::new(means);
        let shutdown = CancellationToken::new();
        let mut rounds = JoinSet::new();
        rounds.spawn(service.run(shutdown.clone()));
        Self { peer, engines, assign, leases, handle, events, shutdown, rounds }
    }

    /// The agent ends and another one starts on the same disk.
    async fn restart(self) -> Self {
        let Self { peer, engines, assign, shutdown, mut rounds, .. } = self;
        shutdown.cancel();
        while rounds.join_next().await.is_some() {}
        let stored = assign.borrow().as_ref().clone();
        Self::with(peer, engines, stored)
    }

    fn assign(&self, generation: u64, members: Vec<MemberAssignment>) {
        let generation = Generation::new(generation);
        self.leases.send_replace(Arc::new(all_held(&members)));
        self.assign.send_replace(Arc::new(Assignment { generation, members, ..Assignment::default() }));
    }

    async fn wait(&self, what: &str, seen: impl Fn(Option<&MemberReport>) -> bool) -> Option<MemberReport> {
        let mut reports = self.handle.subscribe();
        let found = timeout(Duration::from_secs(300), async {
            loop {
                let report = reports.borrow_and_update().clone();
                let member = report.members.iter().find(|member| member.cluster_id == cluster());
                if seen(member) {
                    return member.cloned();
                }
                reports.changed().await.unwrap();
            }
        });
        match found.await {
            Ok(member) => member,
            Err(_) => panic!("waited for {what}; last report: {:?}", self.handle.report()),
        }
    }

    async fn wait_converged(&self, generation: u64) -> MemberReport {
        let generation = Generation::new(generation);
        let seen =
            move |member: Option<&MemberReport>| member.is_some_and(|m| m.converged_generation == generation);
        self.wait("convergence", seen).await.unwrap()
    }

    fn told(&self, reason: &str) -> usize {
        self.events.lock().unwrap().iter().filter(|event| event.reason == reason).count()
    }
}

fn work() -> Work {
    Work::new(CommandId::of_step(OperationId::generate(), "x"), CancellationToken::new(), |_| {})
}

fn cluster() -> ClusterId {
    CLUSTER.parse().unwrap()
}

fn member(node: &Node, all: &[&Node], role: RoleAssignment, system: Option<&str>) -> MemberAssignment {
    MemberAssignment {
        cluster_id: cluster(),
        cluster_name: "shop".parse().unwrap(),
        engine: Kind::Postgresql,
        engine_version: "15".parse().unwrap(),
        term: Term::FIRST,
        role,
        port: node.peer.port,
        address: node.peer.address,
        parameters: Parameters::default(),
        members: all.iter().map(|node| node.peer.clone()).collect(),
        extensions: Vec::new(),
        system_identifier: system.map(str::to_owned),
        power: Power::Running,
        access: Access::default(),
        exposure: Exposure::AlsoUnfiltered,
        replication_port: None,
        gated_ports: Vec::new(),
        profile: Profile::Default,
        patience: None,
    }
}

fn primary(synchronous: &[&Node]) -> RoleAssignment {
    let nodes: Vec<NodeId> = synchronous.iter().map(|node| node.peer.node_id).collect();
    RoleAssignment::Primary { synchronous: Synchronous { count: u32::from(!nodes.is_empty()), nodes } }
}

async fn initialise(node: &Node, member: MemberAssignment) -> String {
    let name = |text: &str| DatabaseName::try_from(text.to_owned()).unwrap();
    let password = Verifier::try_from("SCRAM-SHA-256$4096:c2FsdA==$a2V5:a2V5".to_owned()).unwrap();
    let request = InitialiseMember { member, database: name("app"), user: name("app"), password };
    match node.engines.execute(&Payload::InitialiseMember(Box::new(request)), &work()).await.unwrap() {
        Success::InitialiseMember { system_identifier } => system_identifier,
        other => panic!("{other:?}"),
    }
}

/// A node whose only member runs as its assignment of generation 1 says.
async fn lone_primary(world: &World) -> (Node, String) {
    let a = Node::new(world, "a", 1);
    let system = initialise(&a, member(&a, &[&a], primary(&[]), None)).await;
    a.assign(1, vec![member(&a, &[&a], primary(&[]), Some(&system))]);
    a.wait_converged(1).await;
    (a, system)
}

#[tokio::test(start_paused = true)]
async fn a_cluster_comes_up_from_commands_and_assignments() {
    let world = World::default();
    let (a, b) = (Node::new(&world, "a", 1), Node::new(&world, "b", 2));
    let all = [&a, &b];
    a.assign(1, vec![member(&a, &all, primary(&[]), None)]);
    let absent = a.wait("absence", |member| member.is_some()).await.unwrap();
    assert_eq!((absent.state, absent.converged_generation), (EngineState::Absent, Generation::NONE));

    let system = initialise(&a, member(&a, &all, primary(&[]), None)).await;
    a.assign(2, vec![member(&a, &all, primary(&[]), Some(&system))]);
    a.wait_converged(2).await;

    let upstream = RoleAssignment::Replica { upstream: a.peer.clone() };
    let replica = member(&b, &all, upstream, Some(&system));
    let clone = CloneMember { member: replica.clone(), source: a.peer.clone() };
    b.engines.execute(&Payload::CloneMember(Box::new(clone)), &work()).await.unwrap();
    b.assign(1, vec![replica]);
    let report = b.wait_converged(1).await;
    assert_eq!((report.role, report.streaming), (Some(Role::Replica), Some(true)));

    a.assign(3, vec![member(&a, &all, primary(&[&b]), Some(&system))]);
    let report = a.wait_converged(3).await;
    assert_eq!(report.synchronous.nodes, [b.peer.node_id]);
    assert!(report.followers.iter().any(|f| f.synchronous && f.node_id == b.peer.node_id), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_leaves_a_running_engine_alone() {
    let world = World::default();
    let (a, _) = lone_primary(&world).await;
    let before = a.wait_converged(1).await;
    let a = a.restart().await;
    let after = a.wait_converged(1).await;
    assert_eq!(after.started_at, before.started_at);
    assert_eq!(world.count(a.peer.node_id, Deed::Start), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_engines_start_from_the_stored_assignment() {
    let world = World::default();
    let (a, _) = lone_primary(&world).await;
    let Node { peer, engines, assign, shutdown, mut rounds, .. } = a;
    shutdown.cancel();
    while rounds.join_next().await.is_some() {}
    world.crash(cluster(), peer.node_id);
    let stored = assign.borrow().as_ref().clone();
    let a = Node::with(peer, engines, stored);
    let report = a.wait_converged(1).await;
    assert_eq!((report.state, a.told("ENGINE_ENDED")), (EngineState::Running, 0));
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_ends_is_started_again_with_growing_pauses() {
    let world = World::default();
    let (a, _) = lone_primary(&world).await;
    for _ in 0..40 {
        world.fail_next(a.peer.node_id, Deed::Start, "no space left");
    }
    world.crash(cluster(), a.peer.node_id);
    let failed = a.wait("failure", |m| m.is_some_and(|m| m.state == EngineState::Failed)).await.unwrap();
    assert_eq!(failed.converged_generation, Generation::NONE);
    let named = |m: Option<&MemberReport>| m.is_some_and(|m| m.message.contains("no space left"));
    a.wait("the reason", named).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let tries = world.count(a.peer.node_id, Deed::Start);
    assert!((4..30).contains(&tries), "{tries} starts in two minutes");
    assert_eq!((a.told("ENGINE_ENDED"), a.told("CONVERGE_FAILED")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn another_term_is_no_reason_to_wait_for_what_failed_before() {
    let world = World::default();
    let (a, system) = lone_primary(&world).await;
    for _ in 0..40 {
        world.fail_next(a.peer.node_id, Deed::Start, "no space left");
    }
    world.crash(cluster(), a.peer.node_id);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let (tries, begun) = (world.count(a.peer.node_id, Deed::Start), tokio::time::Instant::now());
    let later = MemberAssignment { term: Term::new(2), ..member(&a, &[&a], primary(&[]), Some(&system)) };
    a.assign(2, vec![later]);
    let again = async {
        while world.count(a.peer.node_id, Deed::Start) == tries {
            tokio::time::sleep(Duration::from_millis(100)).await
        }
    };
    timeout(Duration::from_secs(300), again).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "it waited for {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_not_assigned_any_more_is_left_as_it_is() {
    let world = World::default();
    let (a, _) = lone_primary(&world).await;
    a.assign(2, Vec::new());
    let orphan =
        a.wait("an orphan", |m| m.is_some_and(|m| m.converged_generation == Generation::NONE)).await.unwrap();
    assert_eq!((orphan.state, a.told("MEMBER_NOT_ASSIGNED")), (EngineState::Running, 0));
    // It may be about to be removed; told is what stays so.
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(a.told("MEMBER_NOT_ASSIGNED"), 1);
    assert_eq!(world.count(a.peer.node_id, Deed::Stop), 0);
    let destroy = |name: &str| {
        Payload::DestroyMember(DestroyMember { cluster_id: cluster(), confirm: name.parse().unwrap() })
    };
    let refused = a.engines.execute(&destroy("other"), &work()).await.unwrap_err();
    assert_eq!(refused.reason, holdfast_common::error::Reason::NotConfirmed);
    assert!(world.has_data(cluster(), a.peer.node_id));
    a.engines.execute(&destroy("shop"), &work()).await.unwrap();
    a.wait("its end", |m| m.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_round_never_demotes() {
    let world = World::default();
    let (a, system) = lone_primary(&world).await;
    let b = Node::new(&world, "b", 2);
    let upstream = RoleAssignment::Replica { upstream: b.peer.clone() };
    // The assignment alone does not say that it lost its role.
    let still = all_held(&[member(&a, &[&a], primary(&[]), Some(&system))]);
    a.assign(2, vec![member(&a, &[&a, &b], upstream, Some(&system))]);
    a.leases.send_replace(Arc::new(still));
    let refused = |m: Option<&MemberReport>| m.is_some_and(|m| m.message.contains("should be a replica"));
    let report = a.wait("a refusal", refused).await.unwrap();
    assert_eq!((report.role, report.converged_generation), (Some(Role::Primary), Generation::NONE));
    assert_eq!(world.count(a.peer.node_id, Deed::Configure), 1);
}

/// What the leases of a node say.
#[derive(Debug)]
struct Around(watch::Receiver<Arc<lease::Status>>);

impl Surroundings for Around {
    fn standing(&self, cluster: ClusterId) -> Option<(Term, Standing)> {
        self.0.borrow().members.get(&cluster).map(|held| held.standing)
    }

    fn covers(&self, _cluster: ClusterId) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_log_has_parted_says_so_until_it_is_resynced() {
    let world = World::default();
    let (a, system) = lone_primary(&world).await;
    let b = Node::new(&world, "b", 2);
    let at = |node: &Node, term, role| MemberAssignment {
        term: Term::new(term),
        ..member(node, &[&a, &b], role, Some(&system))
    };
    let of = |node: &Node| RoleAssignment::Replica { upstream: node.peer.clone() };
    a.assign(2, vec![at(&a, 1, primary(&[]))]);
    a.wait_converged(2).await;
    let clone = CloneMember { member: at(&b, 1, of(&a)), source: a.peer.clone() };
    b.engines.execute(&Payload::CloneMember(Box::new(clone)), &work()).await.unwrap();
    b.assign(1, vec![at(&b, 1, of(&a))]);
    b.wait_converged(1).await;
    world.cut(b.peer.node_id);
    assert!(world.write(cluster(), 100));
    b.assign(2, vec![at(&b, 2, primary(&[]))]);
    b.wait_converged(2).await;
    world.join(b.peer.node_id);

    a.assign(3, vec![at(&a, 2, of(&b))]);
    let apart = a.wait("its refusal", |m| m.is_some_and(|m| m.needs_resync)).await.unwrap();
    assert!(apart.message.contains("its log has more"), "{}", apart.message);
    let member = at(&a, 2, of(&b));
    let request = ResyncMember { member, source: b.peer.clone(), mode: ResyncMode::Auto, in_place: false };
    let payload = Payload::ResyncMember(Box::new(request));
    // Not before it is known what the member is by its lease.
    let refused = a.engines.execute(&payload, &work()).await.unwrap_err();
    assert_eq!(refused.retry, Retry::Later(None));
    a.engines.set_amid(Arc::new(Around(a.leases.subscribe())));
    let done = a.engines.execute(&payload, &work()).await.unwrap();
    assert!(matches!(done, Success::ResyncMember { how: ResyncedBy::Rewound, .. }), "{done:?}");
    let report = a.wait_converged(3).await;
    assert_eq!((report.needs_resync, report.streaming), (false, Some(true)));
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_rewinding_broke_is_left_alone_until_it_is_copied() {
    let world = World::default();
    let (a, system) = lone_primary(&world).await;
    let b = Node::new(&world, "b", 2);
    let all = [&a, &b];
    a.assign(2, vec![member(&a, &all, primary(&[]), Some(&system))]);
    a.wait_converged(2).await;
    let upstream = RoleAssignment::Replica { upstream: a.peer.clone() };
    let replica = member(&b, &all, upstream, Some(&system));
    let clone = CloneMember { member: replica.clone(), source: a.peer.clone() };
    b.engines.execute(&Payload::CloneMember(Box::new(clone)), &work()).await.unwrap();
    b.assign(1, vec![replica.clone()]);
    b.wait_converged(1).await;
    b.engines.set_amid(Arc::new(Around(b.leases.subscribe())));
    let payload = |mode| {
        let (member, source) = (replica.clone(), a.peer.clone());
        Payload::ResyncMember(Box::new(ResyncMember { member, source, mode, in_place: false }))
    };
    world.break_data(cluster(), b.peer.node_id);
    b.wait("a report", |m| m.is_some_and(|m| m.needs_resync)).await;
    let starts = world.count(b.peer.node_id, Deed::Start);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.count(b.peer.node_id, Deed::Start), starts);
    assert_eq!(b.told("CONVERGE_FAILED"), 0);
    b.engines.execute(&payload(ResyncMode::Rewind), &work()).await.unwrap_err();
    b.engines.execute(&payload(ResyncMode::Auto), &work()).await.unwrap();
    b.wait("streaming", |m| m.is_some_and(|m| !m.needs_resync && m.streaming == Some(true))).await;
}

#[tokio::test(start_paused = true)]
async fn a_resized_machine_is_told_once_over_restarts_too_until_the_member_is_retuned() {
    let world = World::default();
    let (a, _) = lone_primary(&world).await;
    let kept =
        a.wait("a report", |m| m.is_some_and(|m| m.tuning.is_some())).await.unwrap().tuning.unwrap().kept;
    let less = Budget { memory_bytes: kept.memory_bytes / 2, ..kept };
    world.resize(a.peer.node_id, less);
    a.wait("the new size", |m| m.is_some_and(|m| m.tuning.is_some_and(|it| it.resized))).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(a.told("MACHINE_RESIZED"), 1);
    let a = a.restart().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(a.told("MACHINE_RESIZED"), 0, "the agent before has told it");
    let retune = Payload::RetuneMember(RetuneMember { cluster_id: cluster(), budget: None });
    let done = a.engines.execute(&retune, &work()).await.unwrap();
    assert_eq!(done, Success::RetuneMember { budget: less });
    a.wait("the new budget", |m| m.is_some_and(|m| m.tuning.is_some_and(|it| it.kept == less))).await;
    world.resize(a.peer.node_id, kept);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(a.told("MACHINE_RESIZED"), 1, "yet another size");
}

#[tokio::test(start_paused = true)]
async fn no_round_works_on_a_member_that_a_command_holds() {
    let world = World::default();
    let a = Node::new(&world, "a", 1);
    let system = initialise(&a, member(&a, &[&a], primary(&[]), None)).await;
    let held = a.engines.hold(cluster()).await;
    a.assign(1, vec![member(&a, &[&a], primary(&[]), Some(&system))]);
    a.wait("a report", |m| m.is_some_and(|m| m.state == EngineState::Stopped)).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(world.count(a.peer.node_id, Deed::Start), 0);
    drop(held);
    a.wait_converged(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_a_command_has_made_is_looked_at_at_once() {
    let world = World::default();
    let a = Node::new(&world, "a", 1);
    a.assign(1, vec![member(&a, &[&a], primary(&[]), None)]);
    a.wait("absence", |member| member.is_some()).await;
    // Between two of the looks that come every second.
    tokio::time::sleep(Duration::from_millis(300)).await;
    initialise(&a, member(&a, &[&a], primary(&[]), None)).await;
    let ended = tokio::time::Instant::now();
    a.wait("data", |m| m.is_some_and(|m| m.state != EngineState::Absent)).await;
    assert!(ended.elapsed() < Duration::from_millis(100), "after {:?}", ended.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_member_that_should_be_stopped_is_stopped_and_stays_so() {
    let world = World::default();
    let (a, system) = lone_primary(&world).await;
    let stopped =
        MemberAssignment { power: Power::Stopped, ..member(&a, &[&a], primary(&[]), Some(&system)) };
    a.assign(2, vec![stopped]);
    let report = a.wait_converged(2).await;
    assert_eq!((report.state, a.told("ENGINE_ENDED")), (EngineState::Stopped, 0));
}

#[tokio::test(start_paused = true)]
async fn one_that_its_lease_had_stopped_has_not_ended_by_itself_however_soon_it_is_to_run_again() {
    let world = World::default();
    let (a, _) = lone_primary(&world).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    // Nobody has looked in between.
    world.crash(cluster(), a.peer.node_id);
    a.leases.send_modify(|leases| {
        Arc::make_mut(leases).members.values_mut().for_each(|held| held.stops += 1);
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((world.count(a.peer.node_id, Deed::Start), a.told("ENGINE_ENDED")), (2, 0));
    world.crash(cluster(), a.peer.node_id);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(a.told("ENGINE_ENDED"), 1, "now it has");
}
