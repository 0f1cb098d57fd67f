//! Where the coordinators are: their names resolved, now and then. What a name last led to stays known while it cannot
//! be resolved.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::Address;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(60);

/// Keeps the addresses known.
#[derive(Debug)]
pub struct Addresses {
    coordinators: Vec<Address>,
    known: watch::Sender<Vec<IpAddr>>,
}

// === impl Addresses ===

impl Addresses {
    /// Those that need no resolving are known at once.
    pub fn new(coordinators: Vec<Address>) -> (Self, watch::Receiver<Vec<IpAddr>>) {
        let literal = |address: &Address| Some(address.as_str().parse::<std::net::SocketAddr>().ok()?.ip());
        let mut first: Vec<IpAddr> = coordinators.iter().filter_map(literal).collect();
        first.sort_unstable();
        first.dedup();
        let (known, reader) = watch::channel(first);
        (Self { coordinators, known }, reader)
    }

    /// Resolves them again and again, until it is stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut found: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
        loop {
            for coordinator in &self.coordinators {
                // Dropping a look-up half-way loses nothing.
                let resolved = tokio::select! {
                    () = stop.cancelled() => return,
                    resolved = tokio::net::lookup_host(coordinator.as_str()) => resolved,
                };
                if let Ok(addresses) = resolved {
                    found.insert(coordinator.as_str(), addresses.map(|address| address.ip()).collect());
                }
            }
            let mut all: Vec<IpAddr> = found.values().flatten().copied().collect();
            all.sort_unstable();
            all.dedup();
            self.known.send_if_modified(|known| {
                let changed = !all.is_empty() && *known != all;
                if changed {
                    known.clone_from(&all);
                }
                changed
            });
            // Both arms are cancel-safe.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_known_at_once_and_names_when_they_are_resolved() {
        let coordinators =
            ["192.0.2.1:7444", "[2001:db8::1]:7444", "localhost:7444"].map(|it| it.parse().unwrap());
        let (addresses, mut known) = Addresses::new(coordinators.to_vec());
        let literal: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(*known.borrow_and_update(), literal);
        let stop = CancellationToken::new();
        let running = tokio::spawn(addresses.run(stop.clone()));
        known.changed().await.unwrap();
        assert!(known.borrow().iter().any(IpAddr::is_loopback) && known.borrow().contains(&literal[0]));
        stop.cancel();
        running.await.unwrap();
    }
}
