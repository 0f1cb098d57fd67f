//! A copy of another member's data in `data.new`, as a replica's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_common::assignment::{MemberAssignment, Peer};
use holdfast_common::command::Progress;
use tokio::time::Instant;

use super::layout::Layout;
use super::render::{self, Place};
use super::{Inner, build};
use crate::engine::{Copied, Error, Work};
use crate::host::exec::{self, LineSink, Program, Stream};
use crate::host::files::Access;

/// A copy ends with its command's deadline, which cancels it; this is only the last resort.
pub(super) const COPY_DEADLINE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the source may take to let this member in: it learns of it from its own assignment.
const ADMISSION_DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// What a copy is made with.
#[derive(Debug)]
pub(super) struct Copying<'a> {
    pub(super) inner: &'a Inner,
    pub(super) layout: &'a Layout,
    pub(super) member: &'a MemberAssignment,
    pub(super) source: &'a Peer,
    pub(super) work: &'a Work,
}

// === impl Copying ===

impl Copying<'_> {
    /// Copies into an empty `data.new`, and makes that a replica's. What is left of a failure is the caller's to remove.
    pub(super) async fn run(&self) -> Result<Copied, Error> {
        let Self { inner, layout, member, source, work } = self;
        work.say(format!("copying from {}", source.name));
        let bytes = self.admitted().await?;
        let found = build::identity(inner, layout, Place::New).await?;
        if let Some(expected) = member.system_identifier.as_ref().filter(|expected| **expected != found) {
            let message =
                format!("{} has database system {found}, but the cluster's is {expected}", source.name);
            return Err(Error::Unmet { check: "system_identifier", message });
        }
        make_replica(inner, layout, Place::New).await?;
        Ok(Copied { system_identifier: found, bytes })
    }

    /// Copies as soon as the source lets this member in; returns the number of bytes.
    async fn admitted(&self) -> Result<u64, Error> {
        let Self { inner, layout, source, work, .. } = self;
        let until = Instant::now() + ADMISSION_DEADLINE;
        let deed = || format!("copy from {}", source.name);
        loop {
            match self.base_backup().await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => {
                    work.check("copy")?;
                    if !is_not_yet(&error) {
                        return Err(Error::failed(deed(), error));
                    }
                    if Instant::now() >= until {
                        return Err(Error::Unavailable { deed: deed(), source: error.into() });
                    }
                }
            }
            work.say(format!("waiting for {} to let this node in", source.name));
            tokio::time::sleep(PAUSE).await;
            let (files, access) = (inner.host.files(), Access { mode: 0o700, owner: inner.owner()? });
            let failed = |error| Error::failed("empty the unfinished copy", error);
            files.remove_tree(layout.data_new()).await.map_err(failed)?;
            files.create_dir(layout.data_new(), access).await.map_err(failed)?;
        }
    }

    async fn base_backup(&self) -> Result<u64, exec::Error> {
        let Self { inner, layout, member, source, work } = self;
        let mut program = Program::new(inner.packages.program(&member.engine_version, "pg_basebackup"))
            .arg("--pgdata")
            .arg(layout.data_new())
            .arg("--dbname")
            .arg(render::conninfo(source, layout, render::COPY_NAME))
            .args(["--wal-method=stream", "--checkpoint=fast", "--progress", "--no-password", "--slot"])
            .arg(render::slot(inner.settings.node_id))
            // Where it is seen if it outlives this agent.
            .directory(layout.data_new())
            .deadline(COPY_DEADLINE);
        if let Ok(Some(owner)) = inner.owner() {
            program = program.owner(owner);
        }
        let done = Arc::new(AtomicU64::new(0));
        let lines = progress(work, format!("copying from {}", source.name), Arc::clone(&done));
        inner.host.run_with_lines(program, lines, &work.cancelled).await?;
        Ok(done.load(Ordering::Relaxed))
    }
}

/// Makes data that nobody runs on a replica's.
pub(super) async fn make_replica(inner: &Inner, layout: &Layout, place: Place) -> Result<(), Error> {
    let (files, access) = (inner.host.files(), Access { mode: 0o600, owner: inner.owner()? });
    let failed = |error| Error::failed("make the data a replica's", error);
    let data = layout.place(place);
    // What a superuser of the source has set for the source alone.
    files.write(data.join("postgresql.auto.conf"), Vec::new(), access).await.map_err(failed)?;
    files.write(data.join("standby.signal"), Vec::new(), access).await.map_err(failed)
}

/// Tells what PostgreSQL's programs say of their progress, and counts the bytes.
pub(super) fn progress(work: &Work, message: String, counter: Arc<AtomicU64>) -> LineSink {
    let teller = work.clone();
    Box::new(move |stream, line: &str| {
        if stream == Stream::Stderr
            && let Some((copied, total)) = parse_progress(line)
        {
            counter.store(copied, Ordering::Relaxed);
            let (done_bytes, total_bytes) = (Some(copied), Some(total.max(copied)));
            teller.tell(Progress { message: message.clone(), done_bytes, total_bytes });
        }
    })
}

/// Whether the source may let this member in a little later.
fn is_not_yet(error: &exec::Error) -> bool {
    const SIGNS: &[&str] = &[
        "Connection refused",
        "does not exist",
        "starting up",
        "shutting down",
        "no pg_hba.conf entry",
        "pg_hba.conf rejects",
        "certificate authentication failed",
        "is active for PID",
    ];
    matches!(error, exec::Error::Exit { stderr, .. } if SIGNS.iter().any(|sign| stderr.contains(sign)))
}

/// Bytes copied and to be copied, from `  23176/31185 kB (74%), 0/1 tablespace`.
fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (copied, rest) = line.trim_start().split_once('/')?;
    let (total, _) = rest.split_once(" kB")?;
    Some((copied.parse::<u64>().ok()?.checked_mul(1024)?, total.parse::<u64>().ok()?.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_in_bytes() {
        let line = " 23176/31185 kB (74%), 0/1 tablespace (...data.new/base/1)";
        assert_eq!(parse_progress(line), Some((23176 * 1024, 31185 * 1024)));
        assert_eq!(parse_progress(" 4096/8192 kB (50%) copied"), Some((4096 * 1024, 8192 * 1024)));
        assert_eq!(parse_progress("waiting for checkpoint"), None);
        assert_eq!(parse_progress("-1/x kB"), None);
    }
}
