//! The thread: it shares no runtime with anything that may be busy, its memory is not swapped out, and it goes before others
//! where it may.

use std::thread;

use holdfast_common::error::Chain;
use rustix::mm::{MlockAllFlags, mlockall};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use tokio::runtime::{self, Builder};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::driver::Driver;
use super::{Means, Service};
use crate::link::lease;

/// Of the real-time priorities the lowest: before all that has none.
const PRIORITY: u8 = 1;

// === impl Service ===

impl Service {
    /// Runs on a thread of its own until `stop`.
    pub async fn run(self, means: Means, contact: lease::Tasks, stop: CancellationToken) {
        let (done, ended) = oneshot::channel::<()>();
        let elsewhere = runtime::Handle::current();
        let on_thread = stop.clone();
        let thread = thread::Builder::new().name("lease".to_owned()).spawn(move || {
            let _done = done;
            prefer();
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return tracing::error!(%error, "make the runtime of the lease thread"),
            };
            let Self { status, inputs: (sender, inputs), run } = self;
            let driver = Driver::new(means, run, elsewhere, sender.clone(), status);
            runtime.block_on(async move {
                let contacts = contact.run(sender, on_thread.clone());
                tokio::join!(driver.run(inputs, on_thread), contacts);
            });
        });
        match thread {
            // The sender goes with the thread, however that ends.
            Ok(_thread) => drop(ended.await),
            Err(error) => tracing::error!(%error, "start the lease thread"),
        }
        // Without it the agent is to be started anew, not to limp on.
        stop.cancel();
    }
}

/// Memory that stays, and a place before others; as far as this process may.
fn prefer() {
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if let Err(error) = mlockall(flags) {
        tracing::info!(%error, "memory is not locked: leases may be lost where the machine swaps");
    }
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    let Ok(priority) = PRIORITY.try_into() else { return };
    let preferred =
        set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(priority), policy);
    if let Err(error) = preferred {
        tracing::info!(error = %Chain(&error), "no real-time priority: leases may be lost where processors are busy");
    }
}
