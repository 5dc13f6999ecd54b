//! [`Recorder`]: takes the place of a producer in tests.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::model::error::Error;
use crate::model::outcome::Outcome;
use crate::model::task::{Ids, Task};
use crate::publish::publish_trait::Publish;
use crate::publish::receipt::Receipt;

/// Keeps the tasks that a program publishes, in their order, and confirms each. It refuses the tasks
/// that a [`Producer`](crate::Producer) refuses. Clones share what they keep: give one to the program.
///
/// ```
/// use rabbit_work::testing::Recorder;
/// use rabbit_work::{Outcome, Publish, Task};
///
/// let recorder = Recorder::new();
/// let mut producer = recorder.clone();
/// recorder.next_outcome(Outcome::nacked("the queue is full"));
/// assert!(producer.publish(Task::new("first")).is_err());
/// assert!(producer.publish(Task::new("second")).is_ok());
/// let bodies: Vec<_> = recorder.tasks().iter().map(|it| it.body().to_vec()).collect();
/// assert_eq!(bodies, [b"second"]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<Records>>);

#[derive(Debug, Default)]
struct Records {
    confirmed: Vec<Task>,
    next: VecDeque<Outcome>,
}

impl Recorder {
    /// A recorder without tasks.
    #[must_use]
    pub fn new() -> Recorder {
        Recorder::default()
    }

    /// The tasks that were confirmed.
    #[must_use]
    pub fn tasks(&self) -> Vec<Task> {
        self.records().confirmed.clone()
    }

    /// Gives this outcome to the next task that has none yet. Call it several times for several
    /// tasks; later ones are confirmed.
    pub fn next_outcome(&self, outcome: Outcome) {
        self.records().next.push_back(outcome);
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, task: Task) -> Receipt {
        let task = task.stamped(SystemTime::now(), &mut Ids::new());
        let mut records = self.records();
        let outcome = records.next.pop_front().unwrap_or(Outcome::Confirmed);
        if outcome == Outcome::Confirmed {
            records.confirmed.push(task.clone());
        }
        Receipt { task, outcome }
    }
}

impl Publish for Recorder {
    fn publish(&mut self, task: Task) -> Result<String, Error> {
        task.validate()?;
        self.record(task).into_result()
    }

    fn publish_all(&mut self, tasks: Vec<Task>) -> Vec<Receipt> {
        let receipt = |task: Task| match task.validate() {
            Ok(()) => self.record(task),
            Err(error) => Receipt { task, outcome: Outcome::refused(error.to_string()) },
        };
        tasks.into_iter().map(receipt).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(recorder: &Recorder) -> Vec<Vec<u8>> {
        recorder.tasks().iter().map(|it| it.body().to_vec()).collect()
    }

    #[test]
    fn each_task_has_the_outcome_that_was_asked_for() {
        let mut recorder = Recorder::new();
        recorder.next_outcome(Outcome::returned("no queue"));
        recorder.next_outcome(Outcome::Confirmed);
        recorder.next_outcome(Outcome::unconfirmed("no answer"));
        let error = recorder.publish(Task::new("1")).expect_err("returned");
        let Error::NotConfirmed { outcome, task } = error else { panic!("{error}") };
        assert!(matches!(outcome, Outcome::Returned { .. }) && task.body() == b"1");
        let receipts = recorder.publish_all(["2", "3", "4"].map(Task::new).into());
        let confirmed: Vec<_> =
            receipts.iter().map(|it| it.outcome == Outcome::Confirmed).collect();
        assert_eq!(confirmed, [true, false, true]);
        assert_eq!(bodies(&recorder), [b"2", b"4"]);
    }

    #[test]
    fn a_task_is_stamped_or_refused_as_by_a_producer() {
        let mut recorder = Recorder::new();
        let wrong = Task::new("x").with_id("i".repeat(256));
        assert!(matches!(recorder.publish(wrong.clone()), Err(Error::InvalidSetting { .. })));
        let receipts = recorder.publish_all(vec![wrong]);
        assert!(matches!(receipts[0].outcome, Outcome::Refused { .. }));
        let id = recorder.publish(Task::new("y")).expect("confirmed");
        assert_eq!(recorder.tasks()[0].id(), Some(id.as_str()));
        assert_eq!(recorder.tasks().len(), 1);
    }
}
