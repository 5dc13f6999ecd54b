//! The tasks that ran longer than the broker waits for an ack, as this process knows them: the
//! broker gives such a task to somebody else, and most brokers do not count it.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::task::Task;

/// The late tasks of one worker's run.
#[derive(Debug, Default)]
pub(crate) struct LateTasks(Mutex<Tasks>);

#[derive(Debug, Default)]
struct Tasks {
    /// By the number of its thread, what runs.
    running: HashMap<usize, Mark>,
    /// The threads that run what an earlier session has brought.
    orphaned: HashSet<usize>,
    /// Whether each was counted. One that was counted and has ended is forgotten.
    late: HashMap<Mark, bool>,
}

/// What a task is known by when it comes again: its id and its body, of which the two ends are
/// enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Mark(u64);

/// How much of each end of a body is looked at.
const END: usize = 1024;

impl Mark {
    fn of(task: &Task) -> Mark {
        let body = task.body();
        let mut hasher = DefaultHasher::new();
        (task.id(), body.len()).hash(&mut hasher);
        body[..body.len().min(END)].hash(&mut hasher);
        body[body.len().saturating_sub(END)..].hash(&mut hasher);
        Mark(hasher.finish())
    }
}

impl Tasks {
    fn is_running(&self, mark: Mark, redelivered: bool) -> bool {
        let is_late = self.late.contains_key(&mark);
        let here = |thread: &usize| is_late || redelivered && !self.orphaned.contains(thread);
        self.running.iter().any(|(thread, it)| *it == mark && here(thread))
    }
}

impl LateTasks {
    pub(crate) fn begins(&self, thread: usize, task: &Task) {
        self.lock().running.insert(thread, Mark::of(task));
    }

    /// A new session begins: the broker delivers what still runs to others, late or not.
    pub(crate) fn begin_session(&self) {
        let mut tasks = self.lock();
        tasks.orphaned = tasks.running.keys().copied().collect();
    }

    pub(crate) fn ends(&self, thread: usize) {
        let mut tasks = self.lock();
        tasks.orphaned.remove(&thread);
        let Some(mark) = tasks.running.remove(&thread) else { return };
        if tasks.late.get(&mark) == Some(&true) {
            tasks.late.remove(&mark);
        }
    }

    /// The broker waits no longer for what this thread runs; says whether it runs anything.
    pub(crate) fn note(&self, thread: usize) -> bool {
        let mut tasks = self.lock();
        let Some(mark) = tasks.running.get(&thread).copied() else { return false };
        tasks.late.entry(mark).or_insert(false);
        true
    }

    /// Whether a delivery of this task is to count as a failure instead of being run: once for each
    /// time that it was late, and each time that it comes while it still runs here.
    ///
    /// A task that is delivered again while the session that brought it goes on is late, also if it
    /// comes before the word that its first delivery is lost.
    pub(crate) fn counts(&self, task: &Task, redelivered: bool) -> bool {
        let mut tasks = self.lock();
        if tasks.late.is_empty() && !redelivered {
            return false;
        }
        let mark = Mark::of(task);
        let is_beside_itself = tasks.is_running(mark, redelivered);
        if is_beside_itself {
            tasks.late.insert(mark, true);
            return true;
        }
        // One that was not delivered before is another task, with the same id and body.
        tasks.late.remove(&mark).is_some() && redelivered
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, body: &[u8]) -> Task {
        Task::new(body).with_id(id)
    }

    /// In thread 1 this task is late.
    fn late(task: &Task) -> LateTasks {
        let late = LateTasks::default();
        late.begins(1, task);
        assert!(!late.counts(task, false), "it is not late yet");
        assert!(late.note(1) && !late.note(2));
        late
    }

    #[test]
    fn a_task_that_was_late_and_has_ended_counts_once() {
        let it = task("a", b"body");
        let late = late(&it);
        late.ends(1);
        assert!(late.counts(&it, true));
        assert!(!late.counts(&it, true), "it was counted");
    }

    #[test]
    fn a_task_that_is_late_and_still_runs_counts_each_time_it_comes() {
        let it = task("a", b"body");
        let late = late(&it);
        assert!(late.counts(&it, true) && late.counts(&it, false));
        late.ends(1);
        assert!(!late.counts(&it, true), "it was counted while it ran");
    }

    #[test]
    fn a_task_that_comes_again_counts_while_it_runs_unless_its_session_was_lost() {
        let it = task("a", b"body");
        let late = LateTasks::default();
        late.begins(1, &it);
        late.begin_session();
        assert!(!late.counts(&it, true), "the broker gives it to others");
        late.ends(1);
        late.begins(1, &it);
        assert!(late.counts(&it, true), "before it is known to be late");
        assert!(late.note(1));
        late.ends(1);
        assert!(!late.counts(&it, true), "it was counted");
    }

    #[test]
    fn another_task_does_not_count() {
        let it = task("a", b"body");
        let late = late(&it);
        assert!(!late.counts(&task("b", b"body"), true));
        assert!(!late.counts(&task("a", b"other"), true));
        late.ends(1);
        assert!(!late.counts(&it, false), "published anew");
        assert!(!late.counts(&it, true), "forgotten with that");
    }

    #[test]
    fn a_mark_tells_long_bodies_apart_by_their_ends_and_their_length() {
        let long = |last: u8, length: usize| {
            let mut body = vec![7; length];
            body[length - 1] = last;
            Mark::of(&Task::new(body))
        };
        assert_eq!(long(1, 5000), long(1, 5000));
        assert_ne!(long(1, 5000), long(2, 5000));
        assert_ne!(long(7, 5000), long(7, 5001));
    }
}
