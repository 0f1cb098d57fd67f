//! `holdfast access`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::PlanFlag;
use super::values::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum Access {
    /// Who may reach a cluster, how that stands on each member, and what came in and was refused
    #[command(
        after_help = "Examples:\n  holdfast access show demo\n  holdfast --output json access show demo"
    )]
    Show {
        cluster: String,
        /// The entries that are on trial, instead of those that are kept
        #[arg(long)]
        trial: bool,
    },
    /// Replace all rules: with these addresses and networks, or with `--mode closed` or `--mode open`
    #[command(
        after_help = "Examples:\n  holdfast access set demo 203.0.113.7 10.0.0.0/8 2001:db8::/32 --comment office\n  holdfast access set demo --file networks.txt --confirm-within 60s\n  holdfast access set demo --mode closed\nA file has one address or network a line, in UTF-8; after # is its comment. Members and the coordinator always get in."
    )]
    Set {
        cluster: String,
        #[command(flatten)]
        entries: Entries,
        /// Who gets in; default: restricted to the addresses given
        #[arg(long, value_enum)]
        mode: Option<AccessMode>,
        /// Let the members' kernels log some of the refused packets
        #[arg(long)]
        log_refused: bool,
        /// On trial: unless confirmed within this time, every node goes back by itself; 5s to 1h
        #[arg(long, value_parser = duration, value_name = "TIME")]
        confirm_within: Option<Duration>,
        #[command(flatten)]
        plan: PlanFlag,
    },
    /// Let more addresses or networks in
    #[command(
        after_help = "Examples:\n  holdfast access add demo 198.51.100.0/24 --comment 'second office'\n  holdfast access add demo --file more.txt"
    )]
    Add {
        cluster: String,
        #[command(flatten)]
        entries: Entries,
        /// On trial: unless confirmed within this time, every node goes back by itself; 5s to 1h
        #[arg(long, value_parser = duration, value_name = "TIME")]
        confirm_within: Option<Duration>,
        #[command(flatten)]
        plan: PlanFlag,
    },
    /// Take addresses or networks off the list: their open connections are cut
    #[command(after_help = "Example:\n  holdfast access remove demo 198.51.100.0/24")]
    Remove {
        cluster: String,
        /// As they are in the list, however spelt
        #[arg(value_name = "CIDR")]
        cidrs: Vec<String>,
        /// File with one address or network a line; - is standard input
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// On trial: unless confirmed within this time, every node goes back by itself; 5s to 1h
        #[arg(long, value_parser = duration, value_name = "TIME")]
        confirm_within: Option<Duration>,
        #[command(flatten)]
        plan: PlanFlag,
    },
    /// Keep the rules that are on trial
    #[command(
        after_help = "Examples:\n  holdfast access confirm demo\n  holdfast access confirm demo --revert"
    )]
    Confirm {
        cluster: String,
        /// Only this trial; default: the one that is under way
        #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
        trial: String,
        /// Take them back now, instead of keeping them
        #[arg(long)]
        revert: bool,
    },
}

/// Addresses and networks, from arguments and a file.
#[derive(Debug, Clone, Args)]
pub(crate) struct Entries {
    /// Addresses and networks, IPv4 and IPv6
    #[arg(value_name = "CIDR")]
    pub(crate) cidrs: Vec<String>,
    /// File with one address or network a line, after # a comment; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// What they are, for all that have no comment of their own
    #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    pub(crate) comment: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccessMode {
    /// Nobody but the members and the coordinator
    Closed,
    /// The addresses and networks given
    Restricted,
    /// Everybody
    Open,
}
