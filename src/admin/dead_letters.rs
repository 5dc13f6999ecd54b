//! Owns [`DeadLetters`]: the dead letters of a queue, to be read, replayed and thrown away.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::admin::dead_letter_filter::DeadLetterFilter;
use crate::admin::peek_safety::{Return, refuse_harmful_look};
use crate::admin::walk::{MANY, Walk};
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
    /// How many tasks are on their queue again.
    pub replayed: u64,
    /// The ids that were asked for and that no selected letter has.
    pub missing: Vec<String>,
    /// Why it ended early, if it did: a task was not confirmed, and its letter stayed.
    pub stopped: Option<String>,
}

/// What a purge threw away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PurgeSummary {
    /// How many letters are gone.
    pub purged: u64,
    /// The ids that were asked for and that no selected letter has.
    pub missing: Vec<String>,
}

/// One at a time: whatever ends a replay, one task at most is published and its letter not acked.
const LIMITS: Limits = Limits { window: 1, timeout: Duration::from_secs(30) };

impl DeadLetter {
    /// The task, with all its headers.
    #[must_use]
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Why it is here.
    #[must_use]
    pub fn record(&self) -> FailureRecord {
        record_of(&self.task)
    }

    /// Its deaths before the last, from each of which it was replayed; oldest first, the last 10
    /// of them.
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

    /// Reads letters in the order of their queue, one after the other, until `visit` breaks. They
    /// stay in it. A classic queue keeps their order, the oldest first; in a quorum queue each read
    /// may change it. While they are read, nobody else sees them: do not let `visit` wait. Returns
    /// the ids that were asked for and that no selected letter has.
    ///
    /// # Errors
    /// As [`Inspector::status`]; a queue that never had a dead letter has none.
    /// [`Error::InvalidSetting`] when they are in a quorum queue with a delivery limit that is not
    /// ours: each look counts, and what was looked at more often is dropped. [`Error::Poisoned`]
    /// when the client library cannot parse one of them.
    ///
    /// # Blocking
    /// For three answers of the broker for each 32 letters; for more, if they are larger than
    /// 128 KiB.
    pub fn for_each(
        &self,
        selection: &DeadLetterFilter,
        mut visit: impl FnMut(DeadLetter) -> ControlFlow<()>,
    ) -> Result<Vec<String>, Error> {
        let how = self.refuse_harmful_look()?;
        let walked = self.with_channel(how, |_, channel| {
            let dead = self.queue.name_of(Target::Dead);
            let Some(walk) = Walk::begin(channel, dead, selection, MANY)? else { return Ok(None) };
            walk.go(|_, task| Ok(visit(DeadLetter { task }))).map(|missing| Some(Ok(missing)))
        })?;
        Ok(walked.unwrap_or_else(|| all_ids(selection)))
    }

    /// Puts tasks back on their queue, as their producer sent them but for what would expire them,
    /// with their attempts at zero and their failures in their history. Each is published,
    /// confirmed, and only then acked in the dead letters, before the next one is published:
    /// killed at any moment, this loses nothing, and at worst one task is in both places. Those
    /// that die again meanwhile are not replayed twice.
    ///
    /// # Errors
    /// As [`Inspector::status`], and those of [`Producer::connect`](crate::Producer::connect);
    /// [`Error::Poisoned`] as [`for_each`](DeadLetters::for_each). With ids, a reason or an age, which
    /// take a look at each letter, as [`for_each`](DeadLetters::for_each). [`Error::Unanswered`] when
    /// the session is lost after some tasks were put back.
    ///
    /// # Blocking
    /// For two answers of the broker for each letter; at most 30 s for a confirm.
    pub fn replay(&self, selection: &DeadLetterFilter) -> Result<ReplaySummary, Error> {
        // Without a look, each letter that is taken is acked before the next one is taken.
        let (mut at_once, mut how) = (1, Return::Nacking);
        if selection.is_choosy() {
            (at_once, how) = (MANY, self.refuse_harmful_look()?);
        }
        // If the letters are deleted in the middle, those before are replayed all the same.
        let mut replay = ReplaySummary::default();
        let walked = self.with_channel(how, |connection, channel| {
            let dead = self.queue.name_of(Target::Dead);
            let Some(walk) = Walk::begin(channel, dead, selection, at_once)? else {
                return Ok(None);
            };
            let mut publisher = Publisher::new(PublisherConfig {
                // Where the broker allows no second connection.
                lent: Some(connection.lend()),
                on_refusal: OnRefusal::GiveUp,
                ..PublisherConfig::new(&self.broker, &self.queue, LIMITS)
            });
            if let Err(error) = publisher.connect() {
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
        let doing = "replay";
        replay.missing = self.judge(walked, doing, replay.replayed, selection)?;
        Ok(replay)
    }

    /// Throws letters away; says how many. All of them at once, or those that are selected one by
    /// one.
    ///
    /// # Errors
    /// As [`Inspector::status`]. With ids, a reason or an age, as [`for_each`](DeadLetters::for_each).
    /// [`Error::Unanswered`] when the broker was asked for it and gave no answer.
    ///
    /// # Blocking
    /// For an answer of the broker; for selected letters as [`for_each`](DeadLetters::for_each).
    pub fn purge(&self, selection: &DeadLetterFilter) -> Result<PurgeSummary, Error> {
        if selection.is_all() {
            return self.purge_all();
        }
        let mut how = Return::Nacking;
        if selection.is_choosy() {
            how = self.refuse_harmful_look()?;
        }
        let mut purge = PurgeSummary::default();
        let walked = self.with_channel(how, |_, channel| {
            let dead = self.queue.name_of(Target::Dead);
            let Some(walk) = Walk::begin(channel, dead, selection, MANY)? else { return Ok(None) };
            let missing = walk.go(|unsettled, _| {
                channel.settle(unsettled, Settlement::Ack)?;
                purge.purged += 1;
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(Some(Ok(missing)))
        });
        purge.missing = self.judge(walked, "purge", purge.purged, selection)?;
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

    /// The ids that were not found, or what the end of a session means after so many changes.
    fn judge(
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

    fn refuse_harmful_look(&self) -> Result<Return, Error> {
        self.queue.validate()?;
        self.queue.validate_for_delays()?;
        let mut inspector = Inspector::new(&self.broker, &self.queue);
        refuse_harmful_look(&mut inspector, &self.queue)
    }

    /// There may be no queue of dead letters because there is no such queue at all.
    fn refuse_missing_queue(&self) -> Result<(), Error> {
        match Inspector::new(&self.broker, &self.queue).count(Target::Main) {
            Ok(None) => Err(missing(self.queue.name())),
            // A login that may not see the queue may still take care of its dead letters.
            Ok(Some(_)) | Err(Error::QueueRefused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Works on a channel of its own, and closes it in order, which gives back together what was
    /// taken and not settled; `None` when there are no dead letters.
    fn with_channel<T>(
        &self,
        how: Return,
        work: impl FnOnce(&Connection, &Channel) -> Result<Option<Result<T, Error>>, CloseReason>,
    ) -> Result<Option<T>, Error> {
        self.queue.validate()?;
        self.queue.validate_for_delays()?;
        let opened = connect::open(&self.broker, &crossbeam_channel::never())?;
        let Some(connection) = opened else { return Ok(None) };
        let worked = connection.open_channel().and_then(|channel| {
            let done = work(&connection, &channel)?;
            if how == Return::Nacking {
                channel.give_back_all()?;
            }
            channel.close()?;
            Ok(done)
        });
        let address = connection.address().to_string();
        match worked {
            Ok(done) => {
                // Everything is settled and answered: how this ends changes nothing.
                let _ = connection.close();
                done.transpose()
            }
            Err(cause) => match connection.end(Some(cause)) {
                cause if cause.is_not_there() => self.refuse_missing_queue().map(|()| None),
                CloseReason::Malformed(_) => {
                    Err(Error::Poisoned { queue: self.queue.name_of(Target::Dead) })
                }
                cause => {
                    let dead = self.queue.name_of(Target::Dead);
                    Err(Error::from_queue_use(&dead, &address, cause))
                }
            },
        }
    }
}

fn all_ids(selection: &DeadLetterFilter) -> Vec<String> {
    selection.named().cloned().collect()
}

/// Acks the letter whose task is confirmed. Another one stays, and so do those after it.
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
