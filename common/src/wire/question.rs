//! What the coordinator asks of a node, and what it says.

use holdfast_proto::link::v1 as proto;
use holdfast_proto::r#type::v1 as nouns;
use proto::answer::Answer as WireAnswer;
use proto::question::Question as WireQuestion;

use super::{Error, Field, Problem, cut, time_to_wire};
use crate::link::{Answer, Question};
use crate::question::{
    self, MAX_LABEL_BYTES, MAX_PACKAGES, MAX_SETTINGS, PackageUpgrade, Retuning, SettingChange, Upgrades,
};
use crate::set_aside::{self, File, Log, MAX_FILES, MAX_LOGS, MAX_PART_BYTES, Part};

impl From<&Question> for proto::Question {
    fn from(question: &Question) -> Self {
        let Question { number, cluster_id, about } = question;
        let question = match about {
            question::Question::SetAside(about) => about.into(),
            question::Question::Upgrades => WireQuestion::ListUpgrades(proto::ListUpgrades {}),
            question::Question::Retuning => WireQuestion::PreviewRetuning(proto::PreviewRetuning {}),
        };
        Self { number: *number, cluster_id: cluster_id.to_string(), question: Some(question) }
    }
}

impl TryFrom<proto::Question> for Question {
    type Error = Error;

    fn try_from(question: proto::Question) -> Result<Self, Error> {
        let proto::Question { number, cluster_id, question } = question;
        let about = match Field("question").required(question)? {
            WireQuestion::ListUpgrades(proto::ListUpgrades {}) => question::Question::Upgrades,
            WireQuestion::PreviewRetuning(proto::PreviewRetuning {}) => question::Question::Retuning,
            WireQuestion::ListSetAside(proto::ListSetAside {}) => set_aside::Question::Logs.into(),
            WireQuestion::ListSetAsideFiles(proto::ListSetAsideFiles { id }) => {
                set_aside::Question::Files { id: Field("id").parsed(id)? }.into()
            }
            WireQuestion::ReadSetAside(proto::ReadSetAside { id, file, offset, bytes }) => {
                if !(1..=MAX_PART_BYTES).contains(&bytes) {
                    return Err(Field("bytes").refuse(Problem::OutOfRange { expected: "1–65536" }));
                }
                let (id, file) = (Field("id").parsed(id)?, Field("file").parsed(file)?);
                set_aside::Question::Part { id, file, offset: Field("offset").number(offset)?, bytes }.into()
            }
        };
        Ok(Self {
            number: Field("number").positive(number)?,
            cluster_id: Field("cluster_id").parsed(cluster_id)?,
            about,
        })
    }
}

impl From<&Answer> for proto::Answer {
    fn from(answer: &Answer) -> Self {
        let Answer { number, answer } = answer;
        let answer = match answer {
            Err(failure) => WireAnswer::Failure(failure.into()),
            Ok(question::Answer::SetAside(answer)) => answer.into(),
            Ok(question::Answer::Upgrades(upgrades)) => WireAnswer::Upgrades(upgrades.into()),
            Ok(question::Answer::Retuning(retuning)) => WireAnswer::Retuning(retuning.into()),
        };
        Self { number: *number, answer: Some(answer) }
    }
}

impl TryFrom<proto::Answer> for Answer {
    type Error = Error;

    fn try_from(answer: proto::Answer) -> Result<Self, Error> {
        let proto::Answer { number, answer } = answer;
        let answer = match Field("answer").required(answer)? {
            WireAnswer::Failure(failure) => Err(Field("failure").nested(failure)?),
            WireAnswer::SetAsideLogs(proto::SetAsideLogs { logs }) => {
                Ok(set_aside::Answer::Logs(Field("logs").list(logs, MAX_LOGS)?).into())
            }
            WireAnswer::SetAsideFiles(proto::SetAsideFiles { files }) => {
                Ok(set_aside::Answer::Files(Field("files").list(files, MAX_FILES)?).into())
            }
            WireAnswer::SetAsidePart(proto::SetAsidePart { data, sha256 }) => {
                let most = MAX_PART_BYTES as usize;
                if data.len() > most {
                    return Err(Field("data").refuse(Problem::TooLong { bytes: data.len(), most }));
                }
                let sha256 = sha256.try_into();
                let sha256 = sha256.map_err(|_| Field("sha256").malformed("has not 32 bytes"))?;
                Ok(set_aside::Answer::Part(Part { data, sha256 }).into())
            }
            WireAnswer::Upgrades(upgrades) => {
                Ok(question::Answer::Upgrades(Field("upgrades").nested(upgrades)?))
            }
            WireAnswer::Retuning(retuning) => {
                Ok(question::Answer::Retuning(Field("retuning").nested(retuning)?))
            }
        };
        Ok(Self { number: Field("number").positive(number)?, answer })
    }
}

impl From<&set_aside::Question> for WireQuestion {
    fn from(question: &set_aside::Question) -> Self {
        match question {
            set_aside::Question::Logs => Self::ListSetAside(proto::ListSetAside {}),
            set_aside::Question::Files { id } => {
                Self::ListSetAsideFiles(proto::ListSetAsideFiles { id: id.to_string() })
            }
            set_aside::Question::Part { id, file, offset, bytes } => {
                Self::ReadSetAside(proto::ReadSetAside {
                    id: id.to_string(),
                    file: file.to_string(),
                    offset: *offset,
                    bytes: *bytes,
                })
            }
        }
    }
}

impl From<&set_aside::Answer> for WireAnswer {
    fn from(answer: &set_aside::Answer) -> Self {
        match answer {
            set_aside::Answer::Logs(logs) => Self::SetAsideLogs(proto::SetAsideLogs {
                logs: logs.iter().take(MAX_LOGS).map(Into::into).collect(),
            }),
            set_aside::Answer::Files(files) => Self::SetAsideFiles(proto::SetAsideFiles {
                files: files.iter().take(MAX_FILES).map(Into::into).collect(),
            }),
            set_aside::Answer::Part(Part { data, sha256 }) => {
                Self::SetAsidePart(proto::SetAsidePart { data: data.clone(), sha256: sha256.to_vec() })
            }
        }
    }
}

impl From<&Upgrades> for proto::Upgrades {
    fn from(upgrades: &Upgrades) -> Self {
        let Upgrades { installed_build, packages, may_install } = upgrades;
        let package = |PackageUpgrade { name, installed, offered }: &PackageUpgrade| proto::PackageUpgrade {
            name: cut(name, MAX_LABEL_BYTES),
            installed: cut(installed, MAX_LABEL_BYTES),
            offered: cut(offered, MAX_LABEL_BYTES),
        };
        Self {
            installed_build: cut(installed_build, MAX_LABEL_BYTES),
            packages: packages.iter().take(MAX_PACKAGES).map(package).collect(),
            may_install: *may_install,
        }
    }
}

impl TryFrom<proto::Upgrades> for Upgrades {
    type Error = Error;

    fn try_from(upgrades: proto::Upgrades) -> Result<Self, Error> {
        let proto::Upgrades { installed_build, packages, may_install } = upgrades;
        Ok(Self {
            installed_build: Field("installed_build").text(installed_build, MAX_LABEL_BYTES)?,
            packages: Field("packages").list(packages, MAX_PACKAGES)?,
            may_install,
        })
    }
}

impl TryFrom<proto::PackageUpgrade> for PackageUpgrade {
    type Error = Error;

    fn try_from(package: proto::PackageUpgrade) -> Result<Self, Error> {
        let proto::PackageUpgrade { name, installed, offered } = package;
        Ok(Self {
            name: Field("name").text(name, MAX_LABEL_BYTES)?,
            installed: Field("installed").text(installed, MAX_LABEL_BYTES)?,
            offered: Field("offered").text(offered, MAX_LABEL_BYTES)?,
        })
    }
}

impl From<&Retuning> for proto::Retuning {
    fn from(retuning: &Retuning) -> Self {
        let Retuning { kept, possible, changes } = retuning;
        let change = |SettingChange { name, from, to }: &SettingChange| proto::SettingChange {
            name: cut(name, MAX_LABEL_BYTES),
            from: cut(from, MAX_LABEL_BYTES),
            to: cut(to, MAX_LABEL_BYTES),
        };
        Self {
            kept: Some(kept.into()),
            possible: Some(possible.into()),
            changes: changes.iter().take(MAX_SETTINGS).map(change).collect(),
        }
    }
}

impl TryFrom<proto::Retuning> for Retuning {
    type Error = Error;

    fn try_from(retuning: proto::Retuning) -> Result<Self, Error> {
        let proto::Retuning { kept, possible, changes } = retuning;
        Ok(Self {
            kept: Field("kept").message(kept)?,
            possible: Field("possible").message(possible)?,
            changes: Field("changes").list(changes, MAX_SETTINGS)?,
        })
    }
}

impl TryFrom<proto::SettingChange> for SettingChange {
    type Error = Error;

    fn try_from(change: proto::SettingChange) -> Result<Self, Error> {
        let proto::SettingChange { name, from, to } = change;
        Ok(Self {
            name: Field("name").text(name, MAX_LABEL_BYTES)?,
            from: Field("from").text(from, MAX_LABEL_BYTES)?,
            to: Field("to").text(to, MAX_LABEL_BYTES)?,
        })
    }
}

impl From<&Log> for nouns::SetAsideLog {
    fn from(log: &Log) -> Self {
        let Log {
            id,
            taken_at,
            timeline,
            from,
            to,
            fork,
            checkpoint,
            bytes,
            files,
            cut,
            keep_until,
            remove_after,
        } = log;
        Self {
            id: id.to_string(),
            set_aside_time: Some(time_to_wire(*taken_at)),
            timeline: *timeline,
            from_offset: *from,
            to_offset: *to,
            fork: fork.as_ref().map(Into::into),
            checkpoint: checkpoint.as_ref().map(Into::into),
            bytes: *bytes,
            files: *files,
            cut: *cut,
            keep_until_time: Some(time_to_wire(*keep_until)),
            remove_after_time: Some(time_to_wire(*remove_after)),
        }
    }
}

impl TryFrom<nouns::SetAsideLog> for Log {
    type Error = Error;

    fn try_from(log: nouns::SetAsideLog) -> Result<Self, Error> {
        let nouns::SetAsideLog {
            id,
            set_aside_time,
            timeline,
            from_offset,
            to_offset,
            fork,
            checkpoint,
            bytes,
            files,
            cut,
            keep_until_time,
            remove_after_time,
        } = log;
        Ok(Self {
            id: Field("id").parsed(id)?,
            taken_at: Field("set_aside_time").time(set_aside_time)?,
            timeline,
            from: from_offset,
            to: to_offset,
            fork: Field("fork").optional_message(fork)?,
            checkpoint: Field("checkpoint").optional_message(checkpoint)?,
            bytes,
            files,
            cut,
            keep_until: Field("keep_until_time").time(keep_until_time)?,
            remove_after: Field("remove_after_time").time(remove_after_time)?,
        })
    }
}

impl From<&File> for nouns::SetAsideFile {
    fn from(file: &File) -> Self {
        let File { name, bytes } = file;
        Self { name: name.to_string(), bytes: *bytes }
    }
}

impl TryFrom<nouns::SetAsideFile> for File {
    type Error = Error;

    fn try_from(file: nouns::SetAsideFile) -> Result<Self, Error> {
        let nouns::SetAsideFile { name, bytes } = file;
        Ok(Self { name: Field("name").parsed(name)?, bytes: Field("bytes").number(bytes)? })
    }
}
