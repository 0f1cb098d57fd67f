//! The wipe guard: whether a member's data may be rewound or replaced, by what its own node knows at that moment.
//!
//! Whatever the coordinator says, data of a primary are never touched, nor those of another database, nor any without a source
//! that has proven to be the same database.

use super::member::Standing;
use crate::id::NodeId;
use crate::role::Role;
use crate::term::Term;

/// What the node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The command's.
    pub term: Term,
    /// As what the command has the member.
    pub role: Role,
    pub node: NodeId,
    pub source: NodeId,
    /// The lease's record; none: not known yet.
    pub record: Option<(Term, Standing)>,
    pub engine: Process,
    pub systems: Systems,
}

/// Who uses the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Process {
    /// Proven: nobody.
    Gone,
    Replica,
    Primary,
    /// Somebody, and as what is not known.
    Unknown,
}

/// The identities of the data, as they are named in each place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Systems {
    /// By the command; none: it does not say.
    pub expected: Option<String>,
    /// When the data were made.
    pub recorded: Option<String>,
    /// In the data; none: they cannot be read.
    pub found: Option<String>,
    /// By the source, asked over the replication protocol; none: it has not answered.
    pub source: Option<String>,
}

/// Why the data are not touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the command's member is no replica")]
    NoReplica,
    #[error("the source is this node itself")]
    OwnSource,
    #[error("what this member is by its lease is not known yet")]
    NoRecord,
    #[error("by its lease this member is the primary of term {0}")]
    IsPrimary(Term),
    #[error("term {record} holds here, and the command is of term {command}")]
    Stale { record: Term, command: Term },
    #[error("it is sealed for a change of primary, of which its log is a part")]
    Sealed,
    #[error("its engine runs as primary")]
    RunsAsPrimary,
    #[error("processes use its data, and it is not known as what")]
    Used,
    #[error("the source has not shown which database it is")]
    NoSource,
    #[error("it is not recorded which database the data are")]
    NotRecorded,
    #[error("the data were made as database system {recorded}, and {place} says {other}")]
    OtherSystem { recorded: String, place: &'static str, other: String },
}

// === impl Facts ===

impl Facts {
    /// Whether the member may be stopped so that its data can be replaced.
    ///
    /// # Errors
    /// The first [`Refusal`] that holds.
    pub fn may_stop(&self) -> Result<(), Refusal> {
        let Self { term, role, node, source, record, engine, systems } = self;
        if *role != Role::Replica {
            return Err(Refusal::NoReplica);
        }
        if source == node {
            return Err(Refusal::OwnSource);
        }
        match record {
            None => return Err(Refusal::NoRecord),
            Some((held, Standing::Primary)) => return Err(Refusal::IsPrimary(*held)),
            Some((held, _)) if held > term => {
                return Err(Refusal::Stale { record: *held, command: *term });
            }
            Some((_, Standing::Sealed)) => return Err(Refusal::Sealed),
            Some((_, Standing::Replica)) => {}
        }
        match engine {
            Process::Primary => return Err(Refusal::RunsAsPrimary),
            Process::Unknown => return Err(Refusal::Used),
            Process::Gone | Process::Replica => {}
        }
        systems.agree()
    }

    /// Whether its data may be rewound or replaced now: the same, and nobody uses them.
    ///
    /// # Errors
    /// As above.
    pub fn may_replace(&self) -> Result<(), Refusal> {
        self.may_stop()?;
        if self.engine == Process::Gone { Ok(()) } else { Err(Refusal::Used) }
    }
}

// === impl Systems ===

impl Systems {
    fn agree(&self) -> Result<(), Refusal> {
        let Self { expected, recorded, found, source } = self;
        let source = source.as_ref().ok_or(Refusal::NoSource)?;
        let recorded = recorded.as_ref().ok_or(Refusal::NotRecorded)?;
        let places = [
            ("the command", expected.as_ref()),
            ("their own file", found.as_ref()),
            ("the source", Some(source)),
        ];
        for (place, named) in places {
            if let Some(other) = named.filter(|named| *named != recorded) {
                let (recorded, other) = (recorded.clone(), other.clone());
                return Err(Refusal::OtherSystem { recorded, place, other });
            }
        }
        Ok(())
    }
}

// === impl Refusal ===

impl Refusal {
    /// Whether it may be otherwise in a moment, without anybody doing anything about it.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::NoRecord | Self::Sealed | Self::NoSource => true,
            Self::NoReplica
            | Self::OwnSource
            | Self::IsPrimary(_)
            | Self::Stale { .. }
            | Self::RunsAsPrimary
            | Self::Used
            | Self::NotRecorded
            | Self::OtherSystem { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests;
