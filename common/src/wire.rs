//! The door: generated messages become domain types here, and back, and nowhere else on the link.
//!
//! What comes out of a conversion is valid: a missing, unknown, oversized or senseless field is refused by its path
//! (`member.members[1].address`). What goes in is cut to the bounds that the other end enforces, so that a long message
//! of a program never costs a session.
//!
//! | part | converts |
//! | --- | --- |
//! | [`Field`] | single fields: the rules of refusal |
//! | `nouns` | engines, roles, positions, reports: what operators' and agents' interfaces share |
//! | `failure` | [`Failure`](crate::error::Failure) |
//! | `telemetry` | samples and inventories |
//! | `assignment`, `command` | the two kinds of work |
//! | `link` | the messages of the stream, and enrollment |
//! | `question` | what the coordinator asks, and the answers |
//! | `lease` | leases, lists and promises |
//!
//! Not here: operators' requests (the coordinator's `rpc/convert`), and what a refused message means for a session.

mod access;
mod assignment;
mod command;
mod failure;
mod field;
mod lease;
mod link;
mod nouns;
mod question;
mod telemetry;

#[cfg(test)]
mod tests;

pub use command::{outcome_from_wire, outcome_to_wire};
pub use field::{Field, WireEnum, cut, duration_to_wire, time_to_wire};

use std::fmt;

use crate::error::{Classify, Reason, Violation};

/// A field that has no legal value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {problem}")]
pub struct Error {
    /// The field's path, such as `member.port`; empty where the message itself is meant.
    pub field: String,
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("is missing")]
    Missing,
    #[error("has the unknown value {value}; one side is newer than the other")]
    UnknownValue { value: i32 },
    #[error("has {bytes} bytes; at most {most} are allowed")]
    TooLong { bytes: usize, most: usize },
    #[error("has {count} entries; at most {most} are allowed")]
    TooMany { count: usize, most: usize },
    #[error("is no finite number of 0 or more")]
    NotANumber,
    #[error("is out of range: expected {expected}")]
    OutOfRange { expected: &'static str },
    #[error("names {name} twice")]
    Repeated { name: String },
    #[error("{0}")]
    Malformed(String),
}

// === impl Error ===

impl Error {
    pub fn new(field: impl Into<String>, problem: Problem) -> Self {
        Self { field: field.into(), problem }
    }

    /// The same error, seen from one level up.
    #[must_use]
    pub fn within(self, outer: impl fmt::Display) -> Self {
        let Self { field, problem } = self;
        let field = match field.chars().next() {
            None => outer.to_string(),
            Some('[') => format!("{outer}{field}"),
            Some(_) => format!("{outer}.{field}"),
        };
        Self { field, problem }
    }
}

impl Classify for Error {
    fn reason(&self) -> Reason {
        Reason::InvalidField
    }

    fn violations(&self) -> Vec<Violation> {
        vec![Violation {
            name: self.field.clone(),
            subject: String::new(),
            message: self.problem.to_string(),
        }]
    }
}
