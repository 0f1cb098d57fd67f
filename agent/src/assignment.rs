//! The node's assignment: kept on its disk before anything follows from it, applied at the start without the
//! coordinator, and handed to `converge` through a watch.
//!
//! Older ones, and ones with a term below an accepted one, are refused. A damaged file is set aside: the node then has
//! *no* assignment (its members are left as they are) until the coordinator sends it again. What must be done to make it
//! true is not decided here.
//!
//! The coordinator sends an assignment once in a session: one that the disk did not take is tried again until it does.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_common::assignment::Assignment;
use holdfast_common::error::{Chain, Classify, Metadata, Reason};
use holdfast_common::generation::Generation;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::host::files::Files;
use crate::statefile::{self, Kind};
use crate::terms::{self, Finding, Terms};

const KIND: Kind = Kind { name: "assignment", version: 1 };
const NAME: &str = "assignment";
/// Between two tries to store what the disk does not take.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps the assignment.
#[derive(Debug)]
pub struct Assignments {
    files: Files,
    path: PathBuf,
    terms: Arc<Terms>,
    /// One change at a time, from the check to the last write.
    change: Mutex<()>,
    newest: watch::Sender<Arc<Assignment>>,
    /// What the disk did not take.
    unstored: watch::Sender<Option<Arc<Assignment>>>,
}

/// What came of an assignment that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Stored,
    /// It was stored before.
    Known,
}

/// Why an assignment was refused. The earlier one stays.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bounds(#[from] terms::Error),
    #[error("assignment {generation} differs from the one of the same generation that this node has stored")]
    Conflict { generation: Generation },
    #[error("store the assignment; it is tried again each second")]
    Store(#[from] statefile::Error),
}

// === impl Assignments ===

impl Assignments {
    /// Reads the assignment from the disk.
    ///
    /// # Errors
    /// Where the disk cannot be read; damage is a finding.
    pub async fn open(
        files: Files,
        folder: &Path,
        terms: Arc<Terms>,
    ) -> Result<(Self, Vec<Finding>), statefile::Error> {
        let path = folder.join(NAME);
        let mut findings = Vec::new();
        let stored = match statefile::read::<Assignment>(&files, &path, KIND).await {
            Ok(stored) => stored,
            Err(error) if error.is_damage() => {
                let aside = statefile::set_aside(&files, &path).await?;
                findings.push(Finding(format!(
                    "{}; it was set aside as {}; the members are left as they are",
                    Chain(&error),
                    aside.display()
                )));
                None
            }
            Err(error) => return Err(error),
        };
        let accepted = terms.accepted().await;
        let usable = match (stored, accepted) {
            (Some(stored), Some(_)) => match terms.check_assignment(&stored).await {
                Ok(()) => {
                    // The agent may have ended between the two writes.
                    match terms.note_assignment(&stored).await {
                        Ok(()) => Some(stored),
                        Err(terms::Error::Keep(error)) => return Err(error),
                        Err(error) => unreachable_bound(&mut findings, &error),
                    }
                }
                // Somebody put an old file back.
                Err(error) => {
                    findings.push(Finding(format!("{} is not applied: {error}", path.display())));
                    None
                }
            },
            // Without the bounds nobody knows whether it is the newest.
            (Some(_), None) => {
                findings.push(Finding(format!("{} is not applied: its bounds are lost", path.display())));
                None
            }
            (None, Some(accepted)) => {
                if accepted.assignment.1 != Generation::NONE && findings.is_empty() {
                    findings.push(Finding(format!("{} is missing", path.display())));
                }
                None
            }
            (None, None) => None,
        };
        let newest = watch::Sender::new(Arc::new(usable.unwrap_or_default()));
        let unstored = watch::Sender::default();
        Ok((Self { files, path, terms, change: Mutex::new(()), newest, unstored }, findings))
    }

    /// Checks and stores an assignment; afterwards it is on the disk and with those who watch.
    ///
    /// # Errors
    /// [`Error`]; the earlier assignment stays in force. One that could not be stored is tried again by [`Self::run`].
    pub async fn accept(&self, assignment: Assignment) -> Result<Taken, Error> {
        self.try_to_store(Arc::new(assignment)).await
    }

    async fn try_to_store(&self, assignment: Arc<Assignment>) -> Result<Taken, Error> {
        let _one_at_a_time = self.change.lock().await;
        let taken = self.take(&assignment).await;
        let failed = matches!(taken, Err(Error::Store(_) | Error::Bounds(terms::Error::Keep(_))));
        self.unstored.send_if_modified(|unstored| {
            let newer = unstored.as_ref().is_some_and(|unstored| unstored.order() > assignment.order());
            let changes = !newer && (failed || unstored.is_some());
            if changes {
                *unstored = failed.then(|| Arc::clone(&assignment));
            }
            changes
        });
        taken
    }

    async fn take(&self, assignment: &Arc<Assignment>) -> Result<Taken, Error> {
        self.terms.check_assignment(assignment).await?;
        let current = Arc::clone(&self.newest.borrow());
        if current.order() == assignment.order() {
            return if current == *assignment {
                Ok(Taken::Known)
            } else {
                Err(Error::Conflict { generation: assignment.generation })
            };
        }
        // First the assignment, then the bounds: an end in between is mended by `open`.
        statefile::write(&self.files, &self.path, KIND, assignment.as_ref()).await?;
        self.terms.note_assignment(assignment).await?;
        self.newest.send_replace(Arc::clone(assignment));
        Ok(Taken::Stored)
    }

    /// Tries again to store what the disk did not take, until it is stopped.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut unstored = self.unstored.subscribe();
        let again = async {
            // The sender is in `self`.
            while unstored.wait_for(Option::is_some).await.is_ok() {
                tokio::time::sleep(AGAIN).await;
                let Some(assignment) = unstored.borrow_and_update().clone() else { continue };
                let generation = assignment.generation;
                match self.try_to_store(assignment).await {
                    Ok(_) => {
                        tracing::info!(%generation, "the assignment that the disk had not taken is stored")
                    }
                    Err(error) => {
                        tracing::debug!(%generation, error = %Chain(&error), "it is not stored yet")
                    }
                }
            }
        };
        // Both arms may be dropped: a file is written whole or not at all.
        tokio::select! {
            () = stop.cancelled() => {}
            () = again => {}
        }
    }

    /// The newest one, now and after every change. Generation 0: there is none.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Assignment>> {
        self.newest.subscribe()
    }

    pub fn newest(&self) -> Arc<Assignment> {
        Arc::clone(&self.newest.borrow())
    }
}

// === impl Error ===

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Bounds(error) => error.reason(),
            Self::Conflict { .. } => Reason::VersionConflict,
            Self::Store(error) => error.reason(),
        }
    }

    fn metadata(&self) -> Metadata {
        match self {
            Self::Bounds(error) => error.metadata(),
            Self::Conflict { generation } => {
                Metadata::from([("generation".to_owned(), generation.to_string())])
            }
            Self::Store(_) => Metadata::new(),
        }
    }
}

/// The bounds were there a moment ago; should they not be, the assignment is not used.
fn unreachable_bound(findings: &mut Vec<Finding>, error: &terms::Error) -> Option<Assignment> {
    findings.push(Finding(error.to_string()));
    None
}
