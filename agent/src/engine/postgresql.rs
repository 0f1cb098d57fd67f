//! PostgreSQL, from Debian's packages.
//!
//! | part | answers for |
//! | --- | --- |
//! | [`packages`] | versions and extensions: what is here, what can be installed |
//! | [`layout`] | where a member's files lie, and the marker that says whose they are |
//! | [`tuning`], [`parameters`], [`render`] | the configuration, from assignment and machine (pure) |
//! | [`build`] | making data: a new database, a copy |
//! | [`process`] | starting, stopping with proof, who uses the data |
//! | [`words`] | why a server ended |
//! | [`session`] | what is asked of a running server |
//! | [`checks`] | whether a member could be made here |

mod build;
mod checks;
mod control;
mod layout;
mod packages;
mod parameters;
mod process;
mod render;
mod session;
mod sql_names;
mod tuning;
mod words;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_common::assignment::MemberAssignment;
use holdfast_common::command::{
    CheckMember, CheckedMember, CloneMember, DestroyMember, InitialiseMember, InstallEngine, SetPassword,
};
use holdfast_common::engine::{Engine as Kind, EngineVersion};
use holdfast_common::id::{ClusterId, NodeId};
use holdfast_common::report::EngineState;
use holdfast_common::role::Role;
use holdfast_common::telemetry::{EngineOffer, Privilege};
use tokio::sync::watch;
use tokio::time::Instant;
use zeroize::Zeroizing;

pub use packages::{DEBIAN_PROGRAMS, SYSTEM_FOLDERS};
pub use tuning::Budget;

use self::layout::{Layout, Marker, State};
use self::packages::Packages;
use self::process::Start;
use self::render::{Place, Subject};
use self::session::{NoAnswer, Session};
use super::{Copied, Deed, Drift, Engine, Error, LocalMember, Observation, Work};
use crate::host::Host;
use crate::host::files::{Access, Kind as FileKind, Removed};
use crate::host::system::Owner;
use crate::host::units::{Ending, Status};

/// The user that owns the data where the agent is root.
const ENGINE_USER: &str = "postgres";
/// How often what is dear to ask for is asked again.
const SLOW_PERIOD: Duration = Duration::from_secs(10);
const SIZE_PERIOD: Duration = Duration::from_secs(60);
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;
/// Log files that are kept, of 16 MiB each.
const LOG_FILES: usize = 16;

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
    members: Mutex<BTreeMap<ClusterId, Known>>,
}

/// What is remembered of a member between two looks.
#[derive(Debug, Default, Clone)]
struct Known {
    session: Option<Arc<Session>>,
    slow_at: Option<Instant>,
    pending_restart: Vec<String>,
    refused_settings: Vec<String>,
    size_at: Option<Instant>,
    data_bytes: Option<u64>,
}

/// A file of the configuration as it should be.
struct Wanted {
    path: PathBuf,
    contents: Zeroizing<Vec<u8>>,
    access: Access,
}

// === impl Postgresql ===

impl Postgresql {
    pub fn new(settings: Settings, host: Host, credentials: watch::Receiver<Arc<Credentials>>) -> Self {
        let packages = Packages::new(host.clone(), settings.programs.clone());
        Self { inner: Arc::new(Inner { settings, host, packages, credentials, members: Mutex::default() }) }
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

    fn offers(&self) -> Deed<'_, Vec<EngineOffer>> {
        self.inner.packages.offers().boxed()
    }

    fn check<'a>(&'a self, request: &'a CheckMember) -> Deed<'a, CheckedMember> {
        checks::check(&self.inner, request).boxed()
    }

    fn install<'a>(&'a self, request: &'a InstallEngine, work: &'a Work) -> Deed<'a, String> {
        self.inner.packages.install(&request.engine_version, &request.extensions, work).boxed()
    }

    fn initialise<'a>(&'a self, request: &'a InitialiseMember, work: &'a Work) -> Deed<'a, String> {
        build::initialise(&self.inner, request, work).boxed()
    }

    fn copy_from<'a>(&'a self, request: &'a CloneMember, work: &'a Work) -> Deed<'a, Copied> {
        build::copy(&self.inner, request, work).boxed()
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

    /// What a new member may count on beside those that are here.
    async fn budget(&self, cluster: ClusterId) -> Result<Budget, Error> {
        let neighbours = self.members().await?.iter().filter(|member| member.cluster_id != cluster).count();
        let space = self.host.files().space(&self.settings.data_dir).await;
        let disk = space.map_err(|error| Error::failed("measure the disk", error))?;
        let memory_bytes = self.settings.memory_bytes.unwrap_or_else(checks::machine_memory);
        Ok(Budget::share(memory_bytes, checks::machine_cores(), disk, neighbours))
    }

    async fn complete(&self, cluster: ClusterId) -> Result<(Layout, Marker), Error> {
        let layout = self.layout(cluster);
        match layout.read_marker(self.host.files(), cluster).await? {
            Some(marker) if marker.state == State::Ready => Ok((layout, marker)),
            Some(_) | None => Err(Error::Absent { cluster }),
        }
    }

    // --- configuration

    fn wanted(&self, member: &MemberAssignment, marker: &Marker, place: Place) -> Result<Vec<Wanted>, Error> {
        let layout = self.layout(member.cluster_id);
        let local_users = self.local_users()?;
        let (node, budget) = (self.settings.node_id, marker.budget);
        let subject = Subject { member, node, layout: &layout, budget, local_users: &local_users, place };
        let credentials = self.credentials.borrow().clone();
        let secret = Access { mode: 0o600, owner: self.owner()? };
        let file = |path: PathBuf, text: &str, access| Wanted {
            path,
            contents: Zeroizing::new(text.as_bytes().to_vec()),
            access,
        };
        Ok(vec![
            file(layout.tls().join("fleet.crt"), &credentials.fleet, Access::PUBLIC),
            file(layout.tls().join("node.crt"), &credentials.chain, Access::PUBLIC),
            file(layout.tls().join("node.key"), &credentials.key, secret),
            file(layout.conf().join("pg_ident.conf"), &render::identities(&subject), Access::PUBLIC),
            file(layout.conf().join("pg_hba.conf"), &render::access(&subject), Access::PUBLIC),
            file(layout.config_file(), &render::server(&subject), Access::PUBLIC),
        ])
    }

    /// Writes what differs; whether anything did.
    async fn write_configuration(
        &self,
        member: &MemberAssignment,
        marker: &Marker,
        place: Place,
    ) -> Result<bool, Error> {
        parameters::check(&member.parameters)?;
        let mut changed = false;
        for wanted in self.wanted(member, marker, place)? {
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

    async fn compare(&self, member: &MemberAssignment, observed: &Observation) -> Result<Drift, Error> {
        let (_, marker) = self.complete(member.cluster_id).await?;
        parameters::check(&member.parameters)?;
        let mut drift = Drift::NONE;
        for wanted in self.wanted(member, &marker, Place::Data)? {
            drift.configuration |= !self.is_current(&wanted).await?;
        }
        if observed.state == EngineState::Running && observed.role == Some(Role::Primary) {
            let session =
                self.session(member.cluster_id).await.map_err(|why| why.during("look at the slots"))?;
            let (missing, surplus) = self.slots(member, &session).await?;
            drift.admission = !(missing.is_empty() && surplus.is_empty());
        }
        Ok(drift)
    }

    async fn configure(&self, member: &MemberAssignment) -> Result<(), Error> {
        let (layout, marker) = self.complete(member.cluster_id).await?;
        self.write_configuration(member, &marker, Place::Data).await?;
        self.trim_log(&layout).await?;
        let name = process::service_name(member.cluster_id)?;
        if self.host.units().status(&name).await.is_running() {
            // Also when nothing was written: the agent may have been killed between a write and its reload.
            let session = self.session(member.cluster_id).await.map_err(|why| why.during("reload"))?;
            session.reload().await.map_err(|why| why.during("reload"))?;
            self.with_known(member.cluster_id, |known| known.slow_at = None);
        }
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
        let wanted: BTreeSet<String> =
            render::others(member, self.settings.node_id).map(|peer| render::slot(peer.node_id)).collect();
        let sound: BTreeSet<&str> =
            found.iter().filter(|slot| !slot.lost).map(|slot| slot.name.as_str()).collect();
        let missing = wanted.iter().filter(|name| !sound.contains(name.as_str())).cloned().collect();
        let surplus =
            found.iter().filter(|slot| slot.lost || !wanted.contains(&slot.name)).cloned().collect();
        Ok((missing, surplus))
    }

    async fn admit(&self, member: &MemberAssignment) -> Result<(), Error> {
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

    // --- the process

    async fn start(&self, member: &MemberAssignment) -> Result<(), Error> {
        let (layout, marker) = self.complete(member.cluster_id).await?;
        self.require_installed(&marker.engine_version).await?;
        let owner = self.owner()?;
        layout
            .create(self.host.files(), owner)
            .await
            .map_err(|error| Error::failed("make the folders", error))?;
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

    async fn destroy(&self, request: &DestroyMember, work: &Work) -> Result<bool, Error> {
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
        for data in [layout.data(), layout.data_new()] {
            let stat = files.stat(&data).await.map_err(failed)?;
            if stat.is_some_and(|stat| stat.kind != FileKind::Directory) {
                let why = format!("{} is not a folder; remove it by hand", data.display());
                return Err(Error::WouldDestroyData { why });
            }
        }
        work.say("stopping the server");
        self.stop(cluster).await?;
        process::refuse_users(&layout.data_new()).await?;
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
                let data = files.stat(layout.data()).await.map_err(failed)?;
                let new = files.stat(layout.data_new()).await.map_err(failed)?;
                if data.is_none() && new.is_none() {
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
                    complete: marker.state == State::Ready,
                }),
                Ok(None) => {}
                Err(error) => tracing::warn!(%cluster, %error, "a member's marker cannot be read"),
            }
        }
        Ok(found)
    }

    // --- observation

    async fn observe(&self, cluster: ClusterId) -> Observation {
        let layout = self.layout(cluster);
        let marker = match layout.read_marker(self.host.files(), cluster).await {
            Ok(Some(marker)) => marker,
            Ok(None) => return Observation::only(EngineState::Absent),
            Err(error) => return with_message(EngineState::Unknown, error.to_string()),
        };
        if marker.state == State::Building {
            let message = format!("command {} has not finished making the data", marker.made_by);
            return with_message(EngineState::Absent, message);
        }
        let mut observed = self.observe_process(cluster, &layout).await;
        observed.data_role = self.data_role(&layout).await;
        if observed.system_identifier.is_none() {
            observed.system_identifier = match build::identity(self, &layout, Place::Data).await {
                Ok(found) => Some(found),
                Err(error) => {
                    observed.message = error.to_string();
                    None
                }
            };
        }
        observed
    }

    /// The role in which the data would start; unknown if there are none.
    async fn data_role(&self, layout: &Layout) -> Option<Role> {
        let files = self.host.files();
        files.stat(layout.data().join("PG_VERSION")).await.ok()??;
        match files.stat(layout.data().join("standby.signal")).await {
            Ok(Some(_)) => Some(Role::Replica),
            Ok(None) => Some(Role::Primary),
            Err(_) => None,
        }
    }

    async fn observe_process(&self, cluster: ClusterId, layout: &Layout) -> Observation {
        let status = match process::service_name(cluster) {
            Ok(name) => self.host.units().status(&name).await,
            Err(error) => Status::Unknown { why: error.to_string() },
        };
        match status {
            Status::Running { .. } => self.observe_server(cluster).await,
            Status::Unknown { why } => with_message(EngineState::Unknown, why),
            Status::Exited | Status::NotFound => {
                self.forget(cluster);
                Observation::only(EngineState::Stopped)
            }
            Status::Failed { ending } => {
                self.forget(cluster);
                let how = match ending {
                    Ending::Code(code) => format!("ended with code {code}"),
                    Ending::Signal(signal) => format!("was ended by signal {signal}"),
                    Ending::Unseen => "ended while no agent ran".to_owned(),
                };
                let words = words::last(&self.host, layout).await;
                with_message(EngineState::Stopped, format!("the server {how}: {words}"))
            }
        }
    }

    async fn observe_server(&self, cluster: ClusterId) -> Observation {
        let session = match self.session(cluster).await {
            Ok(session) => session,
            Err(why @ (NoAnswer::NotYet | NoAnswer::Nobody)) => {
                return with_message(EngineState::Starting, why.to_string());
            }
            Err(why) => return with_message(EngineState::Unknown, why.to_string()),
        };
        match session.observe().await {
            Ok(mut observed) => {
                self.observe_slowly(cluster, &session).await;
                let known = self.with_known(cluster, |known| known.clone());
                observed.pending_restart = known.pending_restart;
                observed.data_bytes = known.data_bytes;
                if observed.message.is_empty() {
                    observed.message = known.refused_settings.join("; ");
                }
                observed
            }
            Err(why) => {
                self.forget(cluster);
                with_message(EngineState::Unknown, why.to_string())
            }
        }
    }

    /// What is dear to ask for and seldom changes.
    async fn observe_slowly(&self, cluster: ClusterId, session: &Session) {
        let now = Instant::now();
        let due = |at: Option<Instant>, period| at.is_none_or(|at| now.duration_since(at) >= period);
        let known = self.with_known(cluster, |known| known.clone());
        if due(known.slow_at, SLOW_PERIOD) {
            let pending = session.pending_restart().await;
            let refused = session.refused_settings().await;
            self.with_known(cluster, |known| {
                known.slow_at = Some(now);
                known.pending_restart = pending.unwrap_or_default();
                known.refused_settings = refused.unwrap_or_default();
            });
        }
        if due(known.size_at, SIZE_PERIOD) {
            let size = session.data_bytes().await;
            self.with_known(cluster, |known| {
                known.size_at = Some(now);
                known.data_bytes = size.ok().flatten();
            });
        }
    }

    /// The kept connection, or a new one.
    async fn session(&self, cluster: ClusterId) -> Result<Arc<Session>, NoAnswer> {
        let kept = self.with_known(cluster, |known| known.session.clone());
        if let Some(session) = kept.filter(|session| !session.is_closed()) {
            return Ok(session);
        }
        let layout = self.layout(cluster);
        let entries = self.host.files().list(layout.run()).await.map_err(|_| NoAnswer::Nobody)?;
        let port = |name: &str| name.strip_prefix(".s.PGSQL.")?.parse::<u16>().ok();
        let port = entries.iter().find_map(|entry| port(entry.name.to_str()?)).ok_or(NoAnswer::Nobody)?;
        let session = Arc::new(Session::connect(&layout, port).await?);
        self.with_known(cluster, |known| {
            *known = Known { session: Some(Arc::clone(&session)), ..Known::default() };
        });
        Ok(session)
    }

    fn with_known<T>(&self, cluster: ClusterId, look: impl FnOnce(&mut Known) -> T) -> T {
        look(self.members.lock().unwrap_or_else(PoisonError::into_inner).entry(cluster).or_default())
    }

    fn forget(&self, cluster: ClusterId) {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).remove(&cluster);
    }
}

fn with_message(state: EngineState, message: String) -> Observation {
    Observation { message, ..Observation::only(state) }
}
