//! What operators' and agents' interfaces share: engines, roles, durability, positions, and what a node says of a member.

use holdfast_proto::link::v1 as link;
use holdfast_proto::r#type::v1 as proto;

use super::field::wire_enum;
use super::{Error, Field, Problem, WireEnum, cut, duration_to_wire, time_to_wire};
use crate::assignment::{MAX_PEERS, Synchronous};
use crate::budget::{Budget, MAX_CORES, MEMORY_BYTES, Tuning};
use crate::engine::Engine;
use crate::generation::Generation;
use crate::id::NodeId;
use crate::position::Position;
use crate::protocol::{Profile, Version};
use crate::report::{
    self, AccessReport, EngineState, Follower, LeaseReport, LeaseSource, MemberReport, Severity, Traffic,
    Trouble, TroubleKind,
};
use crate::role::{Durability, Role};
use crate::term::Term;

wire_enum!(Engine, proto::Engine, Postgresql);
wire_enum!(Role, proto::Role, Primary, Replica);
wire_enum!(Durability, proto::Durability, Async, Quorum);
wire_enum!(Profile, proto::LeaseProfile, Default, Fast, Wide);
wire_enum!(LeaseSource, proto::LeaseSource, None, Coordinator, Promises, Alone);
wire_enum!(
    TroubleKind,
    proto::TroubleKind,
    NotReceiving,
    LogRemoved,
    Diverged,
    ReplayPaused,
    ParameterTooLow,
    ReplayDelayed,
    SlotMissing,
    SlotLost,
    SlotRetainsLog,
);
wire_enum!(Severity, link::EventSeverity, Info, Warning, Error);

/// Here 0 says something: not observed.
impl WireEnum for EngineState {
    fn from_wire(number: i32) -> Result<Self, Problem> {
        match proto::EngineState::try_from(number) {
            Ok(proto::EngineState::Unspecified) => Ok(Self::Unknown),
            Ok(proto::EngineState::Absent) => Ok(Self::Absent),
            Ok(proto::EngineState::Stopped) => Ok(Self::Stopped),
            Ok(proto::EngineState::Starting) => Ok(Self::Starting),
            Ok(proto::EngineState::Running) => Ok(Self::Running),
            Ok(proto::EngineState::Failed) => Ok(Self::Failed),
            Ok(proto::EngineState::Building) => Ok(Self::Building),
            Err(_) => Err(Problem::UnknownValue { value: number }),
        }
    }

    fn to_wire(self) -> i32 {
        proto::EngineState::from(self).into()
    }
}

impl From<EngineState> for proto::EngineState {
    fn from(state: EngineState) -> Self {
        match state {
            EngineState::Unknown => Self::Unspecified,
            EngineState::Absent => Self::Absent,
            EngineState::Stopped => Self::Stopped,
            EngineState::Starting => Self::Starting,
            EngineState::Running => Self::Running,
            EngineState::Failed => Self::Failed,
            EngineState::Building => Self::Building,
        }
    }
}

impl From<&Position> for proto::Position {
    fn from(position: &Position) -> Self {
        let Position { era, offset } = *position;
        Self { era, offset }
    }
}

impl TryFrom<proto::Position> for Position {
    type Error = Error;

    fn try_from(position: proto::Position) -> Result<Self, Error> {
        let proto::Position { era, offset } = position;
        Ok(Self { era, offset })
    }
}

impl From<&Follower> for proto::Follower {
    fn from(follower: &Follower) -> Self {
        let Follower { node_id, flushed_offset, synchronous, streaming } = *follower;
        Self { node_id: node_id.to_string(), flushed_offset, synchronous, streaming }
    }
}

impl TryFrom<proto::Follower> for Follower {
    type Error = Error;

    fn try_from(follower: proto::Follower) -> Result<Self, Error> {
        let proto::Follower { node_id, flushed_offset, synchronous, streaming } = follower;
        Ok(Self { node_id: Field("node_id").parsed(node_id)?, flushed_offset, synchronous, streaming })
    }
}

/// Whom a commit must reach, from the two fields it has wherever it occurs.
pub(super) fn synchronous_of(count: u32, node_ids: Vec<String>) -> Result<Synchronous, Error> {
    let field = Field("synchronous_node_ids");
    let nodes = field.parsed_list(node_ids, MAX_PEERS)?;
    field.distinct(&nodes, |node: &NodeId| *node)?;
    if usize::try_from(count).is_ok_and(|count| count <= nodes.len()) {
        Ok(Synchronous { count, nodes })
    } else {
        Err(Field("synchronous_count")
            .refuse(Problem::OutOfRange { expected: "at most as many as synchronous_node_ids" }))
    }
}

impl From<&MemberReport> for proto::MemberReport {
    fn from(report: &MemberReport) -> Self {
        let MemberReport {
            cluster_id,
            engine,
            state,
            role,
            term,
            position,
            replayed,
            lag_seconds,
            streaming,
            followers,
            synchronous,
            system_identifier,
            engine_version,
            server_build,
            installed_build,
            started_at,
            message,
            converged_generation,
            pending_restart,
            data_bytes,
            access,
            lease,
            has_promised,
            failed_probes,
            needs_resync,
            troubles,
            tuning,
        } = report;
        let label = |text: &Option<String>| {
            text.as_deref().map(|text| cut(text, report::MAX_LABEL_BYTES)).unwrap_or_default()
        };
        Self {
            cluster_id: cluster_id.to_string(),
            engine: engine.to_wire(),
            state: state.to_wire(),
            role: role.map_or(0, WireEnum::to_wire),
            term: term.get(),
            position: position.as_ref().map(Into::into),
            replayed: replayed.as_ref().map(Into::into),
            lag_seconds: lag_seconds.filter(|lag| lag.is_finite() && *lag >= 0.0),
            streaming: *streaming,
            followers: followers.iter().take(report::MAX_FOLLOWERS).map(Into::into).collect(),
            synchronous_count: synchronous.count,
            synchronous_node_ids: synchronous.nodes.iter().map(ToString::to_string).collect(),
            system_identifier: system_identifier.clone().unwrap_or_default(),
            engine_version: label(engine_version),
            server_build: label(server_build),
            installed_build: label(installed_build),
            started_time: started_at.map(time_to_wire),
            message: cut(message, report::MAX_MESSAGE_BYTES),
            converged_generation: converged_generation.get(),
            pending_restart: pending_restart
                .iter()
                .take(report::MAX_PENDING_RESTART)
                .map(|name| cut(name, report::MAX_LABEL_BYTES))
                .collect(),
            data_bytes: *data_bytes,
            access: access.as_ref().map(Into::into),
            lease: lease.as_ref().map(Into::into),
            has_promised: *has_promised,
            failed_probes: *failed_probes,
            needs_resync: *needs_resync,
            troubles: troubles.iter().take(report::MAX_TROUBLES).map(Into::into).collect(),
            tuning: tuning.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<proto::MemberReport> for MemberReport {
    type Error = Error;

    fn try_from(report: proto::MemberReport) -> Result<Self, Error> {
        let proto::MemberReport {
            cluster_id,
            engine,
            state,
            role,
            term,
            position,
            replayed,
            lag_seconds,
            streaming,
            followers,
            synchronous_count,
            synchronous_node_ids,
            system_identifier,
            engine_version,
            server_build,
            installed_build,
            started_time,
            message,
            converged_generation,
            pending_restart,
            data_bytes,
            access,
            lease,
            has_promised,
            failed_probes,
            needs_resync,
            troubles,
            tuning,
        } = report;
        let followers: Vec<Follower> = Field("followers").list(followers, report::MAX_FOLLOWERS)?;
        Field("followers").distinct(&followers, |follower| follower.node_id)?;
        Ok(Self {
            cluster_id: Field("cluster_id").parsed(cluster_id)?,
            engine: Field("engine").enumerated(engine)?,
            state: Field("state").enumerated(state)?,
            role: Field("role").optional_enumerated(role)?,
            term: Term::new(Field("term").number(term)?),
            position: Field("position").optional_message(position)?,
            replayed: Field("replayed").optional_message(replayed)?,
            lag_seconds: Field("lag_seconds").optional_quantity(lag_seconds)?,
            streaming,
            followers,
            synchronous: synchronous_of(synchronous_count, synchronous_node_ids)?,
            system_identifier: Field("system_identifier")
                .optional_label(system_identifier, report::MAX_LABEL_BYTES)?,
            engine_version: Field("engine_version").optional_text(engine_version, report::MAX_LABEL_BYTES)?,
            server_build: Field("server_build").optional_text(server_build, report::MAX_LABEL_BYTES)?,
            installed_build: Field("installed_build")
                .optional_text(installed_build, report::MAX_LABEL_BYTES)?,
            started_at: Field("started_time").optional_time(started_time)?,
            message: Field("message").text_or_empty(message, report::MAX_MESSAGE_BYTES)?,
            converged_generation: Generation::new(
                Field("converged_generation").number(converged_generation)?,
            ),
            pending_restart: Field("pending_restart").each(
                pending_restart,
                report::MAX_PENDING_RESTART,
                |name| Field("").text(name, report::MAX_LABEL_BYTES),
            )?,
            data_bytes,
            access: Field("access").optional_message(access)?,
            lease: Field("lease").optional_message(lease)?,
            has_promised,
            failed_probes,
            needs_resync,
            troubles: Field("troubles").list(troubles, report::MAX_TROUBLES)?,
            tuning: Field("tuning").optional_message(tuning)?,
        })
    }
}

impl From<&Budget> for proto::Budget {
    fn from(budget: &Budget) -> Self {
        let Budget { memory_bytes, cores, disk_bytes } = *budget;
        Self { memory_bytes, cores, disk_bytes }
    }
}

impl TryFrom<proto::Budget> for Budget {
    type Error = Error;

    fn try_from(budget: proto::Budget) -> Result<Self, Error> {
        let proto::Budget { memory_bytes, cores, disk_bytes } = budget;
        if !MEMORY_BYTES.contains(&memory_bytes) {
            return Err(Field("memory_bytes").refuse(Problem::OutOfRange { expected: "256 MiB–1 PiB" }));
        }
        if !(1..=MAX_CORES).contains(&cores) {
            return Err(Field("cores").refuse(Problem::OutOfRange { expected: "1–65536" }));
        }
        Ok(Self { memory_bytes, cores, disk_bytes })
    }
}

impl From<&Tuning> for proto::MemberTuning {
    fn from(tuning: &Tuning) -> Self {
        let Tuning { kept, possible, resized } = tuning;
        Self { kept: Some(kept.into()), possible: Some(possible.into()), resized: *resized }
    }
}

impl TryFrom<proto::MemberTuning> for Tuning {
    type Error = Error;

    fn try_from(tuning: proto::MemberTuning) -> Result<Self, Error> {
        let proto::MemberTuning { kept, possible, resized } = tuning;
        let (kept, possible) = (Field("kept").message(kept)?, Field("possible").message(possible)?);
        Ok(Self { kept, possible, resized })
    }
}

impl From<&Trouble> for proto::Trouble {
    fn from(trouble: &Trouble) -> Self {
        let Trouble { kind, message } = trouble;
        Self { kind: kind.to_wire(), message: cut(message, report::MAX_MESSAGE_BYTES) }
    }
}

impl TryFrom<proto::Trouble> for Trouble {
    type Error = Error;

    fn try_from(trouble: proto::Trouble) -> Result<Self, Error> {
        let proto::Trouble { kind, message } = trouble;
        Ok(Self {
            kind: Field("kind").enumerated(kind)?,
            message: Field("message").text_or_empty(message, report::MAX_MESSAGE_BYTES)?,
        })
    }
}

impl From<&LeaseReport> for proto::MemberLease {
    fn from(report: &LeaseReport) -> Self {
        let LeaseReport { source, version, fenced, open } = report;
        Self {
            source: source.to_wire(),
            list_version: version.map(Version::get),
            fenced: *fenced,
            open: *open,
        }
    }
}

impl TryFrom<proto::MemberLease> for LeaseReport {
    type Error = Error;

    fn try_from(lease: proto::MemberLease) -> Result<Self, Error> {
        let proto::MemberLease { source, list_version, fenced, open } = lease;
        let version = list_version.map(|version| Field("list_version").positive(version)).transpose()?;
        Ok(Self {
            source: Field("source").enumerated(source)?,
            version: version.map(Version::new),
            fenced,
            open,
        })
    }
}

impl From<&AccessReport> for proto::MemberAccess {
    fn from(report: &AccessReport) -> Self {
        let AccessReport { generation, trial_left, accepted, refused } = report;
        let traffic =
            |Traffic { packets, bytes }: &Traffic| proto::Traffic { packets: *packets, bytes: *bytes };
        Self {
            generation: generation.get(),
            trial_left: trial_left.map(duration_to_wire),
            accepted: Some(traffic(accepted)),
            refused: Some(traffic(refused)),
        }
    }
}

impl TryFrom<proto::MemberAccess> for AccessReport {
    type Error = Error;

    fn try_from(report: proto::MemberAccess) -> Result<Self, Error> {
        let proto::MemberAccess { generation, trial_left, accepted, refused } = report;
        let traffic = |proto::Traffic { packets, bytes }| Traffic { packets, bytes };
        Ok(Self {
            generation: Generation::new(Field("generation").number(generation)?),
            trial_left: trial_left.map(|left| Field("trial_left").duration(Some(left))).transpose()?,
            accepted: traffic(Field("accepted").required(accepted)?),
            refused: traffic(Field("refused").required(refused)?),
        })
    }
}
