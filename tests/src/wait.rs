//! Conditions with a deadline: what tests do instead of sleeping.

use std::fmt::Display;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

/// How long between two looks at a condition.
const TICK: Duration = Duration::from_millis(50);

/// Waits until `condition` is true.
///
/// # Errors
///
/// When it is not within `deadline`; the message says what was waited for.
pub async fn wait_for<F, Fut>(what: impl Display, deadline: Duration, mut condition: F) -> anyhow::Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    wait_until(what, deadline, || {
        let held = condition();
        async move { if held.await { Ok(()) } else { bail!("the condition does not hold") } }
    })
    .await
}

/// Waits until `attempt` succeeds, and gives what it gave. One attempt that hangs does not outlive the deadline.
///
/// # Errors
///
/// When no attempt did within `deadline`; the message bears the last failure.
pub async fn wait_until<T, F, Fut>(
    what: impl Display,
    deadline: Duration,
    mut attempt: F,
) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = anyhow::Result<T>>,
{
    let end = Instant::now() + deadline;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(end, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if Instant::now() + TICK < end => last = Some(error),
            Ok(Err(error)) => bail!("waited {deadline:?} for {what}: {error:#}"),
            Err(_elapsed) => match last {
                Some(error) => {
                    bail!("waited {deadline:?} for {what}: the last attempt hung, the one before: {error:#}")
                }
                None => bail!("waited {deadline:?} for {what}: the first attempt hung"),
            },
        }
        tokio::time::sleep(TICK).await;
    }
}
