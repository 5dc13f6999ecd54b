//! [`Handler`]: what a program does with a task; the [`Delivery`] that it gets, and the [`Failure`]
//! that it may return.

use std::convert::Infallible;
use std::fmt::{self, Write};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::model::error::Error;
use crate::model::follow_up::FollowUps;
use crate::model::program_end::ProgramEnd;
use crate::model::queue::Queue;
use crate::model::task::Task;
use crate::util::panic::caught;
use crate::util::shutdown::{Signal, is_closed};

/// What a worker does with each task.
///
/// The worker's threads call it, several at a time. After `Ok` the worker acks the delivery. `Err`
/// or a panic is a failed task; [`Worker`](crate::Worker) says what happens to it.
///
/// A closure is a handler. It needs the type of its parameter (`|delivery: &Delivery|`), or it does
/// not compile. `?` turns any [`std::error::Error`] into a [`Failure`] that is retried; for other
/// failures, and for boxed errors, see [`OrFail`](crate::OrFail). An `Arc` of a handler is a handler.
/// A task that leads to others: [`Delivery::follow_up`].
///
/// A handler cannot ack: not twice, not on another channel, not on another thread.
///
/// ```compile_fail,E0599
/// # use rabbit_work::{Delivery, Failure};
/// let handler = |delivery: &Delivery| -> Result<(), Failure> {
///     delivery.ack(); // no such method
///     Ok(())
/// };
/// ```
///
/// Nor can it keep a delivery for later, or move it to another thread:
///
/// ```compile_fail,E0521
/// # use rabbit_work::{Delivery, Failure};
/// fn handler(delivery: &Delivery) -> Result<(), Failure> {
///     std::thread::spawn(move || println!("{:?}", delivery.task()));
///     Ok(())
/// }
/// ```
pub trait Handler: Send + Sync {
    /// Does the work of one task.
    ///
    /// # Errors
    /// A [`Failure`] if the task could not be done. `?` turns any [`std::error::Error`] into one.
    ///
    /// # Blocking
    /// As long as the task takes; only its own thread waits for it. Keep it shorter than the broker's
    /// `consumer_timeout` (30 minutes unless configured;
    /// <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>): after that the broker
    /// requeues the task for another worker.
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure>;

    /// How long a cancelled task ([`Delivery::cancelled`]) may take to end. The worker requeues the
    /// task after it has ended, so that no other worker starts it before. Default: 0 s, because a
    /// handler that ignores the cancel does not end early.
    fn cancel_timeout(&self) -> Duration {
        Duration::ZERO
    }
}

impl<F> Handler for F
where
    F: Fn(&Delivery) -> Result<(), Failure> + Send + Sync,
{
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure> {
        self(delivery)
    }
}

impl<H: Handler + ?Sized> Handler for Arc<H> {
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure> {
        (**self).handle(delivery)
    }

    fn cancel_timeout(&self) -> Duration {
        (**self).cancel_timeout()
    }
}

/// Calls a handler. Its panic is a failure that may be over at the next attempt.
pub(crate) fn call(handler: &dyn Handler, delivery: &Delivery) -> Result<(), Failure> {
    caught(|| handler.handle(delivery)).unwrap_or_else(|panicked| Err(Failure::retry(panicked)))
}

/// A task as one worker thread received it.
#[derive(Debug)]
pub struct Delivery {
    pub(crate) task: Task,
    pub(crate) redelivered: bool,
    pub(crate) queue: String,
    pub(crate) thread: usize,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) deferrals: u32,
    pub(crate) cancelled: Signal,
    pub(crate) killed: Signal,
    /// How much of the start of a program's standard output is kept in `program_end`.
    pub(crate) kept_output: usize,
    /// Set by a handler that runs a program.
    pub(crate) program_end: OnceLock<Box<ProgramEnd>>,
    /// What to publish once the task is done.
    pub(crate) follow_ups: FollowUps,
}

impl Delivery {
    /// The task.
    #[must_use]
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// The task's body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.task.body()
    }

    /// Whether the broker has delivered this task before, to any worker: that worker may have started
    /// or even finished it (<https://www.rabbitmq.com/docs/reliability#consumer-side>).
    #[must_use]
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// The queue it came from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// The number of the worker thread that runs it, from 1.
    #[must_use]
    pub fn thread(&self) -> usize {
        self.thread
    }

    /// A channel that closes when the task is cancelled: the grace period after a stop is over, or
    /// the worker has to stop at once. From then on the task is requeued, whatever the handler
    /// returns. A handler that reacts says in [`Handler::cancel_timeout`] how long it needs.
    #[must_use]
    pub fn cancelled(&self) -> &Receiver<Infallible> {
        &self.cancelled
    }

    /// Whether the task is cancelled; see [`cancelled`](Delivery::cancelled). For a handler that asks
    /// now and then.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        is_closed(&self.cancelled)
    }

    /// Waits until the task is cancelled, at most `limit`; says whether it is. For a handler that
    /// would sleep.
    ///
    /// # Blocking
    /// Up to `limit`; ends early when the task is [cancelled](Delivery::cancelled).
    #[must_use]
    pub fn wait_cancelled(&self, limit: Duration) -> bool {
        matches!(self.cancelled.recv_timeout(limit), Err(RecvTimeoutError::Disconnected))
    }

    /// A channel that closes when a cancelled task gets no more time to end.
    #[must_use]
    pub fn killed(&self) -> &Receiver<Infallible> {
        &self.killed
    }

    /// Which attempt this is, from 1: one more than the task has failed. Failures are counted across
    /// workers and restarts. A task that was requeued, or lost with its worker, has not failed (see
    /// [`redelivered`](Delivery::redelivered)). If the count cannot be read, this is the last
    /// attempt.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How often the task was deferred ([`Failure::Defer`]), across workers and restarts. If the count
    /// cannot be read, it is as often as allowed.
    #[must_use]
    pub fn deferrals(&self) -> u32 {
        self.deferrals
    }

    /// After how many failed attempts the task becomes a dead letter.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts
    }

    /// How the program ended that `Command` ran for this task: for a handler that
    /// calls it and keeps records. `None` if no program was started.
    #[must_use]
    pub fn program_end(&self) -> Option<&ProgramEnd> {
        self.program_end.get().map(AsRef::as_ref)
    }

    /// Has another task published to `queue` once this one is done: after the handler's `Ok` the worker
    /// publishes its follow-ups, in their order, and acks the delivery after the broker has confirmed
    /// each. So a chain of tasks does not break if the worker or its connection dies between two
    /// links. Returns the id of the follow-up.
    ///
    /// * If the handler fails in any way, or the task is cancelled, its follow-ups are forgotten.
    /// * If one is not confirmed, the task goes back to its queue, and its attempt does not count.
    ///   It runs again, and asks for its follow-ups again.
    /// * `queue` can be any queue. It is declared as a [`Producer`](crate::Producer) declares it. If
    ///   it is [passive](Queue::passive) and does not exist, the follow-up is not confirmed.
    /// * A follow-up is published again if its task runs again. Each time it has the same id,
    ///   derived from the task's id and from the number of the follow-up: its receiver can recognise
    ///   it. For that, ask for the same follow-ups in the same order in each attempt, or give them ids
    ///   of your own ([`Task::with_id`]).
    ///
    /// ```
    /// use rabbit_work::testing::delivery;
    /// use rabbit_work::{Delivery, Failure, Queue, Task};
    ///
    /// fn resize(delivery: &Delivery) -> Result<(), Failure> {
    ///     // … then have the customer notified:
    ///     delivery.follow_up(&Queue::new("mails"), Task::new("your photo is ready"))?;
    ///     Ok(())
    /// }
    ///
    /// let photo = delivery(Task::new("photo 17")).build();
    /// resize(&photo).unwrap();
    /// let (queue, mail) = &photo.follow_ups()[0];
    /// assert_eq!((queue.name(), mail.body()), ("mails", &b"your photo is ready"[..]));
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if the broker would not take the task or the queue, and in a worker
    /// with [`auto_ack`](crate::Worker::auto_ack), where a task cannot come back.
    pub fn follow_up(&self, queue: &Queue, task: Task) -> Result<String, Error> {
        self.follow_ups.add(self.task.id(), &self.queue, queue, task)
    }

    /// The follow-ups that were asked for so far, with the queue of each. For the tests of handlers.
    #[must_use]
    pub fn follow_ups(&self) -> Vec<(Queue, Task)> {
        self.follow_ups.copies()
    }
}

/// Why a task was not done. The worker's [`RetryPolicy`](crate::RetryPolicy) decides what happens to
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// It may work later: the task is tried again, up to the policy's number of attempts.
    #[non_exhaustive]
    Retry {
        /// What went wrong, for logs, people and the dead letter.
        reason: String,
        /// How long to wait before the next attempt; without it, as long as the policy says. It is
        /// rounded up as in a [`RetryPolicy`](crate::RetryPolicy).
        after: Option<Duration>,
    },
    /// It will never work: the task becomes a dead letter now.
    #[non_exhaustive]
    Reject {
        /// What is wrong with the task.
        reason: String,
    },
    /// Not now: the task waits in a delay queue, as a failed one does, and no attempt is counted. The
    /// policy limits how often ([`RetryPolicy::max_defers`](crate::RetryPolicy::max_defers)).
    #[non_exhaustive]
    Defer {
        /// What the task has to wait for, for logs, people and the dead letter.
        reason: String,
        /// How long to wait; without it, as long as the policy says
        /// ([`RetryPolicy::defer_delay`](crate::RetryPolicy::defer_delay)). It is rounded up as in a
        /// [`RetryPolicy`](crate::RetryPolicy).
        after: Option<Duration>,
    },
    /// It could not be tried, and that is not the task's fault: the task goes back to the queue after
    /// a pause, and no attempt is counted.
    #[non_exhaustive]
    Requeue {
        /// What prevented it, for logs and people.
        reason: String,
    },
    /// No task can be done here until a person has fixed something. The task goes back to the queue,
    /// and no attempt is counted. The worker starts no new task, finishes the running ones and ends
    /// ([`StopReason::HandlerStopped`](crate::StopReason::HandlerStopped)).
    #[non_exhaustive]
    StopWorker {
        /// What has to be fixed, for logs and people.
        reason: String,
    },
}

impl Failure {
    /// A failure that may be over at the next attempt.
    pub fn retry(reason: impl Into<String>) -> Failure {
        Failure::Retry { reason: reason.into(), after: None }
    }

    /// A failure that may be over after this delay.
    pub fn retry_after(reason: impl Into<String>, after: Duration) -> Failure {
        Failure::Retry { reason: reason.into(), after: Some(after) }
    }

    /// A permanent failure.
    pub fn reject(reason: impl Into<String>) -> Failure {
        Failure::Reject { reason: reason.into() }
    }

    /// No failure: the task is to be tried again after this delay, or with `None` after the policy's.
    pub fn defer(reason: impl Into<String>, after: impl Into<Option<Duration>>) -> Failure {
        Failure::Defer { reason: reason.into(), after: after.into() }
    }

    /// No failure of the task: something else prevented it.
    pub fn requeue(reason: impl Into<String>) -> Failure {
        Failure::Requeue { reason: reason.into() }
    }

    /// No failure of the task: no task can be done here.
    pub fn stop_worker(reason: impl Into<String>) -> Failure {
        Failure::StopWorker { reason: reason.into() }
    }

    /// What went wrong.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Failure::Retry { reason, .. }
            | Failure::Reject { reason }
            | Failure::Defer { reason, .. }
            | Failure::Requeue { reason }
            | Failure::StopWorker { reason } => reason,
        }
    }
}

/// One line, whatever the reason holds: control characters are written as escapes, so that what
/// a task says of itself cannot pass for a log record or steer a terminal.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.reason().chars() {
            if letter.is_control() {
                write!(f, "{}", letter.escape_default())?;
            } else {
                f.write_char(letter)?;
            }
        }
        Ok(())
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::retry(reason_of(&error))
    }
}

/// An error and its sources, outermost first.
pub(crate) fn reason_of(error: &dyn std::error::Error) -> String {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        reason.push_str(": ");
        reason.push_str(&inner.to_string());
        source = inner.source();
    }
    reason
}

/// A delivery of this task for unit tests.
#[cfg(test)]
pub(crate) fn test_delivery(task: Task) -> Delivery {
    use crossbeam_channel::never;

    Delivery {
        task,
        redelivered: true,
        queue: "q".into(),
        thread: 3,
        attempt: 2,
        max_attempts: 5,
        deferrals: 0,
        cancelled: never(),
        killed: never(),
        kept_output: 0,
        program_end: OnceLock::new(),
        follow_ups: FollowUps::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_becomes_a_failure_with_its_sources() {
        fn parse() -> Result<(), Failure> {
            "x".parse::<u8>()?;
            Ok(())
        }
        assert_eq!(parse(), Err(Failure::retry("invalid digit found in string")));
    }

    #[test]
    fn an_arc_of_a_handler_is_that_handler() {
        struct Slow;
        impl Handler for Slow {
            fn handle(&self, _: &Delivery) -> Result<(), Failure> {
                Err(Failure::reject("slow"))
            }
            fn cancel_timeout(&self) -> Duration {
                Duration::from_secs(7)
            }
        }
        let shared: Arc<dyn Handler> = Arc::new(Slow);
        let delivery = test_delivery(Task::new(""));
        assert_eq!(call(&shared, &delivery), Err(Failure::reject("slow")));
        assert_eq!(shared.cancel_timeout(), Duration::from_secs(7));
        assert_eq!(call(&Arc::new(|_: &Delivery| Ok(())), &delivery), Ok(()));
    }

    #[test]
    fn a_panic_is_a_failure_that_may_be_over() {
        let panics = |_: &Delivery| -> Result<(), Failure> {
            std::panic::resume_unwind(Box::new("no"));
        };
        let failed = call(&panics, &test_delivery(Task::new("")));
        assert_eq!(failed, Err(Failure::retry("panicked: no")));
    }

    #[test]
    fn a_handler_learns_of_a_cancel_by_asking_or_waiting() {
        let (closer, cancelled) = crate::util::shutdown::closer();
        let delivery = Delivery { cancelled, ..test_delivery(Task::new("")) };
        assert!(!delivery.is_cancelled() && !delivery.wait_cancelled(Duration::ZERO));
        closer.close();
        assert!(delivery.is_cancelled() && delivery.wait_cancelled(Duration::MAX));
    }

    #[test]
    fn a_failure_is_shown_in_one_line() {
        let shown = Failure::retry("one\ntwo\x1b[2J é").to_string();
        assert_eq!(shown, "one\\ntwo\\u{1b}[2J é");
    }
}
