//! `cargo xtask test`: what CI runs, in the same order, with the test runner's own summary as the last output.

use anyhow::{Context as _, bail};

use crate::machine::{self, Need, User};
use crate::process::Program;
use crate::{Verdict, say, source, tools};

/// What to test.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Also run the slow tests, which are run before a release.
    #[arg(long)]
    slow: bool,
    /// Run only the tests whose name contains this, and no other checks.
    filter: Option<String>,
}

/// Read by the testbed: where to keep the logs of hosts.
const LOGS: &str = "HOLDFAST_TESTBED_LOGS";

/// # Errors
///
/// When something cannot be run at all; a check that fails is a bad verdict.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Verdict> {
    machine::prepare(Need::Tests)?;
    tools::prepare()?;
    if arguments.filter.is_none() {
        for (what, check) in checks() {
            say::step(what);
            check.run().context(what)?;
        }
    }
    say::step("build");
    // All targets, as the tests need them: for programs alone the features of some dependencies would be others, and
    // those would be built twice.
    Program::cargo(["build", "--workspace", "--all-targets"]).run()?;
    if arguments.filter.is_none() {
        // Before the others, so that the summary of those comes last.
        say::step("documentation tests");
        Program::cargo(["test", "--workspace", "--doc", "--quiet"]).run()?;
    }
    let machines = machines()?;
    say::step("tests");
    Ok(if tests(arguments, machines)?.succeeds()? { Verdict::Good } else { Verdict::Bad })
}

/// Whether there can be machines with systemd here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machines {
    Possible,
    Impossible,
}

/// Makes their file system, unless there is one already. Where they are impossible, the testbed has said why.
fn machines() -> anyhow::Result<Machines> {
    /// What the testbed exits with then.
    const IMPOSSIBLE: i32 = 77;
    say::step("file system of the machines with systemd");
    let testbed = Program::new(source().join("target/debug/holdfast-testbed")).arg("machine-root");
    match testbed.code()? {
        Some(0) => Ok(Machines::Possible),
        Some(IMPOSSIBLE) => Ok(Machines::Impossible),
        _ => bail!("{testbed} failed"),
    }
}

/// All that is checked without running anything.
fn checks() -> Vec<(&'static str, Program)> {
    vec![
        ("format", Program::cargo(["fmt", "--all", "--check"])),
        ("lint", Program::cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
        (
            "documentation",
            Program::cargo(["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        ),
        ("protocol", tools::tool("buf").arg("lint").folder(source().join("proto"))),
        // Those too that are for other systems: all that is locked is looked at.
        ("crates", Program::cargo(["fetch", "--locked", "--quiet"])),
        // Without its advisories, which come from the network: what is checked here needs none.
        (
            "dependencies",
            tools::tool("cargo-deny").args([
                "--offline",
                "--log-level",
                "error",
                "check",
                "bans",
                "licenses",
                "sources",
            ]),
        ),
    ]
}

/// With a process for each test, so that a test that hangs or crashes is only itself.
fn tests(arguments: &Arguments, machines: Machines) -> anyhow::Result<Program> {
    let logs = source().join("target/testbed-logs");
    match std::fs::remove_dir_all(&logs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("remove old logs");
        }
        _ => {}
    }
    let slow = if arguments.slow { ["--run-ignored", "all"].as_slice() } else { &[] };
    let profile = match User::this()? {
        User::Root => [].as_slice(),
        User::Ordinary => {
            say::step("without root: tests that mount, filter packets, or become another user are left out");
            ["--profile", "user"].as_slice()
        }
    };
    // One more than there are processors: tests of hosts, which begin first, mostly wait.
    let threads = std::thread::available_parallelism().map_or(1, usize::from) + 1;
    let run = tools::tool("cargo-nextest").args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    let run = run.args(["--test-threads", &threads.to_string()]);
    // Left out by name, so that the runner counts and shows them as skipped.
    let run = match machines {
        Machines::Possible => run,
        Machines::Impossible => run.args(["-E", "not binary(systemd)"]),
    };
    Ok(run.args(profile).args(slow).args(arguments.filter.as_slice()).env(LOGS, logs))
}
