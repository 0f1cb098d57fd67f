//! The fake's resync: under the same guard as the real one, with the same ends.

use holdfast_common::command::{Progress, ResyncMember, ResyncMode, ResyncedBy};
use holdfast_common::id::NodeId;
use holdfast_common::protocol::wipe::{Facts, Process, Systems};
use holdfast_common::role::Role;
use holdfast_common::set_aside::{Answer, Question};
use jiff::Timestamp;

use super::state::{Configured, State};
use super::{COPY_BYTES, Step};
use crate::engine::{Error, Resynced, Work};

/// How large what is set aside is.
const ASIDE_BYTES: u64 = 16 * 1024 * 1024;

/// It keeps nothing.
pub(super) fn answer(question: &Question) -> Result<Answer, Error> {
    match question {
        Question::Logs => Ok(Answer::Logs(Vec::new())),
        Question::Files { id } | Question::Part { id, .. } => Err(Error::NotSetAside { id: id.clone() }),
    }
}

pub(super) fn resync(
    state: &mut State,
    node: NodeId,
    request: &ResyncMember,
    work: &Work,
) -> Result<Resynced, Error> {
    let ResyncMember { member: assigned, source, mode, in_place: _ } = request;
    let cluster = assigned.cluster_id;
    let found = state.complete(cluster, node)?;
    if let Some((_, done)) = found.resynced.as_ref().filter(|(command, _)| *command == work.command) {
        return Ok(done.clone());
    }
    let engine = match found.running_since {
        None => Process::Gone,
        Some(_) if found.role == Role::Primary => Process::Primary,
        Some(_) => Process::Replica,
    };
    let facts = Facts {
        term: assigned.term,
        role: assigned.role.role(),
        node,
        source: source.node_id,
        record: work.around().standing(cluster),
        engine,
        systems: Systems {
            expected: assigned.system_identifier.clone(),
            recorded: Some(found.system_identifier.clone()),
            found: Some(found.system_identifier.clone()),
            source: state.upstream(cluster, node, source).map(|source| source.system_identifier.clone()),
        },
    };
    facts.may_stop()?;
    work.check("resync")?;
    let system_identifier = found.system_identifier.clone();
    let broken = found.broken;
    let has_all = state.has_all_of(cluster, node, source).unwrap_or(false);
    let done = |how, copied_bytes, set_aside_bytes| Resynced {
        how,
        system_identifier: system_identifier.clone(),
        copied_bytes,
        set_aside_bytes,
    };
    let aside = if has_all || broken { 0 } else { ASIDE_BYTES };
    let outcome = match mode {
        ResyncMode::Auto if has_all && !broken => done(ResyncedBy::Followed, 0, 0),
        ResyncMode::Rewind if has_all && !broken => done(ResyncedBy::Followed, 0, 0),
        ResyncMode::Rewind if broken => {
            let message = "its data are broken; only a full resync helps".to_owned();
            return Err(Error::Unmet { check: "can_be_rewound", message });
        }
        ResyncMode::Auto | ResyncMode::Rewind if !broken => match state.begin(node, Step::Rewind) {
            Ok(()) => done(ResyncedBy::Rewound, 0, aside),
            Err(error) => {
                state.complete_mut(cluster, node)?.broken = true;
                if *mode == ResyncMode::Rewind {
                    return Err(error);
                }
                copy(state, node, work)?;
                done(ResyncedBy::Copied, COPY_BYTES, aside)
            }
        },
        ResyncMode::Auto | ResyncMode::Rewind | ResyncMode::Full => {
            copy(state, node, work)?;
            done(ResyncedBy::Copied, COPY_BYTES, aside)
        }
    };
    let from = state.upstream(cluster, node, source);
    let from =
        from.map(|source| (source.offset, source.term, source.begun.clone(), source.passwords.clone()));
    let member = state.complete_mut(cluster, node)?;
    if let Some((offset, term, begun, passwords)) = from.filter(|_| outcome.how != ResyncedBy::Followed) {
        (member.offset, member.term, member.begun, member.passwords) = (offset, term, begun, passwords);
    }
    (member.role, member.sealed, member.broken) = (Role::Replica, false, false);
    match outcome.how {
        ResyncedBy::Followed => {}
        ResyncedBy::Rewound => member.running_since = None,
        ResyncedBy::Copied => {
            member.listens = Some((assigned.address, assigned.replication_port.unwrap_or(assigned.port)));
            member.running_since = Some(Timestamp::now());
        }
    }
    member.configured = Some(Configured::of(assigned));
    member.resynced = Some((work.command, outcome.clone()));
    Ok(outcome)
}

fn copy(state: &mut State, node: NodeId, work: &Work) -> Result<(), Error> {
    for done in [0, COPY_BYTES / 2, COPY_BYTES] {
        let (done_bytes, total_bytes) = (Some(done), Some(COPY_BYTES));
        work.tell(Progress { message: "copying".to_owned(), done_bytes, total_bytes });
    }
    state.begin(node, Step::Replace)
}
