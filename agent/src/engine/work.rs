//! What a deed at work may use.

use std::fmt;
use std::sync::Arc;

use holdfast_common::command::Progress;
use holdfast_common::id::{ClusterId, CommandId};
use holdfast_common::protocol::Standing;
use holdfast_common::term::Term;
use tokio_util::sync::CancellationToken;

use super::{Around, Error, Surroundings};

/// What a deed at work may use: who ordered it, where to tell progress, and whether it is still wanted.
#[derive(Clone)]
pub struct Work {
    pub command: CommandId,
    pub cancelled: CancellationToken,
    pub(super) progress: Arc<dyn Fn(Progress) + Send + Sync>,
    pub(super) around: Around,
}

/// Of those who were told nothing: it lets nothing be replaced.
#[derive(Debug)]
struct Nothing;

// === impl Work ===

impl Work {
    pub fn new(
        command: CommandId,
        cancelled: CancellationToken,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Self {
        Self { command, cancelled, progress: Arc::new(progress), around: Arc::new(Nothing) }
    }

    /// The same work, with what is true around it.
    #[must_use]
    pub fn amid(&self, around: Around) -> Self {
        Self { around, ..self.clone() }
    }

    /// What is true around it now.
    pub fn around(&self) -> &dyn Surroundings {
        self.around.as_ref()
    }

    /// Tells where the work stands; the newest wins.
    pub fn tell(&self, progress: Progress) {
        (self.progress)(progress);
    }

    /// Tells what is being done now.
    pub fn say(&self, message: impl Into<String>) {
        self.tell(Progress { message: message.into(), done_bytes: None, total_bytes: None });
    }

    /// # Errors
    /// `CANCELLED` if the work is no longer wanted.
    pub fn check(&self, deed: &str) -> Result<(), Error> {
        if self.cancelled.is_cancelled() { Err(Error::Cancelled { deed: deed.to_owned() }) } else { Ok(()) }
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("command", &self.command).finish_non_exhaustive()
    }
}

// === impl Nothing ===

impl Surroundings for Nothing {
    fn standing(&self, _cluster: ClusterId) -> Option<(Term, Standing)> {
        None
    }

    fn covers(&self, _cluster: ClusterId) -> bool {
        false
    }
}
