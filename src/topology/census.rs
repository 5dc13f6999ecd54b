//! Counts what is in a queue and in the queues beside it, on channels that somebody else opens.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::amqp::channel::{Channel, Count};
use crate::amqp::close_reason::{ACCESS_REFUSED, CloseReason};
use crate::amqp::connection::Connection;
use crate::model::delays::all_delays;
use crate::model::queue::{Queue, Target};

/// One delay queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DelayQueue {
    /// How long each task waits in it.
    pub delay: Duration,
    /// How many wait.
    pub tasks: u64,
}

/// What opens channels: a connection, or somebody who has one.
pub(crate) trait Channels {
    fn open(&self) -> Result<Channel, CloseReason>;
}

impl Channels for Connection {
    fn open(&self) -> Result<Channel, CloseReason> {
        self.open_channel()
    }
}

/// What is left to do in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// Tasks that wait for a worker.
    Ready(u64),
    /// Tasks that wait in delay queues.
    Delayed(Vec<DelayQueue>),
    /// A task that its delay queue does not count: no node led the queue when it was counted.
    Hidden(Duration),
}

/// Counts one queue, again and again. Uses one channel, and another where the broker closed it.
pub(crate) struct Census {
    queue: Queue,
    channel: Option<Channel>,
    /// The delays whose queues existed when they were counted last.
    known: BTreeSet<Duration>,
}

impl Census {
    pub(crate) fn new(queue: &Queue) -> Census {
        Census { queue: queue.clone(), channel: None, known: BTreeSet::new() }
    }

    /// Asks something of the broker; `None` when what was asked for does not exist.
    pub(crate) fn ask<T>(
        &mut self,
        channels: &dyn Channels,
        ask: impl FnOnce(&Channel) -> Result<T, CloseReason>,
    ) -> Result<Option<T>, CloseReason> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => channels.open()?,
        };
        match ask(&channel) {
            Ok(answer) => {
                self.channel = Some(channel);
                Ok(Some(answer))
            }
            Err(cause) if cause.is_not_there() => Ok(None),
            Err(cause) => Err(cause),
        }
    }

    /// Has the next question asked on another channel: the broker has closed this one, or the
    /// connection is gone.
    pub(crate) fn forget_channel(&mut self) {
        self.channel = None;
    }

    /// What is in the queue of `target`; `None` where it does not exist.
    pub(crate) fn count(
        &mut self,
        channels: &dyn Channels,
        target: Target,
    ) -> Result<Option<Count>, CloseReason> {
        let name = self.queue.name_of(target);
        self.ask(channels, |channel| channel.count(&name))
    }

    /// The delay queues that exist, the shortest delay first.
    pub(crate) fn delayed(
        &mut self,
        channels: &dyn Channels,
    ) -> Result<Vec<DelayQueue>, CloseReason> {
        self.count_delays(channels, all_delays().collect())
    }

    /// What is left to do; `None` where the queue does not exist.
    pub(crate) fn left(&mut self, channels: &dyn Channels) -> Result<Option<Left>, CloseReason> {
        self.left_in(channels, Census::delayed)
    }

    /// What is left to do, as far as the delay queues tell that are known to exist. Each of the
    /// others costs a channel.
    pub(crate) fn left_in_known(
        &mut self,
        channels: &dyn Channels,
    ) -> Result<Option<Left>, CloseReason> {
        self.left_in(channels, |census, channels| {
            census.count_delays(channels, census.known.iter().copied().collect())
        })
    }

    fn left_in(
        &mut self,
        channels: &dyn Channels,
        delayed: fn(&mut Census, &dyn Channels) -> Result<Vec<DelayQueue>, CloseReason>,
    ) -> Result<Option<Left>, CloseReason> {
        let Some(ready) = self.ready(channels)? else { return Ok(None) };
        if ready > 0 {
            return Ok(Some(Left::Ready(ready)));
        }
        let mut waiting = delayed(self, channels)?;
        waiting.retain(|it| it.tasks > 0);
        if !waiting.is_empty() {
            return Ok(Some(Left::Delayed(waiting)));
        }
        if let Some(delay) = self.find_hidden(channels)? {
            return Ok(Some(Left::Hidden(delay)));
        }
        // Last: what left a delay queue while we looked is in the queue now.
        let left = |ready| if ready > 0 { Left::Ready(ready) } else { Left::Nothing };
        Ok(self.ready(channels)?.map(left))
    }

    fn ready(&mut self, channels: &dyn Channels) -> Result<Option<u64>, CloseReason> {
        Ok(self.count(channels, Target::Main)?.map(|count| count.ready))
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

    /// A delay queue that counts as empty and holds a task all the same. One that no node leads
    /// counts as empty; to take a task from it fails then.
    fn find_hidden(&mut self, channels: &dyn Channels) -> Result<Option<Duration>, CloseReason> {
        for delay in self.known.clone() {
            let name = self.queue.name_of(Target::Delay(delay));
            match self.ask(channels, |channel| channel.look(&name)) {
                Ok(Some(true)) => return Ok(Some(delay)),
                Ok(_) => {}
                // A login that may not take from it is left with the count.
                Err(CloseReason::ChannelClosed { code: ACCESS_REFUSED, .. }) => {}
                Err(cause) => return Err(cause),
            }
        }
        Ok(None)
    }
}
