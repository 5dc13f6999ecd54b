//! Counts how many tasks a run may still start and how many may still die, and shares the tasks among
//! its consumers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::error;

use crate::model::error::Error;
use crate::model::handler::Failure;
use crate::util::shutdown::{Closer, Signal, closer};
use crate::worker::summary::StopReason;

/// How many tasks one worker may still start, with or without a limit.
pub(crate) struct TaskBudget {
    pot: Arc<Pot>,
    /// The place of its signal in the pot.
    number: usize,
    /// How many tasks of the pot no consumer of this worker has taken a delivery for, or has made
    /// room for.
    unclaimed: AtomicU64,
    /// Whether its handler ended it before it was used up.
    closed: AtomicBool,
}

/// What limits the run of one worker, or of several together.
#[derive(Clone, Copy, Default)]
pub(crate) struct RunLimits {
    /// How many tasks may be started.
    pub(crate) tasks: Option<u64>,
    /// How many dead letters end the run.
    pub(crate) dead: Option<u64>,
}

/// What the workers of one program may still start together.
struct Pot {
    left: Option<AtomicU64>,
    dead_left: Option<AtomicU64>,
    has_most_dead: AtomicBool,
    /// One for each worker.
    exhausted: Vec<Closer>,
}

impl RunLimits {
    pub(crate) fn is_unlimited(self) -> bool {
        self.tasks.is_none() && self.dead.is_none()
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        for (setting, limit) in [("max tasks", self.tasks), ("max dead", self.dead)] {
            if limit == Some(0) {
                return Err(Error::setting(setting, "0 would never start any; write 1 or more"));
            }
        }
        Ok(())
    }
}

impl TaskBudget {
    /// Makes a budget; the signal closes when it is used up.
    pub(crate) fn new(limits: RunLimits) -> (TaskBudget, Signal) {
        TaskBudget::shared(limits, 1).remove(0)
    }

    /// Makes the budgets of so many workers with these limits together. Each of them claims as if it
    /// were alone, because the tasks may all be in its queue. So when the last task is started, the
    /// others may hold deliveries that they must requeue.
    pub(crate) fn shared(limits: RunLimits, workers: usize) -> Vec<(TaskBudget, Signal)> {
        let (exhausted, signals): (Vec<Closer>, Vec<Signal>) =
            (0..workers).map(|_| closer()).unzip();
        let pot = Arc::new(Pot {
            left: limits.tasks.map(AtomicU64::new),
            dead_left: limits.dead.map(AtomicU64::new),
            has_most_dead: AtomicBool::new(false),
            exhausted,
        });
        let budget = |number| TaskBudget {
            pot: Arc::clone(&pot),
            number,
            unclaimed: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        };
        (0..workers).map(budget).zip(signals).collect()
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.pot.left.is_some()
    }

    /// How many tasks may still be started, if that is limited.
    pub(crate) fn left(&self) -> Option<u64> {
        self.pot.left.as_ref().map(|left| left.load(Ordering::Acquire))
    }

    /// Lets the consumers of a new session share the rest.
    pub(crate) fn share_out(&self) {
        if let Some(left) = &self.pot.left {
            self.unclaimed.store(left.load(Ordering::Acquire), Ordering::Release);
        }
    }

    /// Claims tasks for one of `sharers` consumers: at most `most` and at most its share. `None` if
    /// nothing is left to claim. Without a limit, a consumer gets what it asks for.
    pub(crate) fn claim(&self, most: u16, sharers: usize) -> Option<u16> {
        let Some(left) = &self.pot.left else { return Some(most) };
        let sharers = u64::try_from(sharers).unwrap_or(u64::MAX).max(1);
        let share = (left.load(Ordering::Acquire) / sharers).max(1);
        // 0 is no limit.
        let most = if most == 0 { u16::MAX } else { most };
        let most = u64::from(most).min(share);
        let rest = |unclaimed: u64| (unclaimed > 0).then(|| unclaimed - unclaimed.min(most));
        let before = self.unclaimed.fetch_update(Ordering::AcqRel, Ordering::Acquire, rest).ok()?;
        u16::try_from(before.min(most)).ok()
    }

    /// Undoes the claim for a delivery that does not run.
    pub(crate) fn unclaim(&self) {
        if self.is_limited() {
            self.unclaimed.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Takes one task; `false` if none is left.
    pub(crate) fn take(&self) -> bool {
        if self.is_closed() {
            return false;
        }
        let Some(left) = &self.pot.left else { return true };
        let taken = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
        if taken.is_err() || taken == Ok(1) {
            self.pot.exhausted.iter().for_each(Closer::close);
        }
        taken.is_ok()
    }

    /// Refunds a task that could not be tried. Once the last one is taken, the worker ends, and
    /// nothing is refunded.
    pub(crate) fn refund(&self) {
        if let Some(left) = &self.pot.left {
            let one_more = |n: u64| (n > 0).then_some(n + 1);
            if left.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).is_ok() {
                self.unclaim();
            }
        }
    }

    /// Ends the budget, because the handler says that it can run no task.
    pub(crate) fn close(&self, why: &Failure) {
        if !self.is_closed() && !self.closed.swap(true, Ordering::AcqRel) {
            error!("the worker ends: {why}");
        }
        self.pot.exhausted[self.number].close();
    }

    /// Counts a dead letter. The last one that is allowed ends the budgets that share the limit.
    pub(crate) fn note_dead(&self) {
        let Some(left) = &self.pot.dead_left else { return };
        let is_last = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
        if is_last == Ok(1) {
            error!("stopping: this run made as many dead letters as allowed");
            self.pot.has_most_dead.store(true, Ordering::Release);
            self.pot.exhausted.iter().for_each(Closer::close);
        }
    }

    /// Whether the budget ended before it was used up.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed_by().is_some()
    }

    /// What ended it then.
    pub(crate) fn closed_by(&self) -> Option<StopReason> {
        if self.closed.load(Ordering::Acquire) {
            return Some(StopReason::HandlerStopped);
        }
        self.pot.has_most_dead.load(Ordering::Acquire).then_some(StopReason::MaxDead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::shutdown::is_closed;

    fn tasks(tasks: Option<u64>) -> RunLimits {
        RunLimits { tasks, dead: None }
    }

    #[test]
    fn a_budget_is_exhausted_exactly_once() {
        let (budget, exhausted) = TaskBudget::new(tasks(Some(2)));
        assert!(budget.take());
        assert!(!is_closed(&exhausted));
        assert!(budget.take());
        assert!(is_closed(&exhausted), "closed with the last one, not with the first refusal");
        assert!(!budget.take());
    }

    #[test]
    fn a_task_is_refunded_until_the_last_one_is_taken() {
        let (budget, exhausted) = TaskBudget::new(tasks(Some(2)));
        assert!(budget.take());
        budget.refund();
        assert!(budget.take() && !is_closed(&exhausted));
        assert!(budget.take() && is_closed(&exhausted));
        budget.refund();
        assert!(!budget.take());
    }

    #[test]
    fn no_more_is_claimed_than_may_be_started() {
        let (budget, _exhausted) = TaskBudget::new(tasks(Some(10)));
        assert_eq!(budget.claim(1, 4), None, "no session shares them yet");
        budget.share_out();
        let shares = [budget.claim(9, 4), budget.claim(0, 4), budget.claim(1, 4)];
        assert_eq!(shares, [Some(2), Some(2), Some(1)], "a quarter each at most");
        assert_eq!([2, 2, 2].map(|most| budget.claim(most, 4)), [Some(2), Some(2), Some(1)]);
        assert_eq!(budget.claim(1, 4), None);
        budget.unclaim();
        assert_eq!(budget.claim(1, 1), Some(1));
        assert!(budget.take());
        budget.refund();
        assert_eq!(budget.claim(1, 1), Some(1), "one that was not used may be claimed again");
    }

    #[test]
    fn without_a_limit_a_consumer_claims_what_it_asks_for() {
        let (budget, _exhausted) = TaskBudget::new(tasks(None));
        budget.share_out();
        assert_eq!([0, 1, 500].map(|most| budget.claim(most, 4)), [Some(0), Some(1), Some(500)]);
    }

    #[test]
    fn workers_start_no_more_tasks_together_than_their_limit_wherever_these_are() {
        let mut shared = TaskBudget::shared(tasks(Some(3)), 2);
        let ((second, second_exhausted), (first, first_exhausted)) =
            (shared.remove(1), shared.remove(0));
        [&first, &second].iter().for_each(|it| it.share_out());
        assert_eq!([first.claim(9, 1), second.claim(9, 1)], [Some(3), Some(3)]);
        assert!(first.take() && second.take() && !is_closed(&first_exhausted));
        assert!(second.take() && is_closed(&first_exhausted) && is_closed(&second_exhausted));
        assert!(!first.take() && !second.take());
    }

    #[test]
    fn a_handler_that_can_run_no_task_ends_the_budget_of_its_own_worker() {
        let mut shared = TaskBudget::shared(tasks(Some(3)), 2);
        let ((second, second_exhausted), (first, first_exhausted)) =
            (shared.remove(1), shared.remove(0));
        first.close(&Failure::stop_worker("unfit"));
        assert!(first.is_closed() && is_closed(&first_exhausted));
        assert!(!second.is_closed() && !is_closed(&second_exhausted) && second.take());
    }

    #[test]
    fn a_closed_budget_has_no_task() {
        let (budget, exhausted) = TaskBudget::new(tasks(None));
        budget.close(&Failure::stop_worker("unfit"));
        assert!(is_closed(&exhausted) && budget.is_closed());
        assert!(!budget.take());
    }

    #[test]
    fn without_a_limit_a_budget_is_never_exhausted() {
        let (budget, exhausted) = TaskBudget::new(tasks(None));
        assert!((0..1000).all(|_| budget.take()));
        assert!(!is_closed(&exhausted));
    }

    #[test]
    fn the_last_dead_letter_that_is_allowed_ends_the_budget() {
        let (budget, exhausted) = TaskBudget::new(RunLimits { tasks: None, dead: Some(2) });
        budget.note_dead();
        assert!(budget.take() && !is_closed(&exhausted));
        budget.note_dead();
        assert!(is_closed(&exhausted) && !budget.take());
        budget.note_dead();
        budget.close(&Failure::stop_worker("no command"));
        assert_eq!(budget.closed_by(), Some(StopReason::MaxDead), "the first one");
        let (unlimited, exhausted) = TaskBudget::new(tasks(None));
        unlimited.note_dead();
        assert!(!is_closed(&exhausted));
    }
}
