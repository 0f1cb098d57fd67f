//! Programs as real processes.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::capture::Capture;
use super::{Captured, Error, Exec, LineSink, Output, Program, SEARCH_PATH, Stream, TERM_GRACE};

/// How long output may still come after the program itself has ended: a daemon it left behind may hold the pipe open
/// for ever.
const OUTPUT_GRACE: Duration = Duration::from_millis(250);

/// Runs programs on this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Processes;

/// The process group of a running program; killed when this is dropped before the program was waited for.
struct Group(Option<Pid>);

enum End {
    Exited(std::io::Result<ExitStatus>),
    Deadline,
    Cancelled,
}

// === impl Processes ===

impl Exec for Processes {
    fn run<'a>(
        &'a self,
        program: Program,
        lines: Option<LineSink>,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Output, Error>> {
        Box::pin(run(program, lines, cancel))
    }
}

// === impl Group ===

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // The group may be gone already, which is what a kill wants.
            let _gone = killpg(group, signal);
        }
    }

    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

async fn run(program: Program, lines: Option<LineSink>, cancel: &CancellationToken) -> Result<Output, Error> {
    program.checked()?;
    if cancel.is_cancelled() {
        return Err(Error::Cancelled { program: program.name() });
    }
    let mut child = spawn(&program)?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let capture = Mutex::new(Capture::new(program.output_bytes, lines));
    let begun = Instant::now();
    let end = attend(&mut child, &group, &program, &capture, cancel).await;
    if matches!(end, End::Exited(_)) {
        group.disarm();
    }
    drop(group);
    tracing::debug!(program = %program.name(), took = ?begun.elapsed(), "a program has ended");
    let (stdout, stderr) = capture.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
    conclude(&program, end, stdout, stderr)
}

fn spawn(program: &Program) -> Result<Child, Error> {
    #[expect(clippy::disallowed_methods, reason = "this is the door")]
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .env_clear()
        .env("PATH", SEARCH_PATH)
        .env("LC_ALL", "C")
        .envs(program.variables.iter().map(|(name, value)| (name, value)))
        .current_dir(program.directory.as_deref().unwrap_or_else(|| std::path::Path::new("/")))
        .process_group(0)
        .kill_on_drop(true)
        .stdin(if program.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(owner) = program.owner {
        command.uid(owner.uid).gid(owner.gid);
    }
    command.spawn().map_err(|source| {
        // The same error says that the working directory is missing; only then is there one to blame.
        let directory_there = program.directory.as_ref().is_none_or(|d| d.is_dir());
        if source.kind() == std::io::ErrorKind::NotFound && directory_there {
            Error::Missing { program: program.name() }
        } else {
            Error::Start { program: program.name(), source }
        }
    })
}

/// Waits for the end while feeding stdin and draining both outputs.
async fn attend(
    child: &mut Child,
    group: &Group,
    program: &Program,
    capture: &Mutex<Capture>,
    cancel: &CancellationToken,
) -> End {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read all of its input is judged by its exit code.
            let _unread = stdin.write_all(&program.stdin).await;
        }
    };
    let pump = async {
        tokio::join!(feed, drain(stdout, Stream::Stdout, capture), drain(stderr, Stream::Stderr, capture))
    };
    tokio::pin!(pump);
    let deadline = tokio::time::sleep(program.deadline);
    tokio::pin!(deadline);
    let mut drained = false;
    let end = loop {
        // All arms are cancel-safe: wait() may be called again, the others are pinned or stateless.
        tokio::select! {
            status = child.wait() => break End::Exited(status),
            _ = &mut pump, if !drained => drained = true,
            () = &mut deadline => break End::Deadline,
            () = cancel.cancelled() => break End::Cancelled,
        }
    };
    if !matches!(end, End::Exited(_)) {
        group.signal(Signal::SIGTERM);
        // The program may print why it leaves; a full pipe must not keep it from leaving.
        let leaving = async {
            tokio::select! {
                status = child.wait() => status.is_ok(),
                () = async { if !drained { (&mut pump).await; drained = true; } std::future::pending::<()>().await } => false,
            }
        };
        let _left = tokio::time::timeout(TERM_GRACE, leaving).await;
        group.signal(Signal::SIGKILL);
        let _reaped = child.wait().await;
    }
    if !drained {
        let _open = tokio::time::timeout(OUTPUT_GRACE, &mut pump).await;
    }
    end
}

async fn drain(source: Option<impl AsyncRead + Unpin>, stream: Stream, capture: &Mutex<Capture>) {
    let Some(mut source) = source else { return };
    let mut buffer = vec![0_u8; 8192];
    while let Ok(read @ 1..) = source.read(&mut buffer).await {
        locked(capture).push(stream, &buffer[..read]);
    }
}

fn locked(capture: &Mutex<Capture>) -> MutexGuard<'_, Capture> {
    capture.lock().unwrap_or_else(PoisonError::into_inner)
}

fn conclude(program: &Program, end: End, stdout: Captured, stderr: Captured) -> Result<Output, Error> {
    let name = program.name();
    let quoted = stderr.last_lines();
    match end {
        End::Deadline => Err(Error::Deadline { program: name, after: program.deadline, stderr: quoted }),
        End::Cancelled => Err(Error::Cancelled { program: name }),
        End::Exited(Err(source)) => Err(Error::Wait { program: name, source }),
        End::Exited(Ok(status)) => match (status.code(), status.signal()) {
            (Some(code), _) if program.accepted.contains(&code) => Ok(Output { code, stdout, stderr }),
            (Some(code), _) => Err(Error::Exit { program: name, code, stderr: quoted }),
            (None, signal) => {
                Err(Error::Signal { program: name, signal: signal.unwrap_or_default(), stderr: quoted })
            }
        },
    }
}
