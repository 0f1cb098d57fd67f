//! Samples of a made-up busy node with some forty restless series: two disks, two interfaces, two file systems.

use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_common::telemetry::{
    AgentCost, Bounded, Cpu, CpuUsage, Disk, DiskRates, FileSystem, FileSystemAccess, Inodes, Interface,
    InterfaceRates, Load, Memory, Pressure, Sample, Stall, Stalls, Swap,
};
use jiff::Timestamp;

/// Numbers that look like chance and are the same each time.
#[derive(Debug)]
pub(super) struct Dice(AtomicU64);

// === impl Dice ===

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// SplitMix64.
    fn up_to(&self, limit: u32) -> u32 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut mixed = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let product = (mixed >> 32) * u64::from(limit);
        u32::try_from(product >> 32).unwrap_or(0)
    }

    /// Near `value`: apart from it by up to a quarter.
    fn near(&self, value: f64) -> f64 {
        value * (0.75 + f64::from(self.up_to(1_000_000)) / 2e6)
    }
}

/// What such a node measures now.
pub(super) fn busy(dice: &Dice, taken_at: Timestamp) -> Sample {
    let used = 3_000_000_000 + u64::from(dice.up_to(400_000_000));
    let stall = || Stall {
        ten_seconds_fraction: dice.near(0.01),
        one_minute_fraction: 0.01,
        five_minutes_fraction: 0.01,
        total_seconds: 1.0,
    };
    let stalls = || Some(Stalls { some: stall(), full: Some(stall()) });
    Sample {
        taken_at,
        interval_seconds: Some(5.0),
        uptime_seconds: Some(1e6),
        cpu: Some(Cpu { logical_cores: 4, usage: Some(usage(dice)) }),
        load: Some(Load { one_minute: dice.near(1.2), five_minutes: dice.near(1.1), fifteen_minutes: 1.0 }),
        pressure: Pressure { cpu: stalls(), memory: stalls(), io: stalls() },
        memory: Some(Memory {
            total_bytes: 8_000_000_000,
            available_bytes: 8_000_000_000 - used,
            used_bytes: used,
            buffers_bytes: 1_000_000,
            cached_bytes: 2_000_000_000 + used % 3_000_000,
        }),
        swap: Some(Swap { total_bytes: 0, used_bytes: 0 }),
        file_systems: all(["/", "/data"].map(|mount_point| file_system(dice, mount_point))),
        disks: all(["vda", "vdb"].map(|name| Disk { name: name.into(), rates: Some(disk(dice)) })),
        interfaces: all(
            ["ens3", "ens4"].map(|name| Interface { name: name.into(), rates: Some(interface(dice)) })
        ),
        agent: Some(AgentCost {
            resident_bytes: 14_000_000 + u64::from(dice.up_to(20_000)),
            cpu_seconds: 3.0,
            cpu_fraction: Some(dice.near(0.002)),
            open_files: 30,
            threads: 5,
        }),
        reboot_required: Some(false),
    }
}

fn all<T, const N: usize>(items: [T; N]) -> Bounded<T> {
    Bounded { items: items.into(), omitted: 0 }
}

fn usage(dice: &Dice) -> CpuUsage {
    let (user, system, iowait) = (dice.near(0.2), dice.near(0.05), dice.near(0.02));
    CpuUsage {
        user_fraction: user,
        nice_fraction: 0.0,
        system_fraction: system,
        idle_fraction: 1.0 - user - system - iowait,
        iowait_fraction: iowait,
        irq_fraction: 0.0,
        softirq_fraction: 0.0,
        steal_fraction: 0.0,
    }
}

fn file_system(dice: &Dice, mount_point: &str) -> FileSystem {
    let used = 20_000_000_000 + u64::from(dice.up_to(5_000_000));
    FileSystem {
        mount_point: mount_point.into(),
        device: "/dev/vda1".into(),
        kind: "ext4".into(),
        access: FileSystemAccess::ReadWrite,
        total_bytes: 100_000_000_000,
        used_bytes: used,
        available_bytes: 95_000_000_000 - used,
        inodes: Some(Inodes { total: 1_000_000, free: 900_000 }),
    }
}

fn disk(dice: &Dice) -> DiskRates {
    DiskRates {
        reads_per_second: dice.near(50.0),
        writes_per_second: dice.near(200.0),
        read_bytes_per_second: dice.near(800_000.0),
        written_bytes_per_second: dice.near(3_000_000.0),
        busy_fraction: dice.near(0.2),
        read_latency_seconds: Some(dice.near(0.0004)),
        write_latency_seconds: Some(dice.near(0.0011)),
        queue_depth: dice.near(0.3),
    }
}

fn interface(dice: &Dice) -> InterfaceRates {
    InterfaceRates {
        received_bytes_per_second: dice.near(1_000_000.0),
        sent_bytes_per_second: dice.near(500_000.0),
        received_packets_per_second: dice.near(900.0),
        sent_packets_per_second: dice.near(700.0),
        receive_errors_per_second: 0.0,
        send_errors_per_second: 0.0,
        receive_drops_per_second: 0.0,
        send_drops_per_second: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_restless_and_sound() {
        let dice = Dice::new(7);
        let samples: Vec<_> = (0..100).map(|_| busy(&dice, Timestamp::UNIX_EPOCH)).collect();
        assert!(samples.windows(2).all(|two| two[0] != two[1]));
        for usage in samples.iter().filter_map(|sample| sample.cpu.and_then(|cpu| cpu.usage)) {
            assert!((0.0..=1.0).contains(&usage.idle_fraction), "{usage:?}");
        }
    }

    #[test]
    fn dice_stay_within_their_bound_and_are_the_same_again() {
        let throws = |seed| {
            let dice = Dice::new(seed);
            (0..1000).map(|_| dice.up_to(6)).collect::<Vec<_>>()
        };
        assert!((0..6).all(|eye| throws(1).contains(&eye)) && throws(1).iter().all(|eye| *eye < 6));
        assert_eq!(throws(1), throws(1));
        assert_ne!(throws(1), throws(2));
    }
}
