//! Owns what a program says about its tasks: [`Handler`], the [`Delivery`] it gets, and the
//! [`Failure`] it may answer with.

use std::fmt;

use crate::task::Task;

/// What a worker does with each task.
///
/// Called from the worker's threads, several at a time. `Ok` means done: the delivery is acked,
/// on the channel it came in on, after this returned. `Err` or a panic is a failed task; see
/// [`Worker`](crate::Worker) for what becomes of it.
///
/// A closure is a handler. There is nothing in a [`Delivery`] to ack with, so an ack on another
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
}

/// Why a task was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// It may work another time.
    #[non_exhaustive]
    Retry {
        /// What went wrong, for logs and people.
        reason: String,
    },
}

impl Failure {
    /// A failure that may pass.
    pub fn retry(reason: impl Into<String>) -> Failure {
        Failure::Retry { reason: reason.into() }
    }

    /// What went wrong.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Failure::Retry { reason } => reason,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
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
        Failure::Retry { reason }
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
}
