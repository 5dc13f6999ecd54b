//! The publishes of one channel that wait for their confirm: how many, how large, how old. Pure.

use std::time::{Duration, Instant};

use crate::amqp::channel::{Reach, Returned};
use crate::publish::confirms::Confirms;
use crate::publish::pending::Pending;
use crate::publish::returns::{ReturnKey, Returns, UnknownReturn};

/// What was published on one channel and is neither confirmed nor given up.
pub(crate) struct InFlight<T> {
    confirms: Confirms<Pending<T>, ReturnKey>,
    returns: Returns,
    bytes: usize,
    /// Whether tasks were taken out without a trace.
    is_abandoned: bool,
    /// Whether a task may follow others that have more time left.
    out_of_order: bool,
    /// The latest deadline, as long as all are in order.
    latest: Option<Instant>,
}

/// By how much deadlines may differ that count as the same: several threads take them at a time.
const SAME_TIME: Duration = Duration::from_millis(10);

/// The most bytes in flight, unless it is a single task: below the mark of 16 MiB at which the
/// client library stops reading our channel (amiquip 0.4.2 connection.rs:96).
pub(crate) const WINDOW_BYTES: usize = 8 * 1024 * 1024;

impl<T> InFlight<T> {
    pub(crate) fn new() -> InFlight<T> {
        InFlight {
            confirms: Confirms::new(),
            returns: Returns::default(),
            bytes: 0,
            is_abandoned: false,
            out_of_order: false,
            latest: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.confirms.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.confirms.is_empty()
    }

    pub(crate) fn outstanding(&self) -> impl Iterator<Item = &Pending<T>> {
        self.confirms.outstanding()
    }

    /// Whether the bytes of one more task fit.
    pub(crate) fn has_room_for(&self, next: &Pending<T>) -> bool {
        self.bytes + next.task.size_on_the_wire() <= WINDOW_BYTES
    }

    /// Whether the broker has confirmed everything, also what was given up.
    pub(crate) fn is_all_confirmed(&self) -> bool {
        !self.is_abandoned && self.confirms.owes_none()
    }

    /// Adds the next publish on the channel.
    pub(crate) fn add(&mut self, pending: Pending<T>) {
        if self.is_empty() {
            (self.out_of_order, self.latest) = (false, None);
        }
        self.out_of_order |= self.latest.is_some_and(|it| pending.deadline + SAME_TIME < it);
        self.latest = self.latest.max(Some(pending.deadline));
        self.bytes += pending.task.size_on_the_wire();
        self.confirms.publish(pending);
    }

    /// Records a return with the publish that it belongs to.
    pub(crate) fn record_return(&mut self, returned: Returned) -> Result<(), UnknownReturn> {
        self.returns.record(returned, &mut self.confirms)
    }

    /// Whether a confirm can speak of these publishes.
    pub(crate) fn allows(&self, reach: Reach) -> bool {
        self.confirms.allows(reach)
    }

    /// Takes out what a confirm resolves; apart from that, the keys of what was given up.
    pub(crate) fn resolve(&mut self, reach: Reach) -> (Vec<Pending<T>>, Vec<ReturnKey>) {
        let (resolved, given_up) = self.confirms.resolve(reach);
        self.subtract(&resolved);
        (resolved, given_up)
    }

    /// Why the broker returned a task, once its confirm has come.
    pub(crate) fn take_return(&mut self, pending: &mut Pending<T>) -> Option<String> {
        self.returns.take_reason(pending)
    }

    /// Forgets the returns of tasks that were given up, once their confirms have come.
    pub(crate) fn forget_returns(&mut self, given_up: &[ReturnKey]) {
        for key in given_up {
            self.returns.take_late(key);
        }
    }

    pub(crate) fn oldest_deadline(&self) -> Option<Instant> {
        if self.out_of_order {
            return self.confirms.outstanding().map(|pending| pending.deadline).min();
        }
        self.confirms.oldest().map(|pending| pending.deadline)
    }

    /// Leaves no task more time than until this deadline.
    pub(crate) fn end_by(&mut self, deadline: Instant) {
        self.confirms.outstanding_mut().for_each(|it| it.deadline = it.deadline.min(deadline));
    }

    /// Takes out the tasks that `which` picks; their confirms may still come.
    pub(crate) fn give_up(&mut self, which: impl Fn(&Pending<T>) -> bool) -> Vec<Pending<T>> {
        let given_up = self.confirms.give_up(which, ReturnKey::of);
        self.subtract(&given_up);
        given_up
    }

    /// Takes out everything, in the order of publishing.
    pub(crate) fn take_all(&mut self) -> Vec<Pending<T>> {
        self.bytes = 0;
        self.is_abandoned |= !self.is_empty();
        self.confirms.take_all()
    }

    fn subtract(&mut self, gone: &[Pending<T>]) {
        self.bytes -= gone.iter().map(|it| it.task.size_on_the_wire()).sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::queue::{Queue, Target};
    use crate::model::task::Task;

    fn pending(seconds: u64) -> Pending<u64> {
        let place = (Arc::new(Queue::new("q")), Target::Main);
        let deadline = Instant::now() + Duration::from_secs(seconds);
        Pending::new(Task::new("job").with_id("1"), place, deadline, seconds)
    }

    #[test]
    fn bytes_are_counted_until_each_task_is_confirmed_or_given_up() {
        let mut in_flight = InFlight::new();
        let size = pending(1).task.size_on_the_wire();
        (1..=3).for_each(|seconds| in_flight.add(pending(seconds)));
        assert_eq!(in_flight.bytes, 3 * size);
        assert_eq!(in_flight.resolve(Reach::One(2)).0.len(), 1);
        assert_eq!(in_flight.bytes, 2 * size);
        assert_eq!(in_flight.give_up(|it| it.ticket == 1).len(), 1);
        assert_eq!(in_flight.bytes, size);
        assert_eq!(in_flight.resolve(Reach::UpTo(3)).0.len(), 1);
        assert_eq!((in_flight.bytes, in_flight.len()), (0, 0));
        assert!(in_flight.is_all_confirmed());
    }

    #[test]
    fn a_broker_still_owes_the_confirm_of_what_was_given_up() {
        let mut in_flight = InFlight::new();
        in_flight.add(pending(1));
        in_flight.give_up(|_| true);
        assert!(in_flight.is_empty() && !in_flight.is_all_confirmed());
        assert_eq!(in_flight.resolve(Reach::One(1)).1.len(), 1);
        assert!(in_flight.is_all_confirmed());
        in_flight.add(pending(1));
        assert_eq!(in_flight.take_all().len(), 1);
        assert!(in_flight.is_empty() && !in_flight.is_all_confirmed());
    }

    #[test]
    fn the_oldest_deadline_is_that_of_a_task_published_after_younger_ones() {
        let mut in_flight = InFlight::new();
        in_flight.add(pending(20));
        let older = pending(10);
        let deadline = older.deadline;
        in_flight.add(older);
        assert_eq!(in_flight.oldest_deadline(), Some(deadline));
    }
}
