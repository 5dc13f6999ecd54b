//! Owns [`Letters`]: the dead letters of a queue, to be read, replayed and thrown away.

use std::time::Duration;

use crate::broker::Broker;
use crate::cause::Cause;
use crate::channel::{Channel, Settlement, Unsettled};
use crate::connection::Connection;
use crate::error::Error;
use crate::inspect::Inspector;
use crate::looks::refuse_harmful_look;
use crate::producer::Outcome;
use crate::publisher::{Limits, Publisher, Settled, Until};
use crate::queue::{Queue, Target};
use crate::record::{Record, history_of, record_of, revived};
use crate::task::Task;

/// The dead letters of one queue: tasks that failed for good, in `NAME.dead`.
#[derive(Clone, Debug)]
pub struct Letters {
    broker: Broker,
    queue: Queue,
}

/// One dead letter.
#[derive(Clone, Debug)]
pub struct Letter {
    task: Task,
}

/// Which letters to replay.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    limit: Option<u64>,
    id: Option<String>,
}

/// How a replay went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replay {
    /// How many tasks are on their queue again.
    pub replayed: u64,
    /// Why it ended early, if it did: a task was not confirmed, and its letter stayed.
    pub stopped: Option<String>,
}

/// One at a time: whatever ends a replay, one task at most is published and its letter not acked.
const LIMITS: Limits = Limits { window: 1, timeout: Duration::from_secs(30) };

impl Letter {
    /// The task, with all its headers.
    #[must_use]
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Why it is here.
    #[must_use]
    pub fn record(&self) -> Record {
        record_of(&self.task)
    }

    /// Its deaths before the last, from each of which it was replayed; oldest first, the last 10
    /// of them.
    #[must_use]
    pub fn history(&self) -> Vec<Record> {
        history_of(&self.task)
    }
}

impl Selection {
    /// All letters there are.
    #[must_use]
    pub fn all() -> Selection {
        Selection::default()
    }

    /// At most this many, the oldest first.
    #[must_use]
    pub fn limit(mut self, letters: u64) -> Selection {
        self.limit = Some(letters);
        self
    }

    /// Only those whose task has this id.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Selection {
        self.id = Some(id.into());
        self
    }

    fn takes(&self, task: &Task) -> bool {
        self.id.is_none() || self.id.as_deref() == task.id()
    }

    fn is_full(&self, selected: u64) -> bool {
        self.limit.is_some_and(|limit| selected >= limit)
    }
}

impl Letters {
    /// The dead letters of this queue.
    #[must_use]
    pub fn new(broker: &Broker, queue: &Queue) -> Letters {
        Letters { broker: broker.clone(), queue: queue.clone() }
    }

    /// Reads letters, oldest first. They stay where they are, in their order; while they are
    /// read, nobody else sees them.
    ///
    /// # Errors
    /// As [`Inspector::status`]; a queue that never had a dead letter has none.
    /// [`Error::InvalidSetting`] when they are in a quorum queue with a delivery limit that is not
    /// ours: each look counts, and what was looked at more often is dropped. [`Error::Poisoned`]
    /// when the client library cannot parse one of them.
    ///
    /// # Blocking
    /// For one answer of the broker for each letter.
    pub fn list(&self, selection: &Selection) -> Result<Vec<Letter>, Error> {
        self.refuse_harmful_look()?;
        self.with_channel(|channel| {
            let dead = self.queue.name_of(Target::Dead);
            let (mut letters, mut held) = (Vec::new(), Vec::new());
            while !selection.is_full(letters.len() as u64) {
                let Some((unsettled, received)) = channel.get(&dead)? else { break };
                held.push(unsettled);
                if selection.takes(&received.task) {
                    letters.push(Letter { task: received.task });
                }
            }
            give_back(channel, held)?;
            Ok(Ok(letters))
        })
        .map(Option::unwrap_or_default)
    }

    /// Puts tasks back on their queue, as their producer sent them but for what would expire them,
    /// with their attempts at zero and their failures in their history. Each is published,
    /// confirmed, and only then acked in the dead letters, before the next one is taken: killed at
    /// any moment, this loses nothing, and at worst one task is in both places. Those that die
    /// again meanwhile are not replayed twice.
    ///
    /// # Errors
    /// As [`Inspector::status`], and those of [`Producer::connect`](crate::Producer::connect);
    /// [`Error::Poisoned`] as [`list`](Letters::list).
    /// With an id, which takes a look at those before it, as [`list`](Letters::list).
    ///
    /// # Blocking
    /// For two answers of the broker for each letter; at most 30 s for a confirm.
    pub fn replay(&self, selection: &Selection) -> Result<Replay, Error> {
        if selection.id.is_some() {
            self.refuse_harmful_look()?;
        }
        // Where the letters are deleted in the middle, those before are replayed all the same.
        let mut replay = Replay::default();
        self.with_channel(|channel| {
            let dead = self.queue.name_of(Target::Dead);
            let mut next = channel.get(&dead)?;
            if next.is_none() && channel.count(&dead)?.ready == 0 {
                return Ok(Ok(()));
            }
            let mut publisher =
                Publisher::new(&self.broker, &self.queue, LIMITS).giving_up_what_is_refused();
            if let Err(error) = publisher.connect() {
                return Ok(Err(error));
            }
            let (mut selected, mut passed) = (0, Vec::new());
            // Behind the first, whose answer waits for what others have just given back. A count
            // overtakes that.
            for _ in 0..=channel.count(&dead)?.ready {
                if selection.is_full(selected) || replay.stopped.is_some() {
                    break;
                }
                let letter = next.take().map_or_else(|| channel.get(&dead), |it| Ok(Some(it)))?;
                let Some((unsettled, received)) = letter else { break };
                if selection.takes(&received.task) {
                    selected += 1;
                    publisher.accept(revived(received.task), Target::Work, unsettled);
                    publisher.pump(Until::Settled);
                    settle(channel, publisher.take_settled(), &mut replay)?;
                } else {
                    passed.push(unsettled);
                }
            }
            give_back(channel, passed)?;
            publisher.close();
            Ok(Ok(()))
        })?;
        Ok(replay)
    }

    /// Throws all letters away; says how many.
    ///
    /// # Errors
    /// As [`Inspector::status`].
    ///
    /// # Blocking
    /// For an answer of the broker.
    pub fn purge(&self) -> Result<u64, Error> {
        self.queue.validate_for_delays()?;
        let mut inspector = Inspector::new(&self.broker, &self.queue);
        match inspector.purge_target(Target::Dead) {
            Err(Error::QueueRefused { text, .. }) if text.contains("no such queue") => Ok(0),
            purged => purged,
        }
    }

    fn refuse_harmful_look(&self) -> Result<(), Error> {
        self.queue.validate()?;
        self.queue.validate_for_delays()?;
        let mut inspector = Inspector::new(&self.broker, &self.queue);
        refuse_harmful_look(&mut inspector, &self.queue)
    }

    /// Works on a channel of its own, and closes it in order; `None` when there is no queue of
    /// dead letters. What was taken and not settled is back when the channel is closed.
    fn with_channel<T>(
        &self,
        work: impl FnOnce(&Channel) -> Result<Result<T, Error>, Cause>,
    ) -> Result<Option<T>, Error> {
        self.queue.validate()?;
        self.queue.validate_for_delays()?;
        let opened = Connection::open(&self.broker, &crossbeam_channel::never(), None)?;
        let Some(connection) = opened else { return Ok(None) };
        let worked = connection.open_channel().and_then(|channel| {
            let done = work(&channel)?;
            channel.close()?;
            Ok(done)
        });
        let address = connection.address().to_string();
        match worked {
            Ok(done) => {
                // Everything is settled and answered: how this ends changes nothing.
                let _ = connection.close();
                done.map(Some)
            }
            Err(cause) => match connection.end(Some(cause)) {
                cause if cause.is_not_there() => Ok(None),
                Cause::Malformed(_) => {
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

/// Acks the letters whose tasks are confirmed, and gives the others back.
fn settle(
    channel: &Channel,
    settled: Vec<Settled<Unsettled>>,
    replay: &mut Replay,
) -> Result<(), Cause> {
    for Settled { outcome, ticket, .. } in settled {
        if outcome == Outcome::Confirmed {
            channel.settle(ticket, Settlement::Ack)?;
            replay.replayed += 1;
        } else {
            channel.settle(ticket, Settlement::GiveBack)?;
            replay.stopped.get_or_insert(outcome.to_string());
        }
    }
    Ok(())
}

fn give_back(channel: &Channel, letters: Vec<Unsettled>) -> Result<(), Cause> {
    letters.into_iter().try_for_each(|letter| channel.settle(letter, Settlement::GiveBack))
}
