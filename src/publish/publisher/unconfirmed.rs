//! Replaces a new connection that confirms nothing.
//!
//! If the node that leads a quorum queue freezes, another node leads it after about 10 s. A channel whose
//! first publish to the queue came before that waits until the frozen node is declared dead, after 65 s. A
//! channel that is opened later asks the new leader (measured on RabbitMQ 4.0.5 and 4.3.6).

use std::time::Instant;

use super::Publisher;
use crate::amqp::close_reason::CloseReason;
use crate::model::broker::FIRST_CONFIRM;

impl<T> Publisher<T> {
    /// When to leave the connection. Once until something is confirmed: a broker that is only slow gets
    /// each task twice at most. A lent connection is not ours to leave.
    pub(super) fn leaves_at(&self) -> Option<Instant> {
        let link = self.link.as_ref().filter(|link| !link.is_lent() && !self.has_left)?;
        link.first_confirm_until()
    }

    pub(super) fn leave_unconfirmed(&mut self) {
        if self.leaves_at().is_some_and(|at| at <= Instant::now()) {
            self.has_left = true;
            let text = format!("no confirm for {FIRST_CONFIRM:?} on a new connection");
            self.lose_link(Some(CloseReason::Lost(text)));
        }
    }
}
