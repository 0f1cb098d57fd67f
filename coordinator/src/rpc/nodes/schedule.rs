//! `SetRebootSchedule`, `ListRebootSchedules` and `RemoveRebootSchedule`.

use holdfast_common::error::{Classify as _, Failure, Reason, Violations};
use holdfast_common::name::NodeName;
use holdfast_common::report::Severity;
use holdfast_common::wire::time_to_wire;
use holdfast_proto::v1 as proto;
use holdfast_proto::v1::reboot_schedule::When as Shown;
use holdfast_proto::v1::set_reboot_schedule_request::When as Asked;
use holdfast_proto::v1::set_reboot_schedule_response::Outcome;
use jiff::Timestamp;
use prost::Message as _;

use super::{ATTEMPTS, Nodes};
use crate::directory::{self, Node, put};
use crate::event::NewEvent;
use crate::procedures::reboot::Service;
use crate::procedures::reboot::schedule::{Came, Last, Need, SCHEDULES, Schedule, When, schedule_key};
use crate::rpc::convert::{self, PageRequest};
use crate::rpc::repeat::{kept, repeat};
use crate::store::{Compare, Op, Txn};

/// How many of the next times are shown.
const SHOWN: usize = 3;

/// The request, checked field by field.
#[derive(Debug)]
struct Wanted {
    node: NodeName,
    when: When,
    need: Need,
    service: Service,
    reason: String,
}

fn parse(request: &proto::SetRebootScheduleRequest, now: Timestamp) -> Result<Wanted, Failure> {
    let proto::SetRebootScheduleRequest { name, when, time_zone, only_if_needed, force, reason, .. } =
        request;
    let mut violations = Violations::default();
    let node = violations.take("name", name.parse());
    let when = match when {
        Some(Asked::Cron(expression)) => Some(When::cron(expression, time_zone, now)),
        Some(Asked::AtTime(_)) if !time_zone.is_empty() => {
            violations.add("time_zone", "is for `cron` only: `at_time` is the same everywhere");
            None
        }
        Some(Asked::AtTime(time)) => {
            let at = convert::time(&mut violations, "at_time", Some(*time));
            at.map(|at| When::once(at, now))
        }
        None => {
            violations.add("cron", "is missing; give `cron` or `at_time`");
            None
        }
    };
    let when = when.and_then(|when| when.map_err(|error| violations.add(error.field(), error)).ok());
    let reason = convert::reason(&mut violations, reason);
    let need = if *only_if_needed { Need::AsToldByNode } else { Need::Any };
    let service = if *force { Service::MayStop } else { Service::GoesOn };
    match (node, when) {
        (Some(node), Some(when)) if violations.is_empty() => Ok(Wanted { node, when, need, service, reason }),
        _ => Err(violations.into_failure()),
    }
}

impl Nodes {
    pub(super) async fn set_schedule(
        &self,
        actor: String,
        request: proto::SetRebootScheduleRequest,
    ) -> Result<proto::SetRebootScheduleResponse, Failure> {
        let repeat = repeat(&request.request_id, &actor, "SetRebootSchedule", &request)?;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await? {
            return kept(&answer);
        }
        let now = self.desk.means.clock.now();
        let wanted = parse(&request, now)?;
        let view = self.named(&wanted.node)?;
        let key = schedule_key(view.id());
        for _ in 0..ATTEMPTS {
            let node_key = directory::node_key(view.id());
            let node = self.directory.get::<Node>(&node_key).await?;
            let node = node.ok_or_else(|| directory::no_node(&wanted.node))?;
            let before = self.directory.get::<Schedule>(&key).await?;
            let Wanted { node: name, when, need, service, reason } = &wanted;
            let schedule = Schedule {
                node: view.id(),
                name: name.clone(),
                when: when.clone(),
                need: *need,
                service: *service,
                reason: reason.clone(),
                by: actor.clone(),
                set_at: now,
                due: when.next(now, 1).ok().and_then(|times| times.first().copied()),
                tried: None,
                last: before.as_ref().and_then(|before| before.value.last.clone()),
            };
            if request.validate_only {
                let outcome = Some(Outcome::Plan(plan(&schedule, before.as_ref().map(|it| &it.value))));
                return Ok(proto::SetRebootScheduleResponse { outcome });
            }
            let unchanged = match &before {
                Some(before) => Compare::unchanged(&key, before.revision),
                None => Compare::absent(&key),
            };
            // A node that is just being removed takes its schedule along.
            let txn = Txn::new()
                .when(Compare::unchanged(&node_key, node.revision))
                .when(unchanged)
                .then(put(&key, &schedule)?);
            let outcome = Some(Outcome::Schedule(render(&schedule)));
            let answer = proto::SetRebootScheduleResponse { outcome }.encode_to_vec();
            match self.identity.commit(txn, repeat.as_ref(), answer).await {
                Ok(answer) => {
                    let message = format!("node {name} is to be rebooted, {}", schedule.when);
                    self.told("NODE_REBOOT_SCHEDULED", name, message, actor).await?;
                    return kept(&answer);
                }
                Err(failure) if failure.reason == Reason::VersionConflict => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(changing(&wanted.node))
    }

    pub(super) async fn schedules(
        &self,
        request: proto::ListRebootSchedulesRequest,
    ) -> Result<proto::ListRebootSchedulesResponse, Failure> {
        let proto::ListRebootSchedulesRequest { node, page_size, page_token } = request;
        let mut violations = Violations::default();
        let filter = format!("reboot schedules of {node}");
        let page = PageRequest::read(page_size, &page_token, &filter, &mut violations);
        violations.check()?;
        let only = if node.is_empty() { None } else { Some(self.find("node", &node)?.id()) };
        let mut all: Vec<Schedule> = match only {
            Some(id) => {
                let found = self.directory.get(&schedule_key(id)).await?;
                found.into_iter().map(|found| found.value).collect()
            }
            None => self.directory.list(SCHEDULES).await?.into_iter().map(|found| found.value).collect(),
        };
        all.sort_by(|one, two| one.name.cmp(&two.name));
        let mut rest =
            all.iter().filter(|it| page.after.as_deref().is_none_or(|after| it.name.as_str() > after));
        let schedules: Vec<_> = rest.by_ref().take(page.size).map(render).collect();
        let next_page_token = match (rest.next(), schedules.last()) {
            (Some(_), Some(last)) => page.token(&last.node),
            _ => String::new(),
        };
        Ok(proto::ListRebootSchedulesResponse { schedules, next_page_token })
    }

    pub(super) async fn remove_schedule(
        &self,
        actor: String,
        request: proto::RemoveRebootScheduleRequest,
    ) -> Result<proto::RemoveRebootScheduleResponse, Failure> {
        let repeat = repeat(&request.request_id, &actor, "RemoveRebootSchedule", &request)?;
        if let Some(answer) = self.identity.recall(repeat.as_ref()).await? {
            return kept(&answer);
        }
        let view = self.find("name", &request.name)?;
        let name = &view.record.name;
        let key = schedule_key(view.id());
        for _ in 0..ATTEMPTS {
            let Some(found) = self.directory.get::<Schedule>(&key).await? else {
                return Ok(proto::RemoveRebootScheduleResponse { schedule: None });
            };
            let txn = Txn::new().when(Compare::unchanged(&key, found.revision)).then(Op::delete(&key));
            let schedule = Some(render(&found.value));
            let answer = proto::RemoveRebootScheduleResponse { schedule }.encode_to_vec();
            match self.identity.commit(txn, repeat.as_ref(), answer).await {
                Ok(answer) => {
                    let message = format!("node {name} is no longer rebooted, {}", found.value.when);
                    self.told("NODE_REBOOT_UNSCHEDULED", name, message, actor).await?;
                    return kept(&answer);
                }
                Err(failure) if failure.reason == Reason::VersionConflict => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(changing(name))
    }

    async fn told(
        &self,
        reason: &str,
        node: &NodeName,
        message: String,
        actor: String,
    ) -> Result<(), Failure> {
        let event = NewEvent::new(Severity::Info, reason, message).on_node(node.as_str()).by(actor);
        self.events.record(event).await.map(drop).map_err(|error| error.to_failure())
    }
}

fn changing(node: &NodeName) -> Failure {
    let message = format!("the schedule of node {node} keeps changing; repeat the call");
    Failure::new(Reason::VersionConflict, message)
}

fn plan(schedule: &Schedule, before: Option<&Schedule>) -> proto::Plan {
    let times: Vec<String> =
        schedule.next_times(SHOWN).into_iter().map(|time| schedule.when.on_the_wall(time)).collect();
    let name = &schedule.name;
    let title = match schedule.need {
        Need::Any => format!("Reboot {name} at {}", times.join(", ")),
        Need::AsToldByNode => format!("Reboot {name}, if it needs it then, at {}", times.join(", ")),
    };
    let mut notes = vec![
        format!("each time as by: holdfast node reboot {name}; it is tried for an hour, then told as missed"),
        "other nodes of its clusters wait for each other".to_owned(),
    ];
    notes.extend(before.map(|before| format!("the schedule of {}, {}, is over", before.by, before.when)));
    let step = proto::PlannedStep { name: "reboot_node".to_owned(), title };
    proto::Plan { steps: vec![step], preconditions: Vec::new(), notes }
}

fn render(schedule: &Schedule) -> proto::RebootSchedule {
    let next_times = schedule.next_times(SHOWN).into_iter().map(time_to_wire).collect();
    let Schedule { node: _, name, when, need, service, reason, by, set_at, due: _, tried, last } = schedule;
    let (when, time_zone) = match when {
        When::Cron { expression, time_zone } => (Shown::Cron(expression.clone()), time_zone.clone()),
        When::Once { at } => (Shown::AtTime(time_to_wire(*at)), String::new()),
    };
    proto::RebootSchedule {
        node: name.to_string(),
        when: Some(when),
        time_zone,
        only_if_needed: *need == Need::AsToldByNode,
        force: *service == Service::MayStop,
        reason: reason.clone(),
        by: by.clone(),
        set_time: Some(time_to_wire(*set_at)),
        next_times,
        operation_id: tried.map(|id| id.to_string()).unwrap_or_default(),
        last: last.as_ref().map(render_last),
    }
}

fn render_last(last: &Last) -> proto::LastScheduledReboot {
    use proto::ScheduledRebootState as State;
    let Last { due, operation, came } = last;
    let (state, message) = match came {
        Came::Rebooted => (State::Rebooted, String::new()),
        Came::Failed(why) => (State::Failed, why.clone()),
        Came::NotNeeded => (State::NotNeeded, String::new()),
        Came::Missed(why) => (State::Missed, why.clone()),
    };
    proto::LastScheduledReboot {
        due_time: Some(time_to_wire(*due)),
        state: state.into(),
        operation_id: operation.map(|id| id.to_string()).unwrap_or_default(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(when: Option<Asked>) -> proto::SetRebootScheduleRequest {
        proto::SetRebootScheduleRequest { name: "n1".into(), when, ..Default::default() }
    }

    #[test]
    fn all_that_is_wrong_with_a_schedule_is_told_at_once() {
        let now = "2026-11-23T00:00:00Z".parse().unwrap();
        let wrong = |request: &proto::SetRebootScheduleRequest| {
            let failure = parse(request, now).unwrap_err();
            failure.violations.iter().map(|it| it.name.clone()).collect::<Vec<_>>()
        };
        let bad = proto::SetRebootScheduleRequest {
            name: "N 1".into(),
            reason: "two\nlines".into(),
            ..request(Some(Asked::Cron("0 25 * * *".into())))
        };
        assert_eq!(wrong(&bad), ["name", "cron", "reason"]);
        assert_eq!(wrong(&request(None)), ["cron"]);
        let past = prost_types::Timestamp { seconds: 1, nanos: 0 };
        assert_eq!(wrong(&request(Some(Asked::AtTime(past)))), ["at_time"]);
        let no_time = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
        assert_eq!(wrong(&request(Some(Asked::AtTime(no_time)))), ["at_time"]);
        let zone = proto::SetRebootScheduleRequest {
            time_zone: "Europe/Berlin".into(),
            ..request(Some(Asked::AtTime(past)))
        };
        assert_eq!(wrong(&zone), ["time_zone"]);
    }
}
