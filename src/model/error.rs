//! Owns [`Error`]: what can go wrong, as far as a person or a program can act on it.

use std::error::Error as StdError;
use std::fmt;

use crate::amqp::close_reason::{self, Cause};
use crate::model::outcome::Outcome;

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
        /// What failed.
        reason: String,
    },
    /// No broker of the list could be reached. Worth trying again.
    #[non_exhaustive]
    Unreachable {
        /// One line for each address: the address and why.
        attempts: Vec<String>,
    },
    /// The broker refused the login: the user or the password is wrong, or the user may not log
    /// in from here.
    #[non_exhaustive]
    LoginRefused {
        /// The broker's address.
        address: String,
        /// The user's name.
        user: String,
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
        /// The broker's own words, both sides named as far as it tells.
        text: String,
    },
    /// The broker refused the use of the queue: missing, exclusive to another, no permission.
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
    /// Each session that takes from the queue dies of bytes that the client library cannot parse,
    /// most likely of a message in it.
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
    },
    /// The broker takes no publishes at present. It will pass when the broker has memory or disk
    /// again.
    #[non_exhaustive]
    Blocked {
        /// The broker's own words.
        reason: String,
    },
    /// The operating system gave no thread.
    #[non_exhaustive]
    NoThread {
        /// Its own words.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the same call may succeed later with nothing changed on this side.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Error::Unreachable { .. }
                | Error::SessionLost { .. }
                | Error::Unanswered { .. }
                | Error::NoThread { .. }
        )
    }

    /// Whether no broker of the list could be reached.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Error::Unreachable { .. })
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

    /// Whether the session died of bytes that the client library could not parse.
    pub(crate) fn is_malformed(&self) -> bool {
        let Error::SessionLost { source, .. } = self else { return false };
        matches!(source.downcast_ref(), Some(Cause::Malformed(_)))
    }

    /// An [`Error::InvalidSetting`], also for settings of a program built on this crate.
    pub fn setting(setting: &'static str, reason: impl Into<String>) -> Error {
        Error::InvalidSetting { setting, reason: reason.into() }
    }

    pub(crate) fn session_lost(address: &str, cause: Cause) -> Error {
        Error::SessionLost { address: address.into(), source: Box::new(cause) }
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

    /// What the end of a channel means for the use of `queue`: a refusal that a person has to
    /// act on, or a lost session.
    pub(crate) fn from_queue_use(queue: &str, address: &str, cause: Cause) -> Error {
        match cause {
            cause if cause.may_pass() => Error::session_lost(address, cause),
            Cause::ChannelClosed { code: close_reason::PRECONDITION_FAILED, text }
                if text.contains("inequivalent arg") =>
            {
                Error::QueueMismatch { queue: queue.into(), text: explain_mismatch(&text) }
            }
            Cause::ConnectionClosed { text, .. }
            | Cause::ChannelClosed {
                code:
                    close_reason::NOT_FOUND
                    | close_reason::ACCESS_REFUSED
                    | close_reason::RESOURCE_LOCKED
                    | close_reason::PRECONDITION_FAILED,
                text,
            } => Error::QueueRefused { queue: queue.into(), text },
            cause => Error::session_lost(address, cause),
        }
    }
}

/// Why a stream is refused.
pub(crate) const STREAM: &str =
    "it is a stream, and the tasks of a stream stay in it; use a classic or a quorum queue";

/// How [`explain_mismatch`] begins where the queue is a stream.
const STREAM_THERE: &str = "x-queue-type is stream there";

/// RabbitMQ says "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but
/// current is 'true'", of the arguments after x- "received the value 'quorum' of type 'longstr'
/// but current is none"; people read it better the other way round.
fn explain_mismatch(text: &str) -> String {
    match read_mismatch(text) {
        Some((argument, asked, has)) => {
            // A quorum queue is declared with it here, and a classic one is not.
            let is_of_a_type = argument == "x-dead-letter-exchange";
            let hint =
                if is_of_a_type { ", as if one is a quorum queue and the other not" } else { "" };
            format!("{argument} is {has} there, and {asked} was asked for{hint}")
        }
        None => text.to_string(),
    }
}

/// The argument that differs, what was asked for, and what is there.
pub(crate) fn read_mismatch(text: &str) -> Option<(&str, &str, &str)> {
    let argument = text.split_once("inequivalent arg '")?.1.split_once('\'')?.0;
    let (received, current) = text.split_once(": received ")?.1.split_once(" but current is ")?;
    Some((argument, side(received), side(current)))
}

fn side(text: &str) -> &str {
    if text.starts_with("none") {
        return "not set";
    }
    match text.split('\'').nth(1) {
        Some("") => "''",
        Some(value) => value,
        None => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::InvalidUrl { reason } => write!(
                f,
                "not a broker URL: {reason}; it has the form amqp://user:password@host:port/vhost; \
                 in the user and the password, percent-encode / ? # , @ : as %2F %3F %23 %2C \
                 %40 %3A"
            ),
            Error::InvalidSetting { setting, reason } => write!(f, "{setting}: {reason}"),
            Error::Tls { reason } => write!(f, "TLS: {reason}"),
            Error::Unreachable { attempts } => {
                write!(f, "no broker reached ({})", attempts.join("; "))
            }
            Error::LoginRefused { address, user } => write!(
                f,
                "the broker at {address} refused the login of user '{user}'; check the user and \
                 the password in the URL, the broker's log says more"
            ),
            Error::VhostRefused { vhost, text } => {
                write!(f, "the broker refused the virtual host '{vhost}': {text}")
            }
            Error::QueueMismatch { queue, text } if text.starts_with(STREAM_THERE) => {
                write!(f, "queue '{queue}': {STREAM}")
            }
            Error::QueueMismatch { queue, text } => write!(
                f,
                "queue '{queue}' exists with other arguments: {text}; declare it the same way, \
                 use it without declaring it, or take another name"
            ),
            Error::QueueRefused { queue, text } => {
                write!(f, "the broker refused the use of queue '{queue}': {text}")
            }
            Error::SessionLost { address, .. } => write!(f, "lost the session with {address}"),
            Error::Unanswered { doing, queue, .. } => write!(
                f,
                "no answer to the {doing} of queue '{queue}'; it may still happen, so look at the \
                 queue before you ask again"
            ),
            Error::Poisoned { queue } => write!(
                f,
                "each session that takes from queue '{queue}' dies of bytes that cannot be \
                 parsed: most likely a message whose routing key, or a name in it, is not UTF-8, or \
                 whose headers are nested too deep; remove it with another client, such as the \
                 management page's Get messages, then start again. Where there is none, what \
                 answers is no RabbitMQ of 3.10 to 4.3"
            ),
            Error::NotConfirmed { outcome } => write!(f, "the task was not confirmed: {outcome}"),
            Error::Blocked { reason } => write!(f, "the broker blocks publishers: {reason}"),
            Error::NoThread { .. } => write!(f, "the system gave no further thread"),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_names_both_sides() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': \
                    received 'false' but current is 'true'";
        let cause = Cause::ChannelClosed { code: 406, text: text.into() };
        let error = Error::from_queue_use("q", "host:1", cause);
        assert!(matches!(error, Error::QueueMismatch { .. }));
        let line = error.to_string();
        assert!(line.contains("queue 'q'"), "{line}");
        assert!(line.contains("durable is true there, and false was asked for"), "{line}");
    }

    #[test]
    fn a_mismatch_of_an_extension_names_both_sides() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost \
                    '/': received the value 'quorum' of type 'longstr' but current is none";
        let wanted = "x-queue-type is not set there, and quorum was asked for";
        assert_eq!(explain_mismatch(text), wanted);
        let text = "inequivalent arg 'x-dead-letter-exchange' for queue 'q' in vhost '/': received \
                    none but current is the value '' of type 'longstr'";
        let wanted = "x-dead-letter-exchange is '' there, and not set was asked for, as if one \
                      is a quorum queue and the other not";
        assert_eq!(explain_mismatch(text), wanted);
    }

    #[test]
    fn a_mismatch_in_other_words_is_passed_on() {
        assert_eq!(explain_mismatch("something else"), "something else");
    }

    #[test]
    fn the_chain_names_the_root_cause() {
        let cause = Cause::ConnectionClosed { code: 320, text: "CONNECTION_FORCED".into() };
        let chain = Error::session_lost("host:1", cause).chain();
        assert_eq!(
            chain,
            "lost the session with host:1: the broker closed the connection: 320 CONNECTION_FORCED"
        );
    }

    #[test]
    fn a_refusal_is_one_whatever_the_name_of_the_queue() {
        let closed = |code, text: &str| Cause::ChannelClosed { code, text: text.into() };
        for name in ["food-delivery", "home node ", "unknown delivery tag"] {
            let missing = format!("NOT_FOUND - no queue '{name}' in vhost '/'");
            assert!(!Error::from_queue_use(name, "h", closed(404, &missing)).is_transient());
            let other = format!("PRECONDITION_FAILED - inequivalent arg 'x' for queue '{name}'");
            assert!(!Error::from_queue_use(name, "h", closed(406, &other)).is_transient());
        }
        let down = "NOT_FOUND - home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or \
                    inaccessible";
        assert!(Error::from_queue_use("q", "h", closed(404, down)).is_transient());
        let late = "PRECONDITION_FAILED - unknown delivery tag 7";
        assert!(Error::from_queue_use("q", "h", closed(406, late)).is_transient());
    }

    #[test]
    fn only_what_may_pass_by_itself_is_transient() {
        assert!(Error::session_lost("h", Cause::HeartbeatMissed).is_transient());
        assert!(
            !Error::from_queue_use(
                "q",
                "h",
                Cause::ChannelClosed {
                    code: 404,
                    text: "NOT_FOUND - no queue 'q' in vhost '/'".into(),
                }
            )
            .is_transient()
        );
    }
}
