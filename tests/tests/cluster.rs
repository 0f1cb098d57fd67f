//! The first cluster, for real: a coordinator, agents on hosts of their own, PostgreSQL, and what it outlives.

use anyhow::ensure;
use holdfast_tests::cluster::{DEADLINE, creation, fleet, has_server, members, started, uri, whole};
use holdfast_tests::fleet::{AGENT, COORDINATOR};
use holdfast_tests::wait::{wait_for, wait_until};

#[tokio::test]
async fn three_nodes_become_a_cluster_that_outlives_agents_and_coordinator() -> anyhow::Result<()> {
    let fleet = fleet().await?;
    fleet.cli(creation(&fleet, &[]))?.deadline(DEADLINE).run().await?;
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
async fn a_cluster_deleted_while_a_node_is_away_is_cleaned_when_it_returns() -> anyhow::Result<()> {
    let fleet = fleet().await?;
    fleet.cli(creation(&fleet, &[]))?.deadline(DEADLINE).run().await?;
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
    fleet.cli(creation(&fleet, &[]))?.deadline(DEADLINE).run().await?;
    whole(&fleet).await
}
