//! Owns what a program says about its tasks: [`Handler`], the [`Delivery`] it gets, and the
//! [`Failure`] it may answer with.

use std::convert::Infallible;
use std::fmt::{self, Write};
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::model::task::Task;
use crate::util::shutdown::Signal;

/// What a worker does with each task.
///
/// Called from the worker's threads, several at a time. `Ok` means done: the delivery is acked,
/// on the channel it came in on, after this returned. `Err` or a panic is a failed task; see
/// [`Worker`](crate::Worker) for what becomes of it.
///
/// A closure is a handler. It needs the type of its parameter (`|delivery: &Delivery|`), or the
/// compiler takes it for a function of one lifetime only. `?` makes a [`Failure`] of any
/// [`std::error::Error`], but not of a `Box<dyn Error>`, which is none itself; there, write
/// `.map_err(|error| Failure::retry(error.to_string()))?`.
///
/// There is nothing in a [`Delivery`] to ack with, so an ack on another
/// channel, on another thread, or a second one, cannot be written:
///
/// ```compile_fail,E0599
/// # use rabbit_work::{Delivery, Failure};
/// let handler = |delivery: &Delivery| -> Result<(), Failure> {
///     delivery.ack(); // no such method
///     Ok(())
/// };
/// ```
///
/// nor can a delivery be kept for later or taken to another thread:
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
    /// A [`Failure`] when it could not be done. Any [`std::error::Error`] becomes one with `?`.
    ///
    /// # Blocking
    /// For as long as the task takes; nothing waits for it but its own thread. Keep it below
    /// the broker's `consumer_timeout` (30 minutes unless configured;
    /// <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>): past that the broker
    /// gives the task to somebody else.
    fn handle(&self, delivery: &Delivery) -> Result<(), Failure>;

    /// How long a cancelled task ([`Delivery::cancelled`]) may take to end. Its delivery is
    /// given back when it has, so that nobody else begins it before. Default: no time at all,
    /// since a handler that does not look cannot end early.
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

/// A task as one worker thread received it.
#[derive(Debug)]
pub struct Delivery {
    pub(crate) task: Task,
    pub(crate) redelivered: bool,
    pub(crate) queue: String,
    pub(crate) thread: usize,
    pub(crate) attempt: u32,
    pub(crate) max_attempts: u32,
    pub(crate) cancelled: Signal,
    pub(crate) killed: Signal,
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

    /// Whether the broker delivered this task before, to anybody: it may have been worked on,
    /// or even finished (<https://www.rabbitmq.com/docs/reliability#consumer-side>).
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

    /// The channel that closes when the grace after a stop is over, or a stop at once was asked
    /// for: whatever the handler answers from then on, the task goes back to the queue. A
    /// handler that heeds it says in [`Handler::cancel_timeout`] how long that takes.
    #[must_use]
    pub fn cancelled(&self) -> &Receiver<Infallible> {
        &self.cancelled
    }

    /// The channel that closes when a cancelled task is not even given time to end in order.
    #[must_use]
    pub fn killed(&self) -> &Receiver<Infallible> {
        &self.killed
    }

    /// Which attempt this is, from 1: one more than the task has failed. Failures count, across
    /// workers and restarts; what was given back unfinished, or lost with its worker, does not
    /// (see [`redelivered`](Delivery::redelivered)). Where the count cannot be read, this is
    /// the last attempt.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// After how many failed attempts the task is dead.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts
    }
}

/// Why a task was not done. What becomes of it is up to the worker's
/// [`RetryPolicy`](crate::RetryPolicy).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// It may work another time: tried again later, until it has been tried often enough.
    #[non_exhaustive]
    Retry {
        /// What went wrong, for logs, people and the dead letter.
        reason: String,
        /// How long to wait before the next attempt; by default as the policy says. Each
        /// different delay is a queue at the broker, so round it.
        after: Option<Duration>,
    },
    /// It will never work: to the dead letters now.
    #[non_exhaustive]
    Reject {
        /// What is wrong with it.
        reason: String,
    },
    /// It could not be tried, and that is not the task's fault: it goes back to the queue after
    /// a pause, and no attempt is counted.
    #[non_exhaustive]
    Requeue {
        /// What was in the way, for logs and people.
        reason: String,
    },
    /// No task can be done here until somebody has acted: it goes back to the queue, no attempt
    /// is counted, and the worker takes nothing more, finishes what runs and ends
    /// ([`StopReason::HandlerStopped`](crate::StopReason::HandlerStopped)).
    #[non_exhaustive]
    StopWorker {
        /// What is to be done about, for logs and people.
        reason: String,
    },
}

impl Failure {
    /// A failure that may pass.
    pub fn retry(reason: impl Into<String>) -> Failure {
        Failure::Retry { reason: reason.into(), after: None }
    }

    /// A failure that may have passed by then.
    pub fn retry_after(reason: impl Into<String>, after: Duration) -> Failure {
        Failure::Retry { reason: reason.into(), after: Some(after) }
    }

    /// A failure for good.
    pub fn reject(reason: impl Into<String>) -> Failure {
        Failure::Reject { reason: reason.into() }
    }

    /// Not a failure of the task: something else was in the way.
    pub fn requeue(reason: impl Into<String>) -> Failure {
        Failure::Requeue { reason: reason.into() }
    }

    /// Not a failure of the task: nothing can be done here.
    pub fn stop_worker(reason: impl Into<String>) -> Failure {
        Failure::StopWorker { reason: reason.into() }
    }

    /// What went wrong.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Failure::Retry { reason, .. }
            | Failure::Reject { reason }
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
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            reason.push_str(": ");
            reason.push_str(&inner.to_string());
            source = inner.source();
        }
        Failure::retry(reason)
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
    fn a_failure_is_shown_in_one_line() {
        let shown = Failure::retry("one\ntwo\x1b[2J é").to_string();
        assert_eq!(shown, "one\\ntwo\\u{1b}[2J é");
    }
}
