//! Makes a new queue durable: has the broker write to disk that the queue exists.
//!
//! RabbitMQ writes that a moment after it has confirmed the declaration. A broker that is killed
//! before comes back without the queue, and without all tasks that it had confirmed there. So after
//! we create a queue, we have it written at once, or do not rely on it yet.

use std::time::{Duration, Instant};

use crate::amqp::close_reason::CloseReason;
use crate::model::queue::QueueDeclaration;
use crate::topology::admin_channel::{AdminChannel, Channels};

/// How long we do not rely on a new quorum queue: RabbitMQ writes that it exists only after no
/// other was created for half a second (measured on RabbitMQ 3.10.8, one node; the directory of its
/// Raft library).
pub(crate) const REPLICATED: Duration = Duration::from_millis(1500);

/// How long we do not rely on a queue that could not be written at once. The broker writes two
/// records of it. The second, without which the first does not count, may wait in memory for 2 s (the
/// transaction log of Mnesia; 2 to 19 of 100 declarations of classic queues, measured on RabbitMQ
/// 3.10.8).
const UNWRITTEN: Duration = Duration::from_millis(2500);

/// Has the broker write the queue to disk that was created by this declaration; returns from when
/// on the queue is durable.
///
/// The calls have the usual limit, and to pass it costs the session. A shorter one would help nobody: a
/// cluster with a frozen node that answers neither call has not answered the declaration either, which
/// came just before and needs the same nodes.
pub(crate) fn make_durable(
    channel: &mut AdminChannel,
    channels: &dyn Channels,
    declaration: &QueueDeclaration,
) -> Result<Instant, CloseReason> {
    // The broker writes its records of queues in order.
    let written = declaration
        .sync_queue()
        .map(|sync_queue| channel.ask(channels, |channel| channel.make_and_delete(&sync_queue)));
    let pause = match written {
        Some(Ok(())) if declaration.is_quorum() => REPLICATED,
        Some(Ok(())) => Duration::ZERO,
        Some(Err(lost)) if !lost.is_channel_error() => return Err(lost),
        Some(Err(_)) | None => UNWRITTEN,
    };
    Ok(Instant::now() + pause)
}
