//! Logs that nodes keep, handed on from an agent to an operator.

use holdfast_common::error::{Failure, Reason};
use holdfast_common::link::{Answer, FromAgent, FromCoordinator, Question};
use holdfast_common::position::Position;
use holdfast_common::question;
use holdfast_common::set_aside::{self, File, Id, Log, MAX_PART_BYTES, Part};
use holdfast_proto::v1 as proto;
use holdfast_proto::v1::fetch_set_aside_log_response::Message;
use holdfast_proto::v1::set_aside_service_client::SetAsideServiceClient;
use jiff::Timestamp;
use tonic::transport::Channel;

use super::{Agent, Coordinator, PATIENCE, reason};
use crate::cluster::Cluster;
use crate::cluster::tests::Sample;
use crate::directory::OperatorRole;
use crate::procedures::records::cluster_key;

const PARTS: u64 = 40;

/// A cluster with one member, whose node has set a log aside.
struct Kept {
    coordinator: Coordinator,
    agent: Agent,
    id: Id,
}

fn log(id: &Id) -> Log {
    let at = Timestamp::UNIX_EPOCH;
    Log {
        id: id.clone(),
        taken_at: at,
        timeline: 2,
        from: 0,
        to: PARTS * u64::from(MAX_PART_BYTES),
        fork: Some(Position { era: 1, offset: 7 }),
        checkpoint: None,
        bytes: PARTS * u64::from(MAX_PART_BYTES),
        files: 1,
        cut: false,
        keep_until: at,
        remove_after: at,
    }
}

impl Kept {
    async fn new() -> Self {
        let coordinator = Coordinator::start().await;
        let member = coordinator.join("n1").await;
        let mut cluster: Cluster = Sample::new().active(1);
        cluster.members[0].node_id = member.id;
        cluster.members[0].node_name = "n1".parse().unwrap();
        cluster.primary = Some(member.id);
        coordinator.parts.directory.put(&cluster_key(&cluster.name), &cluster).await.unwrap();
        let agent = coordinator.session(&member).await;
        Self { coordinator, agent, id: "20260102T030405.678Z-2".parse().unwrap() }
    }

    fn client(&self) -> SetAsideServiceClient<Channel> {
        SetAsideServiceClient::new(self.coordinator.to_operators(Some(&self.coordinator.admin)))
    }

    fn request(&self) -> proto::FetchSetAsideLogRequest {
        proto::FetchSetAsideLogRequest {
            cluster: "demo".into(),
            id: self.id.to_string(),
            node: String::new(),
        }
    }

    async fn asked(&mut self) -> Question {
        let question = |message: &FromCoordinator| match message {
            FromCoordinator::Question(question) => Some((**question).clone()),
            _ => None,
        };
        self.agent.wait_for(question).await
    }

    async fn answer(&self, number: u64, answer: Result<set_aside::Answer, Failure>) {
        let answer = answer.map(Into::into);
        self.agent.say(FromAgent::Answer(Box::new(Answer { number, answer }))).await;
    }

    /// Tells what there is, and of which file it consists.
    async fn describes(&mut self) {
        let question = self.asked().await;
        assert_eq!(question.about, set_aside::Question::Logs.into());
        self.answer(question.number, Ok(set_aside::Answer::Logs(vec![log(&self.id)]))).await;
        let question = self.asked().await;
        assert_eq!(question.about, set_aside::Question::Files { id: self.id.clone() }.into());
        let file = File { name: "0000".parse().unwrap(), bytes: PARTS * u64::from(MAX_PART_BYTES) };
        self.answer(question.number, Ok(set_aside::Answer::Files(vec![file]))).await;
    }

    /// Answers every question about a part; returns how many came, once none comes any more.
    async fn reads(&mut self, most: u64) -> u64 {
        let mut read = 0;
        while read < most {
            let next = tokio::time::timeout(std::time::Duration::from_millis(500), self.asked()).await;
            let Ok(question) = next else { break };
            let question::Question::SetAside(set_aside::Question::Part { offset, bytes, .. }) =
                question.about
            else {
                panic!("{question:?}")
            };
            let byte = u8::try_from(offset / u64::from(MAX_PART_BYTES)).unwrap();
            let part = Part::new(vec![byte; usize::try_from(bytes).unwrap()]);
            self.answer(question.number, Ok(set_aside::Answer::Part(part))).await;
            read += 1;
        }
        read
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_handed_on_whole_and_never_faster_than_it_is_taken() {
    let mut kept = Kept::new().await;
    let (mut client, request) = (kept.client(), kept.request());
    let opening = tokio::spawn(async move { client.fetch_set_aside_log(request).await });
    kept.describes().await;
    let mut stream = opening.await.unwrap().unwrap().into_inner();
    // Nobody takes anything: what fits into the windows on the way is asked for, and no more.
    let ahead = kept.reads(PARTS).await;
    assert!(ahead < PARTS, "all of it was asked for");
    let taking = tokio::spawn(async move {
        let mut offsets = Vec::new();
        let first = stream.message().await.unwrap().unwrap().message;
        assert!(matches!(first, Some(Message::Contents(contents)) if contents.files.len() == 1));
        while let Some(next) = stream.message().await.unwrap() {
            let Some(Message::Part(part)) = next.message else { panic!("no part") };
            assert_eq!(holdfast_common::pki::sha256(&part.data).as_slice(), part.sha256);
            assert!(part.data.iter().all(|byte| u64::from(*byte) == part.offset / u64::from(MAX_PART_BYTES)));
            offsets.push(part.offset);
        }
        offsets
    });
    assert_eq!(ahead + kept.reads(PARTS - ahead).await, PARTS);
    let offsets = tokio::time::timeout(PATIENCE, taking).await.unwrap().unwrap();
    let expected: Vec<u64> = (0..PARTS).map(|part| part * u64::from(MAX_PART_BYTES)).collect();
    assert_eq!(offsets, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_ends_it_and_a_part_that_is_not_what_was_listed_too() {
    let mut kept = Kept::new().await;
    let (mut client, request) = (kept.client(), kept.request());
    let opening = tokio::spawn(async move { client.fetch_set_aside_log(request).await });
    kept.describes().await;
    drop(opening.await.unwrap().unwrap());
    let read = kept.reads(PARTS).await;
    assert!(read < PARTS, "it was read for nobody");

    let (mut client, request) = (kept.client(), kept.request());
    let opening = tokio::spawn(async move { client.fetch_set_aside_log(request).await });
    kept.describes().await;
    let mut stream = opening.await.unwrap().unwrap().into_inner();
    let question = kept.asked().await;
    let short = Part::new(vec![0; 9]);
    kept.answer(question.number, Ok(set_aside::Answer::Part(short))).await;
    assert!(stream.message().await.unwrap().is_some(), "the contents");
    assert_eq!(reason(&stream.message().await.unwrap_err()), Reason::EngineFailed);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named_and_a_silent_node_is_told() {
    let mut kept = Kept::new().await;
    let mut client = kept.client();
    let unknown = proto::FetchSetAsideLogRequest { id: "20260102T030405.678Z-9".into(), ..kept.request() };
    let opening = tokio::spawn(async move { client.fetch_set_aside_log(unknown).await });
    let question = kept.asked().await;
    kept.answer(question.number, Ok(set_aside::Answer::Logs(vec![log(&kept.id)]))).await;
    assert_eq!(reason(&opening.await.unwrap().unwrap_err()), Reason::SetAsideNotFound);
    for bad in ["", "../../etc/passwd", "20260102T030405.678Z-2/x"] {
        let request = proto::FetchSetAsideLogRequest { id: bad.into(), ..kept.request() };
        let refused = kept.client().fetch_set_aside_log(request).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::InvalidField, "{bad}");
    }
    let viewer = kept.coordinator.operator("viewer", OperatorRole::Viewer).await;
    let mut viewer = SetAsideServiceClient::new(kept.coordinator.to_operators(Some(&viewer)));
    let refused = viewer.fetch_set_aside_log(kept.request()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::NotPermitted);
    let Kept { coordinator, agent, id: _ } = kept;
    drop(agent);
    coordinator.until("the session is over", |parts| parts.fleet.sessions() == 0).await;
    let request = proto::ListSetAsideLogsRequest { cluster: "demo".into() };
    let listed = viewer.list_set_aside_logs(request).await.unwrap().into_inner();
    assert!(listed.logs.is_empty());
    assert_eq!(listed.silent_nodes.iter().map(|silent| silent.node.as_str()).collect::<Vec<_>>(), ["n1"]);
}
