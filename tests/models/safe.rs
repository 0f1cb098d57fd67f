//! With every rule: no reachable state has two open gates or lacks an acknowledged entry, and from each there is a way back.

use holdfast_common::protocol::Need;

use super::explore::{Verdict, reaches, verdict, ways_back};
use super::model::{Drift, Model};
use super::profiles::Change;
use super::world::{Faults, World};

const PLAIN: Model = Model {
    nodes: 2,
    members: &[1],
    need: Need::All,
    lease: 2,
    margin: 0,
    silence: 0,
    change: None,
    drift: Drift::None,
    stalls: false,
    promises: true,
    failover: true,
    attempts: 0,
    fences: false,
    word: false,
    abandon: false,
    repeats: false,
    unreadable: false,
    reboots: false,
    faults: Faults { restarts: 0, crashes: 0, falls: 0 },
    packets: 2,
    terms: 2,
    versions: 1,
    log: 0,
    all_follow: false,
    without: &[],
};

/// An agent that may stall between any two of its actions, and its kernel.
pub(crate) fn gate() -> Model {
    Model { nodes: 1, stalls: true, promises: false, fences: true, ..PLAIN }
}

/// A primary with one member, `async`.
pub(crate) fn pair() -> Model {
    PLAIN
}

/// A primary with two members, `async`.
pub(crate) fn trio() -> Model {
    Model { nodes: 3, members: &[1, 2], ..PLAIN }
}

/// Three nodes, one of which is not promotable at the beginning.
pub(crate) fn trio_of_one() -> Model {
    Model { nodes: 3, ..PLAIN }
}

/// Three nodes, a log, W = 1.
pub(crate) fn quorum() -> Model {
    Model { need: Need::of(1), log: 1, lease: 1, ..trio() }
}

/// One packet at a time, no promises.
pub(crate) fn small_quorum() -> Model {
    Model { promises: false, packets: 1, ..quorum() }
}

/// Clocks that err by ten per cent, each in either direction.
pub(crate) fn drifting() -> Model {
    Model { lease: 5, margin: 1, drift: Drift::OneSlow, ..PLAIN }
}

/// Switchovers of a pair, `async`, with a log, without failovers.
pub(crate) fn switchover() -> Model {
    Model { attempts: 1, failover: false, log: 1, lease: 1, ..PLAIN }
}

/// One packet at a time, no promises: nothing but a grant starts a primary that was stopped.
pub(crate) fn small_switchover() -> Model {
    Model { attempts: 2, promises: false, packets: 1, ..switchover() }
}

/// A longer lease, or a shorter one, for a pair.
pub(crate) fn longer() -> Model {
    Model { lease: 1, change: Some(Change { to: 2 }), packets: 1, ..PLAIN }
}

pub(crate) fn shorter() -> Model {
    Model { lease: 2, change: Some(Change { to: 1 }), packets: 1, ..PLAIN }
}

/// The same for three, whose primary may be replaced twice.
pub(crate) fn shorter_twice() -> Model {
    Model { nodes: 3, members: &[1, 2], terms: 3, promises: false, ..shorter() }
}

/// No property fails in any reachable state.
pub(crate) fn is_safe(model: &Model) {
    match verdict(model) {
        Verdict::Safe { states } => println!("safe: all {states} states"),
        Verdict::Broken { property, way, .. } => panic!("{property}, not:\n  {}", way.join("\n  ")),
    }
}

/// Nor is there a state from which no healthy cluster can be reached.
pub(crate) fn is_safe_and_never_stuck(model: &Model) {
    is_safe(model);
    match ways_back(model) {
        Ok(states) => println!("from all {states} there is a way back"),
        Err(way) => panic!("stuck:\n  {}", way.join("\n  ")),
    }
}

pub(crate) fn faults(restarts: u8, crashes: u8, model: Model) -> Model {
    Model { faults: Faults { restarts, crashes, falls: 0 }, ..model }
}

#[test]
fn a_stalling_restarting_agent_is_shut_before_the_coordinator_goes_on() {
    is_safe(&faults(1, 0, Model { reboots: true, repeats: true, ..gate() }));
}

#[test]
fn a_pair_survives_restarts_crashes_and_fences() {
    is_safe_and_never_stuck(&faults(1, 1, Model { fences: true, repeats: true, ..pair() }));
}

/// Engines that end by themselves.
pub(crate) fn falling(model: Model) -> Model {
    Model { faults: Faults { restarts: 0, crashes: 0, falls: 1 }, ..model }
}

#[test]
fn an_engine_that_falls_is_started_in_its_place_and_loses_nothing() {
    is_safe_and_never_stuck(&falling(Model { fences: true, ..pair() }));
    is_safe_and_never_stuck(&falling(small_quorum()));
    is_safe(&falling(Model { stalls: true, ..gate() }));
}

#[test]
fn in_a_trio_every_promise_keeps_another_from_serving() {
    is_safe(&trio());
}

#[test]
fn lists_change_under_restarts_and_crashes() {
    is_safe_and_never_stuck(&faults(1, 1, Model { versions: 2, unreadable: true, ..pair() }));
    is_safe_and_never_stuck(&faults(0, 1, Model { versions: 3, members: &[], ..pair() }));
}

#[test]
fn an_abandoned_failover_leaves_one_primary_that_all_follow() {
    let model = Model { abandon: true, all_follow: true, terms: 4, ..pair() };
    is_safe_and_never_stuck(&model);
    is_safe(&Model { fences: true, terms: 3, ..model });
}

#[test]
fn a_quorum_loses_nothing() {
    is_safe_and_never_stuck(&small_quorum());
    is_safe(&Model { log: 0, ..quorum() });
}

/// A primary on which nobody is counted, and one of a quorum that is lost with another: somebody says that it is off.
pub(crate) fn lone() -> Model {
    Model { members: &[], word: true, promises: false, ..pair() }
}

#[test]
fn a_true_word_that_the_primary_is_off_is_enough() {
    is_safe(&faults(0, 1, Model { abandon: true, terms: 3, ..lone() }));
    is_safe(&Model { word: true, ..small_quorum() });
    let last = |world: &World| world.nodes[0].off && world.open().eq([1]);
    assert!(reaches(&lone(), last), "nobody takes its place");
}

#[test]
fn clocks_may_err_by_ten_per_cent() {
    is_safe(&drifting());
}

#[test]
fn the_lease_profile_of_a_pair_changes() {
    for model in [longer(), shorter()] {
        is_safe(&model);
        is_safe(&faults(0, 1, Model { promises: false, ..model.clone() }));
        let to = model.change.expect("it changes").to;
        assert!(reaches(&model, |world| world.paces.has_changed(to) && world.open().eq([0])));
    }
}

#[test]
#[ignore = "slow: minutes"]
fn slow_the_lease_profile_changes_under_restarts_and_crashes() {
    for model in [longer(), shorter()] {
        is_safe_and_never_stuck(&faults(1, 1, model.clone()));
        is_safe(&Model { packets: 2, ..model.clone() });
    }
    is_safe(&shorter_twice());
    is_safe(&faults(0, 1, shorter_twice()));
}

#[test]
#[ignore = "slow: minutes"]
fn slow_a_trio_survives_a_restart_and_a_crash() {
    is_safe(&faults(1, 0, trio()));
    is_safe(&faults(0, 1, trio()));
}

#[test]
#[ignore = "slow: minutes"]
fn slow_agents_stall_while_they_promise() {
    is_safe(&Model { stalls: true, ..pair() });
}

#[test]
#[ignore = "slow: minutes"]
fn slow_a_quorum_s_failover_is_fenced_and_abandoned() {
    is_safe_and_never_stuck(&Model { abandon: true, terms: 3, log: 0, ..quorum() });
    is_safe(&Model { fences: true, log: 0, ..quorum() });
    is_safe(&Model { fences: true, ..small_quorum() });
}

#[test]
#[ignore = "slow: minutes"]
fn slow_lists_change_in_a_trio() {
    is_safe(&faults(0, 1, Model { versions: 3, ..trio_of_one() }));
}

#[test]
#[ignore = "slow: minutes"]
fn slow_a_quorum_loses_nothing_whatever_is_promised() {
    is_safe(&quorum());
    is_safe(&faults(1, 0, small_quorum()));
}

#[test]
#[ignore = "slow: minutes"]
fn slow_the_set_of_a_quorum_changes() {
    is_safe(&Model { versions: 2, ..small_quorum() });
    is_safe(&Model { versions: 2, log: 0, ..quorum() });
}

#[test]
#[ignore = "slow: minutes"]
fn slow_two_of_three_must_have_it() {
    let four = Model { nodes: 4, members: &[1, 2, 3], need: Need::of(2), ..small_quorum() };
    is_safe(&four);
}

#[test]
#[ignore = "slow: minutes"]
fn slow_every_clock_errs_in_either_direction() {
    is_safe(&Model { drift: Drift::Any, ..drifting() });
}
