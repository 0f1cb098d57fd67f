//! The harness finds nothing wrong with a right procedure, and what is wrong with wrong ones.

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use serde::{Deserialize, Serialize};

use super::toy::{Build, Means, Mutant, World};
use crate::{
    operation::{
        Limits, Operation, State, StepLabel,
        harness::{self, Subject},
        procedure::{Context, Error, Next, Procedure},
    },
    store::Shared,
};

/// The toy, or one that is wrong about its way back (which its state has to carry, since it is asked without means).
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tried {
    toy: Build,
    one_way: bool,
    cancels_too_late: bool,
}

struct Toy(Mutant);

impl Tried {
    fn with(&self, toy: Build) -> Self {
        Self { toy, ..*self }
    }
}

impl Procedure for Tried {
    type Means = Means;

    fn kind(&self) -> &'static str {
        self.toy.kind()
    }

    fn steps(&self) -> Vec<StepLabel> {
        self.toy.steps()
    }

    fn step(&self) -> String {
        self.toy.step()
    }

    async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        Ok(self.toy.clone().next(ctx).await?.map(|toy| self.with(toy)))
    }

    fn way_back(&self, why: &Error) -> Option<Self> {
        if self.one_way && matches!(self.toy, Build::Copy { .. }) {
            return None;
        }
        if self.cancels_too_late && matches!(self.toy, Build::Publish { .. } | Build::Announce { .. }) {
            return Some(self.with(Build::Remove));
        }
        self.toy.way_back(why).map(|toy| self.with(toy))
    }

    fn may_cancel(&self) -> bool {
        self.toy.may_cancel() || (self.cancels_too_late && self.toy != Build::Remove)
    }

    fn limits(&self) -> Limits {
        self.toy.limits()
    }
}

impl Subject for Toy {
    type Procedure = Tried;
    type World = World;

    fn world(&self) -> World {
        World::default()
    }

    fn means(&self, world: &Arc<World>, _store: &Shared) -> Arc<Means> {
        Arc::new(Means::new(world, self.0))
    }

    fn procedure(&self, _world: &World) -> Tried {
        Tried {
            toy: Build::Reserve,
            one_way: self.0 == Mutant::OneWay,
            cancels_too_late: self.0 == Mutant::CancelsTooLate,
        }
    }

    fn invariants<'a>(
        &'a self,
        world: &'a World,
        _store: &'a Shared,
        operation: &'a Operation,
    ) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let nodes = world.lock();
            if nodes.ports.len() > 1 {
                return Err(format!("{} ports are reserved", nodes.ports.len()));
            }
            if nodes.announced > 1 {
                return Err(format!("announced {} times", nodes.announced));
            }
            if let Some(port) = nodes.published
                && (!nodes.ports.contains_key(&port) || nodes.copies.len() != 2)
            {
                return Err(format!("published {port}, which is not there: {nodes:?}"));
            }
            match operation.state {
                State::Succeeded if nodes.announced != 1 => Err("succeeded without a word".to_owned()),
                State::Failed | State::Cancelled if !nodes.ports.is_empty() || !nodes.copies.is_empty() => {
                    Err(format!("left behind: {nodes:?}"))
                }
                _ => Ok(()),
            }
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_right_procedure_bears_everything() {
    let report = harness::walk(&Toy(Mutant::None)).await.unwrap();
    assert_eq!((report.steps, report.writes), (5, 7), "submit, five steps, the end");
    assert!(report.runs > 100, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn every_wrong_procedure_is_caught() {
    let table = [
        (Mutant::AnnouncesAgain, "announced 2 times"),
        (Mutant::ReservesAgain, "2 ports are reserved"),
        (Mutant::Remembers, "coordinator stopped"),
        (Mutant::ForgetsCopies, "left behind"),
        (Mutant::OneWay, "left behind"),
        (Mutant::CancelsTooLate, "published"),
    ];
    for (mutant, expected) in table {
        let caught = harness::walk(&Toy(mutant)).await.expect_err("nothing was found").to_string();
        assert!(caught.contains(expected), "{mutant:?} was caught for another reason: {caught}");
    }
}
