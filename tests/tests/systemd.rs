//! Holdfast as users install it: packages, cloud-init, hardened units and systemd, on machines that had no PostgreSQL.
//!
//! These need root and systemd-nspawn. Where that is not to be had, `cargo xtask test` says so and leaves them out, and
//! here they fail with the reason.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use holdfast_tests::cluster::{CREATE, NODES, is_whole};
use holdfast_tests::fleet::Uri;
use holdfast_tests::machine::Machine;
use holdfast_tests::machine::fleet::{AGENT, COORDINATOR, MachineFleet};
use holdfast_tests::process::Program;
use holdfast_tests::wait::wait_until;
use jiff::Timestamp;

/// Longer than anything here takes on two busy cores.
const DEADLINE: Duration = Duration::from_secs(120);
/// From a package of its own, and to be loaded at the start.
const EXTENSION: [&str; 2] = ["--extension", "pg_cron"];

/// A database's process on a machine, told apart from a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Postmaster {
    unit: String,
    pid: String,
    started: String,
}

/// Its unit, of which there must be one.
async fn postmaster(machine: &Machine) -> anyhow::Result<Postmaster> {
    let list = ["list-units", "--plain", "--no-legend", "--state=running", "holdfast-postgresql-*"];
    let units = machine.run(Program::new("systemctl").args(list)).await?;
    let names: Vec<_> = units.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let [unit] = names.as_slice() else { anyhow::bail!("{} runs {names:?}", machine.name()) };
    Ok(Postmaster {
        unit: (*unit).to_owned(),
        pid: machine.property(unit, "MainPID").await?,
        started: machine.property(unit, "ExecMainStartTimestampMonotonic").await?,
    })
}

async fn postmasters(fleet: &MachineFleet) -> anyhow::Result<Vec<Postmaster>> {
    try_join_all(fleet.nodes().iter().map(postmaster)).await
}

/// Waits until the cluster is as it ought to be, as the coordinator sees it.
async fn whole(fleet: &MachineFleet) -> anyhow::Result<()> {
    wait_until("a primary and two streaming replicas", DEADLINE, || async {
        is_whole(&fleet.json(&["cluster", "show", "orders"]).await?)
    })
    .await
}

/// SQL as the client that `cluster connection` is for, from a node's machine, where psql came with the server.
async fn psql(fleet: &MachineFleet, uri: &str, sql: &str) -> anyhow::Result<String> {
    let psql =
        Program::new("psql").args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-d", uri, "-c", sql]);
    Ok(fleet.nodes()[2].run(psql.env("PGCONNECT_TIMEOUT", "5")).await?.trim().to_owned())
}

#[tokio::test]
async fn a_new_machine_becomes_a_node_by_its_user_data_alone() -> anyhow::Result<()> {
    let mut fleet = MachineFleet::start().await?;
    fleet.join(&["n1"]).await?;
    ensure!(fleet.coordinator().property(COORDINATOR, "User").await? == "holdfast", "it has its own user");
    let node = &fleet.nodes()[0];
    ensure!(node.property(AGENT, "UnitFileState").await? == "enabled", "it will be there after a boot");
    let used = node.output(Program::new("test").args(["-e", "/run/holdfast-join-token"])).await?;
    ensure!(!used.status.success(), "the token stayed on the machine");

    let sources = node.run(Program::new("sh").args(["-c", "cat /etc/apt/sources.list* || true"])).await?;
    ensure!(!sources.contains("http"), "joining gave the machine package sources of its own: {sources}");

    // It has no database and no lists of packages but those that its user data had it read.
    let shown = fleet.online("n1").await?;
    ensure!(shown["inventory"]["service_manager"] == "systemd", "it is {}", shown["inventory"]);
    let engines = &shown["inventory"]["engines"];
    ensure!(engines[0]["engine"] == "postgresql" && engines[0]["availability"] == "installable", "{engines}");

    // An agent that never read them does so by itself.
    node.run(Program::new("sh").args(["-c", "rm -rf /var/lib/apt/lists/*"])).await?;
    node.run(Program::new("systemctl").args(["restart", AGENT])).await?;
    wait_until("the agent to read the package sources", DEADLINE, || async {
        let lists = node.run(Program::new("ls").arg("/var/lib/apt/lists")).await?;
        ensure!(lists.contains("_Packages"), "there are {lists:?}");
        Ok(())
    })
    .await?;
    let shown = fleet.online("n1").await?;
    let engines = &shown["inventory"]["engines"];
    ensure!(engines[0]["availability"] == "installable", "{engines}");

    // A machine whose coordinator is away knows who it is, and comes back by itself.
    fleet.coordinator().run(Program::new("systemctl").args(["stop", COORDINATOR])).await?;
    node.reboot().await?;
    ensure!(node.property(AGENT, "ActiveState").await? == "active", "the agent started at boot");
    fleet.coordinator().run(Program::new("systemctl").args(["start", COORDINATOR])).await?;
    fleet.online("n1").await.map(drop)
}

#[tokio::test]
async fn databases_that_agents_installed_outlive_all_but_the_machine_and_return_with_it() -> anyhow::Result<()>
{
    let mut fleet = MachineFleet::start().await?;
    fleet.join(&NODES).await?;
    installed_while_people_watch(&fleet).await?;
    whole(&fleet).await?;
    let uri = fleet.cli(&["cluster", "connection", "orders", "--reveal-password", "--uri"], DEADLINE).await?;
    let uri = uri.trim().to_owned();
    Uri::parse(&uri)?;
    let made = psql(&fleet, &uri, "select count(*) from pg_extension where extname = 'pg_cron'").await?;
    ensure!(made == "1", "the extension is not there");
    psql(&fleet, &uri, "create table t (i int); insert into t values (42)").await?;
    for node in fleet.nodes() {
        nothing_but_the_agent_starts_databases(node).await?;
    }
    no_restart_restarts_a_database(&fleet).await?;
    the_engine_is_upgraded(&fleet, &uri).await?;
    a_machine_is_rebooted_by_its_agent(&fleet).await?;
    machines_bring_their_databases_back(&fleet).await?;
    a_server_of_somebody_else_is_seen(&fleet).await?;
    ensure!(psql(&fleet, &uri, "select i from t").await? == "42", "the row is gone");
    ensure!(psql(&fleet, &uri, "insert into t values (43) returning i").await? == "43", "it takes no writes");

    // Deleting leaves no unit and no data, and the packages.
    fleet.cli(&["cluster", "delete", "orders", "--confirm", "orders"], DEADLINE).await?;
    for node in fleet.nodes() {
        let units = ["list-units", "--all", "--plain", "--no-legend", "holdfast-postgresql-*"];
        let units = node.run(Program::new("systemctl").args(units)).await?;
        ensure!(units.is_empty(), "{} keeps {units}", node.name());
        let data = node.run(Program::new("ls").arg("/var/lib/holdfast/data")).await?;
        ensure!(data.is_empty(), "{} keeps {data}", node.name());
    }
    Ok(())
}

/// The operation says what apt is doing, though nobody is at the machine.
async fn installed_while_people_watch(fleet: &MachineFleet) -> anyhow::Result<()> {
    let create = fleet.cli(&[&CREATE[..], &EXTENSION, &["--detach"]].concat(), DEADLINE).await?;
    let show = ["operation", "show", create.trim()];
    wait_until("what apt says to be shown", DEADLINE, || async {
        let operation = fleet.json(&show).await?;
        let message = operation["steps"][0]["message"].as_str().unwrap_or_default();
        ensure!(["postgresql", "package"].iter().any(|word| message.contains(word)), "it is at {operation}");
        Ok(())
    })
    .await?;
    wait_until("the cluster to be made", DEADLINE, || async {
        let operation = fleet.json(&show).await?;
        ensure!(operation["state"] == "succeeded", "it is at {operation}");
        Ok(())
    })
    .await
}

/// The units are systemd's own and leave nothing that a boot, or anybody else, would start.
async fn nothing_but_the_agent_starts_databases(node: &Machine) -> anyhow::Result<()> {
    let Postmaster { unit, .. } = postmaster(node).await?;
    ensure!(node.property(&unit, "UnitFileState").await? == "transient", "{unit} is a file");
    let path = node.property(&unit, "FragmentPath").await?;
    ensure!(path.starts_with("/run/systemd/transient/"), "{unit} is {path}");
    let group = node.property(&unit, "ControlGroup").await?;
    ensure!(group == format!("/system.slice/{unit}"), "{unit} is part of {group}");
    let cluster = node.run(Program::new("ls").arg("/etc/postgresql")).await?;
    ensure!(cluster.is_empty(), "the packages made a cluster: {cluster}");
    let policy = node.output(Program::new("test").args(["-e", "/usr/sbin/policy-rc.d"])).await?;
    ensure!(!policy.status.success(), "the machine was not given its policy back");
    let audit = node.run(Program::new("dpkg").arg("--audit")).await?;
    ensure!(audit.is_empty(), "packages are not whole: {audit}");

    // As an ordinary server does in its unit: the engine's own user, and no way to more.
    let status =
        node.run(Program::new("cat").arg(format!("/proc/{}/status", postmaster(node).await?.pid))).await?;
    let has =
        |line: &str| status.lines().any(|it| it.split_whitespace().collect::<Vec<_>>().join(" ") == line);
    ensure!(has("NoNewPrivs: 1") && has("CapEff: 0000000000000000"), "the database may too much: {status}");
    Ok(())
}

async fn no_restart_restarts_a_database(fleet: &MachineFleet) -> anyhow::Result<()> {
    let before = postmasters(fleet).await?;
    let systemctl = |arguments: &[&str]| Program::new("systemctl").args(arguments);
    for node in fleet.nodes() {
        let agent = node.property(AGENT, "MainPID").await?;
        node.run(systemctl(&["kill", "--signal=KILL", AGENT])).await?;
        wait_until("systemd to start the agent again", DEADLINE, || async {
            let now = node.property(AGENT, "MainPID").await?;
            ensure!(now != "0" && now != agent, "it is {now}");
            Ok(())
        })
        .await?;
        node.run(systemctl(&["restart", AGENT])).await?;
        node.run(systemctl(&["daemon-reload"])).await?;
    }
    // An upgrade of the package is a restart of the agent.
    let node = &fleet.nodes()[0];
    let agent = node.property(AGENT, "MainPID").await?;
    let upgrade = ["-q", "--yes", "install", "--reinstall", "holdfast-agent"];
    node.run(Program::new("apt-get").args(upgrade).deadline(DEADLINE)).await?;
    ensure!(node.property(AGENT, "MainPID").await? != agent, "the new agent does not run");
    fleet.coordinator().run(systemctl(&["restart", COORDINATOR])).await?;
    whole(fleet).await?;
    fleet.coordinator().run(systemctl(&["kill", "--signal=KILL", COORDINATOR])).await?;
    for name in NODES {
        fleet.online(name).await?;
    }
    whole(fleet).await?;
    let after = postmasters(fleet).await?;
    ensure!(before == after, "a database was restarted: {before:?}, then {after:?}");
    Ok(())
}

/// A newer revision of the server's package, whose program says so: made from the one that the machine has, on the machine.
const NEWER: &str = r#"
set -e
old=$(ls /srv/packages/debian/postgresql-15_*.deb)
work=$(mktemp -d)
dpkg-deb --raw-extract "$old" "$work/root"
version=$(dpkg-deb --field "$old" Version)
sed -i "s/^Version: .*/Version: $version+newer/" "$work/root/DEBIAN/control"
# As long as before, so that the program stays one.
sed -i "s/(Debian $version)/(Newer! $version)/" "$work/root/usr/lib/postgresql/15/bin/postgres"
mkdir -p /srv/newer
dpkg-deb --root-owner-group -Znone --build "$work/root" /srv/newer/postgresql.deb
dpkg-deb --field /srv/newer/postgresql.deb > /srv/newer/Packages
{
    echo "Filename: ./postgresql.deb"
    echo "Size: $(stat --format=%s /srv/newer/postgresql.deb)"
    echo "SHA256: $(sha256sum < /srv/newer/postgresql.deb | cut -d' ' -f1)"
} >> /srv/newer/Packages
echo "deb [trusted=yes] file:/srv/newer ./" > /etc/apt/sources.list.d/newer.list
rm -rf "$work"
"#;

/// As a power cut leaves it: the package unpacked, not configured, and dpkg's note of that not taken over. Nothing but dpkg itself helps.
const CUT: &str = r"
set -e
dpkg --unpack /srv/newer/postgresql.deb
dpkg --status postgresql-15 > /var/lib/dpkg/updates/0001
if apt-get --yes --only-upgrade install postgresql-15; then exit 1; fi
";

/// Package by package, server by server; packages alone restart nobody.
async fn the_engine_is_upgraded(fleet: &MachineFleet, uri: &str) -> anyhow::Result<()> {
    let script = || Program::new("sh").args(["-c", NEWER]).deadline(DEADLINE);
    try_join_all(fleet.nodes().iter().map(|node| node.run(script()))).await?;
    // On one of them somebody else has begun it, and was cut off.
    let [.., last] = fleet.nodes() else { anyhow::bail!("three nodes") };
    last.run(Program::new("sh").args(["-c", CUT])).await?;
    let before = postmasters(fleet).await?;
    fleet.cli(&["cluster", "upgrade", "orders"], DEADLINE).await?;
    let members = fleet.json(&["cluster", "show", "orders"]).await?["members"].clone();
    for member in members.as_array().context("members")? {
        let (runs, installed) = (&member["server_build"], &member["installed_build"]);
        ensure!(runs == installed && runs.to_string().contains("Newer!"), "{member}");
    }
    let after = postmasters(fleet).await?;
    ensure!(before.iter().zip(&after).all(|(before, after)| before != after), "{before:?}, then {after:?}");
    for node in fleet.nodes() {
        nothing_but_the_agent_starts_databases(node).await?;
    }
    // There is nothing left to do, so nothing is done. Not before the new primary knows who could take over.
    wait_until("another upgrade", DEADLINE, || fleet.cli(&["cluster", "upgrade", "orders"], DEADLINE))
        .await?;
    ensure!(postmasters(fleet).await? == after, "a server was restarted for nothing");
    ensure!(psql(fleet, uri, "select i from t").await? == "42", "the row is gone");
    // The first is the primary again, as whoever comes next supposes.
    fleet.cli(&["cluster", "promote", "orders", NODES[0]], DEADLINE).await?;
    whole(fleet).await
}

/// Over systemd, in spite of all that the agent's unit keeps it from, at the time that was set; done once its member is whole again.
async fn a_machine_is_rebooted_by_its_agent(fleet: &MachineFleet) -> anyhow::Result<()> {
    let [.., node] = fleet.nodes() else { anyhow::bail!("three nodes") };
    let before = node.init()?;
    let soon = Timestamp::now() + Duration::from_secs(2);
    fleet.cli(&["node", "reboot", node.name(), "--at", &soon.to_string()], DEADLINE).await?;
    let scheduled = async || {
        let all = fleet.json(&["node", "schedule", "list"]).await?;
        all["schedules"].as_array().map(Vec::len).context("a list")
    };
    ensure!(scheduled().await? == 1, "it is not listed");
    wait_until("the scheduled reboot to be over", DEADLINE, || async {
        ensure!(scheduled().await? == 0, "it is not");
        Ok(())
    })
    .await?;
    ensure!(node.init()? != before, "{} has not booted again", node.name());
    whole(fleet).await
}

/// In order and without, the primary's machine too; the agents need no coordinator for it, and no person.
async fn machines_bring_their_databases_back(fleet: &MachineFleet) -> anyhow::Result<()> {
    let [primary, one, other] = fleet.nodes() else { anyhow::bail!("three nodes") };
    let before = postmaster(primary).await?;
    fleet.coordinator().run(Program::new("systemctl").args(["stop", COORDINATOR])).await?;
    one.cut_power().await?;
    tokio::try_join!(primary.reboot(), one.boot())?;
    for node in [primary, one, other] {
        let now =
            wait_until(format!("the database of {}", node.name()), DEADLINE, || postmaster(node)).await?;
        ensure!(now.unit == before.unit, "it has another name: {now:?}");
    }
    fleet.coordinator().run(Program::new("systemctl").args(["start", COORDINATOR])).await?;
    whole(fleet).await
}

/// Of root's powers the agent keeps the one to see who uses its data, a process of another user and another unit.
async fn a_server_of_somebody_else_is_seen(fleet: &MachineFleet) -> anyhow::Result<()> {
    let [_, _, node] = fleet.nodes() else { anyhow::bail!("three nodes") };
    let Postmaster { unit, pid, .. } = postmaster(node).await?;
    let command = node.run(Program::new("cat").arg(format!("/proc/{pid}/cmdline"))).await?;
    let command: Vec<_> = command.split('\0').filter(|word| !word.is_empty()).map(String::from).collect();
    let systemctl = |verb: &str, unit: &str| Program::new("systemctl").args([verb, unit]);
    node.run(systemctl("stop", AGENT)).await?;
    node.run(systemctl("stop", &unit)).await?;
    let stranger = Program::new("systemd-run").args([
        "--unit=stranger",
        "--uid=postgres",
        "--property=KillSignal=SIGINT",
        "--",
    ]);
    let data = command.iter().skip_while(|word| *word != "-D").nth(1).context("a server names its data")?;
    let stranger = stranger.args(["sh", "-c", "cd \"$0\" && exec \"$@\"", data.as_str()]).args(&command);
    node.run(stranger).await?;
    node.run(systemctl("start", AGENT)).await?;
    wait_until("the agent to see the stranger", DEADLINE, || async {
        let said = node.journal(AGENT).await?;
        ensure!(said.contains("outside of the supervisor"), "it said {said}");
        Ok(())
    })
    .await?;
    ensure!(node.property("stranger.service", "ActiveState").await? == "active", "it was touched");
    node.run(systemctl("stop", "stranger.service")).await?;
    whole(fleet).await?;
    ensure!(postmaster(node).await?.unit == unit, "the agent started its own again");
    Ok(())
}
