//! Counts the tasks in a queue and in its delay queues, and finds out whether they are empty.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::amqp::channel::Count;
use crate::amqp::close_reason::{ACCESS_REFUSED, CloseReason};
use crate::model::delays::all_delays;
use crate::model::queue::{Queue, Target};
use crate::topology::admin_channel::{AdminChannel, Channels};

/// One delay queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DelayQueue {
    /// How long each task waits in it.
    pub delay: Duration,
    /// How many wait.
    pub tasks: u64,
}

/// What is left to do in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The queue has so many consumers.
    Nothing { consumers: u64 },
    /// Tasks that wait for a worker.
    Ready(u64),
    /// Tasks that wait in delay queues.
    Delayed(Vec<DelayQueue>),
    /// A task that its queue does not count: the queue had no leader when it was counted.
    Hidden(Target),
}

/// Counts one queue, again and again.
pub(crate) struct Census {
    queue: Queue,
    channel: AdminChannel,
    /// The delays whose queues existed when they were counted last.
    known: BTreeSet<Duration>,
}

impl Census {
    pub(crate) fn new(queue: &Queue) -> Census {
        Census { queue: queue.clone(), channel: AdminChannel::default(), known: BTreeSet::new() }
    }

    /// The channel on which the queues are counted, for other questions about them.
    pub(crate) fn channel(&mut self) -> &mut AdminChannel {
        &mut self.channel
    }

    /// What the queue of `target` holds; `None` if it does not exist.
    pub(crate) fn count(
        &mut self,
        channels: &dyn Channels,
        target: Target,
    ) -> Result<Option<Count>, CloseReason> {
        let name = self.queue.name_of(target);
        self.channel.count(channels, &name)
    }

    /// The delay queues that exist, the shortest delay first.
    pub(crate) fn delayed(
        &mut self,
        channels: &dyn Channels,
    ) -> Result<Vec<DelayQueue>, CloseReason> {
        self.count_delays(channels, all_delays().collect())
    }

    /// What is left to do; `None` if the queue does not exist.
    pub(crate) fn left(&mut self, channels: &dyn Channels) -> Result<Option<Left>, CloseReason> {
        self.left_in(channels, Census::delayed)
    }

    /// What is left to do in the queue and in the delay queues that are known to exist. To ask for
    /// one that does not exist costs a channel.
    pub(crate) fn left_in_known(
        &mut self,
        channels: &dyn Channels,
    ) -> Result<Option<Left>, CloseReason> {
        self.left_in(channels, Census::delayed_in_known)
    }

    /// The delay queues that are known and still exist.
    pub(crate) fn delayed_in_known(
        &mut self,
        channels: &dyn Channels,
    ) -> Result<Vec<DelayQueue>, CloseReason> {
        self.count_delays(channels, self.known.iter().copied().collect())
    }

    fn left_in(
        &mut self,
        channels: &dyn Channels,
        delayed: fn(&mut Census, &dyn Channels) -> Result<Vec<DelayQueue>, CloseReason>,
    ) -> Result<Option<Left>, CloseReason> {
        let ready = self.left_in_queue(channels)?;
        if !matches!(ready, Some(Left::Nothing { .. })) {
            return Ok(ready);
        }
        let mut waiting = delayed(self, channels)?;
        waiting.retain(|it| it.tasks > 0);
        if !waiting.is_empty() {
            return Ok(Some(Left::Delayed(waiting)));
        }
        if let Some(delay) = self.find_hidden(channels)? {
            return Ok(Some(Left::Hidden(Target::Delay(delay))));
        }
        // Counted last: a task that left a delay queue in the meantime is in the queue now.
        self.left_in_queue(channels)
    }

    fn left_in_queue(&mut self, channels: &dyn Channels) -> Result<Option<Left>, CloseReason> {
        let count = self.count(channels, Target::Main)?;
        Ok(count.map(|count| match count.ready {
            0 => Left::Nothing { consumers: count.consumers },
            ready => Left::Ready(ready),
        }))
    }

    fn count_delays(
        &mut self,
        channels: &dyn Channels,
        delays: Vec<Duration>,
    ) -> Result<Vec<DelayQueue>, CloseReason> {
        let mut existing = Vec::new();
        for delay in delays {
            match self.count(channels, Target::Delay(delay))? {
                Some(count) => {
                    self.known.insert(delay);
                    existing.push(DelayQueue { delay, tasks: count.ready });
                }
                None => drop(self.known.remove(&delay)),
            }
        }
        Ok(existing)
    }

    /// A delay queue that counts as empty, although it holds a task. A queue without a leader counts
    /// as empty, and to take a task from it fails.
    fn find_hidden(&mut self, channels: &dyn Channels) -> Result<Option<Duration>, CloseReason> {
        for delay in self.known.clone() {
            let name = self.queue.name_of(Target::Delay(delay));
            match self.channel.find(channels, |channel| channel.peek(&name)) {
                Ok(Some(true)) => return Ok(Some(delay)),
                Ok(_) => {}
                // This user may not take from it; only the count remains.
                Err(CloseReason::ChannelClosed { code: ACCESS_REFUSED, .. }) => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(None)
    }
}
