//! [`Error`]: what can go wrong, as far as a person or a program can act on it.

use std::error::Error as StdError;
use std::fmt;

use crate::model::outcome::Outcome;
use crate::model::task::Task;
use crate::model::tls_cause::TlsCause;

/// Why a call of this crate failed. A handler's failure is a [`Failure`](crate::Failure), not
/// an `Error`; a task that was not confirmed is an [`Outcome`](crate::Outcome).
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A broker URL could not be read. The URL itself is left out: it may hold a password.
    #[non_exhaustive]
    InvalidUrl {
        /// What is wrong with it.
        reason: String,
    },
    /// A setting is out of its range or does not fit the others.
    #[non_exhaustive]
    InvalidSetting {
        /// The setting's name.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate or key could not be used, or the broker's did not pass.
    #[non_exhaustive]
    Tls {
        /// Which of the causes that a program can act on.
        cause: TlsCause,
        /// What failed, and what to do.
        reason: String,
    },
    /// No broker of the list could be reached. Worth trying again.
    #[non_exhaustive]
    Unreachable {
        /// One line for each address: the address and why.
        attempts: Vec<String>,
    },
    /// The broker refused the login: the user, the password or the client certificate is wrong, or the
    /// user may not log in from here.
    #[non_exhaustive]
    LoginRefused {
        /// The broker's address.
        address: String,
        /// The user's name. `None` if the client certificate has it (`auth_mechanism=external`).
        user: Option<String>,
    },
    /// The broker refused the virtual host: it does not exist, or the user may not use it.
    #[non_exhaustive]
    VhostRefused {
        /// The virtual host.
        vhost: String,
        /// The broker's own words.
        text: String,
    },
    /// The queue exists with other arguments than it was declared with here.
    #[non_exhaustive]
    QueueMismatch {
        /// The queue.
        queue: String,
        /// What differs, as far as the broker says.
        text: String,
    },
    /// The queue does not exist.
    #[non_exhaustive]
    QueueMissing {
        /// The queue.
        queue: String,
        /// What else is known, in the broker's own words if it gave any; or nothing.
        text: String,
    },
    /// The broker refused the use of the queue: it is exclusive to another connection, or the user
    /// has no permission.
    #[non_exhaustive]
    QueueRefused {
        /// The queue.
        queue: String,
        /// The broker's own words.
        text: String,
    },
    /// The session with the broker ended. Worth trying again.
    #[non_exhaustive]
    SessionLost {
        /// The broker's address.
        address: String,
        /// Why, with the broker's code and text where it gave them.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The broker was asked for a change, and the session ended before it answered: the change may
    /// have happened, or may still happen.
    #[non_exhaustive]
    Unanswered {
        /// What was asked for.
        doing: &'static str,
        /// The queue.
        queue: String,
        /// Why there was no answer.
        source: Box<Error>,
    },
    /// Each session that takes from the queue ends at bytes that the client library cannot parse,
    /// most likely a message in the queue.
    #[non_exhaustive]
    Poisoned {
        /// The queue.
        queue: String,
    },
    /// A single published task was not confirmed; the outcome says why.
    #[non_exhaustive]
    NotConfirmed {
        /// What became of it.
        outcome: Outcome,
        /// The task, with the id it was published under. Published again under the same id, it can be
        /// recognised if it is on the queue twice.
        task: Box<Task>,
    },
    /// The broker takes no publishes at present. It takes them again when it has memory and disk.
    #[non_exhaustive]
    Blocked {
        /// The broker's own words.
        reason: String,
    },
    /// A stop was asked for, and there is no connection: none is made any more.
    Stopped,
    /// The operating system cannot start another thread.
    #[non_exhaustive]
    NoThread {
        /// Its own words.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the same call may succeed later without a change on our side.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::NotConfirmed { outcome, .. } => outcome.is_transient(),
            Error::Unreachable { .. }
            | Error::SessionLost { .. }
            | Error::Unanswered { .. }
            | Error::Blocked { .. }
            | Error::NoThread { .. } => true,
            _ => false,
        }
    }

    /// This error and its sources in one line, outermost first.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            line.push_str(": ");
            line.push_str(&error.to_string());
            source = error.source();
        }
        line
    }

    /// An [`Error::InvalidSetting`].
    pub(crate) fn setting(setting: &'static str, reason: impl Into<String>) -> Error {
        Error::InvalidSetting { setting, reason: reason.into() }
    }

    /// What this means after the broker was asked for a change of `queue`.
    pub(crate) fn unanswered(doing: &'static str, queue: &str, error: Error) -> Error {
        match error {
            error @ Error::SessionLost { .. } => {
                Error::Unanswered { doing, queue: queue.into(), source: Box::new(error) }
            }
            error => error,
        }
    }
}

/// Why a stream is refused; the text of its [`Error::QueueMismatch`].
pub(crate) const STREAM: &str =
    "it is a stream, and the tasks of a stream stay in it; use a classic or a quorum queue";

const URL_FORM: &str = "it has the form amqp://user:password@host:port/vhost; in the user and the \
                        password, percent-encode / ? # , @ : as %2F %3F %23 %2C %40 %3A";

const UNPARSABLE: &str = "holds a message this client cannot parse: its routing key, or a name in \
                          it, is not UTF-8, or its headers are nested too deep; remove it with \
                          another client, such as the management page's Get messages, then \
                          restart. If the queue holds no such message, the broker is not RabbitMQ \
                          3.10 to 4.3";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::InvalidUrl { reason } => write!(f, "not a broker URL: {reason}; {URL_FORM}"),
            Error::InvalidSetting { setting, reason } => write!(f, "{setting}: {reason}"),
            Error::Tls { reason, .. } => write!(f, "TLS: {reason}"),
            Error::Unreachable { attempts } => {
                write!(f, "no broker reached ({})", attempts.join("; "))
            }
            Error::LoginRefused { address, user } => {
                write!(f, "{}", login_refused(address, user.as_deref()))
            }
            Error::VhostRefused { vhost, text } => {
                write!(f, "the broker refused the virtual host '{vhost}': {text}")
            }
            Error::QueueMismatch { queue, text } => f.write_str(&queue_mismatch(queue, text)),
            Error::QueueMissing { queue, text } => f.write_str(&queue_missing(queue, text)),
            Error::QueueRefused { queue, text } => {
                write!(f, "the broker refused the use of queue '{queue}': {text}")
            }
            Error::SessionLost { address, .. } => write!(f, "lost the session with {address}"),
            Error::Unanswered { doing, queue, .. } => write!(
                f,
                "no answer to the {doing} of queue '{queue}'; it may still happen, so check the \
                 queue before you repeat it"
            ),
            Error::Poisoned { queue } => write!(f, "queue '{queue}' {UNPARSABLE}"),
            Error::NotConfirmed { outcome, .. } => {
                write!(f, "the task was not confirmed: {outcome}")
            }
            Error::Blocked { reason } => write!(f, "the broker blocks publishers: {reason}"),
            Error::Stopped => write!(f, "stopped, and not connected to a broker"),
            Error::NoThread { .. } => write!(f, "the system cannot start another thread"),
        }
    }
}

fn login_refused(address: &str, user: Option<&str>) -> String {
    let (who, advice) = match user {
        Some(user) => (format!("of user '{user}'"), "check the user and the password in the URL"),
        None => {
            let advice = "the user is the name in the certificate, and must exist in the broker";
            ("by client certificate".into(), advice)
        }
    };
    format!("the broker at {address} refused the login {who}; {advice}; the broker's log says more")
}

fn queue_mismatch(queue: &str, text: &str) -> String {
    if text == STREAM {
        return format!("queue '{queue}': {STREAM}");
    }
    format!(
        "queue '{queue}' exists with other arguments: {text}; give the same options, use it as it is \
         (--no-declare, Queue::passive), or take another name"
    )
}

fn queue_missing(queue: &str, text: &str) -> String {
    let known = if text.is_empty() { String::new() } else { format!(": {text}") };
    format!("queue '{queue}' does not exist{known}")
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::SessionLost { source, .. } => Some(source.as_ref()),
            Error::Unanswered { source, .. } => Some(source.as_ref()),
            Error::NoThread { source } => Some(source),
            _ => None,
        }
    }
}
