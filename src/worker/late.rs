//! The tasks that were held longer than the broker waits for an ack, as this process knows them: the
//! broker gives such a task to somebody else, and most brokers do not count it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::task::Task;

/// The late tasks of one worker's run.
#[derive(Debug, Default)]
pub(crate) struct LateTasks(Mutex<Tasks>);

#[derive(Debug, Default)]
struct Tasks {
    /// By the number of its thread, what runs that the present session has brought.
    running: HashMap<usize, Mark>,
    /// Whether each was counted. One that was counted and has ended is forgotten.
    late: HashMap<Mark, bool>,
}

/// What becomes of a delivery of a task that this worker had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It was late, and that is to count as a failed attempt.
    Counts,
    /// It still runs here, and is not to run beside itself.
    Waits,
}

/// What a task is known by when it comes again: its id and its body, of which the two ends are
/// enough. One without an id is not known again: others may have the same body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Mark(u64);

/// How much of each end of a body is looked at.
const END: usize = 1024;

impl Mark {
    fn of(task: &Task) -> Option<Mark> {
        let id = task.id()?;
        let body = task.body();
        let mut hasher = DefaultHasher::new();
        (id, body.len()).hash(&mut hasher);
        body[..body.len().min(END)].hash(&mut hasher);
        body[body.len().saturating_sub(END)..].hash(&mut hasher);
        Some(Mark(hasher.finish()))
    }
}

impl LateTasks {
    pub(crate) fn begins(&self, thread: usize, task: &Task) {
        if let Some(mark) = Mark::of(task) {
            self.lock().running.insert(thread, mark);
        }
    }

    pub(crate) fn ends(&self, thread: usize) {
        let mut tasks = self.lock();
        let Some(mark) = tasks.running.remove(&thread) else { return };
        if tasks.late.get(&mark) == Some(&true) {
            tasks.late.remove(&mark);
        }
    }

    /// A new session begins: what still runs, the broker delivers to others, late or not.
    pub(crate) fn begin_session(&self) {
        self.lock().running.clear();
    }

    /// The broker waits no longer for what this thread has.
    pub(crate) fn note(&self, thread: usize) {
        let mut tasks = self.lock();
        if let Some(mark) = tasks.running.get(&thread).copied() {
            tasks.late.insert(mark, false);
        }
    }

    /// What becomes of a delivery of this task, if it is not to be run: each time that it was late
    /// counts once.
    pub(crate) fn judge(&self, task: &Task, redelivered: bool) -> Option<Repeat> {
        let mark = Mark::of(task)?;
        let mut tasks = self.lock();
        let is_running = tasks.running.values().any(|it| *it == mark);
        match tasks.late.get(&mark) {
            Some(false) if redelivered => {
                tasks.late.insert(mark, true);
                if !is_running {
                    tasks.late.remove(&mark);
                }
                Some(Repeat::Counts)
            }
            Some(_) if is_running => Some(Repeat::Waits),
            // It may come before the word that its first delivery is late.
            None if is_running && redelivered => Some(Repeat::Waits),
            Some(_) => {
                // Another task, with the same id and body.
                tasks.late.remove(&mark);
                None
            }
            None => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Repeat::{Counts, Waits};
    use super::*;

    fn task(id: &str, body: &[u8]) -> Task {
        Task::new(body).with_id(id)
    }

    /// In thread 1 this task is late.
    fn late(task: &Task) -> LateTasks {
        let late = LateTasks::default();
        late.begins(1, task);
        late.note(1);
        late.note(2);
        late
    }

    #[test]
    fn a_task_that_was_late_and_has_ended_counts_once() {
        let it = task("a", b"body");
        let late = late(&it);
        late.ends(1);
        assert_eq!(late.judge(&it, true), Some(Counts));
        assert_eq!(late.judge(&it, true), None, "it was counted");
    }

    #[test]
    fn a_task_that_is_late_and_still_runs_counts_once_and_then_waits_for_its_end() {
        let it = task("a", b"body");
        let late = late(&it);
        assert_eq!(late.judge(&it, true), Some(Counts));
        assert_eq!(late.judge(&it, false), Some(Waits), "from its delay queue");
        assert_eq!(late.judge(&it, true), Some(Waits), "given back");
        late.ends(1);
        assert_eq!(late.judge(&it, true), None, "it was counted while it ran");
    }

    #[test]
    fn a_task_that_is_late_again_counts_again() {
        let it = task("a", b"body");
        let late = late(&it);
        assert_eq!(late.judge(&it, true), Some(Counts));
        late.ends(1);
        late.begins(2, &it);
        late.note(2);
        assert_eq!(late.judge(&it, true), Some(Counts));
    }

    #[test]
    fn one_that_comes_before_the_word_that_it_is_late_waits_and_then_counts() {
        let it = task("a", b"body");
        let late = LateTasks::default();
        late.begins(1, &it);
        assert_eq!(late.judge(&it, false), None, "another task, with the same id and body");
        assert_eq!(late.judge(&it, true), Some(Waits));
        late.note(1);
        assert_eq!(late.judge(&it, true), Some(Counts));
    }

    #[test]
    fn what_a_lost_session_has_left_running_holds_up_no_other() {
        let it = task("a", b"body");
        let late = LateTasks::default();
        late.begins(1, &it);
        late.begin_session();
        assert_eq!(late.judge(&it, true), None, "the broker gives it to others");
        late.note(1);
        late.ends(1);
        assert_eq!(late.judge(&it, true), None, "it was not late");
    }

    #[test]
    fn another_task_does_not_count() {
        let it = task("a", b"body");
        let late = late(&it);
        assert_eq!(late.judge(&task("b", b"body"), true), None);
        assert_eq!(late.judge(&task("a", b"other"), true), None);
        late.ends(1);
        assert_eq!(late.judge(&it, false), None, "published anew");
        assert_eq!(late.judge(&it, true), None, "forgotten with that");
    }

    #[test]
    fn tasks_without_an_id_are_never_taken_for_each_other() {
        let same = Task::received(b"same".to_vec(), Default::default());
        let late = late(&same);
        assert_eq!(late.judge(&same, true), None);
        late.ends(1);
        assert_eq!(late.judge(&same, true), None);
    }

    #[test]
    fn a_mark_tells_long_bodies_apart_by_their_ends_and_their_length() {
        let long = |last: u8, length: usize| {
            let mut body = vec![7; length];
            body[length - 1] = last;
            Mark::of(&task("a", &body)).expect("it has an id")
        };
        assert_eq!(long(1, 5000), long(1, 5000));
        assert_ne!(long(1, 5000), long(2, 5000));
        assert_ne!(long(7, 5000), long(7, 5001));
    }
}
