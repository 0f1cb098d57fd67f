//! `holdfast cluster`.

use clap::{ArgAction, Subcommand, ValueEnum};

use super::values::{parameter, size};
use super::{Confirm, PlanFlag, Run, SetAside};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    Postgresql,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durability {
    /// A commit counts once the primary has it; a failover may lose the last instants
    Async,
    /// A commit counts once half of the members besides the primary (rounded down) have it too
    Quorum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LeaseProfile {
    /// A lease of 5 s, renewed every second
    Default,
    /// Half of that, for machines in one place
    Fast,
    /// Four times that, for machines far apart
    Wide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResyncMode {
    /// Whatever is the least: to follow, to rewind, to copy
    Auto,
    /// Never a copy
    Rewind,
    /// Always a copy
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnReplicaLoss {
    /// After 10 s the quorum counts on the others alone; with the replica's return on it again
    Shrink,
    /// Writes wait until it is back, where the others are too few
    Block,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// A new cluster: one primary, the other nodes replicas
    #[command(
        after_help = "Examples:\n  holdfast cluster create demo --engine postgresql --nodes n1,n2,n3 --durability quorum\n  holdfast cluster create demo --engine postgresql --nodes n1,n2 --primary n2 --port 5433 \\\n      --param max_connections=300 --extension pg_stat_statements\n  holdfast cluster create demo --engine postgresql --nodes n1,n2,n3 --plan"
    )]
    Create {
        /// 1–40 characters of a–z, 0–9 and -
        name: String,
        #[arg(long, value_enum)]
        engine: Engine,
        /// Major version, such as 15; default: the newest that all nodes can run
        #[arg(long, default_value = "", value_name = "VERSION", hide_default_value = true)]
        engine_version: String,
        /// Node names, separated by commas
        #[arg(long, value_delimiter = ',', required = true, value_name = "NODE")]
        nodes: Vec<String>,
        /// One of the nodes; default: the first
        #[arg(long, default_value = "", value_name = "NODE", hide_default_value = true)]
        primary: String,
        /// When a commit is acknowledged
        #[arg(long, value_enum, default_value_t = Durability::Async)]
        durability: Durability,
        /// 1024–65535; default: the engine's usual port
        #[arg(long, value_name = "PORT")]
        port: Option<u32>,
        /// Where members reach each other to replicate, and nobody else does; default: 10000 above --port, or below it
        #[arg(long, value_name = "PORT", conflicts_with = "allow_unfiltered")]
        replication_port: Option<u32>,
        /// A port of another program on the nodes, such as a pooler, that opens and shuts with --port; may be given more than once
        #[arg(long, value_name = "PORT", action = ArgAction::Append, conflicts_with = "allow_unfiltered")]
        gated_port: Vec<u32>,
        /// A parameter of the engine; may be given more than once
        #[arg(long, value_parser = parameter, value_name = "KEY=VALUE", action = ArgAction::Append)]
        param: Vec<(String, String)>,
        /// An extension to install; may be given more than once
        #[arg(long, value_name = "NAME", action = ArgAction::Append)]
        extension: Vec<String>,
        /// Also on nodes that cannot filter: everybody who reaches their port reaches the database's login
        #[arg(long)]
        allow_unfiltered: bool,
        /// How long a primary that is cut off may serve, and how soon its place could be taken
        #[arg(long, value_enum, default_value_t = LeaseProfile::Default)]
        lease_profile: LeaseProfile,
        #[command(flatten)]
        run: Run,
    },
    /// All clusters
    #[command(after_help = "Example:\n  holdfast cluster list")]
    List,
    /// One cluster: role, state, position and lag of each member
    #[command(
        after_help = "Examples:\n  holdfast cluster show demo\n  holdfast --output json cluster show demo"
    )]
    Show { name: String },
    /// The cluster now and after every change
    #[command(after_help = "Example:\n  holdfast cluster watch demo")]
    Watch { name: String },
    /// Stop a cluster and remove its data on every node
    #[command(
        after_help = "Examples:\n  holdfast cluster delete demo --confirm demo\n  holdfast cluster delete demo --confirm demo --force"
    )]
    Delete {
        name: String,
        #[command(flatten)]
        confirm: Confirm,
        /// Also while a node is offline; its data are removed when it returns
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        run: Run,
    },
    /// Add a replica
    #[command(after_help = "Example:\n  holdfast cluster add-member demo n4")]
    AddMember {
        cluster: String,
        node: String,
        #[command(flatten)]
        run: Run,
    },
    /// Make a replica the primary, without losing anything
    ///
    /// Shows first what must hold, then stops the primary cleanly, has the replica take its place, and makes the old
    /// primary a replica. If the replica cannot take over in time the old primary serves again.
    #[command(
        after_help = "Examples:\n  holdfast cluster promote demo n2 --plan\n  holdfast cluster promote demo n2"
    )]
    Promote {
        cluster: String,
        node: String,
        /// Also where its machine has fewer cores or less memory than the primary's
        #[arg(long)]
        allow_smaller: bool,
        #[command(flatten)]
        run: Run,
    },
    /// Make another member the primary although the present one is gone
    ///
    /// The old primary is fenced if its agent answers; else it is waited until its lease has surely ended. In quorum mode nothing
    /// that was acknowledged is lost; in async mode it is refused if the old primary has more than its replicas, unless that is
    /// accepted. Where too few others are left to prove that the old primary serves no more, it takes somebody who vouches that it is
    /// off.
    #[command(
        after_help = "Examples:\n  holdfast cluster failover demo --plan\n  holdfast cluster failover demo --confirm demo\n  holdfast cluster failover demo --to n2 --accept-data-loss --confirm demo\n  holdfast cluster failover demo --to n3 --old-primary-is-off --accept-data-loss --confirm demo"
    )]
    Failover {
        cluster: String,
        /// Who is to be primary [default: whoever has most of the log]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Also where the old primary has, or may have, acknowledged what nobody else has
        #[arg(long)]
        accept_data_loss: bool,
        /// You vouch that the old primary is powered off, or cut off from all clients and members, and stays so until it has heard of
        /// its successor
        ///
        /// Nothing else keeps it from taking writes beside the new primary. Gone by only where too few of the members that the old primary
        /// counted on can be reached, or `--to` is none of them; the event PRIMARY_VOUCHED_OFF tells that you vouched for it.
        #[arg(long)]
        old_primary_is_off: bool,
        #[command(flatten)]
        confirm: Confirm,
        #[command(flatten)]
        run: Run,
    },
    /// Align replicas' data with the primary's, one replica at a time
    ///
    /// For replicas that cannot follow any more, or whose data are in doubt. Those that cannot follow after a failover are aligned by
    /// themselves. A primary's data are never touched: its node refuses that, whoever asks.
    #[command(
        after_help = "Examples:\n  holdfast cluster resync demo --plan\n  holdfast cluster resync demo --node n2 --confirm demo\n  holdfast cluster resync demo --mode full --confirm demo"
    )]
    Resync {
        cluster: String,
        /// A replica's node; may be given more than once [default: all replicas]
        #[arg(long, value_name = "NODE", action = ArgAction::Append)]
        node: Vec<String>,
        #[arg(long, value_enum, default_value_t = ResyncMode::Auto)]
        mode: ResyncMode,
        /// Remove the old data before the copy is made, where the disk has no room for both
        #[arg(long)]
        in_place: bool,
        #[command(flatten)]
        confirm: Confirm,
        #[command(flatten)]
        run: Run,
    },
    /// Logs that nodes have set aside before they rewound or replaced a member's data
    #[command(subcommand)]
    SetAside(SetAside),
    /// Keep failovers from beginning by themselves, such as while machines are worked on
    #[command(
        after_help = "Examples:\n  holdfast cluster pause demo --reason \"new switches, until 14:00\"\n  holdfast cluster pause demo --plan\n  holdfast cluster resume demo"
    )]
    Pause {
        cluster: String,
        /// Why, for colleagues
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        plan: PlanFlag,
    },
    /// Allow failovers to begin by themselves again
    #[command(
        after_help = "Examples:\n  holdfast cluster resume demo\n  holdfast cluster resume demo --plan"
    )]
    Resume {
        cluster: String,
        #[command(flatten)]
        plan: PlanFlag,
    },
    /// Restart servers: the replicas one after the other, then the primary by a switchover
    ///
    /// Nothing that was acknowledged is lost. Each replica has to receive again before the next is stopped. The old primary stays a
    /// replica; `cluster promote` moves it back. A primary that nobody can take over from, such as one without replicas, is restarted
    /// where it is, if `--force` says that writes may wait.
    #[command(
        after_help = "The plan names the parameters that wait for a restart.\n\nExamples:\n  holdfast cluster restart demo --plan\n  holdfast cluster restart demo\n  holdfast cluster restart demo --node n2 --node n3\n  holdfast cluster restart lone --force"
    )]
    Restart {
        cluster: String,
        /// Only the member on this node; may be given more than once
        #[arg(long, value_name = "NODE", action = ArgAction::Append)]
        node: Vec<String>,
        /// Also where writes wait: too few other replicas receive meanwhile, or nobody can take over from the primary
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        run: Run,
    },
    /// Bring the engine up to the newest minor version that the nodes' package sources have
    ///
    /// Member by member: the packages of the cluster's major version, never another one, then the server, if it runs an older program.
    /// The replicas first, then the primary by a switchover, as in a restart.
    #[command(
        after_help = "The plan says what each member runs, what is installed, and what is on offer.\n\nExamples:\n  holdfast cluster upgrade demo --plan\n  holdfast cluster upgrade demo"
    )]
    Upgrade {
        cluster: String,
        /// Also where writes wait while a replica restarts
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        run: Run,
    },
    /// Change how a cluster behaves
    #[command(
        group = clap::ArgGroup::new("setting").required(true).multiple(true),
        after_help = "Examples:\n  holdfast cluster set demo --parameter work_mem=64MB --parameter max_connections=300 --plan\n  holdfast cluster set demo --reset-parameter work_mem\n  holdfast cluster set demo --durability quorum\n  holdfast cluster set demo --lease-profile fast\n  holdfast cluster set demo --max-lag-on-failover 16MiB\n  holdfast cluster set demo --on-replica-loss block\n  holdfast cluster set demo --retune --plan\nServers are restarted one after the other where a parameter needs it, the primary's in its place; --plan says which do."
    )]
    Set {
        cluster: String,
        /// How much of its log a failover by itself may lose, in durability async [default at first: 1MiB]
        #[arg(long, value_parser = size, value_name = "SIZE", group = "setting")]
        max_lag_on_failover: Option<u64>,
        /// What becomes of a quorum when a replica is lost [default at first: shrink]
        #[arg(long, value_enum, group = "setting")]
        on_replica_loss: Option<OnReplicaLoss>,
        /// A parameter of the engine; may be given more than once
        #[arg(long, visible_alias = "param", value_parser = parameter, value_name = "KEY=VALUE", action = ArgAction::Append, group = "setting")]
        parameter: Vec<(String, String)>,
        /// A parameter that is to be as if nobody had set it; may be given more than once
        #[arg(long, value_name = "KEY", action = ArgAction::Append, group = "setting")]
        reset_parameter: Vec<String>,
        /// When a commit is acknowledged
        #[arg(long, value_enum, group = "setting")]
        durability: Option<Durability>,
        /// How patient leases are: `fast` notices a dead primary sooner, `wide` bears worse networks
        #[arg(long, value_enum, group = "setting")]
        lease_profile: Option<LeaseProfile>,
        /// Decide settings such as shared_buffers anew, for the members' machines as they are now; parameters that were set stay
        #[arg(long, group = "setting")]
        retune: bool,
        /// Also where writes wait while a replica restarts
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        run: Run,
    },
    /// Remove a replica and its data
    #[command(after_help = "Example:\n  holdfast cluster remove-member demo n4 --confirm n4")]
    RemoveMember {
        cluster: String,
        node: String,
        #[command(flatten)]
        confirm: Confirm,
        /// Also while the node is offline; its data are removed when it returns
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        run: Run,
    },
    /// How clients connect; with --reveal-password also the password, once
    #[command(
        after_help = "Examples:\n  holdfast cluster connection demo\n  psql \"$(holdfast cluster connection demo --reveal-password --uri)\""
    )]
    Connection {
        cluster: String,
        /// Show the password; it is shown only once
        #[arg(long)]
        reveal_password: bool,
        /// Print nothing but the URI
        #[arg(long)]
        uri: bool,
    },
    /// Draw a new password and show it; the old one stops working
    #[command(after_help = "Example:\n  holdfast cluster reset-password demo")]
    ResetPassword { cluster: String },
}
