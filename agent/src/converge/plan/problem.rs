//! What a plan may not mend, in words.

use std::fmt;

use holdfast_common::role::Role;

/// Why a member cannot be made as it should be, by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Nothing could be observed; the next round may.
    Unknown,
    /// A command makes data, a round never does.
    NoData,
    /// What was replacing its data was cut: a command goes on, a round never does.
    Broken,
    /// The data are those of another database.
    OtherSystem { expected: String, found: String },
    /// It is to be primary and has no lease.
    NoLease,
    /// Nothing keeps anybody away from its port: it is not started.
    Unfiltered,
    /// The data (or the running engine) have another role, and a round never changes one.
    OtherRole { expected: Role, found: Role },
}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("its state could not be observed"),
            Self::NoLease => f.write_str("it is stopped until it has a lease"),
            Self::Unfiltered => f.write_str(
                "its access rules are not in the kernel, so it is not started; `node show` says why",
            ),
            Self::NoData => f.write_str("it has no data here; a command makes them"),
            Self::Broken => f.write_str("nothing is done to it until it is resynced"),
            Self::OtherSystem { expected, found } => {
                write!(
                    f,
                    "its data are database system {found}, but the cluster's is {expected}; nothing is done to it"
                )
            }
            Self::OtherRole { expected, found } => {
                write!(f, "it is a {found} and should be a {expected}; its lease does not say so yet")
            }
        }
    }
}
