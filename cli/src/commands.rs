//! What each command does: asks, calls, prints. One module for each noun.

mod access;
mod budget;
mod cloud_init;
mod cluster;
mod context;
mod drain;
mod event;
mod follow;
mod identity;
mod lease;
mod members;
mod node;
mod operation;
mod roles;
mod schedule;
mod set_aside;

use std::env;
use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::CommandFactory as _;
use holdfast_common::context::ContextFile;
use holdfast_proto::v1;
use secrecy::SecretString;
use serde_json::json;

use crate::args::{Cli, Command, Confirm, Format, Global};
use crate::client::{Client, Target};
use crate::error::Error;
use crate::output::{self, Output};

/// One run of the program.
pub(crate) struct Session {
    global: Global,
    pub(crate) out: Output,
    /// A person can be asked.
    interactive: bool,
    /// An access token, from the environment: an argument could be read by others.
    pub(crate) token: Option<SecretString>,
    client: Option<Client>,
}

pub(crate) async fn run(session: &mut Session, command: Command) -> Result<(), Error> {
    match command {
        Command::Node(command) => node::run(session, command).await,
        Command::Cluster(command) => cluster::run(session, command).await,
        Command::Access(command) => access::run(session, command).await,
        Command::Operation(command) => operation::run(session, command).await,
        Command::Event(command) => event::run(session, command).await,
        Command::Operator(command) => identity::run_operator(session, command).await,
        Command::Token(command) => identity::run_token(session, command).await,
        Command::Whoami => identity::whoami(session).await,
        Command::Context(command) => context::run(session, command),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "holdfast", &mut script);
            Ok(session.out.raw(&script)?)
        }
        Command::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            Ok(session.out.raw(&page)?)
        }
    }
}

// === impl Session ===

impl Session {
    pub(crate) fn new(global: Global, output: impl FnOnce(Format) -> Output, interactive: bool) -> Self {
        let out = output(global.output);
        Self { global, out, interactive, token: None, client: None }
    }

    /// Where the context file is.
    fn config(&self) -> Result<PathBuf, Error> {
        if let Some(path) = &self.global.config {
            return Ok(path.clone());
        }
        let home = env::var_os("XDG_CONFIG_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let home = home.or_else(|| {
            env::var_os("HOME")
                .filter(|home| !home.is_empty())
                .map(|home| PathBuf::from(home).join(".config"))
        });
        let home =
            home.ok_or_else(|| Error::Usage("neither --config, HOLDFAST_CONFIG nor HOME is set".to_owned()))?;
        Ok(home.join("holdfast/config.toml"))
    }

    fn context_file(&self) -> Result<ContextFile, Error> {
        Ok(ContextFile::load(&self.config()?)?)
    }

    /// The coordinator; connects at the first use.
    async fn client(&mut self) -> Result<Client, Error> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let file = self.context_file()?;
        let target = Target::new(file.context(self.global.context.as_deref())?, self.token.clone())?;
        let client = Client::connect(target, self.global.timeout).await?;
        self.client = Some(client.clone());
        Ok(client)
    }

    /// The name of what is destroyed, given on the command line or typed now.
    fn confirmed(&self, name: &str, confirm: Confirm, deed: &str) -> Result<String, Error> {
        let typed = match confirm.confirm {
            Some(given) => given,
            None if self.interactive => {
                let mut stderr = io::stderr();
                write!(stderr, "This {deed}. Type `{name}` to go on: ")?;
                stderr.flush()?;
                let mut line = String::new();
                io::stdin().read_line(&mut line)?;
                line.trim().to_owned()
            }
            None => return Err(Error::NotConfirmed(format!("this {deed}; say so with --confirm {name}"))),
        };
        if typed == name {
            Ok(typed)
        } else {
            Err(Error::NotConfirmed(format!("`{}` is not `{name}`; nothing was done", output::plain(&typed))))
        }
    }

    /// A note that is no result.
    fn note(&self, text: &str) {
        if !self.out.is_json() {
            // A note that cannot be shown must not end the command.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    fn plan(&mut self, plan: &v1::Plan) -> Result<(), Error> {
        if self.out.is_json() {
            self.out.json(&json!({"plan": output::json::plan(plan)}))?;
        } else {
            self.out.line("Would do:")?;
            for (number, step) in plan.steps.iter().enumerate() {
                self.out.line(format!("  {}. {}", number + 1, output::plain(&step.title)))?;
            }
            if !plan.preconditions.is_empty() {
                self.out.line("")?;
                let rows = plan.preconditions.iter().map(|condition| {
                    let met = if condition.met { "met" } else { "unmet" };
                    vec![
                        met.to_owned(),
                        condition.name.clone(),
                        condition.subject.clone(),
                        condition.message.clone(),
                    ]
                });
                self.out.table(&["STATE", "PRECONDITION", "SUBJECT", "MESSAGE"], rows.collect())?;
            }
            for note in &plan.notes {
                self.out.line(format!("\nNote: {}", output::plain(note)))?;
            }
        }
        let unmet = plan.preconditions.iter().filter(|condition| !condition.met).count();
        if unmet == 0 {
            return Ok(());
        }
        let message = format!("{unmet} of {} preconditions do not hold", plan.preconditions.len());
        let reason = holdfast_common::error::Reason::PreconditionFailed;
        Err(Error::Refused(Box::new(holdfast_common::error::Failure::new(reason, message))))
    }
}

fn wire_duration(duration: std::time::Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0) }
}

/// Whether a page came that has a next one, and where it begins.
fn next_page(token: String) -> Option<String> {
    (!token.is_empty()).then_some(token)
}

/// Until the person presses Ctrl-C.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without the signal there is nothing to wait for.
        std::future::pending::<()>().await;
    }
}
