//! What is set aside, told and read: only what the node itself lists, and nothing is changed.

use holdfast_common::id::ClusterId;
use holdfast_common::position::Position;
use holdfast_common::set_aside::{Answer, File, FileName, Id, Log, MAX_LOGS, Part, Question};

use super::aside::{MAX_AGE, MAX_SUMMARY_BYTES, MIN_AGE, SUMMARY, Summary, history_of, parse};
use crate::engine::Error;
use crate::engine::postgresql::Inner;
use crate::engine::postgresql::layout::Layout;
use crate::host::files::Kind;

const LIST: &str = "list the logs that are set aside";
const READ: &str = "read a log that is set aside";

impl Inner {
    /// # Errors
    /// `SET_ASIDE_NOT_FOUND`; where the disk fails.
    pub(in crate::engine::postgresql) async fn answer_about_log(
        &self,
        cluster: ClusterId,
        question: &Question,
    ) -> Result<Answer, Error> {
        let layout = self.layout(cluster);
        match question {
            Question::Logs => self.kept(&layout).await.map(Answer::Logs),
            Question::Files { id } => self.files_of(&layout, id).await.map(Answer::Files),
            Question::Part { id, file, offset, bytes } => {
                let summary = self.summary(&layout, id).await?;
                if !names(&summary).any(|known| known == file.as_str()) {
                    return Err(Error::NotSetAside { id: id.clone() });
                }
                let path = layout.set_aside().join(id.as_str()).join(file.as_str());
                let read = self.host.files().read_part(path, *offset, (*bytes).into()).await;
                read.map(|data| Answer::Part(Part::new(data))).map_err(|error| Error::failed(READ, error))
            }
        }
    }

    /// The newest of what is kept; what is not whole, or has no readable summary, is not told of.
    async fn kept(&self, layout: &Layout) -> Result<Vec<Log>, Error> {
        let entries = match self.host.files().list(layout.set_aside()).await {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            other => other.map_err(|error| Error::failed(LIST, error))?,
        };
        let folders = entries.iter().filter(|entry| entry.kind == Kind::Directory);
        let mut ids: Vec<Id> = folders.filter_map(|entry| entry.name.to_str()?.parse().ok()).collect();
        ids.sort_by(|a, b| b.cmp(a));
        let mut logs = Vec::new();
        for id in ids.into_iter().take(MAX_LOGS) {
            if let Ok(summary) = self.summary(layout, &id).await {
                let files = self.files_of(layout, &id).await?;
                logs.push(described(id, &summary, &files));
            }
        }
        Ok(logs)
    }

    async fn summary(&self, layout: &Layout, id: &Id) -> Result<Summary, Error> {
        let path = layout.set_aside().join(id.as_str()).join(SUMMARY);
        let bytes = match self.host.files().read(path, MAX_SUMMARY_BYTES).await {
            Err(error) if error.is_not_found() => return Err(Error::NotSetAside { id: id.clone() }),
            other => other.map_err(|error| Error::failed(READ, error))?,
        };
        serde_json::from_slice(&bytes).map_err(|error| Error::failed(READ, error))
    }

    /// The log's files, oldest first, then what tells of them.
    async fn files_of(&self, layout: &Layout, id: &Id) -> Result<Vec<File>, Error> {
        let summary = self.summary(layout, id).await?;
        let folder = layout.set_aside().join(id.as_str());
        let mut files = Vec::new();
        for name in names(&summary) {
            let name: FileName = name.parse().map_err(|error| Error::failed(READ, error))?;
            let stat = self.host.files().stat(folder.join(name.as_str())).await;
            let stat = stat.map_err(|error| Error::failed(READ, error))?;
            let found = stat.filter(|stat| stat.kind == Kind::File);
            files.extend(found.map(|stat| File { name, bytes: stat.size_bytes }));
        }
        Ok(files)
    }
}

/// The names that its files may have.
fn names(summary: &Summary) -> impl Iterator<Item = String> {
    summary.segments.iter().cloned().chain([history_of(summary), SUMMARY.to_owned()])
}

fn described(id: Id, summary: &Summary, files: &[File]) -> Log {
    let Summary { taken_at, timeline, fork, checkpoint, bytes: _, segments: _, cut } = summary;
    let range = |file: &File| {
        let begins_at = parse(file.name.as_str(), file.bytes)?.begins_at;
        Some((begins_at, begins_at.saturating_add(file.bytes)))
    };
    let ranges: Vec<(u64, u64)> = files.iter().filter_map(range).collect();
    Log {
        id,
        taken_at: *taken_at,
        timeline: *timeline,
        from: ranges.first().map_or(0, |range| range.0),
        to: ranges.iter().map(|range| range.1).max().unwrap_or(0),
        fork: fork.map(|fork| Position { era: fork.timeline, offset: fork.offset }),
        checkpoint: checkpoint.map(|point| Position { era: point.timeline, offset: point.offset }),
        bytes: files.iter().map(|file| file.bytes).sum(),
        files: u32::try_from(files.len()).unwrap_or(u32::MAX),
        cut: *cut,
        keep_until: taken_at.saturating_add(MIN_AGE).unwrap_or(*taken_at),
        remove_after: taken_at.saturating_add(MAX_AGE).unwrap_or(*taken_at),
    }
}
