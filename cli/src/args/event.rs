//! `holdfast event`.

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct EventFilter {
    /// Only those of this node
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub(crate) node: String,
    /// Only those of this cluster
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    pub(crate) cluster: String,
    /// Only those at least as severe
    #[arg(long, value_enum, default_value_t = Severity::Info)]
    pub(crate) severity: Severity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Severity {
    Info,
    Warning,
    Error,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Event {
    /// The newest events
    #[command(after_help = "Example:\n  holdfast event list --cluster demo --severity warning")]
    List {
        #[command(flatten)]
        filter: EventFilter,
        /// How many
        #[arg(long, default_value_t = 50, value_name = "COUNT")]
        limit: usize,
    },
    /// Each event as it happens
    #[command(
        after_help = "Examples:\n  holdfast event watch\n  holdfast --output json event watch --after 01890a5d-ac96-774b-bcce-b302099a8057"
    )]
    Watch {
        #[command(flatten)]
        filter: EventFilter,
        /// First those after this event
        #[arg(long, default_value = "", value_name = "ID", hide_default_value = true)]
        after: String,
    },
}
