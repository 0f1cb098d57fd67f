//! What may be written on the command line, and its help. Nothing is decided here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

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

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// All nodes: availability, load, clusters
    #[command(after_help = "Examples:\n  holdfast node list\n  holdfast --output json node list")]
    List,
    /// One node: what it is, what it does
    #[command(after_help = "Example:\n  holdfast node show n1")]
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
        /// A parameter of the engine; may be given more than once
        #[arg(long, value_parser = parameter, value_name = "KEY=VALUE", action = ArgAction::Append)]
        param: Vec<(String, String)>,
        /// An extension to install; may be given more than once
        #[arg(long, value_name = "NAME", action = ArgAction::Append)]
        extension: Vec<String>,
        /// Also on nodes that cannot filter: everybody who reaches their port reaches the database's login
        #[arg(long)]
        allow_unfiltered: bool,
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
        after_help = "Examples:\n  holdfast access set demo 203.0.113.7 10.0.0.0/8 2001:db8::/32 --comment office\n  holdfast access set demo --file networks.txt --confirm-within 60s\n  holdfast access set demo --mode closed\nA file has one address or network a line; after # is its comment. Members and the coordinator always get in."
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

/// More than any time that is asked for; gRPC has a limit of its own, beyond which it ends the program.
const MAX_SECONDS: u64 = 10 * 366 * 86_400 + 1;

/// `90s`, `15m`, `1h30m`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    const WANTED: &str = "give a time such as 90s, 15m, 1h30m or 7d";
    let mut total = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or(WANTED)?;
        let number: u64 = rest[..end].parse().map_err(|_| WANTED)?;
        let unit_end = rest[end..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| end + at);
        let unit = match &rest[end..unit_end] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 604_800,
            _ => return Err(WANTED.to_owned()),
        };
        total =
            number.checked_mul(unit).and_then(|seconds| total.checked_add(seconds)).ok_or("is too long")?;
        rest = &rest[unit_end..];
    }
    match total {
        0 => Err(WANTED.to_owned()),
        MAX_SECONDS.. => Err("is too long: at most ten years".to_owned()),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

fn parameter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("give KEY=VALUE, such as max_connections=300".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_read_or_refused() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("2w"), Ok(Duration::from_secs(1_209_600)));
        assert_eq!(duration("3650d"), Ok(Duration::from_secs(3650 * 86_400)));
        let long = ["9999999d", "99999999999999999999s", "18446744073709551615w"];
        for bad in ["", "0s", "5", "h", "5x", "-5s", "5 m"].into_iter().chain(long) {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_create_is_read_as_the_demo_writes_it() {
        let cli = Cli::try_parse_from([
            "holdfast",
            "cluster",
            "create",
            "demo",
            "--engine",
            "postgresql",
            "--nodes",
            "n1,n2,n3",
            "--durability",
            "quorum",
            "--param",
            "a=b=c",
            "--param",
            "d=",
            "--extension",
            "x",
            "--detach",
            "--output",
            "json",
        ])
        .unwrap();
        let Command::Cluster(Cluster::Create { name, nodes, param, durability, run, .. }) = cli.command
        else {
            panic!()
        };
        assert_eq!((name.as_str(), nodes.len(), durability), ("demo", 3, Durability::Quorum));
        assert_eq!(param, [("a".into(), "b=c".into()), ("d".into(), String::new())]);
        assert!(run.detach && !run.plan.plan);
        assert_eq!(cli.global.output, Format::Json);
    }

    #[test]
    fn every_command_has_an_example_in_its_help() {
        fn check(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} says what it does");
                if sub.has_subcommands() {
                    check(sub, &path);
                } else {
                    let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(help.contains("Example") && help.contains(path.trim_start()), "{path}: {help}");
                }
            }
        }
        check(&Cli::command(), "holdfast");
    }

    #[test]
    fn the_help_changes_only_on_purpose() {
        fn collect(command: &mut clap::Command, text: &mut String) {
            let name = command.get_bin_name().unwrap_or("holdfast").to_owned();
            text.push_str(&format!("$ {name} --help\n{}\n", command.render_long_help()));
            for sub in command.get_subcommands_mut().filter(|sub| !sub.is_hide_set()) {
                collect(sub, text);
            }
        }
        let mut text = String::new();
        let mut command = Cli::command().term_width(100);
        command.build();
        collect(&mut command, &mut text);
        insta::assert_snapshot!(text);
    }
}
