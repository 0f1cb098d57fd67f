//! Access rules by netlink against the same by `nft -f`: in one network namespace, one after the other, in one run.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use holdfast_agent::firewall::plan::{Addresses, Declared, Port};
use holdfast_agent::firewall::{Firewall, TABLE};
use holdfast_agent::host::units::Supervisor;
use holdfast_agent::host::{Host, Limits};
use holdfast_common::access::Reach;
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};

use tokio::time::sleep;

use super::measure::{Cost, mib, number, verdict};
use super::{Report, Table};
use crate::fleet::{AGENT, Fleet};
use crate::network::Network;
use crate::process::Program;
use crate::wait::wait_until;

const PORT: u16 = 5432;
/// How long anything of the fleet may take.
const SOON: Duration = Duration::from_secs(120);
/// Before an agent's memory is looked at.
const SETTLE: Duration = Duration::from_secs(15);
/// What the issue asks for with the longest list.
const AIM_MIB: f64 = 40.0;
/// The middle of so many.
const ROUNDS: usize = 3;
const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
/// More than stand beside a long list: the list itself is changed.
const MANY: u32 = 1_100;

/// One deed, both ways.
struct Row {
    size: u32,
    deed: &'static str,
    ours: Duration,
    theirs: Duration,
}

/// Measures, on a thread that has a network namespace of its own.
pub(super) async fn measure() -> anyhow::Result<Report> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let measured = alone();
        // Nobody waits any more if the benchmark was given up.
        let _unheard = tell.send(measured);
    });
    let rows = told.await.context("the benchmark's thread has panicked")??;
    let memory = memory().await?;
    let row = |row: &Row| {
        let millis = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
        let factor = row.theirs.as_secs_f64() / row.ours.as_secs_f64();
        vec![
            row.size.to_string(),
            row.deed.to_owned(),
            millis(row.ours),
            millis(row.theirs),
            format!("{factor:.1}"),
        ]
    };
    Ok(Report {
        title: "Access rules: netlink against nft".to_owned(),
        about: format!(
            "Random IPv4 networks of /20 to /32. *Holdfast*: the agent's own way, from the declared list to the kernel's \
             acknowledgement, with the look at what is there, the plan and the messages; of a long list a few changes stand in \
             sets beside it, and 1,100 make it change itself. *nft*: one interval set and `nft -f -` with \
             the elements as text, as a script would have it; a full replacement is `flush set` and `add element` in one \
             transaction. Both in the same new network namespace, in turns; the middle of {ROUNDS}. *Memory*: an agent whose \
             one cluster has the list, resident pages of program and libraries included, {} s after it is enforced.",
            SETTLE.as_secs(),
        ),
        tables: vec![
            Table {
                columns: ["entries", "deed", "Holdfast", "nft", "nft ÷ Holdfast"].map(str::to_owned).to_vec(),
                rows: rows.iter().map(row).collect(),
            },
            Table {
                columns: vec![
                    "entries".into(),
                    "the agent's memory".into(),
                    format!("memory below {AIM_MIB} MiB"),
                ],
                rows: memory,
            },
        ],
    })
}

/// What the agent has in memory without entries, and with the longest list.
async fn memory() -> anyhow::Result<Vec<Vec<String>>> {
    let most = SIZES[SIZES.len() - 1];
    let mut fleet = Fleet::start(Network::new().await?, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    fleet.join_all(&["n1"]).await?;
    let create = ["cluster", "create", "orders", "--engine", "postgresql", "--nodes", "n1"];
    fleet.cli(create)?.deadline(SOON).run().await.context("create the cluster")?;
    let agent = fleet.node("n1")?.service(AGENT)?.context("no agent on n1")?;
    let resident = async || {
        sleep(SETTLE).await;
        Ok::<_, anyhow::Error>(mib(number(Cost::of(agent)?.resident_bytes)))
    };
    let row = |entries: usize, mib: f64| {
        vec![entries.to_string(), format!("{mib:.1} MiB"), verdict(mib < AIM_MIB).to_owned()]
    };
    let mut rows = vec![row(0, resident().await?)];
    let networks = list(most, 1);
    let file = fleet.node("n1")?.folder().join("networks");
    let text: String = networks.iter().map(|network| format!("{network}\n")).collect();
    std::fs::write(&file, text).context("write the list")?;
    let set = ["access", "set", "orders", "--file", &file.to_string_lossy()];
    fleet.cli(set)?.deadline(SOON).run().await.context("set the list")?;
    wait_until("the list to be enforced", SOON, || async {
        let shown = fleet.json(["access", "show", "orders"]).await?;
        ensure!(shown["members"][0]["state"] == "enforced", "it is {}", shown["members"][0]);
        Ok(())
    })
    .await?;
    rows.push(row(networks.len(), resident().await?));
    Ok(rows)
}

fn alone() -> anyhow::Result<Vec<Row>> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace; this needs root")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    runtime.block_on(async {
        let mut rows = Vec::new();
        for size in SIZES {
            rows.extend(size_of(size).await.with_context(|| format!("{size} entries"))?);
        }
        Ok(rows)
    })
}

async fn size_of(size: u32) -> anyhow::Result<Vec<Row>> {
    let [mut load, mut replace, mut add, mut remove, mut fold] = [const { Vec::new() }; 5];
    let mut nft = [const { Vec::new() }; 5];
    for round in 0..ROUNDS {
        let seed = u32::try_from(round)? + 1;
        let (first, second) = (list(size, seed), list(size, seed + 1000));
        let (more, ten) = with_more(&second, 10);

        let mut firewall = firewall().await?;
        firewall.apply(&declared(&[])).await?;
        load.push(apply(&mut firewall, &first).await?);
        replace.push(apply(&mut firewall, &second).await?);
        add.push(apply(&mut firewall, &more).await?);
        witness(more.len()).await?;
        remove.push(apply(&mut firewall, &second).await?);
        witness(second.len()).await?;
        let (most, folded) = with_more(&second, MANY);
        fold.push(apply(&mut firewall, &most).await?);
        witness(most.len()).await?;
        clear(TABLE).await?;

        let table = "table inet script { set allowed { type ipv4_addr; flags interval; }\n}\n";
        by_nft(table.to_owned()).await?;
        nft[0].push(by_nft(elements("add", &first)).await?);
        nft[1].push(by_nft(format!("flush set inet script allowed\n{}", elements("add", &second))).await?);
        nft[2].push(by_nft(elements("add", &ten)).await?);
        nft[3].push(by_nft(elements("delete", &ten)).await?);
        nft[4].push(by_nft(elements("add", &folded)).await?);
        clear("script").await?;
    }
    let deeds = ["load all", "replace all", "add ten", "remove ten", "add 1,100"];
    let ours = [load, replace, add, remove, fold];
    let rows = deeds.into_iter().zip(ours).zip(nft);
    Ok(rows
        .map(|((deed, ours), theirs)| Row { size, deed, ours: middle(ours), theirs: middle(theirs) })
        .collect())
}

async fn firewall() -> anyhow::Result<Firewall> {
    // Nothing is kept in it: the firewall needs the machine's programs and its kernel only.
    let folder = tempfile::tempdir().context("make a folder")?;
    let limits = Limits {
        roots: vec![folder.path().to_owned()],
        unit_records: folder.path().join("units"),
        supervisor: Supervisor::Plain,
    };
    Ok(Firewall::new(Host::open(limits).await.context("open the machine")?))
}

fn declared(networks: &[Ipv4Net]) -> Declared {
    let reach: Reach = networks.iter().copied().map(ipnet::IpNet::V4).collect();
    let port = Port { kept: Addresses::from(&reach), ..Port::default() };
    Declared { ports: [(PORT, port)].into() }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn apply(firewall: &mut Firewall, networks: &[Ipv4Net]) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    firewall.apply(&declared(networks)).await?;
    Ok(begun.elapsed())
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
async fn by_nft(text: String) -> anyhow::Result<Duration> {
    let program = Program::new("nft").args(["-f", "-"]).input(text).deadline(Duration::from_secs(120));
    let begun = Instant::now();
    program.run().await?;
    Ok(begun.elapsed())
}

/// That the kernel has as many as were declared, by nft's word.
async fn witness(entries: usize) -> anyhow::Result<()> {
    let found = listed("p5432_kept4").await? + listed("p5432_added4").await?;
    let withdrawn = listed("p5432_withdrawn4").await?;
    ensure!(found == entries + withdrawn, "nft lists {found} entries without {withdrawn}, not {entries}");
    Ok(())
}

async fn listed(set: &str) -> anyhow::Result<usize> {
    let list = ["-j", "list", "set", "inet", TABLE, set];
    let listed = Program::new("nft").args(list).deadline(Duration::from_secs(120)).run().await?;
    let listed: serde_json::Value = serde_json::from_str(&listed).context("read what nft lists")?;
    let found = listed["nftables"].as_array().into_iter().flatten();
    Ok(found.filter_map(|item| item["set"]["elem"].as_array()).map(Vec::len).sum())
}

async fn clear(table: &str) -> anyhow::Result<()> {
    Program::new("nft").args(["delete", "table", "inet", table]).run().await.map(drop)
}

fn elements(verb: &str, networks: &[Ipv4Net]) -> String {
    let mut text = format!("{verb} element inet script allowed {{ ");
    for network in networks {
        let _ = write!(text, "{network}, ");
    }
    text + "}\n"
}

/// Networks that do not overlap, so that both ways have the same to do.
fn list(size: u32, seed: u32) -> Vec<Ipv4Net> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    // One in each 8,192 addresses at most.
    let step = 0xd000_0000 / size;
    let mut network = |number: u32| {
        let length = 20 + u8::try_from(random() % 13).unwrap_or(0);
        let base = 0x0100_0000 + number * step;
        Ipv4Net::new(Ipv4Addr::from(base), length).map(|net| net.trunc())
    };
    let mut networks: Vec<Ipv4Net> = (0..size).filter_map(|number| network(number).ok()).collect();
    networks.dedup_by(|next, before| before.contains(&*next));
    networks
}

/// The list with so many more, and these.
fn with_more(networks: &[Ipv4Net], count: u32) -> (Vec<Ipv4Net>, Vec<Ipv4Net>) {
    let more: Vec<Ipv4Net> = (0..count)
        .filter_map(|number| Ipv4Net::new(Ipv4Addr::from(0xf000_0000 + (number << 8)), 24).ok())
        .collect();
    (networks.iter().chain(&more).copied().collect(), more)
}

fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_do_not_overlap() -> anyhow::Result<()> {
        for size in SIZES {
            let networks = list(size, 1);
            let reach: Reach = networks.iter().copied().map(ipnet::IpNet::V4).collect();
            let sizes = (reach.len(), networks.len());
            ensure!(sizes.0 == sizes.1, "{sizes:?}");
            ensure!(sizes.1 * 10 >= usize::try_from(size)? * 9, "only {} of {size} are left", sizes.1);
        }
        Ok(())
    }
}
