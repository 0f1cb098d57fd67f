//! The coordinator's side.

use super::*;

/// Of a cluster whose primary is node 0, with nothing remembered.
fn regent(lists: &[List]) -> Regent {
    let mut reign = Reign::first(node(0), lists[0].clone());
    reign.term = TERM;
    reign.lists = lists.to_vec();
    reign.enforced = true;
    let mut regent = Regent::started(reign, &timings());
    regent.pass(timings().remembered());
    regent
}

fn renew(regent: &mut Regent, from: u128, term: Term) -> bool {
    regent.renew(node(from), number(0), term, None, &timings()).is_some()
}

fn seal(regent: &mut Regent, from: u128, offset: u64) {
    regent.sealed(node(from), TERM.next(), tail(TERM.get(), offset));
}

#[test]
fn only_the_primary_is_granted_and_only_in_its_term() {
    let mut regent = regent(&[list(1, &[1], Need::All)]);
    assert!(!renew(&mut regent, 1, TERM));
    assert!(!renew(&mut regent, 0, Term::new(TERM.get() - 1)));
    assert!(!renew(&mut regent, 0, TERM.next()));
    assert!(regent.lease.is_over());
    assert!(renew(&mut regent, 0, TERM));
    assert_eq!(regent.lease.left(), timings().remembered());
}

#[test]
fn nothing_is_renewed_or_declared_once_a_term_is_intended() {
    let mut regent = regent(&[list(1, &[1], Need::All)]);
    let decrees = regent.intend().unwrap();
    assert!(matches!(&decrees[..], [Decree::Store(reign)] if reign.intended == Some(TERM.next())));
    assert!(!renew(&mut regent, 0, TERM));
    assert_eq!(regent.declare([node(2)], Need::All), Err(Obstacle::UnderWay(TERM.next())));
    assert_eq!(regent.intend(), Err(Obstacle::UnderWay(TERM.next())));
}

#[test]
fn nobody_is_promoted_before_the_lease_has_surely_ended_or_the_primary_gave_its_word() {
    let chosen = |regent: &Regent| regent.choose(&[]);
    let mut after_start = regent(&[list(1, &[1], Need::All)]);
    after_start = Regent::started(after_start.reign, &timings());
    after_start.intend().unwrap();
    seal(&mut after_start, 1, 10);
    assert_eq!(chosen(&after_start), Err(Obstacle::Lease(timings().remembered())));
    after_start.pass(timings().remembered());
    assert_eq!(chosen(&after_start), Ok(node(1)));

    let mut regent = regent(&[list(1, &[1], Need::All)]);
    assert!(renew(&mut regent, 0, TERM));
    regent.intend().unwrap();
    seal(&mut regent, 1, 10);
    let attempt = Attempt(TERM.next().get());
    for (from, term, attempt) in [(1, TERM, attempt), (0, TERM.next(), attempt), (0, TERM, Attempt(1))] {
        regent.fenced(node(from), term, attempt);
        assert!(chosen(&regent).is_err(), "the word of {from}, term {term}, {attempt:?}");
    }
    regent.fenced(node(0), TERM, attempt);
    assert_eq!(chosen(&regent), Ok(node(1)));
}

#[test]
fn the_highest_tail_wins_and_ties_go_by_preference() {
    let mut regent = regent(&[list(1, &[1, 2, 3], Need::All)]);
    regent.intend().unwrap();
    assert_eq!(regent.choose(&[]), Err(Obstacle::TooFewSeals));
    seal(&mut regent, 1, 10);
    seal(&mut regent, 2, 20);
    seal(&mut regent, 3, 20);
    assert_eq!(regent.choose(&[]), Ok(node(2)));
    assert_eq!(regent.choose(&[node(1), node(3), node(2)]), Ok(node(3)));
    // An older reign's log may be longer and still lack what counts.
    regent.sealed(node(3), TERM.next(), tail(TERM.get() - 1, 99));
    assert_eq!(regent.choose(&[node(3)]), Ok(node(2)));
}

#[test]
fn a_quorum_needs_n_minus_w_plus_one_seals_of_every_list_that_may_be_in_force() {
    let quorum = |version, members: &[u128]| list(version, members, Need::of(1));
    let mut pending = regent(&[quorum(1, &[1, 2]), quorum(2, &[1])]);
    pending.intend().unwrap();
    seal(&mut pending, 1, 10);
    assert_eq!(pending.choose(&[]), Err(Obstacle::TooFewSeals));
    seal(&mut pending, 2, 20);
    assert_eq!(pending.choose(&[]), Ok(node(2)), "only that one has what it alone acknowledged");

    // From async to quorum: only members of the first list, and only with everything.
    let mut mixed = regent(&[list(1, &[1], Need::All), quorum(2, &[1, 2])]);
    mixed.intend().unwrap();
    seal(&mut mixed, 1, 10);
    seal(&mut mixed, 2, 20);
    assert_eq!(mixed.choose(&[]), Err(Obstacle::NoCandidate));
}

#[test]
fn a_member_is_taken_off_before_the_primary_hears_of_it_and_put_on_after() {
    let mut regent = regent(&[list(1, &[1, 2], Need::All)]);
    let decrees = regent.declare([node(2), node(3)], Need::All).unwrap();
    let [Decree::Store(stored), Decree::Send { message: ToMember::Promote { list, .. }, .. }] = &decrees[..]
    else {
        panic!("{decrees:?}")
    };
    assert_eq!((stored.newest(), list.version), (list, Version::new(2)));
    assert_eq!(regent.reign.promotable(), [node(2)].into());

    let mut stored = |from, term, version| {
        regent.list_stored(node(from), term, Version::new(version), &timings()).is_some()
    };
    assert!(!stored(1, TERM, 2) && !stored(0, TERM.next(), 2) && !stored(0, TERM, 1));
    assert!(stored(0, TERM, 2));
    assert_eq!(regent.reign.promotable(), [node(2), node(3)].into());
    assert_eq!(regent.lease.left(), timings().remembered(), "as if a lease had just been granted");
    assert!(regent.list_stored(node(0), TERM, Version::new(2), &timings()).is_none(), "told twice");
}

#[test]
fn a_member_that_is_put_back_is_promotable_only_by_the_newest_confirmation() {
    let mut regent = regent(&[list(1, &[1], Need::All)]);
    regent.declare([], Need::All).unwrap();
    regent.declare([node(1)], Need::All).unwrap();
    assert!(regent.reign.promotable().is_empty());
    assert!(regent.list_stored(node(0), TERM, Version::new(2), &timings()).is_none());
    assert!(regent.list_stored(node(0), TERM, Version::new(3), &timings()).is_some());
    assert_eq!(regent.reign.promotable(), [node(1)].into());
}

#[test]
fn a_new_primary_has_no_failover_before_its_quorum_is_enforced() {
    let need = Need::of(1);
    let mut regent = regent(&[list(1, &[1, 2], need)]);
    regent.intend().unwrap();
    seal(&mut regent, 1, 10);
    seal(&mut regent, 2, 10);
    regent.succeed(&[], [node(0), node(1), node(2)], need).unwrap();
    let Reign { term, primary, intended, lists, enforced } = &regent.reign;
    assert_eq!((*term, *primary, *intended, *enforced), (TERM.next(), node(1), None, false));
    assert_eq!(lists, &[list(2, &[0, 2], need)]);
    assert_eq!(regent.intend(), Err(Obstacle::NotEnforced(TERM.next())));
    regent.list_stored(node(1), TERM.next(), Version::new(2), &timings()).unwrap();
    regent.intend().unwrap();
}

#[test]
fn an_abandoned_failover_gives_the_old_primary_a_term_above_every_seal() {
    let mut regent = regent(&[list(1, &[1], Need::All)]);
    assert_eq!(regent.abandon(), Err(Obstacle::NothingIntended));
    assert!(renew(&mut regent, 0, TERM));
    regent.intend().unwrap();
    seal(&mut regent, 1, 10);
    regent.abandon().unwrap();
    let above = TERM.next().next();
    assert_eq!((regent.reign.term, regent.reign.primary), (above, node(0)));
    assert_eq!(regent.lease.left(), timings().remembered(), "it keeps what is left of its lease");
    regent.intend().unwrap();
    assert_eq!(regent.choose(&[]).err(), Some(Obstacle::Lease(timings().remembered())));
    regent.pass(timings().remembered());
    assert_eq!(regent.choose(&[]), Err(Obstacle::TooFewSeals), "those of the attempt before do not count");
}

#[test]
fn a_person_s_word_stands_for_the_seals_that_are_missing_and_never_for_the_lease() {
    let quorum = list(1, &[1, 2], Need::of(1));
    let last_of_three = |sealed| (vec![quorum.clone()], true, sealed);
    let (stranger, unproven) = ((vec![list(1, &[], Need::All)], true, 3), (vec![quorum.clone()], false, 2));
    for (lists, enforced, sealed) in [last_of_three(1), last_of_three(2), stranger, unproven] {
        let mut regent = regent(&lists);
        regent.reign.enforced = enforced;
        assert!(renew(&mut regent, 0, TERM));
        let before = regent.clone();
        let decrees = regent.intend_by_word().unwrap();
        assert!(matches!(&decrees[..], [Decree::Store(reign)] if reign.intended == Some(TERM.next())));
        assert!(!renew(&mut regent, 0, TERM));
        seal(&mut regent, sealed, 10);
        assert_eq!(regent.choose(&[]), Err(Obstacle::Lease(timings().remembered())));
        regent.pass(timings().remembered());
        assert!(regent.goes_by_word());
        assert_eq!(regent.choose(&[]), Ok(node(sealed)));

        // Without it: not begun, or not chosen.
        let mut without = before;
        without.pass(timings().remembered());
        if without.intend().is_ok() {
            seal(&mut without, sealed, 10);
            assert_eq!(without.choose(&[]), Err(Obstacle::TooFewSeals));
            without.vouch().unwrap();
            assert_eq!(without.choose(&[]), Ok(node(sealed)), "of a later run too");
        }
    }
}

#[test]
fn a_person_s_word_chooses_nobody_who_has_less_and_is_forgotten_with_its_failover() {
    let mut regent = regent(&[list(1, &[1], Need::All)]);
    assert_eq!(regent.vouch(), Err(Obstacle::NothingIntended));
    regent.intend_by_word().unwrap();
    assert_eq!(regent.intend_by_word(), Err(Obstacle::UnderWay(TERM.next())));
    assert_eq!(regent.choose(&[]), Err(Obstacle::TooFewSeals), "somebody must be there");
    seal(&mut regent, 2, 20);
    assert!(regent.goes_by_word());
    seal(&mut regent, 1, 10);
    assert!(!regent.goes_by_word(), "the primary cannot go on without that one");
    assert_eq!(regent.choose(&[node(1)]), Ok(node(2)));
    let ends: [fn(&mut Regent); 2] = [
        |regent| drop(regent.abandon().unwrap()),
        |regent| drop(regent.succeed(&[], [], Need::All).unwrap()),
    ];
    for end in ends {
        let mut regent = regent.clone();
        end(&mut regent);
        assert!(!regent.vouched);
    }
}

#[test]
fn what_is_not_answered_is_said_again() {
    let mut regent = regent(&[list(1, &[1, 2], Need::All)]);
    let replicas = [node(1), node(2)];
    let heads = |regent: &Regent| -> Vec<(NodeId, bool)> {
        let sends = regent.orders(&replicas).into_iter().filter_map(|decree| match decree {
            Decree::Send { to, message } => Some((to, matches!(message, ToMember::Seal { .. }))),
            Decree::Store(_) => None,
        });
        sends.collect()
    };
    assert_eq!(heads(&regent), [(node(0), false), (node(1), false), (node(2), false)]);
    regent.intend().unwrap();
    assert_eq!(heads(&regent), [(node(0), false), (node(1), true), (node(2), true)]);
    seal(&mut regent, 2, 10);
    regent.fenced(node(0), TERM, Attempt(TERM.next().get()));
    assert_eq!(heads(&regent), [(node(1), true)]);
}
