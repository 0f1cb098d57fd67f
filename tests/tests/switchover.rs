//! Roles that change hands by plan, on real hosts: PostgreSQL, nftables, and a client of all members that writes without pause.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use holdfast_tests::client::{self, Client, TABLE};
use holdfast_tests::cluster::{self, DEADLINE};
use holdfast_tests::fleet::{Fleet, Uri};
use holdfast_tests::scene::now;
use holdfast_tests::wait::wait_until;

const PORT: u16 = 5432;
/// In seconds: a replica that has promised is sealed only after L, and the machine may be busy.
const LONGEST_GAP: f64 = 10.0;

/// A cluster of n1 and two more, and a client on n4.
struct Stage {
    fleet: Fleet,
    uri: Uri,
    client: Client,
}

impl Stage {
    async fn set(more: &[&str]) -> anyhow::Result<Self> {
        let network = holdfast_tests::network::Network::new().await?;
        let mut fleet = Fleet::start(network, SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        fleet.join_all(&["n1", "n2", "n3", "n4"]).await?;
        let create = ["cluster", "create", "orders", "--engine", "postgresql", "--nodes", "n1,n2,n3"];
        fleet.cli(create.into_iter().chain(more.iter().copied()))?.deadline(DEADLINE).run().await?;
        fleet.cli(["access", "set", "orders", "--mode", "open"])?.run().await?;
        let uri = cluster::uri(&fleet).await?;
        let n1 = fleet.node("n1")?.address();
        let ask = || async { fleet.psql(&uri.only(n1)?, TABLE).await };
        wait_until("n1 to let clients in", DEADLINE, ask).await?;
        let mut members = Vec::new();
        for name in cluster::NODES {
            members.push((name, SocketAddr::new(fleet.node(name)?.address(), PORT)));
        }
        let client = Client::start(fleet.node("n4")?, &uri, &members).await?;
        client.is_served_by("n1", 0.0, DEADLINE).await?;
        Ok(Self { fleet, uri, client })
    }

    async fn is_whole_under(&self, primary: &str) -> anyhow::Result<()> {
        wait_until(format!("a whole cluster under {primary}"), DEADLINE, || async {
            let shown = self.fleet.json(["cluster", "show", "orders"]).await?;
            ensure!(shown["primary"] == primary && shown["lease"]["settled"] == true, "it is {shown}");
            let counted = shown["lease"]["promotable_nodes"].as_array().map(Vec::len);
            ensure!(counted == Some(2), "it counts on {counted:?}");
            for (node, role, state) in cluster::members(&self.fleet).await? {
                let expected =
                    if node == primary { ("primary", "running") } else { ("replica", "streaming") };
                ensure!((role.as_str(), state.as_str()) == expected, "{node} is a {role}, {state}");
            }
            Ok(())
        })
        .await
    }

    async fn promote(&self, target: &str) -> anyhow::Result<()> {
        let begun = now();
        let promote = ["cluster", "promote", "orders", target];
        self.fleet.cli(promote)?.deadline(DEADLINE).run().await?;
        self.client.is_served_by(target, begun, DEADLINE).await?;
        self.is_whole_under(target).await
    }

    async fn nothing_is_lost(&self, primary: &str) -> anyhow::Result<()> {
        let at = self.fleet.node(primary)?.address();
        let acknowledged = self.client.acknowledged();
        let found = self.fleet.psql(&self.uri.only(at)?, "select id from numbered").await?;
        client::nothing_is_missing(&acknowledged, &found)
    }
}

/// Needs root for the gate and the network. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    async fn there_and_back(more: &[&str]) -> anyhow::Result<()> {
        let stage = Stage::set(more).await?;
        stage.is_whole_under("n1").await?;
        for target in ["n2", "n1"] {
            stage.promote(target).await.with_context(|| format!("promote {target}"))?;
            stage.nothing_is_lost(target).await?;
        }
        let served = stage.client.served();
        let gap = stage.client.longest_gap();
        ensure!(served == ["n1", "n2", "n1"], "two served at once: {served:?}");
        ensure!(gap < LONGEST_GAP, "no write was acknowledged for {gap:.3} s");
        let listed = stage.fleet.json(["event", "list"]).await?;
        let reasons: Vec<&str> = listed["events"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|it| it["reason"].as_str())
            .collect();
        ensure!(reasons.iter().filter(|reason| **reason == "PRIMARY_CHANGED").count() == 2, "{reasons:?}");
        ensure!(!reasons.contains(&"LEASE_LOST") && !reasons.contains(&"ENGINE_ENDED"), "{reasons:?}");
        Ok(())
    }

    #[tokio::test]
    async fn a_switchover_and_its_reverse_lose_nothing_in_quorum_mode() -> anyhow::Result<()> {
        there_and_back(&["--durability", "quorum"]).await
    }

    #[tokio::test]
    async fn a_switchover_and_its_reverse_lose_nothing_in_async_mode() -> anyhow::Result<()> {
        there_and_back(&["--durability", "async"]).await
    }
}
