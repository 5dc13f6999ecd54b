//! Recognizes tasks that ran longer than the broker waits for an ack (`consumer_timeout`). The broker
//! delivers such a task again, and most brokers do not count that.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::task::Task;

/// The late tasks of one worker's run.
#[derive(Debug, Default)]
pub(crate) struct LateTasks {
    tasks: Mutex<Tasks>,
    /// Whether any task of the run was late. If not, nearly every delivery is checked without the
    /// lock, which the threads that run the tasks take.
    any_late: AtomicBool,
}

#[derive(Debug, Default)]
struct Tasks {
    /// By the number of its thread, each running task that the present session received.
    running: HashMap<usize, Mark>,
    /// An entry is removed once its task has ended and is counted.
    late: HashMap<Mark, LateAttempt>,
}

/// Whether the attempt that was late counts as a failure already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LateAttempt {
    /// It may be late: a redelivered task without an id waits for the word.
    InQuestion,
    Uncounted,
    Counted,
}

/// What to do with a repeated delivery instead of running it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// The task was late: count that as a failed attempt.
    CountFailure,
    /// The task still runs here: do not run it twice at the same time.
    Wait,
}

/// Identifies a task when it comes again: by its id, the length of its body and the body's two ends.
///
/// Tasks without an id may have the same body. One of them waits once for the word that another is
/// late, and not for its end. If one was late, the next of them that is redelivered counts in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Mark {
    hash: u64,
    has_id: bool,
}

/// How many bytes of each end of a body count.
const END: usize = 1024;

impl Mark {
    fn of(task: &Task) -> Mark {
        let body = task.body();
        let mut hasher = DefaultHasher::new();
        (task.id(), body.len()).hash(&mut hasher);
        body[..body.len().min(END)].hash(&mut hasher);
        body[body.len().saturating_sub(END)..].hash(&mut hasher);
        Mark { hash: hasher.finish(), has_id: task.id().is_some() }
    }
}

impl LateTasks {
    pub(crate) fn started(&self, thread: usize, task: &Task) {
        let mark = Mark::of(task);
        self.lock().running.insert(thread, mark);
    }

    pub(crate) fn ended(&self, thread: usize) {
        let mut tasks = self.lock();
        let Some(mark) = tasks.running.remove(&thread) else { return };
        if tasks.late.get(&mark) == Some(&LateAttempt::Counted) {
            tasks.late.remove(&mark);
        }
    }

    /// Forgets running tasks when a new session begins: the broker has requeued them all, late or
    /// not.
    pub(crate) fn begin_session(&self) {
        self.lock().running.clear();
    }

    /// Marks the task of this thread as late: the broker waits no longer for its ack.
    pub(crate) fn mark_late(&self, thread: usize) {
        let mut tasks = self.lock();
        if let Some(mark) = tasks.running.get(&thread).copied() {
            tasks.late.insert(mark, LateAttempt::Uncounted);
            self.any_late.store(true, Ordering::Release);
        }
    }

    /// Says what to do with a delivery that must not run; `None` for one that may. Each late attempt
    /// counts once.
    pub(crate) fn check(&self, task: &Task, redelivered: bool) -> Option<Repeat> {
        if !redelivered && !self.any_late.load(Ordering::Acquire) {
            return None;
        }
        let (mark, mut tasks) = (Mark::of(task), self.lock());
        match mark.has_id {
            true => tasks.check_with_id(mark, redelivered),
            false => tasks.check_without_id(mark, redelivered),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tasks {
    fn is_running(&self, mark: Mark) -> bool {
        self.running.values().any(|it| *it == mark)
    }

    fn check_with_id(&mut self, mark: Mark, redelivered: bool) -> Option<Repeat> {
        let is_running = self.is_running(mark);
        match self.late.get(&mark) {
            Some(LateAttempt::Uncounted) if redelivered => {
                self.late.insert(mark, LateAttempt::Counted);
                if !is_running {
                    self.late.remove(&mark);
                }
                Some(Repeat::CountFailure)
            }
            Some(_) if is_running => Some(Repeat::Wait),
            // The repeated delivery may arrive before we learn that the first one is late.
            None if is_running && redelivered => Some(Repeat::Wait),
            Some(_) => {
                // Another task, with the same id and body.
                self.late.remove(&mark);
                None
            }
            None => None,
        }
    }

    fn check_without_id(&mut self, mark: Mark, redelivered: bool) -> Option<Repeat> {
        match self.late.get(&mark) {
            Some(LateAttempt::Uncounted) if redelivered => {
                self.late.remove(&mark);
                Some(Repeat::CountFailure)
            }
            Some(LateAttempt::InQuestion) => {
                self.late.remove(&mark);
                None
            }
            None if redelivered && self.is_running(mark) => {
                self.late.insert(mark, LateAttempt::InQuestion);
                Some(Repeat::Wait)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Repeat::{CountFailure, Wait};
    use super::*;

    fn task(id: &str, body: &[u8]) -> Task {
        Task::new(body).with_id(id)
    }

    /// In thread 1 this task is late.
    fn late(task: &Task) -> LateTasks {
        let late = LateTasks::default();
        late.started(1, task);
        late.mark_late(1);
        late.mark_late(2);
        late
    }

    #[test]
    fn a_task_that_was_late_and_has_ended_counts_once() {
        let it = task("a", b"body");
        let late = late(&it);
        late.ended(1);
        assert_eq!(late.check(&it, true), Some(CountFailure));
        assert_eq!(late.check(&it, true), None, "it was counted");
    }

    #[test]
    fn a_task_that_is_late_and_still_runs_counts_once_and_then_waits_for_its_end() {
        let it = task("a", b"body");
        let late = late(&it);
        assert_eq!(late.check(&it, true), Some(CountFailure));
        assert_eq!(late.check(&it, false), Some(Wait), "from its delay queue");
        assert_eq!(late.check(&it, true), Some(Wait), "given back");
        late.ended(1);
        assert_eq!(late.check(&it, true), None, "it was counted while it ran");
    }

    #[test]
    fn a_task_that_is_late_again_counts_again() {
        let it = task("a", b"body");
        let late = late(&it);
        assert_eq!(late.check(&it, true), Some(CountFailure));
        late.ended(1);
        late.started(2, &it);
        late.mark_late(2);
        assert_eq!(late.check(&it, true), Some(CountFailure));
    }

    #[test]
    fn one_that_comes_before_the_word_that_it_is_late_waits_and_then_counts() {
        let it = task("a", b"body");
        let late = LateTasks::default();
        late.started(1, &it);
        assert_eq!(late.check(&it, false), None, "another task, with the same id and body");
        assert_eq!(late.check(&it, true), Some(Wait));
        late.mark_late(1);
        assert_eq!(late.check(&it, true), Some(CountFailure));
    }

    #[test]
    fn what_a_lost_session_has_left_running_holds_up_no_other() {
        let it = task("a", b"body");
        let late = LateTasks::default();
        late.started(1, &it);
        late.begin_session();
        assert_eq!(late.check(&it, true), None, "the broker gives it to others");
        late.mark_late(1);
        late.ended(1);
        assert_eq!(late.check(&it, true), None, "it was not late");
    }

    #[test]
    fn another_task_does_not_count() {
        let it = task("a", b"body");
        let late = late(&it);
        assert_eq!(late.check(&task("b", b"body"), true), None);
        assert_eq!(late.check(&task("a", b"other"), true), None);
        late.ended(1);
        assert_eq!(late.check(&it, false), None, "published anew");
        assert_eq!(late.check(&it, true), None, "forgotten with that");
    }

    fn task_without_id() -> Task {
        Task::received(b"same".to_vec(), Default::default())
    }

    #[test]
    fn of_tasks_without_an_id_one_waits_once_for_the_word_that_another_is_late() {
        let same = task_without_id();
        let late = LateTasks::default();
        late.started(1, &same);
        assert_eq!(late.check(&same, true), Some(Wait));
        assert_eq!(late.check(&same, true), None, "there was no word");
        assert_eq!(late.check(&same, true), Some(Wait));
        late.mark_late(1);
        assert_eq!(late.check(&same, true), Some(CountFailure));
    }

    #[test]
    fn a_late_task_without_an_id_counts_once_each_time() {
        let same = task_without_id();
        let late = late(&same);
        assert_eq!(late.check(&same, false), None, "another task, with the same body");
        assert_eq!(late.check(&same, true), Some(CountFailure));
        late.ended(1);
        assert_eq!(late.check(&same, true), None, "it was counted");
        late.started(2, &same);
        late.mark_late(2);
        late.ended(2);
        assert_eq!(late.check(&same, true), Some(CountFailure));
    }

    #[test]
    fn a_mark_distinguishes_long_bodies_by_their_ends_and_their_length() {
        let long = |last: u8, length: usize| {
            let mut body = vec![7; length];
            body[length - 1] = last;
            Mark::of(&task("a", &body))
        };
        assert_eq!(long(1, 5000), long(1, 5000));
        assert_ne!(long(1, 5000), long(2, 5000));
        assert_ne!(long(7, 5000), long(7, 5001));
    }
}
