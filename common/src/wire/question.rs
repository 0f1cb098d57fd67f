//! What the coordinator asks of a node, and what it says.

use holdfast_proto::link::v1 as proto;
use holdfast_proto::r#type::v1 as nouns;
use proto::answer::Answer as WireAnswer;
use proto::question::Question as WireQuestion;

use super::{Error, Field, Problem, time_to_wire};
use crate::link::{Answer, Question};
use crate::set_aside::{self, File, Log, MAX_FILES, MAX_LOGS, MAX_PART_BYTES, Part};

impl From<&Question> for proto::Question {
    fn from(question: &Question) -> Self {
        let Question { number, cluster_id, about } = question;
        let question = match about {
            set_aside::Question::Logs => WireQuestion::ListSetAside(proto::ListSetAside {}),
            set_aside::Question::Files { id } => {
                WireQuestion::ListSetAsideFiles(proto::ListSetAsideFiles { id: id.to_string() })
            }
            set_aside::Question::Part { id, file, offset, bytes } => {
                WireQuestion::ReadSetAside(proto::ReadSetAside {
                    id: id.to_string(),
                    file: file.to_string(),
                    offset: *offset,
                    bytes: *bytes,
                })
            }
        };
        Self { number: *number, cluster_id: cluster_id.to_string(), question: Some(question) }
    }
}

impl TryFrom<proto::Question> for Question {
    type Error = Error;

    fn try_from(question: proto::Question) -> Result<Self, Error> {
        let proto::Question { number, cluster_id, question } = question;
        let about = match Field("question").required(question)? {
            WireQuestion::ListSetAside(proto::ListSetAside {}) => set_aside::Question::Logs,
            WireQuestion::ListSetAsideFiles(proto::ListSetAsideFiles { id }) => {
                set_aside::Question::Files { id: Field("id").parsed(id)? }
            }
            WireQuestion::ReadSetAside(proto::ReadSetAside { id, file, offset, bytes }) => {
                if !(1..=MAX_PART_BYTES).contains(&bytes) {
                    return Err(Field("bytes").refuse(Problem::OutOfRange { expected: "1–65536" }));
                }
                set_aside::Question::Part {
                    id: Field("id").parsed(id)?,
                    file: Field("file").parsed(file)?,
                    offset: Field("offset").number(offset)?,
                    bytes,
                }
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
            Ok(set_aside::Answer::Logs(logs)) => WireAnswer::SetAsideLogs(proto::SetAsideLogs {
                logs: logs.iter().take(MAX_LOGS).map(Into::into).collect(),
            }),
            Ok(set_aside::Answer::Files(files)) => WireAnswer::SetAsideFiles(proto::SetAsideFiles {
                files: files.iter().take(MAX_FILES).map(Into::into).collect(),
            }),
            Ok(set_aside::Answer::Part(Part { data, sha256 })) => {
                WireAnswer::SetAsidePart(proto::SetAsidePart { data: data.clone(), sha256: sha256.to_vec() })
            }
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
                Ok(set_aside::Answer::Logs(Field("logs").list(logs, MAX_LOGS)?))
            }
            WireAnswer::SetAsideFiles(proto::SetAsideFiles { files }) => {
                Ok(set_aside::Answer::Files(Field("files").list(files, MAX_FILES)?))
            }
            WireAnswer::SetAsidePart(proto::SetAsidePart { data, sha256 }) => {
                let most = MAX_PART_BYTES as usize;
                if data.len() > most {
                    return Err(Field("data").refuse(Problem::TooLong { bytes: data.len(), most }));
                }
                let sha256 = sha256.try_into();
                let sha256 = sha256.map_err(|_| Field("sha256").malformed("has not 32 bytes"))?;
                Ok(set_aside::Answer::Part(Part { data, sha256 }))
            }
        };
        Ok(Self { number: Field("number").positive(number)?, answer })
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
