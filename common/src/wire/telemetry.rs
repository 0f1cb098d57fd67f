//! Samples and inventories. A quantity that is not finite or is negative is refused; a text is cut where it goes in.

use holdfast_proto::r#type::v1 as proto;

use super::field::wire_enum;
use super::{Error, Field, Problem, WireEnum, cut, time_to_wire};
use crate::telemetry::{
    Address, AddressScope, AgentCost, Bounded, Cpu, CpuUsage, Disk, DiskFacts, DiskMedium, DiskRates,
    EngineAvailability, EngineOffer, FileSystem, FileSystemAccess, Filtering, Inodes, Interface,
    InterfaceRates, Inventory, Load, MAX_ADDRESSES, MAX_DISKS, MAX_ENGINES, MAX_FILE_SYSTEMS, MAX_INTERFACES,
    MAX_TEXT_BYTES, Memory, OperatingSystem, Pressure, Privilege, Sample, ServiceManager, Stall, Stalls,
    Swap,
};

wire_enum!(AddressScope, proto::AddressScope, Loopback, LinkLocal, Routable);
wire_enum!(ServiceManager, proto::ServiceManager, Systemd, Plain);
wire_enum!(Privilege, proto::Privilege, Root, Unprivileged);
wire_enum!(EngineAvailability, proto::EngineAvailability, Installed, Installable);

/// Here 0 says something: unknown.
impl WireEnum for DiskMedium {
    fn from_wire(number: i32) -> Result<Self, Problem> {
        match proto::DiskMedium::try_from(number) {
            Ok(proto::DiskMedium::Unspecified) => Ok(Self::Unknown),
            Ok(proto::DiskMedium::Rotating) => Ok(Self::Rotating),
            Ok(proto::DiskMedium::SolidState) => Ok(Self::SolidState),
            Err(_) => Err(Problem::UnknownValue { value: number }),
        }
    }

    fn to_wire(self) -> i32 {
        match self {
            Self::Unknown => proto::DiskMedium::Unspecified,
            Self::Rotating => proto::DiskMedium::Rotating,
            Self::SolidState => proto::DiskMedium::SolidState,
        }
        .into()
    }
}

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
            file_systems: Bounded {
                items: Field("file_systems").list(file_systems, MAX_FILE_SYSTEMS)?,
                omitted: file_systems_omitted,
            },
            disks: Bounded { items: Field("disks").list(disks, MAX_DISKS)?, omitted: disks_omitted },
            interfaces: Bounded {
                items: Field("interfaces").list(interfaces, MAX_INTERFACES)?,
                omitted: interfaces_omitted,
            },
            agent: Field("agent").optional_message(agent)?,
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

impl From<&Disk> for proto::Disk {
    fn from(disk: &Disk) -> Self {
        let Disk { name, rates } = disk;
        Self { name: cut(name, MAX_TEXT_BYTES), rates: rates.as_ref().map(Into::into) }
    }
}

impl TryFrom<proto::Disk> for Disk {
    type Error = Error;

    fn try_from(disk: proto::Disk) -> Result<Self, Error> {
        let proto::Disk { name, rates } = disk;
        Ok(Self {
            name: Field("name").text(name, MAX_TEXT_BYTES)?,
            rates: Field("rates").optional_message(rates)?,
        })
    }
}

impl From<&Interface> for proto::Interface {
    fn from(interface: &Interface) -> Self {
        let Interface { name, rates } = interface;
        Self { name: cut(name, MAX_TEXT_BYTES), rates: rates.as_ref().map(Into::into) }
    }
}

impl TryFrom<proto::Interface> for Interface {
    type Error = Error;

    fn try_from(interface: proto::Interface) -> Result<Self, Error> {
        let proto::Interface { name, rates } = interface;
        Ok(Self {
            name: Field("name").text(name, MAX_TEXT_BYTES)?,
            rates: Field("rates").optional_message(rates)?,
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

impl From<&Inventory> for proto::Inventory {
    fn from(inventory: &Inventory) -> Self {
        let Inventory {
            hostname,
            os: OperatingSystem { id, version, pretty_name },
            kernel,
            architecture,
            cpu_model,
            logical_cores,
            physical_cores,
            memory_bytes,
            swap_bytes,
            disks,
            addresses,
            virtualisation,
            service_manager,
            privilege,
            engines,
            filtering,
        } = inventory;
        let (state, reason) = filtering_to_wire(filtering);
        let (disks, disks_omitted) = to_list(disks, MAX_DISKS);
        let (addresses, addresses_omitted) = to_list(addresses, MAX_ADDRESSES);
        let (engines, engines_omitted) = to_list(engines, MAX_ENGINES);
        Self {
            hostname: cut(hostname, MAX_TEXT_BYTES),
            os_id: cut(id, MAX_TEXT_BYTES),
            os_version: version.as_deref().map(|text| cut(text, MAX_TEXT_BYTES)),
            os_pretty_name: cut(pretty_name, MAX_TEXT_BYTES),
            kernel: cut(kernel, MAX_TEXT_BYTES),
            architecture: cut(architecture, MAX_TEXT_BYTES),
            cpu_model: cpu_model.as_deref().map(|text| cut(text, MAX_TEXT_BYTES)),
            logical_cores: *logical_cores,
            physical_cores: *physical_cores,
            memory_bytes: *memory_bytes,
            swap_bytes: *swap_bytes,
            disks,
            disks_omitted,
            addresses,
            addresses_omitted,
            virtualisation: virtualisation.as_deref().map(|text| cut(text, MAX_TEXT_BYTES)),
            service_manager: service_manager.to_wire(),
            privilege: privilege.to_wire(),
            engines,
            engines_omitted,
            filtering: state.into(),
            filtering_message: cut(reason, MAX_TEXT_BYTES),
        }
    }
}

fn filtering_to_wire(filtering: &Filtering) -> (proto::FilteringState, &str) {
    use proto::FilteringState as State;
    match filtering {
        Filtering::Unknown => (State::Unspecified, ""),
        Filtering::Available => (State::Available, ""),
        Filtering::Unavailable { reason } => (State::Unavailable, reason),
        Filtering::Failed { reason } => (State::Failed, reason),
    }
}

fn filtering_of(state: i32, reason: String) -> Result<Filtering, Error> {
    use proto::FilteringState as State;
    let reason = Field("filtering_message").text_or_empty(reason, MAX_TEXT_BYTES)?;
    Ok(match State::try_from(state) {
        Ok(State::Unspecified) => Filtering::Unknown,
        Ok(State::Available) => Filtering::Available,
        Ok(State::Unavailable) => Filtering::Unavailable { reason },
        Ok(State::Failed) => Filtering::Failed { reason },
        Err(_) => return Err(Field("filtering").refuse(Problem::UnknownValue { value: state })),
    })
}

impl TryFrom<proto::Inventory> for Inventory {
    type Error = Error;

    fn try_from(inventory: proto::Inventory) -> Result<Self, Error> {
        let proto::Inventory {
            hostname,
            os_id,
            os_version,
            os_pretty_name,
            kernel,
            architecture,
            cpu_model,
            logical_cores,
            physical_cores,
            memory_bytes,
            swap_bytes,
            disks,
            disks_omitted,
            addresses,
            addresses_omitted,
            virtualisation,
            service_manager,
            privilege,
            engines,
            engines_omitted,
            filtering,
            filtering_message,
        } = inventory;
        let optional = |field: &'static str, text: Option<String>| {
            text.map(|text| Field(field).text_or_empty(text, MAX_TEXT_BYTES)).transpose()
        };
        Ok(Self {
            hostname: Field("hostname").text(hostname, MAX_TEXT_BYTES)?,
            os: OperatingSystem {
                id: Field("os_id").text(os_id, MAX_TEXT_BYTES)?,
                version: optional("os_version", os_version)?,
                pretty_name: Field("os_pretty_name").text_or_empty(os_pretty_name, MAX_TEXT_BYTES)?,
            },
            kernel: Field("kernel").text_or_empty(kernel, MAX_TEXT_BYTES)?,
            architecture: Field("architecture").text_or_empty(architecture, MAX_TEXT_BYTES)?,
            cpu_model: optional("cpu_model", cpu_model)?,
            logical_cores,
            physical_cores,
            memory_bytes,
            swap_bytes,
            disks: Bounded { items: Field("disks").list(disks, MAX_DISKS)?, omitted: disks_omitted },
            addresses: Bounded {
                items: Field("addresses").list(addresses, MAX_ADDRESSES)?,
                omitted: addresses_omitted,
            },
            virtualisation: optional("virtualisation", virtualisation)?,
            service_manager: Field("service_manager").enumerated(service_manager)?,
            privilege: Field("privilege").enumerated(privilege)?,
            engines: Bounded {
                items: Field("engines").list(engines, MAX_ENGINES)?,
                omitted: engines_omitted,
            },
            filtering: filtering_of(filtering, filtering_message)?,
        })
    }
}

impl From<&DiskFacts> for proto::DiskFacts {
    fn from(facts: &DiskFacts) -> Self {
        let DiskFacts { device, mount_point, file_system, total_bytes, medium } = facts;
        Self {
            device: cut(device, MAX_TEXT_BYTES),
            mount_point: cut(mount_point, MAX_TEXT_BYTES),
            file_system: cut(file_system, MAX_TEXT_BYTES),
            total_bytes: *total_bytes,
            medium: medium.to_wire(),
        }
    }
}

impl TryFrom<proto::DiskFacts> for DiskFacts {
    type Error = Error;

    fn try_from(facts: proto::DiskFacts) -> Result<Self, Error> {
        let proto::DiskFacts { device, mount_point, file_system, total_bytes, medium } = facts;
        Ok(Self {
            device: Field("device").text_or_empty(device, MAX_TEXT_BYTES)?,
            mount_point: Field("mount_point").text(mount_point, MAX_TEXT_BYTES)?,
            file_system: Field("file_system").text_or_empty(file_system, MAX_TEXT_BYTES)?,
            total_bytes,
            medium: Field("medium").enumerated(medium)?,
        })
    }
}

impl From<&Address> for proto::Address {
    fn from(address: &Address) -> Self {
        let Address { interface, ip, prefix_length, scope } = address;
        Self {
            interface: cut(interface, MAX_TEXT_BYTES),
            ip: ip.to_string(),
            prefix_length: (*prefix_length).into(),
            scope: scope.to_wire(),
        }
    }
}

impl TryFrom<proto::Address> for Address {
    type Error = Error;

    fn try_from(address: proto::Address) -> Result<Self, Error> {
        let proto::Address { interface, ip, prefix_length, scope } = address;
        let ip: std::net::IpAddr = Field("ip").parsed(ip)?;
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        Ok(Self {
            interface: Field("interface").text(interface, MAX_TEXT_BYTES)?,
            ip,
            prefix_length: u8::try_from(prefix_length).ok().filter(|length| *length <= longest).ok_or_else(
                || {
                    Field("prefix_length")
                        .refuse(Problem::OutOfRange { expected: "0–32, or 0–128 for IPv6" })
                },
            )?,
            scope: Field("scope").enumerated(scope)?,
        })
    }
}

impl From<&EngineOffer> for proto::EngineOffer {
    fn from(offer: &EngineOffer) -> Self {
        let EngineOffer { engine, version, availability } = offer;
        Self {
            engine: cut(engine, MAX_TEXT_BYTES),
            version: cut(version, MAX_TEXT_BYTES),
            availability: availability.to_wire(),
        }
    }
}

impl TryFrom<proto::EngineOffer> for EngineOffer {
    type Error = Error;

    fn try_from(offer: proto::EngineOffer) -> Result<Self, Error> {
        let proto::EngineOffer { engine, version, availability } = offer;
        Ok(Self {
            engine: Field("engine").text(engine, MAX_TEXT_BYTES)?,
            version: Field("version").text(version, MAX_TEXT_BYTES)?,
            availability: Field("availability").enumerated(availability)?,
        })
    }
}

/// At most `most` of the items, and how many are left out in all.
fn to_list<'a, D, P: From<&'a D>>(list: &'a Bounded<D>, most: usize) -> (Vec<P>, u32) {
    let cut = u32::try_from(list.items.len().saturating_sub(most)).unwrap_or(u32::MAX);
    (list.items.iter().take(most).map(Into::into).collect(), list.omitted.saturating_add(cut))
}
