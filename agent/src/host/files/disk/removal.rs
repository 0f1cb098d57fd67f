//! Emptying a folder, unless something is mounted in it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl;
use nix::sys::stat::{self, Mode};
use nix::unistd::{self, UnlinkatFlags};

use super::{Deed, Error, FOLDER, Kind, MAX_DEPTH, MAX_ENTRIES, entries, failed};

/// Bind mounts of the same device have the same device number, so the mount table is asked first.
pub(super) fn refuse_mounts(deed: Deed, path: &Path, folder: &OwnedFd) -> Result<(), Error> {
    let io = |source| Error::Io { deed, path: path.to_owned(), source };
    let real = std::fs::read_link(format!("/proc/thread-self/fd/{}", folder.as_raw_fd())).map_err(io)?;
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").map_err(io)?;
    match mount_points(&table).find(|mount| mount.starts_with(&real)) {
        Some(mount) => Err(Error::Mounted { deed, path: path.to_owned(), mount }),
        None => Ok(()),
    }
}

fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> {
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| {
        // The kernel writes these four as octal.
        PathBuf::from(
            point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\"),
        )
    })
}

/// Removes everything in an open folder; refuses what lies on another device.
pub(super) fn empty(
    deed: Deed,
    path: &Path,
    folder: &OwnedFd,
    device: u64,
    depth: usize,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::TooDeep { deed, path: path.to_owned(), limit: MAX_DEPTH });
    }
    loop {
        // A part at a time, so that a folder with millions of files costs no memory.
        let found = entries(folder, MAX_ENTRIES).map_err(|source| Error::Io {
            deed,
            path: path.to_owned(),
            source,
        })?;
        if found.is_empty() {
            return Ok(());
        }
        for entry in found {
            let at = path.join(&entry.name);
            let failed = |errno| failed(deed, &at, errno);
            let gone = if entry.kind == Kind::Directory {
                let inner =
                    fcntl::openat(folder, entry.name.as_os_str(), FOLDER, Mode::empty()).map_err(failed)?;
                if stat::fstat(&inner).map_err(failed)?.st_dev != device {
                    return Err(Error::Mounted { deed, path: path.to_owned(), mount: at });
                }
                empty(deed, &at, &inner, device, depth + 1)?;
                unistd::unlinkat(folder, entry.name.as_os_str(), UnlinkatFlags::RemoveDir)
            } else {
                unistd::unlinkat(folder, entry.name.as_os_str(), UnlinkatFlags::NoRemoveDir)
            };
            match gone {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}
