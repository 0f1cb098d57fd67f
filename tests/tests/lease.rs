//! Leases on real hosts: PostgreSQL, nftables, a client that writes all the time, and what a primary does when nobody's word
//! reaches it, or its agent is dead or frozen.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use holdfast_tests::cluster::{self, DEADLINE};
use holdfast_tests::fleet::{AGENT, COORDINATOR, Fleet, Uri};
use holdfast_tests::network::Network;
use holdfast_tests::process::Program;
use holdfast_tests::wait::wait_until;
use holdfast_tests::writer::{TABLE, Write, Writer};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::Value;

/// A profile, and its L − M: for so long after a renewal was sent its answer lets the primary serve.
#[derive(Clone, Copy)]
struct Profile {
    name: &'static str,
    served: f64,
}

const DEFAULT: Profile = Profile { name: "default", served: 4.0 };
const FAST: Profile = Profile { name: "fast", served: 2.0 };
/// The client on another member's machine.
const MEMBER: &str = "member";
/// What the issue grants beside it.
const GRACE: f64 = 0.3;

/// A cluster of n1 and n2, where n3 is anybody's machine with two clients that write: one over IPv4, one over IPv6; and a third client on n2.
struct Scene {
    fleet: Fleet,
    uri: Uri,
    writers: Vec<Writer>,
    served: f64,
}

fn now() -> f64 {
    Timestamp::now().as_duration().as_secs_f64()
}

impl Scene {
    async fn set(profile: Profile) -> anyhow::Result<Self> {
        let operators = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut fleet = Fleet::start(Network::new().await?, operators).await?;
        fleet.join_all(&["n1", "n2", "n3"]).await?;
        let create = ["cluster", "create", "orders", "--engine", "postgresql", "--nodes", "n1,n2"];
        let create = create.into_iter().chain(["--lease-profile", profile.name]);
        fleet.cli(create)?.deadline(DEADLINE).run().await?;
        fleet.cli(["access", "set", "orders", "--mode", "open"])?.run().await?;
        let uri = cluster::uri(&fleet).await?;
        let n1 = fleet.node("n1")?.addresses();
        fleet.psql(&uri.only(n1.v4)?, TABLE).await?;
        let mut scene = Self { fleet, uri, writers: Vec::new(), served: profile.served };
        scene.held("coordinator").await?;
        scene.write().await?;
        Ok(scene)
    }

    /// Starts the writers anew, and waits until both write.
    async fn write(&mut self) -> anyhow::Result<()> {
        let n1 = self.fleet.node("n1")?.addresses();
        let mut targets = vec![("v4", self.uri.only(n1.v4)?)];
        targets.extend(n1.v6.map(|v6| anyhow::Ok(("v6", self.uri.at(v6)?))).transpose()?);
        let ask = || self.fleet.psql(&targets[0].1, "select 1");
        wait_until("n1 to let clients in", DEADLINE, ask).await?;
        self.writers.clear();
        // On another member's machine a client is a client too.
        let on_a_member = targets[0].1.clone();
        let begun = now();
        for (name, uri) in targets {
            self.writers.push(Writer::start(self.fleet.node("n3")?, &uri, name)?);
        }
        self.writers.push(Writer::start(self.fleet.node("n2")?, &on_a_member, MEMBER)?);
        wait_until("every client to write", DEADLINE, || async {
            for writer in &self.writers {
                ensure!(writer.last()? > begun, "nothing was acknowledged");
            }
            Ok(())
        })
        .await
    }

    async fn lease(&self) -> anyhow::Result<Value> {
        Ok(self.fleet.json(["cluster", "show", "orders"]).await?["lease"].clone())
    }

    /// Waits until the primary serves by this word, and the newest list of two is settled.
    async fn held(&self, source: &str) -> anyhow::Result<()> {
        wait_until(format!("n1 to hold the lease by the word of the {source}"), DEADLINE, || async {
            let lease = self.lease().await?;
            let settled = lease["settled"] == true && lease["promotable_nodes"] == serde_json::json!(["n2"]);
            ensure!(lease["source"] == source && lease["holder"] == "n1" && settled, "it is {lease}");
            Ok(())
        })
        .await
    }

    /// Waits until all clients are cut, and says that none was acknowledged anything later than it may be after `since`.
    async fn cut(&mut self, since: f64) -> anyhow::Result<()> {
        self.cut_but(since, &[]).await
    }

    /// The same, where no word of it reaches these clients.
    async fn cut_but(&mut self, since: f64, unreached: &[&str]) -> anyhow::Result<()> {
        let writers = &mut self.writers;
        wait_until("every client to be cut off", DEADLINE, || {
            let reached = writers.iter_mut().filter(|writer| !unreached.contains(&writer.name()));
            let open = reached.map(Writer::is_cut).collect::<anyhow::Result<Vec<_>>>();
            std::future::ready(open.and_then(|cut| {
                ensure!(cut.iter().all(|cut| *cut), "they are cut: {cut:?}");
                Ok(())
            }))
        })
        .await?;
        for writer in &self.writers {
            let last = writer.last()?;
            let after = last - since;
            ensure!(after <= self.served + GRACE, "a write was acknowledged {after:.3} s after");
        }
        Ok(())
    }

    /// Waits until all clients were acknowledged something so long after `since`, on the connections that they have.
    async fn goes_on(&self, since: f64, long: f64) -> anyhow::Result<()> {
        wait_until(format!("writes {long:.1} s later"), DEADLINE, || async {
            for writer in &self.writers {
                let after = writer.last()? - since;
                ensure!(after > long, "the last was {after:.1} s after");
            }
            Ok(())
        })
        .await
    }

    /// Waits until the engine on n1 is stopped.
    async fn stopped(&self) -> anyhow::Result<()> {
        let n1 = self.fleet.node("n1")?;
        wait_until("the engine without a lease to be stopped", DEADLINE, || async {
            ensure!(!cluster::has_server(n1)?, "it runs");
            Ok(())
        })
        .await
    }

    /// Nothing that was acknowledged is missing.
    async fn nothing_is_lost(&self, acknowledged: &[Write]) -> anyhow::Result<()> {
        let n1 = self.fleet.node("n1")?.address();
        let ids: Vec<String> = acknowledged.iter().map(|write| write.id.to_string()).collect();
        let sql = format!("select count(*) from written where id in ({})", ids.join(","));
        let found = self.fleet.psql(&self.uri.only(n1)?, &sql).await?;
        ensure!(found.trim() == ids.len().to_string(), "{} of {} are there", found.trim(), ids.len());
        Ok(())
    }

    fn all_acknowledged(&self) -> anyhow::Result<Vec<Write>> {
        let all: anyhow::Result<Vec<_>> = self.writers.iter().map(Writer::acknowledged).collect();
        Ok(all?.concat())
    }

    /// It serves again, with all that it ever acknowledged.
    async fn whole_again(&mut self) -> anyhow::Result<()> {
        let acknowledged = self.all_acknowledged()?;
        self.held("coordinator").await?;
        self.write().await?;
        self.nothing_is_lost(&acknowledged).await
    }
}

/// A gate needs nftables. Left out for ordinary users, visibly.
mod as_root {
    use super::*;

    #[tokio::test]
    async fn a_dead_coordinator_stops_no_write_until_a_promise_is_missing_too() -> anyhow::Result<()> {
        let mut scene = Scene::set(FAST).await?;
        let shown = scene.lease().await?;
        ensure!(shown["failover"]["possible"] == true, "it is {shown}");
        ensure!(shown["failover"]["candidate_node"] == "n2", "it is {shown}");
        // One that is started again at once takes nobody off the list: the primary is never alone for a moment.
        scene.fleet.controller().crash(COORDINATOR).await?;
        scene.held("coordinator").await?;
        let again = scene.lease().await?;
        ensure!(again["list_version"] == shown["list_version"], "it was {shown}, and is {again}");
        scene.fleet.controller().kill(COORDINATOR).await?;
        let died = now();
        scene.goes_on(died, 6.0 * scene.served).await?;

        // The one who has promised is gone too: no extension, the gate shuts, the engine is stopped.
        let promised = now();
        scene.fleet.node("n2")?.kill(AGENT).await?;
        scene.cut(promised).await?;
        scene.stopped().await?;

        // The coordinator's word alone is enough again.
        scene.fleet.controller().release(COORDINATOR).await?;
        scene.fleet.node("n2")?.release(AGENT).await?;
        scene.whole_again().await
    }

    #[tokio::test]
    async fn a_frozen_agent_shuts_its_gate_though_the_engine_runs() -> anyhow::Result<()> {
        let mut scene = Scene::set(FAST).await?;
        let agent = scene.fleet.node("n1")?.service(AGENT)?.context("no agent on n1")?;
        let frozen = now();
        agent.signal(Signal::SIGSTOP)?;
        scene.cut(frozen).await?;
        ensure!(cluster::has_server(scene.fleet.node("n1")?)?, "somebody stopped the engine");
        agent.signal(Signal::SIGCONT)?;
        scene.whole_again().await
    }

    #[tokio::test]
    async fn a_dead_agent_shuts_its_gate_and_the_next_one_opens_it() -> anyhow::Result<()> {
        let mut scene = Scene::set(DEFAULT).await?;
        let killed = now();
        scene.fleet.node("n1")?.kill(AGENT).await?;
        scene.cut(killed).await?;
        ensure!(cluster::has_server(scene.fleet.node("n1")?)?, "somebody stopped the engine");
        scene.fleet.node("n1")?.release(AGENT).await?;
        scene.whole_again().await?;

        // One that is started again at once, before the lease is over, costs nobody a connection.
        scene.fleet.node("n1")?.crash(AGENT).await?;
        let crashed = now();
        scene.goes_on(crashed, 2.0 * scene.served).await
    }

    /// The mutant: with elements that the kernel does not end, the frozen agent's clients write on, and this sees it.
    #[tokio::test]
    async fn without_the_kernels_clock_a_frozen_agent_would_let_writes_in() -> anyhow::Result<()> {
        let scene = Scene::set(FAST).await?;
        let n1 = scene.fleet.node("n1")?;
        let agent = n1.service(AGENT)?.context("no agent on n1")?;
        let frozen = now();
        agent.signal(Signal::SIGSTOP)?;
        let for_ever: String = ["armed_0", "granted_0"]
            .into_iter()
            .map(|set| format!("flush set inet holdfast {set}\nadd element inet holdfast {set} {{ 5432 }}\n"))
            .collect();
        n1.run(Program::new("nft").args(["-f", "-"]).input(for_ever)).await?;
        scene.goes_on(frozen, 2.0 * scene.served).await?;
        agent.signal(Signal::SIGCONT)
    }

    #[tokio::test]
    async fn answers_that_do_not_come_are_no_lease_though_every_request_arrives() -> anyhow::Result<()> {
        let mut scene = Scene::set(FAST).await?;
        let (network, controller) = (scene.fleet.network(), scene.fleet.controller());
        let (n1, n2) = (scene.fleet.node("n1")?, scene.fleet.node("n2")?);
        let deaf = now();
        network.cut(controller, n1).await?;
        scene.goes_on(deaf, 3.0 * scene.served).await?;
        let cut = now();
        network.cut(n2, n1).await?;
        scene.cut_but(cut, &[MEMBER]).await?;
        scene.stopped().await?;
        scene.fleet.network().heal().await?;
        scene.whole_again().await
    }

    #[tokio::test]
    async fn a_primary_that_is_cut_off_from_all_is_fenced_and_comes_back() -> anyhow::Result<()> {
        let mut scene = Scene::set(FAST).await?;
        let n1 = scene.fleet.node("n1")?;
        let cut = now();
        scene.fleet.network().partition(&[n1], &[scene.fleet.node("n2")?, scene.fleet.controller()]).await?;
        scene.cut_but(cut, &[MEMBER]).await?;
        scene.stopped().await?;
        scene.fleet.network().heal().await?;
        scene.whole_again().await?;
        wait_until("the loss and the return to be told", DEADLINE, || async {
            let events = scene.fleet.json(["event", "list"]).await?.to_string();
            ensure!(events.contains("LEASE_LOST") && events.contains("LEASE_REGAINED"), "they are {events}");
            Ok(())
        })
        .await
    }
}
