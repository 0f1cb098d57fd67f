//! What every engine must do, the fake and the real one: run on two nodes that can reach each other.

use std::sync::Arc;
use std::time::Duration;

use holdfast_common::access::Access;
use holdfast_common::assignment::{Exposure, MemberAssignment, Peer, Power, RoleAssignment, Synchronous};
use holdfast_common::budget::Budget;
use holdfast_common::command::{
    CloneMember, DatabaseName, DestroyMember, InitialiseMember, ResyncMember, ResyncMode, ResyncedBy,
    RetuneMember, SetPassword, Verifier,
};
use holdfast_common::engine::{Engine as Kind, EngineVersion, Parameters};
use holdfast_common::error::{Classify as _, Reason};
use holdfast_common::id::{ClusterId, CommandId, OperationId};
use holdfast_common::protocol::{Profile, Standing};
use holdfast_common::report::EngineState;
use holdfast_common::role::Role;
use holdfast_common::term::Term;
use tokio_util::sync::CancellationToken;

use super::{Drift, Engine, Error, Observation, Surroundings, Work, restart};

pub(super) const VERIFIER: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$cO4DfQh6Y5b1Kt6jJTk8JfbWvVtNq0tE8l2m1FhY3vE=:\
                                   1lTOuZp6A0zj7PcKQXxVqk1sFhJv5oXcR8yL2wNq3bM=";

/// A node on the bench.
#[derive(Debug, Clone)]
pub(super) struct Bench {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) peer: Peer,
}

/// The members of one cluster on the bench.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    pub(super) id: ClusterId,
    pub(super) version: EngineVersion,
    pub(super) peers: Vec<Peer>,
    pub(super) system: Option<String>,
}

pub(super) fn work() -> Work {
    Work::new(CommandId::of_step(OperationId::generate(), "contract"), CancellationToken::new(), |_| {})
}

/// What the lease's record says, and that the rules are in the kernel.
#[derive(Debug)]
struct Held(Option<(Term, Standing)>);

impl Surroundings for Held {
    fn standing(&self, _cluster: ClusterId) -> Option<(Term, Standing)> {
        self.0
    }

    fn covers(&self, _cluster: ClusterId) -> bool {
        true
    }
}

/// Work on a member that is this by its lease's record.
pub(super) fn work_as(standing: Option<(Term, Standing)>) -> Work {
    work().amid(Arc::new(Held(standing)))
}

/// Work on a member that is a replica of this term.
pub(super) fn work_in(term: u64) -> Work {
    work_as(Some((Term::new(term), Standing::Replica)))
}

pub(super) fn name(text: &str) -> DatabaseName {
    DatabaseName::try_from(text.to_owned()).unwrap()
}

pub(super) fn verifier(text: &str) -> Verifier {
    Verifier::try_from(text.to_owned()).unwrap()
}

impl Cluster {
    pub(super) fn new(nodes: &[&Bench]) -> Self {
        let peers = nodes.iter().map(|node| node.peer.clone()).collect();
        Self { id: ClusterId::generate(), version: "15".parse().unwrap(), peers, system: None }
    }

    pub(super) fn member(&self, node: &Bench, role: RoleAssignment) -> MemberAssignment {
        MemberAssignment {
            cluster_id: self.id,
            cluster_name: "shop".parse().unwrap(),
            engine: Kind::Postgresql,
            engine_version: self.version.clone(),
            term: Term::FIRST,
            role,
            port: node.peer.port,
            address: node.peer.address,
            parameters: Parameters::default(),
            members: self.peers.clone(),
            extensions: Vec::new(),
            system_identifier: self.system.clone(),
            power: Power::Running,
            access: Access::default(),
            exposure: Exposure::default(),
            replication_port: None,
            gated_ports: Vec::new(),
            profile: Profile::Default,
            patience: None,
        }
    }

    pub(super) fn primary(&self, node: &Bench) -> MemberAssignment {
        self.member(node, RoleAssignment::Primary { synchronous: Synchronous::default() })
    }

    pub(super) fn replica(&self, node: &Bench, of: &Bench) -> MemberAssignment {
        self.member(node, RoleAssignment::Replica { upstream: of.peer.clone() })
    }

    pub(super) fn resync(&self, node: &Bench, of: &Bench, term: u64, mode: ResyncMode) -> ResyncMember {
        let member = MemberAssignment { term: Term::new(term), ..self.replica(node, of) };
        ResyncMember { member, source: of.peer.clone(), mode, in_place: false }
    }

    pub(super) fn initialise(&self, node: &Bench) -> InitialiseMember {
        let member = self.primary(node);
        InitialiseMember { member, database: name("app"), user: name("app"), password: verifier(VERIFIER) }
    }

    pub(super) fn destroy(&self, confirm: &str) -> DestroyMember {
        DestroyMember { cluster_id: self.id, confirm: confirm.parse().unwrap() }
    }
}

impl Bench {
    pub(super) async fn wait(
        &self,
        cluster: ClusterId,
        what: &str,
        seen: impl Fn(&Observation) -> bool,
    ) -> Observation {
        let mut last = None;
        let found = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                let observed = self.engine.observe(cluster).await;
                if seen(&observed) {
                    return observed;
                }
                last = Some(observed);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        match found.await {
            Ok(observed) => observed,
            Err(_) => panic!("waited for {what} on {}; last: {last:?}", self.peer.name),
        }
    }

    /// Configures, starts, and waits until clients are taken.
    pub(super) async fn run(&self, member: &MemberAssignment) -> Observation {
        self.engine.configure(member).await.unwrap();
        self.engine.start(member).await.unwrap();
        self.wait(member.cluster_id, "a running engine", |o| o.state == EngineState::Running).await
    }

    /// Makes what differs as the assignment says, and checks that nothing differs then.
    pub(super) async fn settle(&self, member: &MemberAssignment) {
        for _ in 0..3 {
            let observed = self.engine.observe(member.cluster_id).await;
            let drift = self.engine.compare(member, &observed).await.unwrap();
            if drift == Drift::NONE {
                return;
            }
            if drift.configuration {
                self.engine.configure(member).await.unwrap();
            }
            if drift.admission {
                self.engine.admit(member).await.unwrap();
            }
        }
        panic!("{} does not settle", self.peer.name);
    }

    pub(super) async fn stop(&self, cluster: ClusterId) {
        self.engine.stop(cluster).await.unwrap();
    }
}

pub(super) fn reason<T: std::fmt::Debug>(result: Result<T, Error>) -> Reason {
    result.unwrap_err().reason()
}

/// A switchover and the way back, with what is refused in between.
async fn roles_change_hands(a: &Bench, b: &Bench, cluster: &mut Cluster) {
    let id = cluster.id;
    let at = |member: MemberAssignment, term| MemberAssignment { term: Term::new(term), ..member };
    a.engine.lead(&at(cluster.primary(a), 1)).await.unwrap();
    a.settle(&at(cluster.primary(a), 1)).await;
    assert_eq!(a.engine.observe(id).await.term, Some(Term::new(1)));
    b.wait(id, "streaming", |o| o.streaming == Some(true)).await;

    a.engine.checkpoint(id).await.unwrap();
    let stopped = a.engine.rest(id).await.unwrap();
    assert_eq!(a.engine.rest(id).await.unwrap(), stopped, "asked again");
    a.wait(id, "its end", |o| o.state == EngineState::Stopped).await;
    assert_eq!(a.engine.rest(id).await.unwrap(), stopped, "asked once it is gone");
    let sealed = b.engine.seal(id).await.unwrap();
    assert!(sealed >= stopped && sealed.term == stopped.term, "{sealed:?} against {stopped:?}");
    assert!(b.engine.observe(id).await.sealed);

    // Nobody to follow yet, and a primary is no replica's assignment.
    assert!(a.engine.follow(&at(cluster.replica(a, b), 2)).await.is_err());
    assert_eq!(reason(a.engine.follow(&at(cluster.primary(a), 2)).await), Reason::InvalidField);
    assert_eq!(a.engine.observe(id).await.data_role, Some(Role::Primary));

    let led = at(cluster.primary(b), 2);
    b.engine.configure(&led).await.unwrap();
    b.engine.lead(&led).await.unwrap();
    b.engine.lead(&led).await.unwrap();
    let observed = b.wait(id, "a primary", |o| o.role == Some(Role::Primary)).await;
    assert_eq!((observed.term, observed.sealed), (Some(Term::new(2)), false));
    b.settle(&led).await;

    let followed = at(cluster.replica(a, b), 2);
    a.engine.follow(&followed).await.unwrap();
    assert_eq!(a.engine.observe(id).await.data_role, Some(Role::Replica));
    a.run(&followed).await;
    a.wait(id, "streaming", |o| o.streaming == Some(true)).await;
    a.settle(&followed).await;

    // A seal outlives a restart, and is lifted by following.
    a.engine.seal(id).await.unwrap();
    a.stop(id).await;
    a.run(&followed).await;
    let observed = a.engine.observe(id).await;
    assert_eq!((observed.sealed, observed.streaming), (true, Some(false)));
    a.engine.follow(&followed).await.unwrap();
    a.wait(id, "streaming", |o| o.streaming == Some(true)).await;

    // And back, so that the roles are as they were.
    let stopped = b.engine.rest(id).await.unwrap();
    assert!(a.engine.seal(id).await.unwrap() >= stopped);
    let led = at(cluster.primary(a), 3);
    a.engine.configure(&led).await.unwrap();
    a.engine.lead(&led).await.unwrap();
    a.settle(&led).await;
    let followed = at(cluster.replica(b, a), 3);
    b.engine.follow(&followed).await.unwrap();
    b.run(&followed).await;
    b.wait(id, "streaming", |o| o.streaming == Some(true)).await;
}

/// What is refused changes nothing: neither what it is nor whether it runs.
async fn a_resync_is_refused_to_a_primary(a: &Bench, b: &Bench, cluster: &Cluster, term: u64) {
    let id = cluster.id;
    let before = (a.engine.observe(id).await.started_at, b.engine.observe(id).await.started_at);
    let at = Term::new(term);
    let request = |mode| cluster.resync(b, a, term, mode);
    let refused = async |request: &ResyncMember, work: &Work| reason(b.engine.resync(request, work).await);
    let full = request(ResyncMode::Full);
    for standing in
        [(at, Standing::Primary), (Term::FIRST, Standing::Primary), (at.next(), Standing::Replica)]
    {
        let work = work_as(Some(standing));
        assert_eq!(refused(&full, &work).await, Reason::WouldDestroyData, "{standing:?}");
    }
    for standing in [None, Some((at, Standing::Sealed))] {
        let error = b.engine.resync(&full, &work_as(standing)).await.unwrap_err();
        assert!(error.retry() != holdfast_common::error::Retry::Never, "{standing:?}: {error}");
    }
    let own = ResyncMember { source: b.peer.clone(), ..full.clone() };
    assert_eq!(refused(&own, &work_in(term)).await, Reason::WouldDestroyData);
    let primary = MemberAssignment { role: cluster.primary(b).role, ..full.member.clone() };
    let primary = ResyncMember { member: primary, ..full.clone() };
    assert_eq!(refused(&primary, &work_in(term)).await, Reason::WouldDestroyData);
    let other = MemberAssignment { system_identifier: Some("7".to_owned()), ..full.member.clone() };
    let other = ResyncMember { member: other, ..full.clone() };
    assert_eq!(refused(&other, &work_in(term)).await, Reason::WouldDestroyData);
    // One whose engine runs as primary, although its record says otherwise.
    let runs = cluster.resync(a, b, term, ResyncMode::Full);
    assert_eq!(reason(a.engine.resync(&runs, &work_in(term)).await), Reason::WouldDestroyData);
    let after = (a.engine.observe(id).await.started_at, b.engine.observe(id).await.started_at);
    assert_eq!(after, before);
}

/// `a` is the primary, and `b` follows it.
async fn replicas_are_aligned(a: &Bench, b: &Bench, cluster: &Cluster, term: u64) {
    let id = cluster.id;
    let at = |member: MemberAssignment, term| MemberAssignment { term: Term::new(term), ..member };
    a_resync_is_refused_to_a_primary(a, b, cluster, term).await;

    // One that follows is left as it is.
    let started_at = b.engine.observe(id).await.started_at;
    let command = work_in(term);
    let request = cluster.resync(b, a, term, ResyncMode::Auto);
    let resynced = b.engine.resync(&request, &command).await.unwrap();
    assert_eq!((resynced.how, resynced.set_aside_bytes), (ResyncedBy::Followed, 0));
    assert_eq!(Some(&resynced.system_identifier), cluster.system.as_ref());
    assert_eq!(b.engine.observe(id).await.started_at, started_at);

    // Copied where that is asked for, and what was done once is told again.
    let command = work_in(term);
    let request = cluster.resync(b, a, term, ResyncMode::Full);
    let resynced = b.engine.resync(&request, &command).await.unwrap();
    assert_eq!((resynced.how, resynced.set_aside_bytes), (ResyncedBy::Copied, 0), "it followed");
    assert!(resynced.copied_bytes > 1024 * 1024, "{resynced:?}");
    assert_eq!(b.engine.resync(&request, &command).await.unwrap(), resynced);
    b.run(&at(cluster.replica(b, a), term)).await;
    b.wait(id, "streaming", |o| o.streaming == Some(true)).await;

    // A primary that ends, and has what nobody else has.
    b.stop(id).await;
    a.engine.lead(&at(cluster.primary(a), term + 1)).await.unwrap();
    a.engine.halt(id).await.unwrap();
    b.run(&at(cluster.replica(b, a), term)).await;
    let led = at(cluster.primary(b), term + 2);
    b.engine.configure(&led).await.unwrap();
    b.engine.lead(&led).await.unwrap();
    b.settle(&led).await;
    let followed = at(cluster.replica(a, b), term + 2);
    assert_eq!(reason(a.engine.follow(&followed).await), Reason::PreconditionFailed);
    let request = cluster.resync(a, b, term + 2, ResyncMode::Auto);
    let resynced = a.engine.resync(&request, &work_in(term + 2)).await.unwrap();
    assert_eq!(resynced.how, ResyncedBy::Rewound);
    assert!(resynced.set_aside_bytes > 0, "{resynced:?}");
    let observed = a.engine.observe(id).await;
    assert_eq!((observed.data_role, observed.needs_resync), (Some(Role::Replica), false));
    a.run(&followed).await;
    a.wait(id, "streaming", |o| o.streaming == Some(true)).await;

    // Its log is all in the other's: it follows, and nothing is set aside.
    let stopped = b.engine.rest(id).await.unwrap();
    assert!(a.engine.seal(id).await.unwrap() >= stopped);
    let led = at(cluster.primary(a), term + 3);
    a.engine.configure(&led).await.unwrap();
    a.engine.lead(&led).await.unwrap();
    a.settle(&led).await;
    let request = cluster.resync(b, a, term + 3, ResyncMode::Auto);
    let resynced = b.engine.resync(&request, &work_in(term + 3)).await.unwrap();
    assert_eq!((resynced.how, resynced.set_aside_bytes), (ResyncedBy::Followed, 0));
    b.run(&at(cluster.replica(b, a), term + 3)).await;
    b.wait(id, "streaming", |o| o.streaming == Some(true)).await;
}

/// Restarted, a replica has another server and receives; a primary is left alone.
async fn a_replica_restarts(a: &Bench, b: &Bench, cluster: &Cluster, primary: &MemberAssignment) {
    let id = cluster.id;
    let before = (a.engine.observe(id).await.started_at, b.engine.observe(id).await.started_at);
    restart::replica(b.engine.as_ref(), &cluster.replica(b, a), &work()).await.unwrap();
    let observed = b.engine.observe(id).await;
    assert_eq!((observed.state, observed.streaming), (EngineState::Running, Some(true)));
    assert!(observed.started_at > before.1, "{before:?}, then {observed:?}");
    assert!(observed.server_build.is_some(), "{observed:?}");
    assert_eq!(observed.server_build, observed.installed_build, "it runs what is installed");
    let offered = b.engine.upgrades(id).await.unwrap();
    assert_eq!(Some(offered.installed_build), observed.installed_build);
    let refused = restart::replica(a.engine.as_ref(), primary, &work()).await;
    assert_eq!(reason(refused), Reason::PreconditionFailed);
    assert_eq!(a.engine.observe(id).await.started_at, before.0);
}

/// Its settings go by another budget, then by the one before, with no other server.
async fn a_replica_is_retuned(a: &Bench, b: &Bench, cluster: &Cluster) {
    let (id, replica) = (cluster.id, cluster.replica(b, a));
    b.settle(&replica).await;
    let before = b.engine.observe(id).await;
    let kept = before.tuning.unwrap().kept;
    let more = Budget { memory_bytes: 2 * kept.memory_bytes, ..kept };
    for budget in [more, kept] {
        let request = RetuneMember { cluster_id: id, budget: Some(budget) };
        assert_eq!(b.engine.retune(&request).await.unwrap(), budget);
        assert_eq!(b.engine.retuning(id).await.unwrap().kept, budget);
        b.settle(&replica).await;
        let observed = b.engine.observe(id).await;
        assert_eq!(observed.tuning.map(|tuning| tuning.kept), Some(budget));
        assert_eq!(observed.started_at, before.started_at);
    }
}

/// The life of a cluster of two members, with each refusal on its way.
pub(super) async fn a_cluster_lives_and_ends(a: &Bench, b: &Bench) {
    let mut cluster = Cluster::new(&[a, b]);
    let id = cluster.id;
    assert_eq!(a.engine.observe(id).await.state, EngineState::Absent);
    assert!(!a.engine.destroy(&cluster.destroy("shop"), &work()).await.unwrap());
    assert_eq!(reason(a.engine.start(&cluster.primary(a)).await), Reason::MemberNotFound);

    // Made once, by one command.
    let command = work();
    let system = a.engine.initialise(&cluster.initialise(a), &command).await.unwrap();
    assert_eq!(a.engine.initialise(&cluster.initialise(a), &command).await.unwrap(), system);
    assert_eq!(reason(a.engine.initialise(&cluster.initialise(a), &work()).await), Reason::WouldDestroyData);
    let observed = a.engine.observe(id).await;
    assert_eq!(
        (observed.state, observed.data_role),
        (EngineState::Stopped, Some(Role::Primary)),
        "{observed:?}"
    );
    assert_eq!(observed.system_identifier.as_deref(), Some(system.as_str()));
    cluster.system = Some(system.clone());

    let observed = a.run(&cluster.primary(a)).await;
    assert_eq!(observed.role, Some(Role::Primary));
    let started_at = observed.started_at;
    a.settle(&cluster.primary(a)).await;

    // Copied, and streaming.
    let clone = CloneMember { member: cluster.replica(b, a), source: a.peer.clone() };
    let command = work();
    let copied = b.engine.copy_from(&clone, &command).await.unwrap();
    assert_eq!(copied.system_identifier, system);
    assert!(copied.bytes > 1024 * 1024, "{copied:?}");
    assert_eq!(b.engine.copy_from(&clone, &command).await.unwrap(), copied);
    assert_eq!(reason(b.engine.copy_from(&clone, &work()).await), Reason::WouldDestroyData);
    assert_eq!(b.engine.observe(id).await.data_role, Some(Role::Replica));
    b.run(&cluster.replica(b, a)).await;
    let followed = b.wait(id, "streaming", |o| o.streaming == Some(true)).await;
    assert_eq!(followed.role, Some(Role::Replica));
    b.settle(&cluster.replica(b, a)).await;
    let position = a.engine.observe(id).await.position.unwrap();
    b.wait(id, "the primary's position", |o| o.replayed.is_some_and(|at| at >= position)).await;

    // Synchronous, as the assignment says.
    let synchronous = Synchronous { count: 1, nodes: vec![b.peer.node_id] };
    let quorum = cluster.member(a, RoleAssignment::Primary { synchronous: synchronous.clone() });
    a.settle(&quorum).await;
    let counts = |o: &Observation| o.followers.iter().any(|f| f.node_id == b.peer.node_id && f.synchronous);
    let observed = a.wait(id, "a synchronous follower", counts).await;
    assert_eq!((observed.synchronous, observed.started_at), (synchronous, started_at));

    // Passwords only on the primary, of users that exist.
    let set = |user: &str| SetPassword { cluster_id: id, user: name(user), password: verifier(VERIFIER) };
    a.engine.set_password(&set("app")).await.unwrap();
    assert_eq!(reason(a.engine.set_password(&set("nobody")).await), Reason::InvalidField);
    assert_eq!(reason(b.engine.set_password(&set("app")).await), Reason::PreconditionFailed);

    // A primary takes the probe's write, though it may wait for replicas that never answer; a replica does not.
    a.engine.probe(id).await.unwrap();
    b.engine.probe(id).await.unwrap_err();

    // A start of a running engine changes nothing.
    a.engine.start(&quorum).await.unwrap();
    assert_eq!(a.engine.observe(id).await.started_at, started_at);

    a_replica_restarts(a, b, &cluster, &quorum).await;
    a_replica_is_retuned(a, b, &cluster).await;

    // Ended at once, it is gone, and comes back with what it had.
    a.engine.halt(id).await.unwrap();
    a.engine.halt(id).await.unwrap();
    assert_eq!(a.engine.observe(id).await.state, EngineState::Stopped);
    a.run(&quorum).await;

    roles_change_hands(a, b, &mut cluster).await;
    replicas_are_aligned(a, b, &cluster, 3).await;

    // Removed only by its name, and then wholly.
    assert_eq!(reason(b.engine.destroy(&cluster.destroy("other"), &work()).await), Reason::NotConfirmed);
    assert_eq!(b.engine.observe(id).await.state, EngineState::Running);
    assert!(b.engine.destroy(&cluster.destroy("shop"), &work()).await.unwrap());
    assert_eq!(b.engine.observe(id).await.state, EngineState::Absent);
    assert!(!b.engine.destroy(&cluster.destroy("shop"), &work()).await.unwrap());
    assert!(b.engine.members().await.unwrap().is_empty());
    a.stop(id).await;
    a.stop(id).await;
    assert_eq!(a.engine.observe(id).await.state, EngineState::Stopped);
    assert!(a.engine.destroy(&cluster.destroy("shop"), &work()).await.unwrap());
}
