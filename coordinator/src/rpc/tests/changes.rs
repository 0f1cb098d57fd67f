//! Changes of a cluster's record alone: its access rules.

use holdfast_common::error::{Reason, Violation, status};
use holdfast_proto::v1 as proto;
use holdfast_proto::v1::access_service_client::AccessServiceClient;
use tonic::Status;
use tonic::transport::Channel;

use super::{Coordinator, reason};
use crate::cluster::Cluster;
use crate::cluster::tests::Sample;
use crate::procedures::records::cluster_key;

/// A coordinator with a cluster `demo`, none of whose nodes is there.
async fn demo() -> Coordinator {
    let coordinator = Coordinator::start().await;
    let cluster: Cluster = Sample::new().active(2);
    coordinator.parts.directory.put(&cluster_key(&cluster.name), &cluster).await.unwrap();
    coordinator
}

fn violations(status: &Status) -> Vec<(String, String, String)> {
    let each = status::to_failure(status).violations.into_iter();
    each.map(|Violation { name, subject, message }| (name, subject, message)).collect()
}

fn unmet(name: &str, subject: &str, message: &str) -> (String, String, String) {
    (name.to_owned(), subject.to_owned(), message.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_entry_that_does_not_fit_the_list_is_told_and_so_is_a_trial_that_is_not_there() {
    let coordinator = demo().await;
    let mut client: AccessServiceClient<Channel> =
        AccessServiceClient::new(coordinator.to_operators(Some(&coordinator.admin)));
    let add = |cidrs: &[&str]| proto::AddAccessEntriesRequest {
        cluster: "demo".into(),
        entries: cidrs
            .iter()
            .map(|cidr| proto::AccessEntry { cidr: (*cidr).into(), comment: String::new() })
            .collect(),
        ..Default::default()
    };
    client.add_access_entries(add(&["10.0.0.0/8", "192.0.2.1"])).await.unwrap();
    let refused =
        client.add_access_entries(add(&["192.0.2.1", "192.0.2.2", "10.0.0.0/8"])).await.unwrap_err();
    assert_eq!(
        violations(&refused),
        [
            unmet("entries[0].cidr", "", "192.0.2.1 is in the list already"),
            unmet("entries[2].cidr", "", "10.0.0.0/8 is in the list already"),
        ]
    );
    let remove = proto::RemoveAccessEntriesRequest {
        cluster: "demo".into(),
        cidrs: ["10.0.0.0/8", "10.0.0.0/9", "192.0.2.9"].map(str::to_owned).into(),
        ..Default::default()
    };
    let refused = client.remove_access_entries(remove).await.unwrap_err();
    assert_eq!(
        violations(&refused),
        [
            unmet("cidrs[1]", "", "10.0.0.0/9 is not in the list"),
            unmet("cidrs[2]", "", "192.0.2.9 is not in the list"),
        ]
    );

    let confirm = proto::ConfirmAccessRequest { cluster: "demo".into(), ..Default::default() };
    let refused = client.confirm_access(confirm.clone()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::PreconditionFailed);
    let message = refused.message();
    assert_eq!(violations(&refused), [unmet("trial_under_way", "clusters/demo", message)]);
    let set = proto::SetAccessRequest {
        cluster: "demo".into(),
        mode: proto::AccessMode::Open.into(),
        confirm_within: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..Default::default()
    };
    client.set_access(set.clone()).await.unwrap();
    let refused = client.set_access(set).await.unwrap_err();
    assert_eq!(violations(&refused), [unmet("no_trial", "clusters/demo", refused.message())]);
    client.confirm_access(confirm).await.unwrap();
}
