//! Numbers the tasks of a batch, and finds batch and number again in a task. Pure.

pub(crate) mod id;
pub(crate) mod outcome;

use crate::model::batch::id::BatchId;
use crate::model::queue::{Queue, Target};
use crate::model::task::{Task, Value};

/// One task of a batch, as a worker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchTask {
    pub(crate) batch: BatchId,
    /// The number of the task, from 1.
    pub(crate) n: u64,
}

/// The header of a task whose standard output comes back with its outcome.
const OUTPUT: &str = "x-rabbit-work-output";

impl BatchId {
    /// The task as the one of this number. Its id is the same each time, unless it has one.
    pub(crate) fn number(self, n: u64, task: Task, queue: &Queue) -> Task {
        let task = if task.id().is_none() { task.with_id(format!("{self}-{n}")) } else { task };
        task.with_correlation_id(format!("{self}/{n}"))
            .with_reply_to(queue.name_of(Target::Batch(self)))
    }
}

impl BatchTask {
    /// The batch that waits for this task, if one does. Its queue of outcomes belongs to the queue
    /// that the task came from: no task makes a worker write elsewhere.
    pub(crate) fn of(task: &Task, queue: &str) -> Option<BatchTask> {
        let batch = task.reply_to()?.strip_prefix(queue)?.strip_prefix(".batch.")?;
        let batch = BatchId::parse(batch)?;
        let (of, n) = task.correlation_id()?.split_once('/')?;
        let is_number = n.bytes().all(|byte| byte.is_ascii_digit()) && !n.starts_with('0');
        let n = n.parse().ok().filter(|_| is_number)?;
        (BatchId::parse(of) == Some(batch)).then_some(BatchTask { batch, n })
    }

    /// The id that an outcome has in common with its task.
    pub(crate) fn correlation_id(self) -> String {
        format!("{}/{}", self.batch, self.n)
    }
}

/// Asks for the standard output of the task's program.
pub(crate) fn ask_for_output(task: Task) -> Task {
    task.with_value(OUTPUT, Some(Value::Boolean(true)))
}

/// Whether the standard output of the task's program is to come back.
pub(crate) fn wants_output(task: &Task, queue: &str) -> bool {
    task.value(OUTPUT) == Some(&Value::Boolean(true)) && BatchTask::of(task, queue).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    fn found(reply_to: &str, correlation_id: &str) -> Option<BatchTask> {
        let task = Task::new("").with_reply_to(reply_to).with_correlation_id(correlation_id);
        BatchTask::of(&task, "q")
    }

    #[test]
    fn a_task_of_a_batch_is_found_by_its_own_queue() {
        let (queue, id) = (Queue::new("q"), BatchId::parse(ID).expect("an id"));
        let task = id.number(7, Task::new("x"), &queue);
        assert_eq!(task.id(), Some(format!("{ID}-7").as_str()));
        assert_eq!(task.reply_to(), Some(format!("q.batch.{ID}").as_str()));
        assert_eq!(BatchTask::of(&task, "q"), Some(BatchTask { batch: id, n: 7 }));
        assert_eq!(BatchTask::of(&task, "other"), None);
        assert_eq!(BatchTask::of(&Task::new(""), "q"), None);
        assert_eq!(id.number(7, Task::new("x").with_id("mine"), &queue).id(), Some("mine"));
    }

    #[test]
    fn only_the_exact_name_is_answered() {
        let good = format!("{ID}/1");
        assert!(found(&format!("q.batch.{ID}"), &good).is_some());
        for forged in [
            String::new(),
            "q".into(),
            "q.dead".into(),
            ID.into(),
            format!("other.batch.{ID}"),
            format!("q.batch.{ID}x"),
            format!("q.batch.{}", &ID[1..]),
            format!("q.batch.+{}", &ID[1..]),
            format!("q.batch.{}", ID.to_uppercase()),
            format!("q.batch.{ID}.batch.{ID}"),
            format!("Q.batch.{ID}"),
            format!(" q.batch.{ID}"),
        ] {
            assert_eq!(found(&forged, &good), None, "{forged}");
        }
    }

    #[test]
    fn only_the_exact_number_counts() {
        let other = ID.replace('0', "1");
        for forged in [
            String::new(),
            ID.into(),
            format!("{ID}/"),
            format!("{ID}/0"),
            format!("{ID}/01"),
            format!("{ID}/+1"),
            format!("{ID}/1/1"),
            format!("{ID}/x"),
            format!("{ID}/99999999999999999999"),
            format!("{other}/1"),
        ] {
            assert_eq!(found(&format!("q.batch.{ID}"), &forged), None, "{forged}");
        }
    }

    proptest! {
        #[test]
        fn property_each_number_comes_back(id: u128, n in 1..u64::MAX, queue in "[a-z.]{1,20}") {
            let queue = Queue::new(queue);
            let task = BatchId::of(id).number(n, Task::new(""), &queue);
            let found = BatchTask::of(&task, queue.name());
            prop_assert_eq!(found, Some(BatchTask { batch: BatchId::of(id), n }));
            let id = found.map(BatchTask::correlation_id);
            prop_assert_eq!(id.as_deref(), task.correlation_id());
        }

        #[test]
        fn property_no_text_leads_elsewhere(reply_to in ".{0,60}", correlation_id in ".{0,60}") {
            if let Some(found) = found(&reply_to, &correlation_id) {
                prop_assert_eq!(Queue::new("q").name_of(Target::Batch(found.batch)), reply_to);
            }
        }
    }
}
