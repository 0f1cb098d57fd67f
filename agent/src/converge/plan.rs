//! What must be done to make a member as its assignment says. Pure.
//!
//! A plan never makes, replaces or removes data: those are commands. It changes a role only where the lease's record says so of
//! the same term. What it may not mend is a [`Problem`], told until somebody does.

mod problem;

pub use problem::Problem;

use holdfast_common::assignment::{Exposure, MemberAssignment, Power};
use holdfast_common::protocol::Standing;
use holdfast_common::report::{EngineState, TroubleKind};
use holdfast_common::role::Role;
use holdfast_common::term::Term;

use crate::engine::{Drift, Observation};
use crate::lease::Serve;

/// One thing to do; in the order of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Configure,
    /// Made a replica of the upstream, where it was a primary or sealed.
    Follow,
    Start,
    /// Stopped and started, for parameters that are read at a start alone.
    Restart,
    /// Made primary of the assignment's term.
    Lead,
    Admit,
    Stop,
    /// At once.
    Halt,
}

/// What is to be done, and what cannot be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub problem: Option<Problem>,
}

/// Whether the member's access rules are in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    Stands,
    Missing,
}

/// What the surroundings allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leave {
    pub cover: Cover,
    /// Whether it may run as primary; `None`: not known yet, so that it is left as it is.
    pub serve: Option<Serve>,
    /// What it is by the lease's record, and in which term.
    pub standing: Option<(Term, Standing)>,
}

/// What its role asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Turn {
    Fits,
    Lead,
    Follow,
    Halt,
    Refused(Problem),
}

/// Plans for `wanted`; `drift` is `None` where it was not looked at.
pub fn plan(wanted: &MemberAssignment, observed: &Observation, drift: Option<Drift>, leave: Leave) -> Plan {
    let Leave { cover, serve, .. } = leave;
    if let Some(problem) = problem(wanted, observed) {
        return Plan { steps: Vec::new(), problem: Some(problem) };
    }
    let turn = match turn(wanted, observed, leave) {
        Turn::Refused(problem) => return Plan { steps: Vec::new(), problem: Some(problem) },
        Turn::Halt => return Plan { steps: vec![Step::Halt], problem: None },
        turn => turn,
    };
    let exposed = cover == Cover::Missing && wanted.exposure == Exposure::OnlyFiltered;
    let differs = drift.is_some_and(|drift| drift.configuration);
    let admits = drift.is_some_and(|drift| drift.admission);
    let mut steps = Vec::new();
    let unleased = wanted.role.role() == Role::Primary && serve != Some(Serve::May);
    if unleased && wanted.power == Power::Running {
        let runs = matches!(observed.state, EngineState::Running | EngineState::Starting);
        if serve == Some(Serve::MustNot) && runs {
            steps.push(Step::Halt);
        }
        let rests = serve == Some(Serve::Rests);
        return Plan { steps, problem: (!runs && !rests).then_some(Problem::NoLease) };
    }
    steps.extend((turn == Turn::Follow).then_some(Step::Follow));
    match (observed.state, wanted.power) {
        // Clients wait for this alone, and it configures too; what else there is to do is the next round's.
        (EngineState::Running, Power::Running) if turn == Turn::Lead => steps.push(Step::Lead),
        (EngineState::Running, Power::Running) => {
            steps.extend(differs.then_some(Step::Configure));
            steps.extend(admits.then_some(Step::Admit));
            steps.extend(is_held_up(observed).then_some(Step::Restart));
        }
        // Not before its configuration has been looked at: it must not start with an old one.
        (EngineState::Stopped | EngineState::Failed, Power::Running) if drift.is_some() => {
            steps.extend(differs.then_some(Step::Configure));
            if exposed {
                return Plan { steps, problem: Some(Problem::Unfiltered) };
            }
            steps.push(Step::Start);
        }
        (EngineState::Running | EngineState::Starting, Power::Stopped) => steps.push(Step::Stop),
        (EngineState::Stopped | EngineState::Failed, Power::Stopped) => {
            steps.extend(differs.then_some(Step::Configure));
        }
        (EngineState::Stopped | EngineState::Failed | EngineState::Starting, Power::Running)
        | (EngineState::Unknown | EngineState::Absent | EngineState::Building, _) => {}
    }
    Plan { steps, problem: None }
}

/// Whether it is to become primary now: clients wait for that, so that nothing else is looked at.
pub fn leads(plan: &Plan) -> bool {
    plan.steps == [Step::Lead]
}

/// Whether the assignment is fully true of what was observed.
pub fn is_converged(wanted: &MemberAssignment, observed: &Observation, drift: Drift, leave: Leave) -> bool {
    let power = match wanted.power {
        Power::Running => observed.state == EngineState::Running && observed.role == Some(wanted.role.role()),
        Power::Stopped => matches!(observed.state, EngineState::Stopped | EngineState::Failed),
    };
    power && drift == Drift::NONE && plan(wanted, observed, Some(drift), leave) == Plan::default()
}

/// Whether it replays no further until it has more of a parameter: which a start gives it.
fn is_held_up(observed: &Observation) -> bool {
    let replica = observed.role == Some(Role::Replica);
    replica && observed.troubles.iter().any(|trouble| trouble.kind == TroubleKind::ParameterTooLow)
}

fn problem(wanted: &MemberAssignment, observed: &Observation) -> Option<Problem> {
    if observed.needs_resync {
        return Some(Problem::Broken);
    }
    match observed.state {
        EngineState::Unknown => return Some(Problem::Unknown),
        EngineState::Absent | EngineState::Building => return Some(Problem::NoData),
        EngineState::Stopped | EngineState::Starting | EngineState::Running | EngineState::Failed => {}
    }
    match (&wanted.system_identifier, &observed.system_identifier) {
        (Some(expected), Some(found)) if expected != found => {
            return Some(Problem::OtherSystem { expected: expected.clone(), found: found.clone() });
        }
        _ => {}
    }
    None
}

/// A role changes only if the assignment and the lease's record agree on it, and on the term.
fn turn(wanted: &MemberAssignment, observed: &Observation, leave: Leave) -> Turn {
    let expected = wanted.role.role();
    let is = |standing| leave.standing == Some((wanted.term, standing));
    let other = |found| Turn::Refused(Problem::OtherRole { expected, found });
    let runs = matches!(observed.state, EngineState::Running | EngineState::Starting);
    match (expected, observed.role.or(observed.data_role)) {
        // Without knowing its role nothing is started or configured as the one or the other.
        (_, None) if observed.state == EngineState::Starting => Turn::Fits,
        (_, None) => Turn::Refused(Problem::Unknown),
        (Role::Primary, Some(Role::Replica)) if !is(Standing::Primary) => other(Role::Replica),
        (Role::Primary, Some(Role::Replica)) if observed.state == EngineState::Running => Turn::Lead,
        // It is started as what it is, and led then.
        (Role::Primary, Some(Role::Replica)) => Turn::Fits,
        (Role::Primary, Some(Role::Primary)) => {
            let late = observed.state == EngineState::Running && observed.term < Some(wanted.term);
            if late && is(Standing::Primary) { Turn::Lead } else { Turn::Fits }
        }
        (Role::Replica, Some(Role::Primary)) if !is(Standing::Replica) => other(Role::Primary),
        (Role::Replica, Some(Role::Primary)) if runs => Turn::Halt,
        (Role::Replica, Some(Role::Primary)) => Turn::Follow,
        (Role::Replica, Some(Role::Replica)) if observed.sealed && is(Standing::Replica) => Turn::Follow,
        (Role::Replica, Some(Role::Replica)) => Turn::Fits,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use holdfast_common::access::Access;
    use holdfast_common::assignment::{Peer, RoleAssignment, Synchronous};
    use holdfast_common::engine::{Engine, Parameters};
    use holdfast_common::id::{ClusterId, NodeId};
    use holdfast_common::protocol::Profile;
    use holdfast_common::report::Trouble;
    use proptest::prelude::*;

    use super::*;

    const HELD: Leave = Leave { cover: Cover::Stands, serve: Some(Serve::May), standing: None };
    const UNFILTERED: Leave = Leave { cover: Cover::Missing, ..HELD };

    fn member(role: Role, power: Power) -> MemberAssignment {
        let peer = |name: &str, last| Peer {
            node_id: NodeId::generate(),
            name: name.parse().unwrap(),
            address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)),
            port: 5432,
        };
        let (own, other) = (peer("n1", 1), peer("n2", 2));
        MemberAssignment {
            cluster_id: ClusterId::generate(),
            cluster_name: "shop".parse().unwrap(),
            engine: Engine::Postgresql,
            engine_version: "15".parse().unwrap(),
            term: Term::FIRST,
            role: match role {
                Role::Primary => RoleAssignment::Primary { synchronous: Synchronous::default() },
                Role::Replica => RoleAssignment::Replica { upstream: other.clone() },
            },
            port: 5432,
            address: own.address,
            parameters: Parameters::default(),
            members: vec![own, other],
            extensions: Vec::new(),
            system_identifier: Some("7".to_owned()),
            power,
            access: Access::default(),
            exposure: Exposure::default(),
            replication_port: None,
            gated_ports: Vec::new(),
            profile: Profile::Default,
            patience: None,
        }
    }

    fn observed(state: EngineState, role: Role) -> Observation {
        let running = state == EngineState::Running;
        Observation {
            role: running.then_some(role),
            data_role: Some(role),
            term: (running && role == Role::Primary).then_some(Term::FIRST),
            system_identifier: Some("7".to_owned()),
            ..Observation::only(state)
        }
    }

    const BOTH: Drift = Drift { configuration: true, admission: true };

    #[test]
    fn a_replica_that_has_too_little_to_replay_on_is_restarted_and_a_primary_never() {
        let trouble = Trouble { kind: TroubleKind::ParameterTooLow, message: String::new() };
        for (role, steps) in [(Role::Replica, vec![Step::Restart]), (Role::Primary, Vec::new())] {
            let mut observed = observed(EngineState::Running, role);
            observed.troubles.push(trouble.clone());
            let made = plan(&member(role, Power::Running), &observed, Some(Drift::NONE), HELD);
            assert_eq!(made.steps, steps);
        }
    }

    #[test]
    fn each_state_has_its_steps() {
        use EngineState::{Absent, Building, Failed, Running, Starting, Stopped, Unknown};
        let none = Some(Drift::NONE);
        for (state, power, drift, steps) in [
            (Stopped, Power::Running, none, vec![Step::Start]),
            (Failed, Power::Running, none, vec![Step::Start]),
            (Stopped, Power::Running, Some(BOTH), vec![Step::Configure, Step::Start]),
            (Stopped, Power::Running, None, vec![]),
            (Starting, Power::Running, Some(BOTH), vec![]),
            (Running, Power::Running, none, vec![]),
            (Running, Power::Running, None, vec![]),
            (Running, Power::Running, Some(BOTH), vec![Step::Configure, Step::Admit]),
            (Running, Power::Stopped, none, vec![Step::Stop]),
            (Starting, Power::Stopped, none, vec![Step::Stop]),
            (Stopped, Power::Stopped, none, vec![]),
            (Unknown, Power::Running, Some(BOTH), vec![]),
            (Unknown, Power::Stopped, Some(BOTH), vec![]),
            (Absent, Power::Running, Some(BOTH), vec![]),
            (Building, Power::Running, Some(BOTH), vec![]),
        ] {
            let made = plan(&member(Role::Primary, power), &observed(state, Role::Primary), drift, HELD);
            assert_eq!(made.steps, steps, "{state:?} {power:?} {drift:?}");
        }
    }

    #[test]
    fn a_role_changes_only_where_assignment_and_record_agree() {
        use EngineState::{Running, Starting, Stopped};
        let leave = |term, standing| Leave { standing: Some((Term::new(term), standing)), ..HELD };
        let (primary, replica) = (Standing::Primary, Standing::Replica);
        let steps = |role, state, found, sealed, leave| {
            let observed = Observation { sealed, ..observed(state, found) };
            plan(&member(role, Power::Running), &observed, Some(Drift::NONE), leave).steps
        };
        for (role, state, found, sealed, leave, expected) in [
            (Role::Primary, Running, Role::Replica, true, leave(1, primary), vec![Step::Lead]),
            (Role::Primary, Running, Role::Replica, true, leave(2, primary), vec![]),
            (Role::Primary, Running, Role::Replica, true, leave(1, Standing::Sealed), vec![]),
            (Role::Primary, Stopped, Role::Replica, true, leave(1, primary), vec![Step::Start]),
            (Role::Primary, Running, Role::Primary, false, leave(1, primary), vec![]),
            (Role::Replica, Running, Role::Primary, false, leave(1, replica), vec![Step::Halt]),
            (Role::Replica, Starting, Role::Primary, false, leave(1, replica), vec![Step::Halt]),
            (
                Role::Replica,
                Stopped,
                Role::Primary,
                false,
                leave(1, replica),
                vec![Step::Follow, Step::Start],
            ),
            (Role::Replica, Stopped, Role::Primary, false, leave(2, replica), vec![]),
            (Role::Replica, Running, Role::Replica, true, leave(1, replica), vec![Step::Follow]),
            (Role::Replica, Running, Role::Replica, true, leave(1, Standing::Sealed), vec![]),
            (Role::Replica, Running, Role::Replica, true, leave(2, replica), vec![]),
        ] {
            assert_eq!(
                steps(role, state, found, sealed, leave),
                expected,
                "{role} {state:?} {found} {leave:?}"
            );
        }
        // A new term of the same primary is written into its data. That it differs need not be known: it is configured too.
        let later = MemberAssignment { term: Term::new(2), ..member(Role::Primary, Power::Running) };
        let led = |drift| plan(&later, &observed(Running, Role::Primary), drift, leave(2, primary)).steps;
        assert_eq!((led(Some(BOTH)), led(None)), (vec![Step::Lead], vec![Step::Lead]));
    }

    #[test]
    fn who_leads_does_nothing_else_while_clients_wait() {
        let leave = Leave { standing: Some((Term::FIRST, Standing::Primary)), ..HELD };
        let one = Synchronous { count: 1, nodes: vec![NodeId::generate()] };
        for synchronous in [Synchronous::default(), one] {
            let role = RoleAssignment::Primary { synchronous };
            let wanted = MemberAssignment { role, ..member(Role::Primary, Power::Running) };
            let steps =
                |found| plan(&wanted, &observed(EngineState::Running, found), Some(BOTH), leave).steps;
            assert_eq!(steps(Role::Replica), vec![Step::Lead]);
            assert_eq!(steps(Role::Primary), vec![Step::Configure, Step::Admit]);
        }
    }

    #[test]
    fn a_role_that_no_record_agrees_to_is_not_changed() {
        for state in [EngineState::Stopped, EngineState::Running, EngineState::Failed] {
            for (expected, found) in [(Role::Primary, Role::Replica), (Role::Replica, Role::Primary)] {
                let made = plan(&member(expected, Power::Running), &observed(state, found), Some(BOTH), HELD);
                assert_eq!(
                    made,
                    Plan { steps: vec![], problem: Some(Problem::OtherRole { expected, found }) }
                );
            }
        }
    }

    #[test]
    fn nothing_is_done_to_the_data_of_another_database() {
        let foreign = Observation {
            system_identifier: Some("8".to_owned()),
            ..observed(EngineState::Stopped, Role::Primary)
        };
        let made = plan(&member(Role::Primary, Power::Running), &foreign, Some(BOTH), HELD);
        assert!(
            made.steps.is_empty() && matches!(made.problem, Some(Problem::OtherSystem { .. })),
            "{made:?}"
        );
    }

    #[test]
    fn data_that_a_cut_resync_has_left_are_not_touched() {
        for role in [Role::Primary, Role::Replica] {
            let broken = Observation { needs_resync: true, ..observed(EngineState::Stopped, role) };
            let made = plan(&member(role, Power::Running), &broken, Some(BOTH), HELD);
            assert_eq!(made, Plan { steps: vec![], problem: Some(Problem::Broken) });
        }
    }

    #[test]
    fn an_engine_that_nobody_is_kept_away_from_is_not_started_and_not_stopped() {
        let guarded = member(Role::Primary, Power::Running);
        let none = Some(Drift::NONE);
        let made = plan(&guarded, &observed(EngineState::Stopped, Role::Primary), none, UNFILTERED);
        assert_eq!(made, Plan { steps: vec![], problem: Some(Problem::Unfiltered) });
        let made = plan(&guarded, &observed(EngineState::Running, Role::Primary), none, UNFILTERED);
        assert_eq!(made, Plan::default());
        let exposed = MemberAssignment { exposure: Exposure::AlsoUnfiltered, ..guarded };
        let made = plan(&exposed, &observed(EngineState::Stopped, Role::Primary), none, UNFILTERED);
        assert_eq!(made.steps, [Step::Start]);
    }

    #[test]
    fn data_of_unknown_role_are_not_started() {
        let unread = Observation { data_role: None, ..observed(EngineState::Stopped, Role::Primary) };
        let made = plan(&member(Role::Primary, Power::Running), &unread, Some(Drift::NONE), HELD);
        assert_eq!(made, Plan { steps: vec![], problem: Some(Problem::Unknown) });
    }

    fn states() -> impl Strategy<Value = EngineState> {
        use EngineState::{Absent, Building, Failed, Running, Starting, Stopped, Unknown};
        proptest::sample::select(vec![Unknown, Absent, Stopped, Starting, Running, Failed, Building])
    }

    #[test]
    fn a_primary_runs_by_its_lease_alone() {
        let primary = member(Role::Primary, Power::Running);
        let lost = Leave { serve: Some(Serve::MustNot), ..HELD };
        let unknown = Leave { serve: None, ..HELD };
        let rests = Leave { serve: Some(Serve::Rests), ..HELD };
        let with = |state, leave| {
            let Plan { steps, problem } =
                plan(&primary, &observed(state, Role::Primary), Some(Drift::NONE), leave);
            (steps, problem)
        };
        assert_eq!(with(EngineState::Running, lost), (vec![Step::Halt], None));
        assert_eq!(with(EngineState::Starting, lost), (vec![Step::Halt], None));
        assert_eq!(with(EngineState::Stopped, lost), (vec![], Some(Problem::NoLease)));
        // What stops it for another to take over is not disturbed.
        assert_eq!(with(EngineState::Running, rests), (vec![], None));
        assert_eq!(with(EngineState::Stopped, rests), (vec![], None));
        // Until it is known, nothing is started and nothing is stopped.
        assert_eq!(with(EngineState::Running, unknown), (vec![], None));
        assert_eq!(with(EngineState::Stopped, unknown), (vec![], Some(Problem::NoLease)));
        // A replica needs none.
        let replica = member(Role::Replica, Power::Running);
        let made = plan(&replica, &observed(EngineState::Stopped, Role::Replica), Some(Drift::NONE), lost);
        assert_eq!(made.steps, [Step::Start]);
    }

    fn roles() -> impl Strategy<Value = Role> {
        proptest::sample::select(vec![Role::Primary, Role::Replica])
    }

    /// What the steps make of the world, if all of them succeed.
    fn apply(steps: &[Step], observed: &mut Observation, drift: &mut Drift) {
        for step in steps {
            match step {
                Step::Configure => drift.configuration = false,
                Step::Admit => drift.admission = false,
                Step::Lead | Step::Follow => {}
                Step::Restart => observed.troubles.clear(),
                Step::Start => (observed.state, observed.role) = (EngineState::Running, observed.data_role),
                Step::Stop | Step::Halt => (observed.state, observed.role) = (EngineState::Stopped, None),
            }
        }
    }

    proptest! {
        #[test]
        fn there_is_nothing_to_do_the_second_time(
            state in states(),
            wanted_role in roles(),
            found_role in roles(),
            running in any::<bool>(),
            configuration in any::<bool>(),
            admission in any::<bool>(),
        ) {
            let power = if running { Power::Running } else { Power::Stopped };
            let wanted = member(wanted_role, power);
            let mut observed = observed(state, found_role);
            // Only a running primary is asked whom it admits.
            let mut drift =
                Drift { configuration, admission: admission && observed.role == Some(Role::Primary) };
            let first = plan(&wanted, &observed, Some(drift), HELD);
            apply(&first.steps, &mut observed, &mut drift);
            prop_assert_eq!(observed.data_role, Some(found_role));
            if first.steps == [Step::Stop] {
                // A stopped server admits nobody, and may be configured once more.
                drift.admission = false;
                let after_stop = plan(&wanted, &observed, Some(drift), HELD);
                apply(&after_stop.steps, &mut observed, &mut drift);
            }
            let again = plan(&wanted, &observed, Some(drift), HELD);
            prop_assert!(again.steps.is_empty(), "{:?} then {:?}", first, again);
            if again.problem.is_none() && observed.state != EngineState::Starting {
                prop_assert!(is_converged(&wanted, &observed, drift, HELD));
            }
        }
    }
}
