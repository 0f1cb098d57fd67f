//! `holdfast operation`.

use std::time::Duration;

use clap::Subcommand;

use super::values::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum Operation {
    /// The newest operations
    #[command(
        after_help = "Examples:\n  holdfast operation list --unfinished\n  holdfast operation list --resource clusters/demo"
    )]
    List {
        /// Only those of this resource
        #[arg(long, default_value = "", value_name = "RESOURCE", hide_default_value = true)]
        resource: String,
        /// Only those that have not ended
        #[arg(long)]
        unfinished: bool,
        /// How many
        #[arg(long, default_value_t = 50, value_name = "COUNT")]
        limit: usize,
    },
    /// One operation and its steps
    #[command(after_help = "Example:\n  holdfast operation show 01890a5d-ac96-774b-bcce-b302099a8057")]
    Show { id: String },
    /// Wait until it has ended; the exit code says how
    #[command(
        after_help = "Example:\n  holdfast operation wait 01890a5d-ac96-774b-bcce-b302099a8057 --for 10m"
    )]
    Wait {
        id: String,
        /// How long to wait in all; --timeout is for a single answer
        #[arg(long = "for", value_parser = duration, default_value = "1h", value_name = "TIME")]
        patience: Duration,
    },
    /// Watch its steps until it has ended
    #[command(after_help = "Example:\n  holdfast operation watch 01890a5d-ac96-774b-bcce-b302099a8057")]
    Watch { id: String },
    /// Ask for a way back; refused past the point of no return
    #[command(after_help = "Example:\n  holdfast operation cancel 01890a5d-ac96-774b-bcce-b302099a8057")]
    Cancel { id: String },
    /// Try a blocked operation's step again, once its cause is gone, and watch it
    #[command(
        after_help = "Example:\n  holdfast operation resume 01890a5d-ac96-774b-bcce-b302099a8057 --detach"
    )]
    Resume {
        id: String,
        /// Do not watch it
        #[arg(long)]
        detach: bool,
    },
}
