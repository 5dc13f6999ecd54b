//! What a publisher's connection has found out about its own queue, and other uses of it.

use std::sync::Arc;

use super::Publisher;
use crate::amqp::connection::Connection;
use crate::model::queue::Queue;
use crate::publish::link::Link;

impl<T> Publisher<T> {
    pub(crate) fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.config.queue)
    }

    /// Whether the broker counts the deliveries of the queue, and may dead-letter tasks itself. Without
    /// a connection, this is not known.
    pub(crate) fn counts_deliveries(&self) -> bool {
        self.link.as_ref().is_some_and(Link::counts_deliveries)
    }

    /// Whether the priorities of tasks have an effect. `None` without a connection.
    pub(crate) fn has_priorities(&self) -> Option<bool> {
        self.link.as_ref().map(Link::has_priorities)
    }

    /// The connection for other uses of its owner, if there is one.
    pub(crate) fn shared_connection(&self) -> Option<Connection> {
        self.link.as_ref().map(Link::shared_connection)
    }

    /// Takes the connection out, once nothing is in flight. `None` if there is none, or none that
    /// responds; it is then closed.
    pub(crate) fn take_connection(&mut self) -> Option<Connection> {
        self.link.take().and_then(|link| link.into_connection(&self.config.aborting))
    }
}
