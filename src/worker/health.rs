//! [`Health`]: which threads of a worker consume, and since when each has worked on its task.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The state of a running worker's threads, for a health check. Cheap to clone; see
/// [`Worker::health`](crate::Worker::health).
#[derive(Clone, Debug, Default)]
pub struct Health {
    threads: Arc<Mutex<Vec<State>>>,
}

/// The state of one thread.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    consuming: bool,
    busy_since: Option<Instant>,
    /// When the last task could not be tried.
    unable_since: Option<Instant>,
}

/// How long a thread counts as unable to try tasks, unless it tries one: longer than the longest
/// pause before the next.
const UNABLE: Duration = Duration::from_secs(90);

impl Health {
    /// Whether every thread is healthy. A thread with a task is healthy if it has worked on it for at
    /// most `limit`, even if the connection of the task is lost. A thread without a task is healthy
    /// while it consumes: not before the worker runs, without a connection, or once it stops. Nor is
    /// it if its last task could not be tried ([`Failure::Requeue`](crate::Failure::Requeue)), for
    /// 90 s or until another one could.
    #[must_use]
    pub fn is_healthy(&self, limit: Option<Duration>) -> bool {
        let threads = self.lock();
        let is_healthy = |state: &State| match state.busy_since {
            Some(since) => limit.is_none_or(|limit| since.elapsed() <= limit),
            None => state.consuming && state.unable_since.is_none_or(|at| at.elapsed() > UNABLE),
        };
        !threads.is_empty() && threads.iter().all(is_healthy)
    }

    /// How many threads work on a task.
    #[must_use]
    pub fn running(&self) -> usize {
        self.lock().iter().filter(|state| state.busy_since.is_some()).count()
    }

    /// How many threads receive tasks.
    #[must_use]
    pub fn consuming(&self) -> usize {
        self.lock().iter().filter(|state| state.consuming).count()
    }

    /// Begins anew with so many threads that do nothing yet.
    pub(crate) fn expect(&self, threads: usize) {
        *self.lock() = vec![State::default(); threads];
    }

    pub(crate) fn consumes(&self, thread: usize) {
        self.change(thread, |state| state.consuming = true);
    }

    pub(crate) fn consumes_no_more(&self, thread: usize) {
        self.change(thread, |state| state.consuming = false);
    }

    pub(crate) fn works(&self, thread: usize) {
        self.change(thread, |state| state.busy_since = Some(Instant::now()));
    }

    pub(crate) fn works_no_more(&self, thread: usize) {
        self.change(thread, |state| (state.busy_since, state.unable_since) = (None, None));
    }

    pub(crate) fn could_not_work(&self, thread: usize) {
        let now = Some(Instant::now());
        self.change(thread, |state| (state.busy_since, state.unable_since) = (None, now));
    }

    /// Threads count from 1.
    fn change(&self, thread: usize, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.lock().get_mut(thread.saturating_sub(1)) {
            change(state);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<State>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_to_consume_or_to_work_within_its_time() {
        let health = Health::default();
        assert!(!health.is_healthy(None), "nothing runs");
        health.expect(2);
        health.consumes(1);
        assert!(!health.is_healthy(None), "the second does nothing");
        health.works(2);
        assert_eq!((health.running(), health.consuming()), (1, 1));
        assert!(health.is_healthy(None));
        assert!(!health.is_healthy(Some(Duration::ZERO)), "it has worked for too long");
        health.works_no_more(2);
        assert!(!health.is_healthy(None));
        health.consumes(2);
        assert!(health.is_healthy(Some(Duration::ZERO)));
        health.consumes_no_more(1);
        assert!(!health.is_healthy(None));
    }

    #[test]
    fn a_thread_that_cannot_try_tasks_is_not_sound_until_it_can() {
        let health = Health::default();
        health.expect(1);
        health.consumes(1);
        health.works(1);
        health.could_not_work(1);
        assert!(!health.is_healthy(None), "it consumes, and nothing can be tried");
        health.works(1);
        health.works_no_more(1);
        assert!(health.is_healthy(None));
        let long_ago = Instant::now().checked_sub(UNABLE + Duration::from_secs(1));
        health.change(1, |state| state.unable_since = long_ago);
        assert!(health.is_healthy(None), "there was no other task to show that it can");
    }
}
