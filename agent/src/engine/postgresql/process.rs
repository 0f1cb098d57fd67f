//! The server's process: who uses a data directory, starting, and stopping with proof.
//!
//! PostgreSQL names its process in a file that may be stale, name a foreign process or have been removed. What proves
//! that a server uses the data is that each of its processes has the data directory as its working directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::{signal, stat};
use nix::unistd::Pid;
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

/// For how long a connection may be silent that was made to a server that stops, and how often that is looked at.
const SILENT_AFTER: Duration = Duration::from_secs(1);
const SILENT_PAUSE: Duration = Duration::from_millis(100);

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
        let mut silent = Silent::default();
        while host.units().status(name).await.is_running() {
            silent.end(host, layout).await;
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
        let mut silent = Silent::default();
        while host.units().status(name).await.is_running() {
            if only_lets_go(host, layout).await {
                return true;
            }
            silent.end(host, layout).await;
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
    let Some((first, status)) = pid_file(host, layout).await else { return false };
    let Ok(users) = users_of(&layout.data()).await else { return false };
    status == "stopping" && are_last(first, &users, title)
}

/// A server's first process, and what it does.
async fn pid_file(host: &Host, layout: &Layout) -> Option<(i32, String)> {
    let file = host.files().read(layout.data().join(PID_FILE), MAX_PID_FILE_BYTES).await.ok()?;
    parse_pid_file(&String::from_utf8_lossy(&file))
}

fn parse_pid_file(text: &str) -> Option<(i32, String)> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    Some((lines.first()?.parse().ok()?, (*lines.get(STATUS_LINE)?).to_owned()))
}

/// Whether these are but the first process of a server, and the writer of its log.
fn are_last(first: i32, users: &[i32], title: impl Fn(i32) -> Option<String>) -> bool {
    let is_log_writer = |pid| title(pid).is_some_and(|title| title.trim_end().ends_with(": logger"));
    users.iter().all(|&pid| pid == first || is_log_writer(pid))
}

/// Those who serve a connection that was made while the server stopped, and over which nothing is said. The server waits for them for as long
/// as somebody has to say who he is (`authentication_timeout`, 60 s), without telling them to end: before PostgreSQL 18 it passes over
/// them. Anyone who can reach the port could so hold up a switchover.
#[derive(Debug, Default)]
struct Silent {
    since: BTreeMap<i32, Instant>,
    looked: Option<Instant>,
}

// === impl Silent ===

impl Silent {
    /// Ends those that have been silent for a while.
    async fn end(&mut self, host: &Host, layout: &Layout) {
        if self.looked.is_some_and(|looked| looked.elapsed() < SILENT_PAUSE) {
            return;
        }
        let now = Instant::now();
        self.looked = Some(now);
        let Some((first, _)) = pid_file(host, layout).await else { return };
        let Ok(users) = users_of(&layout.data()).await else { return };
        let found = nameless(first, &users, title);
        self.since.retain(|pid, _| found.contains(pid));
        for pid in found {
            if now.duration_since(*self.since.entry(pid).or_insert(now)) >= SILENT_AFTER {
                tracing::info!(
                    pid,
                    "end a connection over which nothing is said, and for which the server waits"
                );
                // As a server tells those to end that it knows. One that is gone has ended.
                let _gone = signal::kill(Pid::from_raw(pid), signal::Signal::SIGTERM);
            }
        }
    }
}

/// The processes of a server that still have its first one's name: whoever serves a connection gives himself one once he knows whose it is.
/// Other programs that a server runs, such as those that keep its log elsewhere, have names of their own.
fn nameless(first: i32, users: &[i32], title: impl Fn(i32) -> Option<String>) -> Vec<i32> {
    let Some(firsts) = title(first) else { return Vec::new() };
    let is_nameless = |pid: &i32| title(*pid).is_some_and(|title| title == firsts);
    users.iter().copied().filter(|pid| *pid != first && is_nameless(pid)).collect()
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

    fn title(pid: i32) -> Option<String> {
        let title = match pid {
            7 | 12 => "/usr/lib/postgresql/15/bin/postgres",
            8 => "postgres: logger   ",
            9 => "postgres: orders: checkpointer ",
            10 => "postgres: walsender holdfast_replication 203.0.113.2(4711) streaming 0/3000148",
            11 => "postgres: app logger 203.0.113.9(4711) idle",
            14 => "sh",
            _ => return None,
        };
        Some(title.to_owned())
    }

    #[test]
    fn a_server_that_stops_only_lets_go_once_nobody_is_left_who_writes_or_sends() {
        let lets_go = |users: &[i32]| are_last(7, users, title);
        assert!(lets_go(&[7, 8]) && lets_go(&[7]) && lets_go(&[]));
        for other in [9, 10, 11, 12, 13, 14] {
            assert!(!lets_go(&[7, 8, other]), "{other}");
        }
    }

    #[test]
    fn who_serves_a_connection_over_which_nothing_was_said_has_no_name() {
        assert_eq!(nameless(7, &[7, 8, 9, 10, 11, 12, 13, 14], title), [12]);
        assert_eq!(nameless(7, &[7, 8, 14], title), [0; 0]);
        // Of a first one that is gone nothing is known.
        assert_eq!(nameless(13, &[8, 12, 14], title), [0; 0]);
    }

    #[test]
    fn a_server_tells_its_first_process_and_what_it_does() {
        let file = |status| format!("7\n/data\n1\n5432\n/run\n*\n  1 2\n{status}\n");
        assert_eq!(parse_pid_file(&file("stopping")), Some((7, "stopping".to_owned())));
        assert_eq!(parse_pid_file(&file("ready   ")), Some((7, "ready".to_owned())));
        for other in ["", "7\n/data\nstopping\n", "x\n\n\n\n\n\n\nstopping\n"] {
            assert_eq!(parse_pid_file(other), None, "{other:?}");
        }
    }
}
