//! How a program ends: a signal cancels a token, every task has an owner, and the owner waits for them for so long and no
//! longer.
//!
//! ```text
//! SIGTERM, SIGINT, Tasks::stop, a task that panicked ──► token cancelled ──► tasks finish ──► drain returns
//!                                                                              └─ grace over ──► dropped, named
//! ```
//!
//! Not answerable for what a task does with the token: it stops taking work, finishes or hands back what runs, closes its
//! streams.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks left after the grace period are dropped; code that blocks a thread cannot be, and is waited for so long.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// The tasks of a program or of one of its parts; a cheap clone that shares them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    drop_all: CancellationToken,
    record: Arc<Mutex<Record>>,
}

/// How the tasks ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drained {
    /// Those that had not finished when the grace period was over.
    pub unfinished: Vec<&'static str>,
    /// Those that panicked, at whatever time.
    pub panicked: Vec<&'static str>,
}

#[derive(Debug, Default)]
struct Record {
    next: u64,
    running: BTreeMap<u64, &'static str>,
    panicked: Vec<&'static str>,
}

/// Takes its task off the record, whichever way that ends.
struct Running {
    id: u64,
    name: &'static str,
    stop: CancellationToken,
    record: Arc<Mutex<Record>>,
}

// === impl Tasks ===

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the tasks are to end.
    pub fn token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs `task` until it ends, or is dropped because it outlived the grace period. If it panics, the token is
    /// cancelled: a program that lost a part of itself is to end and be started again, not to limp on.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = Running::new(name, self.stop.clone(), Arc::clone(&self.record));
        let drop_all = self.drop_all.clone();
        self.tracker.spawn(async move {
            let _running = running;
            // Both arms may be dropped at any time; that is their purpose.
            tokio::select! {
                () = drop_all.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Cancels the token at SIGTERM and SIGINT.
    ///
    /// # Errors
    /// If the process cannot listen for signals.
    pub fn stop_on_signals(&self) -> io::Result<()> {
        // Before the task starts, so that a signal right after this call is not lost.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = self.stop.clone();
        self.spawn("signals", async move {
            // Receiving a signal and waiting for a token are cancel-safe.
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
                () = stop.cancelled() => return,
            };
            tracing::info!(signal = name, "shutting down");
            stop.cancel();
        });
        Ok(())
    }

    /// Asks all tasks to end.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Asks all tasks to end, waits for them for at most `grace`, then drops those that are left.
    pub async fn drain(&self, grace: Duration) -> Drained {
        self.stop.cancel();
        self.tracker.close();
        let mut unfinished = Vec::new();
        if timeout(grace, self.tracker.wait()).await.is_err() {
            unfinished = lock(&self.record).running.values().copied().collect();
            self.drop_all.cancel();
            // What does not end now blocks its thread; it is on the list already.
            let _in_time = timeout(LAST_WAIT, self.tracker.wait()).await;
        }
        Drained { unfinished, panicked: lock(&self.record).panicked.clone() }
    }
}

// === impl Running ===

impl Running {
    fn new(name: &'static str, stop: CancellationToken, record: Arc<Mutex<Record>>) -> Self {
        let id = {
            let mut record = lock(&record);
            record.next += 1;
            let id = record.next;
            record.running.insert(id, name);
            id
        };
        Self { id, name, stop, record }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut record = lock(&self.record);
        record.running.remove(&self.id);
        if std::thread::panicking() {
            record.panicked.push(self.name);
            drop(record);
            tracing::error!(task = self.name, "a task panicked; shutting down");
            self.stop.cancel();
        }
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    // Nothing between two changes of a record can panic, so a poisoned one is whole.
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{Signal, raise};
    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn tasks_that_heed_the_token_are_waited_for() {
        let tasks = Tasks::new();
        let (told, heard) = oneshot::channel();
        let token = tasks.token();
        tasks.spawn("polite", async move {
            token.cancelled().await;
            told.send(()).unwrap();
        });
        assert_eq!(tasks.drain(LONG).await, Drained::default());
        heard.await.unwrap();
    }

    #[tokio::test]
    async fn a_task_that_outlives_the_grace_period_is_dropped_and_named() {
        struct Dropped(Option<oneshot::Sender<()>>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                let _nobody_waits = self.0.take().map(|told| told.send(()));
            }
        }

        let tasks = Tasks::new();
        let (told, heard) = oneshot::channel();
        let guard = Dropped(Some(told));
        tasks.spawn("quick", async {});
        tasks.spawn("stubborn", async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        });
        let drained = tasks.drain(SHORT).await;
        assert_eq!(drained, Drained { unfinished: vec!["stubborn"], panicked: vec![] });
        heard.await.unwrap();
    }

    #[tokio::test]
    async fn a_task_that_panics_ends_the_program_and_is_named() {
        let tasks = Tasks::new();
        let token = tasks.token();
        tasks.spawn("broken", async { panic!("as the test wants it") });
        timeout(LONG, token.cancelled()).await.unwrap();
        assert_eq!(tasks.drain(LONG).await, Drained { unfinished: vec![], panicked: vec!["broken"] });
    }

    #[tokio::test]
    async fn a_signal_cancels_the_token() {
        // nextest gives every test a process of its own; with a listener in place the signal does not kill it either way.
        for wanted in [Signal::SIGTERM, Signal::SIGINT] {
            let tasks = Tasks::new();
            tasks.stop_on_signals().unwrap();
            raise(wanted).unwrap();
            timeout(LONG, tasks.token().cancelled()).await.unwrap();
            assert_eq!(tasks.drain(LONG).await, Drained::default());
        }
    }

    #[tokio::test]
    async fn the_signal_task_itself_holds_up_no_shutdown() {
        let tasks = Tasks::new();
        tasks.stop_on_signals().unwrap();
        assert_eq!(tasks.drain(LONG).await, Drained::default());
    }
}
