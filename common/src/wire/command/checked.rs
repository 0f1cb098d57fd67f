//! What a look at a node found, for a member that could be made there.

use holdfast_proto::link::v1 as proto;

use super::super::{Error, Field, cut, time_to_wire};
use crate::command::{Check, CheckedMember, MAX_CHECKS, MAX_LABEL_BYTES, MAX_MESSAGE_BYTES};

impl From<&CheckedMember> for proto::CheckMemberResult {
    fn from(checked: &CheckedMember) -> Self {
        let CheckedMember {
            checks,
            engine_version,
            engine_installed,
            memory_bytes,
            cores,
            free_bytes,
            node_time,
        } = checked;
        Self {
            checks: checks
                .iter()
                .take(MAX_CHECKS)
                .map(|Check { name, met, message }| proto::Check {
                    name: cut(name, MAX_LABEL_BYTES),
                    met: *met,
                    message: cut(message, MAX_MESSAGE_BYTES),
                })
                .collect(),
            engine_version: engine_version.as_ref().map(ToString::to_string).unwrap_or_default(),
            engine_installed: *engine_installed,
            memory_bytes: *memory_bytes,
            cores: *cores,
            free_bytes: *free_bytes,
            node_time: Some(time_to_wire(*node_time)),
        }
    }
}

impl TryFrom<proto::CheckMemberResult> for CheckedMember {
    type Error = Error;

    fn try_from(checked: proto::CheckMemberResult) -> Result<Self, Error> {
        let proto::CheckMemberResult {
            checks,
            engine_version,
            engine_installed,
            memory_bytes,
            cores,
            free_bytes,
            node_time,
        } = checked;
        Ok(Self {
            checks: Field("checks").list(checks, MAX_CHECKS)?,
            engine_version: Field("engine_version").optional_parsed(engine_version)?,
            engine_installed,
            memory_bytes,
            cores,
            free_bytes,
            node_time: Field("node_time").time(node_time)?,
        })
    }
}

impl TryFrom<proto::Check> for Check {
    type Error = Error;

    fn try_from(check: proto::Check) -> Result<Self, Error> {
        let proto::Check { name, met, message } = check;
        Ok(Self {
            name: Field("name").text(name, MAX_LABEL_BYTES)?,
            met,
            message: Field("message").text_or_empty(message, MAX_MESSAGE_BYTES)?,
        })
    }
}
