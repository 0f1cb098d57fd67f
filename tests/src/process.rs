//! The one door to programs for tests and xtask. A program that is waited for has a deadline and is killed when it
//! passes; one that is left running writes to a log file and never holds the terminal.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt as _;

use crate::proc;

/// Programs that name no deadline get this one.
const DEADLINE: Duration = Duration::from_secs(60);

/// The path of programs in a clean environment: Debian's, for root.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program, its arguments and surroundings, not yet run.
#[derive(Clone, Debug)]
pub struct Program {
    argv: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    environment: Environment,
    folder: Option<PathBuf>,
    input: Vec<u8>,
    deadline: Duration,
}

/// What a program's environment starts from.
#[derive(Clone, Copy, Debug)]
enum Environment {
    Ours,
    Clean,
}

/// How a program ended and what it said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

/// A program left running in a session of its own. Dropping it leaves it running: hosts and runs end what is theirs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    process: proc::Process,
}

// === impl Program ===

impl Program {
    /// A program by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            argv: vec![program.as_ref().into()],
            env: Vec::new(),
            environment: Environment::Ours,
            folder: None,
            input: Vec::new(),
            deadline: DEADLINE,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.argv.push(argument.as_ref().into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, arguments: I) -> Self {
        self.argv.extend(arguments.into_iter().map(|one| one.as_ref().into()));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), Some(value.as_ref().into())));
        self
    }

    /// Takes a variable out of its environment.
    #[must_use]
    pub fn without_env(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), None));
        self
    }

    /// Gives it an environment of its own: a path, a language, a home, and what [`Program::env`] sets.
    #[must_use]
    pub fn clean_env(mut self) -> Self {
        self.environment = Environment::Clean;
        self
    }

    /// The folder it runs in.
    #[must_use]
    pub fn folder(mut self, folder: impl AsRef<Path>) -> Self {
        self.folder = Some(folder.as_ref().into());
        self
    }

    /// What it reads on its standard input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// How long it may take before it is killed.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.deadline
    }

    /// The same program, run by another one: `wrapper… program…`.
    #[must_use]
    pub fn wrapped<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, wrapper: I) -> Self {
        let mut argv: Vec<OsString> = wrapper.into_iter().map(|one| one.as_ref().into()).collect();
        argv.append(&mut self.argv);
        self.argv = argv;
        self
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Errors
    ///
    /// When it cannot be started, or takes longer than its deadline.
    pub async fn output(self) -> anyhow::Result<Output> {
        let mut command = tokio::process::Command::from(self.command());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("start {self}"))?;
        let mut stdin = child.stdin.take().context("a piped standard input")?;
        let input = self.input.clone();
        let whole = async {
            // A program that does not read its input is not at fault: the broken pipe is its answer.
            let fed = async move {
                stdin.write_all(&input).await.ok();
                drop(stdin);
            };
            tokio::join!(fed, child.wait_with_output()).1
        };
        let Ok(output) = tokio::time::timeout(self.deadline, whole).await else {
            bail!("{self} did not end within {:?} and was killed", self.deadline);
        };
        let output = output.with_context(|| format!("run {self}"))?;
        Ok(Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it to its end, which must be a success, and gives its standard output.
    ///
    /// # Errors
    ///
    /// As [`Program::output`], and when it exits with anything but 0; the message bears what it said.
    pub async fn run(self) -> anyhow::Result<String> {
        let name = self.to_string();
        let output = self.output().await?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        bail!("{name}: {}: {}{}", output.status, output.stderr.trim_end(), output.stdout.trim_end())
    }

    /// Runs it in the terminal of this process, its output on standard error, and says whether it succeeded. It bounds
    /// itself.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn on_standard_error(&self) -> anyhow::Result<bool> {
        let terminal = std::io::stderr().as_fd().try_clone_to_owned().context("copy standard error")?;
        let status = self.command().stdout(terminal).status();
        Ok(status.with_context(|| format!("start {self}"))?.success())
    }

    /// Starts it in a session of its own, its output appended to `log`, and leaves it running.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(self, log: &Path) -> anyhow::Result<Running> {
        self.start_with(log, Stdio::null())
    }

    /// As [`Program::start`], with a standard input, which may be a listening socket.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_with(self, log: &Path, input: Stdio) -> anyhow::Result<Running> {
        let log = open_log(log)?;
        let mut command = self.command();
        command.stdin(input).stdout(log.try_clone().context("copy the log's handle")?).stderr(log);
        // A group of its own: Ctrl-C in the terminal and the end of a test's group do not reach it, its owner does.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("start {self}"))?;
        let process = proc::Process::of(child.id()).with_context(|| format!("{self} ended at once"))?;
        Ok(Running { child, process })
    }

    #[expect(clippy::disallowed_methods, reason = "this is the door of tests and xtask to programs")]
    fn command(&self) -> Command {
        let (program, arguments) = self.argv.split_first().expect("made with a program's name");
        let mut command = Command::new(program);
        command.args(arguments);
        if matches!(self.environment, Environment::Clean) {
            let home = std::env::var_os("HOME").unwrap_or_else(|| "/".into());
            command.env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").env("HOME", home);
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }
}

impl fmt::Display for Program {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.argv.iter().map(|word| word.to_string_lossy()).collect();
        write!(out, "`{}`", words.join(" "))
    }
}

// === impl Running ===

impl Running {
    /// Which process it is.
    #[must_use]
    pub fn process(&self) -> proc::Process {
        self.process
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    ///
    /// When the system will not say.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("ask for the end of a child")
    }

    /// Kills it and all that descends from it, and waits for its end.
    pub fn kill(&mut self) {
        // Whatever ended meanwhile is no failure: it had to end.
        for one in proc::tree(self.process) {
            one.process.signal(Signal::SIGKILL).ok();
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Waits for its end, without a deadline: only for programs that bound themselves. Says how it ended, if the system does.
    pub fn wait(&mut self) -> Option<ExitStatus> {
        self.child.wait().ok()
    }
}

/// Opens a log to append to, made with mode 0600 and its folder if they are missing.
///
/// # Errors
///
/// When it cannot be made.
pub fn open_log(path: &Path) -> anyhow::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}
