//! What one connection knows of the queues that it publishes to, and of those derived from them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::model::error::Error;
use crate::model::queue::{Queue, Target};
use crate::publish::pending::Pending;
use crate::topology::open::open_queue;
use crate::topology::{DerivedQueues, NotReady};

/// The publisher's own queue, and others by their names, which are declared when they are needed.
pub(super) struct Queues {
    own: KnownQueue,
    others: HashMap<String, KnownQueue>,
}

struct KnownQueue {
    queue: Arc<Queue>,
    derived: DerivedQueues,
}

impl Queues {
    /// With a publisher's own queue, which exists.
    pub(super) fn new(queue: &Arc<Queue>, derived: DerivedQueues) -> Queues {
        let own = KnownQueue { queue: Arc::clone(queue), derived };
        Queues { own, others: HashMap::new() }
    }

    fn is_own<T>(&self, pending: &Pending<T>) -> bool {
        pending.queue.name() == self.own.queue.name()
    }

    /// Whether a task's queue is ready, if that is known; see [`DerivedQueues::known`].
    pub(super) fn known<T>(&self, pending: &Pending<T>) -> Option<Result<(), NotReady>> {
        let known =
            if self.is_own(pending) { &self.own } else { self.others.get(pending.queue.name())? };
        known.derived.known(pending.target)
    }

    /// See [`DerivedQueues::forget_durable`], of the queue of this task.
    pub(super) fn forget_durable<T>(&mut self, pending: &Pending<T>) {
        if self.is_own(pending) {
            self.own.derived.forget_durable();
        } else if let Some(known) = self.others.get_mut(pending.queue.name()) {
            known.derived.forget_durable();
        }
    }

    /// Makes a task's queue ready. Waits for some answers of the broker.
    pub(super) fn prepare<T>(
        &mut self,
        connection: &Connection,
        pending: &Pending<T>,
    ) -> Result<(), NotReady> {
        let queue = &pending.queue;
        let known = if self.is_own(pending) {
            &mut self.own
        } else {
            match self.others.entry(queue.name().to_owned()) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    let derived = declare(connection, queue)?;
                    place.insert(KnownQueue { queue: Arc::clone(queue), derived })
                }
            }
        };
        match known.derived.known(pending.target) {
            Some(ready) => ready,
            None => known.derived.prepare(connection, queue, pending.target),
        }
    }

    /// Has a task's queue declared again before the next publish to it: it did not exist.
    pub(super) fn forget<T>(&mut self, pending: &Pending<T>) {
        let name = pending.queue.name();
        if self.is_own(pending) {
            self.own.derived.forget(pending.target);
        } else if pending.target == Target::Main {
            self.others.remove(name);
        } else if let Some(known) = self.others.get_mut(name) {
            known.derived.forget(pending.target);
        }
    }

    /// The delay whose queue was being asked when the connection was lost, and its queue.
    pub(super) fn probing(&self) -> Option<(Arc<Queue>, Duration)> {
        let mut known = self.others.values().chain([&self.own]);
        known.find_map(|it| Some((Arc::clone(&it.queue), it.derived.probing()?)))
    }
}

/// Has a queue exist, unless it is used as it is.
fn declare(connection: &Connection, queue: &Queue) -> Result<DerivedQueues, NotReady> {
    let mut derived = DerivedQueues::default();
    if queue.is_passive() {
        return Ok(derived);
    }
    let ready = open_queue(connection, queue).map_err(|cause| refused(connection, queue, cause))?;
    ready.channel.close()?;
    ready.durable_at.iter().for_each(|at| derived.mark_declared(Target::Main, *at));
    Ok(derived)
}

fn refused(connection: &Connection, queue: &Queue, cause: CloseReason) -> NotReady {
    if !cause.is_channel_error() {
        return NotReady::Lost(cause);
    }
    let error = Error::from_queue_use(queue.name(), connection.address(), cause);
    NotReady::Refused(error.chain())
}
