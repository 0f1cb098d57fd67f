//! What `/proc` knows: which process a pid really is, who descends from whom, and what a process inside a host's
//! namespace is called outside of it. A pid alone is never trusted: it is a pid and its start time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One process, told apart from a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid as seen from here.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

/// One line of the process table.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which process.
    pub process: Process,
    /// Its pid in the innermost namespace it is in.
    pub inner_pid: u32,
    /// Its parent, as seen from here.
    pub parent: u32,
    /// Whether it has ended and only waits to be reaped.
    pub zombie: bool,
    /// Its arguments, the program first.
    pub arguments: Vec<String>,
}

// === impl Process ===

impl Process {
    /// The process that has `pid` now, if any has.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let start_time = stat(pid)?.2;
        Some(Self { pid, start_time })
    }

    /// Whether it still runs: the same process, not a zombie.
    #[must_use]
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|(state, _, start_time)| start_time == self.start_time && state != 'Z')
    }

    /// Sends it a signal. One that has ended already is no failure.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn signal(self, signal: Signal) -> anyhow::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid.cast_signed()), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("send {signal} to process {}", self.pid)),
        }
    }
}

/// All processes that can be seen. Those that end meanwhile are left out.
#[must_use]
pub fn all() -> Vec<Entry> {
    let Ok(folder) = fs::read_dir("/proc") else { return Vec::new() };
    folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(entry).collect()
}

/// `ancestor` and all that descend from it.
#[must_use]
pub fn tree(ancestor: Process) -> Vec<Entry> {
    let mut children: BTreeMap<u32, Vec<Entry>> = BTreeMap::new();
    let mut found = Vec::new();
    for one in all() {
        if one.process == ancestor {
            found.push(one);
        } else {
            children.entry(one.parent).or_default().push(one);
        }
    }
    let mut next = 0;
    while let Some(pid) = found.get(next).map(|one| one.process.pid) {
        found.extend(children.remove(&pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// The processes that are in the same pid namespace as `pid`, which may have no common ancestor.
#[must_use]
pub fn in_pid_namespace_of(pid: u32) -> Vec<Entry> {
    let Some(wanted) = pid_namespace(pid) else { return Vec::new() };
    all().into_iter().filter(|one| pid_namespace(one.process.pid).as_ref() == Some(&wanted)).collect()
}

/// The processes of ours that name a path below `folder` in an argument, or have it as working folder.
#[must_use]
pub fn that_use(folder: &Path) -> Vec<Entry> {
    let me = std::process::id();
    let below = format!("{}/", folder.display());
    let uses = |one: &Entry| {
        let at = fs::read_link(format!("/proc/{}/cwd", one.process.pid));
        one.arguments.iter().any(|argument| argument.contains(&below))
            || at.is_ok_and(|at| at.starts_with(folder))
    };
    all().into_iter().filter(|one| one.process.pid != me && uses(one)).collect()
}

fn pid_namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

fn entry(pid: u32) -> Option<Entry> {
    let (state, parent, start_time) = stat(pid)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = arguments.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    Some(Entry {
        process: Process { pid, start_time },
        inner_pid: inner.parse().ok()?,
        parent,
        zombie: state == 'Z',
        arguments: words.map(|word| String::from_utf8_lossy(word).into_owned()).collect(),
    })
}

/// State, parent and start time. The name, in parentheses, may hold anything: the fields begin after the last one.
fn stat(pid: u32) -> Option<(char, u32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let start_time = fields.nth(17)?.parse().ok()?;
    Some((state, parent, start_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let me = Process::of(std::process::id()).expect("this process is there");
        assert!(me.is_alive());
        assert!(!Process { start_time: me.start_time + 1, ..me }.is_alive());
        assert!(Process::of(u32::MAX).is_none());
    }

    #[test]
    fn a_tree_holds_its_root_and_nobody_else() {
        let me = Process::of(std::process::id()).expect("this process is there");
        let tree = tree(me);
        assert_eq!(tree.first().map(|one| one.process), Some(me));
        assert!(tree.iter().all(|one| one.process.pid != 1));
    }
}
