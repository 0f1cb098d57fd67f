//! Operators' messages to and from domain values: lists and pages, fields, what a node, an operation, an event looks like.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_common::assignment::MemberAssignment;
use holdfast_common::clock::span;
use holdfast_common::error::{Classify, Failure, Violations, status};
use holdfast_common::pki::Fingerprint;
use holdfast_common::report::Severity;
use holdfast_common::role::Availability;
use holdfast_common::wire::{duration_to_wire, time_to_wire};
use holdfast_proto::v1 as proto;
use jiff::Timestamp;
use serde_json::Value;
use tonic::Status;

use crate::directory::{AccessToken, Drained, JoinToken, Operator, OperatorRole};
use crate::event::Event;
use crate::fleet::NodeView;
use crate::operation::{self, Operation, State, StepState, Unit};

/// The longest reason that a person may give.
const MAX_REASON_CHARS: usize = 200;
/// How many entries a page has if the caller does not say.
const PAGE: usize = 50;
/// The most that a page has, whatever the caller says.
const MAX_PAGE: usize = 1000;
/// The longest page token.
const MAX_TOKEN: usize = 1024;
/// The longest free text of a request.
const MAX_TEXT: usize = 256;

/// A refusal as its caller gets it.
pub fn refuse<E: Classify>(error: E) -> Status {
    status::from_error(&error)
}

/// Which page of a list is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    pub size: usize,
    /// Where the page before has ended.
    pub after: Option<String>,
    filter: Fingerprint,
}

// === impl PageRequest ===

impl PageRequest {
    /// Reads `page_size` and `page_token`. A token is good only for the list and the filter (`filter`) that it came from.
    pub fn read(page_size: i32, page_token: &str, filter: &str, violations: &mut Violations) -> Self {
        let size = match usize::try_from(page_size) {
            Ok(0) => PAGE,
            Ok(size) => size.min(MAX_PAGE),
            Err(_) => {
                violations.add("page_size", "must not be negative; 0 takes the usual size");
                PAGE
            }
        };
        let filter = Fingerprint::of(filter.as_bytes());
        let after = if page_token.is_empty() {
            None
        } else {
            let after = opened(page_token, &filter);
            if after.is_none() {
                violations.add(
                    "page_token",
                    "is not one that this list has given for the same filter; begin without one",
                );
            }
            after
        };
        Self { size, after, filter }
    }

    /// The token of the next page.
    pub fn token(&self, after: &str) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}{after}", &self.filter.to_string()[..16]))
    }
}

fn opened(token: &str, filter: &Fingerprint) -> Option<String> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let after = text.strip_prefix(&filter.to_string()[..16])?;
    // Goes into a key.
    after.bytes().all(|byte| byte.is_ascii_graphic()).then(|| after.to_owned())
}

// === fields ===

/// A text without control characters that is not too long.
pub fn text(violations: &mut Violations, field: &str, value: String) -> String {
    if value.len() > MAX_TEXT {
        violations.add(field, format!("has {} bytes; at most {MAX_TEXT} are allowed", value.len()));
    } else if value.chars().any(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)) {
        violations.add(field, "has control characters; give plain text");
    } else {
        return value;
    }
    String::new()
}

/// A duration between two bounds, or `usual` if it is not set.
pub fn duration(
    violations: &mut Violations,
    field: &str,
    value: Option<prost_types::Duration>,
    usual: Duration,
    bounds: (Duration, Duration),
) -> Duration {
    let Some(value) = value else { return usual };
    let parsed = match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos @ 0..=999_999_999)) => Some(Duration::new(seconds, nanos)),
        _ => None,
    };
    match parsed {
        Some(parsed) if parsed >= bounds.0 && parsed <= bounds.1 => parsed,
        _ => {
            violations.add(field, format!("must be from {} to {}", span(bounds.0), span(bounds.1)));
            usual
        }
    }
}

/// An optional time.
pub fn time(
    violations: &mut Violations,
    field: &str,
    value: Option<prost_types::Timestamp>,
) -> Option<Timestamp> {
    let value = value?;
    let parsed =
        Timestamp::new(value.seconds, value.nanos).ok().filter(|_| (0..1_000_000_000).contains(&value.nanos));
    if parsed.is_none() {
        violations.add(field, "must be a time of the years 1–9999");
    }
    parsed
}

pub fn role(violations: &mut Violations, field: &str, value: i32) -> Option<OperatorRole> {
    match proto::OperatorRole::try_from(value) {
        Ok(proto::OperatorRole::Viewer) => Some(OperatorRole::Viewer),
        Ok(proto::OperatorRole::Operator) => Some(OperatorRole::Operator),
        Ok(proto::OperatorRole::Admin) => Some(OperatorRole::Admin),
        Ok(proto::OperatorRole::Unspecified) | Err(_) => {
            violations.add(field, "must be one of viewer, operator, admin");
            None
        }
    }
}

/// The least severity that is wanted; not set: all.
pub fn severity(violations: &mut Violations, field: &str, value: i32) -> Severity {
    match proto::Severity::try_from(value) {
        Ok(proto::Severity::Unspecified | proto::Severity::Info) => Severity::Info,
        Ok(proto::Severity::Warning) => Severity::Warning,
        Ok(proto::Severity::Error) => Severity::Error,
        Err(_) => {
            violations.add(field, "must be one of info, warning, error");
            Severity::Info
        }
    }
}

// === what is shown ===

pub fn role_to_proto(role: OperatorRole) -> i32 {
    let role = match role {
        OperatorRole::Viewer => proto::OperatorRole::Viewer,
        OperatorRole::Operator => proto::OperatorRole::Operator,
        OperatorRole::Admin => proto::OperatorRole::Admin,
    };
    role.into()
}

pub fn node(view: &NodeView) -> proto::Node {
    let availability = match view.availability {
        Availability::Online => proto::Availability::Online,
        Availability::Late => proto::Availability::Late,
        Availability::Offline => proto::Availability::Offline,
    };
    let members = members(view);
    proto::Node {
        id: view.record.id.to_string(),
        name: view.record.name.to_string(),
        address: view.record.address.to_string(),
        availability: availability.into(),
        availability_time: Some(time_to_wire(view.since)),
        last_heartbeat_time: view.report.as_ref().map(|report| time_to_wire(report.received_at)),
        agent_version: view.facts.as_ref().map(|facts| facts.agent_version.clone()).unwrap_or_default(),
        inventory: view.facts.as_ref().map(|facts| (&facts.inventory).into()),
        sample: view.sample.as_ref().map(|sample| (&**sample).into()),
        clusters: members.iter().map(|member| member.cluster.clone()).collect(),
        join_time: Some(time_to_wire(view.record.joined_at)),
        certificate_expire_time: view.record.certificate_not_after().map(time_to_wire),
        clock_offset_seconds: view.clock_offset_seconds,
        drained: view.record.drained.as_ref().map(drained),
        members,
    }
}

/// By cluster: those that the node is to have, and what it last told of them.
fn members(view: &NodeView) -> Vec<proto::NodeMember> {
    let report = view.report.as_ref().map(|received| &received.report);
    let assigned = view.assignment.iter().flat_map(|assignment| &assignment.members);
    let member = |member: &MemberAssignment| {
        let mut reported = report.iter().flat_map(|report| &report.members);
        let reported = reported.find(|report| report.cluster_id == member.cluster_id);
        let tuning = reported.and_then(|report| report.tuning.as_ref()).map(Into::into);
        proto::NodeMember { cluster: member.cluster_name.to_string(), tuning }
    };
    let mut members: Vec<_> = assigned.map(member).collect();
    members.sort_unstable_by(|one, two| one.cluster.cmp(&two.cluster));
    members
}

/// A person's reason for something: one line, or nothing.
pub fn reason(violations: &mut Violations, text: &str) -> String {
    let text = text.trim();
    if text.chars().count() > MAX_REASON_CHARS {
        violations.add("reason", format!("is longer than {MAX_REASON_CHARS} characters"));
    }
    if text.chars().any(char::is_control) {
        violations.add("reason", "has control characters; one line of text is enough");
    }
    text.to_owned()
}

fn drained(drained: &Drained) -> proto::Drained {
    let Drained { by, since, reason } = drained;
    proto::Drained { by: by.clone(), since_time: Some(time_to_wire(*since)), reason: reason.clone() }
}

pub fn join_token(token: &JoinToken) -> proto::JoinToken {
    proto::JoinToken {
        id: token.id.to_string(),
        description: token.description.clone(),
        create_time: Some(time_to_wire(token.created_at)),
        expire_time: Some(time_to_wire(token.expires_at)),
        uses_allowed: token.uses_allowed,
        uses_left: token.uses_left,
        revoked: token.revoked,
        created_by: token.created_by.clone(),
        node_name: token.node_name.as_ref().map(ToString::to_string).unwrap_or_default(),
        rejoin: token.rejoins.is_some(),
    }
}

pub fn access_token(token: &AccessToken) -> proto::AccessToken {
    proto::AccessToken {
        id: token.id.to_string(),
        operator: token.operator.to_string(),
        description: token.description.clone(),
        create_time: Some(time_to_wire(token.created_at)),
        expire_time: Some(time_to_wire(token.expires_at)),
        revoked: token.revoked,
    }
}

pub fn operator(operator: &Operator) -> proto::Operator {
    proto::Operator {
        name: operator.name.to_string(),
        role: role_to_proto(operator.role),
        create_time: Some(time_to_wire(operator.created_at)),
        certificate_expire_time: Some(time_to_wire(operator.certificate.not_after)),
    }
}

pub fn event(event: &Event) -> proto::Event {
    let severity = match event.what.severity {
        Severity::Info => proto::Severity::Info,
        Severity::Warning => proto::Severity::Warning,
        Severity::Error => proto::Severity::Error,
    };
    let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
    proto::Event {
        id: event.id.to_string(),
        time: Some(time_to_wire(event.time)),
        severity: severity.into(),
        reason: event.what.reason.clone(),
        message: event.what.message.clone(),
        node: or_empty(&event.what.node),
        cluster: or_empty(&event.what.cluster),
        operation_id: or_empty(&event.what.operation),
        actor: event.what.actor.clone(),
    }
}

pub fn operation(operation: &Operation) -> proto::Operation {
    let state = match operation.state {
        State::Pending => proto::OperationState::Pending,
        State::Running => proto::OperationState::Running,
        State::RollingBack => proto::OperationState::RollingBack,
        State::Blocked => proto::OperationState::Blocked,
        State::Succeeded => proto::OperationState::Succeeded,
        State::Failed => proto::OperationState::Failed,
        State::Cancelled => proto::OperationState::Cancelled,
    };
    let failed = operation.failure.as_ref().map(|failure| proto::operation::Result::Failure(failure.into()));
    let result = match &operation.result {
        Some(result) if operation.state == State::Succeeded => {
            Some(proto::operation::Result::Response(structure(result)))
        }
        Some(_) | None => failed,
    };
    proto::Operation {
        id: operation.id.to_string(),
        kind: operation.kind.clone(),
        resource: operation.resource.clone(),
        requested_by: operation.requested_by.clone(),
        create_time: Some(time_to_wire(operation.created)),
        update_time: Some(time_to_wire(operation.updated)),
        state: state.into(),
        steps: operation.steps.iter().map(step).collect(),
        done: operation.is_finished(),
        result,
        cancellable: operation.cancellable && !operation.is_finished(),
        cancel_requested: operation.cancel_requested,
    }
}

fn step(step: &operation::Step) -> proto::OperationStep {
    let state = match step.state {
        StepState::Pending => proto::StepState::Pending,
        StepState::Running => proto::StepState::Running,
        StepState::Succeeded => proto::StepState::Done,
        StepState::Failed => proto::StepState::Failed,
        StepState::Skipped => proto::StepState::Skipped,
    };
    let bytes = step.progress.filter(|progress| progress.unit == Unit::Bytes);
    proto::OperationStep {
        name: step.name.clone(),
        title: step.title.clone(),
        state: state.into(),
        start_time: step.started.map(time_to_wire),
        end_time: step.ended.map(time_to_wire),
        attempts: step.attempts,
        message: step.message.clone(),
        done_bytes: bytes.map(|progress| progress.done),
        total_bytes: bytes.and_then(|progress| progress.total),
    }
}

pub fn step_duration(step: Duration) -> prost_types::Duration {
    duration_to_wire(step)
}

/// A result as a structure; one that is no object stands under `value`.
fn structure(value: &Value) -> prost_types::Struct {
    match struct_value(value).kind {
        Some(prost_types::value::Kind::StructValue(structure)) => structure,
        kind => prost_types::Struct { fields: [("value".to_owned(), prost_types::Value { kind })].into() },
    }
}

fn struct_value(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(struct_value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(prost_types::Struct {
            fields: fields.iter().map(|(name, value)| (name.clone(), struct_value(value))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// All that is wrong, as a refusal.
///
/// # Errors
/// `InvalidField`, if anything was.
pub fn check(violations: Violations) -> Result<(), Status> {
    violations.check().map_err(|failure: Failure| refuse(failure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_is_good_only_where_it_came_from() {
        let mut good = Violations::default();
        let first = PageRequest::read(10, "", "events?node=n1", &mut good);
        let token = first.token("00000000000000000042");
        let second = PageRequest::read(10, &token, "events?node=n1", &mut good);
        assert_eq!(second.after.as_deref(), Some("00000000000000000042"));
        assert!(good.is_empty());
        let forged = URL_SAFE_NO_PAD.encode("0000000000000000../x");
        let foreign = [&token[1..], "x", "!!", forged.as_str(), &"A".repeat(5000)];
        for (token, filter) in
            foreign.into_iter().map(|token| (token, "events?node=n1")).chain([(&token[..], "events?")])
        {
            let mut bad = Violations::default();
            assert_eq!(PageRequest::read(10, token, filter, &mut bad).after, None, "{token}");
            assert!(bad.check().unwrap_err().message.contains("page_token"));
        }
    }

    #[test]
    fn a_page_is_bounded_whatever_is_asked_for() {
        let size = |asked| PageRequest::read(asked, "", "x", &mut Violations::default()).size;
        assert_eq!((size(0), size(7), size(100_000)), (50, 7, 1000));
        let mut bad = Violations::default();
        PageRequest::read(-1, "", "x", &mut bad);
        assert!(bad.check().unwrap_err().message.contains("page_size"));
    }

    #[test]
    fn texts_with_control_characters_are_refused_by_name() {
        for bad in ["a\0b", "a\nb", "\u{202e}txt", &"x".repeat(257)] {
            let mut violations = Violations::default();
            text(&mut violations, "description", bad.to_owned());
            assert!(violations.check().unwrap_err().message.contains("`description`"));
        }
    }
}
