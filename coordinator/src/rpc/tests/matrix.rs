//! Every method against every kind of caller.

use futures::stream;
use holdfast_common::error::{Reason, status};
use holdfast_common::id::{FleetId, NodeId};
use holdfast_common::pki::{Authority, Credentials, Validity};
use holdfast_proto::v1 as proto;
use jiff::{SignedDuration, Timestamp};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::{Coordinator, record};
use crate::directory::{self, OperatorRole};
use crate::rpc::rules::{RULES, Rule, Who};
use crate::store::{Op, Txn};

/// Someone who calls.
struct Someone {
    who: &'static str,
    credentials: Option<Credentials>,
    token: Option<String>,
    rights: Rights,
}

/// What may be expected of a caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rights {
    /// Refused everywhere but where anyone may call.
    None,
    /// Not even a connection.
    NoConnection,
    Node,
    Role(OperatorRole),
}

impl Rights {
    fn may(self, rule: &Rule) -> bool {
        match (self, rule.who) {
            (Self::NoConnection, _) => false,
            (_, Who::Open) | (Self::Node, Who::Node) => true,
            (Self::Role(role), Who::Viewer) => role >= OperatorRole::Viewer,
            (Self::Role(role), Who::Operator) => role >= OperatorRole::Operator,
            (Self::Role(role), Who::Admin) => role >= OperatorRole::Admin,
            (Self::None | Self::Node, _) | (Self::Role(_), Who::Node) => false,
        }
    }
}

/// What came of one call of one caller.
struct Cell {
    rights: Rights,
    rule: &'static Rule,
    let_in: bool,
    told: String,
}

impl Cell {
    fn agrees(&self, rule: &Rule) -> bool {
        self.let_in == self.rights.may(rule)
    }
}

/// Calls with an empty message: a call that gets through is refused for that, or answers.
async fn call(channel: Channel, rule: &'static Rule, token: Option<&str>) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(stream::iter([()]));
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let path = format!("/{}", rule.method).parse().unwrap();
    grpc.streaming(request, path, ProstCodec::<(), ()>::default()).await.map(drop)
}

fn let_in(answer: &Result<(), Status>) -> bool {
    match answer {
        Ok(()) => true,
        Err(status) => {
            let denied = matches!(
                status::to_failure(status).reason,
                Reason::NoIdentity | Reason::NotPermitted | Reason::TokenInvalid
            );
            // One that has a source never came from the server: there was no connection.
            !denied && std::error::Error::source(status).is_none()
        }
    }
}

async fn everyone(coordinator: &Coordinator) -> Vec<Someone> {
    let now = Timestamp::now();
    let past = Validity::day(now - SignedDuration::from_hours(72));
    let node = coordinator.join("n1").await;
    let removed = coordinator.join("n2").await;
    let delete = Txn::new()
        .then(Op::delete(directory::node_key(removed.id)))
        .then(Op::delete(directory::node_name_key(&"n2".parse().unwrap())));
    coordinator.parts.store.txn(delete).await.unwrap();
    // Good in every respect but the time, and on record.
    let expired_id = NodeId::generate();
    let (issued, expired) = coordinator.node_certificate(expired_id, past);
    let expired_record = record(expired_id, "n3", &issued);
    coordinator.parts.directory.put(&directory::node_key(expired_id), &expired_record).await.unwrap();
    // Of the right authority, for a node that is there, but of a serial that is not on record.
    let (_, unrecorded) = coordinator.node_certificate(node.id, Validity::day(now));
    let other = Authority::create(FleetId::generate(), now).unwrap();
    let (issued, key) = other.issue_operator(&"admin".parse().unwrap(), Validity::day(now)).unwrap();
    let foreign = issued.credentials(&key).unwrap();
    let viewer = coordinator.operator("viewer", OperatorRole::Viewer).await;
    let operator = coordinator.operator("operator", OperatorRole::Operator).await;
    let gone = coordinator.operator("gone", OperatorRole::Admin).await;
    let mut identities = coordinator.identities();
    let mut token = async || {
        identities.create_access_token(proto::CreateAccessTokenRequest::default()).await.unwrap().into_inner()
    };
    let good = token().await;
    let revoked = token().await;
    let id = revoked.access_token.unwrap().id;
    identities.revoke_access_token(proto::RevokeAccessTokenRequest { id }).await.unwrap();
    let confirm = "gone".to_owned();
    identities
        .remove_operator(proto::RemoveOperatorRequest { name: confirm.clone(), confirm })
        .await
        .unwrap();
    let cert = |who, credentials: &Credentials, rights| Someone {
        who,
        credentials: Some(credentials.clone()),
        token: None,
        rights,
    };
    let bearer =
        |who, token: &str, rights| Someone { who, credentials: None, token: Some(token.to_owned()), rights };
    vec![
        Someone { who: "nobody", credentials: None, token: None, rights: Rights::None },
        cert("a node", &node.credentials, Rights::Node),
        cert("a removed node", &removed.credentials, Rights::None),
        cert("a node's unrecorded certificate", &unrecorded, Rights::None),
        cert("an expired node", &expired, Rights::NoConnection),
        cert("another fleet's operator", &foreign, Rights::NoConnection),
        cert("a viewer", &viewer, Rights::Role(OperatorRole::Viewer)),
        cert("an operator", &operator, Rights::Role(OperatorRole::Operator)),
        cert("an admin", &coordinator.admin, Rights::Role(OperatorRole::Admin)),
        cert("a removed admin", &gone, Rights::None),
        bearer("an admin's token", &good.token, Rights::Role(OperatorRole::Admin)),
        bearer("a revoked token", &revoked.token, Rights::None),
        bearer("a cut token", &good.token[..good.token.len() - 1], Rights::None),
        bearer("no token at all", "x", Rights::None),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_is_open_to_exactly_those_whom_the_table_names() {
    let coordinator = Coordinator::start().await;
    let mut cells = Vec::new();
    for someone in everyone(&coordinator).await {
        let agents = coordinator.to_agents(someone.credentials.as_ref());
        let operators = coordinator.to_operators(someone.credentials.as_ref());
        for rule in RULES.iter().filter(|rule| rule.method.contains('/')) {
            let channel = if rule.method.starts_with("holdfast.link") { &agents } else { &operators };
            let answer = call(channel.clone(), rule, someone.token.as_deref()).await;
            let told = format!("{} calls {}: {answer:?}", someone.who, rule.method);
            cells.push(Cell { rights: someone.rights, rule, let_in: let_in(&answer), told });
        }
    }
    let wrong: Vec<_> = cells.iter().filter(|cell| !cell.agrees(cell.rule)).map(|cell| &*cell.told).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Every mutant of every row would have been found out.
    const EVERYBODY: [Who; 5] = [Who::Open, Who::Node, Who::Viewer, Who::Operator, Who::Admin];
    for rule in RULES.iter().filter(|rule| rule.method.contains('/')) {
        for who in EVERYBODY.into_iter().filter(|who| *who != rule.who) {
            let mutant = Rule { who, ..*rule };
            let mut row = cells.iter().filter(|cell| cell.rule.method == rule.method);
            assert!(row.any(|cell| !cell.agrees(&mutant)), "{} for {who:?} goes unnoticed", rule.method);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_the_table_does_not_know_is_refused() {
    const UNKNOWN: Rule = Rule { method: "holdfast.v1.NodeService/EraseEverything", ..RULES[3] };
    let coordinator = Coordinator::start().await;
    let answer = call(coordinator.to_operators(Some(&coordinator.admin)), &UNKNOWN, None).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}
