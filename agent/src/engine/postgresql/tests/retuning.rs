//! A machine that was resized.

use holdfast_common::command::RetuneMember;

use super::*;

async fn agent(machine: &Machine, node: &TestNode, memory_bytes: u64) -> TestNode {
    machine.start_agent_with(node.bench.peer.clone(), node.home.clone(), memory_bytes).await
}

#[tokio::test]
async fn a_resized_machine_is_told_once_and_changes_nothing_until_its_member_is_retuned() {
    let machine = Machine::new();
    let a = machine.node("a", 49).await;
    let cluster = primary(&a).await;
    let (id, led) = (cluster.id, cluster.primary(&a.bench));
    a.bench.settle(&led).await;
    let tuning = a.bench.engine.observe(id).await.tuning.unwrap();
    assert_eq!((tuning.kept, tuning.resized), (tuning.possible, false));
    let shared = a.local(id, "show shared_buffers").await;
    let work_mem = a.local(id, "show work_mem").await;

    let a = agent(&machine, &a, 2048 * MIB).await;
    a.bench.settle(&led).await;
    let tuning = a.bench.engine.observe(id).await.tuning.unwrap();
    assert!(tuning.resized, "{tuning:?}");
    assert_eq!((tuning.kept.memory_bytes, tuning.possible.memory_bytes), (512 * MIB, 2048 * MIB));
    assert!(a.bench.engine.note_resized(id).await.unwrap());
    assert!(!agent(&machine, &a, 2048 * MIB).await.bench.engine.note_resized(id).await.unwrap());
    assert_eq!(a.local(id, "show work_mem").await, work_mem);

    let preview = a.bench.engine.retuning(id).await.unwrap();
    assert_eq!((preview.kept, preview.possible.memory_bytes), (tuning.kept, 2048 * MIB));
    let named: Vec<&str> = preview.changes.iter().map(|change| change.name.as_str()).collect();
    assert!(named.contains(&"shared_buffers") && named.contains(&"work_mem"), "{named:?}");
    assert!(!named.contains(&"max_connections"), "{named:?}");

    let budget = a.bench.engine.retune(&RetuneMember { cluster_id: id, budget: None }).await.unwrap();
    assert_eq!(budget.memory_bytes, 2048 * MIB);
    a.bench.settle(&led).await;
    let observed = a.bench.engine.observe(id).await;
    let tuning = observed.tuning.unwrap();
    assert_eq!((tuning.kept, tuning.resized), (budget, false));
    assert_eq!(observed.pending_restart, ["shared_buffers"], "said together with what it is said of");
    assert_ne!(a.local(id, "show work_mem").await, work_mem);
    assert_eq!(a.local(id, "show shared_buffers").await, shared);
    a.bench.stop(id).await;
    a.bench.run(&led).await;
    assert_eq!(a.local(id, "show shared_buffers").await, "512MB");
    a.bench.stop(id).await;

    // With less memory than what it would claim it is started nevertheless, with less, and says so.
    let a = agent(&machine, &a, 300 * MIB).await;
    a.bench.run(&led).await;
    let observed = a.bench.engine.observe(id).await;
    assert!(observed.message.contains("too little memory"), "{observed:?}");
    assert_eq!(a.local(id, "show shared_buffers").await, "75MB");
    a.bench.stop(id).await;
}
