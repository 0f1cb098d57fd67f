//! One good value of everything that crosses the wire, with all that it can have.

use super::asked::{answers, questions};
use super::*;

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::new(seconds, 123_456_789).unwrap()
}

pub(super) fn peer(name: &str) -> Peer {
    Peer {
        node_id: NodeId::generate(),
        name: name.parse().unwrap(),
        address: [10, 0, 0, 1].into(),
        port: 5433,
    }
}

pub(super) fn member(role: RoleAssignment) -> MemberAssignment {
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
        patience: Some(Profile::Wide),
        replication_port: Some(15_432),
        gated_ports: vec![6432, 6433],
    }
}

pub(super) fn access() -> Access {
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

pub(super) fn assignment() -> Assignment {
    let primary = member(RoleAssignment::Primary {
        synchronous: Synchronous { count: 1, nodes: vec![NodeId::generate(), NodeId::generate()] },
    });
    let mut replica = member(RoleAssignment::Replica { upstream: peer("up") });
    replica.port = 6000;
    replica.system_identifier = None;
    replica.power = Power::Stopped;
    replica.access = Access::default();
    replica.exposure = Exposure::OnlyFiltered;
    (replica.replication_port, replica.gated_ports, replica.patience) = (None, Vec::new(), None);
    Assignment {
        coordinator_generation: Generation::new(1),
        generation: Generation::new(9),
        members: vec![primary, replica],
    }
}

pub(super) fn budget(parts: u32) -> Budget {
    let bytes = u64::from(parts) << 30;
    Budget { memory_bytes: bytes, cores: parts, disk_bytes: 9 * bytes }
}

pub(super) fn payloads() -> Vec<Payload> {
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
            replication_port: Some(15_432),
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
        Payload::CloneMember(Box::new(CloneMember { member: member(upstream.clone()), source: peer("src") })),
        Payload::DestroyMember(DestroyMember { cluster_id, confirm: "orders".parse().unwrap() }),
        Payload::SetPassword(SetPassword { cluster_id, user: name("app"), password }),
        Payload::ResyncMember(Box::new(ResyncMember {
            member: member(upstream.clone()),
            source: peer("src"),
            mode: ResyncMode::Rewind,
            in_place: true,
        })),
        Payload::RestartMember(Box::new(RestartMember { member: member(upstream) })),
        Payload::UpgradeEngine(UpgradeEngine { engine, engine_version: "15".parse().unwrap() }),
        Payload::RetuneMember(RetuneMember { cluster_id, budget: Some(budget(1)) }),
        Payload::RebootNode(RebootNode { boot_id: "b".into(), with_primaries: true }),
    ]
}

pub(super) fn command(payload: Payload) -> Command {
    Command {
        id: CommandId::generate(),
        coordinator_generation: Generation::new(1),
        term: Term::new(7),
        deadline: at(1_800_000_000),
        payload,
    }
}

pub(super) fn outcomes() -> Vec<Outcome> {
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
        Ok(Success::ResyncMember {
            how: ResyncedBy::Rewound,
            system_identifier: "73".into(),
            copied_bytes: 9,
            set_aside_bytes: 8,
        }),
        Ok(Success::RestartMember),
        Ok(Success::UpgradeEngine { installed_build: "15.14 (Debian 15.14-0+deb12u1)".into() }),
        Ok(Success::RetuneMember { budget: budget(2) }),
        Ok(Success::RebootNode { boot_id: "c".into() }),
        Err(Failure::about(Reason::ClusterNotFound, "cluster", "orders", "no such cluster")
            .retry_after(Duration::from_millis(1500))),
        Err(Failure { retry: Retry::Later(None), ..Failure::invalid_field("port", "is taken") }),
    ]
}

pub(super) fn report() -> NodeReport {
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
        server_build: Some("15.14 (Debian 15.14-0+deb12u1)".into()),
        installed_build: Some("15.15 (Debian 15.15-0+deb12u1)".into()),
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
            version: Some(Version::new(7)),
            fenced: true,
            open: true,
        }),
        has_promised: true,
        failed_probes: 3,
        needs_resync: true,
        troubles: vec![Trouble { kind: TroubleKind::LogRemoved, message: "gone".into() }],
        tuning: Some(Tuning { kept: budget(1), possible: budget(2), resized: true }),
    };
    let unknown = MemberReport::only(
        ClusterId::generate(),
        crate::engine::Engine::Postgresql,
        EngineState::Unknown,
        Term::NONE,
    );
    NodeReport { members: vec![full, unknown], assignment_generation: Generation::NONE, node_time: at(-5) }
}

#[expect(clippy::too_many_lines, reason = "a sample has many fields")]
pub(super) fn sample() -> Sample {
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
        reboot_required: Some(true),
    }
}

pub(super) fn empty_sample() -> Sample {
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
        reboot_required: None,
    }
}

pub(super) fn inventory() -> Inventory {
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

pub(super) fn event(cluster_id: Option<ClusterId>) -> NodeEvent {
    NodeEvent {
        id: EventId::generate(),
        time: at(7),
        severity: Severity::Warning,
        reason: "STATE_DAMAGED".into(),
        message: "set aside".into(),
        cluster_id,
    }
}

pub(super) fn up() -> Vec<FromAgent> {
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
    messages.extend(
        answers().into_iter().map(|answer| FromAgent::Answer(Box::new(Answer { number: 5, answer }))),
    );
    messages
}

pub(super) fn welcome() -> Welcome {
    Welcome {
        version: 1,
        session_id: SessionId::generate(),
        heartbeat_interval: Duration::from_secs(1),
        metrics_interval: Duration::from_millis(5500),
        coordinator_generation: Generation::new(1),
        coordinator_time: at(9),
    }
}

pub(super) fn down() -> Vec<FromCoordinator> {
    let mut messages = vec![
        FromCoordinator::Welcome(welcome()),
        FromCoordinator::Assignment(Box::new(assignment())),
        FromCoordinator::CancelCommand(CommandId::generate()),
        FromCoordinator::HeartbeatAck { sequence: 3 },
        FromCoordinator::OutcomeAck(CommandId::generate()),
        FromCoordinator::EventAck(EventId::generate()),
    ];
    messages.extend(questions());
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
