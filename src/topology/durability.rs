//! Opens a channel to a queue: makes the queue where it does not exist, and sees to it that the
//! broker can find a new queue again.
//!
//! RabbitMQ writes down that a queue exists a moment after it has said so. A broker that is killed
//! before comes back without the queue, and without all that it had confirmed there. So whoever
//! makes a queue has it written down at once, or does not trust it yet.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::amqp::channel::Channel;
use crate::amqp::close_reason::{CloseReason, PRECONDITION_FAILED};
use crate::amqp::connection::Connection;
use crate::model::queue::{Queue, QueueDeclaration, QueueType, Target};
use crate::topology::queue_type::{Comparison, DefaultType, Kind, ask_default_type, compare};

/// How long a new quorum queue is not trusted: RabbitMQ writes down that it exists only when no
/// other was made for half a second (measured on RabbitMQ 3.10.8, one node; the directory of its
/// Raft library).
pub(crate) const REPLICATED: Duration = Duration::from_millis(1500);

/// How long a queue is not trusted that could not be written down at once. Of two records, that by
/// which the first counts may wait in memory for 2 s (the transaction log of Mnesia; 2 to 19 of 100
/// declarations of classic queues, measured on RabbitMQ 3.10.8).
const UNWRITTEN: Duration = Duration::from_millis(2500);

/// From this version on, a quorum queue that was declared without a delivery limit has one, of 20.
pub(crate) const LIMITED_SINCE: (u32, u32) = (4, 0);

/// A channel to a queue that exists.
pub(crate) struct Opened {
    pub(crate) channel: Channel,
    /// The queue with the type that the broker has given it.
    pub(crate) queue: Queue,
    /// From when on the queue may be trusted, where we have made it.
    pub(crate) settled_at: Option<Instant>,
}

impl Opened {
    fn existing(channel: Channel, queue: &Queue) -> Opened {
        Opened { channel, queue: queue.clone(), settled_at: None }
    }
}

/// Opens a channel, and sees to it that the queue exists as it is described.
pub(crate) fn open_channel_to(
    connection: &Connection,
    queue: &Queue,
) -> Result<Opened, CloseReason> {
    let channel = connection.open_channel()?;
    if !queue.is_declared_durable() {
        channel.declare(queue)?;
        let channel = refuse_stream(connection, channel, queue)?;
        return Ok(Opened::existing(channel, queue));
    }
    match channel.count(queue.name()) {
        Ok(_) => use_existing(connection, channel, queue),
        Err(cause) if cause.is_not_there() => {
            let channel = another(connection, channel, cause)?;
            make(connection, channel, queue)
        }
        // A refusal is told by the declaration, in better words.
        Err(cause) => {
            let channel = another(connection, channel, cause)?;
            channel.declare(queue)?;
            Ok(Opened::existing(channel, queue))
        }
    }
}

/// A queue that is used as it is may be anything.
fn refuse_stream(
    connection: &Connection,
    channel: Channel,
    queue: &Queue,
) -> Result<Channel, CloseReason> {
    if !queue.is_passive() {
        return Ok(channel);
    }
    let (channel, kind) = Kind::ask(connection, channel, queue.name())?;
    match kind.objection() {
        Some(text) => {
            Err(CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text: text.into() })
        }
        None => Ok(channel),
    }
}

fn make(connection: &Connection, channel: Channel, queue: &Queue) -> Result<Opened, CloseReason> {
    let (channel, made) = with_default_type(connection, channel, queue)?;
    match channel.declare(&made) {
        // Somebody else has made it meanwhile.
        Err(refusal @ CloseReason::ChannelClosed { code: PRECONDITION_FAILED, .. }) => {
            let channel = another(connection, channel, refusal)?;
            return use_existing(connection, channel, queue);
        }
        declared => declared?,
    }
    let queue = made;
    info!("queue '{}' did not exist: created", queue.name());
    let plan = queue.best_declaration(Target::Main);
    let (channel, settled_at) = settle(connection, channel, &plan)?;
    Ok(Opened { channel, queue, settled_at: Some(settled_at) })
}

/// A queue whose type is left to the virtual host becomes what that host makes of it, with the
/// arguments that the type needs: a quorum queue has to have a dead-letter route.
fn with_default_type(
    connection: &Connection,
    channel: Channel,
    queue: &Queue,
) -> Result<(Channel, Queue), CloseReason> {
    if !queue.takes_default_type() {
        return Ok((channel, queue.clone()));
    }
    let default = ask_default_type(channel, queue)?;
    let channel = connection.open_channel()?;
    match default {
        DefaultType::Other => Ok((channel, queue.clone())),
        DefaultType::Quorum => {
            info!(
                "the default queue type of the virtual host is 'quorum': queue '{}' is declared as \
                 with --queue-type quorum",
                queue.name()
            );
            Ok((channel, queue.as_quorum()))
        }
        DefaultType::Stream => {
            let text = "the default queue type of the virtual host is 'stream', which cannot be a \
                        work queue; name a type: --queue-type quorum";
            Err(CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text: text.into() })
        }
    }
}

fn use_existing(
    connection: &Connection,
    channel: Channel,
    queue: &Queue,
) -> Result<Opened, CloseReason> {
    match channel.declare(queue) {
        Ok(()) if !queue.takes_default_type() => Ok(Opened::existing(channel, queue)),
        Ok(()) => use_with_its_type(connection, channel, queue),
        Err(refusal @ CloseReason::ChannelClosed { code: PRECONDITION_FAILED, .. })
            if queue.takes_default_type() =>
        {
            let channel = another(connection, channel, refusal.clone())?;
            use_as_made_here(connection, channel, queue, refusal)
        }
        Err(cause) => Err(cause),
    }
}

/// The queue has no arguments, as we ask for; the virtual host may have made a quorum queue of it.
fn use_with_its_type(
    connection: &Connection,
    channel: Channel,
    queue: &Queue,
) -> Result<Opened, CloseReason> {
    let (channel, kind) = Kind::ask(connection, channel, queue.name())?;
    if !matches!(kind, Kind::Quorum(_)) {
        return Ok(Opened::existing(channel, queue));
    }
    say_once_that_it_is_a_quorum_queue(queue.name(), connection.broker_version());
    Ok(Opened::existing(channel, &queue.as_existing_quorum()))
}

/// Where a virtual host has a default type, the queue may be a quorum queue that [`make`] has
/// declared there, or a classic queue that was declared as one. Declared without its type, the
/// first is the same only there.
fn use_as_made_here(
    connection: &Connection,
    channel: Channel,
    queue: &Queue,
    refusal: CloseReason,
) -> Result<Opened, CloseReason> {
    let made = queue.as_quorum();
    let plan = made.best_declaration(Target::Main).without_type();
    let other = match compare(&channel, &plan)? {
        Comparison::Same => return Ok(Opened::existing(channel, &made)),
        Comparison::Differs { argument, there } => (argument, there),
        Comparison::Refused(_) => return Err(refusal),
    };
    let channel = connection.open_channel()?;
    let classic = queue.best_declaration(Target::Main).with_type(QueueType::Classic);
    if compare(&channel, &classic)? == Comparison::Same {
        return Ok(Opened::existing(channel, queue));
    }
    match other {
        // All but this is as we make it.
        (argument, there) if argument == "x-delivery-limit" => Err(CloseReason::ChannelClosed {
            code: PRECONDITION_FAILED,
            text: format!("its delivery limit is {there} there; give the same --delivery-limit"),
        }),
        _ => Err(refusal),
    }
}

/// Once for each queue, not for each connection.
fn say_once_that_it_is_a_quorum_queue(name: &str, version: Option<(u32, u32)>) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if !SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into()) {
        return;
    }
    if version.is_none_or(|version| version < LIMITED_SINCE) {
        info!("queue '{name}' is a quorum queue, the virtual host's default type");
        return;
    }
    warn!("{}", dropping_quorum_queue(name));
}

/// What a quorum queue without a dead-letter route does, and the remedy.
pub(crate) fn dropping_quorum_queue(name: &str) -> String {
    let pattern: String = name.chars().map(literal).collect();
    format!(
        "queue '{name}' is a quorum queue, the virtual host's default type, and was declared \
         without a dead-letter route: RabbitMQ drops a task for good after 20 deliveries that were \
         not acked. Give it the route by a policy: rabbitmqctl set_policy '{name}' '^{pattern}$' \
         '{{\"dead-letter-exchange\":\"\",\"dead-letter-routing-key\":\"{name}.dead\",\
         \"dead-letter-strategy\":\"at-least-once\",\"overflow\":\"reject-publish\"}}' --apply-to \
         queues; then use it with --queue-type quorum --no-declare"
    )
}

/// A character of a name as it stands in a pattern.
fn literal(character: char) -> String {
    match character.is_ascii_punctuation() && !"_-".contains(character) {
        true => format!("\\{character}"),
        false => character.to_string(),
    }
}

/// Has the queue written down that was made by this plan; says from when on it may be trusted.
/// Gives the channel back, or another where a refusal took it.
pub(crate) fn settle(
    connection: &Connection,
    channel: Channel,
    plan: &QueueDeclaration,
) -> Result<(Channel, Instant), CloseReason> {
    // What the broker keeps of its queues is written in order.
    let written = plan.sync_queue().map(|sync_queue| channel.make_and_delete(&sync_queue));
    let (channel, pause) = match written {
        Some(Ok(())) if plan.is_quorum() => (channel, REPLICATED),
        Some(Ok(())) => (channel, Duration::ZERO),
        Some(Err(cause)) => (another(connection, channel, cause)?, UNWRITTEN),
        None => (channel, UNWRITTEN),
    };
    Ok((channel, Instant::now() + pause))
}

/// Another channel in place of one that a refusal took.
fn another(
    connection: &Connection,
    refused: Channel,
    cause: CloseReason,
) -> Result<Channel, CloseReason> {
    drop(refused);
    if cause.is_channel_error() { connection.open_channel() } else { Err(cause) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_of_a_quorum_queue_matches_its_name_only() {
        let told = dropping_quorum_queue("a.b*");
        assert!(told.contains("'^a\\.b\\*$'"), "{told}");
        assert!(told.contains("\"dead-letter-routing-key\":\"a.b*.dead\""), "{told}");
    }
}
