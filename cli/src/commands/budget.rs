//! How much of its machine a member counts on.

use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1;

use super::Session;
use crate::error::Error;
use crate::output::{bytes, counted, or_dash};

/// What each member on a node counts on, and all of them together.
pub(super) fn show(session: &mut Session, node: &v1::Node) -> Result<(), Error> {
    if node.members.is_empty() {
        return Ok(());
    }
    session.out.line("")?;
    session.out.line(together(node))?;
    let rows = node.members.iter().map(|member| {
        let kept = member.tuning.as_ref().and_then(|tuning| tuning.kept.as_ref());
        vec![
            member.cluster.clone(),
            or_dash(kept.map(|kept| bytes(kept.memory_bytes))),
            or_dash(kept.map(|kept| kept.cores.to_string())),
            or_dash(kept.map(|kept| bytes(kept.disk_bytes))),
            or_dash(member.tuning.as_ref().and_then(resized)),
        ]
    });
    let rows = rows.collect();
    Ok(session.out.table(&["CLUSTER", "MEMORY", "CORES", "DISK", "MESSAGE"], rows)?)
}

fn together(node: &v1::Node) -> String {
    let kept = |member: &v1::NodeMember| member.tuning.as_ref()?.kept.as_ref().map(|kept| kept.memory_bytes);
    let known: Vec<u64> = node.members.iter().filter_map(kept).collect();
    let members = counted(node.members.len(), "member counts", "members count");
    if known.is_empty() {
        return format!("{members} on an unknown part of it:");
    }
    let least = if known.len() < node.members.len() { "at least " } else { "" };
    let sum = bytes(known.iter().fold(0, |sum: u64, one| sum.saturating_add(*one)));
    let of = node.inventory.as_ref().map(|inventory| format!(" of {}", bytes(inventory.memory_bytes)));
    format!("{members} on {least}{sum}{} of memory:", of.unwrap_or_default())
}

/// Such as `machine resized: settings for 4.0 GiB …, 2 cores, …; could be for 8.0 GiB …: cluster set --retune`.
pub(super) fn resized(tuning: &nouns::MemberTuning) -> Option<String> {
    if !tuning.resized {
        return None;
    }
    let (kept, possible) = (words(tuning.kept.as_ref()?), words(tuning.possible.as_ref()?));
    Some(format!("machine resized: settings for {kept}; could be for {possible}: cluster set --retune"))
}

fn words(budget: &nouns::Budget) -> String {
    let nouns::Budget { memory_bytes, cores, disk_bytes } = *budget;
    let cores = counted(cores, "core", "cores");
    format!("{} of memory, {cores}, {} of disk", bytes(memory_bytes), bytes(disk_bytes))
}
