//! The fleet and cluster of `cargo xtask demo`: three nodes, a replicated PostgreSQL, a row written and read.
//!
//! It goes on running when this program has ended, so its run has no owner: `up` replaces one that is broken or was
//! built from other programs, shows one that is whole, and `down` removes it by its name.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as LocalAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::binaries;
use crate::fleet::{Fleet, Uri, write_secret};
use crate::host::Host;
use crate::host::spec::IsolationName;
use crate::network::Network;
use crate::proc::{self, Process};
use crate::process::Program;
use crate::run::{self, Isolation, Run};
use crate::wait::wait_until;

/// The name of its run, and of its cluster.
const DEMO: &str = "demo";

/// Where operators reach it, unless that is taken.
const OPERATORS: u16 = 7443;

/// How long a row may take to the replicas.
const SOON: Duration = Duration::from_secs(15);

/// What is written down about a demo, to find it again. For its owner only: the URI has the password.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    programs: BTreeMap<String, String>,
    /// Pid 1 of every host: services come and go, as when somebody kills an agent to see what happens.
    hosts: BTreeMap<String, Process>,
    isolation: IsolationName,
    answer: Value,
}

/// How a demo that stands is told of, as the last output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Words,
    Json,
}

// === impl Record ===

impl Record {
    fn config(&self) -> anyhow::Result<PathBuf> {
        self.answer["config"].as_str().map(PathBuf::from).context("a context file")
    }

    /// The answer with the pids of this moment, as seen from outside of the hosts.
    async fn answer_now(&self) -> anyhow::Result<Value> {
        let mut answer = self.answer.clone();
        answer["coordinator"]["pid"] = self.pid("ctl", "holdfast-coordinator").await?.into();
        for node in answer["nodes"].as_array_mut().into_iter().flatten() {
            let name = node["name"].as_str().context("a node's name")?.to_owned();
            node["agent_pid"] = self.pid(&name, "holdfast-agent").await?.into();
        }
        Ok(answer)
    }

    /// The process that runs a daemon on a host, once it does: it may just have been killed.
    async fn pid(&self, host: &str, program: &str) -> anyhow::Result<u32> {
        let init = *self.hosts.get(host).with_context(|| format!("no host {host}"))?;
        wait_until(format!("{program} on {host}"), SOON, || async {
            let all = match self.isolation {
                IsolationName::Hosts => proc::in_pid_namespace_of(init.pid),
                IsolationName::Processes => proc::tree(init),
            };
            let runs = |one: &proc::Entry| {
                let mut words = one.arguments.iter();
                words.next().is_some_and(|path| path.ends_with(program))
                    && words.next().is_some_and(|verb| verb == "run")
            };
            Ok(all.iter().find(|one| runs(one)).context("it does not run")?.process.pid)
        })
        .await
    }
}

/// `up NODES [json]` or `down`.
///
/// # Errors
///
/// When it cannot be brought up or taken down.
pub fn main(arguments: &[String]) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let _alone = alone()?;
    match words.as_slice() {
        ["down"] => runtime.block_on(down()),
        ["up", nodes] => runtime.block_on(up(nodes.parse().context("a number of nodes")?, Answer::Words)),
        ["up", nodes, "json"] => {
            runtime.block_on(up(nodes.parse().context("a number of nodes")?, Answer::Json))
        }
        _ => bail!("the demo is started by `cargo xtask demo`"),
    }
}

async fn up(nodes: usize, how: Answer) -> anyhow::Result<()> {
    let folder = folder();
    let record = match standing(&folder, nodes).await {
        Some(record) => {
            step("the demo is running already");
            record
        }
        None => {
            remove(&folder).await?;
            let made = make(&folder, nodes).await;
            made.with_context(|| {
                format!("logs are in {}/*/log; `cargo xtask demo --down` removes all of it", folder.display())
            })?
        }
    };
    show(&record.config()?, &["cluster", "show", DEMO])?;
    let answer = record.answer_now().await?;
    say(match how {
        Answer::Words => next_commands(&answer)?,
        Answer::Json => answer.to_string(),
    })
}

async fn down() -> anyhow::Result<()> {
    remove(&folder()).await?;
    step("the demo is gone");
    Ok(())
}

/// Makes all of it, in the order in which a person would.
async fn make(folder: &Path, nodes: usize) -> anyhow::Result<Record> {
    let programs = programs()?;
    let names: Vec<String> = (1..=nodes).map(|number| format!("n{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();

    step("starting the coordinator");
    let network = Network::of(Run::detached(DEMO, folder)?).await?;
    let operators = (Ipv4Addr::LOCALHOST, free_port(OPERATORS, &[Ipv4Addr::LOCALHOST])?);
    let mut fleet = Fleet::start(network, operators.into()).await.context("start the coordinator")?;
    let config = fleet.context_file();
    step(format_args!("joining {}, each with a token of its own", names.join(", ")));
    fleet.join_all(&names).await?;
    show(&config, &["node", "list"])?;

    step("creating the cluster");
    if fleet.unfiltered().is_some() {
        note("without root nothing can be filtered: every user of this machine reaches the databases' ports");
    }
    let port = cluster_port(&fleet)?.to_string();
    let list = names.join(",");
    show(
        &config,
        &[
            "cluster",
            "create",
            DEMO,
            "--engine",
            "postgresql",
            "--nodes",
            &list,
            "--durability",
            "quorum",
            "--port",
            &port,
        ]
        .into_iter()
        .chain(fleet.unfiltered())
        .collect::<Vec<_>>(),
    )?;
    let connection = ["cluster", "connection", DEMO, "--reveal-password", "--uri"];
    note(format_args!("$ holdfast {}", connection.join(" ")));
    let uri = fleet.cli(connection)?.run().await?.trim().to_owned();
    note("with this the password has been shown, once: the demo keeps it for you");
    row(&fleet, &Uri::parse(&uri)?).await?;
    let mut hosts = BTreeMap::new();
    for host in std::iter::once(fleet.controller()).chain(fleet.nodes()) {
        hosts.insert(host.name().to_owned(), host.init()?);
    }
    let isolation = fleet.network().isolation().into();
    let record = Record { programs, hosts, isolation, answer: answer(&fleet, &uri) };
    write_secret(&record_file(folder), &serde_json::to_string(&record)?)?;
    Ok(record)
}

/// Writes a row on the primary and reads it on every replica.
async fn row(fleet: &Fleet, uri: &Uri) -> anyhow::Result<()> {
    step("writing a row on the primary");
    let write = "create table if not exists greeting (id bigint generated always as identity, words text); \
                 insert into greeting (words) values ('hello from the primary') returning id";
    let id = fleet.psql(uri, write).await?;
    let id = id.trim();
    for node in fleet.nodes() {
        let one = uri.only(node.address())?;
        let read = format!("select pg_is_in_recovery(), words from greeting where id = {id}");
        let seen = wait_until(format!("the row on {}", node.name()), SOON, || async {
            let seen = fleet.psql(&one, &read).await?;
            ensure!(!seen.trim().is_empty(), "it is not there yet");
            Ok(seen)
        });
        let seen = seen.await?;
        let (replica, words) = seen.trim().split_once('|').context("two columns")?;
        let role = if replica == "t" { "replica" } else { "primary" };
        note(format_args!("{} ({role}) reads row {id}: {words}", node.name()));
    }
    Ok(())
}

/// What `--json` prints, except for the pids.
fn answer(fleet: &Fleet, uri: &str) -> Value {
    let node = |node: &Host| json!({ "name": node.name(), "address": node.address(), "namespace": node.namespace(), "agent_pid": null });
    json!({
        "config": fleet.context_file(),
        "coordinator": { "operators": fleet.operators(), "agents": fleet.agents(), "pid": null },
        "nodes": fleet.nodes().iter().map(node).collect::<Vec<_>>(),
        "cluster": { "name": DEMO, "uri": uri },
    })
}

/// The demo that runs, if it is whole, has that many nodes, and runs the programs that are built now.
async fn standing(folder: &Path, nodes: usize) -> Option<Record> {
    let record: Record = crate::host::spec::read(&record_file(folder)).ok()?;
    let whole = record.hosts.values().all(|init| init.is_alive());
    let same = programs().is_ok_and(|programs| programs == record.programs);
    let size = record.answer["nodes"].as_array().is_some_and(|all| all.len() == nodes);
    // Somebody may have deleted its cluster: then it is made anew, with all the rest.
    let shown = Program::new(binaries::cli().ok()?).args(["cluster", "show", DEMO]);
    let has_cluster = || shown.env("HOLDFAST_CONFIG", record.config().unwrap_or_default()).run();
    let fits = whole && same && size && record.answer_now().await.is_ok() && has_cluster().await.is_ok();
    fits.then_some(record)
}

/// The programs that it is made of: when each was built.
fn programs() -> anyhow::Result<BTreeMap<String, String>> {
    let built = |path: PathBuf| -> anyhow::Result<(String, String)> {
        let about = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        let since =
            about.modified().context("ask when it was built")?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok((path.display().to_string(), format!("{} {}", about.len(), since.as_nanos())))
    };
    [binaries::coordinator()?, binaries::agent()?, binaries::cli()?].into_iter().map(built).collect()
}

async fn remove(folder: &Path) -> anyhow::Result<()> {
    run::remove(DEMO, folder).await.context("remove the demo")
}

fn next_commands(answer: &Value) -> anyhow::Result<String> {
    let config = answer["config"].as_str().context("a context file")?;
    let uri = Uri::parse(answer["cluster"]["uri"].as_str().context("a URI")?)?;
    let passwords = Path::new(config).with_file_name("pgpass");
    uri.write_passwords(&passwords)?;
    let enter = match answer["nodes"][0]["namespace"].as_str() {
        Some(namespace) => format!("ip netns exec {} ", namespace.replace("-n1", "-ctl")),
        None => String::new(),
    };
    let cli = binaries::cli()?;
    let uri = uri.without_password();
    let first = answer["nodes"][0]["agent_pid"].as_u64().context("a pid")?;
    Ok(format!(
        "
The cluster runs until `cargo xtask demo --down`. To try next:

  export HOLDFAST_CONFIG={config} PATH={path}:$PATH

  holdfast node top                             processors, memory, disks and network, refreshed in place
  holdfast cluster watch {DEMO} &                 every change as it happens
  {kill:<45} the agent of n1: it returns, its database never noticed
  holdfast cluster remove-member {DEMO} n3 --confirm n3
  holdfast cluster add-member {DEMO} n3
  holdfast operation list
  PGPASSFILE={passwords} {enter}psql '{uri}'

The demo has had the password shown, and keeps it in that file. `holdfast cluster reset-password {DEMO}` draws another.
",
        kill = format!("kill -9 {first}"),
        path = cli.parent().unwrap_or(&cli).display(),
        passwords = passwords.display(),
    ))
}

/// The usual port where nodes have addresses of their own; else one that is free on all of them.
fn cluster_port(fleet: &Fleet) -> anyhow::Result<u16> {
    const USUAL: u16 = 5432;
    if fleet.network().isolation() == Isolation::Hosts {
        return Ok(USUAL);
    }
    let addresses: Vec<Ipv4Addr> = fleet
        .nodes()
        .iter()
        .filter_map(|node| match node.address() {
            std::net::IpAddr::V4(address) => Some(address),
            std::net::IpAddr::V6(_) => None,
        })
        .collect();
    free_port(USUAL, &addresses)
}

/// The first port from `from` on that is free on all the addresses.
fn free_port(from: u16, addresses: &[Ipv4Addr]) -> anyhow::Result<u16> {
    let free =
        |port: &u16| addresses.iter().all(|at| TcpListener::bind(SocketAddr::from((*at, *port))).is_ok());
    (from..from.saturating_add(100)).find(free).with_context(|| format!("no port from {from} on is free"))
}

/// Two demos at once would tread on each other. The name vanishes with this process, and leaves no file.
fn alone() -> anyhow::Result<UnixListener> {
    let name = format!("holdfast-demo-{}", nix::unistd::geteuid());
    let address = LocalAddr::from_abstract_name(name).context("name the lock of the demo")?;
    UnixListener::bind_addr(&address).context("another `cargo xtask demo` is under way: wait for it")
}

fn folder() -> PathBuf {
    run::user_folder("holdfast-demo")
}

fn record_file(folder: &Path) -> PathBuf {
    folder.join("demo.json")
}

/// Runs the command line where the person can see it. Standard output is kept for what was asked for.
fn show(config: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let program = Program::new(binaries::cli()?).args(arguments).env("HOLDFAST_CONFIG", config);
    let program = program.without_env("HOLDFAST_TOKEN").without_env("HOLDFAST_CONTEXT");
    note(format_args!("$ holdfast {}", arguments.join(" ")));
    ensure!(program.on_standard_error()?, "{program} failed");
    Ok(())
}

fn step(what: impl std::fmt::Display) {
    // Without anybody to read it there is nobody to miss it.
    writeln!(std::io::stderr(), "==> {what}").ok();
}

fn note(what: impl std::fmt::Display) {
    writeln!(std::io::stderr(), "    {what}").ok();
}

fn say(what: impl std::fmt::Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{what}").context("answer")
}
