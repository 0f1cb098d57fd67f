use proptest::prelude::*;

use super::*;

fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

fn entry(text: &str) -> Entry {
    Entry { cidr: cidr(text), comment: Comment::default() }
}

#[test]
fn each_bad_address_is_told_what_is_wrong_with_it() {
    for (text, told) in [
        ("", "it is empty"),
        ("10.0.0.1/8", "the network is 10.0.0.0/8, the address alone 10.0.0.1"),
        ("2001:db8::1/32", "the network is 2001:db8::/32"),
        ("010.0.0.1", "write 10.0.0.1"),
        ("1.2.3", "has 3 numbers"),
        ("1.2.3.4.5", "has 5 numbers"),
        ("256.0.0.1", "no IP address"),
        ("10.0.0.0/33", "`/33` is no prefix length; it is a number from 0 to 32"),
        ("2001:db8::/129", "from 0 to 128"),
        ("10.0.0.0/", "`/` is no prefix length"),
        ("10.0.0.0/08", "`/08` is no prefix length"),
        ("10.0.0.0/+8", "`/+8` is no prefix length"),
        ("10.0.0.0/-1", "`/-1` is no prefix length"),
        ("10.0.0.0/255.0.0.0", "is no prefix length"),
        ("10.0.0.0/8/8", "is no prefix length"),
        ("::ffff:10.0.0.1", "write 10.0.0.1"),
        ("::ffff:10.0.0.0/104", "write 10.0.0.0/8"),
        ("fe80::1%eth0", "write it without `%eth0`"),
        ("db.example", "host names are not resolved"),
        ("localhost", "host names are not resolved"),
        (" 10.0.0.1", "no IP address"),
        ("10.0.0.1\n", "no IP address"),
        ("$(x)", "no IP address"),
        ("10.0.0.1;drop", "no IP address"),
        ("\u{feff}10.0.0.1", r"`\u{feff}10.0.0.1` is no IP address"),
        ("10.0.0.1\u{200b}", r"`10.0.0.1\u{200b}` is no IP address"),
        ("10.0.0.0/8\u{200b}", r"`/8\u{200b}` is no prefix length"),
        ("10.0.0.\u{ff11}", r"`10.0.0.\u{ff11}` is no IP address"),
        ("fe80::1%\u{200b}", r"write it without `%\u{200b}`"),
        ("10.0.0.1\r10.0.0.2", r"`10.0.0.1\u{d}10.0.0.2`"),
    ] {
        let error = text.parse::<Cidr>().expect_err(text).to_string();
        assert!(error.contains(told), "{text:?}: {error}");
    }
}

#[test]
fn each_good_address_has_one_spelling() {
    for (text, shown) in [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1/32", "10.0.0.1"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("2001:DB8:0:0::/32", "2001:db8::/32"),
        ("2001:db8::1/128", "2001:db8::1"),
        ("255.255.255.255", "255.255.255.255"),
    ] {
        assert_eq!(cidr(text).to_string(), shown);
    }
}

#[test]
fn a_network_is_declared_once_however_it_is_spelt() {
    let twice = vec![entry("10.0.0.1"), entry("10.0.0.1/32")];
    assert_eq!(Rules::new(Mode::Restricted, twice, false), Err(RulesError::Duplicate(cidr("10.0.0.1"))));
    let rules = Rules::new(Mode::Closed, vec![], false).unwrap().with(vec![entry("10.0.0.0/8")]).unwrap();
    assert_eq!(rules.mode, Mode::Restricted, "the first entry makes a closed list restricted");
    assert_eq!(rules.with(vec![entry("10.0.0.0/8")]), Err(RulesError::Present(cidr("10.0.0.0/8"))));
    assert_eq!(rules.without(&[cidr("10.0.0.0/9")]), Err(RulesError::Absent(cidr("10.0.0.0/9"))));
    let twice = [cidr("10.0.0.0/8"), cidr("10.0.0.0/8")];
    assert_eq!(rules.without(&twice), Err(RulesError::Duplicate(cidr("10.0.0.0/8"))));
    assert!(
        rules.without(&twice[..1]).unwrap().reach().is_empty(),
        "a restricted list without entries lets nobody in"
    );
}

#[test]
fn the_mode_decides_who_gets_in() {
    let rules = |mode| Rules::new(mode, vec![entry("10.0.0.0/8")], false).unwrap().reach();
    assert_eq!(rules(Mode::Closed), Reach::NOBODY);
    assert_eq!(rules(Mode::Restricted).v4().len(), 1);
    assert_eq!(rules(Mode::Open), Reach::everybody());
}

#[test]
fn a_comment_is_one_honest_line() {
    for bad in ["a\nb", "a\u{0}b", "\u{1b}[31m", "a\u{202e}b", &"x".repeat(MAX_COMMENT_BYTES + 1)] {
        Comment::try_from(bad.to_owned()).expect_err(bad);
    }
    let told = Comment::try_from("a\u{202e}b".to_owned()).unwrap_err().to_string();
    assert!(told.ends_with(r"this one has `\u{202e}`"), "{told}");
    assert_eq!(Comment::try_from("Büro, 2. Stock".to_owned()).unwrap().as_str(), "Büro, 2. Stock");
}

fn networks() -> impl Strategy<Value = Vec<Cidr>> {
    // Few bits, so that they overlap and touch often.
    let v4 = (0_u32..64, 26_u8..=32).prop_map(|(low, length)| {
        let network = ipnet::Ipv4Net::new((0xffff_ffc0 | low).into(), length).unwrap().trunc();
        Cidr::try_from(ipnet::IpNet::V4(network)).unwrap()
    });
    let v6 = (0_u128..64, 122_u8..=128).prop_map(|(low, length)| {
        let network = ipnet::Ipv6Net::new((!0x3f_u128 | low).into(), length).unwrap().trunc();
        Cidr::try_from(ipnet::IpNet::V6(network)).unwrap()
    });
    proptest::collection::vec(prop_oneof![v4, v6], 0..20)
}

proptest! {
    #[test]
    fn overlaps_merge_and_no_address_is_won_or_lost(declared in networks()) {
        let reach: Reach = declared.iter().copied().collect();
        prop_assert_eq!(Reach::from_sorted(reach.v4().to_vec(), reach.v6().to_vec()), Ok(reach.clone()));
        for low in 0..64_u32 {
            let v4 = std::net::Ipv4Addr::from(0xffff_ffc0 | low);
            let v6 = std::net::Ipv6Addr::from(!0x3f_u128 | u128::from(low));
            let is_declared = |ip: std::net::IpAddr| declared.iter().any(|it| it.network().contains(&ip));
            prop_assert_eq!(reach.v4().iter().any(|net| net.contains(&v4)), is_declared(v4.into()));
            prop_assert_eq!(reach.v6().iter().any(|net| net.contains(&v6)), is_declared(v6.into()));
        }
    }

    #[test]
    fn a_few_more_are_as_if_they_had_been_declared_too(declared in networks(), more in networks()) {
        let reach: Reach = declared.iter().copied().collect();
        let all: Reach = declared.iter().chain(&more).copied().collect();
        prop_assert_eq!(reach.with(more), all);
    }

    #[test]
    fn a_shown_network_reads_as_itself(declared in networks()) {
        for cidr in declared {
            prop_assert_eq!(cidr.to_string().parse(), Ok(cidr));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
        let _ = text.parse::<Cidr>();
    }
}
