//! Draining a node.

use jiff::Timestamp;

use super::*;
use crate::directory::Drained;
use crate::procedures::drain::{Drain, Purpose, Unmovable};

fn drain(world: &World, cluster: &Cluster, unmovable: Unmovable) -> Procedures {
    let node = world.records().next().unwrap();
    Drain::new(&node, mark(), (unmovable, Purpose::KeepAway), vec![cluster.name.clone()]).into()
}

pub(super) fn mark() -> Drained {
    Drained { by: "operator/test".into(), since: Timestamp::UNIX_EPOCH, reason: "new disks".into() }
}

/// The operation at its end.
pub(super) async fn ended(
    world: &Arc<World>,
    store: &Shared,
    procedure: Procedures,
    writes: Vec<Op>,
) -> Operation {
    let service = Service::<Procedures>::new(Arc::clone(store), world.means(store));
    let handle = service.handle();
    let submit = Submit::new(procedure, "test", "operator/test");
    let submit = writes.into_iter().fold(submit, Submit::then);
    let ended = async {
        let operation = handle.submit(submit).await.unwrap();
        handle.wait(operation.id).await.unwrap()
    };
    tokio::select! {
        ended = ended => ended,
        () = service.run(CancellationToken::new()) => unreachable!(),
    }
}

pub(super) fn led_by_any(world: &World, cluster: Option<&Cluster>) -> Result<(), String> {
    (0..3).map(|index| led_by(world, cluster, index)).find(Result::is_ok).ok_or("it is not whole")?
}

#[tokio::test(start_paused = true)]
async fn draining_moves_the_primary_away_and_leaves_the_cluster_whole() {
    for durability in [Durability::Async, Durability::Quorum] {
        let case = Case {
            before: match durability {
                Durability::Async => |world| Some(waits_for_nobody(world.active(3))),
                Durability::Quorum => |world| Some(world.active(3)),
            },
            procedure: |world| drain(world, &world.active(3), Unmovable::Refuse),
            succeeded: |world, cluster| {
                led_by_any(world, cluster)?;
                is(cluster.and_then(|it| it.primary) != Some(world.node(0)), "the primary is still there")
            },
            undone: led_by_any,
            only_once: true,
        };
        let report =
            harness::walk(&case).await.unwrap_or_else(|violation| panic!("{durability}: {violation}"));
        assert_eq!(report.steps, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_nobody_can_take_over_is_left_only_where_that_is_asked_for() {
    let case = Case {
        before: |world| Some(waits_for_nobody(world.active(1))),
        procedure: |world| drain(world, &world.active(1), Unmovable::Leave),
        succeeded: |world, cluster| complete(world, cluster, 1),
        undone: |world, cluster| complete(world, cluster, 1),
        only_once: true,
    };
    harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));

    let world = Arc::new(case.world());
    let store = Memory::shared();
    let procedure = drain(&world, &world.active(1), Unmovable::Refuse);
    let ended = ended(&world, &store, procedure, case.writes(&world)).await;
    assert_eq!(ended.state, State::Failed);
    let message = ended.failure.unwrap().message;
    assert!(message.contains("no other member") && message.contains("stays drained"), "{message}");
    let node = world.records().next().unwrap();
    let found = crate::store::record::get::<crate::directory::Node>(&*store, &node_key(node.id)).await;
    assert_eq!(found.unwrap().unwrap().value.drained.unwrap().reason, "new disks");
}

#[tokio::test(start_paused = true)]
async fn a_failover_chooses_a_drained_node_last_and_nevertheless_if_there_is_no_other() {
    for (drained, successor) in [(&[][..], 1), (&[1][..], 2), (&[2][..], 1), (&[1, 2][..], 1)] {
        let case = failover_of_three();
        let world = Arc::new(case.world());
        let store = Memory::shared();
        let mut writes = case.writes(&world);
        for (index, node) in world.records().enumerate().filter(|(index, _)| drained.contains(index)) {
            let node = crate::directory::Node { drained: Some(mark()), ..node };
            assert_eq!(node.id, world.node(index));
            writes.retain(|write| *write.key() != node_key(node.id));
            writes.push(put(&node_key(node.id), &node).unwrap());
        }
        let ended = ended(&world, &store, case.procedure(&world), writes).await;
        assert_eq!(ended.state, State::Succeeded, "{:?}", ended.failure);
        led_by(&world, world.cluster(&store).as_ref(), successor).unwrap();
    }
}
