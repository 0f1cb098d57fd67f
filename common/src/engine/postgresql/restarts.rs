//! When PostgreSQL goes by a changed parameter, and which of them bind a replica to its primary. Pure.

use super::settings;
use crate::engine::{Parameters, TakesEffect};

/// Where each member's value comes from if the operator has set none, of those that a replica must not have less of than its
/// primary: it would refuse to start, or stop replaying.
const BOUND: &[(&str, u32)] = &[
    ("max_connections", super::MAX_CONNECTIONS),
    ("max_locks_per_transaction", 64),
    ("max_prepared_transactions", 0),
    ("max_worker_processes", super::WORKER_PROCESSES),
];
/// What a server reads at its start alone, in any version. A test of the agent compares it with what a server says.
const AT_START: &[&str] = &[
    "autovacuum_freeze_max_age",
    "autovacuum_multixact_freeze_max_age",
    "autovacuum_worker_slots",
    "commit_timestamp_buffers",
    "dynamic_shared_memory_type",
    "huge_page_size",
    "huge_pages",
    "io_max_combine_limit",
    "io_max_concurrency",
    "io_method",
    "jit_provider",
    "max_active_replication_origins",
    "max_connections",
    "max_files_per_process",
    "max_locks_per_transaction",
    "max_logical_replication_workers",
    "max_notify_queue_pages",
    "max_pred_locks_per_transaction",
    "max_prepared_transactions",
    "max_worker_processes",
    "min_dynamic_shared_memory",
    "multixact_member_buffers",
    "multixact_offset_buffers",
    "notify_buffers",
    "old_snapshot_threshold",
    "reserved_connections",
    "serializable_buffers",
    "shared_buffers",
    "shared_memory_type",
    "subtransaction_buffers",
    "superuser_reserved_connections",
    "track_activity_query_size",
    "track_commit_timestamp",
    "transaction_buffers",
    "wal_buffers",
    "wal_decode_buffer_size",
    "wal_level",
];
/// The same until this version, which reads it anew.
const AT_START_BEFORE: &[(&str, u32)] = &[("autovacuum_max_workers", 18)];

pub(super) fn takes_effect(name: &str, version: u32) -> TakesEffect {
    if name.contains('.') {
        return TakesEffect::AsTheServerSays;
    }
    let before = AT_START_BEFORE.iter().any(|(known, until)| *known == name && version < *until);
    if before || AT_START.contains(&name) { TakesEffect::AtStart } else { TakesEffect::AtOnce }
}

/// Those that a replica must not have less of than its primary, and that become less.
pub(super) fn lowered(from: &Parameters, to: &Parameters) -> Vec<&'static str> {
    let less = |(name, default): &&(&'static str, u32)| {
        let of = |parameters: &Parameters| {
            parameters
                .get(name)
                .map_or_else(|| Some(f64::from(*default)), |value| settings::plain_number(name, value))
        };
        of(from).zip(of(to)).is_some_and(|(before, after)| after < before)
    };
    BOUND.iter().filter(less).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Parameters {
        let map: BTreeMap<String, String> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        map.try_into().unwrap()
    }

    #[test]
    fn every_name_is_one_that_some_version_has() {
        for name in AT_START.iter().chain(AT_START_BEFORE.iter().map(|(name, _)| name)) {
            assert!(settings::is_known(name), "{name}");
        }
    }

    #[test]
    fn what_is_read_at_the_start_alone_depends_on_the_version() {
        assert_eq!(takes_effect("work_mem", 15), TakesEffect::AtOnce);
        assert_eq!(takes_effect("max_connections", 15), TakesEffect::AtStart);
        assert_eq!(takes_effect("autovacuum_max_workers", 17), TakesEffect::AtStart);
        assert_eq!(takes_effect("autovacuum_max_workers", 18), TakesEffect::AtOnce);
        assert_eq!(takes_effect("pg_stat_statements.max", 15), TakesEffect::AsTheServerSays);
    }

    #[test]
    fn what_becomes_less_is_counted_from_what_holdfast_sets() {
        let none = Parameters::default();
        assert_eq!(lowered(&none, &of(&[("max_connections", "99")])), ["max_connections"]);
        assert!(lowered(&none, &of(&[("max_connections", "101")])).is_empty());
        assert_eq!(lowered(&of(&[("max_connections", "200")]), &none), ["max_connections"]);
        let (many, few) = (("max_locks_per_transaction", "0x80"), ("max_locks_per_transaction", "65"));
        assert_eq!(lowered(&of(&[many]), &of(&[few])), ["max_locks_per_transaction"]);
        assert!(lowered(&of(&[few]), &of(&[many])).is_empty());
        assert!(lowered(&of(&[("work_mem", "8MB")]), &of(&[("work_mem", "4MB")])).is_empty());
    }
}
