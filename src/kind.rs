//! Finds out what an existing queue is, from the broker's answers to declarations of it. AMQP has
//! no other way to ask.

use crate::error::Error;
use crate::inspect::{Comparison, Inspector};
use crate::queue::{Argument, Durability, NEVER_TOO_OFTEN, Plan};

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

/// Arguments that queues of more than one type can have, so that they do not tell the type.
const COMMON: [&str; 10] = [
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

    /// Refuses a stream, from which nothing that was acked goes away.
    pub(crate) fn refuse_stream(&self, queue: &str) -> Result<(), Error> {
        if *self != Kind::Stream {
            return Ok(());
        }
        let reason = format!(
            "'{queue}' is a stream, and the tasks of a stream stay in it; use a classic or a \
             quorum queue"
        );
        Err(Error::setting("queue", reason))
    }

    /// What the queue is; it has to exist. RabbitMQ notes each refusal in its log: a plain classic
    /// queue costs none.
    pub(crate) fn of(inspector: &mut Inspector, name: &str) -> Result<Kind, Error> {
        let classic = vec![("x-queue-type".into(), Argument::Text("classic".into()))];
        let durability = Durability::Durable;
        let classic = Plan { name: name.into(), durability, arguments: classic };
        match inspector.compare(&classic)? {
            Comparison::Same => Ok(Kind::Classic),
            Comparison::Refused(text) => Ok(Kind::Unknown(text)),
            Comparison::Differs { .. } => Kind::as_declared(inspector, name),
        }
    }

    /// Declares the queue as a quorum queue with the arguments that it is known to have, until the
    /// broker names the type or the limit: it names the arguments that differ one at a time, in
    /// the order of the alphabet. It compares and changes nothing.
    fn as_declared(inspector: &mut Inspector, name: &str) -> Result<Kind, Error> {
        let mut arguments = vec![("x-queue-type".into(), Argument::Text("quorum".into()))];
        for _ in 0..=COMMON.len() + 1 {
            let durability = Durability::Durable;
            let plan = Plan { name: name.into(), durability, arguments: arguments.clone() };
            let (argument, there) = match inspector.compare(&plan)? {
                Comparison::Same => return Ok(Kind::Quorum(Limit::Usual)),
                Comparison::Differs { argument, there } => (argument, there),
                Comparison::Refused(text) => return Ok(Kind::Unknown(text)),
            };
            match argument.as_str() {
                "x-delivery-limit" => return Ok(Kind::Quorum(Limit::of(there))),
                "x-queue-type" if there == "stream" => return Ok(Kind::Stream),
                // RabbitMQ 3.10 does not name the type of a queue declared without one.
                "x-queue-type" | "durable" | "auto_delete" => return Ok(Kind::Classic),
                "x-max-priority" | "x-queue-mode" | "x-queue-master-locator" => {
                    return Ok(Kind::Classic);
                }
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
    text.parse().map_or(Argument::Text(text), Argument::Number)
}
