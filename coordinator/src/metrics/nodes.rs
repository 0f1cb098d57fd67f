//! The nodes' series, made at each scrape.

use std::fmt::Error;

use holdfast_common::report::Traffic;
use holdfast_common::role::Availability;
use holdfast_common::telemetry::{FileSystemAccess, Sample};
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::fleet::{Handle, NodeView};

/// Makes the nodes' series.
#[derive(Debug)]
pub(super) struct Nodes {
    fleet: Handle,
}

type Labels<'a> = Vec<(&'static str, &'a str)>;
/// Emits one value with its labels beyond the node's name.
type Emit<'e, 'v> = &'e mut dyn FnMut(&[(&'static str, &'v str)], f64) -> Result<(), Error>;

/// One series, and how to read it from a view.
struct Series {
    name: &'static str,
    help: &'static str,
    read: for<'v> fn(&'v NodeView, Emit<'_, 'v>) -> Result<(), Error>,
}

// === impl Nodes ===

impl Nodes {
    pub(super) fn new(fleet: Handle) -> Self {
        Self { fleet }
    }
}

impl Collector for Nodes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let views = self.fleet.nodes();
        summary(&mut encoder, &views)?;
        for series in GAUGES {
            encode(&mut encoder, &views, series, MetricType::Gauge)?;
        }
        for series in COUNTERS {
            encode(&mut encoder, &views, series, MetricType::Counter)?;
        }
        Ok(())
    }
}

fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    views: &[NodeView],
    series: &Series,
    kind: MetricType,
) -> Result<(), Error> {
    let Series { name, help, read } = series;
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for view in views {
        read(view, &mut |labels, value| {
            let mut all: Labels<'_> = vec![("node", view.record.name.as_str())];
            all.extend_from_slice(labels);
            let mut one = metric.encode_family(&all)?;
            match kind {
                MetricType::Counter => one.encode_counter::<NoLabelSet, _, u64>(&value, None),
                _ => one.encode_gauge(&value),
            }
        })?;
    }
    Ok(())
}

fn summary(encoder: &mut DescriptorEncoder<'_>, views: &[NodeView]) -> Result<(), Error> {
    let mut nodes = encoder.encode_descriptor("nodes", "Nodes of the fleet", None, MetricType::Gauge)?;
    for (availability, label) in
        [(Availability::Online, "online"), (Availability::Late, "late"), (Availability::Offline, "offline")]
    {
        let count = views.iter().filter(|view| view.availability == availability).count();
        nodes.encode_family(&[("availability", label)])?.encode_gauge(&count)?;
    }
    let sessions = views.iter().filter(|view| view.has_session).count();
    encoder
        .encode_descriptor("sessions", "Sessions that are open", None, MetricType::Gauge)?
        .encode_gauge(&sessions)
}

/// A gauge that has one value for each node, if any.
macro_rules! single {
    ($name:literal, $help:literal, $view:ident => $value:expr) => {
        Series {
            name: $name,
            help: $help,
            read: |view, emit| {
                let value = |$view: &NodeView| -> Option<f64> { $value };
                value(view).map_or(Ok(()), |value| emit(&[], value))
            },
        }
    };
}

/// A gauge that has a value for each entry of a list of the sample.
macro_rules! listed {
    ($name:literal, $help:literal, $list:ident, $entry:ident => $labels:expr, $value:expr) => {
        Series {
            name: $name,
            help: $help,
            read: |view, emit| {
                let Some(sample) = sample(view) else { return Ok(()) };
                for $entry in &sample.$list.items {
                    let value: Option<f64> = $value;
                    if let Some(value) = value {
                        emit(&$labels, value)?;
                    }
                }
                Ok(())
            },
        }
    };
}

fn sample(view: &NodeView) -> Option<&Sample> {
    view.sample.as_deref()
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has only floating point")]
pub(super) fn number(value: u64) -> f64 {
    value as f64
}

/// One table, so that name, help and source of a series stand together.
const GAUGES: &[Series] = &[
    single!("node_online", "1 while the node is online", view =>
        Some(f64::from(u8::from(view.availability == Availability::Online)))),
    single!("node_last_report_age_seconds", "Time since the node's last report", view => view.report.as_ref().map(|report|
        Timestamp::now().duration_since(report.received_at).as_secs_f64())),
    single!("node_clock_offset_seconds", "How far the node's clock is ahead of the coordinator's", view =>
        view.clock_offset_seconds),
    single!("node_uptime_seconds", "Time since the machine booted", view => sample(view)?.uptime_seconds),
    single!("node_cpu_cores", "Processors that are online", view => Some(f64::from(sample(view)?.cpu?.logical_cores))),
    Series { name: "node_cpu_usage_ratio", help: "Share of the processors' time by mode", read: cpu },
    Series { name: "node_load", help: "Load average by window", read: load },
    Series {
        name: "node_pressure_ratio",
        help: "Share of the last ten seconds in which tasks waited for a resource",
        read: pressure,
    },
    single!("node_memory_total_bytes", "Main memory", view => Some(number(sample(view)?.memory?.total_bytes))),
    single!("node_memory_available_bytes", "Memory that programs could still get", view =>
        Some(number(sample(view)?.memory?.available_bytes))),
    single!("node_memory_used_bytes", "Memory in use", view => Some(number(sample(view)?.memory?.used_bytes))),
    single!("node_memory_buffers_bytes", "Buffers", view => Some(number(sample(view)?.memory?.buffers_bytes))),
    single!("node_memory_cached_bytes", "Page cache", view => Some(number(sample(view)?.memory?.cached_bytes))),
    single!("node_swap_total_bytes", "Swap space", view => Some(number(sample(view)?.swap?.total_bytes))),
    single!("node_swap_used_bytes", "Swap space in use", view => Some(number(sample(view)?.swap?.used_bytes))),
    listed!("node_filesystem_size_bytes", "Size of a file system", file_systems, fs =>
        fs_labels(fs), Some(number(fs.total_bytes))),
    listed!("node_filesystem_used_bytes", "Space in use", file_systems, fs => fs_labels(fs), Some(number(fs.used_bytes))),
    listed!("node_filesystem_avail_bytes", "Space for ordinary users", file_systems, fs =>
        fs_labels(fs), Some(number(fs.available_bytes))),
    listed!("node_filesystem_files", "Inodes", file_systems, fs =>
        fs_labels(fs), fs.inodes.map(|inodes| number(inodes.total))),
    listed!("node_filesystem_files_free", "Free inodes", file_systems, fs =>
        fs_labels(fs), fs.inodes.map(|inodes| number(inodes.free))),
    listed!("node_filesystem_readonly", "1 if it cannot be written", file_systems, fs =>
        fs_labels(fs), Some(f64::from(u8::from(fs.access == FileSystemAccess::ReadOnly)))),
    listed!("node_disk_reads_per_second", "Reads", disks, disk =>
        [("device", &*disk.name)], disk.rates.map(|rates| rates.reads_per_second)),
    listed!("node_disk_writes_per_second", "Writes", disks, disk =>
        [("device", &*disk.name)], disk.rates.map(|rates| rates.writes_per_second)),
    listed!("node_disk_read_bytes_per_second", "Bytes read", disks, disk =>
        [("device", &*disk.name)], disk.rates.map(|rates| rates.read_bytes_per_second)),
    listed!("node_disk_written_bytes_per_second", "Bytes written", disks, disk =>
        [("device", &*disk.name)], disk.rates.map(|rates| rates.written_bytes_per_second)),
    listed!("node_disk_busy_ratio", "Share of the time with a request in flight", disks, disk =>
        [("device", &*disk.name)], disk.rates.map(|rates| rates.busy_fraction)),
    listed!("node_disk_read_latency_seconds", "Mean time of a read", disks, disk =>
        [("device", &*disk.name)], disk.rates.and_then(|rates| rates.read_latency_seconds)),
    listed!("node_disk_write_latency_seconds", "Mean time of a write", disks, disk =>
        [("device", &*disk.name)], disk.rates.and_then(|rates| rates.write_latency_seconds)),
    listed!("node_disk_queue_depth", "Mean number of requests in flight", disks, disk =>
        [("device", &*disk.name)], disk.rates.map(|rates| rates.queue_depth)),
    listed!("node_network_receive_bytes_per_second", "Bytes received", interfaces, interface =>
        [("device", &*interface.name)], interface.rates.map(|rates| rates.received_bytes_per_second)),
    listed!("node_network_transmit_bytes_per_second", "Bytes sent", interfaces, interface =>
        [("device", &*interface.name)], interface.rates.map(|rates| rates.sent_bytes_per_second)),
    listed!("node_network_receive_packets_per_second", "Packets received", interfaces, interface =>
        [("device", &*interface.name)], interface.rates.map(|rates| rates.received_packets_per_second)),
    listed!("node_network_transmit_packets_per_second", "Packets sent", interfaces, interface =>
        [("device", &*interface.name)], interface.rates.map(|rates| rates.sent_packets_per_second)),
    listed!("node_network_receive_errors_per_second", "Errors receiving", interfaces, interface =>
        [("device", &*interface.name)], interface.rates.map(|rates| rates.receive_errors_per_second)),
    listed!("node_network_transmit_errors_per_second", "Errors sending", interfaces, interface =>
        [("device", &*interface.name)], interface.rates.map(|rates| rates.send_errors_per_second)),
    listed!("node_network_receive_drops_per_second", "Packets dropped on arrival", interfaces, interface =>
        [("device", &*interface.name)], interface.rates.map(|rates| rates.receive_drops_per_second)),
    listed!("node_network_transmit_drops_per_second", "Packets dropped before sending", interfaces, interface =>
        [("device", &*interface.name)], interface.rates.map(|rates| rates.send_drops_per_second)),
    single!("agent_resident_memory_bytes", "Memory of the agent", view =>
        Some(number(sample(view)?.agent?.resident_bytes))),
    single!("agent_cpu_usage_ratio", "Share of one processor that the agent uses", view =>
        sample(view)?.agent?.cpu_fraction),
    single!("agent_open_fds", "Files that the agent holds open", view =>
        Some(f64::from(sample(view)?.agent?.open_files))),
    single!("agent_threads", "Threads of the agent", view => Some(f64::from(sample(view)?.agent?.threads))),
];

/// Counted by the nodes' kernels, from the moment their rules were loaded.
const COUNTERS: &[Series] = &[
    Series {
        name: "access_packets",
        help: "Packets that reached a member's port since its rules were loaded, by what became of them",
        read: |view, emit| access(view, emit, |traffic| traffic.packets),
    },
    Series {
        name: "access_bytes",
        help: "Bytes that reached a member's port since its rules were loaded, by what became of them",
        read: |view, emit| access(view, emit, |traffic| traffic.bytes),
    },
];

fn access<'v>(view: &'v NodeView, emit: Emit<'_, 'v>, read: fn(&Traffic) -> u64) -> Result<(), Error> {
    let (Some(received), Some(told)) = (&view.report, &view.assignment) else { return Ok(()) };
    for report in &received.report.members {
        let (Some(access), Some(member)) = (&report.access, told.member(report.cluster_id)) else { continue };
        let cluster = member.cluster_name.as_str();
        emit(&[("cluster", cluster), ("verdict", "accepted")], number(read(&access.accepted)))?;
        emit(&[("cluster", cluster), ("verdict", "refused")], number(read(&access.refused)))?;
    }
    Ok(())
}

fn fs_labels(fs: &holdfast_common::telemetry::FileSystem) -> [(&'static str, &str); 3] {
    [("mountpoint", &fs.mount_point), ("device", &fs.device), ("fstype", &fs.kind)]
}

fn cpu<'v>(view: &'v NodeView, emit: Emit<'_, 'v>) -> Result<(), Error> {
    let Some(usage) = sample(view).and_then(|sample| sample.cpu).and_then(|cpu| cpu.usage) else {
        return Ok(());
    };
    for (mode, share) in [
        ("user", usage.user_fraction),
        ("nice", usage.nice_fraction),
        ("system", usage.system_fraction),
        ("idle", usage.idle_fraction),
        ("iowait", usage.iowait_fraction),
        ("irq", usage.irq_fraction),
        ("softirq", usage.softirq_fraction),
        ("steal", usage.steal_fraction),
    ] {
        emit(&[("mode", mode)], share)?;
    }
    Ok(())
}

fn load<'v>(view: &'v NodeView, emit: Emit<'_, 'v>) -> Result<(), Error> {
    let Some(load) = sample(view).and_then(|sample| sample.load) else { return Ok(()) };
    emit(&[("window", "1m")], load.one_minute)?;
    emit(&[("window", "5m")], load.five_minutes)?;
    emit(&[("window", "15m")], load.fifteen_minutes)
}

fn pressure<'v>(view: &'v NodeView, emit: Emit<'_, 'v>) -> Result<(), Error> {
    let Some(pressure) = sample(view).map(|sample| sample.pressure) else { return Ok(()) };
    for (resource, stalls) in [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)] {
        let Some(stalls) = stalls else { continue };
        emit(&[("resource", resource), ("kind", "some")], stalls.some.ten_seconds_fraction)?;
        if let Some(full) = stalls.full {
            emit(&[("resource", resource), ("kind", "full")], full.ten_seconds_fraction)?;
        }
    }
    Ok(())
}
