//! Making a replica's data what the primary's are: by following, by rewinding, by a copy.
//!
//! ```text
//! guard ─► follow? ─ its log is all in the source's, or it streams ──────────────────────────► followed
//!            │ no
//!            ▼
//!  stop ─► guard ─► log set aside ─► marker: rewinding ─► pg_rewind ─► replica ─► marker: ready ─► rewound
//!                        │                                    │ fails, or its mark was found
//!                        ▼                                    ▼
//!                  data.new copied (in place: marker: emptied ─► data removed, before) ◄─┘
//!                        ▼
//!  guard ─► marker: swapping ─► data ─► data.old, data.new ─► data ─► marker: proving ─► started, streams
//!                                                                        ▼
//!                                marker: clearing ─► data.old removed ─► marker: ready ─► copied
//! ```
//!
//! Up to the swap a failure leaves the old data as they were (a rewinding that broke: unusable), from there the new ones, with the
//! old ones beside them until they stream. Whoever comes next, this command or another, goes on from the marker. What is
//! allowed is decided by the [wipe guard](holdfast_common::protocol::wipe), asked anew before each of these steps.

mod aside;
mod kept;
mod relay;
mod rewind;
mod swap;

use std::time::Duration;

use holdfast_common::assignment::{Exposure, MemberAssignment, Power, RoleAssignment};
use holdfast_common::command::{ResyncMember, ResyncMode, ResyncedBy};
use holdfast_common::protocol::wipe::{Facts, Process, Refusal, Systems};
use holdfast_common::role::Role;
use tokio::time::{Instant, sleep};

use self::aside::Aside;
use super::copying::Copying;
use super::history::{Relation, Said};
use super::layout::{Layout, Marker, Resync, State};
use super::render::Place;
use super::{Inner, build, control, parameters, process};
use crate::engine::{Copied, Error, Resynced, Work};
use crate::host::files::{Access, Kind};

/// How long a server that may be able to follow is given to do so.
const FOLLOW_DEADLINE: Duration = Duration::from_secs(if cfg!(test) { 8 } else { 30 });
/// For how long it must stream. One whose log is gone from its primary does so for a moment again and again, until it is told.
const STEADY: Duration = Duration::from_secs(1);
/// How long a new copy may take to replay what was written meanwhile, and to stream.
const PROOF_DEADLINE: Duration = Duration::from_secs(if cfg!(test) { 20 } else { 5 * 60 });
const PAUSE: Duration = Duration::from_millis(100);
const DEED: &str = "resync";

pub(super) async fn resync(inner: &Inner, request: &ResyncMember, work: &Work) -> Result<Resynced, Error> {
    let cluster = request.member.cluster_id;
    let layout = inner.layout(cluster);
    let marker = match layout.read_marker(inner.host.files(), cluster).await? {
        Some(marker) if marker.state != State::Building => marker,
        Some(_) | None => return Err(Error::Absent { cluster }),
    };
    Task { inner, layout, request, work }.run(marker).await
}

/// One resync at work.
struct Task<'a> {
    inner: &'a Inner,
    layout: Layout,
    request: &'a ResyncMember,
    work: &'a Work,
}

// === impl Task ===

impl Task<'_> {
    async fn run(&self, mut marker: Marker) -> Result<Resynced, Error> {
        let Self { inner, request: ResyncMember { member, source, mode, .. }, .. } = self;
        if let Some(done) = self.done_before(&marker) {
            return Ok(done);
        }
        parameters::check(&member.parameters)?;
        inner.require_installed(&marker.engine_version).await?;
        self.require_folders().await?;
        if !marker.state.is_usable() {
            // No server runs on such data, but who was rewinding them may still be at it.
            process::wait_for_leftovers(&self.layout.data()).await?;
        }
        // A primary does not even ask: its own word is enough.
        match self.facts(&marker, None).await.may_stop() {
            Ok(()) | Err(Refusal::NoSource) => {}
            Err(refusal) => return Err(refusal.into()),
        }
        if let RoleAssignment::Replica { upstream } = &member.role
            && upstream != source
        {
            let message = "is not whom the member is to follow".to_owned();
            return Err(Error::Field { field: "source".to_owned(), message });
        }
        self.may_start()?;
        self.work.check(DEED)?;
        inner.write_certificates(member, &marker).await?;
        let said = inner.ask_about_log(&marker, &self.layout, source).await?;
        self.facts(&marker, Some(&said)).await.may_stop()?;
        if let Some(done) = self.take_up(&mut marker, &said).await? {
            return Ok(done);
        }
        if marker.state == State::Ready {
            if *mode == ResyncMode::Full {
                self.require_room().await?;
            } else if self.follows(&said).await? {
                return self.finish(marker, ResyncedBy::Followed).await;
            }
        }
        self.replace(marker, &said).await
    }

    /// Sets the log aside, and rewinds or copies.
    async fn replace(&self, mut marker: Marker, said: &Said) -> Result<Resynced, Error> {
        let mode = self.request.mode;
        // Of one that streams all of the log is the source's.
        let streamed = marker.state == State::Ready && self.streams().await;
        self.facts(&marker, Some(said)).await.may_stop()?;
        if self.inner.host.units().status(&self.service()?).await.is_running() {
            self.work.say("stopping the server");
        }
        let cluster = self.request.member.cluster_id;
        if streamed && mode == ResyncMode::Full {
            // What it has in memory it would write for nothing: it is replaced, and until then its log is enough to begin from.
            self.inner.halt(cluster).await?;
        } else {
            self.inner.stop(cluster).await?;
        }
        self.facts(&marker, Some(said)).await.may_replace()?;
        self.work.check(DEED)?;
        if marker.state == State::Ready {
            let set_aside_bytes =
                if streamed || self.is_prefix(said).await? { 0 } else { self.set_aside(said).await? };
            let command = self.work.command;
            marker.resync =
                Some(Resync { command, copied_bytes: 0, set_aside_bytes, broken: false, how: None });
        } else if let Some(resync) = &mut marker.resync {
            // What could be set aside was, before the data were touched.
            (resync.command, resync.broken) = (self.work.command, true);
        }
        if mode == ResyncMode::Full {
            return self.copy(marker, said).await;
        }
        match self.rewind(&mut marker, said).await {
            Ok(()) => self.finish(marker, ResyncedBy::Rewound).await,
            Err(error) if mode == ResyncMode::Rewind => Err(error),
            Err(error) => {
                self.work.check(DEED)?;
                let error = holdfast_common::error::Chain(&error).to_string();
                tracing::warn!(cluster = %self.request.member.cluster_id, %error, "it cannot be rewound; it is copied");
                self.work.say(format!("copying all of it: {error}"));
                self.copy(marker, said).await
            }
        }
    }

    /// A link or a file in the place of data is a person's doing.
    async fn require_folders(&self) -> Result<(), Error> {
        let Self { inner, layout, .. } = self;
        for data in [layout.data(), layout.data_new(), layout.data_old()] {
            let stat = inner.host.files().stat(&data).await;
            let stat = stat.map_err(|error| Error::failed("look at the member's folder", error))?;
            if stat.is_some_and(|stat| stat.kind != Kind::Directory) {
                let why = format!("{} is not a folder", data.display());
                return Err(Error::WouldDestroyData { why });
            }
        }
        Ok(())
    }

    /// What the guard goes by, at this moment.
    async fn facts(&self, marker: &Marker, said: Option<&Said>) -> Facts {
        let Self { inner, layout, request: ResyncMember { member, source, .. }, work } = self;
        Facts {
            term: member.term,
            role: member.role.role(),
            node: inner.settings.node_id,
            source: source.node_id,
            record: work.around().standing(member.cluster_id),
            engine: self.process().await,
            systems: Systems {
                expected: member.system_identifier.clone(),
                recorded: marker.system_identifier.clone(),
                found: build::identity(inner, layout, Place::Data).await.ok(),
                source: said.map(|said| said.system.clone()),
            },
        }
    }

    /// Who uses the data, and as what.
    async fn process(&self) -> Process {
        let Self { inner, layout, request, .. } = self;
        let cluster = request.member.cluster_id;
        let Ok(name) = self.service() else { return Process::Unknown };
        let runs = inner.host.units().status(&name).await.is_running();
        match process::users_of(&layout.data()).await {
            Ok(users) if users.is_empty() && !runs => return Process::Gone,
            Ok(_) if runs => {}
            Ok(_) | Err(_) => return Process::Unknown,
        }
        let said = match inner.session(cluster).await {
            Ok(session) => session.is_replica().await.ok(),
            Err(_) => None,
        };
        match said {
            Some(true) => Process::Replica,
            Some(false) => Process::Primary,
            // One that does not answer is still a replica if it was started as one: what says so goes before it takes writes.
            None if inner.data_role(layout).await == Some(Role::Replica) && !self.in_production().await => {
                Process::Replica
            }
            None => Process::Unknown,
        }
    }

    async fn in_production(&self) -> bool {
        let path = self.layout.data().join("global/pg_control");
        let bytes = self.inner.host.files().read(path, control::MAX_BYTES).await;
        bytes.map_or(true, |bytes| control::in_production(&bytes))
    }

    /// Whether a server of this member may run at all.
    fn may_start(&self) -> Result<(), Error> {
        let MemberAssignment { power, exposure, cluster_id, .. } = &self.request.member;
        if *power == Power::Stopped {
            let message = "the member is to be stopped, and only a server that runs shows that its data are right; start it first";
            return Err(Error::Unmet { check: "is_to_run", message: message.to_owned() });
        }
        if *exposure == Exposure::OnlyFiltered && !self.work.around().covers(*cluster_id) {
            return Err(Error::NotNow { why: "its access rules are not in the kernel".to_owned() });
        }
        Ok(())
    }

    /// Lets it follow if that is all it needs.
    async fn follows(&self, said: &Said) -> Result<bool, Error> {
        let Self { inner, layout, request, .. } = self;
        let member = &request.member;
        match inner.data_role(layout).await {
            Some(Role::Replica) => {
                match inner.follow(member).await {
                    // A server that takes no connections may be one that waits for log that nobody has any more.
                    Ok(()) | Err(Error::Unavailable { .. }) => {}
                    Err(error) => return Err(error),
                }
                // Whoever ends at once cannot follow.
                if inner.start(member).await.is_err() {
                    return Ok(false);
                }
                self.work.say(format!("waiting for it to stream from {}", request.source.name));
                // What it could not receive from another one is nothing to go by.
                inner.forget_silence(member.cluster_id);
                self.wait_until_it_streams(FOLLOW_DEADLINE, STEADY).await
            }
            Some(Role::Primary) if self.is_prefix(said).await? => inner.follow(member).await.map(|()| true),
            Some(Role::Primary) | None => Ok(false),
        }
    }

    /// Whether the log of stopped data is known to be all in the source's.
    async fn is_prefix(&self, said: &Said) -> Result<bool, Error> {
        let Self { inner, layout, .. } = self;
        let Ok(Some(end)) = inner.clean_end(layout).await else { return Ok(false) };
        Ok(said.relation(&inner.lines(layout, end.era).await, end) == Relation::Prefix)
    }

    /// Whether it receives from the source now.
    async fn streams(&self) -> bool {
        let ResyncMember { member, source, .. } = self.request;
        match self.inner.session(member.cluster_id).await {
            Ok(session) => session.streams_from(source.name.as_ref(), source.port).await.unwrap_or(false),
            Err(_) => false,
        }
    }

    /// # Errors
    /// `CANCELLED`.
    async fn wait_until_it_streams(&self, deadline: Duration, steady: Duration) -> Result<bool, Error> {
        let until = Instant::now() + deadline;
        let mut since = None;
        loop {
            since = if self.streams().await { since.or_else(|| Some(Instant::now())) } else { None };
            if since.is_some_and(|since| since.elapsed() >= steady) {
                return Ok(true);
            }
            self.work.check(DEED)?;
            if Instant::now() >= until || self.inner.cannot_follow(self.request.member.cluster_id) {
                return Ok(false);
            }
            sleep(PAUSE).await;
        }
    }

    async fn set_aside(&self, said: &Said) -> Result<u64, Error> {
        self.work.say("setting its log aside");
        let Self { inner, layout, .. } = self;
        Aside { files: inner.host.files(), layout, owner: inner.owner()?, now: jiff::Timestamp::now() }
            .keep(|timeline| async move { said.fork(&inner.lines(layout, timeline).await) })
            .await
    }

    /// A copy beside the old data, or in their place.
    async fn copy(&self, mut marker: Marker, said: &Said) -> Result<Resynced, Error> {
        let Self { inner, layout, request, work } = self;
        let ResyncMember { member, source, in_place, .. } = request;
        let files = inner.host.files();
        let failed = |error| Error::failed("make room for the copy", error);
        build::discard(inner, layout).await?;
        if !in_place && marker.state != State::Emptied {
            self.require_room().await?;
        }
        self.facts(&marker, Some(said)).await.may_replace()?;
        work.check(DEED)?;
        if *in_place {
            self.mark(&mut marker, State::Emptied).await?;
        }
        if marker.state == State::Emptied {
            files.remove_tree(layout.data()).await.map_err(failed)?;
        }
        let access = Access { mode: 0o700, owner: inner.owner()? };
        files.create_dir(layout.data_new(), access).await.map_err(failed)?;
        let copied = Copying { inner, layout, member, source, work }.run().await;
        let copied = match copied {
            Ok(Copied { bytes, .. }) => work.check(DEED).map(|()| bytes),
            Err(error) => Err(error),
        };
        let bytes = match copied {
            Ok(bytes) => bytes,
            Err(error) => {
                // Nothing of it is of use; what cannot be removed now is by the next attempt.
                let _left = build::discard(inner, layout).await;
                return Err(error);
            }
        };
        process::refuse_users(&layout.data_new()).await?;
        self.facts(&marker, Some(said)).await.may_replace()?;
        let broken = marker.state != State::Ready;
        if let Some(resync) = &mut marker.resync {
            (resync.copied_bytes, resync.broken) = (bytes, broken);
        }
        self.mark(&mut marker, State::Swapping).await?;
        self.swap(&mut marker).await?;
        self.prove(marker, said, PROOF_DEADLINE).await
    }

    /// # Errors
    /// `PRECONDITION_FAILED` (`room_for_a_copy`) where the disk has none beside the old data, with what helps.
    async fn require_room(&self) -> Result<(), Error> {
        if self.request.in_place {
            return Ok(());
        }
        let (files, failed) = (self.inner.host.files(), |error| Error::failed("measure the disk", error));
        let old = files.size(self.layout.data()).await.map_err(failed)?;
        let needed = old.saturating_add(old / 10);
        let free = files.space(self.layout.root()).await.map_err(failed)?.available_bytes;
        if free >= needed {
            return Ok(());
        }
        let (needed, free) = (needed >> 20, free >> 20);
        let message = format!(
            "a copy beside the old data needs about {needed} MiB, and {free} MiB are free; free some, or resync in place \
             (`--in-place`), which removes the old data first"
        );
        Err(Error::Unmet { check: "room_for_a_copy", message })
    }

    fn service(&self) -> Result<crate::host::units::ServiceName, Error> {
        process::service_name(self.request.member.cluster_id)
    }

    async fn mark(&self, marker: &mut Marker, state: State) -> Result<(), Error> {
        marker.state = state;
        self.layout.write_marker(self.inner.host.files(), marker).await
    }

    /// What this very command came to before.
    fn done_before(&self, marker: &Marker) -> Option<Resynced> {
        let resync = marker.resync.filter(|resync| resync.command == self.work.command)?;
        let done = marker.state == State::Ready;
        resync.how.filter(|_| done).map(|how| self.result(marker, how))
    }

    async fn finish(&self, mut marker: Marker, how: ResyncedBy) -> Result<Resynced, Error> {
        let command = self.work.command;
        let none = Resync { command, copied_bytes: 0, set_aside_bytes: 0, broken: false, how: None };
        let kept = marker.resync.filter(|resync| how != ResyncedBy::Followed && resync.how.is_none());
        marker.resync = Some(Resync { command, broken: false, how: Some(how), ..kept.unwrap_or(none) });
        self.mark(&mut marker, State::Ready).await?;
        Ok(self.result(&marker, how))
    }

    fn result(&self, marker: &Marker, how: ResyncedBy) -> Resynced {
        Resynced {
            how,
            system_identifier: marker.system_identifier.clone().unwrap_or_default(),
            copied_bytes: marker.resync.map_or(0, |resync| resync.copied_bytes),
            set_aside_bytes: marker.resync.map_or(0, |resync| resync.set_aside_bytes),
        }
    }
}
