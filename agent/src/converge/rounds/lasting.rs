//! What is told of a member only once it stays so.

use std::time::Duration;

use holdfast_common::report::Severity;
use tokio::time::Instant;

use super::Member;

/// How long a problem stays before it is told.
const PROBLEM_AFTER: Duration = Duration::from_secs(5);
/// How long data are without an assignment before that is told.
const ORPHAN_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    NotYet,
    Already,
}

// === impl Member ===

impl Member {
    /// Tells of a problem that stays: on the way to a whole member there are some for a moment.
    pub(super) fn note_problem(&mut self, problem: Option<&String>) {
        let Some(problem) = problem else {
            self.memory.problem = None;
            return;
        };
        match &mut self.memory.problem {
            Some((known, since, told)) if known == problem => {
                if *told == Told::Already || since.elapsed() < PROBLEM_AFTER {
                    return;
                }
                *told = Told::Already;
                self.tell(Severity::Warning, "MEMBER_REFUSED", problem.clone());
            }
            Some(_) | None => self.memory.problem = Some((problem.clone(), Instant::now(), Told::NotYet)),
        }
    }

    /// While a member is made or removed, its data are there without an assignment for a moment: that is nothing to tell.
    pub(super) fn note_orphan(&mut self, is_orphan: bool) {
        if !is_orphan {
            self.memory.orphan = None;
            return;
        }
        let (since, told) = *self.memory.orphan.get_or_insert_with(|| (Instant::now(), Told::NotYet));
        if told == Told::NotYet && since.elapsed() >= ORPHAN_AFTER {
            self.memory.orphan = Some((since, Told::Already));
            let message =
                "data of a cluster are here that this node is not assigned; they are left as they are";
            self.tell(Severity::Warning, "MEMBER_NOT_ASSIGNED", message.to_owned());
        }
    }
}
