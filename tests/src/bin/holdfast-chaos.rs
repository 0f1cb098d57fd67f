//! Faults in random order on a real cluster; started by `cargo xtask chaos`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    holdfast_tests::exit(holdfast_tests::chaos::chaos_main(&arguments))
}
