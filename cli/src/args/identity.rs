//! `holdfast operator` and `holdfast token`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};

use super::Confirm;
use super::values::duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Reads everything but secrets
    Viewer,
    /// Also changes clusters and nodes
    Operator,
    /// Also tokens and operators
    Admin,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Operator {
    /// A new operator, and a context file with a certificate for them
    #[command(
        after_help = "Example:\n  holdfast operator create alice --role operator --write-config alice.toml"
    )]
    Create {
        name: String,
        #[arg(long, value_enum)]
        role: Role,
        /// How long the certificate is good: 1 hour to 10 years
        #[arg(long, value_parser = duration, value_name = "TIME")]
        ttl: Option<Duration>,
        /// The context file to write; its owner alone can read it. Must not exist
        #[arg(long, value_name = "FILE")]
        write_config: PathBuf,
    },
    /// All operators
    #[command(after_help = "Example:\n  holdfast operator list")]
    List,
    /// Their certificates and access tokens are refused at once
    #[command(after_help = "Example:\n  holdfast operator remove alice --confirm alice")]
    Remove {
        name: String,
        #[command(flatten)]
        confirm: Confirm,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// A new access token for you; it is shown only this once
    #[command(after_help = "Example:\n  HOLDFAST_TOKEN=$(holdfast token create --ttl 1h --description ci)")]
    Create {
        /// How long it is good: 1 minute to 1 year
        #[arg(long, value_parser = duration, default_value = "12h", value_name = "TIME")]
        ttl: Duration,
        /// What it is for
        #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
        description: String,
    },
    /// Access tokens; their secrets are never shown again
    #[command(after_help = "Example:\n  holdfast token list")]
    List,
    /// It is refused from now on
    #[command(after_help = "Example:\n  holdfast token revoke 01890a5d-ac96-774b-bcce-b302099a8057")]
    Revoke { id: String },
}
