//! [`Inspector::check`]: the checks of a set-up, one function each, in a fixed order.

use std::time::Duration;

use crate::admin::{Inspector, missing};
use crate::amqp::channel::Count;
use crate::amqp::connection::{Connection, Notice};
use crate::model::error::Error;
use crate::model::queue::{Argument, Arguments, Target};
use crate::model::retry::RetryPolicy;
use crate::model::task::Task;
use crate::topology::declare::{Comparison, Declared, check_may_declare, declare};
use crate::topology::default_type::{as_created_here, dropping_quorum_queue};
use crate::topology::queue_type::Kind;

/// The result of one step of a [check](Inspector::check).
#[derive(Debug)]
#[non_exhaustive]
pub struct CheckResult {
    /// What was checked, in one word.
    pub name: &'static str,
    /// What was found, or what is wrong.
    pub result: Result<String, Error>,
    /// Whether this is a warning: no fault, but it needs attention.
    pub warns: bool,
}

type Step = fn(&mut Inspector) -> Result<String, Error>;

/// The checks that follow the connection.
const STEPS: [(&str, Step); 5] = [
    ("queue", Inspector::check_queue),
    ("publish", Inspector::check_publish),
    ("consume", Inspector::check_consume),
    ("dead", Inspector::check_dead),
    ("retry", Inspector::check_retry),
];

/// From this version on, a consumer cannot be added without credit.
const UNCREDITED_SINCE: (u32, u32) = (4, 0);

/// The time the broker gets to report that it blocks publishers.
const BLOCKED_WITHIN: Duration = Duration::from_secs(2);

impl CheckResult {
    fn of(name: &'static str, result: Result<String, Error>) -> CheckResult {
        CheckResult { name, result, warns: false }
    }
}

impl Inspector {
    /// Checks one thing after the other, up to the first that is wrong: `connect`, `login`,
    /// `vhost`, `queue` (it exists with these arguments), `publish` (permission, and whether the
    /// broker blocks publishers), `consume` (permission), `dead` and `retry` (the dead-letter queue
    /// and the delay queues are usable or may be declared). Changes nothing and takes no task.
    /// RabbitMQ logs the last three as an invalid `x-priority` and an invalid `x-expires`.
    ///
    /// # Blocking
    /// For some answers of the broker, each bounded by its limits.
    pub fn check(&mut self) -> Vec<CheckResult> {
        let mut checks = match self.check_connection() {
            Ok(checks) => checks,
            Err(checks) => return checks,
        };
        for (name, step) in STEPS {
            let result = step(self);
            let failed = result.is_err();
            checks.push(CheckResult::of(name, result));
            if failed {
                return checks;
            }
        }
        checks.extend(self.warn_of_waiting_tasks());
        checks
    }

    fn check_connection(&mut self) -> Result<Vec<CheckResult>, Vec<CheckResult>> {
        let ok = |name, text: &str| CheckResult::of(name, Ok(text.to_string()));
        let fail = |name, error| CheckResult::of(name, Err(error));
        let opened = self
            .queue
            .validate()
            .and_then(|()| self.connection().map(|it| it.address().to_string()));
        match opened {
            Ok(address) => {
                Ok(vec![ok("connect", &address), ok("login", "accepted"), ok("vhost", "accepted")])
            }
            Err(error @ Error::LoginRefused { .. }) => {
                Err(vec![ok("connect", &self.broker.to_string()), fail("login", error)])
            }
            Err(error @ Error::VhostRefused { .. }) => {
                let connect = ok("connect", &self.broker.to_string());
                Err(vec![connect, ok("login", "accepted"), fail("vhost", error)])
            }
            Err(error @ Error::InvalidSetting { .. }) => Err(vec![fail("settings", error)]),
            Err(error) => Err(vec![fail("connect", error)]),
        }
    }

    fn check_queue(&mut self) -> Result<String, Error> {
        let count = self.count_queue()?;
        let queue = self.queue.clone();
        let kind = Kind::of(queue.name(), &mut |plan| self.compare(plan))?;
        if let Some(objection) = kind.objection() {
            return Err(Error::setting("queue", format!("'{}': {objection}", queue.name())));
        }
        let mut found = format!("{} ready, {} consumers", count.ready, count.consumers);
        if queue.is_passive() {
            self.check_drops(&kind)?;
        } else {
            self.check_declaration(&kind)?;
            found.push_str(", declared with these arguments");
        }
        if matches!(kind, Kind::Quorum { .. }) {
            found.push_str(", a quorum queue");
            found.push_str(self.check_majority(Target::Main, count.ready)?);
        }
        Ok(found)
    }

    /// A queue of another type is a fault, unless a worker would use it: a virtual host can make quorum
    /// queues of those that are declared without a type.
    fn check_declaration(&mut self, kind: &Kind) -> Result<(), Error> {
        let queue = self.queue.clone();
        // The queue exists, so this only compares the arguments.
        let declared = self.declare(Target::Main).map(drop);
        let there = match kind.name() {
            Some(there) if !queue.is_of_type(there) => there,
            _ => return declared,
        };
        let created_here = as_created_here(&queue);
        match declared {
            Ok(()) => self.check_drops(kind),
            Err(Error::QueueMismatch { queue: name, .. }) => {
                if queue.takes_default_type() && self.compare(&created_here)? == Comparison::Same {
                    return Ok(());
                }
                let text = format!("it is a {there} queue; use --queue-type {there}");
                Err(Error::QueueMismatch { queue: name, text })
            }
            declared => declared,
        }
    }

    /// A quorum queue whose tasks the broker drops is a fault. With `--queue-type quorum` it is taken to
    /// have its dead-letter route from a policy, which a client cannot see.
    fn check_drops(&mut self, kind: &Kind) -> Result<(), Error> {
        let version = self.broker_version()?;
        match kind.drops_after(version).filter(|_| !self.queue.counts_deliveries()) {
            Some(limit) => {
                let text = dropping_quorum_queue(self.queue.name(), limit);
                Err(Error::setting("queue type", text))
            }
            None => Ok(()),
        }
    }

    /// Makes a call that needs the majority of a quorum queue's nodes; a count does not.
    fn check_majority(&mut self, target: Target, ready: u64) -> Result<&'static str, Error> {
        let name = self.queue.name_of(target);
        let asked = if self.broker_version()?.unwrap_or_default() < UNCREDITED_SINCE {
            self.ask_about(&name, |channel| channel.consume_nothing(&name))
        } else if ready == 0 {
            self.ask_about(&name, |channel| channel.get_from_empty(&name))
        } else {
            return Ok("; whether most of its nodes are up was not tried, as tasks wait in it");
        };
        match asked {
            // `consume` checks the permission.
            Ok(_) | Err(Error::QueueRefused { .. } | Error::QueueMissing { .. }) => Ok(""),
            Err(error) => Err(error),
        }
    }

    fn warn_of_waiting_tasks(&mut self) -> Option<CheckResult> {
        let waits = |count: &Count| count.ready > 0 && count.consumers == 0;
        let count = self.count_queue().ok().filter(waits)?;
        let text = format!("{} ready, and no consumer: is a worker running?", count.ready);
        Some(CheckResult { name: "workers", result: Ok(text), warns: true })
    }

    /// Publishes a task to a queue that does not exist: the broker returns it, or refuses it.
    fn check_publish(&mut self) -> Result<String, Error> {
        // Without the queue's name, which may have the greatest length already.
        let nowhere = format!("rabbit-work.nowhere.{}", fastrand::u64(..));
        // The broker may confirm an empty body before it reports that it blocks.
        let probe = Task::new("?").transient();
        let answers = self.ask(|channel| {
            let answers = channel.confirm_publishes()?;
            channel.publish(&nowhere, &probe)?;
            Ok(answers)
        })?;
        let Some(answers) = answers else { return Err(missing(self.queue.name())) };
        let answer = match &self.connection {
            Some(connection) => answer_to_publish(connection, answers.confirms()),
            None => return Err(missing(self.queue.name())),
        };
        match answer {
            Answer::Confirmed => Ok("allowed".into()),
            Answer::Blocked(reason) => Err(Error::Blocked { reason }),
            Answer::Closed => {
                // The next call returns why the channel was closed.
                let name = self.queue.name().to_string();
                self.ask(|channel| channel.count(&name))?;
                Ok("allowed".into())
            }
        }
    }

    fn check_consume(&mut self) -> Result<String, Error> {
        let name = self.queue.name().to_string();
        let asked = self.ask(|channel| channel.try_consume(&name))?;
        // The broker's refusal closed the channel.
        self.forget_channel();
        asked.map(|()| "allowed".into()).ok_or_else(|| missing(&name))
    }

    /// An existing dead-letter queue is used as it is.
    fn check_dead(&mut self) -> Result<String, Error> {
        self.queue.validate_for_delays()?;
        let name = self.queue.name_of(Target::Dead);
        let Some(Count { ready, .. }) = self.count(Target::Dead)? else {
            self.check_declare(&name, Vec::new())?;
            return Ok("does not exist yet, may be declared".into());
        };
        let refusal = match self.declare(Target::Dead)? {
            Declared::By { declaration, .. } if declaration.is_quorum() => {
                let majority = self.check_majority(Target::Dead, ready)?;
                return Ok(format!("{ready} letters, declared with these arguments{majority}"));
            }
            Declared::By { .. } => {
                return Ok(format!("{ready} letters, declared with these arguments"));
            }
            Declared::UsedAsItIs { refusal } => self.failed(&name, refusal),
        };
        let (Error::QueueMismatch { text, .. } | Error::QueueRefused { text, .. }) = refusal else {
            return Err(refusal);
        };
        match Kind::of(&name, &mut |plan| self.compare(plan))?.objection() {
            Some(objection) => {
                Err(Error::setting("dead letters", format!("'{name}': {objection}")))
            }
            None => Ok(format!(
                "{ready} letters; the existing queue is used although it differs: {text}"
            )),
        }
    }

    /// Tries the default delays, and the declaration of the first.
    fn check_retry(&mut self) -> Result<String, Error> {
        let policy = RetryPolicy::default();
        let hop = ("x-dead-letter-exchange".into(), Argument::Text(String::new()));
        let first = Target::Delay(policy.delay_after(1));
        self.check_declare(&self.queue.name_of(first), vec![hop])?;
        for delay in policy.series() {
            self.check_delay(delay)?;
        }
        Ok("may be declared".into())
    }

    /// An existing delay queue must be declared as a worker declares it.
    fn check_delay(&mut self, delay: Duration) -> Result<(), Error> {
        let target = Target::Delay(delay);
        if self.count(target)?.is_none() {
            return Ok(());
        }
        self.declare(target).map(drop)
    }

    /// Declares the queue of `target`, which exists.
    fn declare(&mut self, target: Target) -> Result<Declared, Error> {
        let queue = self.queue.clone();
        self.on_channel(&queue.name_of(target), |channel, connection| {
            Ok(declare(channel, connection, &queue, target)?)
        })
    }

    /// Checks whether this user may declare a queue, and creates none.
    fn check_declare(&mut self, name: &str, arguments: Arguments) -> Result<(), Error> {
        self.on_channel(name, |channel, connection| {
            check_may_declare(channel, connection, name, arguments)
        })
    }
}

/// How the broker answered a publish.
enum Answer {
    Confirmed,
    Blocked(String),
    Closed,
}

fn answer_to_publish<C>(
    connection: &Connection,
    confirms: &crossbeam_channel::Receiver<C>,
) -> Answer {
    let deadline = crossbeam_channel::after(BLOCKED_WITHIN);
    crossbeam_channel::select_biased! {
        recv(confirms) -> confirm => match confirm {
            Ok(_) => Answer::Confirmed,
            Err(_) => Answer::Closed,
        },
        recv(connection.notices()) -> notice => match notice.map(Into::into) {
            Ok(Notice::Blocked(reason)) => Answer::Blocked(reason),
            _ => Answer::Closed,
        },
        recv(deadline) -> _ => Answer::Blocked(format!("no confirm within {BLOCKED_WITHIN:?}")),
    }
}
