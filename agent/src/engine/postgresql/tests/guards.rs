//! The wipe guard: nothing is removed or replaced unless everything is proven on this node, at that moment.

use std::os::unix::fs::symlink;

use holdfast_common::error::{Classify as _, Reason};

use super::*;

/// All files of a folder with their contents, to prove that nothing was touched.
pub(super) fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                found.insert(entry.path(), std::fs::read(entry.path()).unwrap_or_default());
            }
        }
    }
    found
}

/// A member that was made and does not run.
async fn stopped(a: &TestNode) -> Cluster {
    let mut cluster = Cluster::new(&[&a.bench]);
    cluster.system = Some(a.bench.engine.initialise(&cluster.initialise(&a.bench), &work()).await.unwrap());
    cluster
}

fn root(a: &TestNode, cluster: &Cluster) -> PathBuf {
    a.home.join("d").join(cluster.id.to_string())
}

#[tokio::test]
async fn wrong_targets_are_refused_and_stay_as_they_are() {
    let machine = Machine::new();
    let (a, b) = (machine.node("a", 51).await, machine.node("b", 52).await);
    let cluster = stopped(&a).await;
    let folder = root(&a, &cluster);
    let before = contents(&folder);
    let engine = &a.bench.engine;

    let refused = reason(engine.destroy(&cluster.destroy("other"), &work()).await);
    assert_eq!(refused, Reason::NotConfirmed);
    let refused = reason(engine.initialise(&cluster.initialise(&a.bench), &work()).await);
    assert_eq!(refused, Reason::WouldDestroyData);
    let clone = CloneMember { member: cluster.replica(&a.bench, &b.bench), source: b.bench.peer.clone() };
    assert_eq!(reason(engine.copy_from(&clone, &work()).await), Reason::WouldDestroyData);
    let own = CloneMember { source: a.bench.peer.clone(), ..clone };
    assert_eq!(reason(engine.copy_from(&own, &work()).await), Reason::InvalidField);

    let marker = folder.join("member.json");
    let good = std::fs::read(&marker).unwrap();
    for damage in [&good[..good.len() / 2], b"{}".as_slice(), b"", good.as_slice().split_at(1).1] {
        std::fs::write(&marker, damage).unwrap();
        assert_eq!(reason(engine.destroy(&cluster.destroy("shop"), &work()).await), Reason::StateDamaged);
        let refused = reason(engine.initialise(&cluster.initialise(&a.bench), &work()).await);
        assert_eq!(refused, Reason::StateDamaged);
    }
    std::fs::remove_file(&marker).unwrap();
    assert_eq!(reason(engine.destroy(&cluster.destroy("shop"), &work()).await), Reason::WouldDestroyData);
    let refused = reason(engine.initialise(&cluster.initialise(&a.bench), &work()).await);
    assert_eq!(refused, Reason::WouldDestroyData);
    std::fs::write(&marker, &good).unwrap();
    assert_eq!(contents(&folder), before);
}

#[tokio::test]
async fn a_marker_of_another_cluster_is_not_believed() {
    let machine = Machine::new();
    let a = machine.node("a", 53).await;
    let (one, two) = (stopped(&a).await, stopped(&a).await);
    std::fs::copy(root(&a, &one).join("member.json"), root(&a, &two).join("member.json")).unwrap();
    let refused = reason(a.bench.engine.destroy(&two.destroy("shop"), &work()).await);
    assert_eq!(refused, Reason::StateDamaged);
    assert!(root(&a, &two).join("data/PG_VERSION").exists());
}

#[tokio::test]
async fn links_are_never_followed() {
    let machine = Machine::new();
    let a = machine.node("a", 54).await;
    let cluster = stopped(&a).await;
    let folder = root(&a, &cluster);
    let elsewhere = machine.folder.path().join("elsewhere");
    std::fs::rename(folder.join("data"), &elsewhere).unwrap();
    symlink(&elsewhere, folder.join("data")).unwrap();
    let before = contents(&elsewhere);
    let engine = &a.bench.engine;
    assert_eq!(reason(engine.destroy(&cluster.destroy("shop"), &work()).await), Reason::WouldDestroyData);
    assert_eq!(contents(&elsewhere), before);
    // The whole member as a link.
    let moved = machine.folder.path().join("moved");
    std::fs::rename(&folder, &moved).unwrap();
    symlink(&moved, &folder).unwrap();
    assert_eq!(reason(engine.destroy(&cluster.destroy("shop"), &work()).await), Reason::WouldDestroyData);
    assert!(moved.join("member.json").exists());
    assert_eq!(contents(&elsewhere), before);
}

#[tokio::test]
async fn a_server_outside_of_the_supervisor_stops_a_destroy() {
    let machine = Machine::new();
    let a = machine.node("a", 55).await;
    let cluster = primary(&a).await;
    // As after a loss of the supervisor's records: the server runs, and nothing names it any more.
    let TestNode { bench: Bench { peer, engine }, driver, host, home, .. } = a;
    drop((engine, driver, host));
    std::fs::remove_dir_all(home.join("units")).unwrap();
    let a = machine.start_agent(peer, home).await;
    std::fs::remove_file(a.data(cluster.id).join("postmaster.pid")).unwrap();
    let engine = &a.bench.engine;
    let refused = engine.destroy(&cluster.destroy("shop"), &work()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::WouldDestroyData, "{refused}");
    let refused = engine.start(&cluster.primary(&a.bench)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::WouldDestroyData, "{refused}");
    assert!(a.data(cluster.id).join("PG_VERSION").exists());
    assert_eq!(a.client("app", "app", "secret", "select 1").await.as_deref(), Ok("1"));
}

#[tokio::test]
async fn a_copy_of_another_database_is_not_taken() {
    let machine = Machine::new();
    let (a, b) = (machine.node("a", 56).await, machine.node("b", 57).await);
    let mut cluster = primary(&a).await;
    cluster.peers.push(b.bench.peer.clone());
    a.bench.settle(&cluster.primary(&a.bench)).await;
    cluster.system = Some("7000000000000000001".to_owned());
    let clone = CloneMember { member: cluster.replica(&b.bench, &a.bench), source: a.bench.peer.clone() };
    let refused = reason(b.bench.engine.copy_from(&clone, &work()).await);
    assert_eq!(refused, Reason::PreconditionFailed);
    assert!(!b.data(cluster.id).exists());
    assert_eq!(b.bench.engine.observe(cluster.id).await.state, EngineState::Absent);
    // What is left of it can be removed by name.
    assert!(b.bench.engine.destroy(&cluster.destroy("shop"), &work()).await.unwrap());
    a.bench.stop(cluster.id).await;
}

#[tokio::test]
async fn a_cut_command_is_begun_again_and_a_cut_rename_is_finished() {
    let machine = Machine::new();
    let a = machine.node("a", 58).await;
    let cluster = Cluster::new(&[&a.bench]);
    let request = cluster.initialise(&a.bench);
    let command = work();
    let engine = &a.bench.engine;
    let cut = Work::new(command.command, CancellationToken::new(), |_| {});
    let canceller = cut.cancelled.clone();
    let cut = Work::new(command.command, canceller.clone(), move |progress| {
        if progress.message.contains("users") {
            canceller.cancel();
        }
    });
    assert_eq!(reason(engine.initialise(&request, &cut).await), Reason::Cancelled);
    let folder = root(&a, &cluster);
    assert!(folder.join("data.new/PG_VERSION").exists() && !folder.join("data").exists());
    assert_eq!(reason(engine.initialise(&request, &work()).await), Reason::WouldDestroyData);
    let system = engine.initialise(&request, &command).await.unwrap();

    // Killed after the rename, before the marker said so.
    let marker = folder.join("member.json");
    let text = std::fs::read_to_string(&marker).unwrap().replace("\"ready\"", "\"building\"");
    std::fs::write(&marker, &text).unwrap();
    assert_eq!(engine.observe(cluster.id).await.state, EngineState::Absent);
    assert_eq!(engine.initialise(&request, &command).await.unwrap(), system);
    assert_eq!(engine.observe(cluster.id).await.state, EngineState::Stopped);

    // The same, but the data are not those that the marker names.
    std::fs::write(&marker, text.replace(&system, "7000000000000000001")).unwrap();
    let before = contents(&folder);
    assert_eq!(reason(engine.initialise(&request, &command).await), Reason::WouldDestroyData);
    assert_eq!(contents(&folder), before);
}

#[tokio::test]
async fn a_cut_destroy_is_finished_by_the_next() {
    let machine = Machine::new();
    let a = machine.node("a", 59).await;
    let cluster = stopped(&a).await;
    let folder = root(&a, &cluster);
    let aside = folder.with_file_name(format!("{}.removed-{}", cluster.id, work().command));
    std::fs::rename(&folder, &aside).unwrap();
    assert!(a.bench.engine.destroy(&cluster.destroy("shop"), &work()).await.unwrap());
    assert!(!aside.exists());
}

#[tokio::test]
async fn the_control_file_is_read_as_postgresql_reads_it() {
    let machine = Machine::new();
    let a = machine.node("a", 60).await;
    let cluster = stopped(&a).await;
    let program = Program::new("/usr/lib/postgresql/15/bin/pg_controldata").arg(a.data(cluster.id));
    let text = a.host.run(program, &CancellationToken::new()).await.unwrap().stdout.text();
    let said = text.lines().find_map(|line| line.strip_prefix("Database system identifier:")).unwrap().trim();
    assert_eq!(Some(said), cluster.system.as_deref());
}

#[test]
fn a_member_whose_socket_would_be_unreachable_is_refused() {
    let cluster = ClusterId::generate();
    Layout::new(Path::new("/var/lib/holdfast/postgresql"), cluster).check_socket().unwrap();
    let long = format!("/{}", "x".repeat(60));
    assert_eq!(reason(Layout::new(Path::new(&long), cluster).check_socket()), Reason::PreconditionFailed);
}
