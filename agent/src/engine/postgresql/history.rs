//! Whose log continues whose: timelines, where each branched off, and what another member's server says of its own.

use std::time::Duration;

use holdfast_common::assignment::Peer;
use holdfast_common::position::Position;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::layout::{Layout, Marker};
use super::{Inner, render};
use crate::engine::Error;
use crate::host::exec::Program;

/// One question to another member's server.
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// A checkpoint may have to write all of that server's memory.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(10 * 60);
const MAX_HISTORY_BYTES: u64 = 1024 * 1024;

/// A timeline in a log, and where the next one branched off; the last has no end yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) timeline: u64,
    pub(super) ended_at: Option<u64>,
}

/// What a server says of its log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) system: String,
    pub(super) timeline: u64,
    lines: Vec<Line>,
}

/// How a log stands to that of another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// The other has all of it, and went on.
    Prefix,
    /// The other has it up to the fork.
    Beyond { more: u64 },
    /// Nothing tells.
    Unrelated,
}

/// Until where two logs are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fork {
    pub(super) timeline: u64,
    pub(super) offset: u64,
}

// === impl Said ===

impl Said {
    /// Until where a log of these timelines is the same as this server's; none where nothing tells.
    pub(super) fn fork(&self, own: &[Line]) -> Option<Fork> {
        let mut fork = None;
        let mut begun = (0, 0);
        for (ours, theirs) in own.iter().zip(&self.lines) {
            // The same number is another timeline where it began elsewhere.
            if ours.timeline != theirs.timeline || begun.0 != begun.1 {
                break;
            }
            let ends = [ours.ended_at, theirs.ended_at];
            fork = ends.into_iter().flatten().min().map(|offset| Fork { timeline: ours.timeline, offset });
            begun = (ours.ended_at.unwrap_or(u64::MAX), theirs.ended_at.unwrap_or(u64::MAX));
        }
        fork
    }

    /// How a log of these timelines that ends there stands to this server's.
    pub(super) fn relation(&self, own: &[Line], end: Position) -> Relation {
        match self.fork(own) {
            Some(fork) if fork.timeline == end.era && end.offset <= fork.offset => Relation::Prefix,
            Some(fork) => Relation::Beyond { more: end.offset.saturating_sub(fork.offset) },
            None => Relation::Unrelated,
        }
    }
}

// === impl Inner ===

impl Inner {
    /// Asks another member's server which database it is, and how its log came about.
    pub(super) async fn ask_about_log(
        &self,
        marker: &Marker,
        layout: &Layout,
        upstream: &Peer,
    ) -> Result<Said, Error> {
        let target = format!("{} replication=true", render::conninfo(upstream, layout, render::COPY_NAME));
        let ask =
            async |questions: &[&str]| self.ask(marker, upstream, &target, questions, ASK_DEADLINE).await;
        const WHO: &str = "IDENTIFY_SYSTEM";
        let said = if marker.engine_version.number() >= 14 {
            // A replica knows no history that a primary's data could be measured by. Asked first: one that becomes a primary
            // meanwhile would name the timeline of before.
            let said = ask(&["SHOW in_hot_standby", WHO]).await?;
            match said.split_once('\n') {
                Some((recovering, said)) if recovering.trim() == "off" => said.to_owned(),
                _ => {
                    let message = format!("{} is no primary", upstream.name);
                    return Err(Error::Unmet { check: "source_is_primary", message });
                }
            }
        } else {
            ask(&[WHO]).await?
        };
        let mut words = said.trim().split('|');
        let (system, timeline) = (words.next(), words.next().and_then(|word| word.parse::<u64>().ok()));
        let (Some(system), Some(timeline)) = (system.filter(|system| !system.is_empty()), timeline) else {
            let problem = "its answer is not understood".to_owned();
            return Err(Error::Wrong { deed: format!("ask {}", upstream.name), problem });
        };
        // The first one has no history.
        let history =
            if timeline > 1 { ask(&[&format!("TIMELINE_HISTORY {timeline}")]).await? } else { String::new() };
        Ok(Said { system: system.to_owned(), timeline, lines: lines(&history, timeline) })
    }

    /// Has another member's server write a checkpoint: until the first one after a promotion its control file names the timeline of
    /// before, and pg_rewind believes it.
    pub(super) async fn checkpoint_at(
        &self,
        marker: &Marker,
        layout: &Layout,
        upstream: &Peer,
    ) -> Result<(), Error> {
        let target = format!("{} dbname=postgres", render::conninfo(upstream, layout, render::COPY_NAME));
        self.ask(marker, upstream, &target, &["CHECKPOINT"], CHECKPOINT_DEADLINE).await.map(drop)
    }

    /// The timelines of a log on this one; where its history cannot be read, of it alone without its beginning.
    pub(super) async fn lines(&self, layout: &Layout, timeline: u64) -> Vec<Line> {
        if timeline <= 1 {
            return lines("", timeline);
        }
        let path = layout.data().join(format!("pg_wal/{timeline:08X}.history"));
        match self.host.files().read(path, MAX_HISTORY_BYTES).await {
            Ok(bytes) => lines(&String::from_utf8_lossy(&bytes), timeline),
            Err(_) => Vec::new(),
        }
    }

    async fn ask(
        &self,
        marker: &Marker,
        upstream: &Peer,
        target: &str,
        questions: &[&str],
        deadline: Duration,
    ) -> Result<String, Error> {
        let mut program = Program::new(self.packages.program(&marker.engine_version, "psql"))
            .args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--no-password"])
            .args(["--dbname", target])
            .args(questions.iter().flat_map(|question| ["--command", *question]))
            .deadline(deadline);
        if let Some(owner) = self.owner()? {
            program = program.owner(owner);
        }
        let asked = self.host.run(program, &CancellationToken::new()).await;
        let answer = asked.map_err(|error| Error::Unavailable {
            deed: format!("ask {}", upstream.name),
            source: error.into(),
        })?;
        Ok(String::from_utf8_lossy(&answer.stdout.bytes).into_owned())
    }
}

/// A timeline with those that it came from. A history has a line for each: timeline, place and reason, with tabs between them. Servers
/// before version 16 may give them as `\x` and hexadecimal digits.
fn lines(history: &str, timeline: u64) -> Vec<Line> {
    let text = match history.split_once("\\x") {
        Some((_, digits)) => unhexed(digits.trim()),
        None => history.split_once('|').map_or(history, |(_, text)| text).to_owned(),
    };
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let timeline = words.next()?.parse().ok()?;
        let (high, low) = words.next()?.split_once('/')?;
        let half = |half| u64::from_str_radix(half, 16).ok();
        Some(Line { timeline, ended_at: Some((half(high)? << 32) | half(low)?) })
    };
    text.lines().filter_map(line).chain([Line { timeline, ended_at: None }]).collect()
}

fn unhexed(digits: &str) -> String {
    let pairs = digits.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    String::from_utf8_lossy(&pairs.map_while(byte).collect::<Vec<u8>>()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_text_and_as_bytes() {
        let plain = "00000003.history|1\t0/3000120\tno recovery target specified\n\n2\t1/A0\tno recovery target specified\n";
        let line = |timeline, ended_at| Line { timeline, ended_at };
        let read = [line(1, Some(0x0300_0120)), line(2, Some(0x1_0000_00a0)), line(3, None)];
        assert_eq!(lines(plain, 3), read);
        let digits: String = "1\t0/3000120\tx\n".bytes().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(lines(&format!("00000002.history|\\x{digits}\n"), 2), [read[0], line(2, None)]);
        assert_eq!(lines("nonsense", 1), [line(1, None)]);
    }

    #[test]
    fn a_log_is_a_prefix_only_of_one_with_the_same_history() {
        let log = |ends: &[u64]| -> Vec<Line> {
            let ended = ends.iter().map(|end| Some(*end)).chain([None]);
            ended.zip(1..).map(|(ended_at, timeline)| Line { timeline, ended_at }).collect()
        };
        let said = |ends: &[u64]| {
            let lines = log(ends);
            Said { system: "7".to_owned(), timeline: lines.len() as u64, lines }
        };
        let at = |era, offset| Position { era, offset };
        for (own, end, theirs, relation) in [
            (&[][..], at(1, 90), &[100][..], Relation::Prefix),
            (&[], at(1, 100), &[100], Relation::Prefix),
            (&[], at(1, 130), &[100], Relation::Beyond { more: 30 }),
            (&[100], at(2, 190), &[100, 200], Relation::Prefix),
            (&[100], at(2, 210), &[100, 200], Relation::Beyond { more: 10 }),
            // The same number, begun elsewhere: another timeline.
            (&[110], at(2, 190), &[100, 200], Relation::Beyond { more: 90 }),
            (&[90], at(2, 190), &[100, 200], Relation::Beyond { more: 100 }),
            // The same timeline: no number says whether it is the same log.
            (&[], at(1, 90), &[], Relation::Unrelated),
            (&[100], at(2, 190), &[100], Relation::Unrelated),
        ] {
            assert_eq!(said(theirs).relation(&log(own), end), relation, "{own:?} {end:?} {theirs:?}");
        }
        assert_eq!(said(&[100]).relation(&[], at(2, 9)), Relation::Unrelated, "an unknown history");
        assert_eq!(said(&[100, 200]).fork(&log(&[110])), Some(Fork { timeline: 1, offset: 100 }));
    }
}
