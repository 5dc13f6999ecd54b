//! A broker that blocks publishers, or sends no confirm: what a link records of it, and logs.

use std::time::Instant;

use log::{info, warn};

use super::Link;
use crate::amqp::call_timeout::SLOW_AFTER;
use crate::amqp::connection::Notice;
use crate::model::broker::FIRST_CONFIRM;
use crate::model::queue::Target;
use crate::publish::pending::Pending;

impl<T> Link<T> {
    /// Records that the broker blocks publishers, or does so no longer.
    pub(crate) fn note(&mut self, notice: &Notice) {
        match notice {
            Notice::Blocked(reason) => {
                warn!("the broker blocks publishers: {reason}; publishing waits");
                self.blocked = Some(reason.clone());
            }
            Notice::Unblocked => {
                info!("the broker accepts publishes again");
                self.blocked = None;
                self.progress_at = Instant::now();
                self.slow_confirm_at = Some(self.progress_at + SLOW_AFTER);
            }
        }
    }

    /// Why the broker blocks publishers at present, if it does.
    pub(crate) fn blocked(&self) -> Option<&str> {
        self.blocked.as_deref()
    }

    /// Warns once, if no confirm has come for some time. That a blocked broker has tasks wait was
    /// logged; outcomes are named in any case, because nothing else says that their tasks wait.
    pub(crate) fn warn_slow_confirm(&mut self) {
        if self.slow_confirm_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.slow_confirm_at = None;
        let is_outcome = |it: &&Pending<T>| matches!(it.target, Target::Batch(_));
        let outcomes = self.in_flight.outstanding().filter(is_outcome).count();
        let tasks = self.in_flight.len() - outcomes;
        let alarm = match &self.blocked {
            Some(reason) => format!("the broker blocks publishers: {reason}"),
            None => "is the broker in alarm?".into(),
        };
        if outcomes > 0 {
            warn!(
                "no confirm for {SLOW_AFTER:?}: {outcomes} outcomes of batches are unconfirmed, and \
                 their tasks stay unacked ({alarm})"
            );
        }
        if tasks > 0 && self.blocked.is_none() {
            warn!("no confirm for {SLOW_AFTER:?}: {tasks} tasks are unconfirmed ({alarm})");
        }
    }

    /// What the tasks wait for.
    pub(crate) fn what_is_awaited(&self) -> String {
        match (&self.blocked, self.durable_at) {
            (Some(reason), _) => format!("the broker blocks publishers: {reason}"),
            (None, Some(_)) => "its queue is new and not yet durable".into(),
            (None, None) => "the broker sends no confirm (does the queue have a leader?)".into(),
        }
    }

    /// Until when the first confirm has to come, if tasks wait for it. Not while publishers are blocked.
    pub(crate) fn first_confirm_until(&self) -> Option<Instant> {
        let is_due = !self.has_confirmed && self.blocked.is_none() && !self.in_flight.is_empty();
        is_due.then(|| self.progress_at + FIRST_CONFIRM)
    }
}
