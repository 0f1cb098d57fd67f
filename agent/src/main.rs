//! The agent's program: arguments, logging, configuration, build, run, exit code; nothing else.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use holdfast_agent::app::{self, state_files};
use holdfast_agent::config::{self, Config, DATA_DIR, STATE_DIR};
use holdfast_agent::identity::{Again, Identity, Join, Joined, join};
use holdfast_agent::link::Coordinators;
use holdfast_agent::link::client::Address;
use holdfast_common::clock::Clock;
use holdfast_common::config::Privacy;
use holdfast_common::name::NodeName;
use holdfast_common::pki::JoinToken;
use holdfast_common::shutdown::Drained;
use holdfast_common::{logging, tls};
use jiff::SignedDuration;
use zeroize::Zeroizing;

const TOKEN_VARIABLE: &str = "HOLDFAST_JOIN_TOKEN";
/// Far more than a token has.
const MAX_TOKEN_BYTES: u64 = 4096;

/// The Holdfast agent: makes this machine a node of a fleet, and runs the databases that the fleet's coordinator assigns.
#[derive(Debug, Parser)]
#[command(name = "holdfast-agent", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes this machine a node. Safe to repeat.
    Join(JoinArguments),
    /// Runs the agent.
    Run(RunArguments),
    /// Loads the firewall for what this node is assigned, with the databases' ports shut, and ends. For boot, before the network.
    Firewall(StateArguments),
    /// Says which node this machine is.
    Status(StateArguments),
}

#[derive(Debug, Args)]
struct JoinArguments {
    /// Where the coordinator listens for agents; several, if it has several addresses.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    coordinator: Vec<Address>,
    /// The join token. Other users of this machine can read it here: prefer --token-file.
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// File with the join token; `-` is standard input. Without it the token is taken from HOLDFAST_JOIN_TOKEN.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    state: StateArguments,
    /// The node's name; the machine's short host name if it is not given.
    #[arg(long)]
    name: Option<NodeName>,
    /// Where other members reach this node; the address towards the coordinator if it is not given.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Where the databases will lie.
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
    /// Get a new certificate though the present one has not ended. Needs a token made with `holdfast node token create --rejoin`.
    #[arg(long)]
    again: bool,
    /// How long to go on trying while no coordinator answers, such as `15m`.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = patience)]
    wait: Duration,
}

#[derive(Debug, Args)]
struct RunArguments {
    #[command(flatten)]
    state: OptionalState,
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct StateArguments {
    /// Where the agent keeps its identity and state.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
}

#[derive(Debug, Args)]
struct OptionalState {
    /// Where the agent keeps its identity and state [default: that of the configuration, or /var/lib/holdfast/agent].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    tls::install_provider();
    let arguments = Arguments::parse();
    // Small: one thread does all that does not block. Idle, it costs next to nothing.
    let runtime =
        match tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(16).build() {
            Ok(runtime) => runtime,
            Err(error) => return failed(&error.into()),
        };
    let ended = runtime.block_on(async {
        match arguments.command {
            Command::Join(arguments) => Box::pin(run_join(arguments)).await,
            Command::Run(arguments) => Box::pin(run_agent(arguments)).await,
            Command::Firewall(arguments) => Box::pin(run_firewall(&arguments.state_dir)).await,
            Command::Status(arguments) => run_status(&arguments.state_dir).await,
        }
    });
    // A thread that hangs on a broken disk must not keep the process.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| failed(&error))
}

async fn run_join(arguments: JoinArguments) -> anyhow::Result<ExitCode> {
    start_logging(&logging::Settings::default())?;
    let JoinArguments { coordinator, token, token_file, state, name, address, data_dir, again, wait } =
        arguments;
    config::absolute("--data-dir", &data_dir)?;
    config::absolute("--state-dir", &state.state_dir)?;
    let token = read_token(token, token_file.as_deref())?;
    let token: JoinToken = token.trim().parse().context("the join token")?;
    let name = match name {
        Some(name) => name,
        None => own_name()?,
    };
    let coordinators = Coordinators::new(coordinator).context("--coordinator")?;
    let again = if again { Again::Always } else { Again::IfEnded };
    let wanted = Join { token, coordinators, name: name.clone(), address, data_dir, again, patience: wait };
    let files = state_files(&state.state_dir);
    let joined = join(&files, &state.state_dir, &Clock::system(), wanted).await?;
    say(&match joined {
        Joined::Now { fleet, node } => format!("joined fleet {fleet} as node `{name}` ({node})"),
        Joined::Back { fleet, node } => format!(
            "node `{name}` ({node}) of fleet {fleet} has a new certificate; restart the agent if it runs"
        ),
        Joined::Already { fleet, node } => {
            format!("already node `{name}` ({node}) of fleet {fleet}; nothing was changed")
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn run_agent(arguments: RunArguments) -> anyhow::Result<ExitCode> {
    let config = Config::load(arguments.config.as_deref())?;
    start_logging(&config.log)?;
    let state =
        arguments.state.state_dir.or_else(|| config.state_dir.clone()).unwrap_or_else(|| STATE_DIR.into());
    config::absolute("--state-dir", &state)?;
    let app = config.build(&state).await?;
    let Drained { unfinished, panicked } = app.run().await?;
    if !unfinished.is_empty() {
        tracing::warn!(?unfinished, "parts did not end within {} s and were dropped", app::GRACE.as_secs());
    }
    if panicked.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        bail!("ended because of a defect in: {}", panicked.join(", "))
    }
}

async fn run_firewall(state: &Path) -> anyhow::Result<ExitCode> {
    start_logging(&logging::Settings::default())?;
    config::absolute("--state-dir", state)?;
    app::load_firewall(state).await?;
    Ok(ExitCode::SUCCESS)
}

async fn run_status(state: &Path) -> anyhow::Result<ExitCode> {
    config::absolute("--state-dir", state)?;
    let identity = Identity::open(state_files(state), state).await?;
    let record = identity.record();
    let coordinators: Vec<&str> = record.coordinators.iter().map(Address::as_str).collect();
    say(&format!(
        "node         {} ({})\nfleet        {}\naddress      {}\ncoordinators {}\ndata         {}\ncertificate  until {}",
        record.name,
        record.node_id,
        record.fleet_id,
        record.address,
        coordinators.join(", "),
        record.data_dir.display(),
        record.not_after,
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// From the argument, the file, or the environment; never from two of them.
fn read_token(argument: Option<String>, file: Option<&Path>) -> anyhow::Result<Zeroizing<String>> {
    if let Some(token) = argument {
        tracing::warn!(
            "the token was visible to other users of this machine in the process list; prefer --token-file"
        );
        return Ok(Zeroizing::new(token));
    }
    match file {
        Some(path) if path == Path::new("-") => {
            if std::io::stdin().is_terminal() {
                tracing::info!("reading the join token from standard input");
            }
            let mut text = Zeroizing::new(String::new());
            std::io::stdin()
                .take(MAX_TOKEN_BYTES)
                .read_to_string(&mut text)
                .context("read the join token")?;
            Ok(text)
        }
        Some(path) => holdfast_common::config::read(path, Privacy::Private).context("read the join token"),
        None => match std::env::var(TOKEN_VARIABLE) {
            Ok(token) => Ok(Zeroizing::new(token)),
            Err(_) => bail!("no join token: give --token-file FILE, or set {TOKEN_VARIABLE}"),
        },
    }
}

fn patience(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|parsed| Duration::try_from(parsed).ok());
    parsed.ok_or_else(|| "give a time such as 90s or 15m".to_owned())
}

fn own_name() -> anyhow::Result<NodeName> {
    let host = nix::unistd::gethostname().context("read the host name; give --name")?;
    let host = host.to_string_lossy().to_lowercase();
    let short = host.split('.').next().unwrap_or_default();
    short.parse().with_context(|| format!("the host name `{short}` is no node name; give --name"))
}

fn start_logging(settings: &logging::Settings) -> anyhow::Result<()> {
    let filter = std::env::var(logging::FILTER_VARIABLE).ok();
    Ok(logging::init(settings, filter.as_deref())?)
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("write to standard output")
}

fn failed(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain() {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
    }
    // Nowhere else to tell it.
    let _untold = writeln!(std::io::stderr(), "holdfast-agent: {text}");
    ExitCode::FAILURE
}
