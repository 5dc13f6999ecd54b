//! A consumer on a channel, and the deliveries that it brings.

use std::marker::PhantomData;
use std::time::Duration;

use amiquip::ConsumerMessage;
use crossbeam_channel::Receiver;

use crate::amqp::call_timeout::CallGuard;
use crate::amqp::close_reason::CloseReason;
use crate::amqp::message::take_task;
use crate::model::task::Task;

/// A consumer on a channel, while it lasts.
pub(crate) struct Subscription<'a> {
    inner: amiquip::Consumer<'a>,
    guard: &'a CallGuard,
}

/// What a subscription brings.
pub(crate) enum Incoming {
    Delivery(Unsettled, Received),
    /// The subscription is over: nothing comes any more, and nothing may be settled any more.
    Ended(CloseReason),
    /// The subscription is over because we cancelled it. Its deliveries may still be settled.
    Cancelled,
}

/// What a cancelled subscription had still brought.
pub(crate) struct Left {
    pub(crate) arrived: Vec<(Unsettled, Received)>,
    /// The broker ended the subscription before it received our cancel: as with
    /// [`Incoming::Ended`], nothing may be settled any more.
    pub(crate) ended: Option<CloseReason>,
}

/// The content of a delivery, which may go to another thread.
pub(crate) struct Received {
    pub(crate) task: Task,
    pub(crate) redelivered: bool,
}

/// The duty to settle one delivery. It cannot be copied, settling uses it up, and it stays on the
/// thread that received it, which is the one that owns the channel.
pub(crate) struct Unsettled {
    /// Boxed, because it is moved several times.
    shell: Box<amiquip::Delivery>,
    on_this_thread: PhantomData<*const ()>,
}

/// How a delivery is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Done: the broker forgets it.
    Ack,
    /// Done, together with everything unsettled that came before it on its channel.
    AckUpTo,
    /// Requeued. RabbitMQ 4.3 does not count this as a failed attempt.
    Requeue,
    /// Requeued, together with everything unsettled that came before it on its channel.
    RequeueUpTo,
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

/// How long the broker may take to confirm the cancel of a consumer. Shorter than other limits,
/// because a stop waits for it.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

impl<'a> Subscription<'a> {
    pub(super) fn new(inner: amiquip::Consumer<'a>, guard: &'a CallGuard) -> Subscription<'a> {
        Subscription { inner, guard }
    }

    /// Where deliveries, and at last the end, come in. These are messages of amiquip's: a channel of
    /// our own would need a thread that forwards each of them. The caller can only turn them into ours.
    pub(crate) fn inbox(&self) -> &Receiver<impl Into<Incoming> + use<>> {
        self.inner.receiver()
    }

    /// Waits until nothing can come any more, whoever ends the connection.
    pub(crate) fn wait_for_end(&self) {
        self.inner.receiver().iter().for_each(drop);
    }

    /// Cancels the subscription and returns what had arrived and was not taken yet.
    ///
    /// This is the only way to leave one, whatever the cause: a consumer dropped before its
    /// receiver has disconnected can kill the whole connection (amiquip 0.4.2
    /// io_loop/connection_state.rs:285).
    pub(crate) fn leave(self) -> Left {
        let mut left = Left { arrived: Vec::new(), ended: None };
        self.guard.with_idle_timeout(CANCEL_TIMEOUT, "cancelling the consumer", || {
            let _ = self.inner.cancel();
            for message in self.inner.receiver() {
                match message.into() {
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

impl From<ConsumerMessage> for Incoming {
    fn from(message: ConsumerMessage) -> Incoming {
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
}

pub(super) fn take_apart(mut delivery: amiquip::Delivery) -> (Unsettled, Received) {
    let task = take_task(&mut delivery);
    let received = Received { task, redelivered: delivery.redelivered };
    (Unsettled { shell: Box::new(delivery), on_this_thread: PhantomData }, received)
}

impl Unsettled {
    /// The delivery's number on its channel.
    pub(crate) fn tag(&self) -> u64 {
        self.shell.delivery_tag()
    }

    /// Only `Channel::settle` calls it.
    pub(super) fn settle(self, inner: &amiquip::Channel, how: Settlement) -> amiquip::Result<()> {
        match how {
            Settlement::Ack => self.shell.ack(inner),
            Settlement::AckUpTo => self.shell.ack_multiple(inner),
            Settlement::Requeue => self.shell.nack(inner, true),
            Settlement::RequeueUpTo => self.shell.nack_multiple(inner, true),
        }
    }
}
