//! What may be written on the command line, and its help: a module for each noun. Nothing is decided here.

mod access;
mod cluster;
mod context;
mod event;
mod identity;
mod node;
mod operation;
mod set_aside;
#[cfg(test)]
mod tests;
mod values;

pub(crate) use access::{Access, AccessMode, Entries};
pub(crate) use cluster::{Cluster, Durability, Engine, LeaseProfile, OnReplicaLoss, ResyncMode};
pub(crate) use context::Context;
pub(crate) use event::{Event, EventFilter, Severity};
pub(crate) use identity::{Operator, Role, Token};
pub(crate) use node::{JoinToken, Node, Schedule, Times};
pub(crate) use operation::Operation;
pub(crate) use set_aside::SetAside;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::values::duration;

/// Exit codes, at the end of `holdfast --help`.
const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  failed; the message says why
  2  the command line or a value in it is wrong
  3  what is named does not exist
  4  refused: a precondition does not hold, it exists already, or it was not confirmed
  5  the coordinator cannot be reached or cannot serve now; trying again may help
  6  not permitted, or no valid identity
  7  the operation goes on, but is no longer watched (Ctrl-C)

Start here:
  holdfast node token create --uses 3
  holdfast node list
  holdfast cluster create demo --engine postgresql --nodes n1,n2,n3 --durability quorum
  holdfast cluster show demo";

/// Runs replicated databases on plain machines.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about, after_help = AFTER_HELP, disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Context file: which coordinator, and as whom. Default: ~/.config/holdfast/config.toml
    #[arg(
        long,
        global = true,
        env = "HOLDFAST_CONFIG",
        hide_env_values = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    pub(crate) config: Option<PathBuf>,
    /// The context to use in that file. Default: its `current`
    #[arg(
        long,
        global = true,
        env = "HOLDFAST_CONTEXT",
        hide_env_values = true,
        value_name = "NAME",
        help_heading = "Global options"
    )]
    pub(crate) context: Option<String>,
    /// How to print
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table, help_heading = "Global options")]
    pub(crate) output: Format,
    /// How long one answer may take
    #[arg(long, global = true, value_parser = duration, default_value = "30s", value_name = "TIME", help_heading = "Global options")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// A table with more columns
    Wide,
    /// For programs: names in snake_case with units, unknown values null
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The machines of the fleet
    #[command(subcommand)]
    Node(Node),
    /// Replicated databases
    #[command(subcommand)]
    Cluster(Cluster),
    /// Who may reach a cluster, by address
    #[command(subcommand)]
    Access(Access),
    /// Changes that take time
    #[command(subcommand)]
    Operation(Operation),
    /// What happened
    #[command(subcommand)]
    Event(Event),
    /// Who may use this fleet
    #[command(subcommand)]
    Operator(Operator),
    /// Access tokens: for programs that have no certificate
    #[command(subcommand)]
    Token(Token),
    /// Who am I, and on which coordinator
    #[command(after_help = "Example:\n  holdfast whoami")]
    Whoami,
    /// The coordinators in the context file
    #[command(subcommand)]
    Context(Context),
    /// A script that completes commands in a shell
    #[command(after_help = "Example:\n  holdfast completion bash > /etc/bash_completion.d/holdfast")]
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// The manual page, in roff
    #[command(hide = true)]
    Man,
}

/// A change that takes time.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) plan: PlanFlag,
    /// Print the operation's id and do not wait for its end
    #[arg(long, conflicts_with = "plan")]
    pub(crate) detach: bool,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct PlanFlag {
    /// Only say what would be done, and what stands in its way; changes nothing
    #[arg(long)]
    pub(crate) plan: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Confirm {
    /// The name of what is destroyed, once more; without it you are asked for it
    #[arg(long, value_name = "NAME")]
    pub(crate) confirm: Option<String>,
}
