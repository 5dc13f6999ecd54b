//! Opens a channel to a queue, after it has checked that the queue exists as described, or has
//! created it.

use std::time::Instant;

use log::info;

use crate::amqp::channel::Channel;
use crate::amqp::close_reason::{CloseReason, PRECONDITION_FAILED};
use crate::amqp::connection::Connection;
use crate::model::error::STREAM;
use crate::model::queue::{Queue, QueueType, Target};
use crate::topology::admin_channel::AdminChannel;
use crate::topology::declare::{Comparison, Declared, compare, declare};
use crate::topology::default_type::{
    DefaultType, as_created_here, ask_default_type, log_once_that_it_is_a_quorum_queue,
    warn_once_if_it_drops,
};
use crate::topology::durability::make_durable;
use crate::topology::queue_type::Kind;

/// A queue that exists, and a channel to it.
pub(crate) struct ReadyQueue {
    pub(crate) channel: Channel,
    /// The queue with the type that the broker has given it.
    pub(crate) queue: Queue,
    /// From when on it outlives a crash of the broker, if we have just created it.
    pub(crate) durable_at: Option<Instant>,
}

/// The questions to the broker, one after the other.
struct Opening<'a> {
    connection: &'a Connection,
    channel: AdminChannel,
}

/// Opens a channel to a queue that exists as it is described.
pub(crate) fn open_queue(
    connection: &Connection,
    queue: &Queue,
) -> Result<ReadyQueue, CloseReason> {
    let mut opening = Opening { connection, channel: AdminChannel::default() };
    let (queue, durable_at) = opening.find_or_create(queue)?;
    let channel = opening.channel.into_channel(connection)?;
    Ok(ReadyQueue { channel, queue, durable_at })
}

impl ReadyQueue {
    /// Has the dead-letter queue exist before a worker consumes, if the broker itself dead-letters
    /// tasks. Otherwise it is declared for the first dead letter.
    pub(crate) fn with_dead_letters(
        self,
        connection: &Connection,
    ) -> Result<ReadyQueue, CloseReason> {
        if !self.queue.counts_deliveries() {
            return Ok(self);
        }
        let mut channel = AdminChannel::from(self.channel);
        match declare(&mut channel, connection, &self.queue, Target::Dead) {
            Ok(Declared::By { .. }) => {}
            Ok(used) => {
                let name = self.queue.name_of(Target::Dead);
                refuse_stream(&mut channel, connection, &name)?;
                used.log_use(&name);
            }
            // Only those who declared the queue know where the broker sends dead letters.
            Err(refused) if refused.cause.is_channel_error() && self.queue.is_passive() => {}
            Err(not_declared) => return Err(not_declared.into()),
        }
        Ok(ReadyQueue { channel: channel.into_channel(connection)?, ..self })
    }
}

/// A queue that is used as it is may be anything but a stream: nothing can be taken out of one.
fn refuse_stream(
    channel: &mut AdminChannel,
    connection: &Connection,
    name: &str,
) -> Result<Kind, CloseReason> {
    let kind = Kind::ask(channel, connection, name)?;
    if let Some(text) = kind.objection() {
        return Err(refused(text));
    }
    if let Kind::Unknown(_) = kind {
        refuse_stream_of_unknown_kind(channel, connection, name)?;
    }
    Ok(kind)
}

/// A login that may not declare the queue may be allowed to consume from it.
fn refuse_stream_of_unknown_kind(
    channel: &mut AdminChannel,
    connection: &Connection,
    name: &str,
) -> Result<(), CloseReason> {
    let asked = channel.ask(connection, |channel| channel.try_consume(name));
    // Each answer is a refusal, which closed the channel.
    channel.forget();
    match asked {
        Err(CloseReason::ChannelClosed { text, .. }) if text != STREAM => Ok(()),
        asked => asked,
    }
}

impl Opening<'_> {
    fn find_or_create(&mut self, queue: &Queue) -> Result<(Queue, Option<Instant>), CloseReason> {
        if queue.is_passive() {
            return self.find(queue).map(not_new);
        }
        match self.channel.count(self.connection, queue.name()) {
            Ok(Some(_)) => self.use_existing(queue).map(not_new),
            Ok(None) => self.create(queue),
            // The refusal of a declaration says more.
            Err(refusal) if refusal.is_channel_error() => {
                self.declare(queue).map(|()| not_new(queue.clone()))
            }
            Err(lost) => Err(lost),
        }
    }

    fn find(&mut self, queue: &Queue) -> Result<Queue, CloseReason> {
        self.channel.ask(self.connection, |channel| channel.count(queue.name()))?;
        let kind = refuse_stream(&mut self.channel, self.connection, queue.name())?;
        if !queue.counts_deliveries() {
            warn_once_if_it_drops(queue.name(), &kind, self.connection.broker_version());
        }
        Ok(queue.clone())
    }

    fn create(&mut self, queue: &Queue) -> Result<(Queue, Option<Instant>), CloseReason> {
        let created = self.with_default_type(queue)?;
        match self.declare(&created) {
            // Another program has created it in the meantime.
            Err(CloseReason::ChannelClosed { code: PRECONDITION_FAILED, .. }) => {
                return self.use_existing(queue).map(not_new);
            }
            declared => declared?,
        }
        info!("queue '{}' did not exist: created", queue.name());
        if !created.is_declared_durable() {
            return Ok(not_new(created));
        }
        let declaration = created.best_declaration(Target::Main);
        let durable_at = make_durable(&mut self.channel, self.connection, &declaration)?;
        Ok((created, Some(durable_at)))
    }

    /// The queue with the arguments that its type needs, if the virtual host's default decides the
    /// type: a quorum queue has to have a dead-letter route.
    fn with_default_type(&mut self, queue: &Queue) -> Result<Queue, CloseReason> {
        if !queue.takes_default_type() {
            return Ok(queue.clone());
        }
        match ask_default_type(&mut self.channel, self.connection, queue)? {
            DefaultType::Other => Ok(queue.clone()),
            DefaultType::Quorum => {
                info!(
                    "the default queue type of the virtual host is 'quorum': queue '{}' is \
                     declared as with --queue-type quorum",
                    queue.name()
                );
                Ok(queue.as_quorum())
            }
            DefaultType::Stream => Err(refused(
                "the default queue type of the virtual host is 'stream', which cannot be a work \
                 queue; name a type: --queue-type quorum",
            )),
        }
    }

    fn use_existing(&mut self, queue: &Queue) -> Result<Queue, CloseReason> {
        match self.declare(queue) {
            Ok(()) if queue.takes_default_type() => self.with_existing_type(queue),
            Err(refusal @ CloseReason::ChannelClosed { code: PRECONDITION_FAILED, .. })
                if queue.takes_default_type() =>
            {
                self.use_under_default_type(queue, refusal)
            }
            declared => declared.map(|()| queue.clone()),
        }
    }

    /// The queue has no arguments, as declared; it may still be a quorum queue, by the virtual
    /// host's default.
    fn with_existing_type(&mut self, queue: &Queue) -> Result<Queue, CloseReason> {
        let kind = Kind::ask(&mut self.channel, self.connection, queue.name())?;
        if !matches!(kind, Kind::Quorum { .. }) {
            return Ok(queue.clone());
        }
        log_once_that_it_is_a_quorum_queue(queue.name(), &kind, self.connection.broker_version());
        Ok(queue.as_existing_quorum())
    }

    /// Under a default type, the queue may be a quorum queue that [`create`](Opening::create) has
    /// declared, or a classic queue that was declared with its type.
    fn use_under_default_type(
        &mut self,
        queue: &Queue,
        refusal: CloseReason,
    ) -> Result<Queue, CloseReason> {
        let classic = queue.best_declaration(Target::Main).with_type(QueueType::Classic);
        let candidates = [(as_created_here(queue), queue.as_quorum()), (classic, queue.clone())];
        let mut limit = None;
        for (declaration, candidate) in candidates {
            match compare(&mut self.channel, self.connection, &declaration)? {
                Comparison::Same => return Ok(candidate),
                // It is as we create it but for this.
                Comparison::Differs { argument, there }
                    if argument == "x-delivery-limit" && candidate.counts_deliveries() =>
                {
                    limit = Some(there);
                }
                Comparison::Differs { .. } => {}
                Comparison::Refused(_) => break,
            }
        }
        Err(limit.map_or(refusal, |limit| {
            refused(&format!("its delivery limit is {limit}; give --delivery-limit {limit}"))
        }))
    }

    fn declare(&mut self, queue: &Queue) -> Result<(), CloseReason> {
        declare(&mut self.channel, self.connection, queue, Target::Main)?;
        Ok(())
    }
}

fn not_new(queue: Queue) -> (Queue, Option<Instant>) {
    (queue, None)
}

fn refused(text: &str) -> CloseReason {
    CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text: text.into() }
}
