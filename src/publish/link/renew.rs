//! Replaces the channel on which a queue nacks all tasks.
//!
//! The broker keeps, for each channel, the nodes of the queues that were published to. RabbitMQ
//! 3.10.8 asks the first of them before the first publish. If that node is down, the channel nacks
//! until the node is back, although the queue has a new leader (`rabbit_fifo_client:enqueue`). A new
//! channel knows the new leader.

use std::time::{Duration, Instant};

use log::debug;

use super::Link;
use crate::amqp::close_reason::CloseReason;
use crate::publish::config::PublisherConfig;
use crate::publish::in_flight::InFlight;
use crate::publish::pending::Pending;

/// How long a queue may nack all tasks of a channel before another channel is tried.
const NACKING_FOR: Duration = Duration::from_secs(2);

/// The queues that have nacked on a channel and not acked since: when first, and when last.
#[derive(Debug, Default)]
pub(super) struct NackingQueues(Vec<(String, Instant, Instant)>);

impl NackingQueues {
    pub(super) fn acked<T>(&mut self, pending: &Pending<T>) {
        if !self.0.is_empty() {
            let name = pending.name();
            self.0.retain(|(it, ..)| *it != name);
        }
    }

    pub(super) fn nacked(&mut self, name: &str, now: Instant) {
        match self.0.iter_mut().find(|(it, ..)| *it == name) {
            Some((_, _, last)) => *last = now,
            None => self.0.push((name.to_owned(), now, now)),
        }
    }

    /// The first queue that has nacked for long.
    fn over_patience(&self) -> Option<&str> {
        let mut queues = self.0.iter();
        queues
            .find(|(_, first, last)| *last - *first >= NACKING_FOR)
            .map(|(name, ..)| name.as_str())
    }
}

impl<T> Link<T> {
    /// Uses another channel, if a queue has nacked for long and no confirm is due on this one. A broker
    /// in alarm would not answer, and a lent connection is not ours to lose. Waits for the broker, at
    /// most as long as a call for the next task may take.
    pub(super) fn renew_channel(
        &mut self,
        config: &PublisherConfig,
        next: &Pending<T>,
    ) -> Result<(), CloseReason> {
        let Some(queue) = self.nacking.over_patience() else { return Ok(()) };
        let may_ask = self.blocked.is_none() && !self.is_lent();
        if !may_ask || !self.in_flight.is_all_confirmed() {
            return Ok(());
        }
        debug!("'{queue}' nacks all tasks; trying another channel");
        let limit = next.call_limit();
        let guard = self.connection.call_guard().clone();
        let open = || {
            let channel = self.connection.open_channel()?;
            channel.confirm_publishes().map(|answers| (channel, answers))
        };
        let bounded = || guard.with_timeout(limit, "opening another channel", open);
        let (channel, answers) = guard.abort_on(&config.aborting, bounded)?;
        let old = std::mem::replace(&mut self.channel, channel);
        (self.answers, self.in_flight) = (answers, InFlight::new());
        self.nacking = NackingQueues::default();
        let close = || guard.with_timeout(limit, "closing the channel", || old.close());
        guard.abort_on(&config.aborting, close)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::queue::{Queue, Target};
    use crate::model::task::Task;

    fn to(target: Target) -> Pending<()> {
        let place = (Arc::new(Queue::new("q")), target);
        Pending::new(Task::new("x"), place, Instant::now(), ())
    }

    #[test]
    fn only_a_queue_that_acks_nothing_for_long_is_over() {
        let (now, mut nacking) = (Instant::now(), NackingQueues::default());
        let later = now + NACKING_FOR;
        let (main, dead) = (to(Target::Main), to(Target::Dead));
        nacking.nacked(&dead.name(), now);
        nacking.nacked(&main.name(), later);
        assert_eq!(nacking.over_patience(), None, "each has nacked once");
        nacking.nacked(&dead.name(), later);
        nacking.acked(&main);
        assert_eq!(nacking.over_patience(), Some("q.dead"));
        nacking.acked(&dead);
        assert_eq!(nacking.over_patience(), None);
    }
}
