//! What a member's settings are, given the memory, cores and disk that it may count on. Pure.

use serde::{Deserialize, Serialize};

use holdfast_common::engine::postgresql::{
    MAX_CONNECTIONS, SUPERUSER_RESERVED_CONNECTIONS, WORKER_PROCESSES,
};

use crate::host::files::Space;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// What of the machine a member may count on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub memory_bytes: u64,
    pub cores: u32,
    /// Of the file system that holds the data.
    pub disk_bytes: u64,
}

/// Settings in PostgreSQL's own units, as text.
pub(super) type Settings = Vec<(&'static str, String)>;

// === impl Budget ===

impl Budget {
    /// The share of a newcomer, where `neighbours` members are already: an equal part of memory and disk, and never so little
    /// that the server could not start.
    pub(super) fn share(memory_bytes: u64, cores: u32, disk: Space, neighbours: usize) -> Self {
        let parts = u64::try_from(neighbours).unwrap_or(u64::MAX).saturating_add(1);
        // Of a disk that is more than half full only what is free counts, twice.
        let disk_bytes = disk.total_bytes.min(disk.available_bytes.saturating_mul(2));
        Self {
            memory_bytes: (memory_bytes / parts).max(256 * MIB),
            cores: cores.max(1),
            disk_bytes: disk_bytes / parts,
        }
    }
}

/// Memory, processes and log sizes for this budget.
pub(super) fn settings(budget: Budget) -> Settings {
    let Budget { memory_bytes, cores, disk_bytes } = budget;
    let cores = u64::from(cores.max(1));
    // The same on every member, whatever its machine; PostgreSQL's own default, which also the smallest bears.
    let connections = u64::from(MAX_CONNECTIONS);
    let shared = (memory_bytes / 4).clamp(32 * MIB, 32 * GIB);
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

    const DISK: Space = Space { total_bytes: 100 * GIB, available_bytes: 90 * GIB, inodes: None };

    #[test]
    fn members_of_one_machine_share_its_memory_and_its_disk() {
        let alone = Budget::share(8 * GIB, 4, DISK, 0);
        let third = Budget::share(8 * GIB, 4, DISK, 2);
        assert_eq!((alone.memory_bytes, third.memory_bytes), (8 * GIB, 8 * GIB / 3));
        assert_eq!((alone.disk_bytes, third.disk_bytes), (100 * GIB, 100 * GIB / 3));
        let full = Budget::share(8 * GIB, 4, Space { available_bytes: 10 * GIB, ..DISK }, 0);
        assert_eq!(full.disk_bytes, 20 * GIB, "what replicas may keep is a fifth of what is free");
    }

    /// A replica that has less of one of these than its primary refuses to start.
    #[test]
    fn what_a_replica_must_not_have_less_of_is_the_same_on_every_machine() {
        let needed = |memory: u64, cores, neighbours| {
            let settings = settings(Budget::share(memory, cores, DISK, neighbours));
            let names = ["max_connections", "max_worker_processes"];
            names.map(|name| settings.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()))
        };
        let small = needed(GIB / 2, 1, 9);
        assert!(small.iter().all(Option::is_some));
        assert_eq!(small, needed(512 * GIB, 128, 0));
    }
}
