//! With every rule a switchover loses nothing, in `async` mode either, and there is a way back from wherever it stops.

use holdfast_common::term::Term;

use super::explore::{Verdict, reaches, verdict};
use super::model::Model;
use super::rules::Rule;
use super::safe::{faults, is_safe, is_safe_and_never_stuck, small_quorum, small_switchover, switchover};
use super::world::{World, id};

fn one_at_a_time() -> Model {
    Model { packets: 1, ..switchover() }
}

/// Both, in turn or one after the breakdown of the other.
fn with_failovers(model: Model) -> Model {
    Model { failover: true, fences: true, abandon: true, terms: 3, ..model }
}

fn small_quorum_s() -> Model {
    Model { attempts: 1, failover: false, ..small_quorum() }
}

/// The rule stands behind others: without it alone nothing is found.
fn is_a_second_wall(without: &'static [Rule], model: Model) {
    match verdict(&Model { without, ..model }) {
        Verdict::Safe { states } => println!("without {without:?} all {states} states are safe"),
        Verdict::Broken { property, way, .. } => {
            panic!("without {without:?} {property}, not:\n  {}", way.join("\n  "))
        }
    }
}

#[test]
fn a_switchover_loses_nothing() {
    is_safe(&one_at_a_time());
    is_safe(&with_failovers(Model { attempts: 1, ..small_switchover() }));
}

/// A healthy cluster of the next term, in which the old primary follows the new one and nothing is lost.
#[test]
fn a_switchover_comes_to_its_end() {
    let model = Model { attempts: 1, ..small_switchover() };
    let changed = |world: &World| {
        let term = Term::FIRST.next();
        world.stored.term == term
            && world.stored.primary == id(1)
            && world.open().eq([1])
            && world.nodes.iter().all(|node| node.disk.term == term)
            && world.acknowledged == [Term::FIRST]
            && world.has_all_that_was_acknowledged()
    };
    assert!(reaches(&model, changed));
}

#[test]
fn a_quorum_s_switchover_loses_nothing() {
    is_safe(&small_quorum_s());
}

#[test]
fn from_every_step_of_a_switchover_there_is_a_way_back() {
    is_safe_and_never_stuck(&Model { abandon: true, terms: 3, attempts: 1, ..small_switchover() });
    is_safe_and_never_stuck(&faults(0, 1, Model { attempts: 1, ..small_switchover() }));
    is_safe_and_never_stuck(&faults(1, 0, Model { attempts: 1, ..small_switchover() }));
}

/// Nobody could replace it when it is stopped, or only until then.
#[test]
fn a_lone_primary_that_is_stopped_serves_again_and_alone() {
    let lone = Model { members: &[], attempts: 1, versions: 2, ..small_switchover() };
    is_safe_and_never_stuck(&faults(0, 1, lone.clone()));
    is_safe_and_never_stuck(&faults(1, 0, lone));
}

#[test]
#[ignore = "slow: minutes"]
fn slow_a_switchover_loses_nothing_whatever_is_promised() {
    is_safe_and_never_stuck(&Model { abandon: true, all_follow: true, terms: 3, ..one_at_a_time() });
    is_safe_and_never_stuck(&Model { abandon: true, terms: 3, ..small_switchover() });
    is_safe(&Model { attempts: 2, ..switchover() });
    is_safe(&Model { silence: 1, lease: 2, ..one_at_a_time() });
    is_safe(&Model { log: 2, repeats: true, ..one_at_a_time() });
}

#[test]
#[ignore = "slow: minutes"]
fn slow_a_switchover_survives_restarts_and_crashes() {
    is_safe(&faults(1, 1, one_at_a_time()));
    is_safe_and_never_stuck(&faults(1, 1, with_failovers(Model { attempts: 1, ..small_switchover() })));
}

#[test]
#[ignore = "slow: minutes"]
fn slow_agents_stall_during_a_switchover() {
    is_safe(&faults(1, 0, Model { stalls: true, attempts: 1, ..small_switchover() }));
    is_safe(&Model { stalls: true, ..one_at_a_time() });
}

#[test]
#[ignore = "slow: minutes"]
fn slow_a_trio_switches_over() {
    is_safe(&Model { nodes: 3, members: &[1, 2], attempts: 1, ..small_switchover() });
    is_safe(&Model { nodes: 3, members: &[1, 2], ..one_at_a_time() });
}

#[test]
#[ignore = "slow: minutes"]
fn slow_a_quorum_switches_over_whatever_is_promised() {
    is_safe(&Model { promises: true, ..small_quorum_s() });
    is_safe_and_never_stuck(&Model { abandon: true, terms: 3, ..small_quorum_s() });
    is_safe(&with_failovers(Model { log: 0, ..small_quorum_s() }));
}

/// In quorum mode the seals alone keep what was acknowledged.
#[test]
#[ignore = "slow: minutes"]
fn slow_these_rules_of_a_switchover_stand_behind_others() {
    is_a_second_wall(&[Rule::NoRenewalWhileStopping], small_switchover());
    is_a_second_wall(&[Rule::AttemptsAreNeverReused], Model { packets: 2, ..small_switchover() });
    is_a_second_wall(&[Rule::OnlyThisRunHasAsked], faults(0, 1, small_switchover()));
    is_a_second_wall(&[Rule::ConfirmThePlace], Model { packets: 2, ..small_switchover() });
    is_a_second_wall(&[Rule::ConfirmThePlace], Model { promises: true, ..small_quorum_s() });
    // Whatever was told of a stop, a primary that was started again since does not confirm it.
    is_a_second_wall(&[Rule::StoppedOnlyIfStill], one_at_a_time());
    for without in [
        &[Rule::ConfirmForgets, Rule::NoRenewalWhileStopping] as &'static [Rule],
        &[Rule::ConfirmForgets, Rule::ShuttingDisarms],
        &[Rule::NoRenewalWhileStopping, Rule::ShuttingDisarms],
    ] {
        is_a_second_wall(without, Model { packets: 2, attempts: 1, ..small_switchover() });
    }
}
