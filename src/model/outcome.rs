//! [`Outcome`]: the result of a publish.

use std::fmt;

/// The result of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The task is in the queue, and the broker has taken responsibility for it
    /// (<https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed>).
    Confirmed,
    /// The broker refused the task each time until its time limit: the queue is full, or its node is
    /// down, or the broker had an internal error. The broker does not say which.
    #[non_exhaustive]
    Nacked {
        /// How often the broker refused it, and for which queue.
        reason: String,
    },
    /// The broker could not route the task: the queue does not exist.
    #[non_exhaustive]
    Returned {
        /// The broker's code and text.
        reason: String,
    },
    /// The task is not in the queue and will not be: AMQP cannot carry it, or the broker does not
    /// take tasks of its size.
    #[non_exhaustive]
    Refused {
        /// What is wrong with the task.
        reason: String,
    },
    /// The task is not in the queue and will not be: it was never sent, because there was no
    /// connection until its time limit or a stop.
    #[non_exhaustive]
    Unsent {
        /// Why it was not sent.
        reason: String,
    },
    /// It is not known whether the task is in the queue.
    #[non_exhaustive]
    Unconfirmed {
        /// Why the wait for a confirm ended.
        reason: String,
    },
}

impl Outcome {
    /// Whether another publish of the task may be confirmed: the cause may pass, such as a full queue,
    /// a memory alarm or a lost connection.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Outcome::Nacked { .. } | Outcome::Unsent { .. } | Outcome::Unconfirmed { .. } => true,
            Outcome::Confirmed | Outcome::Returned { .. } | Outcome::Refused { .. } => false,
        }
    }
}

/// For tests: a producer makes its outcomes itself.
impl Outcome {
    /// An [`Outcome::Nacked`].
    pub fn nacked(reason: impl Into<String>) -> Outcome {
        Outcome::Nacked { reason: reason.into() }
    }

    /// An [`Outcome::Returned`].
    pub fn returned(reason: impl Into<String>) -> Outcome {
        Outcome::Returned { reason: reason.into() }
    }

    /// An [`Outcome::Refused`].
    pub fn refused(reason: impl Into<String>) -> Outcome {
        Outcome::Refused { reason: reason.into() }
    }

    /// An [`Outcome::Unsent`].
    pub fn unsent(reason: impl Into<String>) -> Outcome {
        Outcome::Unsent { reason: reason.into() }
    }

    /// An [`Outcome::Unconfirmed`].
    pub fn unconfirmed(reason: impl Into<String>) -> Outcome {
        Outcome::Unconfirmed { reason: reason.into() }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Confirmed => write!(f, "confirmed"),
            Outcome::Nacked { reason } => write!(f, "nacked: {reason}"),
            Outcome::Returned { reason } => {
                write!(f, "returned: {reason}; check that the queue exists")
            }
            Outcome::Refused { reason } => write!(f, "refused: {reason}"),
            Outcome::Unsent { reason } => write!(f, "not sent: {reason}"),
            Outcome::Unconfirmed { reason } => write!(f, "unconfirmed: {reason}"),
        }
    }
}
