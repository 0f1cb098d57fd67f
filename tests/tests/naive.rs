//! The checks that the tests of changing roles rest on, where they must fail: a promotion as many scripts make it, of servers that
//! Holdfast does not keep, with the same client on the same network.

use std::time::Duration;

use holdfast_tests::client::{nothing_is_missing, one_at_a_time};
use holdfast_tests::host::Host;
use holdfast_tests::scene::now;
use holdfast_tests::unmanaged::by_hand::ByHand;

const DEADLINE: Duration = Duration::from_secs(60);

/// Needs root for the network. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn a_naive_promotion_makes_two_serve_at_once_and_loses_what_was_acknowledged() -> anyhow::Result<()>
    {
        let cluster = ByHand::begin().await?;
        let (servers, client) = (&cluster.servers, &cluster.client);
        one_at_a_time(&client.served(), 0)?;
        let others: Vec<&Host> =
            ["n2", "n3"].map(|name| servers.node(name)).into_iter().collect::<Result<_, _>>()?;
        servers.network.partition(&[servers.node("n1")?], &others).await?;
        // What n1 acknowledges from here on nobody else has.
        client.is_served_by("n1", now(), DEADLINE).await?;
        cluster.promote("n2").await?;
        let promoted = now();
        client.is_served_by("n2", promoted, DEADLINE).await?;
        client.is_served_by("n1", now(), DEADLINE).await?;

        let twice = one_at_a_time(&client.served(), 1).unwrap_err().to_string();
        assert!(twice.contains("two served at once"), "{twice}");
        let found = servers.ask("n2", "select id from numbered").await?;
        let lost = nothing_is_missing(&client.acknowledged(), &found).unwrap_err().to_string();
        assert!(lost.contains("acknowledged and missing") && lost.contains("n1"), "{lost}");
        Ok(())
    }

    #[tokio::test]
    async fn a_switchover_with_care_passes_both_checks() -> anyhow::Result<()> {
        let cluster = ByHand::begin().await?;
        let (servers, client) = (&cluster.servers, &cluster.client);
        servers.is_followed("n1").await?;
        cluster.switch("n1", "n2").await?;
        client.is_served_by("n2", now(), DEADLINE).await?;
        one_at_a_time(&client.served(), 1)?;
        let acknowledged = client.acknowledged();
        nothing_is_missing(&acknowledged, &servers.ask("n2", "select id from numbered").await?)
    }
}
