//! Where a member's files lie, and the marker that says whose they are.
//!
//! ```text
//! <data-dir>/<cluster id>/      the agent's; 0755
//!   member.json                 the marker: which cluster, made by which command, how far
//!   resized.json                the machine's size that somebody was told of
//!   resting                     the term of a primary that was stopped for another to take over
//!   conf/                       the agent's: what the server reads and may not change
//!   data/                       the database, the engine user's; never changed by the agent while it is complete, but rewound
//!   data.new/                   a copy that is being made; renamed to data/ when it is complete
//!   data.old/                   what a resync has replaced, until the copy in data/ streams
//!   set-aside/<time>-<timeline>/  log that perhaps only this member had, and what it is: summary.json
//!   tls/  run/  log/            keys and certificates, the socket, the log
//!   relay/                      while it is rewound: the socket over which pg_rewind reaches the primary
//! <data-dir>/<cluster id>.removed-<command>   what a destroy has set aside and is removing
//! ```

use std::path::{Path, PathBuf};

use holdfast_common::budget::Budget;
use holdfast_common::command::ResyncedBy;
use holdfast_common::engine::EngineVersion;
use holdfast_common::id::{ClusterId, CommandId};
use holdfast_common::name::ClusterName;
use serde::{Deserialize, Serialize};

use super::render::Place;
use crate::engine::Error;
use crate::host::files::{self, Access, Entry, Files, Kind};
use crate::host::system::Owner;

/// A Unix socket's path has room for 107 bytes.
pub(super) const MAX_SOCKET_BYTES: usize = 107;
const MARKER: &str = "member.json";
const MAX_MARKER_BYTES: u64 = 64 * 1024;
const SCHEMA: u32 = 1;
const REMOVED: &str = ".removed-";

/// The paths of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    root: PathBuf,
}

/// Whose data these are, and how far they are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marker {
    pub(super) schema: u32,
    pub(super) cluster_id: ClusterId,
    pub(super) cluster_name: ClusterName,
    pub(super) engine_version: EngineVersion,
    /// The command that makes, or made, the data.
    pub(super) made_by: CommandId,
    pub(super) origin: Origin,
    pub(super) state: State,
    /// Known as soon as the data in `data.new` are complete.
    pub(super) system_identifier: Option<String>,
    pub(super) copied_bytes: Option<u64>,
    /// What of the machine the member may count on; decided when it is made or retuned, so that a new neighbour changes nothing.
    pub(super) budget: Budget,
    /// The whole machine when that was decided; `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) machine: Option<Budget>,
    /// The last resync, under way or done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) resync: Option<Resync>,
}

/// A resync, as far as it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resync {
    pub(super) command: CommandId,
    pub(super) copied_bytes: u64,
    pub(super) set_aside_bytes: u64,
    /// The data that it replaces cannot be started.
    pub(super) broken: bool,
    /// Once it is done.
    pub(super) how: Option<ResyncedBy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Origin {
    Initialised,
    Cloned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Building,
    Ready,
    /// Being rewound. Whoever finds it does not know how far that came: they are never started.
    Rewinding,
    /// Removed, or being removed, for a copy for which there is no room beside them.
    Emptied,
    /// `data` becomes `data.old`, and `data.new`, which is complete, becomes `data`.
    Swapping,
    /// `data` is a copy that has not streamed yet; `data.old` is what was there before.
    Proving,
    /// `data` is a copy that has streamed; `data.old` is being removed, and nobody goes back to it.
    Clearing,
    /// `data.old` becomes `data` again.
    Returning,
}

// === impl Layout ===

impl Layout {
    pub(super) fn new(data_dir: &Path, cluster: ClusterId) -> Self {
        Self { root: data_dir.join(cluster.to_string()) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(super) fn data_new(&self) -> PathBuf {
        self.root.join("data.new")
    }

    pub(super) fn data_old(&self) -> PathBuf {
        self.root.join("data.old")
    }

    pub(super) fn set_aside(&self) -> PathBuf {
        self.root.join("set-aside")
    }

    pub(super) fn place(&self, place: Place) -> PathBuf {
        match place {
            Place::Data => self.data(),
            Place::New => self.data_new(),
        }
    }

    pub(super) fn conf(&self) -> PathBuf {
        self.root.join("conf")
    }

    pub(super) fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    pub(super) fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    pub(super) fn relay(&self) -> PathBuf {
        self.root.join("relay")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// What the server says before its own log begins.
    pub(super) fn early_log(&self) -> PathBuf {
        self.log().join("postmaster.log")
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.conf().join("postgresql.conf")
    }

    /// The key with which a replica proves itself to its primary: not there while it is to receive from nobody.
    pub(super) fn receiver_key(&self) -> PathBuf {
        self.tls().join("receiver.key")
    }

    /// What the configuration includes at its end: whether the replica is to receive from nobody.
    pub(super) fn sealed(&self) -> PathBuf {
        self.conf().join("sealed.conf")
    }

    /// What it includes before that: what a replica must have, whatever is declared.
    pub(super) fn floor(&self) -> PathBuf {
        self.conf().join("floor.conf")
    }

    /// In which term a primary was that was stopped for another to take over.
    pub(super) fn resting(&self) -> PathBuf {
        self.root.join("resting")
    }

    /// Of which size of the machine somebody was told.
    pub(super) fn resized(&self) -> PathBuf {
        self.root.join("resized.json")
    }

    pub(super) fn marker(&self) -> PathBuf {
        self.root.join(MARKER)
    }

    pub(super) fn socket(&self, port: u16) -> PathBuf {
        self.run().join(format!(".s.PGSQL.{port}"))
    }

    /// Where a destroy sets the member aside.
    pub(super) fn removed(&self, command: CommandId) -> PathBuf {
        let mut name = self.root.clone().into_os_string();
        name.push(format!("{REMOVED}{command}"));
        name.into()
    }

    /// # Errors
    /// `PRECONDITION_FAILED` if the socket's path would be too long.
    pub(super) fn check_socket(&self) -> Result<(), Error> {
        let bytes = self.socket(u16::MAX).as_os_str().len();
        if bytes <= MAX_SOCKET_BYTES {
            return Ok(());
        }
        let room = MAX_SOCKET_BYTES - (bytes - self.root.parent().map_or(0, |dir| dir.as_os_str().len()));
        let message = format!(
            "the data directory's path is too long for a Unix socket; use one of at most {room} bytes"
        );
        Err(Error::Unmet { check: "socket_path", message })
    }

    /// Makes the folders that do not hold the database.
    pub(super) async fn create(&self, files: &Files, owner: Option<Owner>) -> Result<(), files::Error> {
        let private = Access { mode: 0o700, owner };
        files.create_dir(self.root(), Access::PUBLIC_DIR).await?;
        files.create_dir(self.conf(), Access::PUBLIC_DIR).await?;
        files.create_dir(self.tls(), Access::PUBLIC_DIR).await?;
        files.create_dir(self.run(), private).await?;
        files.create_dir(self.log(), private).await
    }

    /// The marker, if the member has one.
    ///
    /// # Errors
    /// `STATE_DAMAGED` if there is one that cannot be trusted.
    pub(super) async fn read_marker(
        &self,
        files: &Files,
        cluster: ClusterId,
    ) -> Result<Option<Marker>, Error> {
        let path = self.marker();
        let bytes = match files.read(&path, MAX_MARKER_BYTES).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other.map_err(|error| Error::failed("read the member's marker", error))?,
        };
        let damaged = |problem: String| Error::Damaged { what: path.display().to_string(), problem };
        let marker: Marker = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        match () {
            () if marker.schema != SCHEMA => {
                Err(damaged(format!("its schema {} is not known", marker.schema)))
            }
            () if marker.cluster_id != cluster => {
                Err(damaged(format!("it names cluster {}", marker.cluster_id)))
            }
            () => Ok(Some(marker)),
        }
    }

    pub(super) async fn write_marker(&self, files: &Files, marker: &Marker) -> Result<(), Error> {
        let bytes =
            serde_json::to_vec_pretty(marker).map_err(|error| Error::failed("render the marker", error))?;
        let written = files.write(self.marker(), bytes, Access::PRIVATE).await;
        written.map_err(|error| Error::failed("write the member's marker", error))
    }
}

// === impl Marker ===

impl Marker {
    pub(super) fn new(
        cluster_id: ClusterId,
        cluster_name: ClusterName,
        engine_version: EngineVersion,
        made_by: CommandId,
        origin: Origin,
        (budget, machine): (Budget, Budget),
    ) -> Self {
        Self {
            schema: SCHEMA,
            cluster_id,
            cluster_name,
            engine_version,
            made_by,
            origin,
            state: State::Building,
            system_identifier: None,
            copied_bytes: None,
            budget,
            machine: Some(machine),
            resync: None,
        }
    }
}

// === impl State ===

impl State {
    /// Whether `data` can be started.
    pub(super) const fn is_usable(self) -> bool {
        match self {
            Self::Ready | Self::Proving | Self::Clearing => true,
            Self::Building | Self::Rewinding | Self::Emptied | Self::Swapping | Self::Returning => false,
        }
    }
}

/// The cluster that an entry of the data directory belongs to.
pub(super) fn cluster_of(entry: &Entry) -> Option<ClusterId> {
    if entry.kind != Kind::Directory { None } else { entry.name.to_str()?.parse().ok() }
}

/// Whether an entry of the data directory is what a destroy of this cluster has set aside.
pub(super) fn is_removed(entry: &Entry, cluster: ClusterId) -> bool {
    entry.name.to_str().is_some_and(|name| name.starts_with(&format!("{cluster}{REMOVED}")))
}
