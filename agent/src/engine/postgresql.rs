//! PostgreSQL, from Debian's packages.
//!
//! | part | answers for |
//! | --- | --- |
//! | [`packages`] | versions and extensions: what is here, what can be installed |
//! | [`layout`] | where a member's files lie, and the marker that says whose they are |
//! | [`tuning`], [`parameters`], [`render`] | the configuration, from assignment and machine (pure) |
//! | [`machine`] | what of the machine a member counts on, and whether that still fits |
//! | [`configuration`] | files and slots as the assignment says |
//! | [`build`], [`copying`], [`removal`] | making data: a new database, a copy; removing them |
//! | [`resync`] | making a replica's data what the primary's are |
//! | [`history`] | whose log continues whose |
//! | [`upgrade`] | packages under members that run |
//! | [`process`] | starting, stopping with proof, who uses the data |
//! | [`roles`] | made primary, sealed, stopped for another, made a replica again |
//! | [`observation`] | what is true of a member now |
//! | [`troubles`] | what is not as it should be with its replication |
//! | [`words`] | why a server ended, or does not receive |
//! | [`session`] | what is asked of a running server |
//! | [`checks`] | whether a member could be made here |

mod build;
mod checks;
mod configuration;
mod control;
mod copying;
mod floor;
mod history;
mod layout;
mod machine;
mod observation;
mod overrides;
mod packages;
mod parameters;
mod process;
mod removal;
mod render;
mod resync;
mod roles;
mod session;
mod sql_names;
mod troubles;
mod tuning;
mod upgrade;
mod words;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_common::assignment::MemberAssignment;
use holdfast_common::budget::Budget;
use holdfast_common::command::{
    CheckMember, CheckedMember, CloneMember, DestroyMember, InitialiseMember, InstallEngine, ResyncMember,
    RetuneMember, SetPassword, UpgradeEngine,
};
use holdfast_common::engine::{Engine as Kind, EngineVersion};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::protocol::Tail;
use holdfast_common::question::{Retuning, Upgrades};
use holdfast_common::role::Role;
use holdfast_common::set_aside::{Answer, Question};
use holdfast_common::telemetry::{EngineOffer, Privilege};
use holdfast_common::term::Term;
use tokio::sync::watch;
use tokio::time::Instant;
use zeroize::Zeroizing;

pub use packages::{DEBIAN_PROGRAMS, SYSTEM_FOLDERS};

use self::layout::{Layout, Marker};
use self::packages::Packages;
use self::process::Start;
use self::session::{NoAnswer, Session};
use super::room::Room;
use super::{Copied, Deed, Drift, Engine, Error, LocalMember, Observation, Resynced, Waker, Work};
use crate::host::Host;
use crate::host::system::Owner;

/// The user that owns the data where the agent is root.
pub const ENGINE_USER: &str = "postgres";

/// The driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Postgresql {
    inner: Arc<Inner>,
}

/// What the driver is told of its node.
#[derive(Debug, Clone)]
pub struct Settings {
    pub node_id: NodeId,
    /// Where the others reach this node. With a loopback address it shares the machine with other nodes.
    pub address: IpAddr,
    /// Below it the members lie; one of the host's roots, or below one.
    pub data_dir: PathBuf,
    /// Where the engine's programs are: [`DEBIAN_PROGRAMS`].
    pub programs: PathBuf,
    /// What all members together may count on; `None`: the machine's memory.
    pub memory_bytes: Option<u64>,
}

/// What a member proves itself with, and whom it trusts, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The node's certificate and what leads to its root.
    pub chain: String,
    pub key: Zeroizing<String>,
    /// The fleet's roots.
    pub fleet: String,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    host: Host,
    packages: Packages,
    credentials: watch::Receiver<Arc<Credentials>>,
    /// On the disk of the data.
    room: watch::Receiver<Room>,
    members: Mutex<BTreeMap<ClusterId, Known>>,
    machine: Mutex<machine::Watch>,
    waker: OnceLock<Waker>,
}

/// What is remembered of a member between two looks.
#[derive(Debug, Default, Clone)]
struct Known {
    session: Option<Arc<Session>>,
    /// Of a primary, when it was looked at last.
    term: Option<Term>,
    slow_at: Option<Instant>,
    pending_restart: Vec<String>,
    refused_settings: Vec<String>,
    /// How often the server was made to read its configuration anew: what was asked before that is out of date.
    reloads: u64,
    build_at: Option<Instant>,
    installed_build: Option<String>,
    size_at: Option<Instant>,
    data_bytes: Option<u64>,
    care: troubles::Care,
}

// === impl Postgresql ===

impl Postgresql {
    pub fn new(
        settings: Settings,
        host: Host,
        credentials: watch::Receiver<Arc<Credentials>>,
        room: watch::Receiver<Room>,
    ) -> Self {
        let packages = Packages::new(host.clone(), settings.programs.clone());
        let (members, machine, waker) = (Mutex::default(), Mutex::default(), OnceLock::new());
        let inner = Inner { settings, host, packages, credentials, room, members, machine, waker };
        Self { inner: Arc::new(inner) }
    }

    /// Undoes what an installation that was cut left on the machine. To be called once when the agent starts.
    ///
    /// # Errors
    /// If the machine's own files cannot be put back.
    pub async fn recover(&self) -> Result<(), Error> {
        self.inner.packages.recover().await
    }
}

impl Engine for Postgresql {
    fn kind(&self) -> Kind {
        Kind::Postgresql
    }

    fn set_waker(&self, waker: Waker) {
        let first = self.inner.waker.set(waker).is_ok();
        assert!(first, "the waker is told once");
    }

    fn offers(&self) -> Deed<'_, Vec<EngineOffer>> {
        self.inner.packages.offers().boxed()
    }

    fn check<'a>(&'a self, request: &'a CheckMember) -> Deed<'a, CheckedMember> {
        checks::check(&self.inner, request).boxed()
    }

    fn install<'a>(&'a self, request: &'a InstallEngine, work: &'a Work) -> Deed<'a, String> {
        self.inner.packages.install(&request.engine_version, &request.extensions, work).boxed()
    }

    fn upgrades(&self, cluster: ClusterId) -> Deed<'_, Upgrades> {
        self.inner.upgrades(cluster).boxed()
    }

    fn upgrade<'a>(&'a self, request: &'a UpgradeEngine, work: &'a Work) -> Deed<'a, String> {
        self.inner.upgrade(request, work).boxed()
    }

    fn retuning(&self, cluster: ClusterId) -> Deed<'_, Retuning> {
        self.inner.retuning(cluster).boxed()
    }

    fn retune<'a>(&'a self, request: &'a RetuneMember) -> Deed<'a, Budget> {
        self.inner.retune(request).boxed()
    }

    fn note_resized(&self, cluster: ClusterId) -> Deed<'_, bool> {
        self.inner.note_resized(cluster).boxed()
    }

    fn initialise<'a>(&'a self, request: &'a InitialiseMember, work: &'a Work) -> Deed<'a, String> {
        build::initialise(&self.inner, request, work).boxed()
    }

    fn copy_from<'a>(&'a self, request: &'a CloneMember, work: &'a Work) -> Deed<'a, Copied> {
        build::copy(&self.inner, request, work).boxed()
    }

    fn resync<'a>(&'a self, request: &'a ResyncMember, work: &'a Work) -> Deed<'a, Resynced> {
        resync::resync(&self.inner, request, work).boxed()
    }

    fn set_aside<'a>(&'a self, cluster: ClusterId, question: &'a Question) -> Deed<'a, Answer> {
        self.inner.answer_about_log(cluster, question).boxed()
    }

    fn destroy<'a>(&'a self, request: &'a DestroyMember, work: &'a Work) -> Deed<'a, bool> {
        self.inner.destroy(request, work).boxed()
    }

    fn set_password<'a>(&'a self, request: &'a SetPassword) -> Deed<'a, ()> {
        self.inner.set_password(request).boxed()
    }

    fn members(&self) -> Deed<'_, Vec<LocalMember>> {
        self.inner.members().boxed()
    }

    fn observe(&self, cluster: ClusterId) -> BoxFuture<'_, Observation> {
        self.inner.observe(cluster).boxed()
    }

    fn probe(&self, cluster: ClusterId) -> Deed<'_, ()> {
        self.inner.probe(cluster).boxed()
    }

    fn compare<'a>(&'a self, member: &'a MemberAssignment, observed: &'a Observation) -> Deed<'a, Drift> {
        self.inner.compare(member, observed).boxed()
    }

    fn configure<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()> {
        self.inner.configure(member).boxed()
    }

    fn admit<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()> {
        self.inner.admit(member).boxed()
    }

    fn start<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()> {
        self.inner.start(member).boxed()
    }

    fn stop(&self, cluster: ClusterId) -> Deed<'_, ()> {
        self.inner.stop(cluster).boxed()
    }

    fn halt(&self, cluster: ClusterId) -> Deed<'_, ()> {
        self.inner.halt(cluster).boxed()
    }

    fn checkpoint(&self, cluster: ClusterId) -> Deed<'_, ()> {
        self.inner.checkpoint(cluster).boxed()
    }

    fn rest(&self, cluster: ClusterId) -> Deed<'_, Tail> {
        self.inner.rest(cluster).boxed()
    }

    fn seal(&self, cluster: ClusterId) -> Deed<'_, Tail> {
        self.inner.seal(cluster).boxed()
    }

    fn lead<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()> {
        self.inner.lead(member).boxed()
    }

    fn follow<'a>(&'a self, member: &'a MemberAssignment) -> Deed<'a, ()> {
        self.inner.follow(member).boxed()
    }
}

// === impl Credentials ===

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

// === impl Inner ===

impl Inner {
    fn layout(&self, cluster: ClusterId) -> Layout {
        Layout::new(&self.settings.data_dir, cluster)
    }

    /// Who owns the data: `None` is the agent's own user.
    fn owner(&self) -> Result<Option<Owner>, Error> {
        if self.host.system().privilege() != Privilege::Root {
            return Ok(None);
        }
        let found = self.host.system().user(ENGINE_USER);
        let message = "user postgres does not exist; install the engine first".to_owned();
        match found.map_err(|error| Error::failed("look for the engine's user", error))? {
            Some(owner) => Ok(Some(owner)),
            None => Err(Error::Unmet { check: "engine_installed", message }),
        }
    }

    fn local_users(&self) -> Result<BTreeSet<String>, Error> {
        let own = nix::unistd::User::from_uid(nix::unistd::geteuid());
        let own = own.map_err(|errno| Error::failed("look for the agent's user", errno))?;
        let engine = (self.host.system().privilege() == Privilege::Root).then(|| ENGINE_USER.to_owned());
        Ok(own.map(|user| user.name).into_iter().chain(engine).collect())
    }

    async fn require_installed(&self, version: &EngineVersion) -> Result<(), Error> {
        if self.packages.is_installed(version).await? {
            return Ok(());
        }
        let message = format!("PostgreSQL {version} is not installed; install it first");
        Err(Error::Unmet { check: "engine_installed", message })
    }

    async fn complete(&self, cluster: ClusterId) -> Result<(Layout, Marker), Error> {
        let layout = self.layout(cluster);
        match layout.read_marker(self.host.files(), cluster).await? {
            Some(marker) if marker.state.is_usable() => Ok((layout, marker)),
            Some(_) | None => Err(Error::Absent { cluster }),
        }
    }

    // --- the process

    async fn start(&self, member: &MemberAssignment) -> Result<(), Error> {
        let (layout, marker) = self.complete(member.cluster_id).await?;
        self.require_installed(&marker.engine_version).await?;
        let owner = self.owner()?;
        layout
            .create(self.host.files(), owner)
            .await
            .map_err(|error| Error::failed("make the folders", error))?;
        self.write_floor(member, &layout, &marker).await?;
        // It tells of the stop before this start.
        let removed = self.host.files().remove_file(layout.resting()).await;
        removed.map_err(|error| Error::failed("forget the last stop", error))?;
        let start = Start {
            host: &self.host,
            layout: &layout,
            name: process::service_name(member.cluster_id)?,
            description: format!("PostgreSQL {} of cluster {}", marker.engine_version, marker.cluster_name),
            program: &self.packages.program(&marker.engine_version, "postgres"),
            owner,
        };
        start.run().await
    }

    async fn stop(&self, cluster: ClusterId) -> Result<(), Error> {
        self.forget(cluster);
        process::stop(&self.host, &self.layout(cluster), &process::service_name(cluster)?).await
    }

    async fn halt(&self, cluster: ClusterId) -> Result<(), Error> {
        self.forget(cluster);
        process::halt(&self.host, &self.layout(cluster), &process::service_name(cluster)?).await
    }

    async fn set_password(&self, request: &SetPassword) -> Result<(), Error> {
        sql_names::check("user", &request.user, sql_names::USERS)?;
        self.complete(request.cluster_id).await?;
        let deed = "set the password";
        let session = self.session(request.cluster_id).await.map_err(|why| why.during(deed))?;
        if session.observe().await.map_err(|why| why.during(deed))?.role != Some(Role::Primary) {
            let message = "the member is no primary; send it to the primary's node".to_owned();
            return Err(Error::Unmet { check: "runs_as_primary", message });
        }
        let known = session.set_password(request.user.as_str(), request.password.as_str()).await;
        if known.map_err(|why| why.during(deed))? {
            return Ok(());
        }
        let message = format!("`{}` is no user of this database", request.user.as_str());
        Err(Error::Field { field: "user".to_owned(), message })
    }

    async fn members(&self) -> Result<Vec<LocalMember>, Error> {
        let entries = match self.host.files().list(&self.settings.data_dir).await {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            other => other.map_err(|error| Error::failed("list the members", error))?,
        };
        let mut found = Vec::new();
        for cluster in entries.iter().filter_map(layout::cluster_of) {
            match self.layout(cluster).read_marker(self.host.files(), cluster).await {
                Ok(Some(marker)) => found.push(LocalMember {
                    cluster_id: cluster,
                    cluster_name: marker.cluster_name,
                    complete: marker.state.is_usable(),
                }),
                Ok(None) => {}
                Err(error) => tracing::warn!(%cluster, %error, "a member's marker cannot be read"),
            }
        }
        Ok(found)
    }

    /// The kept connection, or a new one.
    async fn session(&self, cluster: ClusterId) -> Result<Arc<Session>, NoAnswer> {
        let kept = self.with_known(cluster, |known| known.session.clone());
        if let Some(session) = kept.filter(|session| !session.is_closed()) {
            return Ok(session);
        }
        let session = Arc::new(self.connect(cluster).await?);
        self.with_known(cluster, |known| {
            *known = Known { session: Some(Arc::clone(&session)), ..Known::default() };
        });
        Ok(session)
    }

    async fn connect(&self, cluster: ClusterId) -> Result<Session, NoAnswer> {
        let layout = self.layout(cluster);
        let entries = self.host.files().list(layout.run()).await.map_err(|_| NoAnswer::Nobody)?;
        let port = |name: &str| name.strip_prefix(".s.PGSQL.")?.parse::<u16>().ok();
        let port = entries.iter().find_map(|entry| port(entry.name.to_str()?)).ok_or(NoAnswer::Nobody)?;
        Session::connect(&layout, port, self.waker.get().cloned()).await
    }

    fn with_known<T>(&self, cluster: ClusterId, look: impl FnOnce(&mut Known) -> T) -> T {
        look(self.members.lock().unwrap_or_else(PoisonError::into_inner).entry(cluster).or_default())
    }

    fn forget(&self, cluster: ClusterId) {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).remove(&cluster);
    }
}
