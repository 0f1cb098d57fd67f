//! Changing what was declared of a living cluster.

use std::collections::BTreeMap;

use holdfast_common::engine::Parameters;
use holdfast_common::protocol::Profile;

use super::*;
use crate::procedures::restart::Writes;
use crate::procedures::set::{Declared, Restarts, Set};

fn of(pairs: &[(&str, &str)]) -> Parameters {
    let map: BTreeMap<String, String> =
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    map.try_into().unwrap()
}

fn few() -> Parameters {
    of(&[("max_connections", "50"), ("max_worker_processes", "64"), ("work_mem", "4MB")])
}

fn many() -> Parameters {
    of(&[("max_connections", "200"), ("max_worker_processes", "16"), ("work_mem", "8MB")])
}

fn with(cluster: Cluster, parameters: Parameters) -> Cluster {
    Cluster { parameters, ..cluster }
}

/// All servers run with exactly this, and it is what is recorded.
fn runs_with(world: &World, cluster: Option<&Cluster>, parameters: &Parameters) -> Result<(), String> {
    let cluster = cluster.ok_or("the record is gone")?;
    is(cluster.parameters == *parameters, "other parameters are recorded")?;
    let started = world.started(cluster);
    let waits = |own: &Parameters| own.changed(parameters).iter().any(|name| name.starts_with("max_"));
    is(!started.iter().any(waits), "a server still goes by others")
}

fn set(cluster: &Cluster, change: impl Fn(Declared) -> Declared) -> Procedures {
    let to = change(Declared::of(cluster));
    Set::new(cluster, to, Restarts::WhereNeeded, Writes::GoOn).unwrap().into()
}

/// Each of both raises what the other lowers.
#[tokio::test(start_paused = true)]
async fn parameters_are_taken_over_by_all_or_put_back() {
    let case = Case {
        before: |world| Some(with(world.active(3), few())),
        procedure: |world| set(&with(world.active(3), few()), |to| Declared { parameters: many(), ..to }),
        succeeded: |world, cluster| runs_with(world, cluster, &many()),
        undone: |world, cluster| put_back_or_left(world, cluster, &few(), &many()),
        only_once: false,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 10);
}

#[tokio::test(start_paused = true)]
async fn parameters_are_taken_over_or_put_back_without_a_quorum_too() {
    let case = Case {
        before: |world| Some(waits_for_nobody(with(world.active(3), many()))),
        procedure: |world| {
            let cluster = waits_for_nobody(with(world.active(3), many()));
            set(&cluster, |to| Declared { parameters: few(), ..to })
        },
        succeeded: |world, cluster| runs_with(world, cluster, &few()),
        undone: |world, cluster| put_back_or_left(world, cluster, &many(), &few()),
        only_once: false,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 10);
}

#[tokio::test(start_paused = true)]
async fn a_lone_primary_takes_parameters_over_where_it_is_or_keeps_its_own() {
    let case = Case {
        before: |world| Some(waits_for_nobody(with(world.active(1), few()))),
        procedure: |world| {
            let cluster = waits_for_nobody(with(world.active(1), few()));
            set(&cluster, |to| Declared { parameters: many(), ..to })
        },
        succeeded: |world, cluster| runs_with(world, cluster, &many()),
        undone: |world, cluster| runs_with(world, cluster, &few()),
        only_once: false,
    };
    let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    assert_eq!(report.steps, 6);
}

/// Before the primary goes by the new ones, all is as it was; after it, the record has the new ones, and the replicas get them with
/// their next restart.
fn put_back_or_left(
    world: &World,
    cluster: Option<&Cluster>,
    before: &Parameters,
    after: &Parameters,
) -> Result<(), String> {
    let recorded = cluster.ok_or("the record is gone")?;
    let primary = recorded.primary.ok_or("there is no primary")?;
    let primary_first = recorded.parameters == *after
        && world.started(recorded).first().is_some_and(|own| own.changed(after).is_empty());
    is(primary == world.node(0), "it has another primary")?;
    if primary_first { Ok(()) } else { runs_with(world, cluster, before) }
}

#[tokio::test(start_paused = true)]
async fn durability_becomes_another_together_with_the_rest_or_stays() {
    fn has(cluster: Option<&Cluster>, durability: Durability) -> Result<(), String> {
        let cluster = cluster.ok_or("the record is gone")?;
        is(cluster.durability == durability, "it has another durability")?;
        is(cluster.synchronous == cluster.wanted_synchronous(), "the durability is not enforced")?;
        is(cluster.strengthening.is_none(), "a stronger set is still pending")
    }
    let stronger = Case {
        before: |world| Some(waits_for_nobody(world.active(3))),
        procedure: |world| {
            set(&waits_for_nobody(world.active(3)), |to| Declared {
                durability: Durability::Quorum,
                parameters: of(&[("work_mem", "8MB")]),
                max_lag_on_failover: 7,
                ..to
            })
        },
        succeeded: |_, cluster| {
            is(cluster.is_some_and(|it| it.max_lag_on_failover == 7), "not all is recorded")?;
            has(cluster, Durability::Quorum)
        },
        undone: |_, cluster| {
            let as_it_was = |it: &Cluster| it.max_lag_on_failover != 7 && it.parameters.is_empty();
            is(cluster.is_some_and(as_it_was), "not all is put back")?;
            has(cluster, Durability::Async)
        },
        only_once: false,
    };
    let weaker = Case {
        before: |world| Some(world.active(3)),
        procedure: |world| set(&world.active(3), |to| Declared { durability: Durability::Async, ..to }),
        succeeded: |_, cluster| has(cluster, Durability::Async),
        undone: |_, cluster| has(cluster, Durability::Quorum).or_else(|_| has(cluster, Durability::Async)),
        only_once: false,
    };
    for case in [stronger, weaker] {
        harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_away_keeps_nobody_from_what_needs_no_restart() {
    for (restarts, ends) in [(Restarts::None, State::Succeeded), (Restarts::WhereNeeded, State::Failed)] {
        let case = Case {
            before: |world| Some(world.active(3)),
            procedure: |_| unreachable!("it is made here"),
            succeeded: |_, _| Ok(()),
            undone: |_, _| Ok(()),
            only_once: false,
        };
        let (world, store) = (Arc::new(case.world()), Memory::shared());
        world.lose(world.node(2));
        let to = Declared { parameters: of(&[("work_mem", "8MB")]), ..Declared::of(&world.active(3)) };
        let procedure = Set::new(&world.active(3), to, restarts, Writes::GoOn).unwrap().into();
        let ended = drain::ended(&world, &store, procedure, case.writes(&world)).await;
        assert_eq!(ended.state, ends, "{:?}", ended.failure);
    }
}

#[tokio::test(start_paused = true)]
async fn leases_become_longer_or_shorter_and_those_that_wait_are_never_less_patient() {
    fn goes_by(cluster: Option<&Cluster>, profile: Profile, patience: Option<Profile>) -> Result<(), String> {
        let cluster = cluster.ok_or("the record is gone")?;
        let is_so = (cluster.lease_profile, cluster.lease_patience) == (profile, patience);
        is(is_so, &format!("it goes by {} and {:?}", cluster.lease_profile, cluster.lease_patience))
    }
    let longer = Case {
        before: |world| Some(world.active(3)),
        procedure: |world| set(&world.active(3), |to| Declared { lease_profile: Profile::Wide, ..to }),
        succeeded: |_, cluster| goes_by(cluster, Profile::Wide, None),
        undone: |_, cluster| {
            goes_by(cluster, Profile::Default, None)
                .or_else(|_| goes_by(cluster, Profile::Wide, Some(Profile::Wide)))
                .or_else(|_| goes_by(cluster, Profile::Wide, None))
        },
        only_once: false,
    };
    let shorter = Case {
        before: longer.before,
        procedure: |world| set(&world.active(3), |to| Declared { lease_profile: Profile::Fast, ..to }),
        succeeded: |_, cluster| goes_by(cluster, Profile::Fast, None),
        undone: |_, cluster| {
            goes_by(cluster, Profile::Default, None)
                .or_else(|_| goes_by(cluster, Profile::Fast, Some(Profile::Default)))
                .or_else(|_| goes_by(cluster, Profile::Fast, None))
        },
        only_once: false,
    };
    for case in [longer, shorter] {
        let report = harness::walk(&case).await.unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!(report.steps, 4);
    }
}
