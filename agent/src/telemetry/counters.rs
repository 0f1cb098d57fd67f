//! Raw readings of `/proc`. What is not there is `None`; nothing is computed here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::PathBuf;

use holdfast_common::telemetry::{Load, Memory, Pressure, Stall, Stalls, Swap};
use procfs::net::InterfaceDeviceStatus;
use procfs::process::Stat;
use procfs::{
    DiskStats, FromBufRead, FromBufReadSI, FromRead, KernelStats, LoadAverage, LocalSystemInfo, Meminfo,
};

/// No file of `/proc` that is read here is larger, short of thousands of devices.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
const SECTOR_BYTES: u64 = 512;
const KIB: u64 = 1024;

/// Where the kernel's files are; another folder in tests.
#[derive(Debug, Clone)]
pub struct Roots {
    pub proc: PathBuf,
    pub sys: PathBuf,
    pub run: PathBuf,
}

/// Time of all processors, in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTimes {
    pub user: u64,
    pub nice: u64,
    pub system: u64,
    pub idle: u64,
    pub iowait: u64,
    pub irq: u64,
    pub softirq: u64,
    pub steal: u64,
}

/// Counters of one disk since it appeared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskCounters {
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub read_millis: u64,
    pub write_millis: u64,
    pub busy_millis: u64,
    pub weighted_millis: u64,
}

/// Counters of one interface since it appeared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceCounters {
    pub received_bytes: u64,
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub sent_packets: u64,
    pub receive_errors: u64,
    pub send_errors: u64,
    pub receive_drops: u64,
    pub send_drops: u64,
}

/// The agent's own process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OwnCounters {
    pub resident_bytes: u64,
    pub cpu_seconds: f64,
    pub open_files: u32,
    pub threads: u32,
}

// === impl Roots ===

impl Default for Roots {
    fn default() -> Self {
        Self { proc: PathBuf::from("/proc"), sys: PathBuf::from("/sys"), run: PathBuf::from("/run") }
    }
}

impl Roots {
    /// All processors together, and how many there are.
    pub fn cpu(&self) -> Option<(u32, CpuTimes)> {
        let found = KernelStats::from_buf_read(self.open("stat")?, &LocalSystemInfo).ok()?;
        let total = found.total;
        let times = CpuTimes {
            user: total.user,
            nice: total.nice,
            system: total.system,
            idle: total.idle,
            iowait: total.iowait.unwrap_or(0),
            irq: total.irq.unwrap_or(0),
            softirq: total.softirq.unwrap_or(0),
            steal: total.steal.unwrap_or(0),
        };
        Some((u32::try_from(found.cpu_time.len()).ok()?, times))
    }

    pub fn load(&self) -> Option<Load> {
        let found = LoadAverage::from_read(self.open("loadavg")?).ok()?;
        let LoadAverage { one, five, fifteen, .. } = found;
        Some(Load {
            one_minute: f64::from(one),
            five_minutes: f64::from(five),
            fifteen_minutes: f64::from(fifteen),
        })
    }

    pub fn uptime_seconds(&self) -> Option<f64> {
        let mut text = String::new();
        self.open("uptime")?.read_to_string(&mut text).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }

    /// Whether a package's script has left the note for it that Debian's packages leave.
    pub fn reboot_required(&self) -> Option<bool> {
        self.run.join("reboot-required").try_exists().ok()
    }

    pub fn memory(&self) -> Option<(Memory, Swap)> {
        let found = Meminfo::from_buf_read(self.open("meminfo")?).ok()?;
        let available = found.mem_available?.min(found.mem_total);
        let memory = Memory {
            total_bytes: found.mem_total,
            available_bytes: available,
            used_bytes: found.mem_total - available,
            buffers_bytes: found.buffers,
            cached_bytes: found.cached.saturating_add(found.s_reclaimable.unwrap_or(0)),
        };
        let swap = Swap {
            total_bytes: found.swap_total,
            used_bytes: found.swap_total.saturating_sub(found.swap_free),
        };
        Some((memory, swap))
    }

    /// Each resource by itself: a kernel may offer some, and files may be there but refuse to be read (`psi=0`).
    pub fn pressure(&self) -> Pressure {
        let stalls = |path| self.open(path).and_then(stalls);
        Pressure { cpu: stalls("pressure/cpu"), memory: stalls("pressure/memory"), io: stalls("pressure/io") }
    }

    /// Whole disks by name; `is_disk` says which names are real ones.
    pub fn disks(&self, mut is_disk: impl FnMut(&str) -> bool) -> BTreeMap<String, DiskCounters> {
        let Some(found) = self.open("diskstats").and_then(|file| DiskStats::from_buf_read(file).ok()) else {
            return BTreeMap::new();
        };
        let disks = found.0.into_iter().filter(|disk| is_disk(&disk.name));
        disks
            .map(|disk| {
                let counters = DiskCounters {
                    reads: disk.reads,
                    writes: disk.writes,
                    read_bytes: disk.sectors_read.saturating_mul(SECTOR_BYTES),
                    written_bytes: disk.sectors_written.saturating_mul(SECTOR_BYTES),
                    read_millis: disk.time_reading,
                    write_millis: disk.time_writing,
                    busy_millis: disk.time_in_progress,
                    weighted_millis: disk.weighted_time_in_progress,
                };
                (disk.name, counters)
            })
            .collect()
    }

    /// Interfaces by name, without the loopback.
    pub fn interfaces(&self) -> BTreeMap<String, InterfaceCounters> {
        let found = self.open("net/dev").and_then(|file| InterfaceDeviceStatus::from_buf_read(file).ok());
        let interfaces = found.map(|found| found.0).unwrap_or_default().into_iter();
        interfaces
            .filter(|(name, _)| name != "lo")
            .map(|(name, found)| {
                let counters = InterfaceCounters {
                    received_bytes: found.recv_bytes,
                    sent_bytes: found.sent_bytes,
                    received_packets: found.recv_packets,
                    sent_packets: found.sent_packets,
                    receive_errors: found.recv_errs,
                    send_errors: found.sent_errs,
                    receive_drops: found.recv_drop,
                    send_drops: found.sent_drop,
                };
                (name, counters)
            })
            .collect()
    }

    /// What the agent's own process costs.
    pub fn own(&self) -> Option<OwnCounters> {
        let stat = Stat::from_read(self.open("self/stat")?).ok()?;
        let open_files = std::fs::read_dir(self.proc.join("self/fd")).ok()?.take(1 << 20).count();
        let ticks = stat.utime.saturating_add(stat.stime);
        Some(OwnCounters {
            resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
            cpu_seconds: seconds(ticks, procfs::ticks_per_second()),
            // Reading the folder holds it open: that one is not the agent's.
            open_files: u32::try_from(open_files).ok()?.saturating_sub(1),
            threads: u32::try_from(stat.num_threads).ok()?,
        })
    }

    /// A file of `/proc`, bounded.
    pub(super) fn open(&self, path: &str) -> Option<impl BufRead + use<>> {
        let file = File::open(self.proc.join(path)).ok()?;
        Some(BufReader::with_capacity(8 * usize::try_from(KIB).ok()?, file.take(MAX_FILE_BYTES)))
    }
}

/// procfs demands both lines; processors before Linux 5.13 have only the first.
fn stalls(file: impl BufRead) -> Option<Stalls> {
    let (mut some, mut full) = (None, None);
    for line in file.lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("some", values)) => some = stall(values),
            Some(("full", values)) => full = stall(values),
            Some(_) | None => {}
        }
    }
    Some(Stalls { some: some?, full })
}

/// `avg10=0.12 avg60=0.05 avg300=0.01 total=123456`: per cent, and microseconds.
fn stall(values: &str) -> Option<Stall> {
    let value = |key: &str| -> Option<f64> {
        values.split(' ').find_map(|part| part.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
    };
    Some(Stall {
        ten_seconds_fraction: value("avg10")? / 100.0,
        one_minute_fraction: value("avg60")? / 100.0,
        five_minutes_fraction: value("avg300")? / 100.0,
        total_seconds: value("total")? / 1e6,
    })
}

#[expect(clippy::cast_precision_loss, reason = "ticks of centuries fit")]
fn seconds(ticks: u64, per_second: u64) -> f64 {
    ticks as f64 / per_second as f64
}
