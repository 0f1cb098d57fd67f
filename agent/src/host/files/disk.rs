//! Files on the real disk.
//!
//! Below a root every step is relative to an open folder, so no name is resolved twice.

mod removal;
pub(super) mod sync;
mod whole;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{self, AtFlags, OFlag};
use nix::sys::stat::{self, Mode};
use nix::sys::statvfs;
use nix::unistd::{self, Gid, Uid, UnlinkatFlags};

use self::removal::{empty, refuse_mounts};
use self::sync::sync;
use super::kernel::{described, kind_of, room};
use super::{Access, Deed, Entry, Error, Kind, MAX_ENTRIES, Removed, Space, Stat, Tree, plain_path};
use crate::host::system::Owner;

/// How deep folders may be nested below one that is removed.
const MAX_DEPTH: usize = 64;
/// The bit of a folder's mode that lets everybody write there.
const OTHERS_WRITE: u32 = 0o002;

const FOLDER: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The machine's file systems, changed only below some roots.
#[derive(Debug)]
pub struct Disk {
    roots: Vec<PathBuf>,
    /// One write at a time: the name of the temporary file is fixed, so that one left by a crash is replaced.
    writing: Mutex<()>,
}

/// A path that is taken apart: an open folder and a name in it.
struct Place<'p> {
    deed: Deed,
    path: &'p Path,
    folder: OwnedFd,
    name: &'p OsStr,
}

enum Missing {
    Refuse,
    Create,
}

// === impl Disk ===

impl Disk {
    /// Roots are absolute folders; a path below several belongs to the deepest.
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        let mut roots: Vec<PathBuf> = roots.into_iter().collect();
        roots.sort_by_key(|root| std::cmp::Reverse(root.components().count()));
        Self { roots, writing: Mutex::new(()) }
    }

    fn root_of(&self, path: &Path) -> Option<&Path> {
        self.roots.iter().map(PathBuf::as_path).find(|root| path.starts_with(root))
    }

    /// The open folder that holds `path`, and its name. `path` must be strictly below a root.
    fn place<'p>(&self, deed: Deed, path: &'p Path, missing: Missing) -> Result<Place<'p>, Error> {
        plain_path(deed, path)?;
        let outside = || Error::Outside { deed, path: path.to_owned() };
        let root = self.root_of(path).ok_or_else(outside)?;
        let name = path.file_name().filter(|_| path != root).ok_or_else(outside)?;
        let parent = path.parent().ok_or_else(outside)?;
        let below = parent.strip_prefix(root).map_err(|_prefix| outside())?;
        let folder = open_below(deed, path, root, below, missing)?;
        Ok(Place { deed, path, folder, name })
    }

    /// Opens for reading: without following links below a root, freely elsewhere.
    fn open(&self, deed: Deed, path: &Path, flags: OFlag) -> Result<File, Error> {
        plain_path(deed, path)?;
        if self.root_of(path).is_some_and(|root| root != path) {
            let place = self.place(deed, path, Missing::Refuse)?;
            let opened = fcntl::openat(
                &place.folder,
                place.name,
                flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                Mode::empty(),
            );
            return opened.map(File::from).map_err(|errno| place.failed(errno));
        }
        fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
            .map(File::from)
            .map_err(|errno| failed(deed, path, errno))
    }

    /// Opens a regular file for reading.
    fn open_file(&self, path: &Path) -> Result<File, Error> {
        let deed = Deed::Read;
        // O_NONBLOCK: a FIFO under this name must not hang the agent.
        let file = self.open(deed, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        let metadata = file.metadata().map_err(|source| Error::Io { deed, path: path.to_owned(), source })?;
        if !metadata.is_file() {
            return Err(Error::WrongKind { deed, path: path.to_owned(), expected: "a regular file" });
        }
        Ok(file)
    }
}

impl Tree for Disk {
    fn write(&self, path: &Path, contents: &[u8], access: Access) -> Result<(), Error> {
        let place = self.place(Deed::Write, path, Missing::Refuse)?;
        place.refuse_link()?;
        let mut temporary = OsString::from(".");
        temporary.push(place.name);
        temporary.push(".new");
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = place.replace(&temporary, contents, access);
        if written.is_err() {
            // The error that matters is the first one.
            let _left = unistd::unlinkat(&place.folder, temporary.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
        written.map_err(|errno| place.failed(errno))
    }

    fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
        let deed = Deed::Read;
        let file = self.open_file(path)?;
        let io = |source| Error::Io { deed, path: path.to_owned(), source };
        let mut contents = Vec::new();
        // Files of /proc say that they are empty: only reading tells.
        file.take(limit.saturating_add(1)).read_to_end(&mut contents).map_err(io)?;
        if contents.len() as u64 > limit {
            return Err(Error::TooLarge { deed, path: path.to_owned(), limit });
        }
        Ok(contents)
    }

    fn read_end(&self, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
        let mut file = self.open_file(path)?;
        let io = |source| Error::Io { deed: Deed::Read, path: path.to_owned(), source };
        let length = file.metadata().map_err(io)?.len();
        file.seek(io::SeekFrom::Start(length.saturating_sub(limit))).map_err(io)?;
        let mut contents = Vec::new();
        file.take(limit).read_to_end(&mut contents).map_err(io)?;
        Ok(contents)
    }

    fn read_part(&self, path: &Path, offset: u64, limit: u64) -> Result<Vec<u8>, Error> {
        let mut file = self.open_file(path)?;
        whole::part(&mut file, offset, limit).map_err(|source| Error::Io {
            deed: Deed::Read,
            path: path.to_owned(),
            source,
        })
    }

    fn copy(&self, from: &Path, to: &Path, access: Access) -> Result<u64, Error> {
        let source = self.open_file(from)?;
        let place = self.place(Deed::Copy, to, Missing::Refuse)?;
        whole::copy(source, &place, access).map_err(|errno| place.failed(errno))
    }

    fn size(&self, path: &Path) -> Result<u64, Error> {
        match self.open(Deed::Size, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Err(error) if error.is_not_found() => Ok(0),
            folder => whole::size(path, &folder?.into(), 0),
        }
    }

    fn create_dir(&self, path: &Path, access: Access) -> Result<(), Error> {
        let deed = Deed::CreateDir;
        plain_path(deed, path)?;
        if self.roots.iter().any(|root| root == path) {
            // Given by a person, perhaps by mistake: `/tmp` as the agent's own would be shut to everybody else.
            if stat::stat(path).is_ok_and(|found| found.st_mode & OTHERS_WRITE != 0) {
                return Err(Error::Shared { deed, path: path.to_owned() });
            }
            std::fs::create_dir_all(path).map_err(|source| Error::Io {
                deed,
                path: path.to_owned(),
                source,
            })?;
            let folder = open_root(deed, path, path)?;
            return apply(&folder, access).map_err(|errno| failed(deed, path, errno));
        }
        let place = self.place(deed, path, Missing::Create)?;
        let made = match stat::mkdirat(&place.folder, place.name, Mode::S_IRWXU) {
            Err(Errno::EEXIST) => Ok(()),
            other => other,
        };
        made.map_err(|errno| place.failed(errno))?;
        let folder = place.open(FOLDER)?;
        apply(&folder, access).and_then(|()| sync(&place.folder)).map_err(|errno| place.failed(errno))
    }

    fn set_access(&self, path: &Path, access: Access) -> Result<(), Error> {
        let place = self.place(Deed::SetAccess, path, Missing::Refuse)?;
        let opened =
            place.open(OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        apply(&opened, access).map_err(|errno| place.failed(errno))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let source = self.place(Deed::Rename, from, Missing::Refuse)?;
        let target = self.place(Deed::Rename, to, Missing::Refuse)?;
        fcntl::renameat(&source.folder, source.name, &target.folder, target.name)
            .and_then(|()| sync(&target.folder))
            .and_then(|()| sync(&source.folder))
            .map_err(|errno| source.failed(errno))
    }

    fn remove_file(&self, path: &Path) -> Result<Removed, Error> {
        let deed = Deed::RemoveFile;
        let place = match self.place(deed, path, Missing::Refuse) {
            Err(error) if error.is_not_found() => return Ok(Removed::WasAbsent),
            other => other?,
        };
        match unistd::unlinkat(&place.folder, place.name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => sync(&place.folder).map(|()| Removed::Now).map_err(|errno| place.failed(errno)),
            Err(Errno::ENOENT) => Ok(Removed::WasAbsent),
            Err(Errno::EISDIR | Errno::EPERM) if place.is_folder() => {
                Err(Error::WrongKind { deed, path: path.to_owned(), expected: "a file" })
            }
            Err(errno) => Err(place.failed(errno)),
        }
    }

    fn remove_tree(&self, path: &Path) -> Result<Removed, Error> {
        let deed = Deed::RemoveTree;
        if self.roots.iter().any(|root| root.starts_with(path)) {
            return Err(Error::Outside { deed, path: path.to_owned() });
        }
        let place = match self.place(deed, path, Missing::Refuse) {
            Err(error) if error.is_not_found() => return Ok(Removed::WasAbsent),
            other => other?,
        };
        let folder = match place.open(FOLDER) {
            Err(error) if error.is_not_found() => return Ok(Removed::WasAbsent),
            other => other?,
        };
        refuse_mounts(deed, path, &folder)?;
        let device = stat::fstat(&folder).map_err(|errno| place.failed(errno))?.st_dev;
        empty(deed, path, &folder, device, 0)?;
        drop(folder);
        unistd::unlinkat(&place.folder, place.name, UnlinkatFlags::RemoveDir)
            .and_then(|()| sync(&place.folder))
            .map(|()| Removed::Now)
            .map_err(|errno| place.failed(errno))
    }

    fn list(&self, path: &Path) -> Result<Vec<Entry>, Error> {
        let deed = Deed::List;
        let folder = self.open(deed, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let mut entries = entries(&folder, MAX_ENTRIES + 1).map_err(|source| Error::Io {
            deed,
            path: path.to_owned(),
            source,
        })?;
        if entries.len() > MAX_ENTRIES {
            return Err(Error::TooLarge { deed, path: path.to_owned(), limit: MAX_ENTRIES as u64 });
        }
        entries.sort();
        Ok(entries)
    }

    fn stat(&self, path: &Path) -> Result<Option<Stat>, Error> {
        let deed = Deed::Stat;
        plain_path(deed, path)?;
        let found = if self.root_of(path).is_some_and(|root| root != path) {
            match self.place(deed, path, Missing::Refuse) {
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error),
                Ok(place) => stat::fstatat(&place.folder, place.name, AtFlags::AT_SYMLINK_NOFOLLOW),
            }
        } else {
            stat::lstat(path)
        };
        match found {
            Ok(found) => Ok(Some(described(&found))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(failed(deed, path, errno)),
        }
    }

    fn space(&self, path: &Path) -> Result<Space, Error> {
        let deed = Deed::Space;
        plain_path(deed, path)?;
        for folder in path.ancestors() {
            match statvfs::statvfs(folder) {
                Ok(found) => return Ok(room(&found)),
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) => return Err(failed(deed, path, errno)),
            }
        }
        Err(failed(deed, path, Errno::ENOENT))
    }

    fn sync_all(&self, path: &Path) -> Result<(), Error> {
        let deed = Deed::SyncAll;
        let folder = self.open(deed, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        unistd::syncfs(&folder).map_err(|errno| failed(deed, path, errno))
    }
}

// === impl Place ===

impl Place<'_> {
    fn failed(&self, errno: Errno) -> Error {
        // A link in the last component: ELOOP from O_NOFOLLOW, ENOTDIR with O_DIRECTORY on top.
        if matches!(errno, Errno::ELOOP | Errno::ENOTDIR) && self.is_link() {
            let (path, link) = (self.path.to_owned(), self.path.to_owned());
            return Error::SymbolicLink { deed: self.deed, path, link };
        }
        failed(self.deed, self.path, errno)
    }

    fn open(&self, flags: OFlag) -> Result<OwnedFd, Error> {
        fcntl::openat(&self.folder, self.name, flags, Mode::empty()).map_err(|errno| self.failed(errno))
    }

    fn kind(&self) -> Option<Kind> {
        let found = stat::fstatat(&self.folder, self.name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        Some(kind_of(found.st_mode))
    }

    fn is_link(&self) -> bool {
        self.kind() == Some(Kind::SymbolicLink)
    }

    fn is_folder(&self) -> bool {
        self.kind() == Some(Kind::Directory)
    }

    fn refuse_link(&self) -> Result<(), Error> {
        if self.is_link() { Err(self.failed(Errno::ELOOP)) } else { Ok(()) }
    }

    fn replace(&self, temporary: &OsStr, contents: &[u8], access: Access) -> Result<(), Errno> {
        match unistd::unlinkat(&self.folder, temporary, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // Private until it has its owner: a secret is never readable for others in between.
        let mut file =
            File::from(fcntl::openat(&self.folder, temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        file.write_all(contents).map_err(errno_of)?;
        apply(&file, access)?;
        sync(&file)?;
        fcntl::renameat(&self.folder, temporary, &self.folder, self.name)?;
        sync(&self.folder)
    }
}

fn errno_of(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn failed(deed: Deed, path: &Path, errno: Errno) -> Error {
    Error::Io { deed, path: path.to_owned(), source: io::Error::from(errno) }
}

/// Owner first: changing it may clear mode bits.
fn apply(file: impl AsFd, access: Access) -> Result<(), Errno> {
    let Access { mode, owner } = access;
    if let Some(Owner { uid, gid }) = owner {
        let now = stat::fstat(file.as_fd())?;
        if (now.st_uid, now.st_gid) != (uid, gid) {
            unistd::fchown(file.as_fd(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
    }
    stat::fchmod(file.as_fd(), Mode::from_bits_truncate(mode))
}

fn open_root(deed: Deed, path: &Path, root: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    fcntl::open(root, flags, Mode::empty()).map_err(|errno| failed(deed, path, errno))
}

/// Walks from the root, one component at a time, through real folders only.
fn open_below(
    deed: Deed,
    path: &Path,
    root: &Path,
    below: &Path,
    missing: Missing,
) -> Result<OwnedFd, Error> {
    let mut folder = open_root(deed, path, root)?;
    let mut at = root.to_owned();
    for component in below.components() {
        let Component::Normal(name) = component else { continue };
        at.push(name);
        if matches!(missing, Missing::Create) {
            match stat::mkdirat(&folder, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) => sync(&folder).map_err(|errno| failed(deed, path, errno))?,
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed(deed, path, errno)),
            }
        }
        folder = match fcntl::openat(&folder, name, FOLDER, Mode::empty()) {
            Ok(next) => next,
            Err(errno @ (Errno::ELOOP | Errno::ENOTDIR)) => {
                let link = stat::fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                    .is_ok_and(|found| kind_of(found.st_mode) == Kind::SymbolicLink);
                return Err(if link {
                    Error::SymbolicLink { deed, path: path.to_owned(), link: at }
                } else {
                    failed(deed, path, errno)
                });
            }
            Err(errno) => return Err(failed(deed, path, errno)),
        };
    }
    Ok(folder)
}

/// The entries of an open folder, without resolving its path again.
fn entries(folder: &impl AsRawFd, limit: usize) -> io::Result<Vec<Entry>> {
    std::fs::read_dir(format!("/proc/thread-self/fd/{}", folder.as_raw_fd()))?
        .take(limit)
        .map(|entry| {
            let entry = entry?;
            let kind = entry.file_type()?;
            let kind = match () {
                () if kind.is_dir() => Kind::Directory,
                () if kind.is_file() => Kind::File,
                () if kind.is_symlink() => Kind::SymbolicLink,
                () => Kind::Other,
            };
            Ok(Entry { name: entry.file_name(), kind })
        })
        .collect()
}

/// Opens a log for appending, makes it with `mode` if missing, and follows no link in its last component.
pub(crate) fn open_log(path: &Path, mode: u32) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = File::options().append(true).create(true).mode(mode).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.nlink() != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the log has a second name (hard link)"));
    }
    Ok(file)
}
