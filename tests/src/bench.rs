//! The benchmarks that `cargo xtask bench` runs.
