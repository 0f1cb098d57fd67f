//! What is on the disk: a record for each member, and the number of the agent's run.

use std::path::{Path, PathBuf};

use holdfast_common::error::Chain;
use holdfast_common::id::ClusterId;
use holdfast_common::protocol::Record;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::host::files::{Access, Files};
use crate::statefile::{self, Kind};
use crate::terms::Finding;

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
    /// Something that cannot be read; it was set aside, which this says.
    Damaged(String),
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    number: u64,
}

/// Makes room for the records, and writes down the number of a run that is higher than all before.
pub(super) async fn begin_run(
    files: &Files,
    state: &Path,
) -> Result<(u64, Option<Finding>), statefile::Error> {
    let mut finding = None;
    files.create_dir(state.join(FOLDER), Access::PRIVATE_DIR).await?;
    let path = state.join(RUN_NAME);
    // Where the last one is not known, one that no count of starts has reached.
    let beyond = || u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(1);
    let number = match statefile::read::<Run>(files, &path, RUN).await {
        Ok(Some(Run { number })) => number.saturating_add(1),
        Ok(None) => beyond(),
        Err(error) if error.is_damage() => {
            finding = Some(Finding(set_aside(files, &path, &error).await?));
            beyond()
        }
        Err(error) => return Err(error),
    };
    statefile::write(files, &path, RUN, &Run { number }).await?;
    Ok((number, finding))
}

pub(super) async fn load(files: &Files, state: &Path, cluster: ClusterId) -> Result<Found, statefile::Error> {
    let path = path(state, cluster);
    match statefile::read(files, &path, RECORD).await {
        Ok(Some(record)) => Ok(Found::Record(record)),
        Ok(None) => Ok(Found::Nothing),
        Err(error) if error.is_damage() => Ok(Found::Damaged(set_aside(files, &path, &error).await?)),
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

/// Moves a damaged file out of the way, and says so.
async fn set_aside(files: &Files, path: &Path, error: &statefile::Error) -> Result<String, statefile::Error> {
    let aside = statefile::set_aside(files, path).await?;
    Ok(format!("{}; it was set aside as {}", Chain(error), aside.display()))
}

fn path(state: &Path, cluster: ClusterId) -> PathBuf {
    state.join(FOLDER).join(cluster.to_string())
}

/// Forgets a member that is not here any more, and to whose name nothing was promised that still holds.
pub(super) async fn forget(files: &Files, state: &Path, cluster: ClusterId) -> Result<(), statefile::Error> {
    files.remove_file(path(state, cluster)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_common::term::Term;

    use super::*;
    use crate::app::state_files;

    #[tokio::test]
    async fn no_run_has_the_number_of_an_earlier_one_whatever_became_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (state, files) = (folder.path(), state_files(folder.path()));
        let mut last = 0;
        let mut next = async |damaged: bool| {
            let (number, finding) = begin_run(&files, state).await.unwrap();
            assert!(number > last, "{number} after {last}");
            assert_eq!(finding.is_some(), damaged, "{finding:?}");
            last = number;
        };
        next(false).await;
        next(false).await;
        std::fs::write(state.join(RUN_NAME), "nonsense").unwrap();
        next(true).await;
        // A later moment: without the file, time is what tells the runs apart.
        std::fs::remove_file(state.join(RUN_NAME)).unwrap();
        let before = Timestamp::now();
        while Timestamp::now().as_millisecond() <= before.as_millisecond() + 1 {
            tokio::task::yield_now().await;
        }
        next(false).await;
    }

    #[tokio::test]
    async fn a_record_comes_back_and_a_damaged_one_is_never_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let (state, files) = (folder.path(), state_files(folder.path()));
        begin_run(&files, state).await.unwrap();
        let (cluster, record) = (ClusterId::generate(), Record::replica(Term::FIRST));
        assert_eq!(load(&files, state, cluster).await.unwrap(), Found::Nothing);
        store(&files, state, cluster, &record).await.unwrap();
        assert_eq!(load(&files, state, cluster).await.unwrap(), Found::Record(record));
        std::fs::write(path(state, cluster), "").unwrap();
        assert!(
            matches!(load(&files, state, cluster).await.unwrap(), Found::Damaged(why) if why.contains("damaged"))
        );
        forget(&files, state, cluster).await.unwrap();
    }
}
