//! Owns [`Queue`]: a queue's name and the arguments that it, its delay queues and its queue of
//! dead letters are declared with. Pure.

use std::time::Duration;

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
    delivery_limit: u32,
}

/// Where a task is published to: the queue itself, or one of those beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// The queue itself.
    Work,
    /// The delay queue for this delay, in whole milliseconds, from which it comes back.
    Delay(Duration),
    /// The queue of dead letters.
    Dead,
}

/// How a queue is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) durability: Durability,
    pub(crate) arguments: Vec<(&'static str, Argument)>,
}

impl Plan {
    pub(crate) fn is_replicated(&self) -> bool {
        self.arguments.contains(&("x-queue-type", text("quorum")))
    }

    /// The queue that is made and deleted to have this one written down; `None` where the name
    /// leaves no room for another.
    pub(crate) fn companion(&self) -> Option<Plan> {
        let name = format!("{}.settling", self.name);
        // Classic also where the virtual host's default is a type that cannot be exclusive.
        let arguments = vec![("x-queue-type", text("classic"))];
        (name.len() <= LONGEST_NAME).then_some(Plan {
            name,
            durability: Durability::Durable,
            arguments,
        })
    }
}

/// The value of an argument of a declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    Text(String),
    Number(i64),
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

/// How much longer than its delay an unused delay queue stays. A quorum queue counts the time
/// during which its broker is down as well, and expires with whatever is in it.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest delay: RabbitMQ's timers count milliseconds in 32 bits, which is 49 days, and an
/// unused queue has to outlive its delay.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(42 * 24 * 3600);

/// A quorum queue of RabbitMQ 4 drops what was given back 20 times, unless told otherwise.
/// Looking at a delay queue or at dead letters gives back.
pub(crate) const NEVER_TOO_OFTEN: i64 = i32::MAX as i64;

/// How many delays a queue's list of delays holds. The oldest entry makes way.
const DELAYS_LISTED: i64 = 10_000;

impl Queue {
    /// A durable classic queue that is declared before its first use.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Queue {
        Queue {
            name: name.into(),
            durability: Durability::Durable,
            kind: QueueKind::Classic,
            declaration: Declaration::Declare,
            delivery_limit: 20,
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

    /// Sets after how many deliveries that ended in a crash, or before RabbitMQ 4.3 in a task given
    /// back, a quorum queue itself makes a dead letter of the task: what kills its worker each
    /// time is not tried for ever. What its worker had in hand beside it counts as well: use a
    /// prefetch of 1. Part of the queue's declaration. A classic queue does not count
    /// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>). Default: 20.
    #[must_use]
    pub fn delivery_limit(mut self, deliveries: u32) -> Queue {
        self.delivery_limit = deliveries;
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

    /// The name of the queue that `target` means.
    pub(crate) fn name_of(&self, target: Target) -> String {
        match target {
            Target::Work => self.name.clone(),
            Target::Delay(delay) => format!("{}.retry.{}", self.name, delay.as_millis()),
            Target::Dead => format!("{}.dead", self.name),
        }
    }

    /// How the queue of `target` is declared; where there is more than one way, the best first.
    pub(crate) fn plans(&self, target: Target) -> Vec<Plan> {
        let arguments = match target {
            Target::Work => vec![self.arguments()],
            Target::Delay(delay) => vec![self.safe_delay(delay), self.simple_delay(delay)],
            Target::Dead => vec![self.dead_arguments()],
        };
        let durability = match target {
            Target::Work => self.durability,
            Target::Delay(_) | Target::Dead => Durability::Durable,
        };
        let plan = |arguments| Plan { name: self.name_of(target), durability, arguments };
        arguments.into_iter().map(plan).collect()
    }

    /// The queue that lists which delay queues this queue has: one message for each delay, in
    /// milliseconds. A client can neither list queues nor guess their names.
    pub(crate) fn delays_plan(&self) -> Plan {
        Plan {
            name: format!("{}.retries", self.name),
            durability: Durability::Durable,
            // Classic also where the virtual host's default is another type: of a quorum queue
            // its entries would be dropped for being looked at (its delivery limit).
            arguments: vec![
                ("x-queue-type", text("classic")),
                ("x-max-length", Argument::Number(DELAYS_LISTED)),
            ],
        }
    }

    /// Whether it is declared as one that is there after a broker restart.
    pub(crate) fn is_declared_durable(&self) -> bool {
        self.durability == Durability::Durable && self.declaration == Declaration::Declare
    }

    /// Whether the broker itself makes dead letters of what was delivered too often.
    pub(crate) fn counts_deliveries(&self) -> bool {
        self.kind == QueueKind::Quorum && self.declaration == Declaration::Declare
    }

    fn arguments(&self) -> Vec<(&'static str, Argument)> {
        match self.kind {
            QueueKind::Classic => Vec::new(),
            QueueKind::Quorum => {
                let mut arguments = safe_hop(self.name_of(Target::Dead));
                arguments.push(("x-delivery-limit", Argument::Number(self.delivery_limit.into())));
                arguments
            }
        }
    }

    fn dead_arguments(&self) -> Vec<(&'static str, Argument)> {
        match self.kind {
            QueueKind::Classic => Vec::new(),
            QueueKind::Quorum => vec![
                ("x-queue-type", text("quorum")),
                ("x-delivery-limit", Argument::Number(NEVER_TOO_OFTEN)),
            ],
        }
    }

    /// A delay queue that keeps each task until the queue behind it has confirmed it: RabbitMQ
    /// 3.10 and later (<https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>).
    fn safe_delay(&self, delay: Duration) -> Vec<(&'static str, Argument)> {
        let mut arguments = safe_hop(self.name.clone());
        arguments.push(("x-delivery-limit", Argument::Number(NEVER_TOO_OFTEN)));
        arguments.extend(timers(delay));
        arguments
    }

    /// A delay queue for brokers without the other kind: a crash of the broker in the very
    /// moment of the hop can lose a task.
    fn simple_delay(&self, delay: Duration) -> Vec<(&'static str, Argument)> {
        let mut arguments = vec![
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(&self.name)),
        ];
        arguments.extend(timers(delay));
        arguments
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
        if self.delivery_limit == 0 {
            return Err(Error::setting("delivery limit", "0 would allow no delivery"));
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

impl Queue {
    /// Refuses a name that leaves no room for the names of the queues beside it.
    pub(crate) fn validate_for_delays(&self) -> Result<(), Error> {
        let longest = self.name_of(Target::Delay(LONGEST_DELAY)).len();
        if longest > LONGEST_NAME {
            let most = LONGEST_NAME - (longest - self.name.len());
            let reason = format!("for retries and delays the name may have {most} bytes at most");
            return Err(Error::setting("queue", reason));
        }
        Ok(())
    }
}

/// How long a delay queue stays when it is not used.
pub(crate) fn unused_after(delay: Duration) -> Duration {
    delay + UNUSED
}

fn text(text: &str) -> Argument {
    Argument::Text(text.into())
}

/// A quorum queue that lets go of a dead letter only when the queue `to` has confirmed it.
fn safe_hop(to: String) -> Vec<(&'static str, Argument)> {
    vec![
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", Argument::Text(to)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]
}

fn timers(delay: Duration) -> [(&'static str, Argument); 2] {
    let millis = |it: Duration| Argument::Number(i64::try_from(it.as_millis()).unwrap_or(i64::MAX));
    [("x-message-ttl", millis(delay)), ("x-expires", millis(unused_after(delay)))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(queue: &Queue, target: Target) -> Plan {
        queue.plans(target).swap_remove(0)
    }

    fn number(plan: &Plan, name: &str) -> i64 {
        match plan.arguments.iter().find(|(argument, _)| *argument == name) {
            Some((_, Argument::Number(number))) => *number,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn a_durable_classic_queue_has_no_argument_as_in_the_tutorial() {
        let plan = plan(&Queue::new("q").delivery_limit(3), Target::Work);
        assert_eq!(plan.arguments, []);
        assert_eq!(plan.durability, Durability::Durable);
    }

    #[test]
    fn a_quorum_queue_sends_what_was_delivered_too_often_to_the_dead_letters() {
        let plan = plan(&Queue::new("q").kind(QueueKind::Quorum).delivery_limit(3), Target::Work);
        assert_eq!(number(&plan, "x-delivery-limit"), 3);
        assert!(plan.arguments.contains(&("x-dead-letter-routing-key", text("q.dead"))));
    }

    #[test]
    fn a_delay_queue_outlives_its_delay_within_the_brokers_range() {
        let queue = Queue::new("q").transient();
        for delay in [Duration::from_millis(1), Duration::from_secs(5), LONGEST_DELAY] {
            for plan in queue.plans(Target::Delay(delay)) {
                assert_eq!(plan.name, format!("q.retry.{}", delay.as_millis()));
                assert_eq!(plan.durability, Durability::Durable);
                assert_eq!(number(&plan, "x-message-ttl") as u128, delay.as_millis());
                let expires = number(&plan, "x-expires");
                assert!(expires > number(&plan, "x-message-ttl"));
                assert!(expires <= i64::from(u32::MAX), "RabbitMQ's timers have 32 bits");
                assert!(plan.arguments.contains(&("x-dead-letter-routing-key", text("q"))));
            }
        }
    }

    #[test]
    fn names_leave_room_for_the_queues_beside_them() {
        assert!(Queue::new("x".repeat(238)).validate_for_delays().is_ok());
        assert!(Queue::new("x".repeat(239)).validate_for_delays().is_err());
    }

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
