//! Owns [`Queue`]: a queue's name and the arguments that it, its delay queues and its queue of
//! dead letters are declared with. Pure.

use std::borrow::Cow;
use std::time::Duration;

use crate::model::delays::LONGEST_DELAY;
use crate::model::error::Error;

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

/// Where a task is published to: the queue itself, or one of those beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    /// The queue itself.
    Main,
    /// The delay queue for this delay, in whole milliseconds, from which it comes back.
    Delay(Duration),
    /// The queue of dead letters.
    Dead,
}

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

    /// The queue that is made and deleted to have this one written down; `None` where the name
    /// leaves no room for another.
    pub(crate) fn sync_queue(&self) -> Option<QueueDeclaration> {
        let name = format!("{}.settling", self.name);
        // Classic also where the virtual host's default is a type that cannot be exclusive.
        let arguments = vec![type_argument(QueueType::Classic)];
        (name.len() <= LONGEST_NAME).then_some(QueueDeclaration {
            name,
            durability: Durability::Durable,
            arguments,
        })
    }
}

/// The value of an argument of a queue's declaration; see [`Queue::argument`].
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
pub(crate) enum Declaration {
    Declare,
    UseAsItIs,
}

/// The longest name of AMQP's `shortstr`, in bytes.
const LONGEST_NAME: usize = 255;

/// How much longer than its delay an unused delay queue stays. A quorum queue counts the time
/// during which its broker is down as well, and expires with whatever is in it.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);

/// A quorum queue of RabbitMQ 4 drops what was given back 20 times, unless told otherwise.
/// Looking at a delay queue or at dead letters gives back.
pub(crate) const NEVER_TOO_OFTEN: i64 = i32::MAX as i64;

const TYPE: &str = "x-queue-type";
const CLASSIC: &str = "classic";
const QUORUM: &str = "quorum";
const OVERFLOW: &str = "x-overflow";
const REJECT_PUBLISH: &str = "reject-publish";
const MAX_PRIORITY: &str = "x-max-priority";

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

    /// Declares the queue as not durable: it is gone after a broker restart, with all that is
    /// in it. Default: durable.
    #[must_use]
    pub fn transient(mut self) -> Queue {
        self.durability = Durability::Transient;
        self
    }

    /// Uses the queue as it is and never declares it. Default: declared.
    #[must_use]
    pub fn passive(mut self) -> Queue {
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

    /// Adds an argument to the declaration of the queue itself, for instance `x-max-priority`,
    /// `x-single-active-consumer`, or `x-max-length` together with `x-overflow` =
    /// `reject-publish` (<https://www.rabbitmq.com/docs/queues#optional-arguments>). What has a
    /// setting of its own, or would make the broker drop confirmed tasks, is refused when the
    /// queue is used. Default: none.
    #[must_use]
    pub fn argument(mut self, name: impl Into<String>, value: impl Into<Argument>) -> Queue {
        self.arguments.push((name.into(), value.into()));
        self
    }

    /// Whether the priorities of tasks have an effect, as far as the declaration tells: a classic
    /// queue needs `x-max-priority`; a quorum queue has two priorities from RabbitMQ 4.0 on, and 32
    /// from 4.3 on (<https://www.rabbitmq.com/docs/priority>).
    #[must_use]
    pub fn has_priorities(&self) -> bool {
        self.kind == QueueType::Quorum
            || self.declaration == Declaration::UseAsItIs
            || self.arguments.iter().any(|(name, _)| name == MAX_PRIORITY)
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
            Target::Main => self.name.clone(),
            Target::Delay(delay) => format!("{}.retry.{}", self.name, delay.as_millis()),
            Target::Dead => format!("{}.dead", self.name),
        }
    }

    /// How the queue of `target` is declared; where there is more than one way, the best first.
    pub(crate) fn plans(&self, target: Target) -> Vec<QueueDeclaration> {
        let arguments = match target {
            Target::Main => vec![self.arguments()],
            Target::Delay(delay) => vec![self.safe_delay(delay), self.simple_delay(delay)],
            Target::Dead => vec![self.dead_arguments()],
        };
        let durability = match target {
            Target::Main => self.durability,
            Target::Delay(_) | Target::Dead => Durability::Durable,
        };
        let plan =
            |arguments| QueueDeclaration { name: self.name_of(target), durability, arguments };
        arguments.into_iter().map(plan).collect()
    }

    /// Whether it is declared as one that is there after a broker restart.
    pub(crate) fn is_declared_durable(&self) -> bool {
        self.durability == Durability::Durable && self.declaration == Declaration::Declare
    }

    /// Whether it is declared as of this type, named as in `x-queue-type`.
    pub(crate) fn is_of_type(&self, name: &str) -> bool {
        match self.kind {
            QueueType::Classic => name == CLASSIC,
            QueueType::Quorum => name == QUORUM,
        }
    }

    /// Whether the broker counts deliveries, and may itself make dead letters of tasks: by our
    /// declaration, or by a policy.
    pub(crate) fn counts_deliveries(&self) -> bool {
        self.kind == QueueType::Quorum
    }

    /// This queue, which the broker turned out to have as a quorum queue of its own making.
    pub(crate) fn found_as_quorum(&self) -> Queue {
        Queue { kind: QueueType::Quorum, declaration: Declaration::UseAsItIs, ..self.clone() }
    }

    /// This queue, declared as a quorum queue because that is the virtual host's default type.
    pub(crate) fn made_as_quorum(&self) -> Queue {
        Queue { kind: QueueType::Quorum, ..self.clone() }
    }

    /// Whether its type is left to the virtual host.
    pub(crate) fn leaves_the_type_open(&self) -> bool {
        self.is_declared_durable() && self.arguments().iter().all(|(name, _)| name != TYPE)
    }

    fn asks_for_a_classic_queue(&self) -> bool {
        self.arguments.iter().any(|(name, _)| CLASSIC_ONLY.contains(&name.as_str()))
    }

    fn arguments(&self) -> Arguments {
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

    fn dead_arguments(&self) -> Arguments {
        match self.kind {
            QueueType::Classic => vec![type_argument(QueueType::Classic)],
            QueueType::Quorum => vec![
                type_argument(QueueType::Quorum),
                ("x-delivery-limit".into(), Argument::Number(NEVER_TOO_OFTEN)),
            ],
        }
    }

    /// A delay queue that keeps each task until the queue behind it has confirmed it: RabbitMQ
    /// 3.10 and later (<https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>).
    fn safe_delay(&self, delay: Duration) -> Arguments {
        let mut arguments = safe_hop(self.name.clone());
        arguments.push(("x-delivery-limit".into(), Argument::Number(NEVER_TOO_OFTEN)));
        arguments.extend(timers(delay));
        arguments
    }

    /// A delay queue for brokers without the other kind: a crash of the broker in the very
    /// moment of the hop can lose a task.
    fn simple_delay(&self, delay: Duration) -> Arguments {
        let mut arguments = vec![
            type_argument(QueueType::Classic),
            ("x-dead-letter-exchange".into(), text("")),
            ("x-dead-letter-routing-key".into(), text(&self.name)),
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
        if self.name.contains(['\r', '\n']) {
            let reason = "the name has a line end in it, which RabbitMQ would remove";
            return Err(Error::setting("queue", reason));
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
        if self.kind == QueueType::Quorum && self.durability == Durability::Transient {
            return Err(Error::setting("queue type", "a quorum queue is always durable"));
        }
        self.validate_arguments()
    }

    fn validate_arguments(&self) -> Result<(), Error> {
        for (index, (name, value)) in self.arguments.iter().enumerate() {
            let is_again = self.arguments[..index].iter().any(|(before, _)| before == name);
            let again = is_again.then_some("it is given twice");
            if let Some(reason) = self.objection_to(name, value).or(again) {
                return Err(Error::setting("queue argument", format!("{name}: {reason}")));
            }
        }
        Ok(())
    }

    /// Why an argument is refused.
    fn objection_to(&self, name: &str, value: &Argument) -> Option<&'static str> {
        if self.declaration == Declaration::UseAsItIs {
            return Some("a queue that is used as it is, is not declared");
        }
        let rejects = |argument: &(String, Argument)| {
            argument.0 == OVERFLOW && argument.1 == text(REJECT_PUBLISH)
        };
        match name {
            "" => Some("the name is empty"),
            name if name.len() > LONGEST_NAME => Some("the name has more than 255 bytes"),
            TYPE => Some("the queue type has its own option, --queue-type"),
            "x-delivery-limit" => Some("it has its own option, --delivery-limit"),
            "x-dead-letter-exchange" | "x-dead-letter-routing-key" | "x-dead-letter-strategy" => {
                Some("failed tasks go to delay queues and dead letters without it")
            }
            "x-message-ttl" => Some(
                "the broker would drop confirmed tasks; to have one task expire, publish it with \
                 --expiration",
            ),
            "x-expires" => Some("the broker would delete the queue with the tasks in it"),
            MAX_PRIORITY if self.kind == QueueType::Quorum => {
                Some("a quorum queue has its priorities without it")
            }
            OVERFLOW if *value != text(REJECT_PUBLISH) => {
                Some("the broker would drop confirmed tasks; only reject-publish does not")
            }
            "x-max-length" | "x-max-length-bytes"
                if self.kind == QueueType::Classic && !self.arguments.iter().any(rejects) =>
            {
                Some(
                    "the broker would drop confirmed tasks; add the argument \
                     x-overflow=reject-publish",
                )
            }
            _ => None,
        }
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

/// A quorum queue that lets go of a dead letter only when the queue `to` has confirmed it.
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

    fn plan(queue: &Queue, target: Target) -> QueueDeclaration {
        queue.plans(target).swap_remove(0)
    }

    fn number(plan: &QueueDeclaration, name: &str) -> i64 {
        match plan.arguments.iter().find(|(argument, _)| *argument == name) {
            Some((_, Argument::Number(number))) => *number,
            other => panic!("{name}: {other:?}"),
        }
    }

    fn has(plan: &QueueDeclaration, name: &'static str, value: &str) -> bool {
        plan.arguments.contains(&(name.into(), text(value)))
    }

    #[test]
    fn a_durable_classic_queue_has_no_argument_as_in_the_tutorial() {
        let plan = plan(&Queue::new("q").delivery_limit(3), Target::Main);
        assert_eq!(plan.arguments, []);
        assert_eq!(plan.durability, Durability::Durable);
    }

    #[test]
    fn a_quorum_queue_sends_what_was_delivered_too_often_to_the_dead_letters() {
        let plan =
            plan(&Queue::new("q").queue_type(QueueType::Quorum).delivery_limit(3), Target::Main);
        assert_eq!(number(&plan, "x-delivery-limit"), 3);
        assert!(has(&plan, "x-dead-letter-routing-key", "q.dead"));
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
                assert!(has(&plan, "x-dead-letter-routing-key", "q"));
            }
        }
    }

    #[test]
    fn what_is_declared_beside_a_queue_names_its_type() {
        for queue in [Queue::new("q"), Queue::new("q").queue_type(QueueType::Quorum)] {
            let beside = [Target::Dead, Target::Delay(Duration::from_secs(1))];
            for plan in beside.into_iter().flat_map(|target| queue.plans(target)) {
                assert!(has(&plan, TYPE, CLASSIC) || has(&plan, TYPE, QUORUM), "{plan:?}");
            }
        }
    }

    #[test]
    fn arguments_are_declared_and_what_would_drop_tasks_is_refused() {
        let queue = Queue::new("q").argument("x-max-priority", 10);
        assert!(queue.validate().is_ok() && queue.has_priorities());
        let declared = plan(&queue, Target::Main).arguments;
        let classic = type_argument(QueueType::Classic);
        assert_eq!(declared, [classic, ("x-max-priority".into(), Argument::Number(10))]);
        assert!(!queue.leaves_the_type_open() && Queue::new("q").leaves_the_type_open());
        assert!(!Queue::new("q").has_priorities());

        let full = Queue::new("q").argument("x-max-length", 10);
        assert!(full.validate().is_err());
        assert!(full.clone().argument("x-overflow", "drop-head").validate().is_err());
        assert!(full.clone().argument("x-overflow", "reject-publish").validate().is_ok());
        assert!(full.queue_type(QueueType::Quorum).validate().is_ok(), "it rejects in any case");

        let twice = queue.clone().argument("x-max-priority", 5).validate().expect_err("refused");
        assert!(twice.to_string().contains("x-max-priority: it is given twice"), "{twice}");

        assert!(Queue::new("q").argument("x-max-priority", 10).passive().validate().is_err());
        assert!(queue.queue_type(QueueType::Quorum).validate().is_err());
        for refused in ["", "x-queue-type", "x-delivery-limit", "x-message-ttl", "x-expires"] {
            let error = Queue::new("q").argument(refused, 1).validate().expect_err("refused");
            assert!(error.to_string().contains(refused), "{error}");
        }
    }

    #[test]
    fn a_name_with_a_line_end_is_refused() {
        for name in ["a\n", "a\rb"] {
            assert!(Queue::new(name).validate().is_err());
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
        assert!(Queue::new("q").queue_type(QueueType::Quorum).transient().validate().is_err());
    }
}
