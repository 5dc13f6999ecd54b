//! What a supervisor needs of its session, and what it reports of the consumers.

use std::sync::Arc;
use std::time::Instant;

use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::model::queue::Queue;
use crate::util::shutdown::Shutdown;
use crate::worker::pool::HandlerPool;
use crate::worker::run_context::RunContext;

/// What a supervisor needs of its session.
pub(crate) struct Supervised<'a> {
    pub(crate) run: &'a Arc<RunContext>,
    pub(crate) pool: &'a HandlerPool,
    pub(crate) shutdown: &'a Shutdown,
    pub(crate) connection: &'a Connection,
    /// The queue as the broker has it.
    pub(crate) queue: &'a Queue,
    /// Until when the broker may keep tasks for a connection that was lost before.
    pub(crate) broker_holds_until: Option<Instant>,
}

/// How the consumers of a session ended.
#[derive(Debug, Default)]
pub(crate) struct Supervision {
    /// Whether any of them consumed.
    pub(crate) consumed: bool,
    /// Why the session ended by itself.
    pub(crate) own_end: Option<OwnEnd>,
    /// Until when running tasks may go on, if a stop was asked for.
    pub(crate) deadline: Option<Instant>,
    /// Why the first consumer was lost.
    pub(crate) lost: Option<CloseReason>,
    /// How many deliveries they took: all that the broker sent before their subscriptions ended.
    pub(crate) taken: u64,
}

/// Why a session ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnEnd {
    Exhausted,
    /// The queue was empty when this many deliveries had been taken.
    Drained {
        taken: u64,
    },
}
