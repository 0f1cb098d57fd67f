//! What people and CI both run: `cargo xtask demo | test | bench | chaos | package`.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`check`] | formatting, lints, documentation, build, tests: all that CI runs |
//! | [`machine`] | what must be installed here, and installing it |
//! | [`package`] | Debian packages of the programs |
//! | [`tools`] | pinned programs for the interoperability tests |
//! | [`process`], [`say`] | the door to programs; lines for people |
//!
//! xtask itself only prepares and builds. The demo and the benchmarks are programs of the tests crate, on the same
//! testbed as the tests.

mod check;
mod machine;
mod package;
mod process;
mod say;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::machine::Need;
use crate::process::Program;

/// Everything about Holdfast's own source tree in one command.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start some nodes and a PostgreSQL cluster on this machine, or end them.
    Demo {
        /// End the demo and remove every trace of it.
        #[arg(long)]
        down: bool,
        /// Print one JSON object about the demo as the last output.
        #[arg(long)]
        json: bool,
        /// How many nodes.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
    },
    /// Run what CI runs: formatting, lints, documentation, build, and all tests.
    Test(check::Arguments),
    /// Run benchmarks and write their tables to docs/BENCHMARKS.md.
    Bench {
        /// Only this one; `list` lists them.
        name: Option<String>,
    },
    /// Break a cluster in every way, in random order, and see that it keeps its promises.
    Chaos {
        /// For how long.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// The same faults in the same order for the same number; by chance if it is not given.
        #[arg(long)]
        seed: Option<u64>,
        /// When a commit is acknowledged: `quorum` or `async`.
        #[arg(long, default_value = "quorum")]
        durability: String,
        /// Of the leases: `default`, `fast` or `wide`; faults last up to nearly three leases.
        #[arg(long, default_value = "default")]
        lease_profile: String,
    },
    /// Make Debian packages of the programs, in target/packages.
    Package(package::Arguments),
}

/// Whether all went well; what did not has been said already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Bad,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Demo { down, json, nodes } => demo(down, json, nodes),
        Verb::Test(arguments) => check::run(&arguments),
        Verb::Bench { name } => bench(name.as_deref()),
        Verb::Chaos { minutes, seed, durability, lease_profile } => {
            chaos(minutes, seed, &durability, &lease_profile)
        }
        Verb::Package(arguments) => package::run(&arguments).map(|()| Verdict::Good),
    };
    match outcome {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::FAILURE,
        Err(error) => {
            say::failure(&error);
            ExitCode::FAILURE
        }
    }
}

/// Not optimised: the demo then shares its build with the tests, and the dependencies are optimised either way.
fn demo(down: bool, json: bool, nodes: u8) -> anyhow::Result<Verdict> {
    if !down {
        machine::prepare(Need::Hosts)?;
    }
    say::step("building, which takes some minutes the first time");
    build(&[]).run()?;
    let demo = Program::new(source().join("target/debug/holdfast-testbed")).arg("demo");
    if down {
        return Err(demo.arg("down").become_it());
    }
    let demo = demo.arg("up").arg(nodes.to_string());
    Err(if json { demo.arg("json") } else { demo }.become_it())
}

fn bench(name: Option<&str>) -> anyhow::Result<Verdict> {
    machine::prepare(Need::Benchmarks)?;
    say::step("building with optimisation, which takes some minutes the first time");
    build(&["--release"]).run()?;
    let bench = Program::new(source().join("target/release/holdfast-bench"));
    Err(bench.arg(source().join("docs/BENCHMARKS.md")).args(name).become_it())
}

fn chaos(minutes: u64, seed: Option<u64>, durability: &str, profile: &str) -> anyhow::Result<Verdict> {
    machine::prepare(Need::Hosts)?;
    say::step("building, which takes some minutes the first time");
    build(&[]).run()?;
    let chaos = Program::new(source().join("target/debug/holdfast-chaos"));
    let seed = seed.map(|seed| seed.to_string());
    Err(chaos.arg(durability).arg(minutes.to_string()).arg(profile).args(seed).become_it())
}

/// Of all programs. Cargo shows how far it is, on standard error.
fn build(how: &[&str]) -> Program {
    Program::cargo(["build", "--workspace", "--bins"]).args(how)
}

/// The top of the source tree.
fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_not_silent() {
        for how in [&[][..], &["--release"]] {
            let said = build(how).to_string();
            assert!(!said.contains("quiet") && !said.contains(" -q"), "{said}");
        }
    }
}
