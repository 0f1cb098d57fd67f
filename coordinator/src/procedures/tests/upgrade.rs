//! Upgrading a cluster.

use super::restart::{alone, serves_alone};
use super::world::{NEW, OLD};
use super::*;
use crate::procedures::restart::{Restart, Writes};
use crate::procedures::upgrade::Upgrade;

fn of_all(world: &World) -> Upgrade {
    Upgrade::new(Restart::new(&world.active(3), world.nodes(), Writes::GoOn).unwrap())
}

/// Log of a newer program is never sent to an older one.
fn no_replica_is_older(world: &World, cluster: Option<&Cluster>) -> Result<(), String> {
    let cluster = cluster.ok_or("the record is gone")?;
    let old = |node: &NodeId| world.build(*node) == OLD;
    let primary = cluster.primary.ok_or("it has no primary")?;
    let replicas = cluster.replicas().map(|member| member.node_id);
    is(old(&primary) || !replicas.into_iter().any(|node| old(&node)), "a replica is older than its primary")
}

fn whole(world: &World, cluster: Option<&Cluster>) -> Result<(), String> {
    no_replica_is_older(world, cluster)?;
    (0..3).map(|index| led_by(world, cluster, index)).find(Result::is_ok).ok_or("it is not whole")?
}

async fn all_are_upgraded(before: fn(&World) -> Option<Cluster>) {
    let case = Case {
        before,
        procedure: |world| of_all(world).into(),
        succeeded: |world, cluster| {
            is(world.nodes().iter().all(|node| world.build(*node) == NEW), "a server is old")?;
            led_by(world, cluster, 1).or_else(|_| led_by(world, cluster, 2))
        },
        undone: whole,
        only_once: true,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 12);
}

/// Two tests: each takes long.
#[tokio::test(start_paused = true)]
async fn upgrading_a_cluster_ends_with_all_new_or_as_far_as_it_has_come() {
    all_are_upgraded(|world| Some(world.active(3))).await;
}

#[tokio::test(start_paused = true)]
async fn upgrading_a_cluster_that_waits_for_nobody_ends_so_too() {
    all_are_upgraded(|world| Some(waits_for_nobody(world.active(3)))).await;
}

#[tokio::test(start_paused = true)]
async fn servers_that_run_what_is_installed_are_left_alone() {
    let case = Case {
        before: |world| Some(world.active(3)),
        procedure: |world| {
            world.nodes().iter().for_each(|node| world.is_new(*node));
            of_all(world).into()
        },
        succeeded: |world, cluster| led_by(world, cluster, 0),
        undone: |world, cluster| led_by(world, cluster, 0),
        only_once: false,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 6);
}

#[tokio::test(start_paused = true)]
async fn a_primary_that_nobody_can_take_over_from_is_upgraded_where_it_is() {
    let case = Case {
        before: |world| Some(alone(world)),
        procedure: |world| {
            let alone = Restart::new(&alone(world), &[world.node(0)], Writes::MayWait).unwrap();
            Upgrade::new(alone.in_place()).into()
        },
        succeeded: |world, cluster| {
            is(world.build(world.node(0)) == NEW, "its server is old")?;
            serves_alone(world, cluster)
        },
        undone: serves_alone,
        only_once: true,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 5);
}
