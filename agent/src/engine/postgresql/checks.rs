//! Whether a member could be made here: looked at, never changed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use holdfast_common::command::{Check, CheckMember, CheckedMember};
use holdfast_common::engine::EngineVersion;
use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use super::Inner;
use super::packages::Extension;
use crate::engine::Error;
use crate::host::files::Space;

const GIB: u64 = 1024 * 1024 * 1024;
/// An empty database with its first log; below it no member can even begin.
const MIN_FREE_BYTES: u64 = GIB;
const MIN_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

pub(super) async fn check(inner: &Inner, request: &CheckMember) -> Result<CheckedMember, Error> {
    let installed = inner.packages.installed().await?;
    let installable: Vec<EngineVersion> = match inner.packages.installable().await {
        Ok(found) => found.into_iter().map(|(version, _)| version).collect(),
        Err(error) => {
            tracing::warn!(%error, "ask the package manager");
            Vec::new()
        }
    };
    let version = chosen(request.engine_version.as_ref(), &installed, &installable);
    let engine_installed = version.as_ref().is_some_and(|version| installed.contains(version));
    let space = inner.host.files().space(&inner.settings.data_dir).await;
    let space = space.map_err(|error| Error::failed("measure the disk", error))?;
    let memory_bytes = inner.memory_bytes();
    let mut checks = vec![engine(inner, request, version.as_ref(), engine_installed)];
    checks.extend(extensions(inner, request, version.as_ref()).await?);
    let ports = [Some(request.port), request.replication_port];
    checks.extend(ports.into_iter().flatten().map(|number| port(inner.settings.address, number)));
    checks.push(no_data(inner, request).await?);
    checks.push(disk(space));
    checks.push(memory(memory_bytes));
    checks.push(socket_path(inner, request));
    Ok(CheckedMember {
        checks,
        engine_version: version,
        engine_installed,
        memory_bytes,
        cores: inner.host.system().size().cores,
        free_bytes: space.available_bytes,
        node_time: Timestamp::now(),
    })
}

/// The version asked for; else the newest that is here; else the newest that could be.
fn chosen(
    asked: Option<&EngineVersion>,
    installed: &[EngineVersion],
    installable: &[EngineVersion],
) -> Option<EngineVersion> {
    let mut known = installed.iter().chain(installable);
    match asked {
        Some(asked) => known.find(|version| *version == asked).cloned(),
        None => known.next().cloned(),
    }
}

fn found(name: &str, met: bool, message: impl Into<String>) -> Check {
    Check { name: name.to_owned(), met, message: message.into() }
}

fn engine(inner: &Inner, request: &CheckMember, version: Option<&EngineVersion>, installed: bool) -> Check {
    let name = "engine_available";
    let asked = request.engine_version.as_ref().map_or_else(String::new, |version| format!(" {version}"));
    match version {
        Some(version) if installed => found(name, true, format!("PostgreSQL {version} is installed")),
        Some(version) => {
            found(name, true, format!("PostgreSQL {version} will be installed from the node's packages"))
        }
        None if inner.packages.may_install() => found(
            name,
            false,
            format!(
                "no package source of the node has PostgreSQL{asked}; add one, or ask for another version"
            ),
        ),
        None => found(
            name,
            false,
            format!(
                "PostgreSQL{asked} is not installed and the agent is not root; install package postgresql by hand"
            ),
        ),
    }
}

async fn extensions(
    inner: &Inner,
    request: &CheckMember,
    version: Option<&EngineVersion>,
) -> Result<Option<Check>, Error> {
    let Some(version) = version.filter(|_| !request.extensions.is_empty()) else { return Ok(None) };
    let mut problems = Vec::new();
    for extension in &request.extensions {
        if let Extension::Missing { why } = inner.packages.extension(extension, version).await? {
            problems.push(why);
        }
    }
    let met = problems.is_empty();
    let message =
        if met { "all extensions are here or can be installed".to_owned() } else { problems.join("; ") };
    Ok(Some(found("extensions", met, message)))
}

/// Tries to listen, as the engine will.
fn port(own: IpAddr, port: u16) -> Check {
    let name = "port_free";
    let addresses: &[IpAddr] = if own.is_loopback() {
        &[own]
    } else {
        &[IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
    };
    for address in addresses.iter().map(|address| SocketAddr::from((*address, port))) {
        match try_listen(address) {
            Err(Errno::EADDRINUSE) => {
                let message =
                    format!("port {port} is in use on this node; choose another or stop what listens there");
                return found(name, false, message);
            }
            Err(Errno::EACCES | Errno::EPERM) => {
                let message = format!("port {port} may not be used by this agent; choose one from 1024 up");
                return found(name, false, message);
            }
            // A machine without IPv6.
            Err(_) | Ok(()) => {}
        }
    }
    found(name, true, format!("port {port} is free"))
}

fn try_listen(address: SocketAddr) -> Result<(), Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &SockaddrStorage::from(address))?;
    listen(&socket, Backlog::new(1)?)
}

async fn no_data(inner: &Inner, request: &CheckMember) -> Result<Check, Error> {
    let layout = inner.layout(request.cluster_id);
    let stat = inner.host.files().stat(layout.root()).await;
    let there = stat.map_err(|error| Error::failed("look for data of the cluster", error))?.is_some();
    let message = if there {
        format!("{} is there already; destroy the member first", layout.root().display())
    } else {
        "the cluster has no data here".to_owned()
    };
    Ok(found("no_data", !there, message))
}

fn disk(space: Space) -> Check {
    let free = space.available_bytes / (1024 * 1024);
    let met = space.available_bytes >= MIN_FREE_BYTES;
    let remedy = if met { "" } else { "; at least 1024 MiB are needed: free some, or use a larger disk" };
    found("disk_free", met, format!("{free} MiB are free for data{remedy}"))
}

fn memory(bytes: u64) -> Check {
    let met = bytes >= MIN_MEMORY_BYTES;
    let remedy = if met { "" } else { "; at least 256 MiB are needed" };
    found("memory", met, format!("the node has {} MiB of memory{remedy}", bytes / (1024 * 1024)))
}

fn socket_path(inner: &Inner, request: &CheckMember) -> Check {
    match inner.layout(request.cluster_id).check_socket() {
        Ok(()) => found("socket_path", true, "the data directory's path is short enough for a socket"),
        Err(error) => found("socket_path", false, error.to_string()),
    }
}
