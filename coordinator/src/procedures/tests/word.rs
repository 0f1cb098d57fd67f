//! A failover by a person's word that the old primary is off.

use super::*;
use crate::procedures::failover::{Step, Word};

fn word() -> Word {
    Word { by: "operator/ada".into(), of: "n1".parse().unwrap() }
}

/// The last of a quorum's three.
fn by_word(world: &World) -> Failover {
    Failover::new(&world.active(3), Some(world.node(2))).unwrap().by_word(word())
}

fn two_are_lost(world: &World) -> Option<Cluster> {
    world.lose(world.node(0));
    world.lose(world.node(1));
    Some(world.active(3))
}

/// It waits for nobody: there is nobody.
fn led_by_the_last(world: &World, cluster: Option<&Cluster>) -> Result<(), String> {
    let cluster = cluster.ok_or("the record is gone")?;
    is(cluster.primary == Some(world.node(2)), "it has another primary")?;
    is(cluster.synchronous == Synchronous::default(), "it waits for those that are lost")?;
    is(cluster.durability == Durability::Quorum, "it has another durability")
}

#[tokio::test(start_paused = true)]
async fn the_last_of_three_takes_over_by_a_person_s_word_or_all_is_as_it_was() {
    let case = Case {
        before: two_are_lost,
        procedure: |world| by_word(world).into(),
        succeeded: led_by_the_last,
        undone: |world, cluster| led_by(world, cluster, 0).or_else(|_| led_by_the_last(world, cluster)),
        only_once: true,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 4);
}

#[tokio::test(start_paused = true)]
async fn without_that_word_or_where_it_is_not_true_nothing_is_done() {
    let without = |world: &World| Failover { word: None, step: Step::Elect, ..by_word(world) };
    for (lost, procedure, why) in
        [(2, without as fn(&World) -> Failover, "too few members are sealed"), (0, by_word, "n1 is heard of")]
    {
        let (world, store) = (Arc::new(World::new(3)), Memory::shared());
        let case = Case {
            before: |world| Some(world.active(3)),
            procedure: |_| unreachable!("it is made here"),
            succeeded: |_, _| Ok(()),
            undone: |_, _| Ok(()),
            only_once: true,
        };
        world.populate(&world.active(3));
        (0..lost).for_each(|index| world.lose(world.node(index)));
        let ended = drain::ended(&world, &store, procedure(&world).into(), case.writes(&world)).await;
        let failure = ended.failure.unwrap();
        assert!(failure.message.contains(why), "{failure:?}");
        led_by(&world, world.cluster(&store).as_ref(), 0).unwrap();
    }
}
