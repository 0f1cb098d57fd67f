//! A member on its agent.

use super::*;

fn handle(member: &mut Member, event: Event) -> Vec<Effect> {
    member.handle(event, &timings())
}

fn round(member: &mut Member, place: u64) -> Vec<Effect> {
    handle(member, Event::Round { number: number(place) })
}

fn opened_by(member: &mut Member, event: Event) -> bool {
    handle(member, event).iter().any(|effect| matches!(effect, Effect::Grant { .. }))
}

fn told(message: ToMember) -> Event {
    Event::Told(message)
}

#[test]
fn a_slot_is_armed_before_its_request_is_sent() {
    let mut member = primary(list(1, &[1], Need::All));
    let version = Some(Version::new(1));
    let renew = ToCoordinator::Renew { number: number(0), term: TERM, version };
    let ask = ToPeer::AskPromise { number: number(0), term: TERM };
    let timeout = timings().served();
    assert_eq!(
        round(&mut member, 0),
        [
            Effect::Arm { slot: Slot::A, timeout },
            Effect::Tell(renew),
            Effect::Send { to: node(1), message: ask }
        ]
    );
}

#[test]
fn promises_are_asked_for_only_after_a_silence() {
    let mut member = primary(list(1, &[1], Need::All));
    let asks = |effects: Vec<Effect>| effects.iter().any(|effect| matches!(effect, Effect::Send { .. }));
    assert!(asks(round(&mut member, 0)), "a starting agent does not wait");
    assert!(opened_by(&mut member, grant(0)));
    assert!(!asks(round(&mut member, 1)));
    member.pass(timings().silence);
    assert!(asks(round(&mut member, 2)));

    // A coordinator whose answers are always a little later than the promises is not silent.
    assert!(opened_by(&mut member, promise(1, 2)));
    assert!(!opened_by(&mut member, grant(2)));
    assert!(!asks(round(&mut member, 3)));

    // One whose answers come when the next request is long under way is of no use.
    member.pass(timings().silence);
    assert!(asks(round(&mut member, 4)));
    assert!(opened_by(&mut member, promise(1, 4)));
    assert!(asks(round(&mut member, 5)));
    assert!(opened_by(&mut member, promise(1, 5)));
    assert!(!opened_by(&mut member, grant(4)));
    assert!(asks(round(&mut member, 6)));
}

#[test]
fn in_async_mode_every_promise_is_needed_and_in_quorum_mode_w_of_them() {
    let mut member = primary(list(1, &[1, 2], Need::All));
    round(&mut member, 0);
    assert!(!opened_by(&mut member, promise(1, 0)));
    assert!(!opened_by(&mut member, promise(1, 0)), "one counted twice");
    assert!(!opened_by(&mut member, promise(3, 0)), "a stranger's counted");
    assert!(opened_by(&mut member, promise(2, 0)));

    let mut member = primary(list(1, &[1, 2], Need::of(1)));
    round(&mut member, 0);
    assert!(opened_by(&mut member, promise(2, 0)));
}

#[test]
fn an_unknown_list_is_never_empty() {
    let record = Record { list: None, ..Record::primary(TERM, list(1, &[], Need::All)) };
    let mut member = Member::started(record, Gate::default(), &timings());
    handle(&mut member, Event::Ready(true));
    assert_eq!(member.due(&timings()), []);
    round(&mut member, 0);
    // A late order may carry a list that was replaced long ago.
    let late = ToMember::Promote { term: TERM, list: list(2, &[], Need::All) };
    assert_eq!(handle(&mut member, told(late)), []);
    assert_eq!(member.record.list, None);
    let newest = list(3, &[1], Need::All);
    let answer = ToMember::Granted { number: number(0), term: TERM, list: Some(newest.clone()) };
    assert!(opened_by(&mut member, told(answer)));
    assert_eq!(member.record.list, Some(newest));
}

#[test]
fn a_list_is_stored_before_it_is_confirmed_and_a_lower_version_is_ignored() {
    let mut member = primary(list(2, &[1], Need::All));
    let newer = list(3, &[1, 2], Need::All);
    let effects = handle(&mut member, told(ToMember::Promote { term: TERM, list: newer.clone() }));
    let confirmed = Effect::Tell(ToCoordinator::ListStored { term: TERM, version: Version::new(3) });
    let stored = Effect::Store(Record::primary(TERM, newer.clone()));
    assert_eq!(effects, [stored, Effect::Enforce { list: newer.clone() }, confirmed.clone()]);
    let older = ToMember::Promote { term: TERM, list: list(2, &[], Need::All) };
    assert_eq!(handle(&mut member, told(older)), []);
    let again = ToMember::Promote { term: TERM, list: newer };
    assert_eq!(handle(&mut member, told(again)), [confirmed]);
}

#[test]
fn a_quorum_is_confirmed_only_once_the_engine_enforces_it() {
    let mut member = primary(list(1, &[1], Need::of(1)));
    let newer = ToMember::Promote { term: TERM, list: list(2, &[1, 2], Need::of(1)) };
    let tells =
        |effects: Vec<Effect>| effects.iter().filter(|effect| matches!(effect, Effect::Tell(_))).count();
    assert_eq!(tells(handle(&mut member, told(newer))), 0);
    assert_eq!(tells(handle(&mut member, Event::Enforced { version: Version::new(1) })), 0);
    assert_eq!(tells(handle(&mut member, Event::Enforced { version: Version::new(2) })), 1);
}

#[test]
fn a_lone_primary_is_open_without_a_timeout_until_it_has_a_member() {
    let mut member = primary(list(1, &[], Need::All));
    assert_eq!(member.due(&timings()), [Effect::OpenAlone]);
    assert_eq!(round(&mut member, 0), []);
    let effects = handle(&mut member, told(ToMember::Promote { term: TERM, list: list(2, &[1], Need::All) }));
    let slot = Slot::A;
    assert_eq!(
        effects[..3],
        [Effect::Arm { slot, timeout: timings().served() }, Effect::Grant { slot }, Effect::CloseAlone]
    );
    assert!(
        matches!(&effects[3..], [Effect::Store(_), Effect::Enforce { .. }, Effect::Tell(_)]),
        "{effects:?}"
    );
    member.pass(timings().served());
    assert!(!member.gate.is_open());
}

#[test]
fn a_lone_primary_that_is_fenced_waits_for_a_grant() {
    let mut member = primary(list(1, &[], Need::All));
    member.due(&timings());
    handle(&mut member, told(ToMember::Fence { term: TERM, attempt: Attempt(6) }));
    // Not by itself, not with the promises of nobody, not after a restart either.
    member = Member::started(member.record, Gate::default(), &timings());
    handle(&mut member, Event::Ready(true));
    assert_eq!(member.due(&timings()), []);
    round(&mut member, 0);
    assert_eq!(handle(&mut member, grant(0)), [Effect::StartEngine]);
    assert!(matches!(&handle(&mut member, Event::Ready(true))[..], [Effect::Grant { .. }, Effect::Store(_)]));
    assert_eq!(member.due(&timings()), [Effect::OpenAlone]);
}

#[test]
fn at_the_deadline_the_engine_is_stopped_and_asks_on() {
    let mut member = primary(list(1, &[1], Need::All));
    round(&mut member, 0);
    assert!(opened_by(&mut member, grant(0)));
    assert_eq!(member.due_in(), Some(timings().served()));
    member.pass(timings().served());
    let effects = member.due(&timings());
    assert!(
        matches!(&effects[..], [Effect::Shut, Effect::StopEngine, Effect::Store(record)] if record.fenced)
    );
    assert_eq!((member.due(&timings()), member.due_in()), (vec![], None), "stopped once");
    round(&mut member, 1);
    assert_eq!(handle(&mut member, grant(1)), [Effect::StartEngine]);
    let effects = handle(&mut member, Event::Ready(true));
    assert!(matches!(&effects[..], [Effect::Grant { .. }, Effect::Store(record)] if !record.fenced));
}

#[test]
fn an_engine_that_ends_may_be_started_again_while_the_lease_goes_on() {
    let mut member = primary(list(1, &[1], Need::All));
    round(&mut member, 0);
    assert!(opened_by(&mut member, grant(0)));
    member.pass(SECOND);
    assert_eq!(handle(&mut member, Event::Ready(false)), [Effect::Shut]);
    assert_eq!(member.due(&timings()), [], "its lease goes on");
    // Ready before the next answer: what was open stays shut.
    assert_eq!(handle(&mut member, Event::Ready(true)), []);
    handle(&mut member, Event::Ready(false));
    round(&mut member, 1);
    assert_eq!(handle(&mut member, grant(1)), []);
    assert!(matches!(&handle(&mut member, Event::Ready(true))[..], [Effect::Grant { .. }]));

    // One that stays down ends with its lease.
    handle(&mut member, Event::Ready(false));
    member.pass(timings().served());
    let effects = member.due(&timings());
    assert!(matches!(&effects[..], [Effect::Shut, Effect::StopEngine, Effect::Store(_)]), "{effects:?}");
}

#[test]
fn a_starting_agent_asks_for_a_while_before_it_stops_the_engine() {
    let record = Record::primary(TERM, list(1, &[1], Need::All));
    let mut member = Member::started(record, Gate::default(), &timings());
    member.pass(SECOND);
    assert_eq!(member.due(&timings()), []);
    member.pass(timing::STARTING_ASKS_FOR);
    assert!(member.due(&timings()).contains(&Effect::StopEngine));
}

#[test]
fn fence_stop_and_confirm_shut_first_forget_every_request_and_only_then_answer() {
    let attempt = Attempt(6);
    let orders = [
        ToMember::Fence { term: TERM, attempt },
        ToMember::Stop { term: TERM, attempt },
        ToMember::Confirm { term: TERM, attempt },
    ];
    for order in orders {
        let mut member = primary(list(1, &[1], Need::All));
        round(&mut member, 0);
        let effects = handle(&mut member, told(order.clone()));
        assert_eq!(effects.first(), Some(&Effect::Shut), "{order:?}");
        let answers = |effect: &Effect| {
            matches!(effect, Effect::Tell(_) | Effect::TellStopped { .. } | Effect::TellConfirmed { .. })
        };
        assert!(effects.iter().rev().skip(1).all(|effect| !answers(effect)), "{order:?}: {effects:?}");
        assert_eq!(handle(&mut member, grant(0)), [], "{order:?}");
        assert_eq!(handle(&mut member, promise(1, 0)), [], "{order:?}");
    }
}

#[test]
fn only_an_engine_that_has_stayed_stopped_for_the_attempt_is_confirmed() {
    let (first, second) = (Attempt(1), Attempt(2));
    let mut member = primary(list(1, &[1], Need::All));
    let confirms = |member: &mut Member, attempt| {
        let effects = handle(member, told(ToMember::Confirm { term: TERM, attempt }));
        effects.contains(&Effect::TellConfirmed { term: TERM, attempt })
    };
    assert!(!confirms(&mut member, first));
    handle(&mut member, told(ToMember::Stop { term: TERM, attempt: first }));
    assert!(confirms(&mut member, first));
    assert!(!confirms(&mut member, second));
    assert_eq!(round(&mut member, 0), [], "it is kept at rest");
    member.pass(timings().silence);
    assert!(member.is_stopped_for(TERM, first));
    round(&mut member, 1);
    handle(&mut member, grant(1));
    assert!(!member.is_stopped_for(TERM, first));
    assert!(!confirms(&mut member, first), "it was reopened since");
}

#[test]
fn a_lone_primary_that_was_stopped_starts_once_nobody_tells_it_to_rest() {
    let stop = || told(ToMember::Stop { term: TERM, attempt: Attempt(1) });
    let mut member = primary(list(1, &[], Need::All));
    assert_eq!(member.due(&timings()), [Effect::OpenAlone]);
    for _ in 0..3 {
        assert_eq!(handle(&mut member, stop()).first(), Some(&Effect::Shut));
        member.pass(timings().silence / 2);
        assert_eq!(member.due(&timings()), [], "it is told again and again");
    }
    assert!(member.is_stopped_for(TERM, Attempt(1)));
    assert_eq!(member.due_in(), Some(timings().silence / 2));
    member.pass(timings().silence / 2);
    assert_eq!(member.due(&timings()), [Effect::StartEngine]);
    assert!(!member.is_stopped_for(TERM, Attempt(1)));
    assert_eq!((member.due(&timings()), member.due_in()), (vec![], None));
    handle(&mut member, Event::Ready(true));
    assert_eq!(member.due(&timings()), [Effect::OpenAlone]);

    // One whose place others could take needs somebody's word.
    for (members, need) in [(vec![1], Need::All), (vec![], Need::of(1))] {
        let mut member = primary(list(1, &members, need));
        handle(&mut member, stop());
        member.pass(timings().silence * 10);
        assert_eq!(member.due(&timings()), [], "{members:?} {need:?}");
    }
}

#[test]
fn one_that_is_told_to_lead_on_rests_no_longer() {
    let stop = || told(ToMember::Stop { term: TERM, attempt: Attempt(1) });
    let lead = |list| told(ToMember::Promote { term: TERM, list });
    let alone = list(1, &[], Need::All);
    let mut member = primary(alone.clone());
    handle(&mut member, stop());
    assert_eq!(member.due(&timings()), []);
    handle(&mut member, lead(alone));
    assert_eq!(member.due(&timings()), [Effect::StartEngine]);

    let other = list(1, &[1], Need::All);
    let mut member = primary(other.clone());
    handle(&mut member, stop());
    assert!(member.is_at_rest() && round(&mut member, 0).is_empty());
    handle(&mut member, lead(other));
    assert!(!member.is_at_rest());
    assert!(!round(&mut member, 1).is_empty());
    assert_eq!(handle(&mut member, grant(1)), [Effect::StartEngine], "not without a lease");
}

#[test]
fn a_member_that_is_primary_sealed_or_of_a_higher_term_promises_nothing() {
    let lower = Term::new(TERM.get() - 1);
    assert_eq!(handle(&mut primary(list(1, &[], Need::All)), ask(TERM)), []);
    assert_eq!(handle(&mut replica(), ask(lower)), []);
    let mut sealed = replica();
    handle(&mut sealed, told(ToMember::Seal { term: TERM.next() }));
    assert_eq!(handle(&mut sealed, ask(TERM.next())), []);
    assert_eq!(handle(&mut replica(), ask(TERM)).len(), 1);
    assert_eq!(handle(&mut replica(), ask(TERM.next())).len(), 1);
}

#[test]
fn a_promise_is_waited_out_before_seal_and_promotion_and_nothing_is_promised_meanwhile() {
    let term = TERM.next();
    let orders = [ToMember::Seal { term }, ToMember::Promote { term, list: list(2, &[], Need::All) }];
    for order in orders {
        let mut member = replica();
        handle(&mut member, ask(TERM));
        member.pass(SECOND);
        assert_eq!(handle(&mut member, told(order.clone())), [], "{order:?}");
        assert_eq!(handle(&mut member, ask(TERM)), [], "{order:?}");
        assert_eq!(member.due_in(), Some(timings().promised() - SECOND));
        member.pass(timings().promised() - SECOND);
        assert!(!member.due(&timings()).is_empty(), "{order:?}");
        assert_eq!(member.record.term, term);
    }
}

#[test]
fn an_agent_that_starts_counts_as_having_promised_unless_it_is_a_primary_s() {
    for record in [Record::replica(TERM), Record { standing: Standing::Sealed, ..Record::replica(TERM) }] {
        let member = Member::started(record, Gate::default(), &timings());
        assert_eq!(member.promise.left(), timings().promised());
    }
    let record = Record::primary(TERM, list(1, &[1], Need::All));
    assert!(Member::started(record, Gate::default(), &timings()).promise.is_over());
}

#[test]
fn a_seal_is_stored_then_cuts_then_is_told_and_only_following_lifts_it() {
    let term = TERM.next();
    let mut member = replica();
    let effects = handle(&mut member, told(ToMember::Seal { term }));
    assert!(
        matches!(&effects[..], [Effect::Store(record), Effect::CutReceiver, Effect::TellSealed { .. }]
            if record.standing == Standing::Sealed && record.term == term),
        "{effects:?}"
    );
    assert_eq!(handle(&mut member, told(ToMember::Seal { term })), [Effect::TellSealed { term }]);
    let follow = |term| told(ToMember::Follow { term, primary: node(1) });
    assert_eq!(handle(&mut member, follow(TERM)), []);
    assert_eq!(member.record.standing, Standing::Sealed);
    handle(&mut member, follow(term));
    assert_eq!(member.record, Record::replica(term));
    assert_eq!(handle(&mut member, told(ToMember::Seal { term })), [], "of the term that it follows");
}

#[test]
fn a_primary_keeps_what_is_left_of_its_lease_in_a_new_term_and_nothing_in_hand() {
    let mut member = primary(list(1, &[1], Need::All));
    round(&mut member, 0);
    assert!(opened_by(&mut member, grant(0)));
    round(&mut member, 1);
    let term = Term::new(TERM.get() + 2);
    handle(&mut member, told(ToMember::Promote { term, list: list(2, &[1], Need::All) }));
    assert!(member.gate.is_open());
    assert!(!opened_by(&mut member, grant(1)));
    let answer = ToMember::Granted { number: number(1), term, list: None };
    assert!(!opened_by(&mut member, told(answer)));
}

#[test]
fn what_is_of_another_term_is_dropped() {
    let lower = Term::new(TERM.get() - 1);
    let attempt = Attempt(1);
    let none = || list(9, &[], Need::All);
    let orders = [
        ToMember::Granted { number: number(0), term: lower, list: None },
        ToMember::Granted { number: number(0), term: TERM.next(), list: None },
        ToMember::Fence { term: lower, attempt },
        ToMember::Fence { term: TERM.next(), attempt },
        ToMember::Stop { term: TERM.next(), attempt },
        ToMember::Confirm { term: TERM.next(), attempt },
        ToMember::Seal { term: lower },
        ToMember::Seal { term: TERM },
        ToMember::Promote { term: lower, list: none() },
        ToMember::Follow { term: lower, primary: node(1) },
        ToMember::Follow { term: TERM, primary: node(1) },
    ];
    for order in orders {
        let mut member = primary(list(1, &[1], Need::All));
        round(&mut member, 0);
        let before = member.clone();
        assert_eq!(handle(&mut member, told(order.clone())), [], "{order:?}");
        assert_eq!(member, before, "{order:?}");
    }
    let mut member = replica();
    let before = member.clone();
    assert_eq!(handle(&mut member, told(ToMember::Promote { term: TERM, list: none() })), []);
    assert_eq!(member, before);
}
