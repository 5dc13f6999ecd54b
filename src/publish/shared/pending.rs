//! [`Pending`]: a task that was given to a shared producer, and its outcome once that is known.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::warn;

use super::room::Place;
use crate::model::outcome::Outcome;
use crate::model::task::Task;
use crate::publish::pending::unconfirmed;
use crate::publish::receipt::Receipt;
use crate::util::deadline::deadline_after;

/// A task that a [`SharedProducer`](crate::SharedProducer) has taken. If you drop this before the
/// outcome is known, the task is still published, and a warning in the log names it if it is not
/// confirmed.
#[derive(Debug)]
#[must_use = "only `wait` says whether the task was confirmed"]
pub struct Pending {
    task: Task,
    slot: Arc<Slot>,
    /// When its outcome is known at the latest.
    latest: Instant,
}

/// Where the producer's thread puts the outcome.
#[derive(Debug, Default)]
struct Slot {
    outcome: Mutex<Option<Outcome>>,
    resolved: Condvar,
}

/// The other end of a [`Pending`]: has to give it an outcome.
#[derive(Debug)]
pub(crate) struct Resolver {
    slot: Arc<Slot>,
    /// Freed with this.
    _place: Option<Place>,
}

impl Pending {
    /// A task, and what gives it its outcome until `latest`.
    pub(super) fn new(task: Task, latest: Instant, place: Option<Place>) -> (Pending, Resolver) {
        let slot = Arc::<Slot>::default();
        let resolver = Resolver { slot: Arc::clone(&slot), _place: place };
        (Pending { task, slot, latest }, resolver)
    }

    /// The id under which the task is published.
    #[must_use]
    pub fn id(&self) -> &str {
        self.task.id().unwrap_or_default()
    }

    /// Whether the outcome is known: [`wait`](Pending::wait) then returns it at once.
    #[must_use]
    pub fn is_resolved(&self) -> bool {
        self.slot.lock().is_some()
    }

    /// Waits for the outcome. If the limit ends first, the receipt says [`Outcome::Unconfirmed`], the
    /// producer still tries the task, and you can wait again.
    ///
    /// # Blocking
    /// At most for `limit`, and never longer than the producer's timeout, which counts from
    /// [`submit`](crate::SharedProducer::submit), and a twentieth of it.
    pub fn wait(&self, limit: Duration) -> Receipt {
        let deadline = deadline_after(limit);
        let outcome = self.slot.wait(deadline.min(self.latest)).unwrap_or_else(|| {
            unconfirmed(if deadline < self.latest {
                format!("no confirm within {limit:?}; the producer still tries the task")
            } else {
                "no confirm in time; the producer's thread waits for the broker".into()
            })
        });
        Receipt { task: self.task.clone(), outcome }
    }

    /// Waits until the outcome is known, for the producer's timeout.
    pub(crate) fn wait_for_outcome(self) -> Receipt {
        self.wait(Duration::MAX)
    }
}

impl Slot {
    fn wait(&self, deadline: Instant) -> Option<Outcome> {
        let mut outcome = self.lock();
        while outcome.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let woken = self.resolved.wait_timeout(outcome, left);
            outcome = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        outcome.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver {
    /// Gives the task its outcome.
    pub(crate) fn resolve(self, id: &str, outcome: Outcome) {
        if Arc::strong_count(&self.slot) == 1 {
            warn_unless_confirmed(id, &outcome);
        }
        self.slot.lock().get_or_insert(outcome);
    }
}

/// Logs the outcome of a task that nobody waits for.
pub(super) fn warn_unless_confirmed(id: &str, outcome: &Outcome) {
    if *outcome != Outcome::Confirmed {
        warn!("task {id} is not confirmed, and nobody waits for it: {outcome}");
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.slot.lock().get_or_insert_with(|| unconfirmed("the producer's thread has ended"));
        self.slot.resolved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn pending() -> (Pending, Resolver) {
        let latest = Instant::now() + Duration::from_secs(60);
        Pending::new(Task::new("x").with_id("1"), latest, None)
    }

    #[test]
    fn a_wait_that_ends_first_says_so_and_the_next_one_has_the_outcome() {
        let (pending, resolver) = pending();
        let early = pending.wait(Duration::from_millis(1));
        assert!(early.outcome.to_string().contains("still tries"), "{}", early.outcome);
        assert!(!pending.is_resolved());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| pending.wait(Duration::from_secs(60)).outcome);
            resolver.resolve("1", Outcome::Confirmed);
            assert_eq!(waiting.join().expect("no panic"), Outcome::Confirmed);
        });
        assert!(pending.is_resolved());
        let receipt = pending.wait(Duration::ZERO);
        assert_eq!((receipt.task.id(), receipt.outcome), (Some("1"), Outcome::Confirmed));
    }

    #[test]
    fn nobody_waits_for_a_thread_that_has_ended_nor_past_the_task_s_own_time() {
        let (first, resolver) = pending();
        drop(resolver);
        assert!(matches!(first.wait(Duration::MAX).outcome, Outcome::Unconfirmed { .. }));
        let (late, _resolver) = Pending::new(Task::new("x"), Instant::now(), None);
        assert!(matches!(late.wait(Duration::MAX).outcome, Outcome::Unconfirmed { .. }));
    }
}
