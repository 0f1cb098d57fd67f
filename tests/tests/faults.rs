//! What making a cluster bears, with real programs: `kill -9` at each of its steps, and a full disk of the coordinator.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use holdfast_common::link::PEER_PORT;
use holdfast_proto::v1::operation_service_client::OperationServiceClient;
use holdfast_proto::v1::{self as proto, StepState};
use holdfast_tests::cluster::{DEADLINE, creation, fleet, has_server, settled, whole};
use holdfast_tests::fleet::{AGENT, COORDINATOR, Fleet};
use holdfast_tests::network::Network;
use holdfast_tests::process::Program;
use holdfast_tests::wait::{wait_for, wait_until};

/// A step that ends faster than it can be hit is tried again with the next cluster.
const ROUNDS: usize = 8;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Coordinator,
    /// All of them at once.
    Agents,
}

impl Victim {
    async fn kill(self, fleet: &Fleet) -> anyhow::Result<()> {
        match self {
            Self::Coordinator => {
                fleet.controller().crash(COORDINATOR).await?;
                wait_until("the coordinator to answer", DEADLINE, || fleet.json(["whoami"])).await?;
            }
            Self::Agents => {
                for node in fleet.nodes() {
                    node.crash(AGENT).await?;
                }
            }
        }
        Ok(())
    }
}

/// The steps that making the cluster has.
async fn steps(fleet: &Fleet) -> anyhow::Result<BTreeSet<String>> {
    let plan = fleet.json(creation(fleet, &["--plan"])).await?;
    let steps = plan["plan"]["steps"].as_array().with_context(|| format!("no steps in {plan}"))?;
    Ok(steps.iter().filter_map(|step| step["name"].as_str().map(String::from)).collect())
}

/// Follows the operation from where it is until it has ended or a step of `left` runs: which one.
async fn next_step(fleet: &Fleet, id: &str, left: &BTreeSet<String>) -> anyhow::Result<Option<String>> {
    let mut operations = OperationServiceClient::new(fleet.channel()?);
    let request = proto::WatchOperationRequest { id: id.to_owned() };
    let mut watch = operations.watch_operation(request).await?.into_inner();
    while let Some(response) = watch.message().await? {
        let operation = response.operation.context("an operation")?;
        if operation.done {
            return Ok(None);
        }
        let running = operation.steps.iter().find(|step| step.state() == StepState::Running);
        if let Some(step) = running.filter(|step| left.contains(&step.name)) {
            return Ok(Some(step.name.clone()));
        }
    }
    anyhow::bail!("the watch ended before the operation")
}

/// Makes clusters until each step has seen the kill; each time it ends whole, or failed with nothing left behind.
async fn killed_at_every_step(victim: Victim) -> anyhow::Result<()> {
    let fleet = fleet().await?;
    let mut left = steps(&fleet).await?;
    for _ in 0..ROUNDS {
        let begun = fleet.json(creation(&fleet, &["--detach"])).await?;
        let id = begun["id"].as_str().with_context(|| format!("no id in {begun}"))?.to_owned();
        let follow = async {
            while let Some(step) = next_step(&fleet, &id, &left).await? {
                left.remove(&step);
                victim.kill(&fleet).await.with_context(|| format!("kill {victim:?} in {step}"))?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(2 * DEADLINE, follow).await.context("the operation does not end")??;
        match settled(&fleet).await?.as_str() {
            "succeeded" => {
                whole(&fleet).await?;
                // The last kill may have been a moment ago.
                for node in fleet.nodes() {
                    fleet.online(node.name()).await?;
                }
                let delete = ["cluster", "delete", "orders", "--confirm", "orders"];
                fleet.cli(delete)?.deadline(DEADLINE).run().await?;
            }
            "failed" => {}
            state => {
                anyhow::bail!("the operation is {state}: {}", fleet.json(["operation", "show", &id]).await?)
            }
        }
        nothing_left(&fleet).await?;
        if left.is_empty() {
            return Ok(());
        }
    }
    anyhow::bail!("never hit: {left:?}")
}

async fn nothing_left(fleet: &Fleet) -> anyhow::Result<()> {
    let clusters = fleet.json(["cluster", "list"]).await?;
    ensure!(clusters["clusters"].as_array().is_some_and(Vec::is_empty), "there is still {clusters}");
    for node in fleet.nodes() {
        ensure!(!has_server(node)?, "a server still runs on {}", node.name());
        let data = node.state_folder_outside().join("data");
        let kept: Vec<_> = match std::fs::read_dir(&data) {
            Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.file_name()).collect(),
            Err(_absent) => Vec::new(),
        };
        ensure!(kept.is_empty(), "{} still has {kept:?} in {}", node.name(), data.display());
    }
    Ok(())
}

#[tokio::test]
async fn a_coordinator_killed_at_any_step_of_making_a_cluster_ends_it_well() -> anyhow::Result<()> {
    killed_at_every_step(Victim::Coordinator).await
}

#[tokio::test]
async fn agents_killed_at_any_step_of_making_a_cluster_leave_it_whole_or_gone() -> anyhow::Result<()> {
    killed_at_every_step(Victim::Agents).await
}

/// A disk of its own needs a mount. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    /// Puts the coordinator's state on a small disk of its own, inside of its host.
    async fn on_a_small_disk(fleet: &Fleet) -> anyhow::Result<()> {
        let controller = fleet.controller();
        let state = fleet.state();
        controller.kill(COORDINATOR).await?;
        let aside = state.with_extension("aside");
        controller.run(Program::new("mv").arg(&state).arg(&aside)).await?;
        controller.run(Program::new("mkdir").arg(&state)).await?;
        let mount =
            Program::new("mount").args(["-t", "tmpfs", "-o", "size=24m,mode=700", "small"]).arg(&state);
        controller.run(mount).await?;
        controller
            .run(Program::new("cp").args(["-a", "--no-target-directory"]).arg(&aside).arg(&state))
            .await?;
        controller.release(COORDINATOR).await?;
        wait_until("the coordinator to answer", DEADLINE, || fleet.json(["whoami"])).await.map(drop)
    }

    async fn fill(fleet: &Fleet) -> anyhow::Result<()> {
        let filler = fleet.state().join("filler");
        let dd = Program::new("dd").args(["if=/dev/zero", "bs=4096"]).arg(format!("of={}", filler.display()));
        // It ends because there is no room any more.
        let ended = fleet.controller().output(dd).await?;
        ensure!(!ended.status.success(), "the disk is larger than all zeros");
        // What a table has reserved may still take a write or two.
        wait_for("a call to be refused for want of room", DEADLINE, || async { token(fleet).await.is_err() })
            .await
    }

    async fn make_room(fleet: &Fleet) -> anyhow::Result<()> {
        fleet.controller().run(Program::new("rm").arg(fleet.state().join("filler"))).await?;
        wait_until("there to be room again", DEADLINE, || token(fleet)).await.map(drop)
    }

    /// Makes a join token: its id.
    async fn token(fleet: &Fleet) -> anyhow::Result<String> {
        let made = fleet.json(["node", "token", "create", "--ttl", "1h"]).await?;
        made["join_token"]["id"].as_str().map(String::from).with_context(|| format!("no id in {made}"))
    }

    #[tokio::test]
    async fn a_full_disk_of_the_coordinator_is_told_loses_nothing_and_is_recovered_from() -> anyhow::Result<()>
    {
        let fleet = fleet().await?;
        on_a_small_disk(&fleet).await?;
        let before = token(&fleet).await?;
        fill(&fleet).await?;

        // Changes are refused clearly, reading goes on.
        let refused = fleet.cli(["--output", "json", "node", "token", "create"])?.output().await?;
        let said = format!("{}{}", refused.stdout, refused.stderr);
        ensure!(!refused.status.success() && said.contains("STORAGE_FULL"), "it says {said}");
        let refused = fleet.cli(creation(&fleet, &[]))?.output().await?;
        ensure!(!refused.status.success(), "a cluster was begun without room");
        for node in fleet.nodes() {
            fleet.online(node.name()).await?;
        }

        // Killed meanwhile, it comes back; at the latest when there is room.
        fleet.controller().crash(COORDINATOR).await?;
        make_room(&fleet).await?;
        let listed = fleet.json(["node", "token", "list"]).await?;
        ensure!(listed.to_string().contains(&before), "the token is lost: {listed}");

        // And an operation that is under way when the disk fills waits, and goes on.
        fleet.cli(creation(&fleet, &["--detach"]))?.run().await?;
        fill(&fleet).await?;
        make_room(&fleet).await?;
        let state = settled(&fleet).await?;
        ensure!(state == "succeeded", "the operation has {state}");
        whole(&fleet).await
    }
}

#[tokio::test]
async fn an_agent_that_cannot_be_asked_for_promises_says_so_until_it_can() -> anyhow::Result<()> {
    let operators = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut fleet = Fleet::start(Network::new().await?, operators).await?;
    fleet.join_all(&["n1"]).await?;
    let n1 = fleet.node("n1")?;
    n1.kill(AGENT).await?;
    let rival = n1.listen(SocketAddr::new(n1.address(), PEER_PORT)).await?;
    n1.release(AGENT).await?;
    wait_until("the agent to say that nobody can ask it", DEADLINE, || async {
        let events = fleet.json(["event", "list"]).await?.to_string();
        ensure!(events.contains("PEERS_NOT_SERVED") && events.contains("7445"), "they are {events}");
        Ok(())
    })
    .await?;
    drop(rival);
    let peer = SocketAddr::new(n1.address(), PEER_PORT);
    wait_until("the agent to listen", DEADLINE, || n1.connect(peer, DEADLINE)).await.map(drop)
}
