//! [`Trigger`] and [`Shutdown`]: a stop in three stages, each a channel that only ever closes.
//!
//! A signal handler or a supervising thread holds the [`Trigger`]; each thread that waits holds a
//! [`Shutdown`]. Nothing is ever sent: the closed channel is the signal. Any number of threads can
//! select on it, and none can miss it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

/// A channel that only ever closes.
pub(crate) type Signal = Receiver<Infallible>;

/// The end that asks for a stop. Clones ask the same [`Shutdown`].
///
/// Dropping the last clone is a [`stop`](Trigger::stop): without a trigger nothing could stop the
/// worker any more.
#[derive(Clone, Debug)]
pub struct Trigger {
    stages: Arc<Stages>,
}

/// The end that waits for a stop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stopping: Signal,
    aborting: Signal,
    killing: Signal,
    /// Kept, so that dropping the last trigger closes `stopping` only.
    _later: [Arc<Closer>; 2],
}

#[derive(Debug)]
struct Stages {
    stop: Closer,
    abort: Arc<Closer>,
    kill: Arc<Closer>,
}

/// Makes a connected pair, not stopped yet.
///
/// Keep the trigger in a variable as long as the worker should run, for instance in `_trigger`.
/// `let (_, shutdown) = shutdown()` drops it at once, which is a stop.
///
/// ```
/// use rabbit_work::shutdown;
///
/// let (_trigger, kept) = shutdown();
/// assert!(!kept.is_stopping());
/// let (_, stopped) = shutdown();
/// assert!(stopped.is_stopping());
/// ```
#[must_use]
pub fn shutdown() -> (Trigger, Shutdown) {
    let (stop, stopping) = closer();
    let (abort, aborting) = closer();
    let (kill, killing) = closer();
    let (abort, kill) = (Arc::new(abort), Arc::new(kill));
    let _later = [Arc::clone(&abort), Arc::clone(&kill)];
    let stages = Arc::new(Stages { stop, abort, kill });
    (Trigger { stages }, Shutdown { stopping, aborting, killing, _later })
}

impl Trigger {
    /// Asks for a graceful stop: start no new task, finish the running ones. Idempotent, never blocks.
    pub fn stop(&self) {
        self.stages.stop.close();
    }

    /// Asks to stop at once: running tasks are cancelled and requeued. Implies
    /// [`stop`](Trigger::stop). Idempotent, never blocks.
    pub fn abort(&self) {
        self.stop();
        self.stages.abort.close();
    }

    /// Asks to wait for nothing: cancelled tasks get no time to end. Implies
    /// [`abort`](Trigger::abort). Idempotent, never blocks.
    pub fn kill(&self) {
        self.abort();
        self.stages.kill.close();
    }
}

impl Shutdown {
    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        is_closed(&self.stopping)
    }

    /// Whether a stop at once was asked for.
    #[must_use]
    pub fn is_aborting(&self) -> bool {
        is_closed(&self.aborting)
    }

    /// Waits until a stop is asked for, at most `limit`; says whether it was.
    ///
    /// # Blocking
    /// Up to `limit`; ends early at the first [`Trigger::stop`] or [`Trigger::abort`].
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        matches!(self.stopping.recv_timeout(limit), Err(RecvTimeoutError::Disconnected))
    }

    /// A channel that closes when a stop is asked for; select on it.
    #[must_use]
    pub fn stopping(&self) -> &Receiver<Infallible> {
        &self.stopping
    }

    /// A channel that closes when a stop at once is asked for; select on it.
    #[must_use]
    pub fn aborting(&self) -> &Receiver<Infallible> {
        &self.aborting
    }

    /// A channel that closes when the worker must wait for nothing any more; select on it.
    #[must_use]
    pub fn killing(&self) -> &Receiver<Infallible> {
        &self.killing
    }
}

/// The one sender of a [`Signal`]; closing it is dropping that sender.
#[derive(Debug)]
pub(crate) struct Closer(Mutex<Option<Sender<Infallible>>>);

impl Closer {
    pub(crate) fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

pub(crate) fn closer() -> (Closer, Signal) {
    let (sender, receiver) = bounded(0);
    (Closer(Mutex::new(Some(sender))), receiver)
}

pub(crate) fn is_closed(signal: &Signal) -> bool {
    matches!(signal.try_recv(), Err(TryRecvError::Disconnected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_at_first() {
        let (_trigger, shutdown) = shutdown();
        assert!(!shutdown.is_stopping());
        assert!(!shutdown.wait(Duration::ZERO));
    }

    #[test]
    fn every_clone_sees_a_stop_and_each_stage_implies_those_before() {
        let (trigger, shutdown) = shutdown();
        let other = shutdown.clone();
        trigger.stop();
        assert!(other.is_stopping() && !other.is_aborting());
        trigger.clone().abort();
        assert!(shutdown.is_aborting() && !is_closed(shutdown.killing()));
        let (trigger, shutdown) = super::shutdown();
        trigger.kill();
        assert!(shutdown.is_stopping() && shutdown.is_aborting());
        assert!(is_closed(shutdown.killing()));
    }

    #[test]
    fn losing_the_last_trigger_is_a_stop() {
        let (trigger, shutdown) = shutdown();
        let second = trigger.clone();
        drop(trigger);
        assert!(!shutdown.is_stopping());
        drop(second);
        assert!(shutdown.wait(Duration::from_secs(1)));
        assert!(!shutdown.is_aborting());
    }
}
