//! What must be true around a member's engine before its assignment is.

use holdfast_common::assignment::{Exposure, MemberAssignment};
use holdfast_common::generation::Generation;

use super::Member;

impl Member {
    /// Whether the access rules of this assignment are in the kernel, or need not be.
    pub(super) fn is_enforced(&self, wanted: &MemberAssignment, generation: Generation) -> bool {
        let status = self.means.firewall.borrow();
        match status.clusters.get(&wanted.cluster_id) {
            Some(access) => access.generation >= generation,
            None => wanted.exposure == Exposure::AlsoUnfiltered,
        }
    }

    /// Whether its leases go by the times that are assigned; one that has none here goes by no other.
    pub(super) fn keeps_pace(&self, wanted: &MemberAssignment) -> bool {
        let leases = self.means.leases.borrow();
        leases.members.get(&wanted.cluster_id).is_none_or(|held| held.pace == wanted.into())
    }
}
