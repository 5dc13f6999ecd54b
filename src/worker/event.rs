//! Owns [`Event`]: what a worker tells an observer about each task.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use log::warn;

use crate::util::panic::caught;

/// One thing that happened to one task in one worker thread.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// When, by the system's clock.
    pub time: SystemTime,
    /// What.
    pub kind: EventKind,
    /// The task's id; empty where its producer set none.
    pub task: String,
    /// Which attempt of the task it was, from 1.
    pub attempt: u32,
    /// The number of the worker thread, from 1.
    pub thread: usize,
    /// The queue.
    pub queue: String,
    /// How long the handler ran; zero for what never started, or is left behind running.
    pub elapsed: Duration,
    /// Why the handler failed, if it did.
    pub reason: Option<String>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// The handler was called.
    Started,
    /// The handler said done, and the delivery was acked.
    Done,
    /// The handler failed, and the task was handed over to its delay queue, then acked.
    Retried,
    /// The handler failed for good, and the task was handed over to the dead letters, then
    /// acked.
    Dead,
    /// The handler failed and the task could not be handed over: it goes back to the queue after
    /// a pause, as if it had not been tried. With automatic acks, it failed and is lost.
    Failed,
    /// Not finished here, and given back to the queue.
    Returned,
    /// The handler ended, well or not, after its session was lost: nothing could be settled, and
    /// the broker has given the task to somebody already. It may run twice.
    Orphaned,
}

impl EventKind {
    /// The event's name in one lower-case word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EventKind::Started => "started",
            EventKind::Done => "done",
            EventKind::Retried => "retried",
            EventKind::Dead => "dead",
            EventKind::Failed => "failed",
            EventKind::Returned => "returned",
            EventKind::Orphaned => "orphaned",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whoever wants to know.
#[derive(Clone, Default)]
pub(crate) struct Observer(pub(crate) Option<Arc<Listener>>);

type Listener = dyn Fn(&Event) + Send + Sync;

impl Observer {
    pub(crate) fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// A panic of the observer goes no further.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
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
