//! [`Queue`]: a queue's name, type and settings, and the names of its delay queues and dead-letter
//! queue. Pure.

mod declaration;
mod validate;

use std::time::Duration;

use crate::model::batch::id::BatchId;

pub(crate) use declaration::{Arguments, NO_DELIVERY_LIMIT, QueueDeclaration};

/// A queue by its name, and how it is declared.
///
/// The default is the queue of RabbitMQ's Work Queues tutorial: durable, classic, no further
/// argument, so that any other client that follows the tutorial can declare it too
/// (<https://www.rabbitmq.com/tutorials/tutorial-two-python>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    name: String,
    durability: Durability,
    kind: QueueType,
    declaration: Declaration,
    delivery_limit: u32,
    arguments: Vec<(String, Argument)>,
}

/// Where a task is published to: the queue itself, or a queue derived from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// The queue itself.
    Main,
    /// The delay queue for this delay, in whole milliseconds, from which it comes back.
    Delay(Duration),
    /// The dead-letter queue.
    Dead,
    /// The queue of the outcomes of this batch.
    Batch(BatchId),
}

/// The value of an argument of a queue's declaration ([`Queue::argument`]), or of a task's header
/// ([`Task::with_header`](crate::Task::with_header)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Argument {
    /// A text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// True or false.
    Flag(bool),
}

impl From<&str> for Argument {
    fn from(text: &str) -> Argument {
        Argument::Text(text.into())
    }
}

impl From<String> for Argument {
    fn from(text: String) -> Argument {
        Argument::Text(text)
    }
}

impl From<&String> for Argument {
    fn from(text: &String) -> Argument {
        Argument::Text(text.clone())
    }
}

impl From<i32> for Argument {
    fn from(number: i32) -> Argument {
        Argument::Number(number.into())
    }
}

impl From<u32> for Argument {
    fn from(number: u32) -> Argument {
        Argument::Number(number.into())
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Argument {
        Argument::Number(number)
    }
}

impl From<bool> for Argument {
    fn from(flag: bool) -> Argument {
        Argument::Flag(flag)
    }
}

/// The queue type, `x-queue-type` (<https://www.rabbitmq.com/docs/queues>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueType {
    /// A queue on one node. Declared without an argument, as the tutorial does.
    #[default]
    Classic,
    /// A replicated queue that counts deliveries (<https://www.rabbitmq.com/docs/quorum-queues>).
    Quorum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    Durable,
    Transient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Declaration {
    Declare,
    Passive,
}

/// The longest name of AMQP's `shortstr`, in bytes.
const LONGEST_NAME: usize = 255;

const TYPE: &str = "x-queue-type";
const CLASSIC: &str = "classic";
const QUORUM: &str = "quorum";
const OVERFLOW: &str = "x-overflow";
const REJECT_PUBLISH: &str = "reject-publish";
const MAX_PRIORITY: &str = "x-max-priority";

/// The version of RabbitMQ.
const QUORUM_PRIORITIES_SINCE: (u32, u32) = (4, 0);

/// Arguments that only a classic queue can have: RabbitMQ refuses them for another type.
pub(crate) const CLASSIC_ONLY: [&str; 4] =
    [MAX_PRIORITY, "x-queue-mode", "x-queue-master-locator", "x-queue-version"];

impl Queue {
    /// A durable classic queue that is declared before its first use.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Queue {
        Queue {
            name: name.into(),
            durability: Durability::Durable,
            kind: QueueType::Classic,
            declaration: Declaration::Declare,
            delivery_limit: 20,
            arguments: Vec::new(),
        }
    }

    /// Sets the queue type. Default: [`QueueType::Classic`].
    #[must_use]
    pub fn queue_type(mut self, kind: QueueType) -> Queue {
        self.kind = kind;
        self
    }

    /// Declares the queue as not durable: a broker restart deletes it with all its tasks. Default:
    /// durable.
    #[must_use]
    pub fn transient(mut self) -> Queue {
        self.durability = Durability::Transient;
        self
    }

    /// Uses the queue as it is, and never declares it. Default: declared.
    #[must_use]
    pub fn passive(mut self) -> Queue {
        self.declaration = Declaration::Passive;
        self
    }

    /// Sets after how many unacked deliveries a quorum queue itself dead-letters a task, so that a task
    /// that kills its worker each time is not tried for ever. A delivery counts if its worker
    /// crashed or, before RabbitMQ 4.3, requeued the task. So do the other tasks that the worker had
    /// prefetched: use a prefetch of 1. The limit is part of the queue's declaration. A classic queue
    /// has none (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>). Default: 20.
    #[must_use]
    pub fn delivery_limit(mut self, deliveries: u32) -> Queue {
        self.delivery_limit = deliveries;
        self
    }

    /// Adds an argument to the declaration of the queue itself, for instance `x-max-priority`,
    /// `x-single-active-consumer`, or `x-max-length` together with `x-overflow` =
    /// `reject-publish` (<https://www.rabbitmq.com/docs/queues#optional-arguments>). An argument that
    /// has a setting of its own, or that would make the broker drop confirmed tasks, is refused when
    /// the queue is used. Default: none.
    #[must_use]
    pub fn argument(mut self, name: impl Into<String>, value: impl Into<Argument>) -> Queue {
        self.arguments.push((name.into(), value.into()));
        self
    }

    /// Whether the priorities of tasks have an effect with a broker of this version, as far as is known.
    /// A classic queue needs `x-max-priority`; a quorum queue has two priorities since RabbitMQ 4.0, and
    /// 32 since 4.3 (<https://www.rabbitmq.com/docs/priority>).
    pub(crate) fn has_priorities(&self, version: Option<(u32, u32)>) -> bool {
        match self.kind {
            QueueType::Quorum => version.is_none_or(|version| version >= QUORUM_PRIORITIES_SINCE),
            QueueType::Classic => {
                self.is_passive() || self.arguments.iter().any(|(name, _)| name == MAX_PRIORITY)
            }
        }
    }

    /// The queue's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is used as it is, and never declared.
    pub(crate) fn is_passive(&self) -> bool {
        self.declaration == Declaration::Passive
    }

    /// The name of the queue that `target` means.
    pub(crate) fn name_of(&self, target: Target) -> String {
        match target {
            Target::Main => self.name.clone(),
            Target::Delay(delay) => format!("{}.retry.{}", self.name, delay.as_millis()),
            Target::Dead => format!("{}.dead", self.name),
            Target::Batch(id) => format!("{}.batch.{id}", self.name),
        }
    }

    /// Whether it is declared as a queue that outlives a broker restart.
    pub(crate) fn is_declared_durable(&self) -> bool {
        self.durability == Durability::Durable && !self.is_passive()
    }

    /// Whether it is declared as of this type, named as in `x-queue-type`.
    pub(crate) fn is_of_type(&self, name: &str) -> bool {
        match self.kind {
            QueueType::Classic => name == CLASSIC,
            QueueType::Quorum => name == QUORUM,
        }
    }

    /// Whether the broker counts deliveries, and may dead-letter tasks itself: by our declaration,
    /// or by a policy.
    pub(crate) fn counts_deliveries(&self) -> bool {
        self.kind == QueueType::Quorum
    }

    /// This queue as a quorum queue that exists, and that we did not declare as one.
    pub(crate) fn as_existing_quorum(&self) -> Queue {
        Queue { kind: QueueType::Quorum, declaration: Declaration::Passive, ..self.clone() }
    }

    /// This queue declared as a quorum queue, because that is the virtual host's default type.
    pub(crate) fn as_quorum(&self) -> Queue {
        Queue { kind: QueueType::Quorum, ..self.clone() }
    }

    /// Whether the virtual host's default decides its type.
    pub(crate) fn takes_default_type(&self) -> bool {
        let names_its_type = self.arguments().iter().any(|(name, _)| name == TYPE);
        self.is_declared_durable() && !names_its_type
    }
}
