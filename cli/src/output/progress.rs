//! How far a step has come, and how long it may still take.

use holdfast_proto::v1::{Operation, OperationStep, StepState};

use super::{bytes, span, timestamp};

/// In seconds, at the rate of all that it has done until the operation was last heard of: an estimate. None where nothing says so.
pub(crate) fn remaining_seconds(operation: &Operation, step: &OperationStep) -> Option<f64> {
    let (done, total) = (step.done_bytes?, step.total_bytes?);
    let start = timestamp(step.start_time.as_ref())?;
    let took = timestamp(operation.update_time.as_ref())?.duration_since(start).as_secs_f64();
    if step.state() != StepState::Running || done == 0 || total < done || took <= 0.0 {
        return None;
    }
    Some(took * float(total - done) / float(done))
}

/// `12 MiB of 2.0 GiB, 41s left`, as much of it as is known.
pub(crate) fn amount(operation: &Operation, step: &OperationStep) -> Option<String> {
    let done = bytes(step.done_bytes?);
    let Some(total) = step.total_bytes else { return Some(done) };
    let left = remaining_seconds(operation, step).map(|left| format!(", {} left", span(whole(left))));
    Some(format!("{done} of {}{}", bytes(total), left.unwrap_or_default()))
}

/// How long the rest takes at the rate so far, such as `41s`; none where nothing says so.
pub(crate) fn rest(done: u64, total: u64, took: std::time::Duration) -> Option<String> {
    let known = done > 0 && total >= done;
    known.then(|| span(whole(took.as_secs_f64() * float(total - done) / float(done))))
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn float(amount: u64) -> f64 {
    amount as f64
}

#[expect(clippy::cast_possible_truncation, reason = "what is too long for it is shown as very long")]
fn whole(seconds: f64) -> i64 {
    seconds.ceil() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(after: i64, done: u64, state: StepState) -> Operation {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let step = OperationStep {
            start_time: at(1_000),
            done_bytes: Some(done),
            total_bytes: Some(4 << 30),
            state: state.into(),
            ..Default::default()
        };
        Operation { update_time: at(1_000 + after), steps: vec![step], ..Default::default() }
    }

    #[test]
    fn what_is_left_goes_on_as_what_was_done() {
        let told = |after, done, state| {
            let operation = operation(after, done, state);
            amount(&operation, &operation.steps[0])
        };
        assert_eq!(told(10, 1 << 30, StepState::Running).as_deref(), Some("1.0 GiB of 4.0 GiB, 30s left"));
        assert_eq!(told(10, 0, StepState::Running).as_deref(), Some("0 B of 4.0 GiB"));
        assert_eq!(told(0, 1 << 30, StepState::Running).as_deref(), Some("1.0 GiB of 4.0 GiB"));
        assert_eq!(told(10, 4 << 30, StepState::Done).as_deref(), Some("4.0 GiB of 4.0 GiB"));
    }
}
