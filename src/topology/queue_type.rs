//! Finds out the type of an existing queue, from the broker's answers to declarations of it. AMQP has
//! no other way to ask.

use crate::amqp::close_reason::CloseReason;
use crate::model::error::STREAM;
use crate::model::queue::{
    Argument, CLASSIC_ONLY, Durability, NO_DELIVERY_LIMIT, QueueDeclaration,
};
use crate::topology::admin_channel::{AdminChannel, Channels};
use crate::topology::declare::{Comparison, compare};

/// What an existing queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Classic,
    Quorum {
        limit: Limit,
        /// Whether it was declared with a dead-letter exchange.
        has_route: bool,
    },
    Stream,
    /// It is not known, and why.
    Unknown(String),
}

/// How many deliveries of a task a quorum queue allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Unlimited,
    /// The broker's default for a quorum queue that is declared without a limit.
    Usual,
    /// As its declaration says.
    Declared(String),
}

/// Arguments that queues of several types can have: they do not show the type.
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

/// From this version on, a quorum queue that was declared without a delivery limit has one.
pub(crate) const LIMITED_SINCE: (u32, u32) = (4, 0);

/// The limit of a quorum queue that was declared without one, from [`LIMITED_SINCE`] on.
const USUAL_LIMIT: &str = "20";

/// An argument that only a quorum queue has, and that the broker names before the limit.
const STRATEGY: &str = "x-dead-letter-strategy";

impl Kind {
    /// The type's name in `x-queue-type`, if it is known.
    pub(crate) fn name(&self) -> Option<&'static str> {
        match self {
            Kind::Classic => Some("classic"),
            Kind::Quorum { .. } => Some("quorum"),
            Kind::Stream => Some("stream"),
            Kind::Unknown(_) => None,
        }
    }

    /// Why a queue of this type cannot be a work queue; `None` if it can.
    pub(crate) fn objection(&self) -> Option<&'static str> {
        (*self == Kind::Stream).then_some(STREAM)
    }

    /// The number of deliveries that a task may have with a broker of this version, if there is a limit.
    pub(crate) fn delivery_limit(&self, version: Option<(u32, u32)>) -> Option<&str> {
        match self {
            Kind::Quorum { limit: Limit::Declared(limit), .. } => Some(limit),
            Kind::Quorum { limit: Limit::Usual, .. } => {
                version.filter(|version| *version >= LIMITED_SINCE).map(|_| USUAL_LIMIT)
            }
            _ => None,
        }
    }

    /// The number of deliveries after which this broker drops a task for good, if it does: without a
    /// dead-letter route. A client cannot see a route that a policy sets.
    pub(crate) fn drops_after(&self, version: Option<(u32, u32)>) -> Option<&str> {
        let has_no_route = matches!(self, Kind::Quorum { has_route: false, .. });
        self.delivery_limit(version).filter(|_| has_no_route)
    }

    /// What the queue is; see [`of`](Kind::of).
    pub(crate) fn ask(
        channel: &mut AdminChannel,
        channels: &dyn Channels,
        name: &str,
    ) -> Result<Kind, CloseReason> {
        Kind::of(name, &mut |declaration| compare(channel, channels, declaration))
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
            let has_route = arguments.iter().any(|(name, _)| name == "x-dead-letter-exchange");
            let quorum = |limit| Ok(Kind::Quorum { limit, has_route });
            let durability = Durability::Durable;
            let plan =
                QueueDeclaration { name: name.into(), durability, arguments: arguments.clone() };
            let (argument, there) = match compare(&plan)? {
                Comparison::Same => return quorum(Limit::Usual),
                Comparison::Differs { argument, there } => (argument, there),
                Comparison::Refused(text) => return Ok(Kind::Unknown(text)),
            };
            match argument.as_str() {
                "x-delivery-limit" => return quorum(Limit::of(there)),
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
        if declared == NO_DELIVERY_LIMIT.to_string() || declared.starts_with('-') {
            return Limit::Unlimited;
        }
        Limit::Declared(declared)
    }
}

fn value(text: String) -> Argument {
    // An empty text, as the parser of reply texts shows it.
    let text = if text == "''" { String::new() } else { text };
    let number = text.parse().map(Argument::Number);
    let flag = text.parse().map(Argument::Flag);
    number.or(flag).unwrap_or(Argument::Text(text))
}
