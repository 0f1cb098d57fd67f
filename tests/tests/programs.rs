//! What an agent really executes, as the kernel saw it, while it does everything that it can be told: the list is closed.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use holdfast_tests::binaries;
use holdfast_tests::cluster::DEADLINE;
use holdfast_tests::fleet::{AGENT, Fleet};
use holdfast_tests::host::{Host, Service};
use holdfast_tests::network::Network;

/// All that an agent starts on a node whose engine is installed, and what these start in turn: PostgreSQL's programs ask for
/// each other's version, and `initdb` for the locales, through the shell; `apt-cache` asks `dpkg` for the architecture.
const ALLOWED: [&str; 11] = [
    "apt-cache",
    "dpkg",
    "holdfast-agent",
    "initdb",
    "locale",
    "nft",
    "pg_basebackup",
    "pg_controldata",
    "postgres",
    "setsid",
    "sh",
];

/// Restarts the node's agent under a tracer that writes every program that it, or what it starts, becomes.
async fn trace(host: &Host, log: &Path) -> anyhow::Result<()> {
    host.kill(AGENT).await?;
    let words = [
        "strace".to_owned(),
        "--follow-forks".into(),
        "--seccomp-bpf".into(),
        "--quiet=all".into(),
        "--trace=execve,execveat".into(),
        "--string-limit=4096".into(),
        format!("--output={}", log.display()),
        binaries::agent()?.to_string_lossy().into_owned(),
        "run".into(),
        "--state-dir".into(),
        host.state_folder().join("agent").to_string_lossy().into_owned(),
    ];
    let service = Service { name: AGENT.into(), argv: words.to_vec(), env: Vec::new(), socket: None };
    host.serve(&service).await.map(drop)
}

/// The calls of the log that were not refused: those whose end stands on a line of its own count too.
fn calls(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter(|line| line.contains("execve") && line.contains('"') && !line.contains(" = -1 "))
}

/// The programs that were started, by their last name.
fn executed(log: &str) -> BTreeSet<String> {
    calls(log)
        .filter_map(|line| line.split('"').nth(1))
        .map(|path| path.rsplit('/').next().unwrap_or(path).to_owned())
        .collect()
}

/// Commands that were given to a shell and are not those of PostgreSQL's programs, which ask each other for their version.
fn given_to_a_shell(log: &str) -> Vec<&str> {
    const KNOWN: [&str; 2] = [r#"["sh", "-c", "\"/usr/lib/postgresql/"#, r#"["sh", "-c", "locale -a"#];
    let shells = calls(log).filter(|line| line.contains("/sh\""));
    shells.filter(|line| !KNOWN.iter().any(|known| line.contains(known))).collect()
}

#[tokio::test]
async fn an_agent_executes_nothing_but_what_is_on_the_list() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(Network::new().await?, ([127, 0, 0, 1], 0).into()).await?;
    fleet.join_all(&["n1", "n2"]).await?;
    let logs: Vec<_> = fleet.nodes().iter().map(|host| host.folder().join("executed")).collect();
    for (host, log) in fleet.nodes().iter().zip(&logs) {
        trace(host, log).await?;
        fleet.online(host.name()).await?;
    }
    for words in [
        &[
            "cluster",
            "create",
            "orders",
            "--engine",
            "postgresql",
            "--nodes",
            "n1,n2",
            "--extension",
            "hstore",
        ][..],
        &["cluster", "reset-password", "orders"],
        &["cluster", "remove-member", "orders", "n2", "--confirm", "n2"],
        &["cluster", "add-member", "orders", "n2"],
        &["cluster", "delete", "orders", "--confirm", "orders"],
    ] {
        fleet.cli(words.iter().copied())?.deadline(DEADLINE).run().await?;
    }
    let mut all = BTreeSet::new();
    for log in &logs {
        let text = std::fs::read_to_string(log).with_context(|| format!("read {}", log.display()))?;
        all.extend(executed(&text));
        let shells = given_to_a_shell(&text);
        ensure!(shells.is_empty(), "something else was given to a shell: {shells:?}");
    }
    // What must have run was seen: a tracer that sees nothing proves nothing.
    for program in ["initdb", "pg_basebackup", "postgres"] {
        ensure!(all.contains(program), "the tracer has not seen {program}: {all:?}");
    }
    let others: Vec<_> = all.iter().filter(|program| !ALLOWED.contains(&program.as_str())).collect();
    ensure!(others.is_empty(), "an agent has executed {others:?}");
    Ok(())
}
