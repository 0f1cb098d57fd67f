//! Connections whose other end is let in no more: they are ended for the server too.
//!
//! ```text
//! the kernel has what was declared ─► connections to managed ports ─► from whom the rules let in?  no ─► ended, here and there
//! ```
//! The rules cut what is said. On a connection on which nothing is said a server would hold its session, with its locks and its open
//! transaction, until the kernel asks whether the other end is there: some ten seconds. Whether the gate is open is not
//! asked: what it shuts is for the lease to end.

use std::net::IpAddr;

use holdfast_common::error::Chain;

use super::plan::{Addresses, Declared, Port, Trial};
use super::sets::Interval;
use super::{Error, Firewall};

/// Ends what is to be ended after each look at the table.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// It was told that the kernel does not do it.
    is_told: bool,
}

// === impl Strangers ===

impl Strangers {
    /// After the table was made as declared. What cannot be ended here ends by the servers' own keepalives.
    pub(super) async fn end(&mut self, firewall: &Firewall, declared: &Declared) {
        match firewall.end_strangers(declared).await {
            Ok(0) => {}
            Ok(ended) => {
                tracing::info!(ended, "connections from addresses that are let in no more are ended")
            }
            Err(_) if self.is_told => {}
            Err(error) => {
                self.is_told = true;
                let error = Chain(&error);
                tracing::warn!(%error, "connections from addresses that are let in no more cannot be ended; one on which nothing is said ends by its server's keepalives");
            }
        }
    }
}

// === impl Firewall ===

impl Firewall {
    /// Ends the connections to managed ports from whom the table, as it was last made, lets in no more. How many.
    ///
    /// # Errors
    /// Also where the kernel cannot list or end connections. The rules hold all the same.
    pub async fn end_strangers(&self, declared: &Declared) -> Result<usize, Error> {
        let Some(known) = &self.known else { return Ok(0) };
        let ports = declared.ports.iter().flat_map(|(&own, port)| port.with_gated(own));
        let found = self.kernel.connections(ports.collect()).await?;
        let mut strangers = Vec::new();
        for (&own, port) in &declared.ports {
            let is_on_trial = known.observed.trials.contains(&own);
            let ports: Vec<u16> = port.with_gated(own).collect();
            let of_port = found.iter().filter(|(at, _)| ports.contains(at));
            strangers.extend(
                of_port.filter(|(_, it)| !port.lets_in(it.peer, is_on_trial)).map(|(_, it)| it.clone()),
            );
        }
        let ended = strangers.len();
        if ended > 0 {
            self.kernel.end(strangers).await?;
        }
        Ok(ended)
    }
}

// === impl Port ===

impl Port {
    /// Whether this address comes in while the gate is open.
    fn lets_in(&self, peer: IpAddr, is_on_trial: bool) -> bool {
        let Self { members, kept, trial, log_refused: _, replication: _, gated: _ } = self;
        let list = match trial {
            Some(Trial { tried, phase: _ }) if is_on_trial => tried,
            Some(_) | None => kept,
        };
        members.contain(peer) || list.contain(peer)
    }
}

// === impl Addresses ===

impl Addresses {
    fn contain(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => contain(&self.v4, address.into()),
            IpAddr::V6(address) => contain(&self.v6, address.into()),
        }
    }
}

/// They lie apart, and in order.
fn contain<T: Copy + Ord>(intervals: &[Interval<T>], one: T) -> bool {
    let after = intervals.partition_point(|interval| interval.first <= one);
    after.checked_sub(1).and_then(|at| intervals.get(at)).is_some_and(|interval| one <= interval.last)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_common::access::{Cidr, Reach};

    use super::super::plan::TrialPhase;
    use super::*;

    fn reach(texts: &[&str]) -> Addresses {
        let reach: Reach = texts.iter().map(|text| text.parse::<Cidr>().unwrap()).collect();
        Addresses::from(&reach)
    }

    fn let_in(port: &Port, is_on_trial: bool) -> Vec<&'static str> {
        let all = [
            "10.0.0.1",
            "10.0.0.255",
            "10.0.1.0",
            "192.0.2.1",
            "2001:db8::1",
            "2001:db8:1::",
            "203.0.113.1",
            "255.255.255.255",
        ];
        all.into_iter().filter(|it| port.lets_in(it.parse().unwrap(), is_on_trial)).collect()
    }

    #[test]
    fn members_stay_and_those_on_the_list_that_holds_now() {
        let kept = reach(&["10.0.0.0/24", "2001:db8::/48"]);
        let port = Port { members: reach(&["192.0.2.1"]), kept, ..Port::default() };
        assert_eq!(let_in(&port, false), ["10.0.0.1", "10.0.0.255", "192.0.2.1", "2001:db8::1"]);
        // What is on trial is none of ours: it was not declared.
        assert_eq!(let_in(&port, true), let_in(&port, false));
        for phase in [TrialPhase::Begun, TrialPhase::Begin(Duration::from_secs(5))] {
            let trial = Some(Trial { tried: reach(&["203.0.113.0/24", "255.255.255.255"]), phase });
            let port = Port { trial, ..port.clone() };
            assert_eq!(let_in(&port, false), ["10.0.0.1", "10.0.0.255", "192.0.2.1", "2001:db8::1"]);
            assert_eq!(let_in(&port, true), ["192.0.2.1", "203.0.113.1", "255.255.255.255"]);
        }
    }

    #[test]
    fn nobody_comes_in_to_a_closed_port_and_everybody_to_an_open_one() {
        assert_eq!(let_in(&Port::default(), false), [""; 0]);
        let open = Port { kept: reach(&["0.0.0.0/0", "::/0"]), ..Port::default() };
        assert_eq!(let_in(&open, false).len(), 8);
    }
}
