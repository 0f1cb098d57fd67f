//! Roles that change hands by plan, on real hosts: PostgreSQL, nftables, clients that write all the time.

use anyhow::{Context as _, ensure};
use holdfast_tests::cluster::{self, DEADLINE};
use holdfast_tests::scene::{DEFAULT, Scene};

/// Needs root for the gate and the network. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn a_switchover_and_its_reverse_lose_nothing_in_quorum_mode() -> anyhow::Result<()> {
        let mut scene = Scene::set_quorum(DEFAULT).await?;
        for target in ["n2", "n1"] {
            let acknowledged = scene.all_acknowledged()?;
            ensure!(!acknowledged.is_empty(), "nothing was written");
            let plan = ["--output", "json", "cluster", "promote", "orders", target];
            let done = scene.fleet.cli(plan)?.deadline(DEADLINE).run().await?;
            println!("{done}");
            let shown = scene.fleet.json(["cluster", "show", "orders"]).await?;
            println!("{shown:#}");
            cluster::whole(&scene.fleet).await.with_context(|| format!("{target} as primary"))?;
        }
        Ok(())
    }
}
