//! Why a connection, a channel or a consumer ended: the client library's and the broker's reasons, in
//! kinds that the rest of the crate can decide on.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use crate::amqp::guard::LimitExceeded;
use crate::amqp::reply_text::{self, explain_mismatch};
#[cfg(feature = "tls")]
use crate::amqp::tls::HandshakeFailure;
#[cfg(feature = "tls")]
use crate::amqp::tls_refusal::refusal;
use crate::model::address_order::Failure;
use crate::model::error::Error;
use crate::model::tls_cause::TlsFailure;

/// Why something of the session ended. Reply codes are those of AMQP 0-9-1
/// (<https://www.rabbitmq.com/amqp-0-9-1-reference#constants>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The broker closed the connection.
    ConnectionClosed { code: u16, text: String },
    /// The broker closed one channel.
    ChannelClosed { code: u16, text: String },
    /// The broker cancelled the consumer: its queue was deleted, moved, or timed it out.
    ConsumerCancelled,
    /// The connection was lost during the login, and the broker did not say why.
    LoginCut,
    /// The broker does not know the way in which we log in.
    NoSuchLogin(String),
    /// Nothing came from the broker for two heartbeat intervals.
    HeartbeatMissed,
    /// What came is not an AMQP frame that the client library can parse, or exceeds one of our
    /// limits; in words.
    Malformed(String),
    /// A read failed because the broker was silent for too long; in words.
    Unheard(String),
    /// A call passed its limit, and the socket was shut under it.
    TimedOut { doing: &'static str, limit: Duration },
    /// The broker allows no further channel on this connection.
    NoChannelLeft,
    /// The certificate, or the other end, did not pass the TLS handshake.
    Tls(TlsFailure),
    /// The client library's I/O thread has ended. Only closing the connection returns why.
    Disconnected,
    /// Anything else that ends a connection. Worth trying again.
    Lost(String),
}

pub(crate) const ACCESS_REFUSED: u16 = 403;
pub(crate) const NOT_FOUND: u16 = 404;
pub(crate) const RESOURCE_LOCKED: u16 = 405;
pub(crate) const PRECONDITION_FAILED: u16 = 406;
pub(crate) const NOT_ALLOWED: u16 = 530;
pub(crate) const NOT_IMPLEMENTED: u16 = 540;
pub(crate) const INTERNAL_ERROR: u16 = 541;

impl CloseReason {
    /// The broker has closed the connection with this code and text.
    pub(crate) fn closed_with((code, text): &(u16, String)) -> CloseReason {
        CloseReason::ConnectionClosed { code: *code, text: in_one_line(text) }
    }

    /// The broker has closed a channel with this code and text.
    pub(crate) fn channel_closed_with(code: u16, text: &str) -> CloseReason {
        CloseReason::ChannelClosed { code, text: in_one_line(text) }
    }

    /// What it means for the address at which it happened.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            CloseReason::HeartbeatMissed
            | CloseReason::Unheard(_)
            | CloseReason::TimedOut { .. } => Failure::Silent,
            _ => Failure::Lost,
        }
    }

    /// Whether the connection outlives this: only a channel or a consumer ended.
    pub(crate) fn is_channel_error(&self) -> bool {
        matches!(
            self,
            CloseReason::ChannelClosed { .. }
                | CloseReason::ConsumerCancelled
                | CloseReason::NoChannelLeft
        )
    }

    /// Whether the broker closed the channel because a delivery was not settled in time
    /// (<https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>).
    pub(crate) fn is_delivery_timeout(&self) -> bool {
        matches!(self, CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text }
            if reply_text::is_delivery_timeout(text))
    }

    /// Whether the cause ended with the channel or the connection, or may pass: the broker did not
    /// refuse what it was asked to use.
    pub(crate) fn is_transient(&self) -> bool {
        let CloseReason::ChannelClosed { code, text } = self else {
            return !self.is_feature_denied() && !self.is_not_implemented();
        };
        match *code {
            PRECONDITION_FAILED => {
                reply_text::is_delivery_timeout(text) || reply_text::is_unknown_delivery_tag(text)
            }
            // The queue exists, but its node or its process is down, or does not answer.
            NOT_FOUND => !reply_text::is_no_queue(text),
            _ => false,
        }
    }

    /// Whether the queue does not exist. One that is down exists.
    pub(crate) fn is_not_there(&self) -> bool {
        matches!(self, CloseReason::ChannelClosed { code: NOT_FOUND, .. }) && !self.is_transient()
    }

    /// Whether the user may not do what was asked.
    pub(crate) fn is_no_permission(&self) -> bool {
        matches!(self, CloseReason::ChannelClosed { code: ACCESS_REFUSED, .. })
    }

    /// Whether the broker no longer has what was asked for: it then closes the connection
    /// (<https://www.rabbitmq.com/docs/deprecated-features>).
    fn is_feature_denied(&self) -> bool {
        matches!(self, CloseReason::ConnectionClosed { code: INTERNAL_ERROR, text }
            if reply_text::is_feature_denied(text))
    }

    /// Whether queues of this type cannot do what was asked, as a stream cannot be purged: the
    /// broker then closes the connection.
    fn is_not_implemented(&self) -> bool {
        matches!(self, CloseReason::ConnectionClosed { code: NOT_IMPLEMENTED, .. })
    }

    /// The largest body that the broker accepts, if it refused one for its size.
    pub(crate) fn size_limit(&self) -> Option<usize> {
        let CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text } = self else {
            return None;
        };
        reply_text::size_limit(text)
    }

    /// What a person can do about it, if there is more to say than the cause itself.
    pub(crate) fn advice(&self) -> Option<&'static str> {
        if self.is_delivery_timeout() {
            return Some(
                "the task ran longer than the broker waits for an ack: raise consumer_timeout in \
                 rabbitmq.conf, or make the task shorter",
            );
        }
        match self {
            CloseReason::ConsumerCancelled => {
                // RabbitMQ 4.3 cancels consumers of quorum queues for late acks, without a reason.
                Some(
                    "the queue was deleted or moved, or a task ran longer than the broker waits \
                     for an ack: raise consumer_timeout in rabbitmq.conf, or make the task shorter",
                )
            }
            _ => None,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::ConnectionClosed { code, text } => {
                write!(f, "the broker closed the connection: {code} {text}")
            }
            CloseReason::ChannelClosed { code, text } => {
                write!(f, "the broker closed the channel: {code} {text}")
            }
            CloseReason::ConsumerCancelled => write!(f, "the broker cancelled the consumer"),
            CloseReason::LoginCut => {
                write!(f, "the connection was cut during the login; the broker did not say why")
            }
            CloseReason::HeartbeatMissed => write!(f, "the broker missed two heartbeats"),
            CloseReason::TimedOut { doing, limit } => {
                write!(f, "no answer within {limit:?} while {doing}")
            }
            CloseReason::NoChannelLeft => write!(f, "the broker allows no further channel"),
            CloseReason::Tls(failure) => write!(f, "TLS: {}", failure.text),
            CloseReason::Disconnected => write!(f, "the connection is gone"),
            CloseReason::NoSuchLogin(text)
            | CloseReason::Malformed(text)
            | CloseReason::Unheard(text)
            | CloseReason::Lost(text) => write!(f, "{text}"),
        }
    }
}

impl std::error::Error for CloseReason {}

impl From<amiquip::Error> for CloseReason {
    fn from(error: amiquip::Error) -> CloseReason {
        use amiquip::Error as E;
        match error {
            E::ServerClosedConnection { code, message } => {
                CloseReason::closed_with(&(code, message))
            }
            E::ServerClosedChannel { code, message, .. } => {
                CloseReason::ChannelClosed { code, text: in_one_line(&message) }
            }
            // Any end between start-ok and tune, also a restart (amiquip 0.4.2 io_loop/mod.rs:337).
            E::InvalidCredentials => CloseReason::LoginCut,
            E::UnsupportedAuthMechanism { available, requested } => CloseReason::NoSuchLogin(
                format!("the broker takes no login by {requested}, only by {available}"),
            ),
            E::MissedServerHeartbeats => CloseReason::HeartbeatMissed,
            E::MalformedFrame => {
                CloseReason::Malformed("the broker sent bytes that are not an AMQP frame".into())
            }
            E::ExhaustedChannelIds => CloseReason::NoChannelLeft,
            E::EventLoopDropped | E::EventLoopClientDropped => CloseReason::Disconnected,
            E::UnexpectedSocketClose => CloseReason::Lost("the socket was closed".into()),
            E::IoErrorReadingSocket { source } => read_reading_error(&source),
            E::IoErrorWritingSocket { source } => {
                CloseReason::Lost(format!("writing failed: {source}"))
            }
            other => CloseReason::Lost(other.to_string()),
        }
    }
}

/// What a close means for a person who can act on it.
impl Error {
    /// Whether the session ended at bytes that the client library could not parse.
    pub(crate) fn is_malformed(&self) -> bool {
        let Error::SessionLost { source, .. } = self else { return false };
        matches!(source.downcast_ref(), Some(CloseReason::Malformed(_)))
    }

    pub(crate) fn session_lost(address: &str, cause: CloseReason) -> Error {
        Error::SessionLost { address: address.into(), source: Box::new(cause) }
    }

    /// What the end of a channel means for the use of `queue`: a refusal that a person has to act on,
    /// or a lost session.
    pub(crate) fn from_queue_use(queue: &str, address: &str, cause: CloseReason) -> Error {
        match cause {
            cause if cause.is_transient() => Error::session_lost(address, cause),
            CloseReason::ChannelClosed { code: NOT_FOUND, text } => {
                Error::QueueMissing { queue: queue.into(), text }
            }
            CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text }
                if reply_text::is_mismatch(&text) =>
            {
                Error::QueueMismatch { queue: queue.into(), text: explain_mismatch(&text) }
            }
            CloseReason::ConnectionClosed { text, .. }
            | CloseReason::ChannelClosed {
                code: ACCESS_REFUSED | RESOURCE_LOCKED | PRECONDITION_FAILED,
                text,
            } => Error::QueueRefused { queue: queue.into(), text },
            cause => Error::session_lost(address, cause),
        }
    }
}

fn in_one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(feature = "tls")]
impl From<HandshakeFailure> for CloseReason {
    fn from(failure: HandshakeFailure) -> CloseReason {
        match failure {
            HandshakeFailure::Lost(text) => CloseReason::Lost(text),
            HandshakeFailure::Refused(failure) => CloseReason::Tls(failure),
        }
    }
}

fn read_reading_error(error: &std::io::Error) -> CloseReason {
    #[cfg(feature = "tls")]
    if let Some(failure) = refusal(error) {
        return CloseReason::Tls(failure);
    }
    match error.kind() {
        ErrorKind::InvalidData => read_guard_error(error),
        ErrorKind::TimedOut => CloseReason::Unheard(format!("reading failed: {error}")),
        _ => CloseReason::Lost(format!("reading failed: {error}")),
    }
}

/// What our frame guard means by an error of its own.
fn read_guard_error(error: &std::io::Error) -> CloseReason {
    match error.get_ref().and_then(|source| source.downcast_ref::<LimitExceeded>()) {
        Some(exceeded) => CloseReason::Malformed(exceeded.to_string()),
        None => CloseReason::Lost(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel_closed(text: &str) -> CloseReason {
        CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text: text.into() }
    }

    #[test]
    fn a_delivery_timeout_is_known_by_its_text() {
        let text = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. \
                    Timeout value used: 1800000 ms.";
        assert!(channel_closed(text).is_delivery_timeout());
        assert!(channel_closed(text).advice().is_some_and(|a| a.contains("consumer_timeout")));
        assert!(
            !channel_closed("PRECONDITION_FAILED - unknown delivery tag 3").is_delivery_timeout()
        );
    }

    /// The texts are those of RabbitMQ 3.10.8's rabbit_amqqueue.
    #[test]
    fn a_queue_that_is_down_is_there_and_may_come_back() {
        let not_found = |text: &str| CloseReason::ChannelClosed {
            code: NOT_FOUND,
            text: format!("NOT_FOUND - {text}"),
        };
        for text in [
            "home node 'rabbit@b' of durable queue 'q' in vhost '/' is down or inaccessible",
            "failed to perform operation on queue 'q' in vhost '/' due to timeout",
            "queue 'q' in vhost '/' process is stopped by supervisor",
            "queue 'q' in vhost '/' has crashed and failed to restart",
        ] {
            let cause = not_found(text);
            assert!(cause.is_transient() && !cause.is_not_there(), "{text}");
        }
        for text in ["no queue 'q' in vhost '/'", "no queue 'home node ' in vhost '/'"] {
            let cause = not_found(text);
            assert!(!cause.is_transient() && cause.is_not_there(), "{text}");
        }
    }

    #[test]
    fn a_mismatch_names_both_sides() {
        let text = "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': \
                    received 'false' but current is 'true'";
        let cause = CloseReason::ChannelClosed { code: 406, text: text.into() };
        let error = Error::from_queue_use("q", "host:1", cause);
        assert!(matches!(error, Error::QueueMismatch { .. }));
        let line = error.to_string();
        assert!(line.contains("queue 'q'"), "{line}");
        assert!(
            line.contains("durable is true in the existing queue, and false was asked for"),
            "{line}"
        );
    }

    #[test]
    fn the_chain_names_the_root_cause() {
        let cause = CloseReason::ConnectionClosed { code: 320, text: "CONNECTION_FORCED".into() };
        let chain = Error::session_lost("host:1", cause).chain();
        assert_eq!(
            chain,
            "lost the session with host:1: the broker closed the connection: 320 CONNECTION_FORCED"
        );
    }

    #[test]
    fn a_refusal_is_one_whatever_the_name_of_the_queue() {
        let closed = |code, text: &str| CloseReason::ChannelClosed { code, text: text.into() };
        for name in ["food-delivery", "home node ", "unknown delivery tag"] {
            let text = format!("NOT_FOUND - no queue '{name}' in vhost '/'");
            let missing = Error::from_queue_use(name, "h", closed(404, &text));
            assert!(matches!(missing, Error::QueueMissing { .. }) && !missing.is_transient());
            assert_eq!(missing.to_string(), format!("queue '{name}' does not exist: {text}"));
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
    fn only_a_cause_that_may_pass_is_transient() {
        assert!(Error::session_lost("h", CloseReason::HeartbeatMissed).is_transient());
        assert!(
            !Error::from_queue_use(
                "q",
                "h",
                CloseReason::ChannelClosed {
                    code: 404,
                    text: "NOT_FOUND - no queue 'q' in vhost '/'".into(),
                }
            )
            .is_transient()
        );
    }
}
