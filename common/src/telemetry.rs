//! What a node measures of itself: a [`Sample`] every few seconds, and an [`Inventory`] when a session begins.
//!
//! Units stand in the names: `_bytes`, `_seconds`, `_per_second`; a `_fraction` lies in `0.0..=1.0` (of
//! [`AgentCost`] it may exceed 1). What could not be
//! read, or does not exist on the machine, is `None`, never zero. Rates compare two samples, so the first one after a
//! start of the agent has none, and neither has a device whose counters were reset. Every list is [`Bounded`].
//!
//! Not here: how any of it is collected (the agent), or kept (the coordinator).

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The most file systems that one sample names.
pub const MAX_FILE_SYSTEMS: usize = 32;
/// The most block devices that one sample names.
pub const MAX_DISKS: usize = 32;
/// The most network interfaces that one sample names.
pub const MAX_INTERFACES: usize = 32;
/// The most addresses that an inventory names.
pub const MAX_ADDRESSES: usize = 64;
/// The most engines that an inventory names.
pub const MAX_ENGINES: usize = 16;
/// The longest text that any single field of a sample or an inventory holds, in bytes.
pub const MAX_TEXT_BYTES: usize = 256;

/// One measurement of a whole node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When it was taken, by the node's own clock.
    pub taken_at: Timestamp,
    /// The span that all rates and fractions over time refer to; `None` in a sample that has no predecessor.
    pub interval_seconds: Option<f64>,
    /// Time since the machine booted.
    pub uptime_seconds: Option<f64>,
    pub cpu: Option<Cpu>,
    pub load: Option<Load>,
    pub pressure: Pressure,
    pub memory: Option<Memory>,
    pub swap: Option<Swap>,
    /// Every real file system once, by mount point; bind mounts of the same device are one.
    pub file_systems: Bounded<FileSystem>,
    /// Every real block device (no partitions, loop or RAM devices), by name.
    pub disks: Bounded<Disk>,
    /// Every network interface but the loopback, by name.
    pub interfaces: Bounded<Interface>,
    /// What the agent itself costs.
    pub agent: Option<AgentCost>,
    /// Packages that were installed take effect with the next boot, as their own scripts have noted.
    #[serde(default)]
    pub reboot_required: Option<bool>,
}

/// A list that was cut at a known bound, and how much was cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounded<T> {
    pub items: Vec<T>,
    /// How many more there were; 0 when the list is complete.
    pub omitted: u32,
}

/// The processors together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cpu {
    /// Processors that are online.
    pub logical_cores: u32,
    /// Where their time went since the last sample.
    pub usage: Option<CpuUsage>,
}

/// Shares of the time of all processors since the last sample; they add up to 1. Guest time is part of user and nice.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CpuUsage {
    pub user_fraction: f64,
    pub nice_fraction: f64,
    pub system_fraction: f64,
    pub idle_fraction: f64,
    pub iowait_fraction: f64,
    pub irq_fraction: f64,
    pub softirq_fraction: f64,
    /// Time that the hypervisor gave to others.
    pub steal_fraction: f64,
}

/// Load averages: tasks that run or wait.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Load {
    pub one_minute: f64,
    pub five_minutes: f64,
    pub fifteen_minutes: f64,
}

/// Pressure stall information of the kernel; `None` where the kernel does not offer it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    pub cpu: Option<Stalls>,
    pub memory: Option<Stalls>,
    pub io: Option<Stalls>,
}

/// How much waiting one resource causes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stalls {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited at once; `None` where the kernel does not tell it (processors before Linux 5.13).
    pub full: Option<Stall>,
}

/// Shares of time spent waiting, over windows of the kernel's choosing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    pub ten_seconds_fraction: f64,
    pub one_minute_fraction: f64,
    pub five_minutes_fraction: f64,
    /// All waiting since boot.
    pub total_seconds: f64,
}

/// Main memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub total_bytes: u64,
    /// What programs could still get without swapping, as the kernel estimates it.
    pub available_bytes: u64,
    /// `total - available`.
    pub used_bytes: u64,
    pub buffers_bytes: u64,
    /// Page cache, with reclaimable slabs.
    pub cached_bytes: u64,
}

/// Swap space; all zero on a machine without any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    pub total_bytes: u64,
    pub used_bytes: u64,
}

/// One mounted file system that keeps data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// The shortest path at which it is mounted.
    pub mount_point: String,
    /// What is mounted: `/dev/vda1`, `overlay`, `server:/export`.
    pub device: String,
    /// `ext4`, `xfs`, `btrfs` …
    pub kind: String,
    pub access: FileSystemAccess,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// Free for ordinary users; less than `total - used` where some is reserved for root.
    pub available_bytes: u64,
    /// `None` for file systems without a fixed number of inodes, such as btrfs.
    pub inodes: Option<Inodes>,
}

/// Whether a file system can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSystemAccess {
    ReadWrite,
    ReadOnly,
}

/// Inodes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inodes {
    pub total: u64,
    pub free: u64,
}

/// One block device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// As under `/dev`: `vda`, `nvme0n1`, `dm-0`.
    pub name: String,
    pub rates: Option<DiskRates>,
}

/// What a block device did since the last sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DiskRates {
    pub reads_per_second: f64,
    pub writes_per_second: f64,
    pub read_bytes_per_second: f64,
    pub written_bytes_per_second: f64,
    /// Share of the time with at least one request in flight.
    pub busy_fraction: f64,
    /// Mean time of a read from queue to completion; `None` if there was no read.
    pub read_latency_seconds: Option<f64>,
    /// Mean time of a write from queue to completion; `None` if there was no write.
    pub write_latency_seconds: Option<f64>,
    /// Mean number of requests in flight.
    pub queue_depth: f64,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub rates: Option<InterfaceRates>,
}

/// What went through an interface since the last sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct InterfaceRates {
    pub received_bytes_per_second: f64,
    pub sent_bytes_per_second: f64,
    pub received_packets_per_second: f64,
    pub sent_packets_per_second: f64,
    pub receive_errors_per_second: f64,
    pub send_errors_per_second: f64,
    pub receive_drops_per_second: f64,
    pub send_drops_per_second: f64,
}

/// What the agent's own process costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AgentCost {
    pub resident_bytes: u64,
    /// Processor time since the agent started, user and system.
    pub cpu_seconds: f64,
    /// Share of one processor since the last sample, more than 1 if several threads are busy; `None` in the first.
    pub cpu_fraction: Option<f64>,
    pub open_files: u32,
    pub threads: u32,
}

/// What a node is: told once, when a session begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    pub hostname: String,
    pub os: OperatingSystem,
    /// The kernel's release, such as `6.1.0-28-cloud-amd64`.
    pub kernel: String,
    /// As `uname -m` says: `x86_64`, `aarch64`.
    pub architecture: String,
    pub cpu_model: Option<String>,
    pub logical_cores: u32,
    pub physical_cores: Option<u32>,
    pub memory_bytes: u64,
    pub swap_bytes: u64,
    pub disks: Bounded<DiskFacts>,
    pub addresses: Bounded<Address>,
    /// The hypervisor or container the node runs in (`kvm`, `amazon`, `container` …); `None` on bare metal or unknown.
    pub virtualisation: Option<String>,
    pub service_manager: ServiceManager,
    pub privilege: Privilege,
    /// The engines that this node can run.
    pub engines: Bounded<EngineOffer>,
    /// Whether access rules can be enforced here.
    #[serde(default)]
    pub filtering: Filtering,
}

/// Whether a node can filter who reaches its engines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filtering {
    /// Not tried yet, or not told.
    #[default]
    Unknown,
    Available,
    /// nftables cannot be used on this machine.
    Unavailable {
        reason: String,
    },
    /// It can be, and does not work at this moment.
    Failed {
        reason: String,
    },
}

/// The distribution, from os-release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatingSystem {
    /// `debian`, `ubuntu` …; `linux` where the machine does not say.
    pub id: String,
    /// `12`; `None` on rolling releases.
    pub version: Option<String>,
    /// `Debian GNU/Linux 12 (bookworm)`.
    pub pretty_name: String,
}

/// One disk with a file system on it, as found when the session began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    pub device: String,
    pub mount_point: String,
    pub file_system: String,
    pub total_bytes: u64,
    pub medium: DiskMedium,
}

/// What a disk is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskMedium {
    Rotating,
    SolidState,
    Unknown,
}

/// One address of the node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address {
    pub interface: String,
    pub ip: IpAddr,
    pub prefix_length: u8,
    pub scope: AddressScope,
}

/// From where an address can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AddressScope {
    /// Only from the node itself.
    Loopback,
    /// Only from the same link.
    LinkLocal,
    /// From other networks, as far as they route.
    Routable,
}

/// Who runs services on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceManager {
    Systemd,
    /// None: the agent supervises the databases itself.
    Plain,
}

/// As whom the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Privilege {
    Root,
    /// An ordinary user: no firewall, no packages, no other users' files.
    Unprivileged,
}

/// An engine in one version that the node can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineOffer {
    /// The engine's name, such as `postgresql`.
    pub engine: String,
    /// The version that would run, such as `15.14`.
    pub version: String,
    pub availability: EngineAvailability,
}

/// What it takes to run an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineAvailability {
    Installed,
    /// The node's package manager offers it.
    Installable,
}

// === impl Bounded ===

impl<T> Bounded<T> {
    /// Keeps the first `limit` of `items` and counts the rest.
    pub fn first(mut items: Vec<T>, limit: usize) -> Self {
        let omitted = u32::try_from(items.len().saturating_sub(limit)).unwrap_or(u32::MAX);
        items.truncate(limit);
        Self { items, omitted }
    }

    pub fn is_complete(&self) -> bool {
        self.omitted == 0
    }
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self { items: Vec::new(), omitted: 0 }
    }
}

// === impl CpuUsage ===

impl CpuUsage {
    /// Share of the time in which the processors worked: neither idle nor waiting for a disk.
    pub fn busy_fraction(&self) -> f64 {
        (1.0 - self.idle_fraction - self.iowait_fraction).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_list_says_how_much_was_cut() {
        let cut = Bounded::first(vec![1, 2, 3, 4, 5], 3);
        assert_eq!(cut, Bounded { items: vec![1, 2, 3], omitted: 2 });
        assert!(!cut.is_complete());
        assert!(Bounded::first(vec![1, 2, 3], 3).is_complete());
    }

    #[test]
    fn waiting_for_a_disk_is_not_work() {
        let usage = CpuUsage {
            user_fraction: 0.2,
            nice_fraction: 0.0,
            system_fraction: 0.1,
            idle_fraction: 0.4,
            iowait_fraction: 0.3,
            irq_fraction: 0.0,
            softirq_fraction: 0.0,
            steal_fraction: 0.0,
        };
        assert!((usage.busy_fraction() - 0.3).abs() < 1e-9);
    }
}
