//! What a replica must not have less of than its primary had when it wrote the log that the replica has: with less it refuses to
//! start. Its own control file says how much that is, so it is started with so much, whatever is declared.
//!
//! Asked only before a start, because none of it changes in a running server. What stands in `floor.conf` is told as waiting for a
//! restart, by which the member gets what is declared: once its primary has that too.

use std::time::Duration;

use holdfast_common::assignment::MemberAssignment;
use holdfast_common::role::Role;
use tokio_util::sync::CancellationToken;

use super::Inner;
use super::layout::{Layout, Marker};
use super::render::Lines;
use super::tuning;
use crate::engine::Error;
use crate::host::exec::Program;
use crate::host::files::Access;

const CONTROL_DEADLINE: Duration = Duration::from_secs(10);
const HEADER: &str = "# Written by Holdfast before a start: what this replica's log was written with, where less is declared.\n";
/// The names of parameters, and what pg_controldata calls them.
const BOUND: [(&str, &str, u64); 4] = [
    ("max_connections", "max_connections setting:", 0),
    ("max_worker_processes", "max_worker_processes setting:", 0),
    ("max_prepared_transactions", "max_prepared_xacts setting:", 0),
    ("max_locks_per_transaction", "max_locks_per_xact setting:", 64),
];

impl Inner {
    /// Writes for the start that follows how much of each there must be; nothing for a primary.
    pub(super) async fn write_floor(
        &self,
        member: &MemberAssignment,
        layout: &Layout,
        marker: &Marker,
    ) -> Result<(), Error> {
        let replica = self.data_role(layout).await == Some(Role::Replica);
        let text = if replica {
            let control = self.control(layout, marker).await?;
            floor(&control, |name| declared(member, marker, name))
        } else {
            HEADER.to_owned()
        };
        let written = self.host.files().write(layout.floor(), text.into_bytes(), Access::PUBLIC).await;
        written.map_err(|error| Error::failed("write the configuration", error))
    }

    /// The lines for all of which its log was written with more than this.
    pub(super) async fn lacking(
        &self,
        layout: &Layout,
        marker: &Marker,
        own: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<String>, Error> {
        let text = floor(&self.control(layout, marker).await?, own);
        Ok(text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
    }

    async fn control(&self, layout: &Layout, marker: &Marker) -> Result<String, Error> {
        let program = Program::new(self.packages.program(&marker.engine_version, "pg_controldata"))
            .arg(layout.data())
            .deadline(CONTROL_DEADLINE);
        let said = self.host.run(program, &CancellationToken::new()).await;
        Ok(said.map_err(|error| Error::failed("read the control file", error))?.stdout.text())
    }
}

/// Of which parameters there must be enough.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    BOUND.iter().map(|(name, _, _)| *name)
}

fn declared(member: &MemberAssignment, marker: &Marker, name: &str) -> Option<String> {
    if let Some(value) = member.parameters.get(name) {
        return Some(value.to_owned());
    }
    let own = tuning::settings(marker.budget);
    own.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// The lines for all of which the control file names more than is declared.
fn floor(control: &str, declared: impl Fn(&str) -> Option<String>) -> String {
    let mut out = Lines(HEADER.to_owned());
    for (name, label, default) in BOUND {
        let found = control.lines().find_map(|line| line.strip_prefix(label)?.trim().parse::<u64>().ok());
        // One that is written in another way than a plain number is compared by nobody: the log's own is safe.
        let own = declared(name).map_or(Some(default), |value| value.trim().parse().ok());
        if let Some(found) = found.filter(|found| own.is_none_or(|own| own < *found)) {
            out.text(name, &found.to_string());
        }
    }
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: &str = "pg_control version number:            1300\n\
                           max_connections setting:              200\n\
                           max_worker_processes setting:         32\n\
                           max_wal_senders setting:              20\n\
                           max_prepared_xacts setting:           0\n\
                           max_locks_per_xact setting:           64\n";

    fn with(name: &str, value: &str) -> Vec<String> {
        let own = |asked: &str| (asked == name).then(|| value.to_owned());
        let own = |asked: &str| own(asked).or_else(|| (asked == "max_worker_processes").then(|| "32".into()));
        floor(CONTROL, own).lines().skip(1).map(str::to_owned).collect()
    }

    #[test]
    fn a_replica_has_at_least_what_its_log_was_written_with() {
        assert_eq!(with("max_connections", "100"), ["max_connections = '200'"]);
        assert!(with("max_connections", "200").is_empty());
        assert!(with("max_connections", "300").is_empty());
        assert_eq!(with("max_connections", "1e2"), ["max_connections = '200'"]);
    }
}
