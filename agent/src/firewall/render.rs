//! The structure of the table as one document for `nft -j -f -`. Pure.
//!
//! ```text
//! prerouting ─ port, not loopback, to this machine ─► pN_in      output ─ port, not loopback ─► pN_out
//!   pN_in:   gate open? ─► pN_in_list · else refuse
//!   pN_in_list:  members pass · on trial? ─► tried addresses pass · else added ones pass, withdrawn ones are refused,
//!                kept ones pass · else refuse
//!   pN_out:  resets and replication pass · gate shut? ─► becomes a reset, and leaves · then the same, by destination
//!   pN_refuse:   count, log some if asked to, answer with a TCP reset
//! prerouting ─ replication port ─► pN_replication: members pass · else refuse       replication ─ led on to the port
//! output ─ to another member's replication port ─► pN_users: engine and agent pass · else refuse
//! ```
//! Each packet of each connection is looked at, whatever others accept: an accept ends only the chain that it stands in. So
//! an address that is taken off, or a gate that shuts, cuts what is open. Packets to other ports meet no rule at all. What
//! the reset itself needs on its way out is let through: a reset carries no acknowledgement of data. Where nodes need not
//! filter there is no replication port: members pass on the port itself, before the gate is asked.

use holdfast_common::protocol::Slot;
use serde_json::{Value, json};

use super::TABLE;
use super::parse::{Listing, Rule};
use super::plan::{Declared, Port, Replication};
use super::sets::{Family, SetId};

/// Before connection tracking: what is refused costs it nothing.
const IN_PRIORITY: i32 = -310;
/// After connection tracking: only that knows to which port the other end has sent what the engine answers.
const OUT_PRIORITY: i32 = -150;
/// Where destinations are translated.
const NAT_PRIORITY: i32 = -100;
/// The chain that leads replication on to the engines.
const REPLICATION: &str = "replication";
/// How many refused packets are logged in a minute, for each port.
const LOGGED_PER_MINUTE: u32 = 6;

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// The structure for the declared ports, as nft lists it.
pub(super) fn structure(declared: &Declared) -> Listing {
    let mut listing = Listing::default();
    for set in SetId::GATE.into_iter().chain([SetId::Trial]) {
        listing.sets.insert(set.to_string(), json!({"type": "inet_service", "flags": ["timeout"]}));
    }
    let base = |kind: &str, hook: &str, priority: i32| json!({"type": kind, "hook": hook, "prio": priority, "policy": "accept"});
    listing.chains.insert(Way::In.base().to_owned(), base("filter", "prerouting", IN_PRIORITY));
    listing.chains.insert(Way::Out.base().to_owned(), base("filter", "output", OUT_PRIORITY));
    // Without it nothing here needs connection tracking.
    if declared.ports.values().any(|port| port.replication.is_some()) {
        listing.chains.insert(REPLICATION.to_owned(), base("nat", "prerouting", NAT_PRIORITY));
    }
    for (&port, declared) in &declared.ports {
        for set in SetId::of_port(port) {
            let (SetId::Members(_, family)
            | SetId::Kept(_, family)
            | SetId::Added(_, family)
            | SetId::Withdrawn(_, family)
            | SetId::Tried(_, family)) = set
            else {
                continue;
            };
            let kind = match family {
                Family::V4 => "ipv4_addr",
                Family::V6 => "ipv6_addr",
            };
            listing.sets.insert(set.to_string(), json!({"type": kind, "flags": ["interval"]}));
        }
        listing.counters.insert(accepted(port));
        listing.counters.insert(refused(port));
        for way in [Way::In, Way::Out] {
            port_chains(&mut listing, port, declared, way);
        }
        if let Some(replication) = &declared.replication {
            replication_chains(&mut listing, port, replication);
        }
        refuse_chains(&mut listing, port, declared.log_refused.as_deref());
    }
    listing
}

/// The document that makes the table like `wanted`, whatever `found` there is; elements of sets that stay are left alone.
pub(super) fn document(wanted: &Listing, found: &Listing) -> Value {
    let table = || json!({"name": TABLE});
    let mut deeds = vec![json!({"metainfo": {"json_schema_version": 1}}), add("table", table())];
    let nothing = Listing::default();
    // What we never make cannot be taken out piece by piece: then all of it goes, in this very transaction.
    let found = if found.foreign.is_empty() {
        found
    } else {
        deeds.extend([deed("delete", "table", table()), add("table", table())]);
        &nothing
    };
    // Every rule goes before anything that it names.
    for chain in found.chains.keys() {
        deeds.push(deed("flush", "chain", named(chain, None)));
    }
    let changed = |name: &String, is: &Value| wanted.chains.get(name) != Some(is);
    for (name, _) in found.chains.iter().filter(|(name, is)| changed(name, is)) {
        deeds.push(deed("delete", "chain", named(name, None)));
    }
    let changed = |name: &String, is: &Value| wanted.sets.get(name) != Some(is);
    for (name, _) in found.sets.iter().filter(|(name, is)| changed(name, is)) {
        deeds.push(deed("delete", "set", named(name, None)));
    }
    for name in found.counters.difference(&wanted.counters) {
        deeds.push(deed("delete", "counter", named(name, None)));
    }
    for (name, about) in &wanted.sets {
        deeds.push(add("set", named(name, Some(about))));
    }
    for name in &wanted.counters {
        deeds.push(add("counter", named(name, None)));
    }
    for (name, about) in &wanted.chains {
        deeds.push(add("chain", named(name, Some(about))));
    }
    for Rule { chain, expression } in &wanted.rules {
        deeds.push(add("rule", json!({"chain": chain, "expr": expression})));
    }
    json!({ "nftables": deeds })
}

/// The name of a port's counter of packets that were let in.
pub(super) fn accepted(port: u16) -> String {
    format!("p{port}_accepted")
}

/// The name of a port's counter of packets that were refused.
pub(super) fn refused(port: u16) -> String {
    format!("p{port}_refused")
}

fn port_chains(listing: &mut Listing, port: u16, declared: &Port, way: Way) {
    let (chain, list, tried) = (way.chain(port, ""), way.chain(port, "_list"), way.chain(port, "_tried"));
    let refuse = way.refuse(port);
    for name in [&chain, &list, &tried] {
        listing.chains.insert(name.clone(), json!({}));
    }
    for port in declared.with_gated(port) {
        listing.rule(way.base(), way.entry(port, goto(&chain)));
    }
    if way == Way::Out {
        let reset = json!({"match": {"op": "in", "left": {"payload": {"protocol": "tcp", "field": "flags"}}, "right": "rst"}});
        listing.rule(&chain, vec![reset, accept()]);
    }
    match &declared.replication {
        Some(replication) if way == Way::Out => {
            let original = json!({"ct": {"key": "proto-dst", "dir": "original"}});
            let replies = vec![tcp(), equals(&original, &json!(replication.port))];
            way.judge(listing, &chain, |family| SetId::Members(port, family), &replies, &[accept()]);
        }
        Some(_) => {}
        None => way.let_in(listing, &chain, port, SetId::Members),
    }
    for slot in Slot::BOTH {
        let both = [SetId::Armed(slot), SetId::Granted(slot)].map(|set| way.port_in(set));
        listing.rule(&chain, both.into_iter().chain([goto(&list)]).collect());
    }
    listing.rule(&chain, vec![way.port_in(SetId::Readers), goto(&list)]);
    match way {
        Way::In => listing.rule(&chain, vec![goto(&refuse)]),
        Way::Out => reset_the_other_end(listing, &chain),
    }

    if declared.replication.is_some() {
        way.let_in(listing, &list, port, SetId::Members);
    }
    listing.rule(&list, vec![way.port_in(SetId::Trial), goto(&tried)]);
    way.let_in(listing, &list, port, SetId::Added);
    way.judge(listing, &list, |family| SetId::Withdrawn(port, family), &[], &[goto(&refuse)]);
    way.let_in(listing, &list, port, SetId::Kept);
    listing.rule(&list, vec![goto(&refuse)]);
    way.let_in(listing, &tried, port, SetId::Tried);
    listing.rule(&tried, vec![goto(&refuse)]);
}

/// The port that members use, here and on the way to other members.
fn replication_chains(listing: &mut Listing, port: u16, replication: &Replication) {
    let chain = format!("p{port}_replication");
    listing.chains.insert(chain.clone(), json!({}));
    listing.rule(Way::In.base(), Way::In.entry(replication.port, goto(&chain)));
    // It is no client's, and not counted.
    Way::In.judge(listing, &chain, |family| SetId::Members(port, family), &[], &[accept()]);
    listing.rule(&chain, vec![goto(&Way::In.refuse(port))]);
    let redirect = json!({"redirect": {"port": port}});
    listing.rule(REPLICATION, Way::In.entry(replication.port, redirect));

    let chain = format!("p{port}_users");
    listing.chains.insert(chain.clone(), json!({}));
    for (family, protocol) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let members = json!(format!("@{}", SetId::Members(port, family)));
        let to_member = equals(&json!({"payload": {"protocol": protocol, "field": "daddr"}}), &members);
        // Seen from here it is the port of the other end.
        let port = Way::In.port_is(&json!(replication.port));
        listing.rule(Way::Out.base(), vec![port, Way::Out.not_loopback(), to_member, goto(&chain)]);
    }
    for user in &replication.users {
        listing.rule(&chain, vec![equals(&json!({"meta": {"key": "skuid"}}), &json!(user)), accept()]);
    }
    listing.rule(&chain, vec![goto(&Way::Out.refuse(port))]);
}

/// Only what comes in is counted, and logged: what goes out is the answer to it.
fn refuse_chains(listing: &mut Listing, port: u16, log: Option<&str>) {
    let reset = json!({"reject": {"type": "tcp reset"}});
    let chain = Way::In.refuse(port);
    listing.chains.insert(chain.clone(), json!({}));
    if let Some(cluster) = log {
        let limit = json!({"limit": {"rate": LOGGED_PER_MINUTE, "burst": 5, "per": "minute"}});
        let prefix = format!("holdfast: refused {cluster}: ");
        listing.rule(&chain, vec![limit, json!({"log": {"prefix": prefix, "level": "info"}})]);
    }
    listing.rule(&chain, vec![tcp(), json!({"counter": refused(port)}), reset.clone()]);
    let chain = Way::Out.refuse(port);
    listing.chains.insert(chain.clone(), json!({}));
    listing.rule(&chain, vec![tcp(), reset]);
}

/// What leaves through a shut gate tells the other end that the connection is over: a client that waits for an answer would else
/// wait as long as its machine keeps connections that say nothing, which is hours. What the packet has of data nobody is
/// given: it comes with a reset.
fn reset_the_other_end(listing: &mut Listing, chain: &str) {
    let flags = json!({"payload": {"protocol": "tcp", "field": "flags"}});
    let reset = json!({"mangle": {"key": flags, "value": {"|": ["rst", "ack"]}}});
    listing.rule(chain, vec![reset, accept()]);
}

fn equals(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn tcp() -> Value {
    equals(&json!({"meta": {"key": "l4proto"}}), &json!("tcp"))
}

fn accept() -> Value {
    json!({"accept": null})
}

fn goto(chain: &str) -> Value {
    json!({"goto": {"target": chain}})
}

fn add(kind: &str, about: Value) -> Value {
    deed("add", kind, about)
}

/// A deed on a thing of our table, or on the table itself.
fn deed(verb: &str, kind: &str, mut about: Value) -> Value {
    about["family"] = json!("inet");
    if kind != "table" {
        about["table"] = json!(TABLE);
    }
    json!({ verb: { kind: about } })
}

fn named(name: &str, about: Option<&Value>) -> Value {
    let mut named = about.cloned().unwrap_or_else(|| json!({}));
    named["name"] = json!(name);
    named
}

// === impl Way ===

impl Way {
    fn base(self) -> &'static str {
        match self {
            Self::In => "prerouting",
            Self::Out => "output",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
        }
    }

    fn chain(self, port: u16, part: &str) -> String {
        format!("p{port}_{}{part}", self.word())
    }

    fn refuse(self, port: u16) -> String {
        self.chain(port, "_refuse")
    }

    /// The engine's port, which is this machine's end of the connection.
    fn port_is(self, right: &Value) -> Value {
        let field = match self {
            Self::In => "dport",
            Self::Out => "sport",
        };
        equals(&json!({"payload": {"protocol": "tcp", "field": field}}), right)
    }

    fn port_in(self, set: SetId) -> Value {
        self.port_is(&json!(format!("@{set}")))
    }

    fn not_loopback(self) -> Value {
        let key = match self {
            Self::In => "iifname",
            Self::Out => "oifname",
        };
        json!({"match": {"op": "!=", "left": {"meta": {"key": key}}, "right": "lo"}})
    }

    /// A rule of the base chain: what goes through this port of this machine, and not over loopback.
    fn entry(self, port: u16, verdict: Value) -> Vec<Value> {
        let mut entry = vec![self.port_is(&json!(port)), self.not_loopback()];
        if self == Self::In {
            // What is only forwarded to another machine is none of ours.
            entry.push(equals(&json!({"fib": {"result": "type", "flags": ["daddr"]}}), &json!("local")));
        }
        entry.push(verdict);
        entry
    }

    /// Accepts the addresses of a set, at the other end of the connection; what comes in is counted.
    fn let_in(self, listing: &mut Listing, chain: &str, port: u16, set: impl Fn(u16, Family) -> SetId) {
        let counter = (self == Self::In).then(|| json!({"counter": accepted(port)}));
        let verdict: Vec<Value> = counter.into_iter().chain([accept()]).collect();
        self.judge(listing, chain, |family| set(port, family), &[], &verdict);
    }

    /// What becomes of packets from (or to) the addresses of a set of which `before` is true too.
    fn judge(
        self,
        listing: &mut Listing,
        chain: &str,
        set: impl Fn(Family) -> SetId,
        before: &[Value],
        verdict: &[Value],
    ) {
        let field = match self {
            Self::In => "saddr",
            Self::Out => "daddr",
        };
        for (family, protocol) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
            let set = format!("@{}", set(family));
            let payload = json!({"payload": {"protocol": protocol, "field": field}});
            let mut expression = before.to_vec();
            expression.push(equals(&payload, &json!(set)));
            expression.extend_from_slice(verdict);
            listing.rule(chain, expression);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::plan::Port;
    use super::*;

    fn declared(ports: &[u16]) -> Declared {
        let plain = |port: u16| (port, Port::default());
        let full = |port: u16| {
            let replication = Some(Replication { port: port + 10_000, users: vec![0, 115] });
            let log_refused = Some("shop".to_owned());
            (port, Port { log_refused, replication, gated: vec![6432], ..Port::default() })
        };
        let port = |port: &u16| if *port == 5433 { full(*port) } else { plain(*port) };
        Declared { ports: ports.iter().map(port).collect::<BTreeMap<_, _>>() }
    }

    fn lines(document: &Value) -> String {
        let deeds = document["nftables"].as_array().unwrap();
        deeds.iter().map(|deed| deed.to_string() + "\n").collect()
    }

    #[test]
    fn the_first_load_is_this() {
        insta::assert_snapshot!(lines(&document(&structure(&declared(&[5432, 5433])), &Listing::default())));
    }

    #[test]
    fn a_port_more_and_one_less_is_this() {
        let found = structure(&declared(&[5432]));
        insta::assert_snapshot!(lines(&document(&structure(&declared(&[5434])), &found)));
    }

    #[test]
    fn without_clusters_no_packet_meets_a_rule() {
        assert!(structure(&Declared::default()).rules.is_empty());
    }
}
