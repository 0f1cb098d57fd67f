//! What a node is: its machine, addresses, disks and engines.

use holdfast_proto::r#type::v1 as proto;

use super::{of_list, to_list};
use crate::telemetry::{
    Address, AddressScope, DiskFacts, DiskMedium, EngineAvailability, EngineOffer, Filtering, Inventory,
    MAX_ADDRESSES, MAX_DISKS, MAX_ENGINES, MAX_TEXT_BYTES, OperatingSystem, Privilege, ServiceManager,
};
use crate::wire::field::wire_enum;
use crate::wire::{Error, Field, Problem, WireEnum, cut};

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
            disks: of_list("disks", disks, MAX_DISKS, disks_omitted)?,
            addresses: of_list("addresses", addresses, MAX_ADDRESSES, addresses_omitted)?,
            virtualisation: optional("virtualisation", virtualisation)?,
            service_manager: Field("service_manager").enumerated(service_manager)?,
            privilege: Field("privilege").enumerated(privilege)?,
            engines: of_list("engines", engines, MAX_ENGINES, engines_omitted)?,
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
