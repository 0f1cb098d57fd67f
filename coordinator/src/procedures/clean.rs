//! Removes what a forced removal left on a node that was away then. Asked for by the coordinator itself when the node returns
//! ([`crate::reconcile::leftovers`]).

use std::time::Duration;

use holdfast_common::command::{Command, DestroyMember, Payload};
use holdfast_common::report::Severity;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Means;
use super::nodes::step_error;
use super::records::Leftover;
use super::steps::deadline;
use crate::event::NewEvent;
use crate::operation::procedure::{Context, Error, Limits, Next, StepLabel};

const TIME: Duration = Duration::from_secs(5 * 60);

/// The operation's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Clean {
    pub leftover: Leftover,
}

impl Clean {
    pub fn new(leftover: Leftover) -> Self {
        Self { leftover }
    }

    pub(super) fn kind(&self) -> &'static str {
        "clean_node"
    }

    pub(super) fn steps(&self) -> Vec<StepLabel> {
        vec![StepLabel::new("clean", format!("Remove what is left of {}", self.leftover.cluster.name))]
    }

    pub(super) fn step(&self) -> String {
        "clean".into()
    }

    pub(super) async fn next(self, ctx: &Context<Means>) -> Result<Next<Self>, Error> {
        let Leftover { node_id, cluster, term, since: _ } = self.leftover;
        let Means { records, nodes, events, clock, coordinator_generation, .. } = ctx.means();
        let payload =
            Payload::DestroyMember(DestroyMember { cluster_id: cluster.id, confirm: cluster.name.clone() });
        let command = Command {
            id: ctx.command_id(payload.kind()),
            coordinator_generation: *coordinator_generation,
            term,
            deadline: deadline(clock.now(), TIME),
            payload,
        };
        nodes.call(node_id, command, &|_| {}).await.map_err(|error| step_error(&node_id, error))?;
        records.cleaned(node_id, cluster.id).await?;
        let message = format!("what was left of cluster {} was removed", cluster.name);
        let event = NewEvent {
            cluster: Some(cluster.name.to_string()),
            operation: Some(ctx.operation().to_string()),
            ..NewEvent::new(Severity::Info, "NODE_CLEANED", message)
        };
        events.record(event).await?;
        Ok(Next::done(json!({ "cluster": cluster.name })))
    }

    pub(super) fn way_back(&self, _why: &Error) -> Option<Self> {
        None
    }

    pub(super) fn may_cancel(&self) -> bool {
        false
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { attempts: 1_000, deadline: Duration::from_secs(24 * 60 * 60) }
    }
}
