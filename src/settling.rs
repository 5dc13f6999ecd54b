//! Owns what becomes of a queue that was made just now: RabbitMQ writes down that it exists a
//! moment after it has said so, and one that is killed before comes back without the queue and
//! all that it had confirmed there. So the queue is written down at once, or not trusted yet.

use std::time::{Duration, Instant};

use crate::cause::Cause;
use crate::channel::Channel;
use crate::connection::Connection;
use crate::queue::{Plan, Queue, Target};

/// How long a new quorum queue is not trusted: RabbitMQ writes down that it exists only when no
/// other was made for half a second (measured on RabbitMQ 3.10.8, one node; the directory of its
/// Raft library).
pub(crate) const REPLICATED: Duration = Duration::from_millis(1500);

/// How long a queue is not trusted that could not be written down at once. Of two records, that by
/// which the first counts may wait in memory for 2 s (the transaction log of Mnesia; 2 to 19 of 100
/// declarations of classic queues, measured on RabbitMQ 3.10.8).
const UNWRITTEN: Duration = Duration::from_millis(2500);

/// What is known of a queue's age once it is declared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    Old,
    /// Nobody uses it: others, or we on a connection that was lost, may have made it just now.
    Unknown,
    /// There was none before.
    Made,
}

/// A channel to a queue that is there.
pub(crate) struct Opened {
    pub(crate) channel: Channel,
    /// From when on the queue may be trusted, where it is not known to be an old one.
    pub(crate) settled_at: Option<Instant>,
    /// Whether there was none before.
    pub(crate) is_made: bool,
}

/// Opens a channel, and sees to it that the queue is there as it is described.
pub(crate) fn open_channel_to(connection: &mut Connection, queue: &Queue) -> Result<Opened, Cause> {
    let channel = connection.open_channel()?;
    let (channel, age) = match queue.is_declared_durable() {
        true => look_for(connection, channel, queue.name())?,
        false => (channel, Age::Old),
    };
    channel.declare(queue)?;
    let is_made = age == Age::Made;
    if age == Age::Old {
        return Ok(Opened { channel, settled_at: None, is_made });
    }
    let plan = queue.plans(Target::Work).swap_remove(0);
    let (channel, settled_at) = settle(connection, channel, &plan)?;
    Ok(Opened { channel, settled_at: Some(settled_at), is_made })
}

/// Has the queue written down that was made by this plan; says from when on it may be trusted.
/// Gives the channel back, or another where a refusal took it.
pub(crate) fn settle(
    connection: &mut Connection,
    channel: Channel,
    plan: &Plan,
) -> Result<(Channel, Instant), Cause> {
    // What the broker keeps of its queues is written in order.
    let written = plan.companion().map(|companion| channel.make_and_delete(&companion));
    let (channel, pause) = match written {
        Some(Ok(())) if plan.is_replicated() => (channel, REPLICATED),
        Some(Ok(())) => (channel, Duration::ZERO),
        Some(Err(cause)) => (another(connection, channel, cause)?, UNWRITTEN),
        None => (channel, UNWRITTEN),
    };
    Ok((channel, Instant::now() + pause))
}

/// Looks how old a queue is. A refusal is told by its declaration, in better words.
fn look_for(
    connection: &mut Connection,
    channel: Channel,
    name: &str,
) -> Result<(Channel, Age), Cause> {
    match channel.count(name) {
        Ok(count) if count.is_unused() => Ok((channel, Age::Unknown)),
        Ok(_) => Ok((channel, Age::Old)),
        Err(cause) => {
            let age = if cause.is_not_there() { Age::Made } else { Age::Old };
            Ok((another(connection, channel, cause)?, age))
        }
    }
}

/// Another channel in place of one that a refusal took.
fn another(connection: &mut Connection, refused: Channel, cause: Cause) -> Result<Channel, Cause> {
    drop(refused);
    if cause.spares_the_connection() { connection.open_channel() } else { Err(cause) }
}
