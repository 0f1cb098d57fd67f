//! Reboots at times that were set before: which they are, and what has become of each. Who looks at them: [`crate::reconcile::reboots`].
//!
//! ```text
//! reboot-schedules/<node>   Schedule: at most one a node; goes with the node's record
//!
//!  due ─► an operation, written together with its number here ─► it ended ─► the next time is due
//!   │          └─ refused, or failed before the machine was told: again, until the grace is over
//!   └─ the grace is over, or the node needs no reboot: the next time is due
//! ```
//! For one time there is at most one operation that has told the machine to reboot, whatever the coordinator is killed at.

mod when;

pub use when::{Error as WhenError, When};

use holdfast_common::error::{Classify as _, Failure};
use holdfast_common::id::{NodeId, OperationId};
use holdfast_common::name::NodeName;
use holdfast_common::report::Severity;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{ORDER, Service, members_of};
use crate::event::NewEvent;
use crate::operation::{Operation, State};
use crate::procedures::node_resource;
use crate::procedures::requests::Desk;
use crate::store::Key;

/// Prefix of the schedules.
pub const SCHEDULES: &str = "reboot-schedules/";
/// For how long after its time a reboot is still begun.
pub const GRACE: SignedDuration = SignedDuration::from_hours(1);

/// When a node is rebooted, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    pub node: NodeId,
    pub name: NodeName,
    pub when: When,
    pub need: Need,
    pub service: Service,
    /// In a person's words; may be empty.
    pub reason: String,
    /// `operator/NAME`: in whose name the reboots are.
    pub by: String,
    pub set_at: Timestamp,
    /// The time that comes next, or that is being seen to; none: there is no more.
    pub due: Option<Timestamp>,
    /// The newest operation for the time that is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<OperationId>,
    /// What became of the time before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Last>,
}

/// Whether the node is asked whether it needs a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    Any,
    /// Only where installed packages wait for it.
    AsToldByNode,
}

/// A time that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    pub due: Timestamp,
    pub operation: Option<OperationId>,
    pub came: Came,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Came {
    Rebooted,
    /// The machine was told to, and something was not as it should be then.
    Failed(String),
    /// Nothing waits for it.
    NotNeeded,
    /// The machine was not told to.
    Missed(String),
}

/// How an operation for a time stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    UnderWay,
    Over(Came),
    /// It failed before the machine was told anything: another may be tried.
    Untouched(String),
}

pub fn schedule_key(node: NodeId) -> Key {
    Key::from(format!("{SCHEDULES}{node}"))
}

// === impl Schedule ===

impl Schedule {
    /// The next times, the one that is due first.
    pub fn next_times(&self, count: usize) -> Vec<Timestamp> {
        let Some(due) = self.due else { return Vec::new() };
        let later = self.when.next(due, count.saturating_sub(1)).unwrap_or_default();
        [due].into_iter().chain(later).take(count).collect()
    }

    /// What the node is drained for meanwhile.
    pub fn mark_reason(&self) -> String {
        match self.reason.as_str() {
            "" => format!("scheduled, {}", self.when),
            reason => format!("scheduled, {}: {reason}", self.when),
        }
    }

    /// Once the time that was due is over. Times whose grace is over too are left out.
    ///
    /// # Errors
    /// If the next one cannot be told: then there is none.
    pub fn settled(&self, came: Came, now: Timestamp) -> (Self, Option<WhenError>) {
        let Some(due) = self.due else { return (self.clone(), None) };
        let graced = now.checked_sub(GRACE).unwrap_or(Timestamp::MIN);
        let (next, error) = match self.when.next(due.max(graced), 1) {
            Ok(next) => (next.first().copied(), None),
            Err(error) => (None, Some(error)),
        };
        let last = Some(Last { due, operation: self.tried, came });
        (Self { due: next, tried: None, last, ..self.clone() }, error)
    }

    /// What people should hear of, when a time ends so.
    pub fn told(&self, came: &Came, due: Timestamp) -> Option<NewEvent> {
        let (reason, what) = match came {
            // The operation tells of itself; and nothing is no news.
            Came::Rebooted | Came::NotNeeded => return None,
            Came::Failed(why) => ("SCHEDULED_REBOOT_FAILED", format!("did not end well: {why}")),
            Came::Missed(why) => ("SCHEDULED_REBOOT_MISSED", format!("did not take place: {why}")),
        };
        let due = due.strftime("%Y-%m-%d %H:%M UTC");
        let message = format!("the reboot of node {} that was scheduled for {due} {what}", self.name);
        Some(NewEvent {
            operation: self.tried.map(|id| id.to_string()),
            ..NewEvent::new(Severity::Warning, reason, message)
                .on_node(self.name.as_str())
                .by(self.by.clone())
        })
    }
}

/// What has become of an operation that was begun for a time.
pub fn fate(operation: &Operation) -> Fate {
    let told = operation.steps.iter().any(|step| step.name == ORDER && step.started.is_some());
    let why = || operation.failure.as_ref().map_or_else(String::new, |failure| failure.message.clone());
    match operation.state {
        State::Pending | State::Running | State::RollingBack | State::Blocked => Fate::UnderWay,
        State::Succeeded => Fate::Over(Came::Rebooted),
        State::Failed | State::Cancelled if told => Fate::Over(Came::Failed(why())),
        State::Cancelled => Fate::Over(Came::Missed("its operation was cancelled".to_owned())),
        State::Failed => Fate::Untouched(why()),
    }
}

/// Another node of its clusters that is being drained or rebooted: that one goes first.
///
/// # Errors
/// Those of the store.
pub async fn neighbour(desk: &Desk, node: NodeId) -> Result<Option<String>, Failure> {
    let all = desk.means.records.all().await.map_err(|error| error.to_failure())?;
    for cluster in members_of(&all, node) {
        for other in cluster.members.iter().filter(|member| member.node_id != node) {
            let holder = desk.operations.holder(&node_resource(&other.node_name)).await;
            if let Some(holder) = holder.map_err(|error| error.to_failure())? {
                return Ok(Some(format!(
                    "{}, another member of {}, is being drained or rebooted (operation {})",
                    other.node_name, cluster.name, holder.operation
                )));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn weekly() -> Schedule {
        let set_at = time("2026-11-23T00:00:00Z");
        let when = When::cron("0 3 * * SUN", "UTC", set_at).unwrap();
        let due = when.next(set_at, 1).unwrap().first().copied();
        Schedule {
            node: NodeId::generate(),
            name: "n1".parse().unwrap(),
            when,
            need: Need::Any,
            service: Service::GoesOn,
            reason: String::new(),
            by: "operator/alice".to_owned(),
            set_at,
            due,
            tried: Some(OperationId::generate()),
            last: None,
        }
    }

    #[test]
    fn the_next_time_follows_on_the_one_that_is_over() {
        let schedule = weekly();
        let (next, error) = schedule.settled(Came::Rebooted, time("2026-11-29T03:10:00Z"));
        assert_eq!((next.due, next.tried, error), (Some(time("2026-12-06T03:00:00Z")), None, None));
        let last = next.last.unwrap();
        assert_eq!((last.due, last.operation), (schedule.due.unwrap(), schedule.tried));
    }

    #[test]
    fn times_whose_grace_is_over_are_left_out_and_one_within_it_is_not() {
        let missed = || Came::Missed("nobody was there".to_owned());
        let (next, _) = weekly().settled(missed(), time("2026-12-13T12:00:00Z"));
        assert_eq!(next.due, Some(time("2026-12-20T03:00:00Z")));
        let (next, _) = weekly().settled(missed(), time("2026-12-13T03:59:59Z"));
        assert_eq!(next.due, Some(time("2026-12-13T03:00:00Z")));
    }

    #[test]
    fn a_single_time_has_no_next_one() {
        let at = time("2026-11-24T03:00:00Z");
        let once = Schedule { when: When::Once { at }, due: Some(at), ..weekly() };
        assert_eq!(once.next_times(3), [at]);
        assert_eq!(once.settled(Came::NotNeeded, at).0.due, None);
        assert_eq!(weekly().next_times(3).len(), 3);
    }

    /// With the step that tells the machine in this state.
    fn operation(state: &str, step: &str, started: Option<&str>) -> Operation {
        let step = serde_json::json!({
            "name": ORDER, "title": "", "state": step, "started": started, "ended": null, "attempts": 1,
            "round": 0, "progress": null, "message": "",
        });
        let failure = Failure::new(holdfast_common::error::Reason::PreconditionFailed, "n2 is away");
        let operation = serde_json::json!({
            "id": OperationId::generate(), "kind": "reboot_node", "resource": "nodes/n1",
            "requested_by": "operator/alice", "request": null, "created": time("2026-11-29T03:00:00Z"),
            "updated": time("2026-11-29T03:00:00Z"), "ended": null, "state": state, "cancellable": false,
            "cancel_requested": false, "steps": [step], "back": null, "failure": failure, "result": null,
            "procedure": null,
        });
        serde_json::from_value(operation).unwrap()
    }

    #[test]
    fn another_operation_is_tried_only_where_one_failed_before_the_machine_was_told() {
        let began = Some("2026-11-29T03:01:00Z");
        for state in ["pending", "running", "rolling_back", "blocked"] {
            assert_eq!(fate(&operation(state, "pending", None)), Fate::UnderWay, "{state}");
        }
        assert_eq!(fate(&operation("succeeded", "succeeded", began)), Fate::Over(Came::Rebooted));
        assert_eq!(fate(&operation("failed", "skipped", None)), Fate::Untouched("n2 is away".into()));
        for step in ["failed", "succeeded"] {
            let failed = Fate::Over(Came::Failed("n2 is away".into()));
            assert_eq!(fate(&operation("failed", step, began)), failed);
        }
        let cancelled = fate(&operation("cancelled", "skipped", None));
        assert!(matches!(cancelled, Fate::Over(Came::Missed(why)) if why.contains("cancelled")));
    }
}
