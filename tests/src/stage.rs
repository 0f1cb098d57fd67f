//! What the tests of changing roles begin with: a cluster of three, and a client of all its members that writes without pause.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};

use crate::client::{self, Client, TABLE};
use crate::cluster::{self, DEADLINE};
use crate::fleet::{AGENT, Fleet, Uri};
use crate::network::Network;
use crate::scene::now;
use crate::wait::wait_until;

const PORT: u16 = 5432;
const ROWS: &str = "select id from numbered";

/// A cluster of n1 and two more, and a client on n4.
#[derive(Debug)]
pub struct Stage {
    pub fleet: Fleet,
    pub client: Client,
    uri: Uri,
}

// === impl Stage ===

impl Stage {
    /// Makes it, with these arguments to its creation, and waits until n1 serves the client.
    ///
    /// # Errors
    ///
    /// When it does not come about.
    pub async fn set(more: &[&str]) -> anyhow::Result<Self> {
        Self::upon(Self::fleet().await?, more).await
    }

    /// The same with all that a member keeps on a disk of so many MiB.
    ///
    /// # Errors
    ///
    /// When it does not come about.
    pub async fn set_on_disks(mib: u32, more: &[&str]) -> anyhow::Result<Self> {
        let fleet = Self::fleet().await?;
        for name in cluster::NODES {
            let host = fleet.node(name)?;
            host.kill(AGENT).await?;
            host.add_disk(&host.state_folder(), mib).await?;
            host.release(AGENT).await?;
        }
        for name in cluster::NODES {
            fleet.online(name).await?;
        }
        Self::upon(fleet, more).await
    }

    async fn fleet() -> anyhow::Result<Fleet> {
        let network = Network::new().await?;
        let mut fleet = Fleet::start(network, SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        fleet.join_all(&["n1", "n2", "n3", "n4"]).await?;
        Ok(fleet)
    }

    async fn upon(fleet: Fleet, more: &[&str]) -> anyhow::Result<Self> {
        let create = ["cluster", "create", "orders", "--engine", "postgresql", "--nodes", "n1,n2,n3"];
        fleet.cli(create.into_iter().chain(more.iter().copied()))?.deadline(DEADLINE).run().await?;
        fleet.cli(["access", "set", "orders", "--mode", "open"])?.run().await?;
        let uri = cluster::uri(&fleet).await?;
        let n1 = fleet.node("n1")?.address();
        let ask = || async { fleet.psql(&uri.only(n1)?, TABLE).await };
        wait_until("n1 to let clients in", DEADLINE, ask).await?;
        let mut members = Vec::new();
        for name in cluster::NODES {
            members.push((name, SocketAddr::new(fleet.node(name)?.address(), PORT)));
        }
        let client = Client::start(fleet.node("n4")?, &uri, &members).await?;
        client.is_served_by("n1", 0.0, DEADLINE).await?;
        Ok(Self { fleet, uri, client })
    }

    /// Waits until all members follow this primary, and it counts on them.
    ///
    /// # Errors
    ///
    /// When they do not, in time.
    pub async fn is_whole_under(&self, primary: &str) -> anyhow::Result<()> {
        wait_until(format!("a whole cluster under {primary}"), DEADLINE, || async {
            let shown = self.fleet.json(["cluster", "show", "orders"]).await?;
            ensure!(shown["primary"] == primary && shown["lease"]["settled"] == true, "it is {shown}");
            let counted = shown["lease"]["promotable_nodes"].as_array().map(Vec::len);
            ensure!(counted == Some(2), "it counts on {counted:?}");
            for (node, role, state) in cluster::members(&self.fleet).await? {
                let expected =
                    if node == primary { ("primary", "running") } else { ("replica", "streaming") };
                ensure!((role.as_str(), state.as_str()) == expected, "{node} is a {role}, {state}");
            }
            Ok(())
        })
        .await
    }

    /// The primary and its term, if all follow it and it counts on them, and nothing is under way.
    ///
    /// # Errors
    ///
    /// When it is not so.
    pub async fn whole(&self) -> anyhow::Result<(String, u64)> {
        let shown = self.fleet.json(["cluster", "show", "orders"]).await?;
        let counted = shown["lease"]["promotable_nodes"].as_array().map(Vec::len);
        ensure!(shown["state"] == "healthy" && shown["operation_id"].is_null(), "it is {shown}");
        ensure!(counted == Some(2) && shown["lease"]["settled"] == true, "it is {shown}");
        ensure!(shown["durability"] != "quorum" || shown["synchronous_count"] == 1, "it is {shown}");
        let members = cluster::members(&self.fleet).await?;
        let streaming = members.iter().filter(|(_, _, state)| state == "streaming").count();
        ensure!(members.len() == cluster::NODES.len() && streaming == 2, "they are {members:?}");
        let primary = shown["primary"].as_str().with_context(|| format!("no primary in {shown}"))?;
        Ok((primary.to_owned(), shown["term"].as_u64().unwrap_or_default()))
    }

    /// Promotes it by plan, and waits until it serves and all is whole.
    ///
    /// # Errors
    ///
    /// When that fails, or is not so in time.
    pub async fn promote(&self, target: &str) -> anyhow::Result<()> {
        let begun = now();
        let promote = ["cluster", "promote", "orders", target];
        self.fleet.cli(promote)?.deadline(DEADLINE).run().await?;
        self.client.is_served_by(target, begun, DEADLINE).await?;
        self.is_whole_under(target).await
    }

    /// Waits until the client is served by another member than n1, by what it sent after `since`. Gives its name.
    ///
    /// # Errors
    ///
    /// When it is not, in time.
    pub async fn successor(&self, since: f64) -> anyhow::Result<String> {
        let shown = wait_until("another primary", DEADLINE, || async {
            let shown = self.fleet.json(["cluster", "show", "orders"]).await?;
            ensure!(shown["primary"] == "n2" || shown["primary"] == "n3", "it is {shown}");
            Ok(shown)
        });
        let primary = shown.await?["primary"].as_str().unwrap_or_default().to_owned();
        self.client.is_served_by(&primary, since, DEADLINE).await?;
        Ok(primary)
    }

    /// Waits until an event with this reason is told, and gives its message.
    ///
    /// # Errors
    ///
    /// When there is none, in time.
    pub async fn told(&self, reason: &str) -> anyhow::Result<String> {
        wait_until(format!("{reason} to be told"), DEADLINE, || async {
            let listed = self.fleet.json(["event", "list"]).await?;
            let told =
                listed["events"].as_array().into_iter().flatten().find(|event| event["reason"] == reason);
            let told = told.with_context(|| format!("it is not among {listed}"))?;
            Ok(told["message"].as_str().unwrap_or_default().to_owned())
        })
        .await
    }

    /// When the members' servers were started, as they say themselves.
    ///
    /// # Errors
    ///
    /// When one does not say.
    pub async fn started(&self) -> anyhow::Result<Vec<f64>> {
        let mut all = Vec::new();
        for name in cluster::NODES {
            let uri = self.uri.only(self.fleet.node(name)?.address())?;
            let started = self.fleet.psql(&uri, "select extract(epoch from pg_postmaster_start_time())");
            all.push(started.await?.trim().parse()?);
        }
        Ok(all)
    }

    /// What this member answers to a query, without the line's end.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn ask(&self, node: &str, query: &str) -> anyhow::Result<String> {
        let uri = self.uri.only(self.fleet.node(node)?.address())?;
        Ok(self.fleet.psql(&uri, query).await?.trim().to_owned())
    }

    /// Checks that this server has every acknowledged row.
    ///
    /// # Errors
    ///
    /// When one is missing.
    pub async fn nothing_is_lost(&self, primary: &str) -> anyhow::Result<()> {
        let acknowledged = self.client.acknowledged();
        client::nothing_is_missing(&acknowledged, &self.ask(primary, ROWS).await?)
    }

    /// How many acknowledged rows this server has not.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub async fn lost(&self, primary: &str) -> anyhow::Result<usize> {
        let acknowledged = self.client.acknowledged();
        Ok(client::missing(&acknowledged, &self.ask(primary, ROWS).await?)?.len())
    }
}
