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

/// Takes the last byte of the disk that `folder` of `host` is on.
///
/// # Errors
///
/// When there is room left.
pub async fn fill_disk(host: &Host, folder: &Path) -> anyhow::Result<()> {
    const FILL: &str = r#"set -e; cd "$0"
        left=$(df --output=avail --block-size=1 . | tail -n 1)
        fallocate --length "$((left - 8388608))" filler
        dd if=/dev/zero of=more-filler bs=1k 2>/dev/null && exit 1
        test "$(df --output=avail . | tail -n 1)" -eq 0"#;
    host.run(Program::new("sh").args(["-c", FILL]).arg(folder)).await.map(drop).context("fill a disk")
}

/// Gives back what [`fill_disk`] took.
///
/// # Errors
///
/// When it cannot be given back.
pub async fn empty_disk(host: &Host, folder: &Path) -> anyhow::Result<()> {
    let empty = Program::new("rm").arg(folder.join("filler")).arg(folder.join("more-filler"));
    host.run(empty).await.map(drop).context("empty a disk")
}
