//! What must change in the table's sets to make them as declared. Pure.
//!
//! ```text
//! Declared (from the assignment) × Observed (from the kernel) ─► Plan { load the structure?, changes of elements }
//! ```
//! The structure (chains, rules, sets) depends on the managed ports alone and is loaded seldom; who gets in is elements,
//! changed by difference and in one transaction. The gate is not planned here: it belongs to the lease, and is only
//! taken away from ports that are managed no more, and from those to which somebody else has given it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use holdfast_common::access::Reach;
use holdfast_common::protocol::Slot;

use super::layers::{Bounds, Layers};
use super::sets::{Elements, Family, Interval, PortElement, SetId};

/// What must hold for every managed port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    pub ports: BTreeMap<u16, Port>,
}

/// What must hold for one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Port {
    pub members: Addresses,
    pub kept: Addresses,
    pub trial: Option<Trial>,
    /// The cluster's name, where refused packets are to be logged.
    pub log_refused: Option<String>,
    /// `None`: members replicate on the port itself, whatever its gate.
    pub replication: Option<Replication>,
    /// Ports of other programs that open and shut with this one.
    pub gated: Vec<u16>,
}

/// Where members reach this port to replicate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replication {
    pub port: u16,
    /// Who on this machine may use that of other members: engine and agent, by user id.
    pub users: Vec<u32>,
}

/// Other addresses that hold for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    pub tried: Addresses,
    pub phase: TrialPhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialPhase {
    /// Begins now, for so long.
    Begin(Duration),
    /// Was begun before: it holds for as long as the kernel still says so, and is never begun again.
    Begun,
}

/// Addresses of both families: disjoint intervals in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    pub v4: Vec<Interval<u32>>,
    pub v6: Vec<Interval<u128>>,
}

/// What the kernel has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub structure: Structure,
    pub ports: BTreeMap<u16, PortSets>,
    pub trials: BTreeSet<u16>,
    /// Ports in any set of the gate.
    pub gated: BTreeMap<SetId, BTreeSet<u16>>,
    /// Those of the last two that somebody else has put in.
    pub foreign: BTreeSet<(SetId, u16)>,
}

/// Whether chains, rules and sets are those that the declared ports need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Structure {
    /// There is no table: everything passes.
    #[default]
    Absent,
    AsDeclared,
    Differs,
}

/// The sets of one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortSets {
    pub members: Addresses,
    pub kept: Layers,
    pub tried: Addresses,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Load the structure, look again, and plan anew: `changes` is empty then.
    pub load: bool,
    /// What nobody is judged by yet, or no more: a transaction of its own, so that a trial begins with addresses that are
    /// in force, and ends with such.
    pub before: Vec<Change>,
    pub changes: Vec<Change>,
}

/// A change of one set; changes are one transaction, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub set: SetId,
    pub deed: Deed,
    pub elements: Elements,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Add,
    Delete,
}

/// Plans for what is declared.
pub fn plan(declared: &Declared, observed: &Observed, bounds: Bounds) -> Plan {
    if observed.structure != Structure::AsDeclared {
        return Plan { load: true, ..Plan::default() };
    }
    let mut plan = Plan::default();
    // Before anything is put in. A gate that is shut by that opens with the next renewal.
    plan.changes.extend(observed.foreign.iter().flat_map(|(set, port)| remove(*set, *port)));
    let is_ours = |set: SetId, port: u16| !observed.foreign.contains(&(set, port));
    let nothing = PortSets::default();
    for (&port, wanted) in &declared.ports {
        let found = observed.ports.get(&port).unwrap_or(&nothing);
        let on_trial = observed.trials.contains(&port) && is_ours(SetId::Trial, port);
        plan_port(port, wanted, found, on_trial, bounds, &mut plan);
    }
    let managed: BTreeSet<u16> =
        declared.ports.iter().flat_map(|(port, wanted)| wanted.with_gated(*port)).collect();
    let unmanaged = |port: &&u16| !managed.contains(*port);
    let gates = observed.gated.iter().map(|(set, ports)| (*set, ports));
    for (set, ports) in gates.chain([(SetId::Trial, &observed.trials)]) {
        let left = ports.iter().filter(unmanaged).filter(|port| is_ours(set, **port));
        let left: Vec<PortElement> = left.map(|port| PortElement::lasting(*port)).collect();
        push(&mut plan.changes, set, Deed::Delete, Elements::Ports(left));
    }
    plan
}

fn plan_port(port: u16, wanted: &Port, found: &PortSets, on_trial: bool, bounds: Bounds, plan: &mut Plan) {
    let Port { members, kept, trial, log_refused: _, replication: _, gated: _ } = wanted;
    let nobody = Addresses::default();
    // A trial that is over in the kernel is over, also while the coordinator does not know that yet.
    let (tried, begins) = match trial {
        Some(Trial { tried, phase: TrialPhase::Begin(lasts) }) => (tried, Some(*lasts)),
        Some(Trial { tried, phase: TrialPhase::Begun }) if on_trial => (tried, None),
        Some(Trial { phase: TrialPhase::Begun, .. }) | None => (&nobody, None),
    };
    let Plan { load: _, before, changes } = plan;
    // The kernel ends a trial a little before it has made large sets anew, in one transaction too.
    let ends = trial.is_none() && on_trial;
    if ends {
        changes.extend(wanted.with_gated(port).flat_map(|port| remove(SetId::Trial, port)));
    }
    differences(&found.members, members, |family| SetId::Members(port, family), changes);
    found.kept.become_these(kept, port, bounds, if ends { &mut *before } else { &mut *changes });
    let of_trial = if begins.is_some() { before } else { &mut *changes };
    differences(&found.tried, tried, |family| SetId::Tried(port, family), of_trial);
    if let Some(lasts) = begins {
        let ports = wanted.with_gated(port);
        changes.extend(ports.flat_map(|port| renew(SetId::Trial, PortElement::lasting_for(port, lasts))));
    }
}

/// Puts an element in anew, whether it is there or not. Adding one that is there would leave it and its time as they are,
/// and one that is not there cannot be removed: so it is added, removed, and added.
pub(super) fn renew(set: SetId, element: PortElement) -> [Change; 3] {
    let change = |deed, element| Change { set, deed, elements: Elements::Ports(vec![element]) };
    let plain = PortElement::lasting(element.port);
    [change(Deed::Add, plain), change(Deed::Delete, plain), change(Deed::Add, element)]
}

/// Takes an element out, whether it is there or not.
pub(super) fn remove(set: SetId, port: u16) -> [Change; 2] {
    let change = |deed| Change { set, deed, elements: Elements::Ports(vec![PortElement::lasting(port)]) };
    [change(Deed::Add), change(Deed::Delete)]
}

fn differences(
    found: &Addresses,
    wanted: &Addresses,
    set: impl Fn(Family) -> SetId,
    changes: &mut Vec<Change>,
) {
    let (gone, new) = difference(&found.v4, &wanted.v4);
    push(changes, set(Family::V4), Deed::Delete, Elements::V4(gone));
    push(changes, set(Family::V4), Deed::Add, Elements::V4(new));
    let (gone, new) = difference(&found.v6, &wanted.v6);
    push(changes, set(Family::V6), Deed::Delete, Elements::V6(gone));
    push(changes, set(Family::V6), Deed::Add, Elements::V6(new));
}

pub(super) fn push(changes: &mut Vec<Change>, set: SetId, deed: Deed, elements: Elements) {
    if !elements.is_empty() {
        changes.push(Change { set, deed, elements });
    }
}

/// What of `found` must go and what of `wanted` must come; both are in order.
pub(super) fn difference<T: Copy + Ord>(
    found: &[Interval<T>],
    wanted: &[Interval<T>],
) -> (Vec<Interval<T>>, Vec<Interval<T>>) {
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    let (mut found, mut wanted) = (found.iter().copied().peekable(), wanted.iter().copied().peekable());
    loop {
        match (found.peek(), wanted.peek()) {
            (None, None) => return (gone, new),
            (Some(have), Some(want)) if have == want => {
                found.next();
                wanted.next();
            }
            (Some(have), Some(want)) if have < want => gone.extend(found.next()),
            (Some(_), None) => gone.extend(found.next()),
            (_, Some(_)) => new.extend(wanted.next()),
        }
    }
}

// === impl Port ===

impl Port {
    /// The port itself, and those that open and shut with it.
    pub(super) fn with_gated(&self, own: u16) -> impl Iterator<Item = u16> {
        std::iter::once(own).chain(self.gated.iter().copied())
    }
}

// === impl Addresses ===

impl From<&Reach> for Addresses {
    fn from(reach: &Reach) -> Self {
        let v4 = reach
            .v4()
            .iter()
            .map(|net| Interval { first: net.network().into(), last: net.broadcast().into() });
        let v6 = reach
            .v6()
            .iter()
            .map(|net| Interval { first: net.network().into(), last: net.broadcast().into() });
        Self { v4: v4.collect(), v6: v6.collect() }
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let reach: Reach = addresses.into_iter().map(holdfast_common::access::Cidr::from).collect();
        Self::from(&reach)
    }
}

// === impl Observed ===

impl Observed {
    /// The sets that a structure for these ports has, all of them empty.
    pub fn empty(ports: impl IntoIterator<Item = u16>) -> Self {
        let ports = ports.into_iter().map(|port| (port, PortSets::default())).collect();
        Self { structure: Structure::AsDeclared, ports, ..Self::default() }
    }

    /// As it is after these changes were made.
    pub fn apply(&mut self, changes: &[Change]) {
        for Change { set, deed, elements } in changes {
            match elements {
                Elements::Ports(elements) => {
                    let ports = match set {
                        SetId::Trial => &mut self.trials,
                        set => self.gated.entry(*set).or_default(),
                    };
                    for element in elements {
                        self.foreign.remove(&(*set, element.port));
                        match deed {
                            Deed::Add => drop(ports.insert(element.port)),
                            Deed::Delete => drop(ports.remove(&element.port)),
                        }
                    }
                }
                Elements::V4(intervals) => {
                    if let Some(addresses) = self.addresses(*set) {
                        merge(&mut addresses.v4, *deed, intervals);
                    }
                }
                Elements::V6(intervals) => {
                    if let Some(addresses) = self.addresses(*set) {
                        merge(&mut addresses.v6, *deed, intervals);
                    }
                }
            }
        }
    }

    fn addresses(&mut self, set: SetId) -> Option<&mut Addresses> {
        let port = set.port()?;
        let PortSets { members, kept, tried } = self.ports.entry(port).or_default();
        Some(match set {
            SetId::Members(..) => members,
            SetId::Kept(..) => &mut kept.base,
            SetId::Added(..) => &mut kept.added,
            SetId::Withdrawn(..) => &mut kept.withdrawn,
            SetId::Tried(..) => tried,
            SetId::Armed(_) | SetId::Granted(_) | SetId::Readers | SetId::Trial => return None,
        })
    }
}

impl SetId {
    /// Those that ports are in.
    pub const OF_PORTS: [Self; 6] = [
        Self::Armed(Slot::A),
        Self::Armed(Slot::B),
        Self::Granted(Slot::A),
        Self::Granted(Slot::B),
        Self::Readers,
        Self::Trial,
    ];

    /// The sets that open the gate.
    pub const GATE: [Self; 5] = [
        Self::Armed(Slot::A),
        Self::Armed(Slot::B),
        Self::Granted(Slot::A),
        Self::Granted(Slot::B),
        Self::Readers,
    ];
}

/// Both in order; so is the result.
fn merge<T: Copy + Ord>(intervals: &mut Vec<Interval<T>>, deed: Deed, changed: &[Interval<T>]) {
    match deed {
        Deed::Delete => intervals.retain(|it| changed.binary_search(it).is_err()),
        Deed::Add => {
            intervals.extend_from_slice(changed);
            // Two runs in order: the stable one is made for that.
            intervals.sort();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses() -> impl Strategy<Value = Addresses> {
        let v4 = proptest::collection::btree_set(0_u32..12, 0..8);
        let v6 = proptest::collection::btree_set(0_u128..12, 0..8);
        // Up to the very last address, whose interval has no end in the kernel.
        (v4, v6)
            .prop_map(|(v4, v6)| Addresses { v4: pairs(v4, u32::MAX - 11), v6: pairs(v6, u128::MAX - 11) })
    }

    fn pairs<T: Copy + std::ops::Add<Output = T>>(ends: BTreeSet<T>, base: T) -> Vec<Interval<T>> {
        let ends: Vec<T> = ends.into_iter().collect();
        ends.chunks_exact(2).map(|two| Interval { first: base + two[0], last: base + two[1] }).collect()
    }

    fn all(Plan { load: _, before, changes }: Plan) -> Vec<Change> {
        before.into_iter().chain(changes).collect()
    }

    fn trial() -> impl Strategy<Value = Option<Trial>> {
        let phase = prop_oneof![Just(TrialPhase::Begun), Just(TrialPhase::Begin(Duration::from_secs(5)))];
        proptest::option::of((addresses(), phase).prop_map(|(tried, phase)| Trial { tried, phase }))
    }

    fn declared() -> impl Strategy<Value = Declared> {
        let port = (addresses(), addresses(), trial()).prop_map(|(members, kept, trial)| Port {
            members,
            kept,
            trial,
            log_refused: None,
            replication: None,
            gated: Vec::new(),
        });
        proptest::collection::btree_map(5432_u16..5435, port, 0..3).prop_map(|ports| Declared { ports })
    }

    fn observed() -> impl Strategy<Value = Observed> {
        let sets = (addresses(), addresses(), addresses()).prop_map(|(members, kept, tried)| PortSets {
            members,
            kept: Layers { base: kept, ..Layers::default() },
            tried,
        });
        let ports = || proptest::collection::btree_set(5432_u16..5435, 0..3);
        (proptest::collection::btree_map(5432_u16..5435, sets, 0..3), ports(), ports(), ports()).prop_map(
            |(ports, trials, open, others)| {
                let put_in = [(SetId::Trial, &trials), (SetId::Armed(Slot::A), &open)];
                let foreign = put_in
                    .into_iter()
                    .flat_map(|(set, put_in)| put_in.intersection(&others).map(move |port| (set, *port)))
                    .collect();
                let gated = BTreeMap::from([(SetId::Armed(Slot::A), open)]);
                Observed { structure: Structure::AsDeclared, ports, trials, gated, foreign }
            },
        )
    }

    proptest! {
        #[test]
        fn applying_the_plan_makes_what_was_declared(wanted in declared(), before in observed()) {
            let mut after = before.clone();
            after.apply(&all(plan(&wanted, &before, Bounds::USUAL)));
            for (port, declared) in &wanted.ports {
                let sets = after.ports.get(port).cloned().unwrap_or_default();
                prop_assert_eq!(&sets.members, &declared.members);
                // Short as it is, it stands in the base; of long ones `layers` tells.
                prop_assert_eq!(&sets.kept, &Layers { base: declared.kept.clone(), ..Layers::default() });
                match &declared.trial {
                    None => {
                        prop_assert!(!after.trials.contains(port));
                        prop_assert_eq!(sets.tried, Addresses::default());
                    }
                    Some(Trial { tried, phase: TrialPhase::Begin(_) }) => {
                        prop_assert!(after.trials.contains(port));
                        prop_assert_eq!(&sets.tried, tried);
                    }
                    // What the kernel has ended stays ended.
                    Some(Trial { phase: TrialPhase::Begun, .. }) => {
                        let was = before.trials.contains(port) && !before.foreign.contains(&(SetId::Trial, *port));
                        prop_assert_eq!(after.trials.contains(port), was);
                    }
                }
            }
            prop_assert!(after.foreign.is_empty());
            for ports in after.gated.values().chain([&after.trials]) {
                prop_assert!(ports.iter().all(|port| wanted.ports.contains_key(port)));
            }
        }

        #[test]
        fn there_is_nothing_to_do_the_second_time(wanted in declared(), before in observed()) {
            let mut wanted = wanted;
            let mut after = before.clone();
            after.apply(&all(plan(&wanted, &before, Bounds::USUAL)));
            for port in wanted.ports.values_mut() {
                if let Some(trial) = &mut port.trial {
                    trial.phase = TrialPhase::Begun;
                }
            }
            prop_assert_eq!(plan(&wanted, &after, Bounds::USUAL), Plan::default());
        }

        #[test]
        fn an_open_gate_of_a_managed_port_is_left_alone_unless_somebody_else_has_opened_it(wanted in declared(), before in observed()) {
            let mut after = before.clone();
            after.apply(&all(plan(&wanted, &before, Bounds::USUAL)));
            for (set, ports) in &before.gated {
                for port in ports.iter().filter(|port| wanted.ports.contains_key(port)) {
                    let is_foreign = before.foreign.contains(&(*set, *port));
                    prop_assert_eq!(after.gated[set].contains(port), !is_foreign);
                }
            }
        }
    }

    #[test]
    fn a_table_that_is_gone_or_changed_is_loaded_before_anything_else() {
        for structure in [Structure::Absent, Structure::Differs] {
            let observed = Observed { structure, ..Observed::default() };
            let load = Plan { load: true, ..Plan::default() };
            assert_eq!(plan(&Declared::default(), &observed, Bounds::USUAL), load);
        }
    }

    #[test]
    fn a_trial_begins_and_ends_with_addresses_that_are_in_force() {
        let at = |first| Addresses { v4: vec![Interval { first, last: first }], v6: vec![] };
        let port = |kept, trial| Declared { ports: [(5432, Port { kept, trial, ..Port::default() })].into() };
        let sets = |changes: &[Change]| -> Vec<SetId> { changes.iter().map(|change| change.set).collect() };
        let mut observed = Observed::empty([5432]);
        observed.apply(&all(plan(&port(at(1), None), &observed, Bounds::USUAL)));
        let tried = Trial { tried: at(2), phase: TrialPhase::Begin(Duration::from_secs(5)) };
        let begins = plan(&port(at(1), Some(tried)), &observed, Bounds::USUAL);
        assert_eq!(sets(&begins.before), [SetId::Tried(5432, Family::V4)]);
        assert_eq!(sets(&begins.changes), [SetId::Trial; 3]);
        observed.apply(&all(begins));
        let confirmed = plan(&port(at(2), None), &observed, Bounds::USUAL);
        assert_eq!(sets(&confirmed.before), [SetId::Kept(5432, Family::V4); 2]);
        assert_eq!(sets(&confirmed.changes), [SetId::Trial, SetId::Trial, SetId::Tried(5432, Family::V4)]);
    }
}
