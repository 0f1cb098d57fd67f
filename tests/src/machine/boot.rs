//! What keeps a machine: lays its changes over the common file system, and runs it, again after each reboot.
//!
//! It is a program of its own in a mount namespace of its own, so that nothing of a machine is mounted where others see
//! it, and all of it is gone when this program and the machine are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use super::cgroup;
use crate::host::spec;
use crate::process::Program;
use crate::run::MARK;

/// What systemd-nspawn exits with when the machine wants to be started again.
const REBOOT: i32 = 133;

/// Where a machine finds the packages that it was given.
pub const PACKAGES: &str = "/srv/packages/given";

/// systemd-nspawn keeps a folder here that must not be on a disk.
const PROPAGATE: &str = "/run/systemd/nspawn";

/// A machine, as its keeper is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Its hostname.
    pub name: String,
    /// The run that it belongs to.
    pub run: String,
    /// Its network.
    pub namespace: String,
    /// Its folder: `changes`, `work`, `root`, `log`.
    pub folder: PathBuf,
    /// The file system below its changes.
    pub root: PathBuf,
    /// Packages that it is given.
    pub packages: Option<PathBuf>,
}

/// Runs the machine described in `file` until it is shut down.
///
/// # Errors
///
/// When it cannot be started, or ends in any other way than by being shut down.
pub fn main(file: &Path) -> anyhow::Result<()> {
    let spec: Spec = spec::read(file)?;
    furnish(&spec)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    for boot in 1_u32.. {
        // Never one that was there before, not even by its name: this process is another after each power cut.
        let cgroup = format!("{}-{}-{boot}", spec.namespace, std::process::id());
        cgroup::enter(&cgroup).context("give the machine a cgroup")?;
        // A namespace outlives a reboot with all its rules; a machine's network does not.
        let flush = Program::new("nft").args(["flush", "ruleset"]);
        let flush = flush.wrapped(["nsenter", &format!("--net=/run/netns/{}", spec.namespace)]);
        runtime.block_on(flush.run()).context("empty the machine's rules")?;
        let ended = nspawn(&spec).start(&spec.folder.join("log/console.log"))?.wait();
        match ended.and_then(|status| status.code()) {
            Some(REBOOT) => {}
            Some(0) => return Ok(()),
            _ => bail!("machine {} ended with {ended:?}", spec.name),
        }
    }
    Ok(())
}

fn furnish(spec: &Spec) -> anyhow::Result<()> {
    let Spec { folder, root, .. } = spec;
    fs::create_dir_all(PROPAGATE).with_context(|| format!("make {PROPAGATE}"))?;
    mount(Some("tmpfs"), PROPAGATE, Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount {PROPAGATE}"))?;
    let (changes, work) = (folder.join("changes"), folder.join("work"));
    let options =
        format!("lowerdir={},upperdir={},workdir={}", root.display(), changes.display(), work.display());
    mount(Some("overlay"), &folder.join("root"), Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("lay the machine's changes over the common file system")
}

fn nspawn(spec: &Spec) -> Program {
    let Spec { name, run, namespace, folder, root: _, packages } = spec;
    let nspawn = Program::new("systemd-nspawn").args(["--quiet", "--boot", "--register=no", "--keep-unit"]);
    let nspawn = nspawn.arg("--directory").arg(folder.join("root"));
    let nspawn = nspawn.args([&format!("--machine={name}"), &format!("--hostname={name}")]);
    // A network that is given does not bring the power over it; without all powers some units are not shut in.
    let nspawn = nspawn.arg(format!("--network-namespace-path=/run/netns/{namespace}"));
    let nspawn = nspawn.args(["--capability=all", "--console=read-only"]);
    let nspawn = match packages {
        Some(packages) => nspawn.arg(format!("--bind-ro={}:{PACKAGES}", packages.display())),
        None => nspawn,
    };
    let nspawn = nspawn.clean_env().env(MARK, run).folder("/");
    let nspawn = nspawn.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").env("SYSTEMD_SECCOMP", "0");
    nspawn.env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
}
