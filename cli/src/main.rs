//! `holdfast`: the command line of Holdfast. Reads arguments, calls the coordinator, prints.
//!
//! | module | answers for |
//! | --- | --- |
//! | [`args`], [`usage`] | what may be written on the command line, and its help; what is wrong with one |
//! | [`client`] | calls to the coordinator: connection, deadlines, repeats |
//! | [`commands`] | one module for each noun |
//! | [`output`], [`error`] | tables, JSON; failures and exit codes |

mod args;
mod client;
mod commands;
mod error;
mod output;
#[cfg(test)]
mod tests;
mod usage;

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::process;

use clap::Parser as _;

use crate::args::{Cli, Format};
use crate::commands::Session;
use crate::error::{Error, ExitCode};
use crate::output::Output;

fn main() -> process::ExitCode {
    holdfast_common::tls::install_provider();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::tell(&error, env::args_os()),
    };
    let format = cli.global.output;
    let result = run(cli);
    let code = match &result {
        Ok(()) => ExitCode::Done,
        Err(error) => error.exit_code(),
    };
    if let Err(error) = result
        && code != ExitCode::Done
    {
        tell(&error, format);
    }
    process::ExitCode::from(code as u8)
}

fn run(cli: Cli) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::local("start", error))?;
    let mut session =
        Session::new(cli.global, Output::to_stdout, io::stdin().is_terminal() && io::stderr().is_terminal());
    session.token = env::var("HOLDFAST_TOKEN").ok().filter(|token| !token.trim().is_empty()).map(Into::into);
    let result = runtime.block_on(commands::run(&mut session, cli.command));
    // Whatever still waits (a name that is being looked up) does not hold up the end.
    runtime.shutdown_background();
    result
}

fn tell(error: &Error, format: Format) {
    let text = if format == Format::Json { format!("{:#}", error.to_json()) } else { error.to_text() };
    // If even that cannot be written, the exit code still tells.
    let _ = writeln!(io::stderr(), "{text}");
}
