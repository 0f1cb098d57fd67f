//! What the steps of a plan are called, and doing them.

use std::sync::Arc;

use holdfast_common::assignment::MemberAssignment;
use tokio::time::Instant;

use super::super::plan::Step;
use crate::engine::{Engine, Error, Held};

/// How a member's steps ended.
pub(super) type Done = Result<Vec<Step>, (Step, Error)>;

// === impl Step ===

impl Step {
    /// The step as it is told.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Admit => "admit the members",
            Self::Lead => "promote",
            Self::Follow => "follow",
            Self::Stop => "stop",
            Self::Halt => "stop at once",
        }
    }
}

/// All of them in their order, or up to the first that fails.
pub(super) async fn execute(
    engine: Arc<dyn Engine>,
    wanted: MemberAssignment,
    steps: Vec<Step>,
    _held: Held,
) -> Done {
    for step in &steps {
        let begun = Instant::now();
        let done = match step {
            Step::Configure => engine.configure(&wanted).await,
            Step::Start => engine.start(&wanted).await,
            Step::Restart => restart(engine.as_ref(), &wanted).await,
            Step::Admit => engine.admit(&wanted).await,
            Step::Lead => engine.lead(&wanted).await,
            Step::Follow => engine.follow(&wanted).await,
            Step::Stop => engine.stop(wanted.cluster_id).await,
            Step::Halt => engine.halt(wanted.cluster_id).await,
        };
        done.map_err(|error| (*step, error))?;
        tracing::info!(cluster = %wanted.cluster_id, step = step.name(), took = ?begun.elapsed(), "a step is done");
    }
    Ok(steps)
}

async fn restart(engine: &dyn Engine, wanted: &MemberAssignment) -> Result<(), Error> {
    engine.stop(wanted.cluster_id).await?;
    engine.start(wanted).await
}
