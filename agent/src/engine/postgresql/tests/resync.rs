//! Data aligned with the primary's: what only a former primary had is kept, nothing is lost by what fails or is cut on the way.

mod cut;

use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_common::assignment::MemberAssignment;
use holdfast_common::command::{Progress, ResyncMode, ResyncedBy};
use holdfast_common::error::Classify as _;
use holdfast_common::id::{CommandId, OperationId};
use holdfast_common::protocol::Standing;
use holdfast_common::set_aside::{Answer, Question};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::guards::contents;
use super::*;
use crate::engine::contract::{work_as, work_in};
use crate::engine::{Surroundings, Work};

const SEGMENT_BYTES: u64 = 16 << 20;

/// A primary of term 1, and a replica that follows it.
pub(super) struct Pair {
    pub(super) a: TestNode,
    pub(super) b: TestNode,
    pub(super) cluster: Cluster,
}

impl Pair {
    pub(super) async fn new(machine: &Machine, first: u8) -> Self {
        let (a, b) = (machine.node("a", first).await, machine.node("b", first + 1).await);
        let mut cluster = primary(&a).await;
        cluster.peers.push(b.bench.peer.clone());
        a.bench.engine.configure(&cluster.primary(&a.bench)).await.unwrap();
        a.bench.engine.lead(&cluster.primary(&a.bench)).await.unwrap();
        a.bench.settle(&cluster.primary(&a.bench)).await;
        let clone = CloneMember { member: cluster.replica(&b.bench, &a.bench), source: a.bench.peer.clone() };
        b.bench.engine.copy_from(&clone, &work()).await.unwrap();
        b.bench.run(&cluster.replica(&b.bench, &a.bench)).await;
        b.bench.wait(cluster.id, "streaming", |o| o.streaming == Some(true)).await;
        Self { a, b, cluster }
    }

    /// `a` is killed with a row that nobody else has, and `b` is the primary of term 2, with another.
    async fn parted(machine: &Machine, first: u8) -> Self {
        let pair = Self::new(machine, first).await;
        let Self { a, b, cluster } = &pair;
        a.local(cluster.id, "create table said (word text)").await;
        // The last checkpoint that both have is some files of the log ago, and in the end nothing asks for those.
        a.local(cluster.id, "alter system set wal_keep_size = 0").await;
        a.local(cluster.id, "select pg_reload_conf()").await;
        for _ in 0..3 {
            a.local(cluster.id, "select pg_current_xact_id(), pg_switch_wal()").await;
        }
        let position = a.bench.engine.observe(cluster.id).await.position.unwrap();
        b.bench.wait(cluster.id, "the table", |o| o.replayed >= Some(position)).await;
        b.bench.stop(cluster.id).await;
        a.local(cluster.id, "select pg_drop_replication_slot(slot_name) from pg_replication_slots").await;
        a.local(cluster.id, "insert into said values ('heard-by-nobody')").await;
        end(a, cluster.id);
        a.bench.wait(cluster.id, "its end", |o| o.state == EngineState::Stopped).await;
        b.bench.run(&cluster.replica(&b.bench, &a.bench)).await;
        let led = pair.led(2);
        b.bench.engine.configure(&led).await.unwrap();
        b.bench.engine.lead(&led).await.unwrap();
        b.bench.settle(&led).await;
        b.local(cluster.id, "insert into said values ('kept')").await;
        pair
    }

    /// `b` as primary of this term.
    fn led(&self, term: u64) -> MemberAssignment {
        MemberAssignment { term: Term::new(term), ..self.cluster.primary(&self.b.bench) }
    }

    /// `a` as a replica of `b`.
    fn following(&self, term: u64) -> MemberAssignment {
        MemberAssignment { term: Term::new(term), ..self.cluster.replica(&self.a.bench, &self.b.bench) }
    }

    async fn follows(&self, node: &TestNode, member: &MemberAssignment) {
        node.bench.run(member).await;
        node.bench.wait(self.cluster.id, "streaming", |o| o.streaming == Some(true)).await;
    }

    pub(super) async fn stop(&self) {
        self.b.bench.stop(self.cluster.id).await;
        self.a.bench.stop(self.cluster.id).await;
    }
}

/// `kill -9` of all of a server.
pub(super) fn end(node: &TestNode, cluster: ClusterId) {
    end_all(&node.data(cluster));
}

fn end_all(data: &Path) {
    for _ in 0..50 {
        let pids = process::scan(data).unwrap();
        for pid in &pids {
            let _gone = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        if pids.is_empty() {
            return;
        }
    }
}

/// Beside the data.
fn beside(node: &TestNode, cluster: ClusterId, name: &str) -> PathBuf {
    node.data(cluster).with_file_name(name)
}

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

/// Work as a replica of the term, with somebody who listens.
fn heard(term: u64, heard: impl Fn(&Work, &Progress) + Send + Sync + 'static) -> Work {
    let command = CommandId::of_step(OperationId::generate(), "resync");
    let cancelled = CancellationToken::new();
    let silent = Work::new(command, cancelled.clone(), |_| {});
    Work::new(command, cancelled, move |progress| heard(&silent, &progress)).amid(work_in(term).around)
}

/// What is set aside is what the node tells of it, part by part, and nothing else is read.
async fn told_and_read(node: &TestNode, cluster: ClusterId, files: &BTreeMap<PathBuf, Vec<u8>>) {
    let ask = async |question: Question| node.bench.engine.set_aside(cluster, &question).await;
    let Ok(Answer::Logs(logs)) = ask(Question::Logs).await else { panic!("no logs") };
    let [log] = logs.as_slice() else { panic!("{logs:?}") };
    let sizes: u64 = files.values().map(|bytes| bytes.len() as u64).sum();
    assert_eq!((log.bytes, log.files as usize, log.cut), (sizes, files.len(), false));
    let fork = log.fork.expect("it forked");
    assert!(log.from <= fork.offset && fork.offset < log.to, "{log:?}");
    let Ok(Answer::Files(listed)) = ask(Question::Files { id: log.id.clone() }).await else {
        panic!("no files")
    };
    for file in listed {
        let (_, whole) = files
            .iter()
            .find(|(path, _)| path.file_name().unwrap() == file.name.as_str())
            .expect("a file that is there");
        assert_eq!(file.bytes, whole.len() as u64);
        let middle = file.bytes / 2;
        let part = Question::Part { id: log.id.clone(), file: file.name, offset: middle, bytes: 1000 };
        let Ok(Answer::Part(part)) = ask(part).await else { panic!("no part") };
        let rest = &whole[usize::try_from(middle).unwrap()..];
        assert!(part.is_whole() && part.data == rest[..rest.len().min(1000)]);
    }
    let other = "20260102T030405.678Z-2".parse().unwrap();
    let marker =
        Question::Part { id: log.id.clone(), file: "member.json".parse().unwrap(), offset: 0, bytes: 9 };
    for unknown in [Question::Files { id: other }, marker] {
        assert_eq!(ask(unknown).await.unwrap_err().reason(), Reason::SetAsideNotFound);
    }
}

#[tokio::test]
async fn a_former_primary_is_rewound_and_what_only_it_had_is_kept() {
    let machine = Machine::new();
    let pair = Pair::parted(&machine, 61).await;
    let Pair { a, b, cluster } = &pair;
    let _shown_if_it_fails = Logs(beside(a, cluster.id, "log"));
    let inode_before = inode(&a.data(cluster.id));
    let request = cluster.resync(&a.bench, &b.bench, 2, ResyncMode::Auto);
    let copied = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&copied);
    let listening = heard(2, move |_, progress| {
        told.fetch_max(progress.total_bytes.unwrap_or(0), Ordering::Relaxed);
    });
    let resynced = a.bench.engine.resync(&request, &listening).await.unwrap();
    assert_eq!(resynced.how, ResyncedBy::Rewound);
    // Two files of the log, that of the fork on both timelines, and not the rest of it.
    let (copied, log) = (copied.load(Ordering::Relaxed), contents(&b.data(cluster.id).join("pg_wal")));
    let log: u64 = log.values().map(|bytes| bytes.len() as u64).sum();
    assert!((1..3 * SEGMENT_BYTES).contains(&copied) && log > 5 * SEGMENT_BYTES, "{copied} of {log}");
    assert_eq!(inode(&a.data(cluster.id)), inode_before);
    pair.follows(a, &pair.following(2)).await;
    assert_eq!(a.local(cluster.id, "select string_agg(word, ',') from said").await, "kept");

    let sets: Vec<PathBuf> = std::fs::read_dir(beside(a, cluster.id, "set-aside"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [set] = sets.as_slice() else { panic!("{sets:?}") };
    let files = contents(set);
    let has_it = |bytes: &Vec<u8>| bytes.windows(15).any(|word| word == b"heard-by-nobody");
    assert!(files.values().any(has_it), "the row is not in {:?}", files.keys());
    let summary: serde_json::Value = serde_json::from_slice(&files[&set.join("summary.json")]).unwrap();
    let segments: u64 = files
        .iter()
        .filter(|(path, _)| path.file_name().unwrap().len() == 24)
        .map(|(_, bytes)| bytes.len() as u64)
        .sum();
    assert_eq!((summary["bytes"].as_u64(), resynced.set_aside_bytes), (Some(segments), segments));
    assert_eq!((&summary["cut"], summary["fork"]["timeline"].as_u64()), (&false.into(), Some(1)));
    assert_eq!(std::fs::metadata(set).unwrap().permissions().mode() & 0o777, 0o700);
    told_and_read(a, cluster.id, &files).await;
    pair.stop().await;
    assert!(a.bench.engine.destroy(&cluster.destroy("shop"), &work()).await.unwrap());
    assert!(!a.data(cluster.id).parent().unwrap().exists());
}

#[tokio::test]
async fn what_is_refused_leaves_every_file_as_it_is() {
    let machine = Machine::new();
    let pair = Pair::parted(&machine, 63).await;
    let Pair { a, b, cluster } = &pair;
    let folder = a.data(cluster.id).parent().unwrap().to_owned();
    let state = || {
        let files = contents(&folder);
        let inodes: Vec<u64> = files.keys().map(|path| inode(path)).collect();
        (files, inodes)
    };
    let before = state();
    let engine = &a.bench.engine;
    let held = |term, standing| work_as(Some((Term::new(term), standing)));
    for mode in [ResyncMode::Auto, ResyncMode::Rewind, ResyncMode::Full] {
        for in_place in [false, true] {
            let request = ResyncMember { in_place, ..cluster.resync(&a.bench, &b.bench, 2, mode) };
            for work in [held(1, Standing::Primary), held(3, Standing::Replica)] {
                assert_eq!(reason(engine.resync(&request, &work).await), Reason::WouldDestroyData);
            }
            for work in [work_as(None), held(2, Standing::Sealed)] {
                assert_eq!(reason(engine.resync(&request, &work).await), Reason::EngineUnavailable);
            }
            let mut other = request.clone();
            other.member.system_identifier = Some("7000000000000000001".to_owned());
            assert_eq!(reason(engine.resync(&other, &work_in(2)).await), Reason::WouldDestroyData);
            let own = ResyncMember { source: a.bench.peer.clone(), ..request.clone() };
            assert_eq!(reason(engine.resync(&own, &work_in(2)).await), Reason::WouldDestroyData);
            let mut absent = request.clone();
            absent.source.address = "127.0.0.99".parse().unwrap();
            absent.member.role = RoleAssignment::Replica { upstream: absent.source.clone() };
            assert_eq!(reason(engine.resync(&absent, &work_in(2)).await), Reason::EngineUnavailable);
        }
    }
    // Another primary than the one that it is to follow, and one that is none.
    let full = cluster.resync(&a.bench, &b.bench, 2, ResyncMode::Full);
    let mut other = full.clone();
    other.source.node_id = NodeId::generate();
    assert_eq!(reason(engine.resync(&other, &work_in(2)).await), Reason::InvalidField);
    assert!(state() == before, "something was changed");
    // A link in the place of data.
    let elsewhere = machine.folder.path().join("elsewhere");
    std::fs::rename(a.data(cluster.id), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, a.data(cluster.id)).unwrap();
    assert_eq!(reason(engine.resync(&full, &work_in(2)).await), Reason::WouldDestroyData);
    std::fs::remove_file(a.data(cluster.id)).unwrap();
    std::fs::rename(&elsewhere, a.data(cluster.id)).unwrap();
    assert!(state() == before, "something was changed");
    pair.stop().await;
}

/// A member that becomes the primary by its lease's record while it is being resynced.
#[derive(Debug)]
struct Turns(CancellationToken);

impl Surroundings for Turns {
    fn standing(&self, _cluster: ClusterId) -> Option<(Term, Standing)> {
        let standing = if self.0.is_cancelled() { Standing::Primary } else { Standing::Replica };
        Some((Term::new(2), standing))
    }

    fn covers(&self, _cluster: ClusterId) -> bool {
        true
    }
}

#[tokio::test]
async fn who_becomes_primary_meanwhile_is_not_touched() {
    let machine = Machine::new();
    let pair = Pair::parted(&machine, 75).await;
    let Pair { a, b, cluster } = &pair;
    // Each in the last moment before the data would be changed: rewound, removed, swapped out.
    for (mode, in_place, moment) in [
        (ResyncMode::Auto, false, "recovering"),
        (ResyncMode::Full, true, "setting"),
        (ResyncMode::Full, false, "copying"),
    ] {
        let turned = CancellationToken::new();
        let turns = turned.clone();
        let work = heard(2, move |_, progress| {
            if progress.message.starts_with(moment) {
                turns.cancel();
            }
        });
        let work = work.amid(Arc::new(Turns(turned.clone())));
        let before =
            (inode(&a.data(cluster.id)), std::fs::read(a.data(cluster.id).join("PG_VERSION")).unwrap());
        let request = ResyncMember { in_place, ..cluster.resync(&a.bench, &b.bench, 2, mode) };
        let refused = a.bench.engine.resync(&request, &work).await.unwrap_err();
        assert!(turned.is_cancelled(), "{moment}: it never came to that");
        assert_eq!(refused.reason(), Reason::WouldDestroyData, "{moment}: {refused}");
        let after =
            (inode(&a.data(cluster.id)), std::fs::read(a.data(cluster.id).join("PG_VERSION")).unwrap());
        assert_eq!(after, before, "{moment}");
        assert!(!a.bench.engine.observe(cluster.id).await.needs_resync, "{moment}");
        assert!(!beside(a, cluster.id, "data.old").exists(), "{moment}");
    }
    // Its own log is still all there.
    a.bench.run(&cluster.primary(&a.bench)).await;
    assert_eq!(a.local(cluster.id, "select string_agg(word, ',') from said").await, "heard-by-nobody");
    pair.stop().await;
}

#[tokio::test]
async fn a_replica_that_cannot_follow_is_copied_and_a_replica_is_no_source() {
    let machine = Machine::new();
    let pair = Pair::new(&machine, 77).await;
    let Pair { a, b, cluster } = &pair;
    b.bench.stop(cluster.id).await;
    std::fs::remove_file(b.data(cluster.id).join("global/pg_control")).unwrap();
    let request = cluster.resync(&b.bench, &a.bench, 1, ResyncMode::Auto);
    let done = b.bench.engine.resync(&request, &work_in(1)).await.unwrap();
    assert_eq!(done.how, ResyncedBy::Copied);
    b.bench.wait(cluster.id, "streaming", |o| o.streaming == Some(true)).await;
    // Nor can one that has nothing left.
    b.bench.stop(cluster.id).await;
    std::fs::remove_dir_all(b.data(cluster.id)).unwrap();
    let done = b.bench.engine.resync(&request, &work_in(1)).await.unwrap();
    assert_eq!((done.how, done.set_aside_bytes), (ResyncedBy::Copied, 0));
    b.bench.wait(cluster.id, "streaming", |o| o.streaming == Some(true)).await;
    // As if `a` were to be aligned with its own replica.
    a.bench.stop(cluster.id).await;
    let request = cluster.resync(&a.bench, &b.bench, 1, ResyncMode::Full);
    let refused = a.bench.engine.resync(&request, &work_in(1)).await;
    assert_eq!(reason(refused), Reason::PreconditionFailed);
    pair.stop().await;
}

#[tokio::test]
async fn a_copy_that_breaks_leaves_the_old_data_and_they_start_again() {
    let machine = Machine::new();
    let pair = Pair::new(&machine, 65).await;
    let Pair { a, b, cluster } = &pair;
    let replica = cluster.replica(&b.bench, &a.bench);
    let inode_before = inode(&b.data(cluster.id));
    let request = cluster.resync(&b.bench, &a.bench, 1, ResyncMode::Full);
    // Else the copy may be complete before it is heard that it has begun.
    let ballast = a.data(cluster.id).join("ballast");
    std::fs::File::create(&ballast).unwrap().set_len(512 * MIB).unwrap();
    std::fs::set_permissions(&ballast, std::fs::Permissions::from_mode(0o644)).unwrap();
    // Cancelled in the middle.
    let cancelled = heard(1, |work, progress| {
        if progress.done_bytes.is_some() {
            work.cancelled.cancel();
        }
    });
    assert_eq!(reason(b.bench.engine.resync(&request, &cancelled).await), Reason::Cancelled);
    pair.follows(b, &replica).await;
    // The source is gone in the middle.
    let source = a.data(cluster.id);
    let gone = heard(1, move |_, progress| {
        if progress.done_bytes.is_some() {
            end_all(&source);
        }
    });
    b.bench.engine.resync(&request, &gone).await.unwrap_err();
    std::fs::remove_file(ballast).unwrap();
    assert_eq!(inode(&b.data(cluster.id)), inode_before);
    assert!(!beside(b, cluster.id, "data.new").exists() && !beside(b, cluster.id, "data.old").exists());
    assert!(!b.bench.engine.observe(cluster.id).await.needs_resync);
    a.bench.run(&cluster.primary(&a.bench)).await;
    pair.follows(b, &replica).await;
    // And at last whole.
    let done = b.bench.engine.resync(&request, &work_in(1)).await.unwrap();
    assert_eq!(done.how, ResyncedBy::Copied);
    assert!(inode(&b.data(cluster.id)) != inode_before && !beside(b, cluster.id, "data.old").exists());
    pair.stop().await;
}

#[tokio::test]
async fn a_copy_in_place_that_breaks_is_never_started_and_made_again() {
    let machine = Machine::new();
    let pair = Pair::new(&machine, 69).await;
    let Pair { a, b, cluster } = &pair;
    let request = ResyncMember { in_place: true, ..cluster.resync(&b.bench, &a.bench, 1, ResyncMode::Full) };
    let cancelled = heard(1, |work, progress| {
        if progress.done_bytes.is_some() {
            work.cancelled.cancel();
        }
    });
    assert_eq!(reason(b.bench.engine.resync(&request, &cancelled).await), Reason::Cancelled);
    assert!(!b.data(cluster.id).exists());
    let observed = b.bench.engine.observe(cluster.id).await;
    assert!(observed.needs_resync && observed.state == EngineState::Stopped, "{observed:?}");
    let auto = cluster.resync(&b.bench, &a.bench, 1, ResyncMode::Auto);
    let done = b.bench.engine.resync(&auto, &work_in(1)).await.unwrap();
    assert_eq!(done.how, ResyncedBy::Copied);
    b.bench.wait(cluster.id, "streaming", |o| o.streaming == Some(true)).await;
    let done = b.bench.engine.resync(&request, &work_in(1)).await.unwrap();
    assert_eq!(done.how, ResyncedBy::Copied);
    assert!(!beside(b, cluster.id, "data.old").exists());
    pair.stop().await;
}

#[tokio::test]
async fn the_old_data_are_kept_until_the_copy_streams_and_come_back_where_it_does_not() {
    let machine = Machine::new();
    let pair = Pair::new(&machine, 71).await;
    let Pair { a, b, cluster } = &pair;
    let inode_before = inode(&b.data(cluster.id));
    let request = cluster.resync(&b.bench, &a.bench, 1, ResyncMode::Full);
    let source = a.data(cluster.id);
    let gone = heard(1, move |_, progress| {
        if progress.message.contains("the copy to stream") {
            end_all(&source);
        }
    });
    let error = b.bench.engine.resync(&request, &gone).await.unwrap_err();
    assert!(error.to_string().contains("data.old"), "{error}");
    assert_eq!(inode(&beside(b, cluster.id, "data.old")), inode_before);
    a.bench.run(&cluster.primary(&a.bench)).await;
    // The copy is of no use: the next begins with what was there before.
    b.bench.stop(cluster.id).await;
    std::fs::remove_file(b.data(cluster.id).join("global/pg_control")).unwrap();
    let auto = cluster.resync(&b.bench, &a.bench, 1, ResyncMode::Auto);
    let done = b.bench.engine.resync(&auto, &work_in(1)).await.unwrap();
    assert_eq!(done.how, ResyncedBy::Followed);
    assert_eq!(inode(&b.data(cluster.id)), inode_before);
    assert!(!beside(b, cluster.id, "data.new").exists() && !beside(b, cluster.id, "data.old").exists());
    pair.stop().await;
}
