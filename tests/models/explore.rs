//! The checker's verdicts, and the way back from every state.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use holdfast_common::protocol::Standing;
use stateright::{Checker, HasDiscoveries, Model as _};

use super::model::Model;
use super::world::{World, index_of};

/// More states than any of these models has: beyond it a model is a mistake.
const TOO_MANY: usize = 40_000_000;

/// What the checker found.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// All reachable states.
    Safe { states: usize },
    /// A property that does not hold, and the shortest way there.
    Broken { property: &'static str, states: usize, way: Vec<String> },
}

/// Looks at every reachable state.
pub(crate) fn verdict(model: &Model) -> Verdict {
    let checker = model.clone().checker().threads(2).finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.target_state_count(TOO_MANY).spawn_bfs().join();
    let states = checker.unique_state_count();
    assert!(checker.state_count() < TOO_MANY, "too many states for a model");
    match checker.discoveries().into_iter().next() {
        None => Verdict::Safe { states },
        Some((property, path)) => {
            let way = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
            Verdict::Broken { property, states, way }
        }
    }
}

/// Whether from every state below the bound of terms a healthy cluster can be reached: how many states there are, or the way to
/// one without a way back.
pub(crate) fn ways_back(model: &Model) -> Result<usize, Vec<String>> {
    let mut graph = Graph::default();
    graph.build(model);
    graph.stuck().map_or(Ok(graph.healthy.len()), |state| Err(graph.way_to(model, state)))
}

/// Whether such a state can be reached: without it what is safe may be so because nothing happens.
pub(crate) fn reaches(model: &Model, wanted: impl Fn(&World) -> bool) -> bool {
    let mut seen = HashSet::new();
    let mut pending = VecDeque::from(model.init_states());
    while let Some(world) = pending.pop_front() {
        if wanted(&world) {
            return true;
        }
        let mut actions = Vec::new();
        model.actions(&world, &mut actions);
        let next = actions.into_iter().filter_map(|action| model.next_state(&world, action));
        pending.extend(next.filter(|next| seen.insert(fingerprint(next))));
    }
    false
}

/// The reachable states by number; of each only what is needed.
#[derive(Default)]
struct Graph {
    /// Which states lead to this one.
    before: Vec<Vec<u32>>,
    /// From where it was first reached, and by which of the actions there.
    first: Vec<(u32, u32)>,
    healthy: Vec<bool>,
    /// Whether it must have a way back.
    bound: Vec<bool>,
}

// === impl Graph ===

impl Graph {
    fn build(&mut self, model: &Model) {
        let mut numbers: HashMap<u64, u32> = HashMap::new();
        let mut pending = VecDeque::new();
        for world in model.init_states() {
            let number = self.add(model, &world, (u32::MAX, 0));
            numbers.insert(fingerprint(&world), number);
            pending.push_back((number, world));
        }
        while let Some((from, world)) = pending.pop_front() {
            let mut actions = Vec::new();
            model.actions(&world, &mut actions);
            for (place, action) in (0_u32..).zip(actions) {
                let Some(next) = model.next_state(&world, action) else { continue };
                let number = *numbers.entry(fingerprint(&next)).or_insert_with(|| {
                    let number = self.add(model, &next, (from, place));
                    pending.push_back((number, next));
                    number
                });
                self.before[number as usize].push(from);
            }
        }
    }

    fn add(&mut self, model: &Model, world: &World, first: (u32, u32)) -> u32 {
        self.before.push(Vec::new());
        self.first.push(first);
        self.healthy.push(is_healthy(model, world));
        let term = world.stored.intended.unwrap_or(world.stored.term);
        self.bound.push(term.get() < model.terms);
        u32::try_from(self.first.len() - 1).expect("fewer states than that")
    }

    fn stuck(&self) -> Option<usize> {
        let mut returns = self.healthy.clone();
        let mut pending: Vec<usize> = (0..returns.len()).filter(|&state| returns[state]).collect();
        while let Some(state) = pending.pop() {
            for &before in &self.before[state] {
                if !std::mem::replace(&mut returns[before as usize], true) {
                    pending.push(before as usize);
                }
            }
        }
        (0..returns.len()).find(|&state| self.bound[state] && !returns[state])
    }

    fn way_to(&self, model: &Model, state: usize) -> Vec<String> {
        let mut places = Vec::new();
        let mut state = state;
        while self.first[state].0 != u32::MAX {
            places.push(self.first[state].1 as usize);
            state = self.first[state].0 as usize;
        }
        let mut world = model.init_states().swap_remove(state);
        let mut way = Vec::new();
        for place in places.into_iter().rev() {
            let mut actions = Vec::new();
            model.actions(&world, &mut actions);
            let action = actions.swap_remove(place);
            way.push(format!("{action:?}"));
            world = model.next_state(&world, action).expect("it was possible");
        }
        way
    }
}

/// One primary serves, the one that the coordinator means, and nothing is under way.
fn is_healthy(model: &Model, world: &World) -> bool {
    let Some(regent) = &world.regent else { return false };
    let primary = index_of(regent.reign.primary);
    let term = regent.reign.term;
    let follows = |index: usize| {
        let disk = &world.nodes[index].disk;
        index == primary || (disk.term == term && disk.standing == Standing::Replica)
    };
    regent.reign.intended.is_none()
        && regent.stop.is_none()
        && world.open().eq([primary])
        && world.nodes[primary].disk.term == term
        && (!model.all_follow || (0..world.nodes.len()).all(follows))
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}
