//! Another lease profile for a living cluster. At no time does the primary serve for longer by one answer than anybody waits for that.
//!
//! ```text
//!  widen: coordinator and replicas wait by the more patient of both ─► profile: the primary goes by the new one ─► narrow: nobody waits longer
//! ```
//! A primary's time counts from the sending of its request, and is armed then: so what it asked before is answered by what it went
//! by before. What was granted or promised stays so for as long as it was said. A step that fails leaves the more patient one with
//! those that wait, which only makes a failover later; the next change of the cluster takes it from there.
//!
//! The replicas take the new one over with the primary: one that had not, and were promoted later, would serve by the old one while
//! the others wait by the new one.

use holdfast_common::assignment::MemberAssignment;

use super::super::Means;
use super::super::steps::{CONVERGE_TIME, observe};
use super::Set;
use crate::cluster::{Cluster, more_patient};
use crate::operation::procedure::{Context, Error};

impl Set {
    pub(super) async fn widen(&self, ctx: &Context<Means>) -> Result<(), Error> {
        let Means { records, leases, .. } = ctx.means();
        let to = self.to.lease_profile;
        let widest = |it: &Cluster| more_patient(more_patient(it.patience(), it.lease_profile), to);
        let change = |it: Cluster| Cluster { lease_patience: Some(widest(&it)), ..it };
        let told = records.update(&self.cluster, |it| Ok(change(it))).await?;
        leases.at_least(told.id, told.patience());
        let goes_by = |it: &MemberAssignment| it.patience == told.lease_patience;
        converged(ctx, &told, goes_by).await
    }

    pub(super) async fn profile(&self, ctx: &Context<Means>) -> Result<(), Error> {
        let Means { records, leases, .. } = ctx.means();
        let to = self.to.lease_profile;
        let led = self.led(ctx).await?;
        // A coordinator that was restarted since knows it from the record alone.
        leases.at_least(led.id, led.patience());
        let told = records.update(&self.cluster, |it| Ok(Cluster { lease_profile: to, ..it })).await?;
        converged(ctx, &told, |it| it.profile == to).await?;
        // What it was given by the old one is over before anybody waits for less.
        if more_patient(self.from.lease_profile, to) != to {
            ctx.say("waiting until the last lease by the old profile is over");
            tokio::time::sleep(told.patience().timings().remembered()).await;
        }
        Ok(())
    }

    pub(super) async fn narrow(&self, ctx: &Context<Means>) -> Result<(), Error> {
        let told = self.no_patience(ctx).await?;
        converged(ctx, &told, |it| it.patience.is_none()).await
    }

    /// A primary that was never told of the new one: nobody need be more patient.
    pub(super) async fn leave_profile(&self, ctx: &Context<Means>) -> Result<(), Error> {
        let now = ctx.means().records.get(&self.cluster).await?;
        let from = self.from.lease_profile;
        if now.lease_profile == from && from != self.to.lease_profile && self.patience.is_none() {
            self.no_patience(ctx).await?;
        }
        Ok(())
    }

    async fn no_patience(&self, ctx: &Context<Means>) -> Result<Cluster, Error> {
        let Means { records, leases, .. } = ctx.means();
        let told = records.update(&self.cluster, |it| Ok(Cluster { lease_patience: None, ..it })).await?;
        // Not less, even if somebody still goes by what the record was before all this.
        leases.at_least(told.id, told.lease_profile);
        Ok(told)
    }
}

/// Waits until all members go by what they were told.
async fn converged(
    ctx: &Context<Means>,
    told: &Cluster,
    goes_by: impl Fn(&MemberAssignment) -> bool,
) -> Result<(), Error> {
    let nodes = &ctx.means().nodes;
    observe(ctx, told, CONVERGE_TIME, |_| {
        let late = told.members.iter().find(|member| {
            let assigned = nodes.converged(member.node_id, told.id);
            !assigned.is_some_and(|it| goes_by(&it))
        })?;
        Some(format!("{} does not go by its lease profile yet", late.node_name))
    })
    .await
}
