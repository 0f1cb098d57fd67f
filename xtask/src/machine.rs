//! What must be installed on this machine, and installing it from Debian's packages.
//!
//! Nothing is installed that is there already, and no installed server is started: a database that Holdfast did not
//! make is never its business.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::process::Program;
use crate::say;

/// Asked before any server package is unpacked; 101 means that no service may be started.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Read by PostgreSQL's packages: whether to make a cluster of their own.
const CREATE_CLUSTER: &str = "/etc/postgresql-common/createcluster.conf";

/// What is needed for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Hosts and a real PostgreSQL.
    Hosts,
    /// That, and the tools of the interoperability tests.
    Tests,
    /// Hosts, and those programs of others that benchmarks compare with.
    Benchmarks,
}

/// Who may install, and gets namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    Ordinary,
}

/// A thing that must be there, and the package that brings it.
#[derive(Clone, Copy, Debug)]
struct Part {
    package: &'static str,
    present: fn() -> bool,
    only_for: Option<Need>,
    for_root_only: bool,
}

const PARTS: &[Part] = &[
    Part { package: "iproute2", present: || on_path("ip"), only_for: None, for_root_only: true },
    Part { package: "nftables", present: || on_path("nft"), only_for: None, for_root_only: true },
    Part {
        package: "util-linux",
        present: || on_path("nsenter") && on_path("unshare"),
        only_for: None,
        for_root_only: true,
    },
    Part { package: "procps", present: || on_path("ps"), only_for: None, for_root_only: false },
    Part {
        package: "ca-certificates",
        present: || Path::new("/etc/ssl/certs/ca-certificates.crt").exists(),
        only_for: None,
        for_root_only: false,
    },
    Part { package: "postgresql", present: postgres_server, only_for: None, for_root_only: false },
    Part { package: "postgresql-client", present: || on_path("psql"), only_for: None, for_root_only: false },
    Part {
        package: "systemd",
        present: || on_path("systemd-analyze"),
        only_for: Some(Need::Tests),
        for_root_only: false,
    },
    Part {
        package: "strace",
        present: || on_path("strace"),
        only_for: Some(Need::Tests),
        for_root_only: false,
    },
    Part {
        package: "systemd-container",
        present: || on_path("systemd-nspawn"),
        only_for: Some(Need::Tests),
        for_root_only: true,
    },
    Part {
        package: "mmdebstrap",
        present: || on_path("mmdebstrap"),
        only_for: Some(Need::Tests),
        for_root_only: true,
    },
    Part {
        package: "apt-utils",
        present: || on_path("apt-ftparchive"),
        only_for: Some(Need::Tests),
        for_root_only: true,
    },
    Part {
        package: "haproxy",
        present: || on_path("haproxy"),
        only_for: Some(Need::Tests),
        for_root_only: true,
    },
    Part {
        package: "pgbouncer",
        present: || on_path("pgbouncer"),
        only_for: Some(Need::Tests),
        for_root_only: true,
    },
    Part {
        package: "patroni",
        present: || on_path("patroni"),
        only_for: Some(Need::Benchmarks),
        for_root_only: true,
    },
    Part {
        package: "etcd-server",
        present: || on_path("etcd"),
        only_for: Some(Need::Benchmarks),
        for_root_only: true,
    },
    Part {
        package: "prometheus-node-exporter",
        present: || on_path("prometheus-node-exporter"),
        only_for: Some(Need::Benchmarks),
        for_root_only: true,
    },
    Part { package: "python3-venv", present: python_venv, only_for: Some(Need::Tests), for_root_only: false },
];

/// Makes sure that all that is needed is there: installs it as root, else says what an administrator has to install.
///
/// # Errors
///
/// When something is missing and cannot be installed.
pub(crate) fn prepare(need: Need) -> anyhow::Result<()> {
    let user = User::this()?;
    let missing = missing(need, user);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if user == User::Ordinary {
        bail!(
            "not installed: {names}. Ask an administrator for: apt-get install --no-install-recommends {names}"
        );
    }
    if !on_path("apt-get") {
        bail!("not installed: {names}; and there is no apt-get to install them with");
    }
    say::step(format_args!("installing what is missing: {names}"));
    // Written before the packages are unpacked, so that they neither make a cluster nor start one.
    if !Path::new(CREATE_CLUSTER).exists() {
        fs::create_dir_all("/etc/postgresql-common").context("make /etc/postgresql-common")?;
        fs::write(CREATE_CLUSTER, "create_main_cluster = false\n").context("write createcluster.conf")?;
    }
    let policy = Policy::deny()?;
    apt(&["update", "--quiet=2"]).context("refresh the lists of packages")?;
    let mut install = vec!["install", "--yes", "--quiet=2", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install).with_context(|| format!("install {names}"))?;
    drop(policy);
    let still = self::missing(need, user);
    if !still.is_empty() {
        bail!("apt-get installed {names}, but this is still missing: {}", still.join(" "));
    }
    Ok(())
}

fn missing(need: Need, user: User) -> Vec<&'static str> {
    let wanted = |part: &&Part| {
        part.only_for.is_none_or(|only| only == need) && (user == User::Root || !part.for_root_only)
    };
    PARTS.iter().filter(wanted).filter(|part| !(part.present)()).map(|part| part.package).collect()
}

fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    let options = ["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold"];
    let apt = Program::new("apt-get").args(options).args(arguments);
    apt.env("DEBIAN_FRONTEND", "noninteractive").run_quietly()
}

// === impl User ===

impl User {
    /// The owner of this process, which is the owner of what `/proc` says of it.
    pub(crate) fn this() -> anyhow::Result<Self> {
        let status = fs::metadata("/proc/self").context("ask who this is")?;
        Ok(if status.uid() == 0 { Self::Root } else { Self::Ordinary })
    }
}

/// While this lives, no package starts a service. A policy that was there before is left as it is.
#[derive(Debug)]
struct Policy {
    ours: bool,
}

// === impl Policy ===

impl Policy {
    fn deny() -> anyhow::Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").context("keep packages from starting services")?;
        let policy = Self { ours: true };
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
            .context("make the policy a program")?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours {
            // If it cannot be removed now, it could not be written either.
            fs::remove_file(POLICY).ok();
        }
    }
}

/// Whether a program is on the path, or where Debian keeps those for root.
pub(crate) fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|folder| folder.join(name).is_file())
}

fn postgres_server() -> bool {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin/postgres")).any(|program| program.is_file())
}

/// Debian's Python comes without the part that makes environments; other Pythons bring their own.
fn python_venv() -> bool {
    let debian = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let mut debian = debian.filter(|entry| entry.file_name().to_string_lossy().starts_with("python3."));
    on_path("python3") && debian.any(|entry| entry.path().join("ensurepip").is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_user_needs_nothing_for_namespaces() {
        for part in PARTS.iter().filter(|part| part.for_root_only) {
            assert!(!missing(Need::Tests, User::Ordinary).contains(&part.package));
        }
    }

    #[test]
    fn a_program_is_found_by_name_only() {
        assert!(on_path("sh"));
        assert!(!on_path("no-such-program-anywhere"));
    }
}
