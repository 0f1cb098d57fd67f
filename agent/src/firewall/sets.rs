//! The sets of the table: their names, and what is in them.

use std::fmt;
use std::time::Duration;

use holdfast_common::protocol::Slot;

/// A set of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// Ports whose renewal of this slot was sent; the time in the kernel is the lease's.
    Armed(Slot),
    /// Ports whose renewal of this slot was answered.
    Granted(Slot),
    /// Ports that are open to readers.
    Readers,
    /// Ports for which the tried addresses hold now, and not the kept ones.
    Trial,
    /// The addresses of a port's members.
    Members(u16, Family),
    /// Who comes in, but for what has changed since ([`super::layers`]).
    Kept(u16, Family),
    /// Comes in, whether it is kept or not.
    Added(u16, Family),
    /// Is kept, and comes in no more.
    Withdrawn(u16, Family),
    Tried(u16, Family),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

/// Addresses from the first to the last one, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval<T> {
    pub first: T,
    pub last: T,
}

/// A port in a set, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortElement {
    pub port: u16,
    /// When it was put in: for how long. When it was read: what is left. `None`: for ever.
    pub lasts: Option<Duration>,
}

/// Elements of one set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elements {
    Ports(Vec<PortElement>),
    V4(Vec<Interval<u32>>),
    V6(Vec<Interval<u128>>),
}

// === impl SetId ===

impl SetId {
    /// The sets that a port has for itself.
    pub fn of_port(port: u16) -> [Self; 10] {
        use Family::{V4, V6};
        [
            Self::Members(port, V4),
            Self::Members(port, V6),
            Self::Kept(port, V4),
            Self::Kept(port, V6),
            Self::Added(port, V4),
            Self::Added(port, V6),
            Self::Withdrawn(port, V4),
            Self::Withdrawn(port, V6),
            Self::Tried(port, V4),
            Self::Tried(port, V6),
        ]
    }

    /// Whose addresses are in it; `None`: ports are.
    pub fn port(self) -> Option<u16> {
        match self {
            Self::Members(port, _)
            | Self::Kept(port, _)
            | Self::Added(port, _)
            | Self::Withdrawn(port, _)
            | Self::Tried(port, _) => Some(port),
            Self::Armed(_) | Self::Granted(_) | Self::Readers | Self::Trial => None,
        }
    }
}

impl fmt::Display for SetId {
    /// Its name in the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Armed(slot) => write!(f, "armed_{}", slot.index()),
            Self::Granted(slot) => write!(f, "granted_{}", slot.index()),
            Self::Readers => f.write_str("readers"),
            Self::Trial => f.write_str("trial"),
            Self::Members(port, family) => write!(f, "p{port}_members{family}"),
            Self::Kept(port, family) => write!(f, "p{port}_kept{family}"),
            Self::Added(port, family) => write!(f, "p{port}_added{family}"),
            Self::Withdrawn(port, family) => write!(f, "p{port}_withdrawn{family}"),
            Self::Tried(port, family) => write!(f, "p{port}_tried{family}"),
        }
    }
}

// === impl Family ===

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "4",
            Self::V6 => "6",
        })
    }
}

// === impl PortElement ===

impl PortElement {
    pub const fn lasting(port: u16) -> Self {
        Self { port, lasts: None }
    }

    pub const fn lasting_for(port: u16, lasts: Duration) -> Self {
        Self { port, lasts: Some(lasts) }
    }
}

// === impl Elements ===

impl Elements {
    pub fn len(&self) -> usize {
        match self {
            Self::Ports(ports) => ports.len(),
            Self::V4(intervals) => intervals.len(),
            Self::V6(intervals) => intervals.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
