//! The broker's answers to publishes: confirms and returns.

use amiquip::{Confirm, ConfirmPayload, Return};
use crossbeam_channel::Receiver;

/// The answers on a channel in confirm mode.
pub(crate) struct PublishEvents {
    confirms: Receiver<Confirm>,
    returns: Receiver<Return>,
}

/// A task that was returned, and why. A return carries no tag: it is matched by the queue it was
/// for, the id of the task and its body (<https://www.rabbitmq.com/docs/publishers#unroutable>).
pub(crate) struct Returned {
    pub(crate) queue: String,
    pub(crate) id: Option<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) reason: String,
}

/// Which publishes a confirm covers.
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

impl PublishEvents {
    pub(super) fn new(confirms: Receiver<Confirm>, returns: Receiver<Return>) -> PublishEvents {
        PublishEvents { confirms, returns }
    }

    /// The confirms, as amiquip sends them: see [`inbox`](crate::amqp::subscription::Subscription::inbox).
    pub(crate) fn confirms(&self) -> &Receiver<impl Into<Verdict> + use<>> {
        &self.confirms
    }

    /// A return is here before the confirm of the same task.
    pub(crate) fn next_return(&self) -> Option<Returned> {
        self.returns.try_recv().ok().map(Returned::from)
    }
}

impl From<Confirm> for Verdict {
    fn from(confirm: Confirm) -> Verdict {
        match confirm {
            Confirm::Ack(payload) => Verdict::Acked(payload.into()),
            Confirm::Nack(payload) => Verdict::Nacked(payload.into()),
        }
    }
}

impl From<ConfirmPayload> for Reach {
    fn from(payload: ConfirmPayload) -> Reach {
        let tag = payload.delivery_tag;
        if payload.multiple { Reach::UpTo(tag) } else { Reach::One(tag) }
    }
}

impl From<Return> for Returned {
    fn from(returned: Return) -> Returned {
        Returned {
            reason: format!("{} {}", returned.reply_code, returned.reply_text),
            id: returned.properties.message_id().clone(),
            queue: returned.routing_key,
            body: returned.content,
        }
    }
}
