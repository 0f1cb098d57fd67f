//! What becomes of connections on which nothing is said.

use std::net::SocketAddr;

use super::*;

const POOLER: u16 = 6432;

/// Whether the server holds its end of a connection, by the word of ss.
fn is_held(connection: &TcpStream) -> bool {
    let SocketAddr::V4(client) = connection.local_addr().unwrap() else {
        let client = connection.local_addr().unwrap().to_string();
        return !run("ss", &["-Htn", "state", "established", "dst", &client]).is_empty();
    };
    // A server that listens in both families at once has it among those of IPv6.
    [format!("{client}"), format!("[::ffff:{}]:{}", client.ip(), client.port())]
        .into_iter()
        .any(|client| !run("ss", &["-Htn", "state", "established", "dst", &client]).is_empty())
}

fn held(connections: &[TcpStream]) -> Vec<bool> {
    connections.iter().map(is_held).collect()
}

/// From the server's machine itself, over loopback: the other end is one of these.
fn own() -> Vec<TcpStream> {
    let to = [IpAddr::V6(Ipv6Addr::LOCALHOST), SERVER[0], SERVER[1]];
    to.into_iter().map(|to| TcpStream::connect((to, PORT)).unwrap()).collect()
}

fn both() -> Addresses {
    CLIENT.into_iter().chain(OTHER).collect()
}

fn gated(kept: Addresses, members: Addresses) -> Declared {
    declared(Port { kept, members, gated: vec![POOLER], ..Port::default() })
}

#[test]
fn the_server_is_told_that_a_silent_connection_is_over_and_no_other_ends() {
    with_lab(async |lab| {
        let (mut firewall, gate) = open_host(&lab, &gated(both(), Addresses::default())).await;
        gate.open_for_ever(&[PORT, POOLER]).unwrap();
        // A server of IPv4 alone, beside the one that listens in both families.
        let pooler = TcpListener::bind((SERVER[0], POOLER)).unwrap();
        let mut cut = connections(&lab, CLIENT);
        cut.push(lab.connect(CLIENT[0], POOLER).unwrap());
        let (mut session, _) = pooler.accept().unwrap();
        let mut stay = connections(&lab, OTHER);
        stay.extend(own());
        stay.push(lab.connect(CLIENT[0], SSH).unwrap());
        assert_eq!((held(&cut), held(&stay)), (vec![true; 3], vec![true; 6]));
        let other = gated(only(OTHER), Addresses::default());
        assert_eq!(firewall.end_strangers(&gated(both(), Addresses::default())).await.unwrap(), 0);
        firewall.apply(&other).await.unwrap();
        assert_eq!(held(&cut), [true; 3], "the rules alone end nothing that is silent");

        assert_eq!(firewall.end_strangers(&other).await.unwrap(), 3);
        assert_eq!((held(&cut), held(&stay)), (vec![false; 3], vec![true; 6]));
        session.read(&mut [0]).expect_err("its session heard of nothing");
        for connection in &mut cut {
            assert_eq!(connection.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!(each(&mut stay), [Echo::Back; 6]);
        assert_eq!(firewall.end_strangers(&other).await.unwrap(), 0);
    });
}

#[test]
fn members_stay_and_whoever_a_trial_let_in_goes_with_it() {
    with_lab(async |lab| {
        let kept = |trial| declared(Port { members: only(CLIENT), trial, ..Port::default() });
        let (mut firewall, _gate) = open_host(&lab, &kept(None)).await;
        let trial = |phase| kept(Some(Trial { tried: only(OTHER), phase }));
        firewall.apply(&trial(TrialPhase::Begin(Duration::from_millis(1500)))).await.unwrap();
        let (members, tried) = (connections(&lab, CLIENT), connections(&lab, OTHER));
        assert_eq!(firewall.end_strangers(&trial(TrialPhase::Begun)).await.unwrap(), 0);
        wait_for("the trial's end", || !set("trial").contains("elements"));
        firewall.apply(&trial(TrialPhase::Begun)).await.unwrap();
        assert_eq!(firewall.end_strangers(&trial(TrialPhase::Begun)).await.unwrap(), 2);
        assert_eq!((held(&members), held(&tried)), (vec![true; 2], vec![false; 2]));
    });
}
