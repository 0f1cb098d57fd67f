//! Domain → wire → domain for everything; each bad field refused by its name; no bytes that make it panic.

use std::time::Duration;

use holdfast_proto::link::v1 as proto;
use jiff::Timestamp;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::access::{Access, Cidr, Trial};
use crate::assignment::*;
use crate::command::{
    Check, CheckMember, CheckedMember, CloneMember, Command, DatabaseName, DestroyMember, InitialiseMember,
    InstallEngine, Outcome, Payload, Progress, SetPassword, Success, Verifier,
};
use crate::error::{Failure, Retry};
use crate::generation::Generation;
use crate::id::*;
use crate::link::*;
use crate::position::Position;
use crate::protocol::{Profile, Version};
use crate::report::*;
use crate::role::Role;
use crate::telemetry::*;
use crate::term::Term;

fn at(seconds: i64) -> Timestamp {
    Timestamp::new(seconds, 123_456_789).unwrap()
}

fn peer(name: &str) -> Peer {
    Peer {
        node_id: NodeId::generate(),
        name: name.parse().unwrap(),
        address: [10, 0, 0, 1].into(),
        port: 5433,
    }
}

fn member(role: RoleAssignment) -> MemberAssignment {
    MemberAssignment {
        cluster_id: ClusterId::generate(),
        cluster_name: "orders".parse().unwrap(),
        engine: crate::engine::Engine::Postgresql,
        engine_version: "15".parse().unwrap(),
        term: Term::new(7),
        role,
        port: 5432,
        address: "2001:db8::1".parse().unwrap(),
        parameters: std::collections::BTreeMap::from([("work_mem".to_owned(), "64MB".to_owned())])
            .try_into()
            .unwrap(),
        members: vec![peer("a"), peer("b")],
        extensions: vec!["pg_stat_statements".parse().unwrap()],
        system_identifier: Some("7301234567890123456".into()),
        power: Power::Running,
        access: access(),
        exposure: Exposure::AlsoUnfiltered,
        profile: Profile::Fast,
    }
}

fn access() -> Access {
    let reach = |texts: &[&str]| texts.iter().map(|text| text.parse::<Cidr>().unwrap()).collect();
    Access {
        kept: reach(&["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]),
        trial: Some(Trial {
            id: uuid::Uuid::new_v4(),
            reach: reach(&["0.0.0.0/0", "::/0"]),
            lasts: Duration::from_secs(60),
            ends_at: at(90),
        }),
        log_refused: true,
    }
}

fn assignment() -> Assignment {
    let primary = member(RoleAssignment::Primary {
        synchronous: Synchronous { count: 1, nodes: vec![NodeId::generate(), NodeId::generate()] },
    });
    let mut replica = member(RoleAssignment::Replica { upstream: peer("up") });
    replica.port = 6000;
    replica.system_identifier = None;
    replica.power = Power::Stopped;
    replica.access = Access::default();
    replica.exposure = Exposure::OnlyFiltered;
    Assignment {
        coordinator_generation: Generation::new(1),
        generation: Generation::new(9),
        members: vec![primary, replica],
    }
}

fn payloads() -> Vec<Payload> {
    let cluster_id = ClusterId::generate();
    let password = Verifier::try_from("SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy".to_owned()).unwrap();
    let engine = crate::engine::Engine::Postgresql;
    let name = |text: &str| DatabaseName::try_from(text.to_owned()).unwrap();
    let upstream = RoleAssignment::Replica { upstream: peer("up") };
    vec![
        Payload::CheckMember(CheckMember {
            cluster_id,
            engine,
            engine_version: None,
            port: 5432,
            extensions: vec!["postgis".parse().unwrap()],
        }),
        Payload::InstallEngine(InstallEngine {
            engine,
            engine_version: "15".parse().unwrap(),
            extensions: vec![],
        }),
        Payload::InitialiseMember(Box::new(InitialiseMember {
            member: member(upstream.clone()),
            database: name("app"),
            user: name("app"),
            password: password.clone(),
        })),
        Payload::CloneMember(Box::new(CloneMember { member: member(upstream), source: peer("src") })),
        Payload::DestroyMember(DestroyMember { cluster_id, confirm: "orders".parse().unwrap() }),
        Payload::SetPassword(SetPassword { cluster_id, user: name("app"), password }),
    ]
}

fn command(payload: Payload) -> Command {
    Command {
        id: CommandId::generate(),
        coordinator_generation: Generation::new(1),
        term: Term::new(7),
        deadline: at(1_800_000_000),
        payload,
    }
}

fn outcomes() -> Vec<Outcome> {
    vec![
        Ok(Success::CheckMember(CheckedMember {
            checks: vec![Check { name: "port_free".into(), met: false, message: "5432 is taken".into() }],
            engine_version: Some("15".parse().unwrap()),
            engine_installed: true,
            memory_bytes: 1,
            cores: 2,
            free_bytes: 3,
            node_time: at(1),
        })),
        Ok(Success::InstallEngine { installed_version: "15.14-0+deb12u1".into() }),
        Ok(Success::InitialiseMember { system_identifier: "73".into() }),
        Ok(Success::CloneMember { system_identifier: "73".into(), copied_bytes: 9 }),
        Ok(Success::DestroyMember { removed: true }),
        Ok(Success::SetPassword),
        Err(Failure::about(Reason::ClusterNotFound, "cluster", "orders", "no such cluster")
            .retry_after(Duration::from_millis(1500))),
        Err(Failure { retry: Retry::Later(None), ..Failure::invalid_field("port", "is taken") }),
    ]
}

fn report() -> NodeReport {
    let full = MemberReport {
        cluster_id: ClusterId::generate(),
        engine: crate::engine::Engine::Postgresql,
        state: EngineState::Running,
        role: Some(Role::Primary),
        term: Term::new(3),
        position: Some(Position { era: 2, offset: u64::MAX }),
        replayed: Some(Position { era: 2, offset: 5 }),
        lag_seconds: Some(0.25),
        streaming: Some(false),
        followers: vec![Follower {
            node_id: NodeId::generate(),
            flushed_offset: Some(0),
            synchronous: true,
            streaming: false,
        }],
        synchronous: Synchronous { count: 1, nodes: vec![NodeId::generate()] },
        system_identifier: Some("73".into()),
        engine_version: Some("15.14".into()),
        started_at: Some(at(5)),
        message: "fine".into(),
        converged_generation: Generation::new(4),
        pending_restart: vec!["shared_buffers".into()],
        data_bytes: Some(0),
        access: Some(AccessReport {
            generation: Generation::new(4),
            trial_left: Some(Duration::from_secs(9)),
            accepted: Traffic { packets: 1, bytes: 60 },
            refused: Traffic::default(),
        }),
        lease: Some(LeaseReport {
            source: LeaseSource::Promises,
            left: Some(Duration::from_millis(3500)),
            version: Some(Version::new(7)),
            fenced: true,
            open: true,
        }),
    };
    let unknown = MemberReport {
        cluster_id: ClusterId::generate(),
        engine: crate::engine::Engine::Postgresql,
        state: EngineState::Unknown,
        role: None,
        term: Term::NONE,
        position: None,
        replayed: None,
        lag_seconds: None,
        streaming: None,
        followers: vec![],
        synchronous: Synchronous::default(),
        system_identifier: None,
        engine_version: None,
        started_at: None,
        message: String::new(),
        converged_generation: Generation::NONE,
        pending_restart: vec![],
        data_bytes: None,
        access: None,
        lease: None,
    };
    NodeReport { members: vec![full, unknown], assignment_generation: Generation::NONE, node_time: at(-5) }
}

#[expect(clippy::too_many_lines, reason = "a sample has many fields")]
fn sample() -> Sample {
    let stall = Stall {
        ten_seconds_fraction: 0.1,
        one_minute_fraction: 0.2,
        five_minutes_fraction: 1.0,
        total_seconds: 12.5,
    };
    Sample {
        taken_at: at(6),
        interval_seconds: Some(5.0),
        uptime_seconds: Some(1e6),
        cpu: Some(Cpu {
            logical_cores: 2,
            usage: Some(CpuUsage {
                user_fraction: 0.5,
                nice_fraction: 0.0,
                system_fraction: 0.1,
                idle_fraction: 0.4,
                iowait_fraction: 0.0,
                irq_fraction: 0.0,
                softirq_fraction: 0.0,
                steal_fraction: 0.0,
            }),
        }),
        load: Some(Load { one_minute: 1.0, five_minutes: 2.0, fifteen_minutes: 3.0 }),
        pressure: Pressure {
            cpu: Some(Stalls { some: stall, full: None }),
            memory: None,
            io: Some(Stalls { some: stall, full: Some(stall) }),
        },
        memory: Some(Memory {
            total_bytes: 5,
            available_bytes: 4,
            used_bytes: 1,
            buffers_bytes: 0,
            cached_bytes: 2,
        }),
        swap: Some(Swap { total_bytes: 0, used_bytes: 0 }),
        file_systems: Bounded {
            items: vec![FileSystem {
                mount_point: "/".into(),
                device: "/dev/vda1".into(),
                kind: "ext4".into(),
                access: FileSystemAccess::ReadOnly,
                total_bytes: 3,
                used_bytes: 2,
                available_bytes: 1,
                inodes: Some(Inodes { total: 2, free: 1 }),
            }],
            omitted: 3,
        },
        disks: Bounded {
            items: vec![
                Disk { name: "vda".into(), rates: None },
                Disk {
                    name: "vdb".into(),
                    rates: Some(DiskRates {
                        reads_per_second: 1.0,
                        writes_per_second: 2.0,
                        read_bytes_per_second: 3.0,
                        written_bytes_per_second: 4.0,
                        busy_fraction: 0.5,
                        read_latency_seconds: None,
                        write_latency_seconds: Some(0.001),
                        queue_depth: 0.5,
                    }),
                },
            ],
            omitted: 0,
        },
        interfaces: Bounded {
            items: vec![Interface {
                name: "eth0".into(),
                rates: Some(InterfaceRates {
                    received_bytes_per_second: 1.0,
                    sent_bytes_per_second: 2.0,
                    received_packets_per_second: 3.0,
                    sent_packets_per_second: 4.0,
                    receive_errors_per_second: 5.0,
                    send_errors_per_second: 6.0,
                    receive_drops_per_second: 7.0,
                    send_drops_per_second: 8.0,
                }),
            }],
            omitted: 0,
        },
        agent: Some(AgentCost {
            resident_bytes: 1,
            cpu_seconds: 2.0,
            cpu_fraction: Some(1.5),
            open_files: 3,
            threads: 4,
        }),
    }
}

fn empty_sample() -> Sample {
    Sample {
        taken_at: at(0),
        interval_seconds: None,
        uptime_seconds: None,
        cpu: None,
        load: None,
        pressure: Pressure::default(),
        memory: None,
        swap: None,
        file_systems: Bounded::default(),
        disks: Bounded::default(),
        interfaces: Bounded::default(),
        agent: None,
    }
}

fn inventory() -> Inventory {
    Inventory {
        hostname: "n1".into(),
        os: OperatingSystem { id: "debian".into(), version: Some("12".into()), pretty_name: "Debian".into() },
        kernel: "6.1".into(),
        architecture: "x86_64".into(),
        cpu_model: Some("EPYC".into()),
        logical_cores: 2,
        physical_cores: Some(1),
        memory_bytes: 1,
        swap_bytes: 0,
        disks: Bounded {
            items: vec![DiskFacts {
                device: "/dev/vda".into(),
                mount_point: "/".into(),
                file_system: "ext4".into(),
                total_bytes: 1,
                medium: DiskMedium::Unknown,
            }],
            omitted: 1,
        },
        addresses: Bounded {
            items: vec![Address {
                interface: "eth0".into(),
                ip: "fe80::1".parse().unwrap(),
                prefix_length: 64,
                scope: AddressScope::LinkLocal,
            }],
            omitted: 0,
        },
        virtualisation: None,
        service_manager: ServiceManager::Plain,
        privilege: Privilege::Root,
        engines: Bounded {
            items: vec![EngineOffer {
                engine: "postgresql".into(),
                version: "15.14".into(),
                availability: EngineAvailability::Installable,
            }],
            omitted: 0,
        },
        filtering: Filtering::Unavailable { reason: "no leave".into() },
    }
}

fn event(cluster_id: Option<ClusterId>) -> NodeEvent {
    NodeEvent {
        id: EventId::generate(),
        time: at(7),
        severity: Severity::Warning,
        reason: "STATE_DAMAGED".into(),
        message: "set aside".into(),
        cluster_id,
    }
}

fn up() -> Vec<FromAgent> {
    let mut messages = vec![
        FromAgent::Hello(Box::new(Hello {
            versions: VERSIONS,
            agent_version: "0.1.0".into(),
            boot_id: "b".into(),
            instance_id: InstanceId::generate(),
            inventory: inventory(),
            assignment_generation: Generation::new(4),
            coordinator_generation: Generation::NONE,
            unfinished: vec![CommandId::generate()],
            node_time: at(8),
        })),
        FromAgent::Heartbeat(Box::new(Heartbeat { sequence: 1, report: report() })),
        FromAgent::Metrics(Box::new(sample())),
        FromAgent::Metrics(Box::new(empty_sample())),
        FromAgent::Event(Box::new(event(None))),
        FromAgent::Event(Box::new(event(Some(ClusterId::generate())))),
    ];
    let progress = Progress { message: "copying".into(), done_bytes: Some(0), total_bytes: None };
    let updates = outcomes().into_iter().map(Update::Outcome).chain([Update::Progress(progress)]);
    messages.extend(updates.map(|update| {
        FromAgent::CommandUpdate(Box::new(CommandUpdate {
            command_id: CommandId::generate(),
            sequence: 4,
            update,
        }))
    }));
    messages
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        session_id: SessionId::generate(),
        heartbeat_interval: Duration::from_secs(1),
        metrics_interval: Duration::from_millis(5500),
        coordinator_generation: Generation::new(1),
        coordinator_time: at(9),
    }
}

fn down() -> Vec<FromCoordinator> {
    let mut messages = vec![
        FromCoordinator::Welcome(welcome()),
        FromCoordinator::Assignment(Box::new(assignment())),
        FromCoordinator::CancelCommand(CommandId::generate()),
        FromCoordinator::HeartbeatAck { sequence: 3 },
        FromCoordinator::OutcomeAck(CommandId::generate()),
        FromCoordinator::EventAck(EventId::generate()),
    ];
    for reason in [
        CloseReason::Shutdown,
        CloseReason::Superseded,
        CloseReason::NodeRemoved,
        CloseReason::VersionUnsupported,
        CloseReason::ProtocolViolation,
    ] {
        messages.push(FromCoordinator::Close(Close { reason, message: "why".into() }));
    }
    messages
        .extend(payloads().into_iter().map(|payload| FromCoordinator::Command(Box::new(command(payload)))));
    messages
}

fn decode_up(bytes: &[u8]) -> Option<Result<FromAgent, Error>> {
    proto::SessionRequest::decode(bytes).ok().map(FromAgent::try_from)
}

fn decode_down(bytes: &[u8]) -> Option<Result<FromCoordinator, Error>> {
    proto::SessionResponse::decode(bytes).ok().map(FromCoordinator::try_from)
}

#[test]
fn what_an_agent_says_arrives_unchanged() {
    for message in up() {
        let bytes = proto::SessionRequest::from(&message).encode_to_vec();
        assert_eq!(decode_up(&bytes), Some(Ok(message)));
    }
}

#[test]
fn what_the_coordinator_says_arrives_unchanged() {
    for message in down() {
        let bytes = proto::SessionResponse::from(&message).encode_to_vec();
        assert_eq!(decode_down(&bytes), Some(Ok(message)));
    }
}

#[test]
fn every_reason_crosses_the_wire_under_its_own_name() {
    for reason in Reason::ALL {
        let name = holdfast_proto::r#type::v1::ErrorReason::from(*reason).as_str_name();
        assert_eq!(name.strip_prefix("ERROR_REASON_"), Some(reason.as_str()));
        assert_eq!(Reason::from_wire(reason.to_wire()), Ok(*reason));
    }
    assert_eq!(Reason::from_wire(0), Err(Problem::Missing));
    assert_eq!(Reason::from_wire(9999), Err(Problem::UnknownValue { value: 9999 }));
}

#[test]
fn enrollment_arrives_unchanged() {
    let enroll = Enroll {
        token: "hf1.a.b.c".into(),
        certificate_signing_request: "pem".into(),
        node_name: "n1".parse().unwrap(),
        address: [192, 0, 2, 1].into(),
        request_id: uuid::Uuid::now_v7(),
    };
    assert!(Enroll::try_from(proto::EnrollRequest::from(&enroll)).is_ok_and(|back| back == enroll));
    let certificate =
        Renewed { certificate_chain: "c".into(), trust_bundle: "t".into(), not_after: at(1_900_000_000) };
    let enrolled = Enrolled { fleet_id: FleetId::generate(), node_id: NodeId::generate(), certificate };
    assert_eq!(Enrolled::try_from(proto::EnrollResponse::from(&enrolled)), Ok(enrolled));
}

#[test]
fn a_long_text_is_cut_and_never_refused() {
    let long = "ä\0".repeat(100_000);
    let mut report = report();
    report.members[0].message.clone_from(&long);
    let failure = Failure::new(Reason::EngineFailed, long.clone()).with("path", &long);
    let outcome = Update::Outcome(Err(failure));
    for message in [
        FromAgent::Heartbeat(Box::new(Heartbeat { sequence: 1, report })),
        FromAgent::CommandUpdate(Box::new(CommandUpdate {
            command_id: CommandId::generate(),
            sequence: 1,
            update: outcome,
        })),
        FromAgent::Event(Box::new(NodeEvent { message: long, ..event(None) })),
    ] {
        let bytes = proto::SessionRequest::from(&message).encode_to_vec();
        assert!(bytes.len() < 64 * 1024, "{}", bytes.len());
        assert!(matches!(decode_up(&bytes), Some(Ok(_))));
    }
    assert_eq!(cut("äöü", 5), "ä…");
    assert_eq!(cut("äö", 4), "äö");
}

/// `change` applied to a good message makes a bad one, which is refused under `field`.
fn refused_up(good: &FromAgent, change: impl FnOnce(&mut proto::session_request::Message), field: &str) {
    let mut request = proto::SessionRequest::from(good);
    change(request.message.as_mut().unwrap());
    match FromAgent::try_from(request) {
        Err(error) => assert_eq!(error.field, field, "{error}"),
        Ok(_) => panic!("accepted a bad `{field}`"),
    }
}

fn refused_down(
    good: &FromCoordinator,
    change: impl FnOnce(&mut proto::session_response::Message),
    field: &str,
) {
    let mut response = proto::SessionResponse::from(good);
    change(response.message.as_mut().unwrap());
    match FromCoordinator::try_from(response) {
        Err(error) => assert_eq!(error.field, field, "{error}"),
        Ok(_) => panic!("accepted a bad `{field}`"),
    }
}

macro_rules! bad_fields {
    ($refused:ident, $good:expr, $variant:path as $name:ident: $($field:literal => $change:expr),+ $(,)?) => {{
        let good = $good;
        $($refused(
            &good,
            |message| match message {
                $variant($name) => { $change; }
                _ => panic!("another message"),
            },
            $field,
        );)+
    }};
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_bad_field_of_an_assignment_is_refused_by_name() {
    use proto::member_assignment::Role as WireRole;
    use proto::session_response::Message::Assignment;
    bad_fields!(refused_down, FromCoordinator::Assignment(Box::new(assignment())), Assignment as a:
        "assignment.coordinator_generation" => a.coordinator_generation = 0,
        "assignment.coordinator_generation" => a.coordinator_generation = u64::MAX,
        "assignment.generation" => a.generation = 0,
        "assignment.members" => a.members = vec![a.members[0].clone(); 65],
        "assignment.members" => a.members = vec![a.members[0].clone(); 2],
        "assignment.members" => a.members[1].port = a.members[0].port,
        "assignment.members[0].cluster_id" => a.members[0].cluster_id.clear(),
        "assignment.members[0].cluster_id" => a.members[0].cluster_id = "../x".into(),
        "assignment.members[1].cluster_name" => a.members[1].cluster_name = "a\nb".into(),
        "assignment.members[0].engine" => a.members[0].engine = 0,
        "assignment.members[0].engine" => a.members[0].engine = 77,
        "assignment.members[0].engine_version" => a.members[0].engine_version = "15;rm".into(),
        "assignment.members[0].term" => a.members[0].term = 0,
        "assignment.members[0].term" => a.members[0].term = u64::MAX,
        "assignment.members[0].role" => a.members[0].role = None,
        "assignment.members[0].port" => a.members[0].port = 0,
        "assignment.members[0].port" => a.members[0].port = 65_536,
        "assignment.members[0].address" => a.members[0].address = "010.0.0.1".into(),
        "assignment.members[0].address" => a.members[0].address = "::ffff:10.0.0.1".into(),
        "assignment.members[0].address" => a.members[0].address = "fe80::1%eth0".into(),
        "assignment.members[0].address" => a.members[0].address = "0.0.0.0".into(),
        "assignment.members[0].address" => a.members[0].address = "db.example".into(),
        "assignment.members[0].parameters" => a.members[0].parameters = [("a\nb".into(), "1".into())].into(),
        "assignment.members[0].parameters" => a.members[0].parameters = [("a".into(), "1\n2".into())].into(),
        "assignment.members[0].parameters" => {
            a.members[0].parameters = (0..201).map(|n| (format!("p{n}"), String::new())).collect();
        },
        "assignment.members[0].members" => a.members[0].members.clear(),
        "assignment.members[0].members" => a.members[0].members[1] = a.members[0].members[0].clone(),
        "assignment.members[0].members[1].node_id" => a.members[0].members[1].node_id = "x".repeat(1000),
        "assignment.members[0].members[1].node_id" => a.members[0].members[1].node_id = "x".repeat(65_536),
        "assignment.members[0].members[1].name" => a.members[0].members[1].name = "$(x)".into(),
        "assignment.members[0].members[1].address" => a.members[0].members[1].address.clear(),
        "assignment.members[0].members[1].port" => a.members[0].members[1].port = 0,
        "assignment.members[0].extensions[0]" => a.members[0].extensions[0] = "../x".into(),
        "assignment.members[0].extensions" => a.members[0].extensions = vec!["x".into(); 2],
        "assignment.members[0].system_identifier" => a.members[0].system_identifier = "a b".into(),
        "assignment.members[0].system_identifier" => a.members[0].system_identifier = "7".repeat(129),
        "assignment.members[0].power" => a.members[0].power = 0,
        "assignment.members[0].power" => a.members[0].power = -1,
        "assignment.members[0].access.kept" => a.members[0].access.as_mut().unwrap().kept = None,
        "assignment.members[0].access.kept.v4" => {
            a.members[0].access.as_mut().unwrap().kept.as_mut().unwrap().v4.push(1);
        },
        "assignment.members[0].access.kept.v4" => {
            a.members[0].access.as_mut().unwrap().kept.as_mut().unwrap().v4 = vec![10, 0, 0, 1, 8];
        },
        "assignment.members[0].access.kept.v4" => {
            a.members[0].access.as_mut().unwrap().kept.as_mut().unwrap().v4 = vec![10, 0, 0, 0, 33];
        },
        "assignment.members[0].access.kept.v4" => {
            a.members[0].access.as_mut().unwrap().kept.as_mut().unwrap().v4 = [10, 0, 0, 0, 8].repeat(2);
        },
        "assignment.members[0].access.kept.v6" => {
            a.members[0].access.as_mut().unwrap().kept.as_mut().unwrap().v6 = vec![129; 17];
        },
        "assignment.members[0].access.trial.trial_id" => {
            a.members[0].access.as_mut().unwrap().trial.as_mut().unwrap().trial_id.clear();
        },
        "assignment.members[0].access.trial.duration" => {
            a.members[0].access.as_mut().unwrap().trial.as_mut().unwrap().duration.as_mut().unwrap().seconds = 0;
        },
        "assignment.members[0].access.trial.end_time" => {
            a.members[0].access.as_mut().unwrap().trial.as_mut().unwrap().end_time = None;
        },
        "assignment.members[0].primary.synchronous_count" => match &mut a.members[0].role {
            Some(WireRole::Primary(primary)) => primary.synchronous_count = 3,
            _ => panic!("no primary"),
        },
        "assignment.members[0].primary.synchronous_node_ids" => match &mut a.members[0].role {
            Some(WireRole::Primary(primary)) => primary.synchronous_node_ids[1] = primary.synchronous_node_ids[0].clone(),
            _ => panic!("no primary"),
        },
        "assignment.members[0].primary.synchronous_node_ids[1]" => match &mut a.members[0].role {
            Some(WireRole::Primary(primary)) => primary.synchronous_node_ids[1] = "*".into(),
            _ => panic!("no primary"),
        },
        "assignment.members[1].replica.upstream" => match &mut a.members[1].role {
            Some(WireRole::Replica(replica)) => replica.upstream = None,
            _ => panic!("no replica"),
        },
        "assignment.members[1].replica.upstream.address" => match &mut a.members[1].role {
            Some(WireRole::Replica(replica)) => replica.upstream.as_mut().unwrap().address = "224.0.0.1".into(),
            _ => panic!("no replica"),
        },
    );
}

#[test]
fn each_bad_field_of_a_command_is_refused_by_name() {
    use proto::command::Payload as P;
    use proto::session_response::Message::Command;
    macro_rules! payload {
        ($command:ident, $variant:ident, $p:ident, $change:expr) => {
            match &mut $command.payload {
                Some(P::$variant($p)) => $change,
                _ => panic!("another payload"),
            }
        };
    }
    let mut payloads =
        payloads().into_iter().map(|payload| FromCoordinator::Command(Box::new(command(payload))));
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.command_id" => c.command_id.clear(),
        "command.coordinator_generation" => c.coordinator_generation = 0,
        "command.term" => c.term = u64::MAX,
        "command.deadline" => c.deadline = None,
        "command.deadline" => c.deadline.as_mut().unwrap().nanos = -1,
        "command.deadline" => c.deadline.as_mut().unwrap().seconds = i64::MAX,
        "command.payload" => c.payload = None,
        "command.check_member.cluster_id" => payload!(c, CheckMember, p, p.cluster_id.clear()),
        "command.check_member.engine" => payload!(c, CheckMember, p, p.engine = 0),
        "command.check_member.engine_version" => payload!(c, CheckMember, p, p.engine_version = "latest".into()),
        "command.check_member.port" => payload!(c, CheckMember, p, p.port = 0),
        "command.check_member.extensions" => payload!(c, CheckMember, p, p.extensions = vec!["a".into(); 33]),
        "command.check_member.extensions[0]" => payload!(c, CheckMember, p, p.extensions[0] = "-x".into()),
    );
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.install_engine.engine" => payload!(c, InstallEngine, p, p.engine = 9),
        "command.install_engine.engine_version" => payload!(c, InstallEngine, p, p.engine_version.clear()),
    );
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.initialise_member.member" => payload!(c, InitialiseMember, p, p.member = None),
        "command.initialise_member.member.term" => payload!(c, InitialiseMember, p, p.member.as_mut().unwrap().term = 0),
        "command.initialise_member.database" => payload!(c, InitialiseMember, p, p.database = "a'b".into()),
        "command.initialise_member.user" => payload!(c, InitialiseMember, p, p.user.clear()),
        "command.initialise_member.password_verifier" => payload!(c, InitialiseMember, p, p.password_verifier = "pw".into()),
        "command.initialise_member.password_verifier" => payload!(c, InitialiseMember, p, p.password_verifier.clear()),
    );
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.clone_member.member" => payload!(c, CloneMember, p, p.member = None),
        "command.clone_member.source" => payload!(c, CloneMember, p, p.source = None),
        "command.clone_member.source.port" => payload!(c, CloneMember, p, p.source.as_mut().unwrap().port = 70_000),
    );
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.destroy_member.cluster_id" => payload!(c, DestroyMember, p, p.cluster_id.clear()),
        "command.destroy_member.confirm" => payload!(c, DestroyMember, p, p.confirm.clear()),
    );
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.set_password.cluster_id" => payload!(c, SetPassword, p, p.cluster_id = "x".into()),
        "command.set_password.user" => payload!(c, SetPassword, p, p.user = "a;b".into()),
        "command.set_password.password_verifier" => payload!(c, SetPassword, p, p.password_verifier = "x".repeat(600)),
    );
}

#[test]
fn each_bad_field_of_what_a_coordinator_says_is_refused_by_name() {
    use proto::session_response::Message::{CancelCommand, Close, EventAck, OutcomeAck, Welcome};
    bad_fields!(refused_down, FromCoordinator::Welcome(welcome()), Welcome as w:
        "welcome.version" => w.version = 0,
        "welcome.session_id" => w.session_id.clear(),
        "welcome.heartbeat_interval" => w.heartbeat_interval = None,
        "welcome.heartbeat_interval" => w.heartbeat_interval = Some(prost_types::Duration { seconds: 0, nanos: 1 }),
        "welcome.heartbeat_interval" => w.heartbeat_interval = Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        "welcome.metrics_interval" => w.metrics_interval = Some(prost_types::Duration { seconds: i64::MAX, nanos: 0 }),
        "welcome.coordinator_generation" => w.coordinator_generation = 0,
        "welcome.coordinator_time" => w.coordinator_time = None,
    );
    let id = CommandId::generate();
    bad_fields!(refused_down, FromCoordinator::CancelCommand(id), CancelCommand as c:
        "cancel_command.command_id" => c.command_id.clear());
    bad_fields!(refused_down, FromCoordinator::OutcomeAck(id), OutcomeAck as a:
        "outcome_ack.command_id" => a.command_id = "x".into());
    bad_fields!(refused_down, FromCoordinator::EventAck(EventId::generate()), EventAck as a:
        "event_ack.event_id" => a.event_id.clear());
    let close = crate::link::Close { reason: CloseReason::Shutdown, message: String::new() };
    bad_fields!(refused_down, FromCoordinator::Close(close), Close as c:
        "close.reason" => c.reason = 0,
        "close.reason" => c.reason = 66,
        "close.message" => c.message = "x".repeat(5000));
    let nothing = FromCoordinator::try_from(proto::SessionResponse { message: None });
    assert_eq!(nothing, Err(Error::new("message", Problem::Missing)));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_bad_field_of_what_an_agent_says_is_refused_by_name() {
    use proto::session_request::Message::{CommandUpdate, Event, Heartbeat, Hello, Metrics};
    let mut up = up().into_iter();
    bad_fields!(refused_up, up.next().unwrap(), Hello as h:
        "hello.oldest_version" => h.oldest_version = 0,
        "hello.newest_version" => h.newest_version = 0,
        "hello.agent_version" => h.agent_version = "x".repeat(65),
        "hello.boot_id" => h.boot_id = "a\u{202e}".into(),
        "hello.instance_id" => h.instance_id.clear(),
        "hello.inventory" => h.inventory = None,
        "hello.inventory.hostname" => h.inventory.as_mut().unwrap().hostname.clear(),
        "hello.inventory.privilege" => h.inventory.as_mut().unwrap().privilege = 0,
        "hello.inventory.filtering" => h.inventory.as_mut().unwrap().filtering = 9,
        "hello.inventory.service_manager" => h.inventory.as_mut().unwrap().service_manager = 5,
        "hello.inventory.disks[0].medium" => h.inventory.as_mut().unwrap().disks[0].medium = 5,
        "hello.inventory.addresses[0].prefix_length" => h.inventory.as_mut().unwrap().addresses[0].prefix_length = 129,
        "hello.inventory.addresses[0].scope" => h.inventory.as_mut().unwrap().addresses[0].scope = 0,
        "hello.inventory.engines" => {
            let inventory = h.inventory.as_mut().unwrap();
            inventory.engines = vec![inventory.engines[0].clone(); 17];
        },
        "hello.assignment_generation" => h.assignment_generation = u64::MAX,
        "hello.unfinished_command_ids[0]" => h.unfinished_command_ids[0] = "x".into(),
        "hello.unfinished_command_ids" => h.unfinished_command_ids = vec!["x".into(); 257],
        "hello.node_time" => h.node_time = None,
    );
    bad_fields!(refused_up, up.next().unwrap(), Heartbeat as h:
        "heartbeat.sequence" => h.sequence = 0,
        "heartbeat.node_time" => h.node_time = None,
        "heartbeat.members" => h.members = vec![h.members[0].clone(); 129],
        "heartbeat.members" => h.members[1] = h.members[0].clone(),
        "heartbeat.members[0].cluster_id" => h.members[0].cluster_id = "x".into(),
        "heartbeat.members[0].engine" => h.members[0].engine = 0,
        "heartbeat.members[0].state" => h.members[0].state = 50,
        "heartbeat.members[0].role" => h.members[0].role = 50,
        "heartbeat.members[0].lag_seconds" => h.members[0].lag_seconds = Some(f64::NAN),
        "heartbeat.members[0].lag_seconds" => h.members[0].lag_seconds = Some(f64::INFINITY),
        "heartbeat.members[0].lag_seconds" => h.members[0].lag_seconds = Some(-1.0),
        "heartbeat.members[0].followers[0].node_id" => h.members[0].followers[0].node_id.clear(),
        "heartbeat.members[0].followers" => h.members[0].followers = vec![h.members[0].followers[0].clone(); 33],
        "heartbeat.members[0].synchronous_count" => h.members[0].synchronous_count = 2,
        "heartbeat.members[0].message" => h.members[0].message = "x".repeat(5_000_000),
        "heartbeat.members[0].pending_restart" => h.members[0].pending_restart = vec!["x".into(); 201],
        "heartbeat.members[0].started_time" => h.members[0].started_time.as_mut().unwrap().seconds = i64::MIN,
    );
    bad_fields!(refused_up, up.next().unwrap(), Metrics as m:
        "metrics.taken_time" => m.taken_time = None,
        "metrics.interval_seconds" => m.interval_seconds = Some(f64::NEG_INFINITY),
        "metrics.cpu.usage.user_fraction" => m.cpu.as_mut().unwrap().usage.as_mut().unwrap().user_fraction = 2.0,
        "metrics.load.one_minute" => m.load.as_mut().unwrap().one_minute = f64::NAN,
        "metrics.cpu_pressure.some" => m.cpu_pressure.as_mut().unwrap().some = None,
        "metrics.file_systems" => m.file_systems = vec![m.file_systems[0].clone(); 33],
        "metrics.file_systems[0].mount_point" => m.file_systems[0].mount_point = "x".repeat(257),
        "metrics.file_systems[0].inodes_free" => m.file_systems[0].inodes_free = None,
        "metrics.disks[1].rates.busy_fraction" => m.disks[1].rates.as_mut().unwrap().busy_fraction = f64::NAN,
        "metrics.interfaces[0].rates.send_drops_per_second" => {
            m.interfaces[0].rates.as_mut().unwrap().send_drops_per_second = -0.1;
        },
        "metrics.agent.cpu_seconds" => m.agent.as_mut().unwrap().cpu_seconds = f64::NAN,
    );
    let _ = up.next();
    bad_fields!(refused_up, up.next().unwrap(), Event as e:
        "event.event_id" => e.event_id.clear(),
        "event.time" => e.time = None,
        "event.severity" => e.severity = 0,
        "event.reason" => e.reason = "lower".into(),
        "event.reason" => e.reason.clear(),
        "event.message" => e.message = "\0".into(),
        "event.cluster_id" => e.cluster_id = "x".into(),
    );
    let _ = up.next();
    bad_fields!(refused_up, up.next().unwrap(), CommandUpdate as u:
        "command_update.command_id" => u.command_id.clear(),
        "command_update.sequence" => u.sequence = 0,
        "command_update.update" => u.update = None,
        "command_update.outcome.result" => {
            u.update = Some(proto::command_update::Update::Outcome(proto::Outcome { result: None }));
        },
        "command_update.outcome.failure.reason" => {
            let failure = holdfast_proto::r#type::v1::Failure { message: "x".into(), ..Default::default() };
            let result = Some(proto::outcome::Result::Failure(failure));
            u.update = Some(proto::command_update::Update::Outcome(proto::Outcome { result }));
        },
        "command_update.outcome.clone_member.system_identifier" => {
            let cloned = proto::CloneMemberResult::default();
            let result = Some(proto::outcome::Result::CloneMember(cloned));
            u.update = Some(proto::command_update::Update::Outcome(proto::Outcome { result }));
        },
    );
}

#[test]
fn each_bad_field_of_an_enrollment_is_refused_by_name() {
    let good = proto::EnrollRequest {
        token: "t".into(),
        certificate_signing_request: "c".into(),
        node_name: "n1".into(),
        address: "192.0.2.1".into(),
        request_id: uuid::Uuid::now_v7().to_string(),
    };
    Enroll::try_from(good.clone()).unwrap();
    let bad = |change: &dyn Fn(&mut proto::EnrollRequest)| {
        let mut request = good.clone();
        change(&mut request);
        Enroll::try_from(request).map_err(|error| error.field).err()
    };
    assert_eq!(bad(&|r| r.token.clear()).as_deref(), Some("token"));
    assert_eq!(bad(&|r| r.token = "x".repeat(513)).as_deref(), Some("token"));
    let request = "x".repeat(70_000);
    assert_eq!(
        bad(&|r| r.certificate_signing_request.clone_from(&request)).as_deref(),
        Some("certificate_signing_request")
    );
    assert_eq!(bad(&|r| r.node_name = "../etc".into()).as_deref(), Some("node_name"));
    assert_eq!(bad(&|r| r.address = "localhost".into()).as_deref(), Some("address"));
    assert_eq!(bad(&|r| r.request_id = "1".into()).as_deref(), Some("request_id"));
}

/// What converts must survive the way back and forth; nothing may panic.
fn is_sound(bytes: &[u8]) {
    if let Some(Ok(message)) = decode_up(bytes) {
        let again = proto::SessionRequest::from(&message).encode_to_vec();
        assert_eq!(decode_up(&again), Some(Ok(message)));
    }
    if let Some(Ok(message)) = decode_down(bytes) {
        let again = proto::SessionResponse::from(&message).encode_to_vec();
        assert_eq!(decode_down(&again), Some(Ok(message)));
    }
    if let Ok(request) = proto::EnrollRequest::decode(bytes) {
        let _ = Enroll::try_from(request);
    }
    if let Ok(response) = proto::EnrollResponse::decode(bytes) {
        let _ = Enrolled::try_from(response);
    }
}

#[test]
fn every_flipped_byte_is_refused_or_understood_and_never_a_panic() {
    let messages =
        up().iter().map(|message| proto::SessionRequest::from(message).encode_to_vec()).collect::<Vec<_>>();
    let answers = down()
        .iter()
        .map(|message| proto::SessionResponse::from(message).encode_to_vec())
        .collect::<Vec<_>>();
    for bytes in messages.into_iter().chain(answers) {
        for position in 0..bytes.len() {
            is_sound(&bytes[..position]);
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[position] ^= flip;
                is_sound(&changed);
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        is_sound(&bytes);
    }

    #[test]
    fn every_time_and_duration_crosses_unchanged(seconds in -62_000_000_000_i64..250_000_000_000, nanos in 0..1_000_000_000) {
        let time = Timestamp::new(seconds, nanos).unwrap();
        prop_assert_eq!(Field("t").time(Some(time_to_wire(time))), Ok(time));
        let duration = Duration::new(seconds.unsigned_abs(), nanos.unsigned_abs());
        prop_assert_eq!(Field("d").duration(Some(duration_to_wire(duration))), Ok(duration));
    }
}
