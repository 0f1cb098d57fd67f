//! `holdfast cluster set-aside`.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum SetAside {
    /// What members' nodes have set aside, newest first
    #[command(
        after_help = "Examples:\n  holdfast cluster set-aside list demo\n  holdfast --output json cluster set-aside list demo"
    )]
    List { cluster: String },
    /// Copy one of these logs to a folder here: it has users' data, so the call is on record
    ///
    /// It is written under another name beside the folder, each part is checked, and it is renamed when it is whole.
    #[command(
        after_help = "PostgreSQL's own pg_waldump, of the same major version, shows what is in it.\n\nExamples:\n  holdfast cluster set-aside fetch demo 20260102T030405.678Z-2\n  holdfast cluster set-aside fetch demo 20260102T030405.678Z-2 --into /srv/old-log --node n1"
    )]
    Fetch {
        cluster: String,
        /// As listed
        id: String,
        /// A folder that is not there yet [default: CLUSTER-ID here]
        #[arg(long, value_name = "FOLDER")]
        into: Option<PathBuf>,
        /// Whose; default: whichever member's node has it
        #[arg(long, default_value = "", value_name = "NODE", hide_default_value = true)]
        node: String,
    },
}
