//! Access rules to operators' messages.

use std::sync::Arc;

use holdfast_common::access::{Entry, Mode, Reach};
use holdfast_common::assignment::Assignment;
use holdfast_common::id::NodeId;
use holdfast_common::report::{AccessReport, MemberReport, Traffic};
use holdfast_common::role::Availability;
use holdfast_common::telemetry::Filtering;
use holdfast_common::wire::{duration_to_wire, time_to_wire};
use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1 as proto;

use crate::cluster::access::Declared;
use crate::cluster::{Cluster, Member};
use crate::fleet::NodeView;

pub(super) fn entry(entry: &Entry) -> proto::AccessEntry {
    let Entry { cidr, comment } = entry;
    proto::AccessEntry { cidr: cidr.to_string(), comment: comment.as_str().to_owned() }
}

pub(super) fn access(
    cluster: &Cluster,
    declared: &Declared,
    node: impl Fn(NodeId) -> Option<NodeView>,
) -> proto::Access {
    let Declared { cluster: _, rules, trial } = declared;
    let trial = trial.as_ref().map(|trial| proto::AccessTrial {
        trial_id: trial.id.to_string(),
        mode: mode(trial.rules.mode).into(),
        entry_count: count(trial.rules.entries().len()),
        log_refused: trial.rules.log_refused,
        end_time: Some(time_to_wire(trial.ends_at)),
    });
    proto::Access {
        cluster: cluster.name.to_string(),
        mode: mode(rules.mode).into(),
        entry_count: count(rules.entries().len()),
        log_refused: rules.log_refused,
        trial,
        members: cluster.members.iter().map(|it| member(cluster, declared, it, node(it.node_id))).collect(),
    }
}

/// What a call has changed, or would.
pub(super) fn change(access: proto::Access, before: &Declared, after: &Declared) -> proto::AccessChange {
    let (old, new) = (before.in_force().reach(), after.in_force().reach());
    let mut notes = Vec::new();
    let silent: Vec<&str> = access
        .members
        .iter()
        .filter(|member| member.state() == proto::AccessState::Unspecified)
        .map(|member| member.node.as_str())
        .collect();
    match silent.as_slice() {
        [] => {}
        [one] => notes.push(format!("{one} is silent: it gets the rules when it is back")),
        more => {
            notes.push(format!("{} are silent: they get the rules when they are back", more.join(", ")));
        }
    }
    let open: Vec<&str> = access
        .members
        .iter()
        .filter(|member| member.state() == proto::AccessState::Unfiltered)
        .map(|member| member.node.as_str())
        .collect();
    if !open.is_empty() {
        notes.push(format!("{} cannot filter: everybody reaches the port there", open.join(", ")));
    }
    if new.is_empty() {
        notes.push("nobody but members and the coordinator gets in".to_owned());
    }
    proto::AccessChange {
        access: Some(access),
        networks_added: count(missing(&new, &old)),
        networks_removed: count(missing(&old, &new)),
        notes,
    }
}

/// For the event.
pub(super) fn summary(after: &Declared) -> String {
    let rules = after.in_force();
    let entries = rules.entries().len();
    let who = match rules.mode {
        Mode::Restricted if entries == 1 => "restricted to 1 entry".to_owned(),
        Mode::Restricted => format!("restricted to {entries} entries"),
        mode => mode.to_string(),
    };
    match &after.trial {
        Some(trial) => format!("access is {who}, on trial until {}", trial.ends_at),
        None => format!("access is {who}"),
    }
}

fn member(
    cluster: &Cluster,
    declared: &Declared,
    member: &Member,
    view: Option<NodeView>,
) -> proto::AccessMember {
    use proto::AccessState as State;
    let unknown = proto::AccessMember {
        node: member.node_name.to_string(),
        state: State::Unspecified.into(),
        message: "the node is offline".to_owned(),
        ..proto::AccessMember::default()
    };
    let Some(view) = view.filter(|view| view.availability != Availability::Offline) else { return unknown };
    if let Some(Filtering::Unavailable { reason }) =
        view.facts.as_ref().map(|facts| &facts.inventory.filtering)
    {
        return proto::AccessMember { state: State::Unfiltered.into(), message: reason.clone(), ..unknown };
    }
    let report = view
        .report
        .as_ref()
        .and_then(|received| received.report.members.iter().find(|report| report.cluster_id == cluster.id));
    let Some(MemberReport { access: Some(found), .. }) = report else {
        let message = "the node has not told yet".to_owned();
        return proto::AccessMember { state: State::Pending.into(), message, ..unknown };
    };
    let AccessReport { generation, trial_left, accepted, refused } = found;
    let told = view.assignment.as_ref().filter(|told| has(told, cluster, declared));
    let stands = told.is_some_and(|told| *generation >= told.generation);
    proto::AccessMember {
        state: if stands { State::Enforced } else { State::Pending }.into(),
        message: if stands { String::new() } else { "earlier rules still hold there".to_owned() },
        trial_left: trial_left.map(duration_to_wire),
        accepted: Some(traffic(*accepted)),
        refused: Some(traffic(*refused)),
        ..unknown
    }
}

/// Whether the node was told these very rules.
fn has(told: &Arc<Assignment>, cluster: &Cluster, declared: &Declared) -> bool {
    told.member(cluster.id).is_some_and(|member| member.access == declared.for_nodes())
}

/// How many of the networks are not in the other reach as they are.
fn missing(of: &Reach, other: &Reach) -> usize {
    let v4 = of.v4().iter().filter(|net| other.v4().binary_search(net).is_err()).count();
    let v6 = of.v6().iter().filter(|net| other.v6().binary_search(net).is_err()).count();
    v4 + v6
}

fn traffic(Traffic { packets, bytes }: Traffic) -> nouns::Traffic {
    nouns::Traffic { packets, bytes }
}

fn mode(mode: Mode) -> proto::AccessMode {
    match mode {
        Mode::Closed => proto::AccessMode::Closed,
        Mode::Restricted => proto::AccessMode::Restricted,
        Mode::Open => proto::AccessMode::Open,
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
