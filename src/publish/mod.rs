//! [`Producer`]: puts tasks on a queue, each confirmed by the broker.

mod backlog;
pub(crate) mod config;
mod confirms;
mod in_flight;
mod link;
pub(crate) mod pending;
#[cfg(test)]
mod property;
pub(crate) mod publish_trait;
pub(crate) mod publisher;
pub(crate) mod receipt;
mod reconnect;
pub(crate) mod refusal;
mod returns;
pub(crate) mod shared;

use std::time::{Duration, SystemTime};

use log::warn;

use crate::amqp::connection::Connection;
use crate::model::broker::Broker;
use crate::model::connection_name::PRODUCER;
use crate::model::error::Error;
use crate::model::outcome::Outcome;
use crate::model::queue::Queue;
use crate::model::task::{Ids, Task};
use crate::publish::config::{Limits, PublisherConfig};
use crate::publish::pending::{Pending, Resolved, unsent};
use crate::publish::publisher::{Publisher, Until};
use crate::publish::receipt::Receipt;
use crate::publish::shared::pending::Resolver;
use crate::util::shutdown::Shutdown;

/// Puts tasks on one queue, each mandatory and confirmed by the broker.
///
/// [`publish`](Producer::publish) is for one task. For many, [`send`](Producer::send) keeps a
/// window of them in flight, and each task that is sent comes back in exactly one [`Receipt`],
/// from `send` or from [`flush`](Producer::flush).
///
/// End it with [`close`](Producer::close), which returns the last receipts. If it is dropped instead,
/// the tasks in flight have [`Producer::DROP_LIMIT`] more, and a warning says how many are not
/// confirmed.
///
/// A producer whose connection dies connects again, and publishes the unconfirmed tasks again under
/// the same message ids: a task may then be on the queue twice, and is never silently lost. A task
/// that the broker refuses (nack) is published again until its timeout. Later tasks may overtake it.
///
/// ```no_run
/// # fn main() -> Result<(), rabbit_work::Error> {
/// use rabbit_work::{Broker, Outcome, Producer, Queue, Task};
///
/// let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
/// let mut producer = Producer::new(&broker, &Queue::new("task_queue"));
/// producer.connect()?; // Otherwise each task would wait for the broker in its turn.
/// let mut receipts = Vec::new();
/// for n in 0..1000 {
///     receipts.extend(producer.send(Task::new(format!("task {n}"))));
/// }
/// receipts.extend(producer.flush());
/// assert!(receipts.iter().all(|receipt| receipt.outcome == Outcome::Confirmed));
/// # Ok(())
/// # }
/// ```
///
/// # Processes
///
/// A process that forks has to make the producers of its children after the fork: a connection does
/// not work in a child, because its threads are the parent's. Dropping such a producer in the child
/// has no effect, and the parent can go on with its own. Do not build with `panic = "abort"`: the
/// client library's thread may panic while it loses a connection, and that must not end the process.
#[derive(Debug)]
pub struct Producer {
    publisher: Publisher<Ticket>,
    queue: Queue,
    receipts: Vec<Receipt>,
    ids: Ids,
}

/// The call that took a task. It says how the caller learns the outcome.
#[derive(Debug)]
enum Ticket {
    /// [`Producer::publish`], which has one task in flight at most.
    Publish,
    /// [`Producer::send`], whose tasks each have a receipt.
    Send,
    /// [`SharedProducer::submit`](crate::SharedProducer::submit), whose tasks each have a
    /// [`Pending`](crate::Pending).
    Submit(Resolver),
}

impl Producer {
    /// How long the drop of a producer waits for the confirms of the tasks in flight.
    pub const DROP_LIMIT: Duration = Duration::from_secs(5);

    /// A producer for this queue. Connects when it is first used.
    #[must_use]
    pub fn new(broker: &Broker, queue: &Queue) -> Producer {
        let limits = Limits { window: 1000, timeout: Duration::from_secs(30) };
        let broker = broker.for_role(PRODUCER, queue.name());
        let publisher = Publisher::new(PublisherConfig::new(&broker, queue, limits));
        Producer { publisher, queue: queue.clone(), receipts: Vec::new(), ids: Ids::new() }
    }

    /// Sets how many tasks may be in flight. Together they have at most 8 MiB, unless one task is
    /// larger.
    /// Default: 1000 tasks.
    #[must_use]
    pub fn window(mut self, tasks: usize) -> Producer {
        self.publisher.set_window(tasks.max(1));
        self
    }

    /// Sets how long each task is tried, from the call that takes it. Default: 30 s.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Producer {
        self.publisher.set_timeout(limit);
        self
    }

    /// Sets the longest pause between two tries to connect. The pauses grow from 0.5 s up to it, and a new
    /// call does not wait for one. Default: 2 s.
    #[must_use]
    pub fn longest_pause(mut self, longest: Duration) -> Producer {
        self.publisher.set_longest_pause(longest);
        self
    }

    /// Has this shutdown end the waits. After a stop, a producer without a connection makes none:
    /// [`connect`](Producer::connect) and [`publish`](Producer::publish) fail with [`Error::Stopped`],
    /// and a task that is sent is [`Outcome::Unsent`]. Those sent before are still tried. An
    /// [abort](crate::Trigger::abort) ends every wait, and each task in flight is
    /// [`Outcome::Unconfirmed`]. Default: waits end at the timeout only.
    #[must_use]
    pub fn shutdown(mut self, shutdown: &Shutdown) -> Producer {
        self.publisher.set_shutdown(shutdown);
        self
    }

    /// Connects and declares the queue, unless that is done already.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when no broker was reached within the timeout. At once, those that
    /// only a person can fix: [`Error::LoginRefused`], [`Error::VhostRefused`],
    /// [`Error::QueueMissing`], [`Error::QueueMismatch`], [`Error::QueueRefused`], [`Error::Tls`],
    /// [`Error::InvalidSetting`]. [`Error::Stopped`] after a stop.
    ///
    /// # Blocking
    /// At most for the timeout. It tries at once, unless the last try is younger than a second.
    pub fn connect(&mut self) -> Result<(), Error> {
        self.publisher.connect(self.publisher.deadline())
    }

    /// Publishes one task and waits until the broker has confirmed it. Returns its id.
    ///
    /// # Errors
    /// Those of [`connect`](Producer::connect). [`Error::NotConfirmed`] with the task and its id, when
    /// the broker refused or returned the task or did not answer in time. [`Error::InvalidSetting`] for a task that
    /// AMQP cannot carry.
    ///
    /// # Blocking
    /// At most for the timeout, and a second more if the broker stops to answer in the last one. It waits
    /// for the tasks of earlier [`send`](Producer::send)s as well, and keeps their receipts for the next
    /// [`flush`](Producer::flush).
    pub fn publish(&mut self, task: Task) -> Result<String, Error> {
        task.validate_for(&self.queue)?;
        let deadline = self.publisher.deadline();
        self.publisher.connect(deadline)?;
        let place = (self.publisher.queue(), task.target());
        let stamped = task.stamped(SystemTime::now(), &mut self.ids);
        self.publisher.accept_pending(Pending::new(stamped, place, deadline, Ticket::Publish));
        self.publisher.pump(Until::Resolved);
        self.collect().expect("each task is resolved").into_result()
    }

    /// Publishes a task without waiting for its confirm. Returns the receipts that have come in, of
    /// this task or others. Without a connection the task waits for one, and a later call goes on to
    /// connect.
    ///
    /// # Blocking
    /// While the window is full, or the broker blocks publishers or refuses tasks: at most until the
    /// oldest task in flight is out of time. When it is time to connect: at most a second, and 5 s
    /// more if the broker then is slow to answer.
    #[must_use = "a receipt may say that a task was not confirmed"]
    pub fn send(&mut self, task: Task) -> Vec<Receipt> {
        match task.validate_for(&self.queue) {
            Ok(()) if self.publisher.is_stopped() => {
                let outcome = unsent(Error::Stopped.to_string());
                self.publisher.refuse(task, outcome, Ticket::Send);
            }
            Ok(()) => {
                let stamped = task.stamped(SystemTime::now(), &mut self.ids);
                let target = stamped.target();
                self.publisher.accept(stamped, target, Ticket::Send);
                self.publisher.pump(Until::Published);
            }
            Err(error) => {
                let outcome = Outcome::Refused { reason: error.to_string() };
                self.publisher.refuse(task, outcome, Ticket::Send);
            }
        }
        self.take_receipts()
    }

    /// Waits until every task that was sent has its receipt. Returns the receipts that no earlier
    /// call gave out.
    ///
    /// # Blocking
    /// At most for the timeout.
    #[must_use = "a receipt may say that a task was not confirmed"]
    pub fn flush(&mut self) -> Vec<Receipt> {
        self.publisher.hasten();
        self.publisher.pump(Until::Resolved);
        self.take_receipts()
    }

    /// Waits as [`flush`](Producer::flush), returns the same, and closes the connection.
    ///
    /// # Blocking
    /// At most for the timeout, and for the broker's answer to the close.
    #[must_use = "a receipt may say that a task was not confirmed"]
    pub fn close(mut self) -> Vec<Receipt> {
        let receipts = self.flush();
        self.publisher.close();
        receipts
    }

    /// Whether the priorities of tasks have an effect in this queue, as far as is known: in a classic
    /// queue with `x-max-priority`, and in a quorum queue from RabbitMQ 4.0 on. `None` without a
    /// connection.
    #[must_use]
    pub fn has_priorities(&self) -> Option<bool> {
        self.publisher.has_priorities()
    }

    /// Whether the broker may dead-letter tasks of the queue itself, as far as is known.
    pub(crate) fn counts_deliveries(&self) -> bool {
        self.publisher.counts_deliveries()
    }

    /// The connection for other uses, which the producer ends. Call [`connect`](Producer::connect)
    /// before.
    pub(crate) fn shared_connection(&self) -> Connection {
        self.publisher.shared_connection().expect("it is connected")
    }

    /// Takes the connection out, if there is one that responds. The next task opens another one.
    pub(crate) fn take_connection(&mut self) -> Option<Connection> {
        self.publisher.take_connection()
    }

    /// Keeps the receipts of tasks that were sent. Returns the one of a task that was published.
    fn collect(&mut self) -> Option<Receipt> {
        let resolved = self.publisher.take_resolved();
        self.receipts.reserve(resolved.len());
        let mut published = None;
        for Resolved { task, outcome, ticket, .. } in resolved {
            let receipt = Receipt { task, outcome };
            match ticket {
                Ticket::Publish => published = Some(receipt),
                Ticket::Send | Ticket::Submit(_) => self.receipts.push(receipt),
            }
        }
        published
    }

    fn take_receipts(&mut self) -> Vec<Receipt> {
        // Nothing is published here: `publish` has waited for its task.
        let _ = self.collect();
        std::mem::take(&mut self.receipts)
    }
}

impl Drop for Producer {
    /// Waits for the confirms of the tasks in flight, at most [`Producer::DROP_LIMIT`], and closes the
    /// connection, at most within the close limit. Has no effect in a child of the process that uses
    /// it.
    fn drop(&mut self) {
        if self.publisher.is_inherited() {
            return self.publisher.forget_link();
        }
        self.publisher.end_within(Producer::DROP_LIMIT);
        let receipts = self.flush();
        let lost = receipts.iter().filter(|it| it.outcome != Outcome::Confirmed).count();
        if lost > 0 {
            warn!(
                "a producer was dropped, and {lost} of its last tasks are not confirmed; call \
                 Producer::close and handle its receipts"
            );
        }
        self.publisher.close();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_published_task_has_its_own_receipt_whatever_ids_the_others_have() {
        let broker = "amqp://localhost".parse().expect("a URL");
        let mut producer = Producer::new(&broker, &Queue::new("q"));
        for (reason, ticket) in
            [("before", Ticket::Send), ("own", Ticket::Publish), ("after", Ticket::Send)]
        {
            let outcome = Outcome::Refused { reason: reason.into() };
            producer.publisher.refuse(Task::new("job").with_id("1"), outcome, ticket);
        }
        let refused = |reason: &str| Outcome::Refused { reason: reason.into() };
        assert_eq!(producer.collect().map(|it| it.outcome), Some(refused("own")));
        let others: Vec<_> = producer.flush().into_iter().map(|it| it.outcome).collect();
        assert_eq!(others, [refused("before"), refused("after")]);
    }

    #[test]
    fn a_producer_of_a_parent_process_is_left_alone() {
        let broker = "amqp://127.0.0.1:1".parse().expect("a URL");
        let mut producer = Producer::new(&broker, &Queue::new("q"));
        let _ = producer.send(Task::new("of the parent"));
        producer.publisher.set_process(0);
        let begun = Instant::now();
        drop(producer);
        assert!(begun.elapsed() < Producer::DROP_LIMIT / 2, "it flushes nothing");
    }
}
