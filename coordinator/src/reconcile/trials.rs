//! Access rules on trial that nobody confirmed in time. The nodes have gone back by themselves by then; here they are only
//! forgotten, and it is told.

use holdfast_common::clock::Clock;
use holdfast_common::report::Severity;

use super::Loop;
use crate::event::{self, NewEvent};
use crate::procedures::records::{self, Records};
use crate::store::{self, Txn};

/// The loop's means.
#[derive(Debug)]
pub struct Trials {
    pub records: Records,
    pub events: event::Handle,
    pub clock: Clock,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Records(#[from] records::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("write the event")]
    Event(#[source] store::Error),
}

impl Loop for Trials {
    type Error = Error;
    const NAME: &'static str = "trials";

    async fn round(&mut self) -> Result<(), Error> {
        let now = self.clock.now();
        let over = self.records.trials_over(now).await?;
        if over.is_empty() {
            return Ok(());
        }
        for cluster in self.records.all().await?.into_iter().filter(|cluster| over.contains(&cluster.id)) {
            let stored = self.records.access(cluster.id).await?;
            let expired = stored.declared.clone().expired(now);
            let (compare, ops) = stored.replaced_by(&expired)?;
            let txn = ops.into_iter().fold(Txn::new().when(compare), Txn::then);
            // Somebody may have judged it in this very moment.
            if self.records.directory().store().txn(txn).await?.succeeded {
                let message = "access rules on trial were not confirmed in time; those before them hold";
                let event = NewEvent::new(Severity::Warning, "ACCESS_REVERTED", message);
                self.events.record(event.on_cluster(cluster.name.as_str())).await.map_err(Error::Event)?;
            }
        }
        Ok(())
    }
}
