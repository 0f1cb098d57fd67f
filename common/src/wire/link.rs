//! The messages of the one stream, and enrollment.

use holdfast_proto::link::v1 as proto;
use proto::command_update::Update as WireUpdate;
use proto::session_request::Message as Up;
use proto::session_response::Message as Down;

use super::field::wire_enum;
use super::{
    Error, Field, Problem, WireEnum as _, cut, duration_to_wire, outcome_from_wire, outcome_to_wire,
    time_to_wire,
};
use crate::generation::Generation;
use crate::link::{
    Close, CloseReason, CommandUpdate, Enroll, Enrolled, FromAgent, FromCoordinator, Heartbeat, Hello,
    INTERVALS, MAX_LABEL_BYTES, MAX_PEM_BYTES, MAX_UNFINISHED, Renewed, Update, Versions, Welcome,
};
use crate::report::{self, MemberReport, NodeEvent, NodeReport};

wire_enum!(
    CloseReason,
    proto::CloseReason,
    Shutdown,
    Superseded,
    NodeRemoved,
    VersionUnsupported,
    ProtocolViolation,
);

// === FromAgent ===

impl From<&FromAgent> for proto::SessionRequest {
    fn from(message: &FromAgent) -> Self {
        let message = match message {
            FromAgent::Hello(hello) => Up::Hello((&**hello).into()),
            FromAgent::Heartbeat(heartbeat) => Up::Heartbeat((&**heartbeat).into()),
            FromAgent::Metrics(sample) => Up::Metrics((&**sample).into()),
            FromAgent::CommandUpdate(update) => Up::CommandUpdate((&**update).into()),
            FromAgent::Event(event) => Up::Event((&**event).into()),
            FromAgent::Answer(answer) => Up::Answer((&**answer).into()),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<proto::SessionRequest> for FromAgent {
    type Error = Error;

    fn try_from(request: proto::SessionRequest) -> Result<Self, Error> {
        Ok(match Field("message").required(request.message)? {
            Up::Hello(hello) => Self::Hello(Box::new(Field("hello").nested(hello)?)),
            Up::Heartbeat(heartbeat) => Self::Heartbeat(Box::new(Field("heartbeat").nested(heartbeat)?)),
            Up::Metrics(sample) => Self::Metrics(Box::new(Field("metrics").nested(sample)?)),
            Up::CommandUpdate(update) => {
                Self::CommandUpdate(Box::new(Field("command_update").nested(update)?))
            }
            Up::Event(event) => Self::Event(Box::new(Field("event").nested(event)?)),
            Up::Answer(answer) => Self::Answer(Box::new(Field("answer").nested(answer)?)),
        })
    }
}

impl From<&Hello> for proto::Hello {
    fn from(hello: &Hello) -> Self {
        let Hello {
            versions: Versions { oldest, newest },
            agent_version,
            boot_id,
            instance_id,
            inventory,
            assignment_generation,
            coordinator_generation,
            unfinished,
            node_time,
        } = hello;
        Self {
            oldest_version: *oldest,
            newest_version: *newest,
            agent_version: cut(agent_version, MAX_LABEL_BYTES),
            boot_id: cut(boot_id, MAX_LABEL_BYTES),
            instance_id: instance_id.to_string(),
            inventory: Some(inventory.into()),
            assignment_generation: assignment_generation.get(),
            coordinator_generation: coordinator_generation.get(),
            unfinished_command_ids: unfinished.iter().take(MAX_UNFINISHED).map(ToString::to_string).collect(),
            node_time: Some(time_to_wire(*node_time)),
        }
    }
}

impl TryFrom<proto::Hello> for Hello {
    type Error = Error;

    fn try_from(hello: proto::Hello) -> Result<Self, Error> {
        let proto::Hello {
            oldest_version,
            newest_version,
            agent_version,
            boot_id,
            instance_id,
            inventory,
            assignment_generation,
            coordinator_generation,
            unfinished_command_ids,
            node_time,
        } = hello;
        if oldest_version == 0 {
            return Err(Field("oldest_version").refuse(Problem::Missing));
        }
        if newest_version < oldest_version {
            return Err(
                Field("newest_version").refuse(Problem::OutOfRange { expected: "at least oldest_version" })
            );
        }
        Ok(Self {
            versions: Versions { oldest: oldest_version, newest: newest_version },
            agent_version: Field("agent_version").label(agent_version, MAX_LABEL_BYTES)?,
            boot_id: Field("boot_id").label(boot_id, MAX_LABEL_BYTES)?,
            instance_id: Field("instance_id").parsed(instance_id)?,
            inventory: Field("inventory").message(inventory)?,
            assignment_generation: Generation::new(
                Field("assignment_generation").number(assignment_generation)?,
            ),
            coordinator_generation: Generation::new(
                Field("coordinator_generation").number(coordinator_generation)?,
            ),
            unfinished: Field("unfinished_command_ids")
                .parsed_list(unfinished_command_ids, MAX_UNFINISHED)?,
            node_time: Field("node_time").time(node_time)?,
        })
    }
}

impl From<&Heartbeat> for proto::Heartbeat {
    fn from(heartbeat: &Heartbeat) -> Self {
        let Heartbeat { sequence, report: NodeReport { members, assignment_generation, node_time } } =
            heartbeat;
        Self {
            sequence: *sequence,
            members: members.iter().take(report::MAX_MEMBERS).map(Into::into).collect(),
            assignment_generation: assignment_generation.get(),
            node_time: Some(time_to_wire(*node_time)),
        }
    }
}

impl TryFrom<proto::Heartbeat> for Heartbeat {
    type Error = Error;

    fn try_from(heartbeat: proto::Heartbeat) -> Result<Self, Error> {
        let proto::Heartbeat { sequence, members, assignment_generation, node_time } = heartbeat;
        let members: Vec<MemberReport> = Field("members").list(members, report::MAX_MEMBERS)?;
        Field("members").distinct(&members, |member| member.cluster_id)?;
        Ok(Self {
            sequence: Field("sequence").positive(sequence)?,
            report: NodeReport {
                members,
                assignment_generation: Generation::new(
                    Field("assignment_generation").number(assignment_generation)?,
                ),
                node_time: Field("node_time").time(node_time)?,
            },
        })
    }
}

impl From<&CommandUpdate> for proto::CommandUpdate {
    fn from(update: &CommandUpdate) -> Self {
        let CommandUpdate { command_id, sequence, update } = update;
        Self {
            command_id: command_id.to_string(),
            sequence: *sequence,
            update: Some(match update {
                Update::Progress(progress) => WireUpdate::Progress(progress.into()),
                Update::Outcome(outcome) => WireUpdate::Outcome(outcome_to_wire(outcome)),
            }),
        }
    }
}

impl TryFrom<proto::CommandUpdate> for CommandUpdate {
    type Error = Error;

    fn try_from(update: proto::CommandUpdate) -> Result<Self, Error> {
        let proto::CommandUpdate { command_id, sequence, update } = update;
        Ok(Self {
            command_id: Field("command_id").parsed(command_id)?,
            sequence: Field("sequence").positive(sequence)?,
            update: match Field("update").required(update)? {
                WireUpdate::Progress(progress) => Update::Progress(Field("progress").nested(progress)?),
                WireUpdate::Outcome(outcome) => {
                    Update::Outcome(outcome_from_wire(outcome).map_err(|error| error.within("outcome"))?)
                }
            },
        })
    }
}

impl From<&NodeEvent> for proto::NodeEvent {
    fn from(event: &NodeEvent) -> Self {
        let NodeEvent { id, time, severity, reason, message, cluster_id } = event;
        Self {
            event_id: id.to_string(),
            time: Some(time_to_wire(*time)),
            severity: severity.to_wire(),
            reason: reason.clone(),
            message: cut(message, report::MAX_MESSAGE_BYTES),
            cluster_id: cluster_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl TryFrom<proto::NodeEvent> for NodeEvent {
    type Error = Error;

    fn try_from(event: proto::NodeEvent) -> Result<Self, Error> {
        let proto::NodeEvent { event_id, time, severity, reason, message, cluster_id } = event;
        let reason = Field("reason").label(reason, report::MAX_LABEL_BYTES)?;
        if !reason.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_') {
            return Err(Field("reason")
                .refuse(Problem::OutOfRange { expected: "upper snake case such as DISK_FULL" }));
        }
        Ok(Self {
            id: Field("event_id").parsed(event_id)?,
            time: Field("time").time(time)?,
            severity: Field("severity").enumerated(severity)?,
            reason,
            message: Field("message").text_or_empty(message, report::MAX_MESSAGE_BYTES)?,
            cluster_id: Field("cluster_id").optional_parsed(cluster_id)?,
        })
    }
}

// === FromCoordinator ===

impl From<&FromCoordinator> for proto::SessionResponse {
    fn from(message: &FromCoordinator) -> Self {
        let message = match message {
            FromCoordinator::Welcome(welcome) => Down::Welcome(welcome.into()),
            FromCoordinator::Assignment(assignment) => Down::Assignment((&**assignment).into()),
            FromCoordinator::Command(command) => Down::Command((&**command).into()),
            FromCoordinator::CancelCommand(id) => {
                Down::CancelCommand(proto::CancelCommand { command_id: id.to_string() })
            }
            FromCoordinator::HeartbeatAck { sequence } => {
                Down::HeartbeatAck(proto::HeartbeatAck { sequence: *sequence })
            }
            FromCoordinator::OutcomeAck(id) => {
                Down::OutcomeAck(proto::OutcomeAck { command_id: id.to_string() })
            }
            FromCoordinator::Close(Close { reason, message }) => Down::Close(proto::Close {
                reason: reason.to_wire(),
                message: cut(message, report::MAX_MESSAGE_BYTES),
            }),
            FromCoordinator::EventAck(id) => Down::EventAck(proto::EventAck { event_id: id.to_string() }),
            FromCoordinator::Question(question) => Down::Question((&**question).into()),
        };
        Self { message: Some(message) }
    }
}

impl TryFrom<proto::SessionResponse> for FromCoordinator {
    type Error = Error;

    fn try_from(response: proto::SessionResponse) -> Result<Self, Error> {
        let id = |outer, field: &'static str, text: String| {
            Field(field).parsed(text).map_err(|error: Error| error.within(outer))
        };
        Ok(match Field("message").required(response.message)? {
            Down::Welcome(welcome) => Self::Welcome(Field("welcome").nested(welcome)?),
            Down::Assignment(assignment) => {
                Self::Assignment(Box::new(Field("assignment").nested(assignment)?))
            }
            Down::Command(command) => Self::Command(Box::new(Field("command").nested(command)?)),
            Down::CancelCommand(cancel) => {
                Self::CancelCommand(id("cancel_command", "command_id", cancel.command_id)?)
            }
            Down::HeartbeatAck(ack) => Self::HeartbeatAck { sequence: ack.sequence },
            Down::OutcomeAck(ack) => Self::OutcomeAck(id("outcome_ack", "command_id", ack.command_id)?),
            Down::Close(close) => Self::Close(Field("close").nested(close)?),
            Down::EventAck(ack) => Self::EventAck(
                Field("event_id").parsed(ack.event_id).map_err(|error: Error| error.within("event_ack"))?,
            ),
            Down::Question(question) => Self::Question(Box::new(Field("question").nested(question)?)),
        })
    }
}

impl From<&Welcome> for proto::Welcome {
    fn from(welcome: &Welcome) -> Self {
        let Welcome {
            version,
            session_id,
            heartbeat_interval,
            metrics_interval,
            coordinator_generation,
            coordinator_time,
        } = welcome;
        Self {
            version: *version,
            session_id: session_id.to_string(),
            heartbeat_interval: Some(duration_to_wire(*heartbeat_interval)),
            metrics_interval: Some(duration_to_wire(*metrics_interval)),
            coordinator_generation: coordinator_generation.get(),
            coordinator_time: Some(time_to_wire(*coordinator_time)),
        }
    }
}

impl TryFrom<proto::Welcome> for Welcome {
    type Error = Error;

    fn try_from(welcome: proto::Welcome) -> Result<Self, Error> {
        let proto::Welcome {
            version,
            session_id,
            heartbeat_interval,
            metrics_interval,
            coordinator_generation,
            coordinator_time,
        } = welcome;
        let interval = |field: &'static str, value| {
            let interval = Field(field).duration(value)?;
            if INTERVALS.contains(&interval) {
                Ok(interval)
            } else {
                Err(Field(field).refuse(Problem::OutOfRange { expected: "50 ms to 1 h" }))
            }
        };
        if version == 0 {
            return Err(Field("version").refuse(Problem::Missing));
        }
        Ok(Self {
            version,
            session_id: Field("session_id").parsed(session_id)?,
            heartbeat_interval: interval("heartbeat_interval", heartbeat_interval)?,
            metrics_interval: interval("metrics_interval", metrics_interval)?,
            coordinator_generation: Generation::new(
                Field("coordinator_generation").positive(coordinator_generation)?,
            ),
            coordinator_time: Field("coordinator_time").time(coordinator_time)?,
        })
    }
}

impl TryFrom<proto::Close> for Close {
    type Error = Error;

    fn try_from(close: proto::Close) -> Result<Self, Error> {
        let proto::Close { reason, message } = close;
        Ok(Self {
            reason: Field("reason").enumerated(reason)?,
            message: Field("message").text_or_empty(message, report::MAX_MESSAGE_BYTES)?,
        })
    }
}

// === enrollment ===

impl From<&Enroll> for proto::EnrollRequest {
    fn from(enroll: &Enroll) -> Self {
        let Enroll { token, certificate_signing_request, node_name, address, request_id } = enroll;
        Self {
            token: token.clone(),
            certificate_signing_request: certificate_signing_request.clone(),
            node_name: node_name.to_string(),
            address: address.to_string(),
            request_id: request_id.to_string(),
        }
    }
}

impl TryFrom<proto::EnrollRequest> for Enroll {
    type Error = Error;

    fn try_from(request: proto::EnrollRequest) -> Result<Self, Error> {
        let proto::EnrollRequest { token, certificate_signing_request, node_name, address, request_id } =
            request;
        Ok(Self {
            token: Field("token").text(token, 512)?,
            certificate_signing_request: Field("certificate_signing_request")
                .text(certificate_signing_request, MAX_PEM_BYTES)?,
            node_name: Field("node_name").parsed(node_name)?,
            address: Field("address").address(address)?,
            request_id: Field("request_id").parsed(request_id)?,
        })
    }
}

impl From<&Enrolled> for proto::EnrollResponse {
    fn from(enrolled: &Enrolled) -> Self {
        let Enrolled {
            fleet_id,
            node_id,
            certificate: Renewed { certificate_chain, trust_bundle, not_after },
        } = enrolled;
        Self {
            fleet_id: fleet_id.to_string(),
            node_id: node_id.to_string(),
            certificate_chain: certificate_chain.clone(),
            trust_bundle: trust_bundle.clone(),
            not_after: Some(time_to_wire(*not_after)),
        }
    }
}

impl TryFrom<proto::EnrollResponse> for Enrolled {
    type Error = Error;

    fn try_from(response: proto::EnrollResponse) -> Result<Self, Error> {
        let proto::EnrollResponse { fleet_id, node_id, certificate_chain, trust_bundle, not_after } =
            response;
        Ok(Self {
            fleet_id: Field("fleet_id").parsed(fleet_id)?,
            node_id: Field("node_id").parsed(node_id)?,
            certificate: proto::RenewCertificateResponse { certificate_chain, trust_bundle, not_after }
                .try_into()?,
        })
    }
}

impl From<&Renewed> for proto::RenewCertificateResponse {
    fn from(renewed: &Renewed) -> Self {
        let Renewed { certificate_chain, trust_bundle, not_after } = renewed;
        Self {
            certificate_chain: certificate_chain.clone(),
            trust_bundle: trust_bundle.clone(),
            not_after: Some(time_to_wire(*not_after)),
        }
    }
}

impl TryFrom<proto::RenewCertificateResponse> for Renewed {
    type Error = Error;

    fn try_from(response: proto::RenewCertificateResponse) -> Result<Self, Error> {
        let proto::RenewCertificateResponse { certificate_chain, trust_bundle, not_after } = response;
        Ok(Self {
            certificate_chain: Field("certificate_chain").text(certificate_chain, MAX_PEM_BYTES)?,
            trust_bundle: Field("trust_bundle").text(trust_bundle, MAX_PEM_BYTES)?,
            not_after: Field("not_after").time(not_after)?,
        })
    }
}
