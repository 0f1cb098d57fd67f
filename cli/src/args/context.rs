//! `holdfast context`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Context {
    /// All contexts in the file
    #[command(after_help = "Example:\n  holdfast context list")]
    List,
    /// From now on use this one
    #[command(after_help = "Example:\n  holdfast context use production")]
    Use { name: String },
    /// One context, without its key
    #[command(after_help = "Example:\n  holdfast context show production")]
    Show {
        /// Default: the one in use
        name: Option<String>,
    },
}
