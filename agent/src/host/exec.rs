//! Runs programs: never through a shell, with a fixed environment, a deadline and bounded output.
//!
//! ```text
//! Program ─► spawn (own process group) ─► lines to the caller ─► Output
//!                    │ deadline, cancelled, or the future is dropped
//!                    └─► SIGTERM to the group ─► 5 s ─► SIGKILL to the group
//! ```
//!
//! Not for databases: those outlive the agent and belong to [`super::units`].

mod capture;
mod process;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use holdfast_common::error::{Classify, Metadata, Reason};
use tokio_util::sync::CancellationToken;

pub use process::Processes;

use super::system::Owner;

/// How long a program may take to leave after SIGTERM before the whole group gets SIGKILL.
pub const TERM_GRACE: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(5) };
/// What is kept of each output stream unless a program asks for more: its last 64 KiB.
pub const DEFAULT_OUTPUT_BYTES: usize = 64 * 1024;
/// The most that a program may ask to be kept of each output stream.
pub const MAX_OUTPUT_BYTES: usize = 16 * 1024 * 1024;
/// Longer lines reach the line callback cut at this length.
pub const MAX_LINE_BYTES: usize = 4096;
/// How many of the last stderr lines an error quotes.
pub const QUOTED_LINES: usize = 5;

/// The search path of every program; the caller's own is never passed on.
pub(crate) const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The only variables that may be set, besides those that begin with `PG`.
const ALLOWED_VARIABLES: &[&str] =
    &["HOME", "TMPDIR", "TZ", "USER", "LOGNAME", "DEBIAN_FRONTEND", "NEEDRESTART_MODE", "HOLDFAST_UNIT"];

/// Runs programs: the real one, or the fake.
pub trait Exec: fmt::Debug + Send + Sync {
    /// Runs `program` to its end, and gives `lines` each line as it comes.
    ///
    /// # Errors
    /// An [`Error`] that names the program, for every end but an accepted exit code.
    ///
    /// # Cancel safety
    /// Dropping the future kills the whole process group at once; `cancel` does it gently.
    fn run<'a>(
        &'a self,
        program: Program,
        lines: Option<LineSink>,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Output, Error>>;
}

/// Called with each line (without its end) as a program prints it; a carriage return ends a line too, as in progress
/// displays. It must not block.
pub type LineSink = Box<dyn FnMut(Stream, &str) + Send>;

/// Which output a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A program to run. `Debug` and errors never show what goes to its stdin or stands in its environment.
#[derive(Clone, PartialEq, Eq)]
pub struct Program {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) variables: Vec<(String, OsString)>,
    pub(crate) owner: Option<Owner>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) deadline: Duration,
    pub(crate) output_bytes: usize,
    pub(crate) accepted: Vec<i32>,
}

/// How a program ended that ended well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// 0, or one of the accepted codes.
    pub code: i32,
    pub stdout: Captured,
    pub stderr: Captured,
}

/// The end of an output stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    pub bytes: Vec<u8>,
    /// How much came before `bytes` and was let go.
    pub omitted_bytes: u64,
}

/// Why a program did not do its work. All name the program; stderr is quoted, stdin and environment never.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("run {program}: it is not installed")]
    Missing { program: String },
    #[error("run {program}: variable {variable} may not be set; use PG… or one of the fixed list")]
    Variable { program: String, variable: String },
    #[error("start {program}")]
    Start { program: String, source: std::io::Error },
    #[error("{program} exited with code {code}{}", Quote(stderr))]
    Exit { program: String, code: i32, stderr: String },
    #[error("{program} was ended by signal {signal}{}", Quote(stderr))]
    Signal { program: String, signal: i32, stderr: String },
    #[error("{program} did not end within {} s{}", after.as_secs_f32(), Quote(stderr))]
    Deadline { program: String, after: Duration, stderr: String },
    #[error("{program} was cancelled")]
    Cancelled { program: String },
    #[error("wait for {program}")]
    Wait { program: String, source: std::io::Error },
}

/// `: text`, or nothing.
struct Quote<'a>(&'a str);

// === impl Program ===

impl Program {
    /// A program by absolute path, or by name to be found on the fixed search path. It has one minute unless told.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            args: Vec::new(),
            variables: Vec::new(),
            owner: None,
            directory: None,
            stdin: Vec::new(),
            deadline: Duration::from_secs(60),
            output_bytes: DEFAULT_OUTPUT_BYTES,
            accepted: vec![0],
        }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of the allow-list (`PG…`, HOME, TMPDIR, TZ, USER, LOGNAME, DEBIAN_FRONTEND, NEEDRESTART_MODE).
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Runs it as another user; needs root unless it is the agent's own.
    #[must_use]
    pub fn owner(mut self, owner: Owner) -> Self {
        self.owner = Some(owner);
        self
    }

    /// The working directory; `/` unless told.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// What it reads; the way for secrets, which never stand in arguments.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How much to keep of the end of each output stream, at most [`MAX_OUTPUT_BYTES`].
    #[must_use]
    pub fn output_bytes(mut self, bytes: usize) -> Self {
        self.output_bytes = bytes.min(MAX_OUTPUT_BYTES);
        self
    }

    /// Takes this exit code as an answer, not as an error.
    #[must_use]
    pub fn accept(mut self, code: i32) -> Self {
        self.accepted.push(code);
        self
    }

    /// The program's name without its folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The arguments, for fakes that answer by them.
    pub fn arguments(&self) -> impl Iterator<Item = std::borrow::Cow<'_, str>> {
        self.args.iter().map(|arg| arg.to_string_lossy())
    }

    /// Refuses variables outside of the allow-list.
    pub(crate) fn checked(&self) -> Result<(), Error> {
        match self.variables.iter().find(|(name, _)| !variable_allowed(name)) {
            Some((name, _)) => Err(Error::Variable { program: self.name(), variable: name.clone() }),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.variables.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Program")
            .field("path", &self.path)
            .field("args", &self.args)
            .field("variables", &names)
            .field("owner", &self.owner)
            .field("directory", &self.directory)
            .field("stdin_bytes", &self.stdin.len())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

// === impl Captured ===

impl Captured {
    /// The text, with what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub fn is_complete(&self) -> bool {
        self.omitted_bytes == 0
    }

    /// The last lines that are not blank, for an error.
    pub(crate) fn last_lines(&self) -> String {
        let text = self.text();
        let mut lines: Vec<&str> = text
            .split(['\n', '\r'])
            .map(str::trim_end)
            .filter(|l| !l.is_empty())
            .rev()
            .take(QUOTED_LINES)
            .collect();
        lines.reverse();
        lines.join("; ")
    }
}

// === impl Error ===

impl Error {
    pub fn program(&self) -> &str {
        match self {
            Self::Missing { program }
            | Self::Variable { program, .. }
            | Self::Start { program, .. }
            | Self::Exit { program, .. }
            | Self::Signal { program, .. }
            | Self::Deadline { program, .. }
            | Self::Cancelled { program }
            | Self::Wait { program, .. } => program,
        }
    }
}

impl Classify for Error {
    fn reason(&self) -> Reason {
        match self {
            Self::Missing { .. } => Reason::EngineUnavailable,
            Self::Cancelled { .. } => Reason::Cancelled,
            Self::Deadline { .. } => Reason::CommandTimedOut,
            Self::Variable { .. } => Reason::NotPermitted,
            Self::Start { .. } | Self::Exit { .. } | Self::Signal { .. } | Self::Wait { .. } => {
                Reason::EngineFailed
            }
        }
    }

    fn metadata(&self) -> Metadata {
        Metadata::from([("program".to_owned(), self.program().to_owned())])
    }
}

// === impl Quote ===

impl fmt::Display for Quote<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

/// Whether a program or a service may be given this variable. Loader variables such as `LD_PRELOAD` never are.
pub(crate) fn variable_allowed(name: &str) -> bool {
    ALLOWED_VARIABLES.contains(&name)
        || (name.starts_with("PG") && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
}
