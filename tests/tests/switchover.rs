//! Roles that change hands by plan, on real hosts: PostgreSQL, nftables, and a client of all members that writes without pause.

use anyhow::{Context as _, ensure};
use holdfast_tests::stage::Stage;

/// In seconds: a replica that has promised is sealed only after L, and the machine may be busy.
const LONGEST_GAP: f64 = 10.0;

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
