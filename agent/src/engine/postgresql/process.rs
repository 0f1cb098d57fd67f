//! The server's process: who uses a data directory, starting, and stopping with proof.
//!
//! PostgreSQL names its process in a file that may be stale, name a foreign process or have been removed. What proves
//! that a server uses the data is that each of its processes has the data directory as its working directory.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat;
use tokio::time::Instant;

use super::layout::Layout;
use super::words;
use crate::engine::Error;
use crate::host::Host;
use crate::host::files::Access;
use crate::host::system::Owner;
use crate::host::units::{self, Service, ServiceName, Signal, Status, Stop};

/// How long a server may take to end its sessions, write a checkpoint and ship the last log.
const FAST_DEADLINE: Duration = Duration::from_secs(60);
/// After it, how long it may take to leave without any of that.
const IMMEDIATE_DEADLINE: Duration = Duration::from_secs(15);
/// How long a start is watched for a server that ends at once.
const START_WATCH: Duration = Duration::from_secs(3);
/// How long the processes of a server that has ended are waited for.
const LAST_DEADLINE: Duration = Duration::from_secs(5);
/// The same before a start, where clients may wait.
const ENDING: Duration = Duration::from_secs(1);
/// How long programs of an agent that was killed may take to notice it: their output goes nowhere any more.
const LEFTOVER_DEADLINE: Duration = Duration::from_secs(30);
const LEFTOVER_PAUSE: Duration = Duration::from_millis(200);
/// Between two looks at a server that starts or stops: clients may wait for it.
const PAUSE: Duration = Duration::from_millis(5);

/// Where a server names its first process, and in this line, counted from none, what it does.
const PID_FILE: &str = "postmaster.pid";
const STATUS_LINE: usize = 7;
const MAX_PID_FILE_BYTES: u64 = 64 * 1024;

/// The name of a member's service.
pub(super) fn service_name(cluster: holdfast_common::id::ClusterId) -> Result<ServiceName, Error> {
    ServiceName::new(format!("holdfast-postgresql-{cluster}"))
        .map_err(|error| Error::failed("name the service", error))
}

/// The processes whose working directory is this folder, whatever name it has now.
pub(super) async fn users_of(folder: &Path) -> Result<Vec<i32>, Error> {
    let folder = folder.to_owned();
    let found = tokio::task::spawn_blocking(move || scan(&folder)).await;
    found.map_err(|error| Error::failed("look for processes", error))?
}

pub(super) fn scan(folder: &Path) -> Result<Vec<i32>, Error> {
    let wanted = match stat::stat(folder) {
        Ok(found) => (found.st_dev, found.st_ino),
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(Error::failed(format!("look at {}", folder.display()), errno)),
    };
    let processes = procfs::process::all_processes();
    let processes = processes.map_err(|error| Error::failed("list the machine's processes", error))?;
    let mut found = Vec::new();
    for process in processes {
        // A process that ended meanwhile, or belongs to a user whom we may not look at, is none of ours.
        let Ok(process) = process else { continue };
        let cwd = format!("/proc/{}/cwd", process.pid());
        if stat::stat(cwd.as_str()).is_ok_and(|cwd| (cwd.st_dev, cwd.st_ino) == wanted) {
            found.push(process.pid());
        }
    }
    Ok(found)
}

/// # Errors
/// `WOULD_DESTROY_DATA` if a process has the folder as its working directory.
pub(super) async fn refuse_users(folder: &Path) -> Result<(), Error> {
    match users_of(folder).await?.as_slice() {
        [] => Ok(()),
        pids => {
            let why = format!("processes {pids:?} still use {}; stop them first", folder.display());
            Err(Error::WouldDestroyData { why })
        }
    }
}

/// Waits until the programs that an agent that was killed has left at work in a folder are gone: each works in the folder that it
/// changes.
///
/// # Errors
/// Those of [`refuse_users`], where they do not leave.
pub(super) async fn wait_for_leftovers(folder: &Path) -> Result<(), Error> {
    let until = Instant::now() + LEFTOVER_DEADLINE;
    while let Err(error) = refuse_users(folder).await {
        if Instant::now() >= until {
            return Err(error);
        }
        tokio::time::sleep(LEFTOVER_PAUSE).await;
    }
    Ok(())
}

/// What a start needs.
#[derive(Debug)]
pub(super) struct Start<'a> {
    pub(super) host: &'a Host,
    pub(super) layout: &'a Layout,
    pub(super) name: ServiceName,
    pub(super) description: String,
    pub(super) program: &'a Path,
    pub(super) owner: Option<Owner>,
}

impl Start<'_> {
    /// Starts the server, and watches it for a moment.
    pub(super) async fn run(self) -> Result<(), Error> {
        let Self { host, layout, name, description, program, owner } = self;
        if host.units().status(&name).await.is_running() {
            return Ok(());
        }
        // Those that outlive their server for a moment are no others.
        gone(layout, ENDING).await;
        let users = users_of(&layout.data()).await?;
        if !users.is_empty() {
            let why = format!("processes {users:?} use the data outside of the supervisor; stop them first");
            return Err(Error::WouldDestroyData { why });
        }
        remove_stale(host, layout).await?;
        trim_early_log(host, layout, owner).await?;
        let service = Service {
            name: name.clone(),
            description,
            program: program.to_owned(),
            args: vec![
                "-D".into(),
                layout.data().into(),
                "-c".into(),
                format!("config_file={}", layout.config_file().display()).into(),
            ],
            variables: Vec::new(),
            owner,
            directory: layout.data(),
            log: layout.early_log(),
            shutdown: Stop { signal: Signal::Interrupt, deadline: FAST_DEADLINE },
        };
        let started = host.units().start(&service).await;
        started.map_err(|error| Error::failed("start PostgreSQL", error))?;
        watch(host, layout, &name).await
    }
}

/// Waits until the server has made its socket, or some seconds: recovery may take longer and is no failure.
async fn watch(host: &Host, layout: &Layout, name: &ServiceName) -> Result<(), Error> {
    let watched = tokio::time::timeout(START_WATCH, async {
        loop {
            match host.units().status(name).await {
                Status::Failed { .. } | Status::Exited | Status::NotFound => return false,
                Status::Running { .. } | Status::Unknown { .. } => {}
            }
            if has_socket(host, layout).await {
                return true;
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    match watched.await {
        Ok(true) | Err(_) => Ok(()),
        Ok(false) => {
            gone(layout, LAST_DEADLINE).await;
            let problem = format!("it ended at once: {}", words::last(host, layout).await);
            Err(Error::Wrong { deed: "start PostgreSQL".to_owned(), problem })
        }
    }
}

/// Waits for the processes that outlive their server for a moment: one of them writes its log, and with it why it ended.
async fn gone(layout: &Layout, deadline: Duration) {
    let gone = async {
        while users_of(&layout.data()).await.is_ok_and(|users| !users.is_empty()) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    let _late = tokio::time::timeout(deadline, gone).await;
}

async fn has_socket(host: &Host, layout: &Layout) -> bool {
    let entries = host.files().list(layout.run()).await.unwrap_or_default();
    entries.iter().any(|entry| entry.name.to_str().is_some_and(|name| name.ends_with(".lock")))
}

/// Files that name a process which may by now be another: without them a server starts after a power cut too. The caller
/// has proven that no server uses the data.
pub(super) async fn remove_stale(host: &Host, layout: &Layout) -> Result<(), Error> {
    let failed = |error| Error::failed("remove what an ended server left", error);
    let files = host.files();
    files.remove_file(layout.data().join(PID_FILE)).await.map_err(failed)?;
    for entry in files.list(layout.run()).await.map_err(failed)? {
        files.remove_file(layout.run().join(entry.name)).await.map_err(failed)?;
    }
    Ok(())
}

/// Each start begins a new early log.
async fn trim_early_log(host: &Host, layout: &Layout, owner: Option<Owner>) -> Result<(), Error> {
    let written = host.files().write(layout.early_log(), Vec::new(), Access { mode: 0o600, owner }).await;
    written.map_err(|error| Error::failed("begin the server's log", error))
}

/// Stops the server: fast, then immediately, then by force. `Ok` only if no process uses the data any more.
pub(super) async fn stop(host: &Host, layout: &Layout, name: &ServiceName) -> Result<(), Error> {
    interrupt(host, name).await?;
    let gone = async {
        while host.units().status(name).await.is_running() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    let _late = tokio::time::timeout(FAST_DEADLINE, gone).await;
    halt(host, layout, name).await
}

/// Stops the server fast, up to where its log ends and whoever receives it has all of it; what is left of it then ends by itself.
pub(super) async fn end_log(host: &Host, layout: &Layout, name: &ServiceName) -> Result<(), Error> {
    interrupt(host, name).await?;
    let ended = async {
        while host.units().status(name).await.is_running() {
            if only_lets_go(host, layout).await {
                return true;
            }
            tokio::time::sleep(PAUSE).await;
        }
        false
    };
    match tokio::time::timeout(FAST_DEADLINE, ended).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => halt(host, layout, name).await,
    }
}

/// Whether a server that stops has no process left that writes or sends anything: its first one lets go of its memory, which takes
/// long where there is much, and then ends.
pub(super) async fn only_lets_go(host: &Host, layout: &Layout) -> bool {
    let Ok(file) = host.files().read(layout.data().join(PID_FILE), MAX_PID_FILE_BYTES).await else {
        return false;
    };
    let Ok(users) = users_of(&layout.data()).await else { return false };
    are_last(&String::from_utf8_lossy(&file), &users, title)
}

/// Whether these are but the first process of a server that stops, and the writer of its log.
fn are_last(pid_file: &str, users: &[i32], title: impl Fn(i32) -> Option<String>) -> bool {
    let lines: Vec<&str> = pid_file.lines().map(str::trim).collect();
    let first = lines.first().and_then(|line| line.parse::<i32>().ok());
    let is_log_writer = |pid| title(pid).is_some_and(|title| title.trim_end().ends_with(": logger"));
    lines.get(STATUS_LINE) == Some(&"stopping")
        && users.iter().all(|&pid| Some(pid) == first || is_log_writer(pid))
}

/// What a server's process calls itself; none of one that is gone.
fn title(pid: i32) -> Option<String> {
    procfs::process::Process::new(pid).and_then(|process| process.cmdline()).ok()?.into_iter().next()
}

async fn interrupt(host: &Host, name: &ServiceName) -> Result<(), Error> {
    match host.units().signal(name, Signal::Interrupt).await {
        Ok(()) | Err(units::Error::NotRunning { .. }) => Ok(()),
        Err(error) => Err(Error::failed("stop PostgreSQL", error)),
    }
}

/// Stops the server immediately, then by force. `Ok` only if no process uses the data any more.
pub(super) async fn halt(host: &Host, layout: &Layout, name: &ServiceName) -> Result<(), Error> {
    let how = Stop { signal: Signal::Quit, deadline: IMMEDIATE_DEADLINE };
    let stopped = host.units().stop(name, how).await;
    stopped.map_err(|error| Error::failed("stop PostgreSQL", error))?;
    gone(layout, LAST_DEADLINE).await;
    refuse_users(&layout.data()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_stops_only_lets_go_once_nobody_is_left_who_writes_or_sends() {
        let pid_file = |status| format!("7\n/data\n1\n5432\n/run\n*\n  1 2\n{status}\n");
        let title = |pid| match pid {
            8 => Some("postgres: logger   ".to_owned()),
            9 => Some("postgres: orders: checkpointer ".to_owned()),
            10 => Some(
                "postgres: walsender holdfast_replication 203.0.113.2(4711) streaming 0/3000148".to_owned(),
            ),
            11 => Some("postgres: app logger 203.0.113.9(4711) idle".to_owned()),
            _ => None,
        };
        let stops = |users: &[i32]| are_last(&pid_file("stopping"), users, title);
        assert!(stops(&[7, 8]) && stops(&[7]) && stops(&[]));
        for other in [9, 10, 11, 12] {
            assert!(!stops(&[7, 8, other]), "{other}");
        }
        for status in ["ready   ", "starting", "standby ", ""] {
            assert!(!are_last(&pid_file(status), &[7, 8], title), "{status}");
        }
        assert!(!are_last("", &[7], title) && !are_last("7\n/data\nstopping\n", &[7], title));
    }
}
