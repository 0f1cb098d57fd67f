//! What is too much is refused by naming the limit.

use std::time::Duration;

use holdfast_common::error::{Reason, status};
use holdfast_proto::link::v1::EnrollRequest;
use holdfast_proto::v1 as proto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use super::{Coordinator, enroll_request, reason};

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_are_refused_by_naming_the_limit() {
    let coordinator = Coordinator::start().await;
    let description = "x".repeat(10 * 1024 * 1024);
    let request = proto::CreateJoinTokenRequest { description, ..Default::default() };
    let refused = coordinator.identities().create_join_token(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(reason(&refused), Reason::MessageTooLarge);
    assert!(refused.message().contains("1048576"), "{}", refused.message());
    assert!(refused.message().contains("`description`"), "{}", refused.message());
    assert_eq!(status::to_failure(&refused).violations[0].name, "description");
    let (_, good) = enroll_request(&coordinator.join_token(1).await, "n1");
    let refused = coordinator.enroll(EnrollRequest { node_name: "n".repeat(10 << 20), ..good.clone() }).await;
    assert_eq!(refused.unwrap_err().reason, Reason::MessageTooLarge);
    coordinator.enroll(good).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_too_often_is_refused_until_later() {
    let coordinator = Coordinator::start_with(|config| {
        config.limits.enroll_burst = 5.try_into().unwrap();
        config.limits.enroll_per_second = 1.try_into().unwrap();
    })
    .await;
    let tries = (0..50).map(|number| coordinator.enroll(enroll_request("hf1", &format!("n{number}")).1));
    let answers = futures::future::join_all(tries).await;
    let reasons: Vec<_> = answers.into_iter().map(|answer| answer.unwrap_err().reason).collect();
    assert!(reasons.iter().filter(|reason| **reason == Reason::TokenInvalid).count() < 15, "{reasons:?}");
    assert!(reasons.iter().filter(|reason| **reason == Reason::TooManyRequests).count() > 35, "{reasons:?}");
    // Nobody else is concerned.
    coordinator.nodes().list_nodes(proto::ListNodesRequest::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_address_are_bounded() {
    let coordinator = Coordinator::start_with(|config| {
        config.limits.agent_connections_per_address = 3;
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpStream::connect(coordinator.agents).await.unwrap());
    }
    // The fourth is let go at once; those that say nothing have ten seconds.
    let mut fourth = TcpStream::connect(coordinator.agents).await.unwrap();
    let _ = fourth.write_all(b"x").await;
    let read = tokio::time::timeout(Duration::from_secs(5), fourth.read(&mut [0; 16])).await;
    assert!(matches!(read.expect("closed in time"), Ok(0) | Err(_)));
    drop(held);
    let joined = async {
        while coordinator.enroll(enroll_request(&coordinator.join_token(1).await, "n1").1).await.is_err() {}
    };
    tokio::time::timeout(super::PATIENCE, joined).await.expect("there is room again");
}
