//! What the kernel says of files and file systems, as plain values.

use nix::sys::stat::{FileStat, SFlag};
use nix::sys::statvfs::Statvfs;

use super::{Inodes, Kind, Space, Stat};
use crate::host::system::Owner;

pub(super) fn kind_of(mode: u32) -> Kind {
    let kind = SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits());
    match () {
        () if kind == SFlag::S_IFREG => Kind::File,
        () if kind == SFlag::S_IFDIR => Kind::Directory,
        () if kind == SFlag::S_IFLNK => Kind::SymbolicLink,
        () => Kind::Other,
    }
}

pub(super) fn described(found: &FileStat) -> Stat {
    Stat {
        kind: kind_of(found.st_mode),
        mode: found.st_mode & 0o7777,
        owner: Owner { uid: found.st_uid, gid: found.st_gid },
        size_bytes: u64::try_from(found.st_size).unwrap_or(0),
    }
}

pub(super) fn room(found: &Statvfs) -> Space {
    let block = found.fragment_size();
    let inodes = (found.files() > 0).then(|| Inodes { total: found.files(), free: found.files_free() });
    Space {
        total_bytes: found.blocks().saturating_mul(block),
        available_bytes: found.blocks_available().saturating_mul(block),
        inodes,
    }
}
