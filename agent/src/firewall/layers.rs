//! A long list in three sets, so that changing a little of it costs little. Pure.
//!
//! ```text
//! who comes in = added ∪ (base without withdrawn)
//! ```
//! A kernel that changes any element of a set of addresses makes the whole set anew: tens of milliseconds for a hundred thousand.
//! So a long *base* stays as it is, and what has changed since stands in two short sets beside it. When these have
//! become long, they are folded: the base is changed, and they are emptied, in one transaction. A short list is changed in the base
//! itself.
//!
//! The elements of each set lie apart, and so do those that are declared. What is withdrawn are elements of the base, whole: so it does
//! not matter which overlap those that are added.
//!
//! The kernel takes over the sets of a transaction one after the other, in the order in which they are named, and a packet may
//! come in between. So nobody is let in or refused in between who is not before or after: additions come before
//! withdrawals, a folded base before what it replaces, and what was withdrawn from a base stays so until it is folded.

use super::plan::{Addresses, Change, Deed, difference, push};
use super::sets::{Elements, Family, Interval, SetId};

/// The three sets, in both families.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    pub base: Addresses,
    pub added: Addresses,
    pub withdrawn: Addresses,
}

/// When what is changed, in elements of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// A base of no more than these is changed itself.
    pub short: usize,
    /// No more than these stand beside a base.
    pub beside: usize,
}

/// How one family becomes what is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way<T> {
    /// The base stays.
    Beside { added: Vec<Interval<T>>, withdrawn: Vec<Interval<T>> },
    /// The base becomes what is declared, by these.
    Fold { gone: Vec<Interval<T>>, new: Vec<Interval<T>> },
}

// === impl Bounds ===

impl Bounds {
    pub const USUAL: Self = Self { short: 4096, beside: 1024 };
}

// === impl Layers ===

impl Layers {
    /// Adds the changes that let in exactly these at this port.
    pub(super) fn become_these(
        &self,
        wanted: &Addresses,
        port: u16,
        bounds: Bounds,
        changes: &mut Vec<Change>,
    ) {
        let Self { base, added, withdrawn } = self;
        let v4 = [&base.v4[..], &added.v4, &withdrawn.v4];
        become_these(v4, &wanted.v4, bounds, |layer| layer(port, Family::V4), Elements::V4, changes);
        let v6 = [&base.v6[..], &added.v6, &withdrawn.v6];
        become_these(v6, &wanted.v6, bounds, |layer| layer(port, Family::V6), Elements::V6, changes);
    }
}

fn become_these<T: Copy + Ord>(
    [base, added, withdrawn]: [&[Interval<T>]; 3],
    wanted: &[Interval<T>],
    bounds: Bounds,
    set: impl Fn(fn(u16, Family) -> SetId) -> SetId,
    elements: impl Fn(Vec<Interval<T>>) -> Elements,
    changes: &mut Vec<Change>,
) {
    let mut change = |layer: fn(u16, Family) -> SetId, (gone, new)| {
        push(changes, set(layer), Deed::Delete, elements(gone));
        push(changes, set(layer), Deed::Add, elements(new));
    };
    match way(base, withdrawn, wanted, bounds) {
        Way::Beside { added: wanted, withdrawn: unwanted } => {
            change(SetId::Added, difference(added, &wanted));
            change(SetId::Withdrawn, difference(withdrawn, &unwanted));
        }
        Way::Fold { gone, new } => {
            change(SetId::Kept, (gone, new));
            change(SetId::Withdrawn, (withdrawn.to_vec(), Vec::new()));
            change(SetId::Added, (added.to_vec(), Vec::new()));
        }
    }
}

fn way<T: Copy + Ord>(
    base: &[Interval<T>],
    withdrawn: &[Interval<T>],
    wanted: &[Interval<T>],
    bounds: Bounds,
) -> Way<T> {
    let (gone, new) = difference(base, wanted);
    if base.len() <= bounds.short || gone.len() + new.len() > bounds.beside {
        return Way::Fold { gone, new };
    }
    // Declared again after it was withdrawn. Nobody but us withdraws: anything else in there goes.
    let is_back = |it: &Interval<T>| base.binary_search(it).is_ok() && gone.binary_search(it).is_err();
    let back: Vec<_> = withdrawn.iter().copied().filter(is_back).collect();
    if gone.len() + new.len() + 2 * back.len() > bounds.beside {
        return Way::Fold { gone, new };
    }
    Way::Beside { added: both(new, &back), withdrawn: both(gone, &back) }
}

fn both<T: Copy + Ord>(mut one: Vec<Interval<T>>, other: &[Interval<T>]) -> Vec<Interval<T>> {
    one.extend_from_slice(other);
    one.sort();
    one
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::plan::{Declared, Observed, Port, plan};
    use super::*;

    const PORT: u16 = 5432;
    /// The last addresses of all.
    const FROM: u32 = u32::MAX - 23;
    const BOUNDS: Bounds = Bounds { short: 2, beside: 5 };

    /// The judge: addresses, one by one.
    type Model = BTreeSet<u32>;

    fn model(intervals: &[Interval<u32>]) -> Model {
        intervals.iter().flat_map(|it| it.first..=it.last).collect()
    }

    /// Whom the rules let in.
    fn let_in(observed: &Observed) -> Model {
        let Layers { base, added, withdrawn } = &observed.ports[&PORT].kept;
        let stay: Model = model(&base.v4).difference(&model(&withdrawn.v4)).copied().collect();
        stay.union(&model(&added.v4)).copied().collect()
    }

    fn apart(ends: BTreeSet<u32>) -> Vec<Interval<u32>> {
        let ends: Vec<u32> = ends.into_iter().collect();
        ends.chunks_exact(2).map(|two| Interval { first: FROM + two[0], last: FROM + two[1] }).collect()
    }

    fn list() -> impl Strategy<Value = Vec<Interval<u32>>> {
        // Elements that come again, so that what was withdrawn comes back; and any others, which overlap them.
        let usual = proptest::collection::vec(any::<bool>(), 6).prop_map(|which| {
            let usual = which.into_iter().zip(0_u32..).filter(|(it, _)| *it);
            usual.map(|(_, n)| Interval { first: FROM + 4 * n, last: FROM + 4 * n + 2 }).collect()
        });
        prop_oneof![3 => usual, 1 => proptest::collection::btree_set(0_u32..24, 0..14).prop_map(apart)]
    }

    fn declared(v4: &[Interval<u32>]) -> Declared {
        let kept = Addresses { v4: v4.to_vec(), v6: Vec::new() };
        Declared { ports: [(PORT, Port { kept, ..Port::default() })].into() }
    }

    /// As the kernel takes them over: one set after the other, in the order in which they are named.
    fn by_set(changes: &[Change]) -> Vec<Vec<Change>> {
        let mut sets: Vec<Vec<Change>> = Vec::new();
        for change in changes {
            match sets.iter_mut().find(|of_set| of_set[0].set == change.set) {
                Some(of_set) => of_set.push(change.clone()),
                None => sets.push(vec![change.clone()]),
            }
        }
        sets
    }

    /// Walks through the lists. Whoever is before and after is let in all the while, and nobody else than who is before or after.
    fn walk(
        lists: &[Vec<Interval<u32>>],
        mutate: impl Fn(&mut Vec<Change>),
        let_in: impl Fn(&Observed) -> Model,
    ) -> Result<(), String> {
        let mut observed = Observed::empty([PORT]);
        for list in lists {
            let (before, wanted) = (let_in(&observed), model(list));
            let mut changes = plan(&declared(list), &observed, BOUNDS).changes;
            mutate(&mut changes);
            for of_set in by_set(&changes) {
                observed.apply(&of_set);
                let now = let_in(&observed);
                if let Some(cut) = before.intersection(&wanted).find(|it| !now.contains(it)) {
                    return Err(format!("{cut} is refused in between: {changes:?}"));
                }
                if let Some(alien) = now.iter().find(|it| !before.contains(it) && !wanted.contains(it)) {
                    return Err(format!("{alien} is let in in between: {changes:?}"));
                }
            }
            if let_in(&observed) != wanted {
                return Err(format!("{wanted:?} is declared, and this is there: {observed:?}"));
            }
            if !plan(&declared(list), &observed, BOUNDS).changes.is_empty() {
                return Err(format!("there is something left to do: {observed:?}"));
            }
        }
        Ok(())
    }

    fn lists() -> impl Strategy<Value = Vec<Vec<Interval<u32>>>> {
        proptest::collection::vec(list(), 1..12)
    }

    /// Whether any of many walks fails.
    fn is_found(mutate: impl Fn(&mut Vec<Change>), let_in: impl Fn(&Observed) -> Model) -> bool {
        use proptest::strategy::ValueTree as _;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        (0..500).any(|_| {
            let lists = lists().new_tree(&mut runner).unwrap().current();
            walk(&lists, &mutate, &let_in).is_err()
        })
    }

    proptest! {
        #[test]
        fn any_way_from_list_to_list_lets_in_what_is_declared_and_cuts_nobody_else(lists in lists()) {
            walk(&lists, |_| {}, let_in).unwrap();
        }

        #[test]
        fn whatever_is_found_becomes_what_is_declared(
            base in list(), added in list(), withdrawn in list(), wanted in list(),
        ) {
            let v4 = |v4| Addresses { v4, v6: Vec::new() };
            let mut observed = Observed::empty([PORT]);
            observed.ports.get_mut(&PORT).unwrap().kept =
                Layers { base: v4(base), added: v4(added), withdrawn: v4(withdrawn) };
            observed.apply(&plan(&declared(&wanted), &observed, BOUNDS).changes);
            prop_assert_eq!(let_in(&observed), model(&wanted));
        }
    }

    /// *Mutants* of the walk.
    #[test]
    fn each_wrong_way_is_found() {
        assert!(!is_found(|_| {}, let_in), "the right one is not");
        let forgets = |layer: fn(u16, Family) -> SetId| {
            move |changes: &mut Vec<Change>| {
                let folds = changes.iter().any(|change| matches!(change.set, SetId::Kept(..)));
                changes.retain(|change| !folds || change.set != layer(PORT, Family::V4));
            }
        };
        assert!(is_found(forgets(SetId::Added), let_in), "a fold that leaves what was added");
        assert!(is_found(forgets(SetId::Withdrawn), let_in), "a fold that leaves what was withdrawn");
        let asks_nobody = |observed: &Observed| {
            let Layers { base, added, .. } = &observed.ports[&PORT].kept;
            model(&base.v4).union(&model(&added.v4)).copied().collect()
        };
        assert!(is_found(|_| {}, asks_nobody), "rules that do not ask what is withdrawn");
        assert!(is_found(|changes| changes.reverse(), let_in), "sets in another order");
    }

    #[test]
    fn a_short_list_is_changed_itself_and_a_long_one_by_what_stands_beside_it() {
        let intervals = |from: u32, to: u32| -> Vec<_> {
            (from..to).map(|n| Interval { first: n * 4, last: n * 4 + 1 }).collect()
        };
        let sizes = |changes: &[Change]| -> Vec<_> {
            changes.iter().map(|change| (change.set, change.deed, change.elements.len())).collect()
        };
        let set = |layer: fn(u16, Family) -> SetId| layer(PORT, Family::V4);
        let (kept, added, withdrawn) = (set(SetId::Kept), set(SetId::Added), set(SetId::Withdrawn));
        let mut observed = Observed::empty([PORT]);
        let mut next = |from, to| {
            let changes = plan(&declared(&intervals(from, to)), &observed, Bounds::USUAL).changes;
            observed.apply(&changes);
            sizes(&changes)
        };
        assert_eq!(next(0, 4_000), [(kept, Deed::Add, 4_000)]);
        assert_eq!(next(10, 4_010), [(kept, Deed::Delete, 10), (kept, Deed::Add, 10)]);
        assert_eq!(next(0, 100_000), [(kept, Deed::Add, 96_000 - 10 + 10)]);
        assert_eq!(next(10, 100_010), [(added, Deed::Add, 10), (withdrawn, Deed::Add, 10)]);
        assert_eq!(next(10, 100_000), [(added, Deed::Delete, 10)]);
        assert_eq!(next(0, 100_000), [(added, Deed::Add, 10)]);
        assert_eq!(next(0, 101_000), [(added, Deed::Add, 1_000)]);
        assert_eq!(
            next(0, 101_010),
            [(kept, Deed::Add, 1_010), (withdrawn, Deed::Delete, 10), (added, Deed::Delete, 1_010)]
        );
    }
}
