//! What one connection knows of the queues that it publishes to, and of those derived from them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::model::error::Error;
use crate::model::queue::{Queue, Target};
use crate::publish::pending::Pending;
use crate::topology::open::open_queue;
use crate::topology::{DerivedQueues, NotReady};

/// The queues by their names. All but a publisher's own are declared when they are needed.
pub(super) struct Queues {
    /// The name of the publisher's own.
    own: String,
    known: HashMap<String, (Arc<Queue>, DerivedQueues)>,
}

impl Queues {
    /// With a publisher's own queue, which exists.
    pub(super) fn new(queue: &Arc<Queue>, derived: DerivedQueues) -> Queues {
        let known = (Arc::clone(queue), derived);
        Queues {
            own: queue.name().to_owned(),
            known: HashMap::from([(queue.name().to_owned(), known)]),
        }
    }

    /// Whether a task's queue is ready, if that is known; see [`DerivedQueues::known`].
    pub(super) fn known<T>(&self, pending: &Pending<T>) -> Option<Result<(), NotReady>> {
        let (_, derived) = self.known.get(pending.queue.name())?;
        derived.known(pending.target)
    }

    /// Makes a task's queue ready. Waits for some answers of the broker.
    pub(super) fn prepare<T>(
        &mut self,
        connection: &Connection,
        pending: &Pending<T>,
    ) -> Result<(), NotReady> {
        let queue = &pending.queue;
        if !self.known.contains_key(queue.name()) {
            let derived = declare(connection, queue)?;
            self.known.insert(queue.name().to_owned(), (Arc::clone(queue), derived));
        }
        let Some((_, derived)) = self.known.get_mut(queue.name()) else { return Ok(()) };
        match derived.known(pending.target) {
            Some(known) => known,
            None => derived.prepare(connection, queue, pending.target),
        }
    }

    /// Has a task's queue declared again before the next publish to it: it did not exist.
    pub(super) fn forget<T>(&mut self, pending: &Pending<T>) {
        let name = pending.queue.name();
        if pending.target == Target::Main && name != self.own {
            self.known.remove(name);
        } else if let Some((_, derived)) = self.known.get_mut(name) {
            derived.forget(pending.target);
        }
    }

    /// The delay whose queue was being asked when the connection was lost, and its queue.
    pub(super) fn probing(&self) -> Option<(Arc<Queue>, Duration)> {
        let mut known = self.known.values();
        known.find_map(|(queue, derived)| Some((Arc::clone(queue), derived.probing()?)))
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
