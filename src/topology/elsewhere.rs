//! Makes a queue ready that is not derived from the publisher's own.

use std::time::Instant;

use crate::amqp::connection::Connection;
use crate::model::queue::{Elsewhere, Target};
use crate::topology::open::open_queue;
use crate::topology::{DeclaredAt, DerivedQueues, NotReady};

impl DerivedQueues {
    /// Has another queue exist, as its own producers do, and its delay queue if a task is to wait
    /// there. Waits for some answers of the broker.
    pub(super) fn prepare_elsewhere(
        &mut self,
        connection: &Connection,
        place: Elsewhere,
    ) -> Result<(), NotReady> {
        let target = Target::Elsewhere(place);
        let mut durable_at = self.ensure_opened(connection, place.undelayed())?;
        if target.delay().is_some() {
            let declared = self.ensure_declared(connection, place.queue(), target);
            self.probing = None;
            durable_at = durable_at.max(declared.map_err(not_silent)?);
        }
        if Instant::now() < durable_at {
            return Err(NotReady::NotDurable(durable_at));
        }
        self.in_use.insert(target);
        Ok(())
    }

    /// Finds or creates the queue itself, unless that was done within the hour; returns from when on it
    /// is durable.
    fn ensure_opened(
        &mut self,
        connection: &Connection,
        place: Elsewhere,
    ) -> Result<Instant, NotReady> {
        let (queue, target) = (place.queue(), Target::Elsewhere(place));
        if let Some(declared) = self.declared.get(&target).filter(|it| it.is_fresh()) {
            return Ok(declared.durable_at);
        }
        let opened = open_queue(connection, queue);
        let ready = opened.map_err(|cause| match cause {
            cause if cause.is_channel_error() => {
                NotReady::Refused(format!("queue '{}' cannot be used: {cause}", queue.name()))
            }
            cause => NotReady::Lost(cause),
        })?;
        ready.channel.close()?;
        let at = Instant::now();
        let durable_at = ready.durable_at.unwrap_or(at);
        self.declared.insert(target, DeclaredAt { at, durable_at });
        Ok(durable_at)
    }
}

/// Another queue's delay queue that does not respond is not avoided: only our own ones are.
fn not_silent(not_ready: NotReady) -> NotReady {
    match not_ready {
        NotReady::Silent(_, cause) => NotReady::Lost(cause),
        other => other,
    }
}
