//! Rules on trial, on real hosts, with agent and coordinator killed right after each step of applying them. Whatever was
//! done by then: the old rules are back in time, SSH and coordinator reach the host, and other tables are as they were.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use holdfast_tests::cluster::DEADLINE;
use holdfast_tests::fleet::{AGENT, COORDINATOR, Fleet};
use holdfast_tests::host::Host;
use holdfast_tests::network::Network;
use holdfast_tests::proc::Process;
use holdfast_tests::process::Program;
use holdfast_tests::wait::{wait_for, wait_until};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::Instant;

const DATABASE: u16 = 5432;
const SSH: u16 = 22;
/// PostgreSQL answers it with one byte, and then waits.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const SOON: Duration = Duration::from_millis(500);
/// The shortest trial that there is. It was asked for before it is hit, so that this is generous already.
const TRIAL: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_millis(300);
/// A step that is over before the agent can be stopped in it is tried again.
const ROUNDS: usize = 30;

/// How far an agent has come. It is killed before the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// The coordinator has recorded the trial, and the agent has done nothing yet.
    Recorded,
    /// The assignment is on the node's disk.
    Assigned,
    /// And the bounds of what the node will accept.
    Bounded,
    /// That the trial begins is written down.
    Begun,
    /// It holds in the kernel.
    Enforced,
    /// The coordinator was told.
    Told,
}

/// A database on n1 that nobody may reach, n2 as anybody's machine, and on n1 somebody's SSH server and somebody's rules.
struct Scene {
    fleet: Fleet,
    theirs: String,
    _ssh: JoinSet<()>,
}

/// What the agent has on its disk: each file that a trial changes, in the order in which it does.
struct Disk {
    files: Vec<(Step, PathBuf, Option<Vec<u8>>)>,
}

// === impl Disk ===

impl Disk {
    fn of(host: &Host) -> Self {
        let folder = host.state_folder_outside().join("agent");
        let files = [(Step::Assigned, "assignment"), (Step::Bounded, "accepted"), (Step::Begun, "trials")];
        let now = |(step, name)| {
            let path = folder.join(name);
            let contents = std::fs::read(&path).ok();
            (step, path, contents)
        };
        Self { files: files.map(now).into() }
    }

    /// The last step that can be seen here.
    fn step(&self) -> Step {
        let changed =
            |(_, path, before): &&(Step, PathBuf, Option<Vec<u8>>)| std::fs::read(path).ok() != *before;
        self.files.iter().filter(changed).map(|(step, ..)| *step).max().unwrap_or(Step::Recorded)
    }
}

// === impl Scene ===

impl Scene {
    async fn set() -> anyhow::Result<Self> {
        const THEIRS: &str = "table inet theirs {
            set s { type ipv4_addr; elements = { 192.0.2.1 } }
            chain c { type filter hook input priority 10; policy accept; ip saddr @s drop; }
        }";
        let operators = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut fleet = Fleet::start(Network::new().await?, operators).await?;
        fleet.join_all(&["n1", "n2"]).await?;
        let create = ["cluster", "create", "orders", "--engine", "postgresql", "--nodes", "n1"];
        fleet.cli(create)?.deadline(DEADLINE).run().await?;
        let n1 = fleet.node("n1")?;
        n1.run(Program::new("nft").args(["-f", "-"]).input(THEIRS)).await?;
        let mut ssh = JoinSet::new();
        for address in addresses(n1) {
            let listener = n1.listen((address, SSH).into()).await?;
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            ssh.spawn(async move { while listener.accept().await.is_ok() {} });
        }
        let mut scene = Self { fleet, theirs: String::new(), _ssh: ssh };
        scene.theirs = scene.their_table().await?;
        scene.is_as_before().await?;
        Ok(scene)
    }

    async fn their_table(&self) -> anyhow::Result<String> {
        self.fleet.node("n1")?.run(Program::new("nft").args(["list", "table", "inet", "theirs"])).await
    }

    /// Begins a trial, and has agent and coordinator killed when the agent has just come so far. Says when that was.
    async fn kill_after(&self, step: Step) -> anyhow::Result<Instant> {
        for _ in 0..ROUNDS {
            let n1 = self.fleet.node("n1")?;
            let agent = n1.service(AGENT)?.context("no agent on n1")?;
            let coordinator = self.fleet.controller().service(COORDINATOR)?.context("no coordinator")?;
            let disk = Disk::of(n1);
            if step == Step::Recorded {
                agent.signal(Signal::SIGSTOP)?;
            }
            let set = ["access", "set", "orders", "--mode", "open", "--confirm-within", "5s"];
            let set = self.fleet.cli(set)?.run();
            let (_, found) = tokio::try_join!(set, self.stop_after(step, agent, &disk))?;
            if found == step {
                let hit = Instant::now();
                // The agent comes back alone: a coordinator would take the trial back too, once it is over.
                if step > Step::Recorded {
                    self.fleet.controller().hold(COORDINATOR)?;
                }
                agent.signal(Signal::SIGKILL)?;
                coordinator.signal(Signal::SIGKILL)?;
                wait_for("both to end", SOON * 10, async || !agent.is_alive() && !coordinator.is_alive())
                    .await?;
                return Ok(hit);
            }
            agent.signal(Signal::SIGCONT)?;
            self.fleet.cli(["access", "confirm", "orders", "--revert"])?.run().await?;
            self.is_as_before().await?;
        }
        bail!("never hit: {step:?}")
    }

    /// Stops the agent once it has come so far, and says how far that was: it may have run on until then.
    async fn stop_after(&self, step: Step, agent: Process, disk: &Disk) -> anyhow::Result<Step> {
        match step {
            Step::Recorded => return Ok(step),
            Step::Assigned | Step::Bounded | Step::Begun => {
                // Without a pause: what comes next is a few thousandths of a second away.
                let end = Instant::now() + DEADLINE;
                while disk.step() < step {
                    ensure!(Instant::now() < end, "no {step:?}: the agent has come to {:?}", disk.step());
                    tokio::task::yield_now().await;
                }
            }
            Step::Enforced => {
                wait_for("the trial to hold", DEADLINE, async || self.is_in_kernel().await.unwrap_or(false))
                    .await?;
            }
            Step::Told => {
                wait_until("the trial to be told", DEADLINE, || async {
                    let shown = self.shown().await?;
                    ensure!(!shown["members"][0]["trial_left_seconds"].is_null(), "it is {shown}");
                    Ok(())
                })
                .await?;
            }
        }
        agent.signal(Signal::SIGSTOP)?;
        let on_disk = disk.step();
        Ok(if step == Step::Told {
            step
        } else if self.is_in_kernel().await? {
            Step::Enforced
        } else {
            on_disk
        })
    }

    async fn is_in_kernel(&self) -> anyhow::Result<bool> {
        let list = Program::new("nft").args(["list", "set", "inet", "holdfast", "trial"]);
        Ok(self.fleet.node("n1")?.run(list).await?.contains(&DATABASE.to_string()))
    }

    async fn shown(&self) -> anyhow::Result<serde_json::Value> {
        self.fleet.json(["access", "show", "orders"]).await
    }

    /// Whether anybody's machine reaches the database.
    async fn is_open(&self) -> anyhow::Result<bool> {
        for to in addresses(self.fleet.node("n1")?) {
            if reach(self.fleet.node("n2")?, to).await.is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Nothing of ours is in the way of others.
    async fn others_are_untouched(&self) -> anyhow::Result<()> {
        let n1 = self.fleet.node("n1")?;
        for from in [self.fleet.node("n2")?, self.fleet.controller()] {
            for to in addresses(n1) {
                from.connect((to, SSH).into(), SOON).await.context("SSH")?;
            }
        }
        reach(self.fleet.controller(), n1.address()).await.context("the coordinator's host")?;
        let theirs = self.their_table().await?;
        ensure!(theirs == self.theirs, "their table was {}, and is {theirs}", self.theirs);
        Ok(())
    }

    /// The old rules hold, by everybody's word.
    async fn is_as_before(&self) -> anyhow::Result<()> {
        wait_until("the rules to be as before", DEADLINE, || async {
            let shown = self.shown().await?;
            let member = &shown["members"][0];
            let enforced = member["state"] == "enforced" && member["trial_left_seconds"].is_null();
            ensure!(enforced && shown["mode"] == "closed", "it is {shown}");
            ensure!(!self.is_open().await?, "anybody reaches the database");
            self.others_are_untouched().await
        })
        .await
    }

    /// The promise, for one step.
    async fn outlives_a_kill_after(&self, step: Step) -> anyhow::Result<()> {
        let hit = self.kill_after(step).await?;
        let (mut last, mut opened) = (Duration::ZERO, false);
        // Longer than the trial of an agent that begins it anew when it is back.
        while hit.elapsed() < TRIAL + 2 * TRIAL / 5 {
            let asked = hit.elapsed();
            if self.is_open().await? {
                (last, opened) = (asked, true);
            }
            self.others_are_untouched().await?;
        }
        ensure!(last <= TRIAL + GRACE, "{last:?} after the kill the rules on trial held yet");
        ensure!(opened || step < Step::Enforced, "the rules on trial never held");
        self.fleet.controller().release(COORDINATOR).await?;
        wait_until("the coordinator to answer", DEADLINE, || self.fleet.json(["whoami"])).await?;
        self.fleet.online("n1").await?;
        self.is_as_before().await
    }
}

fn addresses(host: &Host) -> Vec<IpAddr> {
    [Some(host.addresses().v4), host.addresses().v6].into_iter().flatten().collect()
}

/// The database answers.
async fn reach(from: &Host, to: IpAddr) -> anyhow::Result<()> {
    let mut connection = from.connect((to, DATABASE).into(), SOON).await?;
    connection.write_all(&SSL_REQUEST).await?;
    let mut byte = [0];
    tokio::time::timeout(SOON, connection.read_exact(&mut byte)).await.context("no answer")??;
    Ok(())
}

/// Without root nothing can be filtered: left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn a_trial_that_is_killed_while_it_is_written_down_ends_in_time() -> anyhow::Result<()> {
        let scene = Scene::set().await?;
        for step in [Step::Recorded, Step::Assigned, Step::Bounded] {
            scene.outlives_a_kill_after(step).await.with_context(|| format!("{step:?}"))?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_trial_that_is_killed_while_it_is_enforced_ends_in_time() -> anyhow::Result<()> {
        let scene = Scene::set().await?;
        for step in [Step::Begun, Step::Enforced, Step::Told] {
            scene.outlives_a_kill_after(step).await.with_context(|| format!("{step:?}"))?;
        }
        Ok(())
    }
}
