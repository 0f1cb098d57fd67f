//! Commands begun and ended, on disk: one small file for each, named by the command's id, replaced durably.
//!
//! ```text
//! (nothing) ──begin──► Begun { command, runs } ──end──► Ended { outcome } ──acknowledged──► Ended, prunable
//! ```
//!
//! A file that is damaged counts as a command that was begun and whose end nobody knows: it is never run again. Not
//! decided here: whether a command may begin.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_common::clock::Clock;
use holdfast_common::command::{Command, Outcome};
use holdfast_common::error::{Chain, Failure, Reason};
use holdfast_common::id::CommandId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::host::files::{Access, Files};
use crate::statefile::{self, Kind};
use crate::terms::Finding;

const KIND: Kind = Kind { name: "command", version: 1 };
const FOLDER: &str = "commands";
/// The most acknowledged outcomes that are kept, for repeats that come late.
pub const MAX_ACKNOWLEDGED: usize = 1000;
/// How long they are kept at most.
pub const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// The journal, and in memory where each command stands.
#[derive(Debug)]
pub struct Journal {
    files: Files,
    folder: PathBuf,
    clock: Clock,
    index: BTreeMap<CommandId, State>,
    /// Left out to prove the tests: nothing reaches the disk.
    #[cfg(test)]
    pub(super) forgetful: bool,
}

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Begun,
    Ended { sequence: u64, acknowledged: Option<Timestamp> },
}

/// A command that was begun and has not ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    pub command: Command,
    /// How often it was begun; orders the updates of different runs.
    pub runs: u32,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    pub command_id: CommandId,
    pub sequence: u64,
    pub outcome: Outcome,
    pub acknowledged: Option<Timestamp>,
}

/// What a start finds to be done.
#[derive(Debug, Default)]
pub struct Found {
    pub begun: Vec<Begun>,
    pub unacknowledged: Vec<Ended>,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Begun(Begun),
    Ended(Ended),
}

// === impl Journal ===

impl Journal {
    /// Reads what is there.
    ///
    /// # Errors
    /// Where the disk cannot be read; damage is a finding.
    pub async fn open(files: Files, state: &Path, clock: Clock) -> Result<(Self, Found), statefile::Error> {
        let folder = state.join(FOLDER);
        files.create_dir(&folder, Access::PRIVATE_DIR).await?;
        let mut journal = Self {
            files,
            folder,
            clock,
            index: BTreeMap::new(),
            #[cfg(test)]
            forgetful: false,
        };
        let mut found = Found::default();
        for entry in journal.files.list(&journal.folder).await? {
            let id = entry.name.to_str().and_then(|name| name.parse::<CommandId>().ok());
            // Whatever else lies here (what was set aside, halves of writes) is no record.
            let Some(id) = id else { continue };
            journal.load(id, &mut found).await?;
        }
        journal.prune().await;
        Ok((journal, found))
    }

    pub fn state(&self, id: CommandId) -> Option<State> {
        self.index.get(&id).copied()
    }

    /// Those begun and not ended.
    pub fn unfinished(&self) -> Vec<CommandId> {
        self.index.iter().filter(|(_, state)| **state == State::Begun).map(|(id, _)| *id).collect()
    }

    /// How many have not been acknowledged.
    pub fn open_count(&self) -> usize {
        self.index
            .values()
            .filter(|state| !matches!(state, State::Ended { acknowledged: Some(_), .. }))
            .count()
    }

    /// Records durably that a command is about to run.
    ///
    /// # Errors
    /// Where it cannot be written: then it must not run.
    pub async fn begin(&mut self, begun: Begun) -> Result<(), statefile::Error> {
        let id = begun.command.id;
        self.write(id, &Record::Begun(begun)).await?;
        self.index.insert(id, State::Begun);
        Ok(())
    }

    /// Records durably how a command ended.
    ///
    /// # Errors
    /// Where it cannot be written. The journal knows the end all the same until the agent stops.
    pub async fn end(&mut self, ended: Ended) -> Result<(), statefile::Error> {
        let id = ended.command_id;
        let Ended { sequence, acknowledged, .. } = ended;
        self.index.insert(id, State::Ended { sequence, acknowledged });
        self.write(id, &Record::Ended(ended)).await
    }

    /// The recorded end of a command.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn ended(&self, id: CommandId) -> Result<Option<Ended>, statefile::Error> {
        match statefile::read::<Record>(&self.files, &self.path(id), KIND).await? {
            Some(Record::Ended(ended)) => Ok(Some(ended)),
            Some(Record::Begun(_)) | None => Ok(None),
        }
    }

    /// The coordinator has stored the outcome: the record may go one day.
    ///
    /// # Errors
    /// Where it cannot be written; then the outcome is told again after a restart, which harms nothing.
    pub async fn acknowledge(&mut self, id: CommandId) -> Result<(), statefile::Error> {
        let Some(State::Ended { sequence, acknowledged: None }) = self.state(id) else { return Ok(()) };
        let Some(ended) = self.ended(id).await? else { return Ok(()) };
        let acknowledged = Some(self.clock.now());
        self.write(id, &Record::Ended(Ended { acknowledged, ..ended })).await?;
        self.index.insert(id, State::Ended { sequence, acknowledged });
        self.prune().await;
        Ok(())
    }

    /// Removes acknowledged records that are too many or too old. One that cannot be removed stays.
    async fn prune(&mut self) {
        let mut acknowledged: Vec<(Timestamp, CommandId)> = self
            .index
            .iter()
            .filter_map(|(id, state)| match state {
                State::Ended { acknowledged: Some(at), .. } => Some((*at, *id)),
                State::Ended { acknowledged: None, .. } | State::Begun => None,
            })
            .collect();
        acknowledged.sort_unstable();
        let surplus = acknowledged.len().saturating_sub(MAX_ACKNOWLEDGED);
        let keep = jiff::SignedDuration::try_from(KEEP).unwrap_or(jiff::SignedDuration::MAX);
        let oldest = self.clock.now().saturating_sub(keep).unwrap_or(Timestamp::MIN);
        let gone = acknowledged.iter().enumerate().filter(|(rank, (at, _))| *rank < surplus || *at < oldest);
        for (_, (_, id)) in gone {
            match self.files.remove_file(self.path(*id)).await {
                Ok(_) => {
                    self.index.remove(id);
                }
                Err(error) => tracing::warn!(command = %id, error = %Chain(&error), "prune the journal"),
            }
        }
    }

    async fn load(&mut self, id: CommandId, found: &mut Found) -> Result<(), statefile::Error> {
        let path = self.path(id);
        match statefile::read::<Record>(&self.files, &path, KIND).await {
            Ok(Some(Record::Begun(begun))) if begun.command.id == id => {
                self.index.insert(id, State::Begun);
                found.begun.push(begun);
            }
            Ok(Some(Record::Ended(ended))) if ended.command_id == id => {
                let Ended { sequence, acknowledged, .. } = ended;
                self.index.insert(id, State::Ended { sequence, acknowledged });
                if acknowledged.is_none() {
                    found.unacknowledged.push(ended);
                }
            }
            Ok(None) => {}
            Ok(Some(Record::Begun(_) | Record::Ended(_))) => {
                self.distrust(id, "the record of another command", found).await?;
            }
            Err(error) if error.is_damage() => {
                let problem = Chain(&error).to_string();
                self.distrust(id, &problem, found).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Nobody knows how the command of a damaged record ended; it is not run again.
    async fn distrust(
        &mut self,
        id: CommandId,
        problem: &str,
        found: &mut Found,
    ) -> Result<(), statefile::Error> {
        let aside = statefile::set_aside(&self.files, &self.path(id)).await?;
        let message = format!(
            "the node's record of command {id} is damaged ({problem}), so nobody knows whether it was done; \
             it was set aside as {} and the command is not run again",
            aside.display()
        );
        found.findings.push(Finding(message.clone()));
        // Above every sequence of a run that anybody may remember.
        let sequence = first_sequence(u32::MAX);
        let outcome = Err(Failure::new(Reason::StateDamaged, message));
        let ended = Ended { command_id: id, sequence, outcome, acknowledged: None };
        self.end(ended.clone()).await?;
        found.unacknowledged.push(ended);
        Ok(())
    }

    async fn write(&self, id: CommandId, record: &Record) -> Result<(), statefile::Error> {
        #[cfg(test)]
        if self.forgetful {
            return Ok(());
        }
        statefile::write(&self.files, &self.path(id), KIND, record).await
    }

    fn path(&self, id: CommandId) -> PathBuf {
        self.folder.join(id.to_string())
    }
}

/// Sequence numbers of a run's updates begin here, above all of the runs before.
pub fn first_sequence(runs: u32) -> u64 {
    // Below 2^63, which the wire allows.
    u64::from(runs & 0x7fff_ffff) << 32 | 1
}
