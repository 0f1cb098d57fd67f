//! One use of the testbed: its folder, its owner, and that nothing of it stays behind.
//!
//! ```text
//!  owner (a test) holds ── owner.lock ──► keeper waits for it, then removes the run
//!                              └────────► every host waits for it, then ends itself
//!  next run, on its start: removes each run whose lock nobody holds, so also those whose keeper was killed
//! ```
//!
//! The kernel drops the lock when its owner ends, however it ends: no pid is guessed at, and a live run is never taken
//! for a dead one. A detached run (the demo) has no owner and is removed by name.

use std::fs::{self, File, TryLockError};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;

use crate::proc::{self, Entry};
use crate::process::{Program, Running};
use crate::wait::wait_for;

/// The environment variable that every process of a run bears.
pub const MARK: &str = "HOLDFAST_TESTBED_RUN";

/// If set: a folder that the logs of every run are copied to before it is removed.
pub const LOGS: &str = "HOLDFAST_TESTBED_LOGS";

/// How long processes may take to be gone after SIGKILL.
const GONE: Duration = Duration::from_secs(20);

/// What the hosts of this run are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Namespaces: we are root.
    Hosts,
    /// Plain processes on loopback addresses: we are not.
    Processes,
}

/// One use of the testbed. Dropping an owned run removes all of it and returns when it is gone.
#[derive(Debug)]
pub struct Run {
    id: String,
    folder: PathBuf,
    isolation: Isolation,
    owner: Option<Owner>,
}

#[derive(Debug)]
struct Owner {
    lock: Option<File>,
    keeper: Running,
}

// === impl Isolation ===

impl Isolation {
    /// What this user may do.
    #[must_use]
    pub fn of_this_user() -> Self {
        if nix::unistd::geteuid().is_root() { Self::Hosts } else { Self::Processes }
    }
}

// === impl Run ===

impl Run {
    /// A run owned by this process, with a name of its own; removes first what dead runs left.
    ///
    /// # Errors
    ///
    /// When its folder cannot be made, or leftovers cannot be removed.
    pub async fn owned() -> anyhow::Result<Self> {
        let base = user_folder("holdfast-testbed");
        make_folder(&base)?;
        let door = File::create(base.join(".lock")).context("make the lock of all runs")?;
        // Held while runs are swept and made, so that nobody sweeps a run between its folder and its lock.
        let door = tokio::task::spawn_blocking(move || door.lock().map(|()| door));
        let _door = door.await?.context("lock the runs")?;
        sweep(&base).await?;

        let id = format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..6]);
        let folder = base.join(&id);
        make_folder(&folder)?;
        let path = lock_file(&folder);
        let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        lock.lock().with_context(|| format!("lock {}", path.display()))?;
        fs::write(folder.join("owner"), format!("{}\n", std::process::id())).context("name the owner")?;
        let keeper =
            Program::new(crate::binaries::testbed()?).arg("keep").arg(&folder).clean_env().folder("/");
        // It is the keeper that saves them.
        let keeper = match std::env::var_os(LOGS) {
            Some(logs) => keeper.env(LOGS, logs),
            None => keeper,
        };
        let keeper = keeper.start(&base.join("keepers.log"))?;
        Ok(Self {
            id,
            folder,
            isolation: Isolation::of_this_user(),
            owner: Some(Owner { lock: Some(lock), keeper }),
        })
    }

    /// A run that goes on without an owner, under a name and in a folder of the caller's choice.
    ///
    /// # Errors
    ///
    /// When its folder cannot be made.
    pub fn detached(id: &str, folder: &Path) -> anyhow::Result<Self> {
        make_folder(folder)?;
        Ok(Self { id: id.into(), folder: folder.into(), isolation: Isolation::of_this_user(), owner: None })
    }

    /// Its name, part of the names of all that it makes.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its folder, for this user only.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What its hosts are made of.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// The network namespace for a part of it.
    #[must_use]
    pub fn namespace(&self, part: &str) -> String {
        format!("{}{part}", namespace_prefix(&self.id))
    }

    /// The file whose lock says that the owner lives, if it has an owner.
    #[must_use]
    pub fn owner_lock(&self) -> Option<PathBuf> {
        self.owner.as_ref().map(|_| lock_file(&self.folder))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(owner) = &mut self.owner {
            drop(owner.lock.take());
            owner.keeper.wait();
        }
    }
}

/// Waits until the owner of the run in `folder` is gone, then removes the run: what the keeper does.
///
/// # Errors
///
/// When something of it cannot be removed.
pub fn keep(folder: &Path) -> anyhow::Result<()> {
    let lock = File::open(lock_file(folder)).context("open the owner's lock")?;
    lock.lock_shared().context("wait for the owner's end")?;
    let id = folder.file_name().and_then(|name| name.to_str()).context("the folder has a name")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    runtime.block_on(remove(id, folder))
}

/// Makes a run with one host, says its id and folder, and waits to be killed.
///
/// # Errors
///
/// When the run cannot be made.
pub fn linger() -> anyhow::Result<()> {
    use std::io::Write as _;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    runtime.block_on(async {
        let network = crate::network::Network::new().await?;
        let _host = network.host("n1").await?;
        writeln!(std::io::stdout(), "{} {}", network.run().id(), network.run().folder().display())?;
        std::future::pending::<anyhow::Result<()>>().await
    })
}

/// Removes all of a run: its processes, its namespaces, its cgroups, its folder. What is gone already is no failure.
///
/// # Errors
///
/// When a process does not end or something cannot be removed; the message says which.
pub async fn remove(id: &str, folder: &Path) -> anyhow::Result<()> {
    wait_for(format!("the processes of run {id} to end"), GONE, || async {
        let left = processes(id, folder);
        for one in &left {
            // One that ended meanwhile is what we want.
            one.process.signal(Signal::SIGKILL).ok();
        }
        left.is_empty()
    })
    .await?;
    for namespace in namespaces(&namespace_prefix(id)) {
        Program::new("ip").args(["netns", "delete", &namespace]).run().await?;
    }
    crate::machine::cgroup::remove(&namespace_prefix(id)).await?;
    save_logs(id, folder);
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The processes of a run that live: those in its namespaces, and those that bear its mark.
#[must_use]
pub fn processes(id: &str, folder: &Path) -> Vec<Entry> {
    let spaces: Vec<_> = namespaces(&namespace_prefix(id))
        .into_iter()
        .filter_map(|name| fs::metadata(Path::new(NAMESPACES).join(name)).ok())
        .map(|space| (space.st_dev(), space.st_ino()))
        .collect();
    let mark = format!("{MARK}={id}");
    let me = std::process::id();
    let in_ours = |pid: u32| {
        fs::metadata(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|space| spaces.contains(&(space.st_dev(), space.st_ino())))
    };
    let is_ours = |one: &Entry| in_ours(one.process.pid) || bears(one, &mark) || serves_data_in(one, folder);
    proc::all().into_iter().filter(|one| one.process.pid != me && !one.zombie && is_ours(one)).collect()
}

const NAMESPACES: &str = "/run/netns";

/// A server that some agent started with an environment of its own still names its data folder.
fn serves_data_in(one: &Entry, folder: &Path) -> bool {
    let data = format!("{}/", folder.display());
    one.arguments.first().is_some_and(|program| program.ends_with("postgres"))
        && one.arguments.iter().any(|argument| argument.starts_with(&data))
}

fn bears(one: &Entry, mark: &str) -> bool {
    let environment = fs::read(format!("/proc/{}/environ", one.process.pid));
    environment.is_ok_and(|all| all.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()))
}

/// Removes the runs whose owner is gone, and namespaces with a name of ours that belong to no run.
async fn sweep(base: &Path) -> anyhow::Result<()> {
    let mut alive = Vec::new();
    for entry in fs::read_dir(base).context("list the runs")?.flatten() {
        let folder = entry.path();
        let Some(id) = folder.file_name().and_then(|name| name.to_str()).filter(|_| folder.is_dir()) else {
            continue;
        };
        match File::open(lock_file(&folder)).map(|lock| lock.try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => alive.push(namespace_prefix(id)),
            Ok(Err(TryLockError::Error(error))) => return Err(error).context("look at the lock of a run"),
            Ok(Ok(())) | Err(_) => {
                remove(id, &folder).await.with_context(|| format!("remove what run {id} left"))?
            }
        }
    }
    // Ids of owned runs begin with a t and six hexadecimal digits: nobody else's names look like that.
    for namespace in namespaces("hft") {
        let shaped = namespace.len() > 10
            && namespace.as_bytes()[9] == b'-'
            && namespace[3..9].bytes().all(|byte| byte.is_ascii_hexdigit());
        if shaped && !alive.iter().any(|prefix| namespace.starts_with(prefix)) {
            Program::new("ip").args(["netns", "delete", &namespace]).run().await?;
        }
    }
    Ok(())
}

fn namespaces(prefix: &str) -> Vec<String> {
    let Ok(folder) = fs::read_dir(NAMESPACES) else { return Vec::new() };
    folder
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|n| n.starts_with(prefix))
        .collect()
}

fn namespace_prefix(id: &str) -> String {
    format!("hf{id}-")
}

fn lock_file(folder: &Path) -> PathBuf {
    folder.join("owner.lock")
}

/// Best effort: logs are a help in finding a fault, not part of the outcome.
fn save_logs(id: &str, folder: &Path) {
    let Some(target) = std::env::var_os(LOGS).map(|target| PathBuf::from(target).join(id)) else { return };
    for host in fs::read_dir(folder).into_iter().flatten().flatten() {
        for log in fs::read_dir(host.path().join("log")).into_iter().flatten().flatten() {
            let place = target.join(host.file_name());
            fs::create_dir_all(&place).ok();
            fs::copy(log.path(), place.join(log.file_name())).ok();
        }
    }
}

/// Makes a folder for this user only. One that is there already must be just that: other users may write to the
/// folders above it, and could have put something else in its place.
fn make_folder(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("make {}", path.display()))?;
    let about = fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()))?;
    let ours =
        about.is_dir() && about.st_uid() == nix::unistd::geteuid().as_raw() && about.st_mode() & 0o077 == 0;
    ensure!(ours, "{} is not a folder that only this user can use: remove it", path.display());
    Ok(())
}

/// The folder of something of this user. Short, since databases make sockets far below it, and a socket's path may
/// have 107 bytes: a home is often too long already.
#[must_use]
pub fn user_folder(name: &str) -> PathBuf {
    match Isolation::of_this_user() {
        Isolation::Hosts => format!("/var/lib/{name}").into(),
        Isolation::Processes => format!("/var/tmp/{name}-{}", nix::unistd::geteuid()).into(),
    }
}
