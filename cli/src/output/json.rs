//! Messages as JSON: names in snake_case with their units, words in lower case, what is unknown null. Stable: fields are
//! added, never renamed. The golden test beside the commands shows all of it.

use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1;
use serde_json::{Map, Value, json};

use super::progress::remaining_seconds;
use super::{text_or_null, time, word};

pub(crate) fn node(node: &v1::Node) -> Value {
    json!({
        "id": node.id,
        "name": node.name,
        "address": text_or_null(&node.address),
        "availability": word(node.availability().as_str_name(), "AVAILABILITY_"),
        "availability_time": time(node.availability_time.as_ref()),
        "last_heartbeat_time": time(node.last_heartbeat_time.as_ref()),
        "agent_version": text_or_null(&node.agent_version),
        "inventory": node.inventory.as_ref().map(inventory),
        "sample": node.sample.as_ref().map(sample),
        "clusters": node.clusters,
        "join_time": time(node.join_time.as_ref()),
        "certificate_expire_time": time(node.certificate_expire_time.as_ref()),
        "clock_offset_seconds": node.clock_offset_seconds,
        "drained": node.drained.as_ref().map(|drained| json!({
            "by": drained.by,
            "since_time": time(drained.since_time.as_ref()),
            "reason": drained.reason,
        })),
        "members": node.members.iter().map(|member| {
            json!({"cluster": member.cluster, "tuning": member.tuning.as_ref().map(tuning)})
        }).collect::<Vec<_>>(),
    })
}

fn inventory(inventory: &nouns::Inventory) -> Value {
    let disks = inventory.disks.iter().map(|disk| {
        json!({
            "device": disk.device,
            "mount_point": disk.mount_point,
            "file_system": disk.file_system,
            "total_bytes": disk.total_bytes,
            "medium": word(disk.medium().as_str_name(), "DISK_MEDIUM_"),
        })
    });
    let addresses = inventory.addresses.iter().map(|address| {
        json!({
            "interface": address.interface,
            "ip": address.ip,
            "prefix_length": address.prefix_length,
            "scope": word(address.scope().as_str_name(), "ADDRESS_SCOPE_"),
        })
    });
    let engines = inventory.engines.iter().map(|engine| {
        json!({
            "engine": engine.engine,
            "version": engine.version,
            "availability": word(engine.availability().as_str_name(), "ENGINE_AVAILABILITY_"),
        })
    });
    json!({
        "hostname": inventory.hostname,
        "os_id": inventory.os_id,
        "os_version": inventory.os_version,
        "os_pretty_name": inventory.os_pretty_name,
        "kernel": inventory.kernel,
        "architecture": inventory.architecture,
        "cpu_model": inventory.cpu_model,
        "logical_cores": inventory.logical_cores,
        "physical_cores": inventory.physical_cores,
        "memory_bytes": inventory.memory_bytes,
        "swap_bytes": inventory.swap_bytes,
        "virtualisation": inventory.virtualisation,
        "service_manager": word(inventory.service_manager().as_str_name(), "SERVICE_MANAGER_"),
        "privilege": word(inventory.privilege().as_str_name(), "PRIVILEGE_"),
        "filtering": word(inventory.filtering().as_str_name(), "FILTERING_STATE_"),
        "filtering_message": text_or_null(&inventory.filtering_message),
        "disks": disks.collect::<Vec<_>>(),
        "addresses": addresses.collect::<Vec<_>>(),
        "engines": engines.collect::<Vec<_>>(),
    })
}

/// The rules of a cluster, without their entries.
pub(crate) fn access(access: &v1::Access) -> Value {
    let traffic = |traffic: &nouns::Traffic| json!({"packets": traffic.packets, "bytes": traffic.bytes});
    let members = access.members.iter().map(|member| {
        json!({
            "node": member.node,
            "state": word(member.state().as_str_name(), "ACCESS_STATE_"),
            "message": text_or_null(&member.message),
            "trial_left_seconds": member.trial_left.as_ref().map(|left| left.seconds),
            "accepted": member.accepted.as_ref().map(traffic),
            "refused": member.refused.as_ref().map(traffic),
        })
    });
    json!({
        "cluster": access.cluster,
        "mode": word(access.mode().as_str_name(), "ACCESS_MODE_"),
        "entry_count": access.entry_count,
        "log_refused": access.log_refused,
        "trial": access.trial.as_ref().map(|trial| json!({
            "id": trial.trial_id,
            "mode": word(trial.mode().as_str_name(), "ACCESS_MODE_"),
            "entry_count": trial.entry_count,
            "log_refused": trial.log_refused,
            "end_time": time(trial.end_time.as_ref()),
        })),
        "members": members.collect::<Vec<_>>(),
    })
}

fn sample(sample: &nouns::Sample) -> Value {
    let usage = sample.cpu.as_ref().and_then(|cpu| cpu.usage.as_ref());
    let file_systems = sample.file_systems.iter().map(|system| {
        json!({
            "mount_point": system.mount_point,
            "device": system.device,
            "kind": system.kind,
            "read_only": system.read_only,
            "total_bytes": system.total_bytes,
            "used_bytes": system.used_bytes,
            "available_bytes": system.available_bytes,
            "inodes_total": system.inodes_total,
            "inodes_free": system.inodes_free,
        })
    });
    json!({
        "taken_time": time(sample.taken_time.as_ref()),
        "interval_seconds": sample.interval_seconds,
        "uptime_seconds": sample.uptime_seconds,
        "reboot_required": sample.reboot_required,
        "cpu": sample.cpu.as_ref().map(|cpu| json!({
            "logical_cores": cpu.logical_cores,
            "busy_fraction": usage.map(super::busy_fraction),
            "user_fraction": usage.map(|usage| usage.user_fraction),
            "nice_fraction": usage.map(|usage| usage.nice_fraction),
            "system_fraction": usage.map(|usage| usage.system_fraction),
            "idle_fraction": usage.map(|usage| usage.idle_fraction),
            "iowait_fraction": usage.map(|usage| usage.iowait_fraction),
            "irq_fraction": usage.map(|usage| usage.irq_fraction),
            "softirq_fraction": usage.map(|usage| usage.softirq_fraction),
            "steal_fraction": usage.map(|usage| usage.steal_fraction),
        })),
        "load": sample.load.as_ref().map(|load| json!({
            "one_minute": load.one_minute,
            "five_minutes": load.five_minutes,
            "fifteen_minutes": load.fifteen_minutes,
        })),
        "pressure": {
            "cpu": sample.cpu_pressure.as_ref().map(stalls),
            "memory": sample.memory_pressure.as_ref().map(stalls),
            "io": sample.io_pressure.as_ref().map(stalls),
        },
        "memory": sample.memory.as_ref().map(|memory| json!({
            "total_bytes": memory.total_bytes,
            "available_bytes": memory.available_bytes,
            "used_bytes": memory.used_bytes,
            "buffers_bytes": memory.buffers_bytes,
            "cached_bytes": memory.cached_bytes,
        })),
        "swap": sample.swap.as_ref().map(|swap| json!({"total_bytes": swap.total_bytes, "used_bytes": swap.used_bytes})),
        "file_systems": file_systems.collect::<Vec<_>>(),
        "disks": sample.disks.iter().map(disk).collect::<Vec<_>>(),
        "interfaces": sample.interfaces.iter().map(interface).collect::<Vec<_>>(),
        "agent": sample.agent.as_ref().map(|agent| json!({
            "resident_bytes": agent.resident_bytes,
            "cpu_seconds": agent.cpu_seconds,
            "cpu_fraction": agent.cpu_fraction,
            "open_files": agent.open_files,
            "threads": agent.threads,
        })),
    })
}

fn stalls(stalls: &nouns::Stalls) -> Value {
    let stall = |stall: &nouns::Stall| {
        json!({
            "ten_seconds_fraction": stall.ten_seconds_fraction,
            "one_minute_fraction": stall.one_minute_fraction,
            "five_minutes_fraction": stall.five_minutes_fraction,
            "total_seconds": stall.total_seconds,
        })
    };
    json!({"some": stalls.some.as_ref().map(stall), "full": stalls.full.as_ref().map(stall)})
}

fn disk(disk: &nouns::Disk) -> Value {
    let rates = disk.rates.as_ref();
    json!({
        "name": disk.name,
        "reads_per_second": rates.map(|rates| rates.reads_per_second),
        "writes_per_second": rates.map(|rates| rates.writes_per_second),
        "read_bytes_per_second": rates.map(|rates| rates.read_bytes_per_second),
        "written_bytes_per_second": rates.map(|rates| rates.written_bytes_per_second),
        "busy_fraction": rates.map(|rates| rates.busy_fraction),
        "read_latency_seconds": rates.and_then(|rates| rates.read_latency_seconds),
        "write_latency_seconds": rates.and_then(|rates| rates.write_latency_seconds),
        "queue_depth": rates.map(|rates| rates.queue_depth),
    })
}

fn interface(interface: &nouns::Interface) -> Value {
    let rates = interface.rates.as_ref();
    json!({
        "name": interface.name,
        "received_bytes_per_second": rates.map(|rates| rates.received_bytes_per_second),
        "sent_bytes_per_second": rates.map(|rates| rates.sent_bytes_per_second),
        "received_packets_per_second": rates.map(|rates| rates.received_packets_per_second),
        "sent_packets_per_second": rates.map(|rates| rates.sent_packets_per_second),
        "receive_errors_per_second": rates.map(|rates| rates.receive_errors_per_second),
        "send_errors_per_second": rates.map(|rates| rates.send_errors_per_second),
        "receive_drops_per_second": rates.map(|rates| rates.receive_drops_per_second),
        "send_drops_per_second": rates.map(|rates| rates.send_drops_per_second),
    })
}

pub(crate) fn metrics(node: &str, answer: &v1::QueryMetricsResponse) -> Value {
    let series = answer.series.iter().map(|series| {
        let points = series.points.iter().map(|point| {
            json!({"time": time(point.time.as_ref()), "value": point.value, "min": point.min, "max": point.max})
        });
        json!({"name": series.name, "labels": sorted(&series.labels), "points": points.collect::<Vec<_>>()})
    });
    json!({
        "node": node,
        "step_seconds": answer.step.as_ref().map(super::seconds),
        "series": series.collect::<Vec<_>>(),
    })
}

pub(crate) fn cluster(cluster: &v1::Cluster) -> Value {
    json!({
        "id": cluster.id,
        "name": cluster.name,
        "engine": word(cluster.engine().as_str_name(), "ENGINE_"),
        "engine_version": text_or_null(&cluster.engine_version),
        "state": state(cluster.state().as_str_name(), "CLUSTER_STATE_"),
        "message": cluster.message,
        "term": cluster.term,
        "primary": text_or_null(&cluster.primary_node),
        "durability": word(cluster.durability().as_str_name(), "DURABILITY_"),
        "synchronous_count": cluster.synchronous_count,
        "port": cluster.port,
        "replication_port": (cluster.replication_port != 0).then_some(cluster.replication_port),
        "gated_ports": cluster.gated_ports,
        "parameters": sorted(&cluster.parameters),
        "extensions": cluster.extensions,
        "members": cluster.members.iter().map(member).collect::<Vec<_>>(),
        "create_time": time(cluster.create_time.as_ref()),
        "operation_id": text_or_null(&cluster.operation_id),
        "lease_profile": word(cluster.lease_profile().as_str_name(), "LEASE_PROFILE_"),
        "lease": cluster.lease.as_ref().map(lease),
        "pause": cluster.pause.as_ref().map(|pause| {
            json!({"by": pause.by, "reason": pause.reason, "since_time": time(pause.since_time.as_ref())})
        }),
        "max_lag_on_failover_bytes": cluster.max_lag_on_failover_bytes,
        "on_replica_loss": word(cluster.on_replica_loss().as_str_name(), "ON_REPLICA_LOSS_"),
    })
}

fn lease(lease: &v1::ClusterLease) -> Value {
    let failover = lease.failover.as_ref().map(|failover| {
        json!({
            "possible": failover.possible,
            "candidate_node": text_or_null(&failover.candidate_node),
            "behind_bytes": failover.behind_bytes,
            "message": failover.message,
        })
    });
    json!({
        "holder": lease.holder,
        "source": state(lease.source().as_str_name(), "LEASE_SOURCE_"),
        "expire_time": time(lease.expire_time.as_ref()),
        "remembered_until_time": time(lease.remembered_until_time.as_ref()),
        "list_version": lease.list_version,
        "promotable_nodes": lease.promotable_nodes,
        "settled": lease.settled,
        "fenced": lease.fenced,
        "failover": failover,
    })
}

fn member(member: &v1::Member) -> Value {
    let troubles = member.troubles.iter().map(|trouble| {
        json!({"kind": word(trouble.kind().as_str_name(), "TROUBLE_KIND_"), "message": trouble.message})
    });
    json!({
        "node": member.node,
        "node_id": member.node_id,
        "address": text_or_null(&member.address),
        "role": word(member.role().as_str_name(), "ROLE_"),
        "state": state(member.state().as_str_name(), "MEMBER_STATE_"),
        "message": member.message,
        "term": (member.term != 0).then_some(member.term),
        "position": member.position.as_ref().map(|position| json!({"era": position.era, "offset": position.offset})),
        "lag_bytes": member.lag_bytes,
        "lag_seconds": member.lag_seconds,
        "synchronous": member.synchronous,
        "streaming": member.streaming,
        "engine_version": text_or_null(&member.engine_version),
        "server_build": text_or_null(&member.server_build),
        "installed_build": text_or_null(&member.installed_build),
        "observe_time": time(member.observe_time.as_ref()),
        "troubles": troubles.collect::<Vec<_>>(),
        "tuning": member.tuning.as_ref().map(tuning),
    })
}

fn tuning(tuning: &nouns::MemberTuning) -> Value {
    let budget = |budget: &nouns::Budget| json!({"memory_bytes": budget.memory_bytes, "cores": budget.cores, "disk_bytes": budget.disk_bytes});
    json!({
        "kept": tuning.kept.as_ref().map(budget),
        "possible": tuning.possible.as_ref().map(budget),
        "resized": tuning.resized,
    })
}

pub(crate) fn connection(cluster: &str, connection: &v1::Connection) -> Value {
    json!({
        "cluster": cluster,
        "uri": connection.uri,
        "read_uri": connection.read_uri,
        "user": connection.user,
        "database": connection.database,
        "password": text_or_null(&connection.password),
        "password_shown_before": connection.password_shown_before,
        "trust_bundle": connection.trust_bundle,
    })
}

pub(crate) fn operation(operation: &v1::Operation) -> Value {
    let steps = operation.steps.iter().map(|step| {
        json!({
            "name": step.name,
            "title": step.title,
            "state": state(step.state().as_str_name(), "STEP_STATE_"),
            "start_time": time(step.start_time.as_ref()),
            "end_time": time(step.end_time.as_ref()),
            "attempts": step.attempts,
            "message": step.message,
            "done_bytes": step.done_bytes,
            "total_bytes": step.total_bytes,
            "remaining_seconds": remaining_seconds(operation, step),
        })
    });
    let (failure, response) = match &operation.result {
        Some(v1::operation::Result::Failure(told)) => (Some(failure(told)), None),
        Some(v1::operation::Result::Response(response)) => (None, Some(structure(response))),
        None => (None, None),
    };
    json!({
        "id": operation.id,
        "kind": operation.kind,
        "resource": operation.resource,
        "requested_by": operation.requested_by,
        "create_time": time(operation.create_time.as_ref()),
        "update_time": time(operation.update_time.as_ref()),
        "state": state(operation.state().as_str_name(), "OPERATION_STATE_"),
        "steps": steps.collect::<Vec<_>>(),
        "done": operation.done,
        "failure": failure,
        "response": response,
        "cancellable": operation.cancellable,
        "cancel_requested": operation.cancel_requested,
    })
}

pub(crate) fn failure(failure: &nouns::Failure) -> Value {
    json!({
        "reason": failure.reason().as_str_name().trim_start_matches("ERROR_REASON_"),
        "message": failure.message,
        "metadata": sorted(&failure.metadata),
        "retry_after_seconds": failure.retry_after.as_ref().map(super::seconds),
    })
}

pub(crate) fn plan(plan: &v1::Plan) -> Value {
    let preconditions = plan.preconditions.iter().map(|condition| {
        json!({"name": condition.name, "subject": condition.subject, "met": condition.met, "message": condition.message})
    });
    json!({
        "steps": plan.steps.iter().map(|step| json!({"name": step.name, "title": step.title})).collect::<Vec<_>>(),
        "preconditions": preconditions.collect::<Vec<_>>(),
        "notes": plan.notes,
    })
}

pub(crate) fn event(event: &v1::Event) -> Value {
    json!({
        "id": event.id,
        "time": time(event.time.as_ref()),
        "severity": word(event.severity().as_str_name(), "SEVERITY_"),
        "reason": event.reason,
        "message": event.message,
        "node": text_or_null(&event.node),
        "cluster": text_or_null(&event.cluster),
        "operation_id": text_or_null(&event.operation_id),
        "actor": text_or_null(&event.actor),
    })
}

pub(crate) fn join_token(token: &v1::JoinToken) -> Value {
    json!({
        "id": token.id,
        "description": token.description,
        "create_time": time(token.create_time.as_ref()),
        "expire_time": time(token.expire_time.as_ref()),
        "uses_allowed": token.uses_allowed,
        "uses_left": token.uses_left,
        "revoked": token.revoked,
        "created_by": token.created_by,
        "node": text_or_null(&token.node_name),
        "rejoin": token.rejoin,
    })
}

pub(crate) fn access_token(token: &v1::AccessToken) -> Value {
    json!({
        "id": token.id,
        "operator": token.operator,
        "description": token.description,
        "create_time": time(token.create_time.as_ref()),
        "expire_time": time(token.expire_time.as_ref()),
        "revoked": token.revoked,
    })
}

pub(crate) fn operator(operator: &v1::Operator) -> Value {
    json!({
        "name": operator.name,
        "role": word(operator.role().as_str_name(), "OPERATOR_ROLE_"),
        "create_time": time(operator.create_time.as_ref()),
        "certificate_expire_time": time(operator.certificate_expire_time.as_ref()),
    })
}

pub(crate) fn caller(caller: &v1::GetCallerResponse) -> Value {
    json!({
        "name": caller.name,
        "role": word(caller.role().as_str_name(), "OPERATOR_ROLE_"),
        "method": caller.method,
        "expire_time": time(caller.expire_time.as_ref()),
        "fleet_id": caller.fleet_id,
        "coordinator_version": caller.coordinator_version,
    })
}

fn state(name: &str, prefix: &str) -> String {
    word(name, prefix).unwrap_or_else(|| "unknown".to_owned())
}

fn sorted(map: &std::collections::HashMap<String, String>) -> Value {
    Value::Object(
        map.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect::<Map<_, _>>(),
    )
}

fn structure(value: &prost_types::Struct) -> Value {
    Value::Object(value.fields.iter().map(|(key, value)| (key.clone(), any(value))).collect())
}

fn any(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::BoolValue(truth)) => json!(truth),
        Some(Kind::StructValue(inner)) => structure(inner),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(any).collect()),
    }
}
