//! Ourselves.

use super::{Keeper, SOON, Site};
use crate::fleet::Fleet;
use crate::stage::Stage;

pub(in crate::bench) struct Holdfast {
    stage: Stage,
}

// === impl Holdfast ===

impl Holdfast {
    pub(in crate::bench) async fn begin(more: &[&str]) -> anyhow::Result<Self> {
        Ok(Self { stage: Stage::set(more).await? })
    }

    pub(in crate::bench) fn fleet(&self) -> &Fleet {
        &self.stage.fleet
    }
}

impl Keeper for Holdfast {
    fn site(&self) -> Site<'_> {
        let Stage { fleet, client, .. } = &self.stage;
        Site { network: fleet.network(), controller: fleet.controller(), nodes: fleet.nodes(), client }
    }

    async fn whole(&self) -> anyhow::Result<String> {
        Ok(self.stage.whole().await?.0)
    }

    async fn switch(&self, _from: &str, to: &str) -> anyhow::Result<()> {
        self.stage.fleet.cli(["cluster", "promote", "orders", to])?.deadline(SOON).run().await.map(drop)
    }
}
