//! Removing a member's data, and only those.

use holdfast_common::command::DestroyMember;
use holdfast_common::id::ClusterId;

use super::layout::{self, Layout};
use super::{Inner, process};
use crate::engine::{Error, Work};
use crate::host::files::{Kind as FileKind, Removed};

impl Inner {
    pub(super) async fn destroy(&self, request: &DestroyMember, work: &Work) -> Result<bool, Error> {
        let cluster = request.cluster_id;
        let layout = self.layout(cluster);
        let left = self.remove_set_aside(cluster).await?;
        let failed = |error| Error::failed("look at the member's folder", error);
        let files = self.host.files();
        match files.stat(layout.root()).await.map_err(failed)? {
            None => return Ok(left),
            Some(stat) if stat.kind != FileKind::Directory => {
                let why = format!("{} is not a folder; remove it by hand", layout.root().display());
                return Err(Error::WouldDestroyData { why });
            }
            Some(_) => {}
        }
        self.confirm(&layout, request).await?;
        for data in [layout.data(), layout.data_new(), layout.data_old()] {
            let stat = files.stat(&data).await.map_err(failed)?;
            if stat.is_some_and(|stat| stat.kind != FileKind::Directory) {
                let why = format!("{} is not a folder; remove it by hand", data.display());
                return Err(Error::WouldDestroyData { why });
            }
        }
        work.say("stopping the server");
        self.stop(cluster).await?;
        process::wait_for_leftovers(&layout.data_new()).await?;
        process::refuse_users(&layout.data_old()).await?;
        let name = process::service_name(cluster)?;
        self.host.units().forget(&name).await.map_err(|error| Error::failed("forget the service", error))?;
        work.say("removing the data");
        let aside = layout.removed(work.command);
        files
            .rename(layout.root(), aside)
            .await
            .map_err(|error| Error::failed("set the data aside", error))?;
        self.remove_set_aside(cluster).await?;
        Ok(true)
    }

    /// `confirm` must be the name that was recorded when the data were made.
    async fn confirm(&self, layout: &Layout, request: &DestroyMember) -> Result<(), Error> {
        let files = self.host.files();
        match layout.read_marker(files, request.cluster_id).await? {
            Some(marker) if marker.cluster_name == request.confirm => Ok(()),
            Some(marker) => {
                Err(Error::NotConfirmed { given: request.confirm.clone(), recorded: marker.cluster_name })
            }
            None => {
                let failed = |error| Error::failed("look at the member's folder", error);
                let mut found = false;
                for data in [layout.data(), layout.data_new(), layout.data_old()] {
                    found |= files.stat(data).await.map_err(failed)?.is_some();
                }
                if !found {
                    return Ok(());
                }
                let why =
                    format!("{} holds data that no command of this agent made", layout.root().display());
                Err(Error::WouldDestroyData { why })
            }
        }
    }

    /// Removes what a destroy has set aside, also one that was cut.
    async fn remove_set_aside(&self, cluster: ClusterId) -> Result<bool, Error> {
        let failed = |error| Error::failed("remove the data", error);
        let files = self.host.files();
        let entries = match files.list(&self.settings.data_dir).await {
            Err(error) if error.is_not_found() => return Ok(false),
            other => other.map_err(failed)?,
        };
        let mut removed = false;
        for entry in entries.iter().filter(|entry| layout::is_removed(entry, cluster)) {
            let gone = files.remove_tree(self.settings.data_dir.join(&entry.name)).await.map_err(failed)?;
            removed |= gone == Removed::Now;
        }
        Ok(removed)
    }
}
