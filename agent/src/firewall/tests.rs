//! The table on real hosts: what nft and real connections say of it.

pub(crate) mod lab;
mod layers;
mod ports;
mod strangers;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

use holdfast_common::access::{Cidr, Reach};
use holdfast_common::protocol::Slot;

use self::lab::{CLIENT, Echo, Lab, OTHER, SERVER, echo, for_a_while, run, wait_for, with_lab};
use super::plan::{Addresses, Declared, Port, Replication, Trial, TrialPhase};
use super::*;

const PORT: u16 = 5432;
const SSH: u16 = 22;

fn reach(texts: &[&str]) -> Addresses {
    let reach: Reach = texts.iter().map(|text| text.parse::<Cidr>().unwrap()).collect();
    Addresses::from(&reach)
}

fn only(addresses: [IpAddr; 2]) -> Addresses {
    addresses.into_iter().collect()
}

fn declared(port: Port) -> Declared {
    Declared { ports: BTreeMap::from([(PORT, port)]) }
}

fn kept(kept: Addresses) -> Declared {
    declared(Port { kept, ..Port::default() })
}

fn on_trial(kept: Addresses, tried: Addresses, phase: TrialPhase) -> Declared {
    declared(Port { kept, trial: Some(Trial { tried, phase }), ..Port::default() })
}

/// A host whose engine everybody may reach who is in the list.
async fn open_host(lab: &Lab, declared: &Declared) -> (Firewall, Gate) {
    lab.serve(PORT);
    lab.serve(SSH);
    let mut firewall = Firewall::new(lab.host());
    firewall.apply(declared).await.unwrap();
    let gate = Gate::open(firewall.kernel()).unwrap();
    gate.open_for_ever(&[PORT]).unwrap();
    (firewall, gate)
}

/// A connection of each family.
fn connections(lab: &Lab, from: [IpAddr; 2]) -> Vec<TcpStream> {
    from.into_iter().map(|from| lab.connect(from, PORT).unwrap()).collect()
}

fn each(connections: &mut [TcpStream]) -> Vec<Echo> {
    connections.iter_mut().map(echo).collect()
}

fn tries(lab: &Lab, from: [IpAddr; 2]) -> Vec<Echo> {
    from.into_iter().map(|from| lab.try_from(from, PORT)).collect()
}

const BACK: [Echo; 2] = [Echo::Back; 2];
const RESET: [Echo; 2] = [Echo::Reset; 2];

fn set(name: &str) -> String {
    run("nft", &["list", "set", "inet", TABLE, name])
}

#[test]
fn the_kernel_lists_the_structure_as_it_was_declared() {
    with_lab(async |lab| {
        let firewall = &mut Firewall::new(lab.host());
        let log_refused = Some("shop".to_owned());
        let replication = Some(Replication { port: 15_432, users: vec![0, 115] });
        let ports = BTreeMap::from([
            (PORT, Port { replication, gated: vec![6432], ..Port::default() }),
            (6000, Port { log_refused, ..Port::default() }),
        ]);
        let declared = Declared { ports };
        assert!(firewall.apply(&declared).await.unwrap().loaded);
        assert_eq!(firewall.spelling, None, "this nft lists it in other words");
        assert!(!firewall.apply(&declared).await.unwrap().loaded);
        // From many ports to none and back, whatever stood there before.
        for next in [Declared::default(), kept(Addresses::default()), declared] {
            assert!(firewall.apply(&next).await.unwrap().loaded);
            assert_eq!(firewall.apply(&next).await.unwrap(), Applied::default());
        }
    });
}

#[test]
fn elements_are_in_the_kernel_as_nft_understands_them() {
    with_lab(async |lab| {
        let mut firewall = Firewall::new(lab.host());
        let texts =
            ["10.0.0.0/8", "192.0.2.7", "192.0.2.8/30", "255.255.255.252/30", "0.0.0.0/8", "2001:db8::/32"];
        firewall.apply(&kept(reach(&texts))).await.unwrap();
        let listed = set("p5432_kept4");
        for text in ["0.0.0.0/8", "10.0.0.0/8", "192.0.2.7, 192.0.2.8/30", "255.255.255.252/30"] {
            assert!(listed.contains(text), "{text} in {listed}");
        }
        assert!(set("p5432_kept6").contains("elements = { 2001:db8::/32 }"));
        // To everybody and back to nobody.
        firewall.apply(&kept(reach(&["0.0.0.0/0", "::/0"]))).await.unwrap();
        assert!(set("p5432_kept4").contains("elements = { 0.0.0.0/0 }"), "{}", set("p5432_kept4"));
        assert!(set("p5432_kept6").contains("elements = { ::/0 }"), "{}", set("p5432_kept6"));
        firewall.apply(&kept(Addresses::default())).await.unwrap();
        assert!(!set("p5432_kept4").contains("elements") && !set("p5432_kept6").contains("elements"));
    });
}

#[test]
fn only_those_on_the_list_come_in_and_ssh_never_closes() {
    with_lab(async |lab| {
        let (mut firewall, gate) = open_host(&lab, &kept(only(CLIENT))).await;
        assert_eq!(tries(&lab, CLIENT), BACK);
        assert_eq!(tries(&lab, OTHER), RESET);
        firewall.apply(&kept(reach(&["0.0.0.0/0", "::/0"]))).await.unwrap();
        assert_eq!(tries(&lab, OTHER), BACK);
        // Whatever is declared, other ports meet no rule.
        for declared in [Declared::default(), kept(Addresses::default()), kept(reach(&["198.51.100.0/24"]))] {
            firewall.apply(&declared).await.unwrap();
            assert_eq!(CLIENT.map(|from| lab.try_from(from, SSH)), BACK);
        }
        gate.shut(&[PORT]).unwrap();
        assert_eq!(CLIENT.map(|from| lab.try_from(from, SSH)), BACK);
    });
}

#[test]
fn members_come_in_through_a_shut_gate_and_nobody_else_does() {
    with_lab(async |lab| {
        let port = Port { members: only(CLIENT), kept: only(OTHER), ..Port::default() };
        let (_firewall, gate) = open_host(&lab, &declared(port)).await;
        assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (BACK.into(), BACK.into()));
        gate.shut(&[PORT]).unwrap();
        assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (BACK.into(), RESET.into()));
    });
}

#[test]
fn an_address_that_is_taken_off_loses_its_connections_at_once() {
    with_lab(async |lab| {
        // An accept of established connections by somebody else, as every machine has one, must not save them.
        run(
            "nft",
            &[
                "add table inet other; add chain inet other in { type filter hook input priority 0; policy accept; }; \
                      add rule inet other in ct state established,related accept; \
                      add chain inet other out { type filter hook output priority -190; policy accept; }; \
                      add rule inet other out accept; \
                      add chain inet other early { type filter hook prerouting priority -400; policy accept; }; \
                      add rule inet other early accept",
            ],
        );
        let both = || CLIENT.into_iter().chain(OTHER).collect::<Addresses>();
        let (mut firewall, _gate) = open_host(&lab, &kept(both())).await;
        let (mut cut, mut stays) = (connections(&lab, CLIENT), connections(&lab, OTHER));
        assert_eq!((each(&mut cut), each(&mut stays)), (BACK.into(), BACK.into()));
        firewall.apply(&kept(only(OTHER))).await.unwrap();
        assert_eq!((each(&mut cut), each(&mut stays)), (RESET.into(), BACK.into()));
    });
}

#[test]
fn what_an_engine_still_wants_to_say_does_not_leave_after_the_cut() {
    with_lab(async |lab| {
        let (mut firewall, _gate) = open_host(&lab, &kept(only(CLIENT))).await;
        let listener = TcpListener::bind((SERVER[0], 5999)).unwrap();
        let mut other = declared(Port { kept: only(CLIENT), ..Port::default() });
        other.ports.insert(5999, Port { kept: only(CLIENT), ..Port::default() });
        firewall.apply(&other).await.unwrap();
        Gate::open(firewall.kernel()).unwrap().open_for_ever(&[5999]).unwrap();
        let mut client = lab.connect(CLIENT[0], 5999).unwrap();
        let (mut engine, _) = listener.accept().unwrap();
        other.ports.insert(5999, Port::default());
        firewall.apply(&other).await.unwrap();
        // The client is silent; only the engine speaks, as with the acknowledgement of a commit. It is cut off itself.
        use std::io::{Read as _, Write as _};
        wait_for("the engine's connection to end", || engine.write_all(b"committed").is_err());
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "the client heard something");
    });
}

#[test]
fn who_waits_for_an_answer_while_the_gate_shuts_gets_none_and_is_told_at_once() {
    with_lab(async |lab| {
        let mut firewall = Firewall::new(lab.host());
        firewall.apply(&kept(only(CLIENT))).await.unwrap();
        let gate = Gate::open(firewall.kernel()).unwrap();
        let engine = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
        for from in CLIENT {
            gate.open_for_ever(&[PORT]).unwrap();
            let mut client = lab.connect(from, PORT).unwrap();
            let (mut session, _) = engine.accept().unwrap();
            client.write_all(b"commit").unwrap();
            session.read_exact(&mut [0; 6]).unwrap();
            gate.shut(&[PORT]).unwrap();
            session.write_all(b"done").unwrap();
            assert_eq!(client.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn the_gate_opens_by_both_halves_of_a_slot_and_shuts_by_itself() {
    with_lab(async |lab| {
        let (_firewall, gate) = open_host(&lab, &kept(only(CLIENT))).await;
        gate.shut(&[PORT]).unwrap();
        let lasts = Duration::from_millis(1500);
        gate.arm(&[PORT], Slot::A, lasts).unwrap();
        assert_eq!(tries(&lab, CLIENT), RESET, "armed, not granted");
        gate.grant(&[PORT], Slot::B).unwrap();
        assert_eq!(tries(&lab, CLIENT), RESET, "granted for the other slot");
        gate.grant(&[PORT], Slot::A).unwrap();
        let mut open = connections(&lab, CLIENT);
        assert_eq!(each(&mut open), BACK);
        assert!(gate.observe(PORT).unwrap().is_open());
        // Nothing of the agent runs from here on.
        wait_for("the kernel to shut the gate", || !gate.observe(PORT).unwrap().is_open());
        assert_eq!((each(&mut open), tries(&lab, CLIENT)), (RESET.into(), RESET.into()));
        // Armed again, it is shut until there is a new answer.
        gate.grant(&[PORT], Slot::A).unwrap();
        gate.arm(&[PORT], Slot::A, Duration::from_secs(60)).unwrap();
        assert!(!gate.observe(PORT).unwrap().is_open());
    });
}

#[test]
fn an_agent_that_stalls_between_the_answer_and_the_kernel_opens_nothing() {
    with_lab(async |lab| {
        let (_firewall, gate) = open_host(&lab, &kept(only(CLIENT))).await;
        gate.shut(&[PORT]).unwrap();
        gate.arm(&[PORT], Slot::A, Duration::from_secs(1)).unwrap();
        // It was granted, and the agent does not run until the lease is long over.
        wait_for("the armed time to end", || gate.observe(PORT).unwrap().armed == [None, None]);
        gate.grant(&[PORT], Slot::A).unwrap();
        assert_eq!(tries(&lab, CLIENT), RESET);
        assert_eq!(gate.observe(PORT).unwrap().left(Slot::A), Duration::ZERO);
    });
}

#[test]
fn what_was_open_without_an_end_gets_one_and_is_not_shut_in_between() {
    with_lab(async |lab| {
        let (_firewall, gate) = open_host(&lab, &kept(only(CLIENT))).await;
        gate.open_for_ever(&[PORT]).unwrap();
        let mut open = connections(&lab, CLIENT);
        assert_eq!(each(&mut open), BACK);
        assert!(gate.observe(PORT).unwrap().is_for_ever());
        gate.limit(&[PORT], Slot::A, Duration::from_secs(2)).unwrap();
        let found = gate.observe(PORT).unwrap();
        assert!(!found.is_for_ever() && found.left(Slot::A) > Duration::from_secs(1), "{found:?}");
        assert_eq!(each(&mut open), BACK);
        wait_for("the kernel to shut the gate", || !gate.observe(PORT).unwrap().is_open());
        assert_eq!((each(&mut open), tries(&lab, CLIENT)), (RESET.into(), RESET.into()));
    });
}

#[test]
fn arming_anew_extends_what_was_armed_before() {
    with_lab(async |lab| {
        let (_firewall, gate) = open_host(&lab, &kept(only(CLIENT))).await;
        gate.shut(&[PORT]).unwrap();
        gate.arm(&[PORT], Slot::B, Duration::from_secs(2)).unwrap();
        gate.arm(&[PORT], Slot::B, Duration::from_secs(60)).unwrap();
        let [_, Some(Some(left))] = gate.observe(PORT).unwrap().armed else {
            panic!("it is not armed for a time")
        };
        assert!(left > Duration::from_secs(50), "{left:?}");
        gate.open_to_readers(&[PORT], Duration::from_secs(60)).unwrap();
        assert_eq!(tries(&lab, CLIENT), BACK, "readers");
        // Whoever has put a primary's port there: it would be open beyond the lease.
        gate.arm(&[PORT], Slot::A, Duration::from_secs(60)).unwrap();
        assert_eq!(tries(&lab, CLIENT), RESET, "a primary's port is open to readers");
    });
}

#[test]
fn a_trial_ends_in_the_kernel_with_nobody_alive() {
    with_lab(async |lab| {
        let (mut firewall, gate) = open_host(&lab, &kept(only(CLIENT))).await;
        let begin = TrialPhase::Begin(Duration::from_millis(1500));
        // Locked out, as by a mistake; and somebody else let in.
        firewall.apply(&on_trial(only(CLIENT), only(OTHER), begin)).await.unwrap();
        assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (RESET.into(), BACK.into()));
        let mut tried = connections(&lab, OTHER);
        assert_eq!(each(&mut tried), BACK);
        // As after kill -9 of agent and coordinator.
        drop((firewall, gate));
        wait_for("the trial's end", || lab.try_from(CLIENT[0], PORT) == Echo::Back);
        assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (BACK.into(), RESET.into()));
        assert_eq!(each(&mut tried), RESET);
        // The next agent knows that it was begun, and does not begin it again.
        let mut firewall = Firewall::new(lab.host());
        firewall.apply(&on_trial(only(CLIENT), only(OTHER), TrialPhase::Begun)).await.unwrap();
        assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (BACK.into(), RESET.into()));
    });
}

/// *Mutant* of the test above: an end that the agent's own timer would bring does not come without the agent.
#[test]
fn a_trial_that_user_space_had_to_end_would_not_end() {
    with_lab(async |lab| {
        let (mut firewall, _gate) = open_host(&lab, &kept(only(CLIENT))).await;
        let begin = TrialPhase::Begin(Duration::from_millis(1500));
        firewall.apply(&on_trial(only(CLIENT), only(OTHER), begin)).await.unwrap();
        // The element without its time: what is left is a promise of the agent to come back.
        run(
            "nft",
            &["delete element inet holdfast trial { 5432 }; add element inet holdfast trial { 5432 }"],
        );
        drop(firewall);
        for_a_while(Duration::from_millis(2500), || assert_eq!(tries(&lab, CLIENT), RESET, "it ended"));
    });
}

#[test]
fn a_confirmed_trial_stays() {
    with_lab(async |lab| {
        let (mut firewall, _gate) = open_host(&lab, &kept(only(CLIENT))).await;
        let begin = TrialPhase::Begin(Duration::from_millis(1500));
        firewall.apply(&on_trial(only(CLIENT), only(OTHER), begin)).await.unwrap();
        let mut open = connections(&lab, OTHER);
        firewall.apply(&kept(only(OTHER))).await.unwrap();
        for_a_while(Duration::from_millis(2000), || {
            assert_eq!((tries(&lab, CLIENT), each(&mut open)), (RESET.into(), BACK.into()));
        });
        assert!(!set("p5432_tried4").contains("elements") && !set("trial").contains("elements"));
    });
}

#[test]
fn what_somebody_else_changes_is_noticed_and_put_right() {
    with_lab(async |lab| {
        let wanted = kept(only(CLIENT));
        let (mut firewall, gate) = open_host(&lab, &wanted).await;
        let rule = "insert rule inet holdfast p5432_in counter accept";
        for (deed, drift) in [
            ("add element inet holdfast p5432_kept4 { 203.0.113.3 }", Drift::Elements),
            ("flush set inet holdfast p5432_kept6", Drift::Elements),
            (rule, Drift::Structure),
            ("flush chain inet holdfast prerouting", Drift::Structure),
            ("add set inet holdfast mine { type ipv4_addr; }", Drift::Structure),
            ("add map inet holdfast mine { type ipv4_addr : verdict; }", Drift::Structure),
            ("add table inet holdfast { flags dormant; }", Drift::Structure),
            ("delete table inet holdfast", Drift::Removed),
            ("flush ruleset", Drift::Removed),
            ("add element inet holdfast trial { 5432 }", Drift::Ports),
            ("add element inet holdfast readers { 5432 timeout 1h }", Drift::Ports),
            ("add element inet holdfast granted_1 { 6432 }", Drift::Ports),
            // In place of what the agent has put in.
            ("flush set inet holdfast armed_0; add element inet holdfast armed_0 { 5432 }", Drift::Ports),
        ] {
            assert_eq!(firewall.apply(&wanted).await.unwrap(), Applied::default(), "before {deed}");
            run("nft", &[deed]);
            let applied = firewall.apply(&wanted).await.unwrap();
            assert_eq!(applied.drift, Some(drift), "{deed}");
            let others = ["trial", "readers", "granted_1", "armed_1"];
            assert!(others.iter().all(|of_ports| !set(of_ports).contains("elements")), "{deed}");
            gate.open_for_ever(&[PORT]).unwrap();
            assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (BACK.into(), RESET.into()), "{deed}");
        }
        // Our own deeds, and changes to other tables, are no drift.
        gate.arm(&[PORT], Slot::B, Duration::from_secs(60)).unwrap();
        gate.open_to_readers(&[PORT], Duration::from_millis(50)).unwrap();
        run("nft", &["add table inet other; add set inet other s { type ipv4_addr; }"]);
        assert_eq!(firewall.apply(&wanted).await.unwrap(), Applied::default());
        wait_for("what has a time to end", || gate.observe(PORT).unwrap().readers.is_none());
        run("nft", &["delete table inet other"]);
        assert_eq!(firewall.apply(&wanted).await.unwrap(), Applied::default());
        // Nor is what an agent that is gone has left.
        assert_eq!(Firewall::new(lab.host()).apply(&wanted).await.unwrap(), Applied::default());
    });
}

#[test]
fn other_tables_and_open_connections_outlive_every_change() {
    with_lab(async |lab| {
        run(
            "nft",
            &[
                "add table inet other; add chain inet other in { type filter hook input priority 0; policy accept; }; \
                      add rule inet other in tcp dport 22 counter accept",
            ],
        );
        let list = || run("nft", &["-s", "list", "table", "inet", "other"]);
        let before = list();
        let (mut firewall, _gate) = open_host(&lab, &kept(only(CLIENT))).await;
        let mut open = connections(&lab, CLIENT);
        let mut wanted = kept(only(CLIENT));
        for port in 6000..6003 {
            wanted.ports.insert(port, Port { kept: reach(&["10.0.0.0/8"]), ..Port::default() });
            firewall.apply(&wanted).await.unwrap();
            assert_eq!(each(&mut open), BACK);
        }
        firewall.apply(&kept(only(CLIENT))).await.unwrap();
        assert_eq!(each(&mut open), BACK);
        assert_eq!(list(), before);
    });
}

#[test]
fn a_change_that_the_kernel_refuses_changes_nothing() {
    with_lab(async |lab| {
        use super::plan::{Change, Deed};
        use super::sets::{Elements, Family, Interval, SetId};
        let (firewall, _gate) = open_host(&lab, &kept(only(CLIENT))).await;
        let before = (set("p5432_kept4"), set("p5432_kept6"));
        let change = |deed, elements| Change { set: SetId::Kept(PORT, Family::V4), deed, elements };
        let at = |first, last| Elements::V4(vec![Interval { first, last }]);
        let error = firewall
            .kernel()
            .change(&[
                change(Deed::Add, at(1, 5)),
                change(Deed::Delete, at(77, 78)),
                change(Deed::Add, at(9, 9)),
            ])
            .unwrap_err();
        assert!(error.is_absent(), "{error:?}");
        assert_eq!((set("p5432_kept4"), set("p5432_kept6")), before);
    });
}

#[test]
fn the_counters_tell_what_came_in_and_what_was_refused() {
    with_lab(async |lab| {
        let (firewall, _gate) = open_host(&lab, &kept(only(CLIENT))).await;
        assert_eq!(firewall.counted([PORT]).unwrap()[&PORT], (Counter::default(), Counter::default()));
        assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (BACK.into(), RESET.into()));
        let (accepted, refused) = firewall.counted([PORT]).unwrap()[&PORT];
        assert_eq!(refused.packets, 2);
        assert!(accepted.packets > 4 && accepted.bytes > 200, "{accepted:?}");
    });
}
