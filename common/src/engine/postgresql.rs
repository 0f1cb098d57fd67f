//! Which parameters of PostgreSQL an operator may set, and to what.

mod restarts;
mod settings;

use super::{EngineVersion, Parameters, TakesEffect};
use crate::error::Violation;

/// Parameters that Holdfast sets itself, or that would take durability, identity or safety away from it.
const OWNED: &[&str] = &[
    "allow_in_place_tablespaces",
    "allow_system_table_mods",
    "archive_command",
    "archive_library",
    "archive_mode",
    "cluster_name",
    "config_file",
    "data_directory",
    "data_sync_retry",
    "db_user_namespace",
    "debug_io_direct",
    "dynamic_library_path",
    "event_source",
    "exit_on_error",
    "external_pid_file",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "ignore_checksum_failure",
    "ignore_invalid_pages",
    "ignore_system_indexes",
    "include",
    "include_dir",
    "include_if_exists",
    "krb_server_keyfile",
    "listen_addresses",
    "local_preload_libraries",
    "log_destination",
    "log_directory",
    "log_file_mode",
    "log_filename",
    "log_rotation_age",
    "log_rotation_size",
    "log_truncate_on_rotation",
    "logging_collector",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "password_encryption",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "restart_after_crash",
    "session_preload_libraries",
    "shared_preload_libraries",
    "synchronous_commit",
    "synchronous_standby_names",
    "unix_socket_directories",
    "unix_socket_group",
    "unix_socket_permissions",
    "wal_keep_size",
    "wal_log_hints",
    "wal_sync_method",
    "zero_damaged_pages",
];
/// The same, for whole families.
const OWNED_PREFIXES: &[&str] =
    &["ssl", "recovery_", "restore_", "archive_cleanup", "krb_", "gss_", "bonjour"];
/// The only value of an otherwise free choice.
const LIMITED: &[(&str, &[&str])] = &[("wal_level", &["replica", "logical"])];
/// Parameters that name what is kept in a database, with all that is there from the beginning. The server takes any name at its
/// start and finds out later, in each session.
const KEPT_IN_DATABASES: &[(&str, &[&str])] = &[
    ("default_table_access_method", &["heap"]),
    ("default_tablespace", &["", "pg_default"]),
    ("default_text_search_config", TEXT_SEARCH),
    ("temp_tablespaces", &["", "pg_default"]),
];
/// What every version has; each may be given with `pg_catalog.` before it.
const TEXT_SEARCH: &[&str] = &[
    "simple",
    "arabic",
    "armenian",
    "basque",
    "catalan",
    "danish",
    "dutch",
    "english",
    "finnish",
    "french",
    "german",
    "greek",
    "hindi",
    "hungarian",
    "indonesian",
    "irish",
    "italian",
    "lithuanian",
    "nepali",
    "norwegian",
    "portuguese",
    "romanian",
    "russian",
    "serbian",
    "spanish",
    "swedish",
    "tamil",
    "turkish",
    "yiddish",
];
/// Libraries and parts of the server that it looks for only when it needs them.
const LOOKED_FOR_LATER: &[(&str, &[&str])] = &[
    ("jit_provider", &["llvmjit"]),
    (
        "wal_consistency_checking",
        &[
            "", "all", "heap", "heap2", "btree", "hash", "gin", "gist", "sequence", "spgist", "brin",
            "generic",
        ],
    ),
];

/// A parameter without which an extension cannot be made in `database`.
pub(super) fn needed_by(extension: &str, database: &str) -> Option<(&'static str, String)> {
    match extension {
        // It has its tables in one database only, and that is `postgres` unless it is told.
        "pg_cron" => Some(("cron.database_name", database.to_owned())),
        _ => None,
    }
}

/// All parameters that may not be set like this, each with the reason.
pub(super) fn violations(parameters: &Parameters) -> Vec<Violation> {
    refused(parameters, refusal)
}

/// All that the server would not take, each with the reason; those that Holdfast owns are not looked at.
pub(super) fn misfits(parameters: &Parameters, version: Option<&EngineVersion>) -> Vec<Violation> {
    let version = version.map(EngineVersion::number);
    let mut found = refused(parameters, |name, value| {
        if refusal(name, value).is_some() {
            return None;
        }
        settings::misfit(name, value, version).or_else(|| not_there(name, value))
    });
    found.extend(contradictions(parameters));
    found
}

/// Connections that the server takes where nobody says otherwise.
pub const MAX_CONNECTIONS: u32 = 100;
/// Processes besides connections where nobody says otherwise: more than any machine's parallel queries here need.
pub const WORKER_PROCESSES: u32 = 32;
/// Of the connections, those that are kept for the superuser, and so for the agent.
pub const SUPERUSER_RESERVED_CONNECTIONS: u64 = 5;

/// What the server would not start with although each parameter is fine by itself: all of its connections reserved.
fn contradictions(parameters: &Parameters) -> Vec<Violation> {
    let number = |name: &str| parameters.get(name).map(|value| value.parse::<u64>().ok());
    let of = |name: &str, default: u64| number(name).unwrap_or(Some(default));
    let (Some(connections), Some(superuser), Some(others)) = (
        of("max_connections", MAX_CONNECTIONS.into()),
        of("superuser_reserved_connections", SUPERUSER_RESERVED_CONNECTIONS),
        of("reserved_connections", 0),
    ) else {
        // No number: told by itself.
        return Vec::new();
    };
    let reserved = superuser.saturating_add(others);
    if reserved < connections {
        return Vec::new();
    }
    let named = ["max_connections", "superuser_reserved_connections", "reserved_connections"];
    let Some(name) = named.into_iter().find(|name| parameters.get(name).is_some()) else { return Vec::new() };
    let message = format!(
        "leaves nobody a connection: max_connections is {connections}, and {reserved} of them are reserved \
         (superuser_reserved_connections and reserved_connections); raise the first or lower the others"
    );
    vec![Violation { name: format!("parameters[{name}]"), subject: String::new(), message }]
}

/// When a running server goes by a change of the parameter.
pub(super) fn takes_effect(name: &str, version: &EngineVersion) -> TakesEffect {
    restarts::takes_effect(name, version.number())
}

/// Those that a replica must not have less of than its primary, and that become less.
pub(super) fn lowered(from: &Parameters, to: &Parameters) -> Vec<&'static str> {
    restarts::lowered(from, to)
}

/// All that ask for more memory than there is, each with the reason.
pub(super) fn beyond_memory(parameters: &Parameters, bytes: u64) -> Vec<Violation> {
    let mib = bytes / (1024 * 1024);
    refused(parameters, |name, value| {
        #[expect(clippy::cast_precision_loss, reason = "far below what a machine's memory differs by")]
        let beyond = settings::memory_bytes(name, value)? > bytes as f64;
        beyond.then(|| {
            format!("asks for {value}, but only {mib} MiB of memory are there; choose less, or leave it out")
        })
    })
}

fn refused(parameters: &Parameters, why: impl Fn(&str, &str) -> Option<String>) -> Vec<Violation> {
    let violation = |(name, value)| {
        let message = why(name, value)?;
        Some(Violation { name: format!("parameters[{name}]"), subject: String::new(), message })
    };
    parameters.iter().filter_map(violation).collect()
}

fn refusal(name: &str, value: &str) -> Option<String> {
    if OWNED.contains(&name) || OWNED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Some("is set by Holdfast itself; leave it out".to_owned());
    }
    let (_, allowed) = LIMITED.iter().find(|(limited, _)| *limited == name)?;
    (!allowed.contains(&value)).then(|| format!("may only be one of: {}", allowed.join(", ")))
}

/// Why a name leads to nothing in a cluster that is only to be made.
fn not_there(name: &str, value: &str) -> Option<String> {
    let shown = super::shortened(value);
    let words = |words: &[&str]| {
        let quoted = words.iter().map(|word| if word.is_empty() { "''" } else { word });
        quoted.collect::<Vec<_>>().join(", ")
    };
    if let Some((_, there)) = KEPT_IN_DATABASES.iter().find(|(kept, _)| *kept == name) {
        let bare = if name == "default_text_search_config" {
            value.strip_prefix("pg_catalog.").unwrap_or(value)
        } else {
            value
        };
        return (!there.contains(&bare)).then(|| {
            format!(
                "is `{shown}`, which no new cluster has; leave it out, make it in the database, then set it there: ALTER \
                 DATABASE … SET {name} (or ALTER ROLE … SET); there from the beginning: {}",
                words(there)
            )
        });
    }
    let (_, there) = LOOKED_FOR_LATER.iter().find(|(later, _)| *later == name)?;
    let all_there = value.split(',').all(|word| there.contains(&word.trim().to_ascii_lowercase().as_str()));
    (!all_there).then(|| format!("is `{shown}`; give one of: {}", words(there)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    #[test]
    fn what_no_new_cluster_has_is_refused_with_what_to_do_later() {
        let misfit = |name: &str, value: &str| {
            let map = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            misfits(&map.try_into().unwrap(), None).pop().map(|found| (found.name, found.message))
        };
        for name in [
            "default_tablespace",
            "temp_tablespaces",
            "default_table_access_method",
            "default_text_search_config",
        ] {
            let (field, message) = misfit(name, "nope").unwrap();
            assert_eq!(field, format!("parameters[{name}]"));
            assert!(message.contains(&format!("ALTER DATABASE … SET {name}")), "{message}");
        }
        for (name, value) in [("jit_provider", "/tmp/evil"), ("wal_consistency_checking", "heap,nope")] {
            assert!(misfit(name, value).unwrap().1.contains("give one of: "), "{name}");
        }
        for (name, value) in [
            ("default_tablespace", "pg_default"),
            ("temp_tablespaces", ""),
            ("default_table_access_method", "heap"),
            ("default_text_search_config", "pg_catalog.german"),
            ("default_text_search_config", "simple"),
            ("wal_consistency_checking", "Heap, btree"),
        ] {
            assert_eq!(misfit(name, value), None);
        }
    }

    #[test]
    fn connections_that_are_all_reserved_are_refused() {
        let of = |pairs: &[(&str, &str)]| {
            let map: BTreeMap<String, String> =
                pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let parameters = Parameters::try_from(map).unwrap();
            let found = misfits(&parameters, None);
            found.into_iter().map(|violation| violation.name).collect::<Vec<_>>()
        };
        assert_eq!(of(&[("max_connections", "5")]), ["parameters[max_connections]"]);
        assert!(of(&[("max_connections", "6")]).is_empty());
        assert_eq!(
            of(&[("superuser_reserved_connections", "100")]),
            ["parameters[superuser_reserved_connections]"]
        );
        assert_eq!(
            of(&[("max_connections", "20"), ("reserved_connections", "15")]),
            ["parameters[max_connections]"]
        );
        assert_eq!(of(&[("max_connections", "many")]), ["parameters[max_connections]"], "once");
    }

    use super::*;

    fn refused(name: &str, value: &str) -> Option<String> {
        let parameters: Parameters =
            BTreeMap::from([(name.to_owned(), value.to_owned())]).try_into().unwrap();
        violations(&parameters).pop().map(|violation| violation.name)
    }

    #[test]
    fn what_holdfast_owns_is_refused_by_name() {
        for name in
            ["fsync", "ssl", "ssl_ca_file", "synchronous_commit", "archive_command", "recovery_target_time"]
        {
            assert_eq!(refused(name, "off"), Some(format!("parameters[{name}]")));
        }
        assert_eq!(refused("wal_level", "minimal").as_deref(), Some("parameters[wal_level]"));
    }

    #[test]
    fn everything_else_is_the_operators() {
        for (name, value) in
            [("work_mem", "64MB"), ("wal_level", "logical"), ("pg_stat_statements.max", "100")]
        {
            assert_eq!(refused(name, value), None);
        }
    }
}
