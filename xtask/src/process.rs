//! The one door to programs for xtask. They run in the terminal or are heard out; cargo and apt bound themselves.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::say;

/// A program, its arguments and surroundings, not yet run.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    folder: Option<PathBuf>,
}

// === impl Program ===

impl Program {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self { argv: vec![program.as_ref().into()], env: Vec::new(), folder: None }
    }

    /// The cargo that runs xtask, at the top of the source tree.
    pub(crate) fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Self::new(cargo).args(arguments).folder(crate::source())
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.argv.push(argument.as_ref().into());
        self
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(arguments.into_iter().map(|one| one.as_ref().into()));
        self
    }

    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    pub(crate) fn folder(mut self, folder: impl AsRef<Path>) -> Self {
        self.folder = Some(folder.as_ref().into());
        self
    }

    /// Runs it in the terminal of this process and says whether it succeeded.
    pub(crate) fn succeeds(&self) -> anyhow::Result<bool> {
        Ok(self.code()? == Some(0))
    }

    /// Runs it in the terminal of this process; it must succeed.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        if self.succeeds()? { Ok(()) } else { bail!("{self} failed") }
    }

    /// Runs it unheard unless it fails: then the error bears all that it said. That it goes on is said.
    pub(crate) fn run_quietly(&self) -> anyhow::Result<()> {
        let output = say::meanwhile(|| self.command().output()).with_context(|| format!("start {self}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        bail!("{self}: {}: {}", output.status, String::from_utf8_lossy(&said).trim_end())
    }

    /// Runs it and gives what it wrote to its standard output; it must succeed.
    pub(crate) fn output(&self) -> anyhow::Result<String> {
        let output = self.command().stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("start {self}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        bail!("{self}: {}", output.status)
    }

    /// Runs it in the terminal of this process and gives its exit code; a signal has none.
    pub(crate) fn code(&self) -> anyhow::Result<Option<i32>> {
        Ok(self.command().status().with_context(|| format!("start {self}"))?.code())
    }

    /// Becomes this program; what comes back is why that failed.
    pub(crate) fn become_it(&self) -> anyhow::Error {
        anyhow::Error::new(self.command().exec()).context(format!("become {self}"))
    }

    #[expect(clippy::disallowed_methods, reason = "this is xtask's door to programs")]
    fn command(&self) -> Command {
        let (program, arguments) = self.argv.split_first().expect("made with a program's name");
        let mut command = Command::new(program);
        command.args(arguments).envs(self.env.iter().map(|(name, value)| (name, value)));
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
