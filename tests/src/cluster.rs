//! The cluster that tests make: three nodes, one PostgreSQL cluster `orders` with durability quorum, and what to look at.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::fleet::{Fleet, Uri};
use crate::host::Host;
use crate::network::Network;
use crate::proc::{Entry, Process};
use crate::wait::wait_until;

/// Longer than anything here takes on two busy cores.
pub const DEADLINE: Duration = Duration::from_secs(90);
/// Its nodes; the first is its first primary.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// A coordinator and the three nodes, online.
///
/// # Errors
///
/// When they do not come up.
pub async fn fleet() -> anyhow::Result<Fleet> {
    let operators = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut fleet = Fleet::start(Network::new().await?, operators).await?;
    fleet.join_all(&NODES).await?;
    Ok(fleet)
}

/// The command line that makes it, and more arguments for it.
#[must_use]
pub fn creation<'a>(fleet: &Fleet, more: &[&'a str]) -> Vec<&'a str> {
    let filtered = fleet.unfiltered();
    CREATE.into_iter().chain(filtered).chain(more.iter().copied()).collect()
}

/// The same for machines, which can all filter.
pub const CREATE: [&str; 9] = [
    "cluster",
    "create",
    "orders",
    "--engine",
    "postgresql",
    "--nodes",
    "n1,n2,n3",
    "--durability",
    "quorum",
];

/// How clients connect; reveals the password, which can be done once.
///
/// # Errors
///
/// When the coordinator does not say.
pub async fn uri(fleet: &Fleet) -> anyhow::Result<Uri> {
    let shown = fleet.cli(["cluster", "connection", "orders", "--reveal-password", "--uri"])?.run().await?;
    Uri::parse(shown.trim())
}

/// (node, role, state) of each member.
///
/// # Errors
///
/// When nobody says.
pub async fn members(fleet: &Fleet) -> anyhow::Result<Vec<(String, String, String)>> {
    members_shown(&fleet.json(["cluster", "show", "orders"]).await?)
}

fn members_shown(shown: &Value) -> anyhow::Result<Vec<(String, String, String)>> {
    let members = shown["members"].as_array().with_context(|| format!("no members in {shown}"))?;
    let text = |member: &Value, key: &str| member[key].as_str().unwrap_or_default().to_owned();
    Ok(members.iter().map(|it| (text(it, "node"), text(it, "role"), text(it, "state"))).collect())
}

/// Whether the cluster that is shown has a primary and two streaming replicas.
///
/// # Errors
///
/// When it has not.
pub fn is_whole(shown: &Value) -> anyhow::Result<()> {
    let seen = members_shown(shown)?;
    let states: Vec<_> = seen.iter().map(|(_, role, state)| (role.as_str(), state.as_str())).collect();
    ensure!(
        states == [("primary", "running"), ("replica", "streaming"), ("replica", "streaming")],
        "it is {seen:?}"
    );
    Ok(())
}

/// Waits until it has a primary and two streaming replicas.
///
/// # Errors
///
/// When it has not, in time.
pub async fn whole(fleet: &Fleet) -> anyhow::Result<()> {
    wait_until("a primary and two streaming replicas", DEADLINE, || async {
        is_whole(&fleet.json(["cluster", "show", "orders"]).await?)
    })
    .await
}

/// The postmaster's start, as the server itself says.
///
/// # Errors
///
/// When nobody says.
pub async fn started(fleet: &Fleet, uri: &Uri) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for node in fleet.nodes() {
        all.push(fleet.psql(&uri.only(node.address())?, "select pg_postmaster_start_time()").await?);
    }
    Ok(all)
}

/// Whether a PostgreSQL runs on the host.
///
/// # Errors
///
/// When nobody says.
pub fn has_server(host: &Host) -> anyhow::Result<bool> {
    let postgres =
        |entry: &Entry| entry.arguments.first().is_some_and(|program| program.contains("postgres"));
    Ok(host.processes()?.iter().any(|entry| !entry.zombie && postgres(entry)))
}

/// The PostgreSQL server of the host: the one whose parent is none. One that it has just forked has its arguments yet, and may have a
/// lower number.
///
/// # Errors
///
/// When there is none.
pub fn server(host: &Host) -> anyhow::Result<Process> {
    let first = |entry: &Entry| {
        let program = entry.arguments.first().is_some_and(|program| program.ends_with("/postgres"));
        program && entry.arguments.iter().any(|argument| argument == "-D")
    };
    let mut found = host.processes()?;
    found.retain(|entry| !entry.zombie && first(entry));
    let is_child = |entry: &Entry| found.iter().any(|other| other.process.pid == entry.parent);
    let server = found.iter().find(|entry| !is_child(entry));
    Ok(server.with_context(|| format!("no server on {}", host.name()))?.process)
}

/// All operations, the newest first.
///
/// # Errors
///
/// When the coordinator does not say.
pub async fn operations(fleet: &Fleet) -> anyhow::Result<Vec<Value>> {
    let listed = fleet.json(["operation", "list"]).await?;
    let list = listed.as_array().or_else(|| listed["operations"].as_array());
    list.cloned().with_context(|| format!("no operations in {listed}"))
}

/// Waits until the newest operation has ended, and says how.
///
/// # Errors
///
/// When nobody says.
pub async fn settled(fleet: &Fleet) -> anyhow::Result<String> {
    wait_until("the operation to end", DEADLINE, || async {
        let newest = operations(fleet).await?.into_iter().next().context("there is no operation")?;
        let state = newest["state"].as_str().unwrap_or_default().to_owned();
        ensure!(["succeeded", "failed", "cancelled", "blocked"].contains(&state.as_str()), "it is {newest}");
        Ok(state)
    })
    .await
}
