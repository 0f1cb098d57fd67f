//! Who may reach a cluster: what an operator declared, and what is on trial. Pure.
//!
//! ```text
//!  rules ──set, on trial──▶ rules + trial ──confirm──▶ the trial's rules
//!                              └── revert, or its end ──▶ rules
//! ```
//! The nodes end a trial by themselves, in their kernels; here its end only stops telling them of it.

use std::time::Duration;

use holdfast_common::access::{self, Rules, TRIAL};
use holdfast_common::clock::span;
use holdfast_common::error::{Classify, Reason, Violation};
use holdfast_common::id::ClusterId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// As it is stored; a cluster without a record is closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    pub cluster: ClusterId,
    pub rules: Rules,
    pub trial: Option<Trial>,
}

/// Rules on trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    pub id: Uuid,
    pub rules: Rules,
    pub lasts: Duration,
    pub ends_at: Timestamp,
}

/// How new rules come to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    ForGood,
    /// For so long, unless they are confirmed.
    OnTrial(Duration),
}

/// What is done with a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Confirm,
    Revert,
}

/// Why rules do not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error(
        "other rules are on trial until {ends_at}; confirm them, take them back with `access confirm --revert`, or wait"
    )]
    OnTrial { ends_at: Timestamp },
    #[error(
        "nothing is on trial; a trial that was not confirmed in time is over, and the rules before it hold"
    )]
    NoTrial,
    #[error("trial {asked} is not under way; the one that is, is {running}")]
    OtherTrial { asked: Uuid, running: Uuid },
    #[error("a trial lasts from {} to {}", span(*TRIAL.start()), span(*TRIAL.end()))]
    Length,
}

// === impl Declared ===

impl Declared {
    pub fn closed(cluster: ClusterId) -> Self {
        Self { cluster, rules: Rules::default(), trial: None }
    }

    /// With other rules.
    ///
    /// # Errors
    /// `OnTrial`, `Length`.
    pub fn with(self, rules: Rules, holding: Holding, now: Timestamp) -> Result<Self, ChangeError> {
        let current = self.expired(now);
        if let Some(trial) = &current.trial {
            return Err(ChangeError::OnTrial { ends_at: trial.ends_at });
        }
        match holding {
            Holding::ForGood => Ok(Self { rules, ..current }),
            Holding::OnTrial(lasts) if TRIAL.contains(&lasts) => {
                let ends_at = now.checked_add(lasts).map_err(|_| ChangeError::Length)?;
                let trial = Trial { id: Uuid::now_v7(), rules, lasts, ends_at };
                Ok(Self { trial: Some(trial), ..current })
            }
            Holding::OnTrial(_) => Err(ChangeError::Length),
        }
    }

    /// With the trial kept or taken back.
    ///
    /// # Errors
    /// `NoTrial` (also when it is over), `OtherTrial`.
    pub fn judged(self, verdict: Verdict, id: Option<Uuid>, now: Timestamp) -> Result<Self, ChangeError> {
        let Self { cluster, rules, trial } = self.expired(now);
        let trial = trial.ok_or(ChangeError::NoTrial)?;
        if let Some(asked) = id.filter(|asked| *asked != trial.id) {
            return Err(ChangeError::OtherTrial { asked, running: trial.id });
        }
        let rules = match verdict {
            Verdict::Confirm => trial.rules,
            Verdict::Revert => rules,
        };
        Ok(Self { cluster, rules, trial: None })
    }

    /// Without a trial that is over.
    #[must_use]
    pub fn expired(self, now: Timestamp) -> Self {
        Self { trial: self.trial.filter(|trial| now < trial.ends_at), ..self }
    }

    /// What holds now, as far as the coordinator knows.
    pub fn in_force(&self) -> &Rules {
        self.trial.as_ref().map_or(&self.rules, |trial| &trial.rules)
    }

    /// What the nodes must know of it.
    pub fn for_nodes(&self) -> access::Access {
        let Self { cluster: _, rules, trial } = self;
        let trial = trial.as_ref().map(|Trial { id, rules, lasts, ends_at }| access::Trial {
            id: *id,
            reach: rules.reach(),
            lasts: *lasts,
            ends_at: *ends_at,
        });
        access::Access { kept: rules.reach(), trial, log_refused: self.in_force().log_refused }
    }
}

// === impl ChangeError ===

impl Classify for ChangeError {
    fn reason(&self) -> Reason {
        match self {
            Self::OnTrial { .. } | Self::NoTrial | Self::OtherTrial { .. } => Reason::PreconditionFailed,
            Self::Length => Reason::InvalidField,
        }
    }

    /// What they are about, the caller knows.
    fn violations(&self) -> Vec<Violation> {
        let name = match self {
            Self::OnTrial { .. } => "no_trial",
            Self::NoTrial => "trial_under_way",
            Self::OtherTrial { .. } => "same_trial",
            Self::Length => "confirm_within",
        };
        vec![Violation { name: name.to_owned(), subject: String::new(), message: self.to_string() }]
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::access::Mode;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn rules(mode: Mode) -> Rules {
        Rules::new(mode, Vec::new(), false).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn on_trial() -> Declared {
        let closed = Declared::closed(ClusterId::generate());
        closed.with(rules(Mode::Open), Holding::OnTrial(MINUTE), at(0)).unwrap()
    }

    #[test]
    fn a_trial_that_nobody_confirms_leaves_the_rules_before_it() {
        let tried = on_trial();
        assert_eq!((tried.rules.mode, tried.in_force().mode), (Mode::Closed, Mode::Open));
        let later = tried.clone().expired(at(59));
        assert_eq!(later, tried);
        assert_eq!(tried.expired(at(60)).in_force().mode, Mode::Closed);
    }

    #[test]
    fn a_trial_is_confirmed_once_in_time_and_by_its_own_id() {
        let tried = on_trial();
        let id = tried.trial.as_ref().unwrap().id;
        let other = Uuid::now_v7();
        let judged = |id, seconds| tried.clone().judged(Verdict::Confirm, id, at(seconds));
        assert_eq!(judged(Some(other), 1), Err(ChangeError::OtherTrial { asked: other, running: id }));
        assert_eq!(judged(Some(id), 60), Err(ChangeError::NoTrial), "late");
        let kept = judged(Some(id), 59).unwrap();
        assert_eq!((kept.rules.mode, kept.trial.clone()), (Mode::Open, None));
        assert_eq!(kept.judged(Verdict::Confirm, Some(id), at(59)), Err(ChangeError::NoTrial), "twice");
        assert_eq!(tried.clone().judged(Verdict::Revert, None, at(1)).unwrap().rules.mode, Mode::Closed);
    }

    #[test]
    fn nothing_changes_beside_a_trial() {
        let refused = on_trial().with(rules(Mode::Restricted), Holding::ForGood, at(59));
        assert_eq!(refused, Err(ChangeError::OnTrial { ends_at: at(60) }));
        on_trial().with(rules(Mode::Restricted), Holding::ForGood, at(60)).unwrap();
    }

    #[test]
    fn a_trial_is_neither_an_instant_nor_a_year() {
        for lasts in [Duration::ZERO, Duration::from_secs(4), Duration::from_secs(3601), Duration::MAX] {
            let closed = Declared::closed(ClusterId::generate());
            assert_eq!(
                closed.with(rules(Mode::Open), Holding::OnTrial(lasts), at(0)),
                Err(ChangeError::Length)
            );
        }
    }
}
