//! From signs of life to [`Availability`]. Pure: the caller says how long ago things were.
//!
//! ```text
//!            heartbeat                       silent > 3 s                    silent > 10 s, or closed > 5 s
//! (any) ───────────────────► Online ─────────────────────────► Late ─────────────────────────► Offline
//! ```

use std::time::Duration;

use holdfast_common::role::Availability;

/// How often agents are asked to send a heartbeat.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How often agents are asked to send metrics.
pub const METRICS_INTERVAL: Duration = Duration::from_secs(5);
/// A node that is silent for longer is late.
pub const LATE_AFTER: Duration = Duration::from_secs(3);
/// A node that is silent for longer is offline.
pub const OFFLINE_AFTER: Duration = Duration::from_secs(10);
/// A node without a session is offline after this, silent or not: there is nothing left to wait for but a new session.
pub const CLOSED_OFFLINE_AFTER: Duration = Duration::from_secs(5);

/// When a node last gave a sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signs {
    /// Since its last message.
    pub silent_for: Duration,
    /// Since its session ended; `None` while it has one.
    pub closed_for: Option<Duration>,
}

/// What follows from them.
pub fn availability(signs: Signs) -> Availability {
    let Signs { silent_for, closed_for } = signs;
    if silent_for > OFFLINE_AFTER || closed_for.is_some_and(|closed| closed > CLOSED_OFFLINE_AFTER) {
        Availability::Offline
    } else if silent_for > LATE_AFTER {
        Availability::Late
    } else {
        Availability::Online
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_makes_a_node_late_and_then_offline() {
        use Availability::{Late, Offline, Online};
        let table = [
            (0, None, Online),
            (3_000, None, Online),
            (3_001, None, Late),
            (10_000, None, Late),
            (10_001, None, Offline),
            (1_000, Some(1_000), Online),
            (4_000, Some(4_000), Late),
            (5_000, Some(5_000), Late),
            (5_001, Some(5_001), Offline),
            (0, Some(6_000), Offline),
            (u64::MAX, None, Offline),
        ];
        for (silent, closed, expected) in table {
            let signs = Signs {
                silent_for: Duration::from_millis(silent),
                closed_for: closed.map(Duration::from_millis),
            };
            assert_eq!(availability(signs), expected, "{signs:?}");
        }
    }
}
