//! Takes the outcomes of a batch from their queue until each task has ended: one session after the
//! other, with a growing pause after each that was lost. The first goes on with the connection that
//! published the tasks: the broker may allow no second one.

use std::ops::ControlFlow;
use std::time::Instant;

use crossbeam_channel::{Receiver, at, never, select_biased};
use log::warn;

use crate::amqp::channel::{
    Acks, Channel, Incoming, Received, Settlement, Subscription, Unsettled,
};
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connect::ConnectAttempt;
use crate::amqp::connection::Connection;
use crate::batch::ledger::Ledger;
use crate::model::batch::id::BatchId;
use crate::model::batch::outcome::BatchOutcome;
use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::queue::{Queue, Target};
use crate::topology::batch_queue::{delete_batch_queue, open_batch_queue};
use crate::util::backoff::Backoff;
use crate::util::deadline::UNLIMITED;
use crate::util::shutdown::Signal;

/// One wait for the outcomes of a batch.
pub(crate) struct Wait<'a> {
    pub(crate) broker: &'a Broker,
    pub(crate) queue: &'a Queue,
    pub(crate) batch: BatchId,
    /// The highest number of a task that was sent.
    pub(crate) sent: u64,
    /// The broker may dead-letter tasks itself.
    pub(crate) counts_deliveries: bool,
    /// How many outcomes are taken together.
    pub(crate) prefetch: u16,
    pub(crate) deadline: Option<Instant>,
    pub(crate) stopping: &'a Signal,
}

/// What the caller does with outcomes.
pub(crate) type Each<'a> = dyn FnMut(&[BatchOutcome]) -> ControlFlow<()> + 'a;

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Each task has ended.
    Complete,
    /// It was stopped, or is out of time, or the caller takes no more.
    Early,
}

/// What a session has taken and not acked.
struct Group {
    unsettled: Vec<Unsettled>,
    outcomes: Vec<BatchOutcome>,
}

/// How many outcomes are taken together: without output each has some hundred bytes, with output
/// up to several hundred KiB.
pub(crate) const OUTCOMES_AT_ONCE: u16 = 1000;
pub(crate) const OUTPUTS_AT_ONCE: u16 = 16;

/// After this many sessions in a row that received bytes that cannot be parsed, the queue holds a
/// message of which each session dies.
const POISONED_AFTER: u32 = 3;

impl Wait<'_> {
    pub(crate) fn run(
        &self,
        mut opened: Option<Connection>,
        ledger: &mut Ledger,
        each: &mut Each<'_>,
    ) -> Result<(), Error> {
        let (mut backoff, mut has_consumed, mut malformed) =
            (Backoff::up_to(Backoff::LONGEST_OF_A_WORKER), false, 0);
        self.warn_of_no_end(ledger);
        while ledger.left() > 0 {
            let before = ledger.left();
            let session = self.run_session(opened.take(), ledger, each, &mut has_consumed);
            let error = match session {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            malformed = if error.is_malformed() { malformed + 1 } else { 0 };
            if malformed >= POISONED_AFTER {
                return Err(Error::Poisoned { queue: self.name() });
            }
            let is_missing = matches!(error, Error::QueueMissing { .. });
            if is_missing {
                return Err(missing(&self.name(), ledger.left()));
            }
            if !(error.is_transient() || has_consumed) {
                return Err(error);
            }
            if ledger.left() < before {
                backoff.reset();
            }
            let pause = backoff.next_pause();
            warn!("{}; next try in {:.1} s", error.chain(), pause.as_secs_f64());
            select_biased! {
                recv(self.stopping) -> _ => return Ok(()),
                recv(self.late()) -> _ => return Ok(()),
                recv(crossbeam_channel::after(pause)) -> _ => {},
            }
        }
        Ok(())
    }

    fn warn_of_no_end(&self, ledger: &Ledger) {
        if self.counts_deliveries && self.deadline.is_none() && ledger.left() > 0 {
            warn!(
                "queue '{}' is a quorum queue: a task that kills its worker each time becomes a dead \
                 letter at the delivery limit, without an outcome, and this wait would not end; give \
                 it a limit (--wait-timeout)",
                self.queue.name()
            );
        }
    }

    fn run_session(
        &self,
        opened: Option<Connection>,
        ledger: &mut Ledger,
        each: &mut Each<'_>,
        has_consumed: &mut bool,
    ) -> Result<End, Error> {
        let Some(connection) = opened.map_or_else(|| self.connect(), |it| Ok(Some(it)))? else {
            return Ok(End::Early);
        };
        let address = connection.address().to_string();
        match self.take_from(&connection, ledger, each, has_consumed) {
            Ok(end) => {
                connection.close();
                Ok(end)
            }
            Err(cause) => {
                let cause = connection.end(Some(cause));
                Err(Error::from_queue_use(&self.name(), &address, cause))
            }
        }
    }

    /// `None` at a stop or the deadline.
    fn connect(&self) -> Result<Option<Connection>, Error> {
        ConnectAttempt::start(self.broker, UNLIMITED)?.wait(self.stopping, self.deadline)
    }

    fn take_from(
        &self,
        connection: &Connection,
        ledger: &mut Ledger,
        each: &mut Each<'_>,
        has_consumed: &mut bool,
    ) -> Result<End, CloseReason> {
        let channel = open_batch_queue(connection, self.queue, self.batch)?;
        let subscription = channel.consume(&self.name(), self.prefetch, Acks::Manual, None)?;
        *has_consumed = true;
        let taken = self.take_all(&channel, &subscription, ledger, each);
        // What has arrived and is not acked is requeued when the channel closes.
        let left = subscription.leave();
        let end = taken?;
        left.ended.map_or(Ok(()), Err)?;
        if end == End::Complete {
            delete_batch_queue(&channel, self.queue, self.batch);
            return Ok(end);
        }
        channel.close().map(|()| end)
    }

    fn take_all(
        &self,
        channel: &Channel,
        subscription: &Subscription<'_>,
        ledger: &mut Ledger,
        each: &mut Each<'_>,
    ) -> Result<End, CloseReason> {
        while ledger.left() > 0 {
            let Some(group) = self.next_group(subscription, ledger)? else {
                return Ok(End::Early);
            };
            let Group { unsettled, outcomes } = group;
            if !outcomes.is_empty() && each(&outcomes).is_break() {
                outcomes.iter().for_each(|it| ledger.forget_end(it.n, it.end));
                return Ok(End::Early);
            }
            for unsettled in unsettled {
                channel.settle(unsettled, Settlement::Ack)?;
            }
        }
        Ok(End::Complete)
    }

    /// The outcomes that have come in, once there is one. `None` at a stop or the deadline.
    fn next_group(
        &self,
        subscription: &Subscription<'_>,
        ledger: &mut Ledger,
    ) -> Result<Option<Group>, CloseReason> {
        let mut group = Group { unsettled: Vec::new(), outcomes: Vec::new() };
        let first = select_biased! {
            recv(self.stopping) -> _ => return Ok(None),
            recv(self.late()) -> _ => return Ok(None),
            recv(subscription.inbox()) -> message => message.map_err(|_| CloseReason::Disconnected)?,
        };
        self.add(&mut group, first.into(), ledger)?;
        while let Ok(message) = subscription.inbox().try_recv() {
            // An end of the subscription: what came before it is not acked, and comes again.
            if let Err(cause) = self.add(&mut group, message.into(), ledger) {
                group.outcomes.iter().for_each(|it| ledger.forget_end(it.n, it.end));
                return Err(cause);
            }
        }
        Ok(Some(group))
    }

    fn add(
        &self,
        group: &mut Group,
        incoming: Incoming,
        ledger: &mut Ledger,
    ) -> Result<(), CloseReason> {
        let (unsettled, received) = match incoming {
            Incoming::Delivery(unsettled, received) => (unsettled, received),
            Incoming::Ended(cause) => return Err(cause),
            Incoming::Cancelled => return Err(CloseReason::Disconnected),
        };
        group.unsettled.push(unsettled);
        group.outcomes.extend(self.read(&received).filter(|it| ledger.end(it.n, it.end)));
        Ok(())
    }

    /// Reads an outcome. Anybody can publish to the queue, so it may be none of this batch.
    fn read(&self, received: &Received) -> Option<BatchOutcome> {
        let outcome = BatchOutcome::from_json(received.task.body());
        let outcome = outcome.filter(|it| it.n <= self.sent);
        if outcome.is_none() {
            warn!("ignored a message in '{}' that is not an outcome of this batch", self.name());
        }
        outcome
    }

    fn name(&self) -> String {
        self.queue.name_of(Target::Batch(self.batch))
    }

    fn late(&self) -> Receiver<Instant> {
        self.deadline.map_or_else(never, at)
    }
}

/// The error for a queue of outcomes that does not exist any more.
pub(crate) fn missing(queue: &str, left: u64) -> Error {
    let text = format!(
        "it was deleted, or has expired, with the outcomes of up to {left} tasks; begin another batch"
    );
    Error::QueueMissing { queue: queue.into(), text }
}
