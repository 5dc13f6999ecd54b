//! What a publisher's connection has found out about its own queue.

use super::Publisher;
use crate::publish::link::Link;

impl<T> Publisher<T> {
    /// Whether the broker counts the deliveries of the queue, and may dead-letter tasks itself. Without
    /// a connection, this is not known.
    pub(crate) fn counts_deliveries(&self) -> bool {
        self.link.as_ref().is_some_and(Link::counts_deliveries)
    }
}
