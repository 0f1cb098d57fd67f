//! A change of primary, step by step: whoever conducts it asks for the next step and waits for the answers.

use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::pki::random_number;
use holdfast_common::protocol::{Attempt, Need, Regent, Timings};
use tokio::sync::watch;

use super::{Error, Leases};
use crate::procedures::records::Writes;

// === impl Leases ===

impl Leases {
    /// Asks the primary to stop for another to take over, under a number that was never used.
    ///
    /// # Errors
    /// [`Error::Obstacle`]; [`Error::NoPrimary`].
    pub async fn halt(&self, cluster: ClusterId) -> Result<(), Error> {
        self.change(cluster, |regent, _| regent.halt(attempt()), Writes::default()).await
    }

    /// The same, to be started again where it is: also where nobody could take over.
    ///
    /// # Errors
    /// As [`Leases::halt`].
    pub async fn rest(&self, cluster: ClusterId) -> Result<(), Error> {
        self.change(cluster, |regent, _| regent.rest(attempt()), Writes::default()).await
    }

    /// The way back as long as no term is intended: the primary is granted its lease again, and told so.
    pub fn resume(&self, cluster: ClusterId) {
        for decree in self.with(cluster, |seat, _| seat.regent.resume()).into_iter().flatten() {
            self.send(cluster, decree);
        }
    }

    /// The same without a word: it is about to be stopped anew.
    pub fn forget_stop(&self, cluster: ClusterId) {
        self.with(cluster, |seat, _| drop(seat.regent.resume()));
    }

    /// Stores that there is to be another primary. From here on the present one is granted nothing.
    ///
    /// # Errors
    /// [`Error::Obstacle`]; [`Error::NoPrimary`]; those of the store.
    pub async fn intend(&self, cluster: ClusterId) -> Result<(), Error> {
        self.change(cluster, |regent, _| regent.intend(), Writes::default()).await?;
        self.press(cluster);
        Ok(())
    }

    /// The same by a person's word that the primary is off, and stays so until it has heard of its successor.
    ///
    /// # Errors
    /// As [`Leases::intend`].
    pub async fn intend_by_word(&self, cluster: ClusterId) -> Result<(), Error> {
        self.change(cluster, |regent, _| regent.intend_by_word(), Writes::default()).await?;
        self.press(cluster);
        Ok(())
    }

    /// That word, for the term that is intended: it is not remembered beyond this run.
    ///
    /// # Errors
    /// [`Error::Obstacle`]; [`Error::NoPrimary`].
    pub fn vouch(&self, cluster: ClusterId) -> Result<(), Error> {
        let vouched = self.with(cluster, |seat, _| seat.regent.vouch());
        Ok(vouched.ok_or(Error::NoPrimary(cluster))??)
    }

    /// Stores the chosen one as primary, together with these writes. There is no way back.
    ///
    /// # Errors
    /// As [`Leases::intend`].
    pub async fn succeed(
        &self,
        cluster: ClusterId,
        preference: &[NodeId],
        members: &[NodeId],
        need: Need,
        writes: Writes,
    ) -> Result<(), Error> {
        let rule =
            |regent: &mut Regent, _: &Timings| regent.succeed(preference, members.iter().copied(), need);
        self.change(cluster, rule, writes).await
    }

    /// Gives the change of primary up, together with these writes.
    ///
    /// # Errors
    /// As [`Leases::intend`].
    pub async fn abandon(&self, cluster: ClusterId, writes: Writes) -> Result<(), Error> {
        self.change(cluster, |regent, _| regent.abandon(), writes).await
    }

    /// What is known of one cluster now; none where no lease is kept of it.
    pub fn regent(&self, cluster: ClusterId) -> Option<Regent> {
        self.with(cluster, |seat, _| seat.regent.clone())
    }

    /// Changes with every answer to a fence, a stop or a seal.
    pub fn answers(&self) -> watch::Receiver<u64> {
        self.shared.answers.subscribe()
    }

    /// Says all that is to be said now for a change of primary.
    pub(super) fn press(&self, cluster: ClusterId) {
        let orders = self.with(cluster, |seat, _| seat.changes().then(|| seat.orders()));
        for order in orders.flatten().into_iter().flatten() {
            self.send(cluster, order);
        }
    }
}

/// No two are alike, not of different runs either; 0 is none, and on the wire there are 63 bits.
fn attempt() -> Attempt {
    Attempt((random_number() >> 1).max(1))
}
