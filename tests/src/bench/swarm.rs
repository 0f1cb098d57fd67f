//! A swarm of simulated agents against one coordinator: what each costs it, how fast a command reaches all of them, and how
//! soon all are back after it was killed.
//!
//! ```text
//!  this process: n × the agent's link (simulated below) ── mutual TLS, HTTP/2, gRPC ──► holdfast-coordinator
//!                n × a bare connection ──────────────────── the same TLS ─────────────► a bare server, to compare
//! ```

mod agents;
mod coordinator;
mod floor;
mod orders;
mod sample;
mod simulated;

pub(super) use agents::{Joined, Swarm};
pub(super) use coordinator::let_many_join;
pub(super) use floor::{FLOOR, serve as serve_floor};
pub(super) use orders::{COORDINATE, coordinate};

use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_common::id::SessionId;
use holdfast_common::tls;
use tokio::time::{Instant, sleep};

use self::coordinator::{Coordinator, Kind};
use self::floor::Lines;
use super::measure::{Cost, Load, Rounds, kib, number, verdict};
use super::{Report, Table};
use crate::proc::Process;
use crate::run::Run;

const SIZES: [u32; 3] = [100, 300, 1000];
/// How often the coordinator is killed, and its cost measured, at each size.
const KILLS: usize = 5;
/// How often a command is sent to all.
const ORDERS: usize = 11;
/// After a start, until its cost is steady.
const SETTLE: Duration = Duration::from_secs(6);
/// Over which processor time is measured: two samples of every node.
const WINDOW: Duration = Duration::from_secs(10);

/// What the issue asks for, with a thousand agents.
const AIM_KIB: f64 = 64.0;
const AIM_ORDER_SECONDS: f64 = 1.0;
const AIM_RECONNECT_SECONDS: f64 = 5.0;

/// What a server costs.
#[derive(Debug)]
struct Costs {
    /// Shares of one processor.
    cores: Rounds,
    resident_bytes: Rounds,
}

/// What was found with so many agents.
#[derive(Debug)]
struct Found {
    agents: u32,
    costs: Costs,
    /// From the kill until every agent had its welcome again.
    reconnect_seconds: Rounds,
    /// Sessions that ended again after that.
    lost: usize,
    order_seconds: Rounds,
    floor: Costs,
    floor_connect_seconds: f64,
}

/// Numbers of one size that are compared between sizes and with the aims.
#[derive(Clone, Copy, Debug)]
struct Figures {
    agents: f64,
    cores: f64,
    /// Of one processor, for each agent.
    percent_each: f64,
    kib_each: f64,
    order_seconds: f64,
    reconnect_seconds: f64,
}

/// Measures it all.
///
/// # Errors
///
/// When a part of it does not work: then there is nothing to report.
pub(super) async fn measure() -> anyhow::Result<Report> {
    tls::install_provider();
    let before = Load::now()?;
    let run = Run::owned().await?;
    let nobody = nobody(&run, Kind::Program).await?;
    let no_line = nobody_on_the_floor(&run).await?;
    let mut all = Vec::new();
    for agents in SIZES {
        all.push(found(&run, agents).await.with_context(|| format!("with {agents} agents"))?);
    }
    Ok(report(&nobody, &no_line, &all, &[before, Load::now()?]))
}

/// A coordinator without agents.
async fn nobody(run: &Run, kind: Kind) -> anyhow::Result<Costs> {
    let mut coordinator = Coordinator::new(run, "nobody").await?;
    let mut rounds = Vec::new();
    for _ in 0..KILLS {
        coordinator.start(kind)?;
        coordinator.answers().await?;
        rounds.push(window(coordinator.process()?).await?);
        coordinator.kill();
    }
    Costs::new(&rounds)
}

async fn nobody_on_the_floor(run: &Run) -> anyhow::Result<Costs> {
    let mut coordinator = Coordinator::new(run, "no-line").await?;
    coordinator.start(Kind::Floor)?;
    Costs::new(&[window(coordinator.process()?).await?])
}

async fn found(run: &Run, agents: u32) -> anyhow::Result<Found> {
    let mut coordinator = Coordinator::new(run, &format!("swarm-{agents}")).await?;
    coordinator.start(Kind::Program)?;
    coordinator.answers().await?;
    let joined = Joined::new(&coordinator, agents.try_into()?).await?;
    let swarm = joined.start()?;
    let mut sessions = swarm.sessions().await?;
    let (mut costs, mut reconnects, mut lost) = (Vec::new(), Vec::new(), 0);
    for _ in 0..KILLS {
        let (seconds, after) = restart(&mut coordinator, &swarm, &sessions, Kind::Program).await?;
        reconnects.push(seconds);
        costs.push(window(coordinator.process()?).await?);
        lost += swarm.changed_since(&after);
        sessions = swarm.sessions().await?;
    }
    restart(&mut coordinator, &swarm, &sessions, Kind::WithOrders).await?;
    sleep(SETTLE).await;
    let mut orders = Vec::new();
    for _ in 0..ORDERS {
        orders.push(order(&coordinator, agents).await?);
    }
    swarm.end().await?;
    coordinator.kill();
    coordinator.start(Kind::Floor)?;
    let lines = Lines::open(&coordinator, joined.tls()).await?;
    let floor = Costs::new(&[window(coordinator.process()?).await?])?;
    Ok(Found {
        agents,
        costs: Costs::new(&costs)?,
        reconnect_seconds: Rounds::new(reconnects)?,
        lost,
        order_seconds: Rounds::new(orders)?,
        floor,
        floor_connect_seconds: lines.connected_in.as_secs_f64(),
    })
}

/// Kills the coordinator, starts it again, and says how long it took until every agent had a session again.
async fn restart(
    coordinator: &mut Coordinator,
    swarm: &Swarm,
    before: &[SessionId],
    kind: Kind,
) -> anyhow::Result<(f64, Vec<SessionId>)> {
    let begun = Instant::now();
    coordinator.kill();
    coordinator.start(kind)?;
    let after = swarm.sessions_after(before).await?;
    Ok((begun.elapsed().as_secs_f64(), after))
}

/// Lets it settle, then measures it.
async fn window(process: Process) -> anyhow::Result<(f64, f64)> {
    sleep(SETTLE).await;
    let before = Cost::of(process)?;
    sleep(WINDOW).await;
    let after = Cost::of(process)?;
    Ok((after.cores_since(&before), number(after.resident_bytes)))
}

async fn order(coordinator: &Coordinator, agents: u32) -> anyhow::Result<f64> {
    let said = coordinator.order_all().await?;
    let whole = said["nodes"] == agents && said["problem"].is_null();
    ensure!(whole, "not every agent did as it was told: {said}");
    said["seconds"].as_f64().with_context(|| format!("no time in {said}"))
}

// === impl Costs ===

impl Costs {
    fn new(rounds: &[(f64, f64)]) -> anyhow::Result<Self> {
        Ok(Self {
            cores: Rounds::new(rounds.iter().map(|round| round.0))?,
            resident_bytes: Rounds::new(rounds.iter().map(|round| round.1))?,
        })
    }

    /// For each of so many: percent of a processor, and KiB, above what `nobody` costs.
    fn each(&self, nobody: &Self, count: u32) -> (f64, f64) {
        let count = f64::from(count);
        let cores = self.cores.median() - nobody.cores.median();
        let bytes = self.resident_bytes.median() - nobody.resident_bytes.median();
        (cores * 100.0 / count, kib(bytes) / count)
    }
}

// === impl Figures ===

impl Figures {
    fn of(found: &Found, nobody: &Costs) -> Self {
        let (percent_each, kib_each) = found.costs.each(nobody, found.agents);
        Self {
            agents: f64::from(found.agents),
            cores: found.costs.cores.median(),
            percent_each,
            kib_each,
            order_seconds: found.order_seconds.median(),
            reconnect_seconds: found.reconnect_seconds.median(),
        }
    }
}

fn report(nobody: &Costs, no_line: &Costs, all: &[Found], load: &[Load; 2]) -> Report {
    let figures: Vec<Figures> = all.iter().map(|found| Figures::of(found, nobody)).collect();
    let [before, after] = load;
    let about = format!(
        "Release build. Simulated agents in one process (the agent's own link over mutual TLS, each with a certificate \
         that it got by joining; below it a made-up node with one member, forty series of telemetry, no disk) against \
         the coordinator's release program with SQLite, on the same machine. Heartbeat 1 s, metrics 5 s. At each size \
         the coordinator is killed with SIGKILL and started at once, {KILLS} times; processor time is measured over \
         {} s, and resident memory at their end, beginning {} s after all are back. Medians, with the smallest and \
         largest in parentheses. \"Each\" is what a coordinator without agents ({:.2} % of a core, {:.1} MiB) does not \
         cost. Memory is that of the first minute: an hour of an agent's telemetry adds at most 36 KiB, which \
         `history/recent.rs` tests. A command (`check_member`, answered at once) goes to all from one task of a \
         coordinator that is the same but for taking that order, {ORDERS} times, until the last outcome is there. The \
         floor is a server that takes as many connections with the same certificates and answers a line of 200 bytes a \
         second on each, without HTTP/2, messages or state, measured once at each size in the same run. Load average \
         of the machine {before} before, {after} after.",
        WINDOW.as_secs(),
        SETTLE.as_secs(),
        nobody.cores.median() * 100.0,
        kib(nobody.resident_bytes.median()) / 1024.0,
    );
    let mut tables = vec![costs(all, &figures), floor(no_line, all), growth(&figures)];
    tables.extend(figures.last().map(|most| aims(most, all)));
    Report { title: "A swarm of agents".into(), about, tables }
}

fn costs(all: &[Found], figures: &[Figures]) -> Table {
    let rows = all.iter().zip(figures).map(|(found, figures)| {
        vec![
            found.agents.to_string(),
            format!("{:.1} %", figures.cores * 100.0),
            format!("{:.4} %", figures.percent_each),
            format!("{:.1} KiB", figures.kib_each),
            format!("{:.3} s", found.order_seconds),
            format!("{:.2} s", found.reconnect_seconds),
            found.lost.to_string(),
        ]
    });
    table(
        [
            "agents",
            "coordinator's CPU (of a core)",
            "CPU each",
            "memory each",
            "command to all, all outcomes",
            "all back after SIGKILL",
            "sessions lost again",
        ],
        rows,
    )
}

fn floor(nobody: &Costs, all: &[Found]) -> Table {
    let rows = all.iter().map(|found| {
        let (percent, kib) = found.floor.each(nobody, found.agents);
        vec![
            found.agents.to_string(),
            format!("{percent:.4} %"),
            format!("{kib:.1} KiB"),
            format!("{:.2} s", found.floor_connect_seconds),
        ]
    });
    table(["connections to the floor", "CPU each", "memory each", "all connected"], rows)
}

fn growth(figures: &[Figures]) -> Table {
    let rows = figures.windows(2).map(|two| {
        let [less, more] = [two[0], two[1]];
        let times = |of: fn(&Figures) -> f64| format!("×{:.2}", of(&more) / of(&less));
        vec![
            format!("{} → {}", less.agents, more.agents),
            times(|figures| figures.agents),
            times(|figures| figures.cores),
            times(|figures| figures.kib_each * figures.agents),
            times(|figures| figures.order_seconds),
            times(|figures| figures.reconnect_seconds),
        ]
    });
    table(["from → to", "agents", "CPU", "memory", "command to all", "all back"], rows)
}

fn aims(most: &Figures, all: &[Found]) -> Table {
    let lost: usize = all.iter().map(|found| found.lost).sum();
    let aim = |what: &str, aim: String, found: String, met: bool| {
        vec![what.to_owned(), aim, found, verdict(met).to_owned()]
    };
    let agents = most.agents;
    let rows = [
        aim(
            "memory of each",
            format!("below {AIM_KIB} KiB"),
            format!("{:.1} KiB", most.kib_each),
            most.kib_each < AIM_KIB,
        ),
        aim(
            "command to all, all outcomes",
            format!("below {AIM_ORDER_SECONDS} s"),
            format!("{:.3} s", most.order_seconds),
            most.order_seconds < AIM_ORDER_SECONDS,
        ),
        aim(
            "all back after SIGKILL",
            format!("below {AIM_RECONNECT_SECONDS} s"),
            format!("{:.2} s", most.reconnect_seconds),
            most.reconnect_seconds < AIM_RECONNECT_SECONDS,
        ),
        aim("sessions lost again", "none".into(), lost.to_string(), lost == 0),
    ];
    table([&format!("with {agents} agents"), "aim", "found", ""], rows)
}

fn table<const N: usize>(columns: [&str; N], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    Table { columns: columns.map(String::from).to_vec(), rows: rows.into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs_of(cores: f64, mib: f64) -> anyhow::Result<Costs> {
        Costs::new(&[(cores, mib * 1024.0 * 1024.0)])
    }

    fn found_with(agents: u32, lost: usize) -> anyhow::Result<Found> {
        let count = f64::from(agents);
        Ok(Found {
            agents,
            costs: costs_of(0.01 + count * 0.0002, 20.0 + count / 32.0)?,
            reconnect_seconds: Rounds::new([1.0, 2.0, 3.0])?,
            lost,
            order_seconds: Rounds::new([count / 10_000.0])?,
            floor: costs_of(count * 0.0001, 10.0 + count / 64.0)?,
            floor_connect_seconds: 0.5,
        })
    }

    #[test]
    fn costs_are_told_for_each_agent_above_an_idle_coordinator() -> anyhow::Result<()> {
        let (nobody, no_line) = (costs_of(0.01, 20.0)?, costs_of(0.0, 10.0)?);
        let all = [found_with(100, 0)?, found_with(1000, 0)?];
        let text = report(&nobody, &no_line, &all, &[Load::now()?, Load::now()?]).render();
        assert!(text.contains("| 100 | 3.0 % | 0.0200 % | 32.0 KiB | 0.010 (0.010–0.010) s |"), "{text}");
        assert!(text.contains("| 1000 | 0.0100 % | 16.0 KiB | 0.50 s |"), "{text}");
        assert!(text.contains("| 100 → 1000 | ×10.00 | ×7.00 | ×10.00 | ×10.00 | ×1.00 |"), "{text}");
        Ok(())
    }

    #[test]
    fn an_aim_that_is_missed_is_called_missed() -> anyhow::Result<()> {
        let nobody = costs_of(0.01, 20.0)?;
        let good = [found_with(1000, 0)?];
        let figures = Figures::of(&good[0], &nobody);
        assert!(aims(&figures, &good).rows.iter().all(|row| row[3] == "met"));
        let bad = Figures { kib_each: 64.0, order_seconds: 1.0, reconnect_seconds: 5.0, ..figures };
        assert!(aims(&bad, &[found_with(1000, 1)?]).rows.iter().all(|row| row[3] == "missed"));
        Ok(())
    }
}
