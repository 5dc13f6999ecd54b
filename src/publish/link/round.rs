//! One round of publishing from the backlog: which tasks go out, which wait, which are resolved.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Link;
use crate::amqp::call_timeout::SLOW_AFTER;
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::model::outcome::Outcome;
use crate::model::queue::Target;
use crate::model::task::Task;
use crate::publish::backlog::Backlog;
use crate::publish::config::PublisherConfig;
use crate::publish::pending::{Pending, unconfirmed};
use crate::publish::refusal::Refusal;
use crate::topology::NotReady;

/// How long tasks in flight may get no confirm before others overtake a task that waits for them.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// What one round has found out.
struct Round<T> {
    /// The tasks that cannot be published yet.
    held: Vec<Pending<T>>,
    /// When the first new queue that they wait for is durable.
    durable_at: Option<Instant>,
    /// When the first of them that was refused may be published again.
    again_at: Option<Instant>,
    /// The queues to which a task could not be routed. Each is asked for once a round.
    unroutable: HashMap<String, QueueState>,
}

/// What to do with the task at the front of the backlog.
enum Step {
    Publish,
    Hold,
    Resolve(Outcome),
}

/// Whether a queue to which a task could not be routed exists.
#[derive(Clone)]
enum QueueState {
    Exists,
    Missing,
    /// With the broker's words.
    Down(String),
}

impl<T> Link<T> {
    /// Publishes from the front of the backlog while the window has room.
    pub(crate) fn publish(
        &mut self,
        config: &PublisherConfig,
        backlog: &mut Backlog<T>,
    ) -> Result<(), CloseReason> {
        if let Some(next) = backlog.front() {
            self.renew_channel(config, next)?;
            self.queues.forget_durable(next);
        }
        let mut round = Round {
            held: Vec::new(),
            durable_at: None,
            again_at: None,
            unroutable: HashMap::new(),
        };
        let mut published = Ok(());
        while published.is_ok() && self.takes_more(config.limits.window) {
            let Some(next) = backlog.front() else { break };
            let has_room = self.has_room(next);
            if !has_room && !self.is_held_up(next) {
                break;
            }
            let Some(pending) = backlog.pop_front() else { break };
            if has_room {
                published = self.deal_with(pending, &mut round, config, backlog);
            } else {
                round.held.push(pending);
            }
        }
        (self.durable_at, self.again_at) = (round.durable_at, round.again_at);
        backlog.put_back(round.held);
        let stuck_at = self.progress_at + STUCK_AFTER;
        let waits = self.waits_to_ask(backlog.front()) && stuck_at > Instant::now();
        self.stuck_at = waits.then_some(stuck_at);
        published
    }

    fn takes_more(&self, window: usize) -> bool {
        self.blocked.is_none() && self.in_flight.len() < window
    }

    fn has_room(&self, next: &Pending<T>) -> bool {
        self.in_flight.has_room_for(next) && !self.has_to_ask(next) || self.in_flight.is_empty()
    }

    /// Whether the broker has to be asked before this task is published. A broker in alarm reads
    /// nothing after a publish. It would not answer a question then, and the connection would be given
    /// up before the notice of the alarm is seen. So nothing may be in flight.
    fn has_to_ask(&self, next: &Pending<T>) -> bool {
        let was_returned = matches!(next.refusal, Some(Refusal::Returned(_)));
        was_returned || self.queues.known(next).is_none()
    }

    fn waits_to_ask(&self, next: Option<&Pending<T>>) -> bool {
        next.is_some_and(|next| self.has_to_ask(next)) && !self.in_flight.is_empty()
    }

    /// Whether a task waits to ask while tasks in flight get no confirm. Tasks for other queues then
    /// overtake it.
    fn is_held_up(&self, next: &Pending<T>) -> bool {
        self.waits_to_ask(Some(next)) && self.progress_at.elapsed() >= STUCK_AFTER
    }

    /// Publishes, holds or resolves one task. If the connection is lost, the task is held.
    fn deal_with(
        &mut self,
        mut pending: Pending<T>,
        round: &mut Round<T>,
        config: &PublisherConfig,
        backlog: &mut Backlog<T>,
    ) -> Result<(), CloseReason> {
        match self.next_step(&mut pending, round, config) {
            Ok(Step::Publish) => return self.publish_one(pending),
            Ok(Step::Hold) => round.held.push(pending),
            Ok(Step::Resolve(outcome)) => backlog.resolve(pending, outcome),
            Err(cause) => {
                round.held.push(pending);
                return Err(cause);
            }
        }
        Ok(())
    }

    fn next_step(
        &mut self,
        pending: &mut Pending<T>,
        round: &mut Round<T>,
        config: &PublisherConfig,
    ) -> Result<Step, CloseReason> {
        if let Some(reason) = self.returned_for_good(pending, round, config)? {
            return Ok(Step::Resolve(Outcome::Returned { reason }));
        }
        if let Some(later) = pending.again_at.filter(|at| *at > Instant::now()) {
            round.again_at = round.again_at.into_iter().chain([later]).min();
            return Ok(Step::Hold);
        }
        if let Some(reason) = self.too_large(&pending.task) {
            return Ok(Step::Resolve(Outcome::Refused { reason }));
        }
        match self.prepare(pending, config) {
            Ok(()) => Ok(Step::Publish),
            Err(NotReady::NotDurable(until)) => {
                round.durable_at = round.durable_at.into_iter().chain([until]).min();
                Ok(Step::Hold)
            }
            Err(NotReady::Refused(reason)) => Ok(Step::Resolve(unconfirmed(reason))),
            Err(NotReady::NoTarget(reason)) => Ok(Step::Resolve(Outcome::Returned { reason })),
            Err(NotReady::Silent(delay, cause)) => {
                self.silent_delay = Some((Arc::clone(&pending.queue), delay));
                Err(cause)
            }
            Err(NotReady::Lost(cause)) => Err(cause),
        }
    }

    /// Why the broker returned a task, if its queue does not exist. A queue that is down, or was a
    /// moment ago, is tried again. So is a queue of outcomes that exists: its batch waits.
    fn returned_for_good(
        &mut self,
        pending: &mut Pending<T>,
        round: &mut Round<T>,
        config: &PublisherConfig,
    ) -> Result<Option<String>, CloseReason> {
        let Some(Refusal::Returned(reason)) = &pending.refusal else { return Ok(None) };
        let reason = reason.clone();
        let down = match (self.queue_state(pending, round, config)?, pending.target) {
            (QueueState::Down(text), _) => Refusal::Down(text),
            (QueueState::Exists, Target::Batch(_)) => Refusal::Down(reason),
            (QueueState::Exists, _) if self.last_refusal.is_recent() => return Ok(None),
            (QueueState::Exists | QueueState::Missing, _) => return Ok(Some(reason)),
        };
        pending.retry_later(down, &mut self.last_refusal);
        Ok(None)
    }

    /// Asks for the queue to which a task could not be routed, once a round.
    fn queue_state(
        &mut self,
        pending: &Pending<T>,
        round: &mut Round<T>,
        config: &PublisherConfig,
    ) -> Result<QueueState, CloseReason> {
        let name = pending.name();
        if let Some(known) = round.unroutable.get(&*name) {
            return Ok(known.clone());
        }
        let guard = self.connection.call_guard().clone();
        let ask = || find(&mut self.connection, &name);
        let bounded = || guard.with_timeout(pending.call_limit(), "checking the task's queue", ask);
        let found = guard.abort_on(&config.aborting, bounded)?;
        round.unroutable.insert(name.into_owned(), found.clone());
        Ok(found)
    }

    /// Why the broker would end the connection because of this task.
    fn too_large(&self, task: &Task) -> Option<String> {
        let largest = self.connection.largest_frame();
        (!task.fits_a_frame(largest)).then(|| {
            format!("its properties are larger than the broker's frame_max of {largest} bytes")
        })
    }

    /// Makes sure that the task's queue exists, see
    /// [`DerivedQueues::prepare`](crate::topology::DerivedQueues::prepare). If `aborting` closes
    /// meanwhile, or the task runs out of time, the connection is given up.
    fn prepare(&mut self, pending: &Pending<T>, config: &PublisherConfig) -> Result<(), NotReady> {
        if let Some(known) = self.queues.known(pending) {
            return known;
        }
        let Link { connection, queues, .. } = self;
        let guard = connection.call_guard().clone();
        let ask = || queues.prepare(connection, pending);
        let bounded = || guard.with_timeout(pending.call_limit(), "checking the task's queue", ask);
        guard.abort_on(&config.aborting, bounded)
    }

    fn publish_one(&mut self, mut pending: Pending<T>) -> Result<(), CloseReason> {
        let published = self.channel.publish(&pending.name(), &pending.task);
        // Even if it failed: part of it may have gone out.
        pending.sent = true;
        (pending.refusal, pending.again_at) = (None, None);
        if self.in_flight.is_empty() {
            self.progress_at = Instant::now();
            self.slow_confirm_at = Some(self.progress_at + SLOW_AFTER);
        }
        self.in_flight.add(pending);
        published
    }
}

fn find(connection: &mut Connection, name: &str) -> Result<QueueState, CloseReason> {
    // Not the channel that publishes: a refusal closes the channel that asked.
    let channel = connection.open_channel()?;
    match channel.count(name) {
        Ok(_) => channel.close().map(|()| QueueState::Exists),
        Err(lost) if !lost.is_channel_error() => Err(lost),
        Err(cause) if cause.is_transient() => Ok(QueueState::Down(cause.to_string())),
        Err(_) => Ok(QueueState::Missing),
    }
}
