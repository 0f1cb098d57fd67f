//! Restarting a cluster.

use super::*;
use crate::procedures::restart::{Restart, Writes};

#[tokio::test(start_paused = true)]
async fn restarting_a_cluster_ends_with_another_primary_or_with_the_old_one() {
    for durability in [Durability::Async, Durability::Quorum] {
        let case = Case {
            before: match durability {
                Durability::Async => |world| Some(waits_for_nobody(world.active(3))),
                Durability::Quorum => |world| Some(world.active(3)),
            },
            procedure: |world| Restart::new(&world.active(3), world.nodes(), Writes::GoOn).unwrap().into(),
            succeeded: |world, cluster| led_by(world, cluster, 1).or_else(|_| led_by(world, cluster, 2)),
            undone: |world, cluster| {
                (0..3)
                    .map(|index| led_by(world, cluster, index))
                    .find(Result::is_ok)
                    .ok_or("it is not whole")?
            },
            only_once: true,
        };
        let report =
            harness::walk(&case).await.unwrap_or_else(|violation| panic!("{durability}: {violation}"));
        assert_eq!(report.steps, 9);
    }
}

pub(super) fn alone(world: &World) -> Cluster {
    waits_for_nobody(world.active(1))
}

#[tokio::test(start_paused = true)]
async fn a_lone_primary_is_restarted_where_it_is_and_serves_whatever_happens() {
    let case = Case {
        before: |world| Some(alone(world)),
        procedure: |world| {
            let nodes = &world.nodes()[..1];
            Restart::new(&alone(world), nodes, Writes::MayWait).unwrap().in_place().into()
        },
        succeeded: |world, cluster| {
            is(world.starts(world.node(0)) > 0, "it was not restarted")?;
            serves_alone(world, cluster)
        },
        undone: serves_alone,
        only_once: false,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 4);
}

pub(super) fn serves_alone(world: &World, cluster: Option<&Cluster>) -> Result<(), String> {
    complete(world, cluster, 1)?;
    let cluster = cluster.ok_or("the record is gone")?;
    is(cluster.primary == Some(world.node(0)), "it has another primary")?;
    is(cluster.term == alone(world).term, "it has another term")
}

#[tokio::test(start_paused = true)]
async fn where_it_is_it_comes_after_its_replicas_and_stays_the_primary() {
    let case = Case {
        before: |world| Some(world.active(3)),
        procedure: |world| {
            Restart::new(&world.active(3), world.nodes(), Writes::MayWait).unwrap().in_place().into()
        },
        succeeded: |world, cluster| led_by(world, cluster, 0),
        undone: |world, cluster| led_by(world, cluster, 0),
        only_once: false,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 6);
}

#[tokio::test(start_paused = true)]
async fn of_some_members_the_others_are_left_alone() {
    let case = Case {
        before: |world| Some(world.active(3)),
        procedure: |world| Restart::new(&world.active(3), &world.nodes()[2..], Writes::GoOn).unwrap().into(),
        succeeded: |world, cluster| led_by(world, cluster, 0),
        undone: |world, cluster| led_by(world, cluster, 0),
        only_once: false,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 2);
}
