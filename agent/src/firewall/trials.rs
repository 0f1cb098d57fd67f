//! Which trials were begun on this node. Written down *before* the kernel is told: a trial whose agent dies at any moment
//! is begun at most once, and what has ended in the kernel never begins again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::host::files::Files;
use crate::statefile::{self, Kind};

const KIND: Kind = Kind { name: "trials", version: 1 };
const NAME: &str = "trials";

/// The begun ones, on disk.
#[derive(Debug)]
pub(super) struct Trials {
    files: Files,
    path: PathBuf,
    begun: Begun,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Begun {
    Only(BTreeSet<Uuid>),
    /// The record was lost: nothing that is assigned now is begun.
    All,
}

// === impl Trials ===

impl Trials {
    /// Reads the record; of a damaged one every trial counts as begun, which only shortens it.
    ///
    /// # Errors
    /// Where the disk cannot be read.
    pub(super) async fn open(files: Files, folder: &Path) -> Result<Self, statefile::Error> {
        let path = folder.join(NAME);
        let begun = match statefile::read(&files, &path, KIND).await {
            Ok(found) => Begun::Only(found.unwrap_or_default()),
            Err(error) if error.is_damage() => {
                statefile::set_aside(&files, &path).await?;
                Begun::All
            }
            Err(error) => return Err(error),
        };
        Ok(Self { files, path, begun })
    }

    pub(super) fn is_begun(&self, id: Uuid) -> bool {
        match &self.begun {
            Begun::Only(begun) => begun.contains(&id),
            Begun::All => true,
        }
    }

    /// Writes down that these begin, and forgets those that are assigned no more.
    ///
    /// # Errors
    /// Where it cannot be written: nothing may begin then.
    pub(super) async fn begin(&mut self, assigned: BTreeSet<Uuid>) -> Result<(), statefile::Error> {
        statefile::write(&self.files, &self.path, KIND, &assigned).await?;
        self.begun = Begun::Only(assigned);
        Ok(())
    }
}
