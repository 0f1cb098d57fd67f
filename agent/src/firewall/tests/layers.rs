//! Lists of which a little changes: base, added and withdrawn in the kernel, and what nft and real connections say of them.

use proptest::strategy::{Strategy, ValueTree as _};
use proptest::test_runner::TestRunner;
use serde_json::Value;

use super::*;

/// So that short lists are long ones.
const FEW: Bounds = Bounds { short: 2, beside: 24 };

/// From the first address to the last, both included.
type Ranges = Vec<(u128, u128)>;

fn number(address: &str) -> u128 {
    match address.parse().unwrap() {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn range(element: &Value) -> (u128, u128) {
    if let Some(address) = element.as_str() {
        return (number(address), number(address));
    }
    if let Some(ends) = element["range"].as_array() {
        return (number(ends[0].as_str().unwrap()), number(ends[1].as_str().unwrap()));
    }
    let prefix = &element["prefix"];
    let address = prefix["addr"].as_str().unwrap();
    let bits: u32 = if address.contains(':') { 128 } else { 32 };
    let free = bits - u32::try_from(prefix["len"].as_u64().unwrap()).unwrap();
    let rest = 1_u128.checked_shl(free).map_or(u128::MAX, |it| it - 1);
    (number(address), number(address) | rest)
}

/// What nft lists in the layers of a family: added, withdrawn, kept.
fn listed(family: char) -> [Ranges; 3] {
    let table: Value = serde_json::from_str(&run("nft", &["-j", "list", "table", "inet", TABLE])).unwrap();
    ["added", "withdrawn", "kept"].map(|layer| {
        let name = format!("p{PORT}_{layer}{family}");
        let sets = table["nftables"].as_array().unwrap().iter().map(|item| &item["set"]);
        let set = sets.into_iter().find(|set| set["name"] == *name).unwrap();
        set["elem"].as_array().into_iter().flatten().map(range).collect()
    })
}

fn has(ranges: &[(u128, u128)], address: u128) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&address))
}

/// What the rules make of an address.
fn comes_in([added, withdrawn, kept]: &[Ranges; 3], address: u128) -> bool {
    has(added, address) || !has(withdrawn, address) && has(kept, address)
}

fn networks() -> impl Strategy<Value = ipnet::IpNet> {
    (proptest::num::u32::ANY, 0_u8..=32, proptest::bool::ANY).prop_map(|(bits, length, v6)| {
        if v6 {
            let address = u128::from(bits) << 96;
            ipnet::IpNet::V6(ipnet::Ipv6Net::new(address.into(), length).unwrap().trunc())
        } else {
            // Crowded, so that they overlap and touch; and at both ends.
            let bits = bits & 0xf000_000f | if bits & 0x10 == 0 { 0 } else { 0x0fff_fff0 };
            ipnet::IpNet::V4(ipnet::Ipv4Net::new(bits.into(), length.max(2)).unwrap().trunc())
        }
    })
}

/// That by nft's word exactly those come in who are on the list: each end of anything, and its neighbours, are looked at.
fn assert_listed(list: &[ipnet::IpNet]) {
    for (family, v4) in [('4', true), ('6', false)] {
        let declared: Ranges = list
            .iter()
            .filter(|network| network.addr().is_ipv4() == v4)
            .map(|network| (number(&network.network().to_string()), number(&network.broadcast().to_string())))
            .collect();
        let found = listed(family);
        let most = if v4 { u128::from(u32::MAX) } else { u128::MAX };
        for (first, last) in declared.iter().chain(found.iter().flatten()) {
            for address in [first.saturating_sub(1), *first, *last, last.saturating_add(1).min(most)] {
                assert_eq!(
                    comes_in(&found, address),
                    has(&declared, address),
                    "{address:#x} with {found:?} for {list:?}"
                );
            }
        }
    }
}

#[test]
fn random_lists_are_in_the_kernel_as_declared() {
    with_lab(async |lab| {
        let (mut firewall, _gate) = open_host(&lab, &Declared::default()).await;
        let fresh = proptest::collection::vec(networks(), 0..40);
        let some =
            (proptest::collection::vec(networks(), 0..4), proptest::collection::vec(0_usize..40, 0..4));
        let mut runner = TestRunner::deterministic();
        let (mut list, mut beside, mut folds): (Vec<ipnet::IpNet>, usize, usize) = (Vec::new(), 0, 0);
        for round in 0..200 {
            // All of it or a little; in the base alone, or beside it too.
            firewall.bounds = if round % 40 < 10 { Bounds::USUAL } else { FEW };
            if round % 8 == 0 {
                list = fresh.new_tree(&mut runner).unwrap().current();
            } else {
                let (more, less) = some.new_tree(&mut runner).unwrap().current();
                for at in less {
                    if at < list.len() {
                        list.swap_remove(at);
                    }
                }
                list.extend(more);
            }
            let wanted = Addresses::from(&list.iter().copied().collect::<Reach>());
            firewall.apply(&kept(wanted.clone())).await.unwrap();
            // Read back by netlink, every time, as after a restart; now and then nft is the witness.
            firewall.known = None;
            assert_eq!(firewall.apply(&kept(wanted)).await.unwrap(), Applied::default(), "{list:?}");
            let layers = &firewall.known.as_ref().unwrap().observed.ports[&PORT].kept;
            let is_beside = layers.added != Addresses::default() || layers.withdrawn != Addresses::default();
            if is_beside {
                beside += 1;
            } else {
                folds += 1;
            }
            if round % 7 == 0 {
                assert_listed(&list);
            }
        }
        assert!(beside > 40 && folds > 40, "{beside} times beside the base, {folds} times not");
    });
}

/// The client, and two others that keep the list long.
fn long(addresses: &[IpAddr]) -> Declared {
    let others: [IpAddr; 6] = ["10.0.0.1", "10.0.0.3", "10.0.0.5", "fd00::1", "fd00::3", "fd00::5"]
        .map(|address| address.parse().unwrap());
    kept(others.into_iter().chain(addresses.iter().copied()).collect())
}

#[test]
fn who_is_added_to_a_long_list_comes_in_and_who_is_withdrawn_is_cut_until_it_is_folded_and_after() {
    with_lab(async |lab| {
        let both: Vec<IpAddr> = CLIENT.into_iter().chain(OTHER).collect();
        let (mut firewall, _gate) = open_host(&lab, &long(&CLIENT)).await;
        firewall.bounds = FEW;
        assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (BACK.into(), RESET.into()));
        firewall.apply(&long(&both)).await.unwrap();
        assert!(set("p5432_added4").contains("203.0.113.3"), "{}", set("p5432_added4"));
        let (mut cut, mut stays) = (connections(&lab, CLIENT), connections(&lab, OTHER));
        assert_eq!((each(&mut cut), each(&mut stays)), (BACK.into(), BACK.into()));
        firewall.apply(&long(&OTHER)).await.unwrap();
        assert!(set("p5432_withdrawn6").contains("2001:db8::2"), "{}", set("p5432_withdrawn6"));
        assert!(set("p5432_kept6").contains("2001:db8::2"), "the base was changed");
        assert_eq!((each(&mut cut), each(&mut stays)), (RESET.into(), BACK.into()));
        assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (RESET.into(), BACK.into()));
        // An agent that starts anew understands what it finds.
        let mut firewall = Firewall::new(lab.host());
        firewall.bounds = FEW;
        assert_eq!(firewall.apply(&long(&OTHER)).await.unwrap(), Applied::default());
        // Folded, nothing changes for anybody.
        firewall.bounds = Bounds::USUAL;
        firewall.apply(&long(&OTHER)).await.unwrap();
        for layer in ["added4", "added6", "withdrawn4", "withdrawn6"] {
            assert!(!set(&format!("p5432_{layer}")).contains("elements"), "{layer} was not emptied");
        }
        assert!(set("p5432_kept6").contains("2001:db8::3"), "{}", set("p5432_kept6"));
        assert_eq!(each(&mut stays), BACK);
        assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (RESET.into(), BACK.into()));
    });
}

#[test]
fn what_somebody_else_changes_in_any_layer_is_noticed_and_put_right() {
    with_lab(async |lab| {
        let wanted = long(&OTHER);
        let (mut firewall, _gate) = open_host(&lab, &long(&CLIENT)).await;
        firewall.bounds = FEW;
        firewall.apply(&wanted).await.unwrap();
        for deed in [
            "flush set inet holdfast p5432_withdrawn4; flush set inet holdfast p5432_withdrawn6",
            "flush set inet holdfast p5432_added4; flush set inet holdfast p5432_added6",
            "flush set inet holdfast p5432_kept4",
            "add element inet holdfast p5432_added4 { 203.0.113.2 }; add element inet holdfast p5432_added6 { 2001:db8::2 }",
            "add element inet holdfast p5432_withdrawn6 { 2001:db8::3 }; add element inet holdfast p5432_kept4 { 0.0.0.0/5 }",
            "delete set inet holdfast p5432_withdrawn4",
        ] {
            assert_eq!(firewall.apply(&wanted).await.unwrap(), Applied::default(), "before {deed}");
            if deed.starts_with("delete") {
                run(
                    "nft",
                    &["flush chain inet holdfast p5432_in_list; flush chain inet holdfast p5432_out_list"],
                );
            }
            run("nft", &[deed]);
            let drift = firewall.apply(&wanted).await.unwrap().drift;
            let kind = if deed.starts_with("delete") { Drift::Structure } else { Drift::Elements };
            assert_eq!(drift, Some(kind), "{deed}");
            assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (RESET.into(), BACK.into()), "{deed}");
        }
    });
}

/// *Mutant*: without the set, whoever was withdrawn comes in.
#[test]
fn a_base_alone_would_let_in_who_was_withdrawn() {
    with_lab(async |lab| {
        let (mut firewall, _gate) = open_host(&lab, &long(&CLIENT)).await;
        firewall.bounds = FEW;
        firewall.apply(&long(&OTHER)).await.unwrap();
        assert_eq!(tries(&lab, CLIENT), RESET);
        run("nft", &["flush set inet holdfast p5432_withdrawn4; flush set inet holdfast p5432_withdrawn6"]);
        assert_eq!(tries(&lab, CLIENT), BACK);
    });
}

#[test]
fn a_table_of_an_agent_that_knew_no_layers_is_replaced() {
    with_lab(async |lab| {
        let (mut firewall, _gate) = open_host(&lab, &long(&CLIENT)).await;
        let mut open = connections(&lab, CLIENT);
        assert_eq!(each(&mut open), BACK);
        // As it was then: one set, and no rules for others.
        for way in ["in", "out"] {
            let chain = format!("inet holdfast p5432_{way}_list");
            let rules = run("nft", &["-a", "list", "chain", "inet", TABLE, &format!("p5432_{way}_list")]);
            let of_layers =
                rules.lines().filter(|rule| rule.contains("_added") || rule.contains("_withdrawn"));
            for rule in of_layers {
                let handle = rule.rsplit(' ').next().unwrap();
                run("nft", &[&format!("delete rule {chain} handle {handle}")]);
            }
        }
        for layer in ["added4", "added6", "withdrawn4", "withdrawn6"] {
            run("nft", &[&format!("delete set inet holdfast p5432_{layer}")]);
        }
        firewall.known = None;
        let applied = firewall.apply(&long(&CLIENT)).await.unwrap();
        assert_eq!(applied, Applied { loaded: true, ..Applied::default() });
        assert_eq!((each(&mut open), tries(&lab, OTHER)), (BACK.into(), RESET.into()));
    });
}
