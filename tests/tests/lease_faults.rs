//! What a lease bears on real hosts, and what ends it cleanly: members that are gone, a network that loses and delays, busy
//! processors, a disk that hangs. PostgreSQL, nftables, and clients that write all the time.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use holdfast_tests::cluster::DEADLINE;
use holdfast_tests::fault::{Busy, Hung};
use holdfast_tests::fleet::{AGENT, COORDINATOR};
use holdfast_tests::host::Host;
use holdfast_tests::network::LATE;
use holdfast_tests::process::Program;
use holdfast_tests::scene::{DEFAULT, FAST, MEMBER, Profile, Scene, now};
use holdfast_tests::wait::{wait_for, wait_until};
use jiff::Timestamp;

/// For how many leases a fault lasts.
const LEASES: f64 = 6.0;
/// Of the fast profile, in seconds: the gate is open for longer than L − M without them, unless a renewal was missed.
const TWO_RENEWALS: f64 = 1.0;
/// What is said of a gate that lets nobody in.
const SHUT: &str = "the gate is shut";

/// When each of these was told of, in seconds since 1970.
async fn told(scene: &Scene, reason: &str) -> anyhow::Result<Vec<f64>> {
    let listed = scene.fleet.json(["event", "list"]).await?;
    let events = listed["events"].as_array().with_context(|| format!("no events in {listed}"))?;
    let of_it = events.iter().filter(|event| event["reason"] == reason);
    of_it
        .map(|event| {
            let at = event["time"].as_str().with_context(|| format!("no time in {event}"))?;
            Ok(at.parse::<Timestamp>()?.as_duration().as_secs_f64())
        })
        .collect()
}

/// For how long the gate would stay open if nobody said anything more: by the kernel's own clock.
async fn open_for(host: &Host) -> anyhow::Result<f64> {
    let table = host.run(Program::new("nft").args(["list", "table", "inet", "holdfast"])).await?;
    let element = |set: &str| {
        let (_, of_set) = table.split_once(&format!("set {set} {{"))?;
        let (of_set, _) = of_set.split_once("\n\t}")?;
        Some(of_set.split_once("elements = {")?.1.to_owned())
    };
    let slot = |slot: u8| {
        element(&format!("granted_{slot}"))?;
        let armed = element(&format!("armed_{slot}"))?;
        let mut words = armed.split_whitespace().skip_while(|word| *word != "expires");
        let left = words.nth(1)?;
        let (seconds, rest) =
            left.split_once('s').filter(|(it, _)| !it.ends_with('m')).unwrap_or(("0", left));
        let thousandths = rest.strip_suffix("ms").unwrap_or("0");
        Some(seconds.parse::<f64>().ok()? + thousandths.parse::<f64>().ok()? / 1000.0)
    };
    let left = [0, 1].into_iter().filter_map(slot).reduce(f64::max);
    left.with_context(|| format!("{SHUT}: {table}"))
}

/// Looks at the primary's gate all the time, for six leases: the least that it had left.
async fn watch_gate(scene: &Scene) -> anyhow::Result<f64> {
    let (begun, mut least) = (now(), f64::MAX);
    while now() - begun < LEASES * scene.lease {
        least = least.min(open_for(scene.primary()?).await?);
    }
    Ok(least)
}

/// Gives the thread that renews on the primary another place among others, as chrt has it.
async fn place_renewals(scene: &Scene, policy: &str) -> anyhow::Result<()> {
    let agent = scene.primary()?.service(AGENT)?.context("no agent on n1")?;
    let threads =
        std::fs::read_dir(format!("/proc/{}/task", agent.pid)).context("list the agent's threads")?;
    let threads: Vec<_> = threads.map(|thread| Ok(thread?.path())).collect::<std::io::Result<_>>()?;
    let renews =
        |thread: &&PathBuf| std::fs::read_to_string(thread.join("comm")).is_ok_and(|it| it == "lease\n");
    let thread = threads.iter().find(renews).and_then(|thread| thread.file_name());
    let thread = thread.context("no thread renews leases")?;
    Program::new("chrt").args([policy, "--pid", "0"]).arg(thread).run().await.map(drop)
}

/// Whether the primary's node has taken over the newest list of who may come in.
async fn is_enforced(scene: &Scene) -> anyhow::Result<bool> {
    let shown = scene.fleet.json(["access", "show", "orders"]).await?;
    let members = shown["members"].as_array().with_context(|| format!("no members in {shown}"))?;
    let n1 = members.iter().find(|member| member["node"] == "n1");
    Ok(n1.with_context(|| format!("no n1 in {shown}"))?["state"] == "enforced")
}

/// Needs root for the gate, the network and the disk. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn a_coordinator_and_a_replica_may_be_gone_but_not_the_other_replica_too() -> anyhow::Result<()> {
        let mut scene = Scene::set_quorum(FAST).await?;
        let (fleet, network) = (&scene.fleet, scene.fleet.network());
        fleet.controller().kill(COORDINATOR).await?;
        network.partition(&[fleet.node("n3")?], &[fleet.node("n1")?, fleet.node("n2")?]).await?;
        let gone = now();
        scene.goes_on(gone, LEASES * scene.lease).await?;

        // Its engine still follows, so that a commit would be acknowledged: only the gate keeps it from that.
        let promised = now();
        scene.fleet.node("n2")?.kill(AGENT).await?;
        scene.cut(promised).await?;
        scene.stopped().await?;

        scene.fleet.network().heal().await?;
        scene.fleet.node("n2")?.release(AGENT).await?;
        scene.fleet.controller().release(COORDINATOR).await?;
        scene.whole_again().await
    }

    async fn loss_and_delay(profile: Profile) -> anyhow::Result<()> {
        let mut scene = Scene::set(profile).await?;
        scene.fleet.network().storm(scene.primary()?).await?;
        let begun = now();
        wait_for("six leases", DEADLINE, async || now() - begun > LEASES * scene.lease).await?;
        scene.fleet.network().heal().await?;

        // Held, or lost and told: then nothing was acknowledged after it.
        let cut = wait_until("writes, or the loss to be told", DEADLINE, || async {
            let lost = told(&scene, "LEASE_LOST").await?;
            if let Some(first) = lost.into_iter().reduce(f64::min) {
                return Ok(Some(first));
            }
            for (name, last) in scene.last_writes()? {
                ensure!(last - begun > LEASES * scene.lease, "{name} wrote last {:.1} s after", last - begun);
            }
            Ok(None)
        })
        .await?;
        if let Some(lost) = cut {
            scene.nothing_after(lost)?;
        }
        scene.whole_again().await?;

        // Cut off while answers are on their way: they come too late for more than they were asked for.
        let (n1, n2) = (scene.fleet.node("n1")?, scene.fleet.node("n2")?);
        scene.fleet.network().delay(n1, LATE).await?;
        let slow = now();
        scene.goes_on(slow, scene.lease).await?;
        let cut = now();
        scene.fleet.network().cut(n1, n2).await?;
        scene.fleet.network().cut(n1, scene.fleet.controller()).await?;
        scene.cut_but(cut, &[MEMBER]).await?;
        scene.stopped().await?;
        scene.fleet.network().heal().await?;
        scene.whole_again().await
    }

    #[tokio::test]
    async fn loss_and_delay_let_a_short_lease_go_on_or_end_cleanly() -> anyhow::Result<()> {
        loss_and_delay(FAST).await
    }

    #[tokio::test]
    async fn loss_and_delay_let_a_lease_go_on_or_end_cleanly() -> anyhow::Result<()> {
        loss_and_delay(DEFAULT).await
    }

    #[tokio::test]
    async fn busy_processors_cost_no_renewal() -> anyhow::Result<()> {
        let scene = Scene::set(FAST).await?;
        let before = scene.shown().await?;
        let busy = Busy::on(scene.primary()?, 4)?;
        let begun = now();
        let least = watch_gate(&scene).await?;
        ensure!(least > scene.served - TWO_RENEWALS, "the gate was open for only {least:.3} s more");
        scene.goes_on(begun, LEASES * scene.lease).await?;
        let after = scene.shown().await?;
        ensure!(after["list_version"] == before["list_version"], "it was {before}, and is {after}");
        ensure!(told(&scene, "LEASE_LOST").await?.is_empty(), "a lease was lost");

        // The mutant: a thread that waits for all others misses renewals, and this sees it.
        place_renewals(&scene, "--idle").await?;
        wait_until("a renewal to be missed", DEADLINE, || async {
            match open_for(scene.primary()?).await {
                Ok(left) => ensure!(left <= scene.served - TWO_RENEWALS, "it is open for {left:.3} s"),
                Err(error) => ensure!(error.to_string().starts_with(SHUT), "{error}"),
            }
            Ok(())
        })
        .await?;
        drop(busy);
        Ok(())
    }

    #[tokio::test]
    async fn a_disk_that_hangs_under_the_agent_costs_no_renewal() -> anyhow::Result<()> {
        let mut scene = Scene::set(FAST).await?;
        let n1 = scene.fleet.node("n1")?;
        let state = n1.state_folder().join("agent");
        n1.kill(AGENT).await?;
        n1.add_disk(&state, 64).await?;
        n1.release(AGENT).await?;
        scene.whole_again().await?;
        let (before, lost) = (scene.shown().await?, told(&scene, "LEASE_LOST").await?);

        let hung = Hung::at(scene.primary()?, &state).await?;
        // Something that the agent has to write down.
        scene.fleet.cli(["access", "set", "orders", "--mode", "open", "--log-refused"])?.run().await?;
        let begun = now();
        let least = watch_gate(&scene).await?;
        ensure!(least > scene.served - TWO_RENEWALS, "the gate was open for only {least:.3} s more");
        scene.goes_on(begun, LEASES * scene.lease).await?;
        ensure!(!is_enforced(&scene).await?, "the disk does not hang");
        drop(hung);

        wait_until("what hung to be stored", DEADLINE, || async {
            ensure!(is_enforced(&scene).await?, "it is not");
            Ok(())
        })
        .await?;
        let after = scene.shown().await?;
        ensure!(after["list_version"] == before["list_version"], "it was {before}, and is {after}");
        ensure!(told(&scene, "LEASE_LOST").await? == lost, "a lease was lost");
        scene.whole_again().await
    }
}
