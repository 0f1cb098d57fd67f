//! Rebooting a node.

use holdfast_common::error::Reason;

use super::drain::{ended, led_by_any, mark};
use super::*;
use crate::directory::Node;
use crate::procedures::drain::{Drain, Purpose, Unmovable};
use crate::procedures::reboot::{Reboot, Service as Served};
use crate::store::record;

/// The node of this number, whose mark comes from this very request.
fn reboot(world: &World, index: usize, service: Served) -> Procedures {
    let node = world.records().nth(index).unwrap();
    let unmovable = match service {
        Served::GoesOn => Unmovable::Refuse,
        Served::MayStop => Unmovable::Leave,
    };
    Reboot::new(Drain::new(&node, mark(), (unmovable, Purpose::Reboot), Vec::new()), service).into()
}

async fn node(world: &World, store: &Shared, index: usize) -> Node {
    let found = record::get::<Node>(&**store, &node_key(world.node(index))).await;
    found.unwrap().unwrap().value
}

#[tokio::test(start_paused = true)]
async fn a_reboot_moves_the_primary_away_and_boots_the_machine_once() {
    let case = Case {
        before: |world| Some(world.active(3)),
        procedure: |world| reboot(world, 0, Served::GoesOn),
        succeeded: |world, cluster| {
            led_by_any(world, cluster)?;
            is(cluster.and_then(|it| it.primary) != Some(world.node(0)), "the primary is still there")?;
            is(world.reboots(world.node(0)) >= 1, "the machine has not booted")
        },
        undone: led_by_any,
        only_once: true,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 7);
}

#[tokio::test(start_paused = true)]
async fn a_lone_primary_is_rebooted_where_it_is_only_if_that_is_said() {
    let case = Case {
        before: |world| Some(waits_for_nobody(world.active(1))),
        procedure: |world| reboot(world, 0, Served::MayStop),
        succeeded: |_, _| Ok(()),
        undone: |_, _| Ok(()),
        only_once: true,
    };
    let (world, store) = (Arc::new(case.world()), Memory::shared());
    let done = ended(&world, &store, case.procedure(&world), case.writes(&world)).await;
    assert_eq!((done.state, world.reboots(world.node(0))), (State::Succeeded, 1), "{:?}", done.failure);
    complete(&world, world.cluster(&store).as_ref(), 1).unwrap();

    let (world, store) = (Arc::new(case.world()), Memory::shared());
    let procedure = reboot(&world, 0, Served::GoesOn);
    let ended = ended(&world, &store, procedure, case.writes(&world)).await;
    assert_eq!((ended.state, ended.failure.unwrap().reason), (State::Failed, Reason::PreconditionFailed));
    assert_eq!(world.reboots(world.node(0)), 0);
    assert_eq!(node(&world, &store, 0).await.drained, None, "it is as it was");
}

fn replica() -> Case {
    Case {
        before: |world| Some(world.active(3)),
        procedure: |world| reboot(world, 1, Served::GoesOn),
        succeeded: |world, cluster| led_by(world, cluster, 0),
        undone: |world, cluster| led_by(world, cluster, 0),
        only_once: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_drained_before_stays_so_and_another_is_undrained() {
    for before in [None, Some(crate::directory::Drained { reason: "old disks".into(), ..mark() })] {
        let case = replica();
        let (world, store) = (Arc::new(case.world()), Memory::shared());
        let mut writes = case.writes(&world);
        let key = node_key(world.node(1));
        let record = Node { drained: before.clone(), ..world.records().nth(1).unwrap() };
        writes.retain(|write| *write.key() != key);
        writes.push(put(&key, &record).unwrap());
        let ended = ended(&world, &store, case.procedure(&world), writes).await;
        assert_eq!(ended.state, State::Succeeded, "{:?}", ended.failure);
        assert_eq!(world.reboots(world.node(1)), 1);
        assert_eq!(node(&world, &store, 1).await.drained, before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_does_not_come_back_stays_drained() {
    let case = replica();
    let (world, store) = (Arc::new(case.world()), Memory::shared());
    world.lose_whoever_reboots();
    let ended = ended(&world, &store, case.procedure(&world), case.writes(&world)).await;
    assert_eq!(ended.state, State::Failed);
    assert_eq!(world.reboots(world.node(1)), 1);
    assert_eq!(node(&world, &store, 1).await.drained, Some(mark()));
}

#[tokio::test(start_paused = true)]
async fn two_nodes_of_a_cluster_are_rebooted_one_after_the_other() {
    let case = replica();
    let (world, store) = (Arc::new(case.world()), Memory::shared());
    world.lose_whoever_reboots();
    let service = Service::<Procedures>::new(Arc::clone(&store), world.means(&store));
    let handle = service.handle();
    let writes = case.writes(&world);
    let both = async {
        let first = Submit::new(reboot(&world, 1, Served::GoesOn), "nodes/n2", "operator/test");
        let first = writes.into_iter().fold(first, Submit::then);
        let first = handle.submit(first).await.unwrap();
        while world.reboots(world.node(1)) == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let second = Submit::new(reboot(&world, 2, Served::GoesOn), "nodes/n3", "operator/test");
        let second = handle.submit(second).await.unwrap();
        let second = handle.wait(second.id).await.unwrap();
        (handle.get(first.id).await.unwrap(), second)
    };
    let (first, second) = tokio::select! {
        both = both => both,
        () = service.run(CancellationToken::new()) => unreachable!(),
    };
    assert_eq!((first.state, second.state), (State::Running, State::Failed));
    let message = second.failure.unwrap().message;
    assert!(message.contains("is being rebooted"), "{message}");
    assert_eq!(world.reboots(world.node(2)), 0);
    assert_eq!(node(&world, &store, 2).await.drained, None);
}
