//! Owns [`Inspector`]: what can be seen of a queue and of those beside it, without taking part.

pub(crate) mod dead_letter_filter;
pub(crate) mod dead_letters;
pub(crate) mod peek_safety;
pub(crate) mod walk;

use std::fmt;
use std::time::Duration;

use crossbeam_channel::never;
use log::debug;

use crate::amqp::channel::{Channel, Count};
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connect;
use crate::amqp::connection::{Connection, Notice};
use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::queue::{Argument, Arguments, Queue, QueueDeclaration, Target};
use crate::model::retry::RetryPolicy;
use crate::model::task::Task;
use crate::topology::admin_channel::{AdminChannel, Channels};
use crate::topology::census::{Census, DelayQueue};
use crate::topology::declare::{Comparison, Declared, check_may_declare, compare, declare};
use crate::topology::default_type::{LIMITED_SINCE, as_created_here, dropping_quorum_queue};
use crate::topology::queue_type::Kind;

/// Looks at a queue, its delay queues and its dead letters. Connects when it is first asked.
pub struct Inspector {
    broker: Broker,
    queue: Queue,
    connection: Option<Connection>,
    census: Census,
}

/// What is in a queue and beside it. AMQP does not tell what is unacked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Tasks that wait for a worker.
    pub ready: u64,
    /// Consumers of the queue, which is how many worker threads there are.
    pub consumers: u64,
    /// The delay queues that are there, shortest delay first.
    pub delayed: Vec<DelayQueue>,
    /// Dead letters.
    pub dead: u64,
}

/// One step of a [check](Inspector::check).
#[derive(Debug)]
#[non_exhaustive]
pub struct CheckResult {
    /// What was checked, in one word.
    pub name: &'static str,
    /// What was found; or what is wrong.
    pub result: Result<String, Error>,
    /// Whether what was found is no fault, but calls for attention.
    pub warns: bool,
}

type Step = fn(&mut Inspector) -> Result<String, Error>;

/// From this version on, a consumer cannot ask for no credit.
const UNCREDITED_SINCE: (u32, u32) = (4, 0);

/// How long the broker may take to say that it blocks publishers.
const BLOCKED_WITHIN: Duration = Duration::from_secs(2);

impl Status {
    /// Tasks that wait in delay queues.
    #[must_use]
    pub fn delayed_tasks(&self) -> u64 {
        self.delayed.iter().map(|it| it.tasks).sum()
    }
}

impl Inspector {
    /// An inspector of this queue.
    #[must_use]
    pub fn new(broker: &Broker, queue: &Queue) -> Inspector {
        Inspector {
            broker: broker.clone(),
            queue: queue.clone(),
            connection: None,
            census: Census::new(queue),
        }
    }

    /// What is in the queue and beside it, at this moment.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] when the name leaves no room for the queues beside the queue;
    /// [`Error::QueueMissing`] when there is no such queue; [`Error::QueueRefused`] when it may not
    /// be used;
    /// [`Error::Unreachable`], [`Error::LoginRefused`], [`Error::VhostRefused`],
    /// [`Error::Tls`] when there is no connection to be had; [`Error::SessionLost`] when it is
    /// lost.
    ///
    /// # Blocking
    /// For some eighty answers of the broker, each bounded by its limits: each possible delay
    /// queue is asked for.
    pub fn status(&mut self) -> Result<Status, Error> {
        self.queue.validate()?;
        self.queue.validate_for_delays()?;
        let count = self.count_queue()?;
        let delayed = self.counted(Census::delayed)?;
        let dead = self.count(Target::Dead)?.map_or(0, |count| count.ready);
        Ok(Status { ready: count.ready, consumers: count.consumers, delayed, dead })
    }

    /// Checks one thing after the other, up to the first that is wrong: `connect`, `login`,
    /// `vhost`, `queue` (is it there, with these arguments), `publish` (may we, and does the
    /// broker take publishes at present), `consume` (may we), `dead` and `retry` (is there a place
    /// for failed tasks, or may we make one). Changes nothing and takes no task; RabbitMQ notes
    /// the last three in its log, as an invalid `x-priority` and an invalid `x-expires`.
    ///
    /// # Blocking
    /// For some answers of the broker, each bounded by its limits.
    pub fn check(&mut self) -> Vec<CheckResult> {
        let mut checks = match self.check_connection() {
            Ok(checks) => checks,
            Err(checks) => return checks,
        };
        let steps: [(&str, Step); 5] = [
            ("queue", Inspector::check_queue),
            ("publish", Inspector::check_publish),
            ("consume", Inspector::check_consume),
            ("dead", Inspector::check_dead),
            ("retry", Inspector::check_retry),
        ];
        for (name, step) in steps {
            let result = step(self);
            let failed = result.is_err();
            checks.push(CheckResult { name, result, warns: false });
            if failed {
                return checks;
            }
        }
        checks.extend(self.warn_of_waiting_tasks());
        checks
    }

    /// Removes every task that is ready in the queue; says how many. What waits in delay
    /// queues stays.
    ///
    /// # Errors
    /// As [`status`](Inspector::status). [`Error::Unanswered`] when the broker was asked for it
    /// and gave no answer, as without a majority of the nodes of a quorum queue: it may still
    /// happen.
    ///
    /// # Blocking
    /// For an answer of the broker.
    pub fn purge(&mut self) -> Result<u64, Error> {
        self.purge_target(Target::Main)?.ok_or_else(|| missing(self.queue.name()))
    }

    /// `None` when there is no such queue.
    pub(crate) fn purge_target(&mut self, target: Target) -> Result<Option<u64>, Error> {
        let name = self.queue.name_of(target);
        // Until then, nothing was asked for.
        self.count(target)?;
        let purged = self.ask_about(&name, |channel| channel.purge(&name));
        purged.map_err(|error| Error::unanswered("purge", &name, error))
    }

    fn check_connection(&mut self) -> Result<Vec<CheckResult>, Vec<CheckResult>> {
        let ok =
            |name, text: &str| CheckResult { name, result: Ok(text.to_string()), warns: false };
        let fail = |name, error| CheckResult { name, result: Err(error), warns: false };
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
        let mut told = format!("{} ready, {} consumers", count.ready, count.consumers);
        if !queue.is_passive() {
            self.check_declaration(&kind)?;
            told.push_str(", declared with these arguments");
        }
        if matches!(kind, Kind::Quorum(_)) {
            told.push_str(", a quorum queue");
            told.push_str(self.check_majority(Target::Main, count.ready)?);
        }
        Ok(told)
    }

    /// A queue of another type than is asked for is a fault, unless a worker would use it: where a
    /// virtual host makes quorum queues of those that are declared without a type.
    fn check_declaration(&mut self, kind: &Kind) -> Result<(), Error> {
        let queue = self.queue.clone();
        // The queue exists: this creates nothing, and compares.
        let declared = self.declare(Target::Main).map(drop);
        let there = match kind.name() {
            Some(there) if !queue.is_of_type(there) => there,
            _ => return declared,
        };
        let created_here = as_created_here(&queue);
        match declared {
            Ok(()) if self.broker_version()?.is_some_and(|version| version >= LIMITED_SINCE) => {
                Err(Error::setting("queue type", dropping_quorum_queue(queue.name())))
            }
            Err(Error::QueueMismatch { queue: name, .. }) => {
                if queue.takes_default_type() && self.compare(&created_here)? == Comparison::Same {
                    return Ok(());
                }
                let text = format!("it is a {there} queue there (--queue-type {there})");
                Err(Error::QueueMismatch { queue: name, text })
            }
            declared => declared,
        }
    }

    /// Asks a quorum queue for something that takes the majority of its nodes; a count does not.
    fn check_majority(&mut self, target: Target, ready: u64) -> Result<&'static str, Error> {
        let name = self.queue.name_of(target);
        let asked = if self.broker_version()?.unwrap_or_default() < UNCREDITED_SINCE {
            self.ask_about(&name, |channel| channel.consume_nothing(&name))
        } else if ready == 0 {
            self.ask_about(&name, |channel| channel.look_for_nothing(&name))
        } else {
            return Ok("; not tried whether most of its nodes are up, as tasks wait in it");
        };
        match asked {
            // Whether it may be consumed is another question.
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

    /// Publishes a task to a queue that nobody has: the broker returns it, or says why not.
    fn check_publish(&mut self) -> Result<String, Error> {
        // Without the queue's name in it, which may be as long as a name can be.
        let nowhere = format!("rabbit-work.nowhere.{}", fastrand::u64(..));
        // Of an empty body the broker may confirm one before it says that it blocks.
        let probe = Task::new("?").transient();
        let ends = self.ask(|channel| {
            let ends = channel.confirm_publishes()?;
            channel.publish(&nowhere, &probe, BLOCKED_WITHIN)?;
            Ok(ends)
        })?;
        let Some(ends) = ends else { return Err(missing(self.queue.name())) };
        let answer = match &self.connection {
            Some(connection) => answer_to_publish(connection, ends.confirms()),
            None => return Err(missing(self.queue.name())),
        };
        match answer {
            Answer::Confirmed => Ok("allowed".into()),
            Answer::Blocked(reason) => Err(Error::Blocked { reason }),
            Answer::Closed => {
                // The channel tells why to the next call.
                let name = self.queue.name().to_string();
                self.ask(|channel| channel.count(&name))?;
                Ok("allowed".into())
            }
        }
    }

    fn check_consume(&mut self) -> Result<String, Error> {
        let name = self.queue.name().to_string();
        let asked = self.ask(|channel| channel.try_consume(&name))?;
        // The answer was a refusal, which took the channel with it.
        self.forget_channel();
        asked.map(|()| "allowed".into()).ok_or_else(|| missing(&name))
    }

    /// A queue of dead letters that is there is used as it is.
    fn check_dead(&mut self) -> Result<String, Error> {
        self.queue.validate_for_delays()?;
        let name = self.queue.name_of(Target::Dead);
        let Some(Count { ready, .. }) = self.count(Target::Dead)? else {
            self.check_declare(&name, Vec::new())?;
            return Ok("not there yet, may be declared".into());
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
            None => Ok(format!("{ready} letters, used as it is: {text}")),
        }
    }

    /// The usual delays stand for all, and of those that are not there the first.
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

    /// A delay queue that is there has to be one that we would make.
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

    /// The queue's type: `classic`, `quorum` or `stream`. `None` if the broker does not tell it, as
    /// to a login that may not declare the queue. RabbitMQ notes in its log if it is not a plain
    /// classic queue, nor the one that is asked for.
    ///
    /// # Errors
    /// As [`status`](Inspector::status).
    ///
    /// # Blocking
    /// For some answers of the broker, each bounded by its limits.
    pub fn queue_type(&mut self) -> Result<Option<&'static str>, Error> {
        self.count_queue()?;
        for plan in self.queue.declarations(Target::Main) {
            if plan.is_quorum() && self.compare(&plan)? == Comparison::Same {
                return Ok(Some("quorum"));
            }
        }
        let name = self.queue.name().to_string();
        Ok(Kind::of(&name, &mut |plan| self.compare(plan))?.name())
    }

    /// Compares a queue that is there with a declaration.
    pub(crate) fn compare(&mut self, plan: &QueueDeclaration) -> Result<Comparison, Error> {
        self.on_channel(&plan.name, |channel, connection| compare(channel, connection, plan))
    }

    pub(crate) fn broker_version(&mut self) -> Result<Option<(u32, u32)>, Error> {
        self.connection().map(|it| it.broker_version())
    }

    fn count_queue(&mut self) -> Result<Count, Error> {
        match self.count(Target::Main)? {
            Some(count) => Ok(count),
            None => Err(missing(self.queue.name())),
        }
    }

    pub(crate) fn count(&mut self, target: Target) -> Result<Option<Count>, Error> {
        self.counted(|census, connection| census.count(connection, target))
    }

    fn forget_channel(&mut self) {
        self.census.channel().forget();
    }

    fn counted<T>(
        &mut self,
        count: impl FnOnce(&mut Census, &dyn Channels) -> Result<T, CloseReason>,
    ) -> Result<T, Error> {
        self.connection()?;
        let counted = match &mut self.connection {
            Some(connection) => count(&mut self.census, connection),
            None => Err(CloseReason::Disconnected),
        };
        let queue = self.queue.name().to_string();
        counted.map_err(|cause| self.failed(&queue, cause))
    }

    /// Asks something of the broker; `None` when what was asked for is not there.
    fn ask<T>(
        &mut self,
        ask: impl FnOnce(&Channel) -> Result<T, CloseReason>,
    ) -> Result<Option<T>, Error> {
        let queue = self.queue.name().to_string();
        self.ask_about(&queue, ask)
    }

    fn ask_about<T>(
        &mut self,
        queue: &str,
        ask: impl FnOnce(&Channel) -> Result<T, CloseReason>,
    ) -> Result<Option<T>, Error> {
        self.on_channel(queue, |channel, connection| channel.find(connection, ask))
    }

    /// Asks about a queue on the channel for questions.
    fn on_channel<T>(
        &mut self,
        queue: &str,
        ask: impl FnOnce(&mut AdminChannel, &Connection) -> Result<T, CloseReason>,
    ) -> Result<T, Error> {
        self.connection()?;
        let answer = match &self.connection {
            Some(connection) => ask(self.census.channel(), connection),
            None => Err(CloseReason::Disconnected),
        };
        answer.map_err(|cause| self.failed(queue, cause))
    }

    /// The error for a question that failed. The connection goes, where it did not outlive that.
    fn failed(&mut self, queue: &str, cause: CloseReason) -> Error {
        self.forget_channel();
        match self.connection.take() {
            Some(connection) if cause.is_channel_error() => {
                let error = Error::from_queue_use(queue, connection.address(), cause);
                self.connection = Some(connection);
                error
            }
            Some(connection) => {
                let address = connection.address().to_string();
                Error::from_queue_use(queue, &address, connection.end(Some(cause)))
            }
            None => Error::session_lost("", cause),
        }
    }

    fn connection(&mut self) -> Result<&mut Connection, Error> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let opened = connect::open(&self.broker, &never())?;
                let interrupted = || Error::Unreachable { attempts: vec!["interrupted".into()] };
                opened.ok_or_else(interrupted)?
            }
        };
        Ok(self.connection.insert(connection))
    }
}

/// What came of a publish.
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

impl Drop for Inspector {
    /// Closes the connection; waits for the broker, at most the close limit.
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if let Err(cause) = connection.close() {
            debug!("the connection did not close in order: {cause}");
        }
    }
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector")
            .field("broker", &self.broker)
            .field("queue", &self.queue.name())
            .field("connected", &self.connection.is_some())
            .finish_non_exhaustive()
    }
}

pub(crate) fn missing(queue: &str) -> Error {
    Error::QueueMissing { queue: queue.into(), text: "there is no such queue".into() }
}
