//! The driver on real servers: on loopback addresses, in a folder of their own, under the plain supervisor.

mod crash;
mod guards;
mod parameters;
mod quoting;
mod resync;
mod retuning;
mod room;
mod stopping;
mod troubles;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use holdfast_common::assignment::{Peer, RoleAssignment, Synchronous};
use holdfast_common::command::CloneMember;
use holdfast_common::engine::Parameters;
use holdfast_common::error::Reason;
use holdfast_common::id::FleetId;
use holdfast_common::pki::scram::verifier as scram;
use holdfast_common::pki::{Authority, NodeKey, SigningRequest, Validity};
use holdfast_common::report::EngineState;
use holdfast_common::term::Term;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::render::{Place, Subject};
use super::*;
use crate::engine::contract::{self, Bench, Cluster, reason, work};
use crate::host::Limits;
use crate::host::exec::Program;
use crate::host::units::{Status, Supervisor};

const MIB: u64 = 1024 * 1024;

/// A machine with several nodes; whatever still runs on its data is killed in the end.
struct Machine {
    folder: TempDir,
    authority: Authority,
    port: u16,
}

struct TestNode {
    bench: Bench,
    driver: Postgresql,
    host: Host,
    credentials: watch::Sender<Arc<Credentials>>,
    room: watch::Sender<Room>,
    home: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("hf").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let authority = Authority::create(FleetId::generate(), jiff::Timestamp::now()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { folder, authority, port }
    }

    fn issue(&self, peer: &Peer) -> Credentials {
        let key = NodeKey::generate().unwrap();
        let request = SigningRequest::parse(&key.signing_request().unwrap()).unwrap();
        let validity = Validity::day(jiff::Timestamp::now());
        let issued =
            self.authority.issue_node(&request, peer.node_id, &peer.name, &[peer.address], validity).unwrap();
        Credentials { chain: issued.chain_pem(), key: key.to_pem(), fleet: self.authority.certificate_pem() }
    }

    async fn node(&self, name: &str, last: u8) -> TestNode {
        let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, last));
        let peer =
            Peer { node_id: NodeId::generate(), name: name.parse().unwrap(), address, port: self.port };
        let home = self.folder.path().join(name);
        self.start_agent(peer, home).await
    }

    /// An agent on the node's disk; another one before it is simply gone.
    async fn start_agent(&self, peer: Peer, home: PathBuf) -> TestNode {
        self.start_agent_with(peer, home, 512 * MIB).await
    }

    /// The same, on a machine that has as much memory by then.
    async fn start_agent_with(&self, peer: Peer, home: PathBuf, memory_bytes: u64) -> TestNode {
        let limits = Limits {
            roots: vec![home.clone()],
            unit_records: home.join("units"),
            supervisor: Supervisor::Plain,
        };
        std::fs::create_dir_all(&home).unwrap();
        let host = Host::open(limits).await.unwrap();
        let (credentials, shown) = watch::channel(Arc::new(self.issue(&peer)));
        let settings = Settings {
            node_id: peer.node_id,
            address: peer.address,
            data_dir: home.join("d"),
            programs: DEBIAN_PROGRAMS.into(),
            memory_bytes: Some(memory_bytes),
        };
        let (room, left) = watch::channel(Room::Enough);
        let driver = Postgresql::new(settings, host.clone(), shown, left);
        let bench = Bench { engine: Arc::new(driver.clone()), peer };
        TestNode { bench, driver, host, credentials, room, home }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for node in std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten() {
            for member in std::fs::read_dir(node.path().join("d")).into_iter().flatten().flatten() {
                for pid in process::scan(&member.path().join("data")).unwrap_or_default() {
                    let _gone =
                        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                }
            }
        }
    }
}

impl TestNode {
    fn data(&self, cluster: ClusterId) -> PathBuf {
        self.home.join("d").join(cluster.to_string()).join("data")
    }

    /// The process of the server that runs.
    async fn server(&self, cluster: ClusterId) -> u32 {
        match self.host.units().status(&process::service_name(cluster).unwrap()).await {
            Status::Running { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    /// What a client is told over TCP.
    async fn client(&self, user: &str, database: &str, password: &str, sql: &str) -> Result<String, String> {
        let Peer { address, port, .. } = self.bench.peer;
        let target = format!(
            "host={address} port={port} user={user} dbname={database} sslmode=require connect_timeout=5"
        );
        let program = Program::new("/usr/lib/postgresql/15/bin/psql")
            .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .arg(target)
            .variable("PGPASSWORD", password);
        let output = self.host.run(program, &CancellationToken::new()).await;
        output.map(|output| output.stdout.text().trim().to_owned()).map_err(|error| error.to_string())
    }

    async fn local(&self, cluster: ClusterId, sql: &str) -> String {
        let said = self.host.run(self.psql(cluster, sql), &CancellationToken::new()).await;
        said.unwrap().stdout.text().trim().to_owned()
    }

    fn psql(&self, cluster: ClusterId, sql: &str) -> Program {
        Program::new("/usr/lib/postgresql/15/bin/psql")
            .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-c", sql])
            .arg("-h")
            .arg(self.driver.inner.layout(cluster).run())
            .arg("-p")
            .arg(self.bench.peer.port.to_string())
    }
}

/// A running primary with the password `secret`.
async fn primary(a: &TestNode) -> Cluster {
    let mut cluster = Cluster::new(&[&a.bench]);
    let mut request = cluster.initialise(&a.bench);
    request.password = contract::verifier(&scram("secret").unwrap());
    cluster.system = Some(a.bench.engine.initialise(&request, &work()).await.unwrap());
    a.bench.run(&cluster.primary(&a.bench)).await;
    cluster
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let machine = Machine::new();
    let (a, b) = (machine.node("a", 31).await, machine.node("b", 32).await);
    contract::a_cluster_lives_and_ends(&a.bench, &b.bench).await;
    assert!(std::fs::read_dir(a.home.join("d")).unwrap().next().is_none(), "something was left");
}

#[tokio::test]
async fn clients_need_the_password_and_replication_the_certificate() {
    let machine = Machine::new();
    let a = machine.node("a", 33).await;
    let cluster = primary(&a).await;
    assert_eq!(a.client("app", "app", "secret", "select 40 + 2").await.as_deref(), Ok("42"));
    for (user, database, password) in
        [("app", "app", "wrong"), ("postgres", "app", "secret"), ("holdfast_replication", "app", "secret")]
    {
        let answer = a.client(user, database, password, "select 1").await;
        assert!(answer.is_err(), "{user} got in");
    }
    let settings = "select string_agg(current_setting(name), ' ' order by name) from pg_settings where name in \
                    ('data_checksums', 'password_encryption', 'ssl', 'ssl_min_protocol_version', 'fsync')";
    assert_eq!(a.local(cluster.id, settings).await, "on on scram-sha-256 on TLSv1.3");
    assert_eq!(
        a.local(cluster.id, "select rolsuper or rolreplication from pg_roles where rolname = 'app'").await,
        "f"
    );
    a.bench.stop(cluster.id).await;
}

#[tokio::test]
async fn a_new_agent_finds_the_same_server() {
    let machine = Machine::new();
    let a = machine.node("a", 34).await;
    let cluster = primary(&a).await;
    let before = a.server(cluster.id).await;
    let started_at = a.bench.engine.observe(cluster.id).await.started_at;
    let TestNode { bench: Bench { peer, engine }, driver, host, home, .. } = a;
    drop((engine, driver, host));
    let a = machine.start_agent(peer, home).await;
    let observed = a.bench.wait(cluster.id, "the server", |o| o.state == EngineState::Running).await;
    assert_eq!(observed.started_at, started_at);
    a.bench.engine.start(&cluster.primary(&a.bench)).await.unwrap();
    assert_eq!(before, a.server(cluster.id).await, "the server was restarted");
    a.bench.stop(cluster.id).await;
    assert!(process::scan(&a.data(cluster.id)).unwrap().is_empty());
}

#[tokio::test]
async fn renewed_certificates_are_taken_over_without_a_restart() {
    let machine = Machine::new();
    let a = machine.node("a", 35).await;
    let cluster = primary(&a).await;
    let member = cluster.primary(&a.bench);
    a.bench.settle(&member).await;
    let started_at = a.bench.engine.observe(cluster.id).await.started_at;
    a.credentials.send_replace(Arc::new(machine.issue(&a.bench.peer)));
    let observed = a.bench.engine.observe(cluster.id).await;
    assert!(a.bench.engine.compare(&member, &observed).await.unwrap().configuration);
    a.bench.settle(&member).await;
    let key = a.home.join("d").join(cluster.id.to_string()).join("tls/node.key");
    assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(a.client("app", "app", "secret", "select 1").await.as_deref(), Ok("1"));
    assert_eq!(a.bench.engine.observe(cluster.id).await.started_at, started_at);
    a.bench.stop(cluster.id).await;
}

#[tokio::test]
async fn slots_follow_the_members() {
    let machine = Machine::new();
    let (a, b) = (machine.node("a", 36).await, machine.node("b", 37).await);
    let mut cluster = primary(&a).await;
    let slots = "select coalesce(string_agg(slot_name, ','), '') from pg_replication_slots";
    assert_eq!(a.local(cluster.id, slots).await, "");
    cluster.peers.push(b.bench.peer.clone());
    a.bench.settle(&cluster.primary(&a.bench)).await;
    assert_eq!(a.local(cluster.id, slots).await, render::slot(b.bench.peer.node_id));
    let clone = CloneMember { member: cluster.replica(&b.bench, &a.bench), source: a.bench.peer.clone() };
    b.bench.engine.copy_from(&clone, &work()).await.unwrap();
    b.bench.run(&cluster.replica(&b.bench, &a.bench)).await;
    b.bench.wait(cluster.id, "streaming", |o| o.streaming == Some(true)).await;
    // Removed while it still follows: its slot goes, and it is not let in again.
    cluster.peers.retain(|peer| peer.node_id == a.bench.peer.node_id);
    a.bench.settle(&cluster.primary(&a.bench)).await;
    assert_eq!(a.local(cluster.id, slots).await, "");
    b.bench.wait(cluster.id, "the end of streaming", |o| o.streaming == Some(false)).await;
    a.bench.wait(cluster.id, "no followers", |o| o.followers.is_empty()).await;
    let keep = a.local(cluster.id, "show max_slot_wal_keep_size").await;
    assert!(!keep.starts_with('-'), "slots could fill the disk: {keep}");
    b.bench.stop(cluster.id).await;
    a.bench.stop(cluster.id).await;
}

#[tokio::test]
async fn parameters_that_holdfast_owns_are_refused_by_name() {
    let machine = Machine::new();
    let a = machine.node("a", 38).await;
    let cluster = Cluster::new(&[&a.bench]);
    let mut request = cluster.initialise(&a.bench);
    request.member.parameters = parameters_of("fsync", "off");
    match a.bench.engine.initialise(&request, &work()).await {
        Err(Error::Field { field, .. }) => assert_eq!(field, "parameters[fsync]"),
        other => panic!("{other:?}"),
    }
    assert!(a.bench.engine.members().await.unwrap().is_empty());
    let command = work();
    // What only the server knows is told by name too, and before anything is made.
    for (name, value) in [("no_such_parameter", "1"), ("timezone", "Atlantis"), ("log_statement", "some")] {
        request.member.parameters = parameters_of(name, value);
        match a.bench.engine.initialise(&request, &command).await {
            Err(Error::Field { field, .. }) => assert_eq!(field, format!("parameters[{name}]")),
            other => panic!("{other:?}"),
        }
        let made = a.data(cluster.id).with_file_name("data.new");
        assert_eq!(std::fs::read_dir(made).unwrap().count(), 0, "{name}: something was made");
    }
    request.member.parameters = parameters_of("work_mem", "7MB");
    a.bench.engine.initialise(&request, &command).await.unwrap();
    let mut member = cluster.primary(&a.bench);
    member.parameters = parameters_of("work_mem", "7MB");
    a.bench.run(&member).await;
    assert_eq!(a.local(cluster.id, "show work_mem").await, "7MB");
    // One that needs a restart is reported as such.
    member.parameters = parameters_of("max_connections", "33");
    a.bench.settle(&member).await;
    a.bench.wait(cluster.id, "a pending restart", |o| o.pending_restart == ["max_connections"]).await;
    a.bench.stop(cluster.id).await;
}

fn parameters_of(name: &str, value: &str) -> Parameters {
    BTreeMap::from([(name.to_owned(), value.to_owned())]).try_into().unwrap()
}

#[tokio::test]
async fn extensions_are_made_and_unknown_ones_named() {
    let machine = Machine::new();
    let a = machine.node("a", 39).await;
    let cluster = Cluster::new(&[&a.bench]);
    let mut request = cluster.initialise(&a.bench);
    request.member.extensions = ["pg_stat_statements", "hstore"].map(|name| name.parse().unwrap()).to_vec();
    a.bench.engine.initialise(&request, &work()).await.unwrap();
    a.bench.run(&request.member).await;
    let query = "select string_agg(extname, ',' order by extname) from pg_extension";
    let password = contract::verifier(&scram("secret").unwrap());
    let set = SetPassword { cluster_id: cluster.id, user: contract::name("app"), password };
    a.bench.engine.set_password(&set).await.unwrap();
    assert_eq!(
        a.client("app", "app", "secret", query).await.as_deref(),
        Ok("hstore,pg_stat_statements,plpgsql")
    );
    assert_eq!(a.local(cluster.id, "show shared_preload_libraries").await, "pg_stat_statements");
    let check = CheckMember {
        replication_port: None,
        cluster_id: ClusterId::generate(),
        engine: Kind::Postgresql,
        engine_version: None,
        port: a.bench.peer.port,
        extensions: vec!["nonsense".parse().unwrap()],
    };
    let checked = a.bench.engine.check(&check).await.unwrap();
    let unmet: Vec<&str> =
        checked.checks.iter().filter(|check| !check.met).map(|check| check.name.as_str()).collect();
    assert_eq!(unmet, ["extensions", "port_free"]);
    a.bench.stop(cluster.id).await;
}

/// Shows a server's logs where a test fails.
struct Logs(PathBuf);

impl Drop for Logs {
    fn drop(&mut self) {
        let Self(folder) = self;
        if std::thread::panicking() {
            for file in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let text = std::fs::read_to_string(file.path()).unwrap_or_default();
                eprintln!("{}:\n{text}", file.path().display());
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_ends_after_its_log_has_begun_is_told_with_its_reason() {
    let machine = Machine::new();
    let a = machine.node("a", 43).await;
    let cluster = primary(&a).await;
    a.bench.stop(cluster.id).await;
    for file in std::fs::read_dir(a.data(cluster.id).join("pg_wal")).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let _shown_if_it_fails = Logs(a.data(cluster.id).with_file_name("log"));
    // Whether it has ended by the time that the start has been watched is a matter of luck.
    let started = a.bench.engine.start(&cluster.primary(&a.bench)).await;
    let reason = "PANIC:  could not locate a valid checkpoint record";
    if let Err(error) = &started {
        assert!(error.to_string().contains(reason), "{error}");
    }
    let seen = |o: &Observation| o.state == EngineState::Stopped && o.message.contains(reason);
    a.bench.wait(cluster.id, "the reason", seen).await;
}

/// Its followers of before would have it keep their log for them.
#[tokio::test]
async fn a_primary_that_becomes_a_replica_keeps_no_slots() {
    let machine = Machine::new();
    let (a, b) = (machine.node("a", 45).await, machine.node("b", 46).await);
    let mut cluster = Cluster::new(&[&a.bench, &b.bench]);
    let id = cluster.id;
    let system = a.bench.engine.initialise(&cluster.initialise(&a.bench), &work()).await.unwrap();
    cluster.system = Some(system);
    let led = cluster.primary(&a.bench);
    a.bench.run(&led).await;
    a.bench.settle(&led).await;
    let clone = CloneMember { member: cluster.replica(&b.bench, &a.bench), source: a.bench.peer.clone() };
    b.bench.engine.copy_from(&clone, &work()).await.unwrap();
    b.bench.run(&cluster.replica(&b.bench, &a.bench)).await;
    let slots = |folder: PathBuf| std::fs::read_dir(folder.join("pg_replslot")).unwrap().count();
    assert_eq!(slots(a.data(id)), 1);

    a.bench.engine.rest(id).await.unwrap();
    b.bench.engine.seal(id).await.unwrap();
    let led = MemberAssignment { term: Term::new(2), ..cluster.primary(&b.bench) };
    b.bench.engine.configure(&led).await.unwrap();
    b.bench.engine.lead(&led).await.unwrap();
    b.bench.settle(&led).await;
    let followed = MemberAssignment { term: Term::new(2), ..cluster.replica(&a.bench, &b.bench) };
    a.bench.engine.follow(&followed).await.unwrap();
    a.bench.run(&followed).await;
    a.bench.settle(&followed).await;
    assert_eq!((slots(a.data(id)), slots(b.data(id))), (0, 1));
}

#[test]
fn configuration_is_rendered_as_before() {
    let node: NodeId = "01890a5d-ac96-774b-bcce-b302099a8051".parse().unwrap();
    let other: NodeId = "01890a5d-ac96-774b-bcce-b302099a8052".parse().unwrap();
    let peer = |node_id, name: &str, address: &str| Peer {
        node_id,
        name: name.parse().unwrap(),
        address: address.parse().unwrap(),
        port: 5433,
    };
    let peers = vec![peer(node, "n1", "10.0.0.1"), peer(other, "n2", "2001:db8::2")];
    let id: ClusterId = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
    let cluster = Cluster { id, version: "15".parse().unwrap(), peers: peers.clone(), system: None };
    let bench = Bench {
        engine: Arc::new(crate::engine::fake::World::default().engine(node)),
        peer: peers[0].clone(),
    };
    let synchronous = Synchronous { count: 1, nodes: vec![other] };
    let mut member = cluster.member(&bench, RoleAssignment::Primary { synchronous });
    member.parameters = parameters_of("log_line_prefix", "it's \\ odd");
    member.extensions = vec!["pg_stat_statements".parse().unwrap()];
    let layout = Layout::new(Path::new("/var/lib/holdfast/postgresql"), id);
    let budget = Budget { memory_bytes: 4 << 30, cores: 2, disk_bytes: 100 << 30 };
    let local_users = BTreeSet::from(["postgres".to_owned(), "root".to_owned()]);
    let subject = Subject {
        member: &member,
        node,
        layout: &layout,
        budget,
        local_users: &local_users,
        place: Place::Data,
    };
    insta::assert_snapshot!("primary_server", render::server(&subject));
    insta::assert_snapshot!("primary_access", render::access(&subject));
    insta::assert_snapshot!("primary_identities", render::identities(&subject));
    let replica = cluster.member(&bench, RoleAssignment::Replica { upstream: peers[1].clone() });
    let subject = Subject { member: &replica, ..subject };
    let difference: Vec<String> = {
        let (old, new) = (render::server(&Subject { member: &member, ..subject }), render::server(&subject));
        new.lines().filter(|line| !old.lines().any(|o| o == *line)).map(str::to_owned).collect()
    };
    insta::assert_snapshot!("replica_difference", difference.join("\n"));
}

#[test]
fn synchronous_names_are_read_back_as_written() {
    let nodes: Vec<NodeId> = (0..3).map(|_| NodeId::generate()).collect();
    for count in 0..3 {
        let nodes = if count == 0 { Vec::new() } else { nodes.clone() };
        let mut wanted = Synchronous { count, nodes };
        wanted.nodes.sort_unstable();
        assert_eq!(render::parse_synchronous_names(&render::synchronous_names(&wanted)), Some(wanted));
    }
    for foreign in ["*", "ANY 1 (*)", "FIRST 1 (\"x\")", "n2"] {
        assert_eq!(render::parse_synchronous_names(foreign), None, "{foreign}");
    }
}

/// So that a listener of another test is never taken for ours.
#[tokio::test]
async fn a_port_in_use_is_named_by_the_check() {
    let machine = Machine::new();
    let a = machine.node("a", 41).await;
    let check = |port| CheckMember {
        replication_port: None,
        cluster_id: ClusterId::generate(),
        engine: Kind::Postgresql,
        engine_version: Some("15".parse().unwrap()),
        port,
        extensions: Vec::new(),
    };
    let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 41], 0))).unwrap();
    let taken = a.bench.engine.check(&check(listener.local_addr().unwrap().port())).await.unwrap();
    let unmet = |checked: &CheckedMember| -> Vec<String> {
        checked.checks.iter().filter(|check| !check.met).map(|check| check.name.clone()).collect()
    };
    assert_eq!(unmet(&taken), ["port_free"]);
    drop(listener);
    let free = a.bench.engine.check(&check(machine.port)).await.unwrap();
    assert!(unmet(&free).is_empty() && free.engine_installed, "{free:?}");
}
