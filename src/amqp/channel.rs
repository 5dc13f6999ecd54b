//! Owns what is done on one AMQP channel: declare, publish, consume, and the one function that
//! settles a delivery. Each call is bounded.

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Duration;

use amiquip::{
    AmqpValue, Confirm, ConsumerMessage, ConsumerOptions, FieldTable, QueueDeclareOptions,
    QueueDeleteOptions, Return,
};
use crossbeam_channel::Receiver;

use crate::amqp::call_timeout::CallGuard;
use crate::amqp::close_reason::{CloseReason, PRECONDITION_FAILED};
use crate::amqp::message::{publish_to, take_task};
use crate::model::queue::{Argument, Declaration, Durability, Queue, QueueDeclaration, Target};
use crate::model::task::Task;
use crate::util::deadline::LONGEST;

/// One channel, owned by one thread.
pub(crate) struct Channel {
    /// `None` only while it is being closed.
    inner: Option<amiquip::Channel>,
    guard: CallGuard,
    limit: Duration,
    settled: Cell<bool>,
}

/// A consumer on a channel, while it lasts.
pub(crate) struct Subscription<'a> {
    inner: amiquip::Consumer<'a>,
    channel: &'a Channel,
}

/// What a subscription brings.
#[expect(clippy::large_enum_variant, reason = "one at a time, taken apart at once, never stored")]
pub(crate) enum Incoming {
    Delivery(Unsettled, Received),
    /// The subscription is over; nothing comes any more, nothing may be settled any more.
    Ended(CloseReason),
    /// The subscription is over because we cancelled it; what is in hand may still be settled.
    Cancelled,
}

/// What a subscription that was left had still brought.
pub(crate) struct Left {
    pub(crate) arrived: Vec<(Unsettled, Received)>,
    /// The broker ended the subscription before it knew that we leave it: as with
    /// [`Incoming::Ended`], nothing may be settled any more.
    pub(crate) ended: Option<CloseReason>,
}

/// The content of a delivery, free to go to another thread.
pub(crate) struct Received {
    pub(crate) task: Task,
    pub(crate) redelivered: bool,
}

/// The duty to settle one delivery: not to be copied, used up by settling, and bound to the
/// thread that received it, which is the one that owns the channel.
pub(crate) struct Unsettled {
    shell: amiquip::Delivery,
    on_this_thread: PhantomData<*const ()>,
}

/// How a delivery is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Done: the broker forgets it.
    Ack,
    /// Given back unharmed. RabbitMQ 4.3 does not count this as a failed attempt.
    GiveBack,
    /// The same, together with everything unsettled that came before it on its channel.
    GiveBackUpTo,
}

/// What the broker tells of a queue.
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

/// Who says that a delivery is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Acks {
    /// We do, after the work: at least once.
    #[default]
    Manual,
    /// The broker assumes it when it sends: at most once.
    Automatic,
}

/// The receiving ends of a channel in confirm mode.
pub(crate) struct PublishEnds {
    pub(crate) confirms: Receiver<Confirm>,
    pub(crate) returns: Receiver<Return>,
}

/// What was returned, and why. A return carries no tag: it is known by the queue it was for, the
/// id of the task and its body (<https://www.rabbitmq.com/docs/publishers#unroutable>).
pub(crate) struct Returned {
    pub(crate) queue: String,
    pub(crate) id: Option<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) reason: String,
}

/// Which publishes a confirm speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The one with this tag.
    One(u64),
    /// Every outstanding one up to and with this tag.
    UpTo(u64),
}

/// What the broker said of one or more publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Acked(Reach),
    Nacked(Reach),
}

/// The argument of a consumer for its priority (<https://www.rabbitmq.com/docs/consumer-priority>).
const PRIORITY: &str = "x-priority";

/// What a quorum queue that has lost the majority of its nodes gives no answer to.
const ASKING_THE_LEADER: &str =
    "asking the quorum queue's leader, as if most of its nodes were down or out of reach";

/// How long leaving may take: the cancel of a subscription, the close of a channel. Shorter
/// than other calls, because a stop waits for it.
const LEAVING: Duration = Duration::from_secs(5);

impl Channel {
    pub(crate) fn new(inner: amiquip::Channel, guard: CallGuard, limit: Duration) -> Channel {
        Channel { inner: Some(inner), guard, limit, settled: Cell::new(false) }
    }

    /// Has its questions wait for as long as the connection lasts.
    pub(crate) fn without_limit(mut self) -> Channel {
        self.limit = LONGEST;
        self
    }

    /// Declares the queue as it is described, or checks that it is there at all.
    pub(crate) fn declare(&self, queue: &Queue) -> Result<(), CloseReason> {
        match queue.declaration() {
            Declaration::Declare => {
                queue.plans(Target::Main).iter().try_for_each(|plan| self.declare_as(plan))
            }
            Declaration::UseAsItIs => self.count(queue.name()).map(drop),
        }
    }

    /// Declares a queue. A refusal closes the channel.
    pub(crate) fn declare_as(&self, plan: &QueueDeclaration) -> Result<(), CloseReason> {
        self.ask("declaring a queue", |inner| {
            inner.queue_declare(plan.name.as_str(), declare_options(plan)).map(drop)
        })
    }

    /// Makes a queue that no other connection can use, and deletes it. A refusal closes the channel.
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

    /// What is in a queue. A queue that is not there closes the channel.
    pub(crate) fn count(&self, name: &str) -> Result<Count, CloseReason> {
        self.ask("looking at a queue", |inner| {
            let queue = inner.queue_declare_passive(name)?;
            let count = |it: Option<u32>| u64::from(it.unwrap_or(0));
            Ok(Count {
                ready: count(queue.declared_message_count()),
                consumers: count(queue.declared_consumer_count()),
            })
        })
    }

    /// Takes the first message of a queue, where there is one.
    pub(crate) fn get(&self, name: &str) -> Result<Option<(Unsettled, Received)>, CloseReason> {
        let got = self.ask("getting a message", |inner| inner.basic_get(name, false))?;
        Ok(got.map(|got| take_apart(got.delivery)))
    }

    /// Takes the first messages of a queue, as many as there are up to `most`: three answers of the
    /// broker for all of them, where [`get`](Channel::get) needs one for each. What the broker
    /// sends of what is ready comes before its answer to the cancel; less than `most` is no proof
    /// that nothing is left.
    pub(crate) fn take(
        &self,
        name: &str,
        most: u16,
    ) -> Result<Vec<(Unsettled, Received)>, CloseReason> {
        let Left { arrived, ended } = self.consume(name, most, Acks::Manual)?.leave();
        ended.map_or(Ok(arrived), Err)
    }

    /// Takes a message and gives it back to its place; says whether there was one.
    pub(crate) fn look(&self, name: &str) -> Result<bool, CloseReason> {
        let Some((unsettled, _)) = self.get(name)? else { return Ok(false) };
        self.settle(unsettled, Settlement::GiveBack)?;
        Ok(true)
    }

    /// Removes what is ready in a queue; says how much that was.
    pub(crate) fn purge(&self, name: &str) -> Result<u64, CloseReason> {
        self.ask("purging a queue", |inner| inner.queue_purge(name)).map(u64::from)
    }

    /// Starts a subscription with at most `prefetch` unsettled deliveries; 0 is no limit.
    pub(crate) fn consume(
        &self,
        queue: &str,
        prefetch: u16,
        acks: Acks,
    ) -> Result<Subscription<'_>, CloseReason> {
        self.ask("setting the prefetch", |inner| inner.qos(0, prefetch, false))?;
        let no_ack = acks == Acks::Automatic;
        let options = ConsumerOptions { no_ack, ..ConsumerOptions::default() };
        let inner = self.ask("starting to consume", |inner| inner.basic_consume(queue, options))?;
        Ok(Subscription { inner, channel: self })
    }

    /// Whether this user may consume from a queue, found out without consuming: asks for a
    /// consumer whose priority is no number. RabbitMQ looks at the permission first, and then
    /// refuses the priority; either takes the channel with it.
    pub(crate) fn try_consume(&self, queue: &str) -> Result<(), CloseReason> {
        // One task at most, should a broker overlook the priority.
        self.ask("setting the prefetch", |inner| inner.qos(0, 1, false))?;
        let mut arguments = FieldTable::new();
        arguments.insert(PRIORITY.into(), AmqpValue::LongString("none".into()));
        let options = ConsumerOptions { arguments, ..ConsumerOptions::default() };
        match self.ask("asking for a consumer", |inner| inner.basic_consume(queue, options)) {
            Ok(inner) => {
                let Left { arrived, .. } = Subscription { inner, channel: self }.leave();
                arrived.into_iter().try_for_each(|(it, _)| self.settle(it, Settlement::GiveBack))
            }
            Err(CloseReason::ChannelClosed { code: PRECONDITION_FAILED, text })
                if text.contains(PRIORITY) =>
            {
                Ok(())
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
        let Left { arrived, ended } = Subscription { inner: asked, channel: self }.leave();
        if !arrived.is_empty() {
            self.give_back_all()?;
        }
        ended.map_or(Ok(()), Err)
    }

    /// Looks whether an empty queue is empty, which a quorum queue only knows with the majority of
    /// its nodes.
    pub(crate) fn look_for_nothing(&self, queue: &str) -> Result<(), CloseReason> {
        match self.ask(ASKING_THE_LEADER, |inner| inner.basic_get(queue, false))? {
            Some(_) => self.give_back_all(),
            None => Ok(()),
        }
    }

    /// Puts the channel in confirm mode. To be called before the first publish: the listeners
    /// travel in the same queue as the publishes (amiquip 0.4.2 io_loop_handle.rs:64).
    pub(crate) fn confirm_publishes(&self) -> Result<PublishEnds, CloseReason> {
        let confirms = self.ask("listening", |inner| inner.listen_for_publisher_confirms())?;
        let returns = self.ask("listening", |inner| inner.listen_for_returns())?;
        self.ask("asking for confirms", |inner| inner.enable_publisher_confirms())?;
        Ok(PublishEnds { confirms, returns })
    }

    /// Hands a task to the I/O thread, mandatory, for `queue` through the default exchange.
    /// That it returned proves nothing; the confirm does.
    pub(crate) fn publish(
        &self,
        queue: &str,
        task: &Task,
        limit: Duration,
    ) -> Result<(), CloseReason> {
        let publish = publish_to(queue, task);
        self.tell_within(limit, "publishing", |inner| inner.basic_publish("", publish))
    }

    /// Gives back all that was taken on this channel and not settled, for each consumer together.
    /// One by one, a classic queue needs the square of their number to take them back.
    pub(crate) fn give_back_all(&self) -> Result<(), CloseReason> {
        self.settled.set(true);
        self.tell_within(self.limit, "giving back", |inner| inner.nack_all(true))
    }

    /// The only other place that acks, nacks or rejects.
    pub(crate) fn settle(&self, unsettled: Unsettled, how: Settlement) -> Result<(), CloseReason> {
        self.settled.set(true);
        let shell = unsettled.shell;
        self.tell_within(self.limit, "settling a delivery", |inner| match how {
            Settlement::Ack => shell.ack(inner),
            Settlement::GiveBack => shell.nack(inner, true),
            Settlement::GiveBackUpTo => shell.nack_multiple(inner, true),
        })
    }

    /// Whether anything was ever settled here, which only [`close`](Channel::close) makes sure of.
    pub(crate) fn has_settled(&self) -> bool {
        self.settled.get()
    }

    /// Shuts the socket of the whole connection, for this cause.
    pub(crate) fn fail_connection(&self, cause: &CloseReason) {
        self.guard.fail_connection(cause);
    }

    /// Closes the channel and waits for the broker's answer: the barrier behind which
    /// everything settled or published on it has reached the broker.
    pub(crate) fn close(mut self) -> Result<(), CloseReason> {
        let Some(inner) = self.inner.take() else { return Ok(()) };
        let closed = self.guard.with_idle_timeout(LEAVING, "closing the channel", || inner.close());
        closed.map_err(|error| self.cause(error))
    }

    /// Why the channel ended, where its end has not been told to anybody yet. To be asked only
    /// once its listeners have disconnected.
    pub(crate) fn last_words(mut self) -> Option<CloseReason> {
        let inner = self.inner.take()?;
        let closed = self.guard.with_timeout(LEAVING, "closing the channel", || inner.close());
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

    /// Tells the broker something.
    fn tell_within<'a, T>(
        &'a self,
        limit: Duration,
        doing: &'static str,
        tell: impl FnOnce(&'a amiquip::Channel) -> amiquip::Result<T>,
    ) -> Result<T, CloseReason> {
        let inner = self.inner()?;
        self.guard.with_timeout(limit, doing, || tell(inner)).map_err(|error| self.cause(error))
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
        self.guard.with_timeout(LEAVING, "closing the channel", || drop(inner));
    }
}

impl Subscription<'_> {
    /// Where deliveries, and at last the end, come in; to be read with [`read_message`].
    pub(crate) fn inbox(&self) -> &Receiver<ConsumerMessage> {
        self.inner.receiver()
    }

    /// Cancels the subscription and returns what had arrived and was not taken yet.
    ///
    /// This is the only way to leave one, whatever the cause: a consumer dropped before its
    /// receiver has disconnected can kill the whole connection (amiquip 0.4.2
    /// io_loop/connection_state.rs:285).
    pub(crate) fn leave(self) -> Left {
        let mut left = Left { arrived: Vec::new(), ended: None };
        self.channel.guard.with_idle_timeout(LEAVING, "cancelling the consumer", || {
            let _ = self.inner.cancel();
            for message in self.inner.receiver() {
                match read_message(message) {
                    Incoming::Delivery(unsettled, received) => {
                        left.arrived.push((unsettled, received));
                    }
                    Incoming::Ended(cause) => left.ended = Some(cause),
                    Incoming::Cancelled => {}
                }
            }
        });
        left
    }
}

pub(crate) fn read_message(message: ConsumerMessage) -> Incoming {
    match message {
        ConsumerMessage::Delivery(delivery) => {
            let (unsettled, received) = take_apart(delivery);
            Incoming::Delivery(unsettled, received)
        }
        ConsumerMessage::ServerCancelled => Incoming::Ended(CloseReason::ConsumerCancelled),
        ConsumerMessage::ServerClosedChannel(error)
        | ConsumerMessage::ServerClosedConnection(error) => Incoming::Ended(error.into()),
        ConsumerMessage::ClientClosedConnection | ConsumerMessage::ClientClosedChannel => {
            Incoming::Ended(CloseReason::Lost("the session was closed".into()))
        }
        ConsumerMessage::ClientCancelled => Incoming::Cancelled,
    }
}

fn take_apart(mut delivery: amiquip::Delivery) -> (Unsettled, Received) {
    let task = take_task(&mut delivery);
    let received = Received { task, redelivered: delivery.redelivered };
    (Unsettled { shell: delivery, on_this_thread: PhantomData }, received)
}

impl Unsettled {
    /// The delivery's number on its channel.
    pub(crate) fn tag(&self) -> u64 {
        self.shell.delivery_tag()
    }
}

pub(crate) fn read_confirm(confirm: Confirm) -> Verdict {
    let reach = |it: amiquip::ConfirmPayload| {
        if it.multiple { Reach::UpTo(it.delivery_tag) } else { Reach::One(it.delivery_tag) }
    };
    match confirm {
        Confirm::Ack(payload) => Verdict::Acked(reach(payload)),
        Confirm::Nack(payload) => Verdict::Nacked(reach(payload)),
    }
}

pub(crate) fn read_return(returned: Return) -> Returned {
    Returned {
        reason: format!("{} {}", returned.reply_code, returned.reply_text),
        id: returned.properties.message_id().clone(),
        queue: returned.routing_key,
        body: returned.content,
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
