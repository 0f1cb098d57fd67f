//! Leases, promises, seals: what agents and the coordinator say to each other beside the session, and agents among themselves.

use holdfast_proto::link::v1 as proto;
use proto::exchange_request::Message as Up;
use proto::exchange_response::Message as Down;

use super::{Error, Field};
use crate::assignment::MAX_PEERS;
use crate::link::{AskPromise, Leased, Promised};
use crate::protocol::{Attempt, List, Need, RequestNumber, Tail, ToCoordinator, ToMember, Version};
use crate::term::Term;

// === to the coordinator ===

impl From<&Leased<ToCoordinator>> for proto::ExchangeRequest {
    fn from(said: &Leased<ToCoordinator>) -> Self {
        let message = match &said.message {
            ToCoordinator::Renew { number, term, version } => Up::Renew(proto::Renew {
                number: Some((*number).into()),
                term: term.get(),
                list_version: version.map(Version::get),
            }),
            ToCoordinator::ListStored { term, version } => {
                Up::ListStored(proto::ListStored { term: term.get(), list_version: version.get() })
            }
            ToCoordinator::Fenced { term, attempt: Attempt(attempt) } => {
                Up::Fenced(proto::Fenced { term: term.get(), attempt: *attempt })
            }
            ToCoordinator::Stopped { term, attempt: Attempt(attempt), tail } => Up::Stopped(proto::Stopped {
                term: term.get(),
                attempt: *attempt,
                tail: Some((*tail).into()),
            }),
            ToCoordinator::Confirmed { term, attempt: Attempt(attempt), tail } => {
                let (term, tail) = (term.get(), Some((*tail).into()));
                Up::Confirmed(proto::Confirmed { term, attempt: *attempt, tail })
            }
            ToCoordinator::Sealed { term, tail } => {
                Up::Sealed(proto::Sealed { term: term.get(), tail: Some((*tail).into()) })
            }
        };
        Self { cluster_id: said.cluster_id.to_string(), message: Some(message) }
    }
}

impl TryFrom<proto::ExchangeRequest> for Leased<ToCoordinator> {
    type Error = Error;

    fn try_from(request: proto::ExchangeRequest) -> Result<Self, Error> {
        let proto::ExchangeRequest { cluster_id, message } = request;
        let message = match Field("message").required(message)? {
            Up::Renew(proto::Renew { number, term: given, list_version }) => ToCoordinator::Renew {
                number: Field("renew.number").message(number)?,
                term: term(given)?,
                version: list_version.map(version).transpose()?,
            },
            Up::ListStored(proto::ListStored { term: given, list_version }) => {
                ToCoordinator::ListStored { term: term(given)?, version: version(list_version)? }
            }
            Up::Fenced(proto::Fenced { term: given, attempt: made }) => {
                ToCoordinator::Fenced { term: term(given)?, attempt: attempt(made)? }
            }
            Up::Stopped(proto::Stopped { term: given, attempt: made, tail }) => ToCoordinator::Stopped {
                term: term(given)?,
                attempt: attempt(made)?,
                tail: Field("stopped.tail").message(tail)?,
            },
            Up::Confirmed(proto::Confirmed { term: given, attempt: made, tail }) => {
                let (term, attempt) = (term(given)?, attempt(made)?);
                ToCoordinator::Confirmed { term, attempt, tail: Field("confirmed.tail").message(tail)? }
            }
            Up::Sealed(proto::Sealed { term: given, tail }) => {
                ToCoordinator::Sealed { term: term(given)?, tail: Field("sealed.tail").message(tail)? }
            }
        };
        Ok(Self { cluster_id: Field("cluster_id").parsed(cluster_id)?, message })
    }
}

// === to a member ===

impl From<&Leased<ToMember>> for proto::ExchangeResponse {
    fn from(said: &Leased<ToMember>) -> Self {
        let message = match &said.message {
            ToMember::Granted { number, term, list } => Down::Granted(proto::Granted {
                number: Some((*number).into()),
                term: term.get(),
                list: list.as_ref().map(Into::into),
            }),
            ToMember::Fence { term, attempt: Attempt(attempt) } => {
                Down::Fence(proto::Fence { term: term.get(), attempt: *attempt })
            }
            ToMember::Stop { term, attempt: Attempt(attempt) } => {
                Down::Stop(proto::Stop { term: term.get(), attempt: *attempt })
            }
            ToMember::Confirm { term, attempt: Attempt(attempt) } => {
                Down::Confirm(proto::Confirm { term: term.get(), attempt: *attempt })
            }
            ToMember::Seal { term } => Down::Seal(proto::Seal { term: term.get() }),
            ToMember::Promote { term, list } => {
                Down::Promote(proto::Promote { term: term.get(), list: Some(list.into()) })
            }
            ToMember::Follow { term, primary } => {
                Down::Follow(proto::Follow { term: term.get(), primary_node_id: primary.to_string() })
            }
        };
        Self { cluster_id: said.cluster_id.to_string(), message: Some(message) }
    }
}

impl TryFrom<proto::ExchangeResponse> for Leased<ToMember> {
    type Error = Error;

    fn try_from(response: proto::ExchangeResponse) -> Result<Self, Error> {
        let proto::ExchangeResponse { cluster_id, message } = response;
        let message = match Field("message").required(message)? {
            Down::Granted(proto::Granted { number, term: given, list }) => ToMember::Granted {
                number: Field("granted.number").message(number)?,
                term: term(given)?,
                list: Field("granted.list").optional_message(list)?,
            },
            Down::Fence(proto::Fence { term: given, attempt: made }) => {
                ToMember::Fence { term: term(given)?, attempt: attempt(made)? }
            }
            Down::Stop(proto::Stop { term: given, attempt: made }) => {
                ToMember::Stop { term: term(given)?, attempt: attempt(made)? }
            }
            Down::Confirm(proto::Confirm { term: given, attempt: made }) => {
                ToMember::Confirm { term: term(given)?, attempt: attempt(made)? }
            }
            Down::Seal(proto::Seal { term: given }) => ToMember::Seal { term: term(given)? },
            Down::Promote(proto::Promote { term: given, list }) => {
                ToMember::Promote { term: term(given)?, list: Field("promote.list").message(list)? }
            }
            Down::Follow(proto::Follow { term: given, primary_node_id }) => ToMember::Follow {
                term: term(given)?,
                primary: Field("follow.primary_node_id").parsed(primary_node_id)?,
            },
        };
        Ok(Self { cluster_id: Field("cluster_id").parsed(cluster_id)?, message })
    }
}

// === between agents ===

impl From<&AskPromise> for proto::PromiseRequest {
    fn from(AskPromise { cluster_id, number, term }: &AskPromise) -> Self {
        Self { cluster_id: cluster_id.to_string(), number: Some((*number).into()), term: term.get() }
    }
}

impl TryFrom<proto::PromiseRequest> for AskPromise {
    type Error = Error;

    fn try_from(request: proto::PromiseRequest) -> Result<Self, Error> {
        let proto::PromiseRequest { cluster_id, number, term: given } = request;
        Ok(Self {
            cluster_id: Field("cluster_id").parsed(cluster_id)?,
            number: Field("number").message(number)?,
            term: term(given)?,
        })
    }
}

impl From<&Promised> for proto::PromiseResponse {
    fn from(Promised { number, term }: &Promised) -> Self {
        Self { number: Some((*number).into()), term: term.get() }
    }
}

impl TryFrom<proto::PromiseResponse> for Promised {
    type Error = Error;

    fn try_from(response: proto::PromiseResponse) -> Result<Self, Error> {
        let proto::PromiseResponse { number, term: given } = response;
        Ok(Self { number: Field("number").message(number)?, term: term(given)? })
    }
}

// === nouns ===

impl From<RequestNumber> for proto::RequestNumber {
    fn from(number: RequestNumber) -> Self {
        Self { run: number.run(), place: number.place() }
    }
}

impl TryFrom<proto::RequestNumber> for RequestNumber {
    type Error = Error;

    fn try_from(number: proto::RequestNumber) -> Result<Self, Error> {
        let proto::RequestNumber { run, place } = number;
        Ok(Self::new(Field("run").positive(run)?, Field("place").number(place)?))
    }
}

impl From<&List> for proto::PromotableList {
    fn from(list: &List) -> Self {
        Self {
            version: list.version.get(),
            node_ids: list.members().iter().map(ToString::to_string).collect(),
            synchronous_count: match list.need {
                Need::All => 0,
                Need::Any(count) => count.get(),
            },
        }
    }
}

impl TryFrom<proto::PromotableList> for List {
    type Error = Error;

    fn try_from(list: proto::PromotableList) -> Result<Self, Error> {
        let proto::PromotableList { version, node_ids, synchronous_count } = list;
        let members = Field("node_ids").parsed_list(node_ids, MAX_PEERS)?;
        Field("node_ids").distinct(&members, Clone::clone)?;
        let version = Version::new(Field("version").positive(version)?);
        Ok(Self::new(version, members, Need::of(synchronous_count)))
    }
}

impl From<Tail> for proto::Tail {
    fn from(Tail { term, position }: Tail) -> Self {
        Self { term: term.get(), position: Some((&position).into()) }
    }
}

impl TryFrom<proto::Tail> for Tail {
    type Error = Error;

    fn try_from(tail: proto::Tail) -> Result<Self, Error> {
        let proto::Tail { term: given, position } = tail;
        Ok(Self { term: term(given)?, position: Field("position").message(position)? })
    }
}

fn term(given: u64) -> Result<Term, Error> {
    Field("term").positive(given).map(Term::new)
}

fn version(given: u64) -> Result<Version, Error> {
    Field("list_version").positive(given).map(Version::new)
}

fn attempt(made: u64) -> Result<Attempt, Error> {
    Field("attempt").positive(made).map(Attempt)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{ClusterId, NodeId};
    use crate::position::Position;

    fn number() -> impl Strategy<Value = RequestNumber> {
        (1_u64..1000, 0_u64..1000).prop_map(|(run, place)| RequestNumber::new(run, place))
    }

    fn list() -> impl Strategy<Value = List> {
        (1_u64..1000, 0_usize..MAX_PEERS, 0_u32..8).prop_map(|(version, members, count)| {
            List::new(Version::new(version), (0..members).map(|_| NodeId::generate()), Need::of(count))
        })
    }

    fn tail() -> impl Strategy<Value = Tail> {
        (1_u64..1000, 0_u64..9, any::<u32>()).prop_map(|(term, era, offset)| Tail {
            term: Term::new(term),
            position: Position { era, offset: offset.into() },
        })
    }

    fn to_coordinator() -> impl Strategy<Value = ToCoordinator> {
        let plain = (1_u64..1000, 1_u64..1000);
        prop_oneof![
            (number(), plain.clone(), any::<bool>()).prop_map(|(number, (term, version), known)| {
                let version = known.then(|| Version::new(version));
                ToCoordinator::Renew { number, term: Term::new(term), version }
            }),
            plain.clone().prop_map(|(term, version)| ToCoordinator::ListStored {
                term: Term::new(term),
                version: Version::new(version)
            }),
            plain.clone().prop_map(|(term, attempt)| ToCoordinator::Fenced {
                term: Term::new(term),
                attempt: Attempt(attempt)
            }),
            (plain.clone(), tail()).prop_map(|((term, attempt), tail)| ToCoordinator::Confirmed {
                term: Term::new(term),
                attempt: Attempt(attempt),
                tail
            }),
            (plain, tail()).prop_map(|((term, attempt), tail)| ToCoordinator::Stopped {
                term: Term::new(term),
                attempt: Attempt(attempt),
                tail
            }),
            (1_u64..1000, tail())
                .prop_map(|(term, tail)| ToCoordinator::Sealed { term: Term::new(term), tail }),
        ]
    }

    fn to_member() -> impl Strategy<Value = ToMember> {
        let plain = (1_u64..1000, 1_u64..1000).prop_map(|(term, made)| (Term::new(term), Attempt(made)));
        prop_oneof![
            (number(), 1_u64..1000, proptest::option::of(list()))
                .prop_map(|(number, term, list)| ToMember::Granted { number, term: Term::new(term), list }),
            plain.clone().prop_map(|(term, attempt)| ToMember::Fence { term, attempt }),
            plain.clone().prop_map(|(term, attempt)| ToMember::Stop { term, attempt }),
            plain.clone().prop_map(|(term, attempt)| ToMember::Confirm { term, attempt }),
            plain.clone().prop_map(|(term, _)| ToMember::Seal { term }),
            (plain.clone(), list()).prop_map(|((term, _), list)| ToMember::Promote { term, list }),
            plain.prop_map(|(term, _)| ToMember::Follow { term, primary: NodeId::generate() }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_to_the_coordinator_arrives(message in to_coordinator()) {
            let said = Leased { cluster_id: ClusterId::generate(), message };
            prop_assert_eq!(Leased::try_from(proto::ExchangeRequest::from(&said)).unwrap(), said);
        }

        #[test]
        fn what_is_said_to_a_member_arrives(message in to_member()) {
            let said = Leased { cluster_id: ClusterId::generate(), message };
            prop_assert_eq!(Leased::try_from(proto::ExchangeResponse::from(&said)).unwrap(), said);
        }

        #[test]
        fn promises_arrive(number in number(), term in 1_u64..1000) {
            let asked = AskPromise { cluster_id: ClusterId::generate(), number, term: Term::new(term) };
            prop_assert_eq!(AskPromise::try_from(proto::PromiseRequest::from(&asked)).unwrap(), asked);
            let promised = Promised { number, term: Term::new(term) };
            prop_assert_eq!(Promised::try_from(proto::PromiseResponse::from(&promised)).unwrap(), promised);
        }
    }

    #[test]
    fn what_is_missing_or_senseless_is_refused_by_its_name() {
        let said =
            |message| proto::ExchangeRequest { cluster_id: ClusterId::generate().to_string(), message };
        let number = Some(proto::RequestNumber { run: 1, place: 0 });
        let table = [
            (said(None), "message"),
            (
                said(Some(Up::Renew(proto::Renew { number: None, term: 1, list_version: None }))),
                "renew.number",
            ),
            (said(Some(Up::Renew(proto::Renew { number, term: 0, list_version: None }))), "term"),
            (said(Some(Up::Renew(proto::Renew { number, term: 1, list_version: Some(0) }))), "list_version"),
            (said(Some(Up::Fenced(proto::Fenced { term: 1, attempt: 0 }))), "attempt"),
            (said(Some(Up::Sealed(proto::Sealed { term: 1, tail: None }))), "sealed.tail"),
        ];
        for (request, field) in table {
            assert_eq!(Leased::<ToCoordinator>::try_from(request).unwrap_err().field, field);
        }
        let node = NodeId::generate().to_string();
        let twice =
            proto::PromotableList { version: 1, node_ids: vec![node.clone(), node], synchronous_count: 0 };
        assert_eq!(List::try_from(twice).unwrap_err().field, "node_ids");
    }
}
