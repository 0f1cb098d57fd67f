//! `cargo xtask test`: what CI runs, in the same order, with the test runner's own summary as the last output.

use anyhow::Context as _;

use crate::machine::{self, Need};
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

/// What runs the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runner {
    Nextest,
    Cargo,
}

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
    cargo(&["build", "--workspace", "--all-targets"]).run()?;
    if arguments.filter.is_none() {
        // Before the others, so that the summary of those comes last.
        say::step("documentation tests");
        cargo(&["test", "--workspace", "--doc", "--quiet"]).run()?;
    }
    say::step("tests");
    let runner = runner()?;
    Ok(if tests(runner, arguments)?.succeeds()? { Verdict::Good } else { Verdict::Bad })
}

/// All that is checked without running anything.
fn checks() -> Vec<(&'static str, Program)> {
    let mut checks = vec![
        ("format", cargo(&["fmt", "--all", "--check"])),
        ("lint", cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
        (
            "documentation",
            cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"])
                .env("RUSTDOCFLAGS", "-D warnings"),
        ),
        ("protocol", Program::new(tools::folder().join("buf")).arg("lint").folder(source().join("proto"))),
    ];
    // Its advisories come from the network; what is checked here needs none.
    if machine::on_path("cargo-deny") {
        let deny = ["deny", "--offline", "--log-level", "error", "check", "bans", "licenses", "sources"];
        checks.push(("dependencies", cargo(&deny)));
    } else {
        say::note(
            "cargo-deny is not installed: dependencies are not checked (cargo install --locked cargo-deny)",
        );
    }
    checks
}

fn tests(runner: Runner, arguments: &Arguments) -> anyhow::Result<Program> {
    let logs = source().join("target/testbed-logs");
    match std::fs::remove_dir_all(&logs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("remove old logs");
        }
        _ => {}
    }
    let filter = arguments.filter.as_slice();
    let program = match runner {
        Runner::Nextest => {
            let slow = if arguments.slow { ["--run-ignored", "all"].as_slice() } else { &[] };
            cargo(&["nextest", "run", "--workspace", "--no-fail-fast"]).args(slow).args(filter)
        }
        Runner::Cargo => {
            let slow = if arguments.slow { ["--", "--include-ignored"].as_slice() } else { &[] };
            cargo(&["test", "--workspace", "--all-targets", "--no-fail-fast"]).args(filter).args(slow)
        }
    };
    Ok(program.env(LOGS, logs))
}

/// nextest, installed if it is missing: with a process for each test, a test that hangs or crashes is only itself.
fn runner() -> anyhow::Result<Runner> {
    if machine::on_path("cargo-nextest") {
        return Ok(Runner::Nextest);
    }
    say::note("cargo-nextest is not installed: building it, which takes some minutes, once");
    if cargo(&["install", "--locked", "cargo-nextest", "--version", "0.9.143"]).succeeds()? {
        return Ok(Runner::Nextest);
    }
    say::note("cargo-nextest could not be installed: the tests are run by cargo itself");
    Ok(Runner::Cargo)
}

fn cargo(arguments: &[&str]) -> Program {
    Program::cargo(arguments)
}
