//! Who may reach a cluster: what an operator declares ([`Rules`]), and the networks that follow from it ([`Reach`]).
//!
//! | part | answers for |
//! | --- | --- |
//! | [`Cidr`] | an address or network, written the one way that cannot be misread |
//! | [`Rules`] | the declared list: a mode, and entries with comments, each network once |
//! | [`Reach`] | what the kernel is given: networks none of which lies in another |
//!
//! Members and the coordinator are no part of it: they are added on the node. Not here: how it is enforced.

mod cidr;
mod reach;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use cidr::{Cidr, CidrError, visible};
pub use reach::Reach;

/// The most entries of one cluster.
pub const MAX_ENTRIES: usize = 100_000;
/// The longest comment.
pub const MAX_COMMENT_BYTES: usize = 120;
/// The most networks, kept and tried together, that all members of one node may have: an assignment must fit into a message.
pub const MAX_NETWORKS_PER_NODE: usize = 200_000;
/// How long a trial may last.
pub const TRIAL: std::ops::RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(3600);

/// Whom a cluster lets in, besides its members and the coordinator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nobody else.
    #[default]
    Closed,
    /// The entries.
    Restricted,
    /// Everybody. The entries are kept for later.
    Open,
}

/// One declared network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub cidr: Cidr,
    #[serde(default, skip_serializing_if = "Comment::is_empty")]
    pub comment: Comment,
}

/// What a person notes beside a network: one line, no control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Comment(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommentError {
    #[error("a comment has at most {MAX_COMMENT_BYTES} bytes; this one has {0}")]
    TooLong(usize),
    #[error("a comment is one line without control characters; this one has `{}`", .0.escape_unicode())]
    Unprintable(char),
}

/// What an operator declared: entries by network, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    pub mode: Mode,
    entries: Vec<Entry>,
    /// Whether the nodes' kernels log some of the refused packets.
    #[serde(default)]
    pub log_refused: bool,
}

/// Why entries do not make rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    #[error("{0} is named twice")]
    Duplicate(Cidr),
    #[error("{0} is not in the list")]
    Absent(Cidr),
    #[error("{0} is in the list already")]
    Present(Cidr),
    #[error("a cluster has at most {MAX_ENTRIES} entries; these would be {0}")]
    TooMany(usize),
}

/// What every member of a cluster enforces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub kept: Reach,
    /// Holds instead of `kept` for a while, and then no more, whatever else happens.
    pub trial: Option<Trial>,
    pub log_refused: bool,
}

/// A reach on trial. A node begins one of an id once and never again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    pub id: Uuid,
    pub reach: Reach,
    /// From its beginning on a node.
    pub lasts: Duration,
    /// A node that hears of it late has less; by the wall clock, which can only shorten it.
    pub ends_at: jiff::Timestamp,
}

// === impl Mode ===

impl Mode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Restricted => "restricted",
            Self::Open => "open",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Comment ===

impl Comment {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Comment {
    type Error = CommentError;

    fn try_from(text: String) -> Result<Self, CommentError> {
        if text.len() > MAX_COMMENT_BYTES {
            return Err(CommentError::TooLong(text.len()));
        }
        // Also those that turn the direction of writing: a list must read as it is.
        let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let bad = |c: &char| c.is_control() || turns(*c) || matches!(c, '\u{2028}' | '\u{2029}');
        match text.chars().find(bad) {
            Some(bad) => Err(CommentError::Unprintable(bad)),
            None => Ok(Self(text)),
        }
    }
}

impl From<Comment> for String {
    fn from(comment: Comment) -> Self {
        comment.0
    }
}

// === impl Rules ===

impl Rules {
    /// # Errors
    /// `Duplicate`, `TooMany`.
    pub fn new(mode: Mode, entries: Vec<Entry>, log_refused: bool) -> Result<Self, RulesError> {
        if entries.len() > MAX_ENTRIES {
            return Err(RulesError::TooMany(entries.len()));
        }
        let mut entries = entries;
        entries.sort_by_key(|entry| entry.cidr);
        match entries.array_windows().find(|[one, two]| one.cidr == two.cidr) {
            Some([twice, _]) => Err(RulesError::Duplicate(twice.cidr)),
            None => Ok(Self { mode, entries, log_refused }),
        }
    }

    /// By network.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// With more entries; the first ones make a closed list restricted.
    ///
    /// # Errors
    /// `Duplicate` among the new ones, `Present`, `TooMany`.
    pub fn with(&self, added: Vec<Entry>) -> Result<Self, RulesError> {
        let added = Self::new(self.mode, added, self.log_refused)?.entries;
        if let Some(present) = added.iter().find(|entry| self.contains(entry.cidr)) {
            return Err(RulesError::Present(present.cidr));
        }
        let mode = match self.mode {
            Mode::Closed if !added.is_empty() => Mode::Restricted,
            mode => mode,
        };
        Self::new(mode, self.entries.iter().cloned().chain(added).collect(), self.log_refused)
    }

    /// Without these entries. The mode stays: a restricted list without entries lets nobody else in.
    ///
    /// # Errors
    /// `Absent`, `Duplicate`.
    pub fn without(&self, removed: &[Cidr]) -> Result<Self, RulesError> {
        let mut kept: BTreeMap<Cidr, &Entry> = self.entries.iter().map(|entry| (entry.cidr, entry)).collect();
        for (number, cidr) in removed.iter().enumerate() {
            if kept.remove(cidr).is_none() {
                let twice = removed.get(..number).is_some_and(|before| before.contains(cidr));
                return Err(if twice { RulesError::Duplicate(*cidr) } else { RulesError::Absent(*cidr) });
            }
        }
        let entries = kept.into_values().cloned().collect();
        Ok(Self { mode: self.mode, entries, log_refused: self.log_refused })
    }

    /// Who gets in.
    pub fn reach(&self) -> Reach {
        match self.mode {
            Mode::Closed => Reach::NOBODY,
            Mode::Restricted => self.entries.iter().map(|entry| entry.cidr).collect(),
            Mode::Open => Reach::everybody(),
        }
    }

    /// Whether this very network is an entry.
    pub fn contains(&self, cidr: Cidr) -> bool {
        self.entries.binary_search_by_key(&cidr, |entry| entry.cidr).is_ok()
    }
}

// === impl Access ===

impl Access {
    /// How many networks a node must hold for it.
    pub fn networks(&self) -> usize {
        self.kept.len() + self.trial.as_ref().map_or(0, |trial| trial.reach.len())
    }
}
