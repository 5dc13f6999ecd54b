//! Owns [`Queue`]: a queue's name and the arguments it is declared with.

use crate::error::Error;

/// A queue by its name, and how it is declared.
///
/// The default is the queue of RabbitMQ's Work Queues tutorial: durable, classic, no further
/// argument, so that any other client that follows the tutorial can declare it too
/// (<https://www.rabbitmq.com/tutorials/tutorial-two-python>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    name: String,
    durability: Durability,
    kind: QueueKind,
    declaration: Declaration,
}

/// The queue type, `x-queue-type` (<https://www.rabbitmq.com/docs/queues>).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueKind {
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
pub(crate) enum Declaration {
    Declare,
    UseAsItIs,
}

/// The longest name of AMQP's `shortstr`, in bytes.
const LONGEST_NAME: usize = 255;

impl Queue {
    /// A durable classic queue that is declared before its first use.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Queue {
        Queue {
            name: name.into(),
            durability: Durability::Durable,
            kind: QueueKind::Classic,
            declaration: Declaration::Declare,
        }
    }

    /// Sets the queue type. Default: [`QueueKind::Classic`].
    #[must_use]
    pub fn kind(mut self, kind: QueueKind) -> Queue {
        self.kind = kind;
        self
    }

    /// Declares the queue as not durable: it is gone after a broker restart, with all that is
    /// in it. Default: durable.
    #[must_use]
    pub fn transient(mut self) -> Queue {
        self.durability = Durability::Transient;
        self
    }

    /// Uses the queue as it is and never declares it. Default: declared.
    #[must_use]
    pub fn existing(mut self) -> Queue {
        self.declaration = Declaration::UseAsItIs;
        self
    }

    /// The queue's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn declaration(&self) -> Declaration {
        self.declaration
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durability == Durability::Durable
    }

    pub(crate) fn queue_kind(&self) -> QueueKind {
        self.kind
    }

    /// Refuses what the broker, or amiquip before it, would answer by closing the connection
    /// (a name of over 255 bytes is written malformed: amq-protocol-types 1.2 generation.rs:106).
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let length = self.name.len();
        if length == 0 {
            return Err(Error::setting("queue", "the name is empty"));
        }
        if length > LONGEST_NAME {
            return Err(Error::setting(
                "queue",
                format!("the name has {length} bytes, and at most {LONGEST_NAME} are allowed"),
            ));
        }
        if self.declaration == Declaration::Declare && self.name.starts_with("amq.") {
            return Err(Error::setting(
                "queue",
                "names that begin with 'amq.' are the broker's own",
            ));
        }
        if self.kind == QueueKind::Quorum && self.durability == Durability::Transient {
            return Err(Error::setting("queue type", "a quorum queue is always durable"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_1_to_255_bytes() {
        assert!(Queue::new("").validate().is_err());
        assert!(Queue::new("é".repeat(127)).validate().is_ok());
        assert!(Queue::new("x".repeat(255)).validate().is_ok());
        assert!(Queue::new("x".repeat(256)).validate().is_err());
        assert!(Queue::new("é".repeat(128)).validate().is_err());
    }

    #[test]
    fn what_cannot_be_is_refused_here() {
        assert!(Queue::new("amq.mine").validate().is_err());
        assert!(Queue::new("q").kind(QueueKind::Quorum).transient().validate().is_err());
    }
}
