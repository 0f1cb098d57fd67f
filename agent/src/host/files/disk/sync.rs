//! The one way by which what was written comes to be on the disk: without it a power cut takes it back.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::unistd;

/// Returns once the disk has what was written to a file, or the names in a folder as they are now.
pub(super) fn sync(what: impl AsFd) -> Result<(), Errno> {
    #[cfg(test)]
    seen::note(what.as_fd());
    loop {
        match unistd::fsync(what.as_fd()) {
            Err(Errno::EINTR) => {}
            ended => return ended,
        }
    }
}

/// What was synced on this thread, and as what.
#[cfg(test)]
pub(in crate::host::files) mod seen {
    use std::cell::RefCell;
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    thread_local! {
        static SEEN: RefCell<Vec<Synced>> = const { RefCell::new(Vec::new()) };
    }

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(in crate::host::files) enum Synced {
        /// By the name, with the mode and the size, that it had at that moment.
        File { path: PathBuf, mode: u32, bytes: u64 },
        /// With the names in it at that moment.
        Folder { path: PathBuf, names: Vec<String> },
    }

    pub(super) fn note(what: BorrowedFd<'_>) {
        let Ok(path) = std::fs::read_link(format!("/proc/thread-self/fd/{}", what.as_raw_fd())) else {
            return;
        };
        // One that somebody else removes meanwhile is nothing to tell of.
        let Ok(found) = std::fs::metadata(&path) else { return };
        let synced = if found.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            let mut names: Vec<String> =
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            Synced::Folder { path, names }
        } else {
            Synced::File { path, mode: found.permissions().mode() & 0o7777, bytes: found.len() }
        };
        SEEN.with_borrow_mut(|seen| seen.push(synced));
    }

    /// All of it since the last time.
    pub(in crate::host::files) fn take() -> Vec<Synced> {
        SEEN.take()
    }
}
