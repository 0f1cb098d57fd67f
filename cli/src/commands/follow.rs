//! An operation until its end: a live list of its steps on a terminal, a line for each change elsewhere.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use holdfast_common::error::Reason;
use holdfast_proto::v1::{self, OperationState, StepState};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::time::Instant;

use super::{Session, interrupted};
use crate::args::Run;
use crate::error::Error;
use crate::output::progress::amount;
use crate::output::{self, json, plain};

/// How long a step runs before it is said what it waits for, and between two such lines.
const BETWEEN_WORDS: Duration = Duration::from_secs(5);

/// How the steps are shown.
enum Steps {
    Live {
        all: MultiProgress,
        bars: Vec<ProgressBar>,
    },
    /// A line when a step's state changes, and now and then what one that takes long says.
    Lines {
        seen: HashMap<String, StepState>,
        said: HashMap<String, (String, Instant)>,
    },
    Silent,
}

impl Session {
    /// Waits for the end of what was begun, unless it is to go on alone. `done` is the last word for people.
    pub(super) async fn follow(
        &mut self,
        operation: v1::Operation,
        run: Run,
        done: &str,
    ) -> Result<(), Error> {
        if run.detach {
            if self.out.is_json() {
                self.out.json(&json::operation(&operation))?;
            } else {
                self.out.line(&operation.id)?;
            }
            return Ok(());
        }
        let ended = self.watched(operation.id).await?;
        if self.out.is_json() {
            self.out.json(&json::operation(&ended))?;
        }
        outcome(&ended)?;
        if !self.out.is_json() && !done.is_empty() {
            self.out.line(done)?;
        }
        Ok(())
    }

    /// The operation at its end; its steps are shown on standard error meanwhile.
    pub(super) async fn watched(&mut self, id: String) -> Result<v1::Operation, Error> {
        let client = self.client().await?;
        let mut watch = client.watch_operation(v1::WatchOperationRequest { id: id.clone() }).await?;
        let mut steps = Steps::new(self.out.is_json());
        let mut last = None;
        loop {
            // Both arms are cancel-safe: a message of the watch is not lost, and Ctrl-C ends it all.
            let next = tokio::select! {
                next = watch.next() => next?,
                () = interrupted() => {
                    steps.end();
                    return Err(Error::Detached { id });
                }
            };
            let Some(operation) = next.and_then(|answer| answer.operation) else { break };
            steps.show(&operation);
            let ended = operation.done;
            last = Some(operation);
            if ended {
                break;
            }
        }
        steps.end();
        match last {
            Some(operation) if operation.done => Ok(operation),
            // The stream ended early: what is known now decides.
            Some(_) | None => {
                let answer = client.get_operation(v1::GetOperationRequest { id: id.clone() }).await?;
                answer.operation.filter(|operation| operation.done).ok_or(Error::StillRunning { id })
            }
        }
    }
}

/// The operation's failure as ours.
pub(super) fn outcome(operation: &v1::Operation) -> Result<(), Error> {
    let state = match operation.state() {
        OperationState::Succeeded => return Ok(()),
        state => {
            output::word(state.as_str_name(), "OPERATION_STATE_").unwrap_or_else(|| "unknown".to_owned())
        }
    };
    let (reason, message) = match &operation.result {
        Some(v1::operation::Result::Failure(failure)) => {
            let name = failure.reason().as_str_name().trim_start_matches("ERROR_REASON_").to_owned();
            let reason = Reason::ALL.iter().copied().find(|reason| reason.as_str() == name);
            (reason.unwrap_or(Reason::Internal), failure.message.clone())
        }
        Some(v1::operation::Result::Response(_)) | None => {
            let last = operation.steps.iter().rev().find(|step| !step.message.is_empty());
            let reason = if operation.state() == OperationState::Cancelled {
                Reason::Cancelled
            } else {
                Reason::Internal
            };
            (reason, last.map_or_else(|| "it says no more".to_owned(), |step| step.message.clone()))
        }
    };
    Err(Error::Operation { id: operation.id.clone(), state, reason, message })
}

// === impl Steps ===

impl Steps {
    fn new(is_json: bool) -> Self {
        if is_json {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Live { all: MultiProgress::new(), bars: Vec::new() }
        } else {
            Self::Lines { seen: HashMap::new(), said: HashMap::new() }
        }
    }

    fn show(&mut self, operation: &v1::Operation) {
        match self {
            Self::Live { all, bars } => {
                for (place, step) in operation.steps.iter().enumerate() {
                    if bars.len() <= place {
                        bars.push(all.add(ProgressBar::new(0)));
                    }
                    draw(&bars[place], step);
                }
            }
            Self::Lines { seen, said } => {
                let lines = changed_lines(seen, operation).into_iter().chain(said_lines(said, operation));
                for line in lines {
                    // Progress that cannot be shown does not end the operation.
                    let _ = writeln!(io::stderr(), "{line}");
                }
            }
            Self::Silent => {}
        }
    }

    fn end(&mut self) {
        if let Self::Live { bars, .. } = self {
            for bar in bars {
                bar.abandon();
            }
        }
    }
}

fn draw(bar: &ProgressBar, step: &v1::OperationStep) {
    let title = plain(&step.title);
    let style = |template: &str| {
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
    };
    match step.state() {
        StepState::Running => {
            if let (Some(done), Some(total)) = (step.done_bytes, step.total_bytes.filter(|total| *total > 0))
            {
                bar.set_style(style("  {spinner} {msg} {bar:20} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"));
                bar.set_length(total.max(done));
                bar.set_position(done);
                bar.set_message(title);
            } else {
                bar.set_style(style("  {spinner} {msg}"));
                let done =
                    step.done_bytes.map(|done| format!(" {}", output::bytes(done))).unwrap_or_default();
                let message = if step.message.is_empty() {
                    String::new()
                } else {
                    format!(" · {}", plain(&step.message))
                };
                bar.set_message(format!("{title}{done}{message}"));
            }
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        state => {
            bar.disable_steady_tick();
            bar.set_style(style("  {msg}"));
            let (mark, rest) = mark(state, step);
            bar.set_message(format!("{mark} {title}{rest}"));
        }
    }
}

fn mark(state: StepState, step: &v1::OperationStep) -> (&'static str, String) {
    match state {
        StepState::Done => ("✓", took(step)),
        StepState::Failed => ("✗", format!(": {}", plain(&step.message))),
        StepState::Skipped => ("–", " (not needed)".to_owned()),
        StepState::Unspecified | StepState::Pending | StepState::Running => ("·", String::new()),
    }
}

fn took(step: &v1::OperationStep) -> String {
    let (start, end) =
        (output::timestamp(step.start_time.as_ref()), output::timestamp(step.end_time.as_ref()));
    let Some((start, end)) = start.zip(end) else { return String::new() };
    let seconds = end.duration_since(start).as_secs_f64();
    if seconds < 0.1 { String::new() } else { format!("  {seconds:.1} s") }
}

/// What is new since the last look, a line each.
fn changed_lines(seen: &mut HashMap<String, StepState>, operation: &v1::Operation) -> Vec<String> {
    let mut lines = Vec::new();
    for step in &operation.steps {
        let state = step.state();
        let before = seen.insert(step.name.clone(), state);
        if before == Some(state) || matches!(state, StepState::Pending | StepState::Unspecified) {
            continue;
        }
        let word = output::word(state.as_str_name(), "STEP_STATE_").unwrap_or_default();
        let rest = match state {
            StepState::Done => took(step),
            StepState::Failed => format!(": {}", plain(&step.message)),
            StepState::Running if step.attempts > 1 => format!("  (attempt {})", step.attempts),
            StepState::Running | StepState::Skipped | StepState::Pending | StepState::Unspecified => {
                String::new()
            }
        };
        lines.push(format!("{word:<8} {}{rest}", plain(&step.title)));
    }
    lines
}

/// What running steps say: what is new, and nothing of steps that are quick.
fn said_lines(said: &mut HashMap<String, (String, Instant)>, operation: &v1::Operation) -> Vec<String> {
    let mut lines = Vec::new();
    for step in operation.steps.iter().filter(|step| step.state() == StepState::Running) {
        let (told, at) = said.entry(step.name.clone()).or_insert_with(|| (String::new(), Instant::now()));
        let words = [amount(operation, step).unwrap_or_default(), plain(&step.message)];
        let words = words.into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" · ");
        if words.is_empty() || *told == words || at.elapsed() < BETWEEN_WORDS {
            continue;
        }
        lines.push(format!("         {words}"));
        (*told, *at) = (words, Instant::now());
    }
    lines
}

/// The steps as a table.
pub(super) fn rows(operation: &v1::Operation) -> Vec<Vec<String>> {
    let each = operation.steps.iter().map(|step| {
        vec![
            step.title.clone(),
            output::word(step.state().as_str_name(), "STEP_STATE_").unwrap_or_else(|| "unknown".to_owned()),
            step.attempts.to_string(),
            output::or_dash(Some(took(step).trim().to_owned())),
            output::or_dash(amount(operation, step)),
            step.message.clone(),
        ]
    });
    each.collect()
}

/// An operation, and that it was asked to end.
pub(super) fn cancelled(operation: &v1::Operation) -> serde_json::Value {
    json!({"operation": json::operation(operation)})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(states: &[(&str, StepState)]) -> v1::Operation {
        let steps = states.iter().map(|(name, state)| v1::OperationStep {
            name: (*name).to_owned(),
            title: format!("Do {name}"),
            state: (*state).into(),
            message: if *state == StepState::Failed { "disk full".to_owned() } else { String::new() },
            ..Default::default()
        });
        v1::Operation { id: "o1".into(), steps: steps.collect(), ..Default::default() }
    }

    #[test]
    fn without_a_terminal_each_change_is_one_line() {
        let mut seen = HashMap::new();
        let mut lines = Vec::new();
        for states in [
            [("a", StepState::Pending), ("b", StepState::Pending)],
            [("a", StepState::Running), ("b", StepState::Pending)],
            [("a", StepState::Running), ("b", StepState::Pending)],
            [("a", StepState::Done), ("b", StepState::Running)],
            [("a", StepState::Done), ("b", StepState::Failed)],
        ] {
            lines.extend(changed_lines(&mut seen, &operation(&states)));
        }
        assert_eq!(lines, ["running  Do a", "done     Do a", "running  Do b", "failed   Do b: disk full"]);
    }

    #[test]
    fn the_end_of_an_operation_decides_the_exit_code() {
        let mut ended = operation(&[("a", StepState::Failed)]);
        ended.state = OperationState::Succeeded.into();
        outcome(&ended).unwrap();
        ended.state = OperationState::Failed.into();
        let failure = holdfast_proto::r#type::v1::Failure {
            reason: 13,
            message: "no room".into(),
            ..Default::default()
        };
        ended.result = Some(v1::operation::Result::Failure(failure));
        let error = outcome(&ended).unwrap_err();
        assert_eq!(error.exit_code(), crate::error::ExitCode::Refused);
        assert_eq!(
            error.to_text(),
            "error: PRECONDITION_FAILED: operation o1 failed: no room\nSee its steps with: holdfast operation show o1"
        );
        ended.result = None;
        ended.state = OperationState::Blocked.into();
        assert!(outcome(&ended).unwrap_err().to_string().contains("blocked: disk full"));
    }
}
