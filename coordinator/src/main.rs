//! The coordinator's program: arguments, logging, configuration, build, run, exit code.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use holdfast_common::error::Chain;
use holdfast_common::shutdown::Tasks;
use holdfast_common::{logging, tls};
use holdfast_coordinator::app::{App, Sockets};
use holdfast_coordinator::config::{Config, Endpoint, StateDir};
use holdfast_coordinator::init;

/// Knows the fleet, decides, and streams work to the agents.
#[derive(Debug, Parser)]
#[command(name = "holdfast-coordinator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the state directory of a new fleet, and the first operator's context file.
    Init(Init),
    /// Serve the fleet.
    Run(Run),
}

#[derive(Debug, Args)]
struct Init {
    /// Where the state is to be kept; must not exist, or be empty.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Where operators connect, such as `0.0.0.0:7443`.
    #[arg(long, value_name = "ADDR")]
    operators: SocketAddr,
    /// Where agents connect, such as `0.0.0.0:7444`.
    #[arg(long, value_name = "ADDR")]
    agents: SocketAddr,
    /// Where agents reach the coordinator from elsewhere; may be given several times.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<Endpoint>,
    /// The first operator's context file, which `holdfast` reads.
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG")]
    context_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Run {
    /// What `init` has made.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
}

fn main() -> ExitCode {
    tls::install_provider();
    let done = match Arguments::parse().command {
        Command::Init(init) => make(init),
        Command::Run(run) => serve(run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", Chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn make(arguments: Init) -> anyhow::Result<()> {
    let Init { state_dir, operators, agents, advertise, context_file } = arguments;
    let context_file = match context_file {
        Some(file) => file,
        None => usual_context_file().context("no --context-file is given, and HOME is not set")?,
    };
    let options =
        init::Options { state: StateDir::new(&state_dir), operators, agents, advertise, context_file };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let made = runtime.block_on(init::init(&options))?;
    let mut out = io::stdout().lock();
    writeln!(out, "fleet {}", made.fleet)?;
    writeln!(out, "state in {}", state_dir.display())?;
    writeln!(out, "operator `{}` in {}", made.operator, made.context_file.display())?;
    writeln!(out, "next: holdfast-coordinator run --state-dir {}", state_dir.display())?;
    Ok(())
}

fn serve(arguments: Run) -> anyhow::Result<()> {
    let state = StateDir::new(arguments.state_dir);
    let config = Config::load(&state)?;
    logging::init(&config.logging, std::env::var(logging::FILTER_VARIABLE).ok().as_deref())?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let sockets = Sockets::open(&config, std::env::var("LISTEN_FDNAMES").ok().as_deref()).await?;
        let tasks = Tasks::new();
        tasks.stop_on_signals().context("listen for signals")?;
        let app = App::build(state, config).await?;
        watchdog(&tasks);
        app.run(sockets, tasks, || notify(sd_notify::NotifyState::Ready)).await?;
        notify(sd_notify::NotifyState::Stopping);
        Ok(())
    })
}

/// Tells the service manager that the runtime still turns.
fn watchdog(tasks: &Tasks) {
    let Some(within) = sd_notify::watchdog_enabled() else { return };
    let stop = tasks.token();
    tasks.spawn("watchdog", async move {
        while !stop.is_cancelled() {
            notify(sd_notify::NotifyState::Watchdog);
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(within / 3) => {}
            }
        }
    });
}

fn notify(state: sd_notify::NotifyState<'_>) {
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(&[state]);
}

/// Where `holdfast` looks too.
fn usual_context_file() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(config.join("holdfast/config.toml"))
}
