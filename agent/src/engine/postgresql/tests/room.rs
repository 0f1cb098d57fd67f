//! A disk that is nearly full.

use super::*;

/// More than is kept on a disk that is nearly full, and less than on one that is not.
const SEGMENTS: usize = 14;

async fn fill(node: &TestNode, cluster: ClusterId) -> String {
    for _ in 0..SEGMENTS {
        let segment = "select pg_logical_emit_message(false, '', 'x'), pg_switch_wal()";
        node.local(cluster, segment).await;
    }
    node.local(cluster, "checkpoint").await;
    node.local(cluster, "select wal_status from pg_replication_slots").await
}

#[tokio::test]
async fn log_that_is_kept_for_a_replica_that_is_away_is_given_up_before_the_disk_is_full() {
    let machine = Machine::new();
    let (a, b) = (machine.node("a", 47).await, machine.node("b", 48).await);
    let mut cluster = primary(&a).await;
    cluster.peers.push(b.bench.peer.clone());
    let led = cluster.primary(&a.bench);
    a.bench.settle(&led).await;
    // As if it had followed, and then gone away.
    let slot = render::slot(b.bench.peer.node_id);
    let used = format!(
        "select pg_drop_replication_slot('{slot}'), pg_create_physical_replication_slot('{slot}', true)"
    );
    a.local(cluster.id, &used).await;
    let keep = "show max_slot_wal_keep_size";
    let before = a.local(cluster.id, keep).await;
    // What would fill the disk if nobody looked at it.
    assert_ne!(fill(&a, cluster.id).await, "lost");

    a.room.send(Room::Tight).unwrap();
    a.bench.settle(&led).await;
    assert_eq!(a.local(cluster.id, keep).await, "128MB");
    assert_eq!(fill(&a, cluster.id).await, "lost");
    assert_eq!(a.bench.engine.observe(cluster.id).await.state, EngineState::Running);

    a.room.send(Room::Enough).unwrap();
    a.bench.settle(&led).await;
    assert_eq!(a.local(cluster.id, keep).await, before);
    a.bench.stop(cluster.id).await;
}
