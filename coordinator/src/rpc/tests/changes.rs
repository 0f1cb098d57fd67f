//! Changes of a cluster's record alone: its access rules, its pause; and what is shown of its members on a node.

use holdfast_common::budget::{Budget, Tuning};
use holdfast_common::engine::Engine;
use holdfast_common::error::{Reason, Violation, status};
use holdfast_common::generation::Generation;
use holdfast_common::link::{FromAgent, Heartbeat};
use holdfast_common::report::{EngineState, MemberReport, NodeReport};
use holdfast_common::term::Term;
use holdfast_proto::v1 as proto;
use holdfast_proto::v1::access_service_client::AccessServiceClient;
use holdfast_proto::v1::cluster_service_client::ClusterServiceClient;
use jiff::Timestamp;
use tonic::Status;
use tonic::transport::Channel;
use uuid::Uuid;

use super::{Coordinator, reason};
use crate::app::Parts;
use crate::cluster::Cluster;
use crate::cluster::tests::Sample;
use crate::event::Event;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_a_pause_and_of_its_end_changes_nothing_and_says_what_stands() {
    let coordinator = demo().await;
    let mut client: ClusterServiceClient<Channel> =
        ClusterServiceClient::new(coordinator.to_operators(Some(&coordinator.admin)));
    let request_id = Uuid::now_v7().to_string();
    let pause = |validate_only| proto::PauseClusterRequest {
        cluster: "demo".into(),
        reason: "new switches".into(),
        request_id: if validate_only { String::new() } else { request_id.clone() },
        validate_only,
    };
    let resume = |validate_only| proto::ResumeClusterRequest {
        cluster: "demo".into(),
        request_id: String::new(),
        validate_only,
    };
    let shown = proto::GetClusterRequest { name: "demo".into() };
    let told = async || {
        let by_admin = |event: &Event| event.what.actor == "operator/admin";
        coordinator.parts.events.list(0, 100, by_admin).await.unwrap().0.len()
    };

    let plan = paused_plan(client.pause_cluster(pause(true)).await.unwrap().into_inner());
    assert!(plan.steps[0].title.contains("demo") && plan.preconditions.is_empty(), "{plan:?}");
    assert!(!plan.notes.iter().any(|note| note.contains("new switches")), "{plan:?}");
    let plan = resumed_plan(client.resume_cluster(resume(true)).await.unwrap().into_inner());
    assert!(plan.notes.iter().any(|note| note.contains("not paused")), "{plan:?}");
    assert_eq!(client.get_cluster(shown.clone()).await.unwrap().into_inner().cluster.unwrap().pause, None);
    assert_eq!(told().await, 0, "a plan is no event");

    let paused = client.pause_cluster(pause(false)).await.unwrap().into_inner().outcome;
    let Some(proto::pause_cluster_response::Outcome::Cluster(cluster)) = paused else { panic!("{paused:?}") };
    let pause_now = cluster.pause.clone().unwrap();
    assert_eq!((&*pause_now.by, &*pause_now.reason), ("operator/admin", "new switches"));
    let again = client.pause_cluster(pause(false)).await.unwrap().into_inner().outcome;
    assert_eq!(again, Some(proto::pause_cluster_response::Outcome::Cluster(cluster)));
    assert_eq!(told().await, 1, "a repeat is no second pause");
    for notes in [
        paused_plan(client.pause_cluster(pause(true)).await.unwrap().into_inner()).notes,
        resumed_plan(client.resume_cluster(resume(true)).await.unwrap().into_inner()).notes,
    ] {
        assert!(notes.iter().any(|note| note.contains("by operator/admin since")), "{notes:?}");
    }
    let cluster = client.get_cluster(shown).await.unwrap().into_inner().cluster.unwrap();
    assert_eq!(cluster.pause, Some(pause_now), "a plan has changed it");
    let resumed = client.resume_cluster(resume(false)).await.unwrap().into_inner().outcome;
    let Some(proto::resume_cluster_response::Outcome::Cluster(cluster)) = resumed else {
        panic!("{resumed:?}")
    };
    assert_eq!((cluster.pause, told().await), (None, 2));

    let nobody = proto::PauseClusterRequest { cluster: "nobody".into(), ..pause(true) };
    assert_eq!(reason(&client.pause_cluster(nobody).await.unwrap_err()), Reason::ClusterNotFound);
    let bad = proto::PauseClusterRequest { reason: "two\nlines".into(), ..pause(true) };
    assert_eq!(reason(&client.pause_cluster(bad).await.unwrap_err()), Reason::InvalidField);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_shown_with_what_its_members_count_on() {
    let coordinator = Coordinator::start().await;
    let node = coordinator.join("n1").await;
    let mut cluster: Cluster = Sample::new().active(1);
    cluster.members[0].node_id = node.id;
    cluster.primary = Some(node.id);
    coordinator.parts.directory.put(&cluster_key(&cluster.name), &cluster).await.unwrap();
    let agent = coordinator.session(&node).await;
    let assigned = |parts: &Parts| parts.fleet.node(node.id).is_some_and(|view| view.assignment.is_some());
    coordinator.until("the node to be told of its member", assigned).await;

    let shown = async || {
        let request = proto::GetNodeRequest { name: "n1".into() };
        coordinator.nodes().get_node(request).await.unwrap().into_inner().node.unwrap()
    };
    let unknown = proto::NodeMember { cluster: "demo".into(), tuning: None };
    assert_eq!(shown().await.members, [unknown]);
    let kept = Budget { memory_bytes: 2 << 30, cores: 2, disk_bytes: 40 << 30 };
    let tuning = Tuning { kept, possible: Budget { cores: 4, ..kept }, resized: true };
    let stopped = MemberReport::only(cluster.id, Engine::Postgresql, EngineState::Stopped, Term::NONE);
    let report = NodeReport {
        members: vec![MemberReport { tuning: Some(tuning), ..stopped }],
        assignment_generation: Generation::NONE,
        node_time: Timestamp::now(),
    };
    agent.say(FromAgent::Heartbeat(Box::new(Heartbeat { sequence: 1, report }))).await;
    let heard = |parts: &Parts| parts.fleet.node(node.id).is_some_and(|view| view.report.is_some());
    coordinator.until("a report", heard).await;
    let members = shown().await.members;
    let told = members[0].tuning.unwrap();
    assert_eq!((members.len(), told), (1, (&tuning).into()));
}

fn paused_plan(response: proto::PauseClusterResponse) -> proto::Plan {
    match response.outcome {
        Some(proto::pause_cluster_response::Outcome::Plan(plan)) => plan,
        other => panic!("no plan: {other:?}"),
    }
}

fn resumed_plan(response: proto::ResumeClusterResponse) -> proto::Plan {
    match response.outcome {
        Some(proto::resume_cluster_response::Outcome::Plan(plan)) => plan,
        other => panic!("no plan: {other:?}"),
    }
}
