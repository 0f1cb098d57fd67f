//! The file system that all machines begin with: a small Debian as a cloud image has it, without any database, and the
//! packages of PostgreSQL as a package source on its disk, since nothing leaves the switch.
//!
//! Made once by mmdebstrap from this machine's own package sources, and kept below `target/` under a name that is drawn
//! from all that it is made of.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::process::Program;

/// What a cloud image has, as far as it matters here.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "cloud-init",
    "dbus",
    "iproute2",
    "libgcc-s1",
    "libnss-systemd",
    "libpam-systemd",
    "nftables",
    "procps",
    "systemd",
    "systemd-sysv",
];

/// What agents are to install by themselves, with all that it needs.
const INSTALLABLE: &[&str] = &["postgresql-15", "postgresql-15-cron"];

/// Where the machine finds these.
const SOURCE: &str = "/srv/packages/debian";

/// Files as a provider's image would have them, or as a machine without a network beyond the switch needs them.
const FILES: &[(&str, &str)] = &[
    (
        "etc/cloud/cloud.cfg.d/99-testbed.cfg",
        "datasource_list: [ NoCloud, None ]\nnetwork: {config: disabled}\nlocale: C.UTF-8\nssh_genkeytypes: []\n",
    ),
    ("etc/systemd/journald.conf.d/testbed.conf", "[Journal]\nForwardToConsole=yes\nMaxLevelConsole=info\n"),
    // A machine that loses its power loses its run: nothing is gained by waiting for the disk at every file.
    ("etc/dpkg/dpkg.cfg.d/testbed", "force-unsafe-io\n"),
];

/// Addresses come from outside, and nobody is there to ask for new packages.
const MASKED: &[&str] = &[
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-networkd-wait-online.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
];

const BUILD: Duration = Duration::from_secs(15 * 60);

/// Makes the file system, for those who want it to be there before tests are timed.
///
/// # Errors
///
/// When machines are impossible here ([`super::Impossible`]), or it cannot be made.
pub fn main() -> anyhow::Result<()> {
    super::possible()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("make a runtime")?;
    runtime.block_on(ready()).map(drop)
}

/// The file system, which is made now if it is not there yet.
///
/// # Errors
///
/// When it cannot be made.
pub async fn ready() -> anyhow::Result<PathBuf> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("machine-roots");
    fs::create_dir_all(&base).with_context(|| format!("make {}", base.display()))?;
    let sources = sources()?;
    let place = base.join(name(&sources)?);
    let lock = File::create(base.join(".lock")).context("make the lock of the machines' file systems")?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock));
    let _lock = lock.await?.context("lock the machines' file systems")?;
    if place.exists() {
        return Ok(place);
    }
    for old in fs::read_dir(&base)?.flatten().filter(|entry| entry.path().is_dir()) {
        fs::remove_dir_all(old.path()).with_context(|| format!("remove {}", old.path().display()))?;
    }
    let new = base.join("new");
    build(&new, &sources).await?;
    furnish(&new)?;
    fs::rename(&new, &place).with_context(|| format!("put {} in place", place.display()))?;
    Ok(place)
}

/// The files that say where this machine gets Debian's own packages from.
fn sources() -> anyhow::Result<Vec<PathBuf>> {
    let apt = Path::new("/etc/apt");
    let debian = apt.join("sources.list.d/debian.sources");
    if debian.exists() {
        return Ok(vec![debian]);
    }
    let list = apt.join("sources.list");
    ensure!(list.exists(), "neither {} nor {} is there", debian.display(), list.display());
    Ok(vec![list])
}

/// Drawn from all that the file system is made of.
fn name(sources: &[PathBuf]) -> anyhow::Result<String> {
    let mut all = DefaultHasher::new();
    (PACKAGES, INSTALLABLE, FILES, MASKED, release()?).hash(&mut all);
    (SOURCE, include_str!("root.rs")).hash(&mut all);
    for source in sources {
        fs::read(source).with_context(|| format!("read {}", source.display()))?.hash(&mut all);
    }
    Ok(format!("{:016x}", all.finish()))
}

/// The same release as this machine's: the programs that are tested were built against its libraries.
fn release() -> anyhow::Result<String> {
    let about = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let name = about.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("this machine's release has no code name")?.trim_matches('"').to_owned())
}

async fn build(root: &Path, sources: &[PathBuf]) -> anyhow::Result<()> {
    // Run by mmdebstrap when all is installed, while it can still reach the package sources.
    let fetch = format!(
        "set -e; place=\"$1{SOURCE}\"; mkdir -p \"$place\"; APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\" apt-get -q -y \
         --no-install-recommends --download-only -o Dir::Cache::Archives=\"$place\" install {}; cd \"$place\"; \
         rm -rf partial lock; apt-ftparchive packages . > Packages; apt-ftparchive release . > Release",
        INSTALLABLE.join(" "),
    );
    let build = Program::new("mmdebstrap").args(["--mode=root", "--variant=minbase"]);
    let build = build.arg(format!("--include={}", PACKAGES.join(",")));
    let build = build.args(
        ["man", "doc", "locale", "info"].map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")),
    );
    let build = build.args(["--dpkgopt=force-unsafe-io", "--aptopt=APT::Install-Recommends \"false\""]);
    let build = build.args(["--aptopt=Acquire::Languages \"none\"", &format!("--customize-hook={fetch}")]);
    let build = build.arg(release()?).arg(root).args(sources);
    // Whatever it mounts is gone with it.
    let build = build.wrapped(["unshare", "--mount", "--propagation", "private", "--"]);
    build.deadline(BUILD).run().await.map(drop)
}

fn furnish(root: &Path) -> anyhow::Result<()> {
    let lists = root.join("etc/apt/sources.list.d");
    for entry in fs::read_dir(&lists).context("list the package sources")?.flatten() {
        fs::remove_file(entry.path()).context("remove a package source that cannot be reached")?;
    }
    write(&lists.join("local.list"), &format!("deb [trusted=yes] file:{SOURCE} ./\n"))?;
    for (path, text) in FILES {
        write(&root.join(path), text)?;
    }
    for unit in MASKED {
        let place = root.join("etc/systemd/system").join(unit);
        symlink("/dev/null", &place).with_context(|| format!("mask {unit}"))?;
    }
    // Both are a machine's own, and come with its first boot.
    for own in ["etc/hostname", "etc/machine-id"] {
        fs::remove_file(root.join(own)).ok();
    }
    write(&root.join("etc/machine-id"), "uninitialized\n")?;
    fs::remove_file(root.join("etc/resolv.conf")).ok();
    write(&root.join("etc/resolv.conf"), "nameserver 127.0.0.1\n")
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
