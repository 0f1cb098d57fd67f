//! The way back: what was declared before holds again, first in the record, then on the members, as far as they can be reached.

use std::time::Duration;

use holdfast_common::role::Durability;
use serde_json::json;

use super::super::elect::served;
use super::super::promote::Afterwards;
use super::super::steps::observe;
use super::super::{Means, promote, quorum};
use super::{Set, waiting};
use crate::operation::procedure::{Context, Error, Next};

/// How long members are waited for that should go by the old parameters again: one that does not is told, and keeps nobody waiting.
pub(super) const RETURN_TIME: Duration = Duration::from_secs(30);

impl Set {
    pub(super) async fn put_back(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let Means { records, leases, .. } = ctx.means();
        records.update(&self.cluster, |cluster| Ok(self.from.record(cluster))).await?;
        if (self.from.durability, self.to.durability) == (Durability::Async, Durability::Quorum) {
            quorum::give_up(ctx, &self.cluster).await?;
        }
        // Where it was stopped.
        leases.resume(self.cluster.id);
        let left = match served(ctx, &self.cluster, RETURN_TIME).await {
            Ok(_) => self.bring_back(ctx).await,
            // Whether it does is its own matter from here: one that is gone must not keep a failover away.
            Err(why) => vec![why.failure().message.clone()],
        };
        Ok(Next::done(json!({ "cluster": self.cluster.name, "left": left })))
    }

    /// Restarts those that have begun to go by the new parameters. What could not be done, in words.
    async fn bring_back(&self, ctx: &Context<Means>) -> Vec<String> {
        let means = ctx.means();
        let mut left = Vec::new();
        if self.from.parameters == self.to.parameters && self.retune.is_none() {
            return left;
        }
        let Ok(cluster) = means.records.get(&self.cluster).await else { return left };
        left.extend(self.tune_back(ctx, &cluster).await);
        let told = observe(ctx, &cluster, RETURN_TIME, |_| {
            let late = cluster.members.iter().find(|member| {
                let goes_by = means.nodes.converged(member.node_id, cluster.id);
                goes_by.is_none_or(|it| it.parameters != cluster.parameters)
            })?;
            Some(format!("{} does not go by the old parameters yet", late.node_name))
        });
        left.extend(told.await.err().map(|why| why.failure().message.clone()));
        // The primary first: what it gives back may be what a replica must not be without.
        if !waiting(means, &cluster, self.primary.node).is_empty() {
            left.extend(self.primary_back(ctx).await.err().map(|why| why.failure().message.clone()));
        }
        for at in 0..self.replicas.len() {
            left.extend(self.lower(ctx, at).await.err().map(|why| why.failure().message.clone()));
        }
        left
    }

    /// It has started with the new ones, though that was not known, or came too late.
    async fn primary_back(&self, ctx: &Context<Means>) -> Result<(), Error> {
        let primary = (self.primary.node, self.led(ctx).await?.term);
        promote::checkpoint(ctx, &self.cluster, primary).await?;
        let stopped = promote::stop(ctx, &self.cluster, primary, Afterwards::ItServesAgain).await;
        let serves = self.serve(ctx).await;
        stopped.and(serves)
    }
}
