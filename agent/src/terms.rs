//! What the node has accepted and never goes back behind: the highest coordinator generation, the order of the newest
//! assignment, and for each cluster the highest term.
//!
//! Kept in two files, both written durably before anything that follows from them: one that is damaged or gone is made
//! anew from the other. With both lost the node knows no bound any more, so it accepts nothing that touches roles
//! until a person decides; it is never taken for a new node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use holdfast_common::assignment::Assignment;
use holdfast_common::error::{Chain, Classify, Metadata, Reason};
use holdfast_common::generation::Generation;
use holdfast_common::id::ClusterId;
use holdfast_common::term::Term;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::host::files::Files;
use crate::statefile::{self, Kind};

const KIND: Kind = Kind { name: "accepted", version: 1 };
const NAMES: [&str; 2] = ["accepted", "accepted.second"];
/// Clusters whose terms are remembered; those longest gone are forgotten first.
const MAX_CLUSTERS: usize = 1024;

/// The node's bounds, on disk. Changes are one at a time.
#[derive(Debug)]
pub struct Terms {
    files: Files,
    paths: [PathBuf; 2],
    kept: Mutex<Option<Accepted>>,
}

/// All bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    pub coordinator_generation: Generation,
    /// (coordinator generation, generation) of the newest assignment.
    pub assignment: (Generation, Generation),
    pub terms: BTreeMap<ClusterId, Term>,
}

/// What was found wrong at the start, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding(pub String);

/// Why something is not accepted. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("term {given} of cluster {cluster} is over: this node has accepted {accepted}")]
    StaleTerm { cluster: ClusterId, given: Term, accepted: Term },
    #[error("coordinator generation {given} is over: this node has obeyed {accepted}")]
    StaleCoordinator { given: Generation, accepted: Generation },
    #[error("assignment {given} is older than {accepted}, which this node has accepted")]
    StaleAssignment { given: Generation, accepted: Generation },
    #[error(
        "this node's record of accepted terms is damaged; it accepts no roles until a person removes the node and joins it anew"
    )]
    Damaged,
    #[error("keep the accepted terms")]
    Keep(#[from] statefile::Error),
}

// === impl Terms ===

impl Terms {
    /// Makes the record of a node that has accepted nothing. Part of joining: later its absence is damage.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub async fn create(files: &Files, folder: &Path) -> Result<(), statefile::Error> {
        for name in NAMES {
            statefile::write(files, &folder.join(name), KIND, &Accepted::default()).await?;
        }
        Ok(())
    }

    /// Reads the record, repairs one file from the other, and says what was wrong.
    ///
    /// # Errors
    /// Where the files cannot be read or repaired; damage is a finding.
    pub async fn open(files: Files, folder: &Path) -> Result<(Self, Vec<Finding>), statefile::Error> {
        let paths = NAMES.map(|name| folder.join(name));
        let mut findings = Vec::new();
        let mut read = [None, None];
        for (slot, path) in read.iter_mut().zip(&paths) {
            match statefile::read::<Accepted>(&files, path, KIND).await {
                Ok(Some(accepted)) => *slot = Some(accepted),
                Ok(None) => findings.push(Finding(format!("{} is missing", path.display()))),
                Err(error) if error.is_damage() => {
                    let aside = statefile::set_aside(&files, path).await?;
                    let error = Chain(&error).to_string();
                    findings.push(Finding(format!("{error}; it was set aside as {}", aside.display())));
                }
                Err(error) => return Err(error),
            }
        }
        let kept = match read {
            // Each bound by itself: whichever file was written last has no lower one.
            [Some(first), Some(second)] if first == second => Some(first),
            [Some(first), Some(second)] => Some(first.highest(&second)),
            [Some(one), None] | [None, Some(one)] => Some(one),
            [None, None] => None,
        };
        let terms = Self { files, paths, kept: Mutex::new(None) };
        if let Some(kept) = kept {
            terms.write(&kept).await?;
            *terms.kept.lock().await = Some(kept);
        }
        Ok((terms, findings))
    }

    /// What has been accepted; `None` where the record is lost.
    pub async fn accepted(&self) -> Option<Accepted> {
        self.kept.lock().await.clone()
    }

    /// Takes note of a command that is about to run.
    ///
    /// # Errors
    /// [`Error::StaleTerm`], [`Error::StaleCoordinator`], [`Error::Damaged`], or where it cannot be kept.
    pub async fn accept_command(
        &self,
        coordinator: Generation,
        cluster: Option<ClusterId>,
        term: Term,
    ) -> Result<(), Error> {
        let mut kept = self.kept.lock().await;
        let Some(accepted) = kept.as_ref() else {
            // What touches no role is harmless without the record.
            return if term == Term::NONE { Ok(()) } else { Err(Error::Damaged) };
        };
        accepted.check_coordinator(coordinator)?;
        let mut next = accepted.clone();
        next.coordinator_generation = coordinator;
        if let Some(cluster) = cluster.filter(|_| term != Term::NONE) {
            accepted.check_term(cluster, term)?;
            next.raise(cluster, term);
        }
        self.keep(&mut kept, next).await
    }

    /// Whether an assignment may be taken.
    ///
    /// # Errors
    /// As [`Terms::accept_command`], and [`Error::StaleAssignment`].
    pub async fn check_assignment(&self, assignment: &Assignment) -> Result<(), Error> {
        let kept = self.kept.lock().await;
        let accepted = kept.as_ref().ok_or(Error::Damaged)?;
        accepted.check_coordinator(assignment.coordinator_generation)?;
        if assignment.order() < accepted.assignment {
            let (given, accepted) = (assignment.generation, accepted.assignment.1);
            return Err(Error::StaleAssignment { given, accepted });
        }
        assignment.members.iter().try_for_each(|member| accepted.check_term(member.cluster_id, member.term))
    }

    /// Takes note of an assignment that is on the disk.
    ///
    /// # Errors
    /// Where it cannot be kept.
    pub async fn note_assignment(&self, assignment: &Assignment) -> Result<(), Error> {
        let mut kept = self.kept.lock().await;
        let mut next = kept.as_ref().ok_or(Error::Damaged)?.clone();
        next.coordinator_generation = next.coordinator_generation.max(assignment.coordinator_generation);
        next.assignment = next.assignment.max(assignment.order());
        for member in &assignment.members {
            next.raise(member.cluster_id, member.term);
        }
        next.forget_beyond(MAX_CLUSTERS, assignment);
        self.keep(&mut kept, next).await
    }

    async fn keep(&self, kept: &mut Option<Accepted>, next: Accepted) -> Result<(), Error> {
        if kept.as_ref() != Some(&next) {
            self.write(&next).await?;
            *kept = Some(next);
        }
        Ok(())
    }

    async fn write(&self, accepted: &Accepted) -> Result<(), statefile::Error> {
        for path in &self.paths {
            statefile::write(&self.files, path, KIND, accepted).await?;
        }
        Ok(())
    }
}

// === impl Accepted ===

impl Accepted {
    fn check_coordinator(&self, given: Generation) -> Result<(), Error> {
        let accepted = self.coordinator_generation;
        if given < accepted { Err(Error::StaleCoordinator { given, accepted }) } else { Ok(()) }
    }

    fn check_term(&self, cluster: ClusterId, given: Term) -> Result<(), Error> {
        match self.terms.get(&cluster) {
            Some(&accepted) if given < accepted => Err(Error::StaleTerm { cluster, given, accepted }),
            _ => Ok(()),
        }
    }

    fn raise(&mut self, cluster: ClusterId, term: Term) {
        let known = self.terms.entry(cluster).or_insert(term);
        *known = term.max(*known);
    }

    fn highest(mut self, other: &Self) -> Self {
        self.coordinator_generation = self.coordinator_generation.max(other.coordinator_generation);
        self.assignment = self.assignment.max(other.assignment);
        for (cluster, term) in &other.terms {
            self.raise(*cluster, *term);
        }
        self
    }

    /// Ids sort by time: the oldest clusters that are not assigned go first.
    fn forget_beyond(&mut self, most: usize, assignment: &Assignment) {
        let surplus = self.terms.len().saturating_sub(most);
        let gone: Vec<ClusterId> =
            self.terms.keys().filter(|id| assignment.member(**id).is_none()).take(surplus).copied().collect();
        for cluster in gone {
            self.terms.remove(&cluster);
        }
    }
}

// === impl Error ===

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::StaleTerm { .. } | Self::StaleCoordinator { .. } | Self::StaleAssignment { .. } => {
                Reason::StaleTerm
            }
            Self::Damaged => Reason::StateDamaged,
            Self::Keep(error) => error.reason(),
        }
    }

    fn metadata(&self) -> Metadata {
        match self {
            Self::StaleTerm { cluster, given, accepted } => Metadata::from([
                ("cluster".to_owned(), cluster.to_string()),
                ("given".to_owned(), given.to_string()),
                ("accepted".to_owned(), accepted.to_string()),
            ]),
            Self::StaleCoordinator { given, accepted } | Self::StaleAssignment { given, accepted } => {
                Metadata::from([
                    ("given".to_owned(), given.to_string()),
                    ("accepted".to_owned(), accepted.to_string()),
                ])
            }
            Self::Damaged | Self::Keep(_) => Metadata::new(),
        }
    }
}
