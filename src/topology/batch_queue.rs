//! Creates, finds and deletes the queue of a batch's outcomes.

use std::time::Instant;

use log::debug;

use crate::amqp::channel::Channel;
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::model::batch::id::BatchId;
use crate::model::queue::{Queue, Target};
use crate::topology::admin_channel::AdminChannel;
use crate::topology::declare::declare;
use crate::topology::durability::make_durable;

/// Creates the queue, unless it exists. Returns from when on it outlives a crash of the broker.
pub(crate) fn create_batch_queue(
    connection: &Connection,
    queue: &Queue,
    batch: BatchId,
) -> Result<Instant, CloseReason> {
    let target = Target::Batch(batch);
    let mut channel = AdminChannel::default();
    declare(&mut channel, connection, queue, target)?;
    make_durable(&mut channel, connection, &queue.best_declaration(target))
}

/// Opens a channel to the queue, which exists, and from which we may take.
pub(crate) fn open_batch_queue(
    connection: &Connection,
    queue: &Queue,
    batch: BatchId,
) -> Result<Channel, CloseReason> {
    let channel = connection.open_channel()?;
    // Unlike a count, this needs the permission to read.
    channel.peek(&queue.name_of(Target::Batch(batch)))?;
    Ok(channel)
}

/// Deletes the queue: nobody waits any more. It would expire by itself, only later.
pub(crate) fn delete_batch_queue(channel: &Channel, queue: &Queue, batch: BatchId) {
    if let Err(cause) = channel.delete(&queue.name_of(Target::Batch(batch))) {
        debug!("the queue of outcomes is not deleted: {cause}");
    }
}
