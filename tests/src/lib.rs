//! The testbed: real coordinators and agents on one machine, for tests, benchmarks and the demo.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`run`] | one use of the testbed: its folder, its owner, and that nothing of it stays behind |
//! | [`network`] | a switch, hosts on it, and its faults: cuts, losses, links that go down |
//! | [`host`] | one host: addresses, folders, services, programs run in it; power cut and boot |
//! | [`fault`] | faults of one host: busy processors, a disk that hangs |
//! | [`machine`] | one machine: Debian with systemd, units, packages and cloud-init; reboot and power cut |
//! | [`fleet`] | a coordinator and joined agents on such hosts, and the command line against them |
//! | [`cluster`] | the cluster that tests make on such a fleet, and what to look at |
//! | [`client`] | a client of all members at once that knows what was acknowledged to it, when and by whom |
//! | [`scene`], [`writer`] | a cluster with clients that write all the time, for the tests of leases |
//! | [`stage`] | a cluster with such a client, for the tests of changing roles |
//! | [`chaos`] | faults of every kind in random order, and what must hold after each |
//! | [`unmanaged`] | clusters that Holdfast does not keep, to be compared with |
//! | [`demo`] | the fleet and cluster of `cargo xtask demo` |
//! | [`process`] | the one door to programs, with deadlines |
//! | [`proc`] | what `/proc` knows: identities of processes, namespaces, inner and outer pids |
//! | [`wait`] | conditions with a deadline, in place of sleeping |
//! | [`binaries`] | where the built programs are |
//! | [`mod@bench`] | the benchmarks that `cargo xtask bench` runs |
//!
//! ```text
//!  root network namespace        │ test process, cargo xtask, psql by `ip netns exec`
//!  ──────────────────────────────┼──────────────────────────────────────────────────────
//!  hf<run>-sw   bridge br0 ──┬───┴──────┬──────────────┐            (nothing leaves it)
//!  hf<run>-ctl  coordinator ─┘   hf<run>-n1 agent …  hf<run>-n2 agent …
//! ```
//!
//! As root a host is a network namespace with mounts, processes and a hostname of its own. As an ordinary user it is
//! a process on a loopback address with folders of its own, and faults of the network are refused, never pretended.

pub mod bench;
pub mod binaries;
pub mod chaos;
pub mod client;
pub mod cluster;
pub mod demo;
pub mod fault;
pub mod fleet;
pub mod host;
pub mod machine;
pub mod network;
pub mod proc;
pub mod process;
pub mod run;
pub mod scene;
pub mod stage;
pub mod unmanaged;
pub mod wait;
pub mod writer;

use std::process::ExitCode;

use anyhow::{Context as _, bail};

/// What a program of the testbed exits with when what it is asked for is impossible here, as test programs do that skip.
const IMPOSSIBLE: u8 = 77;

/// What `holdfast-testbed` does: `host-init FILE` is pid 1 of a host, `machine FILE` keeps a machine,
/// `machine-root` makes what machines begin with, `keep FOLDER` cleans up after an owner, `linger`
/// is an owner that waits to be killed (the testbed's own tests do that), and `demo …` is for `cargo xtask demo`.
///
/// # Errors
///
/// When the arguments are none of these, or the deed fails.
pub fn testbed_main(arguments: &[String]) -> anyhow::Result<()> {
    match arguments {
        [verb, file] if verb == "host-init" => host::init::main(file.as_ref()).context("host-init"),
        [verb, file] if verb == "machine" => machine::boot::main(file.as_ref()).context("machine"),
        [verb] if verb == "machine-root" => machine::root::main(),
        [verb, folder] if verb == "keep" => run::keep(folder.as_ref()).context("keep"),
        [verb] if verb == "linger" => run::linger().context("linger"),
        [verb, rest @ ..] if verb == "demo" => demo::main(rest),
        _ => bail!("holdfast-testbed is started by tests and by `cargo xtask demo`, not by people"),
    }
}

/// Says a line of the answer.
fn say(line: &str) {
    use std::io::Write as _;
    // Without anybody to read it there is nobody to miss it.
    writeln!(std::io::stdout(), "{line}").ok();
}

/// How a program of the testbed ends: what went wrong is said in a line.
#[must_use]
pub fn exit(outcome: anyhow::Result<()>) -> ExitCode {
    use std::io::Write as _;
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without anybody to read it there is nobody to miss it.
            if error.is::<machine::Impossible>() {
                writeln!(std::io::stderr(), "{error}").ok();
                return ExitCode::from(IMPOSSIBLE);
            }
            writeln!(std::io::stderr(), "error: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}
