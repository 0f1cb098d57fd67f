//! `holdfast node reboot`, now or at set times, and `holdfast node schedule`.

use holdfast_proto::v1;
use holdfast_proto::v1::reboot_schedule::When as Shown;
use holdfast_proto::v1::set_reboot_schedule_request::When as Asked;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::node::wire_time;
use super::{Session, next_page};
use crate::args::{Run, Schedule, Times};
use crate::client::request_id;
use crate::error::Error;
use crate::output::{self, or_dash};

/// A reboot, whenever it is to be.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) reason: Option<String>,
    pub(super) force: bool,
}

pub(super) async fn reboot(
    session: &mut Session,
    wanted: Wanted,
    times: Times,
    run: Run,
) -> Result<(), Error> {
    let Times { schedule, at, time_zone, only_if_needed } = times;
    let when = match (schedule, at) {
        (Some(cron), _) => Asked::Cron(cron),
        (None, Some(at)) => Asked::AtTime(wire_time(at)),
        (None, None) => return now(session, wanted, run).await,
    };
    let Wanted { name, reason, force } = wanted;
    let request = v1::SetRebootScheduleRequest {
        name,
        when: Some(when),
        time_zone: time_zone.unwrap_or_default(),
        only_if_needed,
        force,
        reason: reason.unwrap_or_default(),
        request_id: request_id(),
        validate_only: run.plan.plan,
    };
    let answer = session.client().await?.set_reboot_schedule(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::set_reboot_schedule_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::set_reboot_schedule_response::Outcome::Schedule(schedule) if session.out.is_json() => {
            Ok(session.out.json(&json!({"schedule": rendered(&schedule)}))?)
        }
        v1::set_reboot_schedule_response::Outcome::Schedule(schedule) => {
            let times = next_times(&schedule).join(", ");
            let name = &schedule.node;
            Ok(session.out.line(format!(
                "Node {name} is rebooted by itself, next at {times}. No more with: holdfast node schedule remove {name}"
            ))?)
        }
    }
}

async fn now(session: &mut Session, wanted: Wanted, run: Run) -> Result<(), Error> {
    let Wanted { name, reason, force } = wanted;
    let done = format!("Node {name} has booted again, and its members are whole.");
    let (reason, validate_only) = (reason.unwrap_or_default(), run.plan.plan);
    let request = v1::RebootNodeRequest { name, reason, force, request_id: request_id(), validate_only };
    let answer = session.client().await?.reboot_node(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::reboot_node_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::reboot_node_response::Outcome::Operation(operation) => {
            session.follow(operation, run, &done).await
        }
    }
}

pub(super) async fn run(session: &mut Session, command: Schedule) -> Result<(), Error> {
    match command {
        Schedule::List => list(session).await,
        Schedule::Show { name } => show(session, name).await,
        Schedule::Remove { name } => remove(session, name).await,
    }
}

async fn all(session: &mut Session, node: String) -> Result<Vec<v1::RebootSchedule>, Error> {
    let client = session.client().await?;
    let mut schedules = Vec::new();
    let mut page = Some(String::new());
    while let Some(page_token) = page {
        let request = v1::ListRebootSchedulesRequest { node: node.clone(), page_size: 1000, page_token };
        let answer = client.list_reboot_schedules(request).await?;
        schedules.extend(answer.schedules);
        page = next_page(answer.next_page_token);
    }
    Ok(schedules)
}

async fn list(session: &mut Session) -> Result<(), Error> {
    let schedules = all(session, String::new()).await?;
    if session.out.is_json() {
        let all: Vec<_> = schedules.iter().map(rendered).collect();
        return Ok(session.out.json(&json!({"schedules": all}))?);
    }
    let rows = schedules.iter().map(|schedule| {
        vec![
            schedule.node.clone(),
            when(schedule),
            or_dash(next_times(schedule).into_iter().next()),
            or_dash(schedule.last.as_ref().map(state)),
            output::plain(&schedule.by),
        ]
    });
    Ok(session.out.table(&["NODE", "WHEN", "NEXT", "LAST", "BY"], rows.collect())?)
}

async fn show(session: &mut Session, name: String) -> Result<(), Error> {
    let found = all(session, name.clone()).await?;
    let schedule = found.first();
    if session.out.is_json() {
        return Ok(session.out.json(&json!({"schedule": schedule.map(rendered)}))?);
    }
    let Some(schedule) = schedule else {
        return Ok(session.out.line(format!("Node {name} is not rebooted by itself."))?);
    };
    let yes_or_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let zone = zone(schedule);
    let last = schedule.last.as_ref().map(|last| {
        let at = or_dash(output::timestamp(last.due_time.as_ref()).map(|time| on_the_wall(time, &zone)));
        let why = output::plain(&last.message);
        let gap = if why.is_empty() { "" } else { ": " };
        format!("{} at {at}{gap}{why}", state(last))
    });
    Ok(session.out.facts(&[
        ("node", schedule.node.clone()),
        ("when", when(schedule)),
        ("next", or_dash(Some(next_times(schedule).join(", ")))),
        ("only if needed", yes_or_no(schedule.only_if_needed)),
        ("force", yes_or_no(schedule.force)),
        ("reason", or_dash(Some(output::plain(&schedule.reason)))),
        ("set by", output::plain(&schedule.by)),
        ("set at", or_dash(output::time(schedule.set_time.as_ref()))),
        ("under way", or_dash(Some(schedule.operation_id.clone()))),
        ("last", or_dash(last)),
        ("last operation", or_dash(schedule.last.as_ref().map(|last| last.operation_id.clone()))),
    ])?)
}

async fn remove(session: &mut Session, name: String) -> Result<(), Error> {
    let request = v1::RemoveRebootScheduleRequest { name: name.clone(), request_id: request_id() };
    let answer = session.client().await?.remove_reboot_schedule(request).await?;
    if session.out.is_json() {
        return Ok(session.out.json(&json!({"removed": answer.schedule.as_ref().map(rendered)}))?);
    }
    Ok(session.out.line(match answer.schedule {
        Some(_) => format!("Node {name} is no longer rebooted by itself."),
        None => format!("Node {name} had no schedule."),
    })?)
}

/// Whether installed packages wait for a boot, as the node last told.
pub(super) fn needed(node: &v1::Node) -> String {
    match node.sample.as_ref().and_then(|sample| sample.reboot_required) {
        Some(true) => "yes: installed packages wait for it".to_owned(),
        Some(false) => "no".to_owned(),
        None => "-".to_owned(),
    }
}

fn when(schedule: &v1::RebootSchedule) -> String {
    match &schedule.when {
        Some(Shown::Cron(cron)) => format!("{} {}", output::plain(cron), output::plain(&schedule.time_zone)),
        Some(Shown::AtTime(_)) => "once".to_owned(),
        None => "-".to_owned(),
    }
}

fn state(last: &v1::LastScheduledReboot) -> String {
    or_dash(
        output::word(last.state().as_str_name(), "SCHEDULED_REBOOT_STATE_")
            .map(|word| word.replace('_', " ")),
    )
}

/// Whose clocks a person has in mind; UTC where this machine does not know them.
fn zone(schedule: &v1::RebootSchedule) -> TimeZone {
    TimeZone::get(&schedule.time_zone).unwrap_or(TimeZone::UTC)
}

fn on_the_wall(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%a %Y-%m-%d %H:%M %Z").to_string()
}

fn next_times(schedule: &v1::RebootSchedule) -> Vec<String> {
    let zone = zone(schedule);
    let times = schedule.next_times.iter().filter_map(|time| output::timestamp(Some(time)));
    times.map(|time| on_the_wall(time, &zone)).collect()
}

fn rendered(schedule: &v1::RebootSchedule) -> Value {
    let (cron, at) = match &schedule.when {
        Some(Shown::Cron(cron)) => (Some(cron), None),
        Some(Shown::AtTime(at)) => (None, output::time(Some(at))),
        None => (None, None),
    };
    let next: Vec<_> = schedule.next_times.iter().filter_map(|time| output::time(Some(time))).collect();
    json!({
        "node": schedule.node,
        "cron": cron,
        "time_zone": output::text_or_null(&schedule.time_zone),
        "at_time": at,
        "only_if_needed": schedule.only_if_needed,
        "force": schedule.force,
        "reason": output::text_or_null(&schedule.reason),
        "by": schedule.by,
        "set_time": output::time(schedule.set_time.as_ref()),
        "next_times": next,
        "operation_id": output::text_or_null(&schedule.operation_id),
        "last": schedule.last.as_ref().map(|last| json!({
            "due_time": output::time(last.due_time.as_ref()),
            "state": output::word(last.state().as_str_name(), "SCHEDULED_REBOOT_STATE_"),
            "operation_id": output::text_or_null(&last.operation_id),
            "message": output::text_or_null(&last.message),
        })),
    })
}
