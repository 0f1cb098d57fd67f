//! An assignment as PostgreSQL's configuration files. Pure.
//!
//! The server reads `conf/postgresql.conf` in place of the one in its data, so that nothing in the data (which travel
//! from member to member) decides how a member listens or whom it trusts. Parameters in `postgresql.auto.conf` win;
//! only a superuser can put them there, and what the promises rest on is taken out again ([`super::overrides`]).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use holdfast_common::assignment::{MemberAssignment, Peer, RoleAssignment, Synchronous};
use holdfast_common::budget::Budget;
use holdfast_common::id::NodeId;

use super::layout::Layout;
use super::packages;
use super::tuning::{self, megabytes};

/// The database user that replicas log in as, with a certificate and nothing else.
pub(super) const REPLICATION_USER: &str = "holdfast_replication";
/// The only superuser; reached over the local socket by the agent's user and the engine's.
pub(super) const SUPERUSER: &str = "postgres";
/// What a copy calls itself: never a node's id, or it could be taken for a synchronous replica.
pub(super) const COPY_NAME: &str = "holdfast_copy";
/// Whom a replica would wait for as primary.
const NOBODY: &str = "\"not_promoted_by_holdfast\"";
const HEADER: &str = "# Written by Holdfast from the cluster's assignment. Changes are overwritten.\n";
/// Room for replicas, copies, backups and those that are coming back.
const WAL_SENDERS: usize = 20;

/// All that the files are made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) member: &'a MemberAssignment,
    pub(super) node: NodeId,
    pub(super) layout: &'a Layout,
    pub(super) budget: Budget,
    /// Names of the operating system's users that may be superuser over the local socket.
    pub(super) local_users: &'a BTreeSet<String>,
    /// Where the data are: `data`, or `data.new` while they are being made.
    pub(super) place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Data,
    New,
}

/// The name of a member's replication slot.
pub(super) fn slot(node: NodeId) -> String {
    format!("{SLOT_PREFIX}{}", node.as_uuid().simple())
}

/// Slots that begin with it are Holdfast's, to be made and dropped.
pub(super) const SLOT_PREFIX: &str = "holdfast_";

/// `postgresql.conf`.
pub(super) fn server(subject: &Subject<'_>) -> String {
    let Subject { member, layout, budget, .. } = subject;
    let mut out = Lines(HEADER.to_owned());
    out.section("Where it is");
    out.text("data_directory", &layout.place(subject.place).to_string_lossy());
    out.text("hba_file", &layout.conf().join("pg_hba.conf").to_string_lossy());
    out.text("ident_file", &layout.conf().join("pg_ident.conf").to_string_lossy());
    out.text("cluster_name", member.cluster_name.as_ref());
    out.text("listen_addresses", &listen(member.address));
    out.plain("port", member.port);
    out.text("unix_socket_directories", &layout.run().to_string_lossy());
    out.plain("unix_socket_permissions", "0700");

    out.section("Who gets in");
    tls(&mut out, layout);
    gone(&mut out);
    out.plain("password_encryption", "'scram-sha-256'");

    out.section("This machine");
    for (name, value) in tuning::settings(*budget) {
        out.text(name, &value);
    }
    out.text("shared_preload_libraries", &packages::preloads(&member.extensions).join(","));

    out.section("Replication");
    replication(&mut out, subject);

    out.section("Log");
    logging(&mut out, layout);

    if !member.parameters.is_empty() {
        out.section("The operator's own");
        for (name, value) in member.parameters.iter() {
            out.text(name, value);
        }
    }
    out.section("As a replica no less than its log was written with");
    out.include(&layout.floor());
    out.section("While it is sealed it receives from nobody");
    out.include(&layout.sealed());
    out.0
}

fn tls(out: &mut Lines, layout: &Layout) {
    let tls = layout.tls();
    out.plain("ssl", "on");
    out.text("ssl_cert_file", &tls.join("node.crt").to_string_lossy());
    out.text("ssl_key_file", &tls.join("node.key").to_string_lossy());
    out.text("ssl_ca_file", &tls.join("fleet.crt").to_string_lossy());
    out.text("ssl_min_protocol_version", "TLSv1.3");
}

/// A client whose machine is gone is told from one that is silent by what the kernel asks: its session ends, and with it its locks,
/// some 10 s after its last packet. So is one that may not come in any more, where the agent cannot end its connection.
fn gone(out: &mut Lines) {
    out.text("tcp_keepalives_idle", "10s");
    out.text("tcp_keepalives_interval", "5s");
    out.plain("tcp_keepalives_count", 3);
    // One that computes notices it too.
    out.text("client_connection_check_interval", "2s");
}

fn replication(out: &mut Lines, subject: &Subject<'_>) {
    let Subject { member, node, layout, budget, .. } = subject;
    out.plain("wal_level", "replica");
    // A crash makes visible what was not replicated. That must be a start, which whoever opens the gate knows of.
    out.plain("restart_after_crash", "off");
    if member.engine_version.number() >= 14 {
        // After a crash: one call for all files instead of one for each, of which a database has many thousands.
        out.text("recovery_init_sync_method", "syncfs");
    }
    // For pg_rewind.
    out.plain("wal_log_hints", "on");
    out.plain("hot_standby", "on");
    out.plain("max_wal_senders", WAL_SENDERS);
    out.plain("max_replication_slots", WAL_SENDERS);
    out.text("wal_keep_size", &megabytes(tuning::wal_keep_bytes(*budget)));
    out.text("max_slot_wal_keep_size", &megabytes(tuning::slot_keep_bytes(*budget)));
    out.text("wal_sender_timeout", "10s");
    out.text("wal_receiver_timeout", "10s");
    out.text("wal_receiver_status_interval", "1s");
    out.text("wal_retrieve_retry_interval", "200ms");
    out.plain("synchronous_commit", "on");
    out.text("recovery_target_timeline", "latest");
    match &member.role {
        RoleAssignment::Primary { synchronous } => {
            out.text("synchronous_standby_names", &synchronous_names(synchronous));
        }
        RoleAssignment::Replica { upstream } => {
            // Who leaves recovery by another hand than the agent's acknowledges nothing.
            out.text("synchronous_standby_names", NOBODY);
            let key = layout.receiver_key();
            out.text("primary_conninfo", &conninfo_with(upstream, layout, &node.to_string(), &key));
            out.text("primary_slot_name", &slot(*node));
        }
    }
}

fn logging(out: &mut Lines, layout: &Layout) {
    out.plain("logging_collector", "on");
    out.text("log_destination", "stderr");
    out.text("log_directory", &layout.log().to_string_lossy());
    out.text("log_filename", "postgresql-%Y%m%d-%H%M%S.log");
    out.plain("log_file_mode", "0600");
    out.text("log_rotation_size", "16MB");
    out.text("log_rotation_age", "1d");
    out.plain("log_checkpoints", "on");
    out.plain("log_lock_waits", "on");
    out.text("log_line_prefix", "%m [%p] %q%u@%d %r ");
    out.text("log_timezone", "UTC");
    out.text("timezone", "UTC");
}

/// `pg_hba.conf`: first match wins.
pub(super) fn access(subject: &Subject<'_>) -> String {
    let mut out = HEADER.to_owned();
    let mut rule = |rule: String| {
        out.push_str(&rule);
        out.push('\n');
    };
    rule(format!("local all {SUPERUSER} peer map=holdfast_local"));
    rule("local all all reject".to_owned());
    let networks: BTreeSet<String> =
        others(subject.member, subject.node).map(|peer| network(peer.address)).collect();
    for network in networks {
        // The other database is what pg_rewind reads through.
        rule(format!("hostssl replication,postgres {REPLICATION_USER} {network} cert map=holdfast_members"));
    }
    for any in ["0.0.0.0/0", "::/0"] {
        rule(format!("host replication all {any} reject"));
        rule(format!("host all {REPLICATION_USER},{SUPERUSER} {any} reject"));
        rule(format!("hostssl all all {any} scram-sha-256"));
    }
    out
}

/// `pg_ident.conf`: which certificate, or which user of the machine, may be which database user.
pub(super) fn identities(subject: &Subject<'_>) -> String {
    let mut out = HEADER.to_owned();
    for user in subject.local_users {
        let _ = writeln!(out, "holdfast_local {user} {SUPERUSER}");
    }
    let mut members: Vec<NodeId> = others(subject.member, subject.node).map(|peer| peer.node_id).collect();
    members.sort_unstable();
    for member in members {
        let _ = writeln!(out, "holdfast_members {member} {REPLICATION_USER}");
    }
    out
}

/// How a member reaches another for replication. The server must prove with its certificate that it is that node.
pub(super) fn conninfo(peer: &Peer, layout: &Layout, application: &str) -> String {
    conninfo_with(peer, layout, application, &layout.tls().join("node.key"))
}

fn conninfo_with(peer: &Peer, layout: &Layout, application: &str, key: &Path) -> String {
    let tls = layout.tls();
    let pairs = [
        ("host", peer.name.to_string()),
        ("hostaddr", peer.address.to_string()),
        ("port", peer.port.to_string()),
        ("user", REPLICATION_USER.to_owned()),
        ("application_name", application.to_owned()),
        ("sslmode", "verify-full".to_owned()),
        ("sslcert", tls.join("node.crt").to_string_lossy().into_owned()),
        ("sslkey", key.to_string_lossy().into_owned()),
        ("sslrootcert", tls.join("fleet.crt").to_string_lossy().into_owned()),
        ("ssl_min_protocol_version", "TLSv1.3".to_owned()),
        ("gssencmode", "disable".to_owned()),
        // No password is ever looked for.
        ("passfile", "/dev/null".to_owned()),
        ("connect_timeout", "10".to_owned()),
        ("keepalives_idle", "5".to_owned()),
        ("keepalives_interval", "2".to_owned()),
        ("keepalives_count", "3".to_owned()),
    ];
    pairs.map(|(name, value)| format!("{name}={}", quoted_in_conninfo(&value))).join(" ")
}

/// `ANY W ("id", …)`; empty where the primary alone acknowledges.
pub(super) fn synchronous_names(synchronous: &Synchronous) -> String {
    let Synchronous { count, nodes } = synchronous;
    if *count == 0 || nodes.is_empty() {
        return String::new();
    }
    let names: BTreeSet<String> = nodes.iter().map(|node| format!("\"{node}\"")).collect();
    format!("ANY {count} ({})", names.into_iter().collect::<Vec<_>>().join(", "))
}

/// What a server's `synchronous_standby_names` means; `None` if it was not written by us.
pub(super) fn parse_synchronous_names(text: &str) -> Option<Synchronous> {
    if text.trim().is_empty() {
        return Some(Synchronous::default());
    }
    let (count, names) = text.trim().strip_prefix("ANY ")?.split_once('(')?;
    let nodes = names.trim_end().strip_suffix(')')?.split(',');
    let nodes: Option<Vec<NodeId>> =
        nodes.map(|name| name.trim().strip_prefix('"')?.strip_suffix('"')?.parse().ok()).collect();
    Some(Synchronous { count: count.trim().parse().ok()?, nodes: nodes? })
}

/// The members that may follow this one.
pub(super) fn others(member: &MemberAssignment, node: NodeId) -> impl Iterator<Item = &Peer> {
    member.members.iter().filter(move |peer| peer.node_id != node)
}

/// A node that has a loopback address shares the machine with others: it must not take the port on all addresses.
fn listen(address: IpAddr) -> String {
    if address.is_loopback() { address.to_string() } else { "*".to_owned() }
}

/// Where a member's connections come from. The kernel takes 127.0.0.1 as the source for every loopback address.
fn network(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) if v4.is_loopback() => "127.0.0.0/8".to_owned(),
        IpAddr::V4(v4) => format!("{v4}/32"),
        IpAddr::V6(v6) => format!("{v6}/128"),
    }
}

pub(super) fn quoted_in_conninfo(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A string constant of SQL, with standard_conforming_strings on.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A quoted name of SQL.
pub(super) fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Lines of a configuration file.
pub(super) struct Lines(pub(super) String);

// === impl Lines ===

impl Lines {
    fn section(&mut self, title: &str) {
        let _ = write!(self.0, "\n# {title}\n");
    }

    /// What stands there overrules all before it; there need not be anything.
    fn include(&mut self, path: &Path) {
        let path = path.to_string_lossy().replace('\\', "\\\\").replace('\'', "''");
        let _ = writeln!(self.0, "include_if_exists = '{path}'");
    }

    /// A value that needs no quotes.
    fn plain(&mut self, name: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name} = {value}");
    }

    /// Any value. In the file a backslash is special inside of quotes.
    pub(super) fn text(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.0, "{name} = '{}'", value.replace('\\', "\\\\").replace('\'', "''"));
    }
}
