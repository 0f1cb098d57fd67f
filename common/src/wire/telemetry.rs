//! Samples and inventories. A quantity that is not finite or is negative is refused; a text is cut where it goes in.

mod inventory;

use holdfast_proto::r#type::v1 as proto;

use super::{Error, Field, Problem, cut, time_to_wire};
use crate::telemetry::{
    AgentCost, Bounded, Cpu, CpuUsage, Disk, DiskRates, FileSystem, FileSystemAccess, Inodes, Interface,
    InterfaceRates, Load, MAX_DISKS, MAX_FILE_SYSTEMS, MAX_INTERFACES, MAX_TEXT_BYTES, Memory, Pressure,
    Sample, Stall, Stalls, Swap,
};

/// Structs of which every field is a quantity (`f64`, finite, not negative) or a fraction of the same name on the wire.
macro_rules! quantities {
    ($domain:ident { $($field:ident: $rule:ident),+ $(,)? }) => {
        impl From<&$domain> for proto::$domain {
            fn from(value: &$domain) -> Self {
                let $domain { $($field),+ } = *value;
                Self { $($field),+ }
            }
        }

        impl TryFrom<proto::$domain> for $domain {
            type Error = Error;

            fn try_from(value: proto::$domain) -> Result<Self, Error> {
                let proto::$domain { $($field),+ } = value;
                Ok(Self { $($field: Field(stringify!($field)).$rule($field)?),+ })
            }
        }
    };
}

/// Structs of counts that need no check.
macro_rules! counts {
    ($domain:ident { $($field:ident),+ $(,)? }) => {
        impl From<&$domain> for proto::$domain {
            fn from(value: &$domain) -> Self {
                let $domain { $($field),+ } = *value;
                Self { $($field),+ }
            }
        }

        impl TryFrom<proto::$domain> for $domain {
            type Error = Error;

            fn try_from(value: proto::$domain) -> Result<Self, Error> {
                let proto::$domain { $($field),+ } = value;
                Ok(Self { $($field),+ })
            }
        }
    };
}

/// Things of which there are several: a name, and rates once two samples have been taken.
macro_rules! rated {
    ($($domain:ident),+) => {$(
        impl From<&$domain> for proto::$domain {
            fn from(value: &$domain) -> Self {
                let $domain { name, rates } = value;
                Self { name: cut(name, MAX_TEXT_BYTES), rates: rates.as_ref().map(Into::into) }
            }
        }

        impl TryFrom<proto::$domain> for $domain {
            type Error = Error;

            fn try_from(value: proto::$domain) -> Result<Self, Error> {
                let proto::$domain { name, rates } = value;
                let name = Field("name").text(name, MAX_TEXT_BYTES)?;
                Ok(Self { name, rates: Field("rates").optional_message(rates)? })
            }
        }
    )+};
}

rated!(Disk, Interface);
quantities!(CpuUsage {
    user_fraction: fraction,
    nice_fraction: fraction,
    system_fraction: fraction,
    idle_fraction: fraction,
    iowait_fraction: fraction,
    irq_fraction: fraction,
    softirq_fraction: fraction,
    steal_fraction: fraction,
});
quantities!(Load { one_minute: quantity, five_minutes: quantity, fifteen_minutes: quantity });
quantities!(Stall {
    ten_seconds_fraction: fraction,
    one_minute_fraction: fraction,
    five_minutes_fraction: fraction,
    total_seconds: quantity,
});
quantities!(DiskRates {
    reads_per_second: quantity,
    writes_per_second: quantity,
    read_bytes_per_second: quantity,
    written_bytes_per_second: quantity,
    busy_fraction: fraction,
    read_latency_seconds: optional_quantity,
    write_latency_seconds: optional_quantity,
    queue_depth: quantity,
});
quantities!(InterfaceRates {
    received_bytes_per_second: quantity,
    sent_bytes_per_second: quantity,
    received_packets_per_second: quantity,
    sent_packets_per_second: quantity,
    receive_errors_per_second: quantity,
    send_errors_per_second: quantity,
    receive_drops_per_second: quantity,
    send_drops_per_second: quantity,
});
counts!(Memory { total_bytes, available_bytes, used_bytes, buffers_bytes, cached_bytes });
counts!(Swap { total_bytes, used_bytes });

impl From<&Sample> for proto::Sample {
    fn from(sample: &Sample) -> Self {
        let Sample {
            taken_at,
            interval_seconds,
            uptime_seconds,
            cpu,
            load,
            pressure: Pressure { cpu: cpu_pressure, memory: memory_pressure, io: io_pressure },
            memory,
            swap,
            file_systems,
            disks,
            interfaces,
            agent,
            reboot_required,
        } = sample;
        let (file_systems, file_systems_omitted) = to_list(file_systems, MAX_FILE_SYSTEMS);
        let (disks, disks_omitted) = to_list(disks, MAX_DISKS);
        let (interfaces, interfaces_omitted) = to_list(interfaces, MAX_INTERFACES);
        Self {
            taken_time: Some(time_to_wire(*taken_at)),
            interval_seconds: *interval_seconds,
            uptime_seconds: *uptime_seconds,
            cpu: cpu.as_ref().map(Into::into),
            load: load.as_ref().map(Into::into),
            cpu_pressure: cpu_pressure.as_ref().map(Into::into),
            memory_pressure: memory_pressure.as_ref().map(Into::into),
            io_pressure: io_pressure.as_ref().map(Into::into),
            memory: memory.as_ref().map(Into::into),
            swap: swap.as_ref().map(Into::into),
            file_systems,
            file_systems_omitted,
            disks,
            disks_omitted,
            interfaces,
            interfaces_omitted,
            agent: agent.as_ref().map(Into::into),
            reboot_required: *reboot_required,
        }
    }
}

impl TryFrom<proto::Sample> for Sample {
    type Error = Error;

    fn try_from(sample: proto::Sample) -> Result<Self, Error> {
        let proto::Sample {
            taken_time,
            interval_seconds,
            uptime_seconds,
            cpu,
            load,
            cpu_pressure,
            memory_pressure,
            io_pressure,
            memory,
            swap,
            file_systems,
            file_systems_omitted,
            disks,
            disks_omitted,
            interfaces,
            interfaces_omitted,
            agent,
            reboot_required,
        } = sample;
        Ok(Self {
            taken_at: Field("taken_time").time(taken_time)?,
            interval_seconds: Field("interval_seconds").optional_quantity(interval_seconds)?,
            uptime_seconds: Field("uptime_seconds").optional_quantity(uptime_seconds)?,
            cpu: Field("cpu").optional_message(cpu)?,
            load: Field("load").optional_message(load)?,
            pressure: Pressure {
                cpu: Field("cpu_pressure").optional_message(cpu_pressure)?,
                memory: Field("memory_pressure").optional_message(memory_pressure)?,
                io: Field("io_pressure").optional_message(io_pressure)?,
            },
            memory: Field("memory").optional_message(memory)?,
            swap: Field("swap").optional_message(swap)?,
            file_systems: of_list("file_systems", file_systems, MAX_FILE_SYSTEMS, file_systems_omitted)?,
            disks: of_list("disks", disks, MAX_DISKS, disks_omitted)?,
            interfaces: of_list("interfaces", interfaces, MAX_INTERFACES, interfaces_omitted)?,
            agent: Field("agent").optional_message(agent)?,
            reboot_required,
        })
    }
}

impl From<&Cpu> for proto::Cpu {
    fn from(cpu: &Cpu) -> Self {
        let Cpu { logical_cores, usage } = cpu;
        Self { logical_cores: *logical_cores, usage: usage.as_ref().map(Into::into) }
    }
}

impl TryFrom<proto::Cpu> for Cpu {
    type Error = Error;

    fn try_from(cpu: proto::Cpu) -> Result<Self, Error> {
        let proto::Cpu { logical_cores, usage } = cpu;
        Ok(Self { logical_cores, usage: Field("usage").optional_message(usage)? })
    }
}

impl From<&Stalls> for proto::Stalls {
    fn from(stalls: &Stalls) -> Self {
        let Stalls { some, full } = stalls;
        Self { some: Some(some.into()), full: full.as_ref().map(Into::into) }
    }
}

impl TryFrom<proto::Stalls> for Stalls {
    type Error = Error;

    fn try_from(stalls: proto::Stalls) -> Result<Self, Error> {
        let proto::Stalls { some, full } = stalls;
        Ok(Self { some: Field("some").message(some)?, full: Field("full").optional_message(full)? })
    }
}

impl From<&FileSystem> for proto::FileSystem {
    fn from(file_system: &FileSystem) -> Self {
        let FileSystem {
            mount_point,
            device,
            kind,
            access,
            total_bytes,
            used_bytes,
            available_bytes,
            inodes,
        } = file_system;
        Self {
            mount_point: cut(mount_point, MAX_TEXT_BYTES),
            device: cut(device, MAX_TEXT_BYTES),
            kind: cut(kind, MAX_TEXT_BYTES),
            read_only: match access {
                FileSystemAccess::ReadOnly => true,
                FileSystemAccess::ReadWrite => false,
            },
            total_bytes: *total_bytes,
            used_bytes: *used_bytes,
            available_bytes: *available_bytes,
            inodes_total: inodes.map(|inodes| inodes.total),
            inodes_free: inodes.map(|inodes| inodes.free),
        }
    }
}

impl TryFrom<proto::FileSystem> for FileSystem {
    type Error = Error;

    fn try_from(file_system: proto::FileSystem) -> Result<Self, Error> {
        let proto::FileSystem {
            mount_point,
            device,
            kind,
            read_only,
            total_bytes,
            used_bytes,
            available_bytes,
            inodes_total,
            inodes_free,
        } = file_system;
        Ok(Self {
            mount_point: Field("mount_point").text(mount_point, MAX_TEXT_BYTES)?,
            device: Field("device").text_or_empty(device, MAX_TEXT_BYTES)?,
            kind: Field("kind").text_or_empty(kind, MAX_TEXT_BYTES)?,
            access: if read_only { FileSystemAccess::ReadOnly } else { FileSystemAccess::ReadWrite },
            total_bytes,
            used_bytes,
            available_bytes,
            inodes: match (inodes_total, inodes_free) {
                (None, None) => None,
                (Some(total), Some(free)) => Some(Inodes { total, free }),
                (None, Some(_)) => return Err(Field("inodes_total").refuse(Problem::Missing)),
                (Some(_), None) => return Err(Field("inodes_free").refuse(Problem::Missing)),
            },
        })
    }
}

impl From<&AgentCost> for proto::AgentCost {
    fn from(cost: &AgentCost) -> Self {
        let AgentCost { resident_bytes, cpu_seconds, cpu_fraction, open_files, threads } = *cost;
        Self { resident_bytes, cpu_seconds, cpu_fraction, open_files, threads }
    }
}

impl TryFrom<proto::AgentCost> for AgentCost {
    type Error = Error;

    fn try_from(cost: proto::AgentCost) -> Result<Self, Error> {
        let proto::AgentCost { resident_bytes, cpu_seconds, cpu_fraction, open_files, threads } = cost;
        Ok(Self {
            resident_bytes,
            cpu_seconds: Field("cpu_seconds").quantity(cpu_seconds)?,
            // A share of one processor: with several threads it can be more than 1.
            cpu_fraction: Field("cpu_fraction").optional_quantity(cpu_fraction)?,
            open_files,
            threads,
        })
    }
}

/// At most `most` of the items, and how many are left out in all.
fn to_list<'a, D, P: From<&'a D>>(list: &'a Bounded<D>, most: usize) -> (Vec<P>, u32) {
    let cut = u32::try_from(list.items.len().saturating_sub(most)).unwrap_or(u32::MAX);
    (list.items.iter().take(most).map(Into::into).collect(), list.omitted.saturating_add(cut))
}

/// The items, of which there may be at most `most`, and how many were left out.
fn of_list<D: TryFrom<P, Error = Error>, P>(
    field: &'static str,
    items: Vec<P>,
    most: usize,
    omitted: u32,
) -> Result<Bounded<D>, Error> {
    Ok(Bounded { items: Field(field).list(items, most)?, omitted })
}
