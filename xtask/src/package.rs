//! Debian packages of the three programs: what nodes and coordinators are installed from.
//!
//! A package is a folder in the shape that `dpkg-deb` wants: the program, what of `deploy/` belongs to it, the control
//! file with its two words put in, and the maintainer scripts. Nothing else is generated.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::process::Program;
use crate::{build, say, source};

/// Where the programs of a release are built.
const RELEASE: &str = "target/release";

/// Where packages are put unless it is said otherwise.
const PLACE: &str = "target/packages";

/// What to package.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Package the programs of this folder as they are; without it they are built with optimisation first.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where to put the packages.
    #[arg(long, value_name = "DIR", default_value_os_t = source().join(PLACE))]
    into: PathBuf,
}

/// A package: its name is also its program's.
#[derive(Debug)]
struct Package {
    name: &'static str,
    /// From `deploy/`, and where it is installed.
    files: &'static [(&'static str, &'static str)],
}

const PACKAGES: [Package; 3] = [
    Package {
        name: "holdfast-agent",
        files: &[
            ("systemd/holdfast-agent.service", "usr/lib/systemd/system/holdfast-agent.service"),
            ("systemd/holdfast-firewall.service", "usr/lib/systemd/system/holdfast-firewall.service"),
            ("config/agent.example.toml", "usr/share/doc/holdfast-agent/examples/agent.toml"),
        ],
    },
    Package {
        name: "holdfast-coordinator",
        files: &[
            ("systemd/holdfast-coordinator.service", "usr/lib/systemd/system/holdfast-coordinator.service"),
            ("sysusers/holdfast-coordinator.conf", "usr/lib/sysusers.d/holdfast-coordinator.conf"),
            (
                "config/coordinator.example.toml",
                "usr/share/doc/holdfast-coordinator/examples/coordinator.toml",
            ),
            ("cloud-init/join.yaml.in", "usr/share/doc/holdfast-coordinator/examples/join.yaml.in"),
        ],
    },
    Package { name: "holdfast", files: &[] },
];

/// # Errors
///
/// When the programs cannot be built, or a package cannot be made of them.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { programs, into } = arguments;
    let programs = match programs {
        Some(programs) => programs.clone(),
        None => {
            say::step("building with optimisation, which takes some minutes the first time");
            build(&["--release"]).run()?;
            source().join(RELEASE)
        }
    };
    fs::create_dir_all(into).with_context(|| format!("make {}", into.display()))?;
    for package in &PACKAGES {
        package.make(&programs, into).with_context(|| format!("package {}", package.name))?;
    }
    Ok(())
}

// === impl Package ===

impl Package {
    fn make(&self, programs: &Path, into: &Path) -> anyhow::Result<()> {
        let Self { name, files } = self;
        let architecture = Program::new("dpkg").arg("--print-architecture").output()?;
        let architecture = architecture.trim();
        let tree = into.join(format!("{name}.tree"));
        remove(&tree)?;
        place(&programs.join(name), &tree.join("usr/bin").join(name), 0o755)?;
        for (from, to) in *files {
            place(&source().join("deploy").join(from), &tree.join(to), 0o644)?;
        }
        let debian = source().join("deploy/debian");
        let control = fs::read_to_string(debian.join(format!("{name}.control"))).context("read control")?;
        let control = control.replace("@VERSION@", env!("CARGO_PKG_VERSION"));
        let control = control.replace("@ARCHITECTURE@", architecture);
        fs::create_dir_all(tree.join("DEBIAN")).context("make the control folder")?;
        fs::write(tree.join("DEBIAN/control"), control).context("write control")?;
        for script in ["postinst", "prerm"] {
            let from = debian.join(format!("{name}.{script}"));
            if from.exists() {
                place(&from, &tree.join("DEBIAN").join(script), 0o755)?;
            }
        }
        let file = into.join(format!("{name}_{}_{architecture}.deb", env!("CARGO_PKG_VERSION")));
        // gzip at its lowest: every dpkg reads it, and packages of programs that are being tested are made at once.
        let build = Program::new("dpkg-deb").args(["--root-owner-group", "-Zgzip", "-z1", "--build"]);
        build.arg(&tree).arg(&file).run_quietly()?;
        remove(&tree)
    }
}

/// Copies a file to a place whose folders are made where they are missing.
fn place(from: &Path, to: &Path, mode: u32) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        make_folder(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(to, mode).with_context(|| format!("give {} its mode", to.display()))
}

/// Folders are packaged with their mode, which must not be the one that this user happens to give to new folders.
fn make_folder(folder: &Path) -> anyhow::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folder(above)?;
    }
    fs::create_dir(folder).with_context(|| format!("make {}", folder.display()))?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder, mode).with_context(|| format!("give {} its mode", folder.display()))
}

fn remove(tree: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(tree) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", tree.display()))
        }
        _ => Ok(()),
    }
}
