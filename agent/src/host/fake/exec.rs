//! Programs that answer as a test says.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::locked;
use crate::host::exec::{Captured, Error, Exec, LineSink, Output, Program, Stream};

/// How many runs are remembered.
const MAX_RUNS: usize = 10_000;

type Script = Arc<Mutex<dyn FnMut(&Program) -> Answer + Send>>;

/// Programs by name, each with a script; remembers every run.
#[derive(Clone, Default)]
pub struct FakeExec {
    state: Arc<Mutex<State>>,
}

/// What a program does.
#[derive(Debug)]
pub struct Answer {
    pub lines: Vec<(Stream, String)>,
    pub result: Result<Output, Error>,
    pub ends: Ends,
}

/// When a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    AtOnce,
    /// Only by its deadline or by being cancelled.
    Never,
}

#[derive(Default)]
struct State {
    scripts: BTreeMap<String, Script>,
    runs: Vec<Program>,
}

// === impl FakeExec ===

impl FakeExec {
    /// Installs a program: `script` is asked at every run, and may change the other parts of the fake.
    pub fn on(&self, name: &str, script: impl FnMut(&Program) -> Answer + Send + 'static) {
        locked(&self.state).scripts.insert(name.to_owned(), Arc::new(Mutex::new(script)));
    }

    /// Uninstalls a program.
    pub fn remove(&self, name: &str) {
        locked(&self.state).scripts.remove(name);
    }

    /// Every run so far, also of programs that are not installed.
    pub fn runs(&self) -> Vec<Program> {
        locked(&self.state).runs.clone()
    }

    /// The runs of one program.
    pub fn runs_of(&self, name: &str) -> Vec<Program> {
        self.runs().into_iter().filter(|run| run.name() == name).collect()
    }
}

impl fmt::Debug for FakeExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = locked(&self.state);
        let State { scripts, runs } = &*state;
        f.debug_struct("FakeExec").field("installed", &scripts.keys()).field("runs", runs).finish()
    }
}

impl Exec for FakeExec {
    fn run<'a>(
        &'a self,
        program: Program,
        lines: Option<LineSink>,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Output, Error>> {
        Box::pin(async move {
            program.checked()?;
            if cancel.is_cancelled() {
                return Err(Error::Cancelled { program: program.name() });
            }
            let script = {
                let mut state = locked(&self.state);
                if state.runs.len() < MAX_RUNS {
                    state.runs.push(program.clone());
                }
                state.scripts.get(&program.name()).cloned()
            };
            let script = script.ok_or_else(|| Error::Missing { program: program.name() })?;
            let answer = {
                let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
                (*script)(&program)
            };
            if let Some(mut sink) = lines {
                answer.lines.iter().for_each(|(stream, line)| sink(*stream, line));
            }
            if answer.ends == Ends::AtOnce {
                return answer.result;
            }
            // Both arms are cancel-safe.
            tokio::select! {
                () = cancel.cancelled() => Err(Error::Cancelled { program: program.name() }),
                () = tokio::time::sleep(program.deadline) => Err(Error::Deadline {
                    program: program.name(),
                    after: program.deadline,
                    stderr: String::new(),
                }),
            }
        })
    }
}

// === impl Answer ===

impl Answer {
    /// Ends with code 0 and prints this.
    pub fn stdout(text: impl Into<String>) -> Self {
        let stdout = Captured { bytes: text.into().into_bytes(), omitted_bytes: 0 };
        Self {
            lines: Vec::new(),
            result: Ok(Output { code: 0, stdout, ..Output::default() }),
            ends: Ends::AtOnce,
        }
    }

    /// Ends with this code, which fails unless the program's run accepts it, and prints `stderr`.
    pub fn exit(program: &Program, code: i32, stderr: impl Into<String>) -> Self {
        let stderr = stderr.into();
        let result = if program.accepted.contains(&code) {
            let stderr = Captured { bytes: stderr.into_bytes(), omitted_bytes: 0 };
            Ok(Output { code, stderr, ..Output::default() })
        } else {
            Err(Error::Exit { program: program.name(), code, stderr })
        };
        Self { lines: Vec::new(), result, ends: Ends::AtOnce }
    }

    /// Hangs until its deadline or until it is cancelled.
    pub fn hang() -> Self {
        Self { ends: Ends::Never, ..Self::stdout("") }
    }

    /// Passes these lines of stderr on first.
    #[must_use]
    pub fn saying(mut self, lines: impl IntoIterator<Item = &'static str>) -> Self {
        self.lines.extend(lines.into_iter().map(|line| (Stream::Stderr, line.to_owned())));
        self
    }
}
