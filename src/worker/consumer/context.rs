//! What the consumers of one connection share, and what they report to its supervisor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;

use crate::amqp::channel::Acks;
use crate::amqp::close_reason::CloseReason;
use crate::amqp::connection::Connection;
use crate::model::queue::Queue;
use crate::util::shutdown::{Closer, Signal, closer, is_closed};
use crate::worker::in_flight::InFlightCount;
use crate::worker::journal::RedeliveryLog;
use crate::worker::republish::Requests;
use crate::worker::run_context::RunContext;

/// Shared by the consumers of one connection. A consumer that calls the handler may have it longer
/// than the connection lasts.
pub(crate) struct ConsumerContext {
    pub(crate) run: Arc<RunContext>,
    pub(crate) connection: Connection,
    /// The queue as the broker has it.
    pub(crate) queue: Queue,
    /// How many consumers there are.
    pub(crate) consumers: usize,
    pub(crate) in_flight: Arc<InFlightCount>,
    pub(crate) republisher: Requests,
    pub(crate) reports: Sender<Report>,
    pub(crate) signals: ConsumerSignals,
    /// Whether the broker reads nothing on this connection at present.
    pub(crate) is_blocked: AtomicBool,
    pub(crate) redeliveries: RedeliveryLog,
}

/// What the supervisor asks of the consumers, by closing these.
#[derive(Clone)]
pub(crate) struct ConsumerSignals {
    /// Take nothing new, requeue what is not started, finish what runs.
    pub(crate) stop: Signal,
    /// Requeue what is paused or deferred.
    pub(crate) skip_pauses: Signal,
    /// Requeue everything, now.
    pub(crate) abort: Signal,
}

/// What closes the signals of the consumers.
pub(crate) struct Closers {
    pub(crate) stop: Closer,
    pub(crate) skip_pauses: Closer,
    pub(crate) abort: Closer,
}

/// What the consumer of a thread number reports.
pub(crate) enum Report {
    /// It has subscribed.
    Consuming(usize),
    Ended(usize, ConsumerEnd),
}

/// Why a consumer ended.
#[derive(Debug)]
pub(crate) enum ConsumerEnd {
    /// It was stopped, and everything it had is settled.
    Stopped,
    /// Its channel or connection ended. [`CloseReason::Disconnected`] if the reason is not known.
    Lost(CloseReason),
}

pub(crate) fn closers() -> (Closers, ConsumerSignals) {
    let [(stop, stopped), (skip_pauses, skipped), (abort, aborted)] =
        [closer(), closer(), closer()];
    let signals = ConsumerSignals { stop: stopped, skip_pauses: skipped, abort: aborted };
    (Closers { stop, skip_pauses, abort }, signals)
}

impl ConsumerContext {
    /// Claims deliveries of the run's budget. With automatic acks the broker ignores every
    /// prefetch, so nothing is claimed.
    pub(crate) fn claim(&self, most: u16) -> Option<u16> {
        match self.run.settings.acks {
            Acks::Manual => self.run.budget.claim(most, self.consumers),
            Acks::Automatic => Some(most),
        }
    }

    /// Whether the consumers are to take nothing new.
    pub(crate) fn is_stopped(&self) -> bool {
        is_closed(&self.signals.stop) || is_closed(&self.signals.abort)
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Acquire)
    }

    /// Whether the running tasks are cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        is_closed(&self.run.cancellation.cancelled)
    }
}
