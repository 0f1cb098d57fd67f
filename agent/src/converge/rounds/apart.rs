//! Whether a member's log has parted from the primary's: known once it was refused to follow, and until it need not or may.

use holdfast_common::assignment::{MemberAssignment, Peer, RoleAssignment};
use holdfast_common::role::Role;
use holdfast_common::term::Term;

use super::super::plan::Step;
use crate::engine::{Error, Observation};

/// Of the data of a former primary: a replica's are never asked.
#[derive(Debug, Default)]
pub(super) struct Apart {
    tried: Option<(Term, Peer)>,
    refused: Option<(Term, Peer)>,
}

// === impl Apart ===

impl Apart {
    pub(super) fn begin(&mut self, steps: &[Step], wanted: &MemberAssignment) {
        if steps.contains(&Step::Follow) {
            self.tried = whom(wanted);
        }
    }

    pub(super) fn failed(&mut self, step: Step, error: &Error) {
        if step == Step::Follow && matches!(error, Error::Unmet { check: "log_is_a_prefix", .. }) {
            self.refused = self.tried.take();
        }
    }

    /// Whether it still is: not of another primary, and not once its data are a replica's.
    pub(super) fn holds(&mut self, wanted: Option<&MemberAssignment>, observed: &Observation) -> bool {
        let same = wanted.and_then(whom) == self.refused;
        if !same || observed.data_role == Some(Role::Replica) {
            self.refused = None;
        }
        self.refused.is_some()
    }
}

fn whom(wanted: &MemberAssignment) -> Option<(Term, Peer)> {
    match &wanted.role {
        RoleAssignment::Replica { upstream } => Some((wanted.term, upstream.clone())),
        RoleAssignment::Primary { .. } => None,
    }
}
