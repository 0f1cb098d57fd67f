//! Requests about clusters to domain values: all bad fields at once.

mod set;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use holdfast_common::assignment::{Exposure, MAX_GATED_PORTS, MAX_PEERS};
use holdfast_common::command::ResyncMode;
use holdfast_common::engine::{Engine, EngineVersion, ExtensionName, MAX_EXTENSIONS, Parameters};
use holdfast_common::error::{Failure, Violations};
use holdfast_common::link::{HEALTH_PORT, PEER_PORT};
use holdfast_common::name::{ClusterName, NodeName};
use holdfast_common::protocol::Profile;
use holdfast_common::role::Durability;
use holdfast_common::wire::WireEnum as _;
use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1 as proto;

use crate::procedures::requests::{
    CreateCluster, FailoverCluster, PauseCluster, RestartCluster, ResyncCluster,
};
use crate::procedures::restart::Writes;
use crate::procedures::steps::Absent;
use crate::rpc::convert;

pub(super) use set::set;

/// Below it are ports that only root may use, and well-known ones.
const LEAST_PORT: u16 = 1024;
/// How far from the clients' port the replication's is, if nobody chooses one.
const REPLICATION_APART: u16 = 10_000;

pub(super) fn cluster_name(field: &str, text: &str) -> Result<ClusterName, Failure> {
    text.parse().map_err(|error| Failure::invalid_field(field, error))
}

pub(super) fn absent(force: bool) -> Absent {
    if force { Absent::LeaveBehind } else { Absent::Wait }
}

pub(super) fn writes(force: bool) -> Writes {
    if force { Writes::MayWait } else { Writes::GoOn }
}

fn exposure(allow_unfiltered: bool) -> Exposure {
    if allow_unfiltered { Exposure::AlsoUnfiltered } else { Exposure::OnlyFiltered }
}

pub(super) fn member(cluster: &str, node: &str) -> Result<(ClusterName, NodeName), Failure> {
    let mut violations = Violations::default();
    let cluster = violations.take("cluster", cluster.parse());
    let node = violations.take("node", node.parse());
    complete(violations, cluster.zip(node))
}

pub(super) fn failover(request: proto::FailoverClusterRequest) -> Result<FailoverCluster, Failure> {
    let proto::FailoverClusterRequest {
        cluster,
        node,
        confirm,
        accept_data_loss,
        old_primary_is_off,
        request_id: _,
        validate_only: _,
    } = request;
    let mut violations = Violations::default();
    let cluster = violations.take("cluster", cluster.parse());
    let node = (!node.is_empty()).then(|| violations.take("node", node.parse())).flatten();
    let cluster = complete(violations, cluster)?;
    Ok(FailoverCluster { cluster, node, confirm, accept_data_loss, old_primary_is_off })
}

pub(super) fn restart(request: proto::RestartClusterRequest) -> Result<RestartCluster, Failure> {
    let proto::RestartClusterRequest { cluster, nodes, force, request_id: _, validate_only: _ } = request;
    let mut violations = Violations::default();
    let cluster = violations.take("cluster", cluster.parse());
    let nodes = node_names(&mut violations, &nodes);
    violations.check()?;
    let cluster = cluster.ok_or_else(|| Failure::invalid_field("cluster", "is missing"))?;
    Ok(RestartCluster { cluster, nodes, writes: writes(force) })
}

/// Each once.
fn node_names(violations: &mut Violations, nodes: &[String]) -> Vec<NodeName> {
    let mut named = Vec::new();
    for (index, name) in nodes.iter().enumerate().take(MAX_PEERS + 1) {
        match violations.take(&format!("nodes[{index}]"), name.parse::<NodeName>()) {
            Some(name) if named.contains(&name) => violations.add("nodes", format!("names `{name}` twice")),
            Some(name) => named.push(name),
            None => {}
        }
    }
    if nodes.len() > MAX_PEERS {
        violations.add("nodes", format!("names more than {MAX_PEERS} nodes"));
    }
    named
}

pub(super) fn resync(request: proto::ResyncClusterRequest) -> Result<ResyncCluster, Failure> {
    let mode = request.mode();
    let proto::ResyncClusterRequest { cluster, nodes, mode: given, in_place, confirm, .. } = request;
    let mut violations = Violations::default();
    let cluster = violations.take("cluster", cluster.parse());
    let named = node_names(&mut violations, &nodes);
    let mode = match mode {
        proto::ResyncMode::Unspecified if given != 0 => {
            violations.add("mode", format!("{given} is unknown; use auto, rewind or full"));
            ResyncMode::Auto
        }
        proto::ResyncMode::Unspecified | proto::ResyncMode::Auto => ResyncMode::Auto,
        proto::ResyncMode::Rewind => ResyncMode::Rewind,
        proto::ResyncMode::Full => ResyncMode::Full,
    };
    if in_place && mode == ResyncMode::Rewind {
        violations.add("in_place", "is about copies, and this mode never makes one");
    }
    let parts = cluster.map(|cluster| ResyncCluster { cluster, nodes: named, mode, in_place, confirm });
    complete(violations, parts)
}

pub(super) fn pause(cluster: &str, reason: &str) -> Result<PauseCluster, Failure> {
    let mut violations = Violations::default();
    let cluster = violations.take("cluster", cluster.parse());
    let reason = convert::reason(&mut violations, reason);
    complete(violations, cluster.map(|cluster| PauseCluster { cluster, reason }))
}

pub(super) fn create(request: proto::CreateClusterRequest) -> Result<CreateCluster, Failure> {
    let proto::CreateClusterRequest {
        name,
        engine,
        engine_version,
        nodes,
        primary,
        durability,
        port,
        parameters,
        extensions,
        request_id: _,
        validate_only: _,
        allow_unfiltered,
        lease_profile,
        replication_port,
        gated_ports,
    } = request;
    let mut violations = Violations::default();
    let lease_profile = parse_profile(lease_profile, &mut violations);
    let name = violations.take("name", name.parse::<ClusterName>());
    let engine = parse_engine(engine, &mut violations);
    let engine_version = parse_version(&engine_version, &mut violations);
    let nodes = parse_nodes(&nodes, &mut violations);
    let primary = parse_primary(&primary, &nodes, &mut violations);
    let durability = parse_durability(durability, &mut violations);
    let port = match port {
        0 => engine.map(Engine::default_port),
        port => parse_port("port", port, &mut violations),
    };
    let replication_port = parse_replication_port(replication_port, port, allow_unfiltered, &mut violations);
    let gated_ports =
        parse_gated_ports(&gated_ports, [port, replication_port], allow_unfiltered, &mut violations);
    let parameters = parse_parameters(parameters, engine, engine_version.as_ref(), &mut violations);
    let extensions = parse_extensions(&extensions, &mut violations);
    let parts = match (name, engine, primary, durability, port, parameters) {
        (Some(name), Some(engine), Some(primary), Some(durability), Some(port), Some(parameters)) => {
            Some(CreateCluster {
                name,
                engine,
                engine_version,
                nodes,
                primary,
                durability,
                port,
                replication_port,
                gated_ports,
                parameters,
                extensions,
                exposure: exposure(allow_unfiltered),
                lease_profile,
            })
        }
        _ => None,
    };
    complete(violations, parts)
}

fn complete<T>(violations: Violations, value: Option<T>) -> Result<T, Failure> {
    match value {
        Some(value) if violations.is_empty() => Ok(value),
        Some(_) | None => Err(violations.into_failure()),
    }
}

fn parse_engine(engine: i32, violations: &mut Violations) -> Option<Engine> {
    match nouns::Engine::try_from(engine) {
        Ok(nouns::Engine::Postgresql) => Some(Engine::Postgresql),
        Ok(nouns::Engine::Unspecified) | Err(_) => {
            violations.add("engine", "is missing or unknown; known are: postgresql");
            None
        }
    }
}

fn parse_version(text: &str, violations: &mut Violations) -> Option<EngineVersion> {
    if text.is_empty() { None } else { violations.take("engine_version", text.parse()) }
}

fn parse_nodes(names: &[String], violations: &mut Violations) -> Vec<NodeName> {
    if names.is_empty() || names.len() > MAX_PEERS {
        violations.add("nodes", format!("names {} nodes; a cluster has 1 to {MAX_PEERS}", names.len()));
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut nodes = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let Some(name) = violations.take(&format!("nodes[{index}]"), name.parse::<NodeName>()) else {
            continue;
        };
        if seen.insert(name.clone()) {
            nodes.push(name);
        } else {
            violations
                .add(format!("nodes[{index}]"), format!("names node `{name}` a second time; name each once"));
        }
    }
    nodes
}

fn parse_primary(text: &str, nodes: &[NodeName], violations: &mut Violations) -> Option<NodeName> {
    if text.is_empty() {
        return nodes.first().cloned();
    }
    let primary = violations.take("primary", text.parse::<NodeName>())?;
    if !nodes.is_empty() && !nodes.contains(&primary) {
        violations.add("primary", format!("`{primary}` is none of `nodes`; name one of them"));
        return None;
    }
    Some(primary)
}

fn parse_durability(durability: i32, violations: &mut Violations) -> Option<Durability> {
    match nouns::Durability::try_from(durability) {
        Ok(nouns::Durability::Unspecified | nouns::Durability::Async) => Some(Durability::Async),
        Ok(nouns::Durability::Quorum) => Some(Durability::Quorum),
        Err(_) => {
            violations.add("durability", "is unknown; known are: async, quorum");
            None
        }
    }
}

fn parse_profile(profile: i32, violations: &mut Violations) -> Profile {
    match profile {
        0 => Profile::default(),
        profile => Profile::from_wire(profile).unwrap_or_else(|_| {
            violations.add("lease_profile", "is unknown; known are: default, fast, wide");
            Profile::default()
        }),
    }
}

fn parse_port(field: &str, port: u32, violations: &mut Violations) -> Option<u16> {
    match u16::try_from(port) {
        Ok(PEER_PORT) => {
            violations
                .add(field, format!("{port} is where the nodes' agents talk to each other; choose another"));
            None
        }
        Ok(own) if own == HEALTH_PORT.get() => {
            violations.add(
                field,
                format!("{port} is where the nodes' agents answer load balancers; choose another"),
            );
            None
        }
        Ok(port) if port >= LEAST_PORT => Some(port),
        Ok(_) | Err(_) => {
            violations.add(field, format!("{port} is out of range; use {LEAST_PORT}–65535"));
            None
        }
    }
}

/// None where nodes need not filter: nothing would lead it on to the engine.
fn parse_replication_port(
    number: u32,
    port: Option<u16>,
    allow_unfiltered: bool,
    violations: &mut Violations,
) -> Option<u16> {
    const FIELD: &str = "replication_port";
    match number {
        0 if allow_unfiltered => None,
        0 => port.map(|port| port.checked_add(REPLICATION_APART).unwrap_or_else(|| port - REPLICATION_APART)),
        _ if allow_unfiltered => {
            violations.add(FIELD, "needs nodes that filter; leave out this or `allow_unfiltered`");
            None
        }
        number => {
            let own = parse_port(FIELD, number, violations)?;
            if port == Some(own) {
                violations.add(FIELD, format!("{own} is the port of the clients already; choose another"));
            }
            Some(own)
        }
    }
}

fn parse_gated_ports(
    numbers: &[u32],
    others: [Option<u16>; 2],
    allow_unfiltered: bool,
    violations: &mut Violations,
) -> Vec<u16> {
    if allow_unfiltered && !numbers.is_empty() {
        violations.add("gated_ports", "need nodes that filter; leave out these or `allow_unfiltered`");
        return Vec::new();
    }
    if numbers.len() > MAX_GATED_PORTS {
        let message = format!("names {} ports; at most {MAX_GATED_PORTS} are allowed", numbers.len());
        violations.add("gated_ports", message);
        return Vec::new();
    }
    let mut gated = Vec::new();
    for (index, number) in numbers.iter().enumerate() {
        let field = format!("gated_ports[{index}]");
        let Some(port) = parse_port(&field, *number, violations) else { continue };
        if others.contains(&Some(port)) {
            violations
                .add(field, format!("{port} is a port of the cluster itself; name that of another program"));
        } else if gated.contains(&port) {
            refuse_twice(violations, field, &port);
        } else {
            gated.push(port);
        }
    }
    gated
}

fn parse_parameters(
    parameters: impl IntoIterator<Item = (String, String)>,
    engine: Option<Engine>,
    version: Option<&EngineVersion>,
    violations: &mut Violations,
) -> Option<Parameters> {
    let parameters: BTreeMap<String, String> = parameters.into_iter().collect();
    let unsound = Parameters::unsound(&parameters);
    if !unsound.is_empty() {
        violations.extend(unsound);
        return None;
    }
    let parameters = violations.take("parameters", Parameters::try_from(parameters))?;
    if let Some(engine) = engine {
        violations.extend(engine.violations(&parameters));
        violations.extend(engine.misfits(&parameters, version));
    }
    Some(parameters)
}

fn parse_extensions(names: &[String], violations: &mut Violations) -> Vec<ExtensionName> {
    if names.len() > MAX_EXTENSIONS {
        violations.add(
            "extensions",
            format!("names {} extensions; at most {MAX_EXTENSIONS} are allowed", names.len()),
        );
        return Vec::new();
    }
    let mut found: Vec<ExtensionName> = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let field = format!("extensions[{index}]");
        let Some(name) = violations.take(&field, name.parse::<ExtensionName>()) else { continue };
        if found.contains(&name) {
            refuse_twice(violations, field, &name);
        } else {
            found.push(name);
        }
    }
    found
}

fn refuse_twice(violations: &mut Violations, field: String, name: &impl fmt::Display) {
    violations.add(field, format!("names `{name}` a second time; name each once"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> proto::CreateClusterRequest {
        proto::CreateClusterRequest {
            name: "demo".into(),
            engine: nouns::Engine::Postgresql.into(),
            nodes: vec!["n1".into(), "n2".into()],
            ..proto::CreateClusterRequest::default()
        }
    }

    fn refused(change: impl FnOnce(&mut proto::CreateClusterRequest)) -> Vec<String> {
        let mut request = good();
        change(&mut request);
        create(request).unwrap_err().violations.into_iter().map(|violation| violation.name).collect()
    }

    #[test]
    fn what_is_not_said_has_its_usual_value() {
        let parsed = create(good()).unwrap();
        assert_eq!(
            (parsed.primary.as_str(), parsed.port, parsed.durability),
            ("n1", 5432, Durability::Async)
        );
    }

    #[test]
    fn members_replicate_at_a_port_of_their_own_where_nodes_filter() {
        let replication = |port, allow_unfiltered| {
            create(proto::CreateClusterRequest { port, allow_unfiltered, ..good() }).unwrap().replication_port
        };
        assert_eq!(replication(0, false), Some(15_432));
        assert_eq!(replication(60_000, false), Some(50_000));
        assert_eq!(replication(0, true), None);
    }

    #[test]
    fn each_bad_field_is_refused_by_name() {
        assert_eq!(refused(|it| it.name = "../x".into()), ["name"]);
        assert_eq!(refused(|it| it.name = "x".repeat(10_000_000)), ["name"]);
        assert_eq!(refused(|it| it.engine = 0), ["engine"]);
        assert_eq!(refused(|it| it.engine = 99), ["engine"]);
        assert_eq!(refused(|it| it.engine_version = "latest".into()), ["engine_version"]);
        assert_eq!(refused(|it| it.nodes.clear()), ["nodes"]);
        assert_eq!(refused(|it| it.nodes = vec!["n".into(); 16]), ["nodes"]);
        assert_eq!(refused(|it| it.nodes.push("N3".into())), ["nodes[2]"]);
        assert_eq!(refused(|it| it.nodes.push("n1".into())), ["nodes[2]"]);
        assert_eq!(refused(|it| it.primary = "n3".into()), ["primary"]);
        assert_eq!(refused(|it| it.durability = 7), ["durability"]);
        assert_eq!(refused(|it| it.port = 80), ["port"]);
        assert_eq!(refused(|it| it.port = 65536), ["port"]);
        for of_the_agent in [PEER_PORT, HEALTH_PORT.get()].map(u32::from) {
            assert_eq!(refused(|it| it.port = of_the_agent), ["port"]);
            assert_eq!(refused(|it| it.replication_port = of_the_agent), ["replication_port"]);
            assert_eq!(refused(|it| it.gated_ports = vec![of_the_agent]), ["gated_ports[0]"]);
        }
        assert_eq!(refused(|it| it.replication_port = 80), ["replication_port"]);
        assert_eq!(refused(|it| it.replication_port = 5432), ["replication_port"]);
        assert_eq!(
            refused(|it| (it.replication_port, it.allow_unfiltered) = (15_432, true)),
            ["replication_port"]
        );
        assert_eq!(refused(|it| (it.gated_ports, it.allow_unfiltered) = (vec![6432], true)), ["gated_ports"]);
        assert_eq!(refused(|it| it.gated_ports = vec![6432, 22]), ["gated_ports[1]"]);
        assert_eq!(refused(|it| it.gated_ports = vec![5432]), ["gated_ports[0]"]);
        assert_eq!(refused(|it| it.gated_ports = vec![15_432]), ["gated_ports[0]"]);
        assert_eq!(refused(|it| it.gated_ports = vec![6432, 6432]), ["gated_ports[1]"]);
        assert_eq!(refused(|it| it.gated_ports = (6000..6009).collect()), ["gated_ports"]);
        assert_eq!(refused(|it| it.extensions = vec!["a;b".into()]), ["extensions[0]"]);
        assert_eq!(refused(|it| it.extensions = vec!["postgis".into(), "postgis".into()]), ["extensions[1]"]);
        assert_eq!(
            refused(|it| {
                it.parameters.insert("TimeZone".into(), "UTC".into());
                it.parameters.insert("work_mem".into(), "a\nb".into());
            }),
            ["parameters[TimeZone]", "parameters[work_mem]"]
        );
        assert_eq!(
            refused(|it| drop(it.parameters.insert("fsync".into(), "off".into()))),
            ["parameters[fsync]"]
        );
        for (name, value) in [("max_connections", "abc"), ("no_such_parameter", "1")] {
            let field = format!("parameters[{name}]");
            assert_eq!(refused(|it| drop(it.parameters.insert(name.into(), value.into()))), [field]);
        }
    }

    #[test]
    fn parameters_are_held_against_the_version_asked_for() {
        let with = |version: &str| {
            let mut request = good();
            request.engine_version = version.into();
            request.parameters.insert("transaction_timeout".into(), "1min".into());
            request.parameters.insert("cron.database_name".into(), "app".into());
            create(request)
        };
        assert!(with("").is_ok() && with("17").is_ok());
        let refused = with("15").unwrap_err();
        assert_eq!(refused.violations[0].name, "parameters[transaction_timeout]");
        assert_eq!(refused.violations.len(), 1);
    }

    #[test]
    fn all_bad_fields_are_told_at_once() {
        let names = refused(|it| {
            it.name = String::new();
            it.engine = 0;
            it.port = 1;
        });
        assert_eq!(names, ["name", "engine", "port"]);
    }
}
