//! Another member takes over from a primary that cannot hand over, on real hosts: PostgreSQL, nftables, and a client of all members
//! that writes without pause and reaches the old primary all the time.

use anyhow::{Context as _, ensure};
use holdfast_tests::cluster::{DEADLINE, NODES};
use holdfast_tests::process::Program;
use holdfast_tests::scene::now;
use holdfast_tests::stage::Stage;
use holdfast_tests::wait::wait_until;

/// Cut off from all but its clients, n1 loses its place.
async fn fails_over(stage: &Stage, more: &[&str]) -> anyhow::Result<String> {
    let fleet = &stage.fleet;
    let (n1, n2, n3) = (fleet.node("n1")?, fleet.node("n2")?, fleet.node("n3")?);
    fleet.cli(["cluster", "pause", "orders", "--reason", "a person decides"])?.run().await?;
    fleet.network().partition(&[n1], &[n2, n3, fleet.controller()]).await?;
    let begun = now();
    let failover = ["cluster", "failover", "orders", "--confirm", "orders"];
    fleet.cli(failover.into_iter().chain(more.iter().copied()))?.deadline(DEADLINE).run().await?;
    let primary = stage.successor(begun).await?;
    let served = stage.client.served();
    ensure!(served == ["n1", primary.as_str()], "two served at once: {served:?}");
    Ok(primary)
}

/// What only n1 had is listed, and is on the operator's machine afterwards.
async fn set_aside_is_fetched(stage: &Stage) -> anyhow::Result<()> {
    let listed = stage.fleet.json(["cluster", "set-aside", "list", "orders"]).await?;
    let log = &listed["logs"][0];
    ensure!(log["node"] == "n1" && log["fork"]["era"] == 1, "it is not listed: {listed}");
    let folder = stage.fleet.controller().folder().join("fetched");
    let (id, into) = (log["id"].as_str().unwrap_or_default(), folder.display().to_string());
    let fetched = stage.fleet.json(["cluster", "set-aside", "fetch", "orders", id, "--into", &into]).await?;
    let (mut files, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(&folder)? {
        let metadata = entry?.metadata()?;
        (files, bytes) = (files + 1, bytes + metadata.len());
    }
    ensure!(
        fetched["bytes"] == bytes && log["bytes"] == bytes && log["files"] == files,
        "{fetched}, {files}, {bytes}"
    );
    ensure!(folder.join("summary.json").is_file(), "what they are is not there");
    Ok(())
}

/// Two of the three machines are turned off, the primary's among them: nothing but a person can know that it serves no more.
async fn the_last_takes_over_by_a_person_s_word(stage: &Stage, primary: &str) -> anyhow::Result<()> {
    let fleet = &stage.fleet;
    let lost: Vec<&str> = NODES.into_iter().filter(|node| *node != "n1").collect();
    for node in &lost {
        fleet.node(node)?.cut_power().await?;
    }
    let failover = ["cluster", "failover", "orders", "--to", "n1", "--confirm", "orders"];
    let more = async |flags: &[&'static str]| {
        let words = failover.into_iter().chain(flags.iter().copied());
        fleet.cli(words)?.deadline(DEADLINE).run().await
    };
    wait_until("the failover to be refused for want of others", DEADLINE, || async {
        let refused = more(&["--accept-data-loss"]).await.err().context("it is not refused")?;
        let why = format!("{refused:#}");
        ensure!(why.contains("too few") && why.contains("--old-primary-is-off"), "it says {why}");
        Ok(())
    })
    .await?;
    let acceptance = more(&["--old-primary-is-off"]).await.err().context("it accepts a loss by itself")?;
    ensure!(format!("{acceptance:#}").contains("--accept-data-loss"), "it says {acceptance:#}");
    let begun = now();
    more(&["--old-primary-is-off", "--accept-data-loss"]).await?;
    let told = stage.told("PRIMARY_VOUCHED_OFF").await?;
    ensure!(told.contains(&format!("vouches that {primary} is powered off")), "it is told: {told}");
    stage.client.is_served_by("n1", begun, DEADLINE).await?;
    stage.nothing_is_lost("n1").await?;
    let served = stage.client.served();
    ensure!(served == ["n1", primary, "n1"], "two served at once: {served:?}");
    Ok(())
}

/// Needs root for the gate and the network. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn a_failover_loses_nothing_in_quorum_mode_and_the_old_primary_never_serves_again()
    -> anyhow::Result<()> {
        let stage = Stage::set(&["--durability", "quorum"]).await?;
        stage.is_whole_under("n1").await?;
        let primary = fails_over(&stage, &[]).await?;
        stage.nothing_is_lost(&primary).await?;

        // It was stopped in the middle of its work: what only it has is set aside, and it comes back by itself.
        stage.fleet.network().heal().await?;
        let told = stage.told("MEMBER_RESYNCED").await?;
        ensure!(told.contains("n1 was rewound") && told.contains("set aside"), "it is told: {told}");
        stage.is_whole_under(&primary).await?;
        stage.nothing_is_lost(&primary).await?;
        let served = stage.client.served();
        ensure!(served == ["n1", primary.as_str()], "two served at once: {served:?}");
        set_aside_is_fetched(&stage).await?;
        the_last_takes_over_by_a_person_s_word(&stage, &primary).await
    }

    #[tokio::test]
    async fn a_failover_in_async_mode_says_what_it_may_lose_and_two_never_serve() -> anyhow::Result<()> {
        let stage = Stage::set(&["--durability", "async"]).await?;
        stage.is_whole_under("n1").await?;
        let primary = fails_over(&stage, &["--accept-data-loss"]).await?;
        let lost = stage.lost(&primary).await?;
        ensure!(lost > 0, "nothing was acknowledged that could have been lost: nothing is shown by this");
        let listed = stage.fleet.json(["event", "list"]).await?;
        let events = listed["events"].as_array().into_iter().flatten();
        let told = events.filter(|event| event["reason"] == "PRIMARY_CHANGED");
        let told: Vec<&str> = told.filter_map(|event| event["message"].as_str()).collect();
        ensure!(told.len() == 1 && told[0].contains("bytes of what the old one last reported"), "{told:?}");

        // What it wrote after its last report is told when it comes back: all that was lost is in what is set aside.
        stage.fleet.network().heal().await?;
        let told = stage.told("MEMBER_RESYNCED").await?;
        ensure!(told.contains("bytes of log that perhaps only it had are set aside"), "it is told: {told}");
        let kept = set_aside_inserts(&stage).await?;
        ensure!(kept >= lost, "{lost} acknowledged rows are lost, and {kept} inserts are set aside");
        stage.is_whole_under(&primary).await?;
        ensure!(stage.lost(&primary).await? == lost, "more was lost later");
        Ok(())
    }
}

/// How many rows somebody finds who reads what n1 has set aside with PostgreSQL's own program.
async fn set_aside_inserts(stage: &Stage) -> anyhow::Result<usize> {
    const READ: &str = r#"set -e; cd "$(ls -d /var/lib/holdfast/data/*/set-aside/*/ | tail -n 1)"
        place=$(sed -n '/"fork"/,/}/s/.*"offset": \([0-9]*\).*/\1/p' summary.json)
        from=$(printf '%X/%X' $((place >> 32)) $((place & 0xffffffff)))
        first=$(ls | grep -E '^[0-9A-F]{24}$' | head -n 1)
        timeline=$((0x$(echo "$first" | cut -c 1-8)))
        reader=$(ls /usr/lib/postgresql/*/bin/pg_waldump | tail -n 1)
        "$reader" --path . --timeline "$timeline" --start "$from" --rmgr Heap 2>/dev/null | grep -c 'desc: INSERT' || true"#;
    let said = stage.fleet.node("n1")?.run(Program::new("sh").args(["-c", READ])).await?;
    said.trim().parse().with_context(|| format!("it says {said:?}"))
}
