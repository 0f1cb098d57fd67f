//! What the one stream does with whatever is said on it.

use std::time::Duration;

use holdfast_common::command::{Command, DestroyMember, Payload, Progress, Success};
use holdfast_common::error::Reason;
use holdfast_common::generation::Generation;
use holdfast_common::id::{ClusterId, CommandId, EventId};
use holdfast_common::link::{
    CloseReason, CommandUpdate, FromAgent, FromCoordinator, Hello, Update, VERSIONS, Versions,
};
use holdfast_common::name::ClusterName;
use holdfast_common::report::{NodeEvent, Severity};
use holdfast_common::term::Term;
use holdfast_proto::link::v1::SessionRequest;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::{Agent, Coordinator, hello, reason};
use crate::directory;

fn command() -> Command {
    Command {
        id: CommandId::generate(),
        coordinator_generation: Generation::new(1),
        term: Term::NONE,
        deadline: Timestamp::now() + SignedDuration::from_secs(60),
        payload: Payload::DestroyMember(DestroyMember {
            cluster_id: ClusterId::generate(),
            confirm: "demo".parse().unwrap(),
        }),
    }
}

fn update(command_id: CommandId, sequence: u64, update: Update) -> FromAgent {
    FromAgent::CommandUpdate(Box::new(CommandUpdate { command_id, sequence, update }))
}

async fn closed(agent: &mut Agent) -> CloseReason {
    agent
        .wait_for(|message| match message {
            FromCoordinator::Close(close) => Some(close.reason),
            _ => None,
        })
        .await
}

async fn commanded(agent: &mut Agent) -> CommandId {
    agent
        .wait_for(|message| match message {
            FromCoordinator::Command(command) => Some(command.id),
            _ => None,
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_before_the_hello_ends_the_session() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut agent = coordinator.open(&member).await;
    agent.heartbeat(1).await;
    assert_eq!(closed(&mut agent).await, CloseReason::ProtocolViolation);
    let status = agent.hear().await.unwrap_err();
    assert_eq!(reason(&status), Reason::InvalidField);
    assert!(status.message().contains("hello"), "{}", status.message());
    assert_eq!(coordinator.parts.fleet.sessions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_senseless_message_ends_the_session_by_naming_the_field() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    for first in [true, false] {
        let mut agent =
            if first { coordinator.open(&member).await } else { coordinator.session(&member).await };
        agent.to.send(SessionRequest { message: None }).await.unwrap();
        let close = agent
            .wait_for(|message| match message {
                FromCoordinator::Close(close) => Some(close.clone()),
                _ => None,
            })
            .await;
        assert_eq!(close.reason, CloseReason::ProtocolViolation);
        assert!(close.message.contains("`message`"), "{}", close.message);
    }
    let mut agent = coordinator.session(&member).await;
    agent.say(FromAgent::Hello(Box::new(hello()))).await;
    assert_eq!(closed(&mut agent).await, CloseReason::ProtocolViolation);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_protocol_is_told_so() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut agent = coordinator.open(&member).await;
    let newer = Versions { oldest: VERSIONS.newest + 1, newest: VERSIONS.newest + 5 };
    agent.say(FromAgent::Hello(Box::new(Hello { versions: newer, ..hello() }))).await;
    assert_eq!(closed(&mut agent).await, CloseReason::VersionUnsupported);
    assert_eq!(reason(&agent.hear().await.unwrap_err()), Reason::VersionUnsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_obeys_a_newer_coordinator_is_not_taken() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut agent = coordinator.open(&member).await;
    let hello = Hello { coordinator_generation: Generation::new(99), ..hello() };
    agent.say(FromAgent::Hello(Box::new(hello))).await;
    assert_eq!(closed(&mut agent).await, CloseReason::ProtocolViolation);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_session_of_the_same_node_replaces_the_first() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut first = coordinator.session(&member).await;
    let mut second = coordinator.session(&member).await;
    assert_eq!(closed(&mut first).await, CloseReason::Superseded);
    assert!(first.hear().await.unwrap().is_none());
    second.heartbeat(3).await;
    second
        .wait_for(|message| matches!(message, FromCoordinator::HeartbeatAck { sequence: 3 }).then_some(()))
        .await;
    assert_eq!(coordinator.parts.fleet.sessions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_survives_a_lost_session_and_its_outcome_comes_back() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut agent = coordinator.session(&member).await;
    let command = command();
    let id = command.id;
    let fleet = coordinator.parts.fleet.clone();
    let (said, mut heard) = mpsc::channel(16);
    let node = member.id;
    let call =
        tokio::spawn(
            async move { fleet.call(node, command, |progress| said.try_send(progress).unwrap()).await },
        );
    assert_eq!(commanded(&mut agent).await, id);
    let progress = Progress { message: "half".into(), done_bytes: Some(5), total_bytes: Some(10) };
    agent.say(update(id, 2, Update::Progress(progress.clone()))).await;
    assert_eq!(heard.recv().await.unwrap(), progress);
    // Older progress that comes late is not told.
    agent.say(update(id, 1, Update::Progress(Progress::default()))).await;
    drop(agent);
    let mut agent = coordinator.session(&member).await;
    assert_eq!(commanded(&mut agent).await, id, "the same id, so that the node does it once");
    agent.say(update(id, 3, Update::Outcome(Ok(Success::DestroyMember { removed: true })))).await;
    assert_eq!(call.await.unwrap(), Ok(Success::DestroyMember { removed: true }));
    agent
        .wait_for(|message| {
            matches!(message, FromCoordinator::OutcomeAck(acked) if *acked == id).then_some(())
        })
        .await;
    assert!(heard.recv().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_counts_only_for_the_node_that_was_commanded() {
    let coordinator = Coordinator::start().await;
    let (one, two) = (coordinator.join("n1").await, coordinator.join("n2").await);
    let (mut first, mut second) = (coordinator.session(&one).await, coordinator.session(&two).await);
    let command = command();
    let id = command.id;
    let fleet = coordinator.parts.fleet.clone();
    let call = tokio::spawn(async move { fleet.call(one.id, command, |_| {}).await });
    commanded(&mut first).await;
    // Another node claims to have done it.
    second.say(update(id, 9, Update::Outcome(Ok(Success::SetPassword)))).await;
    second
        .wait_for(|message| {
            matches!(message, FromCoordinator::OutcomeAck(acked) if *acked == id).then_some(())
        })
        .await;
    assert!(!call.is_finished());
    first.say(update(id, 1, Update::Outcome(Ok(Success::DestroyMember { removed: false })))).await;
    assert_eq!(call.await.unwrap(), Ok(Success::DestroyMember { removed: false }));
    // Unknown and finished ones are acknowledged, so that they end.
    let unknown = CommandId::generate();
    for id in [unknown, id] {
        first.say(update(id, 5, Update::Outcome(Ok(Success::SetPassword)))).await;
        first
            .wait_for(|message| {
                matches!(message, FromCoordinator::OutcomeAck(acked) if *acked == id).then_some(())
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_event_is_stored_once_and_acknowledged_each_time() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut agent = coordinator.session(&member).await;
    let event = NodeEvent {
        id: EventId::generate(),
        time: Timestamp::now(),
        severity: Severity::Warning,
        reason: "DISK_NEARLY_FULL".into(),
        message: "3 % left".into(),
        cluster_id: None,
    };
    for _ in 0..2 {
        agent.say(FromAgent::Event(Box::new(event.clone()))).await;
        agent
            .wait_for(|message| {
                matches!(message, FromCoordinator::EventAck(id) if *id == event.id).then_some(())
            })
            .await;
    }
    let (found, _) =
        coordinator.parts.events.list(0, 100, |event| event.what.reason == "DISK_NEARLY_FULL").await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].what.actor, "node/n1", "who it is comes from the certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_event_names_its_cluster_if_it_is_on_record() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut agent = coordinator.session(&member).await;
    let (known, gone) = (ClusterId::generate(), ClusterId::generate());
    let name: ClusterName = "orders".parse().unwrap();
    coordinator.parts.directory.put(&directory::membership_key(member.id, known), &name).await.unwrap();
    for (cluster, expected) in [(known, "orders".to_owned()), (gone, gone.to_string())] {
        let event = NodeEvent {
            id: EventId::generate(),
            time: Timestamp::now(),
            severity: Severity::Info,
            reason: "ENGINE_STARTED".into(),
            message: expected.clone(),
            cluster_id: Some(cluster),
        };
        agent.say(FromAgent::Event(Box::new(event.clone()))).await;
        let stored = |message: &FromCoordinator| {
            matches!(message, FromCoordinator::EventAck(id) if *id == event.id).then_some(())
        };
        agent.wait_for(stored).await;
        let about = |event: &crate::event::Event| event.what.message == expected;
        let (found, _) = coordinator.parts.events.list(0, 100, about).await.unwrap();
        assert_eq!(found[0].what.cluster.as_deref(), Some(&*expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_coordinator_says_so() {
    let coordinator = Coordinator::start().await;
    let member = coordinator.join("n1").await;
    let mut agent = coordinator.session(&member).await;
    coordinator.tasks.stop();
    assert_eq!(closed(&mut agent).await, CloseReason::Shutdown);
    let ended =
        tokio::time::timeout(Duration::from_secs(20), coordinator.tasks.drain(Duration::from_secs(15)));
    assert!(ended.await.expect("it ends in time").unfinished.is_empty());
}
