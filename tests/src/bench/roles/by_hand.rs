//! A person with PostgreSQL's own programs.

use super::{Keeper, Site};
use crate::unmanaged::by_hand::ByHand;

impl Keeper for ByHand {
    fn site(&self) -> Site<'_> {
        Site::unmanaged(&self.servers, &self.client)
    }

    async fn whole(&self) -> anyhow::Result<String> {
        let primary = self.client.last().map_or_else(|| "n1".to_owned(), |ack| ack.node);
        self.servers.is_followed(&primary).await?;
        Ok(primary)
    }

    async fn switch(&self, from: &str, to: &str) -> anyhow::Result<()> {
        Self::switch(self, from, to).await
    }
}
