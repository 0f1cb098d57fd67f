//! What the machine has, how much of it a member's settings go by, and whether that still fits.
//!
//! A member keeps what was decided when it was made, so that a new neighbour, or a machine that was resized, changes nothing of a
//! server by itself; only retuning decides anew. One exception: a server that would claim more memory at its start than the machine
//! can bear is given less, and that is said.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use holdfast_common::budget::{Budget, Tuning};
use holdfast_common::command::RetuneMember;
use holdfast_common::id::ClusterId;
use holdfast_common::question::{Retuning, SettingChange};
use tokio::time::Instant;

use super::layout::Marker;
use super::{Inner, tuning};
use crate::engine::Error;
use crate::host::files::Access;

/// How often the machine is looked at.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// For how long a size must last to count: memory that comes and goes with a balloon's pressure does not.
const STEADY_AFTER: Duration = Duration::from_secs(60);
const MAX_NOTE_BYTES: u64 = 4096;

/// What is remembered of the machine between two looks.
#[derive(Debug, Default)]
pub(super) struct Watch {
    last: Option<Look>,
    steady: Steady,
    /// By which budgets the settings in the files go, where that was looked at.
    applied: BTreeMap<ClusterId, Budget>,
}

/// The machine at one moment.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    machine: Budget,
    available_bytes: u64,
    members: usize,
}

/// The size that has lasted.
#[derive(Debug, Default)]
struct Steady {
    size: Option<Budget>,
    /// Another one, and since when.
    other: Option<(Budget, Instant)>,
}

// === impl Steady ===

impl Steady {
    /// Takes in a size; returns the one that has lasted: the first counts at once.
    fn note(&mut self, size: Budget, now: Instant) -> Budget {
        let kept = *self.size.get_or_insert(size);
        if kept == size {
            self.other = None;
            return kept;
        }
        let (other, since) = self.other.filter(|(other, _)| *other == size).unwrap_or((size, now));
        self.other = Some((other, since));
        if now.duration_since(since) < STEADY_AFTER {
            return kept;
        }
        (self.size, self.other) = (Some(size), None);
        size
    }
}

// === impl Inner ===

impl Inner {
    /// What all members together may count on.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.settings.memory_bytes.unwrap_or_else(|| self.host.system().size().memory_bytes)
    }

    /// What a member that is made or retuned now is to count on, beside those that are here; and the whole machine.
    pub(super) async fn budget(&self, cluster: ClusterId) -> Result<(Budget, Budget), Error> {
        let Look { machine, available_bytes, .. } = self.measure().await?;
        let neighbours = self.members().await?.iter().filter(|member| member.cluster_id != cluster).count();
        let own = self.with_known(cluster, |known| known.data_bytes).unwrap_or(0);
        Ok((tuning::share(machine, available_bytes.saturating_add(own), neighbours), machine))
    }

    async fn measure(&self) -> Result<Look, Error> {
        let space = self.host.files().space(&self.settings.data_dir).await;
        let space = space.map_err(|error| Error::failed("measure the disk", error))?;
        let members = self.members().await?.len();
        let cores = self.host.system().size().cores;
        let machine = Budget { memory_bytes: self.memory_bytes(), cores, disk_bytes: space.total_bytes };
        Ok(Look { at: Instant::now(), machine, available_bytes: space.available_bytes, members })
    }

    fn watch<T>(&self, look: impl FnOnce(&mut Watch) -> T) -> T {
        look(&mut self.machine.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The machine as it was a moment ago.
    async fn look(&self) -> Result<Look, Error> {
        let last = self.watch(|watch| watch.last);
        if let Some(look) = last.filter(|look| look.at.elapsed() < LOOK_PERIOD) {
            return Ok(look);
        }
        let look = self.measure().await?;
        Ok(self.watch(|watch| {
            let machine = watch.steady.note(look.machine, look.at);
            *watch.last.insert(Look { machine, ..look })
        }))
    }

    /// The files say what follows from this budget, and a running server has been told.
    pub(super) fn goes_by(&self, cluster: ClusterId, budget: Budget) {
        self.watch(|watch| watch.applied.insert(cluster, budget));
    }

    pub(super) fn applied(&self, cluster: ClusterId) -> Option<Budget> {
        self.watch(|watch| watch.applied.get(&cluster).copied())
    }

    pub(super) async fn tuning(
        &self,
        cluster: ClusterId,
        marker: &Marker,
        applied: Option<Budget>,
    ) -> Option<Tuning> {
        let kept = applied?;
        let Look { machine, available_bytes, members, .. } = self.look().await.ok()?;
        let own = self.with_known(cluster, |known| known.data_bytes).unwrap_or(0);
        let available_bytes = available_bytes.saturating_add(own);
        let possible = tuning::share(machine, available_bytes, members.saturating_sub(1));
        let possible = tuning::instead(marker.budget, possible);
        let resized = match marker.machine {
            Some(then) => then.differs_noticeably(machine),
            None => marker.budget.differs_noticeably(possible),
        };
        Some(Tuning { kept, possible, resized })
    }

    /// What a server can be started with on the machine as it is.
    pub(super) fn bearable(&self, budget: Budget) -> Budget {
        let members = self.watch(|watch| watch.last.map_or(1, |look| look.members.max(1)));
        let parts = u64::try_from(members).unwrap_or(u64::MAX);
        tuning::bearable(budget, self.memory_bytes() / parts)
    }

    /// What is to be said of a member whose machine has become too small for its settings.
    pub(super) fn starved(&self, marker: &Marker) -> Option<String> {
        let given = self.bearable(marker.budget);
        (given != marker.budget).then(|| {
            let mebibytes = |budget: Budget| budget.memory_bytes >> 20;
            format!(
                "the machine has too little memory for its settings: they count on {} MiB, and it is started with those for {} MiB",
                mebibytes(marker.budget),
                mebibytes(given)
            )
        })
    }

    pub(super) async fn retuning(&self, cluster: ClusterId) -> Result<Retuning, Error> {
        let (_, marker) = self.complete(cluster).await?;
        let possible = tuning::instead(marker.budget, self.budget(cluster).await?.0);
        let (before, after) = (tuning::all(marker.budget), tuning::all(possible));
        let changes = before.into_iter().zip(after).filter(|(before, after)| before != after);
        let changes = changes
            .map(|((name, from), (_, to))| SettingChange { name: name.to_owned(), from, to })
            .collect();
        Ok(Retuning { kept: marker.budget, possible, changes })
    }

    pub(super) async fn retune(&self, request: &RetuneMember) -> Result<Budget, Error> {
        let cluster = request.cluster_id;
        let (layout, marker) = self.complete(cluster).await?;
        // What was decided for another machine is compared with what is possible.
        let (budget, machine) = match request.budget {
            Some(budget) => (budget, None),
            None => {
                let (possible, machine) = self.budget(cluster).await?;
                (tuning::instead(marker.budget, possible), Some(machine))
            }
        };
        let files = self.host.files();
        layout.write_marker(files, &Marker { budget, machine, ..marker }).await?;
        let forgotten = files.remove_file(layout.resized()).await;
        forgotten.map_err(|error| Error::failed("forget the machine's earlier size", error))?;
        Ok(budget)
    }

    pub(super) async fn note_resized(&self, cluster: ClusterId) -> Result<bool, Error> {
        let (layout, _) = self.complete(cluster).await?;
        let machine = self.look().await?.machine;
        let told = self.host.files().read(layout.resized(), MAX_NOTE_BYTES).await.ok();
        // One that cannot be read is none: it is told once more.
        let told: Option<Budget> = told.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if told.is_some_and(|told| !told.differs_noticeably(machine)) {
            return Ok(false);
        }
        let bytes =
            serde_json::to_vec(&machine).map_err(|error| Error::failed("note the machine's size", error))?;
        let written = self.host.files().write(layout.resized(), bytes, Access::PRIVATE).await;
        written.map_err(|error| Error::failed("note the machine's size", error))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_counts_once_it_has_lasted_and_the_first_at_once() {
        let begun = Instant::now();
        let size = |memory_bytes| Budget { memory_bytes, cores: 2, disk_bytes: 1 };
        let mut steady = Steady::default();
        let mut at =
            |seconds, bytes| steady.note(size(bytes), begun + Duration::from_secs(seconds)).memory_bytes;
        assert_eq!(at(0, 8), 8);
        assert_eq!(at(10, 4), 8);
        assert_eq!(at(60, 5), 8, "yet another one");
        assert_eq!(at(119, 5), 8);
        assert_eq!(at(120, 5), 5);
        assert_eq!(at(130, 8), 5);
        assert_eq!(at(140, 5), 5);
        assert_eq!(at(200, 8), 5, "it begins anew");
    }
}
