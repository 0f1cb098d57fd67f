//! Samples of a made-up busy node: two disks (one idle), two interfaces, two file systems, everything restless.

use holdfast_common::telemetry::{
    AgentCost, Bounded, Cpu, CpuUsage, Disk, DiskRates, FileSystem, FileSystemAccess, Inodes, Interface,
    InterfaceRates, Load, Memory, Pressure, Sample, Stall, Stalls, Swap,
};
use jiff::Timestamp;

/// Numbers that look like chance and are the same each time.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn up_to(&mut self, limit: i64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        i64::try_from(self.0 >> 2).unwrap() % limit
    }

    fn fraction(&mut self) -> f64 {
        f64::from(i32::try_from(self.up_to(1_000_000)).unwrap()) / 1e6
    }

    fn near(&mut self, value: f64, share: f64) -> f64 {
        value * (1.0 + share * (self.fraction() - 0.5))
    }
}

pub(super) fn busy_sample(dice: &mut Dice, n: i64) -> Sample {
    let (user, system, iowait) = (dice.near(0.2, 0.4), dice.near(0.05, 0.4), dice.near(0.02, 1.0));
    let used = u64::try_from(3_000_000_000 + n * 4096 + dice.up_to(4_000_000)).unwrap();
    let stall = |dice: &mut Dice| Stall {
        ten_seconds_fraction: dice.near(0.01, 1.0),
        one_minute_fraction: 0.01,
        five_minutes_fraction: 0.01,
        total_seconds: 1.0,
    };
    let stalls = |dice: &mut Dice| Stalls { some: stall(dice), full: Some(stall(dice)) };
    Sample {
        taken_at: Timestamp::from_millisecond(n * 5000).unwrap(),
        interval_seconds: Some(5.0),
        uptime_seconds: Some(1e6),
        cpu: Some(Cpu {
            logical_cores: 4,
            usage: Some(CpuUsage {
                user_fraction: user,
                nice_fraction: 0.0,
                system_fraction: system,
                idle_fraction: 1.0 - user - system - iowait,
                iowait_fraction: iowait,
                irq_fraction: 0.0,
                softirq_fraction: 0.0,
                steal_fraction: 0.0,
            }),
        }),
        load: Some(Load {
            one_minute: dice.near(1.2, 0.1),
            five_minutes: dice.near(1.1, 0.02),
            fifteen_minutes: 1.0,
        }),
        pressure: Pressure { cpu: Some(stalls(dice)), memory: Some(stalls(dice)), io: Some(stalls(dice)) },
        memory: Some(Memory {
            total_bytes: 8_000_000_000,
            available_bytes: 8_000_000_000 - used,
            used_bytes: used,
            buffers_bytes: 1_000_000,
            cached_bytes: 2_000_000_000 + used % 3_000_000,
        }),
        swap: Some(Swap { total_bytes: 0, used_bytes: 0 }),
        file_systems: all(["/", "/data"].map(|mount_point| FileSystem {
            mount_point: mount_point.into(),
            device: "/dev/vda1".into(),
            kind: "ext4".into(),
            access: FileSystemAccess::ReadWrite,
            total_bytes: 100_000_000_000,
            used_bytes: 20_000_000_000 + u64::try_from(n * 50_000).unwrap(),
            available_bytes: 75_000_000_000 - u64::try_from(n * 50_000).unwrap(),
            inodes: Some(Inodes { total: 1_000_000, free: 900_000 }),
        })),
        disks: all([("vda", 1.0), ("vdb", 0.0)]
            .map(|(name, load)| Disk { name: name.into(), rates: Some(disk(dice, load)) })),
        interfaces: all(
            ["ens3", "ens4"].map(|name| Interface { name: name.into(), rates: Some(interface(dice)) })
        ),
        agent: Some(AgentCost {
            resident_bytes: 14_000_000 + u64::try_from(dice.up_to(20_000)).unwrap(),
            cpu_seconds: 3.0,
            cpu_fraction: Some(dice.near(0.002, 0.5)),
            open_files: 30,
            threads: 5,
        }),
        reboot_required: Some(false),
    }
}

fn all<T, const N: usize>(items: [T; N]) -> Bounded<T> {
    Bounded { items: items.into(), omitted: 0 }
}

fn disk(dice: &mut Dice, load: f64) -> DiskRates {
    DiskRates {
        reads_per_second: dice.near(50.0, 1.0) * load,
        writes_per_second: dice.near(200.0, 0.5) * load,
        read_bytes_per_second: dice.near(800_000.0, 1.0) * load,
        written_bytes_per_second: dice.near(3_000_000.0, 0.5) * load,
        busy_fraction: dice.near(0.2, 0.5) * load,
        read_latency_seconds: (load > 0.0).then(|| dice.near(0.0004, 0.8)),
        write_latency_seconds: (load > 0.0).then(|| dice.near(0.0011, 0.8)),
        queue_depth: 0.3 * load,
    }
}

fn interface(dice: &mut Dice) -> InterfaceRates {
    InterfaceRates {
        received_bytes_per_second: dice.near(1_000_000.0, 0.6),
        sent_bytes_per_second: dice.near(500_000.0, 0.6),
        received_packets_per_second: dice.near(900.0, 0.6),
        sent_packets_per_second: dice.near(700.0, 0.6),
        receive_errors_per_second: 0.0,
        send_errors_per_second: 0.0,
        receive_drops_per_second: 0.0,
        send_drops_per_second: 0.0,
    }
}
