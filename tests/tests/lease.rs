//! Leases on real hosts: PostgreSQL, nftables, a client that writes all the time, and what a primary does when nobody's word
//! reaches it, or its agent is dead or frozen.

use anyhow::{Context as _, ensure};
use holdfast_tests::cluster::{self, DEADLINE};
use holdfast_tests::fleet::{AGENT, COORDINATOR};
use holdfast_tests::process::Program;
use holdfast_tests::scene::{DEFAULT, FAST, MEMBER, Scene, now};
use holdfast_tests::wait::wait_until;
use nix::sys::signal::Signal;

/// How often this was told.
async fn told(scene: &Scene, reason: &str) -> anyhow::Result<usize> {
    let listed = scene.fleet.json(["event", "list"]).await?;
    let events = listed["events"].as_array().with_context(|| format!("no events in {listed}"))?;
    Ok(events.iter().filter(|event| event["reason"] == reason).count())
}

/// A gate needs nftables. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn a_dead_coordinator_stops_no_write_until_a_promise_is_missing_too() -> anyhow::Result<()> {
        let mut scene = Scene::set(FAST).await?;
        let shown = scene.shown().await?;
        ensure!(shown["failover"]["possible"] == true, "it is {shown}");
        ensure!(shown["failover"]["candidate_node"] == "n2", "it is {shown}");
        // One that is started again at once takes nobody off the list: the primary is never alone for a moment.
        scene.fleet.controller().crash(COORDINATOR).await?;
        scene.held("coordinator").await?;
        let again = scene.shown().await?;
        ensure!(again["list_version"] == shown["list_version"], "it was {shown}, and is {again}");
        scene.fleet.controller().kill(COORDINATOR).await?;
        let died = now();
        scene.goes_on(died, 6.0 * scene.served).await?;

        // The one who has promised is gone too: no extension, the gate shuts, the engine is stopped.
        let promised = now();
        scene.fleet.node("n2")?.kill(AGENT).await?;
        scene.cut(promised).await?;
        scene.stopped().await?;

        // The coordinator's word alone is enough again.
        scene.fleet.controller().release(COORDINATOR).await?;
        scene.fleet.node("n2")?.release(AGENT).await?;
        scene.whole_again().await
    }

    #[tokio::test]
    async fn a_frozen_agent_shuts_its_gate_though_the_engine_runs() -> anyhow::Result<()> {
        let mut scene = Scene::set(FAST).await?;
        let agent = scene.fleet.node("n1")?.service(AGENT)?.context("no agent on n1")?;
        let frozen = now();
        agent.signal(Signal::SIGSTOP)?;
        scene.cut(frozen).await?;
        ensure!(cluster::has_server(scene.fleet.node("n1")?)?, "somebody stopped the engine");
        agent.signal(Signal::SIGCONT)?;
        scene.whole_again().await
    }

    #[tokio::test]
    async fn a_dead_agent_shuts_its_gate_and_the_next_one_opens_it() -> anyhow::Result<()> {
        let mut scene = Scene::set(DEFAULT).await?;
        let killed = now();
        scene.fleet.node("n1")?.kill(AGENT).await?;
        scene.cut(killed).await?;
        ensure!(cluster::has_server(scene.fleet.node("n1")?)?, "somebody stopped the engine");
        scene.fleet.node("n1")?.release(AGENT).await?;
        scene.whole_again().await?;

        // One that is started again at once, before the lease is over, costs nobody a connection.
        scene.fleet.node("n1")?.crash(AGENT).await?;
        let crashed = now();
        scene.goes_on(crashed, 2.0 * scene.served).await?;

        // Whoever removes the table costs clients their connections, and the primary neither its lease nor its server.
        let server = cluster::server(scene.primary()?)?;
        let lost = told(&scene, "LEASE_LOST").await?;
        for _ in 0..2 {
            scene.primary()?.run(Program::new("nft").args(["delete", "table", "inet", "holdfast"])).await?;
            wait_until("the table to be there again", DEADLINE, || async {
                let list = Program::new("nft").args(["list", "table", "inet", "holdfast"]);
                scene.primary()?.run(list).await.map(drop)
            })
            .await?;
            scene.whole_again().await?;
        }
        ensure!(cluster::server(scene.primary()?)? == server, "the server was started anew");
        ensure!(told(&scene, "LEASE_LOST").await? == lost, "it lost its lease");
        ensure!(told(&scene, "FIREWALL_DRIFT").await? > 0, "nobody was told");
        Ok(())
    }

    /// The mutant: with elements that the kernel does not end, the frozen agent's clients write on, and this sees it; also
    /// what is asked of every lease that ends in a storm.
    #[tokio::test]
    async fn without_the_kernels_clock_a_frozen_agent_would_let_writes_in() -> anyhow::Result<()> {
        let scene = Scene::set(FAST).await?;
        let n1 = scene.fleet.node("n1")?;
        let agent = n1.service(AGENT)?.context("no agent on n1")?;
        let frozen = now();
        agent.signal(Signal::SIGSTOP)?;
        let for_ever: String = ["armed_0", "granted_0"]
            .into_iter()
            .map(|set| format!("flush set inet holdfast {set}\nadd element inet holdfast {set} {{ 5432 }}\n"))
            .collect();
        n1.run(Program::new("nft").args(["-f", "-"]).input(for_ever)).await?;
        scene.goes_on(frozen, 2.0 * scene.served).await?;
        // The same while packets are lost, late, and overtake each other.
        let stormy = now();
        scene.fleet.network().storm(n1).await?;
        scene.goes_on(stormy, scene.served).await?;
        ensure!(scene.nothing_after(frozen + scene.served).is_err(), "nobody sees that writes went on");
        agent.signal(Signal::SIGCONT)
    }

    #[tokio::test]
    async fn answers_that_do_not_come_are_no_lease_though_every_request_arrives() -> anyhow::Result<()> {
        let mut scene = Scene::set(FAST).await?;
        let (network, controller) = (scene.fleet.network(), scene.fleet.controller());
        let (n1, n2) = (scene.fleet.node("n1")?, scene.fleet.node("n2")?);
        let deaf = now();
        network.cut(controller, n1).await?;
        scene.goes_on(deaf, 3.0 * scene.served).await?;
        let cut = now();
        network.cut(n2, n1).await?;
        scene.cut_but(cut, &[MEMBER]).await?;
        scene.stopped().await?;
        scene.fleet.network().heal().await?;
        scene.whole_again().await
    }

    #[tokio::test]
    async fn a_primary_that_is_cut_off_from_all_is_fenced_and_comes_back() -> anyhow::Result<()> {
        let mut scene = Scene::set(FAST).await?;
        let n1 = scene.fleet.node("n1")?;
        let cut = now();
        scene.fleet.network().partition(&[n1], &[scene.fleet.node("n2")?, scene.fleet.controller()]).await?;
        scene.cut_but(cut, &[MEMBER]).await?;
        scene.stopped().await?;
        scene.fleet.network().heal().await?;
        scene.whole_again().await?;
        wait_until("the loss and the return to be told", DEADLINE, || async {
            let events = scene.fleet.json(["event", "list"]).await?.to_string();
            ensure!(events.contains("LEASE_LOST") && events.contains("LEASE_REGAINED"), "they are {events}");
            Ok(())
        })
        .await
    }
}
