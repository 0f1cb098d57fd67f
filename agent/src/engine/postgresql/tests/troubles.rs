//! What is not as it should be with replication, on real servers: noticed, told with its cause, and mended where that is safe.

use holdfast_common::command::{ResyncMode, ResyncedBy};
use holdfast_common::report::TroubleKind;

use super::resync::Pair;
use super::*;
use crate::engine::contract::work_in;

/// A segment of log that nobody needs.
const SEGMENT: &str = "select pg_logical_emit_message(false, 'x', 'y'); select pg_switch_wal()";

/// Sets parameters as only a superuser can, past the assignment.
async fn set(node: &TestNode, cluster: ClusterId, settings: &[(&str, &str)]) {
    for (name, value) in settings {
        node.local(cluster, &format!("alter system set {name} = '{value}'")).await;
    }
    node.local(cluster, "select pg_reload_conf()").await;
}

async fn fill(node: &TestNode, cluster: ClusterId, segments: usize) {
    for _ in 0..segments {
        node.local(cluster, SEGMENT).await;
    }
    node.local(cluster, "checkpoint").await;
}

/// Waits until the node tells of such a trouble; returns its words.
async fn troubled(node: &TestNode, cluster: ClusterId, kind: TroubleKind) -> String {
    let has = |o: &Observation| o.troubles.iter().find(|trouble| trouble.kind == kind).cloned();
    let observed = node.bench.wait(cluster, kind.as_str(), |o| has(o).is_some()).await;
    has(&observed).unwrap().message
}

async fn is_well(node: &TestNode, cluster: ClusterId) {
    let well = |o: &Observation| o.streaming == Some(true) && o.troubles.is_empty();
    node.bench.wait(cluster, "streaming without trouble", well).await;
}

/// Waits until the server answers so.
async fn answers(node: &TestNode, cluster: ClusterId, question: &str, answer: &str) {
    let asked = async {
        while node.local(cluster, question).await != answer {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), asked).await.expect(question);
}

#[tokio::test]
async fn slots_that_are_gone_or_lost_are_told_and_made_again_and_who_needs_what_is_gone_is_copied() {
    let machine = Machine::new();
    let pair = Pair::new(&machine, 81).await;
    let Pair { a, b, cluster } = &pair;
    let (id, leads) = (cluster.id, cluster.primary(&a.bench));
    let replica = cluster.replica(&b.bench, &a.bench);
    let slot = render::slot(b.bench.peer.node_id);
    let kept = format!(
        "select coalesce(max(wal_status), 'none') from pg_replication_slots where slot_name = '{slot}'"
    );
    b.bench.stop(id).await;
    a.local(id, &format!("select pg_drop_replication_slot('{slot}')")).await;
    a.bench.settle(&leads).await;
    assert!(troubled(a, id, TroubleKind::SlotMissing).await.contains("slot of b was gone"));
    let there = format!("select count(*) from pg_replication_slots where slot_name = '{slot}'");
    assert_eq!(a.local(id, &there).await, "1");
    b.bench.run(&replica).await;
    is_well(b, id).await;
    answers(a, id, &kept, "reserved").await;

    set(a, id, &[("max_slot_wal_keep_size", "1MB"), ("wal_keep_size", "0")]).await;
    b.bench.stop(id).await;
    fill(a, id, 4).await;
    assert_eq!(a.local(id, &kept).await, "lost");
    a.bench.settle(&leads).await;
    assert!(troubled(a, id, TroubleKind::SlotLost).await.contains("slot of b has lost"));
    assert_ne!(a.local(id, &kept).await, "lost");
    b.bench.run(&replica).await;
    let told = troubled(b, id, TroubleKind::NotReceiving).await;
    assert!(told.contains("requested WAL segment"), "its cause: {told}");
    troubled(b, id, TroubleKind::LogRemoved).await;
    // It does not take what streams for a moment for one that follows.
    let request = cluster.resync(&b.bench, &a.bench, 1, ResyncMode::Auto);
    let resynced = b.bench.engine.resync(&request, &work_in(1)).await.unwrap();
    assert_eq!(resynced.how, ResyncedBy::Copied);
    is_well(b, id).await;
    pair.stop().await;
}

#[tokio::test]
async fn replay_that_stands_still_is_told_with_its_cause_and_a_start_gives_it_what_it_lacks() {
    let machine = Machine::new();
    let pair = Pair::new(&machine, 83).await;
    let Pair { a, b, cluster } = &pair;
    let id = cluster.id;
    b.local(id, "select pg_wal_replay_pause()").await;
    a.local(id, SEGMENT).await;
    assert!(troubled(b, id, TroubleKind::ReplayPaused).await.contains("pg_wal_replay_resume"));
    b.local(id, "select pg_wal_replay_resume()").await;
    is_well(b, id).await;

    let more = a.local(id, "select current_setting('max_connections')::int + 7").await;
    set(a, id, &[("max_connections", &more)]).await;
    a.bench.stop(id).await;
    a.bench.run(&cluster.primary(&a.bench)).await;
    let told = troubled(b, id, TroubleKind::ParameterTooLow).await;
    assert!(told.contains(&format!("max_connections = '{more}'")), "{told}");
    // What a round does then.
    b.bench.stop(id).await;
    b.bench.run(&cluster.replica(&b.bench, &a.bench)).await;
    is_well(b, id).await;
    pair.stop().await;
}

#[tokio::test]
async fn a_slot_that_is_nobodys_is_told_of_left_alone_and_let_go_before_it_fills_the_disk() {
    let machine = Machine::new();
    let a = machine.node("a", 85).await;
    let cluster = primary(&a).await;
    let (id, leads) = (cluster.id, cluster.primary(&a.bench));
    let lost = async |slot: &str| {
        let lost = format!("select wal_status = 'lost' from pg_replication_slots where slot_name = '{slot}'");
        a.local(id, &lost).await
    };
    let limit =
        a.local(id, "select setting::int8 > 0 from pg_settings where name = 'max_slot_wal_keep_size'").await;
    assert_eq!(limit, "t", "nothing limits what a slot keeps");
    set(&a, id, &[("max_slot_wal_keep_size", "64MB"), ("wal_keep_size", "0")]).await;
    a.local(id, "select pg_create_physical_replication_slot('mine', true)").await;
    fill(&a, id, 3).await;
    assert!(troubled(&a, id, TroubleKind::SlotRetainsLog).await.contains("`mine`"));
    a.bench.settle(&leads).await;
    assert_eq!(lost("mine").await, "f", "it is a user's to drop");
    fill(&a, id, 3).await;
    assert_eq!(lost("mine").await, "t");
    assert_eq!(a.bench.engine.observe(id).await.state, EngineState::Running);

    // Without the limit it would keep all of it.
    set(&a, id, &[("max_slot_wal_keep_size", "-1")]).await;
    a.local(id, "select pg_create_physical_replication_slot('endless', true)").await;
    fill(&a, id, 6).await;
    assert_eq!(lost("endless").await, "f");
    a.bench.stop(id).await;
}
