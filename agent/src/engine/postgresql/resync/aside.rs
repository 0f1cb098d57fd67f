//! The log that perhaps only this member has, kept on its disk before its data are rewound or replaced.
//!
//! Bounded: each set in size, all of them in number and age; what is younger than a day is removed by nobody.

use std::path::PathBuf;

use holdfast_common::set_aside::Id;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::engine::Error;
use crate::engine::postgresql::control::{self, Checkpoint};
use crate::engine::postgresql::history::Fork;
use crate::engine::postgresql::layout::Layout;
use crate::host::files::{Access, Files, Kind};
use crate::host::system::Owner;

/// The most that a set takes.
const MAX_BYTES: u64 = 1024 * 1024 * 1024;
const MAX_SETS: usize = 5;
pub(super) const MAX_AGE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// A set that is younger is not removed because of the number.
pub(super) const MIN_AGE: SignedDuration = SignedDuration::from_hours(24);
/// What is left free on the disk.
const RESERVE_BYTES: u64 = 256 * 1024 * 1024;
pub(super) const SUMMARY: &str = "summary.json";
pub(super) const MAX_SUMMARY_BYTES: u64 = 1024 * 1024;
const PARTIAL: &str = ".partial";
const DEED: &str = "set the log aside";

/// What a set is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Summary {
    pub(super) taken_at: Timestamp,
    /// The newest in the log.
    pub(super) timeline: u64,
    /// Until where the primary has the same; `None`: nothing tells.
    pub(super) fork: Option<Fork>,
    /// The last checkpoint before it was set aside; the log goes on behind it.
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) bytes: u64,
    /// By name, oldest first.
    pub(super) segments: Vec<String>,
    /// There was more than a set may have.
    pub(super) cut: bool,
}

/// A file of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    name: String,
    timeline: u64,
    pub(super) begins_at: u64,
    bytes: u64,
}

/// Where it is kept, and when.
#[derive(Debug)]
pub(super) struct Aside<'a> {
    pub(super) files: &'a Files,
    pub(super) layout: &'a Layout,
    pub(super) owner: Option<Owner>,
    pub(super) now: Timestamp,
}

// === impl Aside ===

impl Aside<'_> {
    /// Keeps the log from the fork on, or all of its newest timeline where nothing tells where it forks; returns how much that is. What
    /// was kept before is not kept again.
    pub(super) async fn keep<F>(&self, fork: impl FnOnce(u64) -> F) -> Result<u64, Error>
    where
        F: Future<Output = Option<Fork>>,
    {
        let segments = self.segments().await?;
        let Some(timeline) = segments.iter().map(|segment| segment.timeline).max() else { return Ok(0) };
        let fork = fork(timeline).await;
        let (chosen, cut) = choose(segments, timeline, fork, MAX_BYTES);
        let control = self.files.read(self.layout.data().join("global/pg_control"), control::MAX_BYTES).await;
        let bytes = chosen.iter().map(|segment| segment.bytes).sum();
        let summary = Summary {
            taken_at: self.now,
            timeline,
            fork,
            checkpoint: control.ok().as_deref().and_then(control::checkpoint),
            bytes,
            segments: chosen.iter().map(|segment| segment.name.clone()).collect(),
            cut,
        };
        let kept = self.tidy().await?;
        if kept.iter().any(|known| Summary { taken_at: self.now, ..known.clone() } == summary) {
            return Ok(bytes);
        }
        self.require_room(bytes).await?;
        self.write(&summary).await.map(|()| bytes)
    }

    async fn write(&self, summary: &Summary) -> Result<(), Error> {
        let failed = |error| Error::failed(DEED, error);
        let (folder, private) =
            (Access { mode: 0o700, owner: self.owner }, Access { mode: 0o600, owner: self.owner });
        let name = Id::new(self.now, summary.timeline);
        let partial = self.layout.set_aside().join(format!("{name}{PARTIAL}"));
        self.files.create_dir(self.layout.set_aside(), folder).await.map_err(failed)?;
        self.files.create_dir(&partial, folder).await.map_err(failed)?;
        let log = self.layout.data().join("pg_wal");
        for segment in &summary.segments {
            let copied = self.files.copy(log.join(segment), partial.join(segment), private).await;
            copied.map_err(failed)?;
        }
        let history = history_of(summary);
        match self.files.copy(log.join(&history), partial.join(&history), private).await {
            Err(error) if error.is_not_found() => {}
            copied => drop(copied.map_err(failed)?),
        }
        let text = serde_json::to_vec_pretty(summary).map_err(|error| Error::failed(DEED, error))?;
        self.files.write(partial.join(SUMMARY), text, private).await.map_err(failed)?;
        self.files.rename(partial, self.layout.set_aside().join(name.as_str())).await.map_err(failed)
    }

    /// The files of the log that hold what their name says: others are kept by the server to be written anew.
    async fn segments(&self) -> Result<Vec<Segment>, Error> {
        let failed = |error| Error::failed(DEED, error);
        let folder = self.layout.data().join("pg_wal");
        let mut found = Vec::new();
        let entries = match self.files.list(&folder).await {
            // Data that are not there have no log to keep.
            Err(error) if error.is_not_found() => return Ok(found),
            other => other.map_err(failed)?,
        };
        for entry in entries {
            let Some(name) = entry.name.to_str().filter(|_| entry.kind == Kind::File) else { continue };
            let path = folder.join(name);
            let Some(stat) = self.files.stat(&path).await.map_err(failed)? else { continue };
            let Some(segment) = parse(name, stat.size_bytes) else { continue };
            let start = self.files.read_part(path, 0, 16).await.map_err(failed)?;
            if control::page_address(&start) == Some(segment.begins_at) {
                found.push(segment);
            }
        }
        Ok(found)
    }

    /// Removes what is too old, what was cut, and more than may be; returns what stays.
    async fn tidy(&self) -> Result<Vec<Summary>, Error> {
        let failed = |error| Error::failed("remove old sets of the log", error);
        let folder = self.layout.set_aside();
        let entries = match self.files.list(&folder).await {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut kept: Vec<(PathBuf, Summary)> = Vec::new();
        for entry in entries.into_iter().filter(|entry| entry.kind == Kind::Directory) {
            let path = folder.join(&entry.name);
            if entry.name.to_str().is_some_and(|name| name.ends_with(PARTIAL)) {
                self.files.remove_tree(path).await.map_err(failed)?;
                continue;
            }
            let read = self.files.read(path.join(SUMMARY), MAX_SUMMARY_BYTES).await;
            // What has no readable summary is a person's to look at.
            let summary = read.ok().and_then(|bytes| serde_json::from_slice::<Summary>(&bytes).ok());
            kept.extend(summary.map(|summary| (path, summary)));
        }
        let (stay, go) = sort_out(kept, self.now);
        for path in go {
            self.files.remove_tree(path).await.map_err(failed)?;
        }
        Ok(stay)
    }

    /// # Errors
    /// `PRECONDITION_FAILED` (`room_to_set_aside`), with what helps.
    async fn require_room(&self, bytes: u64) -> Result<(), Error> {
        let space = self.files.space(self.layout.root()).await;
        let free = space.map_err(|error| Error::failed("measure the disk", error))?.available_bytes;
        let needed = bytes.saturating_add(RESERVE_BYTES);
        if free >= needed {
            return Ok(());
        }
        let message = format!(
            "setting the log aside that only this member has needs {} MiB, and {} MiB are free; free some, such as older sets in {}",
            needed >> 20,
            free >> 20,
            self.layout.set_aside().display()
        );
        Err(Error::Unmet { check: "room_to_set_aside", message })
    }
}

/// The name of the file that tells how a set's newest timeline came about.
pub(super) fn history_of(summary: &Summary) -> String {
    format!("{:08X}.history", summary.timeline)
}

/// A file of the log by its name: timeline and number, in hexadecimal digits.
pub(super) fn parse(name: &str, bytes: u64) -> Option<Segment> {
    let digits = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let part = |from: usize| u64::from_str_radix(name.get(from..from + 8)?, 16).ok();
    let (timeline, high, low) = (part(0)?, part(8)?, part(16)?);
    let begins_at = (high << 32).checked_add(low.checked_mul(bytes)?)?;
    (digits && bytes > 0).then(|| Segment { name: name.to_owned(), timeline, begins_at, bytes })
}

/// What is kept of a log, oldest first, and whether that is less than it should be: from the fork on as much as fits; without one the
/// newest of the newest timeline.
fn choose(mut segments: Vec<Segment>, timeline: u64, fork: Option<Fork>, limit: u64) -> (Vec<Segment>, bool) {
    segments.retain(|segment| match fork {
        Some(fork) => {
            segment.timeline >= fork.timeline && segment.begins_at.saturating_add(segment.bytes) > fork.offset
        }
        None => segment.timeline == timeline,
    });
    segments.sort_by_key(|segment| (segment.begins_at, segment.timeline));
    if fork.is_none() {
        segments.reverse();
    }
    let mut left = limit;
    let fits = segments.iter().take_while(|segment| {
        let fits = segment.bytes <= left;
        left = left.saturating_sub(segment.bytes);
        fits
    });
    let number = fits.count();
    let cut = number < segments.len();
    segments.truncate(number);
    if fork.is_none() {
        segments.reverse();
    }
    (segments, cut)
}

/// Which sets stay beside a new one, and which go.
fn sort_out(mut sets: Vec<(PathBuf, Summary)>, now: Timestamp) -> (Vec<Summary>, Vec<PathBuf>) {
    sets.sort_by_key(|(_, summary)| std::cmp::Reverse(summary.taken_at));
    let (mut stay, mut go) = (Vec::new(), Vec::new());
    for (path, summary) in sets {
        let age = now.duration_since(summary.taken_at);
        let surplus = stay.len() + 1 >= MAX_SETS && age >= MIN_AGE;
        if age > MAX_AGE || surplus { go.push(path) } else { stay.push(summary) }
    }
    (stay, go)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn segments(names: &[(u64, u64)]) -> Vec<Segment> {
        let segment = |(timeline, number): &(u64, u64)| {
            parse(&format!("{timeline:08X}{:08X}{:08X}", number / 256, number % 256), SIZE).unwrap()
        };
        names.iter().map(segment).collect()
    }

    fn numbers(chosen: &[Segment]) -> Vec<(u64, u64)> {
        chosen.iter().map(|segment| (segment.timeline, segment.begins_at / SIZE)).collect()
    }

    #[test]
    fn a_log_is_kept_from_its_fork_on() {
        let log = segments(&[(1, 3), (2, 5), (1, 4), (2, 4), (2, 300)]);
        let fork = Some(Fork { timeline: 1, offset: 4 * SIZE + 9 });
        let (chosen, cut) = choose(log.clone(), 2, fork, u64::MAX);
        assert_eq!((numbers(&chosen), cut), (vec![(1, 4), (2, 4), (2, 5), (2, 300)], false));
        let (chosen, cut) = choose(log.clone(), 2, fork, 2 * SIZE);
        assert_eq!((numbers(&chosen), cut), (vec![(1, 4), (2, 4)], true));
        let (chosen, cut) = choose(log, 2, None, 2 * SIZE);
        assert_eq!((numbers(&chosen), cut), (vec![(2, 5), (2, 300)], true));
    }

    #[test]
    fn only_files_of_the_log_are_taken_for_such() {
        for other in [
            "00000001.history",
            "0000000100000000000000zz",
            "archive_status",
            "000000010000000000000003.partial",
        ] {
            assert_eq!(parse(other, SIZE), None, "{other}");
        }
    }

    #[test]
    fn no_set_of_the_last_day_is_removed_and_none_stays_for_more_than_a_week() {
        let now = Timestamp::from_second(1_000_000_000).unwrap();
        let set = |hours: i64| {
            let taken_at = now - SignedDuration::from_hours(hours);
            let summary = Summary {
                taken_at,
                timeline: 1,
                fork: None,
                checkpoint: None,
                bytes: 1,
                segments: Vec::new(),
                cut: false,
            };
            (PathBuf::from(hours.to_string()), summary)
        };
        let gone = |hours: &[i64]| -> Vec<String> {
            let (_, go) = sort_out(hours.iter().map(|hours| set(*hours)).collect(), now);
            go.iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(gone(&[1, 2, 3, 4, 5, 6, 23]), Vec::<String>::new());
        assert_eq!(gone(&[200, 2]), ["200"]);
        assert_eq!(gone(&[100, 30, 2, 40, 50]), ["100"]);
        assert_eq!(gone(&[1, 2, 3, 4, 5, 25]), ["25"]);
    }
}
