//! Finds out of which type a queue is, or would be, from the broker's answers to declarations of it.
//! AMQP has no other way to ask.

use crate::amqp::channel::Channel;
use crate::amqp::close_reason::{CloseReason, PRECONDITION_FAILED};
use crate::amqp::connection::Connection;
use crate::amqp::reply_text::read_mismatch;
use crate::model::error::STREAM;
use crate::model::queue::{
    Argument, CLASSIC_ONLY, Durability, NEVER_TOO_OFTEN, Queue, QueueDeclaration,
};

/// What an existing queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Classic,
    Quorum(Limit),
    Stream,
    /// It cannot be told, and why.
    Unknown(String),
}

/// How often a quorum queue lets what is in it be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Unlimited,
    /// What the broker does if a quorum queue is declared without a limit.
    Usual,
    /// As its declaration says.
    Declared(String),
}

/// What the broker says to a declaration of a queue that exists.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Same,
    /// One argument that differs, and what it is there.
    Differs {
        argument: String,
        there: String,
    },
    /// Something else, and what.
    Refused(String),
}

/// The type that a virtual host gives to a queue that is declared without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultType {
    Quorum,
    Stream,
    /// Classic, or not known.
    Other,
}

/// Arguments that queues of more than one type can have, so that they do not tell the type.
const COMMON: [&str; 13] = [
    "x-consumer-timeout",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-expires",
    "x-max-in-memory-bytes",
    "x-max-in-memory-length",
    "x-max-length",
    "x-max-length-bytes",
    "x-message-ttl",
    "x-overflow",
    "x-queue-leader-locator",
    "x-quorum-initial-group-size",
    "x-single-active-consumer",
];

/// An argument that only a quorum queue has, and that the broker names before the limit.
const STRATEGY: &str = "x-dead-letter-strategy";

impl Kind {
    /// The type's name in `x-queue-type`, if it is known.
    pub(crate) fn name(&self) -> Option<&'static str> {
        match self {
            Kind::Classic => Some("classic"),
            Kind::Quorum(_) => Some("quorum"),
            Kind::Stream => Some("stream"),
            Kind::Unknown(_) => None,
        }
    }

    /// Why a queue of this type cannot be worked; `None` if it can.
    pub(crate) fn objection(&self) -> Option<&'static str> {
        (*self == Kind::Stream).then_some(STREAM)
    }

    /// What the queue is; see [`of`](Kind::of). Gives the channel back, or another where a refusal
    /// took it.
    pub(crate) fn ask(
        connection: &Connection,
        mut channel: Channel,
        name: &str,
    ) -> Result<(Channel, Kind), CloseReason> {
        let kind = Kind::of::<CloseReason>(name, &mut |plan| {
            let compared = compare(&channel, plan)?;
            if compared != Comparison::Same {
                channel = connection.open_channel()?;
            }
            Ok(compared)
        })?;
        Ok((channel, kind))
    }

    /// What the queue is; it has to exist. RabbitMQ notes each refusal in its log: a plain classic
    /// queue costs none.
    pub(crate) fn of<E>(
        name: &str,
        compare: &mut dyn FnMut(&QueueDeclaration) -> Result<Comparison, E>,
    ) -> Result<Kind, E> {
        let classic = vec![("x-queue-type".into(), Argument::Text("classic".into()))];
        let durability = Durability::Durable;
        let classic = QueueDeclaration { name: name.into(), durability, arguments: classic };
        match compare(&classic)? {
            Comparison::Same => Ok(Kind::Classic),
            Comparison::Refused(text) => Ok(Kind::Unknown(text)),
            Comparison::Differs { .. } => Kind::as_declared(name, compare),
        }
    }

    /// Declares the queue as a quorum queue with the arguments that it is known to have, until the
    /// broker names the type or the limit: it names the arguments that differ one at a time, in
    /// the order of the alphabet. It compares and changes nothing.
    fn as_declared<E>(
        name: &str,
        compare: &mut dyn FnMut(&QueueDeclaration) -> Result<Comparison, E>,
    ) -> Result<Kind, E> {
        let mut arguments = vec![("x-queue-type".into(), Argument::Text("quorum".into()))];
        for _ in 0..=COMMON.len() + 1 {
            let durability = Durability::Durable;
            let plan =
                QueueDeclaration { name: name.into(), durability, arguments: arguments.clone() };
            let (argument, there) = match compare(&plan)? {
                Comparison::Same => return Ok(Kind::Quorum(Limit::Usual)),
                Comparison::Differs { argument, there } => (argument, there),
                Comparison::Refused(text) => return Ok(Kind::Unknown(text)),
            };
            match argument.as_str() {
                "x-delivery-limit" => return Ok(Kind::Quorum(Limit::of(there))),
                "x-queue-type" if there == "stream" => return Ok(Kind::Stream),
                // RabbitMQ 3.10 does not name the type of a queue declared without one.
                "x-queue-type" | "durable" | "auto_delete" => return Ok(Kind::Classic),
                other if CLASSIC_ONLY.contains(&other) => return Ok(Kind::Classic),
                "x-initial-cluster-size" | "x-max-age" => return Ok(Kind::Stream),
                other => match COMMON.iter().chain(&[STRATEGY]).find(|known| **known == other) {
                    Some(known) => arguments.push(((*known).into(), value(there))),
                    None => return Ok(Kind::Unknown(format!("it has {other}"))),
                },
            }
        }
        Ok(Kind::Unknown("it has too many arguments".into()))
    }
}

impl Limit {
    /// None is ours, or a negative one
    /// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>).
    fn of(declared: String) -> Limit {
        if declared == NEVER_TOO_OFTEN.to_string() || declared.starts_with('-') {
            return Limit::Unlimited;
        }
        Limit::Declared(declared)
    }
}

fn value(text: String) -> Argument {
    // How an empty text is told.
    let text = if text == "''" { String::new() } else { text };
    let number = text.parse().map(Argument::Number);
    let flag = text.parse().map(Argument::Flag);
    number.or(flag).unwrap_or(Argument::Text(text))
}

/// Compares a queue that exists with a declaration. A refusal takes the channel.
pub(crate) fn compare(
    channel: &Channel,
    plan: &QueueDeclaration,
) -> Result<Comparison, CloseReason> {
    match channel.declare_as(plan) {
        Err(CloseReason::ChannelClosed { code, text }) => Ok(read_comparison(code, text)),
        declared => declared.map(|()| Comparison::Same),
    }
}

fn read_comparison(code: u16, text: String) -> Comparison {
    match read_mismatch(&text).filter(|_| code == PRECONDITION_FAILED) {
        Some((argument, _, there)) => {
            Comparison::Differs { argument: argument.into(), there: there.into() }
        }
        None => Comparison::Refused(text),
    }
}

/// Asks for the default type of the virtual host. Makes no queue, and takes the channel with it.
///
/// It declares `queue`, which does not exist, with two arguments: each type of queue refuses at
/// least one of them, and names itself (measured on RabbitMQ 3.10.8, 4.0.5 and 4.3.6).
pub(crate) fn ask_default_type(
    channel: Channel,
    queue: &Queue,
) -> Result<DefaultType, CloseReason> {
    let arguments = vec![
        ("x-max-age".into(), Argument::Text("1h".into())),
        ("x-max-priority".into(), Argument::Number(1)),
    ];
    let plan =
        QueueDeclaration { name: queue.name().into(), durability: Durability::Durable, arguments };
    match channel.declare_as(&plan) {
        Err(CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text }) => {
            Ok(read_default_type(&text))
        }
        Err(cause) if !cause.is_channel_error() => Err(cause),
        _ => Ok(DefaultType::Other),
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
}
