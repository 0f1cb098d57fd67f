//! The fleet over plain messages, in paused time.

use std::time::Duration;

use holdfast_common::assignment::Assignment;
use holdfast_common::command::{Command, DestroyMember, Outcome, Payload, Success};
use holdfast_common::error::{Classify, Failure, Reason};
use holdfast_common::generation::Generation;
use holdfast_common::id::{ClusterId, CommandId, InstanceId, NodeId};
use holdfast_common::link::{
    CloseReason, CommandUpdate, FromAgent, FromCoordinator, Heartbeat, Hello, Update, VERSIONS,
};
use holdfast_common::report::NodeReport;
use holdfast_common::role::Availability;
use holdfast_common::term::Term;
use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::memory::Memory;

struct World {
    fleet: Handle,
    events: event::Handle,
    node: NodeId,
    stop: CancellationToken,
}

impl World {
    async fn new() -> Self {
        let service = Service::new(Settings {
            coordinator_generation: Generation::new(1),
            heartbeat_interval: liveness::HEARTBEAT_INTERVAL,
            metrics_interval: liveness::METRICS_INTERVAL,
        });
        let fleet = service.handle();
        let events = event::Handle::open(Memory::shared()).await.unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(service.run(events.clone(), stop.clone()));
        let node = NodeId::generate();
        fleet.admit(
            directory::Node {
                id: node,
                name: "n1".parse().unwrap(),
                address: [192, 0, 2, 1].into(),
                joined_at: Timestamp::now(),
                certificates: Vec::new(),
                drained: None,
            },
            None,
        );
        Self { fleet, events, node, stop }
    }

    fn open(&self) -> Session {
        self.open_with(Generation::NONE)
    }

    fn open_with(&self, assignment_generation: Generation) -> Session {
        let hello = Hello {
            versions: VERSIONS,
            agent_version: "0.1.0".into(),
            boot_id: "boot".into(),
            instance_id: InstanceId::generate(),
            inventory: crate::rpc::tests::inventory(),
            assignment_generation,
            coordinator_generation: Generation::new(u64::from(assignment_generation != Generation::NONE)),
            unfinished: Vec::new(),
            node_time: Timestamp::now(),
        };
        self.fleet.open(self.node, hello).unwrap().0
    }

    fn availability(&self) -> Availability {
        self.fleet.node(self.node).unwrap().availability
    }

    async fn reasons(&self) -> Vec<String> {
        let (events, _) = self.events.list(0, 100, |_| true).await.unwrap();
        events.into_iter().rev().map(|event| event.what.reason).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn command(seconds: i64) -> Command {
    Command {
        id: CommandId::generate(),
        coordinator_generation: Generation::new(1),
        term: Term::NONE,
        deadline: Timestamp::now() + SignedDuration::from_secs(seconds),
        payload: Payload::DestroyMember(DestroyMember {
            cluster_id: ClusterId::generate(),
            confirm: "demo".parse().unwrap(),
        }),
    }
}

fn heartbeat(sequence: u64) -> FromAgent {
    let report = NodeReport {
        members: Vec::new(),
        assignment_generation: Generation::NONE,
        node_time: Timestamp::now(),
    };
    FromAgent::Heartbeat(Box::new(Heartbeat { sequence, report }))
}

fn ended(id: CommandId, outcome: Outcome) -> FromAgent {
    let update = Update::Outcome(outcome);
    FromAgent::CommandUpdate(Box::new(CommandUpdate { command_id: id, sequence: 1, update }))
}

fn assignment(generation: u64) -> Assignment {
    Assignment {
        coordinator_generation: Generation::new(1),
        generation: Generation::new(generation),
        members: Vec::new(),
    }
}

async fn seconds(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_late_then_offline_then_back() {
    let world = World::new().await;
    assert_eq!(world.availability(), Availability::Late);
    let session = world.open();
    assert_eq!(world.availability(), Availability::Online);
    seconds(3.5).await;
    assert_eq!(world.availability(), Availability::Late);
    // It reads what it is told, but says nothing.
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(1), session.next()).await {}
    seconds(7.0).await;
    assert_eq!(world.availability(), Availability::Offline);
    session.receive(heartbeat(1)).unwrap();
    assert_eq!(world.availability(), Availability::Online);
    seconds(0.5).await;
    assert_eq!(world.reasons().await, ["NODE_OFFLINE", "NODE_ONLINE"], "being late is not worth an event");
}

#[tokio::test(start_paused = true)]
async fn a_closed_session_may_come_back_within_five_seconds_unnoticed() {
    let world = World::new().await;
    drop(world.open());
    seconds(2.0).await;
    assert_eq!(world.availability(), Availability::Online);
    let session = world.open();
    session.receive(heartbeat(1)).unwrap();
    drop(session);
    seconds(5.5).await;
    assert_eq!(world.availability(), Availability::Offline);
    assert_eq!(world.reasons().await, ["NODE_OFFLINE"]);
}

#[tokio::test(start_paused = true)]
async fn a_call_to_a_node_that_never_comes_was_not_sent() {
    let world = World::new().await;
    let began = Instant::now();
    let error = world.fleet.call(world.node, command(10), |_| {}).await.unwrap_err();
    assert!(matches!(error, CallError::NotSent { .. }), "{error:?}");
    assert!(began.elapsed() >= Duration::from_secs(9) && began.elapsed() < Duration::from_secs(11));
    let gone = world.fleet.call(NodeId::generate(), command(10), |_| {}).await.unwrap_err();
    assert!(matches!(gone, CallError::NotSent { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_sent_and_not_answered_may_have_run_and_is_cancelled() {
    let world = World::new().await;
    let session = world.open();
    let command = command(10);
    let id = command.id;
    let fleet = world.fleet.clone();
    let node = world.node;
    let call = tokio::spawn(async move { fleet.call(node, command, |_| {}).await });
    let mut said = Vec::new();
    for second in 0..12 {
        seconds(1.0).await;
        session.receive(heartbeat(second)).unwrap();
        while let Some(Some(message)) = futures::FutureExt::now_or_never(session.next()) {
            said.push(message);
        }
    }
    assert!(
        said.iter().any(|message| matches!(message, FromCoordinator::CancelCommand(sent) if *sent == id))
    );
    assert!(said.iter().any(|message| matches!(message, FromCoordinator::Command(sent) if sent.id == id)));
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, CallError::Unanswered { .. }), "{error:?}");
    assert_eq!(Classify::reason(&error), Reason::CommandTimedOut);
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_for_the_same_command_get_its_first_outcome() {
    let world = World::new().await;
    let session = world.open();
    let command = command(60);
    let id = command.id;
    let calls: Vec<_> = (0..2)
        .map(|_| {
            let (fleet, node, command) = (world.fleet.clone(), world.node, command.clone());
            tokio::spawn(async move { fleet.call(node, command, |_| {}).await })
        })
        .collect();
    seconds(0.1).await;
    let mut sent = 0;
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_millis(1), session.next()).await {
        sent += usize::from(matches!(message, FromCoordinator::Command(_)));
    }
    assert_eq!(sent, 1);
    let failure = Failure::new(Reason::EngineFailed, "no");
    session.receive(ended(id, Err(failure.clone()))).unwrap();
    session.receive(ended(id, Ok(Success::SetPassword))).unwrap();
    for call in calls {
        assert_eq!(call.await.unwrap(), Err(CallError::Failed(failure.clone())));
    }
}

#[tokio::test(start_paused = true)]
async fn the_newest_assignment_wins_and_is_sent_only_where_it_is_new() {
    let world = World::new().await;
    world.fleet.assign(world.node, assignment(5));
    world.fleet.assign(world.node, assignment(4));
    let assigned = |session: &Session| {
        let mut found = Vec::new();
        while let Some(Some(message)) = futures::FutureExt::now_or_never(session.next()) {
            if let FromCoordinator::Assignment(assignment) = message {
                found.push(assignment.generation.get());
            }
        }
        found
    };
    let session = world.open();
    assert_eq!(assigned(&session), [5]);
    for generation in [6, 7, 6] {
        world.fleet.assign(world.node, assignment(generation));
    }
    assert_eq!(assigned(&session), [7], "only the newest of those that wait");
    let session = world.open_with(Generation::new(7));
    assert_eq!(assigned(&session), [0_u64; 0], "it has that one already");
}

#[tokio::test(start_paused = true)]
async fn a_removed_nodes_calls_fail_and_its_session_ends() {
    let world = World::new().await;
    let session = world.open();
    let (fleet, node) = (world.fleet.clone(), world.node);
    let call = tokio::spawn(async move { fleet.call(node, command(60), |_| {}).await });
    seconds(0.1).await;
    world.fleet.remove(world.node);
    assert!(matches!(call.await.unwrap(), Err(CallError::NotSent { .. })));
    loop {
        if let FromCoordinator::Close(close) = session.next().await.unwrap() {
            assert_eq!(close.reason, CloseReason::NodeRemoved);
            break;
        }
    }
    assert!(session.next().await.is_none());
    session.over().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_read_is_bounded_and_then_cut_off() {
    let world = World::new().await;
    let session = world.open();
    let mut calls = Vec::new();
    for _ in 0..MAX_CALLS + 10 {
        let (fleet, node) = (world.fleet.clone(), world.node);
        calls.push(tokio::spawn(async move { fleet.call(node, command(3600), |_| {}).await }));
    }
    for sequence in 0..10_000 {
        session.receive(heartbeat(sequence)).unwrap();
        session.receive(ended(CommandId::generate(), Ok(Success::SetPassword))).unwrap();
    }
    seconds(0.1).await;
    let refused = calls.iter().filter(|call| call.is_finished()).count();
    assert_eq!(refused, 10, "so many commands are too many");
    tokio::time::timeout(Duration::from_secs(60), session.over()).await.expect("cut off");
    assert!(session.next().await.is_none());
    drop(session);
    // The next session gets the commands, and not what was said to the last one.
    let session = world.open();
    let mut said = 0;
    while let Some(Some(message)) = futures::FutureExt::now_or_never(session.next()) {
        assert!(!matches!(message, FromCoordinator::OutcomeAck(_) | FromCoordinator::HeartbeatAck { .. }));
        said += 1;
    }
    assert_eq!(said, 1 + MAX_CALLS);
    for call in calls {
        call.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_says_nothing_new_wakes_nobody() {
    let world = World::new().await;
    let session = world.open();
    session.receive(heartbeat(1)).unwrap();
    let changes = world.fleet.changes();
    for sequence in 2..5 {
        session.receive(heartbeat(sequence)).unwrap();
    }
    assert!(!changes.has_changed().unwrap());
    let received = world.fleet.node(world.node).unwrap().report.unwrap().received_at;
    assert!(Timestamp::now().duration_since(received) < SignedDuration::from_secs(60));
}
