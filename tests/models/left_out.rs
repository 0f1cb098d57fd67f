//! Each rule left out in turn, in pairs where another one stands behind it: a counter-example must be found. A checker
//! that cannot fail proves nothing.

use super::explore::{Verdict, verdict, ways_back};
use super::model::Model;
use super::rules::Rule;
use super::safe;
use super::world::Faults;

/// The checker finds a state that a rule keeps away.
fn is_found(without: &'static [Rule], model: Model) {
    match verdict(&Model { without, ..model }) {
        Verdict::Broken { property, states, way } => {
            println!("without {without:?} {property}, not: {states} states\n  {}", way.join("\n  "));
        }
        Verdict::Safe { states } => panic!("without {without:?} all {states} states are safe"),
    }
}

macro_rules! left_out {
    ($($name:ident: [$($rule:ident),+] in $model:expr;)+) => {
        $(
            #[test]
            fn $name() {
                is_found(&[$(Rule::$rule),+], $model);
            }
        )+
    };
}

fn restarting(model: Model) -> Model {
    Model { faults: Faults { restarts: 1, crashes: 0, falls: 0 }, ..model }
}

fn crashing(model: Model) -> Model {
    Model { faults: Faults { restarts: 0, crashes: 1, falls: 0 }, ..model }
}

fn without_promises(model: Model) -> Model {
    Model { promises: false, ..model }
}

left_out! {
    arm_before_sending: [ArmBeforeSending] in safe::gate();
    time_runs_from_the_arming: [TimeRunsFromTheArming] in safe::gate();
    arming_takes_back: [ArmingTakesBack] in restarting(safe::gate());
    arm_in_one_transaction: [ArmInOneTransaction] in restarting(safe::gate());
    answers_bear_the_number: [AnswersBearTheNumber] in safe::gate();
    numbers_are_never_reused: [NumbersAreNeverReused] in restarting(safe::gate());
    fence_forgets: [FenceForgets, ShuttingDisarms] in safe::gate();
    fence_shuts_first: [FenceShutsFirst] in safe::gate();
    fence_on_the_lease_thread: [FenceOnTheLeaseThread, ShuttingDisarms] in safe::gate();
    no_helper_process: [NoHelperProcess] in restarting(safe::gate());

    grants_are_remembered: [GrantsAreRemembered] in without_promises(safe::pair());
    wait_after_a_start: [WaitAfterAStart] in crashing(without_promises(safe::pair()));
    no_renewal_once_intended: [NoRenewalOnceIntended] in Model { fences: true, ..without_promises(safe::pair()) };
    wait_for_the_lease: [WaitForTheLease] in without_promises(safe::pair());
    a_margin_for_drift: [MarginForDrift] in safe::drifting();

    all_must_promise: [AllMustPromise] in safe::trio();
    starts_count_as_promised: [StartsCountAsPromised] in restarting(safe::pair());
    seals_wait_for_promises: [SealsWaitForPromises] in safe::pair();
    seals_wait_for_promises_in_quorum: [SealsWaitForPromises] in Model { log: 0, ..safe::quorum() };

    unknown_is_not_empty: [UnknownIsNotEmpty] in restarting(Model { unreadable: true, ..safe::pair() });
    unknown_takes_no_late_list: [UnknownTakesNoLateList] in
        restarting(Model { unreadable: true, versions: 3, ..safe::pair() });
    lone_becomes_timed: [LoneBecomesTimed, DeadlineShuts] in Model { members: &[], versions: 2, ..safe::pair() };
    versions_are_stored_first: [VersionsAreStoredFirst] in crashing(Model { versions: 2, ..safe::pair() });
    lower_versions_are_ignored: [LowerVersionsAreIgnored] in Model { versions: 3, ..safe::pair() };
    only_the_newest_confirmation: [OnlyTheNewestConfirmation] in Model { versions: 3, ..safe::pair() };
    wait_after_adding: [WaitAfterAdding] in Model { members: &[], versions: 2, ..safe::pair() };
    add_only_when_confirmed: [AddOnlyWhenConfirmed] in Model { members: &[], versions: 2, ..safe::pair() };
    record_removal_first: [RecordRemovalFirst] in Model { versions: 2, ..safe::pair() };

    enough_seals: [EnoughSeals] in safe::small_quorum();
    highest_tail_wins: [HighestTailWins] in safe::small_quorum();
    seals_are_durable: [SealsAreDurable] in restarting(safe::small_quorum());
    seals_cut_the_receiver: [SealsCutTheReceiver] in safe::small_quorum();
    serve_only_when_followed: [ServeOnlyWhenFollowed] in safe::small_quorum();
    not_ready_shuts: [NotReadyShuts] in safe::falling(safe::small_quorum());
    confirm_when_all_have_caught_up: [ConfirmWhenAllHaveCaughtUp] in Model { versions: 2, ..safe::small_quorum() };
    no_way_back_once_stored: [NoWayBackOnceStored] in Model { abandon: true, terms: 3, ..safe::pair() };
    the_word_is_true: [TheWordIsTrue] in safe::lone();

    confirm_the_place: [ConfirmThePlace] in Model { packets: 1, ..safe::switchover() };
    confirm_after_the_seals: [ConfirmAfterTheSeals] in Model { packets: 1, ..safe::switchover() };
    confirm_before_choosing: [ConfirmBeforeChoosing] in Model { packets: 1, ..safe::switchover() };
    the_target_has_it_all: [TheTargetHasItAll] in safe::small_switchover();
    no_renewal_while_stopping: [NoRenewalWhileStopping, ConfirmThePlace] in safe::small_switchover();
    attempts_are_never_reused: [AttemptsAreNeverReused, ConfirmThePlace] in
        Model { packets: 2, ..safe::small_switchover() };
    only_this_run_has_asked: [OnlyThisRunHasAsked, ConfirmThePlace] in
        Model { attempts: 1, ..crashing(safe::small_switchover()) };
    widen_first: [WidenFirst] in safe::longer();
    narrow_last: [NarrowLast] in safe::shorter();
    all_know_the_profile: [AllKnowTheProfile] in safe::shorter_twice();
    old_leases_run_out: [OldLeasesRunOut] in safe::shorter();
    at_least: [AtLeast] in without_promises(safe::longer());
    confirm_forgets: [ConfirmForgets, NoRenewalWhileStopping, ShuttingDisarms] in
        Model { packets: 2, ..safe::small_switchover() };
}

/// That it rests for a while after each stop does not help: the silence may be longer.
#[test]
#[ignore = "slow: a minute"]
fn slow_confirm_the_place_though_it_rests() {
    is_found(&[Rule::ConfirmThePlace], Model { silence: 1, lease: 2, packets: 1, ..safe::switchover() });
}

#[test]
fn higher_terms_are_taken() {
    let model = Model { terms: 3, all_follow: true, ..without_promises(safe::pair()) };
    ways_back(&model).expect("with the rule there is a way back");
    let way = ways_back(&Model { without: &[Rule::HigherTermsAreTaken], ..model });
    println!("no way back after\n  {}", way.expect_err("it is stuck somewhere").join("\n  "));
}
