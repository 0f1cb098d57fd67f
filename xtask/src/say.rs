//! Lines for people, on standard error: standard output is for what was asked for.

use std::fmt::Display;
use std::io::Write as _;

/// What is being done now.
pub(crate) fn step(what: impl Display) {
    line(format_args!("==> {what}"));
}

/// Why it all ended.
pub(crate) fn failure(error: &anyhow::Error) {
    line(format_args!("error: {error:#}"));
}

fn line(what: impl Display) {
    // Without anybody to read it there is nobody to miss it.
    writeln!(std::io::stderr(), "{what}").ok();
}
