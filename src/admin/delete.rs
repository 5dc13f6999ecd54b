//! [`Inspector::delete`]: deletes a queue and all that belongs to it; and removes the tasks of its delay
//! queues.

use crate::admin::Inspector;
use crate::model::error::Error;
use crate::model::queue::Target;

impl Inspector {
    /// The queue, its delay queues and its dead-letter queue, as far as they exist, each with the number of
    /// its ready tasks: what [`delete`](Inspector::delete) would delete.
    ///
    /// # Errors
    /// As [`status`](Inspector::status).
    ///
    /// # Blocking
    /// As [`status`](Inspector::status).
    pub fn queues(&mut self) -> Result<Vec<(String, u64)>, Error> {
        let status = self.status()?;
        let mut queues = vec![(self.queue.name().to_string(), status.ready)];
        let delayed = status.delayed.iter();
        queues.extend(delayed.map(|it| (self.queue.name_of(Target::Delay(it.delay)), it.tasks)));
        if let Some(dead) = self.count(Target::Dead)? {
            queues.push((self.queue.name_of(Target::Dead), dead.ready));
        }
        Ok(queues)
    }

    /// Deletes the queue, its delay queues and its dead-letter queue with all tasks in them, for good.
    /// Returns each with the number of tasks that were ready in it. First stop its workers: they would
    /// create the queue again. The queues of outcomes of its batches stay; the broker deletes each after
    /// a week without use.
    ///
    /// # Errors
    /// As [`purge`](Inspector::purge). The queue itself is deleted last, so after an error a second
    /// call deletes what is left.
    ///
    /// # Blocking
    /// As [`status`](Inspector::status), and for one more answer of the broker for each queue.
    pub fn delete(&mut self) -> Result<Vec<(String, u64)>, Error> {
        let queues = self.queues()?;
        for (name, _) in queues.iter().rev() {
            let deleted = self.ask_about(name, |channel| channel.delete(name));
            deleted.map_err(|error| Error::unanswered("delete", name, error))?;
        }
        Ok(queues)
    }

    /// Removes every task that waits in a delay queue, and returns how many: failed and deferred ones, and
    /// those published with a delay. Tasks in the queue itself stay.
    ///
    /// # Errors
    /// As [`purge`](Inspector::purge).
    ///
    /// # Blocking
    /// As [`status`](Inspector::status), and for two more answers of the broker for each delay queue.
    pub fn purge_delayed(&mut self) -> Result<u64, Error> {
        let mut purged = 0;
        for delayed in self.status()?.delayed {
            purged += self.purge_target(Target::Delay(delayed.delay))?.unwrap_or(0);
        }
        Ok(purged)
    }
}
