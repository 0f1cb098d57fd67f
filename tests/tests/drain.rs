//! Nodes that are drained and rebooted, and clusters that are restarted, on real hosts: PostgreSQL, nftables, and a client of all members that writes without pause.

use anyhow::ensure;
use holdfast_tests::cluster::DEADLINE;
use holdfast_tests::scene::now;
use holdfast_tests::stage::Stage;

/// Needs root for the gate and the network. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn draining_the_primarys_node_moves_it_and_keeps_it_away_until_undrained() -> anyhow::Result<()> {
        let stage = Stage::set(&["--durability", "quorum"]).await?;
        stage.is_whole_under("n1").await?;

        let plan = stage.fleet.json(["node", "drain", "n1", "--plan"]).await?;
        let steps = plan["plan"]["steps"].as_array().into_iter().flatten();
        let steps: Vec<&str> = steps.filter_map(|step| step["name"].as_str()).collect();
        ensure!(steps == ["mark", "move/orders", "finish"], "{plan}");

        let begun = now();
        let drained = stage.fleet.json(["node", "drain", "n1", "--reason", "new disks"]).await?;
        ensure!(drained["response"]["moved"][0] == "orders", "{drained}");
        let successor = stage.successor(begun).await?;
        stage.is_whole_under(&successor).await?;
        stage.nothing_is_lost(&successor).await?;
        ensure!(stage.told("NODE_DRAINED").await?.contains("n1"), "the event does not name it");
        let shown = stage.fleet.json(["node", "show", "n1"]).await?;
        ensure!(shown["drained"]["reason"] == "new disks", "{shown}");

        let back = stage.fleet.cli(["cluster", "promote", "orders", "n1"])?.run().await;
        let refused = back.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(
            refused.contains("not_draining"),
            "it is promoted nevertheless, or why not is not said: {refused}"
        );
        // Once more is no mistake.
        let again = stage.fleet.json(["node", "drain", "n1"]).await?;
        ensure!(again["response"]["moved"].as_array().is_some_and(Vec::is_empty), "{again}");

        stage.fleet.cli(["node", "undrain", "n1"])?.run().await?;
        stage.promote("n1").await?;
        stage.nothing_is_lost("n1").await?;

        // Its primary moves away once more, and its machine boots.
        let (started, begun) = (stage.started().await?, now());
        let reboot = ["--output", "json", "node", "reboot", "n1", "--reason", "new kernel"];
        stage.fleet.cli(reboot)?.deadline(DEADLINE).run().await?;
        let successor = stage.successor(begun).await?;
        stage.is_whole_under(&successor).await?;
        stage.nothing_is_lost(&successor).await?;
        ensure!(stage.started().await?[0] > started[0], "its server is the one from before the boot");
        let shown = stage.fleet.json(["node", "show", "n1"]).await?;
        ensure!(shown["drained"].is_null(), "it may get no new roles: {shown}");
        stage.told("NODE_REBOOTED").await.map(drop)
    }

    #[tokio::test]
    async fn restarting_a_cluster_restarts_every_server_and_loses_nothing() -> anyhow::Result<()> {
        let stage = Stage::set(&["--durability", "quorum"]).await?;
        stage.is_whole_under("n1").await?;
        let before = stage.started().await?;

        let begun = now();
        let one = ["cluster", "restart", "orders", "--node", "n3"];
        stage.fleet.cli(one)?.deadline(DEADLINE).run().await?;
        let only = stage.started().await?;
        ensure!(only[2] > before[2] && only[..2] == before[..2], "{before:?}, then {only:?}");
        stage.fleet.cli(["cluster", "restart", "orders"])?.deadline(DEADLINE).run().await?;
        let successor = stage.successor(begun).await?;
        stage.is_whole_under(&successor).await?;
        stage.nothing_is_lost(&successor).await?;

        let after = stage.started().await?;
        ensure!(
            before.iter().zip(&after).all(|(before, after)| after > before),
            "{before:?}, then {after:?}"
        );
        stage.told("CLUSTER_RESTARTED").await?;
        let listed = stage.fleet.json(["event", "list"]).await?;
        let mut reasons = listed["events"].as_array().into_iter().flatten();
        ensure!(reasons.all(|event| event["reason"] != "ENGINE_ENDED"), "a server ended by itself: {listed}");
        Ok(())
    }
}
