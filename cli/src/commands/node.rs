//! `holdfast node …`

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_proto::r#type::v1 as nouns;
use holdfast_proto::v1;
use jiff::Timestamp;
use serde_json::json;

use super::{Session, budget, cloud_init, drain, identity, interrupted, next_page, schedule, wire_duration};
use crate::args::Node;
use crate::client::request_id;
use crate::error::Error;
use crate::output::{self, bytes, float_bytes, json, or_dash, percent};

const REFRESH: Duration = Duration::from_secs(2);
/// The most rows of metrics in a table for people; programs take JSON.
const MAX_ROWS: usize = 10_000;

pub(super) async fn run(session: &mut Session, command: Node) -> Result<(), Error> {
    match command {
        Node::List => list(session).await,
        Node::Show { name } => show(session, name).await,
        Node::Top { nodes, once } => top(session, nodes, once).await,
        Node::Watch { nodes } => watch(session, nodes).await,
        Node::Metrics { node, series, since, until, step } => {
            let now = session.out.now;
            let back = |span: Duration| {
                now.checked_sub(span)
                    .map_err(|_| Error::Usage("--since and --until: too long ago".to_owned()))
            };
            let request = v1::QueryMetricsRequest {
                node,
                series: series.into_iter().filter(|name| !name.is_empty()).collect(),
                start_time: Some(wire_time(back(since)?)),
                end_time: until.map(back).transpose()?.map(wire_time),
                step: step.map(wire_duration),
            };
            metrics(session, request).await
        }
        Node::Remove { name, confirm, plan } => {
            let confirm = if plan.plan {
                name.clone()
            } else {
                session.confirmed(&name, confirm, "takes the node out of the fleet")?
            };
            let request =
                v1::RemoveNodeRequest { name, confirm, request_id: request_id(), validate_only: plan.plan };
            let answer = session.client().await?.remove_node(request).await?;
            match answer.outcome.ok_or(Error::Incomplete("outcome"))? {
                v1::remove_node_response::Outcome::Plan(plan) => session.plan(&plan),
                v1::remove_node_response::Outcome::Node(node) => {
                    if session.out.is_json() {
                        return Ok(session.out.json(&json!({"node": json::node(&node)}))?);
                    }
                    Ok(session.out.line(format!(
                        "Node {} is no longer in the fleet. Its agent may be stopped.",
                        node.name
                    ))?)
                }
            }
        }
        Node::Drain { name, reason, force, run } => drain::drain(session, name, reason, force, run).await,
        Node::Undrain { name } => drain::undrain(session, name).await,
        Node::Reboot { name, reason, force, times, run } => {
            schedule::reboot(session, schedule::Wanted { name, reason, force }, times, run).await
        }
        Node::Schedule(command) => schedule::run(session, command).await,
        Node::Token(command) => identity::run_join_token(session, command).await,
        Node::CloudInit { name, ttl, coordinator, package_source } => {
            cloud_init::run(session, cloud_init::Wanted { name, ttl, coordinator, package_source }).await
        }
    }
}

pub(super) fn wire_time(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

async fn all(session: &mut Session) -> Result<Vec<v1::Node>, Error> {
    let client = session.client().await?;
    let mut nodes = Vec::new();
    let mut page = Some(String::new());
    while let Some(page_token) = page {
        let answer = client.list_nodes(v1::ListNodesRequest { page_size: 1000, page_token }).await?;
        nodes.extend(answer.nodes);
        page = next_page(answer.next_page_token);
    }
    Ok(nodes)
}

async fn list(session: &mut Session) -> Result<(), Error> {
    let nodes = all(session).await?;
    if session.out.is_json() {
        let all: Vec<_> = nodes.iter().map(json::node).collect();
        return Ok(session.out.json(&json!({"nodes": all}))?);
    }
    let (now, wide) = (session.out.now, session.out.is_wide());
    let mut header = vec!["NAME", "STATE", "SINCE", "ADDRESS", "CPU", "MEMORY", "DISK", "CLUSTERS"];
    if wide {
        header.extend(["OS", "CORES", "AGENT", "HEARTBEAT", "ID"]);
    }
    let rows = nodes.iter().map(|node| {
        let load = Load::of(node);
        let mut row = vec![
            node.name.clone(),
            drain::state(node, availability(node)),
            output::distance(now, node.availability_time.as_ref()),
            or_dash(Some(node.address.clone())),
            load.cpu,
            load.memory,
            load.disk,
            or_dash(Some(node.clusters.join(","))),
        ];
        if wide {
            row.extend([
                or_dash(node.inventory.as_ref().map(|inventory| inventory.os_pretty_name.clone())),
                or_dash(node.inventory.as_ref().map(|inventory| inventory.logical_cores.to_string())),
                or_dash(Some(node.agent_version.clone())),
                output::distance(now, node.last_heartbeat_time.as_ref()),
                node.id.clone(),
            ]);
        }
        row
    });
    let rows = rows.collect();
    Ok(session.out.table(&header, rows)?)
}

async fn show(session: &mut Session, name: String) -> Result<(), Error> {
    let answer = session.client().await?.get_node(v1::GetNodeRequest { name }).await?;
    let node = answer.node.ok_or(Error::Incomplete("node"))?;
    if session.out.is_json() {
        return Ok(session.out.json(&json::node(&node))?);
    }
    let now = session.out.now;
    let load = Load::of(&node);
    session.out.facts(&[
        ("name", node.name.clone()),
        ("id", node.id.clone()),
        ("address", node.address.clone()),
        (
            "state",
            format!(
                "{} since {}",
                availability(&node),
                output::distance(now, node.availability_time.as_ref())
            ),
        ),
        (
            "last heartbeat",
            match &node.last_heartbeat_time {
                Some(time) => format!("{} ago", output::distance(now, Some(time))),
                None => "never".to_owned(),
            },
        ),
        ("drained", drain::told(&node)),
        ("needs a reboot", schedule::needed(&node)),
        ("clusters", or_dash(Some(node.clusters.join(", ")))),
        ("agent", node.agent_version.clone()),
        ("certificate ends in", output::expiry(now, node.certificate_expire_time.as_ref())),
        ("clock ahead by", or_dash(node.clock_offset_seconds.map(|offset| format!("{offset:.3} s")))),
    ])?;
    if let Some(inventory) = &node.inventory {
        let engines = inventory.engines.iter().map(|offer| {
            let availability =
                output::word(offer.availability().as_str_name(), "ENGINE_AVAILABILITY_").unwrap_or_default();
            format!("{} {} ({availability})", offer.engine, offer.version)
        });
        session.out.facts(&[
            (
                "system",
                format!(
                    "{}, kernel {}, {}",
                    inventory.os_pretty_name, inventory.kernel, inventory.architecture
                ),
            ),
            ("processors", format!("{} × {}", inventory.logical_cores, or_dash(inventory.cpu_model.clone()))),
            ("memory", bytes(inventory.memory_bytes)),
            ("access rules", filtering(inventory)),
            ("engines", or_dash(Some(engines.collect::<Vec<_>>().join(", ")))),
        ])?;
    }
    session.out.facts(&[
        ("cpu", load.cpu),
        ("load", load.load),
        ("memory used", load.memory),
        ("network", format!("{} in, {} out", load.received, load.sent)),
    ])?;
    budget::show(session, &node)?;
    let Some(sample) = &node.sample else { return Ok(()) };
    session.out.line("")?;
    let rows = sample.file_systems.iter().map(|system| {
        vec![
            system.mount_point.clone(),
            system.device.clone(),
            system.kind.clone(),
            bytes(system.total_bytes),
            bytes(system.used_bytes),
            bytes(system.available_bytes),
            or_dash(used_fraction(system).map(percent)),
        ]
    });
    let rows = rows.collect();
    Ok(session.out.table(&["MOUNT POINT", "DEVICE", "KIND", "SIZE", "USED", "FREE", "USE"], rows)?)
}

/// Whether the node can keep anybody away from its engines.
fn filtering(inventory: &nouns::Inventory) -> String {
    let state = output::word(inventory.filtering().as_str_name(), "FILTERING_STATE_");
    let state = state.unwrap_or_else(|| "unknown".to_owned());
    let why = output::plain(&inventory.filtering_message);
    if why.is_empty() { state } else { format!("{state}: {why}") }
}

fn availability(node: &v1::Node) -> String {
    output::word(node.availability().as_str_name(), "AVAILABILITY_").unwrap_or_else(|| "unknown".to_owned())
}

/// The newest sample in few words; `-` for what is unknown.
struct Load {
    cpu: String,
    iowait: String,
    load: String,
    memory: String,
    disk: String,
    read: String,
    written: String,
    received: String,
    sent: String,
    uptime: String,
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn used_fraction(system: &nouns::FileSystem) -> Option<f64> {
    // What is reserved for root is not there for databases: as `df` counts.
    let reachable =
        system.used_bytes.checked_add(system.available_bytes).filter(|reachable| *reachable > 0)?;
    Some(system.used_bytes as f64 / reachable as f64)
}

// === impl Load ===

impl Load {
    fn of(node: &v1::Node) -> Self {
        // What a silent node last said is no answer to "how is it now".
        let sample = node.sample.as_ref().filter(|_| node.availability() != v1::Availability::Offline);
        let usage = sample.and_then(|sample| sample.cpu.as_ref()?.usage.as_ref());
        let fullest = sample.and_then(|sample| {
            let known =
                sample.file_systems.iter().filter_map(|system| Some((used_fraction(system)?, system)));
            known.max_by(|one, two| one.0.total_cmp(&two.0))
        });
        let disks = |rate: fn(&nouns::DiskRates) -> f64| {
            let known: Vec<f64> =
                sample?.disks.iter().filter_map(|disk| disk.rates.as_ref().map(rate)).collect();
            (!known.is_empty()).then(|| format!("{}/s", float_bytes(known.iter().sum())))
        };
        let network = |rate: fn(&nouns::InterfaceRates) -> f64| {
            let known: Vec<f64> =
                sample?.interfaces.iter().filter_map(|one| one.rates.as_ref().map(rate)).collect();
            (!known.is_empty()).then(|| format!("{}/s", float_bytes(known.iter().sum())))
        };
        let memory = sample.and_then(|sample| sample.memory.as_ref());
        #[expect(clippy::cast_possible_truncation, reason = "whole seconds of an uptime")]
        let uptime =
            sample.and_then(|sample| sample.uptime_seconds).map(|seconds| output::span(seconds as i64));
        Self {
            cpu: or_dash(usage.map(|usage| percent(output::busy_fraction(usage)))),
            iowait: or_dash(usage.map(|usage| percent(usage.iowait_fraction))),
            load: or_dash(
                sample.and_then(|sample| sample.load.as_ref()).map(|load| format!("{:.2}", load.one_minute)),
            ),
            memory: or_dash(
                memory.map(|memory| format!("{}/{}", bytes(memory.used_bytes), bytes(memory.total_bytes))),
            ),
            disk: or_dash(
                fullest.map(|(fraction, system)| format!("{} {}", percent(fraction), system.mount_point)),
            ),
            read: or_dash(disks(|rates| rates.read_bytes_per_second)),
            written: or_dash(disks(|rates| rates.written_bytes_per_second)),
            received: or_dash(network(|rates| rates.received_bytes_per_second)),
            sent: or_dash(network(|rates| rates.sent_bytes_per_second)),
            uptime: or_dash(uptime),
        }
    }
}

const TOP: [&str; 12] = [
    "NODE", "STATE", "CPU", "IOWAIT", "LOAD", "MEMORY", "DISK", "READ", "WRITTEN", "RECEIVED", "SENT",
    "UPTIME",
];

fn top_rows<'a>(nodes: impl Iterator<Item = &'a v1::Node>) -> Vec<Vec<String>> {
    let each = nodes.map(|node| {
        let Load { cpu, iowait, load, memory, disk, read, written, received, sent, uptime } = Load::of(node);
        vec![
            node.name.clone(),
            availability(node),
            cpu,
            iowait,
            load,
            memory,
            disk,
            read,
            written,
            received,
            sent,
            uptime,
        ]
    });
    each.collect()
}

/// Names that are asked for and are not there are an error, as everywhere.
fn check_known(wanted: &[String], known: &BTreeMap<String, v1::Node>) -> Result<(), Error> {
    match wanted.iter().find(|name| !known.contains_key(*name)) {
        None => Ok(()),
        Some(name) => {
            let reason = holdfast_common::error::Reason::NodeNotFound;
            let message =
                format!("there is no node `{}`; `holdfast node list` shows all", output::plain(name));
            Err(Error::Refused(Box::new(holdfast_common::error::Failure::about(
                reason, "node", name, message,
            ))))
        }
    }
}

async fn top(session: &mut Session, wanted: Vec<String>, once: bool) -> Result<(), Error> {
    let live = !once && !session.out.is_json() && session.out.is_terminal();
    let mut watch =
        session.client().await?.watch_nodes(v1::WatchNodesRequest { names: wanted.clone() }).await?;
    let mut nodes = BTreeMap::new();
    let mut synced = false;
    let mut tick = tokio::time::interval(REFRESH);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // All arms are cancel-safe.
        tokio::select! {
            next = watch.next() => {
                let Some(change) = next? else { return Ok(()) };
                let first = apply(&mut nodes, change) == v1::WatchKind::Synced && !synced;
                if first {
                    synced = true;
                    check_known(&wanted, &nodes)?;
                    draw(session, &nodes, live)?;
                    if !live {
                        return Ok(());
                    }
                }
            }
            _ = tick.tick(), if live && synced => draw(session, &nodes, live)?,
            () = interrupted() => return Ok(()),
        }
    }
}

fn apply(nodes: &mut BTreeMap<String, v1::Node>, change: v1::WatchNodesResponse) -> v1::WatchKind {
    let kind = change.kind();
    match (kind, change.node) {
        (v1::WatchKind::Changed, Some(node)) => {
            nodes.insert(node.name.clone(), node);
        }
        (v1::WatchKind::Removed, Some(node)) => {
            nodes.remove(&node.name);
        }
        (
            v1::WatchKind::Changed
            | v1::WatchKind::Removed
            | v1::WatchKind::Synced
            | v1::WatchKind::Unspecified,
            _,
        ) => {}
    }
    kind
}

fn draw(session: &mut Session, nodes: &BTreeMap<String, v1::Node>, live: bool) -> Result<(), Error> {
    if session.out.is_json() {
        let all: Vec<_> = nodes.values().map(json::node).collect();
        return Ok(session.out.json(&json!({"nodes": all}))?);
    }
    let table = session.out.table_text(&TOP, top_rows(nodes.values()));
    if !live {
        return Ok(session.out.line(table)?);
    }
    let online = nodes.values().filter(|node| node.availability() == v1::Availability::Online).count();
    let time = Timestamp::now().strftime("%H:%M:%SZ").to_string();
    // Home, then each line to its end: nothing flickers. The rest of the screen is cleared last.
    let mut screen = format!(
        "\x1b[Hholdfast top   {time}   {online} of {} nodes online   Ctrl-C ends\x1b[K\n\x1b[K\n",
        nodes.len()
    );
    for line in table.lines() {
        screen.push_str(line);
        screen.push_str("\x1b[K\n");
    }
    screen.push_str("\x1b[J");
    Ok(session.out.raw(screen.as_bytes())?)
}

async fn watch(session: &mut Session, names: Vec<String>) -> Result<(), Error> {
    let mut watch =
        session.client().await?.watch_nodes(v1::WatchNodesRequest { names: names.clone() }).await?;
    let mut nodes = BTreeMap::new();
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    loop {
        // Both arms are cancel-safe.
        let next = tokio::select! {
            next = watch.next() => next?,
            () = interrupted() => return Ok(()),
        };
        let Some(change) = next else { return Ok(()) };
        let kind = change.kind();
        let node = change.node.clone();
        apply(&mut nodes, change);
        if kind == v1::WatchKind::Synced {
            check_known(&names, &nodes)?;
        }
        if session.out.is_json() {
            let kind = output::word(kind.as_str_name(), "WATCH_KIND_");
            session.out.json_line(&json!({"kind": kind, "node": node.as_ref().map(json::node)}))?;
            continue;
        }
        // People want to see changes of state; samples are for `top`.
        let Some(node) = node else { continue };
        let state = if kind == v1::WatchKind::Removed { "removed".to_owned() } else { availability(&node) };
        if shown.get(&node.name) != Some(&state) {
            let time = Timestamp::now().strftime("%H:%M:%SZ").to_string();
            session.out.line(format!("{time}  {}  {state}", node.name))?;
            shown.insert(node.name.clone(), state);
        }
    }
}

async fn metrics(session: &mut Session, request: v1::QueryMetricsRequest) -> Result<(), Error> {
    let node = request.node.clone();
    let answer = session.client().await?.query_metrics(request).await?;
    if session.out.is_json() {
        return Ok(session.out.json(&json::metrics(&node, &answer))?);
    }
    let rows: Vec<_> = metric_rows(&answer).take(MAX_ROWS + 1).collect();
    let cut = rows.len() > MAX_ROWS;
    session
        .out
        .table(&["TIME", "SERIES", "VALUE", "MIN", "MAX"], rows.into_iter().take(MAX_ROWS).collect())?;
    if cut {
        session.note(&format!("Only the first {MAX_ROWS} points are shown: name fewer --series, a larger --step, or use --output json."));
    }
    Ok(())
}

fn metric_rows(answer: &v1::QueryMetricsResponse) -> impl Iterator<Item = Vec<String>> {
    answer.series.iter().flat_map(|series| {
        let labels: BTreeMap<_, _> = series.labels.iter().collect();
        let labels: Vec<_> = labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        let name = if labels.is_empty() {
            series.name.clone()
        } else {
            format!("{}{{{}}}", series.name, labels.join(","))
        };
        series.points.iter().map(move |point| {
            let value = |value: f64| in_unit(&series.name, value);
            vec![
                or_dash(
                    output::timestamp(point.time.as_ref())
                        .map(|time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
                ),
                name.clone(),
                value(point.value),
                or_dash(point.min.map(value)),
                or_dash(point.max.map(value)),
            ]
        })
    })
}

fn in_unit(name: &str, value: f64) -> String {
    if name.ends_with("_bytes_per_second") {
        format!("{}/s", float_bytes(value))
    } else if name.ends_with("_bytes") {
        float_bytes(value)
    } else if name.ends_with("_fraction") {
        format!("{:.1}%", value * 100.0)
    } else if name.ends_with("_seconds") {
        format!("{:.2} ms", value * 1000.0)
    } else {
        format!("{value:.2}")
    }
}
