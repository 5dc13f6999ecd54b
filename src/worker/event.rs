//! [`Event`]: one thing that happened to a task or to a session, for a worker's observer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use log::warn;

use crate::model::failure_record::is_internal_header;
use crate::model::handler::Delivery;
use crate::util::panic::caught;

/// One thing that happened to one task in one worker thread, or to a worker's session
/// ([`EventKind::Connected`], [`EventKind::Disconnected`]): then what is said of a task is empty or zero.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// When it happened, by the system's clock.
    pub time: SystemTime,
    /// What happened.
    pub kind: EventKind,
    /// The task's id; empty if its producer set none.
    pub task: String,
    /// The task's type, if its producer set one.
    pub task_type: Option<String>,
    /// The id that ties an answer to the task, if it has one.
    pub correlation_id: Option<String>,
    /// Its producer's headers that can be written as text, for instance `traceparent`.
    pub headers: BTreeMap<String, String>,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The number of the worker thread, from 1.
    pub thread: usize,
    /// The name of the queue.
    pub queue: String,
    /// The name of the worker's machine.
    pub host: String,
    /// The length of the task's body.
    pub bytes: u64,
    /// How long the handler ran; zero if it did not start, or is left running.
    pub elapsed: Duration,
    /// Why the handler failed or deferred the task, if it did; or why the session was lost.
    pub reason: Option<String>,
    /// How long the task waits in a delay queue, if it was retried or deferred.
    pub delay: Option<Duration>,
    /// The exit status of the program that `Command` ran; `None` before its end, and
    /// if a signal ended it.
    pub exit: Option<i32>,
    /// The signal that ended that program, if one did.
    pub signal: Option<i32>,
}

impl Event {
    /// What happened at this moment to a session.
    pub(crate) fn of_session(
        kind: EventKind,
        queue: &str,
        host: &str,
        reason: Option<String>,
    ) -> Event {
        Event {
            time: SystemTime::now(),
            kind,
            task: String::new(),
            task_type: None,
            correlation_id: None,
            headers: BTreeMap::new(),
            attempt: 0,
            thread: 0,
            queue: queue.to_string(),
            host: host.to_string(),
            bytes: 0,
            elapsed: Duration::ZERO,
            reason,
            delay: None,
            exit: None,
            signal: None,
        }
    }

    /// What happened at this moment to a delivery, on this host, after its handler ran for so long.
    pub(crate) fn of(kind: EventKind, delivery: &Delivery, host: &str, elapsed: Duration) -> Event {
        let task = delivery.task();
        let end = delivery.program_end();
        let headers = task.headers_as_text().filter(|(name, _)| !is_internal_header(name));
        Event {
            time: SystemTime::now(),
            kind,
            task: task.id().unwrap_or_default().to_string(),
            task_type: task.type_name().map(str::to_string),
            correlation_id: task.correlation_id().map(str::to_string),
            headers: headers.map(|(name, value)| (name.to_string(), value)).collect(),
            attempt: delivery.attempt,
            thread: delivery.thread,
            queue: delivery.queue.clone(),
            host: host.to_string(),
            bytes: delivery.body().len() as u64,
            elapsed,
            reason: None,
            delay: None,
            exit: end.and_then(|end| end.exit),
            signal: end.and_then(|end| end.signal),
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// The handler was called.
    Started,
    /// The handler returned `Ok`, and the task was acked.
    Done,
    /// The handler failed. The broker confirmed a copy of the task in a delay queue; then the task
    /// was acked.
    Retried,
    /// The handler deferred the task. The broker confirmed a copy in a delay queue; then the task was
    /// acked. No attempt is counted.
    Deferred,
    /// The handler failed for good. The broker confirmed a dead letter; then the task was acked.
    Dead,
    /// The handler failed, and the broker confirmed no copy of the task. It goes back to the queue
    /// after a pause, and the failure does not count. With automatic acks, the task is lost.
    Failed,
    /// The task was requeued, unfinished. Its name is `returned`, on which scripts rely.
    Requeued,
    /// The handler ended, with whatever result, after its connection was lost. The broker has
    /// requeued the task already, so it may run twice.
    Orphaned,
    /// A session began: the worker has a connection to the broker.
    Connected,
    /// A session was lost. The worker connects again, unless it ends.
    Disconnected,
}

impl EventKind {
    /// Whether it is about a session, not about a task.
    #[must_use]
    pub fn is_of_session(self) -> bool {
        matches!(self, EventKind::Connected | EventKind::Disconnected)
    }

    /// The event's name in one lower-case word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Started => "started",
            EventKind::Done => "done",
            EventKind::Retried => "retried",
            EventKind::Deferred => "deferred",
            EventKind::Dead => "dead",
            EventKind::Failed => "failed",
            EventKind::Requeued => "returned",
            EventKind::Orphaned => "orphaned",
            EventKind::Connected => "connected",
            EventKind::Disconnected => "disconnected",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The function to call for each event, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Observer(pub(crate) Option<Arc<Listener>>);

type Listener = dyn Fn(&Event) + Send + Sync;

impl Observer {
    pub(crate) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Calls the observer. Catches and logs its panics.
    pub(crate) fn notify(&self, event: impl FnOnce() -> Event) {
        let Some(observer) = &self.0 else { return };
        let event = event();
        if let Err(panicked) = caught(|| observer(&event)) {
            warn!("the observer of a {} event {panicked}", event.kind);
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Observer(set)" } else { "Observer(none)" })
    }
}
