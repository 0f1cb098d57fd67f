//! A living cluster is changed on real hosts, while a client of all its members writes without pause: parameters, durability, lease
//! profile.

use anyhow::ensure;
use holdfast_tests::cluster::{DEADLINE, NODES};
use holdfast_tests::stage::Stage;
use holdfast_tests::wait::wait_until;

/// Needs root for the gate and the network. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    /// What every member shows of a parameter.
    async fn shows(stage: &Stage, parameter: &str) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for node in NODES {
            all.push(stage.ask(node, &format!("show {parameter}")).await?);
        }
        Ok(all)
    }

    async fn set(stage: &Stage, what: &[&str]) -> anyhow::Result<()> {
        let set = ["cluster", "set", "orders"];
        stage.fleet.cli(set.into_iter().chain(what.iter().copied()))?.deadline(DEADLINE).run().await?;
        stage.is_whole_under("n1").await?;
        stage.nothing_is_lost("n1").await
    }

    #[tokio::test]
    async fn a_living_cluster_takes_other_parameters_and_another_durability_and_loses_nothing()
    -> anyhow::Result<()> {
        let stage = Stage::set(&[]).await?;
        stage.is_whole_under("n1").await?;
        let before = stage.started().await?;

        // One that is only reloaded.
        set(&stage, &["--parameter", "work_mem=7MB"]).await?;
        ensure!(shows(&stage, "work_mem").await? == ["7MB"; 3], "it is not everywhere");
        ensure!(stage.started().await? == before, "a server was restarted for it");

        // One that needs a restart: raised, then lowered.
        let raise = ["cluster", "set", "orders", "--parameter", "max_connections=150", "--plan"];
        let plan = stage.fleet.json(raise).await?;
        let steps = plan["plan"]["steps"].as_array().into_iter().flatten();
        let steps: Vec<&str> = steps.filter_map(|step| step["name"].as_str()).collect();
        let expected =
            ["record", "reload", "restart/n2", "restart/n3", "checkpoint", "stop", "serve", "finish"];
        ensure!(steps == expected, "{plan}");
        ensure!(shows(&stage, "max_connections").await? == ["100"; 3], "a plan changes something");
        set(&stage, &["--parameter", "max_connections=150"]).await?;
        ensure!(shows(&stage, "max_connections").await? == ["150"; 3], "it is not everywhere");
        set(&stage, &["--parameter", "max_connections=60", "--reset-parameter", "work_mem"]).await?;
        ensure!(shows(&stage, "max_connections").await? == ["60"; 3], "it is not everywhere");
        ensure!(!shows(&stage, "work_mem").await?.contains(&"7MB".to_owned()), "it is still set");

        // One that nobody may set.
        let refused = stage.fleet.cli(["cluster", "set", "orders", "--parameter", "fsync=off"])?.run().await;
        let refused = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(refused.contains("parameters[fsync]"), "it is set, or why not is not said: {refused}");

        for (durability, waits_for) in [("quorum", 1), ("async", 0), ("quorum", 1)] {
            set(&stage, &["--durability", durability]).await?;
            wait_until(format!("durability {durability}"), DEADLINE, || async {
                let shown = stage.fleet.json(["cluster", "show", "orders"]).await?;
                let durable = shown["durability"] == durability && shown["synchronous_count"] == waits_for;
                ensure!(durable, "it is {shown}");
                Ok(())
            })
            .await?;
        }
        // Shorter, then longer; the primary goes on.
        let serving = stage.started().await?;
        for profile in ["fast", "default"] {
            set(&stage, &["--lease-profile", profile]).await?;
            let shown = stage.fleet.json(["cluster", "show", "orders"]).await?;
            ensure!(shown["lease_profile"] == profile, "it is {shown}");
        }
        ensure!(stage.started().await? == serving, "a server was restarted for it");
        let listed = stage.fleet.json(["event", "list"]).await?;
        let mut reasons = listed["events"].as_array().into_iter().flatten();
        ensure!(reasons.all(|event| event["reason"] != "ENGINE_ENDED"), "a server ended by itself: {listed}");
        stage.nothing_is_lost("n1").await
    }
}
