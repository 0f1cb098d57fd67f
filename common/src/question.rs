//! What the coordinator may ask of a node about one of its members, and what the node says. Nothing changes by it.

use crate::budget::Budget;
use crate::set_aside;

/// The most packages in one answer.
pub const MAX_PACKAGES: usize = 64;
/// The most settings in one answer.
pub const MAX_SETTINGS: usize = 64;
/// The longest name or version of a package, or build.
pub const MAX_LABEL_BYTES: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// About logs that were kept before data were replaced.
    SetAside(set_aside::Question),
    /// What the node's package sources offer for the member's major version, as far as the node has read them.
    Upgrades,
    /// What a retuning would change now.
    Retuning,
}

/// What a node says, a variant for each question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    SetAside(set_aside::Answer),
    Upgrades(Upgrades),
    Retuning(Retuning),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrades {
    /// Which build a start of the server would run.
    pub installed_build: String,
    /// What would be changed.
    pub packages: Vec<PackageUpgrade>,
    pub may_install: bool,
}

/// A package that is installed in another version than the one on offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackageUpgrade {
    pub name: String,
    pub installed: String,
    pub offered: String,
}

/// What would be decided anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retuning {
    pub kept: Budget,
    pub possible: Budget,
    /// Settings that would be others, also where the operator has set them.
    pub changes: Vec<SettingChange>,
}

/// In the engine's own units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    pub name: String,
    pub from: String,
    pub to: String,
}

impl From<set_aside::Question> for Question {
    fn from(question: set_aside::Question) -> Self {
        Self::SetAside(question)
    }
}

impl From<set_aside::Answer> for Answer {
    fn from(answer: set_aside::Answer) -> Self {
        Self::SetAside(answer)
    }
}
