use holdfast_common::engine::Engine;
use holdfast_common::position::Position;
use holdfast_common::protocol::{Gate, Need, Profile, RequestNumber, Slot, Version};
use holdfast_common::report::EngineState;
use nix::errno::Errno;

use super::*;
use crate::host::netlink::Error;

const PORT: u16 = 5432;
const TERM: Term = Term::FIRST;

/// What was done, in order; a disk that answers when the test says so, and a kernel that can be refused.
#[derive(Default)]
struct Recorder {
    done: Vec<Done>,
    stored: Vec<Record>,
    kernel: Kernel,
    refuses: bool,
    goes_on: u32,
}

/// What the kernel has of the gate; no time passes in it.
#[derive(Default)]
struct Kernel {
    armed: [Duration; 2],
    granted: [bool; 2],
    alone: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Done {
    Gate(Deed),
    Store(Record),
    Halt,
    Rest(Term, Attempt, Asked),
    Seal(Term),
    Tell(ToCoordinator),
    Send(NodeId, ToPeer),
    Event(String),
}

impl Kernel {
    fn change(&mut self, deed: Deed) {
        match deed {
            Deed::Arm(slot, lasts) => {
                (self.armed[at(slot)], self.granted[at(slot)]) = (lasts, false);
            }
            Deed::Grant(slot) => self.granted[at(slot)] = true,
            Deed::Limit(slot, lasts) => {
                (self.armed[at(slot)], self.granted[at(slot)], self.alone) = (lasts, true, false);
            }
            Deed::OpenForEver => self.alone = true,
            Deed::OpenToReaders(_) => {}
            Deed::Shut => *self = Self::default(),
        }
    }
}

fn at(slot: Slot) -> usize {
    usize::from(slot == Slot::B)
}

impl Hands for Recorder {
    fn gate(&mut self, _: &[u16], deed: Deed) -> Result<(), Error> {
        if self.refuses {
            // As where there is no table, which comes back shut.
            self.kernel = Kernel::default();
            return Err(Error::Refused { deed: "a test", source: Errno::EBUSY });
        }
        self.done.push(Done::Gate(deed));
        self.kernel.change(deed);
        Ok(())
    }

    fn observe(&mut self, _: &[u16]) -> Result<Gate, Error> {
        if self.refuses {
            return Err(Error::Refused { deed: "a test", source: Errno::EBUSY });
        }
        let Kernel { armed, granted, alone } = &self.kernel;
        let open = [0, 1].map(|at| if granted[at] { armed[at] } else { Duration::ZERO });
        Ok(Gate::found(open, *alone))
    }

    fn store(&mut self, _: ClusterId, record: Record) {
        self.stored.push(record.clone());
        self.done.push(Done::Store(record));
    }

    fn halt(&mut self, _: ClusterId) {
        self.done.push(Done::Halt);
    }

    fn rest(&mut self, _: ClusterId, term: Term, attempt: Attempt, asked: Asked) {
        self.done.push(Done::Rest(term, attempt, asked));
    }

    fn go_on(&mut self, _: ClusterId) {
        self.goes_on += 1;
    }

    fn seal(&mut self, _: ClusterId, term: Term) {
        self.done.push(Done::Seal(term));
    }

    fn tell(&mut self, _: ClusterId, message: ToCoordinator) {
        self.done.push(Done::Tell(message));
    }

    fn send(&mut self, _: ClusterId, to: NodeId, message: ToPeer) {
        self.done.push(Done::Send(to, message));
    }

    fn event(&mut self, _: ClusterId, _: Severity, reason: &str, _: &str) {
        self.done.push(Done::Event(reason.to_owned()));
    }
}

/// One member, its hands, and the numbers of its requests.
struct Bench {
    keeper: Keeper,
    hands: Recorder,
    numbers: Numbers,
}

fn timings() -> Timings {
    Profile::Default.timings()
}

impl Bench {
    fn fresh() -> Self {
        let mut hands = Recorder::default();
        let keeper = Keeper::fresh(ClusterId::generate(), vec![PORT], timings(), &mut hands);
        Self { keeper, hands, numbers: Numbers::of_run(1) }
    }

    /// A primary with this list that serves by the coordinator's word.
    fn serving(list: List) -> Self {
        let mut hands = Recorder::default();
        let lone = list.is_lone();
        let record = Record::primary(TERM, list);
        let keeper = Keeper::started(ClusterId::generate(), vec![PORT], timings(), record, &mut hands);
        let mut bench = Self { keeper, hands, numbers: Numbers::of_run(1) };
        bench.happen(Event::Ready(true));
        if !lone {
            bench.renew();
        }
        bench.hands.done.clear();
        bench
    }

    fn happen(&mut self, event: Event) {
        self.keeper.happen(event, &mut self.hands);
    }

    fn pass(&mut self, time: Duration) {
        self.keeper.pass(time);
        self.keeper.due(&mut self.numbers, false, &mut self.hands);
    }

    /// The disk has done what it was told.
    fn disk(&mut self) {
        for record in std::mem::take(&mut self.hands.stored) {
            self.keeper.stored(record, &mut self.hands);
        }
    }

    fn last_asked(&self) -> Option<RequestNumber> {
        self.hands.done.iter().rev().find_map(|done| match done {
            Done::Tell(ToCoordinator::Renew { number, .. }) => Some(*number),
            _ => None,
        })
    }

    /// A round, granted by the coordinator.
    fn renew(&mut self) {
        self.pass(timings().renewal);
        let number = self.last_asked().expect("a renewal");
        self.happen(Event::Told(ToMember::Granted { number, term: TERM, list: None }));
    }

    fn told(&self, version: Version) -> bool {
        self.hands.done.contains(&Done::Tell(ToCoordinator::ListStored { term: TERM, version }))
    }
}

fn list(version: u64, members: &[NodeId]) -> List {
    List::new(Version::new(version), members.iter().copied(), Need::All)
}

fn ask(from: NodeId) -> Event {
    let message = ToPeer::AskPromise { number: RequestNumber::new(7, 1), term: TERM };
    Event::Peer { from, message }
}

#[test]
fn a_member_that_was_never_here_promises_nothing_before_its_record_is_on_the_disk() {
    let (mut bench, asker) = (Bench::fresh(), NodeId::generate());
    bench.happen(ask(asker));
    assert_eq!(bench.hands.done, [Done::Store(Record::replica(Term::NONE))]);
    bench.disk();
    bench.happen(ask(asker));
    assert!(matches!(bench.hands.done.last(), Some(Done::Send(to, ToPeer::Promise { .. })) if *to == asker));
}

#[test]
fn renewals_do_not_wait_for_the_disk_and_what_follows_a_record_does() {
    let mut bench = Bench::fresh();
    bench.disk();
    let first = list(1, &[NodeId::generate()]);
    bench.happen(Event::Told(ToMember::Promote { term: TERM, list: first.clone() }));
    // The disk hangs.
    assert!(!bench.told(first.version));
    assert_eq!(bench.keeper.held().serve, Serve::MustNot, "the engine starts after the record");
    bench.pass(timings().renewal);
    assert!(bench.last_asked().is_some(), "{:?}", bench.hands.done);
    bench.disk();
    assert!(bench.told(first.version));
    assert_eq!(bench.keeper.held().serve, Serve::May);
}

#[test]
fn a_new_primary_asks_for_its_lease_at_once() {
    let mut bench = Bench::fresh();
    bench.disk();
    bench.pass(Duration::ZERO);
    bench.happen(Event::Told(ToMember::Promote { term: TERM, list: list(1, &[NodeId::generate()]) }));
    bench.disk();
    assert!(bench.last_asked().is_none() && bench.keeper.due_in().is_zero());
    bench.pass(Duration::ZERO);
    assert!(bench.last_asked().is_some(), "{:?}", bench.hands.done);
}

#[test]
fn a_renewal_is_armed_before_it_is_sent_and_not_sent_if_that_fails() {
    let mut bench = Bench::serving(list(1, &[NodeId::generate()]));
    bench.pass(timings().renewal);
    let armed = bench.hands.done.iter().position(|done| matches!(done, Done::Gate(Deed::Arm(..))));
    let sent =
        bench.hands.done.iter().position(|done| matches!(done, Done::Tell(ToCoordinator::Renew { .. })));
    assert!(armed.is_some() && armed < sent, "{:?}", bench.hands.done);
    bench.hands.done.clear();
    bench.hands.refuses = true;
    bench.pass(timings().renewal);
    assert_eq!(bench.hands.done, []);
}

#[test]
fn a_kernel_that_cannot_be_told_is_no_reason_to_serve_on() {
    let mut bench = Bench::serving(list(1, &[NodeId::generate()]));
    bench.hands.refuses = true;
    bench.pass(timings().renewal);
    assert_eq!(bench.keeper.held().serve, Serve::May, "it may be told in a moment");
    for _ in 0..5 {
        bench.pass(timings().renewal);
    }
    assert!(bench.hands.done.contains(&Done::Halt));
    assert_eq!(bench.keeper.held().serve, Serve::MustNot);
    // It can be told again: the lease is over, which is written down; then it serves with the next one.
    bench.hands.refuses = false;
    bench.pass(timings().renewal);
    bench.disk();
    assert!(bench.keeper.held().report.is_some_and(|report| report.fenced), "{:?}", bench.hands.done);
    bench.renew();
    assert_eq!(bench.keeper.held().serve, Serve::May);
    bench.happen(Event::Ready(true));
    assert!(bench.keeper.held().report.is_some_and(|report| report.open && !report.fenced));
}

#[test]
fn a_gate_that_somebody_else_has_shut_is_told_and_opens_with_the_next_renewal() {
    let drift = Done::Event("FIREWALL_DRIFT".to_owned());
    for members in [vec![], vec![NodeId::generate()]] {
        let mut bench = Bench::serving(list(1, &members));
        let round = |bench: &mut Bench| {
            bench.hands.done.clear();
            bench.pass(timings().renewal);
            if let Some(number) = bench.last_asked() {
                bench.happen(Event::Told(ToMember::Granted { number, term: TERM, list: None }));
            }
            bench.hands.done.contains(&drift)
        };
        assert!(!round(&mut bench), "nobody has");
        bench.hands.kernel = Kernel::default();
        assert_eq!([round(&mut bench), round(&mut bench)], [true, false]);
    }
}

/// Somebody may promote a replica by hand, or start a former primary.
#[test]
fn readers_are_let_in_to_an_engine_in_recovery_and_to_no_other() {
    let mut hands = Recorder::default();
    let (id, record) = (ClusterId::generate(), Record::replica(TERM));
    let keeper = Keeper::started(id, vec![PORT], timings(), record, &mut hands);
    let mut bench = Bench { keeper, hands, numbers: Numbers::of_run(1) };
    let mut round = |role: Option<Role>| {
        let seen = MemberReport::only(id, Engine::Postgresql, EngineState::Running, TERM);
        bench.hands.done.clear();
        bench.keeper.see(&MemberReport { role, ..seen }, &mut bench.hands);
        bench.keeper.pass(timings().renewal);
        bench.keeper.due(&mut bench.numbers, true, &mut bench.hands);
        bench.hands.done.iter().filter(|done| matches!(done, Done::Gate(_))).cloned().collect::<Vec<_>>()
    };
    let open = Done::Gate(Deed::OpenToReaders(timings().lease));
    assert_eq!(round(None), []);
    assert_eq!(round(Some(Role::Replica)), std::slice::from_ref(&open));
    assert_eq!(round(Some(Role::Replica)), std::slice::from_ref(&open));
    assert_eq!(round(Some(Role::Primary)), [Done::Gate(Deed::Shut)]);
    assert_eq!(round(Some(Role::Primary)), []);
    assert_eq!(round(Some(Role::Replica)), [open]);
    assert_eq!(round(None), [Done::Gate(Deed::Shut)]);
}

/// As where somebody else removes the table, and the firewall loads it anew, shut.
#[test]
fn a_kernel_that_could_not_be_told_for_a_moment_costs_no_lease() {
    let mut bench = Bench::serving(list(1, &[NodeId::generate()]));
    bench.hands.refuses = true;
    bench.pass(timings().renewal);
    bench.pass(timings().renewal / 2);
    bench.hands.refuses = false;
    bench.pass(Duration::from_millis(100));
    let number = bench.last_asked().expect("it is asked for at once");
    bench.happen(Event::Told(ToMember::Granted { number, term: TERM, list: None }));
    bench.happen(Event::Ready(true));
    assert!(bench.keeper.held().report.is_some_and(|report| report.open && !report.fenced));
    assert_eq!(bench.keeper.held().serve, Serve::May);
    let lost = |done: &&Done| matches!(done, Done::Halt | Done::Store(_) | Done::Event(_));
    assert_eq!(bench.hands.done.iter().find(lost), None);
}

#[test]
fn a_kernel_that_cannot_be_told_makes_no_lease_longer() {
    let moment = Duration::from_millis(1);
    for is_told_again in [false, true] {
        let mut bench = Bench::serving(list(1, &[NodeId::generate()]));
        bench.hands.refuses = true;
        bench.pass(timings().renewal);
        bench.pass(timings().served() - timings().renewal - Duration::from_millis(500));
        bench.hands.refuses = !is_told_again;
        // Nobody answers.
        bench.pass(Duration::from_millis(500) - moment);
        assert!(!bench.hands.done.contains(&Done::Halt), "{is_told_again}: {:?}", bench.hands.done);
        bench.pass(moment);
        assert!(bench.hands.done.contains(&Done::Halt), "{is_told_again}: {:?}", bench.hands.done);
        assert_eq!(bench.keeper.held().serve, Serve::MustNot);
    }
}

/// The thread goes before all others: where nothing can be done it must sleep.
#[test]
fn a_member_that_nothing_can_be_done_for_is_waited_for_and_not_spun_on() {
    let fresh = Bench::fresh();
    assert!(!fresh.keeper.due_in().is_zero());
    let mut bench = Bench::serving(list(1, &[NodeId::generate()]));
    bench.hands.refuses = true;
    for _ in 0..20 {
        bench.pass(timings().renewal);
        assert!(!bench.keeper.due_in().is_zero());
    }
}

#[test]
fn a_lease_that_is_over_shuts_stops_and_writes_it_down_in_this_order() {
    let mut bench = Bench::serving(list(1, &[NodeId::generate()]));
    bench.pass(timings().served());
    let order: Vec<usize> = [Done::Gate(Deed::Shut), Done::Halt]
        .into_iter()
        .map(|deed| bench.hands.done.iter().position(|done| *done == deed).expect("it was done"))
        .collect();
    let halts = bench.hands.done.iter().filter(|done| **done == Done::Halt).count();
    assert_eq!(halts, 1, "{:?}", bench.hands.done);
    let fenced =
        bench.hands.done.iter().position(|done| matches!(done, Done::Store(record) if record.fenced));
    assert!(order[0] < order[1] && Some(order[1]) < fenced, "{:?}", bench.hands.done);
    assert!(bench.hands.done.contains(&Done::Event("LEASE_LOST".to_owned())));
}

#[test]
fn whoever_follows_another_has_regained_no_lease() {
    let events = |bench: &Bench| {
        bench.hands.done.iter().filter(|done| matches!(done, Done::Event(_))).cloned().collect::<Vec<_>>()
    };
    let peer = NodeId::generate();
    let mut bench = Bench::serving(list(1, &[peer]));
    bench.pass(timings().served());
    bench.disk();
    bench.hands.done.clear();
    bench.happen(Event::Told(ToMember::Follow { term: TERM.next(), primary: peer }));
    bench.disk();
    assert!(bench.keeper.held().report.is_none_or(|report| !report.fenced), "it is no replica");
    assert_eq!(events(&bench), []);
}

#[test]
fn a_lone_primary_becomes_timed_in_one_stroke_before_its_first_member_is_confirmed() {
    let mut bench = Bench::serving(list(1, &[]));
    bench.pass(Duration::from_secs(1));
    bench.hands.done.clear();
    let second = list(2, &[NodeId::generate()]);
    bench.happen(Event::Told(ToMember::Promote { term: TERM, list: second.clone() }));
    assert_eq!(bench.hands.done.first(), Some(&Done::Gate(Deed::Limit(Slot::A, timings().served()))));
    assert!(!bench.told(second.version), "before it is on the disk");
    bench.disk();
    assert!(bench.told(second.version));
    assert!(!bench.hands.done.iter().any(|done| matches!(done, Done::Gate(Deed::Shut))));
}

#[test]
fn whose_word_it_was_is_told() {
    let (peer, served) = (NodeId::generate(), timings().served());
    let mut bench = Bench::serving(list(1, &[peer]));
    let source = |bench: &Bench| bench.keeper.held().report.map(|report| report.source);
    assert_eq!(source(&bench), Some(LeaseSource::Coordinator));
    // The coordinator is silent.
    for _ in 0..3 {
        bench.pass(timings().renewal);
    }
    let number = bench.last_asked().expect("a renewal");
    assert!(bench.hands.done.contains(&Done::Send(peer, ToPeer::AskPromise { number, term: TERM })));
    bench.happen(Event::Peer { from: peer, message: ToPeer::Promise { number, term: TERM } });
    assert_eq!(source(&bench), Some(LeaseSource::Promises));
    bench.pass(served);
    assert_eq!(source(&bench), Some(LeaseSource::None));
    assert_eq!(source(&Bench::serving(list(1, &[]))), Some(LeaseSource::Alone));
}

#[test]
fn a_primary_that_is_stopped_for_another_is_neither_ended_nor_started_and_told_only_while_it_is() {
    let mut bench = Bench::serving(list(1, &[NodeId::generate()]));
    let attempt = Attempt(7);
    bench.happen(Event::Told(ToMember::Stop { term: TERM, attempt }));
    assert_eq!(bench.hands.done, [Done::Gate(Deed::Shut), Done::Rest(TERM, attempt, Asked::ToStop)]);
    assert_eq!(bench.keeper.held().serve, Serve::Rests);
    let tail = Tail { term: TERM, position: Position { era: 1, offset: 100 } };
    bench.hands.done.clear();
    bench.keeper.rested(TERM, Attempt(6), Asked::ToStop, tail, &mut bench.hands);
    assert_eq!(bench.hands.done, []);
    bench.keeper.rested(TERM, attempt, Asked::ToStop, tail, &mut bench.hands);
    assert_eq!(bench.hands.done, [Done::Tell(ToCoordinator::Stopped { term: TERM, attempt, tail })]);

    // The way back: it is silent for a while, asks then, and starts by the answer.
    bench.pass(timings().silence);
    bench.renew();
    assert_eq!(bench.keeper.held().serve, Serve::May);
    bench.hands.done.clear();
    bench.keeper.rested(TERM, attempt, Asked::ToStop, tail, &mut bench.hands);
    assert_eq!(bench.hands.done, [], "it may run by now");
}

#[test]
fn one_that_is_told_to_lead_on_asks_at_once_and_is_stopped_by_nothing_of_before() {
    let list = list(1, &[NodeId::generate()]);
    let mut bench = Bench::serving(list.clone());
    bench.happen(Event::Told(ToMember::Stop { term: TERM, attempt: Attempt(7) }));
    bench.hands.done.clear();
    bench.pass(timings().renewal);
    assert_eq!((bench.last_asked(), bench.hands.goes_on), (None, 0));
    bench.happen(Event::Told(ToMember::Promote { term: TERM, list }));
    assert_eq!(bench.keeper.due_in(), Duration::ZERO);
    bench.pass(Duration::ZERO);
    let number = bench.last_asked().expect("it asks");
    bench.happen(Event::Told(ToMember::Granted { number, term: TERM, list: None }));
    assert_eq!((bench.keeper.held().serve, bench.hands.goes_on), (Serve::May, 1));
}

#[test]
fn one_that_rests_and_is_to_follow_is_not_ended_at_once() {
    let mut bench = Bench::serving(list(1, &[NodeId::generate()]));
    bench.happen(Event::Told(ToMember::Stop { term: TERM, attempt: Attempt(7) }));
    bench.hands.done.clear();
    bench.keeper.follow(TERM.next(), NodeId::generate(), &mut bench.hands);
    assert!(!bench.hands.done.contains(&Done::Halt), "{:?}", bench.hands.done);
    let held = bench.keeper.held();
    assert_eq!((held.standing, held.serve), ((TERM.next(), Standing::Replica), Serve::MustNot));
}

#[test]
fn a_seal_is_told_once_it_is_on_the_disk_and_only_of_its_term() {
    let mut hands = Recorder::default();
    let record = Record::replica(TERM);
    let keeper = Keeper::started(ClusterId::generate(), vec![PORT], timings(), record, &mut hands);
    let mut bench = Bench { keeper, hands, numbers: Numbers::of_run(1) };
    let term = TERM.next();
    bench.happen(Event::Told(ToMember::Seal { term }));
    assert_eq!(bench.hands.done, [], "a starting agent counts as having promised");
    bench.pass(timings().promised());
    bench.happen(Event::Told(ToMember::Seal { term }));
    assert_eq!(bench.hands.stored.last().map(|record| record.standing), Some(Standing::Sealed));
    assert!(!bench.hands.done.contains(&Done::Seal(term)), "not before it is on the disk");
    let stored = bench.hands.stored.last().cloned().unwrap();
    bench.keeper.stored(stored, &mut bench.hands);
    assert!(bench.hands.done.contains(&Done::Seal(term)), "{:?}", bench.hands.done);
    bench.hands.done.clear();
    let tail = Tail { term: TERM, position: Position { era: 1, offset: 100 } };
    bench.keeper.is_cut(term.next(), tail, &mut bench.hands);
    assert_eq!(bench.hands.done, []);
    bench.keeper.is_cut(term, tail, &mut bench.hands);
    assert_eq!(bench.hands.done, [Done::Tell(ToCoordinator::Sealed { term, tail })]);
}
