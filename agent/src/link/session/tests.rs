//! A session over in-memory channels, in paused time.

use std::sync::{Arc, Mutex};

use holdfast_common::assignment::Assignment;
use holdfast_common::command::{CheckMember, Command, Payload, Success};
use holdfast_common::engine::Engine;
use holdfast_common::generation::Generation;
use holdfast_common::id::{ClusterId, InstanceId, SessionId};
use holdfast_common::link::{CloseReason, Update};
use holdfast_common::set_aside;
use holdfast_common::telemetry::{Bounded, Inventory, OperatingSystem, Pressure, Privilege, ServiceManager};
use holdfast_common::term::Term;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Node {
    outbox: Outbox,
    clock: Clock,
    orders: Mutex<Vec<Order>>,
    assignments: Mutex<Vec<Assignment>>,
    /// There is room for orders only after this.
    room: Option<Notify>,
    news: Notify,
}

impl Below for Node {
    fn hello(&self) -> BoxFuture<'_, Hello> {
        Box::pin(async {
            Hello {
                versions: VERSIONS,
                agent_version: "0".into(),
                boot_id: "b".into(),
                instance_id: InstanceId::generate(),
                inventory: inventory(),
                assignment_generation: Generation::NONE,
                coordinator_generation: Generation::NONE,
                unfinished: vec![],
                node_time: self.clock.now(),
            }
        })
    }

    fn report(&self) -> NodeReport {
        NodeReport { members: vec![], assignment_generation: Generation::NONE, node_time: self.clock.now() }
    }

    fn news(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.news.notified())
    }

    fn sample(&self) -> Option<Box<Sample>> {
        Some(Box::new(sample(self.clock.now())))
    }

    fn assign(&self, assignment: Box<Assignment>) -> BoxFuture<'_, Result<(), assignment::Error>> {
        self.assignments.lock().unwrap().push(*assignment);
        Box::pin(async { Err(assignment::Error::Conflict { generation: Generation::new(7) }) })
    }

    fn order(&self, order: Order) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Some(room) = &self.room {
                room.notified().await;
            }
            self.orders.lock().unwrap().push(order);
        })
    }

    fn answer(&self, question: Question) -> BoxFuture<'_, Result<question::Answer, Failure>> {
        Box::pin(async move {
            if question.about != set_aside::Question::Logs.into() {
                std::future::pending::<()>().await;
            }
            Ok(set_aside::Answer::Logs(Vec::new()).into())
        })
    }

    fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }
}

struct Nobody;

impl Watcher for Nobody {
    fn opened(&mut self, _: &Welcome) {}
}

/// The coordinator's ends of a session.
struct Coordinator {
    hears: mpsc::Receiver<FromAgent>,
    says: mpsc::Sender<Inbound>,
    session: JoinHandle<End>,
    stop: CancellationToken,
}

impl Coordinator {
    fn attached(node: &Arc<Node>) -> Self {
        let (to_coordinator, hears) = mpsc::channel(OUTBOUND);
        let (says, from_coordinator) = mpsc::channel(1);
        let (node, stop) = (Arc::clone(node), CancellationToken::new());
        let stopped = stop.clone();
        let session = tokio::spawn(async move {
            let from_coordinator = ReceiverStream::new(from_coordinator);
            hold(node.as_ref(), to_coordinator, from_coordinator, &mut Nobody, &stopped).await
        });
        Self { hears, says, session, stop }
    }

    async fn welcoming(node: &Arc<Node>) -> Self {
        let mut coordinator = Self::attached(node);
        assert!(matches!(coordinator.hear().await, FromAgent::Hello(_)));
        coordinator.say(FromCoordinator::Welcome(welcome(1))).await;
        coordinator
    }

    async fn say(&self, message: FromCoordinator) {
        self.says.send(Inbound::Message(message)).await.unwrap();
    }

    async fn hear(&mut self) -> FromAgent {
        timeout(60 * SECOND, self.hears.recv()).await.expect("within a minute").expect("the session goes on")
    }

    async fn hear_heartbeat(&mut self) -> Instant {
        while !matches!(self.hear().await, FromAgent::Heartbeat(_)) {}
        Instant::now()
    }

    /// The next message that is neither heartbeat nor metrics; heartbeats are answered.
    async fn hear_news(&mut self) -> FromAgent {
        loop {
            match self.hear().await {
                FromAgent::Heartbeat(heartbeat) => {
                    let sequence = heartbeat.sequence;
                    self.say(FromCoordinator::HeartbeatAck { sequence }).await;
                }
                FromAgent::Metrics(_) => {}
                news => return news,
            }
        }
    }

    async fn end(self) -> End {
        timeout(120 * SECOND, self.session).await.expect("the session ends").unwrap()
    }
}

fn welcome(version: u32) -> Welcome {
    Welcome {
        version,
        session_id: SessionId::generate(),
        heartbeat_interval: SECOND,
        metrics_interval: 5 * SECOND,
        coordinator_generation: Generation::new(1),
        coordinator_time: jiff::Timestamp::UNIX_EPOCH,
    }
}

fn command() -> Command {
    Command {
        id: CommandId::generate(),
        coordinator_generation: Generation::new(1),
        term: Term::NONE,
        deadline: jiff::Timestamp::MAX,
        payload: Payload::CheckMember(CheckMember {
            replication_port: None,
            cluster_id: ClusterId::generate(),
            engine: Engine::Postgresql,
            engine_version: None,
            port: 1,
            extensions: vec![],
        }),
    }
}

fn inventory() -> Inventory {
    Inventory {
        hostname: "n".into(),
        os: OperatingSystem { id: "debian".into(), version: None, pretty_name: String::new() },
        kernel: String::new(),
        architecture: String::new(),
        cpu_model: None,
        logical_cores: 1,
        physical_cores: None,
        memory_bytes: 1,
        swap_bytes: 0,
        disks: Bounded::default(),
        addresses: Bounded::default(),
        virtualisation: None,
        service_manager: ServiceManager::Plain,
        privilege: Privilege::Unprivileged,
        engines: Bounded::default(),
        filtering: holdfast_common::telemetry::Filtering::Unknown,
    }
}

fn sample(taken_at: jiff::Timestamp) -> Sample {
    Sample {
        taken_at,
        interval_seconds: None,
        uptime_seconds: None,
        cpu: None,
        load: None,
        pressure: Pressure::default(),
        memory: None,
        swap: None,
        file_systems: Bounded::default(),
        disks: Bounded::default(),
        interfaces: Bounded::default(),
        agent: None,
        reboot_required: None,
    }
}

fn outcome_of(message: FromAgent) -> (CommandId, u64) {
    match message {
        FromAgent::CommandUpdate(update) if matches!(update.update, Update::Outcome(_)) => {
            (update.command_id, update.sequence)
        }
        other => panic!("no outcome: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_but_hello_is_said_before_the_welcome() {
    let node = Arc::new(Node::default());
    node.outbox.outcome(CommandId::generate(), 1, Ok(Success::SetPassword));
    let mut coordinator = Coordinator::attached(&node);
    assert!(matches!(coordinator.hear().await, FromAgent::Hello(_)));
    let more = timeout(WELCOME_DEADLINE - SECOND, coordinator.hears.recv()).await;
    assert!(more.is_err(), "{more:?}");
    assert_eq!(coordinator.end().await, End::Unwelcome);
}

#[tokio::test(start_paused = true)]
async fn a_command_before_the_welcome_has_no_effect() {
    let node = Arc::new(Node::default());
    let coordinator = Coordinator::attached(&node);
    coordinator.say(FromCoordinator::Command(Box::new(command()))).await;
    assert!(matches!(coordinator.end().await, End::Violated(_)));
    assert!(node.orders.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_version_that_was_not_offered_is_refused() {
    for version in [0, 2, u32::MAX] {
        let node = Arc::new(Node::default());
        let coordinator = Coordinator::attached(&node);
        coordinator.say(FromCoordinator::Welcome(welcome(version))).await;
        assert_eq!(coordinator.end().await, End::Version(version));
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_welcome_ends_the_session() {
    let node = Arc::new(Node::default());
    let coordinator = Coordinator::welcoming(&node).await;
    coordinator.say(FromCoordinator::Welcome(welcome(1))).await;
    assert!(matches!(coordinator.end().await, End::Violated(_)));
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_of_what_was_not_sent_ends_the_session() {
    let node = Arc::new(Node::default());
    let coordinator = Coordinator::welcoming(&node).await;
    coordinator.say(FromCoordinator::HeartbeatAck { sequence: 99 }).await;
    assert!(matches!(coordinator.end().await, End::Violated(_)));
}

#[tokio::test(start_paused = true)]
async fn heartbeats_come_every_interval_and_metrics_every_fifth() {
    let node = Arc::new(Node::default());
    let mut coordinator = Coordinator::welcoming(&node).await;
    let begun = Instant::now();
    let (mut sequences, mut samples) = (Vec::new(), 0);
    // At ten seconds both are due, in either order.
    while sequences.len() < 11 {
        match coordinator.hear().await {
            FromAgent::Heartbeat(heartbeat) => {
                sequences.push(heartbeat.sequence);
                coordinator.say(FromCoordinator::HeartbeatAck { sequence: heartbeat.sequence }).await;
            }
            FromAgent::Metrics(_) => samples += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert_eq!(sequences, (1..=11).collect::<Vec<u64>>());
    assert!((2..=3).contains(&samples), "{samples}");
    coordinator.stop.cancel();
    assert_eq!(coordinator.end().await, End::Stopped);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_is_told_again_in_each_session_until_it_is_acknowledged() {
    let node = Arc::new(Node::default());
    let id = CommandId::generate();
    node.outbox.outcome(id, 7, Ok(Success::SetPassword));
    for _ in 0..2 {
        let mut coordinator = Coordinator::welcoming(&node).await;
        assert_eq!(outcome_of(coordinator.hear_news().await), (id, 7));
        drop(coordinator.says);
        timeout(SECOND, coordinator.session).await.unwrap().unwrap();
    }
    let mut coordinator = Coordinator::welcoming(&node).await;
    assert_eq!(outcome_of(coordinator.hear_news().await), (id, 7));
    // Within a session too: the coordinator may have had no room to store it.
    assert_eq!(outcome_of(coordinator.hear_news().await), (id, 7));
    coordinator.say(FromCoordinator::OutcomeAck(id)).await;
    let arrived = async {
        while node.orders.lock().unwrap().is_empty() {
            coordinator.hears.recv().await;
        }
    };
    timeout(60 * SECOND, arrived).await.expect("the acknowledgement goes down");
    assert!(
        matches!(node.orders.lock().unwrap()[..], [Order::Acknowledged(acknowledged)] if acknowledged == id)
    );
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_does_not_read_gets_the_newest_and_no_backlog() {
    let node = Arc::new(Node::default());
    let mut coordinator = Coordinator::welcoming(&node).await;
    sleep(SILENCE - SECOND).await;
    let mut backlog = 0;
    while coordinator.hears.try_recv().is_ok() {
        backlog += 1;
    }
    assert!(backlog <= OUTBOUND + 1, "{backlog}");
    let FromAgent::Heartbeat(next) = coordinator.hear().await else { panic!("no heartbeat") };
    assert!(
        next.sequence <= u64::try_from(OUTBOUND).unwrap() + 2,
        "made when there was room: {}",
        next.sequence
    );
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_answers_no_heartbeat_is_left() {
    let node = Arc::new(Node::default());
    let mut coordinator = Coordinator::welcoming(&node).await;
    let begun = Instant::now();
    while coordinator.hears.recv().await.is_some() {}
    assert_eq!(coordinator.end().await, End::Silent);
    assert!(begun.elapsed() > SILENCE && begun.elapsed() < SILENCE + 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn news_is_told_at_once_and_not_more_often_than_ten_times_a_second() {
    let node = Arc::new(Node::default());
    let mut coordinator = Coordinator::welcoming(&node).await;
    coordinator.hear_heartbeat().await;
    let quiet = coordinator.hear_heartbeat().await;
    sleep(SECOND / 2).await;
    node.news.notify_one();
    let told = coordinator.hear_heartbeat().await;
    assert_eq!(told - quiet, SECOND / 2, "at once");
    let mut last = told;
    for _ in 0..5 {
        node.news.notify_one();
        let next = coordinator.hear_heartbeat().await;
        assert_eq!(next - last, NEWS_INTERVAL, "a while after the last");
        last = next;
    }
    assert_eq!(coordinator.hear_heartbeat().await - last, SECOND, "and then as before");
}

#[tokio::test(start_paused = true)]
async fn while_an_order_waits_for_room_nothing_more_is_read_and_heartbeats_go_on() {
    let node = Arc::new(Node { room: Some(Notify::new()), ..Node::default() });
    let mut coordinator = Coordinator::welcoming(&node).await;
    for _ in 0..2 {
        coordinator.say(FromCoordinator::Command(Box::new(command()))).await;
    }
    // One is on its way down, one in the channel; a third has no place.
    let third = Inbound::Message(FromCoordinator::Command(Box::new(command())));
    let says = coordinator.says.clone();
    let held_back = timeout(10 * SECOND, says.send(third));
    let heard = async {
        let mut heartbeats = 0;
        while heartbeats < 5 {
            if let FromAgent::Heartbeat(_) = coordinator.hear().await {
                heartbeats += 1;
            }
        }
    };
    let (held_back, ()) = tokio::join!(held_back, heard);
    held_back.unwrap_err();
    assert!(node.orders.lock().unwrap().is_empty());
    let room = node.room.as_ref().unwrap();
    while node.orders.lock().unwrap().len() < 2 {
        room.notify_one();
        tokio::task::yield_now().await;
    }
    coordinator.stop.cancel();
    assert_eq!(coordinator.end().await, End::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_command_with_a_bad_field_is_answered_and_the_session_goes_on() {
    let node = Arc::new(Node::default());
    let mut coordinator = Coordinator::welcoming(&node).await;
    let (bad, unknown) = (CommandId::generate(), CommandId::generate());
    for (id, field, problem) in [
        (bad, "command.deadline", wire::Problem::Missing),
        (unknown, "command.payload", wire::Problem::Missing),
    ] {
        let error = wire::Error::new(field, problem);
        coordinator.says.send(Inbound::Refused { command: Some(id), error }).await.unwrap();
    }
    let error = wire::Error::new("message", wire::Problem::Missing);
    coordinator.says.send(Inbound::Refused { command: None, error }).await.unwrap();
    let FromAgent::Event(event) = coordinator.hear_news().await else { panic!("no event") };
    assert_eq!(event.reason, "MESSAGE_REFUSED");
    let reasons: Vec<(CommandId, Reason)> = node
        .orders
        .lock()
        .unwrap()
        .iter()
        .map(|order| match order {
            Order::Refuse(id, failure) => (*id, failure.reason),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(reasons, [(bad, Reason::InvalidField), (unknown, Reason::UnknownCommand)]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_assignment_is_told_as_an_event_until_that_is_acknowledged() {
    let node = Arc::new(Node::default());
    let mut coordinator = Coordinator::welcoming(&node).await;
    coordinator.say(FromCoordinator::Assignment(Box::default())).await;
    let FromAgent::Event(event) = coordinator.hear_news().await else { panic!("no event") };
    assert_eq!(event.reason, "ASSIGNMENT_REFUSED");
    let FromAgent::Event(again) = coordinator.hear_news().await else { panic!("no event") };
    assert_eq!(again.id, event.id);
    coordinator.say(FromCoordinator::EventAck(event.id)).await;
    let close = Close { reason: CloseReason::Shutdown, message: String::new() };
    coordinator.say(FromCoordinator::Close(close.clone())).await;
    assert_eq!(coordinator.end().await, End::Closed(close));
    node.outbox.rewind();
    assert!(node.outbox.take(&node.clock).is_none());
}

fn question(number: u64, about: set_aside::Question) -> FromCoordinator {
    let about = about.into();
    FromCoordinator::Question(Box::new(Question { number, cluster_id: ClusterId::generate(), about }))
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_beside_others_and_too_many_are_refused() {
    let node = Arc::new(Node::default());
    let mut coordinator = Coordinator::welcoming(&node).await;
    let slow = || set_aside::Question::Files { id: "20260102T030405.678Z-2".parse().unwrap() };
    coordinator.say(question(1, slow())).await;
    coordinator.say(question(2, set_aside::Question::Logs)).await;
    let answer = |number, answer| FromAgent::Answer(Box::new(Answer { number, answer }));
    assert_eq!(coordinator.hear_news().await, answer(2, Ok(set_aside::Answer::Logs(Vec::new()).into())));
    for number in 3..=17 {
        coordinator.say(question(number, slow())).await;
    }
    coordinator.say(question(18, slow())).await;
    let FromAgent::Answer(refused) = coordinator.hear_news().await else { panic!("no answer") };
    assert_eq!((refused.number, refused.answer.unwrap_err().reason), (18, Reason::QueueFull));
    assert!(!coordinator.session.is_finished(), "it goes on");
}

#[tokio::test(start_paused = true)]
async fn who_asks_without_end_and_takes_no_answers_loses_the_session() {
    let node = Arc::new(Node::default());
    let coordinator = Coordinator::welcoming(&node).await;
    let mut number = 0;
    // Nothing is read: heartbeats and answers fill the channel.
    while coordinator
        .says
        .send(Inbound::Message(question(number + 1, set_aside::Question::Logs)))
        .await
        .is_ok()
    {
        number += 1;
        assert!(number < 100, "it takes them all");
    }
    assert_eq!(coordinator.end().await, End::Violated("it asks more than it takes answers"));
}
