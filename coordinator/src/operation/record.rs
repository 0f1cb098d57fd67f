//! The record that an operator sees, and where it is stored.
//!
//! ```text
//! operation/record/<id>      Operation
//! operation/active/<id>      "": it is to be run
//! operation/finished/<id>    "": it has ended, and may be forgotten some day
//! operation/request/<hash>   RequestMark: who asked for it with which request id
//! operation/lock/<resource>  lock::Holder
//! ```

use aws_lc_rs::digest;
use holdfast_common::{error::Failure, id::OperationId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::procedure::{Procedure, StepLabel};
use crate::store::Key;

pub(super) const RECORDS: &str = "operation/record/";
pub(super) const ACTIVE: &str = "operation/active/";
pub(super) const FINISHED: &str = "operation/finished/";

/// Longest text kept of what a step says.
const MAX_MESSAGE: usize = 2 * 1024;

/// A change asked for by a person or by the coordinator itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Which.
    pub id: OperationId,
    /// The kind of its procedure.
    pub kind: String,
    /// What it holds for itself while it is not finished, such as `cluster/main`.
    pub resource: String,
    /// Who asked for it.
    pub requested_by: String,
    /// The request's own id, if it had one.
    pub request: Option<RequestMark>,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// How it stands.
    pub state: State,
    /// Whether it may be cancelled now.
    pub cancellable: bool,
    /// Somebody asked to cancel it.
    pub cancel_requested: bool,
    /// Its steps, in order.
    pub steps: Vec<Step>,
    /// Why it goes back, or went back.
    pub back: Option<Failure>,
    /// Why it failed, was cancelled, or is blocked.
    pub failure: Option<Failure>,
    /// What it achieved.
    pub result: Option<Value>,
    /// The procedure's state: the step that runs, or is the next to run.
    pub procedure: Value,
}

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Stored, not begun.
    Pending,
    /// Under way.
    Running,
    /// Undoing what it did.
    RollingBack,
    /// Can go neither on nor back. It keeps its lock until a person resumes it or gives it up.
    Blocked,
    /// Did what it was for.
    Succeeded,
    /// Did not, and left nothing behind.
    Failed,
    /// Was cancelled, and left nothing behind.
    Cancelled,
}

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Its stable name.
    pub name: String,
    /// What it does, for a person.
    pub title: String,
    /// How it stands.
    pub state: StepState,
    /// When it was first tried.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// How often it was tried.
    pub attempts: u32,
    /// How often all its commands had ended without success, so that new ones were sent.
    pub round: u32,
    /// How far it is.
    pub progress: Option<Progress>,
    /// What it says.
    pub message: String,
}

/// How a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// Given up.
    Failed,
    /// Will not run, since the operation went another way.
    Skipped,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// So much is done …
    pub done: u64,
    /// … of so much, if that is known.
    pub total: Option<u64>,
    /// Of what.
    pub unit: Unit,
}

/// What progress is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things of equal weight.
    Items,
}

/// Which request asked for an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestMark {
    /// The id that the caller gave it.
    pub id: String,
    /// SHA-256 of what was asked for, in hexadecimal digits.
    pub hash: String,
}

/// A request that may be repeated without being done twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    mark: RequestMark,
}

/// A request id that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no request id: give 1 to {MAX} visible ASCII characters, best a new UUID", MAX = Request::MAX_ID)]
pub struct InvalidRequestId;

// === impl Operation ===

impl Operation {
    /// It has ended for good.
    pub fn is_finished(&self) -> bool {
        self.state.is_finished()
    }

    /// Nothing will happen to it by itself any more: it is finished, or waits for a person.
    pub fn is_settled(&self) -> bool {
        self.state.is_finished() || self.state == State::Blocked
    }

    /// The step under way.
    pub fn running_step(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.state == StepState::Running)
    }

    pub(super) fn key(id: OperationId) -> Key {
        Key::from(format!("{RECORDS}{id}"))
    }

    pub(super) fn active_key(id: OperationId) -> Key {
        Key::from(format!("{ACTIVE}{id}"))
    }

    pub(super) fn finished_key(id: OperationId) -> Key {
        Key::from(format!("{FINISHED}{id}"))
    }

    /// The record as it is before anything was done.
    pub(super) fn pending(
        id: OperationId,
        procedure: &impl Procedure,
        resource: String,
        requested_by: String,
        now: Timestamp,
    ) -> Result<Self, serde_json::Error> {
        let mut operation = Self {
            id,
            kind: procedure.kind().to_owned(),
            resource,
            requested_by,
            request: None,
            created: now,
            updated: now,
            ended: None,
            state: State::Pending,
            cancellable: procedure.may_cancel(),
            cancel_requested: false,
            steps: Vec::new(),
            back: None,
            failure: None,
            result: None,
            procedure: serde_json::to_value(procedure)?,
        };
        operation.add_steps(procedure.steps());
        Ok(operation)
    }

    /// Puts steps that are not known yet behind the others.
    pub(super) fn add_steps(&mut self, labels: Vec<StepLabel>) {
        for StepLabel { name, title } in labels {
            if !self.steps.iter().any(|step| step.name == name) {
                self.steps.push(Step::pending(name, title));
            }
        }
    }

    /// The step of this name, which is added if the procedure forgot to list it.
    pub(super) fn step_mut(&mut self, name: &str) -> &mut Step {
        let at = self.steps.iter().position(|step| step.name == name).unwrap_or_else(|| {
            self.steps.push(Step::pending(name.to_owned(), name.to_owned()));
            self.steps.len() - 1
        });
        &mut self.steps[at]
    }

    /// Ends the step under way, if there is one. One that is done waits for nothing any more, so what it last said is gone.
    pub(super) fn end_step(&mut self, state: StepState, now: Timestamp) {
        for step in self.steps.iter_mut().filter(|step| step.state == StepState::Running) {
            step.state = state;
            step.ended = Some(now);
            if state == StepState::Succeeded {
                step.message.clear();
            }
        }
    }

    /// What has not begun will not.
    pub(super) fn skip_rest(&mut self) {
        for step in self.steps.iter_mut().filter(|step| step.state == StepState::Pending) {
            step.state = StepState::Skipped;
        }
    }
}

// === impl State ===

impl State {
    /// Those in which it holds its resource.
    pub const HOLDING: [Self; 4] = [Self::Pending, Self::Running, Self::RollingBack, Self::Blocked];

    /// It has ended for good.
    pub fn is_finished(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
            Self::Pending | Self::Running | Self::RollingBack | Self::Blocked => false,
        }
    }
}

// === impl Step ===

impl Step {
    fn pending(name: String, title: String) -> Self {
        Self {
            name,
            title,
            state: StepState::Pending,
            started: None,
            ended: None,
            attempts: 0,
            round: 0,
            progress: None,
            message: String::new(),
        }
    }

    pub(super) fn say(&mut self, mut message: String) {
        if message.len() > MAX_MESSAGE {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            message.push('…');
        }
        self.message = message;
    }
}

// === impl Progress ===

impl Progress {
    /// So many bytes of so many.
    pub fn bytes(done: u64, total: impl Into<Option<u64>>) -> Self {
        Self { done, total: total.into(), unit: Unit::Bytes }
    }

    /// So many things of so many.
    pub fn items(done: u64, total: impl Into<Option<u64>>) -> Self {
        Self { done, total: total.into(), unit: Unit::Items }
    }
}

// === impl Request ===

impl Request {
    /// Longest id.
    pub const MAX_ID: usize = 128;

    /// A request with an id of the caller's making, and the bytes of what it asks for.
    ///
    /// # Errors
    /// If that cannot be an id.
    pub fn new(id: impl Into<String>, body: &[u8]) -> Result<Self, InvalidRequestId> {
        let id = id.into();
        if id.is_empty() || id.len() > Self::MAX_ID || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidRequestId);
        }
        Ok(Self { mark: RequestMark { id, hash: sha256(&[body]) } })
    }

    pub(super) fn mark(&self) -> &RequestMark {
        &self.mark
    }
}

// === impl RequestMark ===

impl RequestMark {
    /// Where it is noted. Callers cannot meet each other's ids.
    pub(super) fn key(&self, caller: &str) -> Key {
        Key::from(format!("operation/request/{}", sha256(&[caller.as_bytes(), b"\0", self.id.as_bytes()])))
    }
}

fn sha256(parts: &[&[u8]]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
