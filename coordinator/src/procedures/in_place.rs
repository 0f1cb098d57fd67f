//! The server of a primary, restarted where it is: it stays the primary, of the same term, and its gate is shut meanwhile.
//!
//! ```text
//!  checkpoint ─► stop ([`promote`], both) ─► serve
//! ```
//! Whatever ends it in between has the server started again: the step that is the way back, a coordinator that has just started, or,
//! where nobody could take its place, its own agent.

use std::time::Duration;

use holdfast_common::error::{Failure, Reason, Retry};
use holdfast_common::id::NodeId;
use holdfast_common::report::{EngineState, MemberReport};
use holdfast_common::role::Role;
use jiff::Timestamp;

use super::elect;
use super::resync::Target;
use super::steps::observe_starts;
use super::{ClusterRef, Means, promote};
use crate::cluster::{Cluster, Member};
use crate::operation::procedure::{Context, Error, Limits, StepLabel};

/// How long it may take to serve again.
const SERVE_TIME: Duration = Duration::from_secs(60);

/// Of the step that waits until it serves.
pub(super) const SERVE: Limits = Limits { attempts: 3, deadline: SERVE_TIME.saturating_mul(2) };

/// When the server was started, as it said last.
pub(super) fn started(ctx: &Context<Means>, cluster: &ClusterRef, node: NodeId) -> Option<Timestamp> {
    ctx.means().nodes.state(node, cluster.id)?.report?.0.started_at
}

/// Has it start, and waits until it lets clients in, with nothing left that waits for a restart. `before` is when the server was
/// started that was stopped, where that is known: what was said before the stop is no news.
pub(super) async fn serve(
    ctx: &Context<Means>,
    cluster: &Cluster,
    primary: &Target,
    before: Option<Timestamp>,
) -> Result<(), Error> {
    ctx.means().leases.resume(cluster.id);
    let name = &primary.name;
    let members: Vec<&Member> = cluster.primary_member().into_iter().collect();
    let looks = observe_starts(ctx, cluster, SERVE_TIME, &members, |state| {
        let Some(report) = state(primary.node).and_then(|state| Some(state.report?.0)) else {
            return Some(format!("{name} has not reported yet"));
        };
        let is_old = before.is_some() && report.started_at == before;
        // What was said before it stopped still names what it waited for.
        (is_old || !serves(&report) || !report.pending_restart.is_empty()).then(|| {
            let why =
                if report.message.is_empty() { String::new() } else { format!(" ({})", report.message) };
            format!("{name} does not serve again yet{why}")
        })
    });
    // Both arms are cancel-safe: they only look.
    tokio::select! {
        // Clients wait: whatever is the way back is quicker than another try.
        served = looks => served.map_err(|why| {
            Error::new(Failure { retry: Retry::Never, ..why.failure().clone() })
        }),
        gone = elect::gone(ctx, cluster) => {
            Err(Error::new(Failure::new(Reason::AgentOffline, format!("{gone} is offline"))))
        }
    }
}

fn serves(report: &MemberReport) -> bool {
    let open = report.lease.as_ref().is_none_or(|lease| lease.open);
    report.state == EngineState::Running && report.role == Some(Role::Primary) && open
}

/// The steps as they stand in a plan.
pub(super) fn plan(primary: &Target) -> [StepLabel; 3] {
    let name = &primary.name;
    [
        StepLabel::new("checkpoint", "Write out what the primary has in memory"),
        StepLabel::new("stop", format!("Stop the server of {name}: writes wait from here")),
        StepLabel::new("serve", format!("Start it again: writes go on, {name} stays the primary")),
    ]
}

/// What it means for clients, for a person.
pub(super) fn note() -> String {
    format!(
        "the primary stays where it is: writes wait, and open connections are cut, while its server stops and starts; a stop that takes longer than {} s is given up, and it serves again",
        promote::STOP_TIME.as_secs()
    )
}
