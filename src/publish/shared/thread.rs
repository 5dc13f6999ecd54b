//! The thread of a shared producer: publishes what all callers submit, and gives out the outcomes.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use log::{error, warn};

use super::state::ProducerState;
use crate::model::error::Error;
use crate::model::outcome::Outcome;
use crate::publish::Ticket;
use crate::publish::pending::{Pending, Resolved, unsent};
use crate::publish::publisher::{Publisher, Until};
use crate::publish::shared::pending::warn_unless_confirmed;

/// What callers send to the thread.
pub(super) enum Message {
    Publish(Box<Pending<Ticket>>),
    /// Leaves no task more time than this, and ends.
    End(Duration),
}

/// The callers' end of the thread.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) messages: Sender<Message>,
    pub(super) state: Arc<Mutex<ProducerState>>,
    pub(super) ended: Receiver<Infallible>,
}

struct PublisherThread {
    publisher: Publisher<Ticket>,
    messages: Receiver<Message>,
    state: Arc<Mutex<ProducerState>>,
}

/// Starts the thread. If the system gives none, each task is unsent.
pub(super) fn start(publisher: Publisher<Ticket>) -> Handle {
    let (messages, inbox) = unbounded();
    let (alive, ended) = bounded(0);
    let state = Arc::new(Mutex::new(publisher.state()));
    let mut thread = PublisherThread { publisher, messages: inbox, state: Arc::clone(&state) };
    let started = thread::Builder::new().name("rw-publisher".into()).spawn(move || {
        let _alive: Sender<Infallible> = alive;
        let limit = thread.work();
        thread.end(limit);
    });
    if let Err(source) = started {
        error!("no thread for a shared producer, which publishes nothing: {source}");
    }
    Handle { messages, state, ended }
}

impl PublisherThread {
    /// Publishes until it has to end; returns the time for that.
    fn work(&mut self) -> Duration {
        loop {
            self.publisher.collect();
            // Before publishing, which may take long: it may have to declare a queue.
            self.send_outcomes();
            if self.publisher.is_aborted() {
                return Duration::ZERO;
            }
            self.publisher.publish();
            self.send_outcomes();
            let state = Arc::clone(&self.state);
            let woken = self.publisher.wait_or_connect(&self.messages, |now| set(&state, now));
            let first = match woken {
                None => None,
                Some(Ok(message)) => Some(message),
                Some(Err(_)) => return Duration::ZERO,
            };
            for message in first.into_iter().chain(self.messages.try_iter()) {
                match message {
                    Message::Publish(pending) => self.publisher.accept_pending(*pending),
                    Message::End(limit) => return limit,
                }
            }
        }
    }

    /// Waits for the tasks that were taken, and closes the connection.
    fn end(mut self, limit: Duration) {
        set(&self.state, ProducerState::Stopped);
        self.refuse_later_tasks();
        self.publisher.end_within(limit);
        self.publisher.pump(Until::Resolved);
        let unconfirmed = self.send_outcomes();
        if unconfirmed > 0 {
            warn!("a shared producer ended, and {unconfirmed} of its last tasks are not confirmed");
        }
        self.publisher.close();
        self.refuse_later_tasks();
    }

    /// Tasks that were submitted after the stop.
    fn refuse_later_tasks(&self) {
        for message in self.messages.try_iter() {
            let Message::Publish(pending) = message else { continue };
            let stopped = unsent(Error::Stopped.to_string());
            let Resolved { task, outcome, ticket, .. } = (*pending).resolved(stopped);
            if let Ticket::Submit(resolver) = ticket {
                resolver.resolve(task.id().unwrap_or_default(), outcome);
            }
        }
    }

    /// Gives each task that is resolved its outcome. Returns how many are not confirmed.
    fn send_outcomes(&mut self) -> usize {
        let mut unconfirmed = 0;
        for Resolved { task, outcome, ticket, .. } in self.publisher.take_resolved() {
            unconfirmed += usize::from(outcome != Outcome::Confirmed);
            let id = task.id().unwrap_or_default();
            match ticket {
                Ticket::Submit(resolver) => resolver.resolve(id, outcome),
                // Sent before the producer was shared.
                Ticket::Send | Ticket::Publish => warn_unless_confirmed(id, &outcome),
            }
        }
        unconfirmed
    }
}

fn set(state: &Mutex<ProducerState>, now: ProducerState) {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    if *state != now {
        *state = now;
    }
}
