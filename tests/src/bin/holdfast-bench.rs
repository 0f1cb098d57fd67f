//! Runs benchmarks and writes their reports down; started by `cargo xtask bench` in a release build.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    holdfast_tests::exit(holdfast_tests::bench::bench_main(&arguments))
}
