//! The coordinator's side of a switchover.

use super::*;

const ATTEMPT: Attempt = Attempt(77);

/// Of a cluster whose primary is node 0, with nothing remembered.
fn regent(list: List) -> Regent {
    let mut reign = Reign::first(node(0), list);
    (reign.term, reign.enforced) = (TERM, true);
    let mut regent = Regent::started(reign, &timings());
    regent.pass(timings().remembered());
    regent
}

/// Stopped at 100, and then a term was intended.
fn intended(list: List) -> Regent {
    let mut regent = regent(list);
    regent.halt(ATTEMPT).unwrap();
    regent.stopped(node(0), TERM, ATTEMPT, tail(TERM.get(), 100));
    regent.intend().unwrap();
    regent
}

fn seal(regent: &mut Regent, from: u128, offset: u64) {
    regent.sealed(node(from), TERM.next(), tail(TERM.get(), offset));
}

fn confirm(regent: &mut Regent, offset: u64) {
    regent.confirmed(node(0), TERM, ATTEMPT, tail(TERM.get(), offset));
}

fn to_primary(regent: &Regent) -> Option<ToMember> {
    regent.orders(&[node(1), node(2)]).into_iter().find_map(|decree| match decree {
        Decree::Send { to, message } if to == node(0) => Some(message),
        Decree::Send { .. } | Decree::Store(_) => None,
    })
}

#[test]
fn a_primary_that_is_being_stopped_is_granted_nothing_and_no_list_changes() {
    let mut regent = regent(list(1, &[1], Need::All));
    let decrees = regent.halt(ATTEMPT).unwrap();
    let stop = ToMember::Stop { term: TERM, attempt: ATTEMPT };
    assert_eq!(decrees, [Decree::Send { to: node(0), message: stop.clone() }]);
    assert_eq!(to_primary(&regent), Some(stop));
    assert!(regent.renew(node(0), number(0), TERM, None, &timings()).is_none());
    assert_eq!(regent.declare([node(2)], Need::All), Err(Obstacle::Stopping(TERM)));
    assert_eq!(regent.halt(Attempt(78)), Err(Obstacle::Stopping(TERM)));
    assert_eq!(regent.intend(), Err(Obstacle::NotStopped));
    let told = ToMember::Promote { term: TERM, list: regent.reign.newest().clone() };
    assert_eq!(regent.resume(), [Decree::Send { to: node(0), message: told }]);
    assert!(regent.renew(node(0), number(1), TERM, None, &timings()).is_some(), "the way back");
    assert_eq!(regent.resume(), [], "it was not stopped");
}

#[test]
fn one_that_nobody_could_replace_is_stopped_only_to_be_started_again() {
    let mut regent = regent(list(1, &[], Need::All));
    assert_eq!(regent.halt(ATTEMPT), Err(Obstacle::NobodyPromotable));
    assert_eq!(regent.stop, None, "it is not stopped for nobody");
    let stop = ToMember::Stop { term: TERM, attempt: ATTEMPT };
    assert_eq!(regent.rest(ATTEMPT).unwrap(), [Decree::Send { to: node(0), message: stop }]);
    regent.stopped(node(0), TERM, ATTEMPT, tail(TERM.get(), 100));
    assert_eq!(regent.intend(), Err(Obstacle::NobodyPromotable));
    assert!(regent.renew(node(0), number(0), TERM, None, &timings()).is_none());
    assert_eq!(regent.resume().len(), 1);
    assert!(regent.renew(node(0), number(1), TERM, None, &timings()).is_some());
    assert_eq!(regent.reign.term, TERM);
}

#[test]
fn only_the_primary_s_word_for_this_attempt_counts() {
    let mut regent = regent(list(1, &[1], Need::All));
    regent.halt(ATTEMPT).unwrap();
    let stopped = tail(TERM.get(), 100);
    for (from, term, attempt) in [(1, TERM, ATTEMPT), (0, TERM.next(), ATTEMPT), (0, TERM, Attempt(76))] {
        regent.stopped(node(from), term, attempt, stopped);
        assert_eq!(regent.stop.unwrap().tail, None, "the word of {from}, term {term}, {attempt:?}");
    }
    regent.stopped(node(0), TERM, ATTEMPT, stopped);
    assert_eq!(regent.stop.unwrap().tail, Some(stopped));
    regent.intend().unwrap();
    regent.stopped(node(0), TERM, ATTEMPT, tail(TERM.get(), 200));
    assert_eq!(regent.stop.unwrap().tail, Some(stopped), "the place is that from before");
}

#[test]
fn nobody_is_chosen_before_the_primary_has_confirmed_after_the_last_seal() {
    let mut regent = intended(list(1, &[1, 2], Need::of(1)));
    confirm(&mut regent, 100);
    seal(&mut regent, 1, 100);
    assert_eq!(regent.choose(&[]), Err(Obstacle::TooFewSeals));
    assert!(matches!(to_primary(&regent), Some(ToMember::Stop { .. })), "it is kept at rest meanwhile");
    confirm(&mut regent, 100);
    seal(&mut regent, 2, 100);
    assert_eq!(regent.choose(&[]), Err(Obstacle::NotConfirmed), "what it said before the last seal");
    assert_eq!(to_primary(&regent), Some(ToMember::Confirm { term: TERM, attempt: ATTEMPT }));
    for (from, term, attempt) in [(1, TERM, ATTEMPT), (0, TERM.next(), ATTEMPT), (0, TERM, Attempt(76))] {
        regent.confirmed(node(from), term, attempt, tail(TERM.get(), 100));
        assert!(regent.choose(&[]).is_err(), "the word of {from}, term {term}, {attempt:?}");
    }
    confirm(&mut regent, 100);
    assert_eq!(regent.choose(&[node(2)]), Ok(node(2)));
    assert_eq!(to_primary(&regent), None);
}

#[test]
fn whoever_lacks_what_the_stopped_primary_wrote_is_not_promoted() {
    let mut regent = intended(list(1, &[1], Need::All));
    seal(&mut regent, 1, 99);
    confirm(&mut regent, 100);
    assert_eq!(regent.choose(&[]), Err(Obstacle::Behind));
    regent.abandon().unwrap();
    assert_eq!((regent.reign.term, regent.stop), (TERM.next().next(), None));
}

/// By promises, while the coordinator's word did not arrive; and the order that is said again has stopped it again.
#[test]
fn what_a_stopped_primary_acknowledged_meanwhile_is_had_by_whoever_is_promoted() {
    let mut regent = intended(list(1, &[1], Need::All));
    seal(&mut regent, 1, 100);
    confirm(&mut regent, 120);
    assert_eq!(regent.choose(&[]), Err(Obstacle::Behind));
    let mut regent = intended(list(1, &[1], Need::All));
    seal(&mut regent, 1, 120);
    confirm(&mut regent, 120);
    assert_eq!(regent.choose(&[]), Ok(node(1)));
}

#[test]
fn a_later_run_of_the_coordinator_takes_no_word_that_it_has_not_asked_for() {
    let reign = intended(list(1, &[1], Need::All)).reign;
    let mut regent = Regent::started(reign, &timings());
    seal(&mut regent, 1, 100);
    confirm(&mut regent, 100);
    regent.stopped(node(0), TERM, ATTEMPT, tail(TERM.get(), 100));
    assert_eq!(regent.choose(&[]), Err(Obstacle::Lease(timings().remembered())));
}

#[test]
fn once_the_new_primary_is_stored_there_is_no_stop_any_more() {
    let mut regent = intended(list(1, &[1], Need::All));
    seal(&mut regent, 1, 100);
    confirm(&mut regent, 100);
    regent.succeed(&[node(1)], [node(0), node(1)], Need::All).unwrap();
    assert_eq!((regent.reign.primary, regent.stop), (node(1), None));
    assert!(regent.renew(node(1), number(0), TERM.next(), None, &timings()).is_some());
}
