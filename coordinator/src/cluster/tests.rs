//! Clusters as pure data: what is legal, what nodes are told, how it looks from what they report.

use std::collections::BTreeMap;

use holdfast_common::assignment::{Exposure, RoleAssignment, Synchronous};
use holdfast_common::command::{DatabaseName, Verifier};
use holdfast_common::engine::{Engine, Parameters};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::pki::{Keyring, MasterKey};
use holdfast_common::position::Position;
use holdfast_common::protocol::Profile;
use holdfast_common::report::{EngineState, Follower, MemberReport};
use holdfast_common::role::{Availability, Durability, Role};
use holdfast_common::term::Term;
use jiff::Timestamp;
use uuid::Uuid;

use super::assignment::{member_assignment, members_of};
use super::change::ChangeError;
use super::invariants::{Broken, check};
use super::observed::{Health, MemberState, NodeState, View, view};
use super::{Access, Cluster, Member, MemberPhase, Password, Phase};

/// The engine's identity of a sample's data.
pub(crate) const SYSTEM: &str = "7301234567890123456";

/// Clusters that are alike but for their members.
#[derive(Debug)]
pub(crate) struct Sample {
    template: Cluster,
}

impl Sample {
    pub(crate) fn new() -> Self {
        let keyring = Keyring::new(MasterKey::generate(), Vec::new());
        let name = |text: &str| DatabaseName::try_from(text.to_owned()).unwrap();
        let template = Cluster {
            id: ClusterId::from_uuid(Uuid::from_u128(100)),
            name: "demo".parse().unwrap(),
            engine: Engine::Postgresql,
            engine_version: "15".parse().unwrap(),
            durability: Durability::Quorum,
            port: 5432,
            replication_port: Some(15_432),
            gated_ports: Vec::new(),
            parameters: Parameters::default(),
            extensions: Vec::new(),
            phase: Phase::Creating,
            term: Term::NONE,
            primary: None,
            members: Vec::new(),
            synchronous: Synchronous::default(),
            strengthening: None,
            system_identifier: None,
            access: Access {
                user: name("app"),
                database: name("app"),
                password: Password {
                    verifier: Verifier::try_from("SCRAM-SHA-256$4096:c2FsdA==$a2V5:a2V5".to_owned()).unwrap(),
                    sealed: keyring.seal("test", b"secret").unwrap(),
                },
                shown: false,
                pending: None,
            },
            exposure: Exposure::OnlyFiltered,
            lease_profile: Profile::Default,
            lease_patience: None,
            max_lag_on_failover: crate::cluster::MAX_LAG_ON_FAILOVER,
            on_replica_loss: crate::cluster::OnReplicaLoss::default(),
            paused: None,
            hung: None,
            created_at: Timestamp::UNIX_EPOCH,
        };
        Self { template }
    }

    pub(crate) fn template(&self) -> &Cluster {
        &self.template
    }

    /// About to be created.
    pub(crate) fn draft(&self, members: usize, durability: Durability) -> Cluster {
        Cluster { members: (0..members).map(member).collect(), durability, ..self.template.clone() }
    }

    /// Whole, with the durability enforced.
    pub(crate) fn active(&self, members: usize) -> Cluster {
        self.active_with(members, Durability::Quorum)
    }

    fn active_with(&self, members: usize, durability: Durability) -> Cluster {
        let cluster = self.draft(members, durability).with_first_primary(node(0), SYSTEM.into()).unwrap();
        let cluster =
            (1..members).map(node).fold(cluster, |cluster, node| cluster.with_active(node).unwrap());
        let wanted = cluster.wanted_synchronous();
        cluster.with_strengthening(wanted).unwrap().with_strengthened().unwrap().finished().unwrap()
    }

    /// Whole, and one more about to join.
    pub(crate) fn joining(&self, members: usize) -> Cluster {
        self.active(members).with_joining(member(members)).unwrap()
    }
}

/// The nodes of samples, by number from 0.
pub(crate) fn node(index: usize) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(index as u128 + 1))
}

fn member(index: usize) -> Member {
    Member {
        node_id: node(index),
        node_name: format!("n{}", index + 1).parse().unwrap(),
        address: format!("203.0.113.{}", index + 1).parse().unwrap(),
        phase: MemberPhase::Joining,
    }
}

/// What a node tells of a member that runs and streams.
pub(crate) fn report(cluster: ClusterId) -> MemberReport {
    let known = MemberReport::only(cluster, Engine::Postgresql, EngineState::Running, Term::FIRST);
    MemberReport { streaming: Some(true), ..known }
}

// === what is legal ===

#[test]
fn each_broken_invariant_is_found_by_its_name() {
    let whole = Sample::new().active(3);
    check(&whole).unwrap();
    let broken = |change: fn(&mut Cluster)| {
        let mut cluster = whole.clone();
        change(&mut cluster);
        check(&cluster).unwrap_err()
    };
    assert_eq!(broken(|it| it.members.push(member(1))), Broken::MemberTwice(node(1)));
    assert_eq!(broken(|it| it.term = Term::NONE), Broken::TermWithoutPrimary);
    assert_eq!(broken(|it| it.primary = None), Broken::TermWithoutPrimary);
    assert_eq!(broken(|it| it.primary = Some(node(9))), Broken::PrimaryNotActive(node(9)));
    assert_eq!(broken(|it| it.members[0].phase = MemberPhase::Leaving), Broken::PrimaryNotActive(node(0)));
    assert_eq!(broken(|it| it.system_identifier = None), Broken::NoSystemIdentifier);
    let none = |it: &mut Cluster| (it.primary, it.term) = (None, Term::NONE);
    assert_eq!(broken(none), Broken::ActiveWithoutPrimary);
    assert_eq!(
        broken(|it| it.members[2].phase = MemberPhase::Leaving),
        Broken::SynchronousNotActive(node(2))
    );
    assert_eq!(broken(|it| it.synchronous.nodes.push(node(0))), Broken::SynchronousNotActive(node(0)));
    assert_eq!(broken(|it| it.synchronous.count = 3), Broken::SynchronousCount { count: 3, nodes: 2 });
    assert_eq!(broken(|it| it.synchronous.count = 0), Broken::SynchronousCount { count: 0, nodes: 2 });
    let strong = |it: &mut Cluster| it.strengthening = Some(Synchronous { count: 1, nodes: vec![node(9)] });
    assert_eq!(broken(strong), Broken::SynchronousNotActive(node(9)));
}

#[test]
fn a_primary_is_not_replaced_removed_or_made_twice() {
    let sample = Sample::new();
    let is_primary = |result| matches!(result, Err(ChangeError::IsPrimary { .. }));
    assert!(is_primary(sample.active(2).with_leaving(node(0))));
    assert!(is_primary(sample.active(2).without(node(0))));
    let second = sample.active(2).with_first_primary(node(1), SYSTEM.into());
    assert!(matches!(second, Err(ChangeError::HasPrimary { .. })));
    // The same once more is no change.
    let again = sample.active(2).with_first_primary(node(0), SYSTEM.into()).unwrap();
    assert_eq!(again, sample.active(2));
    let twice = sample.active(2).with_joining(member(1));
    assert!(matches!(twice, Err(ChangeError::MemberExists { .. })));
    assert!(matches!(sample.active(2).with_active(node(5)), Err(ChangeError::NoMember { .. })));
    assert_eq!(sample.active(2).without(node(5)).unwrap(), sample.active(2));
}

#[test]
fn a_replica_leaves_the_synchronous_set_before_its_data_go() {
    let whole = Sample::new().active(3);
    assert!(matches!(whole.clone().with_leaving(node(2)), Err(ChangeError::Invariant(_))));
    let set = whole.synchronous_without(node(2));
    assert_eq!(set, Synchronous { count: 1, nodes: vec![node(1)] });
    let gone = whole.with_relaxed(set).unwrap().with_leaving(node(2)).unwrap().without(node(2)).unwrap();
    assert_eq!(gone.members.len(), 2);
}

#[test]
fn quorum_waits_for_half_of_the_members_rounded_down() {
    let sample = Sample::new();
    for (members, count) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (7, 3)] {
        let set = sample.active(members).synchronous;
        assert_eq!(set.count, count, "{members} members");
        assert_eq!(set.nodes.len(), if count == 0 { 0 } else { members - 1 });
        assert_eq!(sample.active_with(members, Durability::Async).synchronous, Synchronous::default());
    }
}

// === what nodes are told ===

#[test]
fn only_members_with_data_are_assigned_and_each_follows_the_primary() {
    let joining = Sample::new().joining(2);
    let told = |cluster: &Cluster, index| member_assignment(cluster, None, node(index));
    let RoleAssignment::Primary { synchronous } = told(&joining, 0).unwrap().role else {
        panic!("n1 is the primary")
    };
    assert_eq!(synchronous, joining.synchronous);
    let RoleAssignment::Replica { upstream } = told(&joining, 1).unwrap().role else {
        panic!("n2 is a replica")
    };
    assert_eq!(upstream.node_id, node(0));
    assert_eq!(told(&joining, 2), None, "its data are still to be made");
    // The others know it already, and let it copy.
    assert_eq!(told(&joining, 0).unwrap().members.len(), 3);
    assert_eq!(told(&joining.clone().deleting(), 0), None);
    let leaving = joining.with_relaxed(Synchronous::default()).unwrap().with_leaving(node(1)).unwrap();
    assert_eq!(told(&leaving, 1), None);
    assert!(told(&leaving, 0).unwrap().members.iter().all(|peer| peer.node_id != node(1)));
    assert!(members_of([&leaving], |_| None, node(7)).is_empty());
}

#[test]
fn a_stronger_set_is_enforced_before_it_is_recorded() {
    let sample = Sample::new();
    let relaxed = sample.active(3).with_relaxed(Synchronous::default()).unwrap();
    let wanted = relaxed.wanted_synchronous();
    let pending = relaxed.with_strengthening(wanted.clone()).unwrap();
    assert_eq!((pending.enforced_synchronous(), pending.synchronous.count), (&wanted, 0));
    assert_eq!(pending.with_strengthened().unwrap().synchronous, wanted);
}

// === how it looks ===

/// What is different on a node, by its number.
type Change = (usize, fn(&mut NodeState));

/// The cluster where each node but those of `changes` tells that its member does what it should.
fn seen(cluster: &Cluster, changes: &[Change]) -> View {
    let mut states: BTreeMap<NodeId, NodeState> = BTreeMap::new();
    for member in &cluster.members {
        let role = cluster.role(member.node_id);
        let told = MemberReport {
            role: Some(role),
            position: Some(Position { era: 1, offset: 1000 }),
            synchronous: if role == Role::Primary {
                cluster.synchronous.clone()
            } else {
                Synchronous::default()
            },
            ..report(cluster.id)
        };
        let state =
            NodeState { availability: Availability::Online, report: Some((told, Timestamp::UNIX_EPOCH)) };
        states.insert(member.node_id, state);
    }
    for (index, change) in changes {
        change(states.get_mut(&node(*index)).unwrap());
    }
    view(cluster, |node| states.get(&node).cloned())
}

fn told(state: &mut NodeState) -> &mut MemberReport {
    &mut state.report.as_mut().unwrap().0
}

const OFFLINE: fn(&mut NodeState) = |it| it.availability = Availability::Offline;
const NOT_STREAMING: fn(&mut NodeState) = |it| told(it).streaming = Some(false);

#[test]
fn a_replica_that_its_primary_has_let_go_does_not_know_its_lag() {
    let cluster = Sample::new().active(2);
    let up_to_date: Change = (1, |it| told(it).lag_seconds = Some(0.0));
    let followed: Change = (0, |it| {
        told(it).followers =
            vec![Follower { node_id: node(1), flushed_offset: Some(0), synchronous: false, streaming: true }];
    });
    let late: Change = (1, |it| told(it).lag_seconds = Some(7.5));
    let lag = |changes: &[Change]| seen(&cluster, changes).members[1].lag_seconds;
    assert_eq!(lag(&[up_to_date, followed]), Some(0.0));
    assert_eq!(lag(&[up_to_date]), None);
    assert_eq!(lag(&[late]), Some(7.5), "that is how old its data are in any case");
}

#[test]
fn a_clusters_health_is_what_its_clients_would_find() {
    let sample = Sample::new();
    let health = |members, changes: &[Change]| {
        let seen = seen(&sample.active(members), changes);
        (seen.health, seen.message)
    };
    assert_eq!(health(3, &[]), (Health::Healthy, String::new()));
    let (state, message) = health(3, &[(2, OFFLINE)]);
    assert_eq!(state, Health::Degraded);
    assert!(message.contains("n3 (unknown): the node is offline"), "{message}");
    assert_eq!(health(3, &[(1, NOT_STREAMING)]).0, Health::Degraded);

    // In quorum mode, writes wait where too few replicas receive them: that is no service, whatever the primary does.
    let (state, message) = health(3, &[(1, NOT_STREAMING), (2, OFFLINE)]);
    assert_eq!(state, Health::Unavailable);
    assert!(message.starts_with("writes wait: 0 of 1 needed replicas"), "{message}");
    assert_eq!(health(5, &[(1, OFFLINE), (2, OFFLINE), (3, OFFLINE)]).0, Health::Unavailable);
    assert_eq!(health(5, &[(1, OFFLINE), (2, OFFLINE)]).0, Health::Degraded);
    let unsynchronous = sample.active_with(3, Durability::Async);
    assert_eq!(seen(&unsynchronous, &[(1, OFFLINE), (2, OFFLINE)]).health, Health::Degraded);

    assert_eq!(health(3, &[(0, OFFLINE)]).0, Health::Unknown, "a silent primary may well serve");
    assert_eq!(health(3, &[(0, |it| told(it).state = EngineState::Stopped)]).0, Health::Unavailable);
    assert_eq!(health(3, &[(0, |it| told(it).role = Some(Role::Replica))]).0, Health::Unavailable);
    assert_eq!(seen(&sample.draft(2, Durability::Async), &[]).health, Health::Creating);
    assert_eq!(seen(&sample.active(2).deleting(), &[]).health, Health::Deleting);
}

#[test]
fn what_was_not_told_is_unknown_and_never_what_it_should_be() {
    let whole = Sample::new().active(2);
    for silent in [OFFLINE, |it: &mut NodeState| it.report = None] {
        let seen = seen(&whole, &[(0, silent)]);
        let primary = &seen.members[0];
        assert_eq!((primary.state, primary.term, primary.position), (None, None, None));
        assert_eq!(seen.synchronous_count, None);
        assert_eq!(seen.members[1].state, Some(MemberState::Streaming), "the other one is known");
    }
    let behind = seen(&whole, &[(1, |it| told(it).replayed = Some(Position { era: 1, offset: 400 }))]);
    assert_eq!((behind.members[0].lag_bytes, behind.members[1].lag_bytes), (None, Some(600)));
    assert_eq!(behind.members.iter().map(|it| it.synchronous).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_promise_is_ruled_out_only_by_what_was_told_after_it_could_be_given() {
    let before = Timestamp::UNIX_EPOCH;
    let after = Timestamp::from_second(1).unwrap();
    let report =
        MemberReport::only(ClusterId::generate(), Engine::Postgresql, EngineState::Running, Term::FIRST);
    let state = |availability, has_promised, at| NodeState {
        availability,
        report: Some((MemberReport { has_promised, ..report.clone() }, at)),
    };
    let (online, offline) = (Availability::Online, Availability::Offline);
    assert!(state(online, false, before).may_have_promised(Some(before)));
    assert!(!state(online, false, after).may_have_promised(Some(before)));
    assert!(state(online, true, after).may_have_promised(Some(before)));
    // Nobody waits for one that says nothing any more.
    assert!(!state(offline, true, before).may_have_promised(Some(before)));
    assert!(!NodeState { availability: online, report: None }.may_have_promised(None));
}
