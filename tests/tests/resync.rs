//! Replicas whose data are aligned with the primary's because a person asks for it, on real hosts.

use anyhow::ensure;
use holdfast_tests::cluster::DEADLINE;
use holdfast_tests::stage::Stage;

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
        ensure!(stage.client.served() == ["n1"], "another served: {:?}", stage.client.served());
        Ok(())
    }
}
