//! What load balancers are told of a node, and that HAProxy and PgBouncer, set up as the documentation says, follow it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use holdfast_tests::cluster::{self, DEADLINE, NODES};
use holdfast_tests::fleet::{AGENT, Fleet, Uri};
use holdfast_tests::host::Host;
use holdfast_tests::network::Network;
use holdfast_tests::process::{Program, Running};
use holdfast_tests::scene::{GRACE, now};
use holdfast_tests::wait::wait_until;
use holdfast_tests::writer::{TABLE, Writer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What the documentation tells people to use, to the letter.
const HAPROXY: &str = include_str!("../../docs/examples/haproxy.cfg");
const PGBOUNCER: &str = include_str!("../../docs/examples/pgbouncer.ini");
/// HAProxy's ports, and PgBouncer's, as said there; and the agent's.
const WRITES: u16 = 5000;
const READS: u16 = 5001;
const POOLED: u16 = 6432;
const PORT: u16 = 7483;
/// For how long the profile `fast` lets a primary serve without an answer, in seconds.
const SERVED: f64 = 2.0;
const SOON: Duration = Duration::from_secs(3);
/// A server's own address, and whether it is a replica.
const WHO: &str = "select host(inet_server_addr()), pg_is_in_recovery()";

/// Status and body of a path, as `from` is told by the agent at `to`.
async fn ask(from: &Host, to: IpAddr, path: &str) -> anyhow::Result<(u16, Value)> {
    let mut connection = from.connect(SocketAddr::new(to, PORT), SOON).await?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut said = String::new();
    tokio::time::timeout(SOON, connection.read_to_string(&mut said)).await.context("no answer")??;
    let (head, body) = said.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {said}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("no status: {said}"))?;
    Ok((status, serde_json::from_str(body).with_context(|| format!("no JSON: {said}"))?))
}

/// Waits until the agent at `to` gives these answers.
async fn answers(from: &Host, to: IpAddr, expected: &[(&str, u16)]) -> anyhow::Result<()> {
    wait_until(format!("{to} to answer {expected:?}"), DEADLINE, || async {
        for (path, expected) in expected {
            let (status, body) = ask(from, to, path).await?;
            ensure!(status == *expected, "{path} is {status}: {body}");
        }
        Ok(())
    })
    .await
}

const OF_A_PRIMARY: [(&str, u16); 10] = [
    ("/", 200),
    ("/primary", 200),
    ("/read-write", 200),
    ("/replica", 503),
    ("/read-only", 200),
    ("/health", 200),
    ("/liveness", 200),
    ("/clusters/orders/primary", 200),
    ("/clusters/other/primary", 404),
    ("/metrics", 404),
];
const OF_A_REPLICA: [(&str, u16); 7] = [
    ("/primary", 503),
    ("/replica", 200),
    ("/replica?lag=10MB", 200),
    ("/read-only", 200),
    ("/readiness", 200),
    ("/clusters/orders/replica", 200),
    ("/clusters/orders/primary", 503),
];

/// A host that is no node, with HAProxy and PgBouncer of the documentation.
struct Balancer {
    host: Host,
    uri: Uri,
    running: Vec<Running>,
}

// === impl Balancer ===

impl Balancer {
    async fn start(fleet: &Fleet, uri: Uri) -> anyhow::Result<Self> {
        let host = fleet.network().host("lb").await?;
        fleet.cli(["access", "add", "orders", &host.address().to_string()])?.run().await?;
        for (name, number) in NODES.iter().zip(1_u8..) {
            let documented = IpAddr::from(Ipv4Addr::new(203, 0, 113, number));
            ensure!(
                fleet.node(name)?.address() == documented,
                "{name} is not where the documentation has it"
            );
        }
        let connection = fleet.json(["cluster", "connection", "orders"]).await?;
        let bundle = connection["trust_bundle"].as_str().context("no trust bundle")?;
        for (text, name) in [
            (HAPROXY, "haproxy/haproxy.cfg"),
            (PGBOUNCER, "pgbouncer/pgbouncer.ini"),
            (bundle, "pgbouncer/holdfast-ca.pem"),
            (&uri.as_userlist(), "pgbouncer/userlist.txt"),
        ] {
            let install = Program::new("install").args(["-D", "-o", "postgres", "-m", "600", "/dev/stdin"]);
            host.run(install.arg(format!("/etc/{name}")).input(text)).await?;
        }
        let haproxy = Program::new("haproxy").args(["-db", "-f", "/etc/haproxy/haproxy.cfg"]);
        let pgbouncer = Program::new("pgbouncer").args(["-u", "postgres", "/etc/pgbouncer/pgbouncer.ini"]);
        let running = vec![host.start(haproxy, "haproxy")?, host.start(pgbouncer, "pgbouncer")?];
        Ok(Self { host, uri, running })
    }

    fn at(&self, port: u16) -> Uri {
        self.uri.through(SocketAddr::new(self.host.address(), port))
    }

    /// Who answers a client on this machine by PgBouncer.
    async fn pooled(&self, database: &str) -> anyhow::Result<String> {
        let file = self.host.folder().join("pgpass");
        self.uri.write_passwords(&file)?;
        let psql = Program::new("psql").args(["--no-psqlrc", "--no-password", "-qAt", "-c", WHO]);
        let psql = psql.args(["-h", "127.0.0.1", "-p", &POOLED.to_string(), "-U", "app", "-d", database]);
        self.host.run(psql.env("PGPASSFILE", &file).env("PGCONNECT_TIMEOUT", "5")).await
    }

    /// Waits until all ways lead where they should, while `primary` is one.
    async fn leads_to(&self, fleet: &Fleet, primary: IpAddr) -> anyhow::Result<()> {
        wait_until(format!("clients of HAProxy and PgBouncer to reach {primary}"), DEADLINE, || async {
            let writes = fleet.psql(&self.at(WRITES), WHO).await?;
            ensure!(writes.trim() == format!("{primary}|f"), "writes go to {writes}");
            let reads = fleet.psql(&self.at(READS), WHO).await?;
            ensure!(reads.trim().ends_with("|t") && !reads.starts_with(&format!("{primary}|")), "{reads}");
            let pooled = self.pooled("app").await?;
            ensure!(pooled.trim() == format!("{primary}|f"), "pooled writes go to {pooled}");
            let pooled = self.pooled("app_readonly").await?;
            ensure!(pooled.trim().ends_with("|t"), "pooled reads go to {pooled}");
            Ok(())
        })
        .await
    }

    /// Waits until a client finds no primary.
    async fn leads_nowhere(&self, fleet: &Fleet) -> anyhow::Result<()> {
        wait_until("HAProxy to know no primary", DEADLINE, || async {
            let reached = fleet.psql(&self.at(WRITES), WHO).await;
            ensure!(reached.is_err(), "there is {reached:?}");
            Ok(())
        })
        .await
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.running.iter_mut().for_each(Running::kill);
    }
}

/// Cuts need root, and a gate needs nftables: left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn load_balancers_find_the_primary_and_lose_it_with_its_gate() -> anyhow::Result<()> {
        let fleet = cluster::fleet().await?;
        let create = cluster::creation(&fleet, &["--lease-profile", "fast"]);
        fleet.cli(create)?.deadline(DEADLINE).run().await?;
        let uri = cluster::uri(&fleet).await?;
        let [n1, n2, n3] = [fleet.node("n1")?, fleet.node("n2")?, fleet.node("n3")?];
        fleet.psql(&uri.only(n1.address())?, TABLE).await?;

        let balancer = Balancer::start(&fleet, uri).await?;
        answers(&balancer.host, n1.address(), &OF_A_PRIMARY).await?;
        for replica in [n2, n3] {
            answers(&balancer.host, replica.address(), &OF_A_REPLICA).await?;
        }
        let (_, body) = ask(&balancer.host, n1.address(), "/primary").await?;
        for (key, expected) in
            [("state", json!("running")), ("role", json!("primary")), ("cluster", json!("orders"))]
        {
            ensure!(body[key] == expected, "{key}: {body}");
        }
        ensure!(body["timeline"] == 1 && body["xlog"]["location"].as_u64() > Some(0), "it is {body}");
        ensure!(body["server_version"].as_u64() > Some(130_000), "it is {body}");
        balancer.leads_to(&fleet, n1.address()).await?;

        // Cut off from all that could give it a lease, though not from HAProxy.
        let mut writer = Writer::start(fleet.controller(), &balancer.at(WRITES), "balanced")?;
        wait_until("a client of HAProxy to write", DEADLINE, || async {
            ensure!(writer.last()? > 0.0, "nothing was acknowledged");
            Ok(())
        })
        .await?;
        // Nobody is to take its place meanwhile.
        fleet.cli(["cluster", "pause", "orders", "--reason", "a test of load balancers"])?.run().await?;
        let cut = now();
        fleet.network().partition(&[n1], &[n2, n3, fleet.controller()]).await?;
        let mut yes = cut;
        let last = loop {
            let asked = now();
            let (status, body) = ask(&balancer.host, n1.address(), "/primary").await?;
            match status {
                200 => yes = asked,
                503 => break body,
                other => anyhow::bail!("{other}: {body}"),
            }
            ensure!(asked - cut < DEADLINE.as_secs_f64(), "it still says that it is primary");
        };
        ensure!(yes - cut <= SERVED + GRACE, "it said yes {:.3} s after the cut", yes - cut);
        ensure!(
            last["error"].as_str().is_some_and(|error| !error.is_empty()),
            "it says no, and not why: {last}"
        );
        balancer.leads_nowhere(&fleet).await?;
        wait_until("the client's connection to be cut", DEADLINE, || {
            let cut = writer.is_cut();
            std::future::ready(cut.and_then(|cut| {
                ensure!(cut, "it is open");
                Ok(())
            }))
        })
        .await?;
        ensure!(writer.last()? - cut <= SERVED + GRACE, "a write was acknowledged without a lease");

        fleet.network().heal().await?;
        answers(&balancer.host, n1.address(), &OF_A_PRIMARY).await?;
        balancer.leads_to(&fleet, n1.address()).await?;

        // Without its agent nobody answers for it.
        n1.kill(AGENT).await?;
        ensure!(ask(&balancer.host, n1.address(), "/primary").await.is_err(), "somebody answers");
        balancer.leads_nowhere(&fleet).await?;
        n1.release(AGENT).await?;
        answers(&balancer.host, n1.address(), &OF_A_PRIMARY).await?;
        balancer.leads_to(&fleet, n1.address()).await
    }
}

#[tokio::test]
async fn a_node_without_a_cluster_says_so_and_one_that_cannot_listen_tells_it() -> anyhow::Result<()> {
    let operators = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut fleet = Fleet::start(Network::new().await?, operators).await?;
    fleet.join_all(&["n1"]).await?;
    let (n1, client) = (fleet.node("n1")?, fleet.controller());
    let of_nobody = [("/liveness", 200), ("/health", 503), ("/primary", 503), ("/replica", 503)];
    answers(client, n1.address(), &of_nobody).await?;

    n1.kill(AGENT).await?;
    let rival = n1.listen(SocketAddr::new(n1.address(), PORT)).await?;
    n1.release(AGENT).await?;
    wait_until("the agent to say that it cannot answer load balancers", DEADLINE, || async {
        let events = fleet.json(["event", "list"]).await?.to_string();
        ensure!(events.contains("HEALTH_NOT_SERVED") && events.contains("7483"), "they are {events}");
        Ok(())
    })
    .await?;
    drop(rival);
    answers(client, n1.address(), &of_nobody).await
}
