//! The first cluster, for real: a coordinator, agents on hosts of their own, PostgreSQL, and `kill -9`.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_tests::fleet::{AGENT, COORDINATOR, Fleet, Uri};
use holdfast_tests::host::Host;
use holdfast_tests::network::Network;
use holdfast_tests::proc::Entry;
use holdfast_tests::wait::{wait_for, wait_until};
use serde_json::Value;

/// Longer than anything here takes on two busy cores.
const DEADLINE: Duration = Duration::from_secs(90);
const NODES: [&str; 3] = ["n1", "n2", "n3"];

async fn fleet() -> anyhow::Result<Fleet> {
    let operators = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut fleet = Fleet::start(Network::new().await?, operators).await?;
    fleet.join_all(&NODES).await?;
    Ok(fleet)
}

const CREATE: [&str; 9] = [
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

async fn uri(fleet: &Fleet) -> anyhow::Result<Uri> {
    let shown = fleet.cli(["cluster", "connection", "orders", "--reveal-password", "--uri"])?.run().await?;
    Uri::parse(shown.trim())
}

/// (node, role, state) of each member.
async fn members(fleet: &Fleet) -> anyhow::Result<Vec<(String, String, String)>> {
    let shown = fleet.json(["cluster", "show", "orders"]).await?;
    let members = shown["members"].as_array().with_context(|| format!("no members in {shown}"))?;
    let text = |member: &Value, key: &str| member[key].as_str().unwrap_or_default().to_owned();
    Ok(members.iter().map(|it| (text(it, "node"), text(it, "role"), text(it, "state"))).collect())
}

async fn whole(fleet: &Fleet) -> anyhow::Result<()> {
    wait_until("a primary and two streaming replicas", DEADLINE, || async {
        let seen = members(fleet).await?;
        let states: Vec<_> = seen.iter().map(|(_, role, state)| (role.as_str(), state.as_str())).collect();
        ensure!(
            states == [("primary", "running"), ("replica", "streaming"), ("replica", "streaming")],
            "it is {seen:?}"
        );
        Ok(())
    })
    .await
}

/// The postmaster's start, as the server itself says.
async fn started(fleet: &Fleet, uri: &Uri) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for node in fleet.nodes() {
        all.push(fleet.psql(&uri.only(node.address())?, "select pg_postmaster_start_time()").await?);
    }
    Ok(all)
}

/// Whether a PostgreSQL runs on the host.
fn has_server(host: &Host) -> anyhow::Result<bool> {
    let postgres =
        |entry: &Entry| entry.arguments.first().is_some_and(|program| program.contains("postgres"));
    Ok(host.processes()?.iter().any(|entry| !entry.zombie && postgres(entry)))
}

async fn operations(fleet: &Fleet) -> anyhow::Result<Vec<Value>> {
    let listed = fleet.json(["operation", "list"]).await?;
    let list = listed.as_array().or_else(|| listed["operations"].as_array());
    list.cloned().with_context(|| format!("no operations in {listed}"))
}

/// Waits until the newest operation has ended, and says how.
async fn settled(fleet: &Fleet) -> anyhow::Result<String> {
    wait_until("the operation to end", DEADLINE, || async {
        let newest = operations(fleet).await?.into_iter().next().context("there is no operation")?;
        let state = newest["state"].as_str().unwrap_or_default().to_owned();
        ensure!(["succeeded", "failed", "cancelled", "blocked"].contains(&state.as_str()), "it is {newest}");
        Ok(state)
    })
    .await
}

#[tokio::test]
async fn three_nodes_become_a_cluster_that_outlives_agents_and_coordinator() -> anyhow::Result<()> {
    let fleet = fleet().await?;
    fleet.cli(CREATE)?.deadline(DEADLINE).run().await?;
    whole(&fleet).await?;
    let uri = uri(&fleet).await?;

    // Quorum is enforced by the engine itself, and a row gets everywhere.
    let enforced = fleet.psql(&uri, "show synchronous_standby_names").await?;
    ensure!(enforced.starts_with("ANY 1 ("), "synchronous_standby_names is {enforced}");
    fleet.psql(&uri, "create table t (i int); insert into t values (42)").await?;
    for node in fleet.nodes() {
        let one = uri.only(node.address())?;
        wait_until(format!("the row on {}", node.name()), DEADLINE, || async {
            let seen = fleet.psql(&one, "select i from t").await?;
            ensure!(seen.trim() == "42", "it has {seen:?}");
            Ok(())
        })
        .await?;
    }

    // Neither the agents' nor the coordinator's death restarts a database.
    let before = started(&fleet, &uri).await?;
    for node in fleet.nodes() {
        node.crash(AGENT).await?;
    }
    fleet.controller().crash(COORDINATOR).await?;
    whole(&fleet).await?;
    ensure!(started(&fleet, &uri).await? == before, "a database was restarted");

    // The password is shown once.
    let again = fleet.json(["cluster", "connection", "orders", "--reveal-password"]).await?;
    ensure!(!again.to_string().contains("app:"), "the password is shown twice: {again}");

    // A replica leaves and returns.
    fleet
        .cli(["cluster", "remove-member", "orders", "n3", "--confirm", "n3"])?
        .deadline(DEADLINE)
        .run()
        .await?;
    ensure!(members(&fleet).await?.len() == 2, "n3 is still there");
    fleet.cli(["cluster", "add-member", "orders", "n3"])?.deadline(DEADLINE).run().await?;
    whole(&fleet).await?;

    // Deleting needs the name, and leaves nothing.
    let refused = fleet.cli(["cluster", "delete", "orders", "--confirm", "order"])?.output().await?;
    ensure!(!refused.status.success(), "a wrong name was taken");
    whole(&fleet).await?;
    fleet.cli(["cluster", "delete", "orders", "--confirm", "orders"])?.deadline(DEADLINE).run().await?;
    for node in fleet.nodes() {
        ensure!(!has_server(node)?, "a server still runs on {}", node.name());
    }
    Ok(())
}

#[tokio::test]
async fn a_coordinator_killed_while_a_cluster_is_made_goes_on_after_its_restart() -> anyhow::Result<()> {
    let fleet = fleet().await?;
    fleet.cli(CREATE.into_iter().chain(["--detach"]))?.deadline(DEADLINE).run().await?;
    // Wherever it is by now, and again in the next steps.
    for _ in 0..3 {
        fleet.controller().crash(COORDINATOR).await?;
        wait_for("the coordinator to answer", DEADLINE, || async { fleet.json(["whoami"]).await.is_ok() })
            .await?;
    }
    let state = settled(&fleet).await?;
    ensure!(state == "succeeded", "the operation has {state}");
    whole(&fleet).await
}

#[tokio::test]
async fn an_agent_killed_while_a_cluster_is_made_leaves_it_whole_or_gone() -> anyhow::Result<()> {
    let fleet = fleet().await?;
    fleet.cli(CREATE.into_iter().chain(["--detach"]))?.deadline(DEADLINE).run().await?;
    for node in ["n1", "n2", "n3", "n1"] {
        fleet.node(node)?.crash(AGENT).await?;
        fleet.online(node).await?;
    }
    if settled(&fleet).await? == "succeeded" {
        return whole(&fleet).await;
    }
    // Cleanly failed: it can be repeated.
    fleet.cli(CREATE)?.deadline(DEADLINE).run().await?;
    whole(&fleet).await
}

#[tokio::test]
async fn a_cluster_deleted_while_a_node_is_away_is_cleaned_when_it_returns() -> anyhow::Result<()> {
    let fleet = fleet().await?;
    fleet.cli(CREATE)?.deadline(DEADLINE).run().await?;
    let away = fleet.node("n3")?;
    away.hold(AGENT)?;
    away.kill(AGENT).await?;
    wait_until("n3 to be offline", DEADLINE, || async {
        let node = fleet.json(["node", "show", "n3"]).await?;
        ensure!(node["availability"] == "offline", "it is {}", node["availability"]);
        Ok(())
    })
    .await?;
    let refused = fleet.cli(["cluster", "delete", "orders", "--confirm", "orders"])?.output().await?;
    ensure!(!refused.status.success(), "it was deleted though a node is away");
    let forced = ["cluster", "delete", "orders", "--confirm", "orders", "--force"];
    fleet.cli(forced)?.deadline(DEADLINE).run().await?;
    ensure!(has_server(away)?, "n3 has no server to clean");
    away.release(AGENT).await?;
    wait_for("n3 to be cleaned", DEADLINE, || async { has_server(away).is_ok_and(|has| !has) }).await?;
    // Its name and ports are free again.
    fleet.cli(CREATE)?.deadline(DEADLINE).run().await?;
    whole(&fleet).await
}
