//! Which troubles are told as events: each kind once, and again only after it was over.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_common::report::{Trouble, TroubleKind};
use tokio::time::Instant;

/// For how long a trouble must last; of those that a change of primary brings for a moment nobody wants to hear.
const TOLD_AFTER: Duration = Duration::from_secs(10);
/// For how long it must be over to be another one.
const OVER_AFTER: Duration = Duration::from_secs(60);

/// What is remembered of the troubles of one member.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    known: BTreeMap<TroubleKind, Known>,
}

#[derive(Debug)]
struct Known {
    since: Instant,
    seen: Instant,
    told: bool,
}

// === impl Troubles ===

impl Troubles {
    /// Takes in what there is now; returns what is to be told.
    pub(super) fn note(&mut self, troubles: &[Trouble], now: Instant) -> Vec<Trouble> {
        self.known.retain(|_, known| now.duration_since(known.seen) < OVER_AFTER);
        let mut tell = Vec::new();
        for trouble in troubles {
            let known =
                self.known.entry(trouble.kind).or_insert(Known { since: now, seen: now, told: false });
            known.seen = now;
            if !known.told && now.duration_since(known.since) >= told_after(trouble.kind) {
                known.told = true;
                tell.push(trouble.clone());
            }
        }
        tell
    }
}

const fn told_after(kind: TroubleKind) -> Duration {
    match kind {
        TroubleKind::NotReceiving | TroubleKind::ReplayDelayed => TOLD_AFTER,
        TroubleKind::LogRemoved
        | TroubleKind::Diverged
        | TroubleKind::ReplayPaused
        | TroubleKind::ParameterTooLow
        | TroubleKind::SlotMissing
        | TroubleKind::SlotLost
        | TroubleKind::SlotRetainsLog => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_is_told_once_and_again_only_after_it_was_over() {
        let begun = Instant::now();
        let mut troubles = Troubles::default();
        let mut told = |kinds: &[TroubleKind], seconds| -> Vec<TroubleKind> {
            let there: Vec<Trouble> =
                kinds.iter().map(|kind| Trouble { kind: *kind, message: String::new() }).collect();
            let told = troubles.note(&there, begun + Duration::from_secs(seconds));
            told.iter().map(|trouble| trouble.kind).collect()
        };
        use TroubleKind::{NotReceiving, SlotLost};
        assert_eq!(told(&[NotReceiving, SlotLost], 0), [SlotLost]);
        assert_eq!(told(&[NotReceiving], 9), []);
        assert_eq!(told(&[NotReceiving, SlotLost], 10), [NotReceiving]);
        assert_eq!(told(&[NotReceiving, SlotLost], 69), []);
        assert_eq!(told(&[NotReceiving], 128), []);
        assert_eq!(told(&[NotReceiving, SlotLost], 129), [SlotLost], "it was over for a minute");
    }
}
