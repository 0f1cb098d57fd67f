//! Retuning a cluster whose machines were resized.

use super::world::{LARGE, SMALL};
use super::*;
use crate::procedures::restart::Writes;
use crate::procedures::set::{Declared, Restarts, Retune, Set};

/// All settings are those for this machine, and so are the servers.
fn all_go_by(
    world: &World,
    cluster: Option<&Cluster>,
    budget: holdfast_common::budget::Budget,
) -> Result<(), String> {
    led_by(world, cluster, 0)?;
    let differs = |node: &NodeId| world.tuning(*node) != (budget, budget);
    is(!world.nodes().iter().any(differs), "a member goes by another budget, or waits for a restart")
}

#[tokio::test(start_paused = true)]
async fn settings_are_decided_anew_by_all_or_put_back() {
    for durability in [Durability::Async, Durability::Quorum] {
        let case = Case {
            before: match durability {
                Durability::Async => |world| Some(waits_for_nobody(world.active(3))),
                Durability::Quorum => |world| Some(world.active(3)),
            },
            procedure: |world| {
                // Durability is not part of it.
                let cluster = world.active(3);
                let kept = world.nodes().iter().map(|node| (*node, SMALL)).collect();
                let to = Declared::of(&cluster);
                let set = Set::new(&cluster, to, Restarts::WhereNeeded, Writes::GoOn).unwrap();
                set.retuning(Retune { kept }).into()
            },
            succeeded: |world, cluster| all_go_by(world, cluster, LARGE),
            undone: |world, cluster| all_go_by(world, cluster, SMALL),
            only_once: false,
        };
        let report =
            harness::walk(&case).await.unwrap_or_else(|violation| panic!("{durability}: {violation}"));
        assert_eq!(report.steps, 7);
    }
}
