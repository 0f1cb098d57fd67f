//! Commands, what they say while they run, and how they end.

mod checked;

use holdfast_proto::link::v1 as proto;
use proto::command::Payload as WirePayload;
use proto::outcome::Result as WireResult;

use super::field::wire_enum;
use super::{Error, Field, WireEnum as _, cut, time_to_wire};
use crate::assignment::MAX_SYSTEM_IDENTIFIER_BYTES;
use crate::command::{
    CheckMember, CheckpointMember, CloneMember, Command, DatabaseName, DestroyMember, InitialiseMember,
    InstallEngine, MAX_LABEL_BYTES, MAX_MESSAGE_BYTES, Outcome, Payload, Progress, RebootNode, RestartMember,
    ResyncMember, ResyncMode, ResyncedBy, RetuneMember, SetPassword, Success, UpgradeEngine, Verifier,
};
use crate::engine::{EngineVersion, ExtensionName, MAX_EXTENSIONS};
use crate::generation::Generation;
use crate::term::Term;

wire_enum!(ResyncMode, proto::ResyncMode, Auto, Rewind, Full);
wire_enum!(ResyncedBy, proto::ResyncedBy, Followed, Rewound, Copied);

impl From<&Command> for proto::Command {
    fn from(command: &Command) -> Self {
        let Command { id, coordinator_generation, term, deadline, payload } = command;
        Self {
            command_id: id.to_string(),
            coordinator_generation: coordinator_generation.get(),
            term: term.get(),
            deadline: Some(time_to_wire(*deadline)),
            payload: Some(payload.into()),
        }
    }
}

impl TryFrom<proto::Command> for Command {
    type Error = Error;

    fn try_from(command: proto::Command) -> Result<Self, Error> {
        let proto::Command { command_id, coordinator_generation, term, deadline, payload } = command;
        Ok(Self {
            id: Field("command_id").parsed(command_id)?,
            coordinator_generation: Generation::new(
                Field("coordinator_generation").positive(coordinator_generation)?,
            ),
            term: Term::new(Field("term").number(term)?),
            deadline: Field("deadline").time(deadline)?,
            payload: Field("payload").required(payload)?.try_into()?,
        })
    }
}

impl From<&Payload> for WirePayload {
    fn from(payload: &Payload) -> Self {
        match payload {
            Payload::CheckMember(check) => {
                let CheckMember { cluster_id, engine, engine_version, port, replication_port, extensions } =
                    check;
                Self::CheckMember(proto::CheckMember {
                    cluster_id: cluster_id.to_string(),
                    engine: engine.to_wire(),
                    engine_version: engine_version.as_ref().map(ToString::to_string).unwrap_or_default(),
                    port: (*port).into(),
                    replication_port: replication_port.map_or(0, u32::from),
                    extensions: texts(extensions),
                })
            }
            Payload::InstallEngine(InstallEngine { engine, engine_version, extensions }) => {
                Self::InstallEngine(proto::InstallEngine {
                    engine: engine.to_wire(),
                    engine_version: engine_version.to_string(),
                    extensions: texts(extensions),
                })
            }
            Payload::UpgradeEngine(upgrade) => Self::UpgradeEngine(upgrade.into()),
            Payload::InitialiseMember(initialise) => {
                let InitialiseMember { member, database, user, password } = &**initialise;
                Self::InitialiseMember(proto::InitialiseMember {
                    member: Some(member.into()),
                    database: database.as_str().to_owned(),
                    user: user.as_str().to_owned(),
                    password_verifier: password.as_str().to_owned(),
                })
            }
            Payload::CloneMember(clone) => {
                let CloneMember { member, source } = &**clone;
                Self::CloneMember(proto::CloneMember {
                    member: Some(member.into()),
                    source: Some(source.into()),
                })
            }
            Payload::DestroyMember(DestroyMember { cluster_id, confirm }) => {
                Self::DestroyMember(proto::DestroyMember {
                    cluster_id: cluster_id.to_string(),
                    confirm: confirm.to_string(),
                })
            }
            Payload::SetPassword(SetPassword { cluster_id, user, password }) => {
                Self::SetPassword(proto::SetPassword {
                    cluster_id: cluster_id.to_string(),
                    user: user.as_str().to_owned(),
                    password_verifier: password.as_str().to_owned(),
                })
            }
            Payload::CheckpointMember(CheckpointMember { cluster_id }) => {
                Self::CheckpointMember(proto::CheckpointMember { cluster_id: cluster_id.to_string() })
            }
            Payload::ResyncMember(resync) => {
                let ResyncMember { member, source, mode, in_place } = &**resync;
                Self::ResyncMember(proto::ResyncMember {
                    member: Some(member.into()),
                    source: Some(source.into()),
                    mode: mode.to_wire(),
                    in_place: *in_place,
                })
            }
            Payload::RestartMember(restart) => {
                let RestartMember { member } = &**restart;
                Self::RestartMember(proto::RestartMember { member: Some(member.into()) })
            }
            Payload::RetuneMember(retune) => Self::RetuneMember(retune.into()),
            Payload::RebootNode(RebootNode { boot_id, with_primaries }) => {
                Self::RebootNode(proto::RebootNode {
                    boot_id: boot_id.clone(),
                    with_primaries: *with_primaries,
                })
            }
        }
    }
}

impl TryFrom<WirePayload> for Payload {
    type Error = Error;

    fn try_from(payload: WirePayload) -> Result<Self, Error> {
        match payload {
            WirePayload::CheckMember(check) => Field("check_member").nested(check).map(Self::CheckMember),
            WirePayload::InstallEngine(install) => {
                Field("install_engine").nested(install).map(Self::InstallEngine)
            }
            WirePayload::InitialiseMember(initialise) => {
                Ok(Self::InitialiseMember(Box::new(Field("initialise_member").nested(initialise)?)))
            }
            WirePayload::CloneMember(clone) => {
                Ok(Self::CloneMember(Box::new(Field("clone_member").nested(clone)?)))
            }
            WirePayload::DestroyMember(destroy) => {
                Field("destroy_member").nested(destroy).map(Self::DestroyMember)
            }
            WirePayload::SetPassword(set) => Field("set_password").nested(set).map(Self::SetPassword),
            WirePayload::CheckpointMember(checkpoint) => {
                Field("checkpoint_member").nested(checkpoint).map(Self::CheckpointMember)
            }
            WirePayload::ResyncMember(resync) => {
                Ok(Self::ResyncMember(Box::new(Field("resync_member").nested(resync)?)))
            }
            WirePayload::RestartMember(restart) => {
                Ok(Self::RestartMember(Box::new(Field("restart_member").nested(restart)?)))
            }
            WirePayload::UpgradeEngine(upgrade) => {
                Field("upgrade_engine").nested(upgrade).map(Self::UpgradeEngine)
            }
            WirePayload::RetuneMember(retune) => {
                Field("retune_member").nested(retune).map(Self::RetuneMember)
            }
            WirePayload::RebootNode(reboot) => Field("reboot_node").nested(reboot).map(Self::RebootNode),
        }
    }
}

impl TryFrom<proto::CheckMember> for CheckMember {
    type Error = Error;

    fn try_from(check: proto::CheckMember) -> Result<Self, Error> {
        let proto::CheckMember { cluster_id, engine, engine_version, port, replication_port, extensions } =
            check;
        Ok(Self {
            cluster_id: Field("cluster_id").parsed(cluster_id)?,
            engine: Field("engine").enumerated(engine)?,
            engine_version: Field("engine_version").optional_parsed::<EngineVersion>(engine_version)?,
            port: Field("port").port(port)?,
            replication_port: Field("replication_port").optional_port(replication_port)?,
            extensions: extension_names(extensions)?,
        })
    }
}

impl TryFrom<proto::InstallEngine> for InstallEngine {
    type Error = Error;

    fn try_from(install: proto::InstallEngine) -> Result<Self, Error> {
        let proto::InstallEngine { engine, engine_version, extensions } = install;
        Ok(Self {
            engine: Field("engine").enumerated(engine)?,
            engine_version: Field("engine_version").parsed(engine_version)?,
            extensions: extension_names(extensions)?,
        })
    }
}

impl TryFrom<proto::InitialiseMember> for InitialiseMember {
    type Error = Error;

    fn try_from(initialise: proto::InitialiseMember) -> Result<Self, Error> {
        let proto::InitialiseMember { member, database, user, password_verifier } = initialise;
        Ok(Self {
            member: Field("member").message(member)?,
            database: database_name("database", database)?,
            user: database_name("user", user)?,
            password: verifier(password_verifier)?,
        })
    }
}

impl TryFrom<proto::CloneMember> for CloneMember {
    type Error = Error;

    fn try_from(clone: proto::CloneMember) -> Result<Self, Error> {
        let proto::CloneMember { member, source } = clone;
        Ok(Self { member: Field("member").message(member)?, source: Field("source").message(source)? })
    }
}

impl TryFrom<proto::DestroyMember> for DestroyMember {
    type Error = Error;

    fn try_from(destroy: proto::DestroyMember) -> Result<Self, Error> {
        let proto::DestroyMember { cluster_id, confirm } = destroy;
        Ok(Self {
            cluster_id: Field("cluster_id").parsed(cluster_id)?,
            confirm: Field("confirm").parsed(confirm)?,
        })
    }
}

impl TryFrom<proto::SetPassword> for SetPassword {
    type Error = Error;

    fn try_from(set: proto::SetPassword) -> Result<Self, Error> {
        let proto::SetPassword { cluster_id, user, password_verifier } = set;
        Ok(Self {
            cluster_id: Field("cluster_id").parsed(cluster_id)?,
            user: database_name("user", user)?,
            password: verifier(password_verifier)?,
        })
    }
}

impl TryFrom<proto::CheckpointMember> for CheckpointMember {
    type Error = Error;

    fn try_from(checkpoint: proto::CheckpointMember) -> Result<Self, Error> {
        let proto::CheckpointMember { cluster_id } = checkpoint;
        Ok(Self { cluster_id: Field("cluster_id").parsed(cluster_id)? })
    }
}

impl TryFrom<proto::ResyncMember> for ResyncMember {
    type Error = Error;

    fn try_from(resync: proto::ResyncMember) -> Result<Self, Error> {
        let proto::ResyncMember { member, source, mode, in_place } = resync;
        Ok(Self {
            member: Field("member").message(member)?,
            source: Field("source").message(source)?,
            mode: Field("mode").enumerated(mode)?,
            in_place,
        })
    }
}

impl TryFrom<proto::RestartMember> for RestartMember {
    type Error = Error;

    fn try_from(restart: proto::RestartMember) -> Result<Self, Error> {
        let proto::RestartMember { member } = restart;
        Ok(Self { member: Field("member").message(member)? })
    }
}

impl From<&UpgradeEngine> for proto::UpgradeEngine {
    fn from(upgrade: &UpgradeEngine) -> Self {
        let UpgradeEngine { engine, engine_version } = upgrade;
        Self { engine: engine.to_wire(), engine_version: engine_version.to_string() }
    }
}

impl TryFrom<proto::UpgradeEngine> for UpgradeEngine {
    type Error = Error;

    fn try_from(upgrade: proto::UpgradeEngine) -> Result<Self, Error> {
        let proto::UpgradeEngine { engine, engine_version } = upgrade;
        Ok(Self {
            engine: Field("engine").enumerated(engine)?,
            engine_version: Field("engine_version").parsed(engine_version)?,
        })
    }
}

impl From<&RetuneMember> for proto::RetuneMember {
    fn from(retune: &RetuneMember) -> Self {
        let RetuneMember { cluster_id, budget } = retune;
        Self { cluster_id: cluster_id.to_string(), budget: budget.as_ref().map(Into::into) }
    }
}

impl TryFrom<proto::RetuneMember> for RetuneMember {
    type Error = Error;

    fn try_from(retune: proto::RetuneMember) -> Result<Self, Error> {
        let proto::RetuneMember { cluster_id, budget } = retune;
        Ok(Self {
            cluster_id: Field("cluster_id").parsed(cluster_id)?,
            budget: Field("budget").optional_message(budget)?,
        })
    }
}

impl TryFrom<proto::RebootNode> for RebootNode {
    type Error = Error;

    fn try_from(reboot: proto::RebootNode) -> Result<Self, Error> {
        let proto::RebootNode { boot_id, with_primaries } = reboot;
        Ok(Self { boot_id: Field("boot_id").label(boot_id, MAX_LABEL_BYTES)?, with_primaries })
    }
}

impl From<&Progress> for proto::Progress {
    fn from(progress: &Progress) -> Self {
        let Progress { message, done_bytes, total_bytes } = progress;
        Self { message: cut(message, MAX_MESSAGE_BYTES), done_bytes: *done_bytes, total_bytes: *total_bytes }
    }
}

impl TryFrom<proto::Progress> for Progress {
    type Error = Error;

    fn try_from(progress: proto::Progress) -> Result<Self, Error> {
        let proto::Progress { message, done_bytes, total_bytes } = progress;
        Ok(Self {
            message: Field("message").text_or_empty(message, MAX_MESSAGE_BYTES)?,
            done_bytes,
            total_bytes,
        })
    }
}

pub fn outcome_to_wire(outcome: &Outcome) -> proto::Outcome {
    let result = match outcome {
        Err(failure) => WireResult::Failure(failure.into()),
        Ok(Success::CheckMember(checked)) => WireResult::CheckMember(checked.into()),
        Ok(Success::InstallEngine { installed_version }) => {
            WireResult::InstallEngine(proto::InstallEngineResult {
                installed_version: cut(installed_version, MAX_LABEL_BYTES),
            })
        }
        Ok(Success::InitialiseMember { system_identifier }) => {
            WireResult::InitialiseMember(proto::InitialiseMemberResult {
                system_identifier: system_identifier.clone(),
            })
        }
        Ok(Success::CloneMember { system_identifier, copied_bytes }) => {
            WireResult::CloneMember(proto::CloneMemberResult {
                system_identifier: system_identifier.clone(),
                copied_bytes: *copied_bytes,
            })
        }
        Ok(Success::DestroyMember { removed }) => {
            WireResult::DestroyMember(proto::DestroyMemberResult { removed: *removed })
        }
        Ok(Success::SetPassword) => WireResult::SetPassword(proto::SetPasswordResult {}),
        Ok(Success::CheckpointMember) => WireResult::CheckpointMember(proto::CheckpointMemberResult {}),
        Ok(Success::ResyncMember { how, system_identifier, copied_bytes, set_aside_bytes }) => {
            WireResult::ResyncMember(proto::ResyncMemberResult {
                how: how.to_wire(),
                system_identifier: system_identifier.clone(),
                copied_bytes: *copied_bytes,
                set_aside_bytes: *set_aside_bytes,
            })
        }
        Ok(Success::RestartMember) => WireResult::RestartMember(proto::RestartMemberResult {}),
        Ok(Success::UpgradeEngine { installed_build }) => {
            WireResult::UpgradeEngine(proto::UpgradeEngineResult {
                installed_build: cut(installed_build, MAX_LABEL_BYTES),
            })
        }
        Ok(Success::RetuneMember { budget }) => {
            WireResult::RetuneMember(proto::RetuneMemberResult { budget: Some(budget.into()) })
        }
        Ok(Success::RebootNode { boot_id }) => {
            WireResult::RebootNode(proto::RebootNodeResult { boot_id: cut(boot_id, MAX_LABEL_BYTES) })
        }
    };
    proto::Outcome { result: Some(result) }
}

/// # Errors
/// Where the outcome is unset, unknown or has a bad field.
pub fn outcome_from_wire(outcome: proto::Outcome) -> Result<Outcome, Error> {
    let identifier = |text| Field("system_identifier").label(text, MAX_SYSTEM_IDENTIFIER_BYTES);
    Ok(Ok(match Field("result").required(outcome.result)? {
        WireResult::Failure(failure) => return Ok(Err(Field("failure").nested(failure)?)),
        WireResult::CheckMember(checked) => Success::CheckMember(Field("check_member").nested(checked)?),
        WireResult::InstallEngine(installed) => Success::InstallEngine {
            installed_version: Field("installed_version")
                .text(installed.installed_version, MAX_LABEL_BYTES)
                .map_err(|error| error.within("install_engine"))?,
        },
        WireResult::InitialiseMember(initialised) => Success::InitialiseMember {
            system_identifier: identifier(initialised.system_identifier)
                .map_err(|error| error.within("initialise_member"))?,
        },
        WireResult::CloneMember(cloned) => Success::CloneMember {
            system_identifier: identifier(cloned.system_identifier)
                .map_err(|error| error.within("clone_member"))?,
            copied_bytes: cloned.copied_bytes,
        },
        WireResult::DestroyMember(destroyed) => Success::DestroyMember { removed: destroyed.removed },
        WireResult::SetPassword(proto::SetPasswordResult {}) => Success::SetPassword,
        WireResult::CheckpointMember(proto::CheckpointMemberResult {}) => Success::CheckpointMember,
        WireResult::RestartMember(proto::RestartMemberResult {}) => Success::RestartMember,
        WireResult::UpgradeEngine(upgraded) => Success::UpgradeEngine {
            installed_build: Field("installed_build")
                .text(upgraded.installed_build, MAX_LABEL_BYTES)
                .map_err(|error| error.within("upgrade_engine"))?,
        },
        WireResult::RetuneMember(retuned) => Success::RetuneMember {
            budget: Field("budget")
                .message(retuned.budget)
                .map_err(|error: Error| error.within("retune_member"))?,
        },
        WireResult::RebootNode(rebooted) => Success::RebootNode {
            boot_id: Field("boot_id")
                .label(rebooted.boot_id, MAX_LABEL_BYTES)
                .map_err(|error| error.within("reboot_node"))?,
        },
        WireResult::ResyncMember(resynced) => {
            resynced_from_wire(resynced, identifier).map_err(|error| error.within("resync_member"))?
        }
    }))
}

fn resynced_from_wire(
    resynced: proto::ResyncMemberResult,
    identifier: impl FnOnce(String) -> Result<String, Error>,
) -> Result<Success, Error> {
    let proto::ResyncMemberResult { how, system_identifier, copied_bytes, set_aside_bytes } = resynced;
    Ok(Success::ResyncMember {
        how: Field("how").enumerated(how)?,
        system_identifier: identifier(system_identifier)?,
        copied_bytes,
        set_aside_bytes,
    })
}

fn texts(names: &[ExtensionName]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn extension_names(names: Vec<String>) -> Result<Vec<ExtensionName>, Error> {
    let names = Field("extensions").parsed_list(names, MAX_EXTENSIONS)?;
    Field("extensions").distinct(&names, Clone::clone)?;
    Ok(names)
}

fn database_name(field: &'static str, text: String) -> Result<DatabaseName, Error> {
    let field = Field(field);
    field
        .required(Some(text).filter(|text| !text.is_empty()))?
        .try_into()
        .map_err(|error| field.malformed(error))
}

fn verifier(text: String) -> Result<Verifier, Error> {
    let field = Field("password_verifier");
    field
        .required(Some(text).filter(|text| !text.is_empty()))?
        .try_into()
        .map_err(|error| field.malformed(error))
}
