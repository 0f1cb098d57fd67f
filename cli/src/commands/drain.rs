//! `holdfast node drain | undrain`, and what is shown of a drained node.

use holdfast_proto::v1;
use serde_json::json;

use super::Session;
use crate::args::Run;
use crate::client::request_id;
use crate::error::Error;
use crate::output::{self, json};

pub(super) async fn drain(
    session: &mut Session,
    name: String,
    reason: Option<String>,
    force: bool,
    run: Run,
) -> Result<(), Error> {
    let done = format!("Node {name} is drained. Allow new roles there with: holdfast node undrain {name}");
    let (reason, validate_only) = (reason.unwrap_or_default(), run.plan.plan);
    let request = v1::DrainNodeRequest { name, reason, force, request_id: request_id(), validate_only };
    let answer = session.client().await?.drain_node(request).await?;
    match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
        v1::drain_node_response::Outcome::Plan(plan) => session.plan(&plan),
        v1::drain_node_response::Outcome::Operation(operation) => session.follow(operation, run, &done).await,
    }
}

pub(super) async fn undrain(session: &mut Session, name: String) -> Result<(), Error> {
    let request = v1::UndrainNodeRequest { name, request_id: request_id() };
    let answer = session.client().await?.undrain_node(request).await?;
    let node = answer.node.ok_or(Error::Incomplete("node"))?;
    if session.out.is_json() {
        return Ok(session.out.json(&json!({"node": json::node(&node)}))?);
    }
    Ok(session.out.line(format!("Node {} may get new roles. Nothing moves back by itself.", node.name))?)
}

/// A node's state in a list.
pub(super) fn state(node: &v1::Node, availability: String) -> String {
    if node.drained.is_some() { format!("{availability}, drained") } else { availability }
}

/// Who keeps new roles off the node, and since when.
pub(super) fn told(node: &v1::Node) -> String {
    let Some(v1::Drained { by, since_time, reason }) = &node.drained else { return "no".to_owned() };
    let since = output::time(since_time.as_ref()).unwrap_or_else(|| "-".to_owned());
    let reason = output::plain(reason);
    let reason = if reason.is_empty() { reason } else { format!(" ({reason})") };
    format!("by {} since {since}{reason}", output::plain(by))
}
