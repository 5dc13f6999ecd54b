//! [`RunContext`]: what all sessions of one run share: settings, journal, task budget,
//! cancellation.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use log::warn;

use crate::amqp::channel::Acks;
use crate::model::broker::Broker;
use crate::model::handler::Handler;
use crate::model::queue::Queue;
use crate::model::retry::RetryPolicy;
use crate::util::backoff::Backoff;
use crate::util::panic::caught;
use crate::util::shutdown::{Closer, Signal, closer};
use crate::worker::drain_group::DrainSeat;
use crate::worker::health::Health;
use crate::worker::journal::Journal;
use crate::worker::late::LateTasks;
use crate::worker::rate::StartRate;
use crate::worker::task_budget::TaskBudget;

/// Shared by all threads of one run. Handler threads that are left running hold it longer than the
/// run lasts, so it holds no [`Shutdown`](crate::Shutdown): `Delivery::killed` closes with the
/// last of those.
pub(crate) struct RunContext {
    pub(crate) broker: Broker,
    pub(crate) settings: Settings,
    pub(crate) handler: Box<dyn Handler>,
    pub(crate) budget: Arc<TaskBudget>,
    /// Closes when no further task may be started.
    pub(crate) exhausted: Signal,
    /// `None` without a limit.
    pub(crate) rate: Option<Arc<StartRate>>,
    pub(crate) cancellation: Cancellation,
    pub(crate) journal: Journal,
    pub(crate) health: Health,
    pub(crate) late_tasks: LateTasks,
    /// For a drain.
    pub(crate) drain: DrainSeat,
}

/// The settings that sessions need.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) queue: Queue,
    pub(crate) prefetch: u16,
    pub(crate) acks: Acks,
    pub(crate) grace: Duration,
    pub(crate) policy: RetryPolicy,
    pub(crate) until: RunUntil,
    /// The longest pause before the next session.
    pub(crate) longest_pause: Duration,
    /// The name of this machine, for dead letters.
    pub(crate) host: String,
}

/// When a worker ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunUntil {
    Stopped,
    Drained,
}

/// Cancels the running tasks, once in a run.
pub(crate) struct Cancellation {
    cancel: Closer,
    at: OnceLock<Instant>,
    pub(crate) cancelled: Signal,
    pub(crate) killed: Signal,
}

impl RunContext {
    /// How long the handler's tasks take to end once they are cancelled.
    pub(crate) fn cancel_timeout(&self) -> Duration {
        caught(|| self.handler.cancel_timeout()).unwrap_or_else(|panicked| {
            warn!("the handler's cancel_timeout {panicked}");
            Duration::ZERO
        })
    }
}

impl Settings {
    pub(crate) fn new(queue: &Queue, host: String) -> Settings {
        Settings {
            queue: queue.clone(),
            prefetch: 1,
            acks: Acks::Manual,
            grace: Duration::from_secs(30),
            policy: RetryPolicy::new(),
            until: RunUntil::Stopped,
            longest_pause: Backoff::LONGEST_OF_A_WORKER,
            host,
        }
    }
}

impl Cancellation {
    pub(crate) fn new(killed: &Signal) -> Cancellation {
        let (cancel, cancelled) = closer();
        Cancellation { cancel, at: OnceLock::new(), cancelled, killed: killed.clone() }
    }

    /// Cancels. Returns when it was first called.
    pub(crate) fn cancel(&self) -> Instant {
        self.cancel_at(Instant::now())
    }

    /// The same with the moment of the call, which counts for the first one.
    pub(crate) fn cancel_at(&self, now: Instant) -> Instant {
        let at = *self.at.get_or_init(|| now);
        self.cancel.close();
        at
    }
}
