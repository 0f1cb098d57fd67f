//! Files in memory, with the same rules as the real disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::locked;
use crate::host::files::{
    Access, Deed, Entry, Error, Kind, MAX_ENTRIES, Removed, Space, Stat, Tree, plain_path,
};
use crate::host::system::Owner;

/// A tree of files in memory. Cheap to clone; clones share the files.
#[derive(Debug, Clone)]
pub struct FakeTree {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    roots: Vec<PathBuf>,
    nodes: BTreeMap<PathBuf, Node>,
    mounts: BTreeSet<PathBuf>,
    failures: VecDeque<(Deed, PathBuf, io::ErrorKind)>,
    space: Space,
}

#[derive(Debug, Clone)]
struct Node {
    content: Content,
    mode: u32,
    owner: Owner,
}

#[derive(Debug, Clone)]
enum Content {
    File(Vec<u8>),
    Directory,
    Link,
}

// === impl FakeTree ===

impl FakeTree {
    pub fn new(roots: impl IntoIterator<Item = PathBuf>) -> Self {
        let roots: Vec<PathBuf> = roots.into_iter().collect();
        let folder = || Node { content: Content::Directory, mode: 0o755, owner: Owner { uid: 0, gid: 0 } };
        let ancestors = roots.iter().flat_map(|root| root.ancestors());
        let nodes = ancestors.map(|path| (path.to_owned(), folder())).collect();
        let space = Space { total_bytes: 100 << 30, available_bytes: 80 << 30, inodes: None };
        let state = State { roots, nodes, mounts: BTreeSet::new(), failures: VecDeque::new(), space };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The next such deed on this very path fails with this error.
    pub fn fail_next(&self, deed: Deed, path: impl Into<PathBuf>, kind: io::ErrorKind) {
        locked(&self.state).failures.push_back((deed, path.into(), kind));
    }

    /// Puts a file anywhere, with the folders above it, as a package or a database would.
    pub fn put(&self, path: impl AsRef<Path>, contents: impl Into<Vec<u8>>) {
        self.plant(path.as_ref(), Content::File(contents.into()), 0o644);
    }

    /// Takes a file away from anywhere.
    pub fn take(&self, path: impl AsRef<Path>) {
        locked(&self.state).nodes.remove(path.as_ref());
    }

    /// Puts a folder anywhere, with the folders above it.
    pub fn put_dir(&self, path: impl AsRef<Path>) {
        self.plant(path.as_ref(), Content::Directory, 0o755);
    }

    /// Plants a symbolic link.
    pub fn put_link(&self, path: impl AsRef<Path>) {
        self.plant(path.as_ref(), Content::Link, 0o777);
    }

    /// Mounts something on a folder.
    pub fn mount(&self, path: impl Into<PathBuf>) {
        locked(&self.state).mounts.insert(path.into());
    }

    pub fn set_space(&self, space: Space) {
        locked(&self.state).space = space;
    }

    /// The contents of a file, if it is one.
    pub fn contents(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        match locked(&self.state).nodes.get(path.as_ref()).map(|node| &node.content) {
            Some(Content::File(contents)) => Some(contents.clone()),
            Some(Content::Directory | Content::Link) | None => None,
        }
    }

    /// All paths below a folder.
    pub fn paths_below(&self, path: impl AsRef<Path>) -> Vec<PathBuf> {
        let path = path.as_ref();
        locked(&self.state).nodes.keys().filter(|at| at.starts_with(path) && *at != path).cloned().collect()
    }

    fn plant(&self, path: &Path, content: Content, mode: u32) {
        let mut state = locked(&self.state);
        for folder in path.ancestors().skip(1) {
            let node = Node { content: Content::Directory, mode: 0o755, owner: Owner { uid: 0, gid: 0 } };
            state.nodes.entry(folder.to_owned()).or_insert(node);
        }
        state.nodes.insert(path.to_owned(), Node { content, mode, owner: Owner { uid: 0, gid: 0 } });
    }
}

impl Tree for FakeTree {
    fn write(&self, path: &Path, contents: &[u8], access: Access) -> Result<(), Error> {
        let deed = Deed::Write;
        let mut state = locked(&self.state);
        state.may_change(deed, path)?;
        match state.nodes.get(path).map(|node| &node.content) {
            Some(Content::Link) => return Err(link(deed, path, path)),
            Some(Content::Directory) => return Err(failed(deed, path, io::ErrorKind::IsADirectory)),
            Some(Content::File(_)) | None => {}
        }
        let owner = access.owner.unwrap_or(Owner { uid: 0, gid: 0 });
        let node = Node { content: Content::File(contents.to_vec()), mode: access.mode, owner };
        state.nodes.insert(path.to_owned(), node);
        Ok(())
    }

    fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
        let deed = Deed::Read;
        let mut state = locked(&self.state);
        state.may_read(deed, path)?;
        match &state.existing(deed, path)?.content {
            Content::File(contents) if contents.len() as u64 > limit => {
                Err(Error::TooLarge { deed, path: path.to_owned(), limit })
            }
            Content::File(contents) => Ok(contents.clone()),
            Content::Directory => {
                Err(Error::WrongKind { deed, path: path.to_owned(), expected: "a regular file" })
            }
            Content::Link => Err(link(deed, path, path)),
        }
    }

    fn read_end(&self, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
        let mut contents = self.read(path, u64::MAX)?;
        let surplus = contents.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        contents.drain(..surplus);
        Ok(contents)
    }

    fn read_part(&self, path: &Path, offset: u64, limit: u64) -> Result<Vec<u8>, Error> {
        let contents = self.read(path, u64::MAX)?;
        let (skip, take) = (usize::try_from(offset), usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(contents.into_iter().skip(skip.unwrap_or(usize::MAX)).take(take).collect())
    }

    fn copy(&self, from: &Path, to: &Path, access: Access) -> Result<u64, Error> {
        locked(&self.state).injected(Deed::Copy, to)?;
        let contents = self.read(from, u64::MAX)?;
        if self.stat(to)?.is_some() {
            return Err(failed(Deed::Copy, to, io::ErrorKind::AlreadyExists));
        }
        self.write(to, &contents, access)?;
        Ok(contents.len() as u64)
    }

    fn size(&self, path: &Path) -> Result<u64, Error> {
        let mut state = locked(&self.state);
        state.may_read(Deed::Size, path)?;
        let below = state.nodes.iter().filter(|(at, _)| at.starts_with(path));
        let size = |node: &Node| match &node.content {
            Content::File(contents) => contents.len() as u64,
            Content::Directory | Content::Link => 0,
        };
        Ok(below.map(|(_, node)| size(node)).sum())
    }

    fn create_dir(&self, path: &Path, access: Access) -> Result<(), Error> {
        let deed = Deed::CreateDir;
        let mut state = locked(&self.state);
        state.injected(deed, path)?;
        plain_path(deed, path)?;
        let root = state.root_of(path).ok_or_else(|| Error::Outside { deed, path: path.to_owned() })?;
        state.no_links_between(deed, &root, path)?;
        for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(&root)) {
            if !matches!(state.nodes.get(folder).map(|n| &n.content), None | Some(Content::Directory)) {
                return Err(failed(deed, path, io::ErrorKind::NotADirectory));
            }
            let node = Node { content: Content::Directory, mode: 0o755, owner: Owner { uid: 0, gid: 0 } };
            state.nodes.entry(folder.to_owned()).or_insert(node);
        }
        let node = state.nodes.entry(path.to_owned()).or_insert(Node {
            content: Content::Directory,
            mode: access.mode,
            owner: Owner { uid: 0, gid: 0 },
        });
        match node.content {
            Content::Directory => node.apply(access),
            Content::Link => return Err(link(deed, path, path)),
            Content::File(_) => return Err(failed(deed, path, io::ErrorKind::NotADirectory)),
        }
        Ok(())
    }

    fn set_access(&self, path: &Path, access: Access) -> Result<(), Error> {
        let deed = Deed::SetAccess;
        let mut state = locked(&self.state);
        state.may_change(deed, path)?;
        state.existing(deed, path)?;
        match state.nodes.get_mut(path) {
            Some(node) if matches!(node.content, Content::Link) => Err(link(deed, path, path)),
            Some(node) => {
                node.apply(access);
                Ok(())
            }
            None => Err(failed(deed, path, io::ErrorKind::NotFound)),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let deed = Deed::Rename;
        let mut state = locked(&self.state);
        state.may_change(deed, from)?;
        state.may_change(deed, to)?;
        state.existing(deed, from)?;
        let full = state.nodes.keys().any(|at| at.starts_with(to) && at != to);
        if full {
            return Err(failed(deed, from, io::ErrorKind::DirectoryNotEmpty));
        }
        let moved: Vec<PathBuf> = state.nodes.keys().filter(|at| at.starts_with(from)).cloned().collect();
        for old in moved {
            let new = match old.strip_prefix(from) {
                Ok(below) if below.as_os_str().is_empty() => to.to_owned(),
                Ok(below) => to.join(below),
                Err(_not_below) => continue,
            };
            if let Some(node) = state.nodes.remove(&old) {
                state.nodes.insert(new, node);
            }
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> Result<Removed, Error> {
        let deed = Deed::RemoveFile;
        let mut state = locked(&self.state);
        match state.may_change(deed, path) {
            Err(error) if error.is_not_found() => return Ok(Removed::WasAbsent),
            other => other?,
        }
        match state.nodes.get(path).map(|node| &node.content) {
            None => Ok(Removed::WasAbsent),
            Some(Content::Directory) => {
                Err(Error::WrongKind { deed, path: path.to_owned(), expected: "a file" })
            }
            Some(Content::File(_) | Content::Link) => {
                state.nodes.remove(path);
                Ok(Removed::Now)
            }
        }
    }

    fn remove_tree(&self, path: &Path) -> Result<Removed, Error> {
        let deed = Deed::RemoveTree;
        let mut state = locked(&self.state);
        match state.may_change(deed, path) {
            Err(error) if error.is_not_found() => return Ok(Removed::WasAbsent),
            other => other?,
        }
        if state.roots.iter().any(|root| root.starts_with(path)) {
            return Err(Error::Outside { deed, path: path.to_owned() });
        }
        match state.nodes.get(path).map(|node| &node.content) {
            None => return Ok(Removed::WasAbsent),
            Some(Content::Link) => return Err(link(deed, path, path)),
            Some(Content::File(_)) => return Err(failed(deed, path, io::ErrorKind::NotADirectory)),
            Some(Content::Directory) => {}
        }
        if let Some(mount) = state.mounts.iter().find(|mount| mount.starts_with(path)) {
            return Err(Error::Mounted { deed, path: path.to_owned(), mount: mount.clone() });
        }
        state.nodes.retain(|at, _| !at.starts_with(path));
        Ok(Removed::Now)
    }

    fn list(&self, path: &Path) -> Result<Vec<Entry>, Error> {
        let deed = Deed::List;
        let mut state = locked(&self.state);
        state.may_read(deed, path)?;
        match state.existing(deed, path)?.content {
            Content::Directory => {}
            Content::Link => return Err(link(deed, path, path)),
            Content::File(_) => return Err(failed(deed, path, io::ErrorKind::NotADirectory)),
        }
        let inside = state.nodes.iter().filter(|(at, _)| at.parent() == Some(path));
        let entries: Vec<Entry> = inside
            .filter_map(|(at, node)| Some(Entry { name: at.file_name()?.to_owned(), kind: node.kind() }))
            .collect();
        if entries.len() > MAX_ENTRIES {
            return Err(Error::TooLarge { deed, path: path.to_owned(), limit: MAX_ENTRIES as u64 });
        }
        Ok(entries)
    }

    fn stat(&self, path: &Path) -> Result<Option<Stat>, Error> {
        let deed = Deed::Stat;
        let mut state = locked(&self.state);
        state.may_read(deed, path)?;
        Ok(state.nodes.get(path).map(|node| Stat {
            kind: node.kind(),
            mode: node.mode,
            owner: node.owner,
            size_bytes: match &node.content {
                Content::File(contents) => contents.len() as u64,
                Content::Directory | Content::Link => 0,
            },
        }))
    }

    fn space(&self, path: &Path) -> Result<Space, Error> {
        let mut state = locked(&self.state);
        state.injected(Deed::Space, path)?;
        plain_path(Deed::Space, path)?;
        Ok(state.space)
    }

    fn sync_all(&self, path: &Path) -> Result<(), Error> {
        let mut state = locked(&self.state);
        state.may_read(Deed::SyncAll, path)?;
        match state.existing(Deed::SyncAll, path)?.content {
            Content::Directory => Ok(()),
            Content::Link => Err(link(Deed::SyncAll, path, path)),
            Content::File(_) => Err(failed(Deed::SyncAll, path, io::ErrorKind::NotADirectory)),
        }
    }
}

// === impl State ===

impl State {
    fn injected(&mut self, deed: Deed, path: &Path) -> Result<(), Error> {
        let found = self.failures.iter().position(|(which, at, _)| *which == deed && at == path);
        match found.and_then(|index| self.failures.remove(index)) {
            Some((_, _, kind)) => Err(failed(deed, path, kind)),
            None => Ok(()),
        }
    }

    fn root_of(&self, path: &Path) -> Option<PathBuf> {
        let below = self.roots.iter().filter(|root| path.starts_with(root));
        below.max_by_key(|root| root.components().count()).cloned()
    }

    fn may_read(&mut self, deed: Deed, path: &Path) -> Result<(), Error> {
        self.injected(deed, path)?;
        plain_path(deed, path)?;
        match self.root_of(path) {
            Some(root) => self.no_links_between(deed, &root, path),
            None => Ok(()),
        }
    }

    /// Strictly below a root, in a folder that exists, with no link on the way.
    fn may_change(&mut self, deed: Deed, path: &Path) -> Result<(), Error> {
        self.injected(deed, path)?;
        plain_path(deed, path)?;
        let outside = || Error::Outside { deed, path: path.to_owned() };
        let root = self.root_of(path).filter(|root| root != path).ok_or_else(outside)?;
        self.no_links_between(deed, &root, path)?;
        let parent = path.parent().ok_or_else(outside)?;
        match self.nodes.get(parent).map(|node| &node.content) {
            Some(Content::Directory) => Ok(()),
            Some(Content::File(_) | Content::Link) => Err(failed(deed, path, io::ErrorKind::NotADirectory)),
            None => Err(failed(deed, path, io::ErrorKind::NotFound)),
        }
    }

    fn no_links_between(&self, deed: Deed, root: &Path, path: &Path) -> Result<(), Error> {
        let between = path.ancestors().skip(1).take_while(|at| at.starts_with(root) && *at != root);
        let is_link = |at: &&Path| matches!(self.nodes.get(*at).map(|n| &n.content), Some(Content::Link));
        match between.into_iter().find(is_link) {
            Some(at) => Err(link(deed, path, at)),
            None => Ok(()),
        }
    }

    fn existing(&self, deed: Deed, path: &Path) -> Result<&Node, Error> {
        self.nodes.get(path).ok_or_else(|| failed(deed, path, io::ErrorKind::NotFound))
    }
}

// === impl Node ===

impl Node {
    fn kind(&self) -> Kind {
        match self.content {
            Content::File(_) => Kind::File,
            Content::Directory => Kind::Directory,
            Content::Link => Kind::SymbolicLink,
        }
    }

    fn apply(&mut self, access: Access) {
        let Access { mode, owner } = access;
        self.mode = mode;
        self.owner = owner.unwrap_or(self.owner);
    }
}

fn failed(deed: Deed, path: &Path, kind: io::ErrorKind) -> Error {
    Error::Io { deed, path: path.to_owned(), source: io::Error::from(kind) }
}

fn link(deed: Deed, path: &Path, link: &Path) -> Error {
    Error::SymbolicLink { deed, path: path.to_owned(), link: link.to_owned() }
}
