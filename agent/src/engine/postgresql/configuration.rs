//! Making files and slots what the assignment says.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use holdfast_common::assignment::{MemberAssignment, RoleAssignment};
use holdfast_common::budget::Budget;
use holdfast_common::report::EngineState;
use zeroize::Zeroizing;

use super::layout::{Layout, Marker};
use super::render::{self, Place, Subject};
use super::session::{self, Session};
use super::{Inner, parameters, process, words};
use crate::engine::room::Room;
use crate::engine::{Drift, Error, Observation};
use crate::host::files::Access;

const MAX_CONFIG_BYTES: u64 = 1024 * 1024;
/// Log files that are kept, of 16 MiB each.
const LOG_FILES: usize = 16;

/// A file of the configuration as it should be.
struct Wanted {
    path: PathBuf,
    contents: Zeroizing<Vec<u8>>,
    access: Access,
}

impl Inner {
    async fn wanted(
        &self,
        member: &MemberAssignment,
        marker: &Marker,
        place: Place,
    ) -> Result<Vec<Wanted>, Error> {
        let layout = self.layout(member.cluster_id);
        let receives =
            matches!(member.role, RoleAssignment::Replica { .. }) && !self.is_sealed(&layout).await;
        let local_users = self.local_users()?;
        let (node, budget) = (self.settings.node_id, self.within(marker.budget));
        let subject = Subject { member, node, layout: &layout, budget, local_users: &local_users, place };
        let credentials = self.credentials.borrow().clone();
        let secret = Access { mode: 0o600, owner: self.owner()? };
        let file = |path: PathBuf, text: &str, access| Wanted {
            path,
            contents: Zeroizing::new(text.as_bytes().to_vec()),
            access,
        };
        let mut wanted = vec![
            file(layout.tls().join("fleet.crt"), &credentials.fleet, Access::PUBLIC),
            file(layout.tls().join("node.crt"), &credentials.chain, Access::PUBLIC),
            file(layout.tls().join("node.key"), &credentials.key, secret),
            file(layout.conf().join("pg_ident.conf"), &render::identities(&subject), Access::PUBLIC),
            file(layout.conf().join("pg_hba.conf"), &render::access(&subject), Access::PUBLIC),
            file(layout.config_file(), &render::server(&subject), Access::PUBLIC),
        ];
        wanted.extend(receives.then(|| file(layout.receiver_key(), &credentials.key, secret)));
        Ok(wanted)
    }

    /// Of a disk that is nearly full nothing is counted on: the server keeps as little log as it can. Nor on memory that is gone.
    fn within(&self, budget: Budget) -> Budget {
        let budget = self.bearable(budget);
        match *self.room.borrow() {
            Room::Enough | Room::Scarce => budget,
            Room::Tight => Budget { disk_bytes: 0, ..budget },
        }
    }

    /// Writes what differs; whether anything did.
    pub(super) async fn write_configuration(
        &self,
        member: &MemberAssignment,
        marker: &Marker,
        place: Place,
    ) -> Result<bool, Error> {
        parameters::check(&member.parameters)?;
        self.ensure_seal_file(&self.layout(member.cluster_id)).await?;
        self.write_wanted(self.wanted(member, marker, place).await?).await
    }

    /// The same for what it proves itself with alone, so that it may ask others.
    pub(super) async fn write_certificates(
        &self,
        member: &MemberAssignment,
        marker: &Marker,
    ) -> Result<(), Error> {
        let (layout, mut wanted) =
            (self.layout(member.cluster_id), self.wanted(member, marker, Place::Data).await?);
        wanted.retain(|wanted| wanted.path.starts_with(layout.tls()) && wanted.path != layout.receiver_key());
        self.write_wanted(wanted).await.map(drop)
    }

    async fn write_wanted(&self, wanted: Vec<Wanted>) -> Result<bool, Error> {
        let mut changed = false;
        for wanted in wanted {
            if !self.is_current(&wanted).await? {
                let Wanted { path, contents, access } = wanted;
                let written = self.host.files().write(path, contents.to_vec(), access).await;
                written.map_err(|error| Error::failed("write the configuration", error))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    async fn is_current(&self, wanted: &Wanted) -> Result<bool, Error> {
        match self.host.files().read(&wanted.path, MAX_CONFIG_BYTES).await {
            Ok(found) => Ok(*Zeroizing::new(found) == *wanted.contents),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(Error::failed("read the configuration", error)),
        }
    }

    pub(super) async fn compare(
        &self,
        member: &MemberAssignment,
        observed: &Observation,
    ) -> Result<Drift, Error> {
        let (layout, marker) = self.complete(member.cluster_id).await?;
        parameters::check(&member.parameters)?;
        let mut drift = Drift { configuration: self.is_overridden(&layout).await?, ..Drift::NONE };
        for wanted in self.wanted(member, &marker, Place::Data).await? {
            drift.configuration |= !self.is_current(&wanted).await?;
        }
        if !drift.configuration {
            self.goes_by(member.cluster_id, marker.budget);
        }
        if observed.state == EngineState::Running && observed.role.is_some() {
            let session =
                self.session(member.cluster_id).await.map_err(|why| why.during("look at the slots"))?;
            let (missing, surplus) = self.slots(member, &session).await?;
            drift.admission = !(missing.is_empty() && surplus.is_empty());
        }
        Ok(drift)
    }

    pub(super) async fn configure(&self, member: &MemberAssignment) -> Result<(), Error> {
        let (layout, marker) = self.complete(member.cluster_id).await?;
        self.write_configuration(member, &marker, Place::Data).await?;
        self.end_overrides(&layout).await?;
        self.trim_log(&layout).await?;
        let name = process::service_name(member.cluster_id)?;
        if self.host.units().status(&name).await.is_running() {
            // Also when nothing was written: the agent may have been killed between a write and its reload.
            let session = self.session(member.cluster_id).await.map_err(|why| why.during("reload"))?;
            session.reload().await.map_err(|why| why.during("reload"))?;
            self.with_known(member.cluster_id, |known| {
                known.slow_at = None;
                known.reloads += 1;
            });
        }
        self.goes_by(member.cluster_id, marker.budget);
        Ok(())
    }

    /// Keeps the newest log files; the server makes a new one every day and every 16 MiB.
    async fn trim_log(&self, layout: &Layout) -> Result<(), Error> {
        let failed = |error| Error::failed("remove old log files", error);
        let entries = self.host.files().list(layout.log()).await.map_err(failed)?;
        // Names carry the time, so they sort by age.
        let names: Vec<_> = entries.into_iter().map(|entry| entry.name).collect();
        let logs: Vec<_> = names.iter().filter(|name| name.to_str().is_some_and(words::is_log)).collect();
        for old in logs.iter().take(logs.len().saturating_sub(LOG_FILES)) {
            self.host.files().remove_file(layout.log().join(old)).await.map_err(failed)?;
        }
        Ok(())
    }

    /// The slots that are missing, and those that nobody should have.
    async fn slots(
        &self,
        member: &MemberAssignment,
        session: &Session,
    ) -> Result<(Vec<String>, Vec<session::Slot>), Error> {
        let found = session.slots().await.map_err(|why| why.during("look at the slots"))?;
        // A replica that was primary before would keep log for its followers of then.
        let followers = render::others(member, self.settings.node_id)
            .filter(|_| matches!(member.role, RoleAssignment::Primary { .. }));
        let wanted: BTreeMap<String, String> =
            followers.map(|peer| (render::slot(peer.node_id), peer.name.to_string())).collect();
        self.note_slots(member.cluster_id, &wanted, &found);
        let sound: BTreeSet<&str> =
            found.iter().filter(|slot| !slot.lost).map(|slot| slot.name.as_str()).collect();
        let missing = wanted.keys().filter(|name| !sound.contains(name.as_str())).cloned().collect();
        let surplus =
            found.iter().filter(|slot| slot.lost || !wanted.contains_key(&slot.name)).cloned().collect();
        Ok((missing, surplus))
    }

    pub(super) async fn admit(&self, member: &MemberAssignment) -> Result<(), Error> {
        let session = self.session(member.cluster_id).await.map_err(|why| why.during("reach the server"))?;
        let (missing, surplus) = self.slots(member, &session).await?;
        for slot in surplus {
            session.drop_slot(&slot).await.map_err(|why| why.during("drop a slot"))?;
        }
        for name in missing {
            session.create_slot(&name).await.map_err(|why| why.during("make a slot"))?;
        }
        Ok(())
    }
}
