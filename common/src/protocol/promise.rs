//! What a promotable member gives a primary while the coordinator is silent: for L it is neither promoted nor sealed.

use super::member::{Effect, Member, Standing};
use super::message::ToPeer;
use super::number::RequestNumber;
use super::timing::{Countdown, Timings};
use crate::id::NodeId;
use crate::term::Term;

// === impl Member ===

impl Member {
    /// A primary asks. A member whose own term is higher, that is primary or sealed, or that waits to be, gives no answer.
    ///
    /// Nothing is written to the disk: an agent that starts counts as having promised.
    pub(super) fn asked_to_promise(
        &mut self,
        from: NodeId,
        number: RequestNumber,
        term: Term,
        timings: &Timings,
    ) -> Vec<Effect> {
        let free = self.record.standing == Standing::Replica && self.waiting.is_none();
        if !free || self.record.term > term {
            return Vec::new();
        }
        self.promise = self.promise.max(Countdown::from(timings.promised()));
        vec![Effect::Send { to: from, message: ToPeer::Promise { number, term } }]
    }
}
