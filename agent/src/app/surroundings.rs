//! What the engines are told of leases and firewall, for deeds that may replace data.

use std::sync::Arc;

use holdfast_common::id::ClusterId;
use holdfast_common::protocol::Standing;
use holdfast_common::term::Term;
use tokio::sync::watch;

use crate::engine::Surroundings;
use crate::{firewall, lease};

/// Always the newest.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) leases: watch::Receiver<Arc<lease::Status>>,
    pub(super) firewall: watch::Receiver<Arc<firewall::service::Status>>,
}

// === impl Known ===

impl Surroundings for Known {
    fn standing(&self, cluster: ClusterId) -> Option<(Term, Standing)> {
        self.leases.borrow().members.get(&cluster).map(|held| held.standing)
    }

    fn covers(&self, cluster: ClusterId) -> bool {
        self.firewall.borrow().covers(cluster)
    }
}
