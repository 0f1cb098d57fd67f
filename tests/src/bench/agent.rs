//! The agent at rest: what it costs a machine that has one member of a cluster, beside one that has none, and beside
//! programs that other people find cheap enough to have everywhere.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use super::measure::{Cost, Load, Rounds, mib, number, verdict};
use super::{Report, Table};
use crate::fleet::{AGENT, Fleet};
use crate::host::Host;
use crate::network::Network;
use crate::proc::Process;
use crate::process::{Program, Running};
use crate::run::MARK;
use crate::wait::wait_until;

/// Windows in which everything is measured at the same time.
const WINDOWS: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);
/// After the cluster was made, until all is at rest.
const SETTLE: Duration = Duration::from_secs(30);
/// How long the cluster may take to be whole.
const SOON: Duration = Duration::from_secs(120);
/// As often as the agent measures its machine.
const SCRAPE: Duration = Duration::from_secs(5);

/// What the agent calls it.
const LEASE_THREAD: &str = "lease";

/// What the issue asks for.
const AIM_MIB: f64 = 15.0;
const AIM_PERCENT: f64 = 0.3;

/// Something that is measured.
#[derive(Debug)]
struct Subject {
    what: &'static str,
    process: Process,
    kind: Kind,
}

/// Whether the aims are for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Agent,
    /// Its thread for leases, which is part of it.
    Lease,
    /// It is there to compare with, all its processes together.
    Other,
}

/// What a subject cost.
#[derive(Debug)]
struct Found {
    what: &'static str,
    kind: Kind,
    percent: Rounds,
    mib: Rounds,
}

/// A program that tells its machine's measurements, and somebody who asks it as often as the agent measures.
struct Exporter {
    running: Running,
    _asking: JoinSet<anyhow::Result<()>>,
}

/// Measures it.
///
/// # Errors
///
/// When the cluster does not come to be, or a part of it ends.
pub(super) async fn measure() -> anyhow::Result<Report> {
    let before = Load::now()?;
    let mut fleet = Fleet::start(Network::new().await?, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    fleet.join_all(&["n1", "n2", "n3"]).await?;
    let create = ["cluster", "create", "idle", "--engine", "postgresql", "--nodes", "n1,n2"];
    fleet.cli(create)?.deadline(SOON).run().await.context("create the cluster")?;
    wait_until("a primary and a replica", SOON, || whole(&fleet)).await?;
    let exporter = Exporter::start(fleet.network().run().id(), fleet.controller()).await?;

    let mut subjects = vec![
        Subject::agent("agent of the primary", fleet.node("n1")?)?,
        Subject::agent("of that its thread for leases", fleet.node("n1")?)?.leases(),
        Subject::agent("agent of the replica", fleet.node("n2")?)?,
        Subject::agent("agent without a member", fleet.node("n3")?)?,
        Subject::postgres("PostgreSQL itself, primary", fleet.node("n1")?)?,
        Subject::postgres("PostgreSQL itself, replica", fleet.node("n2")?)?,
    ];
    subjects.extend(exporter.as_ref().map(Exporter::subject));
    sleep(SETTLE).await;
    let mut windows = Vec::new();
    for _ in 0..WINDOWS {
        windows.push(window(&subjects).await?);
    }
    let found = subjects.iter().enumerate().map(|(place, subject)| {
        let of = |number: fn(&(f64, f64)) -> f64| Rounds::new(windows.iter().map(|all| number(&all[place])));
        Ok(Found { what: subject.what, kind: subject.kind, percent: of(|one| one.0)?, mib: of(|one| one.1)? })
    });
    let found: Vec<Found> = found.collect::<anyhow::Result<_>>()?;
    Ok(report(&found, &[before, Load::now()?]))
}

async fn whole(fleet: &Fleet) -> anyhow::Result<()> {
    let shown = fleet.json(["cluster", "show", "idle"]).await?;
    let members = shown["members"].as_array().context("no members")?;
    let states: Vec<_> = members.iter().filter_map(|member| member["state"].as_str()).collect();
    ensure!(states == ["running", "streaming"], "they are {states:?}");
    Ok(())
}

/// Percent of a processor and MiB of each, at the same time.
async fn window(subjects: &[Subject]) -> anyhow::Result<Vec<(f64, f64)>> {
    let costs = || subjects.iter().map(Subject::cost).collect::<anyhow::Result<Vec<_>>>();
    let before = costs()?;
    sleep(WINDOW).await;
    let both = before.into_iter().zip(costs()?);
    Ok(both
        .map(|(before, after)| (after.cores_since(&before) * 100.0, mib(number(after.resident_bytes))))
        .collect())
}

// === impl Subject ===

impl Subject {
    fn agent(what: &'static str, host: &Host) -> anyhow::Result<Self> {
        let process = host.service(AGENT)?.with_context(|| format!("no agent on {}", host.name()))?;
        Ok(Self { what, process, kind: Kind::Agent })
    }

    fn postgres(what: &'static str, host: &Host) -> anyhow::Result<Self> {
        let all = host.processes()?;
        let server = |program: &String| program.ends_with("/postgres");
        let mut servers = all.iter().filter(|entry| entry.arguments.first().is_some_and(server));
        let postmaster = servers.next().with_context(|| format!("no server on {}", host.name()))?;
        Ok(Self { what, process: postmaster.process, kind: Kind::Other })
    }

    fn leases(self) -> Self {
        Self { kind: Kind::Lease, ..self }
    }

    fn cost(&self) -> anyhow::Result<Cost> {
        ensure!(self.process.is_alive(), "{} has ended", self.what);
        match self.kind {
            // What it starts and waits for counts, and is in the times of its children.
            Kind::Agent => Cost::of(self.process),
            Kind::Lease => Cost::of_thread(self.process, LEASE_THREAD),
            Kind::Other => Cost::of_tree(self.process),
        }
    }
}

// === impl Exporter ===

impl Exporter {
    /// Debian's exporter for Prometheus, if this machine has it.
    async fn start(run: &str, controller: &Host) -> anyhow::Result<Option<Self>> {
        let Some(program) = on_path("prometheus-node-exporter") else { return Ok(None) };
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = SocketAddr::from((Ipv4Addr::new(127, 83, high, low.max(1)), 9100));
        let program = Program::new(program).arg(format!("--web.listen-address={address}")).env(MARK, run);
        let running = program.start(&controller.log("node-exporter"))?;
        let mut exporter = Self { running, _asking: JoinSet::new() };
        wait_until("the exporter to answer", SOON, || scrape(address)).await?;
        exporter._asking.spawn(async move {
            let mut ticks = interval(SCRAPE);
            loop {
                ticks.tick().await;
                scrape(address).await?;
            }
        });
        Ok(Some(exporter))
    }

    fn subject(&self) -> Subject {
        let what = "prometheus-node-exporter, asked every 5 s";
        Subject { what, process: self.running.process(), kind: Kind::Other }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.running.kill();
    }
}

async fn scrape(address: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await.context("reach the exporter")?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await?;
    ensure!(said.len() > 1000, "it says {} bytes", said.len());
    Ok(())
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn report(found: &[Found], load: &[Load; 2]) -> Report {
    let [before, after] = load;
    let about = format!(
        "Release build. Three hosts of the testbed, each with the real agent and the plain supervisor; a cluster of two \
         (PostgreSQL, asynchronous) at rest: nobody connects but the agents. Heartbeat 1 s, metrics 5 s. Beginning {} s \
         after the cluster was made, {WINDOWS} windows of {} s, all processes in the same ones: share of one processor, \
         and resident memory at the end, pages of the program and of shared memory included; of PostgreSQL and the exporter \
         a page that several processes share counts once. The thread for leases renews one lease a second: the time that the \
         kernel ran it, which is what a renewal costs for each cluster. Programs that the agent starts count as its own. Medians, \
         with the smallest and largest in parentheses. Load average of the machine {before} before, {after} after.",
        SETTLE.as_secs(),
        WINDOW.as_secs(),
    );
    let aims = [format!("CPU below {AIM_PERCENT} %"), format!("memory below {AIM_MIB} MiB")];
    let mut columns = vec!["what".to_owned(), "CPU (of a core)".into(), "resident memory".into()];
    columns.extend(aims);
    let rows = found.iter().map(|Found { what, kind, percent, mib }| {
        let met = |met| if *kind == Kind::Agent { verdict(met) } else { "" };
        vec![
            (*what).to_owned(),
            if *kind == Kind::Lease { format!("{percent:.3} %") } else { format!("{percent:.2} %") },
            if *kind == Kind::Lease { String::new() } else { format!("{mib:.1} MiB") },
            met(percent.median() < AIM_PERCENT).to_owned(),
            met(mib.median() < AIM_MIB).to_owned(),
        ]
    });
    let tables = vec![Table { columns, rows: rows.collect() }];
    Report { title: "The agent at rest".into(), about, tables }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: Kind, percent: f64, mib: f64) -> anyhow::Result<Found> {
        Ok(Found { what: "it", kind, percent: Rounds::new([percent])?, mib: Rounds::new([mib])? })
    }

    #[test]
    fn aims_are_for_agents_and_are_missed_at_the_bound() -> anyhow::Result<()> {
        let all =
            [found(Kind::Agent, 0.1, 14.9)?, found(Kind::Agent, 0.3, 15.0)?, found(Kind::Other, 0.3, 15.0)?];
        let rows = report(&all, &[Load::now()?, Load::now()?]).tables.remove(0).rows;
        let verdicts: Vec<_> = rows.iter().map(|row| (row[3].as_str(), row[4].as_str())).collect();
        assert_eq!(verdicts, [("met", "met"), ("missed", "missed"), ("", "")]);
        Ok(())
    }
}
