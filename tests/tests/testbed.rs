//! The testbed keeps its own promises: hosts are apart, faults are real, and nothing stays behind.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_tests::host::{Host, Plug, Service};
use holdfast_tests::network::{Cable, Network};
use holdfast_tests::process::Program;
use holdfast_tests::run::{self, Isolation};
use holdfast_tests::wait::wait_for;
use holdfast_tests::{binaries, proc};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::Instant;

const SOON: Duration = Duration::from_secs(10);

/// These tests are about namespaces: without root they have nothing to show.
fn root() -> bool {
    Isolation::of_this_user() == Isolation::Hosts
}

fn sleeper(name: &str) -> Service {
    let argv = ["sleep", "1000"].map(String::from).to_vec();
    Service { name: name.into(), argv, env: Vec::new(), socket: None }
}

/// Whether `from` can open a connection to a listener of `to`.
async fn reaches(from: &Host, to: &Host) -> anyhow::Result<bool> {
    let listener = to.listen((to.address(), 0).into()).await?;
    let at = listener.local_addr()?;
    Ok(from.connect(at, Duration::from_millis(700)).await.is_ok())
}

#[tokio::test]
async fn a_host_has_a_name_folders_and_processes_of_its_own() -> anyhow::Result<()> {
    let network = Network::new().await?;
    let (one, two) = (network.host("n1").await?, network.host("n2").await?);
    let file = one.state_folder().join("mine");
    one.run(Program::new("touch").arg(&file)).await?;
    ensure!(one.state_folder_outside().join("mine").exists(), "what a host writes is kept in its folder");
    one.run(Program::new("touch").arg(one.folder().join("same"))).await?;
    ensure!(one.folder().join("same").exists(), "its folder has the same name inside and outside");
    ensure!(!two.state_folder_outside().join("mine").exists(), "what one host writes the other does not see");
    if root() {
        ensure!(one.run(Program::new("hostname")).await?.trim() == "n1");
        let seen = one.run(Program::new("ps").args(["-e", "-o", "comm="])).await?;
        ensure!(seen.lines().count() < 10, "a host sees its own processes only: {seen}");
        let boot_id = "/proc/sys/kernel/random/boot_id";
        let here = std::fs::read_to_string(boot_id)?;
        ensure!(one.run(Program::new("cat").arg(boot_id)).await? != here, "a host has a boot id of its own");
        ensure!(!Path::new("/var/lib/holdfast/mine").exists(), "the machine sees nothing of it");
    }
    Ok(())
}

#[tokio::test]
async fn a_service_that_fails_is_started_again_unless_it_is_held() -> anyhow::Result<()> {
    let network = Network::new().await?;
    let host = network.host("n1").await?;
    let first = host.serve(&sleeper("sleeper")).await?;
    let second = host.crash("sleeper").await?;
    ensure!(first != second && host.state("sleeper").starts == 2);
    host.kill("sleeper").await?;
    ensure!(host.service("sleeper")?.is_none(), "held: not started again");
    let third = host.release("sleeper").await?;
    ensure!(third.is_alive() && host.state("sleeper").last_end.is_some());
    host.shut_down().await?;
    ensure!(!third.is_alive(), "a service ends with its host");
    Ok(())
}

#[tokio::test]
async fn cutting_the_power_ends_everything_in_a_host_and_a_boot_brings_its_services_back()
-> anyhow::Result<()> {
    let network = Network::new().await?;
    let host = network.host("n1").await?;
    let before = host.serve(&sleeper("sleeper")).await?;
    // A daemon that left its parent and its session must not survive either.
    let argv = ["sh", "-c", "setsid sleep 2000 & exec sleep 1500"].map(String::from).to_vec();
    host.serve(&Service { argv, ..sleeper("daemon") }).await?;
    let daemon =
        || Some(host.processes().ok()?.into_iter().find(|one| one.arguments == ["sleep", "2000"])?.process);
    wait_for("the daemon", SOON, || async { daemon().is_some() }).await?;
    let daemon = daemon().context("the daemon runs")?;
    host.cut_power().await?;
    ensure!(!daemon.is_alive(), "it ended with its host");
    host.boot().await?;
    wait_for("the service", SOON, || async { host.service("sleeper").is_ok_and(|now| now.is_some()) })
        .await?;
    ensure!(!before.is_alive());
    Ok(())
}

#[tokio::test]
async fn a_cut_stops_one_way_a_partition_both_and_healing_ends_them() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let network = Network::new().await?;
    let (one, two, three) = (network.host("n1").await?, network.host("n2").await?, network.host("n3").await?);
    ensure!(reaches(&one, &two).await? && reaches(&one, &three).await?, "all reach all at first");
    network.partition(&[&one], &[&two]).await?;
    ensure!(!reaches(&one, &two).await? && !reaches(&two, &one).await?, "a partition is both ways");
    ensure!(reaches(&one, &three).await? && reaches(&three, &two).await?, "and touches nobody else");
    network.heal().await?;
    ensure!(reaches(&one, &two).await?);
    network.cut(&one, &three).await?;
    ensure!(!reaches(&one, &three).await?, "nothing arrives");
    let datagrams = one.run(Program::new("ip").args(["-s", "link", "show", "eth0"])).await?;
    ensure!(datagrams.contains("state UP"), "and the host cannot see why: {datagrams}");
    network.mend(&one, &three).await?;
    ensure!(reaches(&one, &three).await?);
    network.cable(&three, Cable::Out).await?;
    ensure!(!reaches(&one, &three).await?, "the cable is out");
    network.cable(&three, Cable::In).await?;
    wait_for("the cable to work", SOON, || async { reaches(&one, &three).await.unwrap_or(false) }).await?;
    Ok(())
}

#[tokio::test]
async fn a_host_that_loses_half_receives_about_half() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let network = Network::new().await?;
    let (one, two) = (network.host("n1").await?, network.host("n2").await?);
    let from = one.datagrams((one.address(), 0).into()).await?;
    let to = two.datagrams((two.address(), 0).into()).await?;
    let received = async |from: &UdpSocket, to: &UdpSocket, sent: usize| -> anyhow::Result<usize> {
        for _ in 0..sent {
            from.send_to(b"x", to.local_addr()?).await?;
        }
        let mut count = 0;
        while tokio::time::timeout(Duration::from_millis(300), to.recv(&mut [0])).await.is_ok() {
            count += 1;
        }
        Ok(count)
    };
    ensure!(received(&from, &to, 100).await? == 100, "nothing is lost at first");
    network.lose(&two, 50).await?;
    for (from, to) in [(&from, &to), (&to, &from)] {
        let count = received(from, to, 400).await?;
        ensure!((120..280).contains(&count), "half of 400, within eight standard deviations: {count}");
    }
    network.heal().await?;
    ensure!(received(&from, &to, 100).await? == 100, "healed");
    ensure!(network.lose(&two, 100).await.is_err(), "all of it is no share");
    Ok(())
}

#[tokio::test]
async fn what_is_slow_takes_its_time_each_way_and_arrives_whole() -> anyhow::Result<()> {
    const EACH_WAY: Duration = Duration::from_millis(150);
    if !root() {
        return Ok(());
    }
    let network = Network::new().await?;
    let (one, two) = (network.host("n1").await?, network.host("n2").await?);
    network.delay(&two, EACH_WAY..=EACH_WAY).await?;
    let there = two.addresses();
    for to in [Some(there.v4), there.v6].into_iter().flatten() {
        let listener = two.listen((to, 0).into()).await?;
        let at = listener.local_addr()?;
        let connecting = Instant::now();
        let mut sends = one.connect(at, SOON).await?;
        ensure!(connecting.elapsed() >= 2 * EACH_WAY, "{to} answered after {:?}", connecting.elapsed());
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        listener.set_nonblocking(true)?;
        let (mut takes, _) = tokio::net::TcpListener::from_std(listener)?.accept().await?;
        let mut received = Vec::new();
        let send = async {
            sends.write_all(&sent).await?;
            sends.shutdown().await
        };
        tokio::time::timeout(SOON, futures::future::try_join(send, takes.read_to_end(&mut received)))
            .await??;
        ensure!(received == sent, "{} of {} bytes arrived as they were sent", received.len(), sent.len());
    }
    network.delay(&two, Duration::ZERO..=EACH_WAY).await?;
    let from = one.datagrams((one.address(), 0).into()).await?;
    let to = two.datagrams((two.address(), 0).into()).await?;
    for number in 0..100_u8 {
        from.send_to(&[number], to.local_addr()?).await?;
    }
    let mut received = Vec::new();
    while received.len() < 100 {
        let mut number = [0];
        tokio::time::timeout(SOON, to.recv(&mut number)).await??;
        received.push(number[0]);
    }
    ensure!(!received.is_sorted(), "packets of different speed do not overtake each other");
    received.sort_unstable();
    ensure!(received.iter().copied().eq(0..100), "they arrived as {received:?}");

    network.cut(&one, &two).await?;
    ensure!(!reaches(&one, &two).await?, "a slow cable avoids the rules of the switch");
    network.heal().await?;
    let connecting = Instant::now();
    ensure!(reaches(&one, &two).await?, "healed");
    ensure!(connecting.elapsed() < 2 * EACH_WAY, "healed, it still takes {:?}", connecting.elapsed());
    Ok(())
}

#[tokio::test]
async fn hosts_of_two_networks_do_not_meet() -> anyhow::Result<()> {
    if !root() {
        return Ok(());
    }
    let (here, there) = (Network::new().await?, Network::new().await?);
    let (one, other) = (here.host("n1").await?, there.host("n9").await?);
    let second = there.host("n2").await?;
    ensure!(one.address() == other.address(), "the same address in both");
    ensure!(!reaches(&one, &second).await?);
    Ok(())
}

#[tokio::test]
async fn a_socket_of_this_network_is_handed_to_a_service_of_a_host() -> anyhow::Result<()> {
    let socket = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let at = socket.local_addr()?;
    let network = Network::new().await?;
    let host = network.controller(Plug { socket: Some(socket) }).await?;
    let script = "echo $LISTEN_PID:$$:$LISTEN_FDS:$LISTEN_FDNAMES; readlink /proc/$$/fd/3; exec sleep 1000";
    let argv = ["sh", "-c", script].map(String::from).to_vec();
    host.serve(&Service { name: "listens".into(), argv, env: Vec::new(), socket: Some("door".into()) })
        .await?;
    let log = host.log("listens");
    wait_for("what it was given", SOON, || async {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let (first, second) = said.split_once('\n').unwrap_or_default();
        let words: Vec<_> = first.split(':').collect();
        words.len() == 4
            && words[0] == words[1]
            && words[2..] == ["1", "door"]
            && second.starts_with("socket:")
    })
    .await?;
    std::net::TcpStream::connect(at).context("the socket is open in the network that it came from")?;
    Ok(())
}

#[tokio::test]
async fn nothing_of_a_run_stays_behind_even_if_its_owner_is_killed() -> anyhow::Result<()> {
    let (id, folder) = {
        let network = Network::new().await?;
        let host = network.host("n1").await?;
        host.serve(&sleeper("sleeper")).await?;
        (network.run().id().to_owned(), network.run().folder().to_owned())
    };
    ensure!(run::processes(&id, &folder).is_empty() && !folder.exists(), "dropping removes all at once");

    let scratch = tempfile::tempdir()?;
    let said = scratch.path().join("said");
    let mut owner = Program::new(binaries::testbed()?).arg("linger").start(&said)?;
    let line = || std::fs::read_to_string(&said).unwrap_or_default();
    wait_for("another owner's run", SOON, || async { line().ends_with('\n') }).await?;
    let text = line();
    let (id, folder) = text.trim().split_once(' ').with_context(|| format!("an id and a folder: {text}"))?;
    let folder = Path::new(folder);
    ensure!(!run::processes(id, folder).is_empty(), "its host runs");
    owner.process().signal(nix::sys::signal::Signal::SIGKILL)?;
    wait_for("the keeper to remove it", SOON, || async { !folder.exists() }).await?;
    owner.wait();
    ensure!(run::processes(id, folder).is_empty());
    Ok(())
}

#[tokio::test]
async fn what_a_killed_keeper_left_is_removed_by_the_next_run() -> anyhow::Result<()> {
    let scratch = tempfile::tempdir()?;
    let said = scratch.path().join("said");
    let mut owner = Program::new(binaries::testbed()?).arg("linger").start(&said)?;
    let line = || std::fs::read_to_string(&said).unwrap_or_default();
    wait_for("another owner's run", SOON, || async { line().ends_with('\n') }).await?;
    let text = line();
    let (id, folder) = text.trim().split_once(' ').with_context(|| format!("an id and a folder: {text}"))?;
    let folder = Path::new(folder);
    let keeper = proc::all()
        .into_iter()
        .find(|one| one.parent == owner.process().pid && one.arguments.iter().any(|a| a == "keep"));
    keeper.context("the keeper runs")?.process.signal(nix::sys::signal::Signal::SIGKILL)?;
    owner.kill();
    let network = Network::new().await?;
    wait_for("the leftovers to go", SOON, || async { !folder.exists() || Network::new().await.is_err() })
        .await?;
    ensure!(run::processes(id, folder).is_empty() && !folder.exists());
    ensure!(network.run().folder().exists(), "a live run is left alone");
    Ok(())
}
