//! What holds for the effects of every history of one member, however events come.

use proptest::prelude::*;

use super::*;

/// The kernel's part, to check what a member does to it.
#[derive(Debug, Default)]
struct Kernel {
    /// For which number each slot was last armed, and whether it may be granted.
    armed: [Option<RequestNumber>; 2],
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Round,
    /// The answer to the round that was so many ago.
    Granted(usize),
    Promised(usize, u128),
    Other(Event),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let term = (3_u64..9).prop_map(Term::new);
    let attempt = (1_u64..3).prop_map(Attempt);
    let lists = (1_u64..6, prop::collection::vec(1_u128..4, 0..3), 0_u32..3)
        .prop_map(|(version, members, synchronous)| list(version, &members, Need::of(synchronous)));
    let told = prop_oneof![
        (term.clone(), attempt.clone()).prop_map(|(term, attempt)| ToMember::Fence { term, attempt }),
        (term.clone(), attempt.clone()).prop_map(|(term, attempt)| ToMember::Stop { term, attempt }),
        (term.clone(), attempt).prop_map(|(term, attempt)| ToMember::Confirm { term, attempt }),
        term.clone().prop_map(|term| ToMember::Seal { term }),
        (term.clone(), lists).prop_map(|(term, list)| ToMember::Promote { term, list }),
        term.clone().prop_map(|term| ToMember::Follow { term, primary: node(1) }),
    ];
    let step = prop_oneof![
        3 => (0_u64..6000).prop_map(Step::Pass),
        4 => Just(Step::Round),
        4 => (0_usize..4).prop_map(Step::Granted),
        3 => (0_usize..4, 1_u128..4).prop_map(|(ago, from)| Step::Promised(ago, from)),
        3 => told.prop_map(|message| Step::Other(Event::Told(message))),
        1 => term.prop_map(|term| Step::Other(ask(term))),
        2 => any::<bool>().prop_map(|ready| Step::Other(Event::Ready(ready))),
        1 => (1_u64..6).prop_map(|version| Step::Other(Event::Enforced { version: Version::new(version) })),
    ];
    prop::collection::vec(step, 1..60)
}

fn event(step: Step, rounds: &[RequestNumber], term: Term) -> Option<Event> {
    let ago = |ago: usize| rounds.iter().rev().nth(ago).copied();
    Some(match step {
        Step::Pass(_) => return None,
        Step::Round => Event::Round { number: number(rounds.len() as u64) },
        Step::Granted(rounds) => Event::Told(ToMember::Granted { number: ago(rounds)?, term, list: None }),
        Step::Promised(rounds, from) => {
            let message = ToPeer::Promise { number: ago(rounds)?, term };
            Event::Peer { from: node(from), message }
        }
        Step::Other(event) => event,
    })
}

impl Kernel {
    /// Applies a batch, and checks its order.
    fn apply(&mut self, effects: &[Effect], event: Option<&Event>) -> Result<(), TestCaseError> {
        let number = match event {
            Some(Event::Round { number }) => Some(*number),
            _ => None,
        };
        let mut stored = false;
        for (place, effect) in effects.iter().enumerate() {
            match effect {
                Effect::Arm { slot, .. } => {
                    // What a lone primary is limited to bears no number.
                    let number = number.unwrap_or(RequestNumber::new(0, 0));
                    self.armed[slot.index()] = Some(number);
                }
                Effect::Grant { slot } => {
                    prop_assert!(self.armed[slot.index()].is_some(), "granted and not armed")
                }
                Effect::Shut => self.armed = [None; 2],
                Effect::Store(_) => stored = true,
                Effect::Tell(ToCoordinator::Renew { number, .. }) => {
                    prop_assert!(self.armed.contains(&Some(*number)), "sent before it was armed")
                }
                Effect::TellSealed { .. } if place > 0 => prop_assert!(stored, "told before it was stored"),
                _ => {}
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_history_opens_without_an_arming_nor_lowers_a_term_nor_opens_a_replica(steps in steps()) {
        let timings = timings();
        let record = Record::primary(TERM, list(1, &[1], Need::All));
        let mut member = Member::started(record, Gate::default(), &timings);
        let (mut kernel, mut rounds) = (Kernel::default(), Vec::new());
        for step in steps {
            let before = member.record.clone();
            if let Step::Pass(millis) = &step {
                member.pass(Duration::from_millis(*millis));
            }
            let event = event(step, &rounds, before.term);
            let effects = event.clone().map(|event| member.handle(event, &timings)).unwrap_or_default();
            if let Some(Event::Round { number }) = &event {
                rounds.push(*number);
            }
            kernel.apply(&effects, event.as_ref())?;
            kernel.apply(&member.due(&timings), None)?;
            prop_assert!(member.record.term >= before.term);
            prop_assert!(!member.gate.is_open() || member.record.standing == Standing::Primary);
            prop_assert!(!member.gate.is_alone() || member.record.list.is_some());
        }
    }

    /// A coordinator that hears anything in any order never has two words for one term.
    #[test]
    fn no_history_makes_two_primaries_of_one_term(steps in prop::collection::vec((0_u8..8, 0_u128..4, 0_u64..4), 1..60)) {
        let timings = timings();
        let mut regent = Regent::started(Reign::first(node(0), list(1, &[1, 2], Need::All)), &timings);
        let mut primaries = std::collections::BTreeMap::from([(regent.reign.term, node(0))]);
        for (kind, from, value) in steps {
            let Reign { term, intended, .. } = regent.reign;
            let version = regent.reign.newest().version;
            match kind {
                0 => regent.pass(SECOND * u32::try_from(value).unwrap()),
                1 => drop(regent.renew(node(from), number(value), term, None, &timings)),
                2 => drop(regent.declare([node(from)], Need::of(u32::from(value == 0)))),
                3 => drop(regent.list_stored(node(from), term, version, &timings)),
                4 => drop(regent.intend()),
                5 => regent.sealed(node(from), intended.unwrap_or(term), tail(1, value)),
                6 => drop(regent.succeed(&[], [node(0), node(1), node(2)], Need::All)),
                _ => drop(regent.abandon()),
            }
            let Reign { term, primary, .. } = regent.reign;
            prop_assert_eq!(*primaries.entry(term).or_insert(primary), primary);
            prop_assert!(primaries.last_key_value().is_some_and(|(highest, _)| *highest == term));
        }
    }
}
