//! [`FollowUps`]: the tasks that a handler wants published once its own is done.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use uuid::{Uuid, uuid};

use crate::model::error::Error;
use crate::model::queue::Queue;
use crate::model::task::{Ids, Task};

/// The follow-ups of one delivery; see [`Delivery::follow_up`](crate::Delivery::follow_up).
#[derive(Debug)]
pub(crate) enum FollowUps {
    Kept(Mutex<Vec<(Queue, Task)>>),
    /// With automatic acks: the broker has forgotten the task, so it cannot come back if one of them is
    /// not confirmed.
    Refused,
}

/// The name space of their ids.
const IDS: Uuid = uuid!("1d3c8a3e-6f0b-4c55-9e0f-5f6d1c0a7b42");

impl Default for FollowUps {
    fn default() -> FollowUps {
        FollowUps::Kept(Mutex::default())
    }
}

impl FollowUps {
    pub(crate) fn is_empty(&self) -> bool {
        self.list().is_none_or(|list| list.is_empty())
    }

    /// Takes them out, in the order in which they were added.
    pub(crate) fn take(&self) -> Vec<(Queue, Task)> {
        self.list().map(|mut list| std::mem::take(&mut *list)).unwrap_or_default()
    }

    /// Adds a follow-up of the task with this id from the queue of this name. Returns the id of the
    /// follow-up.
    pub(crate) fn add(
        &self,
        of: Option<&str>,
        from: &str,
        queue: &Queue,
        task: Task,
    ) -> Result<String, Error> {
        let Some(mut list) = self.list() else {
            let reason = "a worker with auto-ack cannot publish one safely; let it ack after the \
                          work, or publish the task with a Producer";
            return Err(Error::setting("follow-up", reason));
        };
        queue.validate()?;
        task.validate_for(queue)?;
        let task = match (task.id(), of) {
            (None, Some(of)) => task.with_id(id_of(of, from, list.len() + 1)),
            _ => task,
        };
        let task = task.stamped(SystemTime::now(), &mut Ids::new());
        let id = task.id().unwrap_or_default().to_string();
        list.push((queue.clone(), task));
        Ok(id)
    }

    /// Those that were added so far.
    pub(crate) fn copies(&self) -> Vec<(Queue, Task)> {
        self.list().map(|list| list.clone()).unwrap_or_default()
    }

    fn list(&self) -> Option<MutexGuard<'_, Vec<(Queue, Task)>>> {
        match self {
            FollowUps::Kept(list) => Some(list.lock().unwrap_or_else(PoisonError::into_inner)),
            FollowUps::Refused => None,
        }
    }
}

/// The id of the follow-up of this number, from 1. Tasks of other queues may have the same id.
fn id_of(task: &str, queue: &str, number: usize) -> String {
    Uuid::new_v5(&IDS, format!("{number} of {task} in {queue}").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::model::handler::{Delivery, test_delivery};

    fn ids(task: Task) -> Vec<String> {
        let (delivery, mail) = (test_delivery(task), Queue::new("mails"));
        let ask = |body: &str| delivery.follow_up(&mail, Task::new(body)).expect("accepted");
        vec![ask("one"), ask("one")]
    }

    #[test]
    fn the_ids_of_follow_ups_are_the_same_in_each_run_of_a_task_and_of_no_other() {
        let first = ids(Task::new("x").with_id("17"));
        assert_eq!(first, ids(Task::new("x").with_id("17")));
        let others = [ids(Task::new("x").with_id("18")), ids(Task::new("x")), ids(Task::new("x"))];
        let all: BTreeSet<_> = others.into_iter().flatten().chain(first).collect();
        assert_eq!(all.len(), 8, "a task without an id has follow-ups with random ones: {all:?}");
        // Written down, because programs of several versions work side by side.
        assert_eq!(id_of("17", "mails", 1), "e2abc4dd-240d-53b5-9f42-28787601f21b");
    }

    #[test]
    fn an_id_of_the_program_s_own_is_kept() {
        let delivery = test_delivery(Task::new("x").with_id("17"));
        let id = delivery.follow_up(&Queue::new("mails"), Task::new("y").with_id("mine"));
        assert_eq!(id.expect("accepted"), "mine");
        assert!(delivery.follow_ups()[0].1.enqueued_at().is_some());
    }

    #[test]
    fn what_the_broker_would_not_take_is_refused_at_once() {
        let (delivery, mail) = (test_delivery(Task::new("x")), Queue::new("mails"));
        assert!(delivery.follow_up(&mail, Task::new("y").with_id("i".repeat(256))).is_err());
        assert!(delivery.follow_up(&Queue::new(""), Task::new("y")).is_err());
        let long = Queue::new("q".repeat(250));
        let delayed = Task::new("y").with_delay(Duration::from_secs(1));
        assert!(delivery.follow_up(&long, delayed).is_err(), "its delay queue has no name");
        assert!(delivery.follow_ups().is_empty());
    }

    #[test]
    fn without_acks_a_follow_up_is_refused_with_the_way_out() {
        let delivery = Delivery { follow_ups: FollowUps::Refused, ..test_delivery(Task::new("x")) };
        let refused = delivery.follow_up(&Queue::new("mails"), Task::new("y"));
        let text = refused.expect_err("refused").to_string();
        assert!(text.contains("auto-ack") && text.contains("Producer"), "{text}");
        assert!(delivery.follow_ups.is_empty() && delivery.follow_ups().is_empty());
    }
}
