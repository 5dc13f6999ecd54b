//! [`Position`]: how far a producer has read, also for the error of a forced exit.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use log::error;

/// Shared with the hook of a forced exit, which runs while the rest is blocked.
#[derive(Default)]
pub(crate) struct Position {
    /// How many tasks were read from the input.
    read: AtomicU64,
    /// How many of them have an outcome.
    resolved: AtomicU64,
}

/// The time a forced exit waits for its error to be written: a reader that reads needs no more.
const LOG_TIMEOUT: Duration = Duration::from_millis(200);

impl Position {
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::SeqCst)
    }

    pub(crate) fn note_read(&self) {
        self.read.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn note_resolved(&self, count: usize) {
        self.resolved.fetch_add(count as u64, Ordering::SeqCst);
    }

    /// In a thread of its own: what blocks the rest may block this.
    pub(crate) fn log_forced_exit(self: Arc<Position>) {
        let (done, logged) = bounded(0);
        let log = move || {
            let _done: Sender<Infallible> = done;
            // In this order: a task is read before it is resolved.
            let resolved = self.resolved.load(Ordering::SeqCst);
            let read = self.read();
            error!(
                "exited early after {read} tasks were read; the outcome of {} of them is not \
                 known",
                read - resolved
            );
        };
        if thread::Builder::new().name("exit-log".into()).spawn(log).is_ok() {
            let _ = logged.recv_timeout(LOG_TIMEOUT);
        }
    }
}
