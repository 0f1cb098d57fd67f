use holdfast_common::engine::Engine;
use holdfast_common::id::ClusterId;
use holdfast_common::position::Position;
use holdfast_common::protocol::Standing;
use holdfast_common::report::LeaseSource;
use holdfast_common::term::Term;
use serde_json::{Value, json};

use super::*;

const NOW: Duration = Duration::from_millis(900);

fn report(state: EngineState, role: Option<Role>) -> MemberReport {
    MemberReport {
        role,
        position: Some(Position { era: 3, offset: 5000 }),
        engine_version: Some("15.13 (Debian 15.13-0+deb12u1)".to_owned()),
        ..MemberReport::only(ClusterId::generate(), Engine::Postgresql, state, Term::FIRST)
    }
}

fn primary_report() -> MemberReport {
    report(EngineState::Running, Some(Role::Primary))
}

fn replica_report() -> MemberReport {
    MemberReport {
        streaming: Some(true),
        replayed: Some(Position { era: 3, offset: 4000 }),
        ..report(EngineState::Running, Some(Role::Replica))
    }
}

fn lease(open: bool) -> Held {
    let source = if open { LeaseSource::Coordinator } else { LeaseSource::None };
    let report = Some(LeaseReport { source, version: None, fenced: false, open });
    let standing = (Term::FIRST, Standing::Primary);
    Held { standing, serve: Serve::May, report, has_promised: false, stops: 0, pace: pace() }
}

fn no_lease() -> Held {
    Held {
        standing: (Term::FIRST, Standing::Replica),
        serve: Serve::MustNot,
        report: None,
        has_promised: false,
        stops: 0,
        pace: pace(),
    }
}

fn pace() -> lease::Pace {
    holdfast_common::protocol::Profile::Default.timings().into()
}

/// The status of each of these paths, and what was said to the last.
fn asked<const N: usize>(paths: [&str; N], node: &Node<'_>) -> ([u16; N], Value) {
    let mut said = Value::Null;
    let statuses = paths.map(|path| {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let Answer { status, body } = answer(Asked::parse(path, query), node);
        said = serde_json::from_str(&body).expect("an answer is JSON");
        assert_eq!(status == StatusCode::OK, said["error"].is_null(), "{path}: {said}");
        status.as_u16()
    });
    (statuses, said)
}

fn of_one<'a>(seen: &'a MemberReport, held: &'a Held) -> Node<'a> {
    let member = Member { cluster: "orders", seen: Some(seen), held: Some(held) };
    Node { members: vec![member], age: NOW }
}

const ALL: [&str; 8] =
    ["/", "/primary", "/master", "/replica", "/read-only", "/readiness", "/health", "/liveness"];

#[test]
fn each_member_is_what_it_is_and_nothing_else() {
    let primary = primary_report();
    let replica = replica_report();
    let disconnected = MemberReport { streaming: Some(false), ..replica_report() };
    let unheard = MemberReport { streaming: None, ..replica_report() };
    let roleless = report(EngineState::Running, None);
    let report = lease(true).report.map(|report| LeaseReport { fenced: true, ..report });
    let fenced = Held { report, ..lease(true) };
    let must_not = Held { serve: Serve::MustNot, ..lease(true) };
    let rests = Held { serve: Serve::Rests, ..lease(true) };
    let no = [503, 503, 503, 503, 503, 503];
    for (what, seen, held, expected) in [
        ("a primary with its lease", &primary, lease(true), [200, 200, 200, 503, 200, 200]),
        ("a primary whose gate is shut", &primary, lease(false), no),
        ("a primary that is fenced", &primary, fenced, no),
        ("a primary that is stopped for another to take over", &primary, rests, no),
        ("a primary that must not serve", &primary, must_not, no),
        ("a server that runs as primary and is none", &primary, no_lease(), no),
        ("a replica", &replica, no_lease(), [503, 503, 503, 200, 200, 200]),
        (
            "a replica with a lease, by somebody's mistake",
            &replica,
            lease(true),
            [503, 503, 503, 200, 200, 200],
        ),
        ("a replica that receives nothing", &disconnected, no_lease(), no),
        ("a replica that may not receive", &unheard, no_lease(), no),
        ("one without a role", &roleless, lease(true), no),
    ] {
        let (statuses, said) = asked(ALL, &of_one(seen, &held));
        assert_eq!(statuses[..6], expected, "{what}: {said}");
        assert_eq!(statuses[6..], [200, 200], "{what}: the engine runs, and the agent");
    }
}

#[test]
fn nothing_but_a_running_engine_is_anything() {
    for state in [
        EngineState::Unknown,
        EngineState::Absent,
        EngineState::Stopped,
        EngineState::Starting,
        EngineState::Failed,
        EngineState::Building,
    ] {
        for (seen, held) in [
            (report(state, Some(Role::Primary)), lease(true)),
            (MemberReport { state, ..replica_report() }, no_lease()),
        ] {
            let (statuses, _) = asked(ALL, &of_one(&seen, &held));
            assert_eq!(statuses, [503, 503, 503, 503, 503, 503, 503, 200], "{state:?}");
        }
    }
}

#[test]
fn what_is_not_known_is_a_no() {
    let held = lease(true);
    let unseen = Member { cluster: "orders", seen: None, held: Some(&held) };
    let (statuses, _) = asked(ALL, &Node { members: vec![unseen], age: NOW });
    assert_eq!(statuses, [503, 503, 503, 503, 503, 503, 503, 200]);

    let seen = primary_report();
    let leaseless = Member { cluster: "orders", seen: Some(&seen), held: None };
    let (statuses, said) = asked(["/health", "/primary"], &Node { members: vec![leaseless], age: NOW });
    assert_eq!(statuses, [200, 503], "{said}");
}

#[test]
fn an_old_report_is_no_yes() {
    let (primary, replica, held) = (primary_report(), replica_report(), lease(true));
    for (age, expected) in [
        (STALE_AFTER, [200, 200, 200]),
        (STALE_AFTER + Duration::from_millis(1), [503, 503, 200]),
        (DEAD_AFTER + Duration::from_millis(1), [503, 503, 503]),
    ] {
        let node = Node { age, ..of_one(&primary, &held) };
        assert_eq!(asked(["/primary", "/health", "/liveness"], &node).0, expected, "{age:?}");
        let node = Node { age, ..of_one(&replica, &held) };
        assert_eq!(asked(["/replica", "/health", "/liveness"], &node).0, expected, "{age:?}");
    }
    let node = Node { age: Duration::from_secs(11), ..of_one(&primary, &held) };
    let expected =
        json!({ "state": "unknown", "cluster": "orders", "error": "nothing was observed for 11 s" });
    assert_eq!(asked(["/primary"], &node).1, expected);
}

#[test]
fn a_lag_is_compared_where_it_is_known() {
    let held = no_lease();
    let unknown = MemberReport { replayed: None, ..replica_report() };
    let primary = (primary_report(), lease(true));
    let behind = replica_report();
    for (path, seen, held, expected) in [
        ("/replica?lag=1000", &behind, &held, 200),
        ("/replica?lag=999", &behind, &held, 503),
        ("/read-only?lag=999", &behind, &held, 503),
        ("/replica?lag=1kB&tag_zone=a", &behind, &held, 503),
        ("/replica?replication_state=streaming", &behind, &held, 200),
        ("/replica?replication_state=other", &behind, &held, 503),
        ("/replica", &unknown, &held, 200),
        ("/replica?lag=1TB", &unknown, &held, 503),
        ("/replica?lag=much", &behind, &held, 400),
        // A primary is not behind, and has no tags to be asked for.
        ("/read-only?lag=0&tag_zone=a", &primary.0, &primary.1, 200),
        ("/primary?tag_zone=a", &primary.0, &primary.1, 200),
    ] {
        let (statuses, said) = asked([path], &of_one(seen, held));
        assert_eq!(statuses, [expected], "{path}: {said}");
    }
}

#[test]
fn one_of_several_clusters_is_asked_for_by_name() {
    let (primary, open) = (primary_report(), lease(true));
    let (replica, none) = (replica_report(), no_lease());
    let members = vec![
        Member { cluster: "orders", seen: Some(&primary), held: Some(&open) },
        Member { cluster: "billing", seen: Some(&replica), held: Some(&none) },
    ];
    let node = Node { members, age: NOW };
    let paths = [
        "/clusters/orders/primary",
        "/clusters/billing/primary",
        "/clusters/billing/replica",
        "/clusters/other/replica",
        "/liveness",
        "/health",
        "/replica",
    ];
    let (statuses, said) = asked(paths, &node);
    assert_eq!(statuses, [200, 503, 200, 404, 200, 503, 503]);
    let error = "several clusters have members on this node: ask for one, such as /clusters/billing/replica";
    assert_eq!(said, json!({ "error": error, "clusters": ["billing", "orders"] }));

    let (statuses, said) = asked(["/liveness", "/health", "/primary"], &Node { members: vec![], age: NOW });
    assert_eq!(statuses, [200, 503, 503]);
    assert_eq!(said, json!({ "error": "no cluster has a member on this node" }));
    let (statuses, _) = asked(["/clusters/orders/replica", "/metrics"], &of_one(&replica, &none));
    assert_eq!(statuses, [200, 404]);
}

#[test]
fn the_body_has_the_names_that_patroni_gives() {
    let (held, none) = (lease(true), no_lease());
    let primary = MemberReport {
        system_identifier: Some("7268616322854375442".to_owned()),
        started_at: Some("2026-01-02T03:04:05Z".parse().unwrap()),
        ..primary_report()
    };
    let (_, said) = asked(["/primary"], &of_one(&primary, &held));
    let expected = json!({
        "state": "running",
        "role": "primary",
        "cluster": "orders",
        "server_version": 150_013,
        "postmaster_start_time": "2026-01-02T03:04:05Z",
        "timeline": 3,
        "xlog": { "location": 5000 },
        "database_system_identifier": "7268616322854375442",
    });
    assert_eq!(said, expected);

    let replica = replica_report();
    let (_, said) = asked(["/primary"], &of_one(&replica, &none));
    let expected = json!({
        "state": "running",
        "role": "replica",
        "cluster": "orders",
        "server_version": 150_013,
        "timeline": 3,
        "xlog": { "received_location": 5000, "replayed_location": 4000 },
        "replication_state": "streaming",
        "lag": 1000,
        "error": "it is a replica",
    });
    assert_eq!(said, expected);
}

#[test]
fn a_version_is_a_number_as_the_server_counts() {
    for (text, number) in [
        ("15.13 (Debian 15.13-0+deb12u1)", Some(150_013)),
        ("17.0", Some(170_000)),
        ("18beta1", None),
        ("", None),
        ("999999.1", None),
    ] {
        assert_eq!(version_number(text), number, "{text}");
    }
}
