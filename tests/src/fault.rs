//! Faults of one host: processors that are busy, and a disk that hangs.

use std::io::PipeWriter;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::host::Host;
use crate::process::{Program, Running};
use crate::wait::wait_until;

/// Processes that do nothing but compute, until it is dropped.
#[derive(Debug)]
pub struct Busy(Vec<Running>);

/// A disk on which every write hangs, until it is dropped or this process ends.
#[derive(Debug)]
pub struct Hung {
    keeper: Running,
    /// Its end tells the keeper to thaw, also when nobody is left to say so.
    held: Option<PipeWriter>,
}

// === impl Busy ===

impl Busy {
    /// So many on each processor, as important as anybody else.
    ///
    /// # Errors
    ///
    /// When they do not start.
    pub fn on(host: &Host, each: usize) -> anyhow::Result<Self> {
        let processors = std::thread::available_parallelism().context("count the processors")?;
        let busy = || host.start(Program::new("sh").args(["-c", "while :; do :; done"]), "busy");
        (0..each * processors.get()).map(|_| busy()).collect::<anyhow::Result<_>>().map(Self)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(Running::kill);
    }
}

// === impl Hung ===

impl Hung {
    /// Has every write to the file system at `folder` of `host` hang. Reads of what is in memory go on.
    ///
    /// # Errors
    ///
    /// When it cannot be frozen.
    pub async fn at(host: &Host, folder: &Path) -> anyhow::Result<Self> {
        // Not a process of the host, whose end would leave it frozen for ever: a frozen file system is never unmounted.
        const KEEP: &str = r#"exec 8<"/proc/$0/ns/mnt"
            freeze() { nsenter --mount=/proc/self/fd/8 fsfreeze "$1" "$2"; }
            freeze --freeze "$1" && echo frozen && { read -r end; freeze --unfreeze "$1"; }"#;
        let (told, held) = std::io::pipe().context("make a pipe")?;
        let log = host.log("hung-disk");
        let pid = host.init()?.pid.to_string();
        let keeper = Program::new("sh").args(["-c", KEEP, &pid]).arg(folder);
        let hung = Self { keeper: keeper.start_with(&log, Stdio::from(told))?, held: Some(held) };
        wait_until("a disk to be frozen", Duration::from_secs(20), || async {
            let said = std::fs::read_to_string(&log).context("read what is said of freezing")?;
            ensure!(said.lines().last() == Some("frozen"), "it says {said:?}");
            Ok(())
        })
        .await?;
        Ok(hung)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.held = None;
        self.keeper.wait();
    }
}

/// Puts what is in `folder` of `host` on a disk of its own, which is the host's alone and goes with it. Nobody may use it now.
///
/// # Errors
///
/// When there can be no such disk here.
pub async fn own_disk(host: &Host, folder: &Path) -> anyhow::Result<()> {
    const MOVE: &str = r#"set -e
        truncate --size=64M "$0.disk"; mkfs.ext4 -q "$0.disk"
        mv "$0" "$0.aside"; mkdir "$0"; mount -o loop "$0.disk" "$0"; rmdir "$0/lost+found"
        cp --archive --no-target-directory "$0.aside" "$0""#;
    host.run(Program::new("sh").args(["-c", MOVE]).arg(folder)).await.map(drop).context("make a disk")
}
