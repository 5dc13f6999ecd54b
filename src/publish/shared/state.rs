//! [`ProducerState`]: whether a shared producer can publish, for probes.

use std::time::Instant;

/// Whether a [`SharedProducer`](crate::SharedProducer) can publish now, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProducerState {
    /// It is connected.
    Up,
    /// It has no connection, and goes on to connect.
    #[non_exhaustive]
    Connecting {
        /// When it tries next. `None` while it tries.
        next_try: Option<Instant>,
    },
    /// It is connected, and the broker takes no publishes at present: it lacks memory or disk.
    #[non_exhaustive]
    Blocked {
        /// The broker's own words.
        reason: String,
    },
    /// It accepts no further task: it was closed, or a stop was asked for while it had no connection.
    Stopped,
}
