//! What the tests of leases begin with: a cluster, clients that write to its primary all the time, and what must hold of them.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cluster::{self, DEADLINE};
use crate::fleet::{Fleet, Uri, psql};
use crate::host::Host;
use crate::network::Network;
use crate::wait::wait_until;
use crate::writer::{TABLE, Write, Writer};

/// A profile: its L, and its L − M, for which after a renewal was sent its answer lets the primary serve. In seconds.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    name: &'static str,
    lease: f64,
    served: f64,
}

pub const DEFAULT: Profile = Profile { name: "default", lease: 5.0, served: 4.0 };
pub const FAST: Profile = Profile { name: "fast", lease: 2.5, served: 2.0 };
/// The client on another member's machine.
pub const MEMBER: &str = "member";
/// What the issue grants beside it.
pub const GRACE: f64 = 0.3;

/// A cluster whose primary is n1, and anybody's machine with two clients that write: one over IPv4, one over IPv6; a third
/// client on n2; and one with a request that takes for ever.
#[derive(Debug)]
pub struct Scene {
    pub fleet: Fleet,
    pub lease: f64,
    pub served: f64,
    uri: Uri,
    writers: Vec<Writer>,
    waiting: Option<Writer>,
    replicas: &'static [&'static str],
    outside: &'static str,
}

/// The wall clock's time, as the server tells it of each write.
#[must_use]
pub fn now() -> f64 {
    Timestamp::now().as_duration().as_secs_f64()
}

// === impl Scene ===

impl Scene {
    /// Of n1 and n2, in async mode.
    ///
    /// # Errors
    ///
    /// When it does not come about.
    pub async fn set(profile: Profile) -> anyhow::Result<Self> {
        Self::of(profile, &["n1", "n2", "n3"], &["--nodes", "n1,n2"]).await
    }

    /// Of n1, n2 and n3, in quorum mode.
    ///
    /// # Errors
    ///
    /// When it does not come about.
    pub async fn set_quorum(profile: Profile) -> anyhow::Result<Self> {
        let arguments = ["--nodes", "n1,n2,n3", "--durability", "quorum"];
        Self::of(profile, &["n1", "n2", "n3", "n4"], &arguments).await
    }

    /// The last of the nodes is nobody's member, the first is the primary.
    async fn of(
        profile: Profile,
        nodes: &'static [&'static str],
        arguments: &[&'static str],
    ) -> anyhow::Result<Self> {
        let operators = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut fleet = Fleet::start(Network::new().await?, operators).await?;
        fleet.join_all(nodes).await?;
        let create = ["cluster", "create", "orders", "--engine", "postgresql"];
        let create = create.into_iter().chain(["--lease-profile", profile.name]);
        fleet.cli(create.chain(arguments.iter().copied()))?.deadline(DEADLINE).run().await?;
        // What becomes of the primary itself is looked at; who could take its place does not.
        fleet.cli(["cluster", "pause", "orders", "--reason", "a test of leases"])?.run().await?;
        fleet.cli(["access", "set", "orders", "--mode", "open"])?.run().await?;
        let uri = cluster::uri(&fleet).await?;
        let n1 = fleet.node("n1")?.addresses();
        fleet.psql(&uri.only(n1.v4)?, TABLE).await?;
        let (outside, members) = nodes.split_last().context("no nodes")?;
        let Profile { name: _, lease, served } = profile;
        let (replicas, writers, waiting) = (&members[1..], Vec::new(), None);
        let mut scene = Self { fleet, lease, served, uri, writers, waiting, replicas, outside };
        scene.held("coordinator").await?;
        scene.write().await?;
        Ok(scene)
    }

    /// The primary's host.
    ///
    /// # Errors
    ///
    /// Never, once the scene is set.
    pub fn primary(&self) -> anyhow::Result<&Host> {
        self.fleet.node("n1")
    }

    /// Starts the writers anew, and waits until both write.
    ///
    /// # Errors
    ///
    /// When one does not, in time.
    pub async fn write(&mut self) -> anyhow::Result<()> {
        let n1 = self.fleet.node("n1")?.addresses();
        let mut targets = vec![("v4", self.uri.only(n1.v4)?)];
        targets.extend(n1.v6.map(|v6| anyhow::Ok(("v6", self.uri.at(v6)?))).transpose()?);
        let outside = self.fleet.node(self.outside)?;
        for (_, uri) in &targets {
            // From there: the controller is let in by any rules.
            wait_until("n1 to let clients in", DEADLINE, || psql(outside, uri, "select 1")).await?;
        }
        // Before the new ones: the old ones take their password files with them, which have the same names.
        self.writers.clear();
        self.waiting = None;
        // On another member's machine a client is a client too.
        let on_a_member = targets[0].1.clone();
        let begun = now();
        self.waiting = Some(Writer::waiting(outside, &on_a_member, "waiting")?);
        for (name, uri) in targets {
            self.writers.push(Writer::start(outside, &uri, name)?);
        }
        self.writers.push(Writer::start(self.fleet.node("n2")?, &on_a_member, MEMBER)?);
        wait_until("every client to write", DEADLINE, || async {
            for writer in &self.writers {
                let (name, last) = (writer.name(), writer.last()?);
                ensure!(last > begun, "nothing was acknowledged to {name}, which said: {}", writer.said()?);
            }
            Ok(())
        })
        .await?;
        let asks =
            "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
        wait_until("the client that waits to have asked", DEADLINE, || async {
            let asked = self.fleet.psql(&on_a_member, asks).await?;
            ensure!(asked.trim() != "0", "it has not");
            Ok(())
        })
        .await
    }

    /// What is shown of the lease.
    ///
    /// # Errors
    ///
    /// When the coordinator does not say.
    pub async fn shown(&self) -> anyhow::Result<Value> {
        Ok(self.fleet.json(["cluster", "show", "orders"]).await?["lease"].clone())
    }

    /// Waits until the primary serves by this word, and the newest list of all members is settled.
    ///
    /// # Errors
    ///
    /// When it does not, in time.
    pub async fn held(&self, source: &str) -> anyhow::Result<()> {
        wait_until(format!("n1 to hold the lease by the word of the {source}"), DEADLINE, || async {
            let lease = self.shown().await?;
            let mut listed: Vec<_> = lease["promotable_nodes"].as_array().into_iter().flatten().collect();
            listed.sort_by_key(|node| node.as_str());
            let settled = lease["settled"] == true && json!(listed) == json!(self.replicas);
            ensure!(lease["source"] == source && lease["holder"] == "n1" && settled, "it is {lease}");
            Ok(())
        })
        .await
    }

    /// Waits until all clients are cut, and says that none was acknowledged anything later than it may be after `since`.
    ///
    /// # Errors
    ///
    /// When one is not in time, or was acknowledged something later.
    pub async fn cut(&mut self, since: f64) -> anyhow::Result<()> {
        self.cut_but(since, &[]).await
    }

    /// The same, where no word of it reaches these clients.
    ///
    /// # Errors
    ///
    /// When one is not in time, or was acknowledged something later.
    pub async fn cut_but(&mut self, since: f64, unreached: &[&str]) -> anyhow::Result<()> {
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
        self.nothing_after(since + self.served)
    }

    /// No client was acknowledged anything later than it may be after its leave ended.
    ///
    /// # Errors
    ///
    /// When one was.
    pub fn nothing_after(&self, ended: f64) -> anyhow::Result<()> {
        for (name, last) in self.last_writes()? {
            let after = last - ended;
            ensure!(after <= GRACE, "{name} was acknowledged a write {after:.3} s after the lease");
        }
        Ok(())
    }

    /// Waits until all clients were acknowledged something so long after `since`, on the connections that they have.
    ///
    /// # Errors
    ///
    /// When one was not, in time.
    pub async fn goes_on(&self, since: f64, long: f64) -> anyhow::Result<()> {
        wait_until(format!("writes {long:.1} s later"), DEADLINE, || async {
            for writer in &self.writers {
                let after = writer.last()? - since;
                ensure!(after > long, "the last was {after:.1} s after");
            }
            Ok(())
        })
        .await
    }

    /// Each client, and when the last write was made that was acknowledged to it.
    ///
    /// # Errors
    ///
    /// When their logs cannot be read.
    pub fn last_writes(&self) -> anyhow::Result<Vec<(&str, f64)>> {
        self.writers.iter().map(|writer| Ok((writer.name(), writer.last()?))).collect()
    }

    /// Waits until the engine on n1 is stopped, and whoever waits for an answer of it is told.
    ///
    /// # Errors
    ///
    /// When it is not, in time, or one is left waiting.
    pub async fn stopped(&mut self) -> anyhow::Result<()> {
        let n1 = self.fleet.node("n1")?;
        wait_until("the engine without a lease to be stopped", DEADLINE, || async {
            ensure!(!cluster::has_server(n1)?, "it runs");
            Ok(())
        })
        .await?;
        let waiting = self.waiting.as_mut().context("nobody waits")?;
        wait_until("the client that waits for an answer to be told", DEADLINE, || {
            let cut = waiting.is_cut();
            std::future::ready(cut.and_then(|cut| {
                ensure!(cut, "it waits");
                Ok(())
            }))
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
    ///
    /// # Errors
    ///
    /// When it does not, or something is missing.
    pub async fn whole_again(&mut self) -> anyhow::Result<()> {
        let acknowledged = self.all_acknowledged()?;
        self.held("coordinator").await?;
        self.write().await?;
        self.nothing_is_lost(&acknowledged).await
    }
}
