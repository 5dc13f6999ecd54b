//! What became of a task that was published.

use std::fmt;

/// What the broker did with a task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It is on the queue, and the broker answers for it
    /// (<https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed>).
    Confirmed,
    /// The broker refused it, again and again, until its time was up: a queue with a length limit
    /// that stays full, a queue whose node is down, or an internal error. The broker does not say
    /// which.
    #[non_exhaustive]
    Nacked {
        /// How often, and for which queue.
        reason: String,
    },
    /// It could not be routed: there is no such queue.
    #[non_exhaustive]
    Returned {
        /// The broker's code and text.
        reason: String,
    },
    /// It is not on the queue and never will be: AMQP cannot carry it, or it is larger than the
    /// broker takes.
    #[non_exhaustive]
    Refused {
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing is known: it may be on the queue or not.
    #[non_exhaustive]
    Unconfirmed {
        /// Why the wait for a confirm ended.
        reason: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Confirmed => write!(f, "confirmed"),
            Outcome::Nacked { reason } => write!(f, "nacked: {reason}"),
            Outcome::Returned { reason } => write!(f, "returned: {reason}; is the queue there?"),
            Outcome::Refused { reason } => write!(f, "refused: {reason}"),
            Outcome::Unconfirmed { reason } => write!(f, "unconfirmed: {reason}"),
        }
    }
}
