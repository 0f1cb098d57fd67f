//! The port of the members, and ports that open and shut with the engine's.

use super::*;

const REPLICATION: u16 = 15_432;
const POOLER: u16 = 6432;
const ROOT: u32 = 0;
/// Nobody whom this test runs as.
const ENGINE: u32 = 4_000_000;

fn replicated(members: Addresses, users: &[u32]) -> Declared {
    let replication = Some(Replication { port: REPLICATION, users: users.to_vec() });
    declared(Port { members, kept: only(OTHER), replication, ..Port::default() })
}

fn at(lab: &Lab, from: [IpAddr; 2], port: u16) -> Vec<Echo> {
    from.into_iter().map(|from| lab.try_from(from, port)).collect()
}

#[test]
fn members_replicate_through_a_shut_gate_and_are_clients_like_others_elsewhere() {
    with_lab(async |lab| {
        let (mut firewall, gate) = open_host(&lab, &replicated(only(CLIENT), &[ROOT])).await;
        assert_eq!((tries(&lab, CLIENT), tries(&lab, OTHER)), (BACK.into(), BACK.into()));
        let mut clients = connections(&lab, CLIENT);
        let mut replicas: Vec<_> = CLIENT.map(|from| lab.connect(from, REPLICATION).unwrap()).into();
        assert_eq!((each(&mut clients), each(&mut replicas)), (BACK.into(), BACK.into()));
        gate.shut(&[PORT]).unwrap();
        assert_eq!((each(&mut clients), each(&mut replicas)), (RESET.into(), BACK.into()));
        assert_eq!((tries(&lab, CLIENT), at(&lab, CLIENT, REPLICATION)), (RESET.into(), BACK.into()));
        // Nobody else replicates, whether the gate is open or not.
        assert_eq!(at(&lab, OTHER, REPLICATION), RESET);
        gate.open_for_ever(&[PORT]).unwrap();
        assert_eq!((tries(&lab, OTHER), at(&lab, OTHER, REPLICATION)), (BACK.into(), RESET.into()));
        // Whoever is no member any more is cut off.
        firewall.apply(&replicated(only(OTHER), &[ROOT])).await.unwrap();
        assert_eq!((each(&mut replicas), at(&lab, CLIENT, REPLICATION)), (RESET.into(), RESET.into()));
        assert_eq!(at(&lab, OTHER, REPLICATION), BACK);
    });
}

#[test]
fn replication_goes_on_while_the_table_is_loaded_anew() {
    with_lab(async |lab| {
        let wanted = replicated(only(CLIENT), &[ROOT]);
        let (mut firewall, _gate) = open_host(&lab, &wanted).await;
        let mut replicas: Vec<_> = CLIENT.map(|from| lab.connect(from, REPLICATION).unwrap()).into();
        let mut more = wanted.clone();
        more.ports.insert(5999, Port::default());
        assert!(firewall.apply(&more).await.unwrap().loaded);
        assert_eq!(each(&mut replicas), BACK);
        run("nft", &["delete table inet holdfast"]);
        assert_eq!(firewall.apply(&wanted).await.unwrap().drift, Some(Drift::Removed));
        assert_eq!(each(&mut replicas), BACK);
    });
}

#[test]
fn only_engine_and_agent_of_a_members_machine_reach_the_replication_of_others() {
    with_lab(async |lab| {
        // This machine is the member now; the other side is the primary.
        lab.at_client(|| lab.serve(REPLICATION));
        let reach = || lab::connect_to(SERVER[0], CLIENT[0], REPLICATION);
        let mut firewall = Firewall::new(lab.host());
        firewall.apply(&replicated(only(CLIENT), &[ENGINE])).await.unwrap();
        assert_eq!(reach(), Echo::Reset);
        firewall.apply(&replicated(only(CLIENT), &[ENGINE, ROOT])).await.unwrap();
        assert_eq!(reach(), Echo::Back);
        // Machines that are no members have nothing to do with it.
        firewall.apply(&replicated(only(OTHER), &[ENGINE])).await.unwrap();
        assert_eq!(reach(), Echo::Back);
    });
}

#[test]
fn a_gated_port_opens_and_shuts_with_the_engines() {
    with_lab(async |lab| {
        lab.serve(POOLER);
        let with = |kept| declared(Port { kept, gated: vec![POOLER], ..Port::default() });
        let (mut firewall, gate) = open_host(&lab, &with(only(CLIENT))).await;
        assert_eq!(at(&lab, CLIENT, POOLER), RESET, "only the engine's own port was opened");
        let both = [PORT, POOLER];
        gate.shut(&both).unwrap();
        gate.arm(&both, Slot::A, Duration::from_secs(2)).unwrap();
        gate.grant(&both, Slot::A).unwrap();
        let mut open: Vec<_> = both.map(|port| lab.connect(CLIENT[0], port).unwrap()).into();
        assert_eq!((each(&mut open), at(&lab, OTHER, POOLER)), (BACK.into(), RESET.into()));
        wait_for("the kernel to shut the gate", || !gate.observe(POOLER).unwrap().is_open());
        wait_for("the kernel to shut the gate", || !gate.observe(PORT).unwrap().is_open());
        assert_eq!((each(&mut open), at(&lab, CLIENT, POOLER)), (RESET.into(), RESET.into()));
        // A trial is for both too.
        gate.open_for_ever(&both).unwrap();
        let trial = Some(Trial { tried: only(OTHER), phase: TrialPhase::Begin(Duration::from_secs(60)) });
        let tried = Port { kept: only(CLIENT), gated: vec![POOLER], trial, ..Port::default() };
        firewall.apply(&declared(tried)).await.unwrap();
        assert_eq!((at(&lab, CLIENT, POOLER), at(&lab, OTHER, POOLER)), (RESET.into(), BACK.into()));
        // Without its port there is nothing that would let it be reached through the gate.
        firewall.apply(&kept(only(CLIENT))).await.unwrap();
        assert!(!set("armed_0").contains("6432") && !set("trial").contains("6432"));
    });
}
