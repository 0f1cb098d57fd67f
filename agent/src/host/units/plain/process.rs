//! Processes by an identity that is never used twice.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use procfs::ProcError;
use procfs::process::{Process, Stat};
use rustix::process::{Pid, PidfdFlags, kill_process_group, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::super::{Ending, Signal};

/// A process: its number, and when it started after boot, in clock ticks. Valid within one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pid: i32,
    start_ticks: u64,
}

pub(super) enum State {
    Alive,
    Ended(Ending),
}

/// A process held open: its number cannot be given to another one unnoticed.
#[derive(Debug)]
pub(super) struct Handle {
    identity: Identity,
    fd: OwnedFd,
}

// === impl Identity ===

impl Identity {
    pub(super) fn pid(self) -> u32 {
        self.pid.unsigned_abs()
    }
}

// === impl Handle ===

impl Handle {
    /// `None` if this very process is gone.
    pub(super) fn open(identity: Identity) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(identity.pid) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Looked at again after opening: from here on the handle is this process or none.
        let same = stat(identity.pid)?.is_some_and(|stat| stat.starttime == identity.start_ticks);
        Ok(same.then_some(Self { identity, fd }))
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Sends a signal; a process that is gone already is no error.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal.named()) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a signal to the process, and to its group if it leads one.
    pub(super) fn signal_group(&self, signal: Signal) -> io::Result<()> {
        let leads = stat(self.identity.pid)?.is_some_and(|stat| {
            stat.starttime == self.identity.start_ticks && stat.pgrp == self.identity.pid
        });
        if let Some(group) = Pid::from_raw(self.identity.pid).filter(|_| leads) {
            match kill_process_group(group, signal.named()) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.signal(signal)
    }

    /// Returns when the process has ended. Cancel-safe.
    pub(super) async fn ended(&self) -> io::Result<()> {
        #[expect(
            deprecated,
            reason = "its successor needs unsafe; a borrowed descriptor is open as long as it is watched"
        )]
        let watched = AsyncFd::with_interest(self.fd.as_fd(), Interest::READABLE)?;
        watched.readable().await.map(|_guard| ())
    }

    /// This process first, then all of its descendants that are alive now.
    pub(super) fn family(self) -> Vec<Self> {
        let mut children: HashMap<i32, Vec<Identity>> = HashMap::new();
        for stat in all_stats() {
            children
                .entry(stat.ppid)
                .or_default()
                .push(Identity { pid: stat.pid, start_ticks: stat.starttime });
        }
        let mut queue = vec![self.identity];
        let mut family = vec![self];
        while let Some(parent) = queue.pop() {
            for child in children.remove(&parent.pid).unwrap_or_default() {
                queue.push(child);
                family.extend(Self::open(child).ok().flatten());
            }
        }
        family
    }
}

/// The identity of whatever has this pid now.
pub(super) fn identity(pid: u32) -> io::Result<Option<Identity>> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    Ok(stat(pid)?.map(|stat| Identity { pid, start_ticks: stat.starttime }))
}

/// Whether this very process runs; a zombie does not.
pub(super) fn is_alive(process: Identity) -> bool {
    stat(process.pid).ok().flatten().is_some_and(|found| runs(&found, process))
}

fn runs(found: &Stat, process: Identity) -> bool {
    found.starttime == process.start_ticks && !matches!(found.state, 'Z' | 'X' | 'x')
}

/// Whether it runs, and if not, how it ended. A zombie has ended; one of our own is reaped here.
pub(super) fn state(process: Identity) -> io::Result<State> {
    let Some(found) = stat(process.pid)?.filter(|stat| stat.starttime == process.start_ticks) else {
        return Ok(State::Ended(Ending::Unseen));
    };
    if runs(&found, process) {
        return Ok(State::Alive);
    }
    let pid = nix::unistd::Pid::from_raw(process.pid);
    let ending = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(_, code)) => Ending::Code(code),
        Ok(WaitStatus::Signaled(_, signal, _)) => Ending::Signal(signal as i32),
        // Somebody else's child: only its parent may know.
        Ok(_) | Err(_) => Ending::Unseen,
    };
    Ok(State::Ended(ending))
}

/// The session leader that carries `name=value` in its environment.
pub(super) fn marked(name: &str, value: &str) -> io::Result<Option<Identity>> {
    let leaders = all_stats().into_iter().filter(|stat| stat.session == stat.pid && stat.state != 'Z');
    Ok(leaders
        .filter(|stat| {
            let environment = Process::new(stat.pid).and_then(|process| process.environ());
            environment.is_ok_and(|found| found.get(OsStr::new(name)).is_some_and(|found| found == value))
        })
        .map(|stat| Identity { pid: stat.pid, start_ticks: stat.starttime })
        .next())
}

fn all_stats() -> Vec<Stat> {
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    processes.filter_map(|process| process.and_then(|process| process.stat()).ok()).collect()
}

fn stat(pid: i32) -> io::Result<Option<Stat>> {
    match Process::new(pid).and_then(|process| process.stat()) {
        Ok(stat) => Ok(Some(stat)),
        Err(ProcError::NotFound(_)) => Ok(None),
        // A process that vanishes while it is read.
        Err(ProcError::Io(error, _)) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(io::Error::other(error)),
    }
}
