//! What type a queue has, or would have. AMQP does not say it: the broker names the type in the
//! words with which it refuses a declaration.

use crate::cause::{Cause, PRECONDITION_FAILED};
use crate::channel::Channel;
use crate::error::read_mismatch;
use crate::queue::{Argument, Durability, Plan, Queue, QueueKind, Target};

/// The type of a queue that exists, as far as the broker's words tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Quorum,
    /// Classic, or not known.
    Other,
}

/// The type that a virtual host gives to a queue that is declared without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultType {
    Quorum,
    Stream,
    /// Classic, or not known.
    Other,
}

/// Asks for the default type of the virtual host. Makes no queue, and takes the channel with it.
///
/// It declares `queue`, which does not exist, with two arguments: each type of queue refuses at
/// least one of them, and names itself (measured on RabbitMQ 3.10.8, 4.0.5 and 4.3.6).
pub(crate) fn ask_default_type(channel: Channel, queue: &Queue) -> Result<DefaultType, Cause> {
    let arguments = vec![
        ("x-max-age".into(), Argument::Text("1h".into())),
        ("x-max-priority".into(), Argument::Number(1)),
    ];
    let plan = Plan { name: queue.name().into(), durability: Durability::Durable, arguments };
    match channel.declare_as(&plan) {
        Err(Cause::ChannelClosed { code: PRECONDITION_FAILED, text }) => {
            Ok(read_default_type(&text))
        }
        Err(cause) if !cause.spares_the_connection() => Err(cause),
        _ => Ok(DefaultType::Other),
    }
}

/// Asks for the type of `queue`, which exists and was declared without one. Gives the channel back
/// where the broker did not close it.
pub(crate) fn ask_type(channel: Channel, queue: &Queue) -> Result<(Option<Channel>, Found), Cause> {
    let plan = queue.plans(Target::Work).swap_remove(0).with_type(QueueKind::Classic);
    match channel.declare_as(&plan) {
        Ok(()) => Ok((Some(channel), Found::Other)),
        Err(Cause::ChannelClosed { code: PRECONDITION_FAILED, text }) => {
            Ok((None, read_type(&text)))
        }
        Err(cause) if cause.spares_the_connection() => Ok((None, Found::Other)),
        Err(cause) => Err(cause),
    }
}

fn read_default_type(text: &str) -> DefaultType {
    let named = text.rsplit_once(" of queue type ").map(|(_, name)| name);
    match named {
        Some("rabbit_quorum_queue") => DefaultType::Quorum,
        Some("rabbit_stream_queue") => DefaultType::Stream,
        _ => DefaultType::Other,
    }
}

fn read_type(text: &str) -> Found {
    match read_mismatch(text) {
        Some(("x-queue-type", _, "quorum")) => Found::Quorum,
        _ => Found::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_type_is_the_one_that_refuses() {
        let refusal = |argument: &str, kind: &str| {
            format!(
                "PRECONDITION_FAILED - invalid arg '{argument}' for queue 'q' in vhost '/' of \
                 queue type {kind}"
            )
        };
        let cases = [
            ("x-max-age", "rabbit_classic_queue", DefaultType::Other),
            ("x-max-age", "rabbit_quorum_queue", DefaultType::Quorum),
            ("x-max-priority", "rabbit_stream_queue", DefaultType::Stream),
        ];
        for (argument, kind, told) in cases {
            assert_eq!(read_default_type(&refusal(argument, kind)), told);
        }
        assert_eq!(read_default_type("PRECONDITION_FAILED - something"), DefaultType::Other);
    }

    #[test]
    fn the_type_of_a_queue_is_the_one_that_differs() {
        let differs = |argument: &str, current: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'q' in vhost '/': \
                 received 'classic' but current is '{current}'"
            )
        };
        assert_eq!(read_type(&differs("x-queue-type", "quorum")), Found::Quorum);
        assert_eq!(read_type(&differs("x-queue-type", "stream")), Found::Other);
        assert_eq!(read_type(&differs("x-expires", "quorum")), Found::Other);
    }
}
