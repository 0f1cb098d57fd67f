//! What a member's settings are, given the memory, cores and disk that it may count on. Pure.

use holdfast_common::budget::{Budget, MEMORY_BYTES};
use holdfast_common::engine::postgresql::{
    MAX_CONNECTIONS, SUPERUSER_RESERVED_CONNECTIONS, WORKER_PROCESSES,
};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// Settings in PostgreSQL's own units, as text.
pub(super) type Settings = Vec<(&'static str, String)>;

/// The share of a member of a machine that has this, beside `neighbours`: an equal part of memory and disk, and never so little
/// that the server could not start. `available_bytes` of the disk hold nobody else's data.
pub(super) fn share(machine: Budget, available_bytes: u64, neighbours: usize) -> Budget {
    let parts = u64::try_from(neighbours).unwrap_or(u64::MAX).saturating_add(1);
    // Of a disk that is more than half full only what is free counts, twice.
    let disk_bytes = machine.disk_bytes.min(available_bytes.saturating_mul(2));
    Budget {
        memory_bytes: (machine.memory_bytes / parts).clamp(*MEMORY_BYTES.start(), *MEMORY_BYTES.end()),
        cores: machine.cores.max(1),
        disk_bytes: disk_bytes / parts,
    }
}

/// What would be decided instead of `kept`: what is free of a disk is never the same for long, and moves nothing by less than a tenth.
pub(super) fn instead(kept: Budget, possible: Budget) -> Budget {
    let disk = Budget { disk_bytes: possible.disk_bytes, ..kept };
    if disk.differs_noticeably(kept) { possible } else { Budget { disk_bytes: kept.disk_bytes, ..possible } }
}

/// What a server can be started with where its share of the memory is no more than `memory_bytes` by now: what was decided, unless
/// that would claim most of it at once.
pub(super) fn bearable(budget: Budget, memory_bytes: u64) -> Budget {
    if shared(budget) <= memory_bytes / 2 {
        return budget;
    }
    Budget { memory_bytes: memory_bytes.clamp(*MEMORY_BYTES.start(), *MEMORY_BYTES.end()), ..budget }
}

/// All that follows from a budget: memory, processes, and how much log is kept.
pub(super) fn all(budget: Budget) -> Settings {
    let mut all = settings(budget);
    all.push(("wal_keep_size", megabytes(wal_keep_bytes(budget))));
    all.push(("max_slot_wal_keep_size", megabytes(slot_keep_bytes(budget))));
    all
}

/// What the server claims at its start and does not give back.
fn shared(budget: Budget) -> u64 {
    (budget.memory_bytes / 4).clamp(32 * MIB, 32 * GIB)
}

/// Of a server that does nothing but recover from a crash, and ends. What more costs time at its start and its end.
pub(super) fn recovering(budget: Budget) -> String {
    format!("shared_buffers={}", megabytes(shared(budget).min(GIB)))
}

/// Memory, processes and log sizes for this budget.
pub(super) fn settings(budget: Budget) -> Settings {
    let Budget { memory_bytes, cores, disk_bytes } = budget;
    let cores = u64::from(cores.max(1));
    // The same on every member, whatever its machine; PostgreSQL's own default, which also the smallest bears.
    let connections = u64::from(MAX_CONNECTIONS);
    let shared = shared(budget);
    // A query may use several times work_mem, and each connection may run one: a quarter of what is left is for them.
    let work = ((memory_bytes - shared.min(memory_bytes)) / 4 / connections).clamp(MIB, 256 * MIB);
    let maintenance = (memory_bytes / 16).clamp(16 * MIB, 2 * GIB);
    let max_wal = (disk_bytes / 20).clamp(256 * MIB, 16 * GIB);
    let parallel = (cores / 2).clamp(1, 8);
    vec![
        ("max_connections", connections.to_string()),
        ("superuser_reserved_connections", SUPERUSER_RESERVED_CONNECTIONS.to_string()),
        ("shared_buffers", megabytes(shared)),
        ("effective_cache_size", megabytes(memory_bytes * 3 / 4)),
        ("work_mem", megabytes(work)),
        ("maintenance_work_mem", megabytes(maintenance)),
        ("huge_pages", "try".to_owned()),
        // The same on every member too: a replica does not start with less than its primary has.
        ("max_worker_processes", WORKER_PROCESSES.to_string()),
        ("max_parallel_workers", cores.to_string()),
        ("max_parallel_workers_per_gather", parallel.to_string()),
        ("max_parallel_maintenance_workers", parallel.min(4).to_string()),
        ("checkpoint_completion_target", "0.9".to_owned()),
        ("checkpoint_timeout", "10min".to_owned()),
        ("max_wal_size", megabytes(max_wal)),
        // All of it is copied by each rewind, used or not.
        ("min_wal_size", megabytes((max_wal / 4).clamp(80 * MIB, 256 * MIB))),
        ("random_page_cost", "1.1".to_owned()),
        ("effective_io_concurrency", "100".to_owned()),
    ]
}

/// How much log an absent replica may keep from being removed: bounded, so that it can never fill the disk.
pub(super) fn slot_keep_bytes(budget: Budget) -> u64 {
    (budget.disk_bytes / 10).clamp(128 * MIB, 64 * GIB)
}

/// What is kept for replicas in any case: for the moment between a promotion and the slots that keep the rest.
pub(super) fn wal_keep_bytes(budget: Budget) -> u64 {
    (slot_keep_bytes(budget) / 4).min(128 * MIB)
}

pub(super) fn megabytes(bytes: u64) -> String {
    format!("{}MB", (bytes / MIB).max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn megabytes_of(settings: &Settings, name: &str) -> u64 {
        let found = settings.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
        found.and_then(|text| text.strip_suffix("MB").and_then(|n| n.parse().ok())).unwrap_or(0)
    }

    #[test]
    fn a_server_can_be_started_on_a_machine_that_has_become_small() {
        assert_eq!(bearable(MACHINE, 8 * GIB), MACHINE);
        assert_eq!(bearable(MACHINE, 4 * GIB), MACHINE, "it claims a half");
        let small = bearable(MACHINE, 3 * GIB);
        assert_eq!((small.memory_bytes, small.cores), (3 * GIB, 4));
        for memory in [0, 128 * MIB, 512 * MIB, GIB] {
            let claimed = shared(bearable(MACHINE, memory));
            assert!(claimed <= (memory / 2).max(64 * MIB), "{claimed} of {memory}");
        }
    }

    #[test]
    fn what_is_written_to_a_disk_that_is_half_full_changes_nothing() {
        let full = |free| share(MACHINE, free, 0);
        let kept = full(40 * GIB);
        assert_ne!(full(39 * GIB), kept);
        assert_eq!(instead(kept, full(39 * GIB)), kept);
        assert_eq!(instead(kept, full(20 * GIB)), full(20 * GIB));
        let more = Budget { memory_bytes: 9 * GIB, ..full(39 * GIB) };
        assert_eq!(instead(kept, more), Budget { memory_bytes: 9 * GIB, ..kept });
    }

    proptest! {
        #[test]
        fn no_machine_is_promised_more_memory_than_it_has(
            memory in 256 * MIB..2048 * GIB,
            cores in 0_u32..512,
            disk in 0_u64..1 << 50,
        ) {
            let settings = settings(Budget { memory_bytes: memory, cores, disk_bytes: disk });
            let total = memory / MIB;
            let shared = megabytes_of(&settings, "shared_buffers");
            let work = megabytes_of(&settings, "work_mem");
            let connections: u64 = settings[0].1.parse().unwrap();
            prop_assert!(shared * 100 <= total * 26 || memory < GIB, "shared_buffers {shared} of {total}");
            prop_assert!(shared + work * connections <= total, "{shared} + {connections} × {work} of {total}");
            prop_assert!(shared >= 32 && work >= 1 && megabytes_of(&settings, "maintenance_work_mem") >= 1);
        }

        #[test]
        fn replicas_never_keep_more_log_than_a_tenth_of_the_disk(disk in 2 * GIB..1 << 50) {
            let budget = Budget { memory_bytes: GIB, cores: 1, disk_bytes: disk };
            prop_assert!(slot_keep_bytes(budget) <= disk / 10);
            prop_assert!(wal_keep_bytes(budget) <= slot_keep_bytes(budget));
        }
    }

    const MACHINE: Budget = Budget { memory_bytes: 8 * GIB, cores: 4, disk_bytes: 100 * GIB };
    const FREE: u64 = 90 * GIB;

    #[test]
    fn members_of_one_machine_share_its_memory_and_its_disk() {
        let alone = share(MACHINE, FREE, 0);
        let third = share(MACHINE, FREE, 2);
        assert_eq!((alone.memory_bytes, third.memory_bytes), (8 * GIB, 8 * GIB / 3));
        assert_eq!((alone.disk_bytes, third.disk_bytes), (100 * GIB, 100 * GIB / 3));
        let full = share(MACHINE, 10 * GIB, 0);
        assert_eq!(full.disk_bytes, 20 * GIB, "what replicas may keep is a fifth of what is free");
    }

    /// A replica that has less of one of these than its primary refuses to start.
    #[test]
    fn what_a_replica_must_not_have_less_of_is_the_same_on_every_machine() {
        let needed = |memory: u64, cores, neighbours| {
            let machine = Budget { memory_bytes: memory, cores, ..MACHINE };
            let settings = settings(share(machine, FREE, neighbours));
            let names = ["max_connections", "max_worker_processes"];
            names.map(|name| settings.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()))
        };
        let small = needed(GIB / 2, 1, 9);
        assert!(small.iter().all(Option::is_some));
        assert_eq!(small, needed(512 * GIB, 128, 0));
    }
}
