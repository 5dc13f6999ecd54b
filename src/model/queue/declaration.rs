//! How a queue, its delay queues and its dead-letter queue are declared. Pure.

use std::borrow::Cow;
use std::time::Duration;

use crate::model::queue::{
    Argument, CLASSIC, CLASSIC_ONLY, Durability, LONGEST_NAME, OVERFLOW, QUORUM, Queue, QueueType,
    REJECT_PUBLISH, TYPE, Target,
};

/// How a queue is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueueDeclaration {
    pub(crate) name: String,
    pub(crate) durability: Durability,
    pub(crate) arguments: Arguments,
}

pub(crate) type Arguments = Vec<(Cow<'static, str>, Argument)>;

impl QueueDeclaration {
    pub(crate) fn is_quorum(&self) -> bool {
        self.arguments.iter().any(|(name, value)| name == TYPE && *value == text(QUORUM))
    }

    /// The same declaration with the queue type named; if it is named already, the same.
    pub(crate) fn with_type(mut self, kind: QueueType) -> QueueDeclaration {
        if self.arguments.iter().all(|(name, _)| name != TYPE) {
            self.arguments.push(type_argument(kind));
        }
        self
    }

    /// The same declaration with the queue type left to the virtual host's default.
    pub(crate) fn without_type(mut self) -> QueueDeclaration {
        self.arguments.retain(|(name, _)| name != TYPE);
        self
    }

    /// A queue to create and delete, so that the broker writes this one to disk first; `None` if the
    /// name is too long for another.
    pub(crate) fn sync_queue(&self) -> Option<QueueDeclaration> {
        let name = format!("{}.settling", self.name);
        // Named, because the virtual host's default may be a type that cannot be exclusive.
        let arguments = vec![type_argument(QueueType::Classic)];
        (name.len() <= LONGEST_NAME).then_some(QueueDeclaration {
            name,
            durability: Durability::Durable,
            arguments,
        })
    }
}

/// How long an unused queue of outcomes stays, and how much longer than its delay an unused delay
/// queue. A quorum queue counts the time during which its broker is down, and expires with all tasks in
/// it.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);

/// The delivery limit of queues that we only peek into: a peek requeues, and by default a quorum
/// queue of RabbitMQ 4 drops a message that was requeued 20 times.
pub(crate) const NO_DELIVERY_LIMIT: i64 = i32::MAX as i64;

impl Queue {
    /// How the queue of `target` is declared; if there is more than one way, the best first.
    pub(crate) fn declarations(&self, target: Target) -> Vec<QueueDeclaration> {
        let arguments = match target {
            Target::Main => vec![self.arguments()],
            Target::Delay(delay) => vec![self.safe_delay(delay), self.simple_delay(delay)],
            Target::Dead => vec![self.dead_arguments()],
            Target::Batch(_) => vec![batch_arguments()],
        };
        let durability = match target {
            Target::Main => self.durability,
            Target::Delay(_) | Target::Dead | Target::Batch(_) => Durability::Durable,
        };
        let declaration =
            |arguments| QueueDeclaration { name: self.name_of(target), durability, arguments };
        arguments.into_iter().map(declaration).collect()
    }

    /// The best of the [`declarations`](Queue::declarations).
    pub(crate) fn best_declaration(&self, target: Target) -> QueueDeclaration {
        self.declarations(target).swap_remove(0)
    }

    pub(super) fn arguments(&self) -> Arguments {
        let mut arguments = match self.kind {
            QueueType::Classic if self.asks_for_a_classic_queue() => {
                vec![type_argument(QueueType::Classic)]
            }
            QueueType::Classic => Vec::new(),
            QueueType::Quorum => {
                let mut arguments = safe_hop(self.name_of(Target::Dead));
                let limit = Argument::Number(self.delivery_limit.into());
                arguments.push(("x-delivery-limit".into(), limit));
                arguments
            }
        };
        for (name, value) in &self.arguments {
            if arguments.iter().all(|(ours, _)| ours != name) {
                arguments.push((name.clone().into(), value.clone()));
            }
        }
        arguments
    }

    fn asks_for_a_classic_queue(&self) -> bool {
        self.arguments.iter().any(|(name, _)| CLASSIC_ONLY.contains(&name.as_str()))
    }

    fn dead_arguments(&self) -> Arguments {
        match self.kind {
            QueueType::Classic => vec![type_argument(QueueType::Classic)],
            QueueType::Quorum => vec![
                type_argument(QueueType::Quorum),
                ("x-delivery-limit".into(), Argument::Number(NO_DELIVERY_LIMIT)),
            ],
        }
    }

    /// A delay queue that keeps each task until the main queue has confirmed it: RabbitMQ 3.10 and
    /// later (<https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>).
    fn safe_delay(&self, delay: Duration) -> Arguments {
        let mut arguments = safe_hop(self.name.clone());
        arguments.push(("x-delivery-limit".into(), Argument::Number(NO_DELIVERY_LIMIT)));
        arguments.extend(timers(delay));
        arguments
    }

    /// A delay queue for brokers without the safe kind: if the broker crashes while a task moves to
    /// the main queue, the task can be lost.
    fn simple_delay(&self, delay: Duration) -> Arguments {
        let mut arguments = vec![
            type_argument(QueueType::Classic),
            ("x-dead-letter-exchange".into(), text("")),
            ("x-dead-letter-routing-key".into(), text(&self.name)),
        ];
        arguments.extend(timers(delay));
        arguments
    }
}

/// A queue that the broker deletes with the outcomes in it when nobody has used it for a week.
fn batch_arguments() -> Arguments {
    let expires = i64::try_from(UNUSED.as_millis()).unwrap_or(i64::MAX);
    vec![type_argument(QueueType::Classic), ("x-expires".into(), Argument::Number(expires))]
}

/// How long an unused delay queue stays.
fn unused_after(delay: Duration) -> Duration {
    delay + UNUSED
}

fn text(text: &str) -> Argument {
    Argument::Text(text.into())
}

fn type_argument(kind: QueueType) -> (Cow<'static, str>, Argument) {
    let name = match kind {
        QueueType::Classic => CLASSIC,
        QueueType::Quorum => QUORUM,
    };
    (TYPE.into(), text(name))
}

/// A quorum queue that removes a dead-lettered message only after the queue `to` has confirmed it.
fn safe_hop(to: String) -> Arguments {
    vec![
        type_argument(QueueType::Quorum),
        ("x-dead-letter-exchange".into(), text("")),
        ("x-dead-letter-routing-key".into(), Argument::Text(to)),
        ("x-dead-letter-strategy".into(), text("at-least-once")),
        (OVERFLOW.into(), text(REJECT_PUBLISH)),
    ]
}

fn timers(delay: Duration) -> [(Cow<'static, str>, Argument); 2] {
    let millis = |it: Duration| Argument::Number(i64::try_from(it.as_millis()).unwrap_or(i64::MAX));
    [("x-message-ttl".into(), millis(delay)), ("x-expires".into(), millis(unused_after(delay)))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::batch::id::BatchId;
    use crate::model::delays::LONGEST_DELAY;

    fn number(declaration: &QueueDeclaration, name: &str) -> i64 {
        match declaration.arguments.iter().find(|(argument, _)| *argument == name) {
            Some((_, Argument::Number(number))) => *number,
            other => panic!("{name}: {other:?}"),
        }
    }

    fn has(declaration: &QueueDeclaration, name: &'static str, value: &str) -> bool {
        declaration.arguments.contains(&(name.into(), text(value)))
    }

    #[test]
    fn a_durable_classic_queue_has_no_argument_as_in_the_tutorial() {
        let declaration = Queue::new("q").delivery_limit(3).best_declaration(Target::Main);
        assert_eq!(declaration.arguments, []);
        assert_eq!(declaration.durability, Durability::Durable);
    }

    #[test]
    fn a_quorum_queue_sends_what_was_delivered_too_often_to_the_dead_letters() {
        let queue = Queue::new("q").queue_type(QueueType::Quorum).delivery_limit(3);
        let declaration = queue.best_declaration(Target::Main);
        assert_eq!(number(&declaration, "x-delivery-limit"), 3);
        assert!(has(&declaration, "x-dead-letter-routing-key", "q.dead"));
    }

    #[test]
    fn a_delay_queue_outlives_its_delay_within_the_brokers_range() {
        let queue = Queue::new("q").transient();
        for delay in [Duration::from_millis(1), Duration::from_secs(5), LONGEST_DELAY] {
            for declaration in queue.declarations(Target::Delay(delay)) {
                assert_eq!(declaration.name, format!("q.retry.{}", delay.as_millis()));
                assert_eq!(declaration.durability, Durability::Durable);
                assert_eq!(number(&declaration, "x-message-ttl") as u128, delay.as_millis());
                let expires = number(&declaration, "x-expires");
                assert!(expires > number(&declaration, "x-message-ttl"));
                assert!(expires <= i64::from(u32::MAX), "RabbitMQ's timers have 32 bits");
                assert!(has(&declaration, "x-dead-letter-routing-key", "q"));
            }
        }
    }

    #[test]
    fn what_is_declared_beside_a_queue_names_its_type() {
        for queue in [Queue::new("q"), Queue::new("q").queue_type(QueueType::Quorum)] {
            let batch = Target::Batch(BatchId::random());
            let beside = [Target::Dead, Target::Delay(Duration::from_secs(1)), batch];
            for declaration in beside.into_iter().flat_map(|target| queue.declarations(target)) {
                assert!(
                    has(&declaration, TYPE, CLASSIC) || has(&declaration, TYPE, QUORUM),
                    "{declaration:?}"
                );
            }
        }
    }

    #[test]
    fn the_queue_of_a_batch_is_durable_classic_and_stays_for_a_week_without_use() {
        let batch = Target::Batch(BatchId::of(1));
        for queue in [Queue::new("q").transient(), Queue::new("q").queue_type(QueueType::Quorum)] {
            let declaration = queue.best_declaration(batch);
            assert_eq!(
                queue.declarations(batch),
                std::slice::from_ref(&declaration),
                "the only one"
            );
            assert_eq!(declaration.name, format!("q.batch.{:032x}", 1));
            assert_eq!(declaration.durability, Durability::Durable);
            let week = ("x-expires".into(), Argument::Number(604_800_000));
            assert_eq!(declaration.arguments, [(TYPE.into(), text(CLASSIC)), week]);
        }
    }
}
