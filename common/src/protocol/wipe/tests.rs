//! Each condition by itself: facts in which it alone is broken are refused by it, and by nothing else. A condition that is left
//! out lets its row pass, and so fails here.

use super::*;

type Breaks = Box<dyn Fn(&mut Facts)>;

fn sound() -> Facts {
    let system = Some("73".to_owned());
    Facts {
        term: Term::new(5),
        role: Role::Replica,
        node: NodeId::generate(),
        source: NodeId::generate(),
        record: Some((Term::new(5), Standing::Replica)),
        engine: Process::Gone,
        systems: Systems {
            expected: system.clone(),
            recorded: system.clone(),
            found: system.clone(),
            source: system,
        },
    }
}

fn other(place: &'static str) -> Refusal {
    Refusal::OtherSystem { recorded: "73".to_owned(), place, other: "74".to_owned() }
}

#[test]
fn each_condition_alone_refuses() {
    let four = || Some("74".to_owned());
    let rows: Vec<(Refusal, Breaks)> = vec![
        (Refusal::NoReplica, Box::new(|facts| facts.role = Role::Primary)),
        (Refusal::OwnSource, Box::new(|facts| facts.source = facts.node)),
        (Refusal::NoRecord, Box::new(|facts| facts.record = None)),
        (
            Refusal::IsPrimary(Term::new(5)),
            Box::new(|facts| facts.record = Some((Term::new(5), Standing::Primary))),
        ),
        (
            Refusal::Stale { record: Term::new(6), command: Term::new(5) },
            Box::new(|facts| facts.record = Some((Term::new(6), Standing::Replica))),
        ),
        (Refusal::Sealed, Box::new(|facts| facts.record = Some((Term::new(5), Standing::Sealed)))),
        (Refusal::RunsAsPrimary, Box::new(|facts| facts.engine = Process::Primary)),
        (Refusal::Used, Box::new(|facts| facts.engine = Process::Unknown)),
        (Refusal::NoSource, Box::new(|facts| facts.systems.source = None)),
        (Refusal::NotRecorded, Box::new(|facts| facts.systems.recorded = None)),
        (other("the command"), Box::new(move |facts| facts.systems.expected = four())),
        (other("their own file"), Box::new(move |facts| facts.systems.found = four())),
        (other("the source"), Box::new(move |facts| facts.systems.source = four())),
    ];
    assert_eq!(sound().may_replace(), Ok(()));
    for (refusal, breaks) in rows {
        let mut facts = sound();
        breaks(&mut facts);
        assert_eq!(facts.may_stop(), Err(refusal.clone()), "{facts:?}");
        assert_eq!(facts.may_replace(), Err(refusal), "{facts:?}");
    }
}

#[test]
fn a_primary_is_refused_whatever_the_terms() {
    for (record, command) in [(1, 1), (1, 9), (9, 1)] {
        let record = Term::new(record);
        let facts = Facts { term: Term::new(command), record: Some((record, Standing::Primary)), ..sound() };
        assert_eq!(facts.may_stop(), Err(Refusal::IsPrimary(record)));
    }
}

#[test]
fn a_replica_may_be_stopped_and_only_then_replaced() {
    let runs = Facts { engine: Process::Replica, ..sound() };
    assert_eq!(runs.may_stop(), Ok(()));
    assert_eq!(runs.may_replace(), Err(Refusal::Used));
}

#[test]
fn what_the_node_has_not_heard_of_yet_does_not_stop_it() {
    let older = Facts { record: Some((Term::new(4), Standing::Replica)), ..sound() };
    assert_eq!(older.may_replace(), Ok(()));
    let unread = Systems { expected: None, found: None, ..sound().systems };
    assert_eq!(Facts { systems: unread, ..sound() }.may_replace(), Ok(()));
}

/// Every combination of what may be known: it passes only where all conditions hold.
#[test]
fn no_combination_passes_in_which_one_condition_is_broken() {
    let records = [
        None,
        Some((Term::new(4), Standing::Replica)),
        Some((Term::new(5), Standing::Replica)),
        Some((Term::new(6), Standing::Replica)),
        Some((Term::new(5), Standing::Primary)),
        Some((Term::new(5), Standing::Sealed)),
    ];
    let processes = [Process::Gone, Process::Replica, Process::Primary, Process::Unknown];
    let names = [None, Some("73".to_owned()), Some("74".to_owned())];
    let mut passed = 0;
    for number in 0..6 * 4 * 2 * 2 * 81 {
        let mut left = number;
        let mut choice = |of: usize| {
            let chosen = left % of;
            left /= of;
            chosen
        };
        let (record, engine) = (records[choice(6)], processes[choice(4)]);
        let (role, own) = ([Role::Primary, Role::Replica][choice(2)], choice(2) == 0);
        let [expected, recorded, found, source] = std::array::from_fn(|_| names[choice(3)].clone());
        let node = NodeId::generate();
        let right = role == Role::Replica
            && !own
            && record.is_some_and(|(term, standing)| term <= Term::new(5) && standing == Standing::Replica)
            && engine == Process::Gone
            && recorded.is_some()
            && source == recorded
            && (expected.is_none() || expected == recorded)
            && (found.is_none() || found == recorded);
        let facts = Facts {
            term: Term::new(5),
            role,
            node,
            source: if own { node } else { NodeId::generate() },
            record,
            engine,
            systems: Systems { expected, recorded, found, source },
        };
        assert_eq!(facts.may_replace().is_ok(), right, "{facts:?}");
        passed += u32::from(right);
    }
    assert_eq!(passed, 16);
}
