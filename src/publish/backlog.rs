//! The tasks of a publisher that are not in flight: those to be published, and those resolved.

use std::collections::VecDeque;
use std::mem;
use std::time::Instant;

use crate::model::outcome::Outcome;
use crate::model::task::Task;
use crate::publish::pending::{Pending, Resolved, unsent};
use crate::topology::silent_delays::SilentDelays;

/// What a publisher has still to publish, and what it has resolved.
pub(crate) struct Backlog<T> {
    /// Those to be published, in the order of their deadlines.
    waiting: VecDeque<Pending<T>>,
    /// Those resolved, until the caller takes them.
    resolved: Vec<Resolved<T>>,
}

impl<T> Backlog<T> {
    pub(crate) fn new() -> Backlog<T> {
        Backlog { waiting: VecDeque::new(), resolved: Vec::new() }
    }

    pub(crate) fn push(&mut self, pending: Pending<T>) {
        self.waiting.push_back(pending);
    }

    pub(crate) fn front(&self) -> Option<&Pending<T>> {
        self.waiting.front()
    }

    pub(crate) fn pop_front(&mut self) -> Option<Pending<T>> {
        self.waiting.pop_front()
    }

    /// Puts tasks back that were taken from the front, in the order in which they were taken.
    pub(crate) fn put_back(&mut self, held: Vec<Pending<T>>) {
        for pending in held.into_iter().rev() {
            self.waiting.push_front(pending);
        }
    }

    /// Puts a refused task among the others, in the order of the deadlines.
    pub(crate) fn insert(&mut self, pending: Pending<T>) {
        let place = self.waiting.partition_point(|it| it.deadline <= pending.deadline);
        self.waiting.insert(place, pending);
    }

    /// Takes back what was in flight on a lost connection, in the order of the deadlines.
    pub(crate) fn take_back(&mut self, in_flight: Vec<Pending<T>>) {
        for pending in in_flight.into_iter().rev() {
            self.waiting.push_front(Pending { returned: None, ..pending });
        }
        self.waiting.make_contiguous().sort_by_key(|pending| pending.deadline);
    }

    /// Sends each task where it belongs now that more delay queues do not respond.
    pub(crate) fn redirect(&mut self, silent: &SilentDelays) {
        for pending in &mut self.waiting {
            pending.target = silent.avoid(pending.queue.name(), pending.asked);
        }
    }

    /// How many tasks wait to be published.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.waiting.iter().map(|it| it.task.size_on_the_wire()).sum()
    }

    /// Whether each task that waits was refused and has a later time for its next try.
    pub(crate) fn has_only_refused(&self) -> bool {
        self.waiting.iter().all(|it| it.again_at.is_some())
    }

    pub(crate) fn oldest_deadline(&self) -> Option<Instant> {
        self.front().map(|pending| pending.deadline)
    }

    pub(crate) fn resolve(&mut self, pending: Pending<T>, outcome: Outcome) {
        self.resolved.push(pending.resolved(outcome));
    }

    /// Resolves a task that is never published.
    pub(crate) fn refuse(&mut self, task: Task, outcome: Outcome, ticket: T) {
        self.resolved.push(Resolved { task, outcome, ticket, sent: false });
    }

    /// What was resolved since the last call.
    pub(crate) fn take_resolved(&mut self) -> Vec<Resolved<T>> {
        mem::take(&mut self.resolved)
    }

    /// Leaves no task more time than until this deadline.
    pub(crate) fn end_by(&mut self, deadline: Instant) {
        self.waiting.iter_mut().for_each(|it| it.deadline = it.deadline.min(deadline));
    }

    /// Resolves the tasks that `which` picks: by their last refusal, as unsent, or with this outcome.
    pub(crate) fn give_up(&mut self, outcome: &Outcome, which: impl Fn(&Pending<T>) -> bool) {
        let (over, left) = mem::take(&mut self.waiting).into_iter().partition(which);
        self.waiting = left;
        let over: VecDeque<Pending<T>> = over;
        for pending in over {
            let outcome = match (&pending.refusal, outcome) {
                (Some(refusal), _) => pending.outcome_after(refusal),
                (None, Outcome::Unconfirmed { reason }) if !pending.sent => unsent(reason),
                (None, outcome) => outcome.clone(),
            };
            self.resolve(pending, outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::model::queue::{Queue, Target};
    use crate::publish::pending::unconfirmed;
    use crate::publish::refusal::{LastRefusal, Refusal};

    fn pending(seconds: u64) -> Pending<u64> {
        let place = (Arc::new(Queue::new("q")), Target::Main);
        let deadline = Instant::now() + Duration::from_secs(seconds);
        Pending::new(Task::new("job"), place, deadline, seconds)
    }

    fn backlog(seconds: &[u64]) -> Backlog<u64> {
        let mut backlog = Backlog::new();
        seconds.iter().for_each(|it| backlog.push(pending(*it)));
        backlog
    }

    fn order(backlog: &mut Backlog<u64>) -> Vec<u64> {
        std::iter::from_fn(|| backlog.pop_front()).map(|it| it.ticket).collect()
    }

    #[test]
    fn tasks_that_were_held_keep_their_places() {
        let mut backlog = backlog(&[1, 2, 3]);
        let held = [backlog.pop_front(), backlog.pop_front()].into_iter().flatten().collect();
        backlog.put_back(held);
        assert_eq!(order(&mut backlog), [1, 2, 3]);
    }

    #[test]
    fn refused_tasks_and_those_of_a_lost_connection_wait_in_the_order_of_their_deadlines() {
        let mut backlog = backlog(&[2, 4]);
        backlog.insert(pending(3));
        let in_flight = vec![pending(1), pending(5)];
        backlog.take_back(in_flight);
        assert_eq!(order(&mut backlog), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_return_is_forgotten_with_the_connection_that_it_came_on() {
        let mut backlog = backlog(&[]);
        backlog.take_back(vec![Pending { returned: Some("no route".into()), ..pending(1) }]);
        assert_eq!(backlog.pop_front().expect("a task").returned, None);
    }

    #[test]
    fn a_task_that_is_given_up_has_its_last_refusal_as_its_outcome() {
        let mut backlog = backlog(&[1, 3]);
        let mut refused = pending(2);
        refused.retry_later(Refusal::Nack, &mut LastRefusal::default());
        assert!(!backlog.has_only_refused());
        backlog.insert(refused);
        backlog.insert(Pending { sent: true, ..pending(0) });
        backlog.give_up(&unconfirmed("late"), |it| it.ticket < 3);
        let resolved = backlog.take_resolved().into_iter();
        let outcomes: Vec<_> = resolved.map(|it| (it.ticket, it.outcome.to_string())).collect();
        let nacked = "nacked: queue 'q' refused it: nack, without a reason";
        let [late, unsent] = ["unconfirmed: late", "not sent: late"].map(str::to_string);
        assert_eq!(outcomes, [(0, late), (1, unsent), (2, nacked.to_string())]);
        assert_eq!(order(&mut backlog), [3]);
    }
}
