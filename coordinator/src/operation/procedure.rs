//! What a program of steps is, and what it may use.
//!
//! A procedure is a closed enum whose value *is* the stored record: each variant is a step that is about to run,
//! with all that it needs. The runner stores the value, then runs [`Procedure::next`], then stores what came back.
//!
//! ```text
//!  Step(a) ──▶ Step(b) ──▶ … ──▶ Done            Succeeded
//!     │ fails for good, or is cancelled
//!     ▼
//!  way_back ── Some(c) ──▶ Step(c) ──▶ … ──▶ Done   Failed, or Cancelled: nothing is left behind
//!     ├─────── None, may still be cancelled:        Failed, or Cancelled: there was nothing to undo
//!     └─────── None, past the point of no return:   Blocked: a person must look, then resume or give up
//! ```
//!
//! ```
//! use holdfast_coordinator::operation::procedure::{Context, Error, Next, Procedure, StepLabel};
//! use serde::{Deserialize, Serialize};
//!
//! # #[derive(Debug)] struct Means;
//! # impl Means {
//! #     async fn prepare(&self, _: holdfast_common::id::CommandId) -> Result<u64, Error> { Ok(7) }
//! #     async fn finish(&self, _: u64) -> Result<(), Error> { Ok(()) }
//! #     async fn undo(&self) -> Result<(), Error> { Ok(()) }
//! # }
//! #[derive(Debug, Clone, Serialize, Deserialize)]
//! enum Example {
//!     Prepare,
//!     Finish { prepared: u64 },
//!     Undo, // the way back, also a step
//! }
//!
//! impl Procedure for Example {
//!     type Means = Means;
//!
//!     fn kind(&self) -> &'static str {
//!         "example"
//!     }
//!
//!     fn steps(&self) -> Vec<StepLabel> {
//!         match self {
//!             Self::Prepare | Self::Finish { .. } => {
//!                 vec![StepLabel::new("prepare", "Prepare the node"), StepLabel::new("finish", "Finish")]
//!             }
//!             Self::Undo => vec![StepLabel::new("undo", "Undo")],
//!         }
//!     }
//!
//!     fn step(&self) -> String {
//!         match self {
//!             Self::Prepare => "prepare".into(),
//!             Self::Finish { .. } => "finish".into(),
//!             Self::Undo => "undo".into(),
//!         }
//!     }
//!
//!     async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
//!         match self {
//!             Self::Prepare => {
//!                 let prepared = ctx.means().prepare(ctx.command_id("prepare")).await?;
//!                 Ok(Next::Step(Self::Finish { prepared }))
//!             }
//!             Self::Finish { prepared } => {
//!                 ctx.means().finish(prepared).await?;
//!                 Ok(Next::done(serde_json::json!({ "prepared": prepared })))
//!             }
//!             Self::Undo => {
//!                 ctx.means().undo().await?;
//!                 Ok(Next::done(()))
//!             }
//!         }
//!     }
//!
//!     fn way_back(&self, _why: &Error) -> Option<Self> {
//!         match self {
//!             Self::Prepare => Some(Self::Undo),
//!             Self::Finish { .. } | Self::Undo => None,
//!         }
//!     }
//!
//!     fn may_cancel(&self) -> bool {
//!         matches!(self, Self::Prepare)
//!     }
//! }
//! ```

use std::{fmt::Debug, future::Future, sync::Arc, time::Duration};

use holdfast_common::{
    clock::Clock,
    error::{Classify, Failure, Reason, Retry},
    id::{CommandId, OperationId},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{live::Live, record::Progress};

/// A durable program of steps.
pub trait Procedure: Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    /// All that its steps may use.
    type Means: Send + Sync + 'static;

    /// What kind of operation it is, in `snake_case`: the same for all its states.
    fn kind(&self) -> &'static str;

    /// The steps as an operator sees them, in order. Steps that a later state names in addition (those of the
    /// way back, say) are put behind those known so far.
    fn steps(&self) -> Vec<StepLabel>;

    /// Which of [`Self::steps`] this state is about to run.
    fn step(&self) -> String;

    /// Runs the step. Must be safe to repeat: it runs again after every crash, and after every failure that may
    /// be retried.
    ///
    /// # Cancel safety
    /// It is dropped, at any `await`, when the coordinator stops, the step's time is up, or a cancelled step
    /// does not end by itself. Commands that were sent run on; a repeat finds them by their ids.
    fn next(self, ctx: &Context<Self::Means>) -> impl Future<Output = Result<Next<Self>, Error>> + Send;

    /// The step that begins to undo what was done, after this state's step failed for good (it may have had
    /// its effect, or half of it, nevertheless) or was cancelled. See the table in the module's words.
    fn way_back(&self, why: &Error) -> Option<Self>;

    /// Whether a person may still cancel: true before the point of no return.
    fn may_cancel(&self) -> bool;

    /// How long, and how often, this state's step is tried.
    fn limits(&self) -> Limits {
        Limits::default()
    }
}

/// A step as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepLabel {
    /// Its stable name, unique within the procedure, such as `clone/n2`.
    pub name: String,
    /// What it does, for a person: `Copy the data to n2`.
    pub title: String,
}

/// What comes after a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Next<P> {
    /// Another step.
    Step(P),
    /// Nothing: the summary of what was achieved.
    Done(Value),
}

/// Bounds on the tries of one step, counted from when this coordinator began with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most tries.
    pub attempts: u32,
    /// Time for all of them together.
    pub deadline: Duration,
}

/// Why a step did not get done.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", .failure.message)]
pub struct Error {
    failure: Failure,
    commands: Commands,
}

/// Which commands the next try of a step sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commands {
    Same,
    Fresh,
}

/// What a step is given: the means, who it is, and where it may say how far it is.
#[derive(Debug)]
pub struct Context<M: ?Sized> {
    means: Arc<M>,
    run: Run,
}

/// One try of one step.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) operation: OperationId,
    pub(super) step: String,
    pub(super) attempt: u32,
    pub(super) round: u32,
    pub(super) cancelled: CancellationToken,
    pub(super) live: Arc<Live>,
    pub(super) clock: Clock,
}

// === impl StepLabel ===

impl StepLabel {
    /// A step's name and title.
    pub fn new(name: impl Into<String>, title: impl Into<String>) -> Self {
        Self { name: name.into(), title: title.into() }
    }
}

// === impl Next ===

impl<P> Next<P> {
    /// The end, with a summary for the operator; `()` for none.
    pub fn done(summary: impl Into<Value>) -> Self {
        Self::Done(summary.into())
    }

    /// The same, of a procedure that contains this one.
    pub fn map<Q>(self, wrap: impl FnOnce(P) -> Q) -> Next<Q> {
        match self {
            Self::Step(state) => Next::Step(wrap(state)),
            Self::Done(summary) => Next::Done(summary),
        }
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self { attempts: 10, deadline: Duration::from_secs(15 * 60) }
    }
}

// === impl Error ===

impl Error {
    /// It failed, and [`Failure::retry`] says whether another try may help.
    pub fn new(failure: Failure) -> Self {
        Self { failure, commands: Commands::Same }
    }

    /// It failed, but another try may help.
    pub fn again(mut failure: Failure) -> Self {
        if failure.retry == Retry::Never {
            failure.retry = Retry::Later(None);
        }
        Self::new(failure)
    }

    /// Says that all commands of this step have ended, so that another try must send new ones: a node answers
    /// the repeat of a command with the recorded outcome. Never if one of them may still run.
    #[must_use]
    pub fn commands_ended(mut self) -> Self {
        self.commands = Commands::Fresh;
        self
    }

    /// A person cancelled.
    pub fn cancelled() -> Self {
        Self::new(Failure::new(Reason::Cancelled, "cancelled on request"))
    }

    /// What an operator sees.
    pub fn failure(&self) -> &Failure {
        &self.failure
    }

    pub(super) fn wants_fresh_commands(&self) -> bool {
        self.commands == Commands::Fresh
    }

    /// No room on the coordinator's own disk: no reason to give the operation up, however long it lasts.
    pub(super) fn waits_for_room(&self) -> bool {
        self.failure.reason == Reason::StorageFull
    }
}

impl<E: Classify> From<E> for Error {
    fn from(error: E) -> Self {
        Self::new(error.to_failure())
    }
}

// === impl Context ===

impl<M: ?Sized> Context<M> {
    pub(super) fn new(means: Arc<M>, run: Run) -> Self {
        Self { means, run }
    }

    /// All that a step may use.
    pub fn means(&self) -> &M {
        &self.means
    }

    /// The operation that this is a step of.
    pub fn operation(&self) -> OperationId {
        self.run.operation
    }

    /// Which try of the step this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.run.attempt
    }

    /// The id of a command that this step sends: the same on every repeat, also after a restart, and never
    /// that of another step or label. A step that sends several names each: `clone/n2`.
    pub fn command_id(&self, label: &str) -> CommandId {
        let Run { operation, step, round, .. } = &self.run;
        CommandId::of_step(*operation, &format!("{step}/{round}/{label}"))
    }

    /// Says how far the step is. Cheap: the newest wins, nothing is stored.
    pub fn progress(&self, progress: Progress, message: impl Into<String>) {
        self.tell(Some(progress), message.into());
    }

    /// Says what the step is about, where there is nothing to count.
    pub fn say(&self, message: impl Into<String>) {
        self.tell(None, message.into());
    }

    fn tell(&self, progress: Option<Progress>, message: String) {
        let Run { operation, step, live, clock, .. } = &self.run;
        live.progress(*operation, step, progress, message, clock.now());
    }

    /// Ends when a person cancels while [`Procedure::may_cancel`]. A step that does not heed it is dropped a
    /// little later; one that does may cancel its own commands first, and returns [`Error::cancelled`].
    pub fn cancelled(&self) -> &CancellationToken {
        &self.run.cancelled
    }

    /// The same step, seen by a procedure with other means.
    pub fn with_means<N: ?Sized>(&self, means: Arc<N>) -> Context<N> {
        Context { means, run: self.run.clone() }
    }
}
