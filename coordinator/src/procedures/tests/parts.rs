//! A small engine for the parts of an operation: each is driven by whoever waits for it, and what it has come to outlives the
//! coordinator.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_common::error::{Failure, Retry};
use holdfast_common::id::OperationId;

use super::world::World;
use crate::operation::procedure::{Context, Error, Next, Procedure as _};
use crate::procedures::parts::Part;
use crate::procedures::{Means, Parts, Procedures};

/// How often a step is tried.
const TRIES: u32 = 10;

/// By who asks, and the part's name.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<BTreeMap<(OperationId, String), State>>);

#[derive(Debug, Clone)]
enum State {
    /// About to run this step; on the way back for that reason.
    At(Box<Procedures>, Option<Failure>),
    Ended(Option<Failure>),
}

#[derive(Debug)]
pub(super) struct Driven {
    pub(super) world: Arc<World>,
}

impl Driven {
    fn get(&self, ctx: &Context<Means>, name: &str) -> Option<State> {
        self.world.parts.0.lock().unwrap().get(&(ctx.operation(), name.to_owned())).cloned()
    }

    fn set(&self, ctx: &Context<Means>, name: &str, state: State) {
        self.world.parts.0.lock().unwrap().insert((ctx.operation(), name.to_owned()), state);
    }

    /// Runs it to its end; gives its failure.
    async fn drive(&self, ctx: &Context<Means>, name: &str) -> Option<Failure> {
        let mut tries = 0;
        loop {
            let (step, back) = match self.get(ctx, name)? {
                State::Ended(failure) => return failure,
                State::At(step, back) => (step, back),
            };
            match step.clone().next(ctx).await {
                Ok(Next::Step(next)) => {
                    tries = 0;
                    self.set(ctx, name, State::At(Box::new(next), back));
                }
                Ok(Next::Done(_)) => self.set(ctx, name, State::Ended(back)),
                Err(error) if error.failure().retry != Retry::Never && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => self.turn(ctx, name, &step, &error),
            }
        }
    }

    fn turn(&self, ctx: &Context<Means>, name: &str, step: &Procedures, why: &Error) {
        let failure = Some(why.failure().clone());
        let state = match step.way_back(why) {
            Some(back) => State::At(Box::new(back), failure),
            None => State::Ended(failure),
        };
        self.set(ctx, name, state);
    }
}

impl Parts for Driven {
    fn is_begun<'a>(&'a self, ctx: &'a Context<Means>, name: &'a str) -> BoxFuture<'a, Result<bool, Error>> {
        std::future::ready(Ok(self.get(ctx, name).is_some())).boxed()
    }

    fn begin<'a>(&'a self, ctx: &'a Context<Means>, part: Part<'a>) -> BoxFuture<'a, Result<bool, Error>> {
        let busy = self.world.parts.0.lock().unwrap().values().any(|state| matches!(state, State::At(..)));
        if !busy {
            self.set(ctx, part.name, State::At(Box::new(part.procedure), None));
        }
        std::future::ready(Ok(!busy)).boxed()
    }

    fn wait<'a>(&'a self, ctx: &'a Context<Means>, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        async move { self.drive(ctx, name).await.map_or(Ok(()), |failure| Err(Error::new(failure))) }.boxed()
    }

    fn give_up<'a>(&'a self, ctx: &'a Context<Means>, name: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            if let Some(State::At(step, None)) = self.get(ctx, name)
                && step.may_cancel()
            {
                self.turn(ctx, name, &step, &Error::cancelled());
            }
            self.drive(ctx, name).await;
            Ok(())
        }
        .boxed()
    }
}
