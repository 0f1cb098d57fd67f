//! Failovers that nobody asks for, and those that do not begin, on real hosts: PostgreSQL, nftables, and a client of all members that
//! writes without pause.

use anyhow::ensure;
use holdfast_tests::cluster::{self, DEADLINE};
use holdfast_tests::scene::now;
use holdfast_tests::stage::Stage;
use nix::sys::signal::Signal;

/// How long a fault must last to show that nothing follows from it: twice the lease.
const FOR_NOTHING: f64 = 10.0;

/// Needs root for the gate and the network. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn a_primary_that_is_restarted_in_time_or_hidden_from_the_coordinator_alone_stays_one()
    -> anyhow::Result<()> {
        let stage = Stage::set(&["--durability", "quorum"]).await?;
        stage.is_whole_under("n1").await?;
        let (fleet, n1) = (&stage.fleet, stage.fleet.node("n1")?);

        // Its server is killed: the next one serves before anybody else could.
        let killed = now();
        cluster::server(n1)?.signal(Signal::SIGKILL)?;
        stage.client.is_served_by("n1", killed, DEADLINE).await?;

        // Only the coordinator is cut off from it: the others keep it going.
        fleet.network().partition(&[n1], &[fleet.controller()]).await?;
        let hidden = now();
        let alert = stage.told("PRIMARY_UNREACHABLE").await?;
        ensure!(alert.contains("only the coordinator is cut off"), "it is told: {alert}");
        stage.client.is_served_by("n1", hidden + FOR_NOTHING, DEADLINE).await?;
        ensure!(
            stage.client.longest_gap() < FOR_NOTHING,
            "it did not serve on: {}",
            stage.client.longest_gap()
        );
        fleet.network().heal().await?;
        stage.is_whole_under("n1").await?;
        ensure!(stage.client.served() == ["n1"], "another served: {:?}", stage.client.served());
        Ok(())
    }

    #[tokio::test]
    async fn a_primary_that_is_cut_off_is_replaced_unless_that_is_paused() -> anyhow::Result<()> {
        let stage = Stage::set(&["--durability", "async"]).await?;
        stage.is_whole_under("n1").await?;
        let fleet = &stage.fleet;
        let (n1, n2, n3) = (fleet.node("n1")?, fleet.node("n2")?, fleet.node("n3")?);
        fleet.cli(["cluster", "pause", "orders", "--reason", "new cables"])?.run().await?;
        fleet.network().partition(&[n1], &[n2, n3, fleet.controller()]).await?;
        let alert = stage.told("FAILOVER_BLOCKED").await?;
        ensure!(alert.contains("operator/") && alert.contains("new cables"), "it is told: {alert}");

        let resumed = now();
        fleet.cli(["cluster", "resume", "orders"])?.run().await?;
        let primary = stage.successor(resumed).await?;
        let loss = stage.told("PRIMARY_CHANGED").await?;
        ensure!(loss.contains("bytes of what the old one last reported"), "it is told: {loss}");
        // What it acknowledged last is perhaps on no other; it is set aside, and the rest is aligned with the others.
        fleet.network().heal().await?;
        stage.is_whole_under(&primary).await?;
        let served = stage.client.served();
        ensure!(served == ["n1", primary.as_str()], "two served at once: {served:?}");
        Ok(())
    }

    #[tokio::test]
    async fn a_server_that_lets_nobody_in_any_more_is_replaced() -> anyhow::Result<()> {
        let stage = Stage::set(&["--durability", "quorum"]).await?;
        stage.is_whole_under("n1").await?;
        let server = cluster::server(stage.fleet.node("n1")?)?;
        let frozen = now();
        server.signal(Signal::SIGSTOP)?;
        let primary = stage.successor(frozen).await?;
        server.signal(Signal::SIGCONT)?;
        stage.is_whole_under(&primary).await?;
        stage.nothing_is_lost(&primary).await?;
        let served = stage.client.served();
        ensure!(served == ["n1", primary.as_str()], "two served at once: {served:?}");
        Ok(())
    }
}
