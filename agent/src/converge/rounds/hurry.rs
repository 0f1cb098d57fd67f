//! How soon a member is looked at again where somebody waits for what that shows. For a while only: it may never come.

use std::time::Duration;

use tokio::time::Instant;

/// Where clients wait: for as long as it usually takes, and then.
const FIRST_PERIOD: Duration = Duration::from_millis(10);
const FIRST_FOR: Duration = Duration::from_secs(1);
const CLIENTS_PERIOD: Duration = Duration::from_millis(50);
const CLIENTS_FOR: Duration = Duration::from_secs(30);
/// Where an operation may wait.
const COMES_UP_PERIOD: Duration = Duration::from_millis(100);
const COMES_UP_FOR: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Hurry {
    clients_wait_since: Option<Instant>,
    comes_up_since: Option<Instant>,
}

// === impl Hurry ===

impl Hurry {
    pub(super) fn note(&mut self, clients_wait: bool, comes_up: bool) {
        let Self { clients_wait_since, comes_up_since } = self;
        for (since, now) in [(clients_wait_since, clients_wait), (comes_up_since, comes_up)] {
            *since = now.then(|| since.unwrap_or_else(Instant::now));
        }
    }

    /// Whether clients wait, and not for too long already.
    pub(super) fn is_for_clients(&self) -> bool {
        self.clients_wait_since.is_some_and(|since| since.elapsed() < CLIENTS_FOR)
    }

    /// None where its usual time is soon enough.
    pub(super) fn pause(&self) -> Option<Duration> {
        let lately = |since: Option<Instant>, long| since.is_some_and(|since| since.elapsed() < long);
        if lately(self.clients_wait_since, FIRST_FOR) {
            return Some(FIRST_PERIOD);
        }
        if lately(self.clients_wait_since, CLIENTS_FOR) {
            return Some(CLIENTS_PERIOD);
        }
        lately(self.comes_up_since, COMES_UP_FOR).then_some(COMES_UP_PERIOD)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_looked_at_soon_while_somebody_waits_and_not_for_ever() {
        let mut hurry = Hurry::default();
        assert_eq!(hurry.pause(), None);
        hurry.note(true, true);
        assert_eq!(hurry.pause(), Some(FIRST_PERIOD));
        advance(FIRST_FOR).await;
        assert_eq!(hurry.pause(), Some(CLIENTS_PERIOD));
        hurry.note(false, true);
        assert_eq!(hurry.pause(), Some(COMES_UP_PERIOD));
        advance(COMES_UP_FOR).await;
        hurry.note(false, true);
        assert_eq!(hurry.pause(), None);
        hurry.note(false, false);
        hurry.note(false, true);
        assert_eq!(hurry.pause(), Some(COMES_UP_PERIOD));
    }
}
