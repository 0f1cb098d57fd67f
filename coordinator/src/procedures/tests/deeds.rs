//! What nodes in memory do with their data when they are told to.

use std::collections::BTreeMap;

use holdfast_common::command::{Command, Outcome, Payload, ResyncedBy, Success};
use holdfast_common::error::{Failure, Reason};
use holdfast_common::id::NodeId;
use holdfast_common::term::Term;

use super::world::NEW;
use crate::cluster::tests::SYSTEM;

pub(super) fn act(data: &mut BTreeMap<NodeId, String>, node: NodeId, command: &Command) -> Outcome {
    let occupied = || Err(Failure::new(Reason::WouldDestroyData, "there are data already"));
    match &command.payload {
        Payload::InstallEngine(_) => Ok(Success::InstallEngine { installed_version: "15.0".into() }),
        Payload::UpgradeEngine(_) => Ok(Success::UpgradeEngine { installed_build: NEW.into() }),
        Payload::InitialiseMember(_) if data.contains_key(&node) => occupied(),
        Payload::InitialiseMember(_) => {
            data.insert(node, SYSTEM.to_owned());
            Ok(Success::InitialiseMember { system_identifier: SYSTEM.into() })
        }
        Payload::CloneMember(_) if data.contains_key(&node) => occupied(),
        Payload::CloneMember(clone) => match data.get(&clone.source.node_id).cloned() {
            Some(system_identifier) => {
                data.insert(node, system_identifier.clone());
                Ok(Success::CloneMember { system_identifier, copied_bytes: 1 })
            }
            None => Err(Failure::new(Reason::EngineFailed, "the source has no data")),
        },
        Payload::DestroyMember(_) if command.term == Term::NONE => {
            Err(Failure::new(Reason::InvalidField, "a removal needs a term"))
        }
        Payload::DestroyMember(_) => Ok(Success::DestroyMember { removed: data.remove(&node).is_some() }),
        Payload::SetPassword(_) => Ok(Success::SetPassword),
        Payload::CheckpointMember(_) => Ok(Success::CheckpointMember),
        Payload::RestartMember(_) if data.contains_key(&node) => Ok(Success::RestartMember),
        Payload::RestartMember(_) => Err(Failure::new(Reason::MemberNotFound, "there are no data here")),
        Payload::ResyncMember(resync) if data.contains_key(&node) => {
            match data.get(&resync.source.node_id).cloned() {
                Some(system_identifier) => {
                    data.insert(node, system_identifier.clone());
                    let how = ResyncedBy::Rewound;
                    Ok(Success::ResyncMember { how, system_identifier, copied_bytes: 1, set_aside_bytes: 1 })
                }
                None => Err(Failure::new(Reason::EngineFailed, "the source has no data")),
            }
        }
        Payload::ResyncMember(_) => Err(Failure::new(Reason::MemberNotFound, "there are no data here")),
        Payload::CheckMember(_) | Payload::RebootNode(_) | Payload::RetuneMember(_) => {
            Err(Failure::new(Reason::UnknownCommand, "not here"))
        }
    }
}
