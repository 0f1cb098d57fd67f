//! What is answered, from what is known of the node. Pure.

use std::borrow::Cow;
use std::time::Duration;

use holdfast_common::assignment::Assignment;
use holdfast_common::report::{EngineState, LeaseReport, MemberReport, NodeReport};
use holdfast_common::role::Role;
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;

use super::request::{Asked, Bad, Check, Demands};
use crate::lease::{self, Held, Serve};

/// A report that is older says nothing any more: it comes every second, and a server has some seconds to answer.
const STALE_AFTER: Duration = Duration::from_secs(10);
/// For so long without a report the agent counts as alive: without any member there is one every 10 s.
const DEAD_AFTER: Duration = Duration::from_secs(30);

/// What is known of the node.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) members: Vec<Member<'a>>,
    /// How old the report is.
    pub(super) age: Duration,
}

/// A member that is assigned to it.
#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) cluster: &'a str,
    /// `None`: it was not looked at yet.
    pub(super) seen: Option<&'a MemberReport>,
    pub(super) held: Option<&'a Held>,
}

/// What is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// JSON.
    pub(super) body: String,
}

/// Why the answer is no.
type Why = Cow<'static, str>;

/// A member, with the names that Patroni gives these things.
#[derive(Serialize)]
struct Body<'a> {
    state: EngineState,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
    cluster: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    postmaster_start_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xlog: Option<Xlog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication_state: Option<&'static str>,
    /// In bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    database_system_identifier: Option<&'a str>,
    /// Why the answer is no.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Why>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Xlog {
    Primary { location: u64 },
    Replica { received_location: u64, replayed_location: Option<u64> },
}

/// Where there is no member to tell of.
#[derive(Serialize)]
struct Refusal<'a> {
    error: Why,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    clusters: Vec<&'a str>,
}

/// Answers a question.
pub(super) fn answer(asked: Result<Asked<'_>, Bad<'_>>, node: &Node<'_>) -> Answer {
    let asked = match asked {
        Ok(asked) => asked,
        Err(Bad::Path) => return Answer::refuse(StatusCode::NOT_FOUND, "there is no such path"),
        Err(Bad::Lag(text)) => {
            let error =
                format!("`lag={text}` is no number of bytes: give one such as 1048576, 1024kB or 1MB");
            return Answer::refuse(StatusCode::BAD_REQUEST, error);
        }
    };
    if asked.check == Check::Alive {
        return alive(node.age);
    }
    let member = match find(&asked, node) {
        Ok(member) => member,
        Err(refused) => return refused,
    };
    let why = match stale(node.age) {
        Some(why) => Err(why),
        None => check(&asked, member),
    };
    let status = if why.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let seen = member.seen.filter(|_| stale(node.age).is_none());
    Answer { status, body: json(&body(member.cluster, seen, why.err())) }
}

// === impl Node ===

impl<'a> Node<'a> {
    /// The members that the assignment names, with what is reported of them and how their leases stand.
    pub(super) fn new(
        assignment: &'a Assignment,
        report: &'a NodeReport,
        leases: &'a lease::Status,
        age: Duration,
    ) -> Self {
        let member = |assigned: &'a holdfast_common::assignment::MemberAssignment| Member {
            cluster: assigned.cluster_name.as_ref(),
            seen: report.members.iter().find(|seen| seen.cluster_id == assigned.cluster_id),
            held: leases.members.get(&assigned.cluster_id),
        };
        Self { members: assignment.members.iter().map(member).collect(), age }
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn refuse(status: StatusCode, error: impl Into<Why>) -> Self {
        Self { status, body: json(&Refusal { error: error.into(), clusters: Vec::new() }) }
    }
}

fn alive(age: Duration) -> Answer {
    if age > DEAD_AFTER {
        let error = format!("this node's members were not looked at for {} s", age.as_secs());
        return Answer::refuse(StatusCode::SERVICE_UNAVAILABLE, error);
    }
    Answer { status: StatusCode::OK, body: json(&serde_json::json!({ "agent": "running" })) }
}

/// The member that is asked for.
fn find<'a>(asked: &Asked<'_>, node: &'a Node<'a>) -> Result<&'a Member<'a>, Answer> {
    if let Some(name) = asked.cluster {
        let found = node.members.iter().find(|member| member.cluster == name);
        let error = "no cluster of this name has a member on this node";
        return found.ok_or_else(|| Answer::refuse(StatusCode::NOT_FOUND, error));
    }
    match node.members.as_slice() {
        [only] => Ok(only),
        [] => Err(Answer::refuse(StatusCode::SERVICE_UNAVAILABLE, "no cluster has a member on this node")),
        [first, ..] => {
            let mut clusters: Vec<&str> = node.members.iter().map(|member| member.cluster).collect();
            clusters.sort_unstable();
            let error = format!(
                "several clusters have members on this node: ask for one, such as /clusters/{}/{}",
                clusters.first().unwrap_or(&first.cluster),
                asked.check.path()
            );
            let body = json(&Refusal { error: error.into(), clusters });
            Err(Answer { status: StatusCode::SERVICE_UNAVAILABLE, body })
        }
    }
}

fn stale(age: Duration) -> Option<Why> {
    (age > STALE_AFTER).then(|| format!("nothing was observed for {} s", age.as_secs()).into())
}

fn check(asked: &Asked<'_>, member: &Member<'_>) -> Result<(), Why> {
    let seen = running(member)?;
    match (asked.check, seen.role) {
        (Check::Running | Check::Alive, _) => Ok(()),
        (Check::Primary | Check::Readable, Some(Role::Primary)) => primary(member),
        (Check::Replica | Check::Readable, Some(Role::Replica)) => replica(seen, asked.demands),
        (Check::Primary, Some(Role::Replica)) => Err("it is a replica".into()),
        (Check::Replica, Some(Role::Primary)) => Err("it is the primary".into()),
        (Check::Primary | Check::Replica | Check::Readable, None) => Err("its role is not known".into()),
    }
}

fn running<'a>(member: &Member<'a>) -> Result<&'a MemberReport, Why> {
    let seen = member.seen.ok_or("it was not observed yet")?;
    let why = match seen.state {
        EngineState::Running => return Ok(seen),
        EngineState::Unknown => "whether its engine runs is not known",
        EngineState::Absent => "it has no data",
        EngineState::Stopped => "its engine is stopped",
        EngineState::Starting => "its engine is starting",
        EngineState::Failed => "its engine should run and does not",
        EngineState::Building => "its data are being made",
    };
    Err(why.into())
}

/// A primary that holds no lease is none: its clients are shut out.
fn primary(member: &Member<'_>) -> Result<(), Why> {
    let held = member.held.ok_or("how its lease stands is not known yet")?;
    match (held.serve, &held.report) {
        (Serve::May, Some(LeaseReport { fenced: false, open: true, source: _, version: _ })) => Ok(()),
        (Serve::May | Serve::MustNot | Serve::Rests, Some(_)) => {
            Err("it holds no lease: its gate is shut".into())
        }
        (Serve::May | Serve::MustNot | Serve::Rests, None) => Err("it runs as primary and is none".into()),
    }
}

fn replica(seen: &MemberReport, demands: Demands<'_>) -> Result<(), Why> {
    match seen.streaming {
        Some(true) => {}
        Some(false) => return Err("it does not receive from its primary".into()),
        None => return Err("whether it receives from its primary is not known".into()),
    }
    if let Some(unmet) = demands.unmet {
        return Err(format!("no member meets `{unmet}`").into());
    }
    match (demands.lag, lag(seen)) {
        (None, _) => Ok(()),
        (Some(_), None) => Err("how far it is behind is not known".into()),
        (Some(most), Some(lag)) if lag <= most => Ok(()),
        (Some(_), Some(lag)) => Err(format!("it is {lag} bytes behind").into()),
    }
}

/// What a replica has received and not applied. What its primary has not sent yet it cannot know.
fn lag(seen: &MemberReport) -> Option<u64> {
    let (received, replayed) = (seen.position?, seen.replayed?);
    (seen.role == Some(Role::Replica)).then(|| replayed.behind(received))
}

fn body<'a>(cluster: &'a str, seen: Option<&'a MemberReport>, error: Option<Why>) -> Body<'a> {
    let position = seen.and_then(|seen| seen.position);
    let role = seen.and_then(|seen| seen.role);
    let xlog = position.zip(role).map(|(position, role)| match role {
        Role::Primary => Xlog::Primary { location: position.offset },
        Role::Replica => Xlog::Replica {
            received_location: position.offset,
            replayed_location: seen.and_then(|seen| seen.replayed).map(|replayed| replayed.offset),
        },
    });
    Body {
        state: seen.map_or(EngineState::Unknown, |seen| seen.state),
        role,
        cluster,
        server_version: seen.and_then(|seen| seen.engine_version.as_deref()).and_then(version_number),
        postmaster_start_time: seen.and_then(|seen| seen.started_at),
        timeline: position.map(|position| position.era),
        xlog,
        replication_state: seen.filter(|seen| seen.streaming == Some(true)).map(|_| "streaming"),
        lag: seen.and_then(lag),
        database_system_identifier: seen.and_then(|seen| seen.system_identifier.as_deref()),
        error,
    }
}

/// `15.13 (Debian 15.13-0+deb12u1)` as 150013.
fn version_number(text: &str) -> Option<u32> {
    let number = text.split_ascii_whitespace().next()?;
    let (major, minor) = number.split_once('.')?;
    major.parse::<u32>().ok()?.checked_mul(10_000)?.checked_add(minor.parse().ok()?)
}

fn json(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("plain data is JSON")
}

#[cfg(test)]
mod tests;
