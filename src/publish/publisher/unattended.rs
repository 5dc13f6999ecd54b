//! A publisher in a thread of its own: it connects while it takes tasks, also if it has none, and
//! says in which state it is.

use std::mem;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError};
use log::warn;

use super::Publisher;
use crate::publish::config::{Limits, PublisherConfig};
use crate::publish::link::Link;
use crate::publish::pending::Pending;
use crate::publish::shared::state::ProducerState;
use crate::util::deadline::deadline_after;
use crate::util::shutdown::{Signal, is_closed};

impl<T> Publisher<T> {
    /// Moves the publisher out, and leaves one that was never used.
    pub(crate) fn take(&mut self) -> Publisher<T> {
        let PublisherConfig { broker, queue, limits, .. } = &self.config;
        let unused = PublisherConfig::new(broker, queue, *limits);
        mem::replace(self, Publisher::new(unused))
    }

    pub(crate) fn limits(&self) -> Limits {
        self.config.limits
    }

    /// When a task is out of time that is accepted now.
    pub(crate) fn deadline(&self) -> Instant {
        deadline_after(self.config.limits.timeout)
    }

    pub(crate) fn stopping(&self) -> &Signal {
        &self.config.stopping
    }

    pub(crate) fn is_aborted(&self) -> bool {
        is_closed(&self.config.aborting)
    }

    /// Takes a task for any queue, with its own deadline. A new call need not wait for a pause to be over.
    pub(crate) fn accept_pending(&mut self, pending: Pending<T>) {
        self.hasten();
        let target = self.silent_delays.avoid(pending.queue.name(), pending.asked);
        self.backlog.insert(Pending { target, ..pending });
    }

    /// Waits as [`Publisher::wait`], and meanwhile goes on to connect. Says in which state it waits.
    pub(crate) fn wait_or_connect<W>(
        &mut self,
        wake: &Receiver<W>,
        say: impl FnOnce(ProducerState),
    ) -> Option<Result<W, RecvError>> {
        let deadline = self.oldest_deadline();
        let is_idle = deadline.is_none() && is_closed(&self.config.stopping);
        if self.link.is_some() || is_idle {
            say(self.state());
            return self.wait(wake);
        }
        self.connect_unasked(deadline);
        if self.link.is_some() {
            return None;
        }
        say(self.state());
        self.connector.wait(deadline, &self.config.aborting, wake)
    }

    /// Whether tasks can be published now, and if not, why.
    pub(crate) fn state(&self) -> ProducerState {
        match self.link.as_ref().map(Link::blocked) {
            Some(None) => ProducerState::Up,
            Some(Some(reason)) => ProducerState::Blocked { reason: reason.to_owned() },
            None => ProducerState::Connecting {
                next_try: self.connector.next_try(self.oldest_deadline()),
            },
        }
    }

    fn connect_unasked(&mut self, deadline: Option<Instant>) {
        let Publisher { connector, config, .. } = self;
        match connector.connect_meanwhile(config, deadline, Duration::ZERO, &config.aborting) {
            Ok(link) => self.link = link,
            // The others are logged, because no caller may learn of them.
            Err(error) if connector.fatal().is_some() => warn!("{}", error.chain()),
            Err(_) => {}
        }
    }
}
