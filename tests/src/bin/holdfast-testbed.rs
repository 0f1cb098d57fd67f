//! The testbed's own processes, and the demo.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    holdfast_tests::exit(holdfast_tests::testbed_main(&arguments))
}
