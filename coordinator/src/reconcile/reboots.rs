//! Nodes are rebooted at the times that were set for them ([`schedule`]).
//!
//! A time is begun from its minute on, until an hour later; what was refused is tried again within that hour. Then, or once the
//! reboot has ended, the next time is due. What did not take place is told before it is put off, so rather twice than never.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_common::error::{Chain, Classify as _, Failure, Reason};
use holdfast_common::id::{NodeId, OperationId};
use jiff::Timestamp;
use tokio::time::Instant;

use super::Loop;
use crate::directory::put;
use crate::operation;
use crate::procedures::reboot::schedule::{
    self, Came, Fate, GRACE, Need, SCHEDULES, Schedule, When, schedule_key,
};
use crate::procedures::requests::{Asker, Desk, RebootNode};
use crate::store::record::Record;
use crate::store::{Compare, Op, Txn};

/// After a refusal.
const AGAIN: Duration = Duration::from_secs(30);

/// The loop's means, and what it remembers.
#[derive(Debug)]
pub struct Reboots {
    desk: Desk,
    refused: BTreeMap<NodeId, Refusal>,
}

/// Why a reboot that is due was not begun.
#[derive(Debug)]
struct Refusal {
    due: Timestamp,
    tried: Option<OperationId>,
    at: Instant,
    why: String,
}

/// Why a round ended early.
#[derive(Debug, thiserror::Error)]
#[error("see to the reboot of node {node}")]
pub struct Error {
    node: String,
    #[source]
    failure: Failure,
}

// === impl Reboots ===

impl Reboots {
    pub fn new(desk: Desk) -> Self {
        Self { desk, refused: BTreeMap::new() }
    }

    async fn see_to(&mut self, found: &Record<Schedule>, due: Timestamp) -> Result<(), Failure> {
        let schedule = &found.value;
        let over = self.desk.means.clock.now().duration_since(due) > GRACE;
        if let Some(id) = schedule.tried {
            let fate = match self.desk.operations.get(id).await {
                Ok(operation) => schedule::fate(&operation),
                Err(operation::Error::NotFound { .. }) => {
                    Fate::Over(Came::Failed("what became of its operation is not known any more".to_owned()))
                }
                Err(error) => return Err(error.to_failure()),
            };
            match fate {
                Fate::UnderWay => return Ok(()),
                Fate::Over(came) => return self.settle(found, due, came).await,
                Fate::Untouched(why) if over => return self.settle(found, due, Came::Missed(why)).await,
                // Noted once each: the pause counts from here.
                Fate::Untouched(why) if !self.has_noted(schedule, due) => self.refuse(schedule, due, why),
                Fate::Untouched(_) => {}
            }
        }
        if over {
            let why = self.refusal(schedule, due).map(|refusal| refusal.why.clone());
            let why =
                why.unwrap_or_else(|| "the coordinator was not running in the hour after it".to_owned());
            return self.settle(found, due, Came::Missed(why)).await;
        }
        if self.pauses(schedule, due) {
            return Ok(());
        }
        if schedule.need == Need::AsToldByNode {
            match self.desk.means.nodes.needs_reboot(schedule.node) {
                Some(true) => {}
                Some(false) => return self.settle(found, due, Came::NotNeeded).await,
                None => {
                    self.refuse(schedule, due, "the node does not tell whether it needs one".to_owned());
                    return Ok(());
                }
            }
        }
        if let Err(why) = self.begin(found).await {
            self.refuse(schedule, due, why.message);
        }
        Ok(())
    }

    /// The operation, and that it is this time's, in one transaction.
    async fn begin(&self, found: &Record<Schedule>) -> Result<(), Failure> {
        let schedule = &found.value;
        if let Some(waits) = schedule::neighbour(&self.desk, schedule.node).await? {
            return Err(Failure::new(Reason::OperationInProgress, waits));
        }
        let request = RebootNode {
            node: schedule.name.clone(),
            reason: schedule.mark_reason(),
            service: schedule.service,
        };
        let asker = Asker { caller: schedule.by.clone(), request: None };
        let begun = self.desk.begin_with(&request, &asker, |submit| {
            let tried = Schedule { tried: Some(submit.id()), ..schedule.clone() };
            let write = put(&found.key, &tried)?;
            Ok(submit.when(Compare::unchanged(&found.key, found.revision)).then(write))
        });
        begun.await.map(drop)
    }

    async fn settle(&mut self, found: &Record<Schedule>, due: Timestamp, came: Came) -> Result<(), Failure> {
        let schedule = &found.value;
        if let Some(event) = schedule.told(&came, due) {
            self.desk.means.events.record(event).await?;
        }
        let (next, error) = schedule.settled(came, self.desk.means.clock.now());
        if let Some(error) = error {
            tracing::warn!(node = %schedule.name, error = %Chain(&error), "there is no next time for its reboot");
        }
        let write = match schedule.when {
            When::Cron { .. } => put(&found.key, &next)?,
            When::Once { .. } => Op::delete(&found.key),
        };
        // Somebody may have set another schedule, or none, in this very moment.
        let txn = Txn::new().when(Compare::unchanged(&found.key, found.revision)).then(write);
        self.desk.means.records.directory().store().txn(txn).await?;
        self.refused.remove(&schedule.node);
        Ok(())
    }

    fn refuse(&mut self, schedule: &Schedule, due: Timestamp, why: String) {
        tracing::info!(node = %schedule.name, why, "a scheduled reboot is not begun yet");
        self.refused.insert(schedule.node, Refusal { due, tried: schedule.tried, at: Instant::now(), why });
    }

    fn refusal(&self, schedule: &Schedule, due: Timestamp) -> Option<&Refusal> {
        self.refused.get(&schedule.node).filter(|refusal| refusal.due == due)
    }

    /// Whether the end of its newest operation is known.
    fn has_noted(&self, schedule: &Schedule, due: Timestamp) -> bool {
        self.refusal(schedule, due).is_some_and(|refusal| refusal.tried == schedule.tried)
    }

    fn pauses(&self, schedule: &Schedule, due: Timestamp) -> bool {
        self.refusal(schedule, due).is_some_and(|refusal| refusal.at.elapsed() < AGAIN)
    }
}

impl Loop for Reboots {
    type Error = Error;
    const NAME: &'static str = "reboots";

    async fn round(&mut self) -> Result<(), Error> {
        let all = self.desk.means.records.directory().list::<Schedule>(SCHEDULES).await;
        let all = all.map_err(|error| Error { node: "any".to_owned(), failure: error.to_failure() })?;
        self.refused.retain(|node, _| all.iter().any(|found| found.key == schedule_key(*node)));
        let now = self.desk.means.clock.now();
        let mut ended = Ok(());
        for found in all {
            let Some(due) = found.value.due.filter(|due| *due <= now) else { continue };
            // One that cannot be seen to keeps no other waiting.
            if let Err(failure) = self.see_to(&found, due).await {
                ended = Err(Error { node: found.value.name.to_string(), failure });
            }
        }
        ended
    }
}
