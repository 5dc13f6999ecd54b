//! The calls on one AMQP channel, each with a limit: declare, publish, consume, and the one function
//! that settles a delivery.

use std::cell::Cell;
use std::time::Duration;

use amiquip::{AmqpValue, ConsumerOptions, FieldTable, QueueDeclareOptions, QueueDeleteOptions};

use crate::amqp::call_timeout::CallGuard;
use crate::amqp::close_reason::{CloseReason, PRECONDITION_FAILED};
use crate::amqp::consumer_tag;
use crate::amqp::outbox::{Added, Publishes};
pub(crate) use crate::amqp::publish_events::{PublishEvents, Reach, Returned, Verdict};
use crate::amqp::reply_text::{STREAM_MODULE, is_invalid_argument, refusing_queue_type};
use crate::amqp::subscription::take_apart;
pub(crate) use crate::amqp::subscription::{
    Acks, Incoming, Left, Received, Settlement, Subscription, Unsettled,
};
use crate::model::error::STREAM;
use crate::model::queue::{Argument, Durability, QueueDeclaration};
use crate::model::task::Task;
use crate::util::deadline::UNLIMITED;

/// One channel, owned by one thread.
pub(crate) struct Channel {
    /// `None` only while it is being closed.
    inner: Option<amiquip::Channel>,
    guard: CallGuard,
    limit: Duration,
    settled: Cell<bool>,
    publishes: Publishes,
}

/// What the broker reports of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) ready: u64,
    pub(crate) consumers: u64,
}

impl Count {
    /// Whether nothing waits in it and nobody consumes from it.
    pub(crate) fn is_unused(self) -> bool {
        self.ready == 0 && self.consumers == 0
    }
}

/// The argument of a consumer for its priority (<https://www.rabbitmq.com/docs/consumer-priority>).
const PRIORITY: &str = "x-priority";

/// A quorum queue without a majority of its nodes does not answer these calls.
const ASKING_THE_LEADER: &str =
    "waiting for the quorum queue's leader (are most of its nodes down?)";

/// How long the broker may take to close a channel. Shorter than other limits, because a stop waits
/// for it.
const CHANNEL_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl Channel {
    pub(super) fn new(
        inner: amiquip::Channel,
        guard: CallGuard,
        limit: Duration,
        publishes: Publishes,
    ) -> Channel {
        Channel { inner: Some(inner), guard, limit, settled: Cell::new(false), publishes }
    }

    /// Lets its calls wait for the broker's answer for as long as the connection lasts.
    pub(crate) fn without_limit(mut self) -> Channel {
        self.limit = UNLIMITED;
        self
    }

    /// Declares a queue. A refusal closes the channel.
    pub(crate) fn declare(&self, plan: &QueueDeclaration) -> Result<(), CloseReason> {
        self.ask("declaring a queue", |inner| {
            inner.queue_declare(plan.name.as_str(), declare_options(plan)).map(drop)
        })
    }

    /// Declares a queue that no other connection can use, and deletes it. A refusal closes the channel.
    pub(crate) fn make_and_delete(&self, plan: &QueueDeclaration) -> Result<(), CloseReason> {
        self.ask("declaring a queue", |inner| {
            let options = QueueDeclareOptions { exclusive: true, ..declare_options(plan) };
            inner.queue_declare(plan.name.as_str(), options).map(drop)
        })?;
        self.delete(&plan.name)
    }

    /// Deletes a queue with all that is in it.
    pub(crate) fn delete(&self, name: &str) -> Result<(), CloseReason> {
        let options = QueueDeleteOptions::default();
        self.ask("deleting a queue", |inner| inner.queue_delete(name, options).map(drop))
    }

    /// What is in a queue. If the queue does not exist, the broker closes the channel.
    pub(crate) fn count(&self, name: &str) -> Result<Count, CloseReason> {
        self.ask("checking a queue", |inner| {
            let queue = inner.queue_declare_passive(name)?;
            let count = |it: Option<u32>| u64::from(it.unwrap_or(0));
            Ok(Count {
                ready: count(queue.declared_message_count()),
                consumers: count(queue.declared_consumer_count()),
            })
        })
    }

    /// Takes the first message of a queue, if it has one.
    pub(crate) fn get(&self, name: &str) -> Result<Option<(Unsettled, Received)>, CloseReason> {
        let got = self.ask("getting a message", |inner| inner.basic_get(name, false))?;
        Ok(got.map(|got| take_apart(got.delivery)))
    }

    /// Takes the first messages of a queue, up to `most`, with three answers of the broker for all of
    /// them; [`get`](Channel::get) needs one for each. The broker sends ready messages before its
    /// answer to the cancel. Less than `most` is no proof that nothing is left.
    pub(crate) fn take(
        &self,
        name: &str,
        most: u16,
    ) -> Result<Vec<(Unsettled, Received)>, CloseReason> {
        let Left { arrived, ended } = self.consume(name, most, Acks::Manual, None)?.leave();
        ended.map_or(Ok(arrived), Err)
    }

    /// Takes a message and requeues it to its place; returns whether there was one.
    pub(crate) fn peek(&self, name: &str) -> Result<bool, CloseReason> {
        let Some((unsettled, _)) = self.get(name)? else { return Ok(false) };
        self.settle(unsettled, Settlement::Requeue)?;
        Ok(true)
    }

    /// Removes what is ready in a queue; returns how much that was.
    pub(crate) fn purge(&self, name: &str) -> Result<u64, CloseReason> {
        self.ask("purging a queue", |inner| inner.queue_purge(name)).map(u64::from)
    }

    /// Starts a subscription with at most `prefetch` unsettled deliveries; 0 is no limit. Without a
    /// tag, the broker makes one.
    pub(crate) fn consume(
        &self,
        queue: &str,
        prefetch: u16,
        acks: Acks,
        tag: Option<&str>,
    ) -> Result<Subscription<'_>, CloseReason> {
        self.ask("setting the prefetch", |inner| inner.qos(0, prefetch, false))?;
        let no_ack = acks == Acks::Automatic;
        let tag = tag.map(|tag| (consumer_tag::ARGUMENT.into(), AmqpValue::LongString(tag.into())));
        let arguments = tag.into_iter().collect();
        let options = ConsumerOptions { no_ack, arguments, ..ConsumerOptions::default() };
        let inner = self.ask("starting to consume", |inner| inner.basic_consume(queue, options))?;
        Ok(Subscription::new(inner, &self.guard))
    }

    /// Checks without consuming whether this user may consume from a queue: asks for a consumer
    /// whose priority is not a number. RabbitMQ checks the permission first, and then refuses the
    /// priority; either closes the channel. A stream takes no priority at all, and is an error.
    pub(crate) fn try_consume(&self, queue: &str) -> Result<(), CloseReason> {
        // If a broker ignores the priority, it sends at most one task.
        self.ask("setting the prefetch", |inner| inner.qos(0, 1, false))?;
        let mut arguments = FieldTable::new();
        arguments.insert(PRIORITY.into(), AmqpValue::LongString("none".into()));
        let options = ConsumerOptions { arguments, ..ConsumerOptions::default() };
        match self.ask("asking for a consumer", |inner| inner.basic_consume(queue, options)) {
            Ok(inner) => {
                let Left { arrived, .. } = Subscription::new(inner, &self.guard).leave();
                arrived.into_iter().try_for_each(|(it, _)| self.settle(it, Settlement::Requeue))
            }
            Err(CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text })
                if is_invalid_argument(&text, PRIORITY) =>
            {
                match refusing_queue_type(&text) {
                    Some(STREAM_MODULE) => Err(CloseReason::ChannelClosed {
                        code: PRECONDITION_FAILED,
                        text: STREAM.into(),
                    }),
                    _ => Ok(()),
                }
            }
            Err(cause) => Err(cause),
        }
    }

    /// Registers a consumer that is sent nothing, and cancels it. To register one, a quorum queue
    /// needs the majority of its nodes. RabbitMQ before 4.0 reads the credit from this argument,
    /// as its own AMQP 1.0 plugin sets it; a later one would send a task.
    pub(crate) fn consume_nothing(&self, queue: &str) -> Result<(), CloseReason> {
        self.ask("setting the prefetch", |inner| inner.qos(0, 1, false))?;
        let mut credit = FieldTable::new();
        credit.insert("credit".into(), AmqpValue::LongLongInt(0));
        credit.insert("drain".into(), AmqpValue::Boolean(false));
        let mut arguments = FieldTable::new();
        arguments.insert("x-credit".into(), AmqpValue::FieldTable(credit));
        let options = ConsumerOptions { arguments, ..ConsumerOptions::default() };
        let asked = self.ask(ASKING_THE_LEADER, |inner| inner.basic_consume(queue, options))?;
        let Left { arrived, ended } = Subscription::new(asked, &self.guard).leave();
        if !arrived.is_empty() {
            self.requeue_unsettled()?;
        }
        ended.map_or(Ok(()), Err)
    }

    /// Gets from an empty queue, which a quorum queue answers only with the majority of its nodes.
    pub(crate) fn get_from_empty(&self, queue: &str) -> Result<(), CloseReason> {
        match self.ask(ASKING_THE_LEADER, |inner| inner.basic_get(queue, false))? {
            Some(_) => self.requeue_unsettled(),
            None => Ok(()),
        }
    }

    /// Puts the channel in confirm mode. Call it before the first publish: the listeners and the request
    /// travel in the same queue as the publishes (amiquip 0.4.2 io_loop_handle.rs:64). So the request
    /// needs no answer: the broker has it before the first publish.
    pub(crate) fn confirm_publishes(&self) -> Result<PublishEvents, CloseReason> {
        let confirms = self.ask("listening", |inner| inner.listen_for_publisher_confirms())?;
        let returns = self.ask("listening", |inner| inner.listen_for_returns())?;
        self.send_within(self.limit, "enabling confirms", |inner| {
            inner.enable_publisher_confirms_nowait()
        })?;
        Ok(PublishEvents::new(confirms, returns))
    }

    /// Puts a task in the outbox, mandatory, for `queue` through the default exchange. Waits for
    /// nothing. A success proves nothing; the confirm does.
    pub(crate) fn publish(&self, queue: &str, task: &Task) -> Result<(), CloseReason> {
        let inner = self.inner()?;
        match self.publishes.add(inner.channel_id(), queue, task) {
            Added::More => Ok(()),
            // The mark that the stream replaces by the publishes. Nothing else was sent since the
            // last one, so that the I/O thread has room for it.
            Added::First => inner.ack_all().map_err(|error| self.cause(error)),
            Added::Full => {
                let cause = CloseReason::TimedOut { doing: "publishing", limit: self.limit };
                self.fail_connection(&cause);
                Err(cause)
            }
        }
    }

    /// Requeues all unsettled deliveries of this channel together. If they come one by one, a classic
    /// queue needs time for the square of their number.
    pub(crate) fn requeue_unsettled(&self) -> Result<(), CloseReason> {
        self.settled.set(true);
        self.send_within(self.limit, "requeueing tasks", |inner| inner.nack_all(true))
    }

    /// The only place that acks, nacks or rejects, besides [`requeue_unsettled`](Channel::requeue_unsettled).
    pub(crate) fn settle(&self, unsettled: Unsettled, how: Settlement) -> Result<(), CloseReason> {
        self.settled.set(true);
        self.send_within(self.limit, "settling a delivery", |inner| unsettled.settle(inner, how))
    }

    /// Whether anything was ever settled here. Only [`close`](Channel::close) proves that the broker
    /// knows it.
    pub(crate) fn has_settled(&self) -> bool {
        self.settled.get()
    }

    /// Shuts the socket of the whole connection, for this cause.
    pub(crate) fn fail_connection(&self, cause: &CloseReason) {
        self.guard.fail_connection(cause);
    }

    /// Closes the channel and waits for the broker's answer: it proves that everything settled or
    /// published on the channel has reached the broker.
    pub(crate) fn close(mut self) -> Result<(), CloseReason> {
        let Some(inner) = self.inner.take() else { return Ok(()) };
        let closed =
            self.guard
                .with_idle_timeout(CHANNEL_CLOSE_TIMEOUT, "closing the channel", || inner.close());
        closed.map_err(|error| self.cause(error))
    }

    /// Its number on the connection; 0 once it is closed.
    pub(crate) fn number(&self) -> u16 {
        self.inner.as_ref().map_or(0, amiquip::Channel::channel_id)
    }

    /// Why the channel ended, if no call has failed with it yet. Call it only after its listeners
    /// have disconnected.
    pub(crate) fn close_reason(mut self) -> Option<CloseReason> {
        let inner = self.inner.take()?;
        let closed =
            self.guard.with_timeout(CHANNEL_CLOSE_TIMEOUT, "closing the channel", || inner.close());
        closed.err().map(|error| self.cause(error)).filter(|cause| cause.is_channel_error())
    }

    /// Asks the broker for something, and waits for its answer.
    fn ask<'a, T>(
        &'a self,
        doing: &'static str,
        ask: impl FnOnce(&'a amiquip::Channel) -> amiquip::Result<T>,
    ) -> Result<T, CloseReason> {
        let inner = self.inner()?;
        let answered = self.guard.with_idle_timeout(self.limit, doing, || ask(inner));
        answered.map_err(|error| self.cause(error))
    }

    /// Sends the broker something that it does not answer.
    fn send_within<'a, T>(
        &'a self,
        limit: Duration,
        doing: &'static str,
        send: impl FnOnce(&'a amiquip::Channel) -> amiquip::Result<T>,
    ) -> Result<T, CloseReason> {
        let inner = self.inner()?;
        self.guard.with_timeout(limit, doing, || send(inner)).map_err(|error| self.cause(error))
    }

    fn inner(&self) -> Result<&amiquip::Channel, CloseReason> {
        self.inner.as_ref().ok_or_else(|| CloseReason::Lost("the channel is closed".into()))
    }

    fn cause(&self, error: amiquip::Error) -> CloseReason {
        self.guard.cause().unwrap_or_else(|| error.into())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // The client library's own drop waits for the broker without a limit.
        let inner = self.inner.take();
        self.guard.with_timeout(CHANNEL_CLOSE_TIMEOUT, "closing the channel", || drop(inner));
    }
}

fn declare_options(plan: &QueueDeclaration) -> QueueDeclareOptions {
    let mut arguments = FieldTable::new();
    for (name, value) in &plan.arguments {
        let value = match value {
            Argument::Text(text) => AmqpValue::LongString(text.clone()),
            Argument::Number(number) => AmqpValue::LongLongInt(*number),
            Argument::Flag(flag) => AmqpValue::Boolean(*flag),
        };
        arguments.insert(name.clone().into_owned(), value);
    }
    let durable = plan.durability == Durability::Durable;
    QueueDeclareOptions { durable, arguments, ..Default::default() }
}
