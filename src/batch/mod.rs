//! [`Batch`]: publishes tasks, and waits until each of them has ended, wherever it runs.

mod ledger;
mod wait;

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crossbeam_channel::never;

use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::batch::ledger::Ledger;
use crate::batch::wait::Wait;
use crate::model::batch::id::BatchId;
use crate::model::batch::outcome::BatchOutcome;
use crate::model::batch::{BatchTask, ask_for_output};
use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::outcome::Outcome;
use crate::model::queue::{Queue, Target};
use crate::model::task::Task;
use crate::publish::Producer;
use crate::publish::receipt::Receipt;
use crate::topology::batch_queue::{create_batch_queue, open_batch_queue};
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Shutdown, Signal};

/// Publishes tasks, and waits until each of them has *ended*: it is done, or a dead letter.
///
/// Each task is numbered, from 1. The worker that ends it reports that to a queue of the batch,
/// `NAME.batch.ID`, before it acks the task, so no outcome is lost that the task itself survives. A
/// task that is tried again later has not ended. A task that runs twice counts once.
///
/// These tasks have no outcome, and a batch waits for them until its limit: those that the broker
/// drops or dead-letters itself (expired, purged, delivered too often), and those of a worker with
/// [`auto_ack`](crate::Worker::auto_ack), or of another program.
///
/// ```no_run
/// # fn main() -> Result<(), rabbit_work::Error> {
/// use rabbit_work::{Batch, Broker, Queue, Task, shutdown};
///
/// let broker: Broker = "amqp://guest:guest@localhost:5672".parse()?;
/// let (_trigger, shutdown) = shutdown();
/// let mut batch = Batch::new(&broker, &Queue::new("photos"));
/// for n in 0..1000 {
///     let _receipts = batch.send(Task::new(format!("resize photo {n}")))?;
/// }
/// let summary = batch.wait(None, &shutdown)?;
/// println!("{} done, {} dead, {} not published", summary.done, summary.dead, summary.unconfirmed);
/// # Ok(())
/// # }
/// ```
pub struct Batch {
    broker: Broker,
    queue: Queue,
    id: BatchId,
    producer: Producer,
    stopping: Signal,
    outputs: Outputs,
    state: State,
    /// The broker may dead-letter tasks itself.
    counts_deliveries: bool,
    ledger: Ledger,
    /// The highest number of a task that was sent.
    sent: u64,
}

/// How the tasks of a batch stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchSummary {
    /// Tasks that are done.
    pub done: u64,
    /// Tasks that failed for good, and are dead letters.
    pub dead: u64,
    /// Tasks that are published and have not ended.
    pub left: u64,
    /// Tasks that were sent and not confirmed. Nobody waits for them.
    pub unconfirmed: u64,
}

/// Whether the standard output of the tasks' programs comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outputs {
    Ignored,
    Returned,
}

/// What is known of the queue of outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It does not exist.
    New,
    /// An earlier program has created it.
    Resumed,
    /// We have found it.
    Ready,
}

impl Batch {
    /// A batch of tasks for this queue. Connects when it is first used.
    #[must_use]
    pub fn new(broker: &Broker, queue: &Queue) -> Batch {
        Batch {
            broker: broker.for_role("batch", queue.name()),
            queue: queue.clone(),
            id: BatchId::random(),
            producer: Producer::new(broker, queue),
            stopping: never(),
            outputs: Outputs::Ignored,
            state: State::New,
            counts_deliveries: queue.counts_deliveries(),
            ledger: Ledger::default(),
            sent: 0,
        }
    }

    /// The batch with this [`id`](Batch::id), of an earlier program that has ended. Say by
    /// [`mark_published`](Batch::mark_published) and [`mark_ended`](Batch::mark_ended) what that
    /// program knew.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if it is no id of a batch.
    pub fn resume(broker: &Broker, queue: &Queue, id: &str) -> Result<Batch, Error> {
        let no_id = || Error::setting("batch", "it is not an id of 32 hexadecimal digits");
        let id = BatchId::parse(id).ok_or_else(no_id)?;
        Ok(Batch { id, state: State::Resumed, ..Batch::new(broker, queue) })
    }

    /// Sets how many publishes may be in flight, see [`Producer::window`]. Default: 1000.
    #[must_use]
    pub fn window(mut self, tasks: usize) -> Batch {
        self.producer = self.producer.window(tasks);
        self
    }

    /// Sets how long each task is tried to be published, and a broker to be reached before that.
    /// Default: 30 s.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Batch {
        self.producer = self.producer.timeout(limit);
        self
    }

    /// Has this shutdown end what happens before the wait, see [`Producer::shutdown`]. Default: that
    /// ends at the timeout only.
    #[must_use]
    pub fn shutdown(mut self, shutdown: &Shutdown) -> Batch {
        self.producer = self.producer.shutdown(shutdown);
        self.stopping = shutdown.stopping().clone();
        self
    }

    /// Has up to 64 KiB of the standard output of each task's program come back in its outcome, if a
    /// `Command` ran it. Default: outcomes without output.
    #[must_use]
    pub fn outputs(mut self) -> Batch {
        self.outputs = Outputs::Returned;
        self
    }

    /// The id of the batch, 32 hexadecimal digits. It is part of the ids of its tasks.
    #[must_use]
    pub fn id(&self) -> String {
        self.id.to_string()
    }

    /// The name of the queue of its outcomes. The broker deletes it after a week without use.
    #[must_use]
    pub fn queue_of_outcomes(&self) -> String {
        self.queue.name_of(Target::Batch(self.id))
    }

    /// Notes that the task of this number was published by an earlier program.
    pub fn mark_published(&mut self, n: u64) {
        self.sent = self.sent.max(n);
        self.ledger.publish(n);
    }

    /// Notes an outcome that an earlier program received. Returns whether it is the first of its
    /// task.
    pub fn mark_ended(&mut self, outcome: &BatchOutcome) -> bool {
        self.sent = self.sent.max(outcome.n);
        self.ledger.end(outcome.n, outcome.end)
    }

    /// Whether the task of this number is published, or has ended.
    #[must_use]
    pub fn is_published(&self, n: u64) -> bool {
        self.ledger.knows(n)
    }

    /// The number of a task that this batch has sent.
    #[must_use]
    pub fn number_of(&self, task: &Task) -> Option<u64> {
        let found = BatchTask::of(task, self.queue.name());
        found.filter(|it| it.batch == self.id).map(|it| it.n)
    }

    /// How the tasks stand, as far as this program knows.
    #[must_use]
    pub fn summary(&self) -> BatchSummary {
        BatchSummary {
            done: self.ledger.done(),
            dead: self.ledger.dead(),
            left: self.ledger.left(),
            unconfirmed: self.ledger.unknown_of(self.sent),
        }
    }

    /// Connects, and declares the queue and the queue of outcomes, unless that is done already.
    ///
    /// # Errors
    /// Those of [`Producer::connect`], for both queues. [`Error::QueueMissing`] if the queue of
    /// outcomes of a resumed batch does not exist any more, with outcomes that it waits for.
    ///
    /// # Blocking
    /// At most for the timeout, and for some answers of the broker.
    pub fn connect(&mut self) -> Result<(), Error> {
        if self.state == State::Ready {
            return Ok(());
        }
        self.queue.validate()?;
        self.queue.validate_for_batches()?;
        self.producer.connect()?;
        self.counts_deliveries |= self.producer.counts_deliveries();
        // The broker may allow no second connection.
        let connection = self.producer.shared_connection();
        let address = connection.address().to_string();
        match self.prepare_queue(&connection) {
            Ok(durable_at) => {
                let _ = self.stopping.recv_deadline(durable_at);
                self.state = State::Ready;
                Ok(())
            }
            Err(cause) => {
                let name = self.queue_of_outcomes();
                if !cause.is_channel_error() {
                    drop(self.producer.take_connection());
                }
                Err(match Error::from_queue_use(&name, &address, cause) {
                    Error::QueueMissing { .. } => wait::missing(&name, self.ledger.left()),
                    error => error,
                })
            }
        }
    }

    /// Has the queue of outcomes exist, and checks that it can be read. Returns from when on it
    /// outlives a crash of the broker.
    fn prepare_queue(&self, connection: &Connection) -> Result<Instant, CloseReason> {
        // Without outcomes to wait for, it was deleted, or is to be created.
        let may_create = self.state == State::New || self.ledger.left() == 0;
        let durable_at = if may_create {
            create_batch_queue(connection, &self.queue, self.id)?
        } else {
            Instant::now()
        };
        open_batch_queue(connection, &self.queue, self.id)?.close()?;
        Ok(durable_at)
    }

    /// Whether the priorities of tasks have an effect; see [`Producer::has_priorities`].
    #[must_use]
    pub fn has_priorities(&self) -> Option<bool> {
        self.producer.has_priorities()
    }

    /// Publishes the next task without waiting for its confirm, as [`Producer::send`] does. Returns
    /// the receipts that have come in, of this task or others. A task without an id gets
    /// `BATCH-NUMBER`. Each gets a correlation id and a reply-to of the batch.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a transient task. At the first call, those of
    /// [`connect`](Batch::connect).
    ///
    /// # Blocking
    /// As [`Producer::send`]; at the first call as [`connect`](Batch::connect) as well.
    pub fn send(&mut self, task: Task) -> Result<Vec<Receipt>, Error> {
        self.send_numbered(self.sent + 1, task)
    }

    /// The same for the task of this number, from 1: for a batch that is resumed.
    ///
    /// # Errors
    /// As [`send`](Batch::send).
    ///
    /// # Blocking
    /// As [`send`](Batch::send).
    pub fn send_numbered(&mut self, n: u64, task: Task) -> Result<Vec<Receipt>, Error> {
        if task.is_transient() {
            let reason = "a restart of the broker loses a transient task, and the batch would wait \
                          for it for ever; make it persistent";
            return Err(Error::setting("task", reason));
        }
        self.connect()?;
        self.sent = self.sent.max(n);
        let task = match self.outputs {
            Outputs::Ignored => task,
            Outputs::Returned => ask_for_output(task),
        };
        let receipts = self.producer.send(self.id.number(n, task, &self.queue));
        Ok(self.noted(receipts))
    }

    /// Waits until every task that was sent has its receipt, as [`Producer::flush`] does. Returns the
    /// receipts that no earlier call gave out.
    ///
    /// # Blocking
    /// At most for the timeout.
    #[must_use = "a receipt may say that a task was not confirmed"]
    pub fn flush(&mut self) -> Vec<Receipt> {
        let receipts = self.producer.flush();
        self.noted(receipts)
    }

    fn noted(&mut self, receipts: Vec<Receipt>) -> Vec<Receipt> {
        for receipt in receipts.iter().filter(|it| it.outcome == Outcome::Confirmed) {
            if let Some(n) = self.number_of(&receipt.task) {
                self.ledger.publish(n);
            }
        }
        receipts
    }

    /// Waits until each confirmed task has ended, at most for `limit` or until a stop. Then
    /// [`left`](BatchSummary::left) is not 0, and another call goes on. A batch without a task left
    /// deletes its queue of outcomes.
    ///
    /// # Errors
    /// At the first connection, any error that a person has to act on, as
    /// [`connect`](Batch::connect). Later only [`Error::QueueMissing`]: somebody has deleted the queue
    /// of outcomes, and those of some tasks are lost; and [`Error::Poisoned`]. When the connection is
    /// lost, it connects again.
    ///
    /// # Blocking
    /// Until then. First it flushes, and drops the receipts: to see them, call
    /// [`flush`](Batch::flush) before. It goes on with their connection, and
    /// closes it at its end.
    pub fn wait(
        &mut self,
        limit: Option<Duration>,
        shutdown: &Shutdown,
    ) -> Result<BatchSummary, Error> {
        self.wait_each(limit, shutdown, |_| ControlFlow::Continue(()))
    }

    /// The same, and calls `each` with the outcomes that have come in, one or more. The broker keeps
    /// them until `each` has returned. If it breaks, they stay in their queue, and the wait ends. Each
    /// task comes once, unless the program dies in between.
    ///
    /// # Errors
    /// As [`wait`](Batch::wait).
    ///
    /// # Blocking
    /// As [`wait`](Batch::wait).
    pub fn wait_each(
        &mut self,
        limit: Option<Duration>,
        shutdown: &Shutdown,
        mut each: impl FnMut(&[BatchOutcome]) -> ControlFlow<()>,
    ) -> Result<BatchSummary, Error> {
        let _ = self.flush();
        let opened = self.producer.take_connection();
        let wait = Wait {
            broker: &self.broker,
            queue: &self.queue,
            batch: self.id,
            sent: self.sent,
            counts_deliveries: self.counts_deliveries,
            prefetch: match self.outputs {
                Outputs::Ignored => wait::OUTCOMES_AT_ONCE,
                Outputs::Returned => wait::OUTPUTS_AT_ONCE,
            },
            deadline: limit.map(deadline_after),
            stopping: shutdown.stopping(),
        };
        wait.run(opened, &mut self.ledger, &mut each)?;
        Ok(self.summary())
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("broker", &self.broker)
            .field("queue", &self.queue.name())
            .field("id", &self.id)
            .field("summary", &self.summary())
            .finish_non_exhaustive()
    }
}
