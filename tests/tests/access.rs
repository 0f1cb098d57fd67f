//! Who reaches a database, on real hosts: nftables, PostgreSQL, and `kill -9`.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use holdfast_tests::cluster::DEADLINE;
use holdfast_tests::fleet::{AGENT, COORDINATOR, Fleet};
use holdfast_tests::host::Host;
use holdfast_tests::network::Network;
use holdfast_tests::process::Program;
use holdfast_tests::wait::wait_until;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PORT: u16 = 5432;
/// PostgreSQL answers it with one byte, and then waits.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const SOON: Duration = Duration::from_secs(3);
/// Long before a server asks whether the other end of a connection is there on which nothing is said.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A coordinator, a database on n1, and n2 as anybody's machine.
async fn database() -> anyhow::Result<Fleet> {
    let operators = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut fleet = Fleet::start(Network::new().await?, operators).await?;
    fleet.join_all(&["n1", "n2"]).await?;
    let create = ["cluster", "create", "orders", "--engine", "postgresql", "--nodes", "n1"];
    fleet.cli(create)?.deadline(DEADLINE).run().await?;
    Ok(fleet)
}

/// A connection on which the database has answered.
async fn reach(from: &Host, to: IpAddr) -> anyhow::Result<TcpStream> {
    let mut connection = from.connect(SocketAddr::new(to, PORT), SOON).await?;
    connection.write_all(&SSL_REQUEST).await?;
    let mut byte = [0];
    tokio::time::timeout(SOON, connection.read_exact(&mut byte)).await.context("no answer")??;
    Ok(connection)
}

/// Whether the other end is cut off: a byte more is answered with a reset. An open database waits for more of them.
async fn is_cut(connection: &mut TcpStream) -> anyhow::Result<bool> {
    let reset =
        |error: &std::io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    if let Err(error) = connection.write_all(&[0x16]).await {
        ensure!(reset(&error), "another error: {error}");
        return Ok(true);
    }
    match tokio::time::timeout(Duration::from_millis(500), connection.read(&mut [0])).await {
        Err(_) => Ok(false),
        Ok(Err(error)) if reset(&error) => Ok(true),
        Ok(other) => bail!("the database said something else: {other:?}"),
    }
}

/// Whether the database holds its own end of a connection.
async fn is_held(fleet: &Fleet, connection: &TcpStream) -> anyhow::Result<bool> {
    let client = connection.local_addr()?.to_string();
    let held = Program::new("ss").args(["-Htn", "state", "established", "dst", client.as_str()]);
    Ok(!fleet.node("n1")?.run(held).await?.is_empty())
}

async fn becomes(fleet: &Fleet, reachable: bool) -> anyhow::Result<()> {
    let (client, to) = (fleet.node("n2")?, fleet.node("n1")?.addresses());
    wait_until(format!("n2 to be let in: {reachable}"), DEADLINE, || async {
        for to in [Some(to.v4), to.v6].into_iter().flatten() {
            let reached = reach(client, to).await;
            ensure!(reached.is_ok() == reachable, "{to}: {:?}", reached.err());
        }
        Ok(())
    })
    .await
}

/// Without root nothing can be filtered: left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn only_those_on_the_list_reach_a_database_and_a_trial_ends_with_nobody_alive() -> anyhow::Result<()>
    {
        let fleet = database().await?;
        let (client, at) = (fleet.node("n2")?, fleet.node("n1")?.addresses());
        let addresses: Vec<String> = [Some(client.addresses().v4), client.addresses().v6]
            .into_iter()
            .flatten()
            .map(|ip| ip.to_string())
            .collect();

        // Closed: nobody but members and the coordinator.
        reach(fleet.controller(), at.v4).await.context("the coordinator's host")?;
        becomes(&fleet, false).await?;

        let mut add = vec!["access", "add", "orders", "--comment", "n2"];
        add.extend(addresses.iter().map(String::as_str));
        fleet.cli(add)?.run().await?;
        becomes(&fleet, true).await?;
        wait_until("the rules to be enforced, and what came before them counted", DEADLINE, || async {
            let shown = fleet.json(["access", "show", "orders"]).await?;
            let member = &shown["members"][0];
            ensure!(shown["mode"] == "restricted" && member["state"] == "enforced", "it is {shown}");
            ensure!(shown["entries"][0]["comment"] == "n2", "it is {shown}");
            ensure!(member["refused"]["packets"].as_u64() > Some(0), "nothing was refused: {shown}");
            let events = fleet.json(["event", "list", "--cluster", "orders"]).await?.to_string();
            ensure!(events.contains("ACCESS_REFUSED"), "nobody was told of what was refused: {events}");
            Ok(())
        })
        .await?;

        // Taken off the list, an open connection is cut.
        let mut open = reach(client, at.v4).await?;
        ensure!(!is_cut(&mut open).await?, "it is cut while it may come in");
        let mut open = reach(client, at.v4).await?;
        let mut stays = reach(fleet.controller(), at.v4).await?;
        let silent = [Some(at.v4), at.v6].into_iter().flatten().map(|to| reach(client, to));
        let silent = futures::future::try_join_all(silent).await?;
        for connection in &silent {
            ensure!(is_held(&fleet, connection).await?, "the database knows of no connection");
        }
        let mut remove = vec!["access", "remove", "orders"];
        remove.extend(addresses.iter().map(String::as_str));
        fleet.cli(remove)?.run().await?;
        becomes(&fleet, false).await?;
        // Its session, its locks and its open transaction would last for as long.
        wait_until("a connection on which nothing is said to be ended", AT_ONCE, || async {
            for connection in &silent {
                ensure!(!is_held(&fleet, connection).await?, "it is held: {connection:?}");
            }
            Ok(())
        })
        .await?;
        ensure!(is_cut(&mut open).await?, "an open connection outlived its rule");
        ensure!(!is_cut(&mut stays).await?, "one that may come in was cut");

        // On trial, and nobody is left to end it: the kernel does.
        fleet.cli(["access", "set", "orders", "--mode", "open", "--confirm-within", "10s"])?.run().await?;
        becomes(&fleet, true).await?;
        let mut tried = reach(client, at.v4).await?;
        for (host, service) in [(fleet.controller(), COORDINATOR), (fleet.node("n1")?, AGENT)] {
            host.hold(service)?;
            host.kill(service).await?;
        }
        becomes(&fleet, false).await?;
        ensure!(is_cut(&mut tried).await?, "a connection outlived the trial that let it in");

        // The agent that comes back, alone, does not begin it again.
        fleet.node("n1")?.release(AGENT).await?;
        fleet.controller().release(COORDINATOR).await?;
        fleet.online("n1").await?;
        becomes(&fleet, false).await?;
        let late = fleet.cli(["access", "confirm", "orders"])?.output().await?;
        ensure!(!late.status.success(), "a trial was confirmed after its end");

        // Confirmed in time, it stays.
        fleet.cli(["access", "set", "orders", "--mode", "open", "--confirm-within", "30s"])?.run().await?;
        becomes(&fleet, true).await?;
        fleet.cli(["access", "confirm", "orders"])?.run().await?;
        wait_until("the rules to be enforced for good", DEADLINE, || async {
            let shown = fleet.json(["access", "show", "orders"]).await?;
            let member = &shown["members"][0];
            ensure!(
                shown["mode"] == "open"
                    && member["state"] == "enforced"
                    && member["trial_left_seconds"].is_null(),
                "it is {shown}"
            );
            Ok(())
        })
        .await?;
        becomes(&fleet, true).await
    }

    #[tokio::test]
    async fn bad_rules_are_told_apart_and_change_nothing() -> anyhow::Result<()> {
        let fleet = database().await?;
        for (arguments, told) in [
            (vec!["access", "add", "orders", "10.0.0.1/8"], "10.0.0.0/8"),
            (vec!["access", "add", "orders", "010.0.0.1"], "leading zero"),
            (vec!["access", "add", "orders", "::ffff:10.0.0.1"], "10.0.0.1"),
            (
                vec!["access", "add", "orders", "10.0.0.1", "10.0.0.1/32"],
                "`10.0.0.1/32`: is 10.0.0.1 again, as `10.0.0.1`",
            ),
            (vec!["access", "remove", "orders", "10.0.0.1/32"], "`10.0.0.1/32`: 10.0.0.1 is not in the list"),
            (vec!["access", "confirm", "orders"], "(clusters/orders): nothing is on trial"),
            (vec!["access", "set", "orders", "10.0.0.1", "--confirm-within", "2h"], "5s to 1h"),
            (vec!["access", "show", "nothing"], "no cluster"),
        ] {
            let refused = fleet.cli(arguments.clone())?.output().await?;
            let said = &refused.stderr;
            ensure!(!refused.status.success() && said.contains(told), "{arguments:?}: {said}");
        }
        // A plan is a plan.
        fleet.cli(["access", "set", "orders", "--mode", "open", "--plan"])?.run().await?;
        let shown = fleet.json(["access", "show", "orders"]).await?;
        ensure!(shown["mode"] == "closed" && shown["entry_count"] == 0, "it is {shown}");
        becomes(&fleet, false).await
    }
}
