//! The testbed's own processes: pid 1 of a host, and the one that cleans up after a run.

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    holdfast_tests::testbed_main(&arguments)
}
