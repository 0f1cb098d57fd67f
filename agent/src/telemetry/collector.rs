//! Takes one sample after the other.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::Duration;

use holdfast_common::clock::{Boottime, Clock};
use holdfast_common::telemetry::{
    AgentCost, Bounded, Cpu, Disk, FileSystem, Interface, MAX_DISKS, MAX_FILE_SYSTEMS, MAX_INTERFACES, Sample,
};
use jiff::Timestamp;

use super::counters::{CpuTimes, DiskCounters, InterfaceCounters, Roots};
use super::{mounts, rates};

/// When a sample is taken: for people, and for arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub wall: Timestamp,
    pub boottime: Boottime,
}

/// Takes samples of this machine. It keeps the counters of the last one, and nothing else.
#[derive(Debug)]
pub struct Collector {
    roots: Roots,
    before: Option<Reading>,
    /// Whether a name of diskstats is a whole, real disk; asked of sysfs once per name.
    real_disks: BTreeMap<String, bool>,
}

#[derive(Debug)]
struct Reading {
    at: Boottime,
    cpu: Option<CpuTimes>,
    disks: BTreeMap<String, DiskCounters>,
    interfaces: BTreeMap<String, InterfaceCounters>,
    own_cpu_seconds: Option<f64>,
}

// === impl Moment ===

impl Moment {
    pub fn now(clock: &Clock) -> Self {
        Self { wall: clock.now(), boottime: clock.boottime() }
    }
}

// === impl Collector ===

impl Collector {
    pub fn new(roots: Roots) -> Self {
        Self { roots, before: None, real_disks: BTreeMap::new() }
    }

    /// Measures now. The first sample has no rates. It reads about a dozen files of `/proc` and asks every local file
    /// system for its room; it never waits for a network, but a broken disk may make it block: call it where that hurts
    /// nobody.
    pub fn collect(&mut self, now: Moment) -> Sample {
        let cpu = self.roots.cpu();
        let own = self.roots.own();
        let memory = self.roots.memory();
        let reading = Reading {
            at: now.boottime,
            cpu: cpu.map(|(_, times)| times),
            disks: self.disks(),
            interfaces: self.roots.interfaces(),
            own_cpu_seconds: own.map(|own| own.cpu_seconds),
        };
        let before = self.before.as_ref();
        let interval = before
            .map(|before| now.boottime.since(before.at))
            .filter(|interval| *interval >= rates::MIN_INTERVAL);
        let past = before.zip(interval);
        let sample = Sample {
            taken_at: now.wall,
            interval_seconds: interval.map(|interval| interval.as_secs_f64()),
            uptime_seconds: self.roots.uptime_seconds(),
            cpu: cpu.map(|(logical_cores, times)| Cpu {
                logical_cores,
                usage: past.and_then(|(before, _)| rates::cpu_usage(before.cpu.as_ref()?, &times)),
            }),
            load: self.roots.load(),
            pressure: self.roots.pressure(),
            memory: memory.map(|(memory, _)| memory),
            swap: memory.map(|(_, swap)| swap),
            file_systems: self.file_systems(),
            disks: disks(past, &reading.disks),
            interfaces: interfaces(past, &reading.interfaces),
            agent: own.map(|own| AgentCost {
                resident_bytes: own.resident_bytes,
                cpu_seconds: own.cpu_seconds,
                cpu_fraction: past.and_then(|(before, interval)| {
                    rates::cpu_fraction(before.own_cpu_seconds?, own.cpu_seconds, interval)
                }),
                open_files: own.open_files,
                threads: own.threads,
            }),
            reboot_required: self.roots.reboot_required(),
        };
        // Two calls too close together: the older reading goes on being the base.
        if self.before.is_none() || interval.is_some() {
            self.before = Some(reading);
        }
        sample
    }

    fn disks(&mut self) -> BTreeMap<String, DiskCounters> {
        let Self { roots, real_disks, .. } = self;
        // Names come and go with hot-plugging; a forgotten one is only asked again.
        if real_disks.len() > 4 * MAX_DISKS {
            real_disks.clear();
        }
        let block = roots.sys.join("block");
        roots.disks(|name| match real_disks.get(name) {
            Some(known) => *known,
            None => {
                let virtual_kind = ["loop", "ram", "zram", "sr", "fd"].iter().any(|kind| {
                    name.strip_prefix(kind).is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
                });
                // Partitions have no entry of their own there.
                let real = !virtual_kind && block.join(name.replace('/', "!")).exists();
                real_disks.insert(name.to_owned(), real);
                real
            }
        })
    }

    fn file_systems(&self) -> Bounded<FileSystem> {
        let mut table = String::new();
        let read = self.roots.open("self/mountinfo").map(|mut file| file.read_to_string(&mut table));
        if !matches!(read, Some(Ok(_))) {
            return Bounded::default();
        }
        let chosen = Bounded::first(mounts::real_mounts(&table), MAX_FILE_SYSTEMS);
        Bounded {
            items: chosen.items.into_iter().filter_map(mounts::measure).collect(),
            omitted: chosen.omitted,
        }
    }
}

fn disks(past: Option<(&Reading, Duration)>, now: &BTreeMap<String, DiskCounters>) -> Bounded<Disk> {
    let disks = now.iter().map(|(name, after)| Disk {
        name: name.clone(),
        rates: past
            .and_then(|(before, interval)| rates::disk_rates(before.disks.get(name)?, after, interval)),
    });
    Bounded::first(disks.collect(), MAX_DISKS)
}

fn interfaces(
    past: Option<(&Reading, Duration)>,
    now: &BTreeMap<String, InterfaceCounters>,
) -> Bounded<Interface> {
    let interfaces = now.iter().map(|(name, after)| Interface {
        name: name.clone(),
        rates: past.and_then(|(before, interval)| {
            rates::interface_rates(before.interfaces.get(name)?, after, interval)
        }),
    });
    Bounded::first(interfaces.collect(), MAX_INTERFACES)
}
