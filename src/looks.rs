//! Owns whether dead letters can be looked at without harm: a look takes them and gives them back,
//! and a quorum queue drops what was given back more often than its delivery limit allows.

use log::warn;

use crate::error::Error;
use crate::inspect::{Comparison, Inspector};
use crate::queue::{Argument, Durability, NEVER_TOO_OFTEN, Plan, Queue, Target};

/// How often a queue lets what is in it be given back.
enum Limit {
    Unlimited,
    /// What the broker does where a quorum queue is declared without a limit.
    Usual,
    /// As its declaration says.
    Declared(String),
    /// It cannot be told, and why.
    Unknown(String),
}

/// From this version on, giving back does not count
/// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>).
const UNCOUNTED_SINCE: (u32, u32) = (4, 3);

/// From this version on, a quorum queue that was declared without a limit has one, of 20.
const LIMITED_SINCE: (u32, u32) = (4, 0);
const USUAL_LIMIT: &str = "20";

/// Arguments that quorum queues and others can have, so that they tell nothing of the type.
const COMMON: [&str; 10] = [
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-expires",
    "x-max-in-memory-bytes",
    "x-max-in-memory-length",
    "x-max-length",
    "x-max-length-bytes",
    "x-message-ttl",
    "x-overflow",
];

/// Refuses dead letters that looks would destroy. Our own queue of them has no limit; a limit
/// that a policy sets is beyond what a client can see.
pub(crate) fn refuse_harmful_look(inspector: &mut Inspector, queue: &Queue) -> Result<(), Error> {
    let version = inspector.broker_version()?.unwrap_or_default();
    if version >= UNCOUNTED_SINCE || inspector.count(Target::Dead)?.is_none() {
        return Ok(());
    }
    let dead = queue.name_of(Target::Dead);
    match limit_of(inspector, queue, version)? {
        Limit::Usual if version >= LIMITED_SINCE => Err(harmful(&dead, USUAL_LIMIT)),
        Limit::Declared(limit) => Err(harmful(&dead, &limit)),
        Limit::Unlimited | Limit::Usual => Ok(()),
        Limit::Unknown(why) => {
            warn!(
                "cannot tell whether '{dead}' has a delivery limit ({why}); if it has one, each \
                 look counts"
            );
            Ok(())
        }
    }
}

fn harmful(dead: &str, limit: &str) -> Error {
    let reason = format!(
        "'{dead}' is a quorum queue with a delivery limit of {limit}; each look counts as a \
         delivery, and what had more is dropped for good. Replay letters without a look: all, or \
         a number of them, not one by its id"
    );
    Error::setting("dead letters", reason)
}

fn limit_of(inspector: &mut Inspector, queue: &Queue, version: (u32, u32)) -> Result<Limit, Error> {
    for plan in queue.plans(Target::Dead) {
        // What we declare without a type can be a quorum queue, too, by the virtual host's default.
        let is_telling = plan.is_replicated() || version < LIMITED_SINCE;
        if is_telling && inspector.compare(&plan)? == Comparison::Same {
            return Ok(Limit::Unlimited);
        }
    }
    limit_as_declared(inspector, &queue.name_of(Target::Dead))
}

/// Finds out by declaring the queue again, as it is but for what differs, until that is the type
/// or the limit. The broker compares and changes nothing.
fn limit_as_declared(inspector: &mut Inspector, name: &str) -> Result<Limit, Error> {
    let mut arguments = vec![("x-queue-type".into(), Argument::Text("quorum".into()))];
    for _ in 0..=COMMON.len() {
        let durability = Durability::Durable;
        let plan = Plan { name: name.into(), durability, arguments: arguments.clone() };
        let (argument, there) = match inspector.compare(&plan)? {
            Comparison::Same => return Ok(Limit::Usual),
            Comparison::Differs { argument, there } => (argument, there),
            Comparison::Refused(text) => return Ok(Limit::Unknown(text)),
        };
        match argument.as_str() {
            "x-delivery-limit" if is_none(&there) => return Ok(Limit::Unlimited),
            "x-delivery-limit" => return Ok(Limit::Declared(there)),
            // No quorum queue has other values, or any.
            "x-queue-type" | "durable" | "auto_delete" | "x-max-priority" | "x-queue-mode" => {
                return Ok(Limit::Unlimited);
            }
            other => match COMMON.iter().find(|common| **common == other) {
                Some(common) => arguments.push(((*common).into(), value(there))),
                None => return Ok(Limit::Unknown(format!("it has {other}"))),
            },
        }
    }
    Ok(Limit::Unknown("it has too many arguments".into()))
}

/// Whether a limit is none: ours, or a negative one
/// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>).
fn is_none(limit: &str) -> bool {
    limit == NEVER_TOO_OFTEN.to_string() || limit.starts_with('-')
}

fn value(text: String) -> Argument {
    text.parse().map_or(Argument::Text(text), Argument::Number)
}
