//! [`Inspector`]: counts, checks, purges and deletes a queue from outside.

pub(crate) mod check;
pub(crate) mod dead_letter_filter;
pub(crate) mod dead_letters;
mod delete;
pub(crate) mod peek_safety;
pub(crate) mod walk;

use std::fmt;

use crossbeam_channel::never;

use crate::amqp::channel::{Channel, Count};
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connect;
use crate::amqp::connection::Connection;
use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::queue::{Queue, QueueDeclaration, Target};
use crate::topology::admin_channel::{AdminChannel, Channels};
use crate::topology::census::{Census, DelayQueue};
use crate::topology::declare::{Comparison, compare};
use crate::topology::queue_type::Kind;

/// Inspects a queue, its delay queues and its dead letters. The first call connects.
pub struct Inspector {
    broker: Broker,
    queue: Queue,
    connection: Option<Connection>,
    census: Census,
}

/// How many tasks a queue, its delay queues and its dead letters hold. AMQP does not report unacked
/// tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Tasks that wait for a worker.
    pub ready: u64,
    /// Consumers of the queue, which is how many worker threads there are.
    pub consumers: u64,
    /// The delay queues that exist, shortest delay first.
    pub delayed: Vec<DelayQueue>,
    /// Dead letters.
    pub dead: u64,
}

impl Status {
    /// Tasks that wait in delay queues: failed or deferred ones, and those published with a delay. The
    /// broker does not distinguish them.
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
            broker: broker.for_role("inspect", queue.name()),
            queue: queue.clone(),
            connection: None,
            census: Census::new(queue),
        }
    }

    /// Counts the tasks and consumers at this moment.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] when the name is too long for the names derived from it;
    /// [`Error::QueueMissing`] when the queue does not exist; [`Error::QueueRefused`] when it may not
    /// be used;
    /// [`Error::Unreachable`], [`Error::LoginRefused`], [`Error::VhostRefused`],
    /// [`Error::Tls`] when no connection can be made; [`Error::SessionLost`] when it is lost.
    ///
    /// # Blocking
    /// For some eighty answers of the broker, each bounded by its limits: it asks for each possible
    /// delay queue.
    pub fn status(&mut self) -> Result<Status, Error> {
        self.queue.validate()?;
        self.queue.validate_for_delays()?;
        self.status_with(Census::delayed)
    }

    /// Counts again, but only the delay queues that existed when [`status`](Inspector::status)
    /// counted them last. Each other one costs the broker a log line.
    ///
    /// # Errors
    /// As [`status`](Inspector::status).
    ///
    /// # Blocking
    /// For some answers of the broker, each bounded by its limits.
    pub fn recount(&mut self) -> Result<Status, Error> {
        self.queue.validate()?;
        self.queue.validate_for_delays()?;
        self.status_with(Census::delayed_in_known)
    }

    fn status_with(
        &mut self,
        count_delayed: fn(&mut Census, &dyn Channels) -> Result<Vec<DelayQueue>, CloseReason>,
    ) -> Result<Status, Error> {
        let count = self.count_queue()?;
        let delayed = self.counted(count_delayed)?;
        let dead = self.count(Target::Dead)?.map_or(0, |count| count.ready);
        Ok(Status { ready: count.ready, consumers: count.consumers, delayed, dead })
    }

    /// Removes every task that is ready in the queue, and returns how many. Tasks in delay queues
    /// stay.
    ///
    /// # Errors
    /// As [`status`](Inspector::status). [`Error::Unanswered`] when the broker did not answer the
    /// purge, as a quorum queue without a majority of its nodes: it may still happen.
    ///
    /// # Blocking
    /// For an answer of the broker.
    pub fn purge(&mut self) -> Result<u64, Error> {
        self.purge_target(Target::Main)?.ok_or_else(|| missing(self.queue.name()))
    }

    /// `None` if the queue does not exist.
    pub(crate) fn purge_target(&mut self, target: Target) -> Result<Option<u64>, Error> {
        let name = self.queue.name_of(target);
        // Connects: an error before the purge is sent is not an unanswered purge.
        self.count(target)?;
        let purged = self.ask_about(&name, |channel| channel.purge(&name));
        purged.map_err(|error| Error::unanswered("purge", &name, error))
    }

    /// The queue's type: `classic`, `quorum` or `stream`. `None` if the broker does not report it,
    /// as to a login that may not declare the queue. RabbitMQ logs a failed declaration if the queue
    /// is neither a plain classic queue nor as declared here.
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

    /// Compares an existing queue with a declaration.
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

    /// Calls the broker about the queue; `None` if the queue does not exist.
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

    /// The error of a failed call. Drops the connection if the call ended it.
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

impl Drop for Inspector {
    /// Closes the connection, and waits for the broker's answer, at most for the close timeout.
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close();
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

/// The error for a queue that does not exist.
pub(crate) fn missing(queue: &str) -> Error {
    Error::QueueMissing { queue: queue.into(), text: String::new() }
}
