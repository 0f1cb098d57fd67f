//! Lines for people, on standard error: standard output is for what was asked for.

use std::fmt::Display;
use std::io::Write as _;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How often something that is itself silent is said to go on.
const EVERY: Duration = Duration::from_secs(5);

/// What is being done now.
pub(crate) fn step(what: impl Display) {
    line(format_args!("==> {what}"));
}

/// Why it all ended.
pub(crate) fn failure(error: &anyhow::Error) {
    line(format_args!("error: {error:#}"));
}

/// Does something that is itself silent, and says every few seconds that it goes on, and for how long.
pub(crate) fn meanwhile<T>(work: impl FnOnce() -> T) -> T {
    let told = |times: u32| line(format_args!("    still at it after {} s", (EVERY * times).as_secs()));
    every(EVERY, told, work)
}

/// Calls `tell` with 1, 2, 3 … in this distance until the work is done.
fn every<T>(distance: Duration, tell: impl Fn(u32) + Send, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (done, is_done) = mpsc::channel::<()>();
        scope.spawn(move || {
            let mut times = 0;
            // It ends when the other end is dropped, also by a panic of the work.
            while is_done.recv_timeout(distance) == Err(RecvTimeoutError::Timeout) {
                times += 1;
                tell(times);
            }
        });
        let result = work();
        drop(done);
        result
    })
}

fn line(what: impl Display) {
    // Without anybody to read it there is nobody to miss it.
    writeln!(std::io::stderr(), "{what}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_said_to_go_on_until_it_is_done() {
        let (tell, told) = mpsc::channel();
        let work = || [told.recv().unwrap(), told.recv().unwrap(), told.recv().unwrap()];
        // Nobody listens any more once the work is done.
        let said = every(Duration::from_millis(1), move |times| tell.send(times).unwrap_or_default(), work);
        assert_eq!(said, [1, 2, 3]);
        assert_eq!(every(Duration::MAX, |_| panic!("it was done at once"), || 7), 7);
    }
}
