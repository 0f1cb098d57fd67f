//! Replicas whose data are aligned with the primary's, because a person asks for it or because they cannot go on, on real hosts.

use anyhow::{Context as _, ensure};
use holdfast_tests::cluster::DEADLINE;
use holdfast_tests::process::Program;
use holdfast_tests::stage::Stage;

/// What n1's server answers to a superuser.
async fn at_n1(stage: &Stage, sql: &str) -> anyhow::Result<String> {
    let n1 = stage.fleet.node("n1")?;
    let shown = stage.fleet.json(["cluster", "show", "orders"]).await?;
    let id = shown["id"].as_str().context("it has no id")?;
    let socket = n1.state_folder().join("data").join(id).join("run");
    let psql = Program::new("psql").args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres"]);
    let psql = psql.args(["-d", "postgres", "-p", "5432", "-c", sql]).arg("-h").arg(socket);
    n1.run(psql).await
}

/// While n2 is cut off, its slot is dropped; the one that is made again may keep too little of the log that it needs.
async fn a_slot_is_lost(stage: &Stage) -> anyhow::Result<()> {
    let shown = stage.fleet.json(["cluster", "show", "orders"]).await?;
    let members = shown["members"].as_array().context("it has no members")?;
    let n2 = members.iter().find(|member| member["node"] == "n2").context("n2 is no member")?;
    let slot = format!("holdfast_{}", n2["node_id"].as_str().unwrap_or_default().replace('-', ""));
    let network = stage.fleet.network();
    network.partition(&[stage.fleet.node("n1")?], &[stage.fleet.node("n2")?]).await?;
    let drop = format!(
        "select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where slot_name = '{slot}';
         select pg_drop_replication_slot('{slot}')"
    );
    at_n1(stage, &drop).await?;
    ensure!(stage.told("SLOT_MISSING").await?.contains("slot of n2"), "another's was told");
    at_n1(stage, "alter system set wal_keep_size = 0").await?;
    at_n1(stage, "alter system set max_slot_wal_keep_size = '1MB'").await?;
    at_n1(stage, "select pg_reload_conf()").await?;
    for _ in 0..4 {
        at_n1(stage, "select pg_logical_emit_message(false, 'x', 'y'); select pg_switch_wal()").await?;
    }
    at_n1(stage, "checkpoint").await?;
    network.heal().await?;
    ensure!(stage.told("LOG_REMOVED").await?.contains("requested WAL segment"), "its cause is not told");
    at_n1(stage, "alter system reset max_slot_wal_keep_size").await?;
    at_n1(stage, "select pg_reload_conf()").await?;
    stage.is_whole_under("n1").await?;
    stage.nothing_is_lost("n1").await
}

/// Needs root for the gate and the network. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn replicas_are_copied_anew_one_by_one_and_a_primary_never() -> anyhow::Result<()> {
        let stage = Stage::set(&["--durability", "quorum"]).await?;
        stage.is_whole_under("n1").await?;
        let resync = ["cluster", "resync", "orders", "--mode", "full", "--confirm", "orders"];
        let of_primary = resync.into_iter().chain(["--node", "n1"]);
        let refused = stage.fleet.cli(of_primary)?.run().await.err().map(|error| format!("{error:#}"));
        ensure!(
            refused.as_ref().is_some_and(|why| why.contains("whose data are never replaced")),
            "it was not refused: {refused:?}"
        );
        let begun = stage.client.acknowledged().len();
        stage.fleet.cli(resync)?.deadline(DEADLINE).run().await?;
        let told = stage.told("MEMBER_RESYNCED").await?;
        ensure!(told.contains("has a new copy of"), "it is told: {told}");
        stage.is_whole_under("n1").await?;
        stage.nothing_is_lost("n1").await?;
        ensure!(stage.client.acknowledged().len() > begun, "no write went on meanwhile");
        a_slot_is_lost(&stage).await?;
        ensure!(stage.client.served() == ["n1"], "another served: {:?}", stage.client.served());
        Ok(())
    }
}
