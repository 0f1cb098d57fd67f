//! A procedure to which the harness lets things happen.

use std::sync::{Arc, OnceLock};

use holdfast_common::error::{Failure, Reason};
use serde::{Deserialize, Serialize};

use super::{Fault, How, Plan};
use crate::operation::Handle;
use crate::operation::procedure::{Context, Error, Limits, Next, Procedure, StepLabel};

/// A procedure to which things happen.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Faulty<P>(pub(super) P);

/// What it is run with.
pub(super) struct Tried<P: Procedure> {
    pub(super) means: Arc<P::Means>,
    pub(super) plan: Arc<Plan>,
    pub(super) handle: Arc<OnceLock<Handle<Faulty<P>>>>,
}

// === impl Faulty ===

impl<P: Procedure> Procedure for Faulty<P> {
    type Means = Tried<P>;

    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn steps(&self) -> Vec<StepLabel> {
        self.0.steps()
    }

    fn step(&self) -> String {
        self.0.step()
    }

    async fn next(self, ctx: &Context<Self::Means>) -> Result<Next<Self>, Error> {
        let Tried { means, plan, handle } = ctx.means();
        let inner = ctx.with_means(Arc::clone(means));
        let visit = plan.visit(&self.0);
        let how = match plan.fault {
            Fault::None => None,
            Fault::Twice => {
                self.0.clone().next(&inner).await?;
                None
            }
            Fault::At(step, how) => (step == visit).then_some(how),
        };
        let injected = || Failure::new(Reason::EngineFailed, "failure made by the harness");
        match how {
            Some(How::Refused) => return Err(Error::new(injected())),
            Some(How::DoneButFailed) => {
                self.0.next(&inner).await?;
                return Err(Error::new(injected()));
            }
            Some(How::DoneButRetried) if plan.first_retry() => {
                self.0.next(&inner).await?;
                return Err(Error::again(injected()));
            }
            Some(How::Cancelled) => {
                let handle = handle.get().expect("set before the service runs");
                // Noted before: the coordinator may be stopped right after the request was stored.
                let asked_before = plan.note_cancelled(Some(true)).is_some();
                if handle.cancel(ctx.operation()).await.is_err() && !asked_before {
                    plan.note_cancelled(Some(false));
                }
            }
            Some(How::DoneButRetried) | None => {}
        }
        Ok(self.0.next(&inner).await?.map(Faulty))
    }

    fn way_back(&self, why: &Error) -> Option<Self> {
        self.0.way_back(why).map(Faulty)
    }

    fn may_cancel(&self) -> bool {
        self.0.may_cancel()
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }
}
