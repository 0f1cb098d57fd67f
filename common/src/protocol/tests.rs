//! What the parts promise together, case by case. Histories are for the models (`tests/models`).

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::id::NodeId;
use crate::position::Position;
use crate::term::Term;

mod effects;
mod failover;
mod members;
mod switchover;

pub(super) fn node(number: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(number))
}

const SECOND: Duration = Duration::from_secs(1);
const TERM: Term = Term::new(5);

fn timings() -> Timings {
    Profile::Default.timings()
}

fn number(place: u64) -> RequestNumber {
    RequestNumber::new(1, place)
}

fn list(version: u64, members: &[u128], need: Need) -> List {
    List::new(Version::new(version), members.iter().map(|&member| node(member)), need)
}

fn tail(term: u64, offset: u64) -> Tail {
    Tail { term: Term::new(term), position: Position { era: 1, offset } }
}

/// A primary of [`TERM`] whose engine is ready, with nothing in its gate.
fn primary(list: List) -> Member {
    let mut member = Member::started(Record::primary(TERM, list), Gate::default(), &timings());
    assert_eq!(member.handle(Event::Ready(true), &timings()), []);
    member
}

/// A replica of [`TERM`] that has promised nothing.
fn replica() -> Member {
    let mut member = Member::started(Record::replica(TERM), Gate::default(), &timings());
    member.pass(timings().promised());
    member
}

fn grant(place: u64) -> Event {
    Event::Told(ToMember::Granted { number: number(place), term: TERM, list: None })
}

fn ask(term: Term) -> Event {
    Event::Peer { from: node(9), message: ToPeer::AskPromise { number: number(0), term } }
}

fn promise(from: u128, place: u64) -> Event {
    Event::Peer { from: node(from), message: ToPeer::Promise { number: number(place), term: TERM } }
}
