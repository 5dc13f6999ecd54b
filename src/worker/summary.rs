//! [`Summary`]: the counts of a worker's run.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::model::error::Error;

/// What a worker did, from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Tasks done and acked.
    pub done: u64,
    /// Failures after which the task was published again, to be retried.
    pub retried: u64,
    /// Deferrals after which the task was published again, to be tried later.
    pub deferred: u64,
    /// Dead letters that this run made. If the connection was lost before the ack, the task of one is
    /// in the queue as well.
    pub dead: u64,
    /// Dead letters that may exist: they were sent, but not confirmed in time, or not before the
    /// connection was lost. Their tasks go back to the queue.
    pub dead_unconfirmed: u64,
    /// Failures after which the task could not be published elsewhere. It went back to the queue, and
    /// the failure does not count.
    pub failed: u64,
    /// Tasks that failed or were not started with automatic acks. They no longer exist.
    pub lost: u64,
    /// Tasks that were requeued, unfinished.
    pub requeued: u64,
    /// Tasks whose handler ended after their connection was lost. Each may run twice.
    pub orphaned: u64,
    /// Handlers that were left running because they did not end when they were cancelled. Their tasks
    /// were requeued.
    pub running: usize,
    /// How long the worker ran.
    pub elapsed: Duration,
    /// What ended it.
    pub ended: StopReason,
}

/// What several workers did, from their start to the end of the last.
///
/// Made by [`Workers::run`](crate::Workers::run).
#[derive(Debug)]
#[non_exhaustive]
pub struct WorkersSummary {
    /// One for each worker, in the order in which they were added.
    pub by_queue: Vec<QueueSummary>,
    /// How long the last of them ran.
    pub elapsed: Duration,
}

/// What one of several workers did.
#[derive(Debug)]
#[non_exhaustive]
pub struct QueueSummary {
    /// The name of its queue.
    pub queue: String,
    /// Its counts, up to the error if there is one.
    pub summary: Summary,
    /// Why it ended, if that was an error: one that [`Worker::run`](crate::Worker::run) returns; or
    /// the refusal because of which it did not work when it was asked to stop.
    pub error: Option<Error>,
}

impl WorkersSummary {
    /// The sums of all counts. What ended it is [`StopReason::Failed`] if any worker ended with an
    /// error, and else the worst of the reasons.
    #[must_use]
    pub fn total(&self) -> Summary {
        let none = Tally::default().sum_up(0, self.elapsed, StopReason::Drained);
        let total = self.by_queue.iter().fold(none, |sum, it| sum.plus(&it.summary));
        let ended = self.by_queue.iter().map(QueueSummary::ended).max_by_key(|it| it.rank());
        Summary { elapsed: self.elapsed, ended: ended.unwrap_or(StopReason::Failed), ..total }
    }
}

impl QueueSummary {
    fn ended(&self) -> StopReason {
        if self.error.is_some() { StopReason::Failed } else { self.summary.ended }
    }
}

impl Summary {
    /// The counts of both, and the time and the end of the first.
    fn plus(self, other: &Summary) -> Summary {
        Summary {
            done: self.done + other.done,
            retried: self.retried + other.retried,
            deferred: self.deferred + other.deferred,
            dead: self.dead + other.dead,
            dead_unconfirmed: self.dead_unconfirmed + other.dead_unconfirmed,
            failed: self.failed + other.failed,
            lost: self.lost + other.lost,
            requeued: self.requeued + other.requeued,
            orphaned: self.orphaned + other.orphaned,
            running: self.running + other.running,
            elapsed: self.elapsed,
            ended: self.ended,
        }
    }
}

impl StopReason {
    /// The word for it in JSON: `drained`, `max-tasks` or `max-dead`; `signal` for each stop that was
    /// asked for, in time or not; `error` for the others.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            StopReason::Drained => "drained",
            StopReason::MaxTasks => "max-tasks",
            StopReason::MaxDead => "max-dead",
            StopReason::Stopped | StopReason::GraceExceeded | StopReason::Aborted => "signal",
            StopReason::HandlerStopped | StopReason::Failed => "error",
        }
    }

    /// The higher, the worse.
    fn rank(self) -> u8 {
        match self {
            StopReason::Drained => 0,
            StopReason::MaxTasks => 1,
            StopReason::Stopped => 2,
            StopReason::GraceExceeded => 3,
            StopReason::Aborted => 4,
            StopReason::MaxDead => 5,
            StopReason::HandlerStopped => 6,
            StopReason::Failed => 7,
        }
    }
}

/// The counts in one line for a person. Those that are seldom more than zero are shown only then.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let if_any = |count: u64, what: &str| match count {
            0 => String::new(),
            _ => format!(" {count} {what},"),
        };
        write!(
            f,
            "{} tasks done, {} retried,{} {} dead,{}{} {} requeued, {} may run twice, {} still \
             running, in {:.1} s",
            self.done,
            self.retried,
            if_any(self.deferred, "deferred"),
            self.dead,
            if_any(self.dead_unconfirmed, "maybe dead"),
            if_any(self.lost, "lost"),
            self.requeued + self.failed,
            self.orphaned,
            self.running,
            self.elapsed.as_secs_f64()
        )
    }
}

/// What ended a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// It was asked to stop, and all running tasks were finished. With
    /// [`drain`](crate::Worker::drain) or [`max_tasks`](crate::Worker::max_tasks), tasks are left.
    Stopped,
    /// It started as many tasks as it was allowed to.
    MaxTasks,
    /// It made as many dead letters as it was allowed to.
    MaxDead,
    /// Its queue and its delay queues were empty.
    Drained,
    /// Its handler returned [`Failure::StopWorker`](crate::Failure::StopWorker).
    HandlerStopped,
    /// It was asked to stop, and tasks that still ran at the end of the grace were cancelled.
    GraceExceeded,
    /// It was asked to stop at once.
    Aborted,
    /// It ended with the error that [`Worker::run`](crate::Worker::run) returned.
    Failed,
}

/// The counts while they grow.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    done: AtomicU64,
    retried: AtomicU64,
    deferred: AtomicU64,
    dead: AtomicU64,
    dead_unconfirmed: AtomicU64,
    failed: AtomicU64,
    lost: AtomicU64,
    requeued: AtomicU64,
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

    pub(crate) fn deferred(&self) {
        self.deferred.fetch_add(1, Ordering::Relaxed);
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

    pub(crate) fn requeued(&self) {
        self.requeued.fetch_add(1, Ordering::Relaxed);
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

    /// How many tasks are done, or confirmed in another queue.
    pub(crate) fn settled(&self) -> u64 {
        let counts = [&self.done, &self.retried, &self.deferred, &self.dead];
        counts.map(|count| count.load(Ordering::Relaxed)).iter().sum()
    }

    pub(crate) fn sum_up(&self, running: usize, elapsed: Duration, ended: StopReason) -> Summary {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Summary {
            done: read(&self.done),
            retried: read(&self.retried),
            deferred: read(&self.deferred),
            dead: read(&self.dead),
            dead_unconfirmed: read(&self.dead_unconfirmed),
            failed: read(&self.failed),
            lost: read(&self.lost),
            requeued: read(&self.requeued),
            orphaned: read(&self.orphaned),
            running,
            elapsed,
            ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_one_line_that_names_what_is_rare_only_if_it_happened() {
        let tally = Tally::default();
        let line = || {
            let elapsed = Duration::from_millis(10_260);
            tally.sum_up(3, elapsed, StopReason::Stopped).to_string()
        };
        tally.done();
        tally.done();
        let usual = "2 tasks done, 0 retried, 0 dead, 0 requeued, 0 may run twice, 3 still running, \
                     in 10.3 s";
        assert_eq!(line(), usual);
        tally.deferred();
        tally.dead_unconfirmed();
        tally.lost();
        tally.requeued();
        tally.failed();
        let rare = "2 tasks done, 0 retried, 1 deferred, 0 dead, 1 maybe dead, 1 lost, 2 requeued, \
                    0 may run twice, 3 still running, in 10.3 s";
        assert_eq!(line(), rare);
    }
}
