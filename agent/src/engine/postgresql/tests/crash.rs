//! One of the server's processes crashes.

use std::time::Duration;

use holdfast_common::command::ResyncMode;
use tokio::time::{sleep, timeout};

use super::resync::{Pair, end};
use super::*;
use crate::engine::Engines;
use crate::engine::contract::work_in;

#[tokio::test]
async fn a_crash_inside_of_a_server_is_the_end_of_that_server_and_noticed_at_once() {
    let machine = Machine::new();
    let a = machine.node("a", 49).await;
    let mut news = Engines::new(vec![Arc::clone(&a.bench.engine)]).news();
    let cluster = primary(&a).await;
    news.mark_unchanged();
    let writer = "select pid from pg_stat_activity where backend_type = 'walwriter'";
    let writer = a.local(cluster.id, writer).await.parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(writer), nix::sys::signal::SIGKILL).unwrap();
    timeout(Duration::from_secs(5), news.changed()).await.unwrap().unwrap();
    a.bench.wait(cluster.id, "the end", |o| o.state == EngineState::Stopped).await;
    a.bench.run(&cluster.primary(&a.bench)).await;
    a.bench.stop(cluster.id).await;
}

/// Its server may have been about to begin a receiver.
#[tokio::test]
async fn a_sealed_replica_receives_from_nobody_though_its_server_tries_to() {
    let machine = Machine::new();
    let Pair { a, b, cluster } = Pair::new(&machine, 97).await;
    let id = cluster.id;
    b.bench.engine.seal(id).await.unwrap();
    let seal = b.home.join("d").join(id.to_string()).join("conf/sealed.conf");
    std::fs::write(&seal, "").unwrap();
    b.local(id, "select pg_reload_conf()").await;
    let tries = "select 1 from pg_stat_file(pg_current_logfile()) where pg_read_file(pg_current_logfile()) \
                 like '%could not connect to the primary server%receiver.key%'";
    timeout(Duration::from_secs(20), async {
        while b.local(id, tries).await != "1" {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("it tries");
    assert_eq!(b.bench.engine.observe(id).await.streaming, Some(false));
    let replica = cluster.replica(&b.bench, &a.bench);
    b.bench.engine.follow(&replica).await.unwrap();
    b.bench.wait(id, "streaming", |o| o.streaming == Some(true)).await;
    // Whoever is aligned is sealed no more: nobody else looks at its configuration meanwhile.
    b.bench.engine.seal(id).await.unwrap();
    let request = cluster.resync(&b.bench, &a.bench, 1, ResyncMode::Full);
    b.bench.engine.resync(&request, &work_in(1)).await.unwrap();
    b.bench.engine.start(&replica).await.unwrap();
    b.bench.wait(id, "streaming", |o| o.streaming == Some(true)).await;
    b.bench.stop(id).await;
    a.bench.stop(id).await;
}

/// Whose rest nobody sends any more: another takes over all the same, and has all before it.
#[tokio::test]
async fn a_replica_whose_primary_ended_within_a_record_is_sealed_before_it_and_promoted() {
    let machine = Machine::new();
    let Pair { a, b, cluster } = Pair::new(&machine, 91).await;
    let id = cluster.id;
    a.local(id, "create table kept (id int); insert into kept values (1)").await;
    let cancel = CancellationToken::new();
    let record = "select pg_logical_emit_message(true, 'large', repeat('x', 400000000))";
    let writing = a.host.run(a.psql(id, record), &cancel);
    let cut = async {
        let within = "select pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn() + 8388608";
        while b.local(id, within).await != "t" {
            sleep(Duration::from_millis(1)).await;
        }
        end(&a, id);
    };
    let (_cut_off, ()) =
        timeout(Duration::from_secs(60), async { tokio::join!(writing, cut) }).await.unwrap();

    let sealed = b.bench.engine.seal(id).await.unwrap();
    let received =
        b.local(id, "select (pg_last_wal_receive_lsn() - '0/0')::int8").await.parse::<u64>().unwrap();
    assert!(sealed.position.offset < received, "it did not end within a record");
    let led = MemberAssignment { term: Term::new(2), ..cluster.primary(&b.bench) };
    b.bench.engine.lead(&led).await.unwrap();
    assert_eq!(b.local(id, "select count(*) from kept").await, "1");
    b.bench.stop(id).await;
}

/// A superuser's doing. Its clients wait: nobody takes over what they wrote.
#[tokio::test]
async fn a_replica_that_is_promoted_by_hand_acknowledges_nothing_and_what_is_ours_cannot_be_overridden() {
    let machine = Machine::new();
    let Pair { a, b, cluster } = Pair::new(&machine, 93).await;
    let id = cluster.id;
    b.local(id, "select pg_promote()").await;
    let cancel = CancellationToken::new();
    let writing = b.host.run(b.psql(id, "create table written (id int)"), &cancel);
    let waits = async {
        while b.local(id, "select count(*) from pg_stat_activity where wait_event = 'SyncRep'").await != "1" {
            sleep(Duration::from_millis(20)).await;
        }
    };
    // Both arms are cancel-safe: the write is given up.
    tokio::select! {
        answer = writing => panic!("it was acknowledged: {answer:?}"),
        waited = timeout(Duration::from_secs(30), waits) => waited.unwrap(),
    }
    // By its agent it is made one that does: here, where nobody else is to have it.
    let led = MemberAssignment { term: Term::new(2), ..cluster.primary(&b.bench) };
    b.bench.engine.lead(&led).await.unwrap();
    b.local(id, "create table acknowledged (id int)").await;

    b.local(id, "alter system set synchronous_standby_names = 'nobody'").await;
    b.local(id, "alter system set work_mem = '8MB'").await;
    let observed = b.bench.engine.observe(id).await;
    assert!(b.bench.engine.compare(&led, &observed).await.unwrap().configuration, "it is not noticed");
    b.bench.engine.configure(&led).await.unwrap();
    assert!(!b.bench.engine.compare(&led, &observed).await.unwrap().configuration, "it is not mended");
    let values = "select current_setting('synchronous_standby_names') || current_setting('work_mem')";
    assert_eq!(b.local(id, values).await, "8MB");
    a.bench.stop(id).await;
    b.bench.stop(id).await;
}

#[tokio::test]
async fn a_server_that_was_killed_starts_again_although_its_pid_file_names_another_process() {
    let machine = Machine::new();
    let (a, b) = (machine.node("a", 40).await, machine.node("b", 42).await);
    let (cluster, other) = (primary(&a).await, primary(&b).await);
    let alive = b.server(other.id).await;
    let pids = process::scan(&a.data(cluster.id)).unwrap();
    for pid in pids {
        let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
    a.bench.wait(cluster.id, "the end", |o| o.state == EngineState::Stopped).await;
    let pid_file = a.data(cluster.id).join("postmaster.pid");
    std::fs::write(&pid_file, format!("{alive}\n{}\n", a.data(cluster.id).display())).unwrap();
    a.bench.run(&cluster.primary(&a.bench)).await;
    a.bench.stop(cluster.id).await;
    b.bench.stop(other.id).await;
}
