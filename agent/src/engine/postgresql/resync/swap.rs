//! The copy takes the place of the old data, shows that it streams, or makes room for them again.
//!
//! | marker | what may lie there | goes on to |
//! | --- | --- | --- |
//! | swapping | `data` `data.new` · `data.old` `data.new` · `data` (`data.old`) | proving |
//! | proving | `data` (`data.old`) | clearing |
//! | clearing | `data` (part of `data.old`) | ready |
//! | returning | `data` `data.old` · `data.old` `data.new` · `data` `data.new` | ready, or as it was broken |

use std::path::PathBuf;
use std::time::Duration;

use holdfast_common::command::ResyncedBy;

use super::{DEED, FOLLOW_DEADLINE, PROOF_DEADLINE, State, Task};
use crate::engine::postgresql::history::Said;
use crate::engine::postgresql::layout::Marker;
use crate::engine::postgresql::render::Place;
use crate::engine::postgresql::{build, process, words};
use crate::engine::{Error, Resynced};

impl Task<'_> {
    /// Goes on with what was cut after a copy was complete. `None`: there is nothing of that, and `data` are again what they
    /// were before the copy.
    pub(super) async fn take_up(&self, marker: &mut Marker, said: &Said) -> Result<Option<Resynced>, Error> {
        match marker.state {
            State::Building | State::Ready | State::Rewinding | State::Emptied => return Ok(None),
            State::Swapping => {
                self.facts(marker, Some(said)).await.may_replace()?;
                self.swap(marker).await?;
            }
            State::Proving => {}
            State::Clearing => return self.take_up_clearing(marker).await,
            State::Returning => {
                self.facts(marker, Some(said)).await.may_replace()?;
                self.go_back(marker).await?;
                return Ok(None);
            }
        }
        let own = marker.resync.is_some_and(|resync| resync.command == self.work.command);
        let deadline = if own { PROOF_DEADLINE } else { FOLLOW_DEADLINE };
        match self.prove(marker.clone(), said, deadline).await {
            Ok(done) => Ok(Some(done)),
            Err(error) if own => Err(error),
            Err(_) => {
                self.work.check(DEED)?;
                self.facts(marker, Some(said)).await.may_stop()?;
                self.inner.stop(self.request.member.cluster_id).await?;
                self.facts(marker, Some(said)).await.may_replace()?;
                self.mark(marker, State::Returning).await?;
                self.go_back(marker).await?;
                Ok(None)
            }
        }
    }

    /// The copy of before is as good as any data; only who asked for that very copy has it done by it.
    async fn take_up_clearing(&self, marker: &mut Marker) -> Result<Option<Resynced>, Error> {
        self.clear().await?;
        if marker.resync.is_some_and(|resync| resync.command == self.work.command) {
            return self.finish(marker.clone(), ResyncedBy::Copied).await.map(Some);
        }
        self.mark(marker, State::Ready).await?;
        Ok(None)
    }

    /// Removes the old data. A half of them must never be gone back to: the marker says so before.
    async fn clear(&self) -> Result<(), Error> {
        let old = self.layout.data_old();
        process::refuse_users(&old).await?;
        self.work.say("removing the old data");
        let removed = self.inner.host.files().remove_tree(old).await;
        removed.map(drop).map_err(|error| Error::failed("remove the old data", error))
    }

    /// Puts the complete copy in the old data's place, and those beside it.
    pub(super) async fn swap(&self, marker: &mut Marker) -> Result<(), Error> {
        let (data, new, old) = self.places();
        self.refuse_users().await?;
        if self.is_there(&new).await? {
            if self.is_there(&data).await? {
                self.rename(&data, &old).await?;
            }
            self.rename(&new, &data).await?;
        }
        self.mark(marker, State::Proving).await
    }

    /// Puts the old data back in their place; the copy is removed.
    async fn go_back(&self, marker: &mut Marker) -> Result<(), Error> {
        let (data, new, old) = self.places();
        self.refuse_users().await?;
        if self.is_there(&old).await? {
            if self.is_there(&data).await? {
                build::discard(self.inner, &self.layout).await?;
                self.rename(&data, &new).await?;
            }
            self.rename(&old, &data).await?;
        }
        let broken = marker.resync.is_some_and(|resync| resync.broken);
        self.mark(marker, if broken { State::Rewinding } else { State::Ready }).await?;
        build::discard(self.inner, &self.layout).await
    }

    /// Starts the server on the copy; once that streams the old data are removed.
    pub(super) async fn prove(
        &self,
        mut marker: Marker,
        said: &Said,
        deadline: Duration,
    ) -> Result<Resynced, Error> {
        let Self { inner, layout, request, work } = self;
        let (member, source) = (&request.member, &request.source);
        let failed = |error| Error::failed("start on the copy", error);
        inner.write_configuration(member, &marker, Place::Data).await?;
        inner.unseal(layout).await?;
        inner.host.files().remove_file(layout.resting()).await.map_err(failed)?;
        self.may_start()?;
        work.say(format!("waiting for the copy to stream from {}", source.name));
        let started = inner.start(member).await;
        if started.is_err() || !self.wait_until_it_streams(deadline, Duration::ZERO).await? {
            let why = match started {
                Err(error) => holdfast_common::error::Chain(&error).to_string(),
                Ok(()) => words::last(&inner.host, layout).await,
            };
            let problem = format!(
                "the copy does not stream from {} ({why}); the data of before are kept as {}, and the next resync begins with them",
                source.name,
                layout.data_old().display()
            );
            return Err(Error::Wrong { deed: DEED.to_owned(), problem });
        }
        self.facts(&marker, Some(said)).await.may_stop()?;
        self.mark(&mut marker, State::Clearing).await?;
        self.clear().await?;
        self.finish(marker, ResyncedBy::Copied).await
    }

    fn places(&self) -> (PathBuf, PathBuf, PathBuf) {
        (self.layout.data(), self.layout.data_new(), self.layout.data_old())
    }

    async fn refuse_users(&self) -> Result<(), Error> {
        let (data, new, old) = self.places();
        for folder in [data, new, old] {
            process::refuse_users(&folder).await?;
        }
        Ok(())
    }

    async fn is_there(&self, path: &PathBuf) -> Result<bool, Error> {
        let found = self.inner.host.files().stat(path).await;
        found
            .map(|found| found.is_some())
            .map_err(|error| Error::failed("look at the member's folder", error))
    }

    async fn rename(&self, from: &PathBuf, to: &PathBuf) -> Result<(), Error> {
        let moved = self.inner.host.files().rename(from, to).await;
        moved.map_err(|error| Error::failed("put the copy in place", error))
    }
}
