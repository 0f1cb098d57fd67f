//! What is accepted, refused, and survives: restarts between any two writes, damage, deletion, old files put back.

use std::io::ErrorKind;

use holdfast_common::access::Access;
use holdfast_common::assignment::{Exposure, MemberAssignment, Peer, Power, RoleAssignment, Synchronous};
use holdfast_common::engine::{Engine, Parameters};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::protocol::Profile;
use holdfast_common::term::Term;

use super::*;
use crate::host::fake::FakeTree;
use crate::host::files::Deed;

const STATE: &str = "/state";

struct Machine {
    tree: FakeTree,
}

struct Agent {
    terms: Arc<Terms>,
    assignments: Assignments,
    findings: Vec<Finding>,
}

impl Machine {
    async fn new() -> Self {
        let machine = Self { tree: FakeTree::new([PathBuf::from(STATE)]) };
        Terms::create(&machine.files(), Path::new(STATE)).await.unwrap();
        machine
    }

    fn files(&self) -> Files {
        Files::new(Arc::new(self.tree.clone()))
    }

    async fn start(&self) -> Agent {
        let (terms, mut findings) = Terms::open(self.files(), Path::new(STATE)).await.unwrap();
        let terms = Arc::new(terms);
        let opened = Assignments::open(self.files(), Path::new(STATE), Arc::clone(&terms)).await;
        let (assignments, found) = opened.unwrap();
        findings.extend(found);
        Agent { terms, assignments, findings }
    }
}

fn assignment(order: (u64, u64), cluster_id: ClusterId, term: u64) -> Assignment {
    let me = Peer {
        node_id: NodeId::generate(),
        name: "n1".parse().unwrap(),
        address: [10, 0, 0, 1].into(),
        port: 5432,
    };
    let member = MemberAssignment {
        cluster_id,
        cluster_name: "orders".parse().unwrap(),
        engine: Engine::Postgresql,
        engine_version: "15".parse().unwrap(),
        term: Term::new(term),
        role: RoleAssignment::Primary { synchronous: Synchronous::default() },
        port: 5432,
        address: me.address,
        parameters: Parameters::default(),
        members: vec![me],
        extensions: vec![],
        system_identifier: None,
        power: Power::Running,
        access: Access::default(),
        exposure: Exposure::default(),
        replication_port: None,
        gated_ports: Vec::new(),
        profile: Profile::Default,
        patience: None,
    };
    Assignment {
        coordinator_generation: Generation::new(order.0),
        generation: Generation::new(order.1),
        members: vec![member],
    }
}

#[tokio::test]
async fn what_was_accepted_is_applied_at_the_next_start() {
    let (machine, cluster) = (Machine::new().await, ClusterId::generate());
    let agent = machine.start().await;
    let mut watched = agent.assignments.subscribe();
    let wanted = assignment((1, 1), cluster, 1);
    assert_eq!(agent.assignments.accept(wanted.clone()).await.unwrap(), Taken::Stored);
    assert_eq!(agent.assignments.accept(wanted.clone()).await.unwrap(), Taken::Known);
    assert_eq!(**watched.borrow_and_update(), wanted);
    let again = machine.start().await;
    assert!(again.findings.is_empty());
    assert_eq!(*again.assignments.newest(), wanted);
}

#[tokio::test]
async fn older_generations_coordinators_and_terms_are_refused() {
    let (machine, cluster) = (Machine::new().await, ClusterId::generate());
    let agent = machine.start().await;
    let newest = assignment((2, 5), cluster, 3);
    agent.assignments.accept(newest.clone()).await.unwrap();
    for agent in [agent, machine.start().await] {
        for (stale, reason) in [
            (assignment((2, 4), cluster, 3), Reason::StaleTerm),
            (assignment((1, 9), cluster, 3), Reason::StaleTerm),
            (assignment((2, 6), cluster, 2), Reason::StaleTerm),
            (assignment((2, 5), cluster, 3), Reason::VersionConflict),
        ] {
            assert_eq!(agent.assignments.accept(stale).await.unwrap_err().reason(), reason);
            assert_eq!(*agent.assignments.newest(), newest);
        }
    }
    // A new coordinator begins to count anew.
    let adopted = assignment((3, 1), cluster, 3);
    let agent = machine.start().await;
    agent.assignments.accept(adopted.clone()).await.unwrap();
    assert_eq!(*machine.start().await.assignments.newest(), adopted);
}

#[tokio::test]
async fn an_end_between_the_writes_leaves_the_old_or_the_new_and_the_bounds_hold() {
    let cluster = ClusterId::generate();
    for path in ["assignment", "accepted", "accepted.second"] {
        let machine = Machine::new().await;
        let agent = machine.start().await;
        let (old, new) = (assignment((1, 1), cluster, 1), assignment((1, 2), cluster, 2));
        agent.assignments.accept(old.clone()).await.unwrap();
        machine.tree.fail_next(Deed::Write, Path::new(STATE).join(path), ErrorKind::StorageFull);
        let error = agent.assignments.accept(new.clone()).await.unwrap_err();
        assert_eq!(error.reason(), Reason::StorageFull);
        assert_eq!(*agent.assignments.newest(), old, "not applied before it is stored");

        let restarted = machine.start().await;
        assert!(restarted.findings.is_empty());
        let found = Assignment::clone(&restarted.assignments.newest());
        assert!(found == old || found == new);
        let accepted = restarted.terms.accepted().await.unwrap();
        assert_eq!(accepted.assignment, found.order());
        assert_eq!(accepted.terms.get(&cluster), found.members.first().map(|member| &member.term));
        restarted.assignments.accept(new.clone()).await.unwrap();
        assert_eq!(*machine.start().await.assignments.newest(), new);
    }
}

#[tokio::test]
async fn any_damage_is_found_and_never_opens_the_way_back() {
    let (machine, cluster) = (Machine::new().await, ClusterId::generate());
    let newest = assignment((2, 5), cluster, 3);
    machine.start().await.assignments.accept(newest.clone()).await.unwrap();
    let names = ["assignment", "accepted", "accepted.second"];
    let good = names.map(|name| machine.tree.contents(Path::new(STATE).join(name)).unwrap());
    for (name, contents) in names.iter().zip(&good) {
        let cuts = (0..contents.len()).map(|end| contents[..end].to_vec());
        let flips = (0..contents.len()).map(|position| {
            let mut bad = contents.clone();
            bad[position] ^= 1 << (position % 8);
            bad
        });
        for bad in cuts.chain(flips) {
            for (name, contents) in names.iter().zip(&good) {
                machine.tree.put(Path::new(STATE).join(name), contents.clone());
            }
            machine.tree.put(Path::new(STATE).join(name), bad);
            let agent = machine.start().await;
            assert_eq!(agent.findings.len(), 1, "{:?}", agent.findings);
            let applied = agent.assignments.newest();
            assert!(*applied == newest || applied.generation == Generation::NONE);
            for stale in [assignment((2, 4), cluster, 3), assignment((2, 6), cluster, 2)] {
                assert_eq!(agent.assignments.accept(stale).await.unwrap_err().reason(), Reason::StaleTerm);
            }
            // Sent once more, it is in force again.
            agent.assignments.accept(newest.clone()).await.unwrap();
            assert_eq!(*agent.assignments.newest(), newest);
        }
    }
}

#[tokio::test]
async fn with_both_records_of_terms_lost_nothing_that_touches_roles_is_accepted() {
    let (machine, cluster) = (Machine::new().await, ClusterId::generate());
    machine.start().await.assignments.accept(assignment((2, 5), cluster, 3)).await.unwrap();
    for name in ["accepted", "accepted.second"] {
        machine.files().remove_file(Path::new(STATE).join(name)).await.unwrap();
    }
    let agent = machine.start().await;
    assert_eq!(agent.findings.len(), 3, "{:?}", agent.findings);
    assert_eq!(agent.assignments.newest().generation, Generation::NONE, "the members are left as they are");
    for offered in [assignment((2, 5), cluster, 3), assignment((9, 9), cluster, 9)] {
        assert_eq!(agent.assignments.accept(offered).await.unwrap_err().reason(), Reason::StateDamaged);
    }
    let generation = Generation::new(9);
    let refused = agent.terms.accept_command(generation, Some(cluster), Term::new(9)).await;
    assert_eq!(refused.unwrap_err().reason(), Reason::StateDamaged);
    agent.terms.accept_command(generation, Some(cluster), Term::NONE).await.unwrap();
}

#[tokio::test]
async fn an_old_assignment_put_back_is_not_applied() {
    let (machine, cluster) = (Machine::new().await, ClusterId::generate());
    let agent = machine.start().await;
    agent.assignments.accept(assignment((1, 1), cluster, 1)).await.unwrap();
    let old = machine.tree.contents("/state/assignment").unwrap();
    agent.assignments.accept(assignment((1, 2), cluster, 2)).await.unwrap();
    machine.tree.put("/state/assignment", old);
    let agent = machine.start().await;
    assert_eq!(agent.findings.len(), 1);
    assert_eq!(agent.assignments.newest().generation, Generation::NONE);
    machine.files().remove_file("/state/assignment").await.unwrap();
    assert_eq!(machine.start().await.findings.len(), 1, "its absence is noticed too");
}

#[tokio::test(start_paused = true)]
async fn what_a_full_disk_did_not_take_is_stored_as_soon_as_it_does() {
    let (machine, cluster) = (Machine::new().await, ClusterId::generate());
    let Agent { assignments, .. } = machine.start().await;
    let (assignments, stop) = (Arc::new(assignments), CancellationToken::new());
    let running = tokio::spawn(Arc::clone(&assignments).run(stop.clone()));
    let (old, new) = (assignment((1, 1), cluster, 1), assignment((1, 2), cluster, 2));
    for _ in 0..4 {
        machine.tree.fail_next(Deed::Write, Path::new(STATE).join(NAME), ErrorKind::StorageFull);
    }
    // The older one, which comes last, is not what is tried.
    for given in [&new, &old] {
        assert!(matches!(assignments.accept(given.clone()).await, Err(Error::Store(_))));
    }
    tokio::time::sleep(2 * AGAIN + AGAIN / 2).await;
    assert_eq!(*assignments.newest(), Assignment::default());
    let mut newest = assignments.subscribe();
    let stored = newest.wait_for(|newest| newest.generation != Generation::NONE);
    let stored = tokio::time::timeout(2 * AGAIN, stored).await.expect("it is tried again").unwrap().clone();
    assert_eq!(*stored, new);
    stop.cancel();
    running.await.unwrap();
    assert_eq!(*machine.start().await.assignments.newest(), new);
}
