//! Owns the counts of a worker's run.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// What a worker did, from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Tasks done and acked.
    pub done: u64,
    /// Failures of tasks that were handed over to be tried again.
    pub retried: u64,
    /// Dead letters that this run made. One whose task could not be acked any more counts, too;
    /// that task goes back to the queue.
    pub dead: u64,
    /// Dead letters that may be there: they were sent, and the broker had not confirmed them when
    /// their time was up or their session was lost. Their tasks go back to the queue.
    pub dead_unconfirmed: u64,
    /// Failures of tasks that could not be handed over and went back to the queue, uncounted.
    pub failed: u64,
    /// With automatic acks, tasks that failed: nobody has them any more.
    pub lost: u64,
    /// Tasks given back to the queue without having been finished here.
    pub returned: u64,
    /// Tasks whose handler ended after their session was lost; each may run twice.
    pub orphaned: u64,
    /// Handlers that are left running: they did not end when they were cancelled. Their tasks
    /// were given back too.
    pub running: usize,
    /// How long the worker ran.
    pub elapsed: Duration,
    /// What ended it.
    pub ended: StopReason,
}

/// What ended a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// It was asked to stop, and everything that ran was finished. With
    /// [`drain`](crate::Worker::drain) or [`max_tasks`](crate::Worker::max_tasks): before it was
    /// through.
    Stopped,
    /// It started as many tasks as it was allowed to.
    MaxTasks,
    /// Its queue was empty, and nothing was on its way back to it.
    Drained,
    /// Its handler said that no task can be done here
    /// ([`Failure::StopWorker`](crate::Failure::StopWorker)).
    HandlerStopped,
    /// It was asked to stop, and the grace ended with tasks still running, which were cancelled.
    GraceExceeded,
    /// It was asked to stop at once.
    Aborted,
    /// An error ended it; [`Worker::run`](crate::Worker::run) returned that.
    Failed,
}

/// The counts while they grow.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    done: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
    dead_unconfirmed: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
    returned: AtomicU64,
    orphaned: AtomicU64,
    cancelled: AtomicUsize,
}

impl Tally {
    pub(crate) fn done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dead(&self) {
        self.dead.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dead_unconfirmed(&self) {
        self.dead_unconfirmed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn returned(&self) {
        self.returned.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn orphaned(&self) {
        self.orphaned.fetch_add(1, Ordering::Relaxed);
    }

    /// A handler has ended after it was cancelled.
    pub(crate) fn cancelled(&self) {
        self.cancelled.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn all_cancelled(&self) -> usize {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// How many tasks are done, or elsewhere.
    pub(crate) fn settled(&self) -> u64 {
        let counts = [&self.done, &self.retried, &self.dead];
        counts.map(|count| count.load(Ordering::Relaxed)).iter().sum()
    }

    pub(crate) fn sum_up(&self, running: usize, elapsed: Duration, ended: StopReason) -> Summary {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Summary {
            done: read(&self.done),
            retried: read(&self.retried),
            dead: read(&self.dead),
            dead_unconfirmed: read(&self.dead_unconfirmed),
            failed: read(&self.failed),
            lost: read(&self.lost),
            returned: read(&self.returned),
            orphaned: read(&self.orphaned),
            running,
            elapsed,
            ended,
        }
    }
}
