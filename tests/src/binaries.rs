//! Where the built programs are: beside the program that runs, or one folder up from a test in `deps/`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// The agent.
///
/// # Errors
///
/// When it is not built.
pub fn agent() -> anyhow::Result<PathBuf> {
    beside("holdfast-agent")
}

/// The coordinator.
///
/// # Errors
///
/// When it is not built.
pub fn coordinator() -> anyhow::Result<PathBuf> {
    beside("holdfast-coordinator")
}

/// The command line.
///
/// # Errors
///
/// When it is not built.
pub fn cli() -> anyhow::Result<PathBuf> {
    beside("holdfast")
}

/// The testbed's own program.
///
/// # Errors
///
/// When it is not built.
pub fn testbed() -> anyhow::Result<PathBuf> {
    beside("holdfast-testbed")
}

/// The source tree's own program, which makes packages.
///
/// # Errors
///
/// When it is not built.
pub fn xtask() -> anyhow::Result<PathBuf> {
    beside("xtask")
}

/// The benchmarks' own program.
///
/// # Errors
///
/// When it is not built.
pub fn bench() -> anyhow::Result<PathBuf> {
    beside("holdfast-bench")
}

/// A pinned program of the interoperability tests, `buf` or `grpcurl`, fetched by `cargo xtask test`.
///
/// # Errors
///
/// When it was not fetched.
pub fn tool(name: &str) -> anyhow::Result<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("tools/bin");
    let path = tools.join(name);
    if path.is_file() {
        return Ok(path);
    }
    bail!("{name} is not in {}: `cargo xtask test` fetches it", tools.display())
}

fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let this = this_program()?;
    let found = this.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!("{name} is not built beside {}: run `cargo build --workspace`", this.display()),
    }
}

/// A program that was built anew while it ran is called "… (deleted)"; the new one stands at the same path.
fn this_program() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("find the program that runs")?;
    let text = this.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| this.clone(), PathBuf::from))
}
