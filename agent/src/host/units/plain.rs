//! The supervisor for machines without systemd.
//!
//! A service is started in a session of its own with `setsid`, its output in a file, so that nothing ties it to the
//! agent. A record on disk names the process by pid, start time and boot: three together are never used again, so a
//! pid that now belongs to another program is never taken for ours. The record is written *before* the start with a
//! random mark that the process carries in its environment; an agent that is killed between start and record finds the
//! process by that mark.
//!
//! Signals go through pidfds, which cannot hit a later process of the same number, and tell of the end without polling.

mod process;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use holdfast_common::clock::Clock;
use holdfast_common::error::Chain;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::process::{Handle, Identity};
use super::{Ending, Error, Service, ServiceName, Signal, Started, Status, Stop, Stopped, Units};
use crate::host::exec::SEARCH_PATH;
use crate::host::files::{Access, Disk, Tree, open_log};
use crate::host::system::Machine;

/// A log that has grown past this is set aside once, as `.1`, at the next start.
const MAX_LOG_BYTES: u64 = 8 * 1024 * 1024;
const MAX_RECORD_BYTES: u64 = 64 * 1024;
/// The variable that carries the mark.
const MARK: &str = "HOLDFAST_UNIT";
/// How long after SIGKILL a process may still be there, in the kernel.
const KILL_GRACE: std::time::Duration = std::time::Duration::from_secs(30);

/// Supervises services without any help. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Plain {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    disk: Disk,
    boot: String,
    /// Held while a record is read and changed; never across an await.
    turn: Mutex<()>,
    /// The processes that were alive when they were looked at last: to look again needs no disk.
    alive: Mutex<HashMap<ServiceName, (Identity, Timestamp)>>,
}

/// What is kept of a service on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    program: PathBuf,
    mark: String,
    boot: String,
    started_at: Timestamp,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Perhaps started: the mark tells.
    Starting,
    Started {
        process: Identity,
        asked_to_stop: bool,
    },
    Ended {
        ending: Ending,
        asked_to_stop: bool,
    },
}

// === impl Plain ===

impl Plain {
    /// Keeps its records in `folder`, which is made if missing, readable for the agent alone.
    ///
    /// # Errors
    /// If the folder or the boot id cannot be had.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { deed: "open the records of", service: "*".to_owned(), source };
        let disk = Disk::new([folder.to_owned()]);
        disk.create_dir(folder, Access::PRIVATE_DIR).map_err(|error| io(io::Error::other(error)))?;
        let boot = Machine::kernel_boot_id().map_err(|error| io(io::Error::other(error)))?;
        let inner =
            Inner { folder: folder.to_owned(), disk, boot, turn: Mutex::default(), alive: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        deed: &'static str,
        name: &ServiceName,
        work: impl FnOnce(&Inner, &ServiceName) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let (inner, own) = (Arc::clone(&self.inner), name.clone());
        let done = tokio::task::spawn_blocking(move || {
            let _turn = inner.turn.lock().unwrap_or_else(PoisonError::into_inner);
            work(&inner, &own)
        });
        let flat = done.await.unwrap_or_else(|join| Err(io::Error::other(join)));
        flat.map_err(|source| Error::Io { deed, service: name.to_string(), source })
    }

    async fn stop_service(&self, name: &ServiceName, how: Stop) -> Result<Stopped, Error> {
        let opened = self.blocking("stop", name, |inner, name| inner.ask_to_stop(name)).await?;
        let Some(main) = opened else { return Ok(Stopped::Already) };
        // Every process of the service, before its tree falls apart: database backends have sessions of their own.
        let family = self.blocking("stop", name, move |_, _| Ok(main.family())).await?;
        let io = |source| Error::Io { deed: "stop", service: name.to_string(), source };
        if let Some(main) = family.first() {
            main.signal(how.signal).map_err(io)?;
        }
        let gone = async {
            for member in &family {
                member.ended().await?;
            }
            Ok::<(), io::Error>(())
        };
        let stopped = match tokio::time::timeout(how.deadline, gone).await {
            Ok(left) => left.map(|()| Stopped::Gently).map_err(io)?,
            Err(_elapsed) => self.kill(name, family).await?,
        };
        self.blocking("stop", name, |inner, name| inner.look(name)).await?;
        Ok(stopped)
    }

    async fn kill(&self, name: &ServiceName, mut family: Vec<Handle>) -> Result<Stopped, Error> {
        let io = |source| Error::Io { deed: "kill", service: name.to_string(), source };
        // The first kill is the main process: once it is gone it starts no more. Then whatever it has started meanwhile.
        let main = family.first().map(Handle::identity);
        if let Some(main) = main {
            let late =
                self.blocking("kill", name, move |_, _| Ok(Handle::open(main)?.map(Handle::family))).await?;
            family.extend(late.unwrap_or_default());
        }
        for member in &family {
            member.signal_group(Signal::Kill).map_err(io)?;
        }
        let gone = async {
            for member in &family {
                member.ended().await?;
            }
            Ok::<(), io::Error>(())
        };
        match tokio::time::timeout(KILL_GRACE, gone).await {
            Ok(left) => left.map(|()| Stopped::Killed).map_err(io),
            Err(_elapsed) => {
                Err(Error::Deadline { deed: "kill", service: name.to_string(), after: KILL_GRACE })
            }
        }
    }
}

impl Units for Plain {
    fn start<'a>(&'a self, service: &'a Service) -> BoxFuture<'a, Result<Started, Error>> {
        Box::pin(async move {
            service.checked()?;
            let own = service.clone();
            self.blocking("start", &service.name, move |inner, _| inner.start(&own)).await
        })
    }

    fn stop<'a>(&'a self, name: &'a ServiceName, how: Stop) -> BoxFuture<'a, Result<Stopped, Error>> {
        Box::pin(self.stop_service(name, how))
    }

    fn status<'a>(&'a self, name: &'a ServiceName) -> BoxFuture<'a, Status> {
        Box::pin(async move {
            if let Some(running) = self.inner.still_alive(name) {
                return running;
            }
            match self.blocking("look at", name, |inner, name| inner.look(name)).await {
                Ok(status) => status,
                Err(error) => Status::Unknown { why: Chain(&error).to_string() },
            }
        })
    }

    fn signal<'a>(&'a self, name: &'a ServiceName, signal: Signal) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let sent = self.blocking("signal", name, move |inner, name| match inner.running(name)? {
                Some(main) => main.signal(signal).map(Some),
                None => Ok(None),
            });
            sent.await?.ok_or_else(|| Error::NotRunning { service: name.to_string() })
        })
    }

    fn forget<'a>(&'a self, name: &'a ServiceName) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let gone = self.blocking("forget", name, |inner, name| match inner.running(name)? {
                Some(_running) => Ok(None),
                None => inner.disk.remove_file(&inner.path(name)).map(Some).map_err(io::Error::other),
            });
            match gone.await? {
                Some(_removed) => Ok(()),
                None => Err(Error::StillRunning { service: name.to_string() }),
            }
        })
    }
}

// === impl Inner ===

impl Inner {
    fn path(&self, name: &ServiceName) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    fn load(&self, name: &ServiceName) -> io::Result<Option<Record>> {
        match self.disk.read(&self.path(name), MAX_RECORD_BYTES) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::other),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn save(&self, name: &ServiceName, record: &Record) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
        self.disk.write(&self.path(name), &text, Access::PRIVATE).map_err(io::Error::other)
    }

    fn start(&self, service: &Service) -> io::Result<Started> {
        if let Status::Running { .. } = self.look(&service.name)? {
            return Ok(Started::Already);
        }
        if !service.program.is_file() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no {}", service.program.display())));
        }
        let mut record = Record {
            program: service.program.clone(),
            mark: format!("{}:{}", service.name, uuid::Uuid::new_v4()),
            boot: self.boot.clone(),
            started_at: Clock::system().now(),
            state: State::Starting,
        };
        self.save(&service.name, &record)?;
        let pid = match spawn(service, &record.mark) {
            Ok(pid) => pid,
            Err(error) => {
                record.state = State::Ended { ending: Ending::Unseen, asked_to_stop: false };
                self.save(&service.name, &record)?;
                return Err(error);
            }
        };
        // Our own child: it stays at least a zombie until it is waited for, so this reads the right process.
        let process = process::identity(pid)?.ok_or_else(|| io::Error::other("the process vanished"))?;
        record.state = State::Started { process, asked_to_stop: false };
        self.save(&service.name, &record)?;
        Ok(Started::Now)
    }

    fn alive(&self) -> MutexGuard<'_, HashMap<ServiceName, (Identity, Timestamp)>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the process that was found alive before is so yet.
    fn still_alive(&self, name: &ServiceName) -> Option<Status> {
        let (process, since) = self.alive().get(name).copied()?;
        process::is_alive(process).then(|| Status::Running { pid: process.pid(), since })
    }

    /// Reads the record, compares it with the machine, and keeps what came out.
    fn look(&self, name: &ServiceName) -> io::Result<Status> {
        self.alive().remove(name);
        let Some(record) = self.load(name)? else { return Ok(Status::NotFound) };
        let same_boot = record.boot == self.boot;
        let (process, asked_to_stop) = match &record.state {
            State::Ended { ending, asked_to_stop } => return Ok(Status::ended(*ending, *asked_to_stop)),
            // A restart of the machine ends everything in good order, as far as this supervisor can know.
            _ if !same_boot => return Ok(Status::Exited),
            State::Started { process, asked_to_stop } => (Some(*process), *asked_to_stop),
            State::Starting => (process::marked(MARK, &record.mark)?, false),
        };
        let ending = match process {
            Some(process) => match process::state(process)? {
                process::State::Alive => {
                    if record.state == State::Starting {
                        let state = State::Started { process, asked_to_stop: false };
                        self.save(name, &Record { state, ..record.clone() })?;
                    }
                    self.alive().insert(name.clone(), (process, record.started_at));
                    return Ok(Status::Running { pid: process.pid(), since: record.started_at });
                }
                process::State::Ended(ending) => ending,
            },
            None => Ending::Unseen,
        };
        self.save(name, &Record { state: State::Ended { ending, asked_to_stop }, ..record })?;
        Ok(Status::ended(ending, asked_to_stop))
    }

    fn running(&self, name: &ServiceName) -> io::Result<Option<Handle>> {
        if !self.look(name)?.is_running() {
            return Ok(None);
        }
        match self.load(name)?.map(|record| record.state) {
            Some(State::Started { process, .. }) => Handle::open(process),
            Some(State::Starting | State::Ended { .. }) | None => Ok(None),
        }
    }

    /// Notes that the end is wanted, before anything is sent: an agent killed in between must not report a failure.
    fn ask_to_stop(&self, name: &ServiceName) -> io::Result<Option<Handle>> {
        let Some(main) = self.running(name)? else { return Ok(None) };
        if let Some(record) = self.load(name)? {
            let state = State::Started { process: main.identity(), asked_to_stop: true };
            self.save(name, &Record { state, ..record })?;
        }
        Ok(Some(main))
    }
}

/// Starts the program in a session of its own and lets go of it; gives the pid, which `setsid` keeps.
fn spawn(service: &Service, mark: &str) -> io::Result<u32> {
    let log = log(service)?;
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    let mut command = Command::new("setsid");
    command
        .arg(&service.program)
        .args(&service.args)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C")
        .envs(service.variables.iter().map(|(name, value)| (name, value)))
        .env(MARK, mark)
        .current_dir(&service.directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if let Some(owner) = service.owner {
        command.uid(owner.uid).gid(owner.gid);
    }
    Ok(command.spawn()?.id())
}

fn log(service: &Service) -> io::Result<std::fs::File> {
    let path = &service.log;
    if path.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() > MAX_LOG_BYTES) {
        let mut aside = path.clone().into_os_string();
        aside.push(".1");
        std::fs::rename(path, aside)?;
    }
    open_log(path, 0o640)
}
