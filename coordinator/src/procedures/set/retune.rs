//! Members decide anew by what of their machines their settings go, each on its own node; and the way back to what they had.
//!
//! The nodes write the settings by their own rounds, as they write all that is declared; only the decision is a command.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_common::budget::Budget;
use holdfast_common::command::{Payload, RetuneMember, Success};
use holdfast_common::id::NodeId;
use serde::{Deserialize, Serialize};

use super::super::Means;
use super::super::steps::{CONVERGE_TIME, Order, call_all, observe, unexpected};
use super::back::RETURN_TIME;
use super::{Set, waiting};
use crate::cluster::{Cluster, Member};
use crate::operation::procedure::{Context, Error};

/// For a file that is written.
const TUNE_TIME: Duration = Duration::from_secs(60);

/// What each member's settings went by before; those that are not named stay as they become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retune {
    pub kept: BTreeMap<NodeId, Budget>,
}

impl Set {
    /// Whether a server waits for a restart by it.
    pub(super) async fn decide_anew(&self, ctx: &Context<Means>) -> Result<bool, Error> {
        let cluster = self.led(ctx).await?;
        let members: Vec<_> = cluster.members.iter().map(|member| (member, None)).collect();
        tune(ctx, &cluster, &members, CONVERGE_TIME).await?;
        let mut members = cluster.members.iter();
        Ok(members.any(|member| !waiting(ctx.means(), &cluster, member.node_id).is_empty()))
    }

    /// What could not be done, in words.
    pub(super) async fn tune_back(&self, ctx: &Context<Means>, cluster: &Cluster) -> Vec<String> {
        let Some(Retune { kept }) = &self.retune else { return Vec::new() };
        let mut left = Vec::new();
        // One by one: a node that is gone keeps no other from it.
        for member in &cluster.members {
            let Some(before) = kept.get(&member.node_id) else { continue };
            let tuned = tune(ctx, cluster, &[(member, Some(*before))], RETURN_TIME).await;
            left.extend(tuned.err().map(|why| why.failure().message.clone()));
        }
        left
    }
}

/// Sends the decisions, and waits until the members go by them as far as they can without a restart.
async fn tune(
    ctx: &Context<Means>,
    cluster: &Cluster,
    members: &[(&Member, Option<Budget>)],
    time: Duration,
) -> Result<(), Error> {
    let orders = members.iter().map(|(member, budget)| {
        let payload = Payload::RetuneMember(RetuneMember { cluster_id: cluster.id, budget: *budget });
        Order { member, term: cluster.command_term(), payload }
    });
    let orders = orders.collect();
    let mut decided: BTreeMap<NodeId, Budget> = BTreeMap::new();
    for (node, success) in call_all(ctx, TUNE_TIME, orders).await? {
        let Success::RetuneMember { budget } = success else { return Err(unexpected(&success)) };
        decided.insert(node, budget);
    }
    observe(ctx, cluster, time, |state| {
        members.iter().find_map(|(member, _)| {
            let report = state(member.node_id).and_then(|state| Some(state.report?.0));
            let goes_by = report.and_then(|report| Some(report.tuning?.kept));
            let late = goes_by != decided.get(&member.node_id).copied();
            late.then(|| format!("{} does not go by its new settings yet", member.node_name))
        })
    })
    .await
}
