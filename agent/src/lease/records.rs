//! What is on the disk: a record for each member, and the number of the agent's run.

use std::path::{Path, PathBuf};

use holdfast_common::id::ClusterId;
use holdfast_common::protocol::Record;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::host::files::{Access, Files};
use crate::statefile::{self, Kind};

const RECORD: Kind = Kind { name: "lease", version: 1 };
const RUN: Kind = Kind { name: "run", version: 1 };
const FOLDER: &str = "leases";
const RUN_NAME: &str = "run";

/// What was found of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing: it was never here.
    Nothing,
    Record(Record),
    /// Something that cannot be read; it was set aside.
    Damaged,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    number: u64,
}

/// Makes room for the records, and writes down the number of a run that is higher than all before.
pub(super) async fn begin_run(files: &Files, state: &Path) -> Result<u64, statefile::Error> {
    files.create_dir(state.join(FOLDER), Access::PRIVATE_DIR).await?;
    let path = state.join(RUN_NAME);
    // Where the last one is not known, one that no count of starts has reached.
    let beyond = || u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(1);
    let number = match statefile::read::<Run>(files, &path, RUN).await {
        Ok(Some(Run { number })) => number.saturating_add(1),
        Ok(None) => beyond(),
        Err(error) if error.is_damage() => {
            statefile::set_aside(files, &path).await?;
            beyond()
        }
        Err(error) => return Err(error),
    };
    statefile::write(files, &path, RUN, &Run { number }).await?;
    Ok(number)
}

pub(super) async fn load(files: &Files, state: &Path, cluster: ClusterId) -> Result<Found, statefile::Error> {
    let path = path(state, cluster);
    match statefile::read(files, &path, RECORD).await {
        Ok(Some(record)) => Ok(Found::Record(record)),
        Ok(None) => Ok(Found::Nothing),
        Err(error) if error.is_damage() => {
            statefile::set_aside(files, &path).await?;
            Ok(Found::Damaged)
        }
        Err(error) => Err(error),
    }
}

pub(super) async fn store(
    files: &Files,
    state: &Path,
    cluster: ClusterId,
    record: &Record,
) -> Result<(), statefile::Error> {
    statefile::write(files, &path(state, cluster), RECORD, record).await
}

fn path(state: &Path, cluster: ClusterId) -> PathBuf {
    state.join(FOLDER).join(cluster.to_string())
}

/// Forgets a member that is not here any more, and to whose name nothing was promised that still holds.
pub(super) async fn forget(files: &Files, state: &Path, cluster: ClusterId) -> Result<(), statefile::Error> {
    files.remove_file(path(state, cluster)).await?;
    Ok(())
}
