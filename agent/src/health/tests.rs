use std::sync::PoisonError;

use holdfast_common::assignment::{Assignment, Exposure, MemberAssignment, Power, RoleAssignment};
use holdfast_common::clock::ManualClock;
use holdfast_common::engine::{Engine, Parameters};
use holdfast_common::generation::Generation;
use holdfast_common::id::ClusterId;
use holdfast_common::protocol::Standing;
use holdfast_common::report::{EngineState, LeaseReport, LeaseSource, MemberReport, NodeEvent};
use holdfast_common::role::Role;
use holdfast_common::term::Term;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::lease::{Held, Serve};

/// A node with the primary of `orders`, and the ends of what its parts know.
struct Bench {
    view: View,
    clock: ManualClock,
    cluster: ClusterId,
    report: watch::Sender<Arc<NodeReport>>,
    leases: watch::Sender<Arc<lease::Status>>,
    told: Arc<Mutex<Vec<NodeEvent>>>,
    _assignment: watch::Sender<Arc<Assignment>>,
}

// === impl Bench ===

impl Bench {
    fn new() -> Self {
        let clock = ManualClock::at("2026-01-02T03:04:05Z".parse().unwrap());
        let cluster = ClusterId::generate();
        let assignment = Assignment { members: vec![member(cluster)], ..Assignment::default() };
        let assignment = watch::Sender::new(Arc::new(assignment));
        let report = watch::Sender::new(Arc::new(running(cluster, &clock.clock())));
        let leases = watch::Sender::new(Arc::new(held(cluster, true)));
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let means = Means {
            assignment: assignment.subscribe(),
            report: report.subscribe(),
            leases: leases.subscribe(),
            clock: clock.clock(),
            tell: Arc::new(move |event| heard.lock().unwrap_or_else(PoisonError::into_inner).push(event)),
        };
        let reported = Arc::new(Mutex::new(means.clock.boottime()));
        let view = View { means, reported };
        Self { view, clock, cluster, report, leases, told, _assignment: assignment }
    }

    /// A connection that is served.
    fn connect(&self) -> DuplexStream {
        let (ours, theirs) = duplex(4096);
        tokio::spawn(connection(theirs, self.view.clone()));
        ours
    }

    /// Everything that is answered until the connection is closed.
    async fn said(&self, request: &str) -> String {
        let mut connection = self.connect();
        // Who is cut while it still writes has not written all.
        let _cut = connection.write_all(request.as_bytes()).await;
        let mut said = String::new();
        connection.read_to_string(&mut said).await.unwrap();
        said
    }
}

fn member(cluster_id: ClusterId) -> MemberAssignment {
    MemberAssignment {
        cluster_id,
        cluster_name: "orders".parse().unwrap(),
        engine: Engine::Postgresql,
        engine_version: "15".parse().unwrap(),
        term: Term::FIRST,
        role: RoleAssignment::Primary { synchronous: holdfast_common::assignment::Synchronous::default() },
        port: 5432,
        address: [192, 0, 2, 1].into(),
        replication_port: None,
        gated_ports: Vec::new(),
        parameters: Parameters::default(),
        members: Vec::new(),
        extensions: Vec::new(),
        system_identifier: None,
        power: Power::Running,
        access: holdfast_common::access::Access::default(),
        exposure: Exposure::OnlyFiltered,
        profile: holdfast_common::protocol::Profile::default(),
        patience: None,
    }
}

fn running(cluster: ClusterId, clock: &Clock) -> NodeReport {
    let member = MemberReport {
        role: Some(Role::Primary),
        ..MemberReport::only(cluster, Engine::Postgresql, EngineState::Running, Term::FIRST)
    };
    NodeReport { members: vec![member], assignment_generation: Generation::NONE, node_time: clock.now() }
}

fn held(cluster: ClusterId, open: bool) -> lease::Status {
    let report = LeaseReport { source: LeaseSource::Coordinator, version: None, fenced: false, open };
    let standing = (Term::FIRST, Standing::Primary);
    let pace = holdfast_common::protocol::Profile::Default.timings().into();
    let held =
        Held { standing, serve: Serve::May, report: Some(report), has_promised: false, stops: 0, pace };
    lease::Status { members: [(cluster, held)].into() }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_answered_as_load_balancers_ask() {
    let bench = Bench::new();
    for (request, status) in [
        // As HAProxy asks by default: no host, no keep-alive.
        ("OPTIONS /primary HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK\r\n"),
        ("GET /primary HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
        ("HEAD / HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\n"),
        ("GET /clusters/orders/replica HTTP/1.0\r\n\r\n", "HTTP/1.0 503 Service Unavailable\r\n"),
        ("GET /nothing HTTP/1.0\r\n\r\n", "HTTP/1.0 404 Not Found\r\n"),
        ("GET /replica?lag=x HTTP/1.0\r\n\r\n", "HTTP/1.0 400 Bad Request\r\n"),
        (
            "POST /primary HTTP/1.1\r\nhost: n1\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}",
            "HTTP/1.1 405 Method Not Allowed\r\n",
        ),
    ] {
        let said = bench.said(request).await;
        assert!(said.starts_with(status), "{request}: {said}");
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: application/json"), "{request}: {said}");
        assert_eq!(head.contains("allow: GET, HEAD, OPTIONS"), request.starts_with("POST"), "{said}");
        let bodiless = request.starts_with("OPTIONS") || request.starts_with("HEAD");
        assert_eq!(body.is_empty(), bodiless, "{request}: {said}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_connection_hears_of_every_change() {
    let bench = Bench::new();
    let mut connection = bench.connect();
    let mut ask = async || {
        connection.write_all(b"OPTIONS /primary HTTP/1.1\r\nhost: n1\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"\r\n\r\n") {
            said.push(connection.read_u8().await.unwrap());
        }
        String::from_utf8(said).unwrap().split(' ').nth(1).map(String::from).unwrap()
    };
    assert_eq!(ask().await, "200");
    bench.leases.send_replace(Arc::new(held(bench.cluster, false)));
    assert_eq!(ask().await, "503", "its gate is shut");
    bench.leases.send_replace(Arc::new(held(bench.cluster, true)));
    assert_eq!(ask().await, "200");
    // Somebody sets the clock back: that makes nothing young again.
    bench.clock.advance(Duration::from_secs(11));
    bench.clock.set_wall("2026-01-02T03:04:05Z".parse().unwrap());
    assert_eq!(ask().await, "503", "nothing was observed for long");
    let follow = {
        let view = bench.view.clone();
        tokio::spawn(async move { view.follow().await })
    };
    bench.report.send_replace(Arc::new(running(bench.cluster, &bench.clock.clock())));
    while ask().await != "200" {
        tokio::task::yield_now().await;
    }
    follow.abort();
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_too_much_is_cut() {
    let bench = Bench::new();
    let begun = tokio::time::Instant::now();
    assert_eq!(bench.said("").await, "", "a connection that asks nothing");
    assert_eq!(bench.said("GET /primary HTTP/1.1\r\nhost: ").await, "", "a request that does not end");
    assert!(begun.elapsed() <= 2 * IDLE + Duration::from_secs(1), "they stayed for {:?}", begun.elapsed());

    let said = bench.said(&format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MAX_HEAD_BYTES))).await;
    assert!(said.starts_with("HTTP/1.1 4"), "{said}");

    // One that asks and asks, and listens to nothing.
    let mut deaf = bench.connect();
    let begun = tokio::time::Instant::now();
    while deaf.write_all(b"GET /primary HTTP/1.1\r\nhost: n1\r\n\r\n").await.is_ok() {}
    assert!(begun.elapsed() <= LIFE + Duration::from_secs(1), "it stayed for {:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_turned_off_is_not_there() {
    let bench = Bench::new();
    let free = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let port = NonZeroU16::new(free.port()).unwrap();
    let service = |enabled| {
        Service::new(Settings { enabled, port }, free.ip(), bench.view.means.clone())
            .run(CancellationToken::new())
    };
    service(false).await;
    let mut on = tokio::spawn(service(true));
    let connected = async {
        while tokio::net::TcpStream::connect(free).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = connected => on.abort(),
        _ended = &mut on => panic!("it ended though nobody stopped it"),
    }
}

#[tokio::test]
async fn an_address_in_use_is_told_once_and_tried_again() {
    let bench = Bench::new();
    let rival = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let socket = rival.local_addr().unwrap();
    tokio::time::pause();
    let told = || bench.told.lock().unwrap_or_else(PoisonError::into_inner).len();
    let long = LISTEN_PAUSE * TELL_AFTER * 3;
    timeout(long, listen(socket, &bench.view.means)).await.unwrap_err();
    assert_eq!(told(), 1);
    drop(rival);
    assert_eq!(listen(socket, &bench.view.means).await.local_addr().unwrap(), socket);
    assert_eq!(told(), 1);
}
