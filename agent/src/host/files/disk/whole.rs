//! Whole files and folders: copied a part at a time, added up.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{self, AtFlags, OFlag};
use nix::sys::stat::{self, Mode};
use nix::unistd;

use super::sync::sync;
use super::{Deed, Error, FOLDER, Kind, MAX_DEPTH, Place, apply, entries, errno_of, failed};
use crate::host::files::Access;

/// Copies to a name that is free. What is left of a failure is no file that anybody takes for whole: it is removed.
pub(super) fn copy(mut source: File, place: &Place<'_>, access: Access) -> Result<u64, Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = fcntl::openat(&place.folder, place.name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let mut target = File::from(opened);
    let copied = io::copy(&mut source, &mut target)
        .map_err(errno_of)
        .and_then(|bytes| apply(&target, access).map(|()| bytes))
        .and_then(|bytes| sync(&target).map(|()| bytes))
        .and_then(|bytes| sync(&place.folder).map(|()| bytes));
    if copied.is_err() {
        // The error that matters is the first one.
        let _left = unistd::unlinkat(&place.folder, place.name, unistd::UnlinkatFlags::NoRemoveDir);
    }
    copied
}

/// At most `limit` bytes, from `offset` on.
pub(super) fn part(file: &mut File, offset: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    file.seek(io::SeekFrom::Start(offset))?;
    file.take(limit).read_to_end(&mut contents)?;
    Ok(contents)
}

/// What the files of an open folder, and of those in it, take together.
pub(super) fn size(path: &Path, folder: &OwnedFd, depth: usize) -> Result<u64, Error> {
    let deed = Deed::Size;
    if depth > MAX_DEPTH {
        return Err(Error::TooDeep { deed, path: path.to_owned(), limit: MAX_DEPTH });
    }
    let io = |source| Error::Io { deed, path: path.to_owned(), source };
    let mut total: u64 = 0;
    for entry in entries(folder, usize::MAX).map_err(io)? {
        let (at, name) = (path.join(&entry.name), entry.name.as_os_str());
        let found = match entry.kind {
            Kind::Directory => match fcntl::openat(folder, name, FOLDER, Mode::empty()) {
                Ok(inner) => Ok(size(&at, &inner, depth + 1)?),
                Err(errno) => Err(errno),
            },
            Kind::File => stat::fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map(|found| u64::try_from(found.st_size).unwrap_or(0)),
            Kind::SymbolicLink | Kind::Other => Ok(0),
        };
        total = total.saturating_add(match found {
            Ok(bytes) => bytes,
            // A server that runs removes files.
            Err(Errno::ENOENT) => 0,
            Err(errno) => return Err(failed(deed, &at, errno)),
        });
    }
    Ok(total)
}
