//! Matches the tasks that the broker returns with what is in flight, also late ones. Pure.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::amqp::channel::Returned;
use crate::publish::confirms::Confirms;
use crate::publish::pending::Pending;

/// What identifies a returned task: its queue, its message id, and a hash of its body, which
/// differs for two tasks with the same id. A return has no delivery tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ReturnKey {
    queue: String,
    id: Option<String>,
    body: u64,
}

/// The returns of tasks that were given up, until the confirms of those tasks come.
#[derive(Debug, Default)]
pub(crate) struct Returns {
    /// How many for each key, and the reason of the last.
    late: HashMap<ReturnKey, (usize, String)>,
}

/// A return of a task that was never published.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownReturn;

impl ReturnKey {
    pub(crate) fn of<T>(pending: &Pending<T>) -> ReturnKey {
        let id = pending.task.id().map(str::to_string);
        ReturnKey::new(pending.name().into_owned(), id, pending.task.body())
    }

    fn new(queue: String, id: Option<String>, body: &[u8]) -> ReturnKey {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        ReturnKey { queue, id, body: hasher.finish() }
    }
}

impl Returns {
    /// Records a return with the publish that it belongs to.
    pub(crate) fn record<T>(
        &mut self,
        returned: Returned,
        confirms: &mut Confirms<Pending<T>, ReturnKey>,
    ) -> Result<(), UnknownReturn> {
        let Returned { queue: to, id, body, reason } = returned;
        let key = ReturnKey::new(to, id, &body);
        if key.id.is_some() && confirms.has_unawaited(&key) {
            let (times, last) = self.late.entry(key).or_default();
            *times += 1;
            *last = reason;
            return Ok(());
        }
        mark_returned(&key, &reason, confirms)
    }

    /// Why a task was returned, once its confirm has come. A late return with the same key counts:
    /// the same task was given up before and published again, and it does not matter which of the
    /// two was returned.
    pub(crate) fn take_reason<T>(&mut self, pending: &mut Pending<T>) -> Option<String> {
        let reason = pending.returned.take();
        if reason.is_some() || self.late.is_empty() {
            return reason;
        }
        self.take_late(&ReturnKey::of(pending))
    }

    /// Takes a late return, once the confirm of its task has come.
    pub(crate) fn take_late(&mut self, key: &ReturnKey) -> Option<String> {
        let (times, reason) = self.late.get_mut(key)?;
        let reason = reason.clone();
        *times -= 1;
        if *times == 0 {
            self.late.remove(key);
        }
        Some(reason)
    }
}

/// Marks each publish that a return may belong to, if several have the same id, or none: it is
/// better that a task runs twice than never.
fn mark_returned<T>(
    key: &ReturnKey,
    reason: &str,
    confirms: &mut Confirms<Pending<T>, ReturnKey>,
) -> Result<(), UnknownReturn> {
    let mut is_known = confirms.has_unawaited(key);
    for pending in confirms.outstanding_mut() {
        if pending.task.id() == key.id.as_deref() && pending.name() == key.queue {
            pending.returned = Some(reason.to_owned());
            is_known = true;
        }
    }
    if is_known { Ok(()) } else { Err(UnknownReturn) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::amqp::channel::Reach;
    use crate::model::queue::{Queue, Target};
    use crate::model::task::Task;

    type Unconfirmed = Confirms<Pending<()>, ReturnKey>;

    fn pending(id: &str, body: &str) -> Pending<()> {
        let task = Task::new(body).with_id(id);
        Pending::new(task, (Arc::new(Queue::new("q")), Target::Main), Instant::now(), ())
    }

    fn in_flight(tasks: &[(&str, &str)]) -> (Unconfirmed, Returns) {
        let mut confirms = Confirms::new();
        tasks.iter().for_each(|(id, body)| confirms.publish(pending(id, body)));
        (confirms, Returns::default())
    }

    fn returned(queue: &str, id: &str, body: &str) -> Returned {
        let (queue, id, body) = (queue.into(), Some(id.into()), body.into());
        Returned { queue, id, body, reason: "312 NO_ROUTE".into() }
    }

    fn give_up_all(confirms: &mut Unconfirmed) {
        confirms.give_up(|_| true, ReturnKey::of);
    }

    /// Which of the tasks in flight count as returned once all are confirmed.
    fn resolve_all(confirms: &mut Unconfirmed, returns: &mut Returns) -> Vec<bool> {
        let (mut resolved, given_up) = confirms.resolve(Reach::UpTo(u64::MAX));
        let is_returned = |it: &mut Pending<()>| returns.take_reason(it).is_some();
        let are_returned = resolved.iter_mut().map(is_returned).collect();
        given_up.iter().for_each(|key| drop(returns.take_late(key)));
        are_returned
    }

    #[test]
    fn a_return_marks_each_task_in_flight_with_its_id_and_queue() {
        let (mut confirms, mut returns) = in_flight(&[("1", "a"), ("2", "b"), ("1", "c")]);
        assert_eq!(returns.record(returned("q", "1", "a"), &mut confirms), Ok(()));
        assert_eq!(resolve_all(&mut confirms, &mut returns), [true, false, true]);
    }

    #[test]
    fn a_return_of_what_was_not_published_is_unknown() {
        let (mut confirms, mut returns) = in_flight(&[("1", "a")]);
        for unknown in [returned("q", "2", "a"), returned("q.dead", "1", "a")] {
            assert_eq!(returns.record(unknown, &mut confirms), Err(UnknownReturn));
        }
        assert_eq!(resolve_all(&mut confirms, &mut returns), [false]);
    }

    #[test]
    fn a_late_return_counts_for_the_same_task_published_again_and_once() {
        let (mut confirms, mut returns) = in_flight(&[("1", "a")]);
        give_up_all(&mut confirms);
        assert_eq!(returns.record(returned("q", "1", "a"), &mut confirms), Ok(()));
        confirms.publish(pending("1", "a"));
        confirms.publish(pending("1", "a"));
        assert_eq!(resolve_all(&mut confirms, &mut returns), [true, false]);
    }

    #[test]
    fn a_late_return_is_not_of_another_task_with_the_same_id() {
        let (mut confirms, mut returns) = in_flight(&[("1", "a")]);
        give_up_all(&mut confirms);
        confirms.publish(pending("1", "other"));
        assert_eq!(returns.record(returned("q", "1", "a"), &mut confirms), Ok(()));
        assert_eq!(resolve_all(&mut confirms, &mut returns), [false]);
        assert!(returns.late.is_empty(), "{returns:?}");
    }
}
