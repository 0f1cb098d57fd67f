//! What the machine is, told once per session. Takes some milliseconds and may block: not for the sampling loop.

use std::net::IpAddr;
use std::path::Path;

use holdfast_common::telemetry::{
    Address, AddressScope, Bounded, DiskFacts, DiskMedium, EngineOffer, Filtering, Inventory, MAX_ADDRESSES,
    MAX_ENGINES, MAX_FILE_SYSTEMS, MAX_TEXT_BYTES, OperatingSystem, Privilege, ServiceManager,
};
use sysinfo::{
    CpuRefreshKind, DiskKind, DiskRefreshKind, Disks, MemoryRefreshKind, Networks, RefreshKind, System,
};

use super::counters::Roots;
use super::mounts;

/// What the inventory is told rather than finds out.
#[derive(Debug, Clone)]
pub struct Known {
    pub privilege: Privilege,
    pub service_manager: ServiceManager,
    /// From the engine drivers.
    pub engines: Vec<EngineOffer>,
    pub filtering: Filtering,
}

/// Looks at this machine. What sysinfo cannot find out is empty or zero where the field has no `None`.
pub fn take_inventory(roots: &Roots, known: Known) -> Inventory {
    let Known { privilege, service_manager, engines, filtering } = known;
    let facts = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::everything());
    let system = System::new_with_specifics(facts).ok();
    let cpus = system.as_ref().map(System::cpus).unwrap_or_default();
    Inventory {
        hostname: text(System::host_name().unwrap_or_default()),
        os: OperatingSystem {
            id: text(System::distribution_id()),
            version: System::os_version().ok().map(text),
            pretty_name: text(System::long_os_version().unwrap_or_else(|_| "Linux".to_owned())),
        },
        kernel: text(System::kernel_version().unwrap_or_default()),
        architecture: text(System::cpu_arch()),
        cpu_model: cpus.first().map(|cpu| text(cpu.brand().to_owned())).filter(|brand| !brand.is_empty()),
        logical_cores: u32::try_from(cpus.len()).unwrap_or(u32::MAX),
        physical_cores: System::physical_core_count().ok().and_then(|count| u32::try_from(count).ok()),
        memory_bytes: system.as_ref().map_or(0, System::total_memory),
        swap_bytes: system.as_ref().map_or(0, System::total_swap),
        disks: disks(roots),
        addresses: addresses(),
        virtualisation: virtualisation(roots),
        service_manager,
        privilege,
        engines: Bounded::first(engines, MAX_ENGINES),
        filtering,
    }
}

/// The disks as sysinfo knows them, limited to the mounts that a sample would name too.
fn disks(roots: &Roots) -> Bounded<DiskFacts> {
    let table = std::fs::read_to_string(roots.proc.join("self/mountinfo")).unwrap_or_default();
    let real = mounts::real_mounts(&table);
    let kinds = DiskRefreshKind::nothing().with_kind().with_storage();
    let Ok(found) = Disks::new_with_refreshed_list_specifics(kinds) else { return Bounded::default() };
    let mut disks: Vec<DiskFacts> = found
        .iter()
        .filter(|disk| real.iter().any(|mount| Path::new(&mount.mount_point) == disk.mount_point()))
        .map(|disk| DiskFacts {
            device: text(disk.name().to_string_lossy().into_owned()),
            mount_point: text(disk.mount_point().to_string_lossy().into_owned()),
            file_system: text(disk.file_system().to_string_lossy().into_owned()),
            total_bytes: disk.total_space(),
            medium: match disk.kind() {
                DiskKind::HDD => DiskMedium::Rotating,
                DiskKind::SSD => DiskMedium::SolidState,
                DiskKind::Unknown(_) => DiskMedium::Unknown,
            },
        })
        .collect();
    disks.sort_by(|a, b| a.mount_point.cmp(&b.mount_point));
    disks.dedup_by(|a, b| a.mount_point == b.mount_point);
    Bounded::first(disks, MAX_FILE_SYSTEMS)
}

fn addresses() -> Bounded<Address> {
    let Ok(networks) = Networks::new_with_refreshed_list() else { return Bounded::default() };
    let mut addresses: Vec<Address> = networks
        .iter()
        .flat_map(|(name, data)| {
            let interface = text(name.to_string_lossy().into_owned());
            data.ip_networks().iter().map(move |network| Address {
                interface: interface.clone(),
                ip: network.addr,
                prefix_length: network.prefix,
                scope: scope(network.addr),
            })
        })
        .collect();
    // Those that others can reach first: they are what remains if the list is cut.
    addresses.sort_by(|a, b| (std::cmp::Reverse(a.scope), a).cmp(&(std::cmp::Reverse(b.scope), b)));
    addresses.dedup();
    Bounded::first(addresses, MAX_ADDRESSES)
}

fn scope(ip: IpAddr) -> AddressScope {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match () {
        () if ip.is_loopback() => AddressScope::Loopback,
        () if link_local => AddressScope::LinkLocal,
        () => AddressScope::Routable,
    }
}

/// A container if PID 1 or systemd says so, else what the firmware's vendor says.
fn virtualisation(roots: &Roots) -> Option<String> {
    let container = Path::new("/run/systemd/container");
    if let Ok(kind) = std::fs::read_to_string(container) {
        return Some(text(kind.trim().to_owned()));
    }
    if Path::new("/run/.containerenv").exists() || Path::new("/.dockerenv").exists() {
        return Some("container".to_owned());
    }
    let vendor = std::fs::read_to_string(roots.sys.join("class/dmi/id/sys_vendor")).unwrap_or_default();
    if let Some(name) = hypervisor(&vendor) {
        return Some(name.to_owned());
    }
    // Without firmware tables the processor still tells that there is one.
    let cpu = std::fs::read_to_string(roots.proc.join("cpuinfo")).unwrap_or_default();
    let flags = cpu.lines().find(|line| line.starts_with("flags"))?;
    flags.split_whitespace().any(|flag| flag == "hypervisor").then(|| "virtual".to_owned())
}

fn hypervisor(vendor: &str) -> Option<&'static str> {
    let names = [
        ("QEMU", "kvm"),
        ("Amazon", "amazon"),
        ("Google", "google"),
        ("Microsoft", "hyper-v"),
        ("VMware", "vmware"),
        ("Xen", "xen"),
        ("innotek", "virtualbox"),
        ("Hetzner", "kvm"),
        ("DigitalOcean", "kvm"),
        ("Parallels", "parallels"),
    ];
    names.into_iter().find(|(prefix, _)| vendor.starts_with(prefix)).map(|(_, name)| name)
}

/// Bounded, and cut between characters.
fn text(mut text: String) -> String {
    let mut end = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inventory_of_this_machine_agrees_with_its_own_files() {
        let known = Known {
            privilege: Privilege::Unprivileged,
            service_manager: ServiceManager::Plain,
            engines: Vec::new(),
            filtering: Filtering::Available,
        };
        let found = take_inventory(&Roots::default(), known);
        let read = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
        assert_eq!(found.filtering, Filtering::Available);
        assert_eq!(found.hostname, read("/proc/sys/kernel/hostname"));
        assert_eq!(found.kernel, read("/proc/sys/kernel/osrelease"));
        let release = read("/etc/os-release");
        assert!(release.contains(&format!("ID={}", found.os.id)), "{release}\n{:?}", found.os);
        assert!(release.contains(&found.os.version.unwrap()));
        let cpus = read("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count();
        assert_eq!(found.logical_cores as usize, cpus);
        let loopback = "127.0.0.1".parse::<IpAddr>().unwrap();
        let loopback = found.addresses.items.iter().find(|address| address.ip == loopback).unwrap();
        assert_eq!(loopback.scope, AddressScope::Loopback);
        assert!(found.disks.items.iter().any(|disk| disk.mount_point == "/" && disk.total_bytes > 0));
    }

    #[test]
    fn addresses_are_sorted_by_who_can_reach_them() {
        assert_eq!(scope("::1".parse().unwrap()), AddressScope::Loopback);
        assert_eq!(scope("fe80::1".parse().unwrap()), AddressScope::LinkLocal);
        assert_eq!(scope("169.254.1.1".parse().unwrap()), AddressScope::LinkLocal);
        assert_eq!(scope("10.0.0.1".parse().unwrap()), AddressScope::Routable);
        assert!(
            AddressScope::Routable > AddressScope::LinkLocal
                && AddressScope::LinkLocal > AddressScope::Loopback
        );
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cut = text("ä".repeat(MAX_TEXT_BYTES));
        assert_eq!(cut.len(), MAX_TEXT_BYTES);
        assert!(text("ä".repeat(MAX_TEXT_BYTES / 2) + "x€").len() <= MAX_TEXT_BYTES);
    }
}
