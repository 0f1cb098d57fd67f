//! Ourselves.

use anyhow::{Context as _, ensure};

use super::{Keeper, SOON};
use crate::client::Client;
use crate::cluster;
use crate::host::Host;
use crate::network::Network;
use crate::stage::Stage;

pub(super) struct Holdfast {
    stage: Stage,
}

// === impl Holdfast ===

impl Holdfast {
    pub(super) async fn begin(more: &[&str]) -> anyhow::Result<Self> {
        Ok(Self { stage: Stage::set(more).await? })
    }
}

impl Keeper for Holdfast {
    fn network(&self) -> &Network {
        self.stage.fleet.network()
    }

    fn node(&self, name: &str) -> anyhow::Result<&Host> {
        self.stage.fleet.node(name)
    }

    fn others(&self) -> Vec<&Host> {
        let client = self.stage.fleet.node("n4").ok();
        client.into_iter().chain([self.stage.fleet.controller()]).collect()
    }

    fn client(&self) -> &Client {
        &self.stage.client
    }

    async fn whole(&self) -> anyhow::Result<String> {
        let shown = self.stage.fleet.json(["cluster", "show", "orders"]).await?;
        ensure!(shown["state"] == "healthy" && shown["operation_id"].is_null(), "it is {shown}");
        let counted = shown["lease"]["promotable_nodes"].as_array().map(Vec::len);
        ensure!(counted == Some(2) && shown["lease"]["settled"] == true, "it is {shown}");
        let members = cluster::members(&self.stage.fleet).await?;
        let streaming = members.iter().filter(|(_, _, state)| state == "streaming").count();
        ensure!(streaming == 2, "they are {members:?}");
        Ok(shown["primary"].as_str().context("no primary")?.to_owned())
    }

    async fn switch(&self, _from: &str, to: &str) -> anyhow::Result<()> {
        self.stage.fleet.cli(["cluster", "promote", "orders", to])?.deadline(SOON).run().await.map(drop)
    }
}
