//! Reading files that must not have been tampered with, and writing those that nobody else may read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Uid;
use zeroize::Zeroizing;

use crate::id::InstanceId;

/// More than any configuration, certificate or key needs.
const MAX_BYTES: u64 = 1024 * 1024;

/// Who may read a file besides its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privacy {
    /// Anybody.
    Public,
    /// Nobody: it holds a key, a token or a password.
    Private,
}

/// Why a file is not used, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{deed} {}", path.display())]
    Io {
        /// What was tried.
        deed: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A link could lead anywhere, later than it was looked at.
    #[error("{} is a symbolic link; give the file itself", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// A directory, a device, a pipe.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What it is called.
        path: PathBuf,
    },
    /// Somebody else's.
    #[error("{} belongs to user {owner}; it must belong to root or to the user that runs this program", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// Others may write or read it.
    #[error("{} has mode {mode:04o}, which lets others {others} it; run: chmod {remedy} {}", path.display(), path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What others may do.
        others: &'static str,
        /// What to give to `chmod`.
        remedy: &'static str,
    },
    /// Too long to be what it should be.
    #[error("{} has more than the {MAX_BYTES} bytes allowed", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
}

/// The text of a file that only its owner could have written. It is wiped from memory when dropped.
///
/// # Errors
/// See [`FileError`].
pub fn read(path: &Path, privacy: Privacy) -> Result<Zeroizing<String>, FileError> {
    let io = |deed| move |source| FileError::Io { deed, path: path.to_owned(), source };
    // Not blocking, or a pipe in the file's place would hold the program up for ever.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(|error| {
        if error.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) {
            return FileError::Link { path: path.to_owned() };
        }
        io("open")(error)
    })?;
    // Asked of the open file, not of the path, which could be another one by now.
    check(path, &file.metadata().map_err(io("examine"))?, privacy)?;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(io("read"))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(FileError::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

/// Writes a file of mode 0600, whole or not at all: beside it, synced, then renamed over it, and the rename synced.
///
/// # Errors
/// [`FileError::Io`]; the file is then as before.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let io = |deed| move |source| FileError::Io { deed, path: path.to_owned(), source };
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", InstanceId::generate()));
    let beside = PathBuf::from(beside);
    let written = write_new(&beside, contents).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // Best effort: the error to be told is the first one.
        let _leftover = fs::remove_file(&beside);
    }
    written.map_err(io("write"))?;
    let parent =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(io("sync the directory of"))
}

fn write_new(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    file.sync_all()
}

fn check(path: &Path, metadata: &fs::Metadata, privacy: Privacy) -> Result<(), FileError> {
    let path = || path.to_owned();
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: path() });
    }
    let owner = metadata.uid();
    if owner != 0 && owner != Uid::effective().as_raw() {
        return Err(FileError::Owner { path: path(), owner });
    }
    let mode = metadata.mode() & 0o7777;
    let remedy = match privacy {
        Privacy::Public => "go-w",
        Privacy::Private => "0600",
    };
    if mode & 0o022 != 0 {
        return Err(FileError::Mode { path: path(), mode, others: "write", remedy });
    }
    match privacy {
        Privacy::Private if mode & 0o044 != 0 => {
            Err(FileError::Mode { path: path(), mode, others: "read", remedy })
        }
        Privacy::Public | Privacy::Private => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn file(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        fs::write(&path, "x = 1\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_file_that_others_may_write_is_refused_and_a_private_one_that_they_may_read() {
        for (mode, public, private) in [
            (0o600, None, None),
            (0o400, None, None),
            (0o640, None, Some("read")),
            (0o644, None, Some("read")),
            (0o604, None, Some("read")),
            (0o620, Some("write"), Some("write")),
            (0o602, Some("write"), Some("write")),
            (0o666, Some("write"), Some("write")),
        ] {
            let (_dir, path) = file(mode);
            for (privacy, wanted) in [(Privacy::Public, public), (Privacy::Private, private)] {
                let others = match read(&path, privacy) {
                    Ok(_) => None,
                    Err(FileError::Mode { others, mode: found, .. }) if found == mode => Some(others),
                    Err(other) => panic!("{other}"),
                };
                assert_eq!(others, wanted, "{mode:o} {privacy:?}");
            }
        }
        let (_dir, path) = file(0o644);
        let error = read(&path, Privacy::Private).unwrap_err().to_string();
        let path = path.display();
        assert_eq!(error, format!("{path} has mode 0644, which lets others read it; run: chmod 0600 {path}"));
    }

    #[test]
    fn links_pipes_directories_and_endless_files_are_refused() {
        let (dir, path) = file(0o600);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(read(&link, Privacy::Public), Err(FileError::Link { .. })));
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(read(&pipe, Privacy::Public), Err(FileError::NotAFile { .. })));
        assert!(matches!(read(dir.path(), Privacy::Public), Err(FileError::NotAFile { .. })));
        assert!(matches!(read(&dir.path().join("none"), Privacy::Public), Err(FileError::Io { .. })));
        let mut long = OpenOptions::new().write(true).open(&path).unwrap();
        long.write_all(&vec![b'#'; 1024 * 1024 + 1]).unwrap();
        assert!(matches!(read(&path, Privacy::Public), Err(FileError::TooLong { .. })));
    }

    #[test]
    fn a_private_file_is_replaced_whole_and_readable_by_its_owner_alone() {
        let (dir, path) = file(0o644);
        write_private(&path, b"secret").unwrap();
        assert_eq!(read(&path, Privacy::Private).unwrap().as_str(), "secret");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        // A directory cannot be replaced by a file: nothing changes and nothing is left beside it.
        let occupied = dir.path().join("occupied");
        fs::create_dir(&occupied).unwrap();
        write_private(&occupied, b"secret").unwrap_err();
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
