//! Which of the mounted file systems are worth a line, and how full they are.

use std::collections::BTreeMap;

use holdfast_common::telemetry::{FileSystem, FileSystemAccess, Inodes, MAX_TEXT_BYTES};
use nix::sys::statvfs::statvfs;

/// File systems on the network: asking them may hang for ever if the server is gone, so they are named but never asked.
const NETWORK: &[&str] = &["nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "9p", "afs"];
/// Kinds that keep data without a block device of their own under `/dev`.
const WITHOUT_DEVICE: &[&str] = &["zfs", "btrfs", "bcachefs", "virtiofs"];
/// Mounts that container programs make of file systems that are counted elsewhere.
const PLUMBING: &[&str] = &[
    "/var/lib/docker/",
    "/var/lib/containers/",
    "/var/lib/kubelet/",
    "/run/containerd/",
    "/run/docker/",
    "/snap/",
];

/// One line of `/proc/self/mountinfo` that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor`.
    pub device_number: String,
    pub mount_point: String,
    pub kind: String,
    pub device: String,
    pub access: FileSystemAccess,
}

/// The real local file systems of a mount table, each device once (at its shortest path), by path. An overlay counts only
/// as the root of the machine: everywhere else it is made of file systems that are in the table themselves.
pub fn real_mounts(table: &str) -> Vec<Mount> {
    let mut by_device: BTreeMap<String, Mount> = BTreeMap::new();
    for mount in table.lines().filter_map(parse).filter(is_real) {
        match by_device.get_mut(&mount.device_number) {
            Some(known) if known.mount_point.len() <= mount.mount_point.len() => {}
            Some(known) => *known = mount,
            None => {
                by_device.insert(mount.device_number.clone(), mount);
            }
        }
    }
    let mut mounts: Vec<Mount> = by_device.into_values().collect();
    mounts.sort_by(|a, b| a.mount_point.cmp(&b.mount_point));
    mounts
}

/// Asks the kernel how full it is; `None` if it does not say.
pub fn measure(mount: Mount) -> Option<FileSystem> {
    let found = statvfs(mount.mount_point.as_str()).ok()?;
    let block = found.fragment_size();
    let inodes = (found.files() > 0).then(|| Inodes { total: found.files(), free: found.files_free() });
    let Mount { device_number: _, mount_point, kind, device, access } = mount;
    (found.blocks() > 0).then(|| FileSystem {
        mount_point,
        device,
        kind,
        access,
        total_bytes: found.blocks().saturating_mul(block),
        used_bytes: found.blocks().saturating_sub(found.blocks_free()).saturating_mul(block),
        available_bytes: found.blocks_available().saturating_mul(block),
        inodes,
    })
}

/// `36 35 98:0 /root /mount rw,noatime master:1 - ext4 /dev/root rw,errors=continue`
fn parse(line: &str) -> Option<Mount> {
    let (first, second) = line.split_once(" - ")?;
    let mut first = first.split(' ').skip(2);
    let device_number = first.next()?.to_owned();
    let mount_point = unescaped(first.nth(1)?);
    let options = first.next()?;
    let mut second = second.split(' ');
    let kind = second.next()?.to_owned();
    let device = unescaped(second.next()?);
    let short =
        mount_point.len() <= MAX_TEXT_BYTES && device.len() <= MAX_TEXT_BYTES && kind.len() <= MAX_TEXT_BYTES;
    // The mount, or the file system below it, may be read-only.
    let super_options = second.next().unwrap_or_default();
    let read_only = [options, super_options].iter().any(|set| set.split(',').any(|option| option == "ro"));
    let access = if read_only { FileSystemAccess::ReadOnly } else { FileSystemAccess::ReadWrite };
    short.then_some(Mount { device_number, mount_point, kind, device, access })
}

fn is_real(mount: &Mount) -> bool {
    let Mount { device_number: _, mount_point, kind, device, access: _ } = mount;
    if PLUMBING.iter().any(|prefix| mount_point.starts_with(prefix)) || NETWORK.contains(&kind.as_str()) {
        return false;
    }
    // Images of packages: always full, never a concern.
    if matches!(kind.as_str(), "squashfs" | "erofs" | "iso9660" | "ramfs") {
        return false;
    }
    device.starts_with("/dev/")
        || WITHOUT_DEVICE.contains(&kind.as_str())
        || (matches!(kind.as_str(), "overlay" | "tmpfs") && mount_point == "/")
}

/// The kernel writes space, tab, newline and backslash as octal.
fn unescaped(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 28 0:20 / /proc rw,nosuid - proc proc rw
22 28 0:21 / /sys rw - sysfs sysfs rw
28 1 253:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,discard
31 28 0:25 / /run rw - tmpfs tmpfs rw,size=400M
40 28 253:17 / /mnt/my\\040disk rw - xfs /dev/vdb1 rw
41 28 253:17 /sub /mnt/my\\040disk/bound/here rw - xfs /dev/vdb1 rw
42 28 253:1 /var/lib/holdfast /data rw - ext4 /dev/vda1 rw
50 28 0:44 / /var/lib/docker/overlay2/abc/merged rw - overlay overlay rw
51 28 0:45 / /srv/app rw - overlay overlay rw
52 28 7:1 / /snap/core/1 ro - squashfs /dev/loop1 ro
53 28 0:50 / /net rw - nfs4 server:/export rw
54 28 253:33 / /archive ro - ext4 /dev/vdc ro
55 28 0:60 / /pool rw - zfs tank/data rw
this line is broken";

    #[test]
    fn every_real_file_system_is_there_once() {
        let found = real_mounts(TABLE);
        let lines: Vec<(&str, &str)> =
            found.iter().map(|m| (m.mount_point.as_str(), m.device.as_str())).collect();
        let expected = [
            ("/", "/dev/vda1"),
            ("/archive", "/dev/vdc"),
            ("/mnt/my disk", "/dev/vdb1"),
            ("/pool", "tank/data"),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_read_only_mount_is_said_to_be_one() {
        let archive = real_mounts(TABLE).into_iter().find(|m| m.mount_point == "/archive").unwrap();
        assert_eq!(archive.access, FileSystemAccess::ReadOnly);
    }

    #[test]
    fn the_root_of_a_container_counts_although_it_is_an_overlay() {
        let found = real_mounts("28 1 0:44 / / rw - overlay overlay rw,lowerdir=/a");
        assert_eq!(found.len(), 1);
        let root = measure(found.into_iter().next().unwrap()).unwrap();
        assert!(root.total_bytes >= root.used_bytes && root.total_bytes > 0);
    }
}
