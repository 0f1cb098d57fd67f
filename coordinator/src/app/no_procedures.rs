//! An engine without any kind of operation, until the first ones are there.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tonic::service::Routes;

use super::Parts;
use crate::operation::Service;
use crate::operation::procedure::{Context, Error, Next, Procedure, StepLabel};

/// No kinds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum None {}

impl Procedure for None {
    type Means = ();

    fn kind(&self) -> &'static str {
        match *self {}
    }

    fn steps(&self) -> Vec<StepLabel> {
        match *self {}
    }

    fn step(&self) -> String {
        match *self {}
    }

    async fn next(self, _ctx: &Context<()>) -> Result<Next<Self>, Error> {
        match self {}
    }

    fn way_back(&self, _why: &Error) -> Option<Self> {
        match *self {}
    }

    fn may_cancel(&self) -> bool {
        match *self {}
    }
}

/// The engine, and no further services.
pub fn procedures(parts: &Parts) -> (Service<None>, Routes) {
    (Service::new(Arc::clone(&parts.store), Arc::new(())), Routes::default())
}
