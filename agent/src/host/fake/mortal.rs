//! A disk under somebody who may end at any change of it.

use std::fmt;
use std::path::Path;

use crate::host::files::{Access, Entry, Error, Removed, Space, Stat, Tree};

/// When its user ends.
pub(crate) trait Fate: fmt::Debug + Send + Sync {
    /// About to change what lies there. An error: the user is gone, and nothing is done.
    fn before(&self, path: &Path) -> Result<(), Error>;

    /// It was changed. An error: the user has not learnt of it.
    fn after(&self, path: &Path) -> Result<(), Error>;

    /// What is left of the disk; none: as it is.
    fn room(&self) -> Option<u64> {
        None
    }
}

/// The disk as such a user sees it.
#[derive(Debug)]
pub(crate) struct Mortal<D, F> {
    pub(crate) disk: D,
    pub(crate) fate: F,
}

impl<D, F: Fate> Mortal<D, F> {
    fn change<T>(&self, path: &Path, change: impl FnOnce(&D) -> Result<T, Error>) -> Result<T, Error> {
        self.fate.before(path)?;
        let changed = change(&self.disk);
        self.fate.after(path)?;
        changed
    }
}

impl<D: Tree, F: Fate> Tree for Mortal<D, F> {
    fn write(&self, path: &Path, contents: &[u8], access: Access) -> Result<(), Error> {
        self.change(path, |disk| disk.write(path, contents, access))
    }
    fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
        self.disk.read(path, limit)
    }
    fn read_end(&self, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
        self.disk.read_end(path, limit)
    }
    fn read_part(&self, path: &Path, offset: u64, limit: u64) -> Result<Vec<u8>, Error> {
        self.disk.read_part(path, offset, limit)
    }
    fn copy(&self, from: &Path, to: &Path, access: Access) -> Result<u64, Error> {
        self.change(to, |disk| disk.copy(from, to, access))
    }
    fn size(&self, path: &Path) -> Result<u64, Error> {
        self.disk.size(path)
    }
    fn create_dir(&self, path: &Path, access: Access) -> Result<(), Error> {
        self.disk.create_dir(path, access)
    }
    fn set_access(&self, path: &Path, access: Access) -> Result<(), Error> {
        self.disk.set_access(path, access)
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.change(from, |disk| disk.rename(from, to))
    }
    fn remove_file(&self, path: &Path) -> Result<Removed, Error> {
        self.change(path, |disk| disk.remove_file(path))
    }
    fn remove_tree(&self, path: &Path) -> Result<Removed, Error> {
        self.change(path, |disk| disk.remove_tree(path))
    }
    fn list(&self, path: &Path) -> Result<Vec<Entry>, Error> {
        self.disk.list(path)
    }
    fn stat(&self, path: &Path) -> Result<Option<Stat>, Error> {
        self.disk.stat(path)
    }
    fn space(&self, path: &Path) -> Result<Space, Error> {
        let found = self.disk.space(path)?;
        Ok(Space { available_bytes: self.fate.room().unwrap_or(found.available_bytes), ..found })
    }
    fn sync_all(&self, path: &Path) -> Result<(), Error> {
        self.disk.sync_all(path)
    }
}
