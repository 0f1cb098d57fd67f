//! A cluster of real nodes that fails over while its coordinator has thousands of other nodes to look after: how long nobody can
//! write, beside the same without them, and what the coordinator costs meanwhile.
//!
//! ```text
//!  n1, n2, n3: a real cluster ──┐
//!                               ├──► holdfast-coordinator, on the controller
//!  5,000 × the agent's link ────┘
//!  (a process on the controller, simulated below as the swarm's)
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_agent::link::client::Address;
use holdfast_common::tls;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::measure::{Cost, Load, mib, number};
use super::roles::{Event, Found, Holdfast, Keeper as _, rounds};
use super::swarm::{Joined, Swarm, let_many_join};
use super::{Report, Table};
use crate::binaries;
use crate::fleet::{COORDINATOR, Fleet, write_secret};
use crate::process::{Program, Running};
use crate::wait::wait_until;

/// How this program is told to be the others.
pub(super) const CROWD: &str = "crowd";
/// How many others there are, in parts of as many as one token lets in.
const PARTS: usize = 5;
const PART: usize = 1000;
/// How long they may take to join.
const JOIN_TIME: Duration = Duration::from_secs(600);
/// After they are all there, until the cost is steady; and over which it is measured.
const SETTLE: Duration = Duration::from_secs(15);
const WINDOW: Duration = Duration::from_secs(30);

/// How the others stand, as their process writes it down each second.
#[derive(Debug, Serialize, Deserialize)]
struct Stand {
    nodes: usize,
    /// Those that have lost a session since all had one.
    lost: usize,
}

/// What the coordinator costs: the share of a processor, and resident bytes.
#[derive(Clone, Copy, Debug)]
struct Coordinator {
    cores: f64,
    resident_bytes: f64,
}

/// Measures it.
///
/// # Errors
///
/// When the cluster does not come to be or back, the others cannot join, or two served at once.
pub(super) async fn measure() -> anyhow::Result<Report> {
    const EVENTS: [Event; 2] = [Event::KilledServer, Event::DeadNode];
    let before = Load::now()?;
    let cluster = Holdfast::begin(&[]).await?;
    let fleet = cluster.fleet();
    let alone = rounds("alone", &cluster, &EVENTS).await?;
    let quiet = cost(fleet).await?;

    let_many_join(&fleet.state())?;
    fleet.controller().crash(COORDINATOR).await?;
    wait_until("the cluster to be whole again", JOIN_TIME, || cluster.whole()).await?;
    let crowd = Crowd::gather(fleet).await?;
    sleep(SETTLE).await;
    let crowded = cost(fleet).await?;
    let within = rounds("in a crowd", &cluster, &EVENTS).await?;
    let lost = crowd.stand()?.lost;
    let found: Vec<Found> = alone.into_iter().chain(within).collect();
    Ok(report(&found, &[quiet, crowded], lost, &[before, Load::now()?]))
}

async fn cost(fleet: &Fleet) -> anyhow::Result<Coordinator> {
    let process = fleet.controller().service(COORDINATOR)?.context("no coordinator")?;
    let before = Cost::of(process)?;
    sleep(WINDOW).await;
    let after = Cost::of(process)?;
    Ok(Coordinator { cores: after.cores_since(&before), resident_bytes: number(after.resident_bytes) })
}

/// The others: a process on the controller.
#[derive(Debug)]
struct Crowd {
    running: Running,
    folder: PathBuf,
}

// === impl Crowd ===

impl Crowd {
    /// Starts them, and waits until each has its session.
    async fn gather(fleet: &Fleet) -> anyhow::Result<Self> {
        let folder = fleet.controller().folder().join("crowd");
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let mut tokens = String::new();
        for _ in 0..PARTS {
            let said = fleet.json(["node", "token", "create", "--uses", &PART.to_string()]).await?;
            tokens += said["token"].as_str().with_context(|| format!("no token in {said}"))?;
            tokens.push('\n');
        }
        write_secret(&folder.join("tokens"), &tokens)?;
        let program =
            Program::new(binaries::bench()?).arg(CROWD).arg(&folder).arg(fleet.agents().to_string());
        let running = fleet.controller().start(program.clean_env(), "crowd")?;
        let mut crowd = Self { running, folder };
        wait_until("all others to have joined", JOIN_TIME, || {
            let stands = crowd.stand();
            let ended = crowd.running.ended();
            async move {
                ensure!(matches!(ended, Ok(None)), "they have ended: {ended:?}");
                stands
            }
        })
        .await?;
        Ok(crowd)
    }

    fn stand(&self) -> anyhow::Result<Stand> {
        let text = std::fs::read_to_string(self.folder.join("stand")).context("ask the others")?;
        let stand: Stand = serde_json::from_str(&text).context("understand the others")?;
        ensure!(stand.nodes == PARTS * PART, "they are {}", stand.nodes);
        Ok(stand)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.running.kill();
    }
}

/// Is the others, until it is killed.
///
/// # Errors
///
/// When one cannot join.
pub(super) fn gather(folder: &Path, address: &str) -> anyhow::Result<()> {
    tls::install_provider();
    let address: Address = address.parse()?;
    let tokens = std::fs::read_to_string(folder.join("tokens")).context("read the tokens")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("make a runtime")?;
    runtime.block_on(async {
        let mut swarms: Vec<Swarm> = Vec::new();
        let mut sessions = Vec::new();
        for (part, token) in tokens.lines().enumerate() {
            let numbers = part * PART..(part + 1) * PART;
            let swarm = Joined::by(token, &address, &folder.join("nodes"), numbers).await?.start()?;
            sessions.push(swarm.sessions().await?);
            swarms.push(swarm);
        }
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let lost =
                swarms.iter().zip(&sessions).map(|(swarm, sessions)| swarm.changed_since(sessions)).sum();
            let stand = Stand { nodes: sessions.iter().map(Vec::len).sum(), lost };
            let (new, file) = (folder.join("stand.new"), folder.join("stand"));
            std::fs::write(&new, serde_json::to_string(&stand)?).context("write how they stand")?;
            std::fs::rename(&new, &file).context("write how they stand")?;
        }
    })
}

fn report(found: &[Found], coordinator: &[Coordinator; 2], lost: usize, load: &[Load; 2]) -> Report {
    let [before, after] = load;
    let about = format!(
        "Release build. A cluster of three real members (PostgreSQL, asynchronous, defaults) and its client, as in *When the primary \
         changes*: alone with their coordinator, and then with {} simulated agents on it, as in *A swarm of agents* (heartbeat 1 s, metrics \
         5 s), all on the same machine, where the simulated agents take processor time too. The longest time between two acknowledged rows, \
         in seconds, and what the coordinator costs over {} s before the faults. Medians, with the smallest and largest in parentheses. \
         Sessions of the others that were lost meanwhile: {lost}. Load average of the machine {before} before, {after} after.",
        PARTS * PART,
        WINDOW.as_secs(),
    );
    let rows = found.iter().map(|one| {
        vec![one.who.to_owned(), one.event.told().to_owned(), format!("{:.2}", one.gaps), one.aim(None)]
    });
    let gaps = Table {
        columns: ["who", "what", "gap in seconds", "aim"].map(String::from).to_vec(),
        rows: rows.collect(),
    };
    let [quiet, crowded] = coordinator;
    let row = |what: &str, it: &Coordinator| {
        let cores = format!("{:.1} %", it.cores * 100.0);
        vec![what.to_owned(), cores, format!("{:.1} MiB", mib(it.resident_bytes))]
    };
    let columns = ["the coordinator with", "CPU (of a core)", "resident memory"].map(String::from).to_vec();
    let costs = Table {
        columns,
        rows: vec![row("4 nodes", quiet), row(&format!("{} nodes", 4 + PARTS * PART), crowded)],
    };
    Report { title: "A failover in a large fleet".into(), about, tables: vec![gaps, costs] }
}

#[cfg(test)]
mod tests {
    use super::super::measure::Rounds;
    use super::*;

    #[test]
    fn gaps_are_held_against_their_aims_and_the_coordinator_is_told_beside() -> anyhow::Result<()> {
        let found = |who, gap| anyhow::Ok(Found { who, event: Event::DeadNode, gaps: Rounds::new([gap])? });
        let costs = |cores| Coordinator { cores, resident_bytes: 32.0 * 1024.0 * 1024.0 };
        let load = [Load::now()?, Load::now()?];
        let told =
            report(&[found("alone", 6.0)?, found("in a crowd", 8.0)?], &[costs(0.0), costs(0.5)], 0, &load);
        let aims: Vec<&str> = told.tables[0].rows.iter().map(|row| row[3].as_str()).collect();
        assert_eq!(aims, ["at most 7.5: met", "at most 7.5: missed"]);
        assert_eq!(told.tables[1].rows[1], ["5004 nodes", "50.0 %", "32.0 MiB"]);
        Ok(())
    }
}
