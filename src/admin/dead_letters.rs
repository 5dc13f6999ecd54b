//! [`DeadLetters`]: reads, replays and purges the dead letters of a queue.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::admin::dead_letter_filter::DeadLetterFilter;
use crate::admin::peek_safety::{RequeueBy, refuse_harmful_peek};
use crate::admin::walk::{LETTERS_AT_ONCE, Walk};
use crate::admin::{Inspector, missing};
use crate::amqp::channel::{Channel, Settlement, Unsettled};
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connect;
use crate::amqp::connection::Connection;
use crate::model::broker::Broker;
use crate::model::error::Error;
use crate::model::failure_record::{FailureRecord, history_of, record_of, reset_for_replay};
use crate::model::outcome::Outcome;
use crate::model::queue::{Queue, Target};
use crate::model::task::Task;
use crate::publish::config::{Limits, PublisherConfig};
use crate::publish::pending::Resolved;
use crate::publish::publisher::{Publisher, Until};
use crate::publish::refusal::OnRefusal;

/// The dead letters of one queue: tasks that failed for good, in `NAME.dead`.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    broker: Broker,
    queue: Queue,
}

/// One dead letter.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    task: Task,
}

/// How a replay went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplaySummary {
    /// How many tasks were put back on their queue.
    pub replayed: u64,
    /// The ids of the filter that no selected dead letter has.
    pub missing: Vec<String>,
    /// Why it ended early, if it did: a task was not confirmed, and its dead letter stayed.
    pub stopped: Option<String>,
}

/// How a purge went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PurgeSummary {
    /// How many dead letters were removed.
    pub purged: u64,
    /// The ids of the filter that no selected dead letter has.
    pub missing: Vec<String>,
}

/// One at a time: however a replay ends, at most one task is both on its queue and a dead letter.
const REPLAY_LIMITS: Limits = Limits { window: 1, timeout: Duration::from_secs(30) };

impl DeadLetter {
    /// The task, with all its headers.
    #[must_use]
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Why it died.
    #[must_use]
    pub fn record(&self) -> FailureRecord {
        record_of(&self.task)
    }

    /// Its earlier deaths, after each of which it was replayed: the last 10, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<FailureRecord> {
        history_of(&self.task)
    }
}

impl DeadLetters {
    /// The dead letters of this queue.
    #[must_use]
    pub fn new(broker: &Broker, queue: &Queue) -> DeadLetters {
        DeadLetters { broker: broker.clone(), queue: queue.clone() }
    }

    /// Reads dead letters in the order of their queue until `visit` breaks. They stay in it. A classic
    /// queue keeps their order, the oldest first; in a quorum queue each read may change it. While
    /// they are read, no other client sees them: do not let `visit` wait. Returns the ids of the
    /// filter that no selected dead letter has.
    ///
    /// # Errors
    /// As [`Inspector::status`]; a queue that never had a dead letter has none.
    /// [`Error::InvalidSetting`] when they are in a quorum queue with a delivery limit that is not
    /// ours: each read counts as a delivery, and the broker drops what exceeds the limit.
    /// [`Error::Poisoned`] when the client library cannot parse one of them.
    ///
    /// # Blocking
    /// For three answers of the broker for each 32 letters; for more, if they are larger than
    /// 128 KiB.
    pub fn for_each(
        &self,
        selection: &DeadLetterFilter,
        mut visit: impl FnMut(DeadLetter) -> ControlFlow<()>,
    ) -> Result<Vec<String>, Error> {
        let how = self.refuse_harmful_peek()?;
        let walked = self.with_channel(how, |_, channel| {
            let dead = self.queue.name_of(Target::Dead);
            let Some(walk) = Walk::begin(channel, dead, selection, LETTERS_AT_ONCE)? else {
                return Ok(None);
            };
            walk.go(|_, task| Ok(visit(DeadLetter { task }))).map(|missing| Some(Ok(missing)))
        })?;
        Ok(walked.unwrap_or_else(|| all_ids(selection)))
    }

    /// Puts tasks back on their queue as their producer sent them, without an expiration, with zero
    /// attempts, and with their failures in their history. Each task is published, confirmed, and
    /// only then acked as a dead letter, before the next one is published. Killed at any moment,
    /// this loses no task; at worst one task is in both queues. A task that dies again meanwhile is
    /// not replayed twice.
    ///
    /// # Errors
    /// As [`Inspector::status`] and [`Producer::connect`](crate::Producer::connect);
    /// [`Error::Poisoned`] as [`for_each`](DeadLetters::for_each). A filter with ids, a reason or an
    /// age has to read each letter: then as [`for_each`](DeadLetters::for_each).
    /// [`Error::Unanswered`] when the session is lost after some tasks were put back.
    ///
    /// # Blocking
    /// For two answers of the broker for each letter; at most 30 s for a confirm.
    pub fn replay(&self, selection: &DeadLetterFilter) -> Result<ReplaySummary, Error> {
        // Without reading ahead, each letter is acked before the next one is taken.
        let (mut at_once, mut how) = (1, RequeueBy::Nack);
        if selection.needs_content() {
            (at_once, how) = (LETTERS_AT_ONCE, self.refuse_harmful_peek()?);
        }
        // Counts what was replayed before the queue was deleted or the session lost.
        let mut replay = ReplaySummary::default();
        let walked = self.with_channel(how, |connection, channel| {
            let dead = self.queue.name_of(Target::Dead);
            let Some(walk) = Walk::begin(channel, dead, selection, at_once)? else {
                return Ok(None);
            };
            let mut publisher = Publisher::new(PublisherConfig {
                // The fallback if the broker allows no second connection.
                lent: Some(connection.lend()),
                on_refusal: OnRefusal::GiveUp,
                ..PublisherConfig::new(
                    &self.broker.for_role("replay", self.queue.name()),
                    &self.queue,
                    REPLAY_LIMITS,
                )
            });
            if let Err(error) = publisher.connect(publisher.deadline()) {
                return Ok(Some(Err(error)));
            }
            let missing = walk.go(|unsettled, letter| {
                publisher.accept(reset_for_replay(letter), Target::Main, unsettled);
                publisher.pump(Until::Resolved);
                settle(channel, publisher.take_resolved(), &mut replay)
            })?;
            publisher.close();
            Ok(Some(Ok(missing)))
        });
        replay.missing = self.missing_ids(walked, "replay", replay.replayed, selection)?;
        Ok(replay)
    }

    /// Removes dead letters: all at once, or the selected ones one by one.
    ///
    /// # Errors
    /// As [`Inspector::status`]. With ids, a reason or an age, as [`for_each`](DeadLetters::for_each).
    /// [`Error::Unanswered`] when the broker did not answer the purge.
    ///
    /// # Blocking
    /// For an answer of the broker; for selected letters as [`for_each`](DeadLetters::for_each).
    pub fn purge(&self, selection: &DeadLetterFilter) -> Result<PurgeSummary, Error> {
        if selection.is_all() {
            return self.purge_all();
        }
        let mut how = RequeueBy::Nack;
        if selection.needs_content() {
            how = self.refuse_harmful_peek()?;
        }
        let mut purge = PurgeSummary::default();
        let walked = self.with_channel(how, |_, channel| {
            let dead = self.queue.name_of(Target::Dead);
            let Some(walk) = Walk::begin(channel, dead, selection, LETTERS_AT_ONCE)? else {
                return Ok(None);
            };
            let missing = walk.go(|unsettled, _| {
                channel.settle(unsettled, Settlement::Ack)?;
                purge.purged += 1;
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(Some(Ok(missing)))
        });
        purge.missing = self.missing_ids(walked, "purge", purge.purged, selection)?;
        Ok(purge)
    }

    fn purge_all(&self) -> Result<PurgeSummary, Error> {
        self.queue.validate_for_delays()?;
        let mut inspector = Inspector::new(&self.broker, &self.queue);
        if let Some(purged) = inspector.purge_target(Target::Dead)? {
            return Ok(PurgeSummary { purged, missing: Vec::new() });
        }
        self.refuse_missing_queue()?;
        Ok(PurgeSummary::default())
    }

    /// The ids that were not found. A session lost after some changes is an unanswered call.
    fn missing_ids(
        &self,
        walked: Result<Option<Vec<String>>, Error>,
        doing: &'static str,
        changes: u64,
        selection: &DeadLetterFilter,
    ) -> Result<Vec<String>, Error> {
        match walked {
            Ok(missing) => Ok(missing.unwrap_or_else(|| all_ids(selection))),
            Err(error) if changes > 0 => {
                Err(Error::unanswered(doing, &self.queue.name_of(Target::Dead), error))
            }
            Err(error) => Err(error),
        }
    }

    fn refuse_harmful_peek(&self) -> Result<RequeueBy, Error> {
        self.queue.validate()?;
        self.queue.validate_for_delays()?;
        let mut inspector = Inspector::new(&self.broker, &self.queue);
        refuse_harmful_peek(&mut inspector, &self.queue)
    }

    /// No dead-letter queue is fine, unless the queue itself does not exist.
    fn refuse_missing_queue(&self) -> Result<(), Error> {
        match Inspector::new(&self.broker, &self.queue).count(Target::Main) {
            Ok(None) => Err(missing(self.queue.name())),
            // A login without permission for the queue may still manage its dead letters.
            Ok(Some(_)) | Err(Error::QueueRefused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Works on a channel of its own, and closes it in order, which requeues all that was taken and
    /// not settled. `None` if there is no dead-letter queue.
    fn with_channel<T>(
        &self,
        how: RequeueBy,
        work: impl FnOnce(&Connection, &Channel) -> Result<Option<Result<T, Error>>, CloseReason>,
    ) -> Result<Option<T>, Error> {
        self.queue.validate()?;
        self.queue.validate_for_delays()?;
        let opened = connect::open(&self.broker, &crossbeam_channel::never())?;
        let Some(connection) = opened else { return Ok(None) };
        let worked = connection.open_channel().and_then(|channel| {
            let done = work(&connection, &channel)?;
            if how == RequeueBy::Nack {
                channel.requeue_unsettled()?;
            }
            channel.close()?;
            Ok(done)
        });
        match worked {
            Ok(done) => {
                connection.close();
                done.transpose()
            }
            Err(cause) => self.no_letters_or_error(connection, cause).map(|()| None),
        }
    }

    /// Ends the connection. A dead-letter queue that does not exist is no error.
    fn no_letters_or_error(&self, connection: Connection, cause: CloseReason) -> Result<(), Error> {
        let address = connection.address().to_string();
        let dead = self.queue.name_of(Target::Dead);
        match connection.end(Some(cause)) {
            cause if cause.is_not_there() => self.refuse_missing_queue(),
            CloseReason::Malformed(_) => Err(Error::Poisoned { queue: dead }),
            cause => Err(Error::from_queue_use(&dead, &address, cause)),
        }
    }
}

fn all_ids(selection: &DeadLetterFilter) -> Vec<String> {
    selection.named().cloned().collect()
}

/// Acks the letter whose task is confirmed. The first that is not confirmed stops the replay.
fn settle(
    channel: &Channel,
    resolved: Vec<Resolved<Unsettled>>,
    replay: &mut ReplaySummary,
) -> Result<ControlFlow<()>, CloseReason> {
    for Resolved { outcome, ticket, .. } in resolved {
        match outcome {
            Outcome::Confirmed => {
                channel.settle(ticket, Settlement::Ack)?;
                replay.replayed += 1;
            }
            Outcome::Unconfirmed { .. } => {
                replay.stopped = Some(format!("{outcome}; it may be on its queue as well"));
            }
            outcome => replay.stopped = Some(outcome.to_string()),
        }
    }
    Ok(if replay.stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
}
