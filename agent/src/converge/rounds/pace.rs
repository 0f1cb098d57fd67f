//! How soon a member may be worked on again: with growing pauses after each start and failure, at once when something else is wanted of it.

use std::time::Duration;

use holdfast_common::backoff::Backoff;
use holdfast_common::protocol::Standing;
use holdfast_common::term::Term;
use tokio::time::Instant;

/// The pause after the first start or failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

const BRIEF_PAUSE: Duration = Duration::from_millis(100);

/// The pace of one member's steps.
#[derive(Debug)]
pub(super) struct Pace {
    backoff: Backoff,
    not_before: Option<Instant>,
    /// What it was by the lease's record when it was last looked at.
    standing: Option<(Term, Standing)>,
}

// === impl Pace ===

impl Pace {
    pub(super) fn new() -> Self {
        Self { backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), not_before: None, standing: None }
    }

    pub(super) fn is_due(&self) -> bool {
        self.not_before.is_none_or(|at| Instant::now() >= at)
    }

    /// It was started, or a step has failed.
    pub(super) fn wait(&mut self) {
        self.not_before = Some(Instant::now() + self.backoff.next_wait());
    }

    /// What it waits for is at hand.
    pub(super) fn wait_briefly(&mut self) {
        self.not_before = Some(Instant::now() + BRIEF_PAUSE);
    }

    /// A step has panicked.
    pub(super) fn wait_long(&mut self) {
        self.not_before = Some(Instant::now() + LONGEST_PAUSE);
    }

    /// All is well, or another has worked on it: what failed before says nothing any more.
    pub(super) fn reset(&mut self) {
        self.backoff.reset();
        self.not_before = None;
    }

    /// Another role or term is another task: clients may be waiting for it.
    pub(super) fn note(&mut self, standing: Option<(Term, Standing)>) {
        if self.standing != standing {
            self.standing = standing;
            self.reset();
        }
    }
}
