//! Files of the machine: atomic writes, bounded reads, and changes that stay where they belong.
//!
//! The agent changes files only below its *roots*, and below a root it follows no symbolic link: every component is
//! opened by itself (`openat`, `O_NOFOLLOW`), so that a database user who plants a link cannot make root write, chown
//! or delete elsewhere. A root itself may be reached over links; that is the administrator's choice. Reading is free
//! everywhere, but below a root it follows no link either.
//!
//! [`Files`] is the asynchronous face; the [`Tree`] behind it blocks and is either the [`Disk`] or the fake.

mod disk;
mod kernel;
#[cfg(test)]
pub(crate) mod tests;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use disk::Disk;
pub(crate) use disk::open_log;

use holdfast_common::error::{Classify, Metadata, Reason, Retry};

use super::system::Owner;

/// The most entries that a listing may have.
pub const MAX_ENTRIES: usize = 10_000;

/// The blocking operations on files; [`Files`] calls them where they may block.
pub trait Tree: std::fmt::Debug + Send + Sync {
    fn write(&self, path: &Path, contents: &[u8], access: Access) -> Result<(), Error>;
    fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, Error>;
    fn read_end(&self, path: &Path, limit: u64) -> Result<Vec<u8>, Error>;
    fn read_part(&self, path: &Path, offset: u64, limit: u64) -> Result<Vec<u8>, Error>;
    fn copy(&self, from: &Path, to: &Path, access: Access) -> Result<u64, Error>;
    fn size(&self, path: &Path) -> Result<u64, Error>;
    fn create_dir(&self, path: &Path, access: Access) -> Result<(), Error>;
    fn set_access(&self, path: &Path, access: Access) -> Result<(), Error>;
    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error>;
    fn remove_file(&self, path: &Path) -> Result<Removed, Error>;
    fn remove_tree(&self, path: &Path) -> Result<Removed, Error>;
    fn list(&self, path: &Path) -> Result<Vec<Entry>, Error>;
    fn stat(&self, path: &Path) -> Result<Option<Stat>, Error>;
    fn space(&self, path: &Path) -> Result<Space, Error>;
    fn sync_all(&self, path: &Path) -> Result<(), Error>;
}

/// Files, for asynchronous callers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Files {
    tree: Arc<dyn Tree>,
}

/// Who may do what with a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Permission bits, such as `0o600`.
    pub mode: u32,
    /// `None`: the agent's own user.
    pub owner: Option<Owner>,
}

/// What one path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    pub mode: u32,
    pub owner: Owner,
    pub size_bytes: u64,
}

/// One name in a folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub name: OsString,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    File,
    Directory,
    SymbolicLink,
    Other,
}

/// Whether there was something to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Now,
    WasAbsent,
}

/// Room on the file system that holds a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    /// What an ordinary user can still write.
    pub available_bytes: u64,
    /// `None` where the file system has no fixed number.
    pub inodes: Option<Inodes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inodes {
    pub total: u64,
    pub free: u64,
}

/// What was being done, for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Write,
    Read,
    Copy,
    Size,
    CreateDir,
    SetAccess,
    Rename,
    RemoveFile,
    RemoveTree,
    List,
    Stat,
    Space,
    SyncAll,
}

/// Why a file could not be read or changed; every variant names the path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{deed} {}", path.display())]
    Io { deed: Deed, path: PathBuf, source: io::Error },
    #[error("{deed} {}: it is not below a folder that the agent may change", path.display())]
    Outside { deed: Deed, path: PathBuf },
    #[error("{deed} {}: give an absolute path without `.` and `..`", path.display())]
    Path { deed: Deed, path: PathBuf },
    #[error("{deed} {}: {} is a symbolic link, which the agent does not follow here; remove it", path.display(), link.display())]
    SymbolicLink { deed: Deed, path: PathBuf, link: PathBuf },
    #[error("{deed} {}: it is not {expected}", path.display())]
    WrongKind { deed: Deed, path: PathBuf, expected: &'static str },
    #[error("{deed} {}: it is larger than {limit}", path.display())]
    TooLarge { deed: Deed, path: PathBuf, limit: u64 },
    #[error("{deed} {}: {} is mounted there; unmount it first", path.display(), mount.display())]
    Mounted { deed: Deed, path: PathBuf, mount: PathBuf },
    #[error("{deed} {}: everybody may write there; give a folder of its own, such as one below it", path.display())]
    Shared { deed: Deed, path: PathBuf },
    #[error("{deed} {}: folders are nested deeper than {limit}", path.display())]
    TooDeep { deed: Deed, path: PathBuf, limit: usize },
}

// === impl Files ===

impl Files {
    pub fn new(tree: Arc<dyn Tree>) -> Self {
        Self { tree }
    }

    /// Replaces the whole file or nothing: it has the old contents or the new ones, also after a power cut. The folder
    /// must exist.
    pub async fn write(
        &self,
        path: impl Into<PathBuf>,
        contents: impl Into<Vec<u8>>,
        access: Access,
    ) -> Result<(), Error> {
        let (path, contents) = (path.into(), contents.into());
        self.blocking(move |tree| tree.write(&path, &contents, access)).await
    }

    /// The contents of a regular file of at most `limit` bytes.
    pub async fn read(&self, path: impl Into<PathBuf>, limit: u64) -> Result<Vec<u8>, Error> {
        let path = path.into();
        self.blocking(move |tree| tree.read(&path, limit)).await
    }

    /// At most the last `limit` bytes of a regular file.
    pub async fn read_end(&self, path: impl Into<PathBuf>, limit: u64) -> Result<Vec<u8>, Error> {
        let path = path.into();
        self.blocking(move |tree| tree.read_end(&path, limit)).await
    }

    /// At most `limit` bytes of a regular file, from `offset` on.
    pub async fn read_part(
        &self,
        path: impl Into<PathBuf>,
        offset: u64,
        limit: u64,
    ) -> Result<Vec<u8>, Error> {
        let path = path.into();
        self.blocking(move |tree| tree.read_part(&path, offset, limit)).await
    }

    /// Copies a regular file to a name that is free, durably, a part at a time; returns its size.
    pub async fn copy(
        &self,
        from: impl Into<PathBuf>,
        to: impl Into<PathBuf>,
        access: Access,
    ) -> Result<u64, Error> {
        let (from, to) = (from.into(), to.into());
        self.blocking(move |tree| tree.copy(&from, &to, access)).await
    }

    /// What the files of a folder, and of the folders in it, take together; 0 where there is none. Links are not followed.
    pub async fn size(&self, path: impl Into<PathBuf>) -> Result<u64, Error> {
        let path = path.into();
        self.blocking(move |tree| tree.size(&path)).await
    }

    /// Makes sure that the folder exists with this access. Missing folders above it (below the root) are made with
    /// mode 0755 and the agent's owner.
    pub async fn create_dir(&self, path: impl Into<PathBuf>, access: Access) -> Result<(), Error> {
        let path = path.into();
        self.blocking(move |tree| tree.create_dir(&path, access)).await
    }

    /// Gives an existing file or folder this access; not recursive.
    pub async fn set_access(&self, path: impl Into<PathBuf>, access: Access) -> Result<(), Error> {
        let path = path.into();
        self.blocking(move |tree| tree.set_access(&path, access)).await
    }

    /// Moves a file or folder within one file system; an existing file at `to` is replaced, durably.
    pub async fn rename(&self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Result<(), Error> {
        let (from, to) = (from.into(), to.into());
        self.blocking(move |tree| tree.rename(&from, &to)).await
    }

    /// Removes a file, or a symbolic link itself.
    pub async fn remove_file(&self, path: impl Into<PathBuf>) -> Result<Removed, Error> {
        let path = path.into();
        self.blocking(move |tree| tree.remove_file(&path)).await
    }

    /// Removes a folder with all that is in it. Links in it are removed, never followed. Refuses, before it removes
    /// anything, if something is mounted in it, and refuses a root itself.
    pub async fn remove_tree(&self, path: impl Into<PathBuf>) -> Result<Removed, Error> {
        let path = path.into();
        self.blocking(move |tree| tree.remove_tree(&path)).await
    }

    /// The entries of a folder by name, at most [`MAX_ENTRIES`].
    pub async fn list(&self, path: impl Into<PathBuf>) -> Result<Vec<Entry>, Error> {
        let path = path.into();
        self.blocking(move |tree| tree.list(&path)).await
    }

    /// What the path is, of a link the link itself; `None` if there is nothing.
    pub async fn stat(&self, path: impl Into<PathBuf>) -> Result<Option<Stat>, Error> {
        let path = path.into();
        self.blocking(move |tree| tree.stat(&path)).await
    }

    /// Room on the file system of the path, or of the nearest folder above it that exists.
    pub async fn space(&self, path: impl Into<PathBuf>) -> Result<Space, Error> {
        let path = path.into();
        self.blocking(move |tree| tree.space(&path)).await
    }

    /// Returns once the disk has all that was written to the file system of a folder, by whomever.
    pub async fn sync_all(&self, path: impl Into<PathBuf>) -> Result<(), Error> {
        let path = path.into();
        self.blocking(move |tree| tree.sync_all(&path)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        deed: impl FnOnce(&dyn Tree) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let tree = Arc::clone(&self.tree);
        match tokio::task::spawn_blocking(move || deed(tree.as_ref())).await {
            Ok(result) => result,
            Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
            Err(join) => {
                Err(Error::Io { deed: Deed::Stat, path: PathBuf::new(), source: io::Error::other(join) })
            }
        }
    }
}

// === impl Access ===

impl Access {
    /// Only the agent's own user.
    pub const PRIVATE: Self = Self { mode: 0o600, owner: None };
    pub const PRIVATE_DIR: Self = Self { mode: 0o700, owner: None };
    /// Everyone may read.
    pub const PUBLIC: Self = Self { mode: 0o644, owner: None };
    pub const PUBLIC_DIR: Self = Self { mode: 0o755, owner: None };

    #[must_use]
    pub fn owned_by(self, owner: Owner) -> Self {
        Self { owner: Some(owner), ..self }
    }
}

// === impl Error ===

impl Error {
    /// Whether the path, or a folder on the way to it, does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether the disk or the quota is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl Classify for Error {
    fn reason(&self) -> Reason {
        if self.is_full() {
            return Reason::StorageFull;
        }
        match self {
            Self::Mounted { .. } => Reason::WouldDestroyData,
            Self::Outside { .. } | Self::Path { .. } | Self::Shared { .. } => Reason::NotPermitted,
            Self::Io { .. }
            | Self::SymbolicLink { .. }
            | Self::WrongKind { .. }
            | Self::TooLarge { .. }
            | Self::TooDeep { .. } => Reason::EngineFailed,
        }
    }

    fn retry(&self) -> Retry {
        if self.is_full() { Retry::Later(None) } else { Retry::Never }
    }

    fn metadata(&self) -> Metadata {
        let (deed, path) = match self {
            Self::Io { deed, path, .. }
            | Self::Outside { deed, path }
            | Self::Path { deed, path }
            | Self::SymbolicLink { deed, path, .. }
            | Self::WrongKind { deed, path, .. }
            | Self::TooLarge { deed, path, .. }
            | Self::Mounted { deed, path, .. }
            | Self::Shared { deed, path }
            | Self::TooDeep { deed, path, .. } => (deed, path),
        };
        Metadata::from([
            ("deed".to_owned(), deed.to_string()),
            ("path".to_owned(), path.display().to_string()),
        ])
    }
}

// === impl Deed ===

impl std::fmt::Display for Deed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Copy => "copy to",
            Self::Size => "add up",
            Self::CreateDir => "create folder",
            Self::SetAccess => "set mode and owner of",
            Self::Rename => "rename",
            Self::RemoveFile => "remove",
            Self::RemoveTree => "remove folder",
            Self::List => "list",
            Self::Stat => "look at",
            Self::Space => "measure the room at",
            Self::SyncAll => "write to the disk all that is below",
        })
    }
}

/// An absolute path with only ordinary names in it.
pub(super) fn plain_path(deed: Deed, path: &Path) -> Result<(), Error> {
    let refused = || Error::Path { deed, path: path.to_owned() };
    let text = path.to_str().ok_or_else(refused)?;
    let ordinary = text.starts_with('/')
        && !text.contains('\0')
        && text.split('/').all(|part| part != "." && part != "..")
        && text.len() < 4096;
    if ordinary { Ok(()) } else { Err(refused()) }
}
