//! A living cluster is changed on real hosts, while a client of all its members writes without pause: parameters, durability, lease
//! profile.

use anyhow::{Context as _, ensure};
use holdfast_tests::cluster::{DEADLINE, NODES};
use holdfast_tests::fleet::Uri;
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

        // No machine was resized: decided anew, all is as it was.
        let serving = stage.started().await?;
        set(&stage, &["--retune"]).await?;
        ensure!(stage.started().await? == serving, "a server was restarted for nothing");

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
        stage.nothing_is_lost("n1").await?;
        a_lone_one_is_restarted_where_it_is(&stage).await
    }

    /// On n4, with nobody who could take over: a person says that writes may wait, or sets what needs a restart.
    async fn a_lone_one_is_restarted_where_it_is(stage: &Stage) -> anyhow::Result<()> {
        let fleet = &stage.fleet;
        let run = async |words: &[&str]| {
            fleet
                .cli(words.iter().copied())?
                .deadline(DEADLINE)
                .run()
                .await
                .map(|said| said.trim().to_owned())
        };
        run(&["cluster", "create", "lone", "--engine", "postgresql", "--nodes", "n4"]).await?;
        run(&["access", "set", "lone", "--mode", "open"]).await?;
        let uri = Uri::parse(&run(&["cluster", "connection", "lone", "--reveal-password", "--uri"]).await?)?;
        let ask = async |query: &str| fleet.psql(&uri, query).await.map(|answer| answer.trim().to_owned());
        const STARTED: &str = "select pg_postmaster_start_time()";
        let started = wait_until("it to let clients in", DEADLINE, || ask(STARTED)).await?;
        ask("create table kept as select 42 as i").await?;

        let refused = run(&["cluster", "restart", "lone"]).await.err().context("it is not refused")?;
        ensure!(format!("{refused:#}").contains("--force"), "it says {refused:#}");
        ensure!(ask(STARTED).await? == started, "it was restarted nevertheless");
        run(&["cluster", "restart", "lone", "--force"]).await?;
        let restarted = ask(STARTED).await?;
        ensure!(restarted != started, "it was not restarted");
        run(&["cluster", "set", "lone", "--parameter", "shared_buffers=24MB"]).await?;
        ensure!(
            ask("show shared_buffers").await? == "24MB" && ask(STARTED).await? != restarted,
            "it is not set"
        );
        ensure!(ask("select i from kept").await? == "42", "it has lost something");
        let shown = fleet.json(["cluster", "show", "lone"]).await?;
        ensure!(shown["primary"] == "n4" && shown["term"] == 1, "it is {shown}");
        Ok(())
    }
}
