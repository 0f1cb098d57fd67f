//! How nodes join, renew, and are refused.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::FleetId;
use holdfast_common::pki::{Authority, Credentials, JoinToken, NodeKey, TokenSecret};
use holdfast_common::role::Availability;
use holdfast_proto::link::v1::agent_service_client::AgentServiceClient;
use holdfast_proto::link::v1::{EnrollRequest, RenewCertificateRequest};
use holdfast_proto::v1 as proto;
use jiff::{SignedDuration, Timestamp};

use super::{Coordinator, enroll_request};
use crate::directory::{self, Change, Node};
use crate::fleet;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_joined_can_begin_its_session() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let agent = coordinator.session(&member).await;
    agent.heartbeat(1).await;
    coordinator
        .until("online", |parts| {
            parts.fleet.node(member.id).is_some_and(|view| view.availability == Availability::Online)
        })
        .await;
    let view = coordinator.parts.fleet.node(member.id).unwrap();
    assert_eq!(view.record.name.as_str(), member.name);
    assert_eq!(view.facts.unwrap().agent_version, "0.1.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_with_one_single_use_token_make_one_node() {
    let coordinator = Coordinator::start().await;
    let token = coordinator.join_token(1).await;
    let tries = (0..200).map(|number| {
        let (_, request) = enroll_request(&token, &format!("n{number}"));
        coordinator.enroll(request)
    });
    let answers = futures::future::join_all(tries).await;
    let joined: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
    assert_eq!(joined.len(), 1);
    for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert!(matches!(refused.reason, Reason::TokenInvalid | Reason::VersionConflict), "{refused:?}");
    }
    let nodes = coordinator.parts.directory.list::<Node>(directory::NODES).await.unwrap();
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].value.id.to_string(), joined[0].node_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_many_uses_lets_exactly_so_many_in_at_once() {
    let coordinator = Coordinator::start().await;
    let token = coordinator.join_token(20).await;
    let tries = (0..40).map(|number| {
        let (_, request) = enroll_request(&token, &format!("n{number}"));
        coordinator.enroll(request)
    });
    let answers = futures::future::join_all(tries).await;
    let ids: BTreeSet<_> = answers.iter().flatten().map(|joined| &joined.node_id).collect();
    assert_eq!(ids.len(), 20);
}

async fn refused(coordinator: &Coordinator, request: EnrollRequest) -> Failure {
    let nodes = |found: Vec<_>| found.len();
    let before = nodes(coordinator.parts.directory.list::<Node>(directory::NODES).await.unwrap());
    let failure = coordinator.enroll(request).await.unwrap_err();
    assert_eq!(nodes(coordinator.parts.directory.list::<Node>(directory::NODES).await.unwrap()), before);
    failure
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_token_is_refused_by_what_is_wrong_with_it() {
    let coordinator = Coordinator::start().await;
    let token = coordinator.join_token(1).await;
    let parsed: JoinToken = token.parse().unwrap();
    let why = async |token: &str, name: &str| {
        let failure = refused(&coordinator, enroll_request(token, name).1).await;
        assert_eq!(failure.reason, Reason::TokenInvalid, "{failure:?}");
        assert!(!failure.message.contains(&token[..token.len().min(60)]), "the token is not repeated");
        failure.message
    };
    assert!(why(&token[..token.len() - 7], "n1").await.contains("cut off"));
    let other = Authority::create(FleetId::generate(), Timestamp::now()).unwrap();
    let foreign = JoinToken { pin: other.fingerprint(), ..parsed.clone() };
    assert!(why(&foreign.reveal(), "n1").await.contains("another fleet"));
    let wrong_secret = JoinToken { secret: TokenSecret::generate(), ..parsed.clone() };
    let unknown = JoinToken::generate(parsed.pin);
    assert_eq!(why(&wrong_secret.reveal(), "n1").await, why(&unknown.reveal(), "n1").await);

    let key = directory::join_token_key(parsed.id);
    let set = async |change: fn(&mut directory::JoinToken)| {
        let updated = coordinator.parts.directory.update(&key, |mut token: directory::JoinToken| {
            change(&mut token);
            Change::Write(token, ())
        });
        updated.await.unwrap().unwrap();
    };
    set(|token| token.node_name = Some("n9".parse().unwrap())).await;
    assert!(why(&token, "n1").await.contains("only for the node `n9`"));
    set(|token| token.node_name = None).await;
    set(|token| token.revoked = true).await;
    assert!(why(&token, "n1").await.contains("revoked"));
    set(|token| token.revoked = false).await;
    set(|token| token.expires_at = Timestamp::now() - SignedDuration::from_secs(1)).await;
    assert!(why(&token, "n1").await.contains("expired"));
    set(|token| token.expires_at = Timestamp::now() + SignedDuration::from_hours(1)).await;
    coordinator.enroll(enroll_request(&token, "n1").1).await.unwrap();
    assert!(why(&token, "n2").await.contains("used up"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_gets_the_same_node_and_uses_the_token_once() {
    let coordinator = Coordinator::start().await;
    let token = coordinator.join_token(1).await;
    let (key, request) = enroll_request(&token, "n1");
    let first = coordinator.enroll(request.clone()).await.unwrap();
    // The same key signs another request: signatures differ each time.
    let again =
        EnrollRequest { certificate_signing_request: key.signing_request().unwrap(), ..request.clone() };
    let second = coordinator.enroll(again).await.unwrap();
    assert_eq!(first.node_id, second.node_id);
    let id = first.node_id.parse().unwrap();
    for chain in [&first.certificate_chain, &second.certificate_chain] {
        let credentials = Credentials::from_pem(chain, &key.to_pem()).unwrap();
        coordinator.session(&super::Member { id, name: "n1".into(), credentials }).await;
    }
    let (_, stranger) = enroll_request(&token, "n1");
    let stolen = EnrollRequest { request_id: request.request_id.clone(), ..stranger };
    assert_eq!(refused(&coordinator, stolen).await.reason, Reason::RequestIdReused);
    let other_name = EnrollRequest { node_name: "n2".into(), ..request };
    assert_eq!(refused(&coordinator, other_name).await.reason, Reason::RequestIdReused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_given_once() {
    let coordinator = Coordinator::start().await;
    coordinator.join("n1").await;
    let failure = refused(&coordinator, enroll_request(&coordinator.join_token(1).await, "n1").1).await;
    assert_eq!(failure.reason, Reason::NodeExists);
    assert_eq!(failure.resource.unwrap().name, "n1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_new_node_of_a_name_that_is_given_is_not_made() {
    let coordinator = Coordinator::start().await;
    coordinator.join("n1").await;
    let of = |name: &str| proto::CreateJoinTokenRequest { node_name: name.into(), ..Default::default() };
    let refused = coordinator.identities().create_join_token(of("n1")).await.unwrap_err();
    for word in ["`node_name`", "--rejoin n1"] {
        assert!(refused.message().contains(word), "{}", refused.message());
    }
    coordinator.identities().create_join_token(of("n2")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_bad_fields_of_a_request_are_named_at_once() {
    let coordinator = Coordinator::start().await;
    let (_, good) = enroll_request(&coordinator.join_token(1).await, "n1");
    let bad = EnrollRequest {
        node_name: "../etc".into(),
        address: "example.org".into(),
        request_id: "1".into(),
        ..good.clone()
    };
    let failure = refused(&coordinator, bad).await;
    let fields: BTreeSet<_> = failure.violations.iter().map(|violation| violation.name.as_str()).collect();
    assert_eq!(fields, BTreeSet::from(["address", "node_name", "request_id"]));
    for signing_request in
        ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
    {
        let bad = EnrollRequest { certificate_signing_request: signing_request.into(), ..good.clone() };
        let failure = refused(&coordinator, bad).await;
        assert_eq!(failure.violations[0].name, "certificate_signing_request", "{failure:?}");
    }
    coordinator.enroll(good).await.expect("none of them has used the token up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_gives_a_new_certificate_and_leaves_the_session_alone() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut agent = coordinator.session(&member).await;
    let key = NodeKey::generate().unwrap();
    let mut client = AgentServiceClient::new(coordinator.to_agents(Some(&member.credentials)));
    let request = RenewCertificateRequest { certificate_signing_request: key.signing_request().unwrap() };
    let renewed = client.renew_certificate(request).await.unwrap().into_inner();
    let credentials = Credentials::from_pem(&renewed.certificate_chain, &key.to_pem()).unwrap();
    assert_eq!(credentials.identity().unwrap().kind, member.credentials.identity().unwrap().kind);
    assert_ne!(credentials.identity().unwrap().serial, member.credentials.identity().unwrap().serial);
    agent.heartbeat(7).await;
    agent
        .wait_for(|message| {
            matches!(message, holdfast_common::link::FromCoordinator::HeartbeatAck { sequence: 7 })
                .then_some(())
        })
        .await;
    // The next session takes the new one; the old one is good until it ends, should the answer have been lost.
    coordinator.session(&super::Member { credentials, ..member.clone() }).await;
    coordinator.session(&member).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_loses_its_session_and_is_refused_at_once() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut agent = coordinator.session(&member).await;
    let mut nodes = coordinator.nodes();
    let unconfirmed = proto::RemoveNodeRequest { name: "n1".into(), ..Default::default() };
    let refused = nodes.remove_node(unconfirmed.clone()).await.unwrap_err();
    assert_eq!(super::reason(&refused), Reason::NotConfirmed);
    nodes.remove_node(proto::RemoveNodeRequest { confirm: "n1".into(), ..unconfirmed }).await.unwrap();
    let close = agent
        .wait_for(|message| match message {
            holdfast_common::link::FromCoordinator::Close(close) => Some(close.clone()),
            _ => None,
        })
        .await;
    assert_eq!(close.reason, holdfast_common::link::CloseReason::NodeRemoved);
    assert!(agent.hear().await.unwrap().is_none());
    let mut client = AgentServiceClient::new(coordinator.to_agents(Some(&member.credentials)));
    let request = RenewCertificateRequest { certificate_signing_request: String::new() };
    assert_eq!(super::reason(&client.renew_certificate(request).await.unwrap_err()), Reason::NotPermitted);
    assert!(coordinator.parts.fleet.node(member.id).is_none());
    // Its name is free again.
    coordinator.join("n1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_members_is_not_removed() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let cluster = holdfast_common::id::ClusterId::generate();
    let name: holdfast_common::name::ClusterName = "demo".parse().unwrap();
    coordinator.parts.directory.put(&directory::membership_key(member.id, cluster), &name).await.unwrap();
    let request = proto::RemoveNodeRequest { name: "n1".into(), confirm: "n1".into(), ..Default::default() };
    let plan = proto::RemoveNodeRequest { validate_only: true, ..request.clone() };
    let plan = coordinator.nodes().remove_node(plan).await.unwrap().into_inner().outcome.unwrap();
    let proto::remove_node_response::Outcome::Plan(plan) = plan else { panic!("not a plan") };
    assert!(!plan.preconditions[0].met);
    let refused = coordinator.nodes().remove_node(request).await.unwrap_err();
    assert_eq!(super::reason(&refused), Reason::PreconditionFailed);
    assert!(refused.message().contains("demo"));
    coordinator.session(&member).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_coordinator_knows_its_nodes() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    coordinator.session(&member).await;
    coordinator
        .until("facts", |parts| parts.fleet.node(member.id).is_some_and(|view| view.facts.is_some()))
        .await;
    let key = directory::node_facts_key(member.id);
    let stored = async {
        while coordinator.parts.directory.get::<directory::NodeFacts>(&key).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(super::PATIENCE, stored).await.expect("the facts are stored in time");
    // A second fleet over the same records, as after a restart.
    let service = fleet::Service::new(fleet::Settings {
        coordinator_generation: coordinator.parts.fleet.coordinator_generation(),
        heartbeat_interval: fleet::liveness::HEARTBEAT_INTERVAL,
        metrics_interval: fleet::liveness::METRICS_INTERVAL,
    });
    let again = crate::app::Parts { fleet: service.handle(), ..coordinator.parts.clone() };
    again.load_fleet().await.unwrap();
    let view = again.fleet.node(member.id).unwrap();
    assert_eq!(view.availability, Availability::Late, "not yet heard of: neither here nor gone");
    assert_eq!(view.facts.unwrap().inventory, super::inventory());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_comes_back_as_what_it_was_by_a_token_made_for_it() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let token = async |name: &str| {
        let request =
            proto::CreateJoinTokenRequest { node_name: name.into(), rejoin: true, ..Default::default() };
        coordinator.identities().create_join_token(request).await
    };
    let nameless = token("").await.unwrap_err();
    assert!(nameless.message().contains("`node_name`"), "{}", nameless.message());
    assert_eq!(super::reason(&token("n2").await.unwrap_err()), Reason::NodeNotFound);
    let made = token("n1").await.unwrap().into_inner();
    assert!(made.join_token.unwrap().rejoin);

    // Not for another name, nor from another address.
    let (_, other) = enroll_request(&made.token, "n2");
    assert_eq!(refused(&coordinator, other).await.reason, Reason::TokenInvalid);
    let (key, request) = enroll_request(&made.token, "n1");
    let elsewhere = EnrollRequest { address: "203.0.113.77".into(), ..request.clone() };
    let failure = refused(&coordinator, elsewhere).await;
    assert_eq!(failure.violations[0].name, "address", "{failure:?}");

    let back = coordinator.enroll(request).await.unwrap();
    assert_eq!(back.node_id, member.id.to_string());
    let credentials = Credentials::from_pem(&back.certificate_chain, &key.to_pem()).unwrap();
    coordinator.session(&super::Member { credentials, ..member.clone() }).await;
    assert_eq!(coordinator.parts.directory.list::<Node>(directory::NODES).await.unwrap().len(), 1);
    // What it had before is refused, and the token is used up.
    let mut client = AgentServiceClient::new(coordinator.to_agents(Some(&member.credentials)));
    let request = RenewCertificateRequest { certificate_signing_request: String::new() };
    assert_eq!(super::reason(&client.renew_certificate(request).await.unwrap_err()), Reason::NotPermitted);
    let (_, again) = enroll_request(&made.token, "n1");
    assert!(refused(&coordinator, again).await.message.contains("used up"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_a_node_that_is_gone_brings_nobody_back() {
    let coordinator = Coordinator::start().await;
    coordinator.join("n1").await;
    let request =
        proto::CreateJoinTokenRequest { node_name: "n1".into(), rejoin: true, ..Default::default() };
    let token = coordinator.identities().create_join_token(request).await.unwrap().into_inner().token;
    let remove = proto::RemoveNodeRequest { name: "n1".into(), confirm: "n1".into(), ..Default::default() };
    coordinator.nodes().remove_node(remove).await.unwrap();
    let failure = refused(&coordinator, enroll_request(&token, "n1").1).await;
    assert_eq!(failure.reason, Reason::TokenInvalid);
    // Nor does it make another node of that name the one that was meant.
    coordinator.join("n1").await;
    let failure = refused(&coordinator, enroll_request(&token, "n1").1).await;
    assert_eq!(failure.reason, Reason::TokenInvalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_removal_gets_the_same_answer() {
    let coordinator = Coordinator::start().await;
    coordinator.join("n1").await;
    let request = proto::RemoveNodeRequest {
        name: "n1".into(),
        confirm: "n1".into(),
        request_id: "3f6c".into(),
        validate_only: false,
    };
    let first = coordinator.nodes().remove_node(request.clone()).await.unwrap().into_inner();
    let second = coordinator.nodes().remove_node(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, second);
    // Also when another machine has the name by now: that one stays.
    coordinator.join("n1").await;
    assert_eq!(coordinator.nodes().remove_node(request.clone()).await.unwrap().into_inner(), first);
    coordinator.nodes().get_node(proto::GetNodeRequest { name: "n1".into() }).await.unwrap();
    let other = proto::RemoveNodeRequest { validate_only: true, ..request };
    let refused = coordinator.nodes().remove_node(other).await.unwrap_err();
    assert_eq!(super::reason(&refused), Reason::RequestIdReused);
}
