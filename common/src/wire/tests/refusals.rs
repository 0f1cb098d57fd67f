//! Each bad field is refused by its name.

use super::samples::{assignment, command, payloads, up, welcome};
use super::*;

/// `change` applied to a good message makes a bad one, which is refused under `field`.
pub(super) fn refused_up(
    good: &FromAgent,
    change: impl FnOnce(&mut proto::session_request::Message),
    field: &str,
) {
    let mut request = proto::SessionRequest::from(good);
    change(request.message.as_mut().unwrap());
    match FromAgent::try_from(request) {
        Err(error) => assert_eq!(error.field, field, "{error}"),
        Ok(_) => panic!("accepted a bad `{field}`"),
    }
}

pub(super) fn refused_down(
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
        "assignment.members[0].replication_port" => a.members[0].replication_port = 65_536,
        "assignment.members[0].gated_ports" => a.members[0].gated_ports = vec![6432, 0],
        "assignment.members[0].gated_ports" => a.members[0].gated_ports = vec![6432, 6432],
        "assignment.members[0].gated_ports" => a.members[0].gated_ports = (1..10).collect(),
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
        "command.check_member.replication_port" => payload!(c, CheckMember, p, p.replication_port = 65_536),
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
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.resync_member.member" => payload!(c, ResyncMember, p, p.member = None),
        "command.resync_member.source" => payload!(c, ResyncMember, p, p.source = None),
        "command.resync_member.source.node_id" => payload!(c, ResyncMember, p, p.source.as_mut().unwrap().node_id.clear()),
        "command.resync_member.mode" => payload!(c, ResyncMember, p, p.mode = 0),
        "command.resync_member.mode" => payload!(c, ResyncMember, p, p.mode = 4),
    );
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.restart_member.member" => payload!(c, RestartMember, p, p.member = None),
    );
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.upgrade_engine.engine" => payload!(c, UpgradeEngine, p, p.engine = 0),
        "command.upgrade_engine.engine_version" => payload!(c, UpgradeEngine, p, p.engine_version = "15.1".into()),
    );
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.retune_member.cluster_id" => payload!(c, RetuneMember, p, p.cluster_id.clear()),
        "command.retune_member.budget.memory_bytes" => payload!(c, RetuneMember, p, p.budget.as_mut().unwrap().memory_bytes = 1),
        "command.retune_member.budget.cores" => payload!(c, RetuneMember, p, p.budget.as_mut().unwrap().cores = 0),
    );
    bad_fields!(refused_down, payloads.next().unwrap(), Command as c:
        "command.reboot_node.boot_id" => payload!(c, RebootNode, p, p.boot_id.clear()),
        "command.reboot_node.boot_id" => payload!(c, RebootNode, p, p.boot_id = "a b".into()),
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
        "command_update.outcome.resync_member.how" => {
            let resynced = proto::ResyncMemberResult { system_identifier: "73".into(), ..Default::default() };
            let result = Some(proto::outcome::Result::ResyncMember(resynced));
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
