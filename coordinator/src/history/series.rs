//! Which series a sample has, what they are called, and how precisely each is kept. Pure.
//!
//! Precision: a value comes back within half a [`Scale`] step. Fractions: 0.00125. Loads: 0.005. Amounts of bytes: 64 KiB
//! (the agent's own memory: 2 KiB). Rates and latencies: 1.7 % of the value and of the scale's unit.

use std::sync::Arc;

use holdfast_common::telemetry::{MAX_TEXT_BYTES, Sample, Stalls};

/// How a value becomes a whole number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Multiples of the step.
    Linear(f64),
    /// Steps of 3.3 % above the unit, finer below it; for values ≥ 0 that span many magnitudes.
    Logarithmic(f64),
}

/// The label that tells series of one name apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    None,
    MountPoint,
    Disk,
    Interface,
}

const FRACTION: Scale = Scale::Linear(0.0025);
const LOAD: Scale = Scale::Linear(0.01);
const BYTES: Scale = Scale::Linear(131_072.0);
const SMALL_BYTES: Scale = Scale::Linear(4096.0);
const RATE: Scale = Scale::Logarithmic(1.0);
const SMALL_RATE: Scale = Scale::Logarithmic(0.01);
const LATENCY: Scale = Scale::Logarithmic(1e-6);

/// Steps to a factor of e.
const LOGARITHM_STEPS: f64 = 30.0;
/// Numbers above this (about 10^15 units) are held there.
const LOGARITHM_LIMIT: f64 = 1e15;

macro_rules! kinds {
    ($($name:ident = $code:literal, $text:literal, $label:ident, $scale:expr;)+) => {
        /// A series' name. The codes stand on the disk: they are never used for another.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub(super) enum Kind { $($name = $code,)+ }

        impl Kind {
            pub(super) const ALL: &'static [Self] = &[$(Self::$name),+];

            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            pub(super) const fn label(self) -> Label {
                match self { $(Self::$name => Label::$label,)+ }
            }

            pub(super) const fn scale(self) -> Scale {
                match self { $(Self::$name => $scale,)+ }
            }

            pub(super) const fn code(self) -> u8 {
                self as u8
            }

            pub(super) const fn of_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

kinds! {
    CpuBusy = 1, "cpu_busy_fraction", None, FRACTION;
    CpuUser = 2, "cpu_user_fraction", None, FRACTION;
    CpuSystem = 3, "cpu_system_fraction", None, FRACTION;
    CpuIowait = 4, "cpu_iowait_fraction", None, FRACTION;
    CpuSteal = 5, "cpu_steal_fraction", None, FRACTION;
    LoadOneMinute = 6, "load_one_minute", None, LOAD;
    LoadFiveMinutes = 7, "load_five_minutes", None, LOAD;
    LoadFifteenMinutes = 8, "load_fifteen_minutes", None, LOAD;
    PressureCpuSome = 9, "pressure_cpu_some_fraction", None, FRACTION;
    PressureMemorySome = 10, "pressure_memory_some_fraction", None, FRACTION;
    PressureMemoryFull = 11, "pressure_memory_full_fraction", None, FRACTION;
    PressureIoSome = 12, "pressure_io_some_fraction", None, FRACTION;
    PressureIoFull = 13, "pressure_io_full_fraction", None, FRACTION;
    MemoryTotal = 14, "memory_total_bytes", None, BYTES;
    MemoryUsed = 15, "memory_used_bytes", None, BYTES;
    MemoryAvailable = 16, "memory_available_bytes", None, BYTES;
    MemoryCached = 17, "memory_cached_bytes", None, BYTES;
    SwapUsed = 18, "swap_used_bytes", None, BYTES;
    FileSystemTotal = 19, "file_system_total_bytes", MountPoint, BYTES;
    FileSystemUsed = 20, "file_system_used_bytes", MountPoint, BYTES;
    FileSystemAvailable = 21, "file_system_available_bytes", MountPoint, BYTES;
    FileSystemInodesUsed = 22, "file_system_inodes_used_fraction", MountPoint, FRACTION;
    DiskRead = 23, "disk_read_bytes_per_second", Disk, RATE;
    DiskWritten = 24, "disk_written_bytes_per_second", Disk, RATE;
    DiskReads = 25, "disk_reads_per_second", Disk, SMALL_RATE;
    DiskWrites = 26, "disk_writes_per_second", Disk, SMALL_RATE;
    DiskBusy = 27, "disk_busy_fraction", Disk, FRACTION;
    DiskReadLatency = 28, "disk_read_latency_seconds", Disk, LATENCY;
    DiskWriteLatency = 29, "disk_write_latency_seconds", Disk, LATENCY;
    NetworkReceived = 30, "network_received_bytes_per_second", Interface, RATE;
    NetworkSent = 31, "network_sent_bytes_per_second", Interface, RATE;
    NetworkReceivedPackets = 32, "network_received_packets_per_second", Interface, SMALL_RATE;
    NetworkSentPackets = 33, "network_sent_packets_per_second", Interface, SMALL_RATE;
    NetworkErrors = 34, "network_errors_per_second", Interface, SMALL_RATE;
    NetworkDrops = 35, "network_drops_per_second", Interface, SMALL_RATE;
    AgentResident = 36, "agent_resident_bytes", None, SMALL_BYTES;
    AgentCpu = 37, "agent_cpu_fraction", None, FRACTION;
}

/// One series of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) kind: Kind,
    /// The label's value; empty where the kind has none.
    pub(super) label: Arc<str>,
}

// === impl Scale ===

impl Scale {
    /// `None` for what is no number.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a cast from float saturates, and columns clamp further"
    )]
    pub(super) fn quantise(self, value: f64) -> Option<i64> {
        if !value.is_finite() {
            return None;
        }
        Some(match self {
            Self::Linear(step) => (value / step).round() as i64,
            Self::Logarithmic(unit) => {
                ((value.max(0.0) / unit).min(LOGARITHM_LIMIT).ln_1p() * LOGARITHM_STEPS).round() as i64
            }
        })
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "quantised numbers are far below 2^53 but at the clamped edge"
    )]
    pub(super) fn restore(self, quantised: i64) -> f64 {
        match self {
            Self::Linear(step) => quantised as f64 * step,
            Self::Logarithmic(unit) => (quantised as f64 / LOGARITHM_STEPS).exp_m1() * unit,
        }
    }
}

// === impl Label ===

impl Label {
    pub(super) const fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::MountPoint => Some("mount_point"),
            Self::Disk => Some("disk"),
            Self::Interface => Some("interface"),
        }
    }
}

// === impl Kind ===

impl Kind {
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

/// Every value of the sample, always in the same order. Values that are unknown are left out.
pub(super) fn each(sample: &Sample, mut take: impl FnMut(Kind, &str, f64)) {
    node_wide(sample, &mut take);
    for system in sample.file_systems.items.iter().filter(|system| fits(&system.mount_point)) {
        let label = system.mount_point.as_str();
        take(Kind::FileSystemTotal, label, bytes(system.total_bytes));
        take(Kind::FileSystemUsed, label, bytes(system.used_bytes));
        take(Kind::FileSystemAvailable, label, bytes(system.available_bytes));
        if let Some(inodes) = system.inodes.filter(|inodes| inodes.total > 0) {
            take(Kind::FileSystemInodesUsed, label, 1.0 - bytes(inodes.free) / bytes(inodes.total));
        }
    }
    for disk in sample.disks.items.iter().filter(|disk| fits(&disk.name)) {
        let label = disk.name.as_str();
        let Some(rates) = disk.rates else { continue };
        take(Kind::DiskRead, label, rates.read_bytes_per_second);
        take(Kind::DiskWritten, label, rates.written_bytes_per_second);
        take(Kind::DiskReads, label, rates.reads_per_second);
        take(Kind::DiskWrites, label, rates.writes_per_second);
        take(Kind::DiskBusy, label, rates.busy_fraction);
        if let Some(latency) = rates.read_latency_seconds {
            take(Kind::DiskReadLatency, label, latency);
        }
        if let Some(latency) = rates.write_latency_seconds {
            take(Kind::DiskWriteLatency, label, latency);
        }
    }
    for interface in sample.interfaces.items.iter().filter(|interface| fits(&interface.name)) {
        let label = interface.name.as_str();
        let Some(rates) = interface.rates else { continue };
        take(Kind::NetworkReceived, label, rates.received_bytes_per_second);
        take(Kind::NetworkSent, label, rates.sent_bytes_per_second);
        take(Kind::NetworkReceivedPackets, label, rates.received_packets_per_second);
        take(Kind::NetworkSentPackets, label, rates.sent_packets_per_second);
        take(Kind::NetworkErrors, label, rates.receive_errors_per_second + rates.send_errors_per_second);
        take(Kind::NetworkDrops, label, rates.receive_drops_per_second + rates.send_drops_per_second);
    }
}

fn node_wide(sample: &Sample, take: &mut impl FnMut(Kind, &str, f64)) {
    if let Some(usage) = sample.cpu.and_then(|cpu| cpu.usage) {
        take(Kind::CpuBusy, "", usage.busy_fraction());
        take(Kind::CpuUser, "", usage.user_fraction);
        take(Kind::CpuSystem, "", usage.system_fraction);
        take(Kind::CpuIowait, "", usage.iowait_fraction);
        take(Kind::CpuSteal, "", usage.steal_fraction);
    }
    if let Some(load) = sample.load {
        take(Kind::LoadOneMinute, "", load.one_minute);
        take(Kind::LoadFiveMinutes, "", load.five_minutes);
        take(Kind::LoadFifteenMinutes, "", load.fifteen_minutes);
    }
    let pressure = sample.pressure;
    stalls(pressure.cpu, Kind::PressureCpuSome, None, take);
    stalls(pressure.memory, Kind::PressureMemorySome, Some(Kind::PressureMemoryFull), take);
    stalls(pressure.io, Kind::PressureIoSome, Some(Kind::PressureIoFull), take);
    if let Some(memory) = sample.memory {
        take(Kind::MemoryTotal, "", bytes(memory.total_bytes));
        take(Kind::MemoryUsed, "", bytes(memory.used_bytes));
        take(Kind::MemoryAvailable, "", bytes(memory.available_bytes));
        take(Kind::MemoryCached, "", bytes(memory.cached_bytes));
    }
    if let Some(swap) = sample.swap {
        take(Kind::SwapUsed, "", bytes(swap.used_bytes));
    }
    if let Some(agent) = sample.agent {
        take(Kind::AgentResident, "", bytes(agent.resident_bytes));
        if let Some(fraction) = agent.cpu_fraction {
            take(Kind::AgentCpu, "", fraction);
        }
    }
}

fn stalls(stalls: Option<Stalls>, some: Kind, full: Option<Kind>, take: &mut impl FnMut(Kind, &str, f64)) {
    let Some(stalls) = stalls else { return };
    take(some, "", stalls.some.ten_seconds_fraction);
    if let (Some(kind), Some(stall)) = (full, stalls.full) {
        take(kind, "", stall.ten_seconds_fraction);
    }
}

fn fits(label: &str) -> bool {
    !label.is_empty() && label.len() <= MAX_TEXT_BYTES
}

#[expect(clippy::cast_precision_loss, reason = "amounts are kept in steps of kibibytes")]
const fn bytes(amount: u64) -> f64 {
    amount as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_comes_back_within_the_stated_precision(value in 0.0_f64..1e13) {
            for kind in Kind::ALL {
                let scale = kind.scale();
                let Some(quantised) = scale.quantise(value) else { return Err(TestCaseError::fail("refused")) };
                let error = (scale.restore(quantised) - value).abs();
                match scale {
                    Scale::Linear(step) => prop_assert!(error <= step * 0.51 + value * 1e-15, "{kind:?} {value} {error}"),
                    Scale::Logarithmic(unit) if value / unit < LOGARITHM_LIMIT => {
                        prop_assert!(error <= 0.0169 * (value + unit), "{kind:?} {value} {error}");
                    }
                    Scale::Logarithmic(_) => {}
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_unknown() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(FRACTION.quantise(value), None);
            assert_eq!(RATE.quantise(value), None);
        }
        assert_eq!(RATE.quantise(-5.0), Some(0));
    }

    #[test]
    fn every_name_ends_with_its_unit_and_every_code_leads_back() {
        for kind in Kind::ALL {
            let name = kind.name();
            assert!(
                ["_fraction", "_bytes", "_per_second", "_seconds"].iter().any(|unit| name.ends_with(unit))
                    || name.starts_with("load_"),
                "{name}"
            );
            assert_eq!(Kind::of_name(name), Some(*kind));
            assert_eq!(Kind::of_code(kind.code()), Some(*kind));
        }
        assert_eq!(Kind::of_code(0), None);
    }
}
