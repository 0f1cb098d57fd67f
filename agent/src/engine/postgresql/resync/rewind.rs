//! One pg_rewind, between a mark that says that the data may be broken and its removal.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use holdfast_common::role::Role;
use tokio_util::sync::CancellationToken;

use super::relay::Relay;
use super::{DEED, State, Task};
use crate::engine::Error;
use crate::engine::postgresql::build::{self, Server};
use crate::engine::postgresql::copying::{COPY_DEADLINE, make_replica, progress};
use crate::engine::postgresql::history::Said;
use crate::engine::postgresql::layout::Marker;
use crate::engine::postgresql::render::Place;
use crate::engine::postgresql::{control, process};
use crate::host::exec::Program;

/// What pg_rewind says where it believes the source's control file, which names the timeline of before.
const NOTHING_TO_DO: &str = "no rewind required";

impl Task<'_> {
    /// Rewinds stopped data to where they fork from the source's, and makes them a replica's.
    ///
    /// # Errors
    /// Where it cannot be done, or broke: which of the two, the marker says.
    pub(super) async fn rewind(&self, marker: &mut Marker, said: &Said) -> Result<(), Error> {
        let Self { inner, layout, request, .. } = self;
        let unmet = |message: &str| Error::Unmet { check: "can_be_rewound", message: message.to_owned() };
        if marker.state != State::Ready {
            return Err(unmet(
                "a resync of its data was cut, which are broken now; only a full resync helps",
            ));
        }
        inner.write_configuration(&request.member, marker, Place::Data).await?;
        let (recovered, checkpointed) =
            tokio::join!(self.recover(marker), inner.checkpoint_at(marker, layout, &request.source));
        recovered.and(checkpointed)?;
        let timeline = self.timeline().await?;
        let fork = said.fork(&inner.lines(layout, timeline).await).filter(|_| timeline != said.timeline);
        let fork = fork.ok_or_else(|| {
            unmet("nothing tells where its log leaves the primary's; only a full resync helps")
        })?;
        let relay = Relay::open(inner, layout, &request.source, fork).await?;
        let rewound = self.rewind_over(&relay, marker, said).await;
        relay.close().await;
        rewound?;
        make_replica(inner, layout, Place::Data).await?;
        let found = build::identity(inner, layout, Place::Data).await?;
        if marker.system_identifier.as_ref() != Some(&found) {
            let problem = format!("the data are database system {found} now");
            return Err(Error::Wrong { deed: DEED.to_owned(), problem });
        }
        let removed = inner.host.files().remove_file(layout.resting()).await;
        removed.map_err(|error| Error::failed(DEED, error))?;
        inner.unseal(layout).await
    }

    async fn rewind_over(&self, relay: &Relay, marker: &mut Marker, said: &Said) -> Result<(), Error> {
        self.facts(marker, Some(said)).await.may_replace()?;
        self.work.check(DEED)?;
        self.mark(marker, State::Rewinding).await?;
        self.work.say(format!("rewinding to {}", self.request.source.name));
        self.run_pg_rewind(marker, relay).await
    }

    /// What a server does at its start after a crash; pg_rewind wants data that were stopped cleanly.
    async fn recover(&self, marker: &Marker) -> Result<(), Error> {
        let Self { inner, layout, work, .. } = self;
        let bytes =
            inner.host.files().read(layout.data().join("global/pg_control"), control::MAX_BYTES).await;
        let bytes = bytes.map_err(|error| Error::failed("read the control file", error))?;
        if control::is_stopped(&bytes) || inner.data_role(layout).await != Some(Role::Primary) {
            return Ok(());
        }
        work.say("recovering from its crash");
        process::remove_stale(&inner.host, layout).await?;
        let (data, version) = (layout.data(), &marker.engine_version);
        Server { inner, layout, data, version, work }.recover(marker.budget).await
    }

    async fn timeline(&self) -> Result<u64, Error> {
        let path = self.layout.data().join("global/pg_control");
        let bytes = self.inner.host.files().read(&path, control::MAX_BYTES).await;
        let bytes = bytes.map_err(|error| Error::failed("read the control file", error))?;
        let problem = "it is no control file of a known version".to_owned();
        let found = control::checkpoint(&bytes);
        found
            .map(|found| found.timeline)
            .ok_or_else(|| Error::Damaged { what: path.display().to_string(), problem })
    }

    /// To its end, whoever wants it cancelled: half of it is of no use.
    async fn run_pg_rewind(&self, marker: &Marker, relay: &Relay) -> Result<(), Error> {
        let Self { inner, layout, request, work } = self;
        let mut program = Program::new(inner.packages.program(&marker.engine_version, "pg_rewind"))
            // One call for all files, below, instead of one for each.
            .args(["--progress", "--no-ensure-shutdown", "--no-sync", "--source-server"])
            .arg(relay.conninfo())
            .arg("--target-pgdata")
            .arg(layout.data())
            // Where it is seen if it outlives this agent.
            .directory(layout.data())
            .deadline(COPY_DEADLINE);
        if let Some(owner) = inner.owner()? {
            program = program.owner(owner);
        }
        let message = format!("rewinding to {}", request.source.name);
        let lines = progress(work, message, Arc::new(AtomicU64::new(0)));
        let ended = inner.host.run_with_lines(program, lines, &CancellationToken::new()).await;
        let ended = ended.map_err(|error| Error::failed("rewind; only a full resync helps now", error))?;
        if [ended.stdout.text(), ended.stderr.text()].iter().any(|said| said.contains(NOTHING_TO_DO)) {
            let problem = "pg_rewind found nothing to do; only a full resync helps".to_owned();
            return Err(Error::Wrong { deed: "rewind".to_owned(), problem });
        }
        let synced = inner.host.files().sync_all(layout.data()).await;
        synced.map_err(|error| Error::failed("rewind; only a full resync helps now", error))
    }
}
