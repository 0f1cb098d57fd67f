//! Cgroups of the machines' own: a fresh one for every boot, named after the run, and gone with it.
//!
//! Machines that shared one, or got one that another boot had used, sometimes failed to start.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::wait::wait_until;

/// Where a hierarchy may be mounted: systemd's own and the unified one beside older ones, or the unified one alone.
const BESIDE: [&str; 2] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"];
const ALONE: &str = "/sys/fs/cgroup";
const PROCESSES: &str = "cgroup.procs";
const SOON: Duration = Duration::from_secs(20);

/// The hierarchies that a machine needs a cgroup in.
///
/// # Errors
///
/// When there is none that can be written.
pub fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let mounted = |path: &Path| path.join(PROCESSES).exists();
    let mut found: Vec<_> = BESIDE.map(PathBuf::from).into_iter().filter(|path| mounted(path)).collect();
    if found.is_empty() && mounted(ALONE.as_ref()) {
        found.push(ALONE.into());
    }
    ensure!(!found.is_empty(), "no hierarchy of cgroups is mounted below {ALONE}");
    for hierarchy in &found {
        let probe = hierarchy.join(format!("holdfast-probe-{}", std::process::id()));
        fs::create_dir(&probe)
            .and_then(|()| fs::remove_dir(&probe))
            .with_context(|| format!("cgroups cannot be made in {}", hierarchy.display()))?;
    }
    Ok(found)
}

/// Makes a cgroup and moves this process into it, so that what it starts is in it too.
///
/// # Errors
///
/// When the system refuses.
pub fn enter(name: &str) -> anyhow::Result<()> {
    for hierarchy in hierarchies()? {
        let place = hierarchy.join(name);
        fs::create_dir(&place).with_context(|| format!("make {}", place.display()))?;
        fs::write(place.join(PROCESSES), std::process::id().to_string())
            .with_context(|| format!("enter {}", place.display()))?;
    }
    Ok(())
}

/// Removes the cgroups whose name begins like this, once they are empty. What is gone already is no failure.
///
/// # Errors
///
/// When one is still used in a while.
pub async fn remove(prefix: &str) -> anyhow::Result<()> {
    for hierarchy in BESIDE.into_iter().chain([ALONE]) {
        let inside = fs::read_dir(hierarchy).into_iter().flatten().flatten();
        let ours = inside.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        for place in ours.map(|entry| entry.path()).filter(|place| place.join(PROCESSES).exists()) {
            // The kernel counts a process that has just been killed for a moment more.
            wait_until(format!("{} to be empty", place.display()), SOON, || async { remove_tree(&place) })
                .await?;
        }
    }
    Ok(())
}

/// A cgroup is a folder whose files cannot be removed, and need not be.
fn remove_tree(place: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", place.display()))
        }
        _ => Ok(()),
    }
}
