//! Publishes with confirms, many tasks at a time, each until the broker has confirmed it or its
//! timeout is over, across lost connections. [`Producer`](crate::Producer), the republishing of
//! failed tasks and the replay of dead letters share it.

mod own_queue;
mod unattended;
mod unconfirmed;

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, mem, process};

use crossbeam_channel::{Receiver, RecvError, never, select_biased};
use log::warn;

use crate::amqp::close_reason::CloseReason;
use crate::model::error::Error;
use crate::model::outcome::Outcome;
use crate::model::queue::{Queue, Target};
use crate::model::task::Task;
use crate::publish::backlog::Backlog;
use crate::publish::config::PublisherConfig;
use crate::publish::in_flight::WINDOW_BYTES;
use crate::publish::link::{Link, LinkEnd, Woken};
use crate::publish::pending::{Pending, Resolved, unconfirmed};
use crate::publish::reconnect::{Connector, WAIT_FOR_A_NEW_ATTEMPT};
use crate::topology::silent_delays::SilentDelays;
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Shutdown, is_closed};

/// Publishes tasks to one queue and to the queues derived from it. Each task that it accepts comes
/// back resolved, with the ticket that it came with.
pub(crate) struct Publisher<T> {
    config: PublisherConfig,
    link: Option<Link<T>>,
    connector: Connector,
    backlog: Backlog<T>,
    silent_delays: SilentDelays,
    /// Whether it has left a connection that confirmed nothing, and nothing was confirmed since.
    has_left: bool,
    /// The process that uses it. A child of that has none of our threads.
    process: Option<u32>,
}

/// When [`Publisher::pump`] returns.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// Once each task was published, or waits for another try while there is room for more.
    Published,
    /// Once each task is resolved.
    Resolved,
}

impl<T> Publisher<T> {
    /// A publisher that connects when it is first used.
    pub(crate) fn new(config: PublisherConfig) -> Publisher<T> {
        Publisher {
            connector: Connector::new(&config),
            config,
            link: None,
            backlog: Backlog::new(),
            silent_delays: SilentDelays::default(),
            has_left: false,
            process: None,
        }
    }

    /// Sets how many tasks may be in flight.
    pub(crate) fn set_window(&mut self, tasks: usize) {
        self.config.limits.window = tasks;
    }

    /// Sets how long each task is tried that is accepted from now on.
    pub(crate) fn set_timeout(&mut self, limit: Duration) {
        self.config.limits.timeout = limit;
    }

    /// Sets the longest pause between two tries to connect.
    pub(crate) fn set_longest_pause(&mut self, longest: Duration) {
        self.connector.set_longest_pause(longest);
    }

    /// Has a shutdown end the waits.
    pub(crate) fn set_shutdown(&mut self, shutdown: &Shutdown) {
        self.config.stopping = shutdown.stopping().clone();
        self.config.aborting = shutdown.aborting().clone();
    }

    /// Connects by the deadline, unless it is connected; see [`Producer::connect`](crate::Producer::connect).
    pub(crate) fn connect(&mut self, deadline: Instant) -> Result<(), Error> {
        self.process.get_or_insert_with(process::id);
        self.connector.forget_fatal();
        self.connector.hasten();
        let mut last = None;
        while self.link.is_none() {
            match self.connector.connect(&self.config, deadline, &self.config.stopping) {
                Ok(Some(link)) => self.link = Some(link),
                Ok(None) if is_closed(&self.config.stopping) => return Err(Error::Stopped),
                Ok(None) => {
                    let unreachable = || self.connector.unreachable(&self.config.broker);
                    return Err(last.unwrap_or_else(unreachable));
                }
                Err(error) if error.is_transient() => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes a task to publish.
    pub(crate) fn accept(&mut self, task: Task, target: Target, ticket: T) {
        self.accept_for(Arc::clone(&self.config.queue), task, target, ticket);
    }

    /// Takes a task for another queue.
    pub(crate) fn accept_for(&mut self, queue: Arc<Queue>, task: Task, target: Target, ticket: T) {
        self.process.get_or_insert_with(process::id);
        let instead = self.silent_delays.avoid(queue.name(), target);
        let mut pending = Pending::new(task, (queue, target), self.deadline(), ticket);
        pending.target = instead;
        self.backlog.push(pending);
    }

    /// Resolves a task that is not published.
    pub(crate) fn refuse(&mut self, task: Task, outcome: Outcome, ticket: T) {
        self.backlog.refuse(task, outcome, ticket);
    }

    /// What was resolved since the last call.
    pub(crate) fn take_resolved(&mut self) -> Vec<Resolved<T>> {
        self.backlog.take_resolved()
    }

    /// Publishes, collects confirms and connects again as needed, until `until` is reached or
    /// every task concerned is out of time.
    pub(crate) fn pump(&mut self, until: Until) {
        loop {
            self.collect();
            self.publish();
            if self.has_reached(until) {
                return;
            }
            if !self.may_wait_alone(until) {
                self.wait(&never::<()>());
            } else if !self.connect_meanwhile() {
                return;
            }
        }
    }

    /// A new call begins: after an outage, it need not wait for the pause to be over.
    pub(crate) fn hasten(&mut self) {
        self.connector.hasten();
    }

    /// Leaves no task more time than this.
    pub(crate) fn end_within(&mut self, limit: Duration) {
        let deadline = deadline_after(limit);
        self.backlog.end_by(deadline);
        self.link.iter_mut().for_each(|link| link.end_by(deadline));
    }

    /// Whether a stop was asked for, and there is no connection.
    pub(crate) fn is_stopped(&self) -> bool {
        self.link.is_none() && is_closed(&self.config.stopping)
    }

    /// Whether it is that of a parent process.
    pub(crate) fn is_inherited(&self) -> bool {
        self.process.is_some_and(|id| id != process::id())
    }

    /// Sets the process that uses it.
    #[cfg(test)]
    pub(crate) fn set_process(&mut self, id: u32) {
        self.process = Some(id);
    }

    /// Leaves the connection alone that is a parent process's: it has none of our threads here, and
    /// what we do to its socket happens to the parent.
    pub(crate) fn forget_link(&mut self) {
        mem::forget(self.link.take());
        self.connector.forget_attempt();
    }

    /// Resolves what can be resolved without waiting. Confirms that have come in count first, even
    /// if the time of their tasks is over by now.
    pub(crate) fn collect(&mut self) {
        let Publisher { link, config, backlog, .. } = self;
        if let Some(Err(cause)) = link.as_mut().map(|link| link.collect(config, backlog)) {
            self.lose_link(Some(cause));
        }
        self.give_up_expired();
    }

    /// Publishes what there is room for. Waits for the answers that it takes to have the queues
    /// exist.
    pub(crate) fn publish(&mut self) {
        let Publisher { link, config, backlog, .. } = self;
        if let Some(Err(cause)) = link.as_mut().map(|link| link.publish(config, backlog)) {
            self.lose_link(Some(cause));
        }
    }

    /// Waits for the next event, or until `aborting` closes. If it came from `wake`, returns what it
    /// was.
    pub(crate) fn wait<W>(&mut self, wake: &Receiver<W>) -> Option<Result<W, RecvError>> {
        let (deadline, leaves_at) = (self.oldest_deadline(), self.leaves_at());
        let Some(link) = &mut self.link else {
            let Some(deadline) = deadline else {
                return select_biased! {
                    recv(self.config.aborting) -> _ => None,
                    recv(wake) -> woken => Some(woken),
                };
            };
            self.reconnect(deadline);
            return None;
        };
        let until = deadline.into_iter().chain(leaves_at).min();
        match link.wait(until, &self.config.aborting, wake) {
            Woken::Confirm(verdict) => {
                if let Err(cause) = link.apply(verdict, &self.config, &mut self.backlog) {
                    self.lose_link(Some(cause));
                }
            }
            Woken::Notice(notice) => link.note(&notice),
            Woken::Lost => self.lose_link(None),
            Woken::Time => {
                link.warn_slow_confirm();
                self.leave_unconfirmed();
            }
            Woken::Wake(woken) => return Some(woken),
        }
        None
    }

    /// Resolves everything. What is in flight may arrive all the same.
    pub(crate) fn give_up_all(&mut self) {
        let reason = self.connector.fatal().unwrap_or("stopped before it was confirmed");
        let outcome = unconfirmed(reason);
        // Nothing is published after this, so a late confirm or return is of no use.
        if let Some(link) = &mut self.link {
            self.backlog.take_back(link.take_in_flight());
        }
        self.backlog.give_up(&outcome, |_| true);
    }

    /// Closes the connection. Waits for the broker, at most the close limit, and not at all once
    /// `aborting` closes.
    pub(crate) fn close(&mut self) {
        if let Some(link) = self.link.take() {
            link.close(&self.config.aborting);
        }
    }

    /// Whether the tasks wait for a connection without their caller: up to a full window.
    fn may_wait_alone(&self, until: Until) -> bool {
        // A single task may be larger than the window.
        let fits = self.backlog.bytes() <= WINDOW_BYTES || self.backlog.len() == 1;
        matches!(until, Until::Published)
            && self.link.is_none()
            && fits
            && self.unresolved() <= self.config.limits.window
    }

    /// Goes on to connect, for a caller that need not wait. Returns whether it is connected.
    fn connect_meanwhile(&mut self) -> bool {
        let deadline = self.oldest_deadline();
        let Publisher { connector, config, .. } = self;
        let connected =
            connector.connect_meanwhile(config, deadline, WAIT_FOR_A_NEW_ATTEMPT, &config.aborting);
        self.link = connected.ok().flatten();
        // The error may be one for which no further try is of use.
        self.give_up_expired();
        self.link.is_some()
    }

    fn has_reached(&self, until: Until) -> bool {
        match until {
            Until::Published => self.backlog.is_empty() || self.has_room_beside_refused(),
            Until::Resolved => self.unresolved() == 0,
        }
    }

    /// How many tasks it has accepted and not resolved.
    pub(crate) fn unresolved(&self) -> usize {
        self.backlog.len() + self.link.as_ref().map_or(0, Link::tasks_in_flight)
    }

    /// Whether only refused tasks wait, and there is room for more of them: each of the others gets
    /// an answer of its own.
    fn has_room_beside_refused(&self) -> bool {
        self.link.is_some()
            && self.backlog.bytes() < WINDOW_BYTES
            && self.unresolved() < self.config.limits.window
            && self.backlog.has_only_refused()
    }

    /// Tries once to connect. A failure is logged, and each task's outcome says what it means.
    fn reconnect(&mut self, deadline: Instant) {
        let connected = self.connector.connect(&self.config, deadline, &self.config.aborting);
        self.link = connected.ok().flatten();
    }

    /// Ends a link that has failed. What was in flight is published again under the same ids.
    fn lose_link(&mut self, known: Option<CloseReason>) {
        let Some(mut link) = self.link.take() else { return };
        let protocol_error = link.collect_last(&self.config, &mut self.backlog);
        if link.has_confirmed() {
            self.connector.reset_pauses();
            self.has_left = false;
        }
        let in_flight = link.take_in_flight();
        let (again, was_lent) = (in_flight.len(), link.is_lent());
        self.backlog.take_back(in_flight);
        let LinkEnd { address, cause, silent_delay } = link.end(known.or(protocol_error));
        self.avoid(silent_delay);
        self.refuse_oversized(&cause);
        let pause = self.connector.pause();
        if cause.is_no_permission() {
            return self.connector.set_fatal(cause.to_string());
        }
        // Cut by us, or lost with the session, which logs that: nothing is published again.
        if is_closed(&self.config.aborting) || was_lent {
            return;
        }
        let error = Error::session_lost(&address, cause);
        warn!(
            "{}; {again} tasks in flight are published again in {:.1} s",
            error.chain(),
            pause.as_secs_f64()
        );
    }

    /// Uses another delay queue from now on instead of one that does not respond.
    fn avoid(&mut self, silent_delay: Option<(Arc<Queue>, Duration)>) {
        if let Some((queue, delay)) = silent_delay {
            self.silent_delays.add(queue.name(), delay);
            let target = Target::Delay(delay);
            let name = queue.name_of(target);
            let instead = queue.name_of(self.silent_delays.avoid(queue.name(), target));
            let next = if instead == name {
                "no other is left to use".into()
            } else {
                format!("using '{instead}'")
            };
            warn!("delay queue '{name}' does not respond (no leader?); {next}");
        }
        self.backlog.redirect(&self.silent_delays);
    }

    /// Refuses the tasks that are larger than the broker takes, if that is what it closed for.
    /// Published again, they would end every channel, and no later task would get through.
    fn refuse_oversized(&mut self, cause: &CloseReason) {
        if let Some(limit) = cause.size_limit() {
            let refused = Outcome::Refused { reason: cause.to_string() };
            self.give_up(&refused, |pending| pending.task.body().len() > limit);
        }
    }

    fn give_up_expired(&mut self) {
        self.connector.expire_fatal();
        if self.connector.fatal().is_some() || is_closed(&self.config.aborting) {
            return self.give_up_all();
        }
        let now = Instant::now();
        if self.oldest_deadline().is_some_and(|deadline| deadline <= now) {
            let awaited = self.link.as_ref().map(Link::what_is_awaited);
            let awaited = awaited.unwrap_or_else(|| "no connection".into());
            let reason = format!("no confirm within {:?}: {awaited}", self.config.limits.timeout);
            self.give_up(&unconfirmed(reason), |pending| pending.deadline <= now);
        }
    }

    fn give_up(&mut self, outcome: &Outcome, which: impl Fn(&Pending<T>) -> bool) {
        let Publisher { link, backlog, .. } = self;
        if let Some(link) = link {
            link.give_up(outcome, &which, backlog);
        }
        backlog.give_up(outcome, which);
    }

    fn oldest_deadline(&self) -> Option<Instant> {
        let in_flight = self.link.as_ref().and_then(Link::oldest_deadline);
        in_flight.into_iter().chain(self.backlog.oldest_deadline()).min()
    }
}

impl<T> fmt::Debug for Publisher<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("broker", &self.config.broker)
            .field("queue", &self.config.queue.name())
            .field("limits", &self.config.limits)
            .field("connected", &self.link.is_some())
            .field("unresolved", &self.unresolved())
            .finish_non_exhaustive()
    }
}
