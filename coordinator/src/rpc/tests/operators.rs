//! What operators see and do.

use holdfast_common::error::Reason;
use holdfast_common::report::Severity;
use holdfast_proto::v1::event_service_client::EventServiceClient;
use holdfast_proto::v1::identity_service_client::IdentityServiceClient;
use holdfast_proto::v1::node_service_client::NodeServiceClient;
use holdfast_proto::v1::operation_service_client::OperationServiceClient;
use holdfast_proto::v1::{self as proto, WatchKind};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tonic_reflection::pb::{v1, v1alpha};
use uuid::Uuid;

use super::{Coordinator, first, reason, with_token};
use crate::directory::OperatorRole;
use crate::event::{AuditRecord, Decision, NewEvent};

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_told_who_they_are() {
    let coordinator = Coordinator::start().await;
    let caller = coordinator.identities().get_caller(proto::GetCallerRequest {}).await.unwrap().into_inner();
    assert_eq!((&*caller.name, &*caller.method), ("operator/admin", "certificate"));
    let token = coordinator.access_token().await;
    let mut anonymous = IdentityServiceClient::new(coordinator.to_operators(None));
    let caller =
        anonymous.get_caller(with_token(proto::GetCallerRequest {}, &token)).await.unwrap().into_inner();
    assert_eq!((&*caller.name, &*caller.method), ("operator/admin", "token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_id_gets_the_same_secret_and_another_request_is_refused() {
    let coordinator = Coordinator::start().await;
    let request = proto::CreateJoinTokenRequest {
        request_id: Uuid::now_v7().to_string(),
        uses: Some(3),
        ..Default::default()
    };
    let mut identities = coordinator.identities();
    let first = identities.create_join_token(request.clone()).await.unwrap().into_inner();
    let second = identities.create_join_token(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, second);
    let tokens =
        identities.list_join_tokens(proto::ListJoinTokensRequest::default()).await.unwrap().into_inner();
    assert_eq!(tokens.join_tokens.len(), 1);
    let other = proto::CreateJoinTokenRequest { uses: Some(4), ..request };
    let refused = identities.create_join_token(other).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::RequestIdReused);
    // At rest neither the token nor what is remembered of it can be read.
    let stored: Vec<u8> = std::fs::read(coordinator.state.store()).unwrap();
    let wal = std::fs::read(coordinator.state.store().with_extension("db-wal")).unwrap_or_default();
    let secret = first.token.split('.').nth(2).unwrap().as_bytes();
    for bytes in [stored, wal] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_bad_fields_are_named_at_once() {
    let coordinator = Coordinator::start().await;
    let request = proto::CreateJoinTokenRequest {
        ttl: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        uses: Some(1_000_000),
        description: "a\u{202e}b".into(),
        node_name: "../x".into(),
        request_id: String::new(),
        rejoin: true,
    };
    let refused = coordinator.identities().create_join_token(request).await.unwrap_err();
    for field in ["ttl", "uses", "description", "node_name"] {
        assert!(refused.message().contains(&format!("`{field}`")), "{}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_a_use_is_refused_and_one_unsaid_has_one() {
    let coordinator = Coordinator::start().await;
    let token = async |uses| {
        let request = proto::CreateJoinTokenRequest { uses, ..Default::default() };
        coordinator.identities().create_join_token(request).await.map(tonic::Response::into_inner)
    };
    let refused = token(Some(0)).await.unwrap_err();
    assert!(refused.message().contains("`uses` is 0; must be from 1 to"), "{}", refused.message());
    assert_eq!(token(None).await.unwrap().join_token.unwrap().uses_allowed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_wrong_with_a_query_of_metrics_is_told_at_once() {
    let coordinator = Coordinator::start().await;
    let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let request = proto::QueryMetricsRequest {
        node: "../x".into(),
        series: vec!["nonsense".into(), "cpu_busy_fraction".into(), "folly".into()],
        start_time: time(1_000),
        end_time: time(999),
        step: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
    };
    let refused = coordinator.nodes().query_metrics(request).await.unwrap_err();
    for field in ["node", "series[0]", "series[2]", "start_time", "step"] {
        let named = refused.message().matches(&format!("`{field}`")).count();
        assert_eq!(named, 1, "{field}: {}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_that_name_what_never_was_are_refused() {
    let coordinator = Coordinator::start().await;
    let mut events = EventServiceClient::new(coordinator.to_operators(Some(&coordinator.admin)));
    let mut operations = OperationServiceClient::new(coordinator.to_operators(Some(&coordinator.admin)));
    let mut nodes = coordinator.nodes();
    let of = |node: &str, cluster: &str| proto::ListEventsRequest {
        node: node.into(),
        cluster: cluster.into(),
        ..Default::default()
    };
    let watch = proto::WatchNodesRequest { names: vec!["n9".into()] };
    assert_eq!(reason(&nodes.watch_nodes(watch).await.unwrap_err()), Reason::NodeNotFound);
    let refused = events.list_events(of("n9", "")).await.unwrap_err();
    assert_eq!((reason(&refused), refused.message().contains("`n9`")), (Reason::NodeNotFound, true));
    let refused = events.list_events(of("", "c9")).await.unwrap_err();
    assert_eq!((reason(&refused), refused.message().contains("`c9`")), (Reason::ClusterNotFound, true));
    let follow = |node: &str, cluster: &str| proto::WatchEventsRequest {
        node: node.into(),
        cluster: cluster.into(),
        ..Default::default()
    };
    let refused = events.watch_events(follow("n9", "")).await.unwrap_err();
    assert_eq!((reason(&refused), refused.message().contains("`n9`")), (Reason::NodeNotFound, true));
    let refused = events.watch_events(follow("", "c9")).await.unwrap_err();
    assert_eq!((reason(&refused), refused.message().contains("`c9`")), (Reason::ClusterNotFound, true));
    let refused = events.list_events(of("../x", "")).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidField);
    let listed =
        |resource: &str| proto::ListOperationsRequest { resource: resource.into(), ..Default::default() };
    let refused = operations.list_operations(listed("clusters/c9")).await.unwrap_err();
    assert_eq!((reason(&refused), refused.message().contains("`c9`")), (Reason::ClusterNotFound, true));
    let refused = operations.list_operations(listed("c9")).await.unwrap_err();
    assert!(refused.message().contains("`resource`"), "{}", refused.message());

    // What is there, or was, is answered: the node by its record, the cluster by an event.
    coordinator.join("n1").await;
    events.list_events(of("n1", "")).await.unwrap();
    let gone = NewEvent {
        cluster: Some("gone".to_owned()),
        ..NewEvent::new(Severity::Info, "CLUSTER_DELETED", "it is gone".to_owned())
    };
    coordinator.parts.events.record(gone).await.unwrap();
    let answer = events.list_events(of("", "gone")).await.unwrap().into_inner();
    assert_eq!(answer.events.len(), 1);
    let none = proto::ListEventsRequest { severity: proto::Severity::Error.into(), ..of("", "gone") };
    assert!(events.list_events(none).await.unwrap().into_inner().events.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_admin_stays() {
    let coordinator = Coordinator::start().await;
    let mut identities = coordinator.identities();
    let remove = |name: &str| proto::RemoveOperatorRequest { name: name.into(), confirm: name.into() };
    let refused = identities.remove_operator(remove("admin")).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::PreconditionFailed);
    let unconfirmed = proto::RemoveOperatorRequest { name: "admin".into(), confirm: String::new() };
    assert_eq!(reason(&identities.remove_operator(unconfirmed).await.unwrap_err()), Reason::NotConfirmed);
    assert_eq!(
        reason(&identities.remove_operator(remove("nobody")).await.unwrap_err()),
        Reason::OperatorNotFound
    );
    // Two admins who remove each other at the same time: one of them stays.
    coordinator.operator("second", OperatorRole::Admin).await;
    let (one, other) = ("admin".parse().unwrap(), "second".parse().unwrap());
    let identity = &coordinator.parts.identity;
    let (a, b) = tokio::join!(identity.remove_operator(&one), identity.remove_operator(&other));
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_cannot_make_one_that_outlives_it() {
    let coordinator = Coordinator::start().await;
    let hour = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    let request = proto::CreateAccessTokenRequest { ttl: hour, ..Default::default() };
    let token = coordinator.identities().create_access_token(request).await.unwrap().into_inner().token;
    let mut by_token = IdentityServiceClient::new(coordinator.to_operators(None));
    let day = Some(prost_types::Duration { seconds: 86400, nanos: 0 });
    let request = proto::CreateAccessTokenRequest { ttl: day, ..Default::default() };
    let refused = by_token.create_access_token(with_token(request, &token)).await.unwrap_err();
    assert!(refused.message().contains("`ttl`"), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_sees_and_revokes_only_their_own_tokens() {
    let coordinator = Coordinator::start().await;
    let viewer = coordinator.operator("viewer", OperatorRole::Viewer).await;
    let mut viewer = IdentityServiceClient::new(coordinator.to_operators(Some(&viewer)));
    let create = || proto::CreateAccessTokenRequest {
        ttl: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
        ..Default::default()
    };
    let admins = coordinator.identities().create_access_token(create()).await.unwrap().into_inner();
    let own = viewer.create_access_token(create()).await.unwrap().into_inner().access_token.unwrap();
    let listed =
        viewer.list_access_tokens(proto::ListAccessTokensRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.access_tokens, std::slice::from_ref(&own));
    let id = admins.access_token.unwrap().id;
    let refused = viewer.revoke_access_token(proto::RevokeAccessTokenRequest { id }).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::TokenNotFound);
    viewer.revoke_access_token(proto::RevokeAccessTokenRequest { id: own.id }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_token_it_began_with_and_only_it() {
    let coordinator = Coordinator::start().await;
    let mut identities = coordinator.identities();
    let mut watches = Vec::new();
    for _ in 0..2 {
        let token = identities.create_access_token(proto::CreateAccessTokenRequest::default());
        let token = token.await.unwrap().into_inner();
        let mut nodes = NodeServiceClient::new(coordinator.to_operators(None));
        let request = with_token(proto::WatchNodesRequest::default(), &token.token);
        let mut watch = nodes.watch_nodes(request).await.unwrap().into_inner();
        assert_eq!(first(&mut watch).await.unwrap().kind(), WatchKind::Synced);
        watches.push((token.access_token.unwrap().id, watch));
    }
    let (id, mut revoked) = watches.remove(0);
    identities.revoke_access_token(proto::RevokeAccessTokenRequest { id }).await.unwrap();
    let ended = first(&mut revoked).await.unwrap_err();
    assert_eq!(reason(&ended), Reason::NotPermitted);
    coordinator.join("n1").await;
    assert_eq!(first(&mut watches[0].1).await.unwrap().kind(), WatchKind::Changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_removed_operator() {
    let coordinator = Coordinator::start().await;
    let gone = coordinator.operator("gone", OperatorRole::Viewer).await;
    let mut events = EventServiceClient::new(coordinator.to_operators(Some(&gone)));
    let mut watch = events.watch_events(proto::WatchEventsRequest::default()).await.unwrap().into_inner();
    let request = proto::RemoveOperatorRequest { name: "gone".into(), confirm: "gone".into() };
    coordinator.identities().remove_operator(request).await.unwrap();
    assert_eq!(reason(&first(&mut watch).await.unwrap_err()), Reason::NotPermitted);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_listed_by_name_page_by_page() {
    let coordinator = Coordinator::start().await;
    for name in ["n3", "n1", "n2"] {
        coordinator.join(name).await;
    }
    let mut nodes = coordinator.nodes();
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = proto::ListNodesRequest { page_size: 2, page_token };
        let page = nodes.list_nodes(request).await.unwrap().into_inner();
        names.extend(page.nodes.into_iter().map(|node| node.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["n1", "n2", "n3"]);
    let missing = nodes.get_node(proto::GetNodeRequest { name: "n9".into() }).await.unwrap_err();
    assert_eq!(reason(&missing), Reason::NodeNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_nodes_begins_with_all_then_tells_changes_and_removals() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut watch =
        coordinator.nodes().watch_nodes(proto::WatchNodesRequest::default()).await.unwrap().into_inner();
    assert_eq!(first(&mut watch).await.unwrap().kind(), WatchKind::Changed);
    assert_eq!(first(&mut watch).await.unwrap().kind(), WatchKind::Synced);
    let _agent = coordinator.session(&member).await;
    loop {
        let change = first(&mut watch).await.unwrap();
        if change.node.unwrap().availability() == proto::Availability::Online {
            break;
        }
    }
    let request = proto::RemoveNodeRequest { name: "n1".into(), confirm: "n1".into(), ..Default::default() };
    coordinator.nodes().remove_node(request).await.unwrap();
    while first(&mut watch).await.unwrap().kind() != WatchKind::Removed {}
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_from_a_number_on() {
    let coordinator = Coordinator::start().await;
    let mut numbers = Vec::new();
    for number in 0..3 {
        let event = NewEvent::new(Severity::Info, "TEST", number.to_string()).on_node("n1");
        numbers.push(coordinator.parts.events.record(event).await.unwrap().id);
    }
    let mut events = EventServiceClient::new(coordinator.to_operators(Some(&coordinator.admin)));
    let request = proto::WatchEventsRequest {
        after_id: numbers[0].to_string(),
        node: "n1".into(),
        ..Default::default()
    };
    let mut watch = events.watch_events(request).await.unwrap().into_inner();
    assert_eq!(first(&mut watch).await.unwrap().event.unwrap().message, "1");
    assert_eq!(first(&mut watch).await.unwrap().event.unwrap().message, "2");
    coordinator.parts.events.record(NewEvent::new(Severity::Error, "TEST", "other")).await.unwrap();
    coordinator.parts.events.record(NewEvent::new(Severity::Info, "TEST", "3").on_node("n1")).await.unwrap();
    assert_eq!(first(&mut watch).await.unwrap().event.unwrap().message, "3");
    let bad = proto::WatchEventsRequest { after_id: "x".into(), ..Default::default() };
    assert!(events.watch_events(bad).await.unwrap_err().message().contains("`after_id`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_calls_are_written_down_allowed_or_denied() {
    let coordinator = Coordinator::start().await;
    let viewer = coordinator.operator("viewer", OperatorRole::Viewer).await;
    let mut denied = IdentityServiceClient::new(coordinator.to_operators(Some(&viewer)));
    denied.create_join_token(proto::CreateJoinTokenRequest::default()).await.unwrap_err();
    coordinator.join_token(1).await;
    let bad = proto::CreateJoinTokenRequest { uses: Some(1_000_000), ..Default::default() };
    coordinator.identities().create_join_token(bad).await.unwrap_err();
    coordinator.nodes().list_nodes(proto::ListNodesRequest::default()).await.unwrap();
    let records = coordinator.parts.directory.list::<AuditRecord>("audit/").await.unwrap();
    let method = "holdfast.v1.IdentityService/CreateJoinToken";
    assert!(records.iter().all(|record| record.value.method == method), "{records:?}");
    let told: Vec<_> =
        records.iter().map(|record| (&*record.value.actor, record.value.decision.clone())).collect();
    let ended =
        |place: usize, code: &str| Decision::Ended { call: records[place].value.id, code: code.into() };
    let admin = "operator/admin";
    assert_eq!(
        told,
        [
            ("operator/viewer", Decision::Denied { why: Reason::NotPermitted.to_string() }),
            (admin, Decision::Allowed),
            (admin, ended(1, "Ok")),
            (admin, Decision::Allowed),
            (admin, ended(3, "InvalidArgument")),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn both_reflections_list_every_service() {
    let coordinator = Coordinator::start().await;
    let channel = coordinator.to_operators(Some(&coordinator.admin));
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut new = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut answers =
        new.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        first(&mut answers).await.unwrap().message_response
    else {
        panic!("not a list");
    };
    let names: Vec<_> = list.service.iter().map(|service| &*service.name).collect();
    for service in [
        "NodeService",
        "IdentityService",
        "EventService",
        "OperationService",
        "ClusterService",
        "AccessService",
    ] {
        assert!(names.contains(&&*format!("holdfast.v1.{service}")), "{service} in {names:?}");
    }
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            "google.rpc.ErrorInfo".into(),
        )),
    };
    let mut old = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers =
        old.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
    let response = first(&mut answers).await.unwrap().message_response;
    assert!(
        matches!(
            response,
            Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
        ),
        "{response:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_needs_an_identity_and_gets_the_nodes() {
    let coordinator = Coordinator::start().await;
    coordinator.join("n1").await;
    let token = coordinator.access_token().await;
    assert_eq!(scrape(&coordinator, None).await.0, 401);
    let (code, text) = scrape(&coordinator, Some(&token)).await;
    assert_eq!(code, 200);
    for line in [
        "holdfast_nodes{availability=\"late\"} 1",
        "holdfast_node_online{node=\"n1\"} 0",
        "holdfast_build_info{version=\"",
        "holdfast_rpcs_total{method=\"holdfast.v1.IdentityService/CreateAccessToken\",code=\"OK\"} 1",
        "holdfast_rpcs_total{method=\"metrics\",code=\"UNAUTHENTICATED\"} 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line}\nin\n{text}");
    }
}

/// HTTP/1.1, as Prometheus speaks it.
async fn scrape(coordinator: &Coordinator, token: Option<&str>) -> (u16, String) {
    let stream = tokio::net::TcpStream::connect(coordinator.operators).await.unwrap();
    let roots = coordinator.roots();
    let mut store = rustls::RootCertStore::empty();
    store.add(roots.roots()[0].clone()).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(store)
            .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = http::Request::get("/metrics").header("host", "127.0.0.1");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8(body.to_vec()).unwrap())
}
