//! When people are told that packets were refused: at once after a quiet time, then seldom, with what was counted meanwhile.
//! Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_common::id::ClusterId;
use holdfast_common::report::{AccessReport, Traffic};
use jiff::Timestamp;

/// The least time between two words about one cluster.
const PAUSE: Duration = Duration::from_secs(600);

/// What was told of each cluster.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    clusters: BTreeMap<ClusterId, Told>,
}

#[derive(Debug, Clone, Copy)]
struct Told {
    accepted: Traffic,
    refused: Traffic,
    since: Timestamp,
    /// Whether anything was said at that time; else it was only begun to be counted.
    said: bool,
}

// === impl Refusals ===

impl Refusals {
    /// Takes what is counted now, and says what is to be told of which cluster.
    pub(super) fn note(
        &mut self,
        counted: &BTreeMap<ClusterId, AccessReport>,
        now: Timestamp,
    ) -> Vec<(ClusterId, String)> {
        self.clusters.retain(|cluster, _| counted.contains_key(cluster));
        counted
            .iter()
            .filter_map(|(cluster, access)| Some((*cluster, self.note_one(*cluster, access, now)?)))
            .collect()
    }

    fn note_one(&mut self, cluster: ClusterId, access: &AccessReport, now: Timestamp) -> Option<String> {
        let AccessReport { accepted, refused, .. } = *access;
        let begun = Told { accepted, refused, since: now, said: false };
        let told = self.clusters.entry(cluster).or_insert(begun);
        // A table that was loaded anew counts anew.
        if refused.packets < told.refused.packets || accepted.packets < told.accepted.packets {
            *told = Told { said: told.said, since: told.since, ..begun };
            return None;
        }
        let spoke = told.said && now < told.since.saturating_add(PAUSE).unwrap_or(Timestamp::MAX);
        if refused.packets == told.refused.packets || spoke {
            return None;
        }
        let since = told.since;
        let refused_since = less(refused, told.refused);
        let accepted_since = less(accepted, told.accepted);
        *told = Told { said: true, ..begun };
        Some(format!(
            "since {since:.0}, {} of clients were refused, and {} accepted",
            shown(refused_since),
            shown(accepted_since)
        ))
    }
}

fn less(now: Traffic, before: Traffic) -> Traffic {
    Traffic {
        packets: now.packets.saturating_sub(before.packets),
        bytes: now.bytes.saturating_sub(before.bytes),
    }
}

fn shown(Traffic { packets, bytes }: Traffic) -> String {
    format!("{packets} packets ({bytes} bytes)")
}

#[cfg(test)]
mod tests {
    use holdfast_common::generation::Generation;

    use super::*;

    #[test]
    fn refused_packets_are_told_at_once_then_seldom_and_never_of_what_was_before() {
        let cluster = ClusterId::generate();
        let mut refusals = Refusals::default();
        let mut note = |accepted, refused, second| {
            let traffic = |packets| Traffic { packets, bytes: packets * 60 };
            let (accepted, refused) = (traffic(accepted), traffic(refused));
            let access = AccessReport { generation: Generation::NONE, trial_left: None, accepted, refused };
            let now = Timestamp::from_second(second).unwrap();
            refusals.note(&BTreeMap::from([(cluster, access)]), now).pop().map(|(_, message)| message)
        };
        // Counted before this agent was started: nothing new.
        assert_eq!(note(5, 70, 0), None);
        assert_eq!(note(6, 70, 1), None);
        assert_eq!(
            note(9, 72, 2).unwrap(),
            "since 1970-01-01T00:00:00Z, 2 packets (120 bytes) of clients were refused, and 4 packets (240 bytes) accepted"
        );
        assert_eq!((note(9, 73, 3), note(9, 99, 601)), (None, None));
        assert!(note(9, 99, 602).unwrap().starts_with("since 1970-01-01T00:00:02Z, 27 packets"));
        assert_eq!(note(10, 99, 5000), None);
        // The table was loaded anew, and counts from nothing.
        assert_eq!((note(0, 0, 5001), note(0, 0, 5002)), (None, None));
        assert!(note(0, 1, 5003).unwrap().contains(", 1 packets (60 bytes) of clients were refused"));
    }
}
