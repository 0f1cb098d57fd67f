//! `holdfast node`.

use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::values::{duration, time};
use super::{Confirm, PlanFlag, Run};

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// All nodes: availability, load, clusters
    #[command(
        after_help = "SINCE: as long as this run of the coordinator has seen it so.\n\nExamples:\n  holdfast node list\n  holdfast --output json node list"
    )]
    List,
    /// One node: what it is, what it does
    #[command(
        after_help = "Its state: since this run of the coordinator has seen it so.\n\nExample:\n  holdfast node show n1"
    )]
    Show { name: String },
    /// Processors, memory, disk and network of every node, refreshed in place
    #[command(after_help = "Examples:\n  holdfast node top\n  holdfast node top --once n1 n2")]
    Top {
        /// Only these nodes
        nodes: Vec<String>,
        /// Print one table and end; so it is too when the output is no terminal
        #[arg(long)]
        once: bool,
    },
    /// A line for every change of a node
    #[command(after_help = "Examples:\n  holdfast node watch\n  holdfast --output json node watch n1")]
    Watch {
        /// Only these nodes
        nodes: Vec<String>,
    },
    /// A node's telemetry over time: full resolution for the last hour, minutes for 14 days
    #[command(
        after_help = "Examples:\n  holdfast node metrics n1 --series cpu_busy_fraction,memory_used_bytes --since 1h\n  holdfast --output json node metrics n1 --since 24h --step 5m"
    )]
    Metrics {
        node: String,
        /// Names, separated by commas; default: all
        #[arg(long, value_delimiter = ',', value_name = "NAME")]
        series: Vec<String>,
        /// From how long ago
        #[arg(long, value_parser = duration, default_value = "1h", value_name = "TIME")]
        since: Duration,
        /// Until how long ago; default: now
        #[arg(long, value_parser = duration, value_name = "TIME")]
        until: Option<Duration>,
        /// Distance of the points; default: the finest that is kept
        #[arg(long, value_parser = duration, value_name = "TIME")]
        step: Option<Duration>,
    },
    /// Move the primaries off a node and keep new roles away, until it is undrained
    ///
    /// One cluster after the other, the best other member becomes the primary by a switchover: nothing that was acknowledged is
    /// lost. Replicas on the node stay and go on replicating. A drained node is no target of `cluster promote`, takes no new
    /// members, and a failover chooses it last: only where it alone has everything that was acknowledged.
    #[command(
        after_help = "If it fails or is cancelled, the node stays drained, and what has moved stays moved; repeat it to go on.\n\nExamples:\n  holdfast node drain n1 --plan\n  holdfast node drain n1 --reason 'new disks'\n  holdfast node drain n1 --force"
    )]
    Drain {
        name: String,
        /// Why, for whoever sees it
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Leave primaries that nobody can take over where they are
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        run: Run,
    },
    /// Let a node have new roles again; nothing moves back by itself
    #[command(after_help = "Example:\n  holdfast node undrain n1\n  holdfast cluster promote demo n1")]
    Undrain { name: String },
    /// Have a node's machine shut down and boot again, without its clusters missing it: now, or at set times
    ///
    /// The node is drained first. Once its machine has booted and its members are whole and counted on again, it may get new roles, unless
    /// it was drained before. One node of a cluster at a time: another waits up to a minute for its turn.
    ///
    /// With --schedule or --at it is done by itself at those times, in your name, as `node schedule` shows. A time that cannot be kept,
    /// because another node of the cluster is away or the coordinator was stopped, is tried for an hour; then an event says why not.
    #[command(
        after_help = "Refused where a primary cannot move, or commits of a quorum would wait for replicas, unless --force is given. It can be cancelled\nuntil the machine is told to shut down; a node that does not come back whole stays drained.\n\nExamples:\n  holdfast node reboot n1 --plan\n  holdfast node reboot n1 --reason 'new kernel'\n  holdfast node reboot n1 --force\n  holdfast node reboot n1 --schedule '0 3 * * SUN' --time-zone Europe/Berlin --only-if-needed\n  holdfast node reboot n1 --at 2026-11-29T03:00+01:00"
    )]
    Reboot {
        name: String,
        /// Why, for whoever sees it
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Also where a cluster is not served, or its writes wait, meanwhile
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        times: Times,
        #[command(flatten)]
        run: Run,
    },
    /// The times at which nodes are rebooted by themselves
    #[command(subcommand)]
    Schedule(Schedule),
    /// Take a node out of the fleet: its certificate is refused at once
    #[command(after_help = "Example:\n  holdfast node remove n3 --confirm n3")]
    Remove {
        name: String,
        #[command(flatten)]
        confirm: Confirm,
        #[command(flatten)]
        plan: PlanFlag,
    },
    /// Join tokens: what a new machine needs to become a node
    #[command(subcommand)]
    Token(JoinToken),
    /// User data for cloud-init that makes a new machine this node; it holds a new join token
    #[command(
        after_help = "Examples:\n  holdfast node cloud-init n4 > n4.yaml\n  holdfast node cloud-init n4 --ttl 1h --package-source 'deb [signed-by=/etc/apt/keyrings/own.asc] https://packages.example ./'"
    )]
    CloudInit {
        /// The node's name; nobody else can join with the token
        name: String,
        /// How long the token is good: 1 minute to 30 days; the machine has to boot within it
        #[arg(long, value_parser = duration, default_value = "15m", value_name = "TIME")]
        ttl: Duration,
        /// Where the new machine reaches the coordinator; default: what the coordinator advertises
        #[arg(long, value_delimiter = ',', value_name = "HOST:PORT")]
        coordinator: Vec<String>,
        /// Where the package holdfast-agent is to be had, as a line of apt's; default: where the image looks anyway
        #[arg(long, value_name = "LINE")]
        package_source: Option<String>,
    },
}

/// When a node is rebooted, if not now.
#[derive(Debug, Args)]
pub(crate) struct Times {
    /// Not now, but at all times of a cron expression: minute, hour, day of month, month, day of week; in place of the schedule before
    #[arg(long, group = "times", value_name = "CRON", conflicts_with = "detach")]
    pub(crate) schedule: Option<String>,
    /// Not now, but once, at this time with its offset or zone; in place of the schedule before
    #[arg(long, group = "times", value_parser = time, value_name = "TIME", conflicts_with = "detach")]
    pub(crate) at: Option<Timestamp>,
    /// By whose clocks the expression is meant, such as Europe/Berlin; default: UTC
    #[arg(long, requires = "schedule", value_name = "ZONE")]
    pub(crate) time_zone: Option<String>,
    /// At those times only where installed packages wait for a boot (/run/reboot-required)
    #[arg(long, requires = "times")]
    pub(crate) only_if_needed: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schedule {
    /// All of them: when, when next, what became of the last time
    #[command(
        after_help = "Set one with: holdfast node reboot NODE --schedule CRON\n\nExamples:\n  holdfast node schedule list\n  holdfast --output json node schedule list"
    )]
    List,
    /// That of one node
    #[command(after_help = "Example:\n  holdfast node schedule show n1")]
    Show { name: String },
    /// Reboot a node by itself no more; a reboot that has begun goes on
    #[command(after_help = "Example:\n  holdfast node schedule remove n1")]
    Remove { name: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum JoinToken {
    /// A new token; it is shown only this once
    #[command(
        after_help = "Examples:\n  holdfast node token create --uses 3 --ttl 1h\n  holdfast node token create --node n1 --description 'rack 4'\n  holdfast node token create --rejoin n1\nOn the new machine:\n  holdfast-agent join --coordinator ADDRESS --token-file FILE"
    )]
    Create {
        /// How long it is good: 1 minute to 30 days
        #[arg(long, value_parser = duration, default_value = "15m", value_name = "TIME")]
        ttl: Duration,
        /// How many nodes may join with it: 1 to 1,000
        #[arg(long, default_value_t = 1, value_name = "COUNT")]
        uses: u32,
        /// What it is for
        #[arg(long, default_value = "", value_name = "TEXT", hide_default_value = true)]
        description: String,
        /// Only a node of this name may use it
        #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
        node: String,
        /// This node, which is in the fleet already, gets a new certificate with it: its own has ended or was lost
        #[arg(long, value_name = "NAME", conflicts_with_all = ["node", "uses"])]
        rejoin: Option<String>,
    },
    /// All join tokens; their secrets are never shown again
    #[command(after_help = "Example:\n  holdfast node token list")]
    List,
    /// Nobody joins with it any more
    #[command(after_help = "Example:\n  holdfast node token revoke 01890a5d-ac96-774b-bcce-b302099a8057")]
    Revoke { id: String },
}
